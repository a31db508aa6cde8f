//! What each sink can be promised, and why not more.

use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::pipeline::graph::Graph;
use crate::pipeline::options::Delivery;
use crate::pipeline::plan::{Plan, PlanOptions, Role};
use crate::sink::CommitMode;
use crate::source::Replay;
use crate::transform::Distribution;

/// A sink's guarantee with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarantee {
    /// What holds.
    pub delivery: Delivery,
    /// Why it holds, and why not more.
    pub reason: String,
}

impl Guarantee {
    pub(crate) fn unknown() -> Self {
        Self { delivery: Delivery::AtMostOnce, reason: String::new() }
    }
}

/// Derives every sink's guarantee, and refuses the plan if one is weaker than demanded.
pub(crate) fn settle(plan: &mut Plan, graph: &Graph, options: &PlanOptions) -> Result<()> {
    for i in 0..plan.nodes.len() {
        let Some(derived) = derive(plan, i, options) else { continue };
        let name = plan.nodes[i].name.clone();
        let own = graph.index_of(&name).and_then(|n| graph.nodes[n].delivery);
        if let Some(demanded) = own.or(options.delivery)
            && derived.delivery < demanded
        {
            return Err(Error::config(format!(
                "delivery {demanded} was asked for, but this sink can only be promised {}: {}",
                derived.delivery, derived.reason
            ))
            .with("node", name)
            .remedy("change what the reason names, or ask for less"));
        }
        if let Role::Sink { guarantee, .. } = &mut plan.nodes[i].role {
            *guarantee = derived;
        }
    }
    Ok(())
}

/// With its fallback, a sink is promised what holds for both together: each row is in one of them.
fn with_fallback(
    plan: &Plan,
    sink: usize,
    fallback: usize,
    alone: Guarantee,
    other: &Guarantee,
) -> Guarantee {
    let name = &plan.nodes[fallback].name;
    let shown = |node: usize| matches!(plan.nodes[node].role, Role::Sink { mode: CommitMode::Immediate, .. });
    let delivery = alone.delivery.min(other.delivery);
    if shown(sink) || shown(fallback) {
        let reason = format!(
            "{}; what it can't take goes to {name}, and a row that was written before a crash may go to the \
             other one after it",
            alone.reason
        );
        Guarantee { delivery: delivery.min(Delivery::AtLeastOnce), reason }
    } else {
        let reason = format!(
            "{}; what it can't take goes to {name} in the same epoch, so each row is in one of them",
            alone.reason
        );
        Guarantee { delivery, reason }
    }
}

fn derive(plan: &Plan, node: usize, options: &PlanOptions) -> Option<Guarantee> {
    let Role::Sink { sink, mode, dead_letters, stands_in, .. } = &plan.nodes[node].role else { return None };
    let reads = stands_in.unwrap_or(node);
    let mut promised = by_sink(plan, node, sink.idempotent(), *mode, options);
    if let Some(fallback) = plan.fallback_of(node)
        && let Role::Sink { sink, mode, .. } = &plan.nodes[fallback].role
    {
        let other = by_sink(plan, fallback, sink.idempotent(), *mode, options);
        promised = with_fallback(plan, node, fallback, promised, &other);
    }
    let sources: Vec<usize> =
        if *dead_letters { plan.sources().map(|(i, _)| i).collect() } else { plan.origins(reads) };
    let (gone, again): (Vec<usize>, Vec<usize>) = sources
        .into_iter()
        .partition(|s| matches!(plan.nodes[*s].role, Role::Source { replay: Replay::None, .. }));
    let Some(lost) = gone.first().map(|s| &plan.nodes[*s].name) else { return Some(promised) };
    let reason = format!("source {lost} can't be read again: what is under way in a crash is lost");
    let again = again.first().map(|s| format!("of source {} it may come twice", plan.nodes[*s].name));
    let doubled = again.or_else(|| {
        let holder = plan.holder(*dead_letters, reads)?;
        Some(format!("what {} keeps in its state may come out of it twice", plan.nodes[holder].name))
    });
    Some(match doubled {
        Some(doubled) if promised.delivery == Delivery::AtLeastOnce => Guarantee {
            delivery: Delivery::BestEffort,
            reason: format!("{reason}; {doubled}: {}", promised.reason),
        },
        _ => Guarantee { delivery: Delivery::AtMostOnce, reason },
    })
}

impl Plan {
    /// A transform before the sink, or anywhere if rows come from anywhere, that may hold rows over from
    /// one epoch to a later one.
    fn holder(&self, anywhere: bool, sink: usize) -> Option<usize> {
        let holds = |node: &usize| {
            let Role::Transform { distribution, blocking: false, .. } = &self.nodes[*node].role else {
                return false;
            };
            // In any lane no state is kept.
            *distribution != Distribution::Any
        };
        if anywhere {
            return (0..self.nodes.len()).find(holds);
        }
        let mut before = BTreeSet::from([sink]);
        // Inputs come before their readers.
        while let Some(node) = before.pop_last() {
            if holds(&node) {
                return Some(node);
            }
            before.extend(self.nodes[node].inputs.iter().map(|input| input.node));
        }
        None
    }
}

/// What the sink allows for, if all of its sources can be read again.
fn by_sink(plan: &Plan, node: usize, idempotent: bool, mode: CommitMode, options: &PlanOptions) -> Guarantee {
    let guarantee = |delivery, reason: String| Guarantee { delivery, reason };
    let kept = if options.durable {
        "positions are in the checkpoint"
    } else {
        "positions are kept in memory, so it holds until the process ends"
    };
    match mode {
        CommitMode::Staged => {
            guarantee(Delivery::ExactlyOnce, format!("epochs are staged and published once each; {kept}"))
        }
        CommitMode::Atomic if plan.keeper == Some(node) => guarantee(
            Delivery::ExactlyOnce,
            "rows and positions are committed in one transaction of the target".into(),
        ),
        CommitMode::Atomic => {
            let keeper = plan.keeper.map_or("another sink", |k| plan.nodes[k].name.as_str());
            guarantee(
                Delivery::AtLeastOnce,
                format!(
                    "the positions ride in the transactions of {keeper}, and only one sink can carry them"
                ),
            )
        }
        CommitMode::Immediate if idempotent => guarantee(
            Delivery::EffectivelyOnce,
            "rows are visible as written; those written again after a crash replace themselves".into(),
        ),
        CommitMode::Immediate => guarantee(
            Delivery::AtLeastOnce,
            "rows are visible as written; a crash before the checkpoint writes them again".into(),
        ),
    }
}
