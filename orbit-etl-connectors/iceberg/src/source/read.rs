//! The rows of one data file as of one snapshot.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use futures::{Stream, StreamExt, TryStreamExt};
use iceberg::expr::Predicate;
use iceberg::scan::{ArrowRecordBatchStream, FileScanTask};
use iceberg::spec::{DEFAULT_SCHEMA_NAME_MAPPING, DataFileFormat, NameMapping};
use orbit_etl_core::{Error, Position, Result, ScanRequest, SourceEvent, Split, StreamId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::filter;
use super::view::View;
use crate::bridge::To59;
use crate::error::from_iceberg;
use crate::fit::batch;

/// How many plans are kept.
const PLANS: usize = 4;

/// One data file of one snapshot of one table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Part {
    /// The table's own id.
    pub(super) table: String,
    pub(super) snapshot: i64,
    pub(super) path: String,
    pub(super) bytes: u64,
    /// The snapshot brought the file, so that none of its rows can be deleted yet.
    pub(super) appended: bool,
}

impl Part {
    pub(super) fn into_split(self) -> Split {
        let id = format!("{}@{}", self.path, self.snapshot);
        let payload = json!({
            "table": self.table,
            "snapshot": self.snapshot,
            "path": self.path,
            "bytes": self.bytes,
            "appended": self.appended,
        });
        Split { bytes: Some(self.bytes), ..Split::new(id, payload) }
    }

    pub(super) fn of(split: &Split) -> Result<Self> {
        serde_json::from_value(split.payload.clone())
            .map_err(|e| Error::internal("the split isn't one of this source").caused_by(e))
    }
}

/// The files of a snapshot by their paths, each with the deletes that apply to it.
type Plan = HashMap<String, FileScanTask>;

/// What was found out of snapshots, so that each is planned once and not for each of its files.
#[derive(Debug, Clone, Default)]
pub(super) struct Plans(Arc<Mutex<Vec<Known>>>);

/// A plan, and what it is of.
type Known = (String, Arc<Plan>);

impl Plans {
    /// The files of a snapshot, without those that can't have a row that is wanted.
    pub(super) async fn of(
        &self,
        view: &View,
        snapshot: i64,
        wanted: Option<Predicate>,
    ) -> Result<Arc<Plan>> {
        let what = wanted.as_ref().map_or_else(String::new, |wanted| format!("{wanted:?}"));
        let key = format!("{}@{snapshot}?{what}", view.table_id());
        let mut known = self.0.lock().await;
        if let Some((_, plan)) = known.iter().find(|(of, _)| *of == key) {
            return Ok(Arc::clone(plan));
        }
        let ident = view.table().identifier();
        let fail = |e| from_iceberg(&e, "list a snapshot's files", ident).with("snapshot", snapshot);
        if view.table().metadata().snapshot_by_id(snapshot).is_none() {
            return Err(Error::not_found("the snapshot that is being read has expired")
                .with("table", ident)
                .with("snapshot", snapshot)
                .remedy("read the table as a whole again, with `again: full`"));
        }
        let mut scan = view.table().scan().snapshot_id(snapshot);
        if let Some(wanted) = wanted {
            scan = scan.with_filter(wanted);
        }
        let scan = scan.build().map_err(fail)?;
        let mut plan = Plan::new();
        let mut tasks = scan.plan_files().await.map_err(fail)?;
        while let Some(task) = tasks.try_next().await.map_err(fail)? {
            if let Some(vector) = task.deletes.iter().find(|d| d.file_path.ends_with(".puffin")) {
                return Err(Error::unsupported("deletion vectors can't be read")
                    .with("table", ident)
                    .with("file", &vector.file_path)
                    .remedy("rewrite the table's files, so that no row is deleted in them"));
            }
            if task.data_file_format != DataFileFormat::Parquet {
                return Err(not_parquet(ident, &task.data_file_path));
            }
            plan.insert(task.data_file_path.clone(), task);
        }
        let plan = Arc::new(plan);
        if known.len() >= PLANS {
            known.remove(0);
        }
        known.push((key, Arc::clone(&plan)));
        Ok(plan)
    }
}

pub(super) fn not_parquet(table: impl Display, file: &str) -> Error {
    Error::unsupported("data files that aren't Parquet can't be read")
        .with("table", table)
        .with("file", file)
        .remedy("rewrite the table's files as Parquet")
}

/// A file's events after a position.
pub(super) async fn rows(
    view: &View,
    plans: &Plans,
    part: Part,
    after: Option<&Position>,
    request: ScanRequest,
) -> Result<impl Stream<Item = Result<SourceEvent>> + use<>> {
    let skip = match after {
        None => 0,
        Some(position) => {
            let rows = position.0.get("row").and_then(Value::as_u64);
            rows.ok_or_else(|| Error::internal("the position isn't one of this source"))?
        }
    };
    let stream = view.arrow_schema()?;
    let wanted = match &request.projection {
        None => stream,
        Some(names) => {
            let field = |name: &String| {
                let found = stream.field_with_name(name);
                found.cloned().map_err(|_| Error::internal("a column isn't there").with("column", name))
            };
            Arc::new(Schema::new(names.iter().map(field).collect::<Result<Vec<_>>>()?))
        }
    };
    let batches = match task(view, plans, &part, &request).await? {
        Some(task) => Some(open(view, task, &wanted, request.batch_rows)?),
        None => None,
    };
    let reading = Reading {
        batches,
        crossing: None,
        table: view.table().identifier().to_string(),
        file: part.path,
        wanted,
        stream: request.stream,
        batch_rows: request.batch_rows.max(1),
        skip,
        row: 0,
        rest: None,
        finished: false,
    };
    Ok(futures::stream::try_unfold(reading, |mut reading| async move {
        let event = reading.next().await?;
        Ok(event.map(|event| (event, reading)))
    }))
}

/// How to read the file; `None` if no row of it can be needed.
async fn task(
    view: &View,
    plans: &Plans,
    part: &Part,
    request: &ScanRequest,
) -> Result<Option<FileScanTask>> {
    if !part.appended {
        let then = view.schema_at(part.snapshot);
        let predicate = then.and_then(|then| filter::predicate(&request.filters, view.schema(), &then));
        let pruned = predicate.is_some();
        let plan = plans.of(view, part.snapshot, predicate).await?;
        return match plan.get(&part.path) {
            Some(task) => Ok(Some(task.clone())),
            None if pruned => Ok(None),
            None => Err(Error::not_found("the snapshot doesn't have this file")
                .with("table", view.table().identifier())
                .with("file", &part.path)),
        };
    }
    let mapping = view.table().metadata().properties().get(DEFAULT_SCHEMA_NAME_MAPPING);
    let mapping = mapping.map(|text| serde_json::from_str::<NameMapping>(text)).transpose();
    let mapping = mapping.map_err(|e| {
        Error::data("the table's mapping of names can't be read")
            .with("table", view.table().identifier())
            .with("property", DEFAULT_SCHEMA_NAME_MAPPING)
            .caused_by(e)
    })?;
    Ok(Some(
        FileScanTask::builder()
            .with_file_size_in_bytes(part.bytes)
            .with_start(0)
            .with_length(part.bytes)
            .with_data_file_path(part.path.clone())
            .with_data_file_format(DataFileFormat::Parquet)
            .with_schema(Arc::clone(view.schema()))
            .with_project_field_ids(Vec::new())
            .with_name_mapping(mapping.map(Arc::new))
            .with_case_sensitive(true)
            .build(),
    ))
}

fn open(
    view: &View,
    mut task: FileScanTask,
    wanted: &SchemaRef,
    batch_rows: usize,
) -> Result<ArrowRecordBatchStream> {
    // Whichever columns the file's own snapshot had, these are read.
    task.schema = Arc::clone(view.schema());
    let columns = view.schema().as_struct().fields();
    task.project_field_ids = wanted
        .fields()
        .iter()
        .filter_map(|field| columns.iter().find(|column| column.name == *field.name()))
        .map(|column| column.id)
        .collect();
    if task.project_field_ids.is_empty() {
        // Rows without columns are counted by one of them.
        task.project_field_ids.extend(columns.first().map(|column| column.id));
    }
    // Files were left out by it already. Leaving out rows would make positions mean something else.
    task.predicate = None;
    let file = task.data_file_path.clone();
    let fail = |e| from_iceberg(&e, "read a data file", view.table().identifier()).with("file", &file);
    let reader = view
        .table()
        .reader_builder()
        .with_batch_size(batch_rows.max(1))
        .with_data_file_concurrency_limit(1)
        .build();
    Ok(reader.read(futures::stream::iter([Ok(task)]).boxed()).map_err(fail)?.stream())
}

struct Reading {
    /// `None` if no row can be needed.
    batches: Option<ArrowRecordBatchStream>,
    crossing: Option<To59>,
    table: String,
    file: String,
    wanted: SchemaRef,
    stream: StreamId,
    batch_rows: usize,
    /// Rows that are read already.
    skip: u64,
    row: u64,
    rest: Option<RecordBatch>,
    finished: bool,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<SourceEvent>> {
        loop {
            if self.finished {
                return Ok(None);
            }
            if let Some(batch) = self.rest.take() {
                return Ok(Some(self.hand_on(batch)));
            }
            let next = match &mut self.batches {
                Some(batches) => batches.try_next().await,
                None => Ok(None),
            };
            let fail = |e| from_iceberg(&e, "read a data file", &self.table).with("file", &self.file);
            match next.map_err(fail)? {
                Some(batch) => {
                    let crossing = match self.crossing.take() {
                        Some(crossing) if crossing.takes(&batch) => crossing,
                        _ => To59::new(batch.schema_ref())?,
                    };
                    let rows = crossing.batch(&batch)?;
                    self.crossing = Some(crossing);
                    self.take(&rows)?;
                }
                None => {
                    self.finished = true;
                    return Ok(Some(SourceEvent::Finished));
                }
            }
        }
    }

    fn take(&mut self, rows: &RecordBatch) -> Result<()> {
        let count = rows.num_rows() as u64;
        let skipped = self.skip.saturating_sub(self.row).min(count);
        self.row += skipped;
        if skipped < count {
            let from = usize::try_from(skipped).unwrap_or(usize::MAX);
            let columns = rows.columns()[..self.wanted.fields().len()].to_vec();
            let all = batch(&self.wanted, columns, rows.num_rows())?;
            self.rest = Some(all.slice(from, rows.num_rows() - from));
        }
        Ok(())
    }

    fn hand_on(&mut self, mut batch: RecordBatch) -> SourceEvent {
        if batch.num_rows() > self.batch_rows {
            self.rest = Some(batch.slice(self.batch_rows, batch.num_rows() - self.batch_rows));
            batch = batch.slice(0, self.batch_rows);
        }
        self.row += batch.num_rows() as u64;
        let position = Some(Position(json!({"row": self.row})));
        SourceEvent::Batch { stream: self.stream, batch, position }
    }
}
