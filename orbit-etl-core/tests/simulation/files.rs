//! A target like a folder: staged files that are renamed one by one, then a manifest. It knows no owner.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use orbit_etl_core::{
    CheckpointRecord, CommitMode, Committable, Committed, Connector, ConnectorInfo, Context, Discard, Epoch,
    Error, ErrorKind, Health, LaneId, Lineage, Origin, Payload, Prepared, Reject, Result, Sink, SinkSession,
    SinkWriter, StreamId, StreamInfo,
};
use serde_json::json;

use super::world::Instance;

/// Bugs that a sink can have, put in on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SinkBug {
    /// What was renamed stays staged, and no manifest is looked for.
    NonIdempotentCommit,
    /// Committed epochs are not recorded as such: a commit that comes again finds nothing to rename.
    EpochNotCompared,
    /// Opening throws away what others have staged.
    DiscardBeforeClaim,
    /// What is committed is read before older runs are fenced.
    ClaimAfterReading,
    /// A prepare that is tried again holds only the last batch.
    RetriedBatchAlone,
    /// All staged files but one's own are thrown away, also those of newer runs.
    DiscardNotMine,
}

pub(crate) type Rule = fn(i64) -> bool;

#[derive(Debug, Clone, Default)]
pub(crate) struct Folder(Arc<Mutex<Files>>);

#[derive(Debug, Default)]
struct Files {
    staged: BTreeMap<String, Staged>,
    visible: BTreeMap<String, Vec<RecordBatch>>,
    manifests: BTreeMap<Epoch, Vec<Reject>>,
    lineage: Option<String>,
    copies: u64,
}

#[derive(Debug, Clone)]
struct Staged {
    claim: u64,
    epoch: Epoch,
    batches: Vec<RecordBatch>,
}

impl Folder {
    fn lock(&self) -> MutexGuard<'_, Files> {
        self.0.lock().unwrap()
    }

    pub(crate) fn batches(&self) -> Vec<RecordBatch> {
        self.lock().visible.values().flatten().cloned().collect()
    }

    pub(crate) fn staged_count(&self) -> usize {
        self.lock().staged.len()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct FilesSink {
    pub(crate) folder: Folder,
    pub(crate) instance: Arc<Instance>,
    pub(crate) at_prepare: Option<Rule>,
    pub(crate) at_commit: Option<Rule>,
    pub(crate) bug: Option<SinkBug>,
}

#[async_trait]
impl Connector for FilesSink {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("model_files", "a folder")
    }

    async fn health(&self, _: &Context) -> Result<Health> {
        Ok(Health { latency: std::time::Duration::ZERO, detail: String::new() })
    }
}

#[async_trait]
impl Sink for FilesSink {
    fn commit_mode(&self) -> CommitMode {
        CommitMode::Staged
    }

    async fn open(&self, _: &Context, _: &[StreamInfo]) -> Result<Box<dyn SinkSession>> {
        if self.bug == Some(SinkBug::DiscardBeforeClaim) {
            self.folder.lock().staged.clear();
        }
        Ok(Box::new(Session { sink: self.clone(), claim: 0, foreign: false }))
    }
}

struct Session {
    sink: FilesSink,
    claim: u64,
    foreign: bool,
}

#[async_trait]
impl SinkSession for Session {
    async fn claim(&mut self, lineage: &Lineage) -> Result<Option<Committed>> {
        self.claim = lineage.claim;
        let mut files = self.sink.folder.lock();
        let known = files.lineage.get_or_insert_with(|| lineage.id.clone()).clone();
        self.foreign = known != lineage.id;
        let epoch = files.manifests.keys().max().copied();
        Ok((epoch.is_some() || self.foreign).then(|| Committed {
            lineage: known,
            epoch: epoch.unwrap_or(0),
            checkpoint: None,
            rejects: Vec::new(),
        }))
    }

    async fn writer(&mut self, lane: LaneId) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(Writer { sink: self.sink.clone(), claim: self.claim, lane, rows: Vec::new() }))
    }

    async fn commit(
        &mut self,
        epoch: Epoch,
        _: &CheckpointRecord,
        staged: Vec<Committable>,
    ) -> Result<Vec<Reject>> {
        let bug = self.sink.bug;
        if bug != Some(SinkBug::EpochNotCompared)
            && bug != Some(SinkBug::NonIdempotentCommit)
            && let Some(rejects) = self.sink.folder.lock().manifests.get(&epoch)
        {
            return Ok(rejects.clone());
        }
        let mut rejects = Vec::new();
        for committable in staged {
            let name = committable.0["file"].as_str().unwrap().to_owned();
            self.sink.instance.before(&format!("rename {name}")).await?;
            let mut files = self.sink.folder.lock();
            let staged = match bug {
                Some(SinkBug::NonIdempotentCommit) => files.staged.get(&name).cloned(),
                _ => files.staged.remove(&name),
            };
            let to = if bug == Some(SinkBug::NonIdempotentCommit) {
                files.copies += 1;
                format!("{name}.{}", files.copies)
            } else {
                name.clone()
            };
            match staged {
                Some(Staged { batches, .. }) => {
                    let batches = batches.into_iter().map(|b| sift(&b, self.sink.at_commit, &mut rejects));
                    let batches = batches.collect();
                    files.visible.insert(to, batches);
                }
                // Renamed before, by this run or another; its rejects are in the name of the file.
                None if files.visible.contains_key(&name) && bug != Some(SinkBug::EpochNotCompared) => {
                    let rows = committable.0["rejects"].as_array().unwrap();
                    rejects.extend(rows.iter().map(|id| refused(id.as_i64().unwrap())));
                }
                None => return Err(Error::not_found("a staged file is gone").with("file", name)),
            }
        }
        self.sink.instance.before("manifest").await?;
        self.sink.folder.lock().manifests.insert(epoch, rejects.clone());
        Ok(rejects)
    }

    async fn discard(&mut self, what: Discard) -> Result<()> {
        let mut files = self.sink.folder.lock();
        match what {
            Discard::Epoch { claim, epoch } => {
                files.staged.retain(|_, s| !(s.claim == claim && s.epoch == epoch));
            }
            Discard::Older { claim, keep } => {
                let kept = |name: &String| keep.iter().any(|k| k.0["file"] == name.as_str());
                let old = |other: u64| match self.sink.bug {
                    Some(SinkBug::DiscardNotMine) => other != claim,
                    _ => other < claim,
                };
                files.staged.retain(|name, s| !old(s.claim) || kept(name));
            }
        }
        Ok(())
    }
}

struct Writer {
    sink: FilesSink,
    claim: u64,
    lane: LaneId,
    rows: Vec<RecordBatch>,
}

#[async_trait]
impl SinkWriter for Writer {
    async fn write(&mut self, _: StreamId, batch: RecordBatch) -> Result<()> {
        self.rows.push(batch);
        Ok(())
    }

    async fn prepare(&mut self, epoch: Epoch) -> Result<Prepared> {
        let mut rejects = Vec::new();
        let mut batches = Vec::new();
        for batch in std::mem::take(&mut self.rows) {
            batches.push(sift(&batch, self.sink.at_prepare, &mut rejects));
        }
        if self.sink.bug == Some(SinkBug::RetriedBatchAlone)
            && self.sink.instance.world.lock().rate.is_some()
            && self.sink.instance.world.random(|r| r.one_in(8))
        {
            batches = batches.split_off(batches.len().saturating_sub(1));
        }
        batches.retain(|b| b.num_rows() > 0);
        let mut committables = Vec::new();
        if let Some(first) = batches.first() {
            // Two files per lane, so that a commit can stop between them.
            let all = concat_batches(&first.schema(), &batches).unwrap();
            let half = all.num_rows() / 2;
            let parts = [all.slice(0, half), all.slice(half, all.num_rows() - half)];
            for (i, part) in parts.into_iter().filter(|p| p.num_rows() > 0).enumerate() {
                let name = format!("{}-{}-{}-{i}", self.claim, self.lane.0, epoch);
                let refused: Vec<i64> = ids(&part)
                    .into_iter()
                    .filter(|id| self.sink.at_commit.is_some_and(|rule| rule(*id)))
                    .collect();
                committables.push(Committable(json!({ "file": name, "rejects": refused })));
                let staged = Staged { claim: self.claim, epoch, batches: vec![part] };
                self.sink.folder.lock().staged.insert(name, staged);
            }
        }
        Ok(Prepared { committables, rejects, bytes: 0 })
    }
}

pub(crate) fn ids(batch: &RecordBatch) -> Vec<i64> {
    batch.column_by_name("id").unwrap().as_primitive::<Int64Type>().values().to_vec()
}

/// A reject of the row with this id.
pub(crate) fn refused(id: i64) -> Reject {
    Reject {
        origin: Origin::default(),
        ..Reject::new(ErrorKind::Data, "refused", Payload::Raw(format!("{{\"id\":{id}}}").into()))
    }
}

fn sift(batch: &RecordBatch, rule: Option<Rule>, rejects: &mut Vec<Reject>) -> RecordBatch {
    let Some(rule) = rule else { return batch.clone() };
    let stay: Vec<bool> = ids(batch).iter().map(|id| !rule(*id)).collect();
    rejects.extend(ids(batch).into_iter().filter(|id| rule(*id)).map(refused));
    filter_record_batch(batch, &BooleanArray::from(stay)).unwrap()
}
