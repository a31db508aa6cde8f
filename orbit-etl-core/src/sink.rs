//! The contract of sinks.
//!
//! A run *opens* a session, *claims* the target, writes through one writer per lane, and ends each
//! epoch in two steps: every writer *prepares*, then the session *commits*. What happens between
//! the two depends on the [`CommitMode`].

use std::fmt;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::connector::{Connector, StreamInfo};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::event::{Reject, StreamId};
use crate::model::Role;

/// The number of an epoch: 1 for a pipeline's first, counting up over all its runs.
pub type Epoch = u64;

/// Where rows go.
#[async_trait]
pub trait Sink: Connector {
    /// How epochs become visible, for this configuration. Pure.
    fn commit_mode(&self) -> CommitMode;

    /// When they become visible, for this configuration. Pure.
    fn publication(&self) -> Publication {
        Publication::EachEpoch
    }

    /// Whether a row that is written twice leaves the target as if it were written once (upserts
    /// by key). Makes an [`Immediate`](CommitMode::Immediate) sink effectively exactly-once. Pure.
    fn idempotent(&self) -> bool {
        false
    }

    /// Whether rows of this stream that come one after another out of one lane must reach one writer in
    /// that order. Where they need not, the engine deals them out to several writers, batch by batch.
    /// By default changes and rows with keys keep their order, since a later row may take the place of
    /// an earlier one; a sink that only appends can do without. Pure.
    fn needs_order(&self, input: &StreamInfo) -> bool {
        let changes = [Role::Op, Role::Order].iter().any(|role| role.find(&input.schema).is_some());
        changes || !input.keys.is_empty()
    }

    /// Opens for these streams, whose order gives the [`StreamId`]s. Has no effect on the target:
    /// no table, no folder is made before [`SinkSession::claim`].
    ///
    /// # Errors
    /// A schema that can't be written, a target that isn't there or doesn't fit.
    async fn open(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Box<dyn SinkSession>>;
}

/// One run's hold on a target.
///
/// * **Order.** `claim` comes first and once; then epochs are committed in ascending order, one at
///   a time. `commit` may run while writers go on with the next epoch, unless the sink is
///   [`Atomic`](CommitMode::Atomic): then the writers wait.
/// * **Idempotence.** `commit` of an epoch at or below the one that the target has recorded for
///   this lineage does nothing and returns the same rejects again.
/// * **Cancellation.** A call that was dropped midway may or may not have taken effect: the next
///   claim finds out.
#[async_trait]
pub trait SinkSession: Send {
    /// Takes the target over: first fences every older run (one with a lower claim number; a lower
    /// number than the target's own is refused as [`Fenced`](crate::ErrorKind::Fenced)), only then
    /// reads what is committed. `None` from a target that has never seen a lineage. A target that is
    /// another lineage's is not taken over: it says whose it is, and the engine refuses.
    ///
    /// # Errors
    /// Fenced, or the target can't be reached in bounded time.
    async fn claim(&mut self, lineage: &Lineage) -> Result<Option<Committed>>;

    /// A writer for one lane. Called after `claim`, once per lane.
    ///
    /// # Errors
    /// The target refuses.
    async fn writer(&mut self, lane: LaneId) -> Result<Box<dyn SinkWriter>>;

    /// Publishes an epoch. `staged` holds the committables of all lanes, in the order of lanes; for
    /// [`Publication::AtEnd`] those of every epoch of the generation. For an
    /// [`Atomic`](CommitMode::Atomic) sink this call writes the data, the epoch and `checkpoint`
    /// in one transaction, whose last statement updates the owner row `where claim = mine`.
    ///
    /// The rejects are rows that failed on the target's own checks; they are recorded with the
    /// epoch, so that a second call returns them again.
    ///
    /// # Errors
    /// After an error the epoch may or may not be committed.
    async fn commit(
        &mut self,
        epoch: Epoch,
        checkpoint: &CheckpointRecord,
        staged: Vec<Committable>,
    ) -> Result<Vec<Reject>>;

    /// Removes staged data that will never be committed. Idempotent; what is missing is gone.
    ///
    /// # Errors
    /// They are logged: garbage is left behind, nothing else.
    async fn discard(&mut self, what: Discard) -> Result<()> {
        let _ = what;
        Ok(())
    }

    /// The run is over; open handles are let go.
    ///
    /// # Errors
    /// They are logged.
    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// One lane's way into the target.
///
/// Calls come one after another. A writer buffers a bounded amount, reserved in
/// [`Context::memory`]; if the pool refuses, it flushes or fails, it never waits.
#[async_trait]
pub trait SinkWriter: Send {
    /// Takes rows of one stream into the open epoch.
    ///
    /// # Errors
    /// Any error discards the open epoch, unless it says with [`Error::taken`] which rows are in it and
    /// that the writer can go on: then those that aren't are written again after a passing error, and
    /// after one of the data in halves, until the single rows that are refused have become rejects.
    async fn write(&mut self, stream: StreamId, batch: RecordBatch) -> Result<()>;

    /// From the next batch on, the stream has this schema.
    ///
    /// # Errors
    /// [`Schema`](crate::ErrorKind::Schema) where the target can't follow; that is the default.
    async fn schema_changed(&mut self, stream: StreamId, to: &SchemaRef) -> Result<()> {
        let _ = to;
        Err(Error::schema("this sink can't follow a schema that changes during a run")
            .with("stream", stream.0)
            .remedy("restart the pipeline, so that the sink opens with the new schema"))
    }

    /// Ends the epoch in this lane. `Staged`: all its rows are durable and invisible.
    /// `Immediate`: all its rows are acknowledged by the target. `Atomic`: all its rows are in the
    /// open transaction. The next `write` belongs to the next epoch.
    ///
    /// # Errors
    /// Any error discards the open epoch, unless it says with [`Error::taken`] that nothing was done, and
    /// the node's `retry` calls again.
    async fn prepare(&mut self, epoch: Epoch) -> Result<Prepared>;
}

/// How an epoch becomes visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommitMode {
    /// `prepare` makes rows durable but invisible; `commit` publishes them, idempotently by
    /// (lineage, sink, epoch) recorded in the target.
    Staged,
    /// Rows, epoch and checkpoint become visible in one transaction of the target.
    Atomic,
    /// Rows are visible as they are written and acknowledged when `prepare` returns.
    Immediate,
}

impl fmt::Display for CommitMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Staged => "staged",
            Self::Atomic => "atomic",
            Self::Immediate => "immediate",
        })
    }
}

/// When a sink's epochs become visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Publication {
    /// Each with its commit.
    EachEpoch,
    /// All together with the last epoch of a generation (`mode: overwrite`). The engine keeps the
    /// committables of all epochs and calls `commit` once. Needs bounded inputs.
    AtEnd,
}

/// Which run of which pipeline claims a target, and under which name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// Minted with the pipeline's first log entry and kept for good.
    pub id: String,
    /// The sink's node name: one lineage may write several targets, or one target twice.
    pub sink: String,
    /// How many times the pipeline has begun to read its sources from the start; from 1. As the log
    /// has it: an atomic sink that keeps the checkpoints may know of a later one.
    pub generation: u64,
    /// The claim's number in the log: the fencing token. Higher is newer.
    pub claim: u64,
    /// The run that claims.
    pub run: String,
}

/// What a target knows of a lineage.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The lineage that the target has recorded under this sink's name. Not the claimant's own:
    /// another pipeline writes here.
    pub lineage: String,
    /// The last epoch committed; 0 if none is.
    pub epoch: Epoch,
    /// `Atomic` only: the newest checkpoint, as it was handed to [`SinkSession::commit`].
    pub checkpoint: Option<CheckpointRecord>,
    /// `Atomic` only: rejects of commits that the checkpoint doesn't cover yet.
    pub rejects: Vec<Reject>,
}

/// A checkpoint as a sink sees it: bytes to keep and to give back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointRecord {
    /// The epoch that it ends.
    pub epoch: Epoch,
    /// The generation that the epoch belongs to.
    pub generation: u64,
    /// Whether the generation is complete with it.
    pub last: bool,
    /// JSON, at most 512 KiB.
    pub json: Bytes,
}

/// Which lane of a node; from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub usize);

/// What `commit` needs to publish a part of an epoch: JSON, opaque to the engine, kept in
/// checkpoints until the epoch is known to be committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Committable(pub Value);

/// One lane's part of an epoch, ended.
#[derive(Debug, Clone, Default)]
pub struct Prepared {
    /// For [`SinkSession::commit`].
    pub committables: Vec<Committable>,
    /// Rows that the target refused one by one.
    pub rejects: Vec<Reject>,
    /// Bytes written, as the target counts them.
    pub bytes: u64,
}

/// Which staged data is to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discard {
    /// That of one epoch of one run, rows that no `prepare` has given an epoch yet included. The
    /// session is closed after it.
    Epoch {
        /// The run's claim number.
        claim: u64,
        /// The epoch.
        epoch: Epoch,
    },
    /// That of all runs with a lower claim number, but for what these committables name.
    Older {
        /// The living run's claim number.
        claim: u64,
        /// Still to be committed.
        keep: Vec<Committable>,
    },
}
