//! The target: what is visible, what is staged, and who owns it.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use arrow::row::{OwnedRow, RowConverter, SortField};

use crate::connector::StreamInfo;
use crate::error::{Error, Result};
use crate::event::Reject;
use crate::sink::{CheckpointRecord, Epoch, Lineage};

/// What a [`MemorySink`](super::MemorySink) writes to. A cheap clone of a handle: it outlives runs,
/// sessions and sinks, as a database or a folder does.
#[derive(Debug, Clone, Default)]
pub struct MemoryTable {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) visible: BTreeMap<String, Visible>,
    pub(super) staged: BTreeMap<Part, Staged>,
    /// By the sink's name.
    pub(super) owners: BTreeMap<String, Owner>,
}

#[derive(Debug)]
pub(super) struct Visible {
    pub(super) schema: SchemaRef,
    pub(super) batches: Vec<RecordBatch>,
}

/// The name of staged rows. It carries the claim number, so that two runs never share one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part {
    pub(super) sink: String,
    pub(super) lineage: String,
    pub(super) claim: u64,
    pub(super) lane: usize,
    /// `None` as long as the lane hasn't prepared.
    pub(super) epoch: Option<Epoch>,
}

/// Rows, with the names of their streams.
pub(super) type Staged = Vec<(String, RecordBatch)>;

#[derive(Debug)]
pub(super) struct Owner {
    pub(super) lineage: Lineage,
    pub(super) epoch: Epoch,
    pub(super) checkpoint: Option<CheckpointRecord>,
    pub(super) rejects: BTreeMap<Epoch, Vec<Reject>>,
}

impl MemoryTable {
    /// An empty target.
    pub fn new() -> Self {
        Self::default()
    }

    /// The names of the streams that sinks have claimed.
    pub fn streams(&self) -> Vec<String> {
        self.lock().visible.keys().cloned().collect()
    }

    /// The visible batches of a stream, in the order of their publication; none if there is no
    /// such stream.
    pub fn batches(&self, stream: &str) -> Vec<RecordBatch> {
        self.lock().visible.get(stream).map(|v| v.batches.clone()).unwrap_or_default()
    }

    /// The newest schema of a stream.
    pub fn schema(&self, stream: &str) -> Option<SchemaRef> {
        self.lock().visible.get(stream).map(|v| v.schema.clone())
    }

    /// How many rows of all streams are visible.
    pub fn rows(&self) -> usize {
        self.lock().visible.values().flat_map(|v| &v.batches).map(RecordBatch::num_rows).sum()
    }

    /// How many parts are staged: one for each lane and epoch, and one for each lane's open epoch.
    pub fn staged_count(&self) -> usize {
        self.lock().staged.len()
    }

    /// The claim number of the run that owns the target under this sink's name.
    pub fn owner(&self, sink: &str) -> Option<u64> {
        self.lock().owners.get(sink).map(|o| o.lineage.claim)
    }

    /// The last epoch committed under this sink's name; 0 if none is.
    pub fn epoch(&self, sink: &str) -> Epoch {
        self.lock().owners.get(sink).map_or(0, |o| o.epoch)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The owner row, `where lineage and claim = mine`.
    pub(super) fn owned(&mut self, mine: &Lineage) -> Result<&mut Owner> {
        match self.owners.get_mut(&mine.sink) {
            Some(owner) if owner.lineage.id == mine.id && owner.lineage.claim == mine.claim => Ok(owner),
            Some(owner) => Err(Error::fenced("another run has taken over this memory table")
                .with("claim", mine.claim)
                .with("owner", owner.lineage.claim)),
            None => Err(Error::internal("a memory table is written before it is claimed")),
        }
    }

    /// Makes the streams, or gives them their new schemas.
    pub(super) fn create(&mut self, streams: &[StreamInfo]) {
        for stream in streams {
            self.visible
                .entry(stream.name.clone())
                .and_modify(|v| v.schema = stream.schema.clone())
                .or_insert_with(|| Visible { schema: stream.schema.clone(), batches: Vec::new() });
        }
    }

    /// Makes rows visible. With `keys` they replace those with equal keys, and a later row an
    /// earlier one.
    pub(super) fn publish(
        &mut self,
        stream: &str,
        batch: RecordBatch,
        keys: Option<&[String]>,
    ) -> Result<()> {
        let visible = self
            .visible
            .entry(stream.to_owned())
            .or_insert_with(|| Visible { schema: batch.schema(), batches: Vec::new() });
        visible.schema = batch.schema();
        let Some(keys) = keys else {
            visible.batches.push(batch);
            return Ok(());
        };
        let new_keys = key_rows(&batch, keys)?;
        let mut taken = HashSet::new();
        // From the end, so that the last row of each key stays.
        let mut last: Vec<bool> = new_keys.iter().rev().map(|key| taken.insert(key.clone())).collect();
        last.reverse();
        let mut batches = Vec::with_capacity(visible.batches.len() + 1);
        for old in &visible.batches {
            let stay = key_rows(old, keys)?.iter().map(|key| Some(!taken.contains(key))).collect();
            batches.push(keep(old, &stay)?);
        }
        batches.push(keep(&batch, &BooleanArray::from(last))?);
        batches.retain(|b| b.num_rows() > 0);
        visible.batches = batches;
        Ok(())
    }
}

pub(super) fn keep(batch: &RecordBatch, rows: &BooleanArray) -> Result<RecordBatch> {
    filter_record_batch(batch, rows).map_err(|e| Error::internal("can't filter a batch").caused_by(e))
}

/// The keys of a batch's rows, in a form that can be compared.
pub(super) fn key_rows(batch: &RecordBatch, keys: &[String]) -> Result<Vec<OwnedRow>> {
    let column = |key: &String| {
        batch
            .column_by_name(key)
            .cloned()
            .ok_or_else(|| Error::schema("a key isn't among the columns").with("column", key))
    };
    let columns = keys.iter().map(column).collect::<Result<Vec<_>>>()?;
    let fields = columns.iter().map(|c| SortField::new(c.data_type().clone())).collect();
    let unfit = |e| Error::schema("a key has a type that can't be compared").caused_by(e);
    let rows = RowConverter::new(fields).and_then(|c| c.convert_columns(&columns)).map_err(unfit)?;
    Ok(rows.iter().map(|row| row.owned()).collect())
}
