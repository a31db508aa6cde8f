//! What can be seen of a run: live counters, progress, and the report at its end.

mod counts;
mod guards;
mod report;

pub use crate::checkpoint::NodeCounts;

pub(crate) use counts::{Counter, NodeMetrics};
pub use guards::GuardCounts;
pub use report::{NodeReport, Outcome, Progress, RunReport};
