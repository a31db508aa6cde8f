//! Guards of nodes: retries, timeouts, rates, circuits, bulkheads, fallbacks, and rows found by halving.
//! On a clock that stands still: what waits is waited for in no time.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use orbit_etl_core::fault::{Bulkhead, CircuitBreaker, RateLimit, Retry};
use orbit_etl_core::memory::{MemorySink, MemorySource, MemoryTable};
use orbit_etl_core::{
    CheckpointRecord, CommitMode, Committable, Committed, Connector, ConnectorInfo, Context, Delivery,
    Discard, Epoch, Error, ErrorKind, Health, LaneId, Lineage, OnError, Pipeline, PipelineBuilder, Position,
    Prepared, Reject, Replay, Restart, Result, ScanRequest, Sink, SinkSession, SinkWriter, Source,
    SourceEvent, Split, SplitChange, StreamId, StreamInfo,
};
use tokio::time::Instant;

use super::support::{all_ids, numbers};

/// What a write does.
enum Act {
    Take,
    /// The first rows are taken before the error.
    Partly(usize, Error),
    /// Nobody knows what was taken.
    Break(Error),
    Slow(Duration),
    Hang,
}

type Script = Arc<dyn Fn(usize, &RecordBatch) -> Act + Send + Sync>;

/// A memory sink whose writes go by a script.
#[derive(Clone)]
struct Scripted {
    inner: Arc<MemorySink>,
    script: Script,
    calls: Arc<AtomicUsize>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    /// So many prepares are still to fail.
    failing_prepares: Arc<AtomicUsize>,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

impl Scripted {
    fn new(inner: MemorySink, script: impl Fn(usize, &RecordBatch) -> Act + Send + Sync + 'static) -> Self {
        Self {
            inner: Arc::new(inner),
            script: Arc::new(script),
            calls: Arc::default(),
            now: Arc::default(),
            most: Arc::default(),
            failing_prepares: Arc::default(),
        }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Connector for Scripted {
    fn info(&self) -> ConnectorInfo {
        self.inner.info()
    }

    async fn health(&self, cx: &Context) -> Result<Health> {
        self.inner.health(cx).await
    }
}

#[async_trait]
impl Sink for Scripted {
    fn commit_mode(&self) -> CommitMode {
        self.inner.commit_mode()
    }

    async fn open(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Box<dyn SinkSession>> {
        Ok(Box::new(Session { of: self.clone(), inner: self.inner.open(cx, inputs).await? }))
    }
}

struct Session {
    of: Scripted,
    inner: Box<dyn SinkSession>,
}

#[async_trait]
impl SinkSession for Session {
    async fn claim(&mut self, lineage: &Lineage) -> Result<Option<Committed>> {
        self.inner.claim(lineage).await
    }

    async fn writer(&mut self, lane: LaneId) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(Writer { of: self.of.clone(), inner: self.inner.writer(lane).await? }))
    }

    async fn commit(
        &mut self,
        epoch: Epoch,
        checkpoint: &CheckpointRecord,
        staged: Vec<Committable>,
    ) -> Result<Vec<Reject>> {
        self.inner.commit(epoch, checkpoint, staged).await
    }

    async fn discard(&mut self, what: Discard) -> Result<()> {
        self.inner.discard(what).await
    }
}

struct Writer {
    of: Scripted,
    inner: Box<dyn SinkWriter>,
}

#[async_trait]
impl SinkWriter for Writer {
    async fn write(&mut self, stream: StreamId, batch: RecordBatch) -> Result<()> {
        let call = self.of.calls.fetch_add(1, Ordering::SeqCst);
        let now = self.of.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.of.most.fetch_max(now, Ordering::SeqCst);
        let ended = match (self.of.script)(call, &batch) {
            Act::Take => self.inner.write(stream, batch).await,
            Act::Partly(rows, error) => {
                self.inner.write(stream, batch.slice(0, rows)).await?;
                Err(error.taken(rows))
            }
            Act::Break(error) => Err(error),
            Act::Slow(time) => {
                tokio::time::sleep(time).await;
                self.inner.write(stream, batch).await
            }
            Act::Hang => std::future::pending().await,
        };
        self.of.now.fetch_sub(1, Ordering::SeqCst);
        ended
    }

    async fn prepare(&mut self, epoch: Epoch) -> Result<Prepared> {
        let left = &self.of.failing_prepares;
        if left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(down());
        }
        self.inner.prepare(epoch).await
    }
}

fn down() -> Error {
    Error::unavailable("the target is down")
}

fn start(source: impl Source) -> PipelineBuilder {
    Pipeline::builder("p")
        .parallelism(1)
        .restart(Restart { max: 0, ..Restart::default() })
        .checkpoint_in_memory()
        .epoch_every(Duration::from_secs(3_600))
        .source("in", source)
}

fn all(rows: i64) -> Vec<i64> {
    (0..rows).collect()
}

const MODES: [CommitMode; 3] = [CommitMode::Staged, CommitMode::Atomic, CommitMode::Immediate];

#[tokio::test(start_paused = true)]
async fn the_rows_that_a_sink_refuses_are_found_by_halving_and_the_others_are_written() {
    for mode in MODES {
        let bad = |id: &i64| id % 10 == 3 || *id == 40;
        let (table, letters) = (MemoryTable::new(), MemoryTable::new());
        let refuse = move |_: usize, batch: &RecordBatch| {
            let ids = batch.column(0).as_primitive::<Int64Type>().values();
            match ids.iter().any(bad) {
                true => Act::Partly(0, Error::data("a value is out of range")),
                false => Act::Take,
            }
        };
        let sink = Scripted::new(MemorySink::new(&table).with_mode(mode), refuse);
        let pipeline = start(numbers(10, 1))
            .sink("out", sink.clone())
            .on_error(OnError::dead_letter(MemorySink::new(&letters)))
            .build()
            .unwrap();
        let report = pipeline.run().await.unwrap();
        let good: Vec<i64> = (0..100).filter(|id| !bad(id)).collect();
        assert_eq!((all_ids(&table), letters.rows()), (good, 11), "{mode}");
        assert_eq!((report.rows_written(), report.rows_rejected(), report.restarts), (89, 11, 0), "{mode}");
        assert!(sink.calls() < 100, "{mode}: halves, not rows");
        let strict = Scripted::new(MemorySink::new(&MemoryTable::new()).with_mode(mode), refuse);
        let failed = start(numbers(10, 1)).sink("out", strict).build().unwrap().run().await.unwrap_err();
        assert_eq!((failed.kind(), failed.message()), (ErrorKind::Data, "a value is out of range"), "{mode}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_partial_write_only_the_rest_is_written_again() {
    for mode in MODES {
        let table = MemoryTable::new();
        let sink = Scripted::new(MemorySink::new(&table).with_mode(mode), |call, batch| match call % 3 {
            0 => Act::Partly(batch.num_rows() / 2, down()),
            1 => Act::Partly(0, down().retry_after(Duration::from_secs(7))),
            _ => Act::Take,
        });
        let pipeline = start(numbers(4, 1)).sink("out", sink).retry(Retry::default()).build().unwrap();
        let started = Instant::now();
        let report = pipeline.run().await.unwrap();
        assert_eq!(all_ids(&table), all(40), "{mode}: no row twice");
        let guards = report.node("out").unwrap().guards.clone().unwrap();
        assert_eq!((report.restarts, guards.retries), (0, 8), "{mode}");
        assert!(started.elapsed() >= Duration::from_secs(28), "{mode}: what was asked for is kept to");
        assert!(started.elapsed() < Duration::from_secs(29), "{mode}");
    }
}

#[tokio::test(start_paused = true)]
async fn retries_end_by_number_and_by_time_and_never_repeat_what_is_unknown() {
    let run = |retry: Retry, error: fn() -> Error, known: bool| async move {
        let table = MemoryTable::new();
        let sink = Scripted::new(MemorySink::new(&table), move |_, _| match known {
            true => Act::Partly(0, error()),
            false => Act::Break(error()),
        });
        let built = start(numbers(1, 1)).sink("out", sink.clone()).retry(retry).build().unwrap();
        (built.run().await.unwrap_err().kind(), sink.calls())
    };
    let retry = Retry { max: 3, ..Retry::default() };
    assert_eq!(run(retry, down, true).await, (ErrorKind::Unavailable, 4));
    assert_eq!(run(retry, down, false).await.1, 1, "the writer may hold half of it");
    let slow = || down().retry_after(Duration::from_secs(25));
    assert_eq!(run(Retry { max: 100, ..Retry::default() }, slow, true).await.1, 3, "25 s, 50 s, a minute");
    assert_eq!(run(retry, || Error::new(ErrorKind::Auth, "no"), true).await, (ErrorKind::Auth, 1));
}

#[tokio::test(start_paused = true)]
async fn a_restart_waits_as_long_as_the_other_side_asked() {
    let table = MemoryTable::new();
    let sink = Scripted::new(MemorySink::new(&table), |call, _| match call {
        0 => Act::Break(down().retry_after(Duration::from_secs(50))),
        _ => Act::Take,
    });
    let pipeline = start(numbers(3, 1)).sink("out", sink).restart(Restart::default()).build().unwrap();
    let started = Instant::now();
    let report = pipeline.run().await.unwrap();
    assert_eq!((report.restarts, all_ids(&table)), (1, all(30)));
    assert!(started.elapsed() >= Duration::from_secs(50));
}

#[tokio::test(start_paused = true)]
async fn a_write_without_an_answer_is_given_up_and_the_epoch_begins_anew() {
    for mode in [CommitMode::Staged, CommitMode::Atomic] {
        let table = MemoryTable::new();
        let sink = Scripted::new(MemorySink::new(&table).with_mode(mode), |call, _| match call {
            2 => Act::Hang,
            _ => Act::Slow(Duration::from_secs(2)),
        });
        let pipeline = start(numbers(5, 1))
            .sink("out", sink)
            .timeout(Duration::from_secs(3))
            .retry(Retry::default())
            .restart(Restart::default())
            .build()
            .unwrap();
        let report = pipeline.run().await.unwrap();
        assert_eq!(all_ids(&table), all(50), "{mode}");
        let guards = report.node("out").unwrap().guards.clone().unwrap();
        assert_eq!((report.restarts, guards.timeouts, guards.retries), (1, 1, 0), "{mode}");
    }
}

#[tokio::test(start_paused = true)]
async fn rates_hold_for_rows_bytes_and_calls_of_sinks_and_sources() {
    let run = async |of_source: RateLimit, of_sink: RateLimit| {
        let table = MemoryTable::new();
        let sink = Scripted::new(MemorySink::new(&table), |_, _| Act::Take);
        let pipeline = Pipeline::builder("p")
            .checkpoint_in_memory()
            .source("in", numbers(20, 1))
            .rate_limit(of_source)
            .sink("out", sink.clone())
            .rate_limit(of_sink)
            .parallelism(4)
            .build()
            .unwrap();
        let started = Instant::now();
        let report = pipeline.run().await.unwrap();
        assert_eq!(all_ids(&table), all(200));
        let throttled = |node: &str| report.node(node).unwrap().guards.as_ref().map(|g| g.throttled);
        (started.elapsed().as_secs_f64(), sink.calls(), throttled("in"), throttled("out"))
    };
    let none = RateLimit::default;
    let rows = |rows| RateLimit { rows: Some(rows), ..none() };
    let (took, calls, ..) = run(none(), rows(4)).await;
    assert!((48.0..51.0).contains(&took), "200 rows, 4 a second: {took}");
    assert_eq!(calls, 60, "a batch of ten rows is cut in three");
    let (took, _, throttled, other) = run(rows(20), none()).await;
    assert!((9.0..11.0).contains(&took), "200 rows, 20 a second: {took}");
    assert!(throttled.unwrap() > Duration::from_secs(8) && other.unwrap().is_zero());
    let (took, ..) = run(none(), RateLimit { requests: Some(2), ..none() }).await;
    assert!((9.0..11.0).contains(&took), "20 writes, 2 a second: {took}");
    let (took, ..) = run(none(), RateLimit { bytes: Some(320), ..none() }).await;
    assert!((8.0..14.0).contains(&took), "3,200 bytes and some, 320 a second: {took}");
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_spares_the_target_and_a_fallback_takes_the_rows_once() {
    for mode in MODES {
        for known in [true, false] {
            let (table, other) = (MemoryTable::new(), MemoryTable::new());
            let begun = Instant::now();
            let sink = Scripted::new(MemorySink::new(&table).with_mode(mode), move |_, _| {
                match begun.elapsed() < Duration::from_secs(60) {
                    true if known => Act::Partly(0, down()),
                    true => Act::Break(down()),
                    false => Act::Take,
                }
            });
            let pipeline = start(numbers(100, 1))
                .rate_limit(RateLimit { rows: Some(10), ..RateLimit::default() })
                .epoch_every(Duration::from_secs(10))
                .restart(Restart { max: 10, ..Restart::default() })
                .sink("out", sink.clone())
                .retry(Retry { max: 1, ..Retry::default() })
                .circuit_breaker(CircuitBreaker {
                    min_calls: 2,
                    open_for: Duration::from_secs(25),
                    ..CircuitBreaker::default()
                })
                .fallback(MemorySink::new(&other))
                .build()
                .unwrap();
            let case = format!("{mode}, known: {known}");
            let explained = pipeline.explain().await.unwrap();
            let exact = mode != CommitMode::Immediate;
            let promised = if exact { Delivery::ExactlyOnce } else { Delivery::AtLeastOnce };
            let guarantee = explained.node("out").unwrap().guarantee.clone().unwrap();
            assert_eq!(guarantee.delivery, promised, "{case}");
            assert!(guarantee.reason.contains("out_fallback"), "{case}: {}", guarantee.reason);
            let report = pipeline.run().await.unwrap();
            let mut both = [all_ids(&table), all_ids(&other)].concat();
            both.sort_unstable();
            assert_eq!(both, all(1_000), "{case}");
            let guards = report.node("out").unwrap().guards.clone().unwrap();
            assert_eq!(guards.circuit, Some("closed"), "{case}");
            assert!(guards.circuit_opened >= 2, "{case}: {guards:?}");
            assert!(table.rows() > 100 && other.rows() > 100, "{case}: {} {}", table.rows(), other.rows());
            assert_eq!(report.node("out_fallback").unwrap().counts.rows_out as usize, other.rows(), "{case}");
            assert_eq!(report.node("out").unwrap().counts.rows_out as usize, table.rows(), "{case}");
            let writes = sink.calls() - table.rows() / 10;
            assert!(writes < 20, "{case}: {writes} calls failed, of 60");
            assert_eq!(known, report.restarts == 0, "{case}: {}", report.restarts);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rows_that_a_sink_takes_and_cannot_prepare_go_to_the_fallback_when_they_come_again() {
    let (table, other) = (MemoryTable::new(), MemoryTable::new());
    let sink = Scripted::new(MemorySink::new(&table), |_, _| Act::Take);
    sink.failing_prepares.store(3, Ordering::SeqCst);
    let pipeline = start(numbers(100, 1))
        .rate_limit(RateLimit { rows: Some(10), ..RateLimit::default() })
        .epoch_every(Duration::from_secs(10))
        .restart(Restart { max: 1, ..Restart::default() })
        .sink("out", sink)
        .circuit_breaker(CircuitBreaker { open_for: Duration::from_secs(15), ..CircuitBreaker::default() })
        .fallback(MemorySink::new(&other))
        .build()
        .unwrap();
    let report = pipeline.run().await.unwrap();
    let mut both = [all_ids(&table), all_ids(&other)].concat();
    both.sort_unstable();
    assert_eq!((both, report.restarts), (all(1_000), 3));
    assert!(table.rows() > 100 && other.rows() > 100, "{} {}", table.rows(), other.rows());
}

#[tokio::test(start_paused = true)]
async fn a_bulkhead_is_shared_by_the_nodes_of_a_service() {
    let run = async |service: Option<&str>, max_wait: u64| {
        let table = MemoryTable::new();
        let slow = Scripted::new(MemorySink::new(&table), |_, _| Act::Slow(Duration::from_secs(1)));
        let bulkhead = Bulkhead {
            service: service.map(str::to_owned),
            max_wait: Duration::from_millis(max_wait),
            ..Bulkhead::new(1)
        };
        let pipeline = Pipeline::builder("p")
            .checkpoint_in_memory()
            .restart(Restart { max: 0, ..Restart::default() })
            .source("in", numbers(12, 4))
            .sink("a", slow.clone())
            .inputs(["in"])
            .bulkhead(bulkhead.clone())
            .sink("b", slow.clone())
            .inputs(["in"])
            .bulkhead(bulkhead)
            .parallelism(4)
            .build()
            .unwrap();
        let ended = pipeline.run().await;
        (ended, slow.most.load(Ordering::SeqCst), table.rows())
    };
    let (ended, most, rows) = run(None, 60_000).await;
    assert_eq!((ended.is_ok(), most, rows), (true, 2, 240), "a service each");
    let (ended, most, rows) = run(Some("crm"), 60_000).await;
    assert_eq!((most, rows), (1, 240));
    let report = ended.unwrap();
    let queued = |node: &str| report.node(node).unwrap().guards.as_ref().unwrap().queued;
    assert!(queued("a") + queued("b") > Duration::from_secs(10));
    let (ended, most, rows) = run(Some("crm"), 500).await;
    assert_eq!((ended.unwrap_err().kind(), most, rows), (ErrorKind::Unavailable, 1, 0));
}

/// A source whose splits break off, or fall silent, after every other event, and that can't be opened at
/// times.
#[derive(Debug, Clone)]
struct Breaking {
    inner: MemorySource,
    opened: Arc<Mutex<usize>>,
    silent: bool,
    replay: Replay,
}

#[async_trait]
impl Connector for Breaking {
    fn info(&self) -> ConnectorInfo {
        self.inner.info()
    }

    async fn health(&self, cx: &Context) -> Result<Health> {
        self.inner.health(cx).await
    }
}

#[async_trait]
impl Source for Breaking {
    async fn streams(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        self.inner.streams(cx).await
    }

    fn replay(&self) -> Replay {
        self.replay
    }

    async fn splits(
        &self,
        cx: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        self.inner.splits(cx, after).await
    }

    async fn open(
        &self,
        cx: &Context,
        split: &Split,
        after: Option<&Position>,
        scan: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
        let nth = {
            let mut opened = self.opened.lock().unwrap();
            *opened += 1;
            *opened
        };
        if nth.is_multiple_of(3) {
            return Err(down());
        }
        let events = self.inner.open(cx, split, after, scan).await?.take(2);
        Ok(match self.silent {
            true => events.chain(stream::pending()).boxed(),
            false => events.chain(stream::once(async { Err(down()) })).boxed(),
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_split_is_read_on_where_it_broke_off_if_it_can_be() {
    let run = async |silent: bool, replay: Replay| {
        let table = MemoryTable::new();
        let source = Breaking { inner: numbers(12, 2), opened: Arc::default(), silent, replay };
        let pipeline = Pipeline::builder("p")
            .checkpoint_in_memory()
            .restart(Restart { max: 0, ..Restart::default() })
            .source("in", source)
            .retry(Retry::default())
            .timeout(Duration::from_secs(5))
            .sink("out", MemorySink::new(&table))
            .build()
            .unwrap();
        let ended = pipeline.run().await;
        (ended, table)
    };
    for silent in [false, true] {
        let (report, table) = run(silent, Replay::Exact).await;
        let report = report.unwrap();
        assert_eq!((all_ids(&table), report.restarts), (all(120), 0), "silent: {silent}");
        let guards = report.node("in").unwrap().guards.clone().unwrap();
        assert!(guards.retries >= 4 && (guards.timeouts > 0) == silent, "{guards:?}");
    }
    let (failed, table) = run(false, Replay::WholeSplit).await;
    assert_eq!((failed.unwrap_err().kind(), table.rows()), (ErrorKind::Unavailable, 0));
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let table = MemoryTable::new();
    let sink = || start(numbers(1, 1)).sink("out", MemorySink::new(&table));
    let option = |builder: PipelineBuilder| {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        error.context("option").map(str::to_owned)
    };
    assert_eq!(option(sink().timeout(Duration::ZERO)).as_deref(), Some("timeout"));
    let none = RateLimit { rows: Some(0), ..RateLimit::default() };
    assert_eq!(option(sink().rate_limit(none)).as_deref(), Some("rate_limit"));
    let never = CircuitBreaker { failure_rate: 1.5, ..CircuitBreaker::default() };
    assert_eq!(option(sink().circuit_breaker(never)).as_deref(), Some("circuit_breaker"));
    assert_eq!(option(sink().bulkhead(Bulkhead::new(0))).as_deref(), Some("bulkhead"));
    let two = sink()
        .bulkhead(Bulkhead::new(1).of("s"))
        .sink("b", MemorySink::new(&table))
        .bulkhead(Bulkhead::new(2).of("s"));
    assert_eq!(option(two).as_deref(), Some("bulkhead"));
    let taken = sink().fallback(MemorySink::new(&table)).sink("out_fallback", MemorySink::new(&table));
    assert_eq!(option(taken), None);
}
