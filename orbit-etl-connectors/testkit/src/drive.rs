//! The least of an engine: enough to write epochs into a sink and to read a source to its end.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::RecordBatch;
use bytes::Bytes;
use futures::StreamExt;
use orbit_etl_core::{
    CheckpointRecord, Committable, Committed, Context, Discard, Epoch, Error, LaneId, Lineage, Position,
    Publication, Reject, Result, ScanRequest, Sink, SinkSession, SinkWriter, Source, SourceEvent, Split,
    SplitChange, StreamId, StreamInfo,
};

use crate::harness::{Check, Stop};

/// The rows that a batch should have when the suite reads: small, so that there are many positions.
const BATCH_ROWS: usize = 64;

/// A context for one contract.
///
/// # Errors
/// No temporary directory can be made.
pub fn context() -> Check<Context> {
    Ok(Context::standalone("conformance")?)
}

/// One run of a sink. Dropped, it is a crash.
pub struct Run {
    session: Box<dyn SinkSession>,
    writers: BTreeMap<usize, Box<dyn SinkWriter>>,
    publication: Publication,
    /// Who runs.
    pub lineage: Lineage,
    /// What the claim found.
    pub found: Option<Committed>,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("lineage", &self.lineage).finish_non_exhaustive()
    }
}

impl Run {
    /// The lineage of the suite's runs.
    pub fn lineage(claim: u64) -> Lineage {
        Lineage {
            id: "conformance".into(),
            sink: "out".into(),
            generation: 1,
            claim,
            run: format!("run-{claim}"),
        }
    }

    /// Opens and claims as the suite's lineage.
    ///
    /// # Errors
    /// Those of the sink.
    pub async fn start(cx: &Context, sink: &dyn Sink, streams: &[StreamInfo], claim: u64) -> Result<Self> {
        Self::start_as(cx, sink, streams, Self::lineage(claim)).await
    }

    /// Opens and claims.
    ///
    /// # Errors
    /// Those of the sink.
    pub async fn start_as(
        cx: &Context,
        sink: &dyn Sink,
        streams: &[StreamInfo],
        lineage: Lineage,
    ) -> Result<Self> {
        let mut session = sink.open(cx, streams).await?;
        let found = session.claim(&lineage).await?;
        let publication = sink.publication();
        Ok(Self { session, writers: BTreeMap::new(), publication, lineage, found })
    }

    /// The writer of a lane.
    ///
    /// # Errors
    /// Those of the sink.
    pub async fn writer(&mut self, lane: usize) -> Result<&mut Box<dyn SinkWriter>> {
        if !self.writers.contains_key(&lane) {
            let writer = self.session.writer(LaneId(lane)).await?;
            self.writers.insert(lane, writer);
        }
        self.writers.get_mut(&lane).ok_or_else(|| Error::internal("the writer is gone"))
    }

    /// Writes rows in a lane.
    ///
    /// # Errors
    /// Those of the sink.
    pub async fn write(&mut self, lane: usize, stream: usize, batch: RecordBatch) -> Result<()> {
        self.writer(lane).await?.write(StreamId(stream), batch).await
    }

    /// Prepares every lane. The committables have been JSON text in between, as in a checkpoint.
    ///
    /// # Errors
    /// Those of the sink.
    pub async fn prepare(&mut self, epoch: Epoch) -> Result<Vec<Committable>> {
        let mut staged = Vec::new();
        for writer in self.writers.values_mut() {
            for committable in writer.prepare(epoch).await?.committables {
                let text = serde_json::to_string(&committable);
                let back = text.and_then(|text| serde_json::from_str::<Committable>(&text));
                let lost = |e| Error::internal("a committable isn't JSON").caused_by(e);
                staged.push(back.map_err(lost)?);
            }
        }
        Ok(staged)
    }

    /// Commits.
    ///
    /// # Errors
    /// Those of the sink.
    pub async fn commit(&mut self, epoch: Epoch, staged: Vec<Committable>) -> Result<Vec<Reject>> {
        self.session.commit(epoch, &self.checkpoint(epoch), staged).await
    }

    /// The checkpoint that [`Run::commit`] hands over.
    pub fn checkpoint(&self, epoch: Epoch) -> CheckpointRecord {
        let json = Bytes::from(format!("{{\"epoch\":{epoch}}}"));
        let last = self.publication == Publication::AtEnd;
        CheckpointRecord { epoch, generation: self.lineage.generation, last, json }
    }

    /// Writes, prepares and commits one epoch in lane 0.
    ///
    /// # Errors
    /// Those of the sink.
    pub async fn epoch(&mut self, epoch: Epoch, rows: &[RecordBatch]) -> Result<Vec<Committable>> {
        for batch in rows {
            self.write(0, 0, batch.clone()).await?;
        }
        let staged = self.prepare(epoch).await?;
        self.commit(epoch, staged.clone()).await?;
        Ok(staged)
    }

    /// Discards.
    ///
    /// # Errors
    /// Those of the sink.
    pub async fn discard(&mut self, what: Discard) -> Result<()> {
        self.session.discard(what).await
    }

    /// Ends the run in order.
    ///
    /// # Errors
    /// Those of the sink.
    pub async fn close(self) -> Result<()> {
        drop(self.writers);
        self.session.close().await
    }
}

/// Writes rows in one epoch of one run.
///
/// # Errors
/// Those of the sink.
pub async fn write_rows(sink: &dyn Sink, stream: &StreamInfo, batches: &[RecordBatch]) -> Check {
    let mut run = Run::start(&context()?, sink, std::slice::from_ref(stream), 1).await?;
    run.epoch(1, batches).await?;
    Ok(run.close().await?)
}

/// What a source gave, split by split.
#[derive(Debug)]
pub struct Reading {
    /// Each split with its events.
    pub splits: Vec<(Split, Vec<SourceEvent>)>,
}

impl Reading {
    /// The batches of one stream.
    pub fn into_batches(self, stream: usize) -> Vec<RecordBatch> {
        self.splits.into_iter().flat_map(|(_, events)| rows(events, stream)).collect()
    }
}

/// The batches of one stream among events.
pub(crate) fn rows(events: impl IntoIterator<Item = SourceEvent>, stream: usize) -> Vec<RecordBatch> {
    let batch = |event| match event {
        SourceEvent::Batch { stream: s, batch, .. } if s.0 == stream => Some(batch),
        _ => None,
    };
    events.into_iter().filter_map(batch).collect()
}

/// Reads every split of a source from its start. A source without an end is read until it has been
/// silent for `idle`.
///
/// # Errors
/// Those of the source; a split that ends without saying so.
pub async fn read(source: &dyn Source, idle: Duration) -> Check<Reading> {
    let cx = context()?;
    let scan = everything(&cx, source).await?;
    let mut reading = Reading { splits: Vec::new() };
    for split in splits(&cx, source, None, idle).await?.into_iter().flat_map(|change| change.added) {
        let events = read_split(&cx, source, &split, None, &scan, idle).await?;
        reading.splits.push((split, events));
    }
    Ok(reading)
}

/// A request for everything of every stream.
pub(crate) async fn everything(cx: &Context, source: &dyn Source) -> Check<Vec<ScanRequest>> {
    let streams = source.streams(cx).await?;
    Ok((0..streams.len()).map(|i| ScanRequest::all(StreamId(i), BATCH_ROWS)).collect())
}

/// The changes of splits after a position.
///
/// # Errors
/// Those of the source.
pub async fn splits(
    cx: &Context,
    source: &dyn Source,
    after: Option<&Position>,
    idle: Duration,
) -> Check<Vec<SplitChange>> {
    let bounded = source.streams(cx).await?.iter().all(|s| s.bounded);
    let mut told = source.splits(cx, after).await?;
    let mut changes = Vec::new();
    while let Some(change) = next(&mut told, (!bounded).then_some(idle)).await {
        changes.push(change?);
    }
    Ok(changes)
}

/// The events of one split after a position.
///
/// # Errors
/// Those of the source; a bounded split that ends without saying so.
pub async fn read_split(
    cx: &Context,
    source: &dyn Source,
    split: &Split,
    after: Option<&Position>,
    scan: &[ScanRequest],
    idle: Duration,
) -> Check<Vec<SourceEvent>> {
    let mut stream = source.open(cx, split, after, scan).await?;
    let mut events = Vec::new();
    let mut finished = false;
    while let Some(event) = next(&mut stream, (!split.bounded).then_some(idle)).await {
        if finished {
            return Err(Stop::fail(format!("split {} goes on after it has finished", split.id)));
        }
        let event = event?;
        finished = matches!(event, SourceEvent::Finished);
        events.push(event);
    }
    if split.bounded && !finished {
        return Err(Stop::fail(format!("split {} ends without `Finished`", split.id)));
    }
    Ok(events)
}

async fn next<S: StreamExt + Unpin>(stream: &mut S, idle: Option<Duration>) -> Option<S::Item> {
    match idle {
        Some(idle) => tokio::time::timeout(idle, stream.next()).await.ok().flatten(),
        None => stream.next().await,
    }
}
