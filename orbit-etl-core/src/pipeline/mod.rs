//! Pipelines: built, planned, run.

mod output;

pub use output::{Collected, Output};
