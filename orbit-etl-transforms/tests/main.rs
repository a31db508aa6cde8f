//! The tests of the transforms, in one binary.

#![cfg(feature = "sql")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod blame;
mod blocking;
mod columns;
mod expanding;
mod functions;
mod given;
mod naming;
mod plan_once;
mod planning;
mod pushdown;
mod random;
mod streaming;
