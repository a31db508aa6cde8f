//! One history: instances that start, crash, pause and go on, over one log and the same targets.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use orbit_etl_core::checkpoint::Log;
use orbit_etl_core::fault::{CircuitBreaker, Retry};
use orbit_etl_core::memory::{MemoryFeed, MemorySink, MemorySource, MemoryTable};
use orbit_etl_core::observe::{Outcome, RunReport};
use orbit_etl_core::{
    CommitMode, Error, ErrorKind, OnError, Pipeline, Position, Publication, Replay, Restart, Result, Sink,
    Split, SplitId, StreamId, StreamInfo,
};
use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use super::files::{FilesSink, Folder, SinkBug, ids, refused};
use super::shape::{Entry, FallbackKind, Shape, SinkKind, commit_rejects, prepare_rejects};
use super::sink::{ModelSink, Seen};
use super::source::{ModelSource, Told};
use super::store::Store;
use super::transforms::{ModelTransform, batch, schema};
use super::world::{INJECTED, Instance, Random, World};

/// No calm run needs longer, in its own time.
const PATIENCE: u64 = 20;

/// Repetitions that take no time.
const RETRY: Retry =
    Retry { max: 2, max_time: Duration::from_secs(1), backoff: Duration::ZERO, max_backoff: Duration::ZERO };

/// The targets, and what must be in them.
#[derive(Debug)]
pub(crate) struct Targets {
    pub(crate) shape: Shape,
    pub(crate) tables: BTreeMap<String, MemoryTable>,
    pub(crate) folders: BTreeMap<String, Folder>,
    pub(crate) letters: MemoryTable,
    /// By the sinks that they help.
    pub(crate) fallbacks: BTreeMap<String, MemoryTable>,
}

/// What is found wrong with a history, and how it went if that was asked for.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) wrong: Vec<String>,
    pub(crate) trace: Vec<String>,
}

struct Alive {
    instance: Arc<Instance>,
    ended: Option<Pin<Box<dyn Future<Output = Result<RunReport>> + Send>>>,
    stop: CancellationToken,
    runtime: Runtime,
}

struct History {
    world: Arc<World>,
    shape: Shape,
    targets: Arc<Targets>,
    sources: BTreeMap<String, (MemorySource, MemoryFeed)>,
    /// What each split is still to be fed with.
    to_feed: BTreeMap<String, (String, VecDeque<Entry>)>,
    revoked: Vec<(String, String)>,
    alive: Vec<Alive>,
    started: usize,
    seen: Seen,
    bug: Option<SinkBug>,
    positions: BTreeMap<(String, String), u64>,
}

/// Runs the history of a seed.
pub(crate) fn run(seed: u64, bug: Option<SinkBug>, traced: bool) -> Verdict {
    #[cfg(feature = "planted-bugs")]
    orbit_etl_core::planted::hurry(Some(seed));
    let mut random = Random::new(seed);
    let shape = Shape::draw(&mut random, seed);
    let rate = *random.pick(&[25, 60, 150, 400]);
    let world = World::new(random, rate, traced);
    world.note(|| format!("{shape:#?}"));
    let mut history = History::new(shape, world, bug);
    history.go();
    let world = Arc::clone(&history.world);
    drop(history);
    #[cfg(feature = "planted-bugs")]
    orbit_etl_core::planted::hurry(None);
    let wrong = world.lock().wrong.clone();
    Verdict { wrong, trace: world.trace() }
}

impl History {
    fn new(shape: Shape, world: Arc<World>, bug: Option<SinkBug>) -> Self {
        let mut sources = BTreeMap::new();
        let mut to_feed = BTreeMap::new();
        for source in &shape.sources {
            let stream = |i: usize| {
                let info = StreamInfo::new(format!("r{i}"), schema());
                if shape.keys { info.with_keys(["id"]) } else { info }
            };
            let (inner, feed) = MemorySource::unbounded((0..source.streams).map(stream).collect());
            let inner = inner.with_replay(source.replay);
            let inner = if source.releases { inner.releasing() } else { inner };
            for split in &source.splits {
                let after = split.after.iter().map(|s| SplitId::new(s.as_str())).collect();
                let made = Split::new(split.name.as_str(), json!({ "split": split.name }));
                feed.add(Split { bounded: split.bounded, after, ..made });
                world.changed(&source.name);
                world.lock().splits.insert(split.name.clone(), split.ids());
                to_feed.insert(split.name.clone(), (source.name.clone(), split.entries.clone().into()));
            }
            sources.insert(source.name.clone(), (inner, feed));
        }
        let of = |files: bool| {
            shape.sinks.iter().filter(move |s| (s.kind == SinkKind::Files) == files).map(|s| s.name.clone())
        };
        let targets = Arc::new(Targets {
            shape: shape.clone(),
            tables: of(false).map(|n| (n, MemoryTable::new())).collect(),
            folders: of(true).map(|n| (n, Folder::default())).collect(),
            letters: MemoryTable::new(),
            fallbacks: shape
                .sinks
                .iter()
                .filter(|s| s.fallback.is_some())
                .map(|s| (s.name.clone(), MemoryTable::new()))
                .collect(),
        });
        Self {
            world,
            shape,
            targets,
            sources,
            to_feed,
            revoked: Vec::new(),
            alive: Vec::new(),
            started: 0,
            seen: Seen::default(),
            bug,
            positions: BTreeMap::new(),
        }
    }

    fn below(&self, limit: u64) -> u64 {
        self.world.random(|r| r.below(limit))
    }

    fn go(&mut self) {
        for _ in 0..20 + self.below(50) {
            self.step();
            if !self.world.lock().wrong.is_empty() {
                return;
            }
        }
        self.calm_down();
    }

    fn step(&mut self) {
        match self.below(40) {
            0..=1 => {
                if self.alive.len() < 2 {
                    self.start(false);
                }
            }
            2..=7 => self.feed(),
            8 => self.revoke(),
            9 => self.bring_back(),
            10 => {
                self.world.land().now_or_never();
            }
            11 if !self.alive.is_empty() => {
                let i = self.below(self.alive.len() as u64) as usize;
                self.crash(i, "crashes");
            }
            12 if !self.alive.is_empty() => {
                let i = self.below(self.alive.len() as u64) as usize;
                self.world.note(|| format!("-- {} is told to stop", self.alive[i].instance.id));
                self.alive[i].stop.cancel();
            }
            13 if !self.alive.is_empty() => self.abort(),
            14 => self.let_an_alien_try(),
            _ => {
                let i = self.pick_awake();
                let millis = 1 + self.below(150);
                if let Some(ended) = self.slice(i, millis) {
                    self.judge_end(&ended);
                }
            }
        }
    }

    /// One of the instances that don't sleep; a new one, if there is room, when all do.
    fn pick_awake(&mut self) -> usize {
        let sleeps: Vec<bool> = self.alive.iter().map(|alive| alive.instance.sleeps()).collect();
        let mut awake: Vec<usize> = (0..sleeps.len()).filter(|i| !sleeps[*i]).collect();
        if awake.is_empty() && self.alive.len() < 2 {
            self.start(false);
            awake.push(self.alive.len() - 1);
        } else if awake.is_empty() {
            awake.extend(0..self.alive.len());
        }
        self.world.random(|r| *r.pick(&awake))
    }

    fn start(&mut self, alien: bool) {
        self.started += 1;
        let instance = Instance::new(self.started, &self.world);
        self.world.note(|| format!("-- instance {} starts", instance.id));
        let log = if alien { Arc::new(InMemory::new()) } else { Arc::clone(&self.world.log) };
        let store = Store { inner: log, instance: Arc::clone(&instance) };
        let pipeline = self.pipeline(&instance, store, alien);
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let running = runtime.block_on(async { pipeline.start() });
        let stop = running.stop_token();
        let ended = Some(running.into_future());
        self.alive.push(Alive { instance, ended, stop, runtime });
    }

    fn pipeline(&self, instance: &Arc<Instance>, store: Store, alien: bool) -> Pipeline {
        let shape = &self.shape;
        let (lanes, rows) = self.world.random(|r| (1 + r.below(4), 1 + r.below(8)));
        let mut builder = Pipeline::builder("p")
            .checkpoint_store(Arc::new(store), Path::from("log"), Duration::from_millis(shape.epoch_millis))
            .restart(Restart { max: 3, backoff: Duration::ZERO, max_backoff: Duration::ZERO })
            .parallelism(lanes as usize)
            .batch_rows(rows as usize)
            .edge_bytes(shape.edge_bytes);
        for source in &shape.sources {
            let model = ModelSource {
                inner: self.sources[&source.name].0.clone(),
                bounded: shape.bounded,
                instance: Arc::clone(instance),
                targets: Arc::clone(&self.targets),
                told: Told::default(),
            };
            builder = builder.source(&source.name, model);
            if shape.retries {
                builder = builder.retry(RETRY);
            }
        }
        for node in &shape.nodes {
            let model = ModelTransform { model: node.model, rejects: shape.rejects };
            builder = builder.transform(&node.name, model).inputs(node.inputs.clone());
        }
        let wrap = |inner: Arc<dyn Sink>, at_write: bool| ModelSink {
            inner,
            at_write,
            partial: shape.retries,
            instance: Arc::clone(instance),
            bug: self.bug,
            seen: Arc::clone(&self.seen),
            alien,
        };
        for sink in &shape.sinks {
            let inner: Arc<dyn Sink> = match sink.kind {
                SinkKind::Files => Arc::new(FilesSink {
                    folder: self.targets.folders[&sink.name].clone(),
                    instance: Arc::clone(instance),
                    at_prepare: sink.at_prepare.then_some(prepare_rejects as _),
                    at_commit: sink.at_commit.then_some(commit_rejects as _),
                    bug: self.bug,
                }),
                kind => {
                    let mut memory = MemorySink::new(&self.targets.tables[&sink.name]);
                    memory = match kind {
                        SinkKind::Atomic => memory.with_mode(CommitMode::Atomic),
                        SinkKind::Immediate => memory.with_mode(CommitMode::Immediate),
                        SinkKind::Upsert => memory.with_mode(CommitMode::Immediate).upserting(),
                        SinkKind::Staged | SinkKind::Files => memory,
                    };
                    if shape.at_end {
                        memory = memory.with_publication(Publication::AtEnd);
                    }
                    let refuse = |rule: fn(i64) -> bool| {
                        move |b: &arrow::array::RecordBatch, row: usize| {
                            rule(ids(b)[row]).then(|| "refused".to_owned())
                        }
                    };
                    if sink.at_prepare {
                        memory = memory.reject_if(refuse(prepare_rejects));
                    }
                    if sink.at_commit {
                        memory = memory.reject_at_commit_if(refuse(commit_rejects));
                    }
                    Arc::new(memory)
                }
            };
            builder = builder.sink(&sink.name, wrap(inner, sink.at_write)).inputs(sink.inputs.clone());
            if shape.retries {
                builder = builder.retry(RETRY);
            }
            if let Some(kind) = sink.fallback {
                let mut fallback = MemorySink::new(&self.targets.fallbacks[&sink.name]);
                if kind == FallbackKind::Immediate {
                    fallback = fallback.with_mode(CommitMode::Immediate);
                }
                if sink.at_prepare {
                    fallback = fallback.reject_if(|b: &arrow::array::RecordBatch, row: usize| {
                        prepare_rejects(ids(b)[row]).then(|| "refused".to_owned())
                    });
                }
                let breaker = CircuitBreaker {
                    min_calls: 2,
                    open_for: Duration::from_millis(15),
                    ..CircuitBreaker::default()
                };
                builder = builder.circuit_breaker(breaker).fallback(wrap(Arc::new(fallback), sink.at_write));
            }
        }
        if shape.rejects {
            let mut letters = MemorySink::new(&self.targets.letters);
            if shape.letters_immediate {
                letters = letters.with_mode(CommitMode::Immediate);
            }
            builder = builder.on_error(OnError::dead_letter(wrap(Arc::new(letters), false)));
        }
        builder.build().unwrap()
    }

    /// Lets an instance go on for a while. Says how it ended, if it did.
    fn slice(&mut self, i: usize, millis: u64) -> Option<Result<RunReport>> {
        let alive = &mut self.alive[i];
        let instance = Arc::clone(&alive.instance);
        self.world.note(|| format!("-- {} goes on for {millis} ms", instance.id));
        let Alive { runtime, ended, .. } = alive;
        let ended = ended.as_mut()?;
        let done = runtime.block_on(async {
            tokio::select! {
                biased;
                done = ended => Some(done),
                () = instance.pause.notified() => None,
                () = tokio::time::sleep(Duration::from_millis(millis)) => None,
            }
        });
        if instance.has_crashed() {
            self.crash(i, "is dead");
            return None;
        }
        self.check_positions();
        if done.is_some() {
            self.alive.remove(i);
        }
        done
    }

    fn crash(&mut self, i: usize, how: &str) {
        let Alive { instance, ended, runtime, .. } = self.alive.remove(i);
        self.world.note(|| format!("-- {} {how}", instance.id));
        drop(runtime);
        drop(ended);
    }

    fn abort(&mut self) {
        let i = self.below(self.alive.len() as u64) as usize;
        let Alive { instance, ended, runtime, .. } = self.alive.remove(i);
        self.world.note(|| format!("-- {} is aborted", instance.id));
        drop(ended);
        runtime.block_on(async { tokio::time::sleep(Duration::from_secs(5)).await });
    }

    fn feed(&mut self) {
        let names: Vec<String> = self.to_feed.keys().cloned().collect();
        if names.is_empty() {
            return;
        }
        let split = self.world.random(|r| r.pick(&names).clone());
        let Some((source, entries)) = self.to_feed.get_mut(&split) else { return };
        let feed = &self.sources[source].1;
        self.world.note(|| format!("-- {split} is fed"));
        match entries.pop_front() {
            Some(Entry::Rows { stream, ids }) => {
                feed.push_to(&split, StreamId(stream), batch(&ids, &vec![None; ids.len()])).unwrap();
            }
            Some(Entry::Unit(parts)) => {
                let parts = parts.iter().map(|(s, ids)| (StreamId(*s), batch(ids, &vec![None; ids.len()])));
                feed.push_unit(&split, parts.collect()).unwrap();
            }
            Some(Entry::Reject(id)) => feed.reject(&split, refused(id)).unwrap(),
            None => {
                feed.finish_split(&split).unwrap();
                self.to_feed.remove(&split);
            }
        }
    }

    fn revoke(&mut self) {
        let open: Vec<(String, String)> = self
            .shape
            .sources
            .iter()
            .filter(|s| s.revokes)
            .flat_map(|s| s.splits.iter().map(|p| (s.name.clone(), p.name.clone())))
            .filter(|one| !self.revoked.contains(one) && self.to_feed.contains_key(&one.1))
            .collect();
        if !open.is_empty() {
            let (source, split) = self.world.random(|r| r.pick(&open).clone());
            self.world.note(|| format!("-- {split} is revoked"));
            self.sources[&source].1.revoke(&split).unwrap();
            self.world.lock().revoked.insert(split.clone());
            self.world.changed(&source);
            self.revoked.push((source, split));
        }
    }

    fn bring_back(&mut self) {
        if let Some((source, split)) = self.revoked.pop() {
            self.world.note(|| format!("-- {split} is brought back"));
            let shape = self.shape.sources.iter().find(|s| s.name == source).unwrap();
            let shape = shape.splits.iter().find(|p| p.name == split).unwrap();
            let made = Split::new(split.as_str(), json!({ "split": split }));
            self.world.lock().revoked.remove(&split);
            self.sources[&source].1.add(Split { bounded: shape.bounded, ..made });
            self.world.changed(&source);
        }
    }

    /// A pipeline of the same name with a log of its own must not touch these targets.
    fn let_an_alien_try(&mut self) {
        let all = self.targets.fallbacks.len() + self.shape.sinks.len() + usize::from(self.shape.rejects);
        if self.world.lock().claimed.len() < all {
            return;
        }
        let rate = self.world.lock().rate.take();
        self.start(true);
        let last = self.alive.len() - 1;
        let ended = self.finish(last);
        self.world.lock().rate = rate;
        match ended {
            Some(Err(error)) if error.kind() == ErrorKind::Conflict && !error.is_retryable() => {}
            Some(Err(error)) => self.world.wrong(format!("a run with another log: {}", error.report())),
            _ => self.world.wrong("a run with another log was let in".into()),
        }
    }

    /// Slices until the instance has ended; `None` if it doesn't.
    fn finish(&mut self, i: usize) -> Option<Result<RunReport>> {
        let count = self.alive.len();
        for _ in 0..PATIENCE * 4 {
            let ended = self.slice(i, 250);
            if ended.is_some() || self.alive.len() < count {
                return ended;
            }
        }
        self.crash(i, "is given up");
        None
    }

    fn judge_end(&self, ended: &Result<RunReport>) {
        match ended {
            Ok(_) => {}
            Err(error) if may_happen(error) => {}
            Err(error) => self.world.wrong(format!("a run ended with {}", error.report())),
        }
    }

    /// No faults any more: older instances wake up, the newest brings everything to its end.
    fn calm_down(&mut self) {
        self.world.note(|| "-- calm".into());
        self.world.lock().rate = None;
        while !self.revoked.is_empty() {
            self.bring_back();
        }
        while !self.to_feed.is_empty() {
            self.feed();
        }
        self.sources.values().for_each(|(_, feed)| feed.finish());
        let mut completed = false;
        for round in 0..6 {
            // What an older instance still does falls before, between or after the newest one's calls.
            while !self.alive.is_empty() && self.below(3) > 0 {
                let i = self.below(self.alive.len() as u64) as usize;
                let millis = 1 + self.below(30);
                if let Some(ended) = self.slice(i, millis) {
                    self.judge_end(&ended);
                }
                while self.below(2) == 0 && self.world.land().now_or_never() == Some(true) {}
            }
            if round >= 3 {
                while !self.alive.is_empty() {
                    self.crash(0, "is put to rest");
                }
            }
            self.start(false);
            let newest = self.alive.len() - 1;
            match self.finish(newest) {
                Some(Ok(report)) if report.outcome == Outcome::Completed => {
                    self.judge_report(&report);
                    completed = true;
                    break;
                }
                Some(Ok(_)) => self.world.wrong("a calm run stopped by itself".into()),
                Some(Err(e)) if e.kind() == ErrorKind::Fenced && !self.alive.is_empty() => {}
                Some(Err(e)) => self.world.wrong(format!("a calm run ended with {}", e.report())),
                None => self.world.wrong("a calm run doesn't end".into()),
            }
            if !self.world.lock().wrong.is_empty() {
                return;
            }
        }
        if !completed {
            self.world.wrong("no run completes".into());
            return;
        }
        // Those that slept through all this.
        while !self.alive.is_empty() {
            if let Some(ended) = self.finish(0) {
                self.judge_end(&ended);
            }
        }
        while self.world.land().now_or_never() == Some(true) {}
        self.targets.judge(&self.world, "at the end");
        self.start(false);
        match self.finish(0) {
            Some(Ok(report)) => {
                if report.rows_read() > 0 && !self.shape.at_end {
                    self.world.wrong(format!("a further run read {} rows", report.rows_read()));
                }
            }
            Some(Err(e)) => self.world.wrong(format!("a further run ended with {}", e.report())),
            None => self.world.wrong("a further run doesn't end".into()),
        }
        self.targets.judge(&self.world, "after a further run");
        let tables = self.targets.tables.values().chain(self.targets.fallbacks.values());
        let staged: usize = tables.map(MemoryTable::staged_count).sum();
        let staged = staged + self.targets.folders.values().map(Folder::staged_count).sum::<usize>();
        if staged > 0 {
            self.world.wrong(format!("{staged} staged parts are left behind"));
        }
    }

    /// What is counted over all runs is what there was.
    fn judge_report(&self, report: &RunReport) {
        for node in &report.nodes {
            let Some(said) = node.delivery.filter(|_| node.role != "fallback") else { continue };
            let promise = self.shape.promise(&node.name);
            if said != promise {
                self.world.wrong(format!("{} is promised {said}, it should be {promise}", node.name));
            }
        }
        if self.shape.at_end || self.shape.sources.iter().any(|s| s.replay == Replay::None) {
            return;
        }
        let (expected, letters) = self.shape.expected();
        for node in &report.nodes {
            let there = |count: u64, wanted: usize, what: &str| {
                if count != wanted as u64 {
                    self.world.wrong(format!("{} counts {count} {what}, there are {wanted}", node.name));
                }
            };
            let of = |name: &str| expected.get(name).map_or(0, |rows| rows.values().sum());
            let rejected =
                letters.iter().filter(|((name, _), _)| *name == node.name).map(|(_, n)| n).sum::<usize>();
            match node.role {
                "source" => {
                    there(node.total.rows_in, of(&node.name) + rejected, "rows in");
                    there(node.total.rows_out, of(&node.name), "rows out");
                    there(node.total.rejected, rejected, "rejects");
                }
                "transform" => {
                    there(node.total.rows_out, of(&node.name), "rows out");
                    there(node.total.rejected, rejected, "rejects");
                }
                _ => {}
            }
        }
    }

    /// What the log says of a split never goes back.
    fn check_positions(&mut self) {
        let log = Log::new(self.world.log.clone(), Path::from("log"));
        if self.shape.at_end {
            return;
        }
        let head = match log.peek().now_or_never() {
            Some(Ok(Some(head))) => head,
            Some(Ok(None)) | None => return,
            Some(Err(e)) => return self.world.wrong(format!("the log can't be read: {}", e.report())),
        };
        for (source, state) in head.state.sources {
            for split in state.splits {
                let row = split.position.as_ref().and_then(|p| p.0["row"].as_u64()).unwrap_or(0);
                let id = (source.clone(), split.split.id.to_string());
                let known = self.positions.entry(id.clone()).or_default();
                if row < *known {
                    self.world.wrong(format!("the position of {} went back from {known} to {row}", id.1));
                }
                *known = row;
            }
        }
    }
}

fn may_happen(error: &Error) -> bool {
    let report = error.report();
    matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Cancelled)
        || report.contains(INJECTED)
        || report.contains("no answer")
}

impl Targets {
    /// What is acknowledged is gone at its source: everything of it must have arrived.
    pub(crate) fn check_acknowledged(&self, world: &World, upto: &[(SplitId, Position)]) {
        let lossy = self.shape.sources.iter().any(|s| s.replay == Replay::None);
        if self.shape.at_end || lossy {
            return;
        }
        let (expected, letters) = self.shape.expected();
        let kept = self.letters();
        let holds = self.shape.nodes.iter().any(|n| n.model == super::transforms::Model::Hold);
        for (split, position) in upto {
            let rows = position.0["row"].as_u64().unwrap_or(0) as usize;
            let of = world.lock().splits[split.as_str()].clone();
            let of = &of[..rows.min(of.len())];
            for sink in self.shape.sinks.iter().filter(|s| !self.shape.rests(&s.inputs)) {
                let there = self.rows(&sink.name);
                let missing = |id: &&i64| expected[&sink.name].contains_key(id) && !there.contains_key(id);
                if let Some(id) = of.iter().find(missing) {
                    world
                        .wrong(format!("{split} is acknowledged up to {rows}, but {} lacks {id}", sink.name));
                }
            }
            if !holds {
                let missing =
                    |(node, id): &&(String, i64)| of.contains(id) && !kept.contains_key(&(node.clone(), *id));
                if let Some((node, id)) = letters.keys().find(missing) {
                    world.wrong(format!(
                        "{split} is acknowledged up to {rows}, but {node}'s letter {id} lacks"
                    ));
                }
            }
        }
    }
}
