//! What can be seen of a run: live counters, progress, metrics, and the report at its end.
//!
//! A run tells its figures to the [`metrics`](https://docs.rs/metrics) facade under the names in
//! [`METRICS`], and its steps to `tracing` in the spans `run` (`pipeline`), `node` (`node`, `lane`), `split`
//! (`split`) and `epoch` (`epoch`). An [`Observer`] sees plan, progress and end.

mod catalog;
mod counts;
mod guards;
mod live;
mod meter;
mod observer;
mod report;

pub use crate::checkpoint::NodeCounts;

pub use catalog::{METRICS, Metric, MetricKind, MetricUnit, describe_metrics};
pub(crate) use counts::{Counter, NodeMetrics};
pub use guards::GuardCounts;
pub use live::{NodeVitals, Vitals};
pub(crate) use live::{Retries, Times};
pub(crate) use meter::Meter;
pub(crate) use observer::Observers;
pub use observer::{Ending, Observer, PlanView, PlannedNode, RunView};
pub use report::{NodeReport, Outcome, Progress, RunReport};
