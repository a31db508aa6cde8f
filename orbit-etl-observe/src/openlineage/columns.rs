//! From a sink's columns back to those of the sources.

use std::collections::BTreeSet;

use orbit_etl_core::ColumnUsage;
use orbit_etl_core::observe::{PlanView, PlannedNode};

/// A column of a source's stream and what is done with it on the way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct From {
    pub(super) node: usize,
    pub(super) output: usize,
    pub(super) column: String,
    pub(super) usage: ColumnUsage,
}

/// Where one column of a node's output comes from; `None` if some transform on the way doesn't tell.
pub(super) fn origins(plan: &PlanView, node: usize, output: usize, column: &str) -> Option<BTreeSet<From>> {
    let planned = plan.nodes.get(node)?;
    if planned.info.role == "source" {
        let column = column.to_owned();
        return Some(BTreeSet::from([From { node, output, column, usage: ColumnUsage::Same }]));
    }
    let made = planned.columns.as_ref()?.columns.iter();
    let made = made.clone().find(|c| c.output == output && c.column == column)?;
    let mut all = BTreeSet::new();
    for from in &made.from {
        all.extend(through(plan, planned, from.input, &from.column, from.usage)?);
    }
    Some(all)
}

/// What decides which rows of a node's output there are.
pub(super) fn rows(plan: &PlanView, node: usize) -> Option<BTreeSet<From>> {
    let planned = plan.nodes.get(node)?;
    let mut all = BTreeSet::new();
    if planned.info.role == "source" {
        return Some(all);
    }
    for from in &planned.columns.as_ref()?.rows {
        all.extend(through(plan, planned, from.input, &from.column, from.usage)?);
    }
    for (before, _, _) in &planned.inputs {
        all.extend(rows(plan, *before)?);
    }
    Some(all)
}

/// The last and farthest use is what counts.
fn through(
    plan: &PlanView,
    planned: &PlannedNode,
    input: usize,
    column: &str,
    usage: ColumnUsage,
) -> Option<BTreeSet<From>> {
    let (before, output, _) = planned.inputs.get(input)?;
    let before = origins(plan, *before, *output, column)?;
    Some(before.into_iter().map(|from| From { usage: from.usage.max(usage), ..from }).collect())
}
