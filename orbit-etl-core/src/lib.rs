//! The contracts and the engine of Orbit ETL.
//!
//! Sources, transforms and sinks speak [`Source`], [`Transform`] and [`Sink`]; the engine runs any
//! graph of them over Arrow record batches, in epochs that neither lose nor double a row.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod batch;
pub mod checkpoint;
mod connector;
mod context;
mod error;
mod event;
pub mod fault;
pub mod host;
pub mod memory;
pub mod model;
pub mod observe;
pub mod pipeline;
mod registry;
mod signal;
mod sink;
mod source;
pub mod spec;
mod transform;

#[cfg(feature = "planted-bugs")]
#[doc(hidden)]
pub mod planted;
#[cfg(not(feature = "planted-bugs"))]
mod planted;

pub use connector::{Connector, ConnectorInfo, Health, StreamInfo};
pub use context::{Context, ContextBuilder, DEFAULT_BATCH_ROWS};
pub use error::{Error, ErrorKind, Result, ResultExt};
pub use event::{Origin, Payload, Position, Reject, SourceEvent, SplitId, StreamId};
pub use pipeline::{Again, Delivery, OnError, Output, Pipeline, PipelineBuilder, Restart, Running};
pub use registry::Registry;
pub use sink::{
    CheckpointRecord, CommitMode, Committable, Committed, Discard, Epoch, LaneId, Lineage, Prepared,
    Publication, Sink, SinkSession, SinkWriter,
};
pub use source::{FilterPushdown, Pushdown, Replay, ScanRequest, Source, Split, SplitChange};
pub use spec::Spec;
pub use transform::{
    BlockingOperator, ColumnLineage, ColumnOrigin, ColumnOrigins, ColumnUsage, Distribution, KEY_GROUPS,
    Operator, OperatorState, Started, Transform,
};
