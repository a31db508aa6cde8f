//! The sink.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::table::{MemoryTable, Owner, Part, Staged, State, keep, key_rows};
use crate::connector::{Connector, ConnectorInfo, Health, StreamInfo};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Origin, Payload, Reject, StreamId};
use crate::planted::{Bug, planted};
use crate::sink::{
    CheckpointRecord, CommitMode, Committable, Committed, Discard, Epoch, LaneId, Lineage, Prepared,
    Publication, Sink, SinkSession, SinkWriter,
};

type Rule = Arc<dyn Fn(&RecordBatch, usize) -> Option<String> + Send + Sync>;

/// Writes to a [`MemoryTable`].
///
/// * [`Staged`](CommitMode::Staged) (default): rows lie in the table, invisible, until they are
///   committed, whatever becomes of the session.
/// * [`Atomic`](CommitMode::Atomic): rows lie in the session and are gone with it; the commit makes
///   them visible together with the checkpoint, if the claim still holds.
/// * [`Immediate`](CommitMode::Immediate): rows are visible as they are written.
///
/// Only the owner commits or, in immediate mode, writes; staging is open to all. With
/// [`Publication::AtEnd`] a commit replaces what the table held in the sink's streams.
#[derive(Clone)]
pub struct MemorySink {
    table: MemoryTable,
    mode: CommitMode,
    publication: Publication,
    upsert: bool,
    follows: bool,
    at_prepare: Option<Rule>,
    at_commit: Option<Rule>,
}

impl fmt::Debug for MemorySink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySink")
            .field("mode", &self.mode)
            .field("publication", &self.publication)
            .field("upsert", &self.upsert)
            .finish_non_exhaustive()
    }
}

impl MemorySink {
    /// A staged sink that publishes each epoch and appends.
    pub fn new(table: &MemoryTable) -> Self {
        Self {
            table: table.clone(),
            mode: CommitMode::Staged,
            publication: Publication::EachEpoch,
            upsert: false,
            follows: true,
            at_prepare: None,
            at_commit: None,
        }
    }

    /// How epochs become visible.
    #[must_use]
    pub fn with_mode(mut self, mode: CommitMode) -> Self {
        self.mode = mode;
        self
    }

    /// When epochs become visible.
    #[must_use]
    pub fn with_publication(mut self, publication: Publication) -> Self {
        self.publication = publication;
        self
    }

    /// Rows replace those with equal keys; every stream must have keys.
    #[must_use]
    pub fn upserting(mut self) -> Self {
        self.upsert = true;
        self
    }

    /// Refuses schemas that change during a run.
    #[must_use]
    pub fn with_fixed_schema(mut self) -> Self {
        self.follows = false;
        self
    }

    /// Rejects the rows for which the rule gives a reason; `prepare` returns them.
    #[must_use]
    pub fn reject_if(
        mut self,
        rule: impl Fn(&RecordBatch, usize) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.at_prepare = Some(Arc::new(rule));
        self
    }

    /// Rejects the rows for which the rule gives a reason, in `commit`. An immediate sink has shown
    /// its rows by then and doesn't ask.
    #[must_use]
    pub fn reject_at_commit_if(
        mut self,
        rule: impl Fn(&RecordBatch, usize) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.at_commit = Some(Arc::new(rule));
        self
    }
}

#[async_trait]
impl Connector for MemorySink {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("memory", format!("memory table, {}", self.mode)).with_local(true)
    }

    fn validate(&self) -> Result<()> {
        if self.publication == Publication::AtEnd && self.mode != CommitMode::Staged {
            return Err(Error::config("only a staged memory sink can publish at the end")
                .remedy("leave out with_mode or with_publication"));
        }
        Ok(())
    }

    async fn health(&self, _cx: &Context) -> Result<Health> {
        Ok(Health { latency: Duration::ZERO, detail: format!("{} row(s)", self.table.rows()) })
    }

    async fn discover(&self, _cx: &Context) -> Result<Vec<StreamInfo>> {
        let state = self.table.lock();
        Ok(state.visible.iter().map(|(name, v)| StreamInfo::new(name, v.schema.clone())).collect())
    }
}

#[async_trait]
impl Sink for MemorySink {
    fn commit_mode(&self) -> CommitMode {
        self.mode
    }

    fn publication(&self) -> Publication {
        self.publication
    }

    fn idempotent(&self) -> bool {
        self.upsert
    }

    async fn open(&self, _cx: &Context, inputs: &[StreamInfo]) -> Result<Box<dyn SinkSession>> {
        self.validate()?;
        for stream in inputs.iter().filter(|_| self.upsert) {
            if stream.keys.is_empty() {
                return Err(Error::config("an upserting memory sink needs keys")
                    .with("stream", &stream.name)
                    .remedy("give the stream keys, or append"));
            }
            key_rows(&RecordBatch::new_empty(stream.schema.clone()), &stream.keys)?;
        }
        Ok(Box::new(Session {
            sink: self.clone(),
            inputs: inputs.to_vec(),
            lineage: None,
            transaction: Transaction::default(),
        }))
    }
}

/// The rows of an atomic epoch; gone with the session and its writers.
#[derive(Debug, Clone, Default)]
struct Transaction(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    /// By lane.
    open: BTreeMap<usize, Staged>,
    prepared: Staged,
}

impl Transaction {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn roll_back(&self) {
        *self.lock() = Held::default();
    }
}

struct Session {
    sink: MemorySink,
    inputs: Vec<StreamInfo>,
    lineage: Option<Lineage>,
    transaction: Transaction,
}

impl Session {
    fn lineage(&self) -> Result<Lineage> {
        self.lineage.clone().ok_or_else(|| Error::internal("a memory table is used before it is claimed"))
    }

    fn keys(&self, stream: &str) -> Option<&[String]> {
        let input = self.inputs.iter().find(|i| i.name == stream)?;
        self.sink.upsert.then_some(&input.keys)
    }

    /// Takes staged parts out of the table.
    fn unstage(state: &mut State, staged: &[Committable]) -> Result<Staged> {
        let parts = staged.iter().map(Part::read).collect::<Result<BTreeSet<_>>>()?;
        if let Some(gone) = parts.iter().find(|p| !state.staged.contains_key(p)) {
            return Err(Error::not_found("staged rows are gone")
                .with("claim", gone.claim)
                .with("lane", gone.lane)
                .with("epoch", gone.epoch.unwrap_or_default()));
        }
        Ok(parts.iter().filter_map(|p| state.staged.remove(p)).flatten().collect())
    }
}

#[async_trait]
impl SinkSession for Session {
    async fn claim(&mut self, lineage: &Lineage) -> Result<Option<Committed>> {
        let mut state = self.sink.table.lock();
        let found = match state.owners.get_mut(&lineage.sink) {
            Some(owner) if owner.lineage.id != lineage.id => {
                // Somebody else's table: nothing is taken over, nothing can be committed.
                return Ok(Some(Committed {
                    lineage: owner.lineage.id.clone(),
                    epoch: owner.epoch,
                    checkpoint: owner.checkpoint.clone(),
                    rejects: Vec::new(),
                }));
            }
            Some(owner) if owner.lineage.claim > lineage.claim => {
                return Err(Error::fenced("a newer run owns this memory table")
                    .with("claim", lineage.claim)
                    .with("owner", owner.lineage.claim));
            }
            Some(owner) => {
                owner.lineage = lineage.clone();
                let atomic = self.sink.mode == CommitMode::Atomic;
                let rejects = owner.rejects.get(&owner.epoch).filter(|_| atomic);
                Some(Committed {
                    lineage: lineage.id.clone(),
                    epoch: owner.epoch,
                    checkpoint: owner.checkpoint.clone(),
                    rejects: rejects.cloned().unwrap_or_default(),
                })
            }
            None => {
                let owner =
                    Owner { lineage: lineage.clone(), epoch: 0, checkpoint: None, rejects: BTreeMap::new() };
                state.owners.insert(lineage.sink.clone(), owner);
                None
            }
        };
        state.create(&self.inputs);
        drop(state);
        self.lineage = Some(lineage.clone());
        Ok(found)
    }

    async fn writer(&mut self, lane: LaneId) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(Writer {
            sink: self.sink.clone(),
            schemas: self.inputs.iter().map(|i| i.schema.clone()).collect(),
            inputs: self.inputs.clone(),
            lineage: self.lineage()?,
            lane,
            transaction: self.transaction.clone(),
            rejects: Vec::new(),
            bytes: 0,
        }))
    }

    async fn commit(
        &mut self,
        epoch: Epoch,
        checkpoint: &CheckpointRecord,
        staged: Vec<Committable>,
    ) -> Result<Vec<Reject>> {
        let lineage = self.lineage()?;
        let mut state = self.sink.table.lock();
        let owner = state.owned(&lineage)?;
        if epoch <= owner.epoch && !planted(Bug::EpochNotCompared) {
            self.transaction.roll_back();
            return Ok(owner.rejects.get(&epoch).cloned().unwrap_or_default());
        }
        let rows = match self.sink.mode {
            CommitMode::Staged => Self::unstage(&mut state, &staged)?,
            CommitMode::Atomic => mem::take(&mut self.transaction.lock().prepared),
            CommitMode::Immediate => Vec::new(),
        };
        if self.sink.publication == Publication::AtEnd {
            for input in &self.inputs {
                if let Some(visible) = state.visible.get_mut(&input.name) {
                    visible.batches.clear();
                }
            }
        }
        let mut rejects = Vec::new();
        for (stream, batch) in rows {
            let batch = sift(batch, &stream, self.sink.at_commit.as_ref(), &mut rejects)?;
            state.publish(&stream, batch, self.keys(&stream))?;
        }
        let owner = state.owned(&lineage)?;
        owner.epoch = epoch;
        owner.rejects.insert(epoch, rejects.clone());
        if self.sink.mode == CommitMode::Atomic {
            owner.checkpoint = Some(checkpoint.clone());
        }
        Ok(rejects)
    }

    async fn discard(&mut self, what: Discard) -> Result<()> {
        let lineage = self.lineage()?;
        let mine = |part: &Part| part.sink == lineage.sink && part.lineage == lineage.id;
        let mut state = self.sink.table.lock();
        match what {
            Discard::Epoch { claim, epoch } => {
                if claim == lineage.claim {
                    self.transaction.roll_back();
                }
                // What a lane holds unprepared belongs to the open epoch, which is the one that is
                // discarded.
                let given_up = |p: &Part| p.claim == claim && p.epoch.is_none_or(|e| e == epoch);
                state.staged.retain(|part, _| !(mine(part) && given_up(part)));
            }
            Discard::Older { claim, keep } => {
                let keep = keep.iter().map(Part::read).collect::<Result<BTreeSet<_>>>()?;
                state.staged.retain(|part, _| !mine(part) || part.claim >= claim || keep.contains(part));
            }
        }
        Ok(())
    }
}

struct Writer {
    sink: MemorySink,
    inputs: Vec<StreamInfo>,
    schemas: Vec<SchemaRef>,
    lineage: Lineage,
    lane: LaneId,
    transaction: Transaction,
    rejects: Vec<Reject>,
    bytes: u64,
}

impl Writer {
    fn part(&self, epoch: Option<Epoch>) -> Part {
        let Lineage { id, sink, claim, .. } = &self.lineage;
        Part { sink: sink.clone(), lineage: id.clone(), claim: *claim, lane: self.lane.0, epoch }
    }

    fn input(&self, stream: StreamId) -> Result<&StreamInfo> {
        self.inputs
            .get(stream.0)
            .ok_or_else(|| Error::internal("rows of an unknown stream").with("stream", stream.0))
    }
}

#[async_trait]
impl SinkWriter for Writer {
    async fn write(&mut self, stream: StreamId, batch: RecordBatch) -> Result<()> {
        let input = self.input(stream)?;
        let name = input.name.clone();
        if !same_columns(&self.schemas[stream.0], batch.schema_ref()) {
            return Err(Error::schema("the batch doesn't have its stream's columns").with("stream", name));
        }
        let batch = sift(batch, &name, self.sink.at_prepare.as_ref(), &mut self.rejects)?;
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.bytes += batch.get_array_memory_size() as u64;
        match self.sink.mode {
            CommitMode::Staged => {
                let part = self.part(None);
                self.sink.table.lock().staged.entry(part).or_default().push((name, batch));
            }
            CommitMode::Atomic => {
                self.transaction.lock().open.entry(self.lane.0).or_default().push((name, batch));
            }
            CommitMode::Immediate => {
                let keys = self.sink.upsert.then_some(self.inputs[stream.0].keys.as_slice());
                let mut state = self.sink.table.lock();
                state.owned(&self.lineage)?;
                state.publish(&name, batch, keys)?;
            }
        }
        Ok(())
    }

    async fn schema_changed(&mut self, stream: StreamId, to: &SchemaRef) -> Result<()> {
        let input = self.input(stream)?;
        if !self.sink.follows {
            return Err(Error::schema("this memory sink keeps to the schemas that it was opened with")
                .with("stream", &input.name)
                .remedy("restart the pipeline, so that the sink opens with the new schema"));
        }
        if self.sink.upsert {
            // Found now, so that a commit can't fail halfway.
            key_rows(&RecordBatch::new_empty(to.clone()), &input.keys)?;
        }
        self.schemas[stream.0] = to.clone();
        Ok(())
    }

    async fn prepare(&mut self, epoch: Epoch) -> Result<Prepared> {
        let mut committables = Vec::new();
        match self.sink.mode {
            CommitMode::Staged => {
                let mut state = self.sink.table.lock();
                if let Some(rows) = state.staged.remove(&self.part(None)) {
                    let part = self.part(Some(epoch));
                    committables.push(part.committable());
                    state.staged.insert(part, rows);
                }
            }
            CommitMode::Atomic => {
                let mut held = self.transaction.lock();
                let mut rows = held.open.remove(&self.lane.0).unwrap_or_default();
                held.prepared.append(&mut rows);
            }
            CommitMode::Immediate => {}
        }
        let rejects = mem::take(&mut self.rejects);
        Ok(Prepared { committables, rejects, bytes: mem::take(&mut self.bytes) })
    }
}

impl Part {
    fn committable(&self) -> Committable {
        let Self { sink, lineage, claim, lane, epoch } = self;
        Committable(json!({ "sink": sink, "lineage": lineage, "claim": claim, "lane": lane, "epoch": epoch }))
    }

    fn read(committable: &Committable) -> Result<Self> {
        let text = |key| committable.0.get(key).and_then(Value::as_str).map(str::to_owned);
        let number = |key| committable.0.get(key).and_then(Value::as_u64);
        let part = || {
            Some(Self {
                sink: text("sink")?,
                lineage: text("lineage")?,
                claim: number("claim")?,
                lane: usize::try_from(number("lane")?).ok()?,
                epoch: Some(number("epoch")?),
            })
        };
        part().ok_or_else(|| Error::config("a committable isn't one of a memory sink's"))
    }
}

/// Takes out the rows that a rule refuses.
fn sift(
    batch: RecordBatch,
    stream: &str,
    rule: Option<&Rule>,
    rejects: &mut Vec<Reject>,
) -> Result<RecordBatch> {
    let Some(rule) = rule else { return Ok(batch) };
    let before = rejects.len();
    let mut stay = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let reason = rule(&batch, row);
        stay.push(reason.is_none());
        if let Some(reason) = reason {
            let origin = Origin { stream: Some(stream.to_owned()), ..Origin::default() };
            let payload = Payload::Rows(batch.slice(row, 1));
            rejects.push(Reject { origin, ..Reject::new(ErrorKind::Data, reason, payload) });
        }
    }
    if rejects.len() == before { Ok(batch) } else { keep(&batch, &BooleanArray::from(stay)) }
}

fn same_columns(a: &SchemaRef, b: &SchemaRef) -> bool {
    let columns =
        |s: &Schema| s.fields().iter().map(|f| (f.name().clone(), f.data_type().clone())).collect::<Vec<_>>();
    Arc::ptr_eq(a, b) || columns(a) == columns(b)
}
