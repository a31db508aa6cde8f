//! One run's hold on a table: claim, commit, discard.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion_execution::memory_pool::MemoryConsumer;
use iceberg::spec::{TableMetadata, UnboundPartitionSpec};
use iceberg::table::Table;
use iceberg::transaction::{AddColumn, ApplyTransactionAction, Transaction};
use iceberg::{ErrorKind as Iceberg, TableCreation, TableIdent};
use orbit_etl_core::fault::failpoint;
use orbit_etl_core::{
    CheckpointRecord, Committable, Committed, Context, Discard, Epoch, Error, ErrorKind, LaneId, Lineage,
    Reject, Result, SinkSession, SinkWriter, StreamInfo,
};

use super::IcebergSink;
use super::record::{Record, key, summary};
use super::writer::{Files, IcebergWriter, Staged};
use crate::catalog::{Opened, table_ident};
use crate::error::from_iceberg;
use crate::guard::{self, Refused};
use crate::types;

pub(super) struct IcebergSession {
    cx: Context,
    sink: IcebergSink,
    input: StreamInfo,
    schema: iceberg::spec::Schema,
    claimed: Option<Claimed>,
}

struct Claimed {
    lineage: Lineage,
    files: Arc<Files>,
}

/// Why an epoch isn't committed.
enum Stop {
    Done,
    Fenced(u64),
    Foreign,
}

impl IcebergSession {
    pub(super) fn new(
        cx: &Context,
        sink: IcebergSink,
        input: StreamInfo,
        schema: iceberg::spec::Schema,
    ) -> Self {
        Self { cx: cx.clone(), sink, input, schema, claimed: None }
    }

    fn claimed(&self) -> Result<(&Lineage, &Arc<Files>)> {
        let claimed = self.claimed.as_ref();
        claimed
            .map(|claimed| (&claimed.lineage, &claimed.files))
            .ok_or_else(|| Error::internal("the table was never claimed"))
    }

    async fn load_or_create(&self, opened: &Opened, ident: &TableIdent) -> Result<Table> {
        let fail = |e| from_iceberg(e, "create a table", ident);
        match opened.catalog.load_table(ident).await {
            Ok(table) => return Ok(table),
            Err(e) if matches!(e.kind(), Iceberg::TableNotFound | Iceberg::NamespaceNotFound) => {}
            Err(e) => {
                // Not every catalog has a kind of its own for this.
                if opened.catalog.table_exists(ident).await.unwrap_or(true) {
                    return Err(from_iceberg(e, "load a table", ident));
                }
            }
        }
        let namespace = ident.namespace();
        if !opened.catalog.namespace_exists(namespace).await.map_err(fail)? {
            match opened.catalog.create_namespace(namespace, Default::default()).await {
                Err(e) if e.kind() != Iceberg::NamespaceAlreadyExists => return Err(fail(e)),
                _ => {}
            }
        }
        let creation = TableCreation::builder()
            .name(ident.name().to_owned())
            .schema(self.schema.clone())
            .partition_spec_opt(self.partition_spec()?)
            .properties(self.sink.properties.clone())
            .build();
        match opened.catalog.create_table(namespace, creation).await {
            Ok(table) => Ok(table),
            Err(e) if e.kind() == Iceberg::TableAlreadyExists => {
                opened.catalog.load_table(ident).await.map_err(fail)
            }
            Err(e) => Err(fail(e)),
        }
    }

    fn partition_spec(&self) -> Result<Option<UnboundPartitionSpec>> {
        if self.sink.partition_by.is_empty() {
            return Ok(None);
        }
        let mut spec = UnboundPartitionSpec::builder();
        for field in &self.sink.partition_by {
            let Some(id) = self.schema.field_id_by_name(&field.column) else {
                return Err(Error::config("a partition column isn't there").with("column", &field.column));
            };
            spec = spec.add_partition_field(id, field.name(), field.transform()?).map_err(|e| {
                Error::config("the partition fields don't go together")
                    .with("column", &field.column)
                    .caused_by(e)
            })?;
        }
        Ok(Some(spec.build()))
    }

    /// The columns that the table lacks. Fails where the table's own don't fit.
    fn missing(&self, table: &TableMetadata) -> Result<Vec<AddColumn>> {
        let schema = table.current_schema();
        let mut missing = Vec::new();
        for field in self.input.schema.fields() {
            match schema.field_by_name(field.name()) {
                Some(there) => types::check_column(field, &there.field_type)?,
                None => {
                    missing.push(AddColumn::optional(field.name(), types::column_to_iceberg(field)?));
                }
            }
        }
        let required = schema.as_struct().fields().iter().filter(|field| field.required);
        for field in required {
            if self.input.schema.column_with_name(&field.name).is_none() {
                return Err(Error::schema("the rows lack a column that the table requires")
                    .with("column", &field.name));
            }
        }
        Ok(missing)
    }

    /// Every file that a snapshot names.
    async fn referenced(&self, table: &Table) -> Result<HashSet<String>> {
        let fail = |e| from_iceberg(e, "read a table's manifests", table.identifier());
        let (mut files, mut seen) = (HashSet::new(), HashSet::new());
        for snapshot in table.metadata().snapshots() {
            let list = table.manifest_list_reader(snapshot).load().await.map_err(fail)?;
            for manifest in list.entries() {
                if seen.insert(manifest.manifest_path.clone()) {
                    let manifest = manifest.load_manifest(table.file_io()).await.map_err(fail)?;
                    files.extend(manifest.entries().iter().map(|entry| entry.file_path().to_owned()));
                }
            }
        }
        Ok(files)
    }
}

#[async_trait]
impl SinkSession for IcebergSession {
    async fn claim(&mut self, lineage: &Lineage) -> Result<Option<Committed>> {
        let ident = table_ident(&self.sink.table)?;
        let opened = self.sink.catalog.open().await?.clone();
        let table = self.load_or_create(&opened, &ident).await?;
        let committed = |record: &Record| Committed {
            lineage: record.lineage.clone(),
            epoch: record.epoch,
            checkpoint: None,
            rejects: Vec::new(),
        };
        let found = Record::read(table.metadata(), &lineage.sink);
        if let Some(found) = found.as_ref().filter(|found| found.lineage != lineage.id) {
            return Ok(Some(committed(found)));
        }
        let missing = self.missing(table.metadata())?;
        let transaction = Transaction::new(&table);
        let properties = transaction
            .update_table_properties()
            .set(key(&lineage.sink, "lineage"), lineage.id.clone())
            .set(key(&lineage.sink, "claim"), lineage.claim.to_string());
        let fail = |e| from_iceberg(e, "claim a table", &ident);
        let mut transaction = properties.apply(transaction).map_err(fail)?;
        if !missing.is_empty() {
            let update = missing.into_iter().fold(transaction.update_schema(), |u, c| u.add_column(c));
            transaction = update.apply(transaction).map_err(fail)?;
        }
        let (id, sink, claim) = (lineage.id.clone(), lineage.sink.clone(), lineage.claim);
        let check = move |table: &TableMetadata| match Record::read(table, &sink) {
            Some(found) if found.lineage != id => Err(Stop::Foreign),
            Some(found) if found.claim > claim => Err(Stop::Fenced(found.claim)),
            _ => Ok(()),
        };
        let table = match guard::commit(transaction, opened.catalog.as_ref(), check).await {
            Ok(table) => table,
            Err(Refused::Check(stop)) => return Err(stopped(&stop, &ident)),
            Err(Refused::Catalog(e)) => return Err(fail(e)),
        };
        // Read again: an older run may have committed between the first look and the claim.
        let now = Record::read(table.metadata(), &lineage.sink);
        let lanes = self.cx.parallelism().max(1);
        let files = Files::new(&table, &opened, lineage, &self.sink, lanes)?;
        self.claimed = Some(Claimed { lineage: lineage.clone(), files: Arc::new(files) });
        Ok(found.and(now).as_ref().map(committed))
    }

    async fn writer(&mut self, lane: LaneId) -> Result<Box<dyn SinkWriter>> {
        let memory = MemoryConsumer::new(format!("{} (lane {})", self.cx.node(), lane.0))
            .with_can_spill(true)
            .register(self.cx.memory());
        Ok(Box::new(IcebergWriter::new(Arc::clone(self.claimed()?.1), memory)))
    }

    async fn commit(
        &mut self,
        epoch: Epoch,
        _checkpoint: &CheckpointRecord,
        staged: Vec<Committable>,
    ) -> Result<Vec<Reject>> {
        let (lineage, _) = self.claimed()?;
        let ident = table_ident(&self.sink.table)?;
        let fail = |e| from_iceberg(e, "commit to a table", &ident);
        let opened = self.sink.catalog.open().await?;
        let table = self.sink.catalog.load(&ident).await?;
        let staged = staged.into_iter().map(Staged::from_committable).collect::<Result<Vec<_>>>()?;
        let data =
            staged.iter().map(|staged| staged.data_file(table.metadata())).collect::<Result<Vec<_>>>()?;

        let mut transaction = Transaction::new(&table);
        if !data.is_empty() {
            let append = transaction
                .fast_append()
                // The epoch is compared already, and this would read every manifest of the table.
                .with_check_duplicate(false)
                .set_snapshot_properties(summary(lineage, epoch))
                .add_data_files(data);
            transaction = append.apply(transaction).map_err(fail)?;
        }
        let record =
            transaction.update_table_properties().set(key(&lineage.sink, "epoch"), epoch.to_string());
        let transaction = record.apply(transaction).map_err(fail)?;
        let own = lineage.clone();
        let check = move |table: &TableMetadata| match Record::read(table, &own.sink) {
            Some(found) if found.lineage != own.id => Err(Stop::Foreign),
            None => Err(Stop::Foreign),
            Some(found) if found.claim > own.claim => Err(Stop::Fenced(found.claim)),
            Some(found) if found.epoch >= epoch => Err(Stop::Done),
            Some(_) => Ok(()),
        };
        failpoint("iceberg_before_commit");
        match guard::commit(transaction, opened.catalog.as_ref(), check).await {
            Ok(_) | Err(Refused::Check(Stop::Done)) => {}
            Err(Refused::Check(stop)) => return Err(stopped(&stop, &ident)),
            Err(Refused::Catalog(e)) => return Err(fail(e)),
        }
        failpoint("iceberg_after_commit");
        Ok(Vec::new())
    }

    async fn discard(&mut self, what: Discard) -> Result<()> {
        let (lineage, files) = self.claimed()?;
        let mut found = files.list().await?;
        match what {
            // Another run's epochs can't be told apart; its files go all at once, as older.
            Discard::Epoch { claim, .. } if claim != lineage.claim => return Ok(()),
            Discard::Epoch { epoch, .. } => {
                let keep = files.of_epochs_below(epoch);
                found.retain(|file| files.claim_of(file) == Some(lineage.claim) && !keep.contains(file));
            }
            Discard::Older { claim, keep } => {
                let keep = keep
                    .into_iter()
                    .map(|one| Ok(Staged::from_committable(one)?.path))
                    .collect::<Result<HashSet<_>>>()?;
                found
                    .retain(|file| files.claim_of(file).is_some_and(|of| of < claim) && !keep.contains(file));
                if !found.is_empty() {
                    // Files of committed epochs have names of the same form.
                    let table = self.sink.catalog.load(&table_ident(&self.sink.table)?).await?;
                    let named = self.referenced(&table).await?;
                    found.retain(|file| !named.contains(file));
                }
            }
        }
        for file in found {
            files.remove(&file).await?;
        }
        Ok(())
    }
}

fn stopped(stop: &Stop, table: &TableIdent) -> Error {
    match stop {
        Stop::Fenced(claim) => {
            Error::fenced("a newer run has taken the table over").with("table", table).with("claim", claim)
        }
        Stop::Foreign | Stop::Done => Error::new(
            ErrorKind::Conflict,
            "the table doesn't know this run any more: it was dropped and made anew, or taken over",
        )
        .retryable(false)
        .with("table", table)
        .remedy("load again with `again: full`, or restore the table"),
    }
}
