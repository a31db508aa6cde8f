//! Made-up rows for Orbit ETL: for tests, demonstrations and measurements.
//!
//! A value depends on the seed, the column and the row's number alone. So the same configuration gives
//! the same rows on every machine and in any number of lanes, and a split can be read on from any row.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod column;
mod source;

pub use column::{Column, Columns, Day, Moment};
pub use source::GenerateSource;
