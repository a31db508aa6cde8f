//! Delta tables as a sink.

mod change;
mod check;
mod commit;
mod create;
mod head;
mod operate;
mod out;
mod partition;
mod plan;
mod reading;
mod session;
mod shape;
pub(crate) mod staged;
mod stats;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use async_trait::async_trait;
use orbit_etl_core::model::Role;
use orbit_etl_core::spec::{ByteSize, PathText, Secret, bytes};
use orbit_etl_core::{
    CommitMode, Connector, ConnectorInfo, Context, Error, Health, Publication, Result, Sink, SinkSession,
    StreamInfo,
};
use parquet::basic::{Compression as ParquetCompression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use self::create::NewTable;
use self::plan::{StreamPlan, changed_columns};
use self::session::DeltaSession;
use self::shape::{Shape, TRANSACTION_RETENTION};
use self::staged::{FOLDER, How, WAITING};
use crate::table::{Place, Storage, redact};

/// The level of Zstandard.
const ZSTD_LEVEL: i32 = 3;
/// Where a stream's name goes in a path.
const STREAM: &str = "{stream}";

/// What a pipeline's rows do to those that a table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each epoch adds its rows.
    #[default]
    Append,
    /// The rows of one whole reading of the sources replace all that the table has, in one version,
    /// when the reading is complete. Needs inputs that end. With `replace_where`, only those that
    /// satisfy it.
    Overwrite,
    /// Each row takes the place of the one with the same keys, or is a new one. Change rows that say so
    /// remove it.
    Merge,
}

/// What happens when the rows have columns that the table lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchemaMode {
    /// An error.
    #[default]
    Strict,
    /// The table gets them with the commit that brings the first rows.
    Merge,
}

/// How data files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Zstandard, level 3.
    #[default]
    Zstd,
    /// Snappy.
    Snappy,
    /// Not at all.
    None,
}

/// Writes a Delta table, on a disk or in an object store.
///
/// ```
/// use orbit_etl_connector_delta::DeltaSink;
///
/// let sink = DeltaSink::append("lake/orders").partition_by(["o_orderyear"]);
/// ```
///
/// # What appears when
///
/// Data files are written to their places under `part-orbit/` in the table's folder and are durable when
/// an epoch ends; no reader sees them. Its commit is one version of the table, which names them all
/// and records the epoch as an application transaction of this pipeline and sink. It is written only if
/// the version before it shows that the epoch is new and the run the newest. So an epoch is committed
/// once, whatever crashes or wakes up late. Other clients may write at the same time: an append is
/// tried again on top of what they did.
///
/// What a run leaves behind, the next one removes. Files that a run stages after a newer one has swept
/// stay; no version names them, and `VACUUM` of other tools removes them as it does what a MERGE leaves
/// that was cut off.
///
/// A run begins with a version of its own, without rows, which tells older runs that they are over. A
/// table that isn't there is made then, empty. An epoch without rows makes a version
/// too, which records it.
///
/// # Merging
///
/// With [`Mode::Merge`], the rows of an epoch wait in files under `_orbit/` that the table doesn't name,
/// and the commit is one MERGE by the [`keys`](Self::keys). Of several rows with the same keys the last one
/// counts: that of the highest order where the stream has a column with the role `order`, otherwise the
/// one that came last. Rows that come through different lanes at the same time have no order among them
/// unless the stream gives one. Where the stream has a column with the role `op`, a row whose `op` is
/// `delete` removes the table's row; `insert`, `update` and `snapshot` all write it. Columns with the
/// roles `op`, `order` and `before` don't become the table's.
///
/// A row with NULL as a key is rejected. If other writers commit while a MERGE runs, it runs again on
/// top of theirs. Columns that the table lacks come, if they may, with a version of their own before.
/// The MERGE uses the pipeline's memory, sorts and spills if that is short, and prunes files by the
/// bounds of the keys.
///
/// # Several pipelines
///
/// Pipelines can append to one table if their sinks have different names. A sink of the same name in
/// another pipeline is refused.
///
/// # Values
///
/// The types are in the crate's documentation. Rows with a value that the table's type can't hold
/// exactly, with NULL where the table has none, or that break one of its constraints are rejected, and
/// so are those whose partition column holds an empty text, which Delta would take for NULL.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeltaSink {
    /// The table's folder: a path or a URL. `{stream}` stands for the name of the input stream.
    #[schemars(with = "PathText")]
    path: String,
    /// What the rows do to those that the table has.
    #[serde(default)]
    mode: Mode,
    /// The columns that tell rows apart, where the mode is `merge`.
    #[serde(default)]
    keys: Vec<String>,
    /// The rows that each run replaces, as a condition in SQL; for the mode `overwrite`.
    #[serde(default)]
    replace_where: Option<String>,
    /// What happens when the rows have columns that the table lacks.
    #[serde(default)]
    schema_mode: SchemaMode,
    /// The columns by which a new table is partitioned.
    #[serde(default)]
    partition_by: Vec<String>,
    /// Properties of a new table, such as `delta.appendOnly`.
    #[serde(default)]
    properties: BTreeMap<String, String>,
    /// How data files are compressed; Zstandard unless given.
    #[serde(default)]
    compression: Compression,
    /// A new file begins at about this size; 512 MiB unless given.
    #[serde(default = "default_file_size", with = "bytes")]
    #[schemars(with = "ByteSize")]
    target_file_size: u64,
    /// How many rows a Parquet row group has at most; 1,048,576 unless given.
    #[serde(default = "default_row_group_rows")]
    row_group_rows: usize,
    /// How many files the sink keeps open when there are many partitions; 256 unless given.
    #[serde(default = "default_open_files")]
    max_open_files: usize,
    /// Options of the object store: `region`, `endpoint`, `access_key_id` …
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Secret>")]
    storage: Storage,
}

fn default_file_size() -> u64 {
    512 << 20
}

fn default_row_group_rows() -> usize {
    1 << 20
}

fn default_open_files() -> usize {
    256
}

impl DeltaSink {
    /// Into the table in this folder: a path or a URL. With several input streams, the path holds
    /// `{stream}` where a stream's name goes, and each has a table of its own.
    pub fn new(path: impl Into<String>, mode: Mode) -> Self {
        Self {
            path: path.into(),
            mode,
            keys: Vec::new(),
            replace_where: None,
            schema_mode: SchemaMode::default(),
            partition_by: Vec::new(),
            properties: BTreeMap::new(),
            compression: Compression::default(),
            target_file_size: default_file_size(),
            row_group_rows: default_row_group_rows(),
            max_open_files: default_open_files(),
            storage: Storage::new(),
        }
    }

    /// Adds rows to a table.
    pub fn append(path: impl Into<String>) -> Self {
        Self::new(path, Mode::Append)
    }

    /// Replaces a table's rows.
    pub fn overwrite(path: impl Into<String>) -> Self {
        Self::new(path, Mode::Overwrite)
    }

    /// Replaces those of a table's rows that satisfy an SQL condition over its columns. Rows that don't
    /// satisfy it are rejected.
    pub fn replace_where(path: impl Into<String>, predicate: impl Into<String>) -> Self {
        Self { replace_where: Some(predicate.into()), ..Self::new(path, Mode::Overwrite) }
    }

    /// Merges rows into a table's by these columns.
    pub fn merge(path: impl Into<String>, keys: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::new(path, Mode::Merge).keys(keys)
    }

    /// The columns that tell rows apart, for [`Mode::Merge`]; the stream's own keys if there are none.
    #[must_use]
    pub fn keys(mut self, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.keys = columns.into_iter().map(Into::into).collect();
        self
    }

    /// What happens with columns that the table lacks.
    #[must_use]
    pub fn schema_mode(mut self, mode: SchemaMode) -> Self {
        self.schema_mode = mode;
        self
    }

    /// Partitions a new table by these columns; one that is there must be so already.
    #[must_use]
    pub fn partition_by(mut self, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.partition_by = columns.into_iter().map(Into::into).collect();
        self
    }

    /// A property of a new table, such as `delta.appendOnly`. One that is there keeps its own.
    #[must_use]
    pub fn property(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.insert(key.into(), value.into());
        self
    }

    /// Compresses otherwise than with Zstandard.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Begins a new file when one has about this many bytes; 512 MiB by default.
    #[must_use]
    pub fn target_file_size(mut self, bytes: u64) -> Self {
        self.target_file_size = bytes;
        self
    }

    /// How many rows a Parquet row group has at most; 1,048,576 by default.
    #[must_use]
    pub fn row_group_rows(mut self, rows: usize) -> Self {
        self.row_group_rows = rows;
        self
    }

    /// How many files the sink keeps open when there are many partitions; 256 by default, shared
    /// equally between the lanes, each of which has at least one.
    #[must_use]
    pub fn max_open_files(mut self, files: usize) -> Self {
        self.max_open_files = files;
        self
    }

    /// An option of the object store, such as `region`, `endpoint` or `access_key_id`. What isn't
    /// given is taken from the environment.
    #[must_use]
    pub fn storage_option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.storage.insert(key.into(), SecretString::from(value.into()));
        self
    }

    /// Where a stream's table is.
    fn place(&self, stream: &str) -> Result<Place> {
        Place::parse(&self.path.replace(STREAM, &segment(stream)), &self.storage)
    }

    fn writer_properties(&self) -> Result<WriterProperties> {
        let compression = match self.compression {
            Compression::Zstd => ParquetCompression::ZSTD(
                ZstdLevel::try_new(ZSTD_LEVEL)
                    .map_err(|e| Error::internal("there is no such level").caused_by(e))?,
            ),
            Compression::Snappy => ParquetCompression::SNAPPY,
            Compression::None => ParquetCompression::UNCOMPRESSED,
        };
        Ok(WriterProperties::builder()
            .set_created_by(concat!("orbit-etl version ", env!("CARGO_PKG_VERSION")).into())
            .set_compression(compression)
            .set_max_row_group_row_count(Some(self.row_group_rows))
            .build())
    }

    /// What commits do with a stream's files.
    fn how(&self, input: &StreamInfo) -> How {
        match (self.mode, &self.replace_where) {
            (Mode::Merge, _) => How::Merge {
                keys: if self.keys.is_empty() { input.keys.clone() } else { self.keys.clone() },
                ordered: Role::Order.find(&input.schema).is_some(),
            },
            (Mode::Overwrite, Some(predicate)) => How::Replace { predicate: predicate.clone() },
            (Mode::Append | Mode::Overwrite, _) => How::Add,
        }
    }

    /// The folder, in a table's own, where rows are staged.
    fn root(&self) -> &'static str {
        match (self.mode, &self.replace_where) {
            (Mode::Append, _) | (Mode::Overwrite, None) => FOLDER,
            (Mode::Overwrite, Some(_)) | (Mode::Merge, _) => WAITING,
        }
    }

    /// The table that is made if there is none.
    fn new_table(&self, input: &StreamInfo) -> Result<NewTable> {
        NewTable::new(&changed_columns(&input.schema, &self.how(input)), &self.partition_by, &self.properties)
    }

    /// Whether a stream's rows can go into its table, as it is or as it would be made.
    async fn check(&self, input: &StreamInfo) -> Result<()> {
        let place = self.place(&input.name)?;
        let shape = match place.try_load().await? {
            Some(table) => {
                let shape = Shape::of(&table, &place)?;
                if !self.partition_by.is_empty() && self.partition_by != shape.partition_columns() {
                    return Err(Error::config("the table is partitioned otherwise")
                        .with("table", &place)
                        .with("partitioned by", shape.partition_columns().join(", "))
                        .remedy("leave `partition_by` out, or write to another table"));
                }
                shape
            }
            None => self.new_table(input)?.shape()?,
        };
        if let Some(kept) = shape.transaction_retention() {
            let message = "the table may forget which epochs it has";
            return Err(Error::config(message)
                .with("table", &place)
                .with("property", TRANSACTION_RETENTION)
                .with("value", kept)
                .remedy(
                    "unset the property: a pipeline may go on after any time, and must find its epochs",
                ));
        }
        StreamPlan::new(&input.name, &input.schema, &shape, self.schema_mode, self.how(input))
            .map(drop)
            .map_err(|e| e.with("table", &place))
    }
}

#[async_trait]
impl Connector for DeltaSink {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("delta", format!("delta {}", redact(&self.path))).with_path(&self.path)
    }

    fn validate(&self) -> Result<()> {
        for (option, is_zero) in [
            ("target_file_size", self.target_file_size == 0),
            ("row_group_rows", self.row_group_rows == 0),
            ("max_open_files", self.max_open_files == 0),
        ] {
            if is_zero {
                return Err(Error::config("must be at least 1").with("option", option));
            }
        }
        if !self.keys.is_empty() && self.mode != Mode::Merge {
            return Err(Error::config("only a merge has keys")
                .with("option", "keys")
                .remedy("write `mode: merge`, or leave `keys` out"));
        }
        if self.replace_where.is_some() && self.mode != Mode::Overwrite {
            return Err(Error::config("only an overwrite replaces a part of the table")
                .with("option", "replace_where")
                .remedy("write `mode: overwrite`, or leave `replace_where` out"));
        }
        self.place("stream").map(drop)
    }

    async fn health(&self, cx: &Context) -> Result<Health> {
        let _ = cx;
        self.validate()?;
        let start = Instant::now();
        let place = self.place("stream")?;
        let detail = match place.try_load().await? {
            Some(table) => format!("version {}", table.version().unwrap_or_default()),
            None => "no table yet".to_owned(),
        };
        Ok(Health { latency: start.elapsed(), detail })
    }
}

#[async_trait]
impl Sink for DeltaSink {
    fn commit_mode(&self) -> CommitMode {
        CommitMode::Staged
    }

    fn publication(&self) -> Publication {
        match self.mode {
            Mode::Append | Mode::Merge => Publication::EachEpoch,
            Mode::Overwrite => Publication::AtEnd,
        }
    }

    fn needs_order(&self, _input: &StreamInfo) -> bool {
        self.mode == Mode::Merge
    }

    async fn open(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Box<dyn SinkSession>> {
        self.validate()?;
        if inputs.len() > 1 && !self.path.contains(STREAM) {
            return Err(Error::config("several streams can't share one table")
                .with("path", redact(&self.path))
                .remedy("write `{stream}` into the path where the stream's name goes"));
        }
        let mut folders = BTreeSet::new();
        for input in inputs {
            if !folders.insert(segment(&input.name)) {
                return Err(Error::config("two streams have the same name").with("stream", &input.name));
            }
            self.check(input).await.map_err(|e| e.with("stream", &input.name))?;
        }
        Ok(Box::new(DeltaSession::new(cx, self, inputs)))
    }
}

/// A stream's name as a folder's: letters, digits and what is harmless everywhere; the rest as hex.
fn segment(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for (i, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || byte == b'-' || (i > 0 && matches!(byte, b'_' | b'.'));
        if plain {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("_{byte:02x}_"));
        }
    }
    out
}
