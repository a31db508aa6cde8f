//! The tests of the transforms, in one binary.

#![cfg(feature = "sql")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod blocking;
mod given;
mod naming;
mod planning;
mod pushdown;
mod random;
mod streaming;
