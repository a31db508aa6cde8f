//! Connectors with one fault each: the contract that forbids it must report it.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use futures::StreamExt;
use futures::stream::BoxStream;
use orbit_etl_core::{
    CheckpointRecord, CommitMode, Committable, Committed, Connector, ConnectorInfo, Context, Discard, Epoch,
    FilterPushdown, Health, LaneId, Lineage, Position, Prepared, Pushdown, Reject, Replay, Result,
    ScanRequest, Sink, SinkSession, SinkWriter, Source, SourceEvent, Split, SplitChange, StreamId,
    StreamInfo,
};
use orbit_etl_testkit::{Abilities, Check, Fixture, Harness, Stop, async_trait, contracts};

use crate::memory::Memory;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    CommitsTwice,
    IgnoresDiscard,
    ForgetsPending,
    ShowsEarly,
    ForgetsClaims,
    LosesRowOnResume,
    DoublesRowOnResume,
    OverstatesFilters,
    ReservesForGood,
    NeverFinishes,
    LosesNulls,
}

struct Faulty(Fault, CommitMode);

struct Wrapped(Box<dyn Fixture>, Fault, Arc<Sides>);

/// What the broken sink keeps outside the target.
#[derive(Debug, Default)]
struct Sides {
    claims: std::sync::atomic::AtomicU64,
}

#[async_trait]
impl Harness for Faulty {
    async fn fresh(&self) -> Check<Box<dyn Fixture>> {
        Ok(Box::new(Wrapped(Memory::new(self.1).fresh().await?, self.0, Arc::default())))
    }

    fn abilities(&self) -> Abilities {
        Abilities { idle: Duration::from_millis(20), ..Abilities::default() }
    }
}

#[async_trait]
impl Fixture for Wrapped {
    fn sink(&self) -> Option<Arc<dyn Sink>> {
        Some(Arc::new(BrokenSink(self.0.sink()?, self.1, Arc::clone(&self.2))))
    }

    async fn source(&self, streams: &[StreamInfo]) -> Check<Option<Arc<dyn Source>>> {
        let source = self.0.source(streams).await?;
        Ok(source.map(|inner| Arc::new(BrokenSource(inner, self.1)) as Arc<dyn Source>))
    }

    async fn staged(&self) -> Check<Option<usize>> {
        self.0.staged().await
    }
}

#[derive(Debug)]
struct BrokenSink(Arc<dyn Sink>, Fault, Arc<Sides>);

#[async_trait]
impl Connector for BrokenSink {
    fn info(&self) -> ConnectorInfo {
        self.0.info()
    }
    async fn health(&self, cx: &Context) -> Result<Health> {
        self.0.health(cx).await
    }
}

#[async_trait]
impl Sink for BrokenSink {
    fn commit_mode(&self) -> CommitMode {
        if self.1 == Fault::ShowsEarly { CommitMode::Staged } else { self.0.commit_mode() }
    }
    async fn open(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Box<dyn SinkSession>> {
        let inner = self.0.open(cx, inputs).await?;
        if self.1 == Fault::ReservesForGood {
            use datafusion_execution::memory_pool::MemoryConsumer;
            let reservation = MemoryConsumer::new("leak").register(cx.memory());
            reservation.try_grow(10).unwrap();
            std::mem::forget(reservation);
        }
        Ok(Box::new(BrokenSession { inner, fault: self.1, sides: Arc::clone(&self.2), epoch: 0 }))
    }
}

struct BrokenSession {
    inner: Box<dyn SinkSession>,
    fault: Fault,
    sides: Arc<Sides>,
    epoch: Epoch,
}

#[async_trait]
impl SinkSession for BrokenSession {
    async fn claim(&mut self, lineage: &Lineage) -> Result<Option<Committed>> {
        let mut lineage = lineage.clone();
        if self.fault == Fault::ForgetsClaims {
            use std::sync::atomic::Ordering;
            lineage.claim = self.sides.claims.fetch_add(1, Ordering::SeqCst) + 10;
        }
        self.inner.claim(&lineage).await
    }
    async fn writer(&mut self, lane: LaneId) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(BrokenWriter { inner: self.inner.writer(lane).await?, fault: self.fault }))
    }
    async fn commit(
        &mut self,
        epoch: Epoch,
        checkpoint: &CheckpointRecord,
        staged: Vec<Committable>,
    ) -> Result<Vec<Reject>> {
        if self.fault == Fault::CommitsTwice {
            // Each commit is a new epoch to the target, with rows of its own.
            self.epoch += 1;
            let mut writer = self.inner.writer(LaneId(77)).await?;
            if let Some(rows) = some_row() {
                let _ = writer.write(StreamId(0), rows).await;
            }
            let again = writer.prepare(1_000 + self.epoch).await?.committables;
            let all = if self.epoch == 1 { staged } else { again };
            return self.inner.commit(1_000 + self.epoch, checkpoint, all).await;
        }
        if self.fault == Fault::ForgetsPending && self.epoch == 0 && epoch > 1 {
            return Ok(Vec::new());
        }
        self.epoch = epoch;
        self.inner.commit(epoch, checkpoint, staged).await
    }
    async fn discard(&mut self, what: Discard) -> Result<()> {
        if self.fault == Fault::IgnoresDiscard { Ok(()) } else { self.inner.discard(what).await }
    }
}

struct BrokenWriter {
    inner: Box<dyn SinkWriter>,
    fault: Fault,
}

#[async_trait]
impl SinkWriter for BrokenWriter {
    async fn write(&mut self, stream: StreamId, batch: RecordBatch) -> Result<()> {
        if self.fault == Fault::LosesNulls {
            use arrow::array::{Array, BooleanArray};
            let full = |i: usize| batch.columns().iter().all(|c| c.is_valid(i));
            let mask: BooleanArray = (0..batch.num_rows()).map(|i| Some(full(i))).collect();
            let batch = arrow::compute::filter_record_batch(&batch, &mask).unwrap();
            return self.inner.write(stream, batch).await;
        }
        self.inner.write(stream, batch).await
    }
    async fn prepare(&mut self, epoch: Epoch) -> Result<Prepared> {
        self.inner.prepare(epoch).await
    }
}

fn some_row() -> Option<RecordBatch> {
    let abilities = Abilities::default();
    orbit_etl_testkit::data::Sample::new("rows", &abilities).ok()?.rows(0..1).ok()
}

#[derive(Debug)]
struct BrokenSource(Arc<dyn Source>, Fault);

#[async_trait]
impl Connector for BrokenSource {
    fn info(&self) -> ConnectorInfo {
        self.0.info()
    }
    async fn health(&self, cx: &Context) -> Result<Health> {
        self.0.health(cx).await
    }
}

#[async_trait]
impl Source for BrokenSource {
    async fn streams(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        self.0.streams(cx).await
    }
    fn replay(&self) -> Replay {
        self.0.replay()
    }
    fn pushdown(&self, wanted: &ScanRequest) -> Pushdown {
        let mut answer = self.0.pushdown(wanted);
        if self.1 == Fault::OverstatesFilters {
            answer.filters.fill(FilterPushdown::Exact);
        }
        answer
    }
    async fn splits(
        &self,
        cx: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        self.0.splits(cx, after).await
    }
    async fn open(
        &self,
        cx: &Context,
        split: &Split,
        after: Option<&Position>,
        scan: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
        let moved = |by: i64| {
            let row = after.and_then(|p| p.0["row"].as_i64())?;
            (row > 0).then(|| Position(serde_json::json!({ "row": row + by })))
        };
        let moved = match self.1 {
            Fault::DoublesRowOnResume => moved(-1),
            Fault::LosesRowOnResume => moved(1),
            _ => None,
        };
        let events = match moved {
            // Past the end: nothing is left to lose.
            Some(moved) => match self.0.open(cx, split, Some(&moved), scan).await {
                Ok(events) => events,
                Err(_) => self.0.open(cx, split, after, scan).await?,
            },
            None => self.0.open(cx, split, after, scan).await?,
        };
        Ok(match self.1 {
            Fault::NeverFinishes => {
                events.filter(|e| futures::future::ready(!matches!(e, Ok(SourceEvent::Finished)))).boxed()
            }
            _ => events,
        })
    }
}

#[track_caller]
fn reports(outcome: Check, words: &str) {
    match outcome {
        Err(Stop::Fail(why)) if why.contains(words) => {}
        other => panic!("the fault isn't reported: {other:?}"),
    }
}

fn faulty(fault: Fault) -> Faulty {
    Faulty(fault, CommitMode::Staged)
}

#[tokio::test]
async fn the_wrapper_itself_passes() {
    let harness = faulty(Fault::None);
    contracts::write::a_second_commit_does_nothing(&harness).await.unwrap();
    contracts::crash::a_discarded_epoch_is_gone(&harness).await.unwrap();
    contracts::read::every_position_gives_the_rest(&harness).await.unwrap();
    contracts::types::every_type_comes_back(&harness).await.unwrap();
}

#[tokio::test]
async fn a_commit_that_doubles_is_reported() {
    reports(contracts::write::a_second_commit_does_nothing(&faulty(Fault::CommitsTwice)).await, "too many");
}

#[tokio::test]
async fn an_ignored_discard_is_reported() {
    let harness = faulty(Fault::IgnoresDiscard);
    reports(contracts::crash::a_discarded_epoch_is_gone(&harness).await, "staged part");
    reports(contracts::crash::an_unprepared_epoch_is_gone(&harness).await, "staged part");
}

#[tokio::test]
async fn a_pending_epoch_that_is_forgotten_is_reported() {
    let harness = faulty(Fault::ForgetsPending);
    reports(contracts::crash::a_new_run_commits_what_is_pending(&harness).await, "missing");
}

#[tokio::test]
async fn a_forgotten_claim_is_reported() {
    let harness = faulty(Fault::ForgetsClaims);
    reports(contracts::fence::an_older_claim_is_refused(&harness).await, "succeeds");
}

#[tokio::test]
async fn a_row_lost_or_doubled_on_resume_is_reported() {
    let lost = contracts::read::every_position_gives_the_rest(&faulty(Fault::LosesRowOnResume)).await;
    reports(lost, "1 row(s) missing, 0 too many");
    let doubled = contracts::read::every_position_gives_the_rest(&faulty(Fault::DoublesRowOnResume)).await;
    reports(doubled, "0 row(s) missing, 1 too many");
}

#[tokio::test]
async fn a_filter_that_keeps_too_much_is_reported() {
    let harness = faulty(Fault::OverstatesFilters);
    reports(contracts::read::filters_keep_what_they_must(&harness).await, "too many come");
}

#[tokio::test]
async fn memory_that_is_kept_is_reported() {
    let harness = faulty(Fault::ReservesForGood);
    reports(contracts::limits::writing_stays_within_the_memory(&harness).await, "still reserved");
}

#[tokio::test]
async fn a_split_without_an_end_is_reported() {
    let harness = faulty(Fault::NeverFinishes);
    reports(contracts::read::streams_describe_their_rows(&harness).await, "without `Finished`");
}

#[tokio::test]
async fn lost_nulls_are_reported() {
    reports(contracts::types::every_type_comes_back(&faulty(Fault::LosesNulls)).await, "Int64: ");
}

#[tokio::test]
async fn rows_shown_early_are_reported() {
    // An immediate sink that says it is staged.
    let harness = Faulty(Fault::ShowsEarly, CommitMode::Immediate);
    reports(contracts::write::a_prepared_epoch_is_visible_as_promised(&harness).await, "not committed");
}
