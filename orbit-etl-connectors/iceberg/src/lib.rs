//! Apache Iceberg for Orbit ETL: tables as sources and as exactly-once sinks.
//!
//! [`IcebergSource`] reads and [`IcebergSink`] writes. Tables are found through an [`IcebergCatalog`]: a
//! REST server, a database (feature `sql`), or memory for tests. Their files are on the local disk or, with
//! the feature `s3`, in Amazon S3 and what speaks its protocol.
//!
//! # Types
//!
//! | Arrow | Iceberg | comes back as |
//! |---|---|---|
//! | Boolean | boolean | Boolean |
//! | Int8, Int16, Int32, UInt8, UInt16 | int | Int32 |
//! | Int64, UInt32 | long | Int64 |
//! | UInt64 | decimal(20, 0) | Decimal128(20, 0) |
//! | Float16, Float32 | float | Float32 |
//! | Float64 | double | Float64 |
//! | Decimal32, 64, 128, and 256 of up to 38 digits | decimal | Decimal128 |
//! | Utf8, LargeUtf8, Utf8View | string | Utf8 |
//! | Binary, LargeBinary, BinaryView | binary | LargeBinary |
//! | FixedSizeBinary | fixed | FixedSizeBinary |
//! | Date32 | date | Date32 |
//! | Time32, Time64 | time | Time64(µs) |
//! | Timestamp with a zone | timestamptz | Timestamp(µs, +00:00) |
//! | Timestamp without a zone, Date64 | timestamp | Timestamp(µs) |
//! | List, LargeList, FixedSizeList, ListView | list | List |
//! | Map | map | Map |
//! | Struct | struct | Struct |
//! | Dictionary, RunEndEncoded | their values | their values |
//! | Null, Duration, Interval, Union, larger decimals | refused | |
//!
//! Every value is stored as it is or not at all: a time of nanoseconds that is no whole number of
//! microseconds is a rejected row. All columns of a new table may be NULL.
//!
//! # Arrow
//!
//! The `iceberg` crate is on another major version of Arrow. Batches cross over by the Arrow C Data
//! Interface, without a copy, in one module of this crate; nothing of it shows outside.

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
