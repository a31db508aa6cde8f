//! The report of a run.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::GuardCounts;
use super::live::Vitals;
use crate::checkpoint::NodeCounts;
use crate::pipeline::Delivery;

/// How a run ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every input was read to its end.
    Completed,
    /// It was told to stop, and stopped after a last epoch.
    Stopped,
}

/// What a run did. Its figures count committed epochs of this run alone.
#[derive(Debug, Clone, Serialize)]
pub struct RunReport {
    /// The pipeline's name.
    pub pipeline: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The nodes in the order of the graph, the dead letters last.
    pub nodes: Vec<NodeReport>,
    /// How many epochs were committed.
    pub epochs: u64,
    /// How often the run restarted itself.
    pub restarts: u32,
    /// How long it took.
    pub duration: Duration,
}

/// One node of a [`RunReport`].
#[derive(Debug, Clone, Serialize)]
pub struct NodeReport {
    /// The node's name.
    pub name: String,
    /// `source`, `transform`, `sink`, `fallback` or `dead letters`.
    pub role: &'static str,
    /// What passed through it in this run.
    pub counts: NodeCounts,
    /// What passed through it in all runs of the pipeline, this one included.
    pub total: NodeCounts,
    /// For a sink: its guarantee.
    pub delivery: Option<Delivery>,
    /// What its guards did, if it has any.
    pub guards: Option<GuardCounts>,
}

impl RunReport {
    /// Rows read by all sources, rejects included.
    pub fn rows_read(&self) -> u64 {
        self.role("source").map(|n| n.counts.rows_in).sum()
    }

    /// Rows written, summed over the sinks; dead letters don't count.
    pub fn rows_written(&self) -> u64 {
        self.role("sink").chain(self.role("fallback")).map(|n| n.counts.rows_out).sum()
    }

    /// Rows rejected anywhere.
    pub fn rows_rejected(&self) -> u64 {
        self.nodes.iter().map(|n| n.counts.rejected).sum()
    }

    /// Rows left out on purpose, anywhere.
    pub fn rows_filtered(&self) -> u64 {
        self.nodes.iter().map(|n| n.counts.filtered).sum()
    }

    /// One node's part.
    pub fn node(&self, name: &str) -> Option<&NodeReport> {
        self.nodes.iter().find(|n| n.name == name)
    }

    fn role<'a>(&'a self, role: &'a str) -> impl Iterator<Item = &'a NodeReport> {
        self.nodes.iter().filter(move |n| n.role == role)
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match self.outcome {
            Outcome::Completed => "completed",
            Outcome::Stopped => "stopped",
        };
        writeln!(
            f,
            "{} {outcome} in {:.2} s: {} read, {} written, {} rejected, {} filtered, {} epochs",
            self.pipeline,
            self.duration.as_secs_f64(),
            self.rows_read(),
            self.rows_written(),
            self.rows_rejected(),
            self.rows_filtered(),
            self.epochs,
        )?;
        let width = self.nodes.iter().map(|n| n.name.len()).max().unwrap_or(4).max(4);
        writeln!(
            f,
            "  {:width$} {:9} {:>12} {:>12} {:>9} {:>10} {:>14}  delivery",
            "node", "role", "rows in", "rows out", "rejected", "filtered", "bytes"
        )?;
        for node in &self.nodes {
            let c = node.counts;
            let delivery = node.delivery.map_or(String::new(), |d| d.to_string());
            writeln!(
                f,
                "  {:width$} {:9} {:>12} {:>12} {:>9} {:>10} {:>14}  {delivery}",
                node.name, node.role, c.rows_in, c.rows_out, c.rejected, c.filtered, c.bytes
            )?;
        }
        Ok(())
    }
}

/// A look at a run that goes on. Its figures are live: they count rows of the open epoch too.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Progress {
    /// The nodes and what has passed through each since the run started or restarted.
    pub nodes: Vec<(String, NodeCounts)>,
    /// What the committed epochs of this run add up to, restarts included: as in the report.
    pub committed: BTreeMap<String, NodeCounts>,
    /// The same over all runs of the pipeline.
    pub totals: BTreeMap<String, NodeCounts>,
    /// What the guards of those nodes that have any have done.
    pub guards: BTreeMap<String, GuardCounts>,
    /// How many epochs this run has committed.
    pub epochs: u64,
    /// The last epoch that was committed.
    pub epoch: u64,
    /// How long the run has been going on.
    pub elapsed: Duration,
    /// Times, buffers and retries.
    pub vitals: Vitals,
}

impl Progress {
    /// The share of the rows read by these sources that were rejected anywhere, in committed epochs.
    #[allow(clippy::cast_precision_loss)] // A share needs no more than 52 bits.
    pub fn rejected_share<'a>(&self, sources: impl Iterator<Item = &'a str>) -> f64 {
        let read: u64 = sources.filter_map(|name| self.committed.get(name)).map(|c| c.rows_in).sum();
        let rejected: u64 = self.committed.values().map(|c| c.rejected).sum();
        if read == 0 { 0.0 } else { rejected as f64 / read as f64 }
    }
}
