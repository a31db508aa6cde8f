//! Tables as a sink.

mod create;
#[cfg(test)]
mod faults;
mod plan;
mod record;
mod session;
mod staged;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use async_trait::async_trait;
use iceberg::TableIdent;
use iceberg::spec::Transform;
use orbit_etl_core::spec::{ByteSize, bytes};
use orbit_etl_core::{
    CommitMode, Connector, ConnectorInfo, Context, Error, Health, Result, Sink, SinkSession, StreamInfo,
};
use parquet58::basic::{Compression as ParquetCompression, ZstdLevel};
use parquet58::file::properties::WriterProperties;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::create::{partition_spec, writable};
use self::plan::missing;
use self::session::IcebergSession;
use crate::catalog::{IcebergCatalog, table_ident};
use crate::error::from_iceberg;
use crate::types;

/// The level of Zstandard.
const ZSTD_LEVEL: i32 = 3;
/// Where a stream's name goes in a table's.
const STREAM: &str = "{stream}";

/// What a pipeline's rows do to those that a table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each epoch adds its rows.
    #[default]
    Append,
    /// The rows replace all that the table has. Refused: an Iceberg sink can only append.
    Overwrite,
    /// Rows replace those with the same keys. Refused: an Iceberg sink can only append.
    Upsert,
}

/// What happens when the rows have columns that the table lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchemaMode {
    /// An error.
    #[default]
    Strict,
    /// The table gets them when a run begins.
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

/// Writes an Iceberg table.
///
/// ```
/// use orbit_etl_connector_iceberg::{IcebergCatalog, IcebergSink, PartitionBy};
///
/// let sink = IcebergSink::append(IcebergCatalog::rest("https://catalog.example.org"), "shop.orders")
///     .partition_by([PartitionBy::new("o_orderdate", "month")]);
/// ```
///
/// # What appears when
///
/// Data files are written to their places under the table's data folder and are durable when an epoch
/// ends; no reader sees them. Its commit is one snapshot, which names them all, and sets properties of
/// the table (`orbit.<sink>.…`) that record lineage, claim and epoch. It is built only on a snapshot that
/// shows that the epoch is new and the run the newest, and the catalog takes it only if the table
/// still ends with just that. So an epoch is committed once, whatever crashes or wakes up late. Other
/// clients may write at the same time: an append is tried again on top of what they did.
///
/// A run begins with a snapshot of its own, without rows, which ends older runs. A table that isn't there
/// is made then, empty, and with [`SchemaMode::Merge`] it gets the columns that it lacks. An epoch without
/// rows makes a snapshot too, which records it.
///
/// # What it can't
///
/// The sink only appends. [`Mode::Overwrite`] and [`Mode::Upsert`] are refused as unsupported before
/// anything is touched: transactions of the `iceberg` crate can add data files and nothing else, and a
/// catalog takes no commit that another crate has made.
///
/// # Several pipelines
///
/// Pipelines can append to one table if their sinks have different names. A sink of the same name in
/// another pipeline is refused.
///
/// # Values
///
/// The types are in the crate's documentation. Rows with a value that the table's type can't hold
/// exactly, or with NULL where the table has none, are rejected.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IcebergSink {
    /// Where the table is looked up.
    catalog: IcebergCatalog,
    /// The table: `namespace.table`. `{stream}` stands for the name of the input stream.
    table: String,
    /// What the rows do to those that the table has.
    #[serde(default)]
    mode: Mode,
    /// What happens when the rows have columns that the table lacks.
    #[serde(default)]
    schema_mode: SchemaMode,
    /// The partition fields of a new table.
    #[serde(default)]
    partition_by: Vec<PartitionBy>,
    /// Properties of a new table, such as `write.metadata.previous-versions-max`.
    #[serde(default)]
    properties: BTreeMap<String, String>,
    /// How data files are compressed; Zstandard unless given.
    #[serde(default)]
    compression: Compression,
    /// A new file begins at about this size; 512 MiB unless given.
    #[serde(default = "default_file_size", with = "bytes")]
    #[schemars(with = "ByteSize")]
    target_file_size: u64,
    /// How many rows a Parquet row group has at most; 131,072 unless given.
    #[serde(default = "default_row_group_rows")]
    row_group_rows: usize,
    /// How many partitions are written to at a time; 64 unless given.
    #[serde(default = "default_open_files")]
    max_open_files: usize,
}

/// A partition field of a new table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PartitionBy {
    /// The column.
    column: String,
    /// One of Iceberg's transforms: `identity` (unless given), `bucket[16]`, `truncate[4]`, `year`,
    /// `month`, `day`, `hour`.
    #[serde(default = "default_transform")]
    transform: String,
}

impl PartitionBy {
    /// By a column's value under one of Iceberg's transforms: `identity`, `bucket[16]`, `truncate[4]`,
    /// `year`, `month`, `day`, `hour`.
    pub fn new(column: impl Into<String>, transform: impl Into<String>) -> Self {
        Self { column: column.into(), transform: transform.into() }
    }

    fn column(&self) -> &str {
        &self.column
    }

    fn transform(&self) -> Result<Transform> {
        match self.transform.parse() {
            Ok(Transform::Unknown | Transform::Void) | Err(_) => {
                Err(Error::config("no transform of that name")
                    .with("option", "partition_by.transform")
                    .with("column", &self.column)
                    .remedy("use identity, bucket[n], truncate[n], year, month, day or hour"))
            }
            Ok(transform) => Ok(transform),
        }
    }

    /// The field's name, of characters that manifests take.
    fn name(&self) -> String {
        let name = match self.transform.split('[').next() {
            Some("identity") | None => self.column.clone(),
            Some("truncate") => format!("{}_trunc", self.column),
            Some(transform) => format!("{}_{transform}", self.column),
        };
        if create::is_plain(&name) {
            return name;
        }
        let mut out = String::from("_");
        for c in name.chars() {
            match c {
                '_' => out.push(c),
                c if c.is_ascii_alphanumeric() => out.push(c),
                c => out.push_str(&format!("_x{:X}", u32::from(c))),
            }
        }
        out
    }
}

fn default_transform() -> String {
    "identity".to_owned()
}

fn default_file_size() -> u64 {
    512 << 20
}

fn default_row_group_rows() -> usize {
    128 << 10
}

fn default_open_files() -> usize {
    64
}

impl IcebergSink {
    /// Into a table, named `namespace.table`. With several input streams the name holds `{stream}` where
    /// a stream's goes, and each has a table of its own.
    pub fn new(catalog: IcebergCatalog, table: impl Into<String>, mode: Mode) -> Self {
        Self {
            catalog,
            table: table.into(),
            mode,
            schema_mode: SchemaMode::default(),
            partition_by: Vec::new(),
            properties: BTreeMap::new(),
            compression: Compression::default(),
            target_file_size: default_file_size(),
            row_group_rows: default_row_group_rows(),
            max_open_files: default_open_files(),
        }
    }

    /// Adds rows to a table.
    pub fn append(catalog: IcebergCatalog, table: impl Into<String>) -> Self {
        Self::new(catalog, table, Mode::Append)
    }

    /// What happens with columns that the table lacks.
    #[must_use]
    pub fn schema_mode(mut self, mode: SchemaMode) -> Self {
        self.schema_mode = mode;
        self
    }

    /// Compresses otherwise than with Zstandard.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// The partition fields of a table that the sink creates. One that is there keeps its own.
    #[must_use]
    pub fn partition_by(mut self, fields: impl IntoIterator<Item = PartitionBy>) -> Self {
        self.partition_by = fields.into_iter().collect();
        self
    }

    /// A property of a table that the sink creates.
    #[must_use]
    pub fn property(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.insert(key.into(), value.into());
        self
    }

    /// Begins a new file when one has about this many bytes; 512 MiB by default.
    #[must_use]
    pub fn target_file_size(mut self, bytes: u64) -> Self {
        self.target_file_size = bytes;
        self
    }

    /// How many rows a row group has at most; 131,072 by default.
    #[must_use]
    pub fn row_group_rows(mut self, rows: usize) -> Self {
        self.row_group_rows = rows;
        self
    }

    /// How many partitions are written to at a time, shared equally between the lanes; 64 by default.
    #[must_use]
    pub fn max_open_files(mut self, files: usize) -> Self {
        self.max_open_files = files;
        self
    }

    /// A stream's table.
    fn ident(&self, stream: &str) -> Result<TableIdent> {
        table_ident(&self.table.replace(STREAM, &segment(stream)))
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

    /// Whether a stream's rows can go into its table, as it is or as it would be made.
    async fn check(&self, input: &StreamInfo) -> Result<()> {
        let ident = self.ident(&input.name)?;
        let new = types::to_iceberg(&input.schema)?;
        let spec = partition_spec(self, &new)?;
        let Some(table) = self.catalog.open().await?.try_load(&ident).await? else { return Ok(()) };
        missing(&input.schema, table.metadata(), self.schema_mode).map_err(|e| e.with("table", &ident))?;
        let fields = table.metadata().default_partition_spec().fields();
        writable(&table)?;
        let same = spec.is_none_or(|spec| {
            let wanted = spec.fields().iter().zip(&self.partition_by);
            let column = |id| table.metadata().current_schema().name_by_field_id(id);
            spec.fields().len() == fields.len()
                && wanted.zip(fields).all(|((field, by), own)| {
                    field.transform == own.transform && column(own.source_id) == Some(by.column())
                })
        });
        if !same {
            let own: Vec<_> = fields.iter().map(|field| field.name.as_str()).collect();
            return Err(Error::config("the table is partitioned otherwise")
                .with("table", &ident)
                .with("partitioned by", own.join(", "))
                .remedy("leave `partition_by` out, or write to another table"));
        }
        Ok(())
    }
}

#[async_trait]
impl Connector for IcebergSink {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("iceberg", format!("{} in a {} catalog", self.table, self.catalog))
    }

    fn validate(&self) -> Result<()> {
        if self.mode != Mode::Append {
            return Err(Error::unsupported("an Iceberg sink can only append")
                .with("option", "mode")
                .remedy("use `mode: append`; a Delta sink can overwrite and merge"));
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
        if let Some(own) = self.properties.keys().find(|key| key.starts_with(record::PREFIX)) {
            return Err(Error::config("properties with this beginning are the sink's own")
                .with("option", "properties")
                .with("property", own));
        }
        self.partition_by.iter().try_for_each(|field| field.transform().map(drop))?;
        self.ident("stream")?;
        self.catalog.validate()
    }

    async fn health(&self, cx: &Context) -> Result<Health> {
        let _ = cx;
        self.validate()?;
        let start = Instant::now();
        let ident = self.ident("stream")?;
        let opened = self.catalog.open().await?;
        let there = opened
            .catalog
            .namespace_exists(ident.namespace())
            .await
            .map_err(|e| from_iceberg(&e, "ask the catalog", &self.table))?;
        let detail = if there { "the namespace is there" } else { "the namespace will be made" };
        Ok(Health { latency: start.elapsed(), detail: detail.to_owned() })
    }
}

#[async_trait]
impl Sink for IcebergSink {
    fn commit_mode(&self) -> CommitMode {
        CommitMode::Staged
    }

    fn needs_order(&self, _input: &StreamInfo) -> bool {
        false
    }

    async fn open(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Box<dyn SinkSession>> {
        self.validate()?;
        if inputs.len() > 1 && !self.table.contains(STREAM) {
            return Err(Error::config("several streams can't share one table")
                .with("table", &self.table)
                .remedy("write `{stream}` into the table's name where the stream's goes"));
        }
        let mut tables = BTreeSet::new();
        for input in inputs {
            if !tables.insert(self.ident(&input.name)?) {
                return Err(Error::config("two streams have the same name").with("stream", &input.name));
            }
            self.check(input).await.map_err(|e| e.with("stream", &input.name))?;
        }
        Ok(Box::new(IcebergSession::new(cx, self.clone(), inputs)))
    }
}

/// A stream's name as a table's: letters, digits and what is harmless everywhere; the rest as hex.
fn segment(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("_{byte:02x}_"));
        }
    }
    out
}
