//! The coordinator: begins epochs, gathers what the tasks report, writes the checkpoint, commits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use super::control::Control;
use super::letters::Close;
use super::recover::{Recovered, Sessions, commit_staged};
use super::report::Message;
use super::wire::Wired;
use crate::checkpoint::{Claim, NodeCounts, Pending, State, is_undecided};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::event::{Position, Reject, SplitId};
use crate::fault::{RejectPort, Rejected, failpoint};
use crate::observe::{Outcome, Progress};
use crate::pipeline::options::{Action, OnError};
use crate::pipeline::plan::{Plan, Role};
use crate::sink::{CheckpointRecord, CommitMode, Committable, Discard, Epoch, Prepared};
use crate::transform::OperatorState;

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// How often the answer of a checkpoint's write is asked for again before the run gives up.
const APPEND_TRIES: u32 = 4;
/// How many epochs pass between two collections of old log entries.
const COLLECT_EVERY: u64 = 16;

/// One run's coordinator.
pub(crate) struct Epochs<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) cx: &'a Context,
    pub(crate) control: &'a Control,
    pub(crate) on_error: &'a OnError,
    pub(crate) every: Duration,
    pub(crate) sessions: &'a mut Sessions,
    pub(crate) claim: Claim,
    pub(crate) wired: Wired,
    /// What the newest checkpoint says, less what was committed since.
    state: State,
    /// The last barrier that was sent.
    epoch: Epoch,
    /// The last epoch whose checkpoint was sent: from then on nobody discards it.
    sent: Epoch,
    carry: Vec<(usize, Reject)>,
    awaiting: Vec<(String, Epoch)>,
    to_acknowledge: BTreeMap<usize, Vec<(SplitId, Position)>>,
    ended_writers: usize,
    commit_wanted: Option<usize>,
    tally: &'a mut Tally,
    started: Instant,
}

/// What the run's epochs add up to; kept over restarts.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) counts: BTreeMap<String, NodeCounts>,
    pub(crate) totals: BTreeMap<String, NodeCounts>,
    pub(crate) epochs: u64,
    /// Epochs committed since the last restart.
    pub(crate) since_restart: u64,
}

/// What an epoch brought, while the tasks report.
#[derive(Default)]
struct Gathered {
    reports: usize,
    counts: BTreeMap<usize, NodeCounts>,
    operators: BTreeMap<usize, OperatorState>,
    /// By sink and lane.
    prepared: BTreeMap<(usize, usize), Prepared>,
}

impl<'a> Epochs<'a> {
    #[allow(clippy::too_many_arguments)] // Each is a different thing, and there is one caller.
    pub(crate) fn new(
        plan: &'a Plan,
        cx: &'a Context,
        control: &'a Control,
        on_error: &'a OnError,
        every: Duration,
        sessions: &'a mut Sessions,
        recovered: Recovered,
        wired: Wired,
        tally: &'a mut Tally,
        started: Instant,
    ) -> Self {
        let Recovered { claim, state, epoch, carry, awaiting } = recovered;
        Self {
            plan,
            cx,
            control,
            on_error,
            every,
            sessions,
            claim,
            wired,
            state,
            epoch,
            sent: epoch,
            carry,
            awaiting,
            to_acknowledge: BTreeMap::new(),
            ended_writers: 0,
            commit_wanted: None,
            tally,
            started,
        }
    }

    /// Runs epoch after epoch until the inputs end or the host stops the run.
    pub(crate) async fn run(&mut self) -> Result<Outcome> {
        let every = self.every.max(Duration::from_millis(1));
        let mut epochs = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        epochs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.ended_writers == self.wired.writers {
                self.epoch(true).await?;
                // Rejects of that commit become dead letters in a last, row-less epoch.
                while !self.carry.is_empty() {
                    self.epoch(true).await?;
                }
                self.claim.collect().await.unwrap_or_else(|e| warn_collect(&e));
                return Ok(Outcome::Completed);
            }
            if let Some(node) = self.commit_wanted.take() {
                if self.plan.held {
                    return Err(Error::unsupported(
                        "a split must wait until another is committed, but this pipeline commits only at its end",
                    )
                    .with("node", &self.plan.nodes[node].name));
                }
                self.epoch(false).await?;
                continue;
            }
            tokio::select! {
                biased;
                () = self.control.abort.cancelled() => return Err(Error::cancelled()),
                error = self.wired.tasks.failure() => return Err(error),
                () = self.control.stop.cancelled() => {
                    if !self.plan.held {
                        self.epoch(false).await?;
                        while !self.carry.is_empty() {
                            self.epoch(false).await?;
                        }
                    }
                    return Ok(Outcome::Stopped);
                }
                message = self.wired.messages.recv() => match message {
                    Some(message) => self.note(message),
                    None => return Err(Error::internal("all tasks are gone")),
                },
                _ = epochs.tick(), if !self.plan.held => self.epoch(false).await?,
                _ = progress.tick() => self.tell_progress(),
            }
        }
    }

    /// Ends the run's tasks after a failure, and discards the epochs that no checkpoint was sent for.
    pub(crate) async fn abandon(&mut self, error: Error) -> Error {
        let told_to = self.control.abort.is_cancelled();
        let error = self.wired.tasks.abort(Some(error), told_to).await.unwrap_or_else(Error::cancelled);
        let error = super::recover::judge_fence(error, &mut self.claim).await;
        if error.kind() == ErrorKind::Fenced {
            // The newer run decides what becomes of it.
            return error;
        }
        let claim = self.claim.number();
        for (i, session) in self.sessions.iter_mut() {
            // Writers past a barrier have begun the epoch after it.
            for epoch in self.sent + 1..=self.epoch + 1 {
                if let Err(e) = session.discard(Discard::Epoch { claim, epoch }).await {
                    let node = &self.plan.nodes[*i].name;
                    tracing::warn!(%node, epoch, error = %e.report(), "staged data is left behind");
                }
            }
        }
        error
    }

    fn note(&mut self, message: Message) {
        match message {
            Message::WriterEnded => self.ended_writers += 1,
            Message::CommitWanted { node } => self.commit_wanted = Some(node),
            // Between epochs no task is at a barrier.
            _ => {}
        }
    }

    async fn epoch(&mut self, complete: bool) -> Result<()> {
        let epoch = self.epoch + 1;
        self.epoch = epoch;
        let mut gathered = self.gather(epoch).await?;
        let letters = self.close_letters(epoch).await?;
        self.check_conservation(&gathered)?;
        let mut next = self.next_state(epoch, complete, &gathered)?;
        self.check_share(&gathered)?;
        let mut staged = self.stage(epoch, &mut next, std::mem::take(&mut gathered.prepared), letters);
        if self.is_empty(&next, &staged) {
            self.wired.committed.send_replace(epoch);
            return Ok(());
        }
        // This checkpoint holds the dead letters of those commits: they are done with it.
        next.pending.retain(|p| !self.awaiting.contains(&(p.sink.clone(), p.epoch)));
        let record = self.claim.encode(&next).await?;
        failpoint("before_checkpoint");
        // They are among this epoch's dead letters, or were only to be counted.
        self.carry.clear();
        for node in self.early_atomic_sinks() {
            let committables = staged.remove(&node).unwrap_or_default();
            self.commit_now(node, epoch, &record, committables).await?;
        }
        self.sent = epoch;
        match self.plan.keeper {
            Some(keeper) => {
                let committables = staged.remove(&keeper).unwrap_or_default();
                self.commit_now(keeper, epoch, &record, committables).await?;
                self.claim.committed(&record)?;
            }
            None => self.append(&record).await?,
        }
        failpoint("after_checkpoint");
        self.awaiting.clear();
        self.state = next;
        for (node, counts) in gathered.counts {
            *self.tally.counts.entry(self.plan.nodes[node].name.clone()).or_default() += counts;
        }
        for (i, session) in self.sessions.iter_mut() {
            let rejects = commit_staged(self.plan, *i, &mut self.state, session, &mut self.awaiting).await?;
            self.carry.extend(rejects.into_iter().map(|r| (*i, r)));
        }
        for (node, reject) in &self.carry {
            // It was counted as written.
            let counts = self.tally.counts.entry(self.plan.nodes[*node].name.clone()).or_default();
            counts.rejected += reject.rows;
            counts.rows_out = counts.rows_out.saturating_sub(reject.rows);
        }
        self.after_commit(epoch).await
    }

    /// Sends the barrier and waits until every task has reported.
    async fn gather(&mut self, epoch: Epoch) -> Result<Gathered> {
        for reader in &self.wired.barriers {
            reader.send(epoch).map_err(|_| Error::cancelled())?;
        }
        let mut gathered = Gathered::default();
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        while gathered.reports < self.wired.reporting {
            tokio::select! {
                biased;
                () = self.control.abort.cancelled() => return Err(Error::cancelled()),
                error = self.wired.tasks.failure() => return Err(error),
                message = self.wired.messages.recv() => match message {
                    Some(message) => self.gather_one(epoch, message, &mut gathered)?,
                    None => return Err(Error::internal("all tasks are gone")),
                },
                _ = progress.tick() => self.tell_progress(),
            }
        }
        Ok(gathered)
    }

    fn gather_one(&mut self, expected: Epoch, message: Message, gathered: &mut Gathered) -> Result<()> {
        let epoch = match message {
            Message::ReaderAtBarrier { node, epoch, splits, counts } => {
                if let Some(board) = self.wired.splits.get(&node) {
                    let positions = board.acknowledged_by_lane(splits);
                    self.to_acknowledge.entry(node).or_default().extend(positions);
                }
                *gathered.counts.entry(node).or_default() += counts;
                epoch
            }
            Message::ChainAtBarrier { epoch, operators } => {
                for (node, state, counts) in operators {
                    *gathered.counts.entry(node).or_default() += counts;
                    if !state.groups.is_empty() {
                        gathered.operators.entry(node).or_default().groups.extend(state.groups);
                    }
                }
                epoch
            }
            Message::WriterAtBarrier { node, lane, epoch, prepared, counts } => {
                *gathered.counts.entry(node).or_default() += counts;
                gathered.prepared.insert((node, lane), prepared);
                epoch
            }
            other => {
                self.note(other);
                return Ok(());
            }
        };
        if epoch != expected {
            return Err(Error::internal("a task is at another epoch")
                .with("epoch", epoch)
                .with("expected", expected));
        }
        gathered.reports += 1;
        Ok(())
    }

    /// Lets the dead-letter sink prepare, now that every reject of the epoch has been handed over.
    async fn close_letters(&mut self, epoch: Epoch) -> Result<Option<(Prepared, u64)>> {
        let Some(letters) = self.wired.letters.clone() else {
            if let (Action::Fail, Some((node, reject))) = (&self.on_error.action, self.carry.first()) {
                let node = &self.plan.nodes[*node].name;
                let port =
                    RejectPort::new(node.as_str().into(), epoch, Arc::new(crate::fault::DeadLetters::fail()));
                port.reject(reject.clone()).await.with("node", node)?;
            }
            return Ok(None);
        };
        let name = |node: usize| Arc::from(self.plan.nodes[node].name.as_str());
        let also = self.carry.iter().map(|(node, r)| Rejected::new(name(*node), r.clone())).collect();
        let (done, prepared) = oneshot::channel();
        letters.send(Close { epoch, also, done }).await.map_err(|_| Error::cancelled())?;
        tokio::select! {
            biased;
            () = self.control.abort.cancelled() => Err(Error::cancelled()),
            error = self.wired.tasks.failure() => Err(error),
            prepared = prepared => prepared.map(Some).map_err(|_| Error::cancelled()),
        }
    }

    fn next_state(&self, epoch: Epoch, complete: bool, gathered: &Gathered) -> Result<State> {
        let mut next = self.state.clone();
        next.epoch = epoch;
        next.complete = complete;
        for (node, splits) in &self.wired.splits {
            next.sources.insert(self.plan.nodes[*node].name.clone(), splits.snapshot());
        }
        for (i, node) in self.plan.nodes.iter().enumerate() {
            match gathered.operators.get(&i) {
                Some(state) => next.operators.insert(node.name.clone(), state.clone()),
                None => next.operators.remove(&node.name),
            };
            if let Some(counts) = gathered.counts.get(&i) {
                *next.totals.entry(node.name.clone()).or_default() += *counts;
            }
        }
        Ok(next)
    }

    /// Puts what was prepared where it belongs: committables of staged sinks into the checkpoint, those
    /// of the others aside.
    fn stage(
        &mut self,
        epoch: Epoch,
        next: &mut State,
        prepared: BTreeMap<(usize, usize), Prepared>,
        letters: Option<(Prepared, u64)>,
    ) -> BTreeMap<usize, Vec<Committable>> {
        let mut by_sink: BTreeMap<usize, Vec<Committable>> = BTreeMap::new();
        for ((node, _), prepared) in prepared {
            by_sink.entry(node).or_default().extend(prepared.committables);
        }
        if let Some((prepared, rows)) = letters
            && let Some(node) = self.plan.nodes.iter().position(|n| n.is_dead_letters())
        {
            let counts =
                NodeCounts { rows_in: rows, rows_out: rows, bytes: prepared.bytes, ..NodeCounts::default() };
            *next.totals.entry(self.plan.nodes[node].name.clone()).or_default() += counts;
            *self.tally.counts.entry(self.plan.nodes[node].name.clone()).or_default() += counts;
            by_sink.entry(node).or_default().extend(prepared.committables);
        }
        by_sink.retain(|node, committables| {
            let Role::Sink { mode, .. } = self.plan.nodes[*node].role else { return false };
            if mode == CommitMode::Staged && !committables.is_empty() {
                next.pending.push(Pending {
                    sink: self.plan.nodes[*node].name.clone(),
                    epoch,
                    claim: self.claim.number(),
                    committables: std::mem::take(committables),
                });
            }
            mode == CommitMode::Atomic
        });
        by_sink
    }

    /// Whether a checkpoint would say nothing new. Its number is passed over.
    fn is_empty(&self, next: &State, staged: &BTreeMap<usize, Vec<Committable>>) -> bool {
        self.carry.is_empty()
            && next.complete == self.state.complete
            && next.pending == self.state.pending
            && next.operators == self.state.operators
            && staged.values().all(Vec::is_empty)
            && !self.wired.splits.values().any(|s| s.is_dirty())
    }

    /// Atomic sinks that can't carry the checkpoint: at least once.
    fn early_atomic_sinks(&self) -> Vec<usize> {
        let atomic = |(i, node): (usize, &crate::pipeline::plan::PlanNode)| match node.role {
            Role::Sink { mode: CommitMode::Atomic, .. } if self.plan.keeper != Some(i) => Some(i),
            _ => None,
        };
        self.plan.sinks().filter_map(atomic).collect()
    }

    async fn commit_now(
        &mut self,
        node: usize,
        epoch: Epoch,
        record: &CheckpointRecord,
        committables: Vec<Committable>,
    ) -> Result<()> {
        let name = &self.plan.nodes[node].name;
        let Some(session) = self.sessions.get_mut(&node) else {
            return Err(Error::internal("an atomic sink has no session").with("node", name));
        };
        failpoint("before_commit");
        let rejects =
            session.commit(epoch, record, committables).await.with("node", name).with("epoch", epoch)?;
        failpoint("after_commit");
        self.carry.extend(rejects.into_iter().map(|r| (node, r)));
        Ok(())
    }

    async fn append(&mut self, record: &CheckpointRecord) -> Result<()> {
        let mut pause = Duration::from_millis(50);
        for _ in 1..APPEND_TRIES {
            match self.claim.append(record).await {
                Err(error) if is_undecided(&error) => {
                    tracing::warn!(error = %error.report(), "the checkpoint's outcome is unknown: asking again");
                    tokio::time::sleep(pause).await;
                    pause *= 4;
                }
                decided => return decided,
            }
        }
        self.claim.append(record).await
    }

    async fn after_commit(&mut self, epoch: Epoch) -> Result<()> {
        self.tally.totals.clone_from(&self.state.totals);
        self.tally.epochs += 1;
        self.tally.since_restart += 1;
        if self.carry.is_empty() {
            failpoint("before_acknowledge");
            for (node, positions) in std::mem::take(&mut self.to_acknowledge) {
                let planned = &self.plan.nodes[node];
                if let Role::Source { source, .. } = &planned.role
                    && !positions.is_empty()
                {
                    let cx = self.cx.for_node(&planned.name);
                    source.acknowledge(&cx, &newest(positions)).await.with("node", &planned.name)?;
                }
            }
            failpoint("after_acknowledge");
        }
        for splits in self.wired.splits.values() {
            splits.committed();
        }
        self.wired.committed.send_replace(epoch);
        self.tell_progress();
        if self.tally.epochs.is_multiple_of(COLLECT_EVERY) {
            self.claim.collect().await.unwrap_or_else(|e| warn_collect(&e));
        }
        Ok(())
    }

    /// Rows don't vanish: a node that maps rows one by one accounts for each, and an only reader has
    /// read what was handed on.
    fn check_conservation(&self, gathered: &Gathered) -> Result<()> {
        let counts = |node: usize| gathered.counts.get(&node).copied().unwrap_or_default();
        for (i, node) in self.plan.nodes.iter().enumerate() {
            let here = counts(i);
            if let Role::Transform { transform, blocking: false, .. } = &node.role
                && transform.maps_rows()
                && here.rows_in != here.rows_out + here.rejected + here.filtered
            {
                return Err(Error::internal("a transform that maps rows one by one has lost or made rows")
                    .with("node", &node.name)
                    .with("in", here.rows_in)
                    .with("out", here.rows_out)
                    .with("rejected", here.rejected)
                    .with("filtered", here.filtered));
            }
            if let [only] = node.inputs.as_slice()
                && self.plan.nodes[only.node].outputs.len() == 1
                && counts(only.node).rows_out != here.rows_in
            {
                return Err(Error::internal("rows were lost between two nodes")
                    .with("from", &self.plan.nodes[only.node].name)
                    .with("to", &node.name)
                    .with("sent", counts(only.node).rows_out)
                    .with("received", here.rows_in));
            }
        }
        Ok(())
    }

    /// The share is that of all epochs of this run.
    fn check_share(&self, gathered: &Gathered) -> Result<()> {
        let Some(ceiling) = self.on_error.max_share else { return Ok(()) };
        let (mut read, mut rejected) = (0, 0);
        for (i, node) in self.plan.nodes.iter().enumerate() {
            let mut counts = gathered.counts.get(&i).copied().unwrap_or_default();
            counts += self.tally.counts.get(&node.name).copied().unwrap_or_default();
            rejected += counts.rejected;
            if matches!(node.role, Role::Source { .. }) {
                read += counts.rows_in;
            }
        }
        #[allow(clippy::cast_precision_loss)] // A share needs no more than 52 bits.
        if rejected as f64 > ceiling * read as f64 {
            return Err(Error::data("a larger share of rows was rejected than `on_error` allows")
                .with("rejected", rejected)
                .with("read", read)
                .with("ceiling", ceiling)
                .remedy("mend the data or raise the ceiling; nothing of this epoch was committed"));
        }
        Ok(())
    }

    fn tell_progress(&self) {
        let nodes = self.plan.nodes.iter().zip(&self.wired.metrics);
        self.control.progress.send_replace(Progress {
            nodes: nodes.map(|(node, live)| (node.name.clone(), live.read())).collect(),
            epoch: self.state.epoch,
            elapsed: self.started.elapsed(),
        });
    }
}

/// The last position of each split.
fn newest(positions: Vec<(SplitId, Position)>) -> Vec<(SplitId, Position)> {
    let mut seen = BTreeSet::new();
    let mut newest: Vec<_> = positions.into_iter().rev().filter(|(id, _)| seen.insert(id.clone())).collect();
    newest.reverse();
    newest
}

fn warn_collect(error: &Error) {
    tracing::warn!(error = %error.report(), "old log entries are left behind");
}
