//! What a pipeline would do, for people.

use std::fmt;

use super::contract::SchemaContract;
use super::delivery::Guarantee;
use super::lanes::Deal;
use super::options::Again;
use super::plan::{Plan, PlanNode, Role};
use crate::connector::StreamInfo;
use crate::fault::MaxRejects;
use crate::source::FilterPushdown;
use crate::transform::Distribution;

/// A plan, described.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The pipeline's name.
    pub pipeline: String,
    /// The nodes, each after its inputs, the dead letters last.
    pub nodes: Vec<ExplainedNode>,
    /// When epochs are committed.
    pub commits: String,
    /// What a further run does once the inputs were read to their end.
    pub again: Again,
}

/// One node of an [`Explanation`].
#[derive(Debug, Clone)]
pub struct ExplainedNode {
    /// The node's name.
    pub name: String,
    /// `source`, `transform`, `sink`, `fallback` or `dead letters`.
    pub role: &'static str,
    /// What the node says of itself.
    pub summary: String,
    /// How many lanes work side by side.
    pub lanes: usize,
    /// The streams that it reads, as `node.stream`.
    pub inputs: Vec<String>,
    /// The streams that it offers.
    pub outputs: Vec<StreamInfo>,
    /// Everything else worth knowing: pushdown, distribution, fusing.
    pub notes: Vec<String>,
    /// For a sink: what it is promised.
    pub guarantee: Option<Guarantee>,
}

impl Explanation {
    pub(crate) fn new(pipeline: &str, plan: &Plan, every: &str) -> Self {
        let holder = plan.nodes.iter().find(|n| n.is_blocking());
        Self {
            pipeline: pipeline.to_owned(),
            nodes: plan.nodes.iter().map(|node| explain_node(plan, node)).collect(),
            commits: match holder {
                Some(node) => format!("once, at the end: {} needs its whole input", node.name),
                None => every.to_owned(),
            },
            again: plan.again,
        }
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&ExplainedNode> {
        self.nodes.iter().find(|n| n.name == name)
    }
}

fn explain_node(plan: &Plan, node: &PlanNode) -> ExplainedNode {
    let mut notes = Vec::new();
    let mut guarantee = None;
    match &node.role {
        Role::Source { replay, scans, .. } => {
            notes.push(format!("replay: {replay}"));
            for (scan, stream) in scans.iter().zip(&node.outputs) {
                if let Some(columns) = &scan.wanted.projection {
                    let who = if scan.pushdown.projection { "the source" } else { "the engine" };
                    notes.push(format!("{}: {who} reads only {}", stream.name, columns.join(", ")));
                }
                for (filter, answer) in scan.wanted.filters.iter().zip(&scan.pushdown.filters) {
                    let how = match answer {
                        FilterPushdown::Exact => "filtered by the source",
                        FilterPushdown::Inexact => "pruned by the source, filtered after it",
                        FilterPushdown::Unsupported => "filtered after the source",
                    };
                    notes.push(format!("{}: {filter}: {how}", stream.name));
                }
            }
        }
        Role::Transform { distribution, blocking, fused, spooled, .. } => {
            match distribution {
                Distribution::Any => {}
                Distribution::Keyed(keys) => notes.push(format!("rows meet by {}", keys.join(", "))),
                Distribution::Single => notes.push("all rows meet in one lane".into()),
            }
            if *blocking {
                notes.push("needs its whole input".into());
            }
            if *spooled {
                notes.push("inputs could wait for one another: each is spooled".into());
            }
            if let Some(before) = fused {
                notes.push(format!("runs in the task of {}", plan.nodes[*before].name));
            }
        }
        Role::Sink { mode, guarantee: promised, deals, stands_in, .. } => {
            notes.push(format!("commit: {mode}"));
            for (deal, input) in deals.iter().zip(&node.inputs) {
                let name = &input.stream.name;
                match deal {
                    Deal::ByLane => {}
                    Deal::InTurn => {
                        notes.push(format!("{name}: dealt out to {} lanes, batch by batch", node.lanes));
                    }
                    Deal::Ordered => notes.push(format!("{name}: in few lanes, as its rows have an order")),
                    Deal::Needed => {
                        notes.push(format!("{name}: in few lanes, as the sink needs the order of its rows"))
                    }
                }
            }
            if let Some(fallback) =
                plan.nodes.iter().position(|n| n.name == node.name).and_then(|i| plan.fallback_of(i))
            {
                notes.push(format!("fallback: {}", plan.nodes[fallback].name));
            }
            if let Some(sink) = stands_in {
                notes.push(format!("takes what {} can't", plan.nodes[*sink].name));
            }
            if let Some(SchemaContract { tables, columns, types }) = node.schema_contract {
                let named = [("tables", tables), ("columns", columns), ("types", types)];
                let parts: Vec<_> = named.iter().map(|(what, how)| format!("{what} {how}")).collect();
                notes.push(format!("schema contract: {}", parts.join(", ")));
            }
            for (input, fit) in node.inputs.iter().zip(node.fits.iter().flatten()) {
                let name = &input.stream.name;
                match fit {
                    None => notes.push(format!("{name}: left out, as the sink doesn't have it")),
                    Some(fit) if fit.schema().fields() != input.stream.schema.fields() => {
                        let columns = fit.schema().fields().iter();
                        let columns: Vec<_> =
                            columns.map(|c| format!("{}: {}", c.name(), c.data_type())).collect();
                        notes.push(format!("{name}: written as {}", columns.join(", ")));
                    }
                    Some(_) => {}
                }
            }
            guarantee = Some(promised.clone());
        }
    }
    notes.extend(node.guards.notes());
    if let Some(MaxRejects { rows, share, window }) = node.max_rejects {
        let rows = rows.map(|rows| format!("{rows} rows"));
        let share = share.map(|share| format!("a share of {share}"));
        let of = window.map_or("in a run".to_owned(), |window| format!("of the last {window} rows"));
        let most: Vec<_> = rows.into_iter().chain(share).collect();
        notes.push(format!("rejects at most {} {of}", most.join(" and ")));
    }
    ExplainedNode {
        name: node.name.clone(),
        role: node.role_name(),
        summary: format!("{} {}", node.info.type_tag, node.info.summary),
        lanes: node.lanes,
        inputs: node
            .inputs
            .iter()
            .map(|i| format!("{}.{}", plan.nodes[i.node].name, plan.nodes[i.node].outputs[i.output].name))
            .collect(),
        outputs: node.outputs.clone(),
        notes,
        guarantee,
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let again = match self.again {
            Again::Resume => "reads what is new",
            Again::Full => "reads everything as a new generation",
        };
        writeln!(f, "pipeline {}", self.pipeline)?;
        writeln!(f, "  commits: {}", self.commits)?;
        writeln!(f, "  run again: {again}")?;
        for node in &self.nodes {
            let lanes = if node.lanes == 1 { "1 lane".to_owned() } else { format!("{} lanes", node.lanes) };
            writeln!(f, "{} {} ({lanes}): {}", node.role, node.name, node.summary)?;
            if !node.inputs.is_empty() {
                writeln!(f, "  reads {}", node.inputs.join(", "))?;
            }
            for note in &node.notes {
                writeln!(f, "  {note}")?;
            }
            for stream in &node.outputs {
                let columns: Vec<_> = stream
                    .schema
                    .fields()
                    .iter()
                    .map(|c| format!("{}: {}", c.name(), c.data_type()))
                    .collect();
                let bound = if stream.bounded { "" } else { ", unbounded" };
                writeln!(f, "  stream {}{bound}: {}", stream.name, columns.join(", "))?;
            }
            if let Some(Guarantee { delivery, reason }) = &node.guarantee {
                writeln!(f, "  delivery: {delivery}: {reason}")?;
            }
        }
        Ok(())
    }
}
