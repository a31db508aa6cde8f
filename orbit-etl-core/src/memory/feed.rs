//! The handle through which rows reach a source that is being read.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use serde_json::json;

use super::log::{Change, Shared, State, Unit, What};
use crate::error::{Error, Result};
use crate::event::{Reject, SplitId, StreamId};
use crate::source::Split;

/// Feeds a [`MemorySource`](super::MemorySource) made with
/// [`unbounded`](super::MemorySource::unbounded). A cheap clone.
///
/// Everything that is pushed stays in the source, so that it can be read again after any
/// position. Dropping the feed ends nothing; [`MemoryFeed::finish`] does.
#[derive(Debug, Clone)]
pub struct MemoryFeed {
    shared: Arc<Shared>,
}

impl MemoryFeed {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Adds an unbounded split, or brings a revoked one back.
    pub fn add_split(&self, id: &str) {
        self.add(Split { bounded: false, ..Split::new(id, json!({ "split": id })) });
    }

    /// Adds this very split (bounded, or to be read after others), or brings a revoked one back.
    pub fn add(&self, split: Split) {
        self.shared.change(|state| state.add(vec![split]));
    }

    /// Takes a split away: nothing more comes from it until it is added again.
    ///
    /// # Errors
    /// There is no such split.
    pub fn revoke(&self, split: &str) -> Result<()> {
        self.shared.change(|state| {
            let id = SplitId::new(split);
            let index = state.find(&id)?;
            state.splits[index].revocations += 1;
            state.changes.push(Change { added: Vec::new(), revoked: vec![id] });
            Ok(())
        })
    }

    /// Appends rows of the first stream to a split.
    ///
    /// # Errors
    /// No such split, a split that has ended, or rows of another schema.
    pub fn push(&self, split: &str, batch: RecordBatch) -> Result<()> {
        self.push_to(split, StreamId(0), batch)
    }

    /// Appends rows of any stream to a split.
    ///
    /// # Errors
    /// As [`MemoryFeed::push`].
    pub fn push_to(&self, split: &str, stream: StreamId, batch: RecordBatch) -> Result<()> {
        self.shared.change(|state| {
            fits(state, stream, &batch)?;
            append(state, split, [What::Batch { stream, batch }])
        })
    }

    /// Appends batches that must not be cut apart, like a transaction: only the last one carries a
    /// position.
    ///
    /// # Errors
    /// As [`MemoryFeed::push`]; then nothing is appended.
    pub fn push_unit(&self, split: &str, batches: Vec<(StreamId, RecordBatch)>) -> Result<()> {
        self.shared.change(|state| {
            for (stream, batch) in &batches {
                fits(state, *stream, batch)?;
            }
            let log = open_log(state, split)?;
            let last = batches.len().saturating_sub(1);
            for (i, (stream, batch)) in batches.into_iter().enumerate() {
                let unit = if i == last { Unit::Last } else { Unit::Inside };
                state.splits[log].append(What::Batch { stream, batch }, unit);
            }
            Ok(())
        })
    }

    /// Appends a record that can't be read as a row.
    ///
    /// # Errors
    /// No such split, or one that has ended.
    pub fn reject(&self, split: &str, reject: Reject) -> Result<()> {
        self.shared.change(|state| append(state, split, [What::Reject(reject)]))
    }

    /// Appends rows that nobody gets to see: the position moves on without them.
    ///
    /// # Errors
    /// As [`MemoryFeed::reject`].
    pub fn skip(&self, split: &str, rows: u64) -> Result<()> {
        self.shared.change(|state| append(state, split, [What::Skipped(rows)]))
    }

    /// From here on, the stream's rows in this split have another schema. Batches pushed after
    /// this must have it, whatever their split.
    ///
    /// # Errors
    /// As [`MemoryFeed::reject`], or no such stream.
    pub fn schema(&self, split: &str, stream: StreamId, schema: SchemaRef) -> Result<()> {
        self.shared.change(|state| {
            let current = state.schemas.get(stream.0).ok_or_else(|| no_stream(stream))?;
            let (new, old) = (schema.clone(), current.clone());
            append(state, split, [What::Schema { stream, schema }])?;
            if old != new {
                state.schemas[stream.0] = new;
            }
            Ok(())
        })
    }

    /// Appends a watermark.
    ///
    /// # Errors
    /// As [`MemoryFeed::schema`].
    pub fn watermark(&self, split: &str, stream: StreamId, micros: i64) -> Result<()> {
        self.shared.change(|state| {
            state.schemas.get(stream.0).ok_or_else(|| no_stream(stream))?;
            append(state, split, [What::Watermark { stream, micros }])
        })
    }

    /// The first reader that comes here fails with this error; later ones read on.
    ///
    /// # Errors
    /// As [`MemoryFeed::reject`].
    pub fn fail(&self, split: &str, error: Error) -> Result<()> {
        self.shared.change(|state| append(state, split, [What::Failure(Some(error))]))
    }

    /// Ends a split.
    ///
    /// # Errors
    /// There is no such split.
    pub fn finish_split(&self, split: &str) -> Result<()> {
        self.shared.change(|state| {
            let index = state.find(&SplitId::new(split))?;
            state.splits[index].ended = true;
            Ok(())
        })
    }

    /// Ends every split and the enumeration.
    pub fn finish(&self) {
        self.shared.change(|state| {
            state.complete = true;
            state.splits.iter_mut().for_each(|s| s.ended = true);
        });
    }
}

fn fits(state: &State, stream: StreamId, batch: &RecordBatch) -> Result<()> {
    let expected = state.schemas.get(stream.0).ok_or_else(|| no_stream(stream))?;
    if *expected != batch.schema() {
        return Err(Error::schema("the batch doesn't have the stream's schema")
            .with("stream", &state.streams[stream.0].name));
    }
    Ok(())
}

fn no_stream(stream: StreamId) -> Error {
    Error::not_found("this memory source has no such stream").with("stream", stream.0)
}

fn open_log(state: &State, split: &str) -> Result<usize> {
    let index = state.find(&SplitId::new(split))?;
    if state.splits[index].ended {
        return Err(Error::config("the split has ended").with("split", split));
    }
    Ok(index)
}

fn append(state: &mut State, split: &str, entries: impl IntoIterator<Item = What>) -> Result<()> {
    let index = open_log(state, split)?;
    entries.into_iter().for_each(|what| state.splits[index].append(what, Unit::Free));
    Ok(())
}
