//! One snapshot of a table as a source.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use iceberg::arrow::schema_to_arrow_schema;
use iceberg::scan::FileScanTask;
use iceberg::spec::{DataFileFormat, SnapshotRef};
use iceberg::table::Table;
use orbit_etl_core::{
    Connector, ConnectorInfo, Context, Error, Health, Position, Replay, Result, ScanRequest, Source,
    SourceEvent, Split, SplitChange, StreamId, StreamInfo,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::bridge;
use crate::catalog::{IcebergCatalog, table_ident};
use crate::error::from_iceberg;

/// Reads one snapshot of a table, file by file, with its deletes applied.
///
/// ```
/// use orbit_etl_connector_iceberg::{IcebergCatalog, IcebergSource};
///
/// let source = IcebergSource::new(IcebergCatalog::rest("https://catalog.example.org"), "shop.orders")
///     .reference("end-of-2025");
/// ```
///
/// The snapshot is chosen when the splits are listed for the first time, and stands in the
/// enumerator's position: a run that resumes reads on in the same one. A file replays whole. Deletion
/// vectors (format version 3) are refused.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IcebergSource {
    catalog: IcebergCatalog,
    table: String,
    #[serde(default)]
    snapshot: Option<i64>,
    #[serde(default)]
    timestamp_ms: Option<i64>,
    #[serde(default)]
    reference: Option<String>,
    #[serde(skip)]
    planned: Arc<Mutex<Option<Plan>>>,
}

/// A snapshot's files.
type Plan = (i64, Arc<Vec<FileScanTask>>);

impl IcebergSource {
    /// The table's current snapshot. The table is named `namespace.table`.
    pub fn new(catalog: IcebergCatalog, table: impl Into<String>) -> Self {
        Self {
            catalog,
            table: table.into(),
            snapshot: None,
            timestamp_ms: None,
            reference: None,
            planned: Arc::default(),
        }
    }

    /// The snapshot of this number.
    #[must_use]
    pub fn snapshot(mut self, id: i64) -> Self {
        self.snapshot = Some(id);
        self
    }

    /// The snapshot that was current at this time, in milliseconds since 1970.
    #[must_use]
    pub fn timestamp_ms(mut self, at: i64) -> Self {
        self.timestamp_ms = Some(at);
        self
    }

    /// The snapshot of a tag, or the newest of a branch.
    #[must_use]
    pub fn reference(mut self, name: impl Into<String>) -> Self {
        self.reference = Some(name.into());
        self
    }

    async fn table(&self) -> Result<Table> {
        self.validate()?;
        self.catalog.load(&table_ident(&self.table)?).await
    }

    /// The snapshot that the configuration names; none of an empty table.
    fn chosen(&self, table: &Table) -> Result<Option<SnapshotRef>> {
        let metadata = table.metadata();
        let (found, what) = if let Some(id) = self.snapshot {
            (metadata.snapshot_by_id(id), format!("snapshot {id}"))
        } else if let Some(name) = &self.reference {
            (metadata.snapshot_for_ref(name), format!("reference {name}"))
        } else if let Some(at) = self.timestamp_ms {
            let entry = metadata.history().iter().rev().find(|entry| entry.timestamp_ms() <= at);
            (entry.and_then(|entry| metadata.snapshot_by_id(entry.snapshot_id)), format!("time {at}"))
        } else {
            return Ok(metadata.current_snapshot().cloned());
        };
        let missing = || {
            Error::not_found("the table has no such snapshot, or it has expired")
                .with("table", &self.table)
                .with("wanted", what)
        };
        found.cloned().map(Some).ok_or_else(missing)
    }

    async fn plan(&self, table: &Table, snapshot: i64) -> Result<Arc<Vec<FileScanTask>>> {
        if let Some((of, tasks)) = &*self.planned.lock().unwrap_or_else(PoisonError::into_inner)
            && *of == snapshot
        {
            return Ok(Arc::clone(tasks));
        }
        let fail = |e| from_iceberg(e, "list a snapshot's files", &self.table);
        let scan = table.scan().snapshot_id(snapshot).build().map_err(fail)?;
        let mut tasks: Vec<FileScanTask> =
            scan.plan_files().await.map_err(fail)?.try_collect().await.map_err(fail)?;
        tasks.sort_by(|a, b| (&a.data_file_path, a.start).cmp(&(&b.data_file_path, b.start)));
        for task in &tasks {
            let vector = task.deletes.iter().any(|delete| delete.file_path.ends_with(".puffin"));
            if vector || task.data_file_format != DataFileFormat::Parquet {
                let what = if vector { "deletion vectors" } else { "data files that are not Parquet" };
                return Err(Error::unsupported(format!("{what} can't be read"))
                    .with("table", &self.table)
                    .with("file", &task.data_file_path)
                    .remedy("rewrite the table's files"));
            }
        }
        let tasks = Arc::new(tasks);
        *self.planned.lock().unwrap_or_else(PoisonError::into_inner) = Some((snapshot, Arc::clone(&tasks)));
        Ok(tasks)
    }
}

fn split_id(task: &FileScanTask) -> String {
    format!("{}#{}", task.data_file_path, task.start)
}

#[async_trait]
impl Connector for IcebergSource {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("iceberg", format!("{} in a {} catalog", self.table, self.catalog))
    }

    fn validate(&self) -> Result<()> {
        let ways = [self.snapshot.is_some(), self.timestamp_ms.is_some(), self.reference.is_some()];
        if ways.into_iter().filter(|&way| way).count() > 1 {
            return Err(Error::config("a snapshot can be named in one way only")
                .remedy("give one of `snapshot`, `timestamp_ms` and `reference`"));
        }
        table_ident(&self.table)?;
        self.catalog.validate()
    }

    async fn health(&self, cx: &Context) -> Result<Health> {
        let _ = cx;
        let start = Instant::now();
        let table = self.table().await?;
        self.chosen(&table)?;
        let detail = format!("format version {}", table.metadata().format_version());
        Ok(Health { latency: start.elapsed(), detail })
    }
}

#[async_trait]
impl Source for IcebergSource {
    async fn streams(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        let _ = cx;
        let table = self.table().await?;
        let fail = |e| from_iceberg(e, "read a table's schema", &self.table);
        let schema = match self.chosen(&table)? {
            Some(snapshot) => snapshot.schema(table.metadata()).map_err(fail)?,
            None => Arc::clone(table.metadata().current_schema()),
        };
        let schema = bridge::schema_to_59(&schema_to_arrow_schema(&schema).map_err(fail)?)?;
        let name = self.table.rsplit('.').next().unwrap_or(&self.table);
        Ok(vec![StreamInfo::new(name, schema)])
    }

    fn replay(&self) -> Replay {
        Replay::WholeSplit
    }

    async fn splits(
        &self,
        cx: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        let _ = cx;
        // All splits are told of at once, so there is nothing after the first position.
        if after.is_some() {
            return Ok(futures::stream::empty().boxed());
        }
        let table = self.table().await?;
        let (id, tasks) = match self.chosen(&table)? {
            Some(snapshot) => {
                let id = snapshot.snapshot_id();
                (Some(id), self.plan(&table, id).await?)
            }
            None => (None, Arc::default()),
        };
        let added = tasks
            .iter()
            .map(|task| {
                let mut split = Split::new(split_id(task), json!({"snapshot": id}));
                split.bytes = Some(task.length);
                split
            })
            .collect();
        let position = Position(json!({"snapshot": id}));
        Ok(futures::stream::iter([Ok(SplitChange { added, revoked: Vec::new(), position })]).boxed())
    }

    async fn open(
        &self,
        cx: &Context,
        split: &Split,
        after: Option<&Position>,
        scan: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
        let _ = cx;
        let end = Position(json!({"done": true}));
        if after.is_some() {
            return Ok(futures::stream::iter([Ok(SourceEvent::Finished)]).boxed());
        }
        let Some(snapshot) = split.payload.get("snapshot").and_then(Value::as_i64) else {
            return Err(Error::internal("a split is not this source's").with("split", &split.id));
        };
        let table = self.table().await?;
        let tasks = self.plan(&table, snapshot).await?;
        let task =
            tasks.iter().find(|task| split_id(task) == split.id.as_str()).cloned().ok_or_else(|| {
                Error::not_found("a data file has gone from its snapshot").with("split", &split.id)
            })?;
        let name = self.table.clone();
        let fail = move |e| from_iceberg(e, "read a data file", &name);
        let rows = scan.first().map_or(8192, |scan| scan.batch_rows).max(1);
        let reader = table.reader_builder().with_batch_size(rows).with_data_file_concurrency_limit(1).build();
        let batches = reader.read(futures::stream::iter([Ok(task)]).boxed()).map_err(&fail)?.stream();
        let batches = batches.map(move |batch| {
            let batch = bridge::batch_to_59(&batch.map_err(&fail)?)?;
            Ok(SourceEvent::Batch { stream: StreamId(0), batch, position: None })
        });
        let finished = futures::stream::iter([Ok(SourceEvent::Progress(end)), Ok(SourceEvent::Finished)]);
        Ok(batches.chain(finished).boxed())
    }
}
