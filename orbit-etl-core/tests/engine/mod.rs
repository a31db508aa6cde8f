//! The engine over model sources and sinks of every kind.

mod again;
mod between_runs;
mod contracts;
mod dealing;
mod delivery;
mod failure;
mod graph;
mod guards;
mod histories;
mod many_splits;
mod protocol;
mod rejects;
mod support;
mod unbounded;
