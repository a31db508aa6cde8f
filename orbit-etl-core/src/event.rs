//! What flows: batches, rejects, schema changes, watermarks, and the positions between them.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ErrorKind;

/// Which of a node's streams is meant: the index into the list that the node announced
/// ([`Source::streams`](crate::Source::streams)) or was opened with
/// ([`Sink::open`](crate::Sink::open)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamId(pub usize);

/// The name of one split of a source, the same in every run that reads the same data.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SplitId(Arc<str>);

impl SplitId {
    /// A split of that name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SplitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How far a split or an enumerator has come: JSON that people can read and only the connector
/// understands. It counts physical rows or offsets, so that it means the same under another
/// projection or filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub Value);

impl From<Value> for Position {
    fn from(value: Value) -> Self {
        Self(value)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What an open split yields, in order.
#[derive(Debug, Clone)]
pub enum SourceEvent {
    /// Rows of one stream.
    Batch {
        /// Which stream.
        stream: StreamId,
        /// The rows; the stream's schema, narrowed by the projection that was pushed down.
        batch: RecordBatch,
        /// The position after these rows. `None` inside a unit that must not be cut (a
        /// transaction, a split that replays only whole): no epoch ends here.
        position: Option<Position>,
    },
    /// Records that could not be read as rows.
    Rejects {
        /// The records.
        rejects: Vec<Reject>,
        /// As with `Batch`.
        position: Option<Position>,
    },
    /// From here on the stream has another schema: that of the batches that follow, narrowed as they
    /// are. It holds for the whole stream: of several splits, none may send rows of the old schema
    /// after one has told of the new.
    Schema {
        /// Which stream.
        stream: StreamId,
        /// The new schema.
        schema: SchemaRef,
    },
    /// No row with an event time below this is to be expected in this split any more.
    Watermark {
        /// Which stream.
        stream: StreamId,
        /// Microseconds since 1970-01-01T00:00:00Z.
        micros: i64,
    },
    /// The position moved on without rows: an idle slot, or all rows filtered out.
    Progress(Position),
    /// The split has ended. A stream that ends without it has failed.
    Finished,
}

/// One record that can't go on, or several that can only be kept together (an Avro block).
#[derive(Debug, Clone)]
pub struct Reject {
    /// What is wrong with it.
    pub kind: ErrorKind,
    /// Why, without cell values.
    pub message: String,
    /// The record itself.
    pub payload: Payload,
    /// How many rows it stands for, as far as that is known; at least 1.
    pub rows: u64,
    /// Where it comes from.
    pub origin: Origin,
}

impl Reject {
    /// A reject of one row without a known origin.
    pub fn new(kind: ErrorKind, message: impl Into<String>, payload: Payload) -> Self {
        Self { kind, message: message.into(), payload, rows: 1, origin: Origin::default() }
    }
}

/// The rejected data as it was met.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Bytes as they stood in the source: a line, a message.
    Raw(Bytes),
    /// The row, or the rows, that failed in a transform or a sink.
    Rows(RecordBatch),
}

/// Where a reject comes from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The stream's name.
    pub stream: Option<String>,
    /// The split.
    pub split: Option<SplitId>,
    /// File, byte offset and line; topic, partition and offset; table and key columns.
    pub place: Option<String>,
    /// The position just before it, if the source can be opened there.
    pub position: Option<Position>,
}
