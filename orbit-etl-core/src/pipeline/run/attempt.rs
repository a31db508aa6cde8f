//! From the start of a run to its end, restarts included.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::control::Control;
use super::epochs::{Epochs, Tally};
use super::recover::{Sessions, judge_fence, open_sinks, recover};
use super::wire::Wiring;
use crate::context::Context;
use crate::error::{Error, Result, ResultExt};
use crate::observe::{NodeReport, Outcome, RunReport};
use crate::pipeline::builder::Definition;
use crate::pipeline::plan::{Plan, Role};

/// Runs a pipeline to its end: again and again while it fails with errors that pass by themselves.
pub(crate) async fn run(definition: Arc<Definition>, control: Control) -> Result<RunReport> {
    let started = Instant::now();
    let mut tally = Tally::default();
    let mut restarts = 0;
    let mut in_a_row = 0;
    loop {
        tally.since_restart = 0;
        let ended = attempt(&definition, &control, &mut tally, started).await;
        match ended {
            Ok((outcome, plan)) => return Ok(report(&definition, outcome, &plan, tally, restarts, started)),
            Err(error) if error.is_retryable() && !control.abort.is_cancelled() => {
                in_a_row = if tally.since_restart > 0 { 1 } else { in_a_row + 1 };
                let limits = definition.settings.restart;
                let error = error.with("pipeline", &definition.name);
                if in_a_row > limits.max {
                    return Err(error.with("restarts", limits.max));
                }
                restarts += 1;
                let pause = backoff(limits.backoff, limits.max_backoff, in_a_row);
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
    tally: &mut Tally,
    started: Instant,
) -> Result<(Outcome, Plan)> {
    let cx = definition.context(control.abort.child_token())?;
    if let Err(error) = definition.connect(&cx).await {
        definition.disconnect(&cx).await;
        return Err(error);
    }
    let ended = attempt_connected(definition, control, &cx, tally, started).await;
    definition.disconnect(&cx).await;
    ended
}

async fn attempt_connected(
    definition: &Definition,
    control: &Control,
    cx: &Context,
    tally: &mut Tally,
    started: Instant,
) -> Result<(Outcome, Plan)> {
    let prepare = async {
        let plan = Plan::new(&definition.graph, &definition.plan_options(), cx).await?;
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
    pub(in crate::pipeline) async fn connect(&self, cx: &Context) -> Result<()> {
        for (name, connector) in self.connectors() {
            connector.connect(&cx.for_node(name)).await.with("node", name)?;
        }
        Ok(())
    }

    pub(in crate::pipeline) async fn disconnect(&self, cx: &Context) {
        for (name, connector) in self.connectors() {
            if let Err(error) = connector.disconnect(&cx.for_node(name)).await {
                tracing::warn!(node = %name, error = %error.report(), "the connector did not let go well");
            }
        }
    }
}

/// Full jitter: anything between nothing and the doubled pause, so that instances don't restart
/// together.
fn backoff(first: Duration, longest: Duration, in_a_row: u32) -> Duration {
    let ceiling = first.saturating_mul(1 << (in_a_row - 1).min(16)).min(longest);
    let random = RandomState::new().build_hasher().finish();
    #[allow(clippy::cast_precision_loss)] // A random share needs no more than 52 bits.
    ceiling.mul_f64(random as f64 / u64::MAX as f64)
}

fn report(
    definition: &Definition,
    outcome: Outcome,
    plan: &Plan,
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
