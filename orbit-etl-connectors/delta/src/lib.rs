//! Delta Lake for Orbit ETL: tables as sources and as exactly-once sinks.
//!
//! [`DeltaSource`] reads and [`DeltaSink`] writes; [`DeltaMaintenance`] compacts, sorts and cleans up.
//! A table is a folder on the local disk or a URL: `file://`, or `s3://` (feature `s3`; the store must
//! know conditional puts).
//!
//! # Types
//!
//! | Arrow | Delta | comes back as |
//! |---|---|---|
//! | Boolean | boolean | Boolean |
//! | Int8, Int16, Int32, Int64 | byte, short, integer, long | the same |
//! | UInt8, UInt16, UInt32 | short, integer, long | Int16, Int32, Int64 |
//! | UInt64 | decimal(20, 0) | Decimal128(20, 0) |
//! | Float16, Float32 | float | Float32 |
//! | Float64 | double | Float64 |
//! | Decimal32, 64, 128, and 256 of up to 38 digits | decimal | Decimal128 |
//! | Utf8, LargeUtf8, Utf8View | string | Utf8View (Utf8 inside nested columns) |
//! | Binary, LargeBinary, BinaryView, FixedSizeBinary | binary | BinaryView (Binary inside nested columns) |
//! | Date32 | date | Date32 |
//! | Timestamp with a zone | timestamp | Timestamp(µs, UTC) |
//! | Timestamp without a zone, Date64 | timestamp_ntz | Timestamp(µs) |
//! | List, LargeList, FixedSizeList, ListView | array | List |
//! | Map | map | Map |
//! | Struct | struct | Struct |
//! | Dictionary, RunEndEncoded | their values | their values |
//! | Null, Time, Duration, Interval, Union, larger decimals | refused | |
//!
//! Every value is stored as it is or not at all: a timestamp of nanoseconds that is no whole number of
//! microseconds is a rejected row. All columns of a new table may be NULL. Roles (`orbit.role`) stay
//! with their columns.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod error;
mod maintain;
mod pending;
mod sink;
mod source;
mod table;
mod types;

pub use maintain::{DeltaMaintenance, Rewritten};
pub use sink::{Compression, DeltaSink, Mode, SchemaMode};
pub use source::DeltaSource;
