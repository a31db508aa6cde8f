//! Directories of files as a sink.

mod disk;
mod encode;
mod layout;
mod manifest;
mod out;
mod partition;
mod place;
mod plan;
mod session;
mod staged;
mod store;
mod types;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use orbit_etl_core::spec::{ByteSize, PathText, Secret, bytes};
use orbit_etl_core::{
    CommitMode, Connector, ConnectorInfo, Context, Error, Health, Publication, Result, ResultExt, Sink,
    SinkSession, StreamInfo,
};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use self::encode::EncodeOptions;
use self::layout::Template;
use self::place::Place;
use self::plan::StreamPlan;
use self::session::{FilesSession, Setup};
use crate::format::{Compression, CsvOptions, Format};
use crate::location::{Given, Location, Storage, redact};

/// Whether files are added to what a pipeline has published before, or take its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each epoch adds files.
    #[default]
    Append,
    /// The files of one whole reading of the sources replace those of the one before, when it is
    /// complete. Needs inputs that end.
    Overwrite,
}

/// Writes a directory of files, on a disk or in an object store.
///
/// ```
/// use orbit_etl_connector_files::{Compression, FilesSink};
///
/// let sink = FilesSink::parquet("lake/orders")
///     .compression(Compression::Zstd)
///     .partition_by(["o_orderyear"]);
/// ```
///
/// # What appears when
///
/// Rows are staged under `_orbit/staged/` in the target (in an object store: as uploads that are
/// not completed), where readers don't look, and synced when an epoch ends. Its commit moves them
/// to their places one after another, each file appearing whole, and last of all writes a manifest:
/// `_orbit/manifests/<sink>/<lineage>/<epoch>.manifest`, JSON which lists the epoch's files with their rows
/// and bytes. Files that no manifest of this pipeline names are never touched.
///
/// # Reading all or nothing
///
/// A reader that must see only whole epochs reads the files that the manifests list, instead of the
/// directory: within one `<sink>/<lineage>/` those of all manifests, or, if there is one whose
/// `mode` is `overwrite`, of those whose `generation` is not below the newest such one's. Files that
/// were replaced are removed right after the manifest that replaces them was written.
///
/// # Several pipelines
///
/// Pipelines can append to one directory if their sinks have different names. A sink of the same
/// name in another pipeline, or any other pipeline's files under `mode: overwrite`, are reported
/// when the target is claimed.
///
/// # Values
///
/// What has no form in a format is refused: a type when the target is opened, a value when it is
/// written.
///
/// * **Parquet** has every type but unions, and intervals of nanoseconds.
/// * **Arrow** has every type but unions. Dictionaries are written as their values.
/// * **JSON** leaves NULL out, except in streams with maps, where a key would go with it. Bytes are
///   hexadecimal text, spans of time ISO 8601 text. There are no infinities: they become `null`.
/// * **CSV** refuses nested columns. Bytes are hexadecimal text, spans of time ISO 8601 text.
/// * Both write times with a zone in UTC, and dates whose year has not four digits with a sign, which
///   is not read back.
/// * **Avro** writes integers of less than 32 bits as `int`, `UInt32`, `UInt64` and durations as
///   `long`, `Float16` as `float`, times of day as milli- or microseconds (nanoseconds are cut off),
///   timestamps with a zone in UTC, those in seconds and `Date64` as milliseconds, and dictionaries,
///   large and fixed-size lists as their plain forms. It refuses intervals that are negative or no
///   whole milliseconds, columns that are always NULL by their type, and numbers that are too large.
///
/// Partition columns stand in the folder names alone, percent-encoded; NULL is
/// `__HIVE_DEFAULT_PARTITION__`. Rows whose folder name would be longer than 255 bytes, or whose path
/// longer than the target allows (4,095 bytes on a disk, 1,024 in an object store), are rejected.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesSink {
    /// A directory: a path or a URL. `{stream}` stands for the name of the input stream.
    #[schemars(with = "PathText")]
    path: Given,
    /// The files' format.
    format: Format,
    /// The compression; by default Zstandard for Parquet and Avro, nothing for the others.
    #[serde(default)]
    compression: Option<Compression>,
    /// The level of Zstandard, 1 to 22; 3 by default.
    #[serde(default)]
    compression_level: Option<i32>,
    /// Adds files, or replaces those of the last time.
    #[serde(default)]
    mode: Mode,
    /// Columns whose values become `column=value/` folders.
    #[serde(default)]
    partition_by: Vec<String>,
    /// A new file begins at about this size; 512 MiB by default.
    #[serde(default = "default_file_size", with = "bytes")]
    #[schemars(with = "ByteSize")]
    target_file_size: u64,
    /// How many rows a Parquet row group has at most; 1,048,576 by default.
    #[serde(default = "default_row_group_rows")]
    row_group_rows: usize,
    /// How many files the sink keeps open, shared between its lanes; 256 by default.
    #[serde(default = "default_open_files")]
    max_open_files: usize,
    /// How CSV is written.
    #[serde(default)]
    csv: CsvOptions,
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

impl FilesSink {
    /// Files of this format in a directory: a path or a URL. With several input streams, the path
    /// holds `{stream}` where a stream's name goes.
    pub fn new(path: impl Into<String>, format: Format) -> Self {
        Self {
            path: path.into().into(),
            format,
            compression: None,
            compression_level: None,
            mode: Mode::default(),
            partition_by: Vec::new(),
            target_file_size: default_file_size(),
            row_group_rows: default_row_group_rows(),
            max_open_files: default_open_files(),
            csv: CsvOptions::default(),
            storage: Storage::new(),
        }
    }

    /// CSV files in a directory.
    pub fn csv(path: impl Into<String>) -> Self {
        Self::new(path, Format::Csv)
    }

    /// JSON lines files in a directory.
    pub fn json(path: impl Into<String>) -> Self {
        Self::new(path, Format::Json)
    }

    /// Parquet files in a directory.
    pub fn parquet(path: impl Into<String>) -> Self {
        Self::new(path, Format::Parquet)
    }

    /// Avro object container files in a directory.
    pub fn avro(path: impl Into<String>) -> Self {
        Self::new(path, Format::Avro)
    }

    /// Arrow IPC files in a directory.
    pub fn arrow(path: impl Into<String>) -> Self {
        Self::new(path, Format::Arrow)
    }

    /// Compresses. By default Parquet and Avro use Zstandard, the others nothing.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = Some(compression);
        self
    }

    /// The level of Zstandard, 1 to 22, for CSV, JSON and Parquet; 3 by default.
    #[must_use]
    pub fn compression_level(mut self, level: i32) -> Self {
        self.compression_level = Some(level);
        self
    }

    /// Adds files (the default) or replaces those of the last time.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Puts rows into `column=value/` folders by these columns, which the files then don't have.
    #[must_use]
    pub fn partition_by(mut self, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.partition_by = columns.into_iter().map(Into::into).collect();
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
    /// equally between the lanes, each of which has at least one. Beyond, the file that was not written
    /// to for the longest time is closed, and its partition gets another one later. A lane syncs up to
    /// four more while it closes them. The process must be allowed to have as many open
    /// (`ulimit -n`).
    #[must_use]
    pub fn max_open_files(mut self, files: usize) -> Self {
        self.max_open_files = files;
        self
    }

    /// How CSV is written.
    #[must_use]
    pub fn csv_options(mut self, csv: CsvOptions) -> Self {
        self.csv = csv;
        self
    }

    /// An option of the object store, such as `region`, `endpoint` or `access_key_id`. What isn't
    /// given is taken from the environment. For every store, `max_retries` (6) says how often a request
    /// is sent again after a failure of the network or the server, and `retry_timeout` (30) for how
    /// many seconds.
    #[must_use]
    pub fn storage_option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.storage.insert(key.into(), SecretString::from(value.into()));
        self
    }

    fn encode_options(&self) -> EncodeOptions {
        EncodeOptions {
            format: self.format,
            compression: self.compression.unwrap_or_else(|| self.format.default_compression()),
            level: self.compression_level,
            csv: self.csv.clone(),
            row_group_rows: self.row_group_rows,
        }
    }

    fn place(&self) -> Result<Place> {
        let template = Template::new(&self.path);
        Location::parse(&template.root, &self.storage).and_then(|location| Place::new(&location))
    }

    fn open_at(&self, cx: &Context, inputs: &[StreamInfo], place: Place) -> Result<FilesSession> {
        let template = Template::new(&self.path);
        if inputs.len() > 1 && !template.by_stream() {
            return Err(Error::config("several streams can't share one directory")
                .with("path", redact(&self.path))
                .remedy("write `{stream}` into the path where the stream's name goes"));
        }
        let options = self.encode_options();
        let streams = inputs
            .iter()
            .map(|stream| StreamPlan::new(stream, &template, &self.partition_by, &options).map(Arc::new))
            .collect::<Result<_>>()?;
        let setup = Setup {
            place,
            mode: self.mode,
            options,
            partition_by: self.partition_by.clone(),
            target_file_size: self.target_file_size,
            max_open_files: self.max_open_files,
            streams,
        };
        Ok(FilesSession::new(cx, setup))
    }
}

#[async_trait]
impl Connector for FilesSink {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("files", format!("{} {}", self.format, redact(&self.path))).with_path(&self.path)
    }

    fn validate(&self) -> Result<()> {
        let EncodeOptions { format, compression, level, .. } = self.encode_options();
        if !format.compressions().contains(&compression) {
            let known: Vec<_> = format.compressions().iter().map(|c| c.as_str()).collect();
            return Err(Error::config(format!("{format} files can't be compressed with {compression}"))
                .with("option", "compression")
                .remedy(format!("use one of these: {}", known.join(", "))));
        }
        if let Some(level) = level {
            let used = compression == Compression::Zstd && !matches!(format, Format::Avro | Format::Arrow);
            if !used || !(1..=22).contains(&level) {
                return Err(Error::config("the compression level can't be used")
                    .with("option", "compression_level")
                    .remedy("a level from 1 to 22 is for zstd in csv, json and parquet"));
            }
        }
        for (option, is_zero) in [
            ("target_file_size", self.target_file_size == 0),
            ("row_group_rows", self.row_group_rows == 0),
            ("max_open_files", self.max_open_files == 0),
        ] {
            if is_zero {
                return Err(Error::config("must be at least 1").with("option", option));
            }
        }
        self.csv.validate()?;
        if self.csv.escape.is_some() {
            return Err(Error::config("CSV is written with doubled quotes only")
                .with("option", "csv.escape")
                .remedy("leave `escape` out: it is for reading"));
        }
        self.place().map(drop)
    }

    async fn health(&self, cx: &Context) -> Result<Health> {
        let _ = cx;
        self.validate()?;
        let start = Instant::now();
        self.place()?.check().await?;
        Ok(Health { latency: start.elapsed(), detail: format!("{} files", self.format) })
    }
}

#[async_trait]
impl Sink for FilesSink {
    fn commit_mode(&self) -> CommitMode {
        CommitMode::Staged
    }

    fn publication(&self) -> Publication {
        match self.mode {
            Mode::Append => Publication::EachEpoch,
            Mode::Overwrite => Publication::AtEnd,
        }
    }

    /// Files are read in no order: changes whose order matters need a column that tells it.
    fn needs_order(&self, _input: &StreamInfo) -> bool {
        false
    }

    async fn open(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Box<dyn SinkSession>> {
        self.validate()?;
        let place = self.place()?;
        place.check().await.with("path", redact(&self.path))?;
        Ok(Box::new(self.open_at(cx, inputs, place)?))
    }
}
