//! The start of a run: claim the log, claim the sinks, finish what an older run left behind.

use std::collections::BTreeMap;

use crate::checkpoint::{Claim, Log, State};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::event::Reject;
use crate::fault::failpoint;
use crate::pipeline::marked;
use crate::pipeline::options::Again;
use crate::pipeline::plan::{Plan, Role};
use crate::planted::{Bug, planted};
use crate::sink::{
    CheckpointRecord, CommitMode, Committable, Committed, Discard, Epoch, Lineage, Publication, SinkSession,
};

/// The sessions of all sinks, by node.
pub(crate) type Sessions = BTreeMap<usize, Box<dyn SinkSession>>;

/// Where a run goes on from.
pub(crate) struct Recovered {
    pub(crate) claim: Claim,
    pub(crate) state: State,
    /// The next epoch's number is one higher.
    pub(crate) epoch: Epoch,
    /// Rejects of commits that no dead letter holds yet, with their sinks.
    pub(crate) carry: Vec<(usize, Reject)>,
    /// Pending epochs that stay pending until those rejects are in a checkpoint: (sink, epoch).
    pub(crate) awaiting: Vec<(String, Epoch)>,
}

/// Opens every sink. No target is touched.
pub(crate) async fn open_sinks(plan: &Plan, cx: &Context) -> Result<Sessions> {
    let mut sessions = Sessions::new();
    for (i, node) in plan.sinks() {
        let Role::Sink { sink, dead_letters, .. } = &node.role else { continue };
        let streams = if *dead_letters {
            vec![crate::pipeline::plan::dead_letter_stream()]
        } else {
            plan.streams_of(i)
        };
        let session = sink.open(&cx.for_node(&node.name), &streams).await.with("node", &node.name)?;
        sessions.insert(i, session);
    }
    Ok(sessions)
}

/// Claims the log and every sink, commits what is pending, discards what older runs left.
///
/// `completed` is the epoch with which an earlier attempt of the same run has completed the generation:
/// then nothing is left to read. If another run has completed it, there may be something new.
pub(crate) async fn recover(
    plan: &Plan,
    log: &Log,
    cx: &Context,
    sessions: &mut Sessions,
    completed: Option<Epoch>,
) -> Result<Recovered> {
    failpoint("before_claim");
    let mut claim = log.claim(cx.run_id(), cx.pipeline()).await?;
    failpoint("after_claim");
    match recover_claimed(plan, &mut claim, cx, sessions, completed).await {
        Ok((state, epoch, carry, awaiting)) => Ok(Recovered { claim, state, epoch, carry, awaiting }),
        Err(error) => Err(judge_fence(error, &mut claim).await),
    }
}

/// Whatever a run failed with: if the log shows a newer run, that is the reason, and the run is over. A
/// target that refuses a run which the log knows as the newest means a passing thing: the run may claim
/// again. Marked by being retryable.
pub(crate) async fn judge_fence(error: Error, claim: &mut Claim) -> Error {
    match claim.still_newest().await {
        Err(fenced) if fenced.kind() == ErrorKind::Fenced => fenced.retryable(false).caused_by(error),
        Ok(()) if error.kind() == ErrorKind::Fenced => error.retryable(true),
        _ => error,
    }
}

type Claimed = (State, Epoch, Vec<(usize, Reject)>, Vec<(String, Epoch)>);

async fn recover_claimed(
    plan: &Plan,
    claim: &mut Claim,
    cx: &Context,
    sessions: &mut Sessions,
    completed: Option<Epoch>,
) -> Result<Claimed> {
    check_pending_sinks(plan, claim.state())?;
    let committed = claim_sinks(plan, claim, cx, sessions, completed).await?;
    failpoint("after_sink_claims");
    adopt_newest(plan, claim, &committed).await?;
    // The older run's own sinks: what is pending in them must not be forgotten.
    check_pending_sinks(plan, claim.state())?;
    let atomic = |i: usize| matches!(plan.nodes[i].role, Role::Sink { mode: CommitMode::Atomic, .. });
    let mut carry: Vec<_> = committed
        .iter()
        .filter(|(i, _)| atomic(**i))
        .flat_map(|(i, known)| known.rejects.iter().map(|r| (*i, r.clone())))
        .collect();
    if !planted(Bug::NoListAfterClaim) {
        claim.still_newest().await?;
    }
    let mut state = claim.state().clone();
    let newest = state.pending.iter().map(|p| p.epoch).max();
    if planted(Bug::NewestCommittableOnly) {
        state.pending.retain(|p| Some(p.epoch) == newest);
    }
    if planted(Bug::PendingDropped) {
        state.pending.clear();
    }
    let mut epoch = state.epoch;
    for (i, known) in &committed {
        check_target(plan, *i, known, &state)?;
        epoch = epoch.max(known.epoch);
    }
    let mut awaiting = Vec::new();
    if planted(Bug::DiscardBeforeRecommit) {
        discard_older(plan, claim.number(), &State::default(), sessions).await;
    }
    let rejects = commit_pending(plan, &mut state, sessions, &mut awaiting).await?;
    carry.extend(rejects);
    discard_older(plan, claim.number(), &state, sessions).await;
    begin_generation(plan, &mut state, completed);
    remember_sinks(plan, &mut state);
    name_keeper(plan, claim, &mut state).await?;
    Ok((state, epoch, carry, awaiting))
}

/// Goes on from the atomic sink's checkpoint, if it has one that is newer than the log's.
async fn adopt_newest(plan: &Plan, claim: &mut Claim, committed: &BTreeMap<usize, Committed>) -> Result<()> {
    let Some(name) = claim.state().checkpoint_in.clone() else { return Ok(()) };
    let Some((keeper, _)) = plan.sinks().find(|(_, n)| n.name == name) else {
        return Err(Error::config(
            "the newest checkpoint is kept by a sink that is not part of the pipeline",
        )
        .with("sink", name)
        .remedy("put the sink back under that name, or begin with a new state directory"));
    };
    // A sink that was named and then never committed to knows nothing.
    if let Some(Committed { checkpoint: Some(record), lineage, .. }) = committed.get(&keeper)
        && lineage == &claim.state().lineage
        && record.epoch > claim.state().epoch
    {
        claim.adopt(record).await.with("node", &name)?;
    }
    Ok(())
}

fn check_pending_sinks(plan: &Plan, state: &State) -> Result<()> {
    for pending in &state.pending {
        if !plan.sinks().any(|(_, n)| n.name == pending.sink) {
            return Err(Error::config(
                "an epoch is not yet committed to a sink that is no longer part of the pipeline",
            )
            .with("sink", &pending.sink)
            .with("epoch", pending.epoch)
            .remedy("run the pipeline once more with that sink, so that its rows are not lost"));
        }
    }
    for (name, mark) in &state.sinks {
        if let Some((_, node)) = plan.sinks().find(|(_, n)| &n.name == name)
            && node.info.type_tag != mark.type_tag
        {
            return Err(Error::config("the sink had another type when the pipeline ran last")
                .with("node", name)
                .with("was", &mark.type_tag)
                .with("is", &node.info.type_tag)
                .remedy("give the new sink a name of its own, or begin with a new state directory"));
        }
    }
    Ok(())
}

async fn claim_sinks(
    plan: &Plan,
    claim: &Claim,
    cx: &Context,
    sessions: &mut Sessions,
    completed: Option<Epoch>,
) -> Result<BTreeMap<usize, Committed>> {
    let mut committed = BTreeMap::new();
    let known = claim.state();
    let anew = begins_anew(plan, known) && !is_own_end(known, completed);
    let generation = known.generation.max(1) + u64::from(anew);
    for (claimed, (i, session)) in sessions.iter_mut().enumerate() {
        if claimed > 0 {
            failpoint("between_sink_claims");
        }
        let lineage = Lineage {
            id: claim.state().lineage.clone(),
            sink: plan.name_in_target(*i),
            generation,
            claim: claim.number(),
            run: cx.run_id().to_owned(),
        };
        if let Some(known) = session.claim(&lineage).await.with("node", &plan.nodes[*i].name)? {
            committed.insert(*i, known);
        }
    }
    Ok(committed)
}

fn check_target(plan: &Plan, i: usize, known: &Committed, state: &State) -> Result<()> {
    let node = &plan.nodes[i];
    if known.lineage != state.lineage && !planted(Bug::LineageNotCompared) {
        return Err(Error::new(
            ErrorKind::Conflict,
            "the target was loaded by a pipeline with another state directory",
        )
        .retryable(false)
        .with("node", &node.name)
        .with("lineage", &state.lineage)
        .with("target's lineage", &known.lineage)
        .remedy(
            "use the state directory that it was loaded with, another target, or another name for the sink",
        ));
    }
    // A sink whose commits don't wait for the checkpoint may be ahead of it.
    let waits = match &node.role {
        Role::Sink { mode: CommitMode::Staged, .. } => true,
        Role::Sink { mode: CommitMode::Atomic, .. } => plan.keeper == Some(i),
        _ => false,
    };
    if waits && known.epoch > state.epoch {
        return Err(Error::new(
            ErrorKind::Conflict,
            "the target has a later epoch than the newest checkpoint",
        )
        .retryable(false)
        .with("node", &node.name)
        .with("target's epoch", known.epoch)
        .with("checkpoint's epoch", state.epoch)
        .remedy("the state directory is an old copy: use the current one, or load another target"));
    }
    Ok(())
}

/// Commits every pending epoch of the sinks that publish each, and all of them of those that publish
/// at the end, if that was reached.
pub(crate) async fn commit_pending(
    plan: &Plan,
    state: &mut State,
    sessions: &mut Sessions,
    awaiting: &mut Vec<(String, Epoch)>,
) -> Result<Vec<(usize, Reject)>> {
    let mut carry = Vec::new();
    for (i, session) in sessions.iter_mut() {
        let rejects = commit_staged(plan, *i, state, session, awaiting).await?;
        carry.extend(rejects.into_iter().map(|r| (*i, r)));
    }
    Ok(carry)
}

/// Commits what `state` has pending for one staged sink, and takes it out of the state unless its
/// rejects are still to become dead letters.
async fn commit_staged(
    plan: &Plan,
    node: usize,
    state: &mut State,
    session: &mut Box<dyn SinkSession>,
    awaiting: &mut Vec<(String, Epoch)>,
) -> Result<Vec<Reject>> {
    let Role::Sink { mode: CommitMode::Staged, publication, .. } = plan.nodes[node].role else {
        return Ok(Vec::new());
    };
    let name = plan.nodes[node].name.clone();
    let (mine, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut state.pending).into_iter().partition(|p| p.sink == name);
    state.pending = others;
    let groups: Vec<(Epoch, Vec<Committable>)> = match publication {
        Publication::EachEpoch => mine.iter().map(|p| (p.epoch, p.committables.clone())).collect(),
        // The last epoch of a generation is pending even if it has no rows: nothing takes the place of
        // what was there, too. Once it is published nothing is pending.
        Publication::AtEnd if state.complete => {
            let all = mine.iter().flat_map(|p| p.committables.clone()).collect();
            mine.iter().map(|p| p.epoch).max().map(|last| (last, all)).into_iter().collect()
        }
        Publication::AtEnd => {
            state.pending.extend(mine);
            return Ok(Vec::new());
        }
    };
    let mut rejects = Vec::new();
    let mut kept = 0;
    for (epoch, staged) in groups {
        let record = CheckpointRecord {
            epoch,
            generation: state.generation,
            last: state.complete && epoch == state.epoch,
            json: bytes::Bytes::new(),
        };
        failpoint("before_commit");
        let failed = session.commit(epoch, &record, staged).await.with("node", &name).with("epoch", epoch)?;
        failpoint("after_commit");
        if !failed.is_empty() {
            awaiting.push((name.clone(), epoch));
            kept = kept.max(epoch);
            rejects.extend(failed);
        }
    }
    // With its rejects not yet among the dead letters, an epoch stays pending, and those before it,
    // which are committed and skipped the next time.
    state.pending.extend(mine.into_iter().filter(|p| p.epoch <= kept));
    Ok(rejects)
}

pub(crate) async fn discard_older(plan: &Plan, claim: u64, state: &State, sessions: &mut Sessions) {
    let claim = if planted(Bug::LivingRunDiscarded) { u64::MAX } else { claim };
    for (i, session) in sessions.iter_mut() {
        let name = &plan.nodes[*i].name;
        let keep =
            state.pending.iter().filter(|p| &p.sink == name).flat_map(|p| p.committables.clone()).collect();
        if let Err(error) = session.discard(Discard::Older { claim, keep }).await {
            tracing::warn!(node = %name, error = %error.report(), "staged data of older runs is left behind");
        }
    }
    failpoint("after_discard");
}

fn begin_generation(plan: &Plan, state: &mut State, completed: Option<Epoch>) {
    if is_own_end(state, completed) {
        return;
    }
    if state.generation == 0 {
        state.generation = 1;
    } else if begins_anew(plan, state) {
        state.generation += 1;
        state.sources.clear();
        state.operators.clear();
    }
    state.complete = false;
}

/// Whether this run itself has read the generation to its end.
fn is_own_end(state: &State, completed: Option<Epoch>) -> bool {
    state.complete && completed.is_some_and(|completed| completed <= state.epoch)
}

fn begins_anew(plan: &Plan, state: &State) -> bool {
    state.complete && plan.again == Again::Full
}

fn remember_sinks(plan: &Plan, state: &mut State) {
    for (_, node) in plan.sinks() {
        let mark = state.sinks.entry(node.name.clone()).or_default();
        mark.type_tag.clone_from(&node.info.type_tag);
        // Streams that don't come this time are remembered.
        for (input, fit) in node.inputs.iter().zip(node.fits.iter().flatten()) {
            if let Some(fit) = fit {
                mark.streams.insert(input.stream.name.clone(), marked(fit.schema()));
            }
        }
        if node.fits.is_none() {
            mark.streams.clear();
        }
    }
}

/// Says in the log that from now on checkpoints live in the atomic sink, or no longer do.
async fn name_keeper(plan: &Plan, claim: &mut Claim, state: &mut State) -> Result<()> {
    let keeper = plan.keeper.map(|k| plan.nodes[k].name.clone());
    if state.checkpoint_in != keeper {
        state.checkpoint_in = keeper;
        let record = claim.encode(state).await?;
        claim.append(&record).await?;
    }
    Ok(())
}
