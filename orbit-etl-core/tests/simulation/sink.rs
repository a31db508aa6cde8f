//! Any sink, with mishaps before and after each call.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::FutureExt;
use object_store::path::Path;
use orbit_etl_core::checkpoint::Log;
use orbit_etl_core::{
    CheckpointRecord, CommitMode, Committable, Committed, Connector, ConnectorInfo, Context, Discard, Epoch,
    Error, ErrorKind, Health, LaneId, Lineage, Prepared, Publication, Reject, Result, Sink, SinkSession,
    SinkWriter, StreamId, StreamInfo,
};

use super::files::{SinkBug, ids};
use super::shape::write_refuses;
use super::world::{Fate, Instance, injected};

/// What was last committed to each sink, for the bug that reads it before it fences.
pub(crate) type Seen = Arc<Mutex<BTreeMap<String, Committed>>>;

#[derive(Debug, Clone)]
pub(crate) struct ModelSink {
    pub(crate) inner: Arc<dyn Sink>,
    pub(crate) instance: Arc<Instance>,
    pub(crate) bug: Option<SinkBug>,
    pub(crate) seen: Seen,
    /// Another pipeline's log, whose runs must not be let in.
    pub(crate) alien: bool,
    /// Refuses batches with certain rows.
    pub(crate) at_write: bool,
    /// A write that fails may have taken some rows, and says so.
    pub(crate) partial: bool,
}

#[async_trait]
impl Connector for ModelSink {
    fn info(&self) -> ConnectorInfo {
        self.inner.info()
    }

    async fn health(&self, cx: &Context) -> Result<Health> {
        self.inner.health(cx).await
    }
}

#[async_trait]
impl Sink for ModelSink {
    fn commit_mode(&self) -> CommitMode {
        self.inner.commit_mode()
    }

    fn publication(&self) -> Publication {
        self.inner.publication()
    }

    fn idempotent(&self) -> bool {
        self.inner.idempotent()
    }

    fn needs_order(&self, input: &StreamInfo) -> bool {
        self.inner.needs_order(input)
    }

    async fn open(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Box<dyn SinkSession>> {
        self.instance.before(&format!("{} open", cx.node())).await?;
        let inner = self.inner.open(cx, inputs).await?;
        let name = cx.node().to_owned();
        Ok(Box::new(Session { of: self.clone(), name, inner: Some(inner), claim: 0, lineage: String::new() }))
    }
}

struct Session {
    of: ModelSink,
    name: String,
    /// Gone with a commit that nobody waits for any more.
    inner: Option<Box<dyn SinkSession>>,
    claim: u64,
    lineage: String,
}

impl Session {
    fn inner(&mut self) -> Result<&mut Box<dyn SinkSession>> {
        self.inner.as_mut().ok_or_else(|| injected(ErrorKind::Unavailable).with("session", "lost"))
    }

    /// A run that a newer one has fenced may finish only what that one knows to be pending.
    fn check_fence(&self, epoch: Epoch) {
        let world = &self.of.instance.world;
        let log = Log::new(world.log.clone(), Path::from("log"));
        if self.of.commit_mode() == CommitMode::Staged
            && !self.of.alien
            && let Some(Ok(Some(head))) = log.peek().now_or_never()
            && head.number > self.claim
            && head.state.checkpoint_in.is_none()
            && head.state.epoch < epoch
        {
            world.wrong(format!(
                "{}: epoch {epoch} of claim {} is published, but entry {} knows only epoch {}",
                self.name, self.claim, head.number, head.state.epoch
            ));
        }
    }
}

#[async_trait]
impl SinkSession for Session {
    async fn claim(&mut self, lineage: &Lineage) -> Result<Option<Committed>> {
        self.claim = lineage.claim;
        self.lineage.clone_from(&lineage.id);
        let call = format!("{} claim {}", self.name, lineage.claim);
        let before = self.of.seen.lock().unwrap().get(&self.name).cloned();
        self.of.instance.before(&call).await?;
        let mut known = self.inner()?.claim(lineage).await?;
        let ours = known.as_ref().is_some_and(|known| known.lineage == lineage.id);
        if self.of.bug == Some(SinkBug::ClaimAfterReading) && ours {
            known = before;
        }
        if !self.of.alien {
            self.of.instance.world.lock().claimed.insert(self.name.clone());
        }
        self.of.instance.after(&call).await?;
        Ok(known)
    }

    async fn writer(&mut self, lane: LaneId) -> Result<Box<dyn SinkWriter>> {
        let call = format!("{}/{}", self.name, lane.0);
        self.of.instance.before(&format!("{call} writer")).await?;
        let inner = self.inner()?.writer(lane).await?;
        let ModelSink { at_write, partial, .. } = self.of;
        Ok(Box::new(Writer { inner, instance: Arc::clone(&self.of.instance), call, at_write, partial }))
    }

    async fn commit(
        &mut self,
        epoch: Epoch,
        checkpoint: &CheckpointRecord,
        staged: Vec<Committable>,
    ) -> Result<Vec<Reject>> {
        let call = format!("{} commit {epoch} of claim {}", self.name, self.claim);
        let may_be_late = self.of.commit_mode() == CommitMode::Atomic;
        if self.of.instance.fate(&call, may_be_late).await? == Fate::Late {
            if let Some(mut inner) = self.inner.take() {
                let (seen, name, lineage) =
                    (Arc::clone(&self.of.seen), self.name.clone(), self.lineage.clone());
                let record = checkpoint.clone();
                let request = move || {
                    async move {
                        if let Ok(rejects) = inner.commit(epoch, &record, staged).await {
                            remember(&seen, name, lineage, epoch, &record, &rejects);
                        }
                    }
                    .boxed()
                };
                self.of.instance.world.delayed(call, Box::new(request));
            }
            return Err(injected(ErrorKind::Timeout).with("request", "commit"));
        }
        let rejects = self.inner()?.commit(epoch, checkpoint, staged).await?;
        remember(&self.of.seen, self.name.clone(), self.lineage.clone(), epoch, checkpoint, &rejects);
        self.check_fence(epoch);
        self.of.instance.after(&call).await?;
        Ok(rejects)
    }

    async fn discard(&mut self, what: Discard) -> Result<()> {
        let call = match &what {
            Discard::Epoch { claim, epoch } => format!("{} discard {claim}/{epoch}", self.name),
            Discard::Older { claim, .. } => format!("{} discard older than {claim}", self.name),
        };
        self.of.instance.before(&call).await?;
        if let Some(inner) = &mut self.inner {
            inner.discard(what).await?;
        }
        self.of.instance.after(&call).await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.of.instance.alive().await;
        match self.inner {
            Some(inner) => inner.close().await,
            None => Ok(()),
        }
    }
}

fn remember(
    seen: &Seen,
    name: String,
    lineage: String,
    epoch: Epoch,
    checkpoint: &CheckpointRecord,
    rejects: &[Reject],
) {
    let mut seen = seen.lock().unwrap();
    if seen.get(&name).is_none_or(|known| known.epoch <= epoch) {
        let checkpoint = Some(checkpoint.clone());
        seen.insert(name, Committed { lineage, epoch, checkpoint, rejects: rejects.to_vec() });
    }
}

struct Writer {
    inner: Box<dyn SinkWriter>,
    instance: Arc<Instance>,
    call: String,
    at_write: bool,
    partial: bool,
}

#[async_trait]
impl SinkWriter for Writer {
    async fn write(&mut self, stream: StreamId, batch: RecordBatch) -> Result<()> {
        let call = format!("{} write", self.call);
        if self.at_write && ids(&batch).into_iter().any(write_refuses) {
            return Err(Error::data("refused as it is").taken(0));
        }
        if let Err(error) = self.instance.before(&call).await {
            let taken = if self.partial { batch.num_rows() / 2 } else { 0 };
            if taken > 0 {
                self.inner.write(stream, batch.slice(0, taken)).await?;
            }
            return Err(error.taken(taken));
        }
        self.inner.write(stream, batch).await?;
        self.instance.after(&call).await
    }

    async fn schema_changed(&mut self, stream: StreamId, to: &SchemaRef) -> Result<()> {
        self.inner.schema_changed(stream, to).await
    }

    async fn prepare(&mut self, epoch: Epoch) -> Result<Prepared> {
        let call = format!("{} prepare {epoch}", self.call);
        self.instance.before(&call).await?;
        let prepared = self.inner.prepare(epoch).await?;
        self.instance.after(&call).await?;
        Ok(prepared)
    }
}
