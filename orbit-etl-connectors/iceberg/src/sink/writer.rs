//! One lane's open files.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion_execution::memory_pool::MemoryReservation;
use futures::{StreamExt, TryStreamExt};
use iceberg::arrow::RecordBatchPartitionSplitter;
use iceberg::io::FileIO;
use iceberg::spec::{DataFile, PartitionKey, Struct};
use iceberg::writer::base_writer::data_file_writer::{DataFileWriter, DataFileWriterBuilder};
use iceberg::writer::file_writer::ParquetWriterBuilder;
use iceberg::writer::file_writer::location_generator::{FileNameGenerator, LocationGenerator};
use iceberg::writer::file_writer::rolling_writer::RollingFileWriterBuilder;
use iceberg::writer::{IcebergWriter as _, IcebergWriterBuilder};
use orbit_etl_core::batch::estimated_bytes;
use orbit_etl_core::{Epoch, Error, LaneId, Payload, Prepared, Reject, Result, SinkWriter, StreamId};
use parquet58::file::properties::WriterProperties;

use super::plan::StreamPlan;
use super::staged::{Registry, Staged};
use crate::error::from_iceberg;
use crate::storage::Stores;

/// How many files are brought to their end at a time.
const CLOSING_AT_ONCE: usize = 4;
/// What an encoder needs for a column, whatever it holds.
const COLUMN: usize = 2 << 10;

type Builder = DataFileWriterBuilder<ParquetWriterBuilder, Folder, Names>;
type Writer = DataFileWriter<ParquetWriterBuilder, Folder, Names>;

/// What all writers of a session share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) registry: Registry,
    /// How this run's files begin.
    pub(super) prefix: String,
    pub(super) properties: WriterProperties,
    pub(super) target_file_size: usize,
    pub(super) row_group_rows: usize,
    /// Per lane.
    pub(super) max_open_files: usize,
}

/// One stream's way into its table.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) plan: Arc<StreamPlan>,
    pub(super) io: FileIO,
    /// Where the sink's files lie.
    pub(super) folder: String,
}

/// Where files are, whatever their partition.
#[derive(Debug, Clone)]
struct Folder(String);

impl LocationGenerator for Folder {
    fn generate_location(&self, _partition: Option<&PartitionKey>, name: &str) -> String {
        format!("{}/{name}", self.0)
    }
}

/// Gives each file a name of its own, and puts it down before it is made.
#[derive(Debug, Clone)]
struct Names {
    registry: Registry,
    lane: LaneId,
    folder: Folder,
    prefix: String,
}

impl FileNameGenerator for Names {
    fn generate_file_name(&self) -> String {
        let name = format!("{}{:06}.parquet", self.prefix, self.registry.number());
        self.registry.begin(self.lane, &self.folder.generate_location(None, &name));
        name
    }
}

/// Stream and partition.
type Key = (usize, Struct);

struct Open {
    writer: Writer,
    used: u64,
    /// Rows and bytes since the last row group.
    rows: usize,
    bytes: usize,
    /// What the file needs besides its rows.
    base: usize,
    buffered: usize,
}

impl Open {
    fn held(&self) -> usize {
        self.base + self.bytes
    }
}

pub(super) struct IcebergWriter {
    shared: Arc<Shared>,
    lane: LaneId,
    routes: Vec<Route>,
    builders: Vec<Builder>,
    splitters: Vec<Option<RecordBatchPartitionSplitter>>,
    open: HashMap<Key, Open>,
    clock: u64,
    closed: Vec<(usize, DataFile)>,
    rejects: Vec<Reject>,
    /// Memory of open files and of rejects.
    held: usize,
    memory: MemoryReservation,
}

impl IcebergWriter {
    pub(super) fn new(
        shared: Arc<Shared>,
        lane: LaneId,
        routes: Vec<Route>,
        memory: MemoryReservation,
    ) -> Self {
        let builders = routes.iter().map(|route| builder(&shared, lane, route)).collect();
        let splitters = routes.iter().map(|_| None).collect();
        Self {
            shared,
            lane,
            routes,
            builders,
            splitters,
            open: HashMap::new(),
            clock: 0,
            closed: Vec::new(),
            rejects: Vec::new(),
            held: 0,
            memory,
        }
    }

    async fn append(
        &mut self,
        stream: usize,
        partition: Option<PartitionKey>,
        rows: arrow_array58::RecordBatch,
        bytes: usize,
    ) -> Result<()> {
        let key = (stream, partition.as_ref().map_or_else(Struct::empty, |key| key.data().clone()));
        let Route { plan, folder, .. } = &self.routes[stream];
        let name = plan.name.clone();
        let fail = move |e| from_iceberg(&e, "write a data file", &name);
        if !self.open.contains_key(&key) {
            let (base, buffered) = (rows.num_columns() * COLUMN, Stores::buffered(folder));
            while self.open.len() >= self.shared.max_open_files {
                self.close_oldest().await?;
            }
            let writer = self.builders[stream].build(partition).await.map_err(&fail)?;
            self.held += base;
            self.open.insert(key.clone(), Open { writer, used: 0, rows: 0, bytes: 0, base, buffered });
        }
        let Some(open) = self.open.get_mut(&key) else {
            return Err(Error::internal("an open file is missing"));
        };
        self.clock += 1;
        open.used = self.clock;
        let before = open.held();
        open.rows += rows.num_rows();
        // What the encoder holds of a row group is seldom more than the rows themselves.
        open.bytes += bytes;
        open.writer.write(rows).await.map_err(&fail)?;
        let groups = open.rows / self.shared.row_group_rows;
        if groups > 0 {
            let rest = open.rows % self.shared.row_group_rows;
            open.bytes = open.bytes / open.rows.max(1) * rest;
            open.rows = rest;
            open.base = open.base.max(open.buffered);
        }
        self.held = self.held - before + open.held();
        self.reserve().await
    }

    /// Makes the pool agree with what is held. If it refuses, files are ended until it does.
    async fn reserve(&mut self) -> Result<()> {
        while let Err(refusal) = self.memory.try_resize(self.held) {
            let largest = self.open.iter().max_by_key(|(_, open)| open.held());
            match largest.map(|(key, _)| key.clone()) {
                Some(key) => self.close([key]).await?,
                None => {
                    return Err(Error::resources("the memory limit leaves no room to write files")
                        .remedy("raise the pipeline's memory limit, or use fewer lanes")
                        .caused_by(refusal));
                }
            }
        }
        Ok(())
    }

    async fn close_oldest(&mut self) -> Result<()> {
        let oldest = self.open.iter().min_by_key(|(_, open)| open.used).map(|(key, _)| key.clone());
        self.close(oldest).await
    }

    async fn close(&mut self, keys: impl IntoIterator<Item = Key>) -> Result<()> {
        let mut closing = Vec::new();
        for key in keys {
            if let Some(open) = self.open.remove(&key) {
                self.held -= open.held();
                closing.push((key.0, self.routes[key.0].plan.name.clone(), open));
            }
        }
        let closing = closing.into_iter().map(|(stream, name, mut open)| async move {
            let files = open.writer.close().await;
            let files = files.map_err(|e| from_iceberg(&e, "end a data file", name))?;
            Ok::<_, Error>((stream, files))
        });
        let mut closing = futures::stream::iter(closing).buffer_unordered(CLOSING_AT_ONCE);
        while let Some((stream, files)) = closing.try_next().await? {
            self.closed.extend(files.into_iter().map(|file| (stream, file)));
        }
        Ok(())
    }

    fn route(&self, stream: StreamId) -> Result<&Route> {
        self.routes.get(stream.0).ok_or_else(|| {
            Error::internal("a stream that the sink wasn't opened for").with("stream", stream.0)
        })
    }
}

#[async_trait]
impl SinkWriter for IcebergWriter {
    async fn write(&mut self, stream: StreamId, batch: RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let plan = Arc::clone(&self.route(stream)?.plan);
        let parts = plan.split(&batch, &mut self.splitters[stream.0])?;
        let bytes = estimated_bytes(&batch);
        for (key, rows) in parts.fit {
            let share = bytes * rows.num_rows() / batch.num_rows();
            self.append(stream.0, key, rows, share).await?;
        }
        if parts.misfit.is_empty() {
            return Ok(());
        }
        for (error, rows) in parts.misfit {
            self.held += rows.get_array_memory_size();
            let count = rows.num_rows() as u64;
            let mut reject = Reject::new(error.kind(), error.to_string(), Payload::Rows(rows));
            reject.rows = count;
            reject.origin.stream = Some(plan.name.clone());
            self.rejects.push(reject);
        }
        self.reserve().await
    }

    async fn schema_changed(&mut self, stream: StreamId, to: &SchemaRef) -> Result<()> {
        let plan = &self.route(stream)?.plan;
        let plan = StreamPlan::new(&plan.name, to, Arc::clone(&plan.table))?;
        let keys: Vec<Key> = self.open.keys().filter(|key| key.0 == stream.0).cloned().collect();
        self.close(keys).await?;
        self.routes[stream.0].plan = Arc::new(plan);
        Ok(())
    }

    async fn prepare(&mut self, epoch: Epoch) -> Result<Prepared> {
        let keys: Vec<Key> = self.open.keys().cloned().collect();
        self.close(keys).await?;
        self.memory.free();
        self.held = 0;
        self.shared.registry.prepared(self.lane, epoch);
        let mut files: BTreeMap<usize, Vec<DataFile>> = BTreeMap::new();
        for (stream, file) in std::mem::take(&mut self.closed) {
            files.entry(stream).or_default().push(file);
        }
        let (mut committables, mut bytes) = (Vec::new(), 0);
        for (stream, mut files) in files {
            files.sort_by(|a, b| a.file_path().cmp(b.file_path()));
            bytes += files.iter().map(DataFile::file_size_in_bytes).sum::<u64>();
            let plan = &self.routes[stream].plan;
            committables.push(Staged::new(&plan.name, &plan.table, files)?.to_committable()?);
        }
        Ok(Prepared { committables, bytes, rejects: std::mem::take(&mut self.rejects) })
    }
}

fn builder(shared: &Shared, lane: LaneId, route: &Route) -> Builder {
    let folder = Folder(route.folder.clone());
    let names = Names {
        registry: shared.registry.clone(),
        lane,
        folder: folder.clone(),
        prefix: shared.prefix.clone(),
    };
    let schema = Arc::clone(route.plan.table.current_schema());
    let parquet = ParquetWriterBuilder::new(shared.properties.clone(), schema);
    let rolling =
        RollingFileWriterBuilder::new(parquet, shared.target_file_size, route.io.clone(), folder, names);
    DataFileWriterBuilder::new(rolling)
}
