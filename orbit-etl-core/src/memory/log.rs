//! What a memory source holds: one log per split, and a log of the splits themselves.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use serde_json::{Value, json};

use crate::connector::StreamInfo;
use crate::error::{Error, Result};
use crate::event::{Position, Reject, SplitId, StreamId};
use crate::signal::{Listener, Signal};
use crate::source::Split;

/// The state behind a source, its clones, its feeds and its readers.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Signal,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) streams: Vec<StreamInfo>,
    /// The schema that the next pushed batch of a stream must have.
    pub(super) schemas: Vec<SchemaRef>,
    pub(super) splits: Vec<SplitLog>,
    pub(super) changes: Vec<Change>,
    /// No further change will come.
    pub(super) complete: bool,
    pub(super) acknowledged: BTreeMap<SplitId, Position>,
}

/// One entry in the log of the splits.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) added: Vec<Split>,
    pub(super) revoked: Vec<SplitId>,
}

#[derive(Debug)]
pub(super) struct SplitLog {
    pub(super) split: Split,
    pub(super) entries: Vec<Entry>,
    /// The rows in all entries.
    pub(super) rows: u64,
    pub(super) ended: bool,
    /// How often it was revoked: a reader from before doesn't go on after the split came back.
    pub(super) revocations: u64,
    /// `Replay::None`: the rows that were handed out and are gone.
    pub(super) taken: u64,
}

#[derive(Debug)]
pub(super) struct Entry {
    /// The rows in the log before this entry.
    pub(super) before: u64,
    pub(super) what: What,
    pub(super) unit: Unit,
}

/// Whether an entry may be cut, and whether a position may follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// An entry of its own.
    Free,
    /// Part of a unit, more of which follows.
    Inside,
    /// The end of a unit.
    Last,
}

#[derive(Debug)]
pub(super) enum What {
    Batch {
        stream: StreamId,
        batch: RecordBatch,
    },
    Reject(Reject),
    Skipped(u64),
    Schema {
        stream: StreamId,
        schema: SchemaRef,
    },
    Watermark {
        stream: StreamId,
        micros: i64,
    },
    /// Met once; taken out by the first reader that comes here.
    Failure(Option<Error>),
}

impl What {
    pub(super) fn rows(&self) -> u64 {
        match self {
            Self::Batch { batch, .. } => batch.num_rows() as u64,
            Self::Reject(reject) => reject.rows,
            Self::Skipped(rows) => *rows,
            Self::Schema { .. } | Self::Watermark { .. } | Self::Failure(_) => 0,
        }
    }
}

impl Shared {
    pub(super) fn new(streams: Vec<StreamInfo>) -> Self {
        let schemas = streams.iter().map(|s| s.schema.clone()).collect();
        let state = State {
            streams,
            schemas,
            splits: Vec::new(),
            changes: Vec::new(),
            complete: false,
            acknowledged: BTreeMap::new(),
        };
        Self { state: Mutex::new(state), changed: Signal::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes every reader.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.bump();
        result
    }

    pub(super) fn subscribe(&self) -> Listener {
        self.changed.subscribe()
    }
}

impl State {
    pub(super) fn find(&self, id: &SplitId) -> Result<usize> {
        self.splits
            .iter()
            .position(|s| s.split.id == *id)
            .ok_or_else(|| Error::not_found("this memory source has no such split").with("split", id))
    }

    /// Adds splits, or brings them back after they were revoked.
    pub(super) fn add(&mut self, splits: Vec<Split>) {
        for split in &splits {
            if self.find(&split.id).is_err() {
                self.splits.push(SplitLog::new(split.clone()));
            }
        }
        self.changes.push(Change { added: splits, revoked: Vec::new() });
    }
}

impl SplitLog {
    fn new(split: Split) -> Self {
        Self { split, entries: Vec::new(), rows: 0, ended: false, revocations: 0, taken: 0 }
    }

    pub(super) fn append(&mut self, what: What, unit: Unit) {
        let rows = what.rows();
        self.entries.push(Entry { before: self.rows, what, unit });
        self.rows += rows;
    }
}

/// A split's position: the rows before it.
pub(super) fn row_position(rows: u64) -> Position {
    Position(json!({ "row": rows }))
}

/// The enumerator's position: the changes before it.
pub(super) fn change_position(changes: usize) -> Position {
    Position(json!({ "changes": changes }))
}

/// The number in a position.
pub(super) fn count_in(position: &Position, key: &'static str) -> Result<u64> {
    position.0.get(key).and_then(Value::as_u64).ok_or_else(|| {
        Error::config(format!("a position of a memory source looks like {{\"{key}\": 7}}"))
            .with("position", position)
            .remedy("resume with the state of this very pipeline, or begin a new state directory")
    })
}
