//! One lane's open files.

use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Float64Type, SchemaRef};
use async_trait::async_trait;
use datafusion_execution::memory_pool::MemoryReservation;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutPayload, WriteMultipart};
use orbit_etl_core::checkpoint::{create_dir_durable, sync_dir};
use orbit_etl_core::{Epoch, Error, LaneId, Payload, Prepared, Reject, Result, SinkWriter, StreamId};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::file::properties::WriterProperties;
use tokio::task::{JoinHandle, JoinSet};

use super::SchemaMode;
use super::change::first_of;
use super::out::Out;
use super::partition::Values;
use super::plan::StreamPlan;
use super::shape::Shape;
use super::staged::{How, Registry, Staged, partition_folders};
use super::stats::stats;
use crate::error::{from_io, from_store};
use crate::table::Place;

/// How many files are synced or uploaded to their end beside the writing.
const CLOSING_AT_ONCE: usize = 4;
/// How many parts of a file travel at a time.
const PARTS_AT_ONCE: usize = 2;
/// The size of a part of an upload; S3 takes 10,000 of them.
const PART: usize = 16 << 20;
/// How many bytes of a local file are written before they are synced beside the writing, so that
/// little is left to sync when the epoch ends.
const SYNC_EVERY: u64 = 32 << 20;
/// What an encoder needs at least.
const ENCODER: usize = 16 << 10;

/// What all writers of a session share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) registry: Registry,
    /// Below each table's folder.
    pub(crate) run_folder: String,
    pub(crate) properties: WriterProperties,
    pub(crate) target_file_size: u64,
    /// Per lane.
    pub(crate) max_open_files: usize,
    pub(crate) schema_mode: SchemaMode,
}

/// One stream's way into its table.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub(crate) place: Place,
    pub(crate) shape: Arc<Shape>,
    pub(crate) plan: Arc<StreamPlan>,
}

pub(crate) struct DeltaWriter {
    shared: Arc<Shared>,
    lane: LaneId,
    routes: Vec<Route>,
    open: HashMap<Key, OpenFile>,
    clock: u64,
    closing: JoinSet<Result<(Staged, usize)>>,
    closed: Vec<Staged>,
    /// Local folders that have got files since they were last synced.
    folders: HashSet<PathBuf>,
    rejects: Vec<Reject>,
    /// Memory of open and closing files, and of rejects.
    held: usize,
    memory: MemoryReservation,
    /// The next row's number.
    sequence: i64,
}

/// Stream and partition.
type Key = (usize, Values);

struct OpenFile {
    plan: Arc<StreamPlan>,
    /// The table's own id.
    table: String,
    path: String,
    encoder: ArrowWriter<Out>,
    out: Out,
    upload: Option<WriteMultipart>,
    rows: u64,
    /// Columns that have held a NaN.
    nan: HashSet<String>,
    held: usize,
    used: u64,
    synced: u64,
    syncing: Option<JoinHandle<io::Result<()>>>,
}

impl OpenFile {
    fn write(&mut self, rows: &RecordBatch, file: &str) -> Result<()> {
        for (field, column) in rows.schema_ref().fields().iter().zip(rows.columns()) {
            if !self.nan.contains(field.name()) && has_nan(column) {
                self.nan.insert(field.name().clone());
            }
        }
        self.rows += rows.num_rows() as u64;
        self.encoder.write(rows).map_err(|_| encode_error(&self.out, file))
    }

    /// Starts to sync what was written since the last time, if that is much.
    async fn sync_ahead(&mut self) -> io::Result<()> {
        let written = self.out.written();
        if written - self.synced < SYNC_EVERY || self.syncing.as_ref().is_some_and(|s| !s.is_finished()) {
            return Ok(());
        }
        if let Some(syncing) = self.syncing.take() {
            syncing.await??;
        }
        if let Some(file) = self.out.duplicate()? {
            self.synced = written;
            self.syncing = Some(tokio::task::spawn_blocking(move || file.sync_data()));
        }
        Ok(())
    }

    /// Uploads what fills whole parts.
    async fn send_parts(&mut self, place: &Place, file: &str) -> Result<()> {
        let fail = |e: object_store::Error| from_store(&e, "write a data file", file);
        while let Some(part) = self.out.take_part(PART) {
            if self.upload.is_none() {
                let upload = place.store().put_multipart(&store_path(&self.path)?).await.map_err(fail)?;
                self.upload = Some(WriteMultipart::new_with_chunk_size(upload, PART));
            }
            if let Some(upload) = &mut self.upload {
                upload.wait_for_capacity(PARTS_AT_ONCE).await.map_err(fail)?;
                upload.put(part);
            }
        }
        Ok(())
    }

    fn measure(&self) -> usize {
        let travelling = self.upload.as_ref().map_or(0, |_| PART * PARTS_AT_ONCE);
        ENCODER + self.encoder.memory_size() + self.out.held() + travelling
    }

    fn size(&self) -> u64 {
        self.out.written() + self.encoder.in_progress_size() as u64
    }
}

impl DeltaWriter {
    pub(crate) fn new(
        shared: Arc<Shared>,
        lane: LaneId,
        routes: Vec<Route>,
        memory: MemoryReservation,
    ) -> Self {
        Self {
            shared,
            lane,
            routes,
            open: HashMap::new(),
            clock: 0,
            closing: JoinSet::new(),
            closed: Vec::new(),
            folders: HashSet::new(),
            rejects: Vec::new(),
            held: 0,
            memory,
            sequence: first_of(lane),
        }
    }

    async fn append(&mut self, key: Key, rows: &RecordBatch) -> Result<()> {
        if !self.open.contains_key(&key) {
            while self.open.len() >= self.shared.max_open_files {
                self.close_oldest().await?;
            }
            let file = self.begin(&key)?;
            self.open.insert(key.clone(), file);
        }
        let place = self.routes[key.0].place.clone();
        let Some(file) = self.open.get_mut(&key) else {
            return Err(Error::internal("an open file is missing"));
        };
        self.clock += 1;
        file.used = self.clock;
        let name = format!("{place}/{}", file.path);
        file.write(rows, &name)?;
        file.sync_ahead().await.map_err(|e| from_io(e, "write a data file", &name))?;
        file.send_parts(&place, &name).await?;
        let full = file.size() >= self.shared.target_file_size;
        self.measure(&key);
        if full {
            self.close(&key).await?;
        }
        self.reserve().await
    }

    // Not `&self`: encoders can't be shared between threads.
    fn begin(&mut self, key: &Key) -> Result<OpenFile> {
        let Route { place, plan, shape } = &self.routes[key.0];
        let Shared { registry, run_folder, .. } = self.shared.as_ref();
        let path = format!("{run_folder}/{}{:06}.parquet", partition_folders(&key.1), registry.number());
        self.shared.registry.begin(self.lane, plan.name(), &path);
        let out = match place.folder() {
            Some(folder) => {
                let file = folder.join(&path);
                let fail = |e| from_io(e, "make a data file", file.display());
                if let Some(folder) = file.parent()
                    && !self.folders.contains(folder)
                {
                    create_dir_durable(folder).map_err(fail)?;
                    self.folders.insert(folder.to_path_buf());
                }
                let new = OpenOptions::new().write(true).create_new(true).open(&file).map_err(fail)?;
                Out::file(new, if key.1.is_empty() { 1 << 20 } else { 64 << 10 })
            }
            None => Out::memory(),
        };
        // Notes on Arrow's own types would outlive what they are about.
        let options = ArrowWriterOptions::new()
            .with_properties(self.shared.properties.clone())
            .with_skip_arrow_metadata(true);
        let encoder = ArrowWriter::try_new_with_options(out.clone(), Arc::clone(plan.file()), options)
            .map_err(|_| encode_error(&out, &path))?;
        Ok(OpenFile {
            plan: Arc::clone(plan),
            table: shape.metadata.id().to_owned(),
            path,
            encoder,
            out,
            upload: None,
            rows: 0,
            nan: HashSet::new(),
            held: 0,
            used: 0,
            synced: 0,
            syncing: None,
        })
    }

    fn measure(&mut self, key: &Key) {
        if let Some(file) = self.open.get_mut(key) {
            let held = file.measure();
            self.held = self.held - file.held + held;
            file.held = held;
        }
    }

    /// Makes the pool agree with what is held. If it refuses, files are written out until it does.
    async fn reserve(&mut self) -> Result<()> {
        while let Err(refusal) = self.memory.try_resize(self.held) {
            if !self.closing.is_empty() {
                self.join_closing().await?;
                continue;
            }
            let largest = self.open.iter().max_by_key(|(_, file)| file.held);
            match largest.map(|(key, file)| (key.clone(), file.held)) {
                Some((key, held)) if held > ENCODER + (2 << 20) => self.relieve(&key).await?,
                Some(_) if self.open.len() > 1 => self.close_oldest().await?,
                _ => {
                    return Err(Error::resources("the memory limit leaves no room to write files")
                        .remedy("raise the pipeline's memory limit, or use fewer lanes")
                        .caused_by(refusal));
                }
            }
        }
        Ok(())
    }

    /// Ends a row group early; ends the file where that isn't enough.
    async fn relieve(&mut self, key: &Key) -> Result<()> {
        let place = self.routes[key.0].place.clone();
        let Some(file) = self.open.get_mut(key) else { return Ok(()) };
        let (before, name) = (file.held, format!("{place}/{}", file.path));
        file.encoder.flush().map_err(|_| encode_error(&file.out, &name))?;
        file.send_parts(&place, &name).await?;
        self.measure(key);
        let still = self.open.get(key).is_some_and(|file| file.held > before / 2);
        if still { self.close(key).await } else { Ok(()) }
    }

    async fn close_oldest(&mut self) -> Result<()> {
        match self.open.iter().min_by_key(|(_, file)| file.used).map(|(key, _)| key.clone()) {
            Some(key) => self.close(&key).await,
            None => Ok(()),
        }
    }

    async fn close(&mut self, key: &Key) -> Result<()> {
        while self.closing.len() >= CLOSING_AT_ONCE {
            self.join_closing().await?;
        }
        let Some(file) = self.open.remove(key) else { return Ok(()) };
        let place = self.routes[key.0].place.clone();
        let OpenFile { plan, table, path, encoder, out, upload, rows, nan, held, syncing, .. } = file;
        let name = format!("{place}/{path}");
        let metadata = encoder.close().map_err(|_| encode_error(&out, &name))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let staged = Staged {
            stream: plan.name().to_owned(),
            table,
            path,
            partition: key.1.clone(),
            rows,
            bytes: out.written(),
            modified: i64::try_from(now).unwrap_or(i64::MAX),
            stats: stats(&metadata, plan.bounded_columns(), |column| nan.contains(column)),
            checks: plan.mark().to_owned(),
            columns: plan.wider().map(str::to_owned),
            how: plan.how().clone(),
        };
        if place.folder().is_some() {
            self.held -= held;
            self.closing.spawn(async move {
                let sync = async {
                    // An error that this sync has seen is not reported again by the next.
                    if let Some(syncing) = syncing {
                        syncing.await??;
                    }
                    tokio::task::spawn_blocking(move || match out.into_file()? {
                        Some(file) => file.sync_all(),
                        None => Ok(()),
                    })
                    .await?
                };
                let synced: io::Result<()> = sync.await;
                synced.map_err(|e| from_io(e, "write a data file", &name))?;
                Ok((staged, 0))
            });
        } else {
            let store = place.store();
            let last = out.take_rest();
            let left = last.len() + upload.as_ref().map_or(0, |_| PART * PARTS_AT_ONCE);
            self.held = self.held - held + left;
            self.closing.spawn(async move {
                let fail = |e: object_store::Error| from_store(&e, "write a data file", &name);
                match upload {
                    Some(mut upload) => {
                        upload.put(last);
                        upload.finish().await.map_err(fail)?;
                    }
                    None => {
                        let path = store_path(&staged.path)?;
                        store.put(&path, PutPayload::from_bytes(last)).await.map_err(fail)?;
                    }
                }
                Ok((staged, left))
            });
        }
        Ok(())
    }

    async fn join_closing(&mut self) -> Result<()> {
        let Some(joined) = self.closing.join_next().await else { return Ok(()) };
        let (staged, held) =
            joined.map_err(|e| Error::internal("a task that closes a file has died").caused_by(e))??;
        self.held -= held;
        self.closed.push(staged);
        Ok(())
    }

    fn route(&self, stream: StreamId) -> Result<&Route> {
        self.routes.get(stream.0).ok_or_else(|| {
            Error::internal("a stream that the sink wasn't opened for").with("stream", stream.0)
        })
    }
}

#[async_trait]
impl SinkWriter for DeltaWriter {
    async fn write(&mut self, stream: StreamId, batch: RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let plan = Arc::clone(&self.route(stream)?.plan);
        let parts = plan.split(&batch, self.sequence)?;
        self.sequence = self.sequence.saturating_add(i64::try_from(batch.num_rows()).unwrap_or(i64::MAX));
        for (values, rows) in parts.fit {
            self.append((stream.0, values), &rows).await?;
        }
        if parts.misfit.is_empty() {
            return Ok(());
        }
        for (error, rows) in parts.misfit {
            self.held += rows.get_array_memory_size();
            let count = rows.num_rows() as u64;
            let mut reject = Reject::new(error.kind(), error.to_string(), Payload::Rows(rows));
            reject.rows = count;
            reject.origin.stream = Some(plan.name().to_owned());
            self.rejects.push(reject);
        }
        self.reserve().await
    }

    async fn schema_changed(&mut self, stream: StreamId, to: &SchemaRef) -> Result<()> {
        let Route { shape, plan, .. } = self.route(stream)?;
        if !plan.how().is_add() {
            return Err(Error::schema("a schema that changes during a run can't be followed in this mode")
                .with("stream", plan.name())
                .remedy("restart the pipeline, so that the sink opens with the new schema"));
        }
        let plan = StreamPlan::new(plan.name(), to, shape, self.shared.schema_mode, How::Add)?;
        let keys: Vec<Key> = self.open.keys().filter(|key| key.0 == stream.0).cloned().collect();
        for key in keys {
            self.close(&key).await?;
        }
        self.routes[stream.0].plan = Arc::new(plan);
        Ok(())
    }

    async fn prepare(&mut self, epoch: Epoch) -> Result<Prepared> {
        let keys: Vec<Key> = self.open.keys().cloned().collect();
        for key in keys {
            self.close(&key).await?;
        }
        while !self.closing.is_empty() {
            self.join_closing().await?;
        }
        self.memory.free();
        self.held = 0;
        for folder in std::mem::take(&mut self.folders) {
            let name = folder.display().to_string();
            tokio::task::spawn_blocking(move || sync_dir(&folder))
                .await
                .map_err(|e| Error::internal("a task that syncs a folder has died").caused_by(e))?
                .map_err(|e| from_io(e, "sync a folder", name))?;
        }
        self.shared.registry.prepared(self.lane, epoch);
        let mut files = std::mem::take(&mut self.closed);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        // The columns are told once for each stream and schema.
        let mut told = HashSet::new();
        for file in &mut files {
            let new = file.columns.as_ref().is_none_or(|c| told.insert((file.stream.clone(), c.clone())));
            if !new {
                file.columns = None;
            }
        }
        Ok(Prepared {
            bytes: files.iter().map(|file| file.bytes).sum(),
            committables: files.iter().map(Staged::to_committable).collect::<Result<_>>()?,
            rejects: std::mem::take(&mut self.rejects),
        })
    }
}

/// The encoder's own text may quote values, so only the output's failure is told.
fn encode_error(out: &Out, file: &str) -> Error {
    match out.failure() {
        Some(error) => from_io(error, "write a data file", file),
        None => Error::data("rows can't be written as Parquet").with("file", file),
    }
}

/// Ours are encoded already.
fn store_path(path: &str) -> Result<Path> {
    Path::parse(path).map_err(|e| Error::internal("a data file's path can't be used").caused_by(e))
}

fn has_nan(column: &ArrayRef) -> bool {
    match column.data_type() {
        DataType::Float32 => column.as_primitive::<Float32Type>().values().iter().any(|v| v.is_nan()),
        DataType::Float64 => column.as_primitive::<Float64Type>().values().iter().any(|v| v.is_nan()),
        _ => false,
    }
}
