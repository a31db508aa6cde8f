//! From the start of a run to its end, restarts included.

use std::sync::Arc;
use std::time::Instant;

use super::control::Control;
use super::epochs::{Epochs, Tally};
use super::recover::{Sessions, judge_fence, open_sinks, recover};
use super::wire::Wiring;
use tracing::Instrument;

use crate::context::Context;
use crate::error::{Error, Result, ResultExt};
use crate::fault::{Ceilings, Guards, pause};
use crate::observe::{NodeReport, Observers, Outcome, PlanView, PlannedNode, RunReport};
use crate::pipeline::builder::Definition;
use crate::pipeline::graph::NodeInfo;
use crate::pipeline::plan::{Plan, Role};

/// What a run knows of its nodes over all restarts.
#[derive(Debug)]
pub(crate) struct Guarded {
    pub(crate) guards: Guards,
    pub(crate) ceilings: Ceilings,
}

/// Runs a pipeline to its end, and tells how it went to those who look on.
pub(crate) async fn run(
    definition: Arc<Definition>,
    control: Control,
    nodes: Vec<NodeInfo>,
) -> Result<RunReport> {
    let span = tracing::info_span!("run", pipeline = %definition.name);
    let watched = async {
        let watching = &definition.settings.observers;
        let observers = Observers::start(watching, &definition.name, nodes, &control.progress);
        let ended = to_end(&definition, &control, observers.as_ref()).await;
        control.end(&ended);
        if let Some(observers) = observers {
            observers.end(&ended, control.abort.is_cancelled()).await;
        }
        ended
    };
    watched.instrument(span).await
}

/// Again and again while it fails with errors that pass by themselves.
async fn to_end(
    definition: &Definition,
    control: &Control,
    observers: Option<&Observers>,
) -> Result<RunReport> {
    let started = Instant::now();
    let mut tally = Tally::default();
    let guarded = Guarded { guards: definition.guards()?, ceilings: definition.ceilings()? };
    let mut restarts = 0;
    let mut in_a_row = 0;
    loop {
        tally.since_restart = 0;
        let ended = attempt(definition, control, observers, &guarded, &mut tally, started).await;
        match ended {
            Ok((outcome, plan)) => {
                return Ok(report(definition, outcome, &plan, &guarded.guards, tally, restarts, started));
            }
            Err(error) if error.is_retryable() && !control.abort.is_cancelled() => {
                in_a_row = if tally.since_restart > 0 { 1 } else { in_a_row + 1 };
                let limits = definition.settings.restart;
                let error = error.with("pipeline", &definition.name);
                if in_a_row > limits.max {
                    return Err(error.with("restarts", limits.max));
                }
                restarts += 1;
                tally.restarts = restarts;
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
    observers: Option<&Observers>,
    guarded: &Guarded,
    tally: &mut Tally,
    started: Instant,
) -> Result<(Outcome, Plan)> {
    let cx = definition.context(control.abort.child_token(), &control.retries)?;
    if let Err(error) = definition.connect(&cx).await {
        definition.disconnect(&cx).await;
        return Err(error);
    }
    let ended = attempt_connected(definition, control, &cx, observers, guarded, tally, started).await;
    definition.disconnect(&cx).await;
    ended
}

async fn attempt_connected(
    definition: &Definition,
    control: &Control,
    cx: &Context,
    observers: Option<&Observers>,
    guarded: &Guarded,
    tally: &mut Tally,
    started: Instant,
) -> Result<(Outcome, Plan)> {
    guarded.ceilings.begin_again();
    let prepare = async {
        let plan = definition.plan(cx).await?;
        if let Some(observers) = observers {
            observers.plan.send_replace(Some(Arc::new(view(&plan, cx).await)));
        }
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

/// The plan as observers see it.
async fn view(plan: &Plan, cx: &Context) -> PlanView {
    let mut nodes = Vec::with_capacity(plan.nodes.len());
    for node in &plan.nodes {
        let columns = match &node.role {
            Role::Transform { transform, .. } => {
                transform.columns(&cx.for_node(&node.name), &node.streams()).await.unwrap_or_else(|error| {
                    tracing::debug!(node = %node.name, error = %error.report(), "its columns are not known");
                    None
                })
            }
            Role::Source { .. } | Role::Sink { .. } => None,
        };
        let inputs = node.inputs.iter().map(|i| {
            let from = &plan.nodes[i.node];
            let stream = if from.outputs.len() > 1 { from.outputs.get(i.output) } else { None };
            stream.map_or_else(|| from.name.clone(), |stream| format!("{}.{}", from.name, stream.name))
        });
        nodes.push(PlannedNode {
            info: NodeInfo {
                name: node.name.clone(),
                role: node.role_name(),
                info: node.info.clone(),
                inputs: inputs.collect(),
            },
            inputs: node.inputs.iter().map(|i| (i.node, i.output, i.stream.clone())).collect(),
            outputs: node.outputs.clone(),
            columns,
        });
    }
    PlanView { nodes }
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
