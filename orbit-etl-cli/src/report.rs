//! The report of a run as JSON.

use std::collections::BTreeMap;

use orbit_etl::observe::{GuardCounts, NodeCounts, NodeReport, Outcome, Progress, RunReport};
use orbit_etl::{Delivery, Error, Pipeline};
use serde::Serialize;

use crate::failure::Failure;
use crate::out;

/// What `--report json` prints for one pipeline.
#[derive(Debug, Default, Serialize)]
pub(crate) struct JsonReport {
    pub(crate) pipeline: String,
    pub(crate) status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<ErrorReport>,
    #[serde(flatten)]
    rows: Rows,
    epochs: u64,
    restarts: u32,
    duration_s: f64,
    /// By sink.
    delivery: BTreeMap<String, Delivery>,
    nodes: BTreeMap<String, Node>,
    /// Over all runs of the lineage.
    total: Total,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// Every input was read to its end.
    Completed,
    /// It was told to stop, and stopped after a last epoch.
    Stopped,
    #[default]
    Failed,
    /// A pipeline that it comes after didn't succeed.
    Skipped,
}

#[derive(Debug, Serialize)]
pub(crate) struct ErrorReport {
    pub(crate) kind: &'static str,
    pub(crate) message: String,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Rows {
    rows_read: u64,
    rows_written: u64,
    rows_rejected: u64,
    rows_filtered: u64,
}

#[derive(Debug, Serialize)]
struct Node {
    role: &'static str,
    #[serde(flatten)]
    counts: NodeCounts,
    #[serde(skip_serializing_if = "Option::is_none")]
    guards: Option<GuardCounts>,
}

#[derive(Debug, Default, Serialize)]
struct Total {
    #[serde(flatten)]
    rows: Rows,
    nodes: BTreeMap<String, NodeCounts>,
}

impl JsonReport {
    /// Of a run that failed: what it had committed before.
    pub(crate) fn failed(pipeline: &Pipeline, error: &Error, last: &Progress) -> Self {
        let role = |name: &str| pipeline.nodes().iter().find(|n| n.name == name).map_or("", |n| n.role);
        let rows = |of: &BTreeMap<String, NodeCounts>| Rows::of(of.iter().map(|(name, n)| (role(name), *n)));
        let node = |(name, counts): (&String, &NodeCounts)| {
            (name.clone(), Node { role: role(name), counts: *counts, guards: last.guards.get(name).cloned() })
        };
        Self {
            pipeline: pipeline.name().to_owned(),
            status: Status::Failed,
            error: Some(ErrorReport { kind: error.kind().as_str(), message: error.report() }),
            rows: rows(&last.committed),
            epochs: last.epochs,
            duration_s: last.elapsed.as_secs_f64(),
            nodes: last.committed.iter().map(node).collect(),
            total: Total { rows: rows(&last.totals), nodes: last.totals.clone() },
            ..Self::default()
        }
    }

    /// Of one that was not begun.
    pub(crate) fn skipped(pipeline: &str) -> Self {
        Self { pipeline: pipeline.to_owned(), status: Status::Skipped, ..Self::default() }
    }

    /// On standard output, in one line.
    pub(crate) fn print(&self) -> Result<(), Failure> {
        let text = serde_json::to_string(self)
            .map_err(|error| Failure::failed(format!("the report can't be written: {error}")))?;
        out::print(&format!("{text}\n"))
    }

    /// Of a run that ended well.
    pub(crate) fn of(report: &RunReport) -> Self {
        let counts =
            |of: fn(&NodeReport) -> NodeCounts| Rows::of(report.nodes.iter().map(move |n| (n.role, of(n))));
        Self {
            pipeline: report.pipeline.clone(),
            status: match report.outcome {
                Outcome::Completed => Status::Completed,
                Outcome::Stopped => Status::Stopped,
            },
            error: None,
            rows: counts(|n| n.counts),
            epochs: report.epochs,
            restarts: report.restarts,
            duration_s: report.duration.as_secs_f64(),
            delivery: report.nodes.iter().filter_map(|n| Some((n.name.clone(), n.delivery?))).collect(),
            nodes: report
                .nodes
                .iter()
                .map(|n| (n.name.clone(), Node { role: n.role, counts: n.counts, guards: n.guards.clone() }))
                .collect(),
            total: Total {
                rows: counts(|n| n.total),
                nodes: report.nodes.iter().map(|n| (n.name.clone(), n.total)).collect(),
            },
        }
    }
}

impl Rows {
    fn of(nodes: impl Iterator<Item = (&'static str, NodeCounts)>) -> Self {
        nodes.fold(Self::default(), |mut rows, (role, counts)| {
            match role {
                "source" => rows.rows_read += counts.rows_in,
                "sink" | "fallback" => rows.rows_written += counts.rows_out,
                _ => {}
            }
            rows.rows_rejected += counts.rejected;
            rows.rows_filtered += counts.filtered;
            rows
        })
    }
}
