//! A run: the tasks of a plan, the edges between them, and the epochs that they go through together.
//!
//! `attempt` drives one run from its claim to its end; `wire` makes tasks and edges of a plan;
//! `epochs` is the coordinator. The tasks are `reader` (a lane of a source), `chain` (a lane of fused
//! transforms), `blocking`, `writer` (a lane of a sink) and `letters` (the dead letters).

mod attempt;
mod blocking;
mod chain;
mod control;
mod edge;
mod epochs;
mod gate;
mod guarded;
mod letters;
mod mend;
mod narrow;
mod open_splits;
mod reader;
mod recover;
mod reopen;
mod report;
mod router;
mod splits;
mod spool;
mod tasks;
mod wire;
mod writer;

pub(crate) use attempt::run;
pub(crate) use control::Control;
pub use control::Running;
pub(crate) use mend::{Mend, mend};
