//! Pipelines: built, planned, run. One way, no back edges.
//!
//! `builder` collects nodes into a checked `graph`; `plan` asks the nodes what they would do and
//! decides lanes, pushdown and `delivery`; `explain` tells people; `run` does it.

mod builder;
mod contract;
mod delivery;
mod explain;
mod graph;
mod lanes;
mod news;
mod options;
mod output;
mod plan;
mod resend;
mod run;

pub use builder::{Pipeline, PipelineBuilder};
pub use contract::{Evolution, SchemaContract};
pub use delivery::Guarantee;
pub use explain::{ExplainedNode, Explanation};
pub use graph::NodeInfo;
pub use options::{Again, Delivery, OnError, Restart};
pub use output::{Collected, Output};
pub use run::Running;

pub(crate) use contract::{Fit, marked};
pub(crate) use graph::{DEAD_LETTERS, Kind, NodeOptions};
pub(crate) use options::Action;
