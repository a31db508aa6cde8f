//! The rows of an input while a blocking query runs: handed through where the plan reads them
//! once, kept and replayed where it reads them more often.

use std::fs::File;
use std::io::BufReader;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::CompressionType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::spill_file::{SpillFile, SpillWriter};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use orbit_etl_core::batch::{compact, retained_bytes};
use orbit_etl_core::{Context, Error};
use tokio::sync::OnceCell;

use super::error::Suspects;
use super::input::Rows;
use super::pool::FairShare;

/// How much of an input that is read more than once stays in memory.
const KEPT_BYTES: usize = 8 << 20;

/// The rows of one input.
type Input = BoxStream<'static, orbit_etl_core::Result<RecordBatch>>;

/// The first error of an input. DataFusion may share an error among many readers; the original is
/// kept here for whoever reports it.
#[derive(Debug, Clone, Default)]
pub(super) struct FirstError(Arc<Mutex<Option<Error>>>);

impl FirstError {
    pub(super) fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Keeps the error and makes one for DataFusion.
    fn keep(&self, error: Error) -> DataFusionError {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        DataFusionError::Internal("an input failed".into())
    }
}

/// An input that is read once.
pub(super) struct Once {
    schema: SchemaRef,
    input: Mutex<Option<Input>>,
    errors: FirstError,
}

impl Once {
    pub(super) fn new(schema: SchemaRef, input: Input, errors: FirstError) -> Self {
        Self { schema, input: Mutex::new(Some(input)), errors }
    }

    /// The rows in the announced schema, unless somebody has them already.
    fn take(&self) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner).take();
        let input =
            input.ok_or_else(|| DataFusionError::Internal("an input was read a second time".into()))?;
        let (schema, errors) = (Arc::clone(&self.schema), self.errors.clone());
        Ok(input.map(move |batch| batch.and_then(|b| fitted(b, &schema)).map_err(|e| errors.keep(e))).boxed())
    }
}

impl std::fmt::Debug for Once {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Once")
    }
}

impl Rows for Once {
    fn read(&self) -> Result<SendableRecordBatchStream> {
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), self.take()?)))
    }
}

/// An input that is read as often as one likes: the first reader stores it, all replay it.
#[derive(Debug, Clone)]
pub(super) struct Many {
    source: Arc<Once>,
    stored: Arc<OnceCell<Arc<Stored>>>,
    runtime: Arc<RuntimeEnv>,
}

impl Many {
    pub(super) fn new(source: Once, runtime: Arc<RuntimeEnv>) -> Self {
        Self { source: Arc::new(source), stored: Arc::default(), runtime }
    }

    async fn store(&self) -> Result<Arc<Stored>> {
        let mut input = self.source.take()?;
        let kept = MemoryConsumer::new("rows that a query reads again").register(&self.runtime.memory_pool);
        let mut stored = Stored { first: Vec::new(), kept, rest: None };
        let mut writer: Option<StreamWriter<Box<dyn SpillWriter>>> = None;
        while let Some(batch) = input.try_next().await? {
            let batch = compact(batch).map_err(|e| self.source.errors.keep(e))?;
            match &mut writer {
                Some(writer) => writer.write(&batch)?,
                None => {
                    let bytes = retained_bytes(&batch);
                    if stored.kept.size() + bytes <= KEPT_BYTES && stored.kept.try_grow(bytes).is_ok() {
                        stored.first.push(batch);
                        continue;
                    }
                    let file = self.runtime.disk_manager.create_tmp_file("rows that a query reads again")?;
                    let options =
                        IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME))?;
                    let mut new =
                        StreamWriter::try_new_with_options(file.open_writer()?, &batch.schema(), options)?;
                    new.write(&batch)?;
                    writer = Some(new);
                    stored.rest = Some(file);
                }
            }
        }
        if let Some(mut writer) = writer {
            writer.finish()?;
            writer.get_mut().finish()?;
        }
        Ok(Arc::new(stored))
    }
}

impl Rows for Many {
    fn read(&self) -> Result<SendableRecordBatchStream> {
        let this = self.clone();
        let rows = async move {
            let stored = Arc::clone(this.stored.get_or_try_init(|| this.store()).await?);
            Ok::<_, DataFusionError>(futures::stream::iter(stored.replay()?))
        };
        let rows = futures::stream::once(rows).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.source.schema), rows)))
    }
}

/// The rows of an input: the first ones in memory, the rest in a file.
struct Stored {
    first: Vec<RecordBatch>,
    kept: MemoryReservation,
    rest: Option<Arc<dyn SpillFile>>,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stored").field("bytes", &self.kept.size()).finish_non_exhaustive()
    }
}

impl Stored {
    fn replay(self: Arc<Self>) -> Result<impl Iterator<Item = Result<RecordBatch>> + Send + 'static> {
        let rest = match &self.rest {
            Some(file) => {
                let path = file
                    .path()
                    .ok_or_else(|| DataFusionError::Internal("a spilled file has no path".into()))?;
                Some(StreamReader::try_new(BufReader::with_capacity(1 << 20, File::open(path)?), None)?)
            }
            None => None,
        };
        let mut at = 0;
        let first = std::iter::from_fn(move || {
            let batch = self.first.get(at).cloned();
            at += 1;
            batch.map(Ok)
        });
        let rest = rest.into_iter().flatten();
        Ok(first.chain(rest.map(|batch: std::result::Result<_, ArrowError>| Ok(batch?))))
    }
}

/// The batch in just this schema: its columns by name.
fn fitted(batch: RecordBatch, schema: &SchemaRef) -> orbit_etl_core::Result<RecordBatch> {
    if Arc::ptr_eq(batch.schema_ref(), schema) {
        return Ok(batch);
    }
    let missing =
        |name: &str| Error::schema("a batch lacks a column that its stream announced").with("column", name);
    let columns = schema.fields().iter().enumerate().map(|(i, field)| {
        let here = batch.schema_ref().fields().get(i).is_some_and(|f| f.name() == field.name());
        let at = if here { Some(i) } else { batch.schema_ref().index_of(field.name()).ok() };
        at.map(|at| Arc::clone(batch.column(at))).ok_or_else(|| missing(field.name()))
    });
    let columns = columns.collect::<orbit_etl_core::Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|_| Error::schema("a batch has other types or NULLs than its stream announced"))
}

/// What a query needs to run: the run's memory, and its directory to spill to. Each sort sets
/// `merge_bytes` aside.
pub(super) fn runtime(
    cx: &Context,
    merge_bytes: usize,
) -> orbit_etl_core::Result<(Arc<RuntimeEnv>, Arc<FairShare>)> {
    use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;

    let disk = DiskManagerBuilder::default()
        .with_mode(DiskManagerMode::Directories(vec![cx.spill_dir().to_path_buf()]))
        // The disk itself is the limit.
        .with_max_temp_directory_size(u64::MAX);
    let pool = Arc::new(FairShare::of(cx.memory(), merge_bytes));
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::clone(&pool) as _)
        .with_disk_manager_builder(disk)
        .build_arc()
        .map(|runtime| (runtime, pool))
        .map_err(|e| {
            super::error::running(&e, Suspects { host: false, disk: true })
                .with("directory", cx.spill_dir().display())
        })
}
