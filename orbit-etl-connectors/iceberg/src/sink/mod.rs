//! Tables as a sink.

mod record;
mod session;
mod writer;

use std::collections::BTreeMap;
use std::time::Instant;

use async_trait::async_trait;
use iceberg::spec::Transform;
use orbit_etl_core::{
    CommitMode, Connector, ConnectorInfo, Context, Error, Health, Result, Sink, SinkSession, StreamInfo,
};
use serde::Deserialize;

use self::session::IcebergSession;
use crate::catalog::{IcebergCatalog, table_ident};
use crate::error::from_iceberg;
use crate::types;

/// Appends to a table.
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
/// A claim creates the table, empty, if it isn't there, and adds nullable columns that it lacks. Rows are
/// written as Parquet files in the table's data folder, durable when an epoch ends, and belong to no
/// snapshot until its commit appends them all in one.
///
/// # Once
///
/// Lineage, claim and epoch stand in the table's properties (`orbit.<sink>.…`) and in the summaries of
/// the snapshots, written by the same commit as the rows. Each attempt to commit compares them on the
/// very metadata that it builds on, and the catalog refuses an attempt whose branch has moved on.
///
/// # Types
///
/// Values are never altered: see the table of types in the crate's documentation. What a table can't
/// hold is refused when it is opened, by the column's name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IcebergSink {
    catalog: IcebergCatalog,
    table: String,
    #[serde(default)]
    partition_by: Vec<PartitionBy>,
    #[serde(default)]
    properties: BTreeMap<String, String>,
    #[serde(default = "default_file_size")]
    target_file_size: u64,
    #[serde(default = "default_row_group_rows")]
    row_group_rows: usize,
    #[serde(default = "default_open_files")]
    max_open_files: usize,
}

/// A partition field of a new table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionBy {
    column: String,
    #[serde(default = "default_transform")]
    transform: String,
}

impl PartitionBy {
    /// By a column's value under one of Iceberg's transforms: `identity`, `bucket[16]`, `truncate[4]`,
    /// `year`, `month`, `day`, `hour`.
    pub fn new(column: impl Into<String>, transform: impl Into<String>) -> Self {
        Self { column: column.into(), transform: transform.into() }
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

    fn name(&self) -> String {
        match self.transform.split('[').next() {
            Some("identity") | None => self.column.clone(),
            Some("truncate") => format!("{}_trunc", self.column),
            Some(transform) => format!("{}_{transform}", self.column),
        }
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
    /// Adds each epoch's rows to a table, named `namespace.table`.
    pub fn append(catalog: IcebergCatalog, table: impl Into<String>) -> Self {
        Self {
            catalog,
            table: table.into(),
            partition_by: Vec::new(),
            properties: BTreeMap::new(),
            target_file_size: default_file_size(),
            row_group_rows: default_row_group_rows(),
            max_open_files: default_open_files(),
        }
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
}

#[async_trait]
impl Connector for IcebergSink {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("iceberg", format!("{} in a {} catalog", self.table, self.catalog))
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
        if let Some(own) = self.properties.keys().find(|key| key.starts_with(record::PREFIX)) {
            return Err(Error::config("properties with this beginning are the sink's own")
                .with("option", "properties")
                .with("property", own));
        }
        self.partition_by.iter().try_for_each(|field| field.transform().map(drop))?;
        table_ident(&self.table)?;
        self.catalog.validate()
    }

    async fn health(&self, cx: &Context) -> Result<Health> {
        let _ = cx;
        self.validate()?;
        let start = Instant::now();
        let ident = table_ident(&self.table)?;
        let opened = self.catalog.open().await?;
        let there = opened
            .catalog
            .namespace_exists(ident.namespace())
            .await
            .map_err(|e| from_iceberg(e, "ask the catalog", &self.table))?;
        let detail = if there { "the namespace is there" } else { "the namespace will be created" };
        Ok(Health { latency: start.elapsed(), detail: detail.to_owned() })
    }
}

#[async_trait]
impl Sink for IcebergSink {
    fn commit_mode(&self) -> CommitMode {
        CommitMode::Staged
    }

    async fn open(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Box<dyn SinkSession>> {
        self.validate()?;
        let [input] = inputs else {
            return Err(Error::unsupported("an Iceberg sink writes one stream")
                .with("streams", inputs.len())
                .remedy("give each stream a sink of its own"));
        };
        let schema = types::to_iceberg(&input.schema)?;
        for field in &self.partition_by {
            if input.schema.column_with_name(&field.column).is_none() {
                return Err(Error::config("a partition column isn't there")
                    .with("option", "partition_by")
                    .with("column", &field.column));
            }
        }
        self.catalog.open().await?;
        Ok(Box::new(IcebergSession::new(cx, self.clone(), input.clone(), schema)))
    }
}
