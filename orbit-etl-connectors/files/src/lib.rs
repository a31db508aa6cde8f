//! Files for Orbit ETL: CSV, JSON lines, Parquet, Avro and Arrow IPC on disks and object stores.
//!
//! [`FilesSource`] reads and [`FilesSink`] writes. A path is a file, a directory or a glob on the
//! local disk, or a URL: `file://`, `s3://` (feature `s3`), `gs://` (`gcs`), `az://` and
//! `abfss://` (`azure`), `http://` and `https://` (`http`; one file, read only).
//!
//! A web server is asked for a file's parts by ranges. From one that knows no ranges, text, Avro and
//! Arrow are read from one answer, which `timeout` in `storage` (30 seconds) must be enough for; Parquet
//! is refused. An object that is replaced while it is read is noticed by its ETag, else by its time of
//! change and its size.
//!
//! # Formats
//!
//! | Format | Endings | Compression | Parts of one file | Position |
//! |---|---|---|---|---|
//! | CSV | `csv`, `tsv`, `tbl` | gzip, zstd, bzip2 of the whole file | bytes, on local disks | row, byte, line |
//! | JSON lines | `json`, `jsonl`, `ndjson` | gzip, zstd, bzip2 of the whole file | bytes, on local disks | row, byte, line |
//! | Parquet | `parquet`, `pq` | inside | row groups | row |
//! | Avro | `avro` | inside | no | row, byte of the block |
//! | Arrow IPC, file or stream | `arrow`, `ipc`, `feather` | inside | no | row |
//!
//! Only CSV and JSON lines that are not compressed are cut into parts by bytes, and only between
//! records: for CSV the file is followed from its first quote on, since a line break within
//! quotes ends nothing.
//!
//! # Types
//!
//! Without given columns, CSV values are guessed: `true` and `false` are booleans; whole numbers
//! `Int64`, or `Decimal128(38, 0)` where that is too small; other numbers `Float64`, if a double gives
//! them back; `2024-12-31` is `Date32`; `2024-12-31T23:59:59.123456` is a `Timestamp` in micro- or
//! nanoseconds, in UTC if it names an offset. Everything else is `Utf8`: numbers with leading
//! zeros, numbers that a double would round, and columns where these are mixed. An empty field
//! is NULL, quoted or not, in text columns too unless `keep_empty` is set.
//!
//! JSON has types of its own: strings stay `Utf8`; whole numbers are `Int64` or
//! `Decimal128(38, 0)`, others `Float64`; objects are structs and arrays lists. Where scalars are
//! mixed the column is `Utf8` and keeps them as they are written.
//!
//! With given columns, CSV fields become any flat type but bytes and spans of time; JSON values become
//! any type but intervals, list views, run-end encoded and sorted maps, bytes from hexadecimal text
//! and durations from numbers.
//!
//! No value of a text file is ever altered: what a column's type can't hold exactly is a malformed
//! record. [`CsvOptions`] and [`Format::Json`] say in full what is taken.
//!
//! Parquet, Avro and Arrow files say their types themselves. Parquet's texts and bytes come as
//! `Utf8View` and `BinaryView`, which decode fastest; times with a zone come from Avro with the zone
//! `+00:00`. Where files differ, a column takes the type that holds all values of both (`Int32` and
//! `Int64`: `Int64`), and none is rounded: otherwise it is an error that names both files.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod error;
mod format;
mod location;
mod schema;
mod sink;
mod source;

pub use format::{Compression, CsvOptions, Format};
pub use sink::{FilesSink, Mode};
pub use source::{Changed, Extra, FilesSource, Missing};
