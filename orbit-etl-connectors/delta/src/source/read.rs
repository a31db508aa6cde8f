//! The rows of one data file as of one version.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{Schema, SchemaRef};
use deltalake::datafusion::catalog::TableProvider;
use deltalake::datafusion::execution::SendableRecordBatchStream;
use deltalake::datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, execute_stream};
use deltalake::delta_datafusion::FileSelection;
use futures::{Stream, StreamExt};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use orbit_etl_core::{Error, Position, Result, ScanRequest, SourceEvent, Split, StreamId};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::loaded::Loaded;
use super::prune;
use crate::error::{from_datafusion, from_delta};
use crate::table::Place;

/// One data file of one version of one table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Part {
    /// The table's own id.
    pub(crate) table: String,
    pub(crate) version: u64,
    /// As it is on the disk, not encoded.
    pub(crate) path: String,
}

impl Part {
    pub(crate) fn into_split(self, bytes: Option<u64>) -> Split {
        let id = format!("{}@{}", self.path, self.version);
        let payload = json!({"table": self.table, "version": self.version, "path": self.path});
        Split { bytes, ..Split::new(id, payload) }
    }

    pub(crate) fn of(split: &Split) -> Result<Self> {
        serde_json::from_value(split.payload.clone())
            .map_err(|e| Error::internal("the split isn't one of this source").caused_by(e))
    }
}

/// Its events after a position.
pub(crate) async fn rows(
    loaded: Arc<Loaded>,
    place: Place,
    part: Part,
    after: Option<&Position>,
    stream: SchemaRef,
    request: ScanRequest,
) -> Result<impl Stream<Item = Result<SourceEvent>> + use<>> {
    let skip = match after {
        None => 0,
        Some(position) => {
            let rows = position.0.get("row").and_then(serde_json::Value::as_u64);
            rows.ok_or_else(|| Error::internal("the position isn't one of this source"))?
        }
    };
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
    let batches = match prune::is_needed(&loaded, &part, &request.filters) {
        true => Some(open(&loaded, &place, &part, &wanted).await?),
        false => None,
    };
    let reading = Reading {
        batches,
        file: format!("{place}/{}", part.path),
        path: part.path,
        place,
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

async fn open(
    loaded: &Loaded,
    place: &Place,
    part: &Part,
    wanted: &SchemaRef,
) -> Result<SendableRecordBatchStream> {
    let fail = |e| from_datafusion(&e, "read a data file", place).with("file", &part.path);
    let session = loaded.session().state();
    let adds = loaded.table().snapshot().map_err(|e| from_delta(&e, "read the table", place))?;
    let known = adds.log_data().iter().any(|file| file.path() == part.path);
    if !known {
        return Err(Error::not_found("the version doesn't have this file")
            .with("table", place)
            .with("version", part.version)
            .with("file", &part.path));
    }
    let path = deltalake::kernel::Add { path: part.path.clone(), ..Default::default() };
    let scan = loaded
        .table()
        .table_provider()
        .with_session(Arc::new(session.clone()))
        .with_file_selection(FileSelection::from_adds([path]))
        .build()
        .await
        .map_err(fail)?;
    let columns = scan.schema();
    let mut projection: Vec<usize> =
        wanted.fields().iter().filter_map(|field| columns.index_of(field.name()).ok()).collect();
    if projection.is_empty() && !columns.fields().is_empty() {
        // Rows without columns are counted by one of them.
        projection.push(0);
    }
    let plan: Arc<dyn ExecutionPlan> =
        scan.scan(&session, Some(&projection), &[], None).await.map_err(fail)?;
    if plan.output_partitioning().partition_count() > 1 {
        return Err(Error::internal("a file was cut into parts that come in any order"));
    }
    execute_stream(plan, loaded.session().task_ctx()).map_err(fail)
}

struct Reading {
    /// `None` if no row can be needed.
    batches: Option<SendableRecordBatchStream>,
    place: Place,
    /// For messages.
    file: String,
    /// Below the table's folder.
    path: String,
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
                Some(batches) => batches.next().await,
                None => None,
            };
            match next {
                Some(Ok(batch)) => self.take(&batch)?,
                Some(Err(error)) => {
                    let told = from_datafusion(&error, "read a data file", &self.place);
                    return Err(tell_missing(&self.place, &self.path, told).await.with("file", &self.file));
                }
                None => {
                    self.finished = true;
                    return Ok(Some(SourceEvent::Finished));
                }
            }
        }
    }

    fn take(&mut self, batch: &RecordBatch) -> Result<()> {
        let rows = batch.num_rows() as u64;
        let skipped = self.skip.saturating_sub(self.row).min(rows);
        self.row += skipped;
        if skipped < rows {
            let from = usize::try_from(skipped).unwrap_or(usize::MAX);
            self.rest = Some(adapt(&batch.slice(from, batch.num_rows() - from), &self.wanted)?);
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

/// A file that was vacuumed away looks like a broken one to the reader.
async fn tell_missing(place: &Place, path: &str, told: Error) -> Error {
    let Ok(path) = Path::parse(path) else { return told };
    match place.store().head(&path).await {
        Err(object_store::Error::NotFound { .. }) => Error::not_found("a data file of the version is gone")
            .with("table", place)
            .remedy("the table was vacuumed: read a newer version, and let vacuum keep files for longer than a reader needs them"),
        _ => told,
    }
}

/// The columns of `wanted`; those that the version didn't have yet are NULL.
pub(crate) fn adapt(batch: &RecordBatch, wanted: &SchemaRef) -> Result<RecordBatch> {
    let columns = wanted.fields().iter().map(|field| -> Result<ArrayRef> {
        let Some(column) = batch.column_by_name(field.name()) else {
            return Ok(new_null_array(field.data_type(), batch.num_rows()));
        };
        if column.data_type() == field.data_type() {
            return Ok(Arc::clone(column));
        }
        cast(column, field.data_type()).map_err(|_| {
            Error::schema("a column has another type than the table says")
                .with("column", field.name())
                .with("type", column.data_type())
                .with("type in the table", field.data_type())
        })
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(wanted), columns, &options)
        .map_err(|e| Error::data("a data file has NULL where the table has none").caused_by(e))
}
