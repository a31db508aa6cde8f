//! The files connector from outside.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod conformance;
mod sink;
mod source;
#[cfg(feature = "http")]
mod web;
