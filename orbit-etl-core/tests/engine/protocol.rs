//! The order of the protocol's steps: what a run must not do before or after which other step, whoever
//! comes in between.

use std::fmt;
use std::path::Path as FsPath;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use orbit_etl_core::checkpoint::Log;
use orbit_etl_core::memory::{MemorySink, MemorySource, MemoryTable};
use orbit_etl_core::{
    CheckpointRecord, CommitMode, Committable, Committed, Connector, ConnectorInfo, Context, Discard, Epoch,
    Error, ErrorKind, Health, LaneId, Lineage, OnError, Pipeline, PipelineBuilder, Prepared, Publication,
    Reject, Restart, Result, Running, Sink, SinkSession, SinkWriter, Source, Split, StreamId, StreamInfo,
};
use serde_json::json;

use super::support::{all_ids, ends, numbers, rows, schema, soon};
use crate::log::faults::{Fault, Faults, On};

type Hook = Box<dyn FnOnce() -> BoxFuture<'static, Result<()>> + Send>;

/// A memory sink that writes down what it is asked, and lets something happen just before it does it.
#[derive(Clone)]
struct Scripted {
    inner: Arc<MemorySink>,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    calls: Vec<&'static str>,
    hooks: Vec<(&'static str, usize, Hook)>,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

impl Scripted {
    fn new(inner: MemorySink) -> Self {
        Self { inner: Arc::new(inner), script: Arc::default() }
    }

    /// Just before the `nth` such call.
    fn before<F>(self, call: &'static str, nth: usize, hook: impl FnOnce() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.script.lock().unwrap().hooks.push((call, nth, Box::new(move || hook().boxed())));
        self
    }

    fn calls(&self) -> Vec<&'static str> {
        self.script.lock().unwrap().calls.clone()
    }

    async fn called(&self, call: &'static str) -> Result<()> {
        let hook = {
            let mut script = self.script.lock().unwrap();
            script.calls.push(call);
            let nth = script.calls.iter().filter(|c| **c == call).count();
            let found = script.hooks.iter().position(|(c, n, _)| (*c, *n) == (call, nth));
            found.map(|i| script.hooks.swap_remove(i).2)
        };
        match hook {
            Some(hook) => hook().await,
            None => Ok(()),
        }
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
        Ok(Box::new(ScriptedSession { inner: self.inner.open(cx, inputs).await?, of: self.clone() }))
    }
}

struct ScriptedSession {
    inner: Box<dyn SinkSession>,
    of: Scripted,
}

#[async_trait]
impl SinkSession for ScriptedSession {
    async fn claim(&mut self, lineage: &Lineage) -> Result<Option<Committed>> {
        self.of.called("claim").await?;
        self.inner.claim(lineage).await
    }

    async fn writer(&mut self, lane: LaneId) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(ScriptedWriter { inner: self.inner.writer(lane).await?, of: self.of.clone() }))
    }

    async fn commit(
        &mut self,
        epoch: Epoch,
        checkpoint: &CheckpointRecord,
        staged: Vec<Committable>,
    ) -> Result<Vec<Reject>> {
        self.of.called("commit").await?;
        self.inner.commit(epoch, checkpoint, staged).await
    }

    async fn discard(&mut self, what: Discard) -> Result<()> {
        let call = match what {
            Discard::Epoch { .. } => "discard epoch",
            Discard::Older { .. } => "discard older",
        };
        self.of.called(call).await?;
        self.inner.discard(what).await
    }
}

struct ScriptedWriter {
    inner: Box<dyn SinkWriter>,
    of: Scripted,
}

#[async_trait]
impl SinkWriter for ScriptedWriter {
    async fn write(&mut self, stream: StreamId, batch: RecordBatch) -> Result<()> {
        self.inner.write(stream, batch).await
    }

    async fn prepare(&mut self, epoch: Epoch) -> Result<Prepared> {
        self.of.called("prepare").await?;
        self.inner.prepare(epoch).await
    }
}

const NEVER: Duration = Duration::from_secs(3_600);

fn log_at() -> Path {
    Path::from("log")
}

/// A pipeline whose state lies where somebody else can claim it.
fn shared(store: &Arc<InMemory>, source: impl Source, every: Duration) -> PipelineBuilder {
    Pipeline::builder("p").source("in", source).checkpoint_store(Arc::clone(store) as _, log_at(), every)
}

fn somebody_else_claims(store: &Arc<InMemory>) -> BoxFuture<'static, Result<()>> {
    let log = Log::new(Arc::clone(store) as _, log_at());
    async move { log.claim("somebody else", "p").await.map(drop) }.boxed()
}

async fn until(running: &Running, mut done: impl FnMut(u64) -> bool) {
    let mut progress = std::pin::pin!(running.progress());
    soon(async { while !done(progress.next().await.expect("the run goes on").epoch) {} }).await;
}

fn every_tenth(batch: &RecordBatch, row: usize) -> Option<String> {
    let id = batch.column(0).as_primitive::<Int64Type>().value(row);
    (id % 10 == 3).then(|| "refused".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_overtaken_while_it_claimed_its_sinks_touches_nothing() {
    let store = Arc::new(InMemory::new());
    let table = MemoryTable::new();
    let overtaken = somebody_else_claims(&store);
    let sink = Scripted::new(MemorySink::new(&table)).before("claim", 1, move || overtaken);
    let pipeline = shared(&store, numbers(5, 1), NEVER).sink("out", sink.clone()).build().unwrap();
    let error = soon(pipeline.run()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.report());
    assert_eq!(sink.calls(), ["claim"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_fenced_at_its_checkpoint_neither_commits_nor_discards() {
    let store = Arc::new(InMemory::new());
    let table = MemoryTable::new();
    let overtaken = somebody_else_claims(&store);
    let sink = Scripted::new(MemorySink::new(&table)).before("prepare", 1, move || overtaken);
    let pipeline =
        shared(&store, numbers(5, 1), NEVER).sink("out", sink.clone()).parallelism(1).build().unwrap();
    let error = soon(pipeline.run()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.report());
    assert_eq!(sink.calls(), ["claim", "discard older", "prepare"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_of_a_commit_outlive_runs_that_die_before_they_are_dead_letters() {
    let store = Arc::new(InMemory::new());
    let (table, letters, database) = (MemoryTable::new(), MemoryTable::new(), MemoryTable::new());
    let source = numbers(20, 2);
    let build = |letters: Scripted, with_database: bool| {
        let out = MemorySink::new(&table).reject_at_commit_if(every_tenth);
        let mut builder = shared(&store, source.clone(), NEVER).sink("out", out);
        if with_database {
            builder = builder.sink("db", MemorySink::new(&database).with_mode(CommitMode::Atomic));
        }
        builder.on_error(OnError::dead_letter(letters)).build().unwrap()
    };
    let failing = |nth| {
        let failure = || async { Err(Error::config("injected")) };
        Scripted::new(MemorySink::new(&letters)).before("prepare", nth, failure)
    };
    // The first epoch's commit has rejects, and the epoch that would hold them fails.
    let error = soon(build(failing(2), false).run()).await.unwrap_err();
    assert_eq!(error.message(), "injected");
    assert_eq!((table.rows(), letters.rows()), (180, 0));
    assert!(source.acknowledged().is_empty(), "their dead letters are not written");
    // The next run writes one more log entry, since another sink keeps the checkpoints from now on.
    assert_eq!(soon(build(failing(1), true).run()).await.unwrap_err().message(), "injected");
    assert!(source.acknowledged().is_empty());
    soon(build(Scripted::new(MemorySink::new(&letters)), true).run()).await.unwrap();
    assert_eq!((table.rows(), letters.rows()), (180, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overwrite_of_several_epochs_and_runs_is_published_whole() {
    let (source, feed) = MemorySource::unbounded(vec![StreamInfo::new("t", schema())]);
    feed.add(Split::new("s", json!({"split": "s"})));
    let table = MemoryTable::new();
    let pipeline = Pipeline::builder("p")
        .source("in", ends(source))
        .sink("out", MemorySink::new(&table).with_publication(Publication::AtEnd))
        .epoch_every(Duration::from_millis(2))
        .checkpoint_in_memory()
        .build()
        .unwrap();
    let mut seen = 0;
    for run in 0..3 {
        let running = pipeline.start();
        for part in 0..2 {
            let from = (run * 2 + part) * 10;
            feed.push("s", rows(from, from + 10)).unwrap();
            // Two epochs with rows in each run.
            until(&running, |epoch| {
                let newer = epoch > seen;
                seen = seen.max(epoch);
                newer
            })
            .await;
        }
        assert_eq!(table.rows(), 0);
        if run < 2 {
            running.abort();
            assert!(soon(running.into_future()).await.is_err());
        } else {
            feed.finish_split("s").unwrap();
            feed.finish();
            soon(running.into_future()).await.unwrap();
        }
    }
    assert_eq!(all_ids(&table), (0..60).collect::<Vec<_>>());
}

fn copy(from: &FsPath, to: &FsPath) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_of_the_state_is_refused() {
    let (source, feed) = MemorySource::unbounded(vec![StreamInfo::new("t", schema())]);
    feed.add_split("s");
    let dir = tempfile::tempdir().unwrap();
    let table = MemoryTable::new();
    let over = |name: &str| {
        Pipeline::builder("p")
            .source("in", source.clone())
            .sink("out", MemorySink::new(&table))
            .checkpoint(dir.path().join(name), Duration::from_millis(2))
            .build()
            .unwrap()
    };
    for run in 1..=2 {
        feed.push("s", rows(run * 10, run * 10 + 10)).unwrap();
        let running = over("new").start();
        until(&running, |_| table.rows() == usize::try_from(run).unwrap() * 10).await;
        running.stop();
        soon(running.into_future()).await.unwrap();
        if run == 1 {
            copy(&dir.path().join("new"), &dir.path().join("old"));
        }
    }
    let error = soon(over("old").run()).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.context("node")),
        (ErrorKind::Conflict, Some("out")),
        "{}",
        error.report()
    );
    assert!(error.context("target's epoch").is_some());
    assert_eq!(table.rows(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_kept_checkpoints_long_ago_is_not_believed() {
    let (source, feed) = MemorySource::unbounded(vec![StreamInfo::new("t", schema())]);
    feed.add_split("s");
    let store = Arc::new(InMemory::new());
    let table = MemoryTable::new();
    // It keeps them; the log does; it is to keep them again, but hasn't yet; it does.
    let modes = [CommitMode::Atomic, CommitMode::Staged, CommitMode::Atomic, CommitMode::Atomic];
    for (run, mode) in modes.into_iter().enumerate() {
        let from = run as i64 * 10;
        if run != 2 {
            feed.push("s", rows(from, from + 10)).unwrap();
        }
        let sink = MemorySink::new(&table).with_mode(mode);
        let pipeline =
            shared(&store, source.clone(), Duration::from_millis(2)).sink("out", sink).build().unwrap();
        let running = pipeline.start();
        let expected = [10, 20, 20, 30][run];
        until(&running, |_| table.rows() >= expected).await;
        running.stop();
        soon(running.into_future()).await.unwrap();
        assert_eq!(table.rows(), expected, "run {run}");
    }
    assert_eq!(all_ids(&table), (0..20).chain(30..40).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_refuses_the_newest_run_is_claimed_again() {
    let store = Arc::new(InMemory::new());
    let table = MemoryTable::new();
    let refusal = || async { Err(Error::fenced("the older run's end isn't through yet")) };
    let sink = Scripted::new(MemorySink::new(&table)).before("claim", 1, refusal);
    let pipeline = shared(&store, numbers(5, 1), NEVER)
        .sink("out", sink)
        .restart(Restart { max: 1, backoff: Duration::ZERO, max_backoff: Duration::ZERO })
        .build()
        .unwrap();
    let report = soon(pipeline.run()).await.unwrap();
    assert_eq!((report.restarts, table.rows()), (1, 50));
}

/// How often a checkpoint's entry is sent before the run gives up.
const SENT: usize = 20;

/// The checkpoint's entry arrives in time, late, or not at all, and nobody is told.
async fn undecided(first: Fault, arrives_late: bool) -> (MemoryTable, u32) {
    let store = Faults::over(Arc::new(InMemory::new()));
    let table = MemoryTable::new();
    let pipeline = Pipeline::builder("p")
        .source("in", numbers(5, 2))
        .sink("out", MemorySink::new(&table))
        .restart(Restart { max: 3, backoff: Duration::ZERO, max_backoff: Duration::ZERO })
        .checkpoint_store(Arc::clone(&store) as Arc<dyn ObjectStore>, log_at(), NEVER)
        .build()
        .unwrap();
    // The claim passes.
    store.plan(On::Put, Fault::After(async {}.boxed()));
    store.plan(On::Put, first);
    (1..SENT).for_each(|_| store.plan(On::Put, Fault::Dropped));
    if arrives_late {
        let late = Arc::clone(&store);
        store.plan(On::Put, Fault::After(async move { assert_eq!(late.land().await, 1) }.boxed()));
    }
    let report = soon(pipeline.run()).await.unwrap_or_else(|e| panic!("{}", e.report()));
    assert!(store.used_up());
    (table, report.restarts)
}

#[tokio::test(start_paused = true)]
async fn what_a_checkpoint_may_name_is_not_discarded_and_the_run_goes_on_with_a_new_claim() {
    for (first, arrives_late) in [(Fault::Lost, false), (Fault::Dropped, false), (Fault::Delayed, true)] {
        let (table, restarts) = undecided(first, arrives_late).await;
        assert_eq!((restarts, table.staged_count()), (1, 0));
        assert_eq!(all_ids(&table), (0..50).collect::<Vec<_>>());
    }
}
