//! One lane's open files.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion_execution::memory_pool::MemoryReservation;
use iceberg::arrow::{RecordBatchPartitionSplitter, schema_to_arrow_schema};
use iceberg::io::Storage;
use iceberg::spec::{
    DataFile, FormatVersion, PartitionKey, PartitionSpecRef, Struct, TableMetadata,
    deserialize_data_file_from_json, serialize_data_file_to_json,
};
use iceberg::table::Table;
use iceberg::writer::base_writer::data_file_writer::{DataFileWriter, DataFileWriterBuilder};
use iceberg::writer::file_writer::ParquetWriterBuilder;
use iceberg::writer::file_writer::location_generator::{
    DefaultLocationGenerator, FileNameGenerator, LocationGenerator,
};
use iceberg::writer::file_writer::rolling_writer::RollingFileWriterBuilder;
use iceberg::writer::{IcebergWriter as _, IcebergWriterBuilder};
use orbit_etl_core::{Committable, Epoch, Error, Lineage, Prepared, Result, SinkWriter, StreamId};
use parquet58::basic::{Compression, ZstdLevel};
use parquet58::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::IcebergSink;
use crate::bridge;
use crate::catalog::Opened;
use crate::error::from_iceberg;
use crate::storage::Stores;
use crate::types;

type Builder = DataFileWriterBuilder<ParquetWriterBuilder, DefaultLocationGenerator, Names>;
type Writer = DataFileWriter<ParquetWriterBuilder, DefaultLocationGenerator, Names>;

/// `orbit-<lineage and sink>-<claim>-<number>.parquet`
#[derive(Debug, Clone)]
struct Names {
    prefix: String,
    claim: u64,
    next: Arc<AtomicU64>,
}

impl FileNameGenerator for Names {
    fn generate_file_name(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{}{}-{number:06}.parquet", self.prefix, self.claim)
    }
}

/// A data file that is durable and belongs to no snapshot yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Staged {
    pub(super) path: String,
    schema: i32,
    spec: i32,
    file: Value,
}

impl Staged {
    pub(super) fn from_committable(committable: Committable) -> Result<Self> {
        serde_json::from_value(committable.0)
            .map_err(|e| Error::internal("a committable is not this sink's").caused_by(e))
    }

    /// The file as the table's metadata lists it.
    pub(super) fn data_file(&self, table: &TableMetadata) -> Result<DataFile> {
        let lost = || {
            Error::schema("a staged file was written for a schema that the table has lost")
                .with("file", &self.path)
        };
        let schema = table.schema_by_id(self.schema).ok_or_else(lost)?;
        let spec = table.partition_spec_by_id(self.spec).ok_or_else(lost)?;
        let fail = |e| from_iceberg(e, "read a committable", &self.path);
        let partition = spec.partition_type(schema).map_err(fail)?;
        deserialize_data_file_from_json(&self.file.to_string(), self.spec, &partition, schema).map_err(fail)
    }
}

/// What all writers of a session share.
#[derive(Debug)]
pub(super) struct Files {
    stores: Stores,
    folder: String,
    names: Names,
    builder: Builder,
    table_schema: iceberg::spec::SchemaRef,
    arrow_schema: SchemaRef,
    spec: PartitionSpecRef,
    version: FormatVersion,
    row_group_rows: usize,
    /// Per lane.
    max_open_files: usize,
    /// The epochs of the files that `prepare` handed over.
    prepared: Mutex<HashMap<String, Epoch>>,
    name: String,
}

impl Files {
    pub(super) fn new(
        table: &Table,
        opened: &Opened,
        lineage: &Lineage,
        sink: &IcebergSink,
        lanes: usize,
    ) -> Result<Self> {
        let fail = |e| from_iceberg(e, "write to a table", table.identifier());
        let metadata = table.metadata();
        let locations = DefaultLocationGenerator::new(metadata).map_err(fail)?;
        let folder = locations.generate_location(None, "");
        let owner = xxhash_rust::xxh3::xxh3_128(format!("{}\0{}", lineage.id, lineage.sink).as_bytes());
        let names = Names {
            prefix: format!("orbit-{owner:032x}-"),
            claim: lineage.claim,
            next: Arc::new(AtomicU64::new(1)),
        };
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_row_count(Some(sink.row_group_rows))
            .build();
        let table_schema = Arc::clone(metadata.current_schema());
        let rolling = RollingFileWriterBuilder::new(
            ParquetWriterBuilder::new(properties, Arc::clone(&table_schema)),
            usize::try_from(sink.target_file_size).unwrap_or(usize::MAX),
            table.file_io().clone(),
            locations,
            names.clone(),
        );
        let arrow_schema = bridge::schema_to_59(&schema_to_arrow_schema(&table_schema).map_err(fail)?)?;
        Ok(Self {
            stores: opened.stores.clone(),
            folder,
            names,
            builder: DataFileWriterBuilder::new(rolling),
            table_schema,
            arrow_schema,
            spec: Arc::clone(metadata.default_partition_spec()),
            version: metadata.format_version(),
            row_group_rows: sink.row_group_rows,
            max_open_files: (sink.max_open_files / lanes).max(1),
            prepared: Mutex::default(),
            name: sink.table.clone(),
        })
    }

    /// This sink's data files, whosever run wrote them, committed or not.
    pub(super) async fn list(&self) -> Result<Vec<String>> {
        let mut found = self
            .stores
            .list(&self.folder)
            .await
            .map_err(|e| from_iceberg(e, "list a table's data files", &self.name))?;
        found.retain(|file| self.claim_of(file).is_some());
        Ok(found)
    }

    pub(super) fn claim_of(&self, file: &str) -> Option<u64> {
        let name = file.rsplit('/').next()?.strip_prefix(&self.names.prefix)?;
        name.split_once('-')?.0.parse().ok()
    }

    pub(super) async fn remove(&self, file: &str) -> Result<()> {
        self.stores.delete(file).await.map_err(|e| from_iceberg(e, "remove a staged file", &self.name))
    }

    pub(super) fn of_epochs_below(&self, epoch: Epoch) -> HashSet<String> {
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        prepared.iter().filter(|(_, of)| **of < epoch).map(|(file, _)| file.clone()).collect()
    }
}

/// One partition's open file.
struct Open {
    writer: Writer,
    used: u64,
    /// Rows and bytes since the last row group.
    rows: usize,
    held: usize,
}

pub(super) struct IcebergWriter {
    files: Arc<Files>,
    splitter: Option<RecordBatchPartitionSplitter>,
    open: HashMap<Struct, Open>,
    clock: u64,
    closed: Vec<DataFile>,
    held: usize,
    memory: MemoryReservation,
}

impl IcebergWriter {
    pub(super) fn new(files: Arc<Files>, memory: MemoryReservation) -> Self {
        Self { files, splitter: None, open: HashMap::new(), clock: 0, closed: Vec::new(), held: 0, memory }
    }

    fn fail(&self, doing: &str) -> impl Fn(iceberg::Error) -> Error + use<> {
        let (doing, name) = (doing.to_owned(), self.files.name.clone());
        move |e| from_iceberg(e, &doing, &name)
    }

    fn split(
        &mut self,
        batch: arrow_array58::RecordBatch,
    ) -> Result<Vec<(Option<PartitionKey>, arrow_array58::RecordBatch)>> {
        if self.files.spec.is_unpartitioned() {
            return Ok(vec![(None, batch)]);
        }
        let fail = self.fail("divide rows among partitions");
        if self.splitter.is_none() {
            let (schema, spec) = (Arc::clone(&self.files.table_schema), Arc::clone(&self.files.spec));
            self.splitter = Some(
                RecordBatchPartitionSplitter::try_new_with_computed_values(schema, spec).map_err(&fail)?,
            );
        }
        let Some(splitter) = &self.splitter else { return Ok(Vec::new()) };
        let parts = splitter.split(&batch).map_err(fail)?;
        Ok(parts.into_iter().map(|(key, rows)| (Some(key), rows)).collect())
    }

    async fn append(&mut self, key: Option<PartitionKey>, rows: arrow_array58::RecordBatch) -> Result<()> {
        let place = key.as_ref().map_or_else(Struct::empty, |key| key.data().clone());
        if !self.open.contains_key(&place) {
            while self.open.len() >= self.files.max_open_files {
                self.close_oldest().await?;
            }
            let writer = self.files.builder.build(key).await.map_err(self.fail("begin a data file"))?;
            self.open.insert(place.clone(), Open { writer, used: 0, rows: 0, held: 0 });
        }
        let fail = self.fail("write a data file");
        let Some(open) = self.open.get_mut(&place) else {
            return Err(Error::internal("an open file is missing"));
        };
        self.clock += 1;
        open.used = self.clock;
        open.rows += rows.num_rows();
        // What the encoder holds of a row group is seldom more than the rows themselves.
        let bytes = rows.get_array_memory_size();
        open.held += bytes;
        self.held += bytes;
        open.writer.write(rows).await.map_err(fail)?;
        if open.rows >= self.files.row_group_rows {
            self.held -= open.held;
            open.rows %= self.files.row_group_rows;
            open.held = 0;
        }
        self.reserve().await
    }

    /// Makes the pool agree with what is held. If it refuses, files are ended until it does.
    async fn reserve(&mut self) -> Result<()> {
        while let Err(refusal) = self.memory.try_resize(self.held) {
            let largest = self.open.iter().max_by_key(|(_, open)| open.held);
            match largest.map(|(place, _)| place.clone()) {
                Some(place) => self.close(&place).await?,
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
        match self.open.iter().min_by_key(|(_, open)| open.used).map(|(place, _)| place.clone()) {
            Some(place) => self.close(&place).await,
            None => Ok(()),
        }
    }

    async fn close(&mut self, place: &Struct) -> Result<()> {
        let Some(mut open) = self.open.remove(place) else { return Ok(()) };
        self.held -= open.held;
        self.closed.extend(open.writer.close().await.map_err(self.fail("end a data file"))?);
        Ok(())
    }

    fn stage(&self, file: DataFile) -> Result<Staged> {
        let fail = self.fail("describe a data file");
        let path = file.file_path().to_owned();
        let partition = self.files.spec.partition_type(&self.files.table_schema).map_err(&fail)?;
        let json = serialize_data_file_to_json(file, &partition, self.files.version).map_err(&fail)?;
        let file = serde_json::from_str(&json)
            .map_err(|e| Error::internal("a data file's description isn't JSON").caused_by(e))?;
        let (schema, spec) = (self.files.table_schema.schema_id(), self.files.spec.spec_id());
        Ok(Staged { path, schema, spec, file })
    }
}

#[async_trait]
impl SinkWriter for IcebergWriter {
    async fn write(&mut self, stream: StreamId, batch: RecordBatch) -> Result<()> {
        if stream != StreamId(0) {
            return Err(
                Error::internal("rows of a stream that the sink wasn't opened for").with("stream", stream.0)
            );
        }
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let rows = bridge::batch_to_58(&types::fit(&batch, &self.files.arrow_schema)?)?;
        for (key, rows) in self.split(rows)? {
            self.append(key, rows).await?;
        }
        Ok(())
    }

    async fn prepare(&mut self, epoch: Epoch) -> Result<Prepared> {
        let places: Vec<Struct> = self.open.keys().cloned().collect();
        for place in places {
            self.close(&place).await?;
        }
        self.memory.free();
        self.held = 0;
        let files = std::mem::take(&mut self.closed);
        let bytes = files.iter().map(DataFile::file_size_in_bytes).sum();
        let mut staged = files.into_iter().map(|file| self.stage(file)).collect::<Result<Vec<_>>>()?;
        staged.sort_by(|a, b| a.path.cmp(&b.path));
        let mut prepared = self.files.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        prepared.extend(staged.iter().map(|staged| (staged.path.clone(), epoch)));
        let committables = staged
            .into_iter()
            .map(|staged| {
                serde_json::to_value(staged)
                    .map(Committable)
                    .map_err(|e| Error::internal("a committable isn't JSON").caused_by(e))
            })
            .collect::<Result<_>>()?;
        Ok(Prepared { committables, rejects: Vec::new(), bytes })
    }
}
