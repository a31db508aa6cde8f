//! Tests of the Delta connector.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod conformance;
mod maintain;
#[cfg(feature = "s3")]
mod outage;
mod readers;
mod sink;
mod source;
