//! The coordinator: begins epochs, gathers what the tasks report, writes the checkpoint, commits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arrow::datatypes::SchemaRef;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;
use tracing::Instrument;

use super::attempt::Guarded;
use super::control::Control;
use super::edge::Buffered;
use super::guarded::Aside;
use super::letters::Close;
use super::reader::Order;
use super::recover::{Recovered, Sessions, commit_pending};
use super::report::Message;
use super::wire::Wired;
use crate::checkpoint::{Claim, NodeCounts, Pending, State, is_undecided};
use crate::context::Context;
use crate::error::{CEILING, Error, ErrorKind, Result, ResultExt};
use crate::event::{Position, Reject, SplitId};
use crate::fault::{Rejected, failpoint};
use crate::observe::{NodeVitals, Outcome, Progress, Times, Vitals};
use crate::pipeline::marked;
use crate::pipeline::options::OnError;
use crate::pipeline::plan::{Plan, Role};
use crate::planted::{Bug, pace, planted};
use crate::sink::{CheckpointRecord, CommitMode, Committable, Discard, Epoch, Prepared, Publication};
use crate::transform::OperatorState;

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// What is asked for beyond this is as good as never.
const LONGEST_EPOCH: Duration = Duration::from_secs(365 * 86_400);
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
    guarded: &'a Guarded,
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
    to_acknowledge: Positions,
    /// Positions of epochs whose commits had rejects.
    waits_for_letters: Positions,
    ended_writers: usize,
    commit_wanted: Option<usize>,
    tally: &'a mut Tally,
    started: Instant,
}

/// The last position of each split, by source.
type Positions = BTreeMap<usize, BTreeMap<SplitId, Position>>;

/// What the run's epochs add up to; kept over restarts.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) counts: BTreeMap<String, NodeCounts>,
    pub(crate) totals: BTreeMap<String, NodeCounts>,
    pub(crate) epochs: u64,
    /// Epochs committed since the last restart.
    pub(crate) since_restart: u64,
    /// The first epoch whose checkpoint was sent and says that the generation was read to its end.
    pub(crate) completed: Option<Epoch>,
    pub(crate) restarts: u32,
    times: Times,
}

/// What an epoch brought, while the tasks report.
#[derive(Default)]
struct Gathered {
    reports: usize,
    counts: BTreeMap<usize, NodeCounts>,
    operators: BTreeMap<usize, OperatorState>,
    /// By sink and lane.
    prepared: BTreeMap<(usize, usize), Prepared>,
    /// What sinks with a schema contract have been given since.
    evolved: BTreeMap<usize, Vec<(String, SchemaRef)>>,
}

impl<'a> Epochs<'a> {
    #[allow(clippy::too_many_arguments)] // Each is a different thing, and there is one caller.
    pub(crate) fn new(
        plan: &'a Plan,
        cx: &'a Context,
        control: &'a Control,
        on_error: &'a OnError,
        guarded: &'a Guarded,
        every: Duration,
        sessions: &'a mut Sessions,
        recovered: Recovered,
        wired: Wired,
        tally: &'a mut Tally,
        started: Instant,
    ) -> Self {
        tally.totals.clone_from(&recovered.state.totals);
        let Recovered { claim, state, epoch, carry, awaiting } = recovered;
        Self {
            plan,
            cx,
            control,
            on_error,
            guarded,
            every,
            sessions,
            claim,
            wired,
            state,
            epoch,
            sent: epoch,
            carry,
            awaiting,
            to_acknowledge: Positions::new(),
            waits_for_letters: Positions::new(),
            ended_writers: 0,
            commit_wanted: None,
            tally,
            started,
        }
    }

    /// Runs epoch after epoch until the inputs end or the host stops the run.
    pub(crate) async fn run(&mut self) -> Result<Outcome> {
        self.acknowledge_recovered().await?;
        let every = self.every.clamp(Duration::from_millis(1), LONGEST_EPOCH);
        let mut epochs = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        epochs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.ended_writers == self.wired.writers {
                self.last_epochs(true).await?;
                self.claim.collect().await.unwrap_or_else(|e| warn_collect(&e));
                return Ok(Outcome::Completed);
            }
            if let Some(node) = self.commit_wanted.take()
                && self.wired.splits.get(&node).is_some_and(|splits| splits.is_stuck())
            {
                if self.plan.held {
                    return Err(Error::unsupported(
                        "a split must wait until another is committed, but this pipeline commits only at its end",
                    )
                    .with("node", &self.plan.nodes[node].name));
                }
                self.epoch_unless_aborted(false, false).await?;
                continue;
            }
            tokio::select! {
                biased;
                () = self.control.abort.cancelled() => return Err(Error::cancelled()),
                error = self.wired.tasks.failure() => return Err(error),
                () = self.control.stop.cancelled() => {
                    if !self.plan.held {
                        self.last_epochs(false).await?;
                    }
                    return Ok(Outcome::Stopped);
                }
                message = self.wired.messages.recv() => match message {
                    Some(message) => self.note(message),
                    None => return Err(Error::internal("all tasks are gone")),
                },
                _ = epochs.tick(), if !self.plan.held => self.epoch_unless_aborted(false, false).await?,
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
            if planted(Bug::LivingRunDiscarded) {
                super::recover::discard_older(self.plan, 0, &State::default(), self.sessions).await;
            }
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

    /// After this no source reads on.
    async fn last_epochs(&mut self, complete: bool) -> Result<()> {
        self.epoch_unless_aborted(complete, true).await?;
        // Rejects of that commit become dead letters in one more, row-less epoch.
        while !self.carry.is_empty() {
            self.epoch_unless_aborted(complete, true).await?;
        }
        Ok(())
    }

    /// A request that is under way when the host aborts the run may or may not take effect: the next
    /// claim finds out.
    async fn epoch_unless_aborted(&mut self, complete: bool, last: bool) -> Result<()> {
        let abort = self.control.abort.clone();
        let span = tracing::info_span!("epoch", epoch = self.epoch + 1);
        let epoch = self.epoch(complete, last).instrument(span);
        tokio::select! {
            biased;
            () = abort.cancelled() => Err(Error::cancelled()),
            ended = epoch => ended,
        }
    }

    async fn epoch(&mut self, complete: bool, last: bool) -> Result<()> {
        let epoch = self.epoch + 1;
        self.epoch = epoch;
        self.tally.times.barrier();
        let mut gathered = self.gather(epoch, last).await?;
        let letters = self.close_letters(epoch, &mut gathered).await?;
        self.check_conservation(&gathered)?;
        // Read to its end once is read to its end, though the host stop a run that takes it up again.
        let mut next = self.next_state(epoch, complete || self.state.complete, &mut gathered);
        self.check_share(&gathered)?;
        self.check_ceilings(&gathered, complete)?;
        let mut staged = self.stage(epoch, &mut next, std::mem::take(&mut gathered.prepared), letters);
        if self.is_empty(&next, &staged) {
            self.wired.committed.set(epoch);
            self.tally.times.nothing();
            return Ok(());
        }
        // This checkpoint holds the dead letters of those commits: they are done with it.
        let done =
            |p: &Pending| self.awaiting.iter().any(|(sink, epoch)| *sink == p.sink && p.epoch <= *epoch);
        next.pending.retain(|p| !done(p));
        if planted(Bug::PendingNotCarried) {
            next.pending.retain(|p| p.epoch == epoch);
        }
        let record = self.claim.encode(&next).await?;
        failpoint("before_checkpoint");
        // They are among this epoch's dead letters, or were only to be counted.
        self.carry.clear();
        for node in self.early_atomic_sinks() {
            let committables = staged.remove(&node).unwrap_or_default();
            self.commit_now(node, epoch, &record, committables).await?;
        }
        if planted(Bug::AcknowledgeBeforeCheckpoint) {
            self.acknowledge(self.to_acknowledge.clone()).await?;
        }
        let early = match self.plan.keeper {
            Some(_) => planted(Bug::CommitOrderSwapped),
            None => planted(Bug::CommitBeforeCheckpoint),
        };
        if early {
            commit_pending(self.plan, &mut next.clone(), self.sessions, &mut Vec::new()).await?;
        }
        self.sent = epoch;
        self.tally.times.commit();
        if next.complete {
            self.tally.completed.get_or_insert(epoch);
        }
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
            if let Some(ceiling) = self.guarded.ceilings.of(&self.plan.nodes[node].name) {
                ceiling.committed(counts.rows_in, counts.rejected);
            }
            *self.tally.counts.entry(self.plan.nodes[node].name.clone()).or_default() += counts;
        }
        if planted(Bug::AcknowledgeBeforeCommit) {
            self.acknowledge(self.to_acknowledge.clone()).await?;
        }
        let rejects = commit_pending(self.plan, &mut self.state, self.sessions, &mut self.awaiting).await?;
        if !planted(Bug::CommitRejectsDropped) {
            self.carry.extend(rejects);
        }
        for (node, reject) in &self.carry {
            let name = &self.plan.nodes[*node].name;
            for counts in [&mut self.tally.counts, &mut self.state.totals] {
                // It was counted as written.
                let counts = counts.entry(name.clone()).or_default();
                counts.rejected += reject.rows;
                counts.rows_out = counts.rows_out.saturating_sub(reject.rows);
            }
        }
        self.after_commit(epoch).await?;
        self.count_carry()
    }

    /// Rejects of commits count against the ceiling as all others do.
    fn count_carry(&self) -> Result<()> {
        for (node, reject) in &self.carry {
            let name = &self.plan.nodes[*node].name;
            self.wired.rejects.count(reject).with("node", name)?;
            if let Some(ceiling) = self.guarded.ceilings.of(name) {
                ceiling.count_late(reject.rows).with("node", name)?;
            }
        }
        Ok(())
    }

    /// Sends the barrier and waits until every task has reported.
    async fn gather(&mut self, epoch: Epoch, last: bool) -> Result<Gathered> {
        for reader in &self.wired.barriers {
            reader.send(Order { epoch, last }).map_err(|_| Error::cancelled())?;
        }
        let mut gathered = Gathered::default();
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        while gathered.reports < self.wired.reporting {
            tokio::select! {
                biased;
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
            Message::WriterAtBarrier { node, lane, epoch, prepared, counts, aside, evolved } => {
                if !evolved.is_empty() {
                    gathered.evolved.entry(node).or_default().extend(evolved);
                }
                *gathered.counts.entry(node).or_default() += counts;
                gathered.prepared.insert((node, lane), prepared);
                if let Some(Aside { node, prepared, counts }) = aside {
                    *gathered.counts.entry(node).or_default() += counts;
                    gathered.prepared.insert((node, lane), prepared);
                }
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
    async fn close_letters(&mut self, epoch: Epoch, gathered: &mut Gathered) -> Result<Option<Prepared>> {
        let Some(letters) = self.wired.letters.clone() else { return Ok(None) };
        let name = |node: usize| Arc::from(self.plan.nodes[node].name.as_str());
        let also = self.carry.iter().map(|(node, r)| Rejected::new(name(*node), r.clone())).collect();
        let (done, closed) = oneshot::channel();
        letters.send(Close { epoch, also, done }).await.map_err(|_| Error::cancelled())?;
        let (prepared, rows) = tokio::select! {
            biased;
            error = self.wired.tasks.failure() => return Err(error),
            closed = closed => closed.map_err(|_| Error::cancelled())?,
        };
        if let Some(node) = self.plan.nodes.iter().position(|n| n.is_dead_letters()) {
            let bytes = prepared.bytes;
            let counts = NodeCounts { rows_in: rows, rows_out: rows, bytes, ..NodeCounts::default() };
            gathered.counts.insert(node, counts);
        }
        Ok(Some(prepared))
    }

    fn next_state(&self, epoch: Epoch, complete: bool, gathered: &mut Gathered) -> State {
        let mut next = self.state.clone();
        next.epoch = epoch;
        next.complete = complete;
        for (node, splits) in &self.wired.splits {
            next.sources.insert(self.plan.nodes[*node].name.clone(), splits.snapshot());
        }
        for (node, evolved) in std::mem::take(&mut gathered.evolved) {
            let mark = next.sinks.entry(self.plan.nodes[node].name.clone()).or_default();
            mark.streams.extend(evolved.into_iter().map(|(stream, schema)| (stream, marked(&schema))));
        }
        for (i, node) in self.plan.nodes.iter().enumerate() {
            match gathered.operators.remove(&i) {
                Some(_) if planted(Bug::StateOfWrongEpoch) && epoch % 2 == 1 => None,
                Some(state) => next.operators.insert(node.name.clone(), state),
                None => next.operators.remove(&node.name),
            };
            if let Some(counts) = gathered.counts.get(&i) {
                *next.totals.entry(node.name.clone()).or_default() += *counts;
            }
        }
        next
    }

    /// Puts what was prepared where it belongs: committables of staged sinks into the checkpoint, those
    /// of the others aside.
    fn stage(
        &mut self,
        epoch: Epoch,
        next: &mut State,
        prepared: BTreeMap<(usize, usize), Prepared>,
        letters: Option<Prepared>,
    ) -> BTreeMap<usize, Vec<Committable>> {
        let mut by_sink: BTreeMap<usize, Vec<Committable>> = BTreeMap::new();
        if next.complete && !self.state.complete {
            // What publishes at the end does so even if there is nothing: it replaces what was there.
            by_sink.extend(self.plan.sinks().map(|(i, _)| (i, Vec::new())));
        }
        for ((node, _), prepared) in prepared {
            by_sink.entry(node).or_default().extend(prepared.committables);
        }
        if let Some(prepared) = letters
            && let Some(node) = self.plan.nodes.iter().position(|n| n.is_dead_letters())
        {
            by_sink.entry(node).or_default().extend(prepared.committables);
        }
        by_sink.retain(|node, committables| {
            let Role::Sink { mode, publication, .. } = self.plan.nodes[*node].role else { return false };
            let ends = publication == Publication::AtEnd && next.complete && !self.state.complete;
            if mode == CommitMode::Staged && (ends || !committables.is_empty()) {
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
            && next.sinks == self.state.sinks
            && staged.values().all(Vec::is_empty)
            && next.sources == self.state.sources
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
                    self.cx.count_retry();
                    tokio::time::sleep(pause).await;
                    pause *= 4;
                }
                decided => return decided,
            }
        }
        self.claim.append(record).await
    }

    async fn after_commit(&mut self, epoch: Epoch) -> Result<()> {
        self.tally.times.committed();
        tracing::debug!(took = ?self.tally.times.last_epoch, "the epoch is committed");
        self.tally.totals.clone_from(&self.state.totals);
        self.tally.epochs += 1;
        self.tally.since_restart += 1;
        // Those of an epoch whose commit had rejects wait for the epoch that holds their dead letters,
        // which is this one for those that waited.
        let mut due = std::mem::take(&mut self.waits_for_letters);
        let these = std::mem::take(&mut self.to_acknowledge);
        let add_to = if self.carry.is_empty() { &mut due } else { &mut self.waits_for_letters };
        for (node, positions) in these {
            add_to.entry(node).or_default().extend(positions);
        }
        failpoint("before_acknowledge");
        self.acknowledge(due).await?;
        failpoint("after_acknowledge");
        for splits in self.wired.splits.values() {
            splits.committed();
        }
        self.wired.committed.set(epoch);
        self.tell_progress();
        if self.tally.epochs.is_multiple_of(pace(COLLECT_EVERY, 2)) {
            self.claim.collect().await.unwrap_or_else(|e| warn_collect(&e));
        }
        Ok(())
    }

    async fn acknowledge(&mut self, due: Positions) -> Result<()> {
        for (node, positions) in due {
            let planned = &self.plan.nodes[node];
            if let Role::Source { source, .. } = &planned.role
                && !positions.is_empty()
            {
                let cx = self.cx.for_node(&planned.name);
                let positions: Vec<_> = positions.into_iter().collect();
                source.acknowledge(&cx, &positions).await.with("node", &planned.name)?;
            }
        }
        Ok(())
    }

    /// The run before may have died between a commit and its acknowledgement.
    async fn acknowledge_recovered(&mut self) -> Result<()> {
        self.count_carry()?;
        let mut known = Positions::new();
        for (node, planned) in self.plan.sources() {
            let state = self.state.sources.get(&planned.name);
            let splits = state.into_iter().flat_map(|s| &s.splits);
            let positions = splits.filter_map(|s| Some((s.split.id.clone(), s.position.clone()?)));
            known.insert(node, positions.collect());
        }
        if self.carry.is_empty() {
            self.acknowledge(known).await
        } else {
            self.waits_for_letters = known;
            Ok(())
        }
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
                .with(CEILING, ceiling)
                .remedy("mend the data or raise the ceiling; nothing of this epoch was committed"));
        }
        Ok(())
    }

    /// By node, each over a window of its own.
    fn check_ceilings(&self, gathered: &Gathered, last: bool) -> Result<()> {
        for (i, counts) in &gathered.counts {
            let name = &self.plan.nodes[*i].name;
            if let Some(ceiling) = self.guarded.ceilings.of(name) {
                ceiling.check(counts.rows_in, counts.rejected, last).with("node", name)?;
            }
        }
        Ok(())
    }

    fn tell_progress(&self) {
        let nodes = self.plan.nodes.iter().zip(&self.wired.metrics);
        self.control.tell(Progress {
            nodes: nodes.map(|(node, live)| (node.name.clone(), live.read())).collect(),
            committed: self.tally.counts.clone(),
            totals: self.tally.totals.clone(),
            guards: self
                .plan
                .nodes
                .iter()
                .filter_map(|node| Some((node.name.clone(), self.guarded.guards.counts(&node.name)?)))
                .collect(),
            epochs: self.tally.epochs,
            epoch: self.state.epoch,
            elapsed: self.started.elapsed(),
            vitals: self.vitals(),
        });
    }

    fn vitals(&self) -> Vitals {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let nodes = self.plan.nodes.iter().zip(&self.wired.metrics).zip(&self.wired.buffers);
        let nodes = nodes.map(|((node, live), buffers)| NodeVitals {
            name: node.name.clone(),
            batches: live.batches(),
            buffered: buffers.iter().map(Buffered::bytes).sum(),
            // What is said of the future is not behind, and what was before 1970 is as far as can be.
            watermark_delay: live
                .watermark()
                .map(|at| now.saturating_sub(Duration::from_micros(u64::try_from(at).unwrap_or(0)))),
        });
        Vitals {
            restarts: self.tally.restarts,
            retries: self.control.retries.read(),
            lag: self.tally.times.lag(),
            memory: self.cx.memory().reserved() as u64,
            last_epoch: self.tally.times.last_epoch,
            last_commit: self.tally.times.last_commit,
            nodes: nodes.collect(),
        }
    }
}

fn warn_collect(error: &Error) {
    tracing::warn!(error = %error.report(), "old log entries are left behind");
}
