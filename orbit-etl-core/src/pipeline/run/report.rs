//! What tasks tell the coordinator.

use arrow::datatypes::SchemaRef;

use super::guarded::Aside;
use crate::observe::NodeCounts;
use crate::pipeline::run::splits::SplitProgress;
use crate::sink::{Epoch, Prepared};
use crate::transform::OperatorState;

/// One message to the coordinator. Each task sends exactly one `…AtBarrier` per epoch.
#[derive(Debug)]
pub(crate) enum Message {
    /// A lane of a source has sent the barrier on.
    ReaderAtBarrier { node: usize, epoch: Epoch, splits: Vec<SplitProgress>, counts: NodeCounts },
    /// A chain of operators has snapshot its states and sent the barrier on.
    ChainAtBarrier { epoch: Epoch, operators: Vec<(usize, OperatorState, NodeCounts)> },
    /// A lane of a sink has prepared.
    WriterAtBarrier {
        node: usize,
        lane: usize,
        epoch: Epoch,
        prepared: Prepared,
        counts: NodeCounts,
        aside: Option<Aside>,
        /// What the sink has been given since the last barrier, by stream.
        evolved: Vec<(String, SchemaRef)>,
    },
    /// All inputs of a lane of a sink have ended.
    WriterEnded,
    /// Splits wait for a commit and nothing else is left to read.
    CommitWanted { node: usize },
}
