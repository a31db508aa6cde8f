//! Apache Iceberg for Orbit ETL: tables as exactly-once sinks and as sources.
//!
//! [`IcebergSink`] appends to a table and [`IcebergSource`] reads one snapshot of it. Tables are found
//! through an [`IcebergCatalog`]: a REST catalog, or one in memory for tests.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod bridge;
mod catalog;
mod error;
mod fit;
mod guard;
mod sink;
mod source;
mod storage;
mod types;

pub use catalog::IcebergCatalog;
pub use sink::{Compression, IcebergSink, Mode, PartitionBy, SchemaMode};
pub use source::IcebergSource;
