//! Pipelines from end to end: through crashes, through one another, and over bad input.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_input;
mod crash;
mod hostile;
mod job;
mod paced;
mod spec;
mod target;
