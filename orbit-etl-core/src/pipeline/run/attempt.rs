//! From the start of a run to its end, restarts included.

use std::sync::Arc;
use std::time::Instant;

use super::control::Control;
use super::epochs::{Epochs, Tally};
use super::recover::{Sessions, judge_fence, open_sinks, recover};
use super::wire::Wiring;
use crate::context::Context;
use crate::error::{Error, Result, ResultExt};
use crate::fault::{Ceilings, Guards, pause};
use crate::observe::{NodeReport, Outcome, RunReport};
use crate::pipeline::builder::Definition;
use crate::pipeline::plan::{Plan, Role};

/// What a run knows of its nodes over all restarts.
#[derive(Debug)]
pub(crate) struct Guarded {
    pub(crate) guards: Guards,
    pub(crate) ceilings: Ceilings,
}

/// Runs a pipeline to its end: again and again while it fails with errors that pass by themselves.
pub(crate) async fn run(definition: Arc<Definition>, control: Control) -> Result<RunReport> {
    let started = Instant::now();
    let mut tally = Tally::default();
    let guarded = Guarded { guards: definition.guards()?, ceilings: definition.ceilings()? };
    let mut restarts = 0;
    let mut in_a_row = 0;
    loop {
        tally.since_restart = 0;
        let ended = attempt(&definition, &control, &guarded, &mut tally, started).await;
        match ended {
            Ok((outcome, plan)) => {
                return Ok(report(&definition, outcome, &plan, &guarded.guards, tally, restarts, started));
            }
            Err(error) if error.is_retryable() && !control.abort.is_cancelled() => {
                in_a_row = if tally.since_restart > 0 { 1 } else { in_a_row + 1 };
                let limits = definition.settings.restart;
                let error = error.with("pipeline", &definition.name);
                if in_a_row > limits.max {
                    return Err(error.with("restarts", limits.max));
                }
                restarts += 1;
                let pause = pause(limits.backoff, limits.max_backoff, in_a_row, error.pause_asked());
                tracing::warn!(
                    pipeline = %definition.name, restart = restarts, error = %error.report(),
                    "the run restarts in {pause:?}"
                );
                tokio::select! {
                    biased;
                    () = control.abort.cancelled() => return Err(Error::cancelled().caused_by(error)),
                    () = control.stop.cancelled() => return Err(error),
                    () = tokio::time::sleep(pause) => {}
                }
            }
            Err(error) => return Err(error.with("pipeline", &definition.name)),
        }
    }
}

async fn attempt(
    definition: &Definition,
    control: &Control,
    guarded: &Guarded,
    tally: &mut Tally,
    started: Instant,
) -> Result<(Outcome, Plan)> {
    let cx = definition.context(control.abort.child_token())?;
    if let Err(error) = definition.connect(&cx).await {
        definition.disconnect(&cx).await;
        return Err(error);
    }
    let ended = attempt_connected(definition, control, guarded, &cx, tally, started).await;
    definition.disconnect(&cx).await;
    ended
}

async fn attempt_connected(
    definition: &Definition,
    control: &Control,
    guarded: &Guarded,
    cx: &Context,
    tally: &mut Tally,
    started: Instant,
) -> Result<(Outcome, Plan)> {
    guarded.ceilings.begin_again();
    let prepare = async {
        let plan = definition.plan(cx).await?;
        let mut sessions = open_sinks(&plan, cx).await?;
        let log = definition.log()?;
        match recover(&plan, &log, cx, &mut sessions, tally.completed).await {
            Ok(recovered) => Ok((plan, sessions, recovered)),
            Err(error) => {
                close(&plan, sessions).await;
                Err(error)
            }
        }
    };
    let (plan, mut sessions, recovered) = tokio::select! {
        biased;
        () = control.abort.cancelled() => return Err(Error::cancelled()),
        prepared = prepare => prepared?,
    };
    let wiring = Wiring {
        plan: &plan,
        cx,
        state: &recovered.state,
        first_epoch: recovered.epoch + 1,
        on_error: &definition.settings.on_error,
        guards: &guarded.guards,
        ceilings: &guarded.ceilings,
        edge_bytes: definition.settings.edge_bytes,
        idle_after: definition.settings.idle_after,
        rejected: tally.counts.values().map(|c| c.rejected).sum(),
        drained: recovered.state.complete,
    };
    let wired = match wiring.start(&mut sessions).await {
        Ok(wired) => wired,
        Err(error) => {
            let mut recovered = recovered;
            let error = judge_fence(error, &mut recovered.claim).await;
            close(&plan, sessions).await;
            return Err(error);
        }
    };
    let mut epochs = Epochs::new(
        &plan,
        cx,
        control,
        &definition.settings.on_error,
        guarded,
        definition.settings.every,
        &mut sessions,
        recovered,
        wired,
        tally,
        started,
    );
    let ended = match epochs.run().await {
        Ok(outcome) => {
            epochs.wired.tasks.abort(None, true).await;
            Ok(outcome)
        }
        Err(error) => Err(epochs.abandon(error).await),
    };
    drop(epochs);
    close(&plan, sessions).await;
    ended.map(|outcome| (outcome, plan))
}

pub(super) async fn close(plan: &Plan, sessions: Sessions) {
    for (node, session) in sessions {
        if let Err(error) = session.close().await {
            tracing::warn!(node = %plan.nodes[node].name, error = %error.report(), "the sink did not close well");
        }
    }
}

impl Definition {
    pub(super) async fn connect(&self, cx: &Context) -> Result<()> {
        for (name, connector) in self.connectors() {
            connector.connect(&cx.for_node(name)).await.with("node", name)?;
        }
        Ok(())
    }

    pub(super) async fn disconnect(&self, cx: &Context) {
        for (name, connector) in self.connectors() {
            if let Err(error) = connector.disconnect(&cx.for_node(name)).await {
                tracing::warn!(node = %name, error = %error.report(), "the connector did not let go well");
            }
        }
    }
}

fn report(
    definition: &Definition,
    outcome: Outcome,
    plan: &Plan,
    guards: &Guards,
    tally: Tally,
    restarts: u32,
    started: Instant,
) -> RunReport {
    let nodes = plan.nodes.iter().map(|node| NodeReport {
        name: node.name.clone(),
        role: node.role_name(),
        counts: tally.counts.get(&node.name).copied().unwrap_or_default(),
        total: tally.totals.get(&node.name).copied().unwrap_or_default(),
        delivery: match &node.role {
            Role::Sink { guarantee, .. } => Some(guarantee.delivery),
            _ => None,
        },
        guards: guards.counts(&node.name),
    });
    RunReport {
        pipeline: definition.name.clone(),
        outcome,
        nodes: nodes.collect(),
        epochs: tally.epochs,
        restarts,
        duration: started.elapsed(),
    }
}
