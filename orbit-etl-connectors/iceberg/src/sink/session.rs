//! One run's hold on its tables: claim, commit, discard.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datafusion_execution::memory_pool::MemoryConsumer;
use iceberg::spec::TableMetadata;
use iceberg::table::Table;
use iceberg::transaction::{AddColumn, ApplyTransactionAction, Transaction};
use iceberg::writer::file_writer::location_generator::{DefaultLocationGenerator, LocationGenerator};
use iceberg::{ErrorKind as Iceberg, TableIdent};
use orbit_etl_core::fault::failpoint;
use orbit_etl_core::{
    CheckpointRecord, Committable, Committed, Context, Discard, Epoch, Error, ErrorKind, LaneId, Lineage,
    Reject, Result, SinkSession, SinkWriter, StreamInfo,
};

use super::IcebergSink;
use super::create::load_or_create;
use super::plan::{StreamPlan, missing};
use super::record::{Record, key, summary};
use super::staged::{Registry, Staged, claim_of, folder, name_of, run_prefix};
use super::writer::{IcebergWriter, Route, Shared};
use crate::catalog::Opened;
use crate::error::{from_iceberg, replaced};
use crate::guard::{self, Refused};
use crate::types;

/// How often a commit may be lost to other writers before it gives up.
const ATTEMPTS: u32 = 20;
/// How long to wait after the first loss; more after each.
const FIRST_WAIT: Duration = Duration::from_millis(20);
/// How long to wait at most.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// How many tables are claimed at a time.
const TABLES_AT_ONCE: usize = 8;

pub(super) struct IcebergSession {
    cx: Context,
    sink: IcebergSink,
    inputs: Vec<StreamInfo>,
    claimed: Option<Claimed>,
}

struct Claimed {
    lineage: Lineage,
    opened: Opened,
    shared: Arc<Shared>,
    routes: Vec<Route>,
    /// Streams without rests of older runs, which their table's next commit tells.
    swept: HashSet<String>,
}

/// Why nothing is committed.
enum Stop {
    Done,
    Foreign(String),
    Fenced(u64),
    Gone,
}

impl IcebergSession {
    pub(super) fn new(cx: &Context, sink: IcebergSink, inputs: &[StreamInfo]) -> Self {
        Self { cx: cx.clone(), sink, inputs: inputs.to_vec(), claimed: None }
    }

    fn claimed(&self) -> Result<&Claimed> {
        self.claimed.as_ref().ok_or_else(|| Error::internal("the target was never claimed"))
    }

    /// Commits one epoch's files to one table.
    async fn commit_table(&self, stream: &str, epoch: Epoch, files: &[Staged]) -> Result<()> {
        let Claimed { lineage, opened, swept, .. } = self.claimed()?;
        let ident = self.sink.ident(stream)?;
        let mut properties = vec![("epoch", epoch.to_string())];
        if swept.contains(stream) {
            properties.push(("swept", lineage.claim.to_string()));
        }
        let check = |table: &TableMetadata| match Record::read(table, &lineage.sink) {
            Some(found) if found.lineage != lineage.id => Err(Stop::Foreign(found.lineage)),
            Some(found) if found.claim > lineage.claim => Err(Stop::Fenced(found.claim)),
            // A claim can be taken back only together with all that followed.
            Some(found) if found.claim < lineage.claim => Err(Stop::Gone),
            None => Err(Stop::Gone),
            Some(found) if found.epoch >= epoch => Err(Stop::Done),
            Some(_) => Ok(()),
        };
        let build = |table: &Table| {
            let metadata = table.metadata();
            let id = metadata.uuid().to_string();
            if files.iter().any(|file| file.table != id) {
                return Err(replaced(&ident));
            }
            if let Some(file) = files.iter().find(|file| file.spec != metadata.default_partition_spec_id()) {
                return Err(Error::unsupported(
                    "the table's partitioning was changed while rows waited to be committed",
                )
                .with("table", &ident)
                .with("waiting for partition spec", file.spec)
                .with("the table's partition spec", metadata.default_partition_spec_id())
                .remedy("set the table's partitioning back until the pipeline has committed"));
            }
            let mut data = Vec::new();
            for staged in files {
                data.extend(staged.data_files(metadata)?);
            }
            let transaction = Transaction::new(table);
            let append = transaction
                .fast_append()
                // The epoch is compared already, and this would read every manifest of the table.
                .with_check_duplicate(false)
                .set_snapshot_properties(summary(lineage, Some(epoch)))
                .add_data_files(data);
            let transaction = append.apply(transaction).map_err(|e| from_iceberg(&e, "commit", &ident))?;
            set(transaction, &lineage.sink, &properties, &ident)
        };
        failpoint("iceberg_before_commit");
        match publish(opened, &ident, check, build).await? {
            Ok(_) | Err(Stop::Done) => {}
            Err(stop) => return Err(stopped(&stop, &ident)),
        }
        failpoint("iceberg_after_commit");
        Ok(())
    }

    /// Removes what older runs have left of one stream: files that neither a snapshot nor `keep` names.
    async fn sweep(&mut self, route: &Route, than: u64, keep: &HashSet<String>) -> Result<()> {
        let stream = route.plan.name.clone();
        let ident = self.sink.ident(&stream)?;
        let Claimed { lineage, opened, .. } = self.claimed()?;
        let table = opened.load(&ident).await?;
        let from = Record::read(table.metadata(), &lineage.sink).map_or(0, |record| record.swept);
        if from >= than {
            return Ok(());
        }
        let fail = |e| from_iceberg(&e, "list staged files", &ident);
        let mut rest: HashSet<String> = HashSet::new();
        for name in opened.stores.list(&route.folder, &run_prefix(from)).await.map_err(fail)? {
            if claim_of(&name).is_some_and(|claim| claim < than) && !keep.contains(&name) {
                rest.insert(name);
            }
        }
        if !rest.is_empty() {
            spare_named(&table, &mut rest).await.map_err(fail)?;
        }
        for name in rest {
            let file = format!("{}/{name}", route.folder);
            opened.stores.remove(&file).await.map_err(|e| from_iceberg(&e, "remove a staged file", &file))?;
        }
        if keep.is_empty()
            && let Some(claimed) = &mut self.claimed
        {
            claimed.swept.insert(stream);
        }
        Ok(())
    }
}

/// Takes the names of files that any snapshot has out of `names`. Whatever the rest of a path is called,
/// a name belongs to one file alone.
async fn spare_named(table: &Table, names: &mut HashSet<String>) -> iceberg::Result<()> {
    let mut seen = HashSet::new();
    for snapshot in table.metadata().snapshots() {
        let list = table.manifest_list_reader(snapshot).load().await?;
        for manifest in list.entries() {
            if seen.insert(manifest.manifest_path.clone()) {
                let manifest = manifest.load_manifest(table.file_io()).await?;
                for entry in manifest.entries() {
                    names.remove(name_of(entry.file_path()));
                }
            }
        }
    }
    Ok(())
}

#[async_trait]
impl SinkSession for IcebergSession {
    async fn claim(&mut self, lineage: &Lineage) -> Result<Option<Committed>> {
        use futures::{StreamExt, TryStreamExt};

        let opened = self.sink.catalog.open().await?.clone();
        let (sink, opened_ref) = (&self.sink, &opened);
        let taken = futures::stream::iter(self.inputs.clone()).map(|input| async move {
            let (table, before) = take_over(opened_ref, sink, &input, lineage).await?;
            Ok::<_, Error>((input, table, before))
        });
        let taken: Vec<_> = taken.buffered(TABLES_AT_ONCE).try_collect().await?;
        let committed = |lineage: &str, epoch| {
            let lineage = lineage.to_owned();
            Some(Committed { lineage, epoch, checkpoint: None, rejects: Vec::new() })
        };
        if let Some((_, table, _)) = taken.iter().find(|(_, table, _)| table.is_err())
            && let Err(Stop::Foreign(owner)) = table
        {
            return Ok(committed(owner, 0));
        }
        let mut routes = Vec::new();
        let (mut known, mut epoch) = (false, None);
        for (input, table, before) in taken {
            let ident = self.sink.ident(&input.name)?;
            let table = table.map_err(|stop| stopped(&stop, &ident))?;
            known |= before;
            // A table that was idle is behind the others; each skips by itself what it has.
            let own = Record::read(table.metadata(), &lineage.sink).map_or(0, |record| record.epoch);
            epoch = Some(epoch.map_or(own, |epoch: Epoch| epoch.min(own)));
            let fail = |e| from_iceberg(&e, "write to the table", &ident);
            let data = DefaultLocationGenerator::new(table.metadata()).map_err(fail)?;
            routes.push(Route {
                plan: Arc::new(
                    StreamPlan::new(&input.name, &input.schema, table.metadata_ref())
                        .map_err(|e| e.with("table", &ident))?,
                ),
                io: table.file_io().clone(),
                folder: data.generate_location(None, &folder(lineage, table.metadata().uuid())),
            });
        }
        let shared = Shared {
            registry: Registry::default(),
            prefix: run_prefix(lineage.claim),
            properties: self.sink.writer_properties()?,
            target_file_size: usize::try_from(self.sink.target_file_size).unwrap_or(usize::MAX),
            row_group_rows: self.sink.row_group_rows,
            // Each lane has a part of them.
            max_open_files: (self.sink.max_open_files / self.cx.parallelism().max(1)).max(1),
        };
        let shared = Arc::new(shared);
        let swept = HashSet::new();
        self.claimed = Some(Claimed { lineage: lineage.clone(), opened, shared, routes, swept });
        Ok(if known { committed(&lineage.id, epoch.unwrap_or(0)) } else { None })
    }

    async fn writer(&mut self, lane: LaneId) -> Result<Box<dyn SinkWriter>> {
        let memory = MemoryConsumer::new(format!("{} (lane {})", self.cx.node(), lane.0))
            .with_can_spill(true)
            .register(self.cx.memory());
        let Claimed { shared, routes, .. } = self.claimed()?;
        Ok(Box::new(IcebergWriter::new(Arc::clone(shared), lane, routes.clone(), memory)))
    }

    async fn commit(
        &mut self,
        epoch: Epoch,
        _checkpoint: &CheckpointRecord,
        staged: Vec<Committable>,
    ) -> Result<Vec<Reject>> {
        let mut files: BTreeMap<String, Vec<Staged>> = BTreeMap::new();
        // An epoch without rows is recorded too.
        files.extend(self.inputs.iter().map(|input| (input.name.clone(), Vec::new())));
        for committable in staged {
            let file = Staged::from_committable(committable)?;
            files.entry(file.stream.clone()).or_default().push(file);
        }
        for (stream, files) in files {
            self.commit_table(&stream, epoch, &files).await?;
            if let Some(claimed) = &mut self.claimed {
                claimed.swept.remove(&stream);
            }
        }
        self.claimed()?.shared.registry.committed(epoch);
        Ok(Vec::new())
    }

    async fn discard(&mut self, what: Discard) -> Result<()> {
        match what {
            Discard::Epoch { claim, epoch } => {
                let Claimed { lineage, opened, shared, .. } = self.claimed()?;
                // Another run's epochs can't be told apart; its files go all at once, as older.
                if claim != lineage.claim {
                    return Ok(());
                }
                for file in shared.registry.give_up(epoch) {
                    let removed = opened.stores.remove(&file).await;
                    removed.map_err(|e| from_iceberg(&e, "remove a staged file", &file))?;
                }
            }
            Discard::Older { claim, keep } => {
                let mut kept = HashSet::new();
                for committable in keep {
                    let staged = Staged::from_committable(committable)?;
                    kept.extend(staged.paths.iter().map(|path| name_of(path).to_owned()));
                }
                for route in self.claimed()?.routes.clone() {
                    self.sweep(&route, claim, &kept).await?;
                }
            }
        }
        Ok(())
    }
}

/// Writes the claim into a table; makes the table if there is none, and adds columns that it may get.
/// Also says whether the lineage was there before.
async fn take_over(
    opened: &Opened,
    sink: &IcebergSink,
    input: &StreamInfo,
    lineage: &Lineage,
) -> Result<(std::result::Result<Table, Stop>, bool)> {
    let ident = sink.ident(&input.name)?;
    let table = load_or_create(opened, sink, &ident, input).await?;
    failpoint("iceberg_after_create");
    let before = Record::read(table.metadata(), &lineage.sink).is_some();
    let check = |table: &TableMetadata| match Record::read(table, &lineage.sink) {
        Some(found) if found.lineage != lineage.id => Err(Stop::Foreign(found.lineage)),
        Some(found) if found.claim > lineage.claim => Err(Stop::Fenced(found.claim)),
        Some(found) if found.claim == lineage.claim => Err(Stop::Done),
        _ => Ok(()),
    };
    let build = |table: &Table| {
        let fail = |e| from_iceberg(&e, "claim the table", &ident);
        let mut transaction = Transaction::new(table);
        let missing = missing(&input.schema, table.metadata(), sink.schema_mode)
            .map_err(|e| e.with("table", &ident))?;
        if !missing.is_empty() {
            let mut update = transaction.update_schema();
            for field in missing {
                update = update.add_column(AddColumn::optional(field.name(), types::of_column(field)?));
            }
            transaction = update.apply(transaction).map_err(fail)?;
        }
        let claim = transaction
            .fast_append()
            .with_check_duplicate(false)
            .set_snapshot_properties(summary(lineage, None));
        transaction = claim.apply(transaction).map_err(fail)?;
        let properties = [("lineage", lineage.id.clone()), ("claim", lineage.claim.to_string())];
        set(transaction, &lineage.sink, &properties, &ident)
    };
    let taken = match publish(opened, &ident, check, build).await? {
        Err(Stop::Done) => Ok(opened.load(&ident).await?),
        other => other,
    };
    Ok((taken, before))
}

/// Commits what `build` makes of the newest metadata, unless `check` objects to just that. After a loss,
/// or an answer that says nothing, both are asked again.
async fn publish(
    opened: &Opened,
    ident: &TableIdent,
    check: impl Fn(&TableMetadata) -> std::result::Result<(), Stop> + Send + Sync,
    build: impl Fn(&Table) -> Result<Transaction> + Send + Sync,
) -> Result<std::result::Result<Table, Stop>> {
    let mut wait = FIRST_WAIT;
    let mut last = None;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(wait).await;
            wait = (wait * 3 / 2).min(LONGEST_WAIT);
        }
        let table = opened.load(ident).await?;
        if let Err(stop) = check(table.metadata()) {
            return Ok(Err(stop));
        }
        match guard::commit(build(&table)?, opened.catalog.as_ref(), &check).await {
            Ok(table) => return Ok(Ok(table)),
            Err(Refused::Check(stop)) => return Ok(Err(stop)),
            Err(Refused::Catalog(error)) => {
                let told = from_iceberg(&error, "commit to the table", ident);
                let again = error.kind() == Iceberg::PreconditionFailed
                    || matches!(
                        told.kind(),
                        ErrorKind::Conflict | ErrorKind::Unavailable | ErrorKind::Timeout
                    )
                    || told.kind() == ErrorKind::RateLimited;
                if !again {
                    return Err(told);
                }
                last = Some(told);
            }
        }
    }
    Err(last.unwrap_or_else(|| {
        Error::new(ErrorKind::Conflict, "other writers were always quicker").with("table", ident)
    }))
}

/// Sets the sink's properties with the same commit.
fn set(
    transaction: Transaction,
    sink: &str,
    properties: &[(&str, String)],
    table: &TableIdent,
) -> Result<Transaction> {
    let mut update = transaction.update_table_properties();
    for (what, value) in properties {
        update = update.set(key(sink, what), value.clone());
    }
    update.apply(transaction).map_err(|e| from_iceberg(&e, "commit to the table", table))
}

fn stopped(stop: &Stop, table: &TableIdent) -> Error {
    match stop {
        Stop::Fenced(claim) => {
            Error::fenced("a newer run has taken the table over").with("table", table).with("claim", claim)
        }
        Stop::Foreign(_) => Error::new(ErrorKind::Conflict, "another pipeline has taken the table over")
            .retryable(false)
            .with("table", table),
        Stop::Gone | Stop::Done => Error::new(ErrorKind::Conflict, "this run's claim is gone from the table")
            .retryable(false)
            .with("table", table)
            .remedy(
                "the table was restored or made anew: load again into a new one with a new state directory",
            ),
    }
}
