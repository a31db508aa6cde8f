//! Reading files: the configuration, and how it becomes streams, splits and readers.

mod adapt;
mod again;
mod avro;
mod chunks;
mod column;
mod csv;
mod dialect;
mod enumerate;
mod infer;
mod input;
mod ipc;
mod json;
mod list;
pub(crate) mod moment;
mod node;
pub(crate) mod number;
mod open;
mod parquet;
mod prune;
mod record;
mod resolved;
mod seen;
mod text;
mod token;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion_expr::Expr;
use futures::stream::BoxStream;
use orbit_etl_core::spec::{ByteSize, PathText, Secret, bytes};
use orbit_etl_core::{
    Connector, ConnectorInfo, Context, Error, FilterPushdown, Health, Position, Pushdown, Reject, Replay,
    Result, ScanRequest, Source, SourceEvent, Split, SplitChange, StreamInfo,
};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use self::resolved::{Resolved, Runs};
use crate::format::{Compression, CsvOptions, Format};
use crate::location::{Given, Location, Storage, redact};
use crate::schema::Columns;

/// How often the schema is looked for anew in files that change meanwhile.
const MOST_TRIES: usize = 3;

/// Reads files of one format as one bounded stream.
///
/// The path is a file, a directory (searched to any depth; only files with the format's ending)
/// or a glob, on the local disk or behind a URL. Names that begin with `_` or `.` are left out.
/// Columns are matched by name, so files may have them in any order.
///
/// * **Schema.** Given by [`schema`](Self::schema), or found: in the first
///   [`sample_rows`](Self::sample_rows) rows of the first [`sample_files`](Self::sample_files)
///   files for CSV and JSON lines, in the headers of those files for the others. A later value
///   that doesn't fit is a rejected record.
/// * **Partition columns.** Directories `column=value` below the path become columns, after the
///   others. Their type is that of `schema`, or else found from all values.
/// * **Rejects.** A malformed CSV line, JSON record or Avro block becomes one reject with file,
///   byte offset and line, and the reading goes on behind it. Columns that nobody asked for are
///   not looked at. In parts of a local file that begin beyond its first gigabyte, lines are counted
///   from the part's start, and the place says so.
/// * **Position.** Exact: records passed in the split, for text also byte and line. Which files were
///   told of is kept as 20 bytes of hashes per file, for good.
/// * **Memory.** A split holds a few megabytes; of a Parquet file the wanted columns of one row group,
///   which are reserved in the pipeline's memory pool: where they don't fit, the run stops.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesSource {
    /// A file, a directory or a glob: a path or a URL.
    #[schemars(with = "PathText")]
    path: Given,
    /// The name of the stream; `files` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// The files' format; unless given their names tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    format: Option<Format>,
    /// How CSV or JSON lines are compressed; unless given their names tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compression: Option<Compression>,
    /// How CSV is written there.
    #[serde(default)]
    csv: CsvOptions,
    /// Whether empty CSV fields of text columns are empty strings instead of NULL.
    #[serde(default)]
    keep_empty: bool,
    /// The columns: `{id: int64, at: "timestamp(us, UTC)"}`. Unless given they are found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schema: Option<Columns>,
    /// Options of the object store: `region`, `endpoint`, `access_key_id` …
    #[serde(default, skip_serializing)]
    #[schemars(with = "BTreeMap<String, Secret>")]
    storage: Storage,
    /// Whether directories `column=value` are columns; on unless said otherwise.
    #[serde(default = "yes")]
    partitions: bool,
    /// What to do about a file that lacks a column.
    #[serde(default)]
    missing: Missing,
    /// What to do about a column that the schema doesn't have.
    #[serde(default)]
    extra: Extra,
    /// What to do about a file that changed since it was read.
    #[serde(default)]
    changed: Changed,
    /// Larger files are read in parts of about this size; 64 MiB unless given, `null` for whole files.
    #[serde(default = "default_split_size", with = "bytes")]
    #[schemars(with = "Option<ByteSize>")]
    split_size: Option<u64>,
    /// How many files are looked at for the schema; 10 unless given.
    #[serde(default = "default_sample_files")]
    sample_files: usize,
    /// How many rows of each of them are looked at; 10,000 unless given.
    #[serde(default = "default_sample_rows")]
    sample_rows: usize,
    /// The longest text record that is taken; 64 MiB unless given.
    #[serde(default = "default_max_record", with = "bytes")]
    #[schemars(with = "ByteSize")]
    max_record: usize,
    #[serde(skip)]
    runs: Runs,
}

/// What to do about a file that lacks a column.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// The column is NULL in its rows.
    #[default]
    Null,
    /// The run stops. (A key that lacks in a JSON record is always NULL.)
    Error,
}

/// What to do about a column that the schema doesn't have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Extra {
    /// It isn't read.
    #[default]
    Ignore,
    /// The run stops; a JSON record with an extra key is rejected.
    Error,
}

/// What to do about a file that is not what it was when it was listed or read, or is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Changed {
    /// The run stops with [`ErrorKind::Conflict`](orbit_etl_core::ErrorKind::Conflict), or
    /// [`ErrorKind::NotFound`](orbit_etl_core::ErrorKind::NotFound), naming the file.
    #[default]
    Error,
    /// The reading of the old version ends where the change is noticed, and the whole file is read as a
    /// new one when the files are listed the next time: by the next run, or by this one if it
    /// restarts. Rows of the old version that have gone out until then stay, those of unchanged
    /// places come a second time, and the rest of the old version never comes. So this is
    /// for targets that keep one row per key, or for files that are only replaced by better ones.
    /// A file that is gone ends likewise, where it was noticed.
    Reload,
}

impl FilesSource {
    /// Files whose format is told by their names.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into().into(),
            name: None,
            format: None,
            compression: None,
            csv: CsvOptions::default(),
            keep_empty: false,
            schema: None,
            storage: Storage::new(),
            partitions: true,
            missing: Missing::default(),
            extra: Extra::default(),
            changed: Changed::default(),
            split_size: default_split_size(),
            sample_files: default_sample_files(),
            sample_rows: default_sample_rows(),
            max_record: default_max_record(),
            runs: Runs::default(),
        }
    }

    /// CSV files.
    pub fn csv(path: impl Into<String>) -> Self {
        Self::new(path).format(Format::Csv)
    }

    /// JSON lines files.
    pub fn json(path: impl Into<String>) -> Self {
        Self::new(path).format(Format::Json)
    }

    /// Parquet files.
    pub fn parquet(path: impl Into<String>) -> Self {
        Self::new(path).format(Format::Parquet)
    }

    /// Avro object container files.
    pub fn avro(path: impl Into<String>) -> Self {
        Self::new(path).format(Format::Avro)
    }

    /// Arrow IPC files and streams.
    pub fn arrow(path: impl Into<String>) -> Self {
        Self::new(path).format(Format::Arrow)
    }

    /// Reads the files as this format, whatever their names are.
    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// Decompresses CSV or JSON lines, whatever their names say.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = Some(compression);
        self
    }

    /// Names the stream; `files` unless given.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How CSV is written there. An empty field is NULL unless `null` names another text; then
    /// an empty field is an empty string, and malformed in columns that aren't text.
    #[must_use]
    pub fn csv_options(mut self, options: CsvOptions) -> Self {
        self.csv = options;
        self
    }

    /// Reads empty CSV fields of text columns as empty strings instead of NULL.
    #[must_use]
    pub fn keep_empty(mut self, keep: bool) -> Self {
        self.keep_empty = keep;
        self
    }

    /// Reads these columns instead of finding out. In a configuration: `schema: {id: int64, at:
    /// "timestamp(us, UTC)"}`. Without a CSV header they stand for the fields in order.
    #[must_use]
    pub fn schema(mut self, schema: SchemaRef) -> Self {
        self.schema = Some(Columns(schema));
        self
    }

    /// An option of the object store: `region`, `endpoint`, `access_key_id` …; the others are
    /// taken from the environment. For every store, `max_retries` (6) says how often a request is sent
    /// again after a failure of the network or the server, and `retry_timeout` (30) for how many
    /// seconds.
    #[must_use]
    pub fn storage(mut self, key: impl Into<String>, value: impl Into<SecretString>) -> Self {
        self.storage.insert(key.into(), value.into());
        self
    }

    /// Whether directories `column=value` are columns. On unless said otherwise.
    #[must_use]
    pub fn partitions(mut self, partitions: bool) -> Self {
        self.partitions = partitions;
        self
    }

    /// What to do about a file that lacks a column.
    #[must_use]
    pub fn missing(mut self, missing: Missing) -> Self {
        self.missing = missing;
        self
    }

    /// What to do about a column that the schema doesn't have.
    #[must_use]
    pub fn extra(mut self, extra: Extra) -> Self {
        self.extra = extra;
        self
    }

    /// What to do about a file that changed since it was read.
    #[must_use]
    pub fn changed(mut self, changed: Changed) -> Self {
        self.changed = changed;
        self
    }

    /// Splits larger files into parts of about this many bytes: uncompressed local CSV and JSON
    /// lines between records, Parquet between row groups. 64 MiB unless given; `None` reads each
    /// file as one.
    #[must_use]
    pub fn split_size(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.split_size = bytes.into();
        self
    }

    /// How many files are looked at for the schema; 10 unless given.
    #[must_use]
    pub fn sample_files(mut self, files: usize) -> Self {
        self.sample_files = files;
        self
    }

    /// How many rows of each of them are looked at; 10,000 unless given.
    #[must_use]
    pub fn sample_rows(mut self, rows: usize) -> Self {
        self.sample_rows = rows;
        self
    }

    /// The longest text record that is taken, in bytes; 64 MiB unless given, and never more than
    /// 1 GiB. (Of a header: the most that is read to find its end, by the megabyte.)
    ///
    /// A longer one is malformed: one reject, with its first 64 KiB (or `max_record` bytes, if that is
    /// less), however long it is. Reading goes on where the record ends: at the line feed for JSON, for
    /// CSV at the line break outside of its quotes, counted from the start of the file. A quote that
    /// is never closed thus takes the rest of the split into that one reject.
    #[must_use]
    pub fn max_record(mut self, bytes: usize) -> Self {
        self.max_record = bytes;
        self
    }

    fn stream_name(&self) -> &str {
        self.name.as_deref().unwrap_or("files")
    }

    fn location(&self) -> Result<Location> {
        Location::parse(&self.path, &self.storage)
    }

    /// The format as far as the configuration tells it.
    fn known_format(&self) -> Option<Format> {
        self.format.or_else(|| Format::from_path(&self.path).map(|(format, _)| format))
    }

    /// How a file is compressed as a whole.
    fn compression_of(&self, format: Format, file: &str) -> Compression {
        if !format.is_text() {
            return Compression::None;
        }
        self.compression.unwrap_or_else(|| {
            // The format may be given while the name tells the compression alone: `data.gz`.
            let ending = file.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
            Compression::ALL
                .into_iter()
                .find(|c| c.suffix() == Some(ending.as_str()))
                .unwrap_or(Compression::None)
        })
    }

    /// What this run reads; found out once per run.
    async fn resolved(&self, cx: &Context) -> Result<Arc<Resolved>> {
        if let Some(known) = self.runs.get(cx.run_id()) {
            return Ok(known);
        }
        let mut tries = 0;
        let resolved = loop {
            match infer::resolve(self, cx).await {
                // It is listed anew.
                Err(e) if self.changed == Changed::Reload && input::is_changed(&e) && tries < MOST_TRIES => {
                    tries += 1;
                }
                resolved => break Arc::new(resolved?),
            }
        };
        Ok(self.runs.keep(cx.run_id(), resolved))
    }
}

#[async_trait]
impl Connector for FilesSource {
    fn info(&self) -> ConnectorInfo {
        let format = self.known_format().map_or("files", Format::as_str);
        ConnectorInfo::new("files", format!("{format} {}", redact(&self.path))).with_path(&self.path)
    }

    fn validate(&self) -> Result<()> {
        self.location()?;
        self.csv.validate()?;
        if let (Some(format), Some(compression)) = (self.known_format(), self.compression)
            && !(format.is_text() && format.compressions().contains(&compression))
        {
            let remedy = if format.is_text() {
                "use none, gzip, zstd or bzip2"
            } else {
                "leave it out: such files say themselves how they are compressed"
            };
            return Err(Error::config(format!(
                "{format} files are not compressed as a whole by {compression}"
            ))
            .with("option", "compression")
            .remedy(remedy));
        }
        for (option, value) in [
            ("sample_files", self.sample_files),
            ("sample_rows", self.sample_rows),
            ("max_record", self.max_record),
            ("split_size", self.split_size.map_or(1, |n| usize::try_from(n).unwrap_or(usize::MAX))),
        ] {
            if value == 0 {
                return Err(Error::config("the option must be at least 1").with("option", option));
            }
        }
        Ok(())
    }

    async fn health(&self, _cx: &Context) -> Result<Health> {
        self.validate()?;
        let begun = Instant::now();
        let files = list::list(&self.location()?, self.known_format(), self.partitions).await?;
        let bytes: u64 = files.iter().map(|f| f.size).sum();
        Ok(Health { latency: begun.elapsed(), detail: format!("{} files, {bytes} bytes", files.len()) })
    }

    async fn discover(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        self.streams(cx).await
    }

    async fn disconnect(&self, cx: &Context) -> Result<()> {
        self.runs.forget(cx.run_id());
        Ok(())
    }
}

#[async_trait]
impl Source for FilesSource {
    async fn streams(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        self.validate()?;
        let resolved = self.resolved(cx).await?;
        Ok(vec![StreamInfo::new(self.stream_name(), Arc::clone(&resolved.schema))])
    }

    fn replay(&self) -> Replay {
        Replay::Exact
    }

    /// Comparisons of a column with a literal prune whole files by their partition values, and
    /// parts of Parquet files by their statistics; the engine filters what comes.
    fn pushdown(&self, wanted: &ScanRequest) -> Pushdown {
        let prunes = self.partitions || !matches!(self.known_format(), Some(f) if f != Format::Parquet);
        let answer = |filter: &Expr| {
            if prunes && prune::understands(filter) {
                FilterPushdown::Inexact
            } else {
                FilterPushdown::Unsupported
            }
        };
        Pushdown { projection: true, filters: wanted.filters.iter().map(answer).collect() }
    }

    async fn splits(
        &self,
        cx: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        self.validate()?;
        enumerate::splits(self, cx, after).await
    }

    async fn open(
        &self,
        cx: &Context,
        split: &Split,
        after: Option<&Position>,
        scan: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
        let resolved = self.resolved(cx).await?;
        open::open(self, cx, &resolved, split, after, scan.first()).await
    }

    async fn decode(&self, cx: &Context, records: Vec<Reject>) -> Result<Vec<SourceEvent>> {
        let resolved = self.resolved(cx).await?;
        again::decode(self, cx, &resolved, records).await
    }
}

fn yes() -> bool {
    true
}

#[allow(clippy::unnecessary_wraps)] // serde wants the field's type.
fn default_split_size() -> Option<u64> {
    Some(64 << 20)
}

fn default_sample_files() -> usize {
    10
}

fn default_sample_rows() -> usize {
    10_000
}

fn default_max_record() -> usize {
    64 << 20
}
