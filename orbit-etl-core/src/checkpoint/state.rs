//! What a checkpoint says.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Deserializer, Serialize};

use crate::event::Position;
use crate::sink::{Committable, Epoch};
use crate::source::Split;
use crate::transform::OperatorState;

/// All that a run must know to go on where another one stopped.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct State {
    /// Minted with the first entry of the log and kept for good.
    pub lineage: String,
    /// How many times the pipeline has begun to read its sources from the start. 0 before the first.
    pub generation: u64,
    /// Whether the generation was read to its end.
    pub complete: bool,
    /// The epoch that the checkpoint ends; 0 before the first.
    pub epoch: Epoch,
    /// How far each source has come, by node.
    pub sources: BTreeMap<String, SourceState>,
    /// The state of each transform that keeps one, by node.
    pub operators: BTreeMap<String, OperatorState>,
    /// What is staged and not known to be committed, in the order of the commits.
    pub pending: Vec<Pending>,
    /// Counts over all runs of the pipeline, by node.
    pub totals: BTreeMap<String, NodeCounts>,
    /// The node of the [`Atomic`](crate::CommitMode::Atomic) sink whose target holds the checkpoints
    /// that come after this one.
    pub checkpoint_in: Option<String>,
    /// The sinks that the pipeline writes to, by node.
    pub sinks: BTreeMap<String, SinkMark>,
}

/// How far one source has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SourceState {
    /// The enumerator's own position.
    pub enumerator: Option<Position>,
    /// The splits that the enumerator has told of and that a later run must know.
    pub splits: Vec<SplitState>,
    /// Whether the source has ended: every split is told of and read.
    pub ended: bool,
}

/// How far one split has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitState {
    /// The split.
    pub split: Split,
    /// Where to open it next; `None` for its start.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub position: Option<Position>,
    /// Whether it isn't read for now: another instance has it, or it waits for other splits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub parked: bool,
}

/// Part of an epoch that is staged in one sink and not known to be committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// The sink's node.
    pub sink: String,
    /// The epoch.
    pub epoch: Epoch,
    /// The claim number of the run that staged it.
    pub claim: u64,
    /// What to commit.
    pub committables: Vec<Committable>,
}

/// What has passed through one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeCounts {
    /// Rows that came in; at a source, rows read, rejects included.
    pub rows_in: u64,
    /// Rows that went out; at a sink, rows written.
    pub rows_out: u64,
    /// Rows that were rejected.
    pub rejected: u64,
    /// Rows that were left out on purpose.
    pub filtered: u64,
    /// Bytes that went out, of Arrow buffers; at a sink, bytes written, if it tells.
    pub bytes: u64,
}

impl AddAssign for NodeCounts {
    fn add_assign(&mut self, other: Self) {
        self.rows_in += other.rows_in;
        self.rows_out += other.rows_out;
        self.rejected += other.rejected;
        self.filtered += other.filtered;
        self.bytes += other.bytes;
    }
}

/// Which kind of sink a node was: a state must not be carried over to another kind of target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SinkMark {
    /// The sink's type tag ([`ConnectorInfo`](crate::ConnectorInfo)).
    #[serde(rename = "type")]
    pub type_tag: String,
    /// For a sink with a schema contract: what it has been given, by stream.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub streams: BTreeMap<String, Vec<MarkedColumn>>,
}

/// A column of a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarkedColumn {
    /// Its name.
    pub name: String,
    /// Arrow's name of its type.
    #[serde(rename = "type")]
    pub data_type: String,
    /// Whether it may be NULL.
    pub nullable: bool,
}

/// Tells a position that is JSON `null` from no position at all.
pub(super) fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Position>, D::Error> {
    Position::deserialize(from).map(Some)
}
