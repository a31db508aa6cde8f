//! Tests of the Delta connector.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod conformance;
mod maintain;
mod readers;
mod sink;
mod source;
