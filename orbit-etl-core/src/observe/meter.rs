//! From what is seen of a run to the `metrics` facade.
//!
//! Handles are made once per run, and told a few times a second and at the end of each epoch: batches
//! never wait for it.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::catalog as name;
use super::{NodeCounts, Progress};
use crate::error::{ErrorKind, Result};
use crate::observe::{Outcome, RunReport};
use crate::pipeline::NodeInfo;

/// The handles of one run.
#[derive(Debug)]
pub(crate) struct Meter {
    pipeline: String,
    nodes: Vec<OfNode>,
    epochs: Grown,
    restarts: Grown,
    retries: Grown,
    epoch_seconds: Histogram,
    commit_seconds: Histogram,
    lag: Gauge,
    memory: Gauge,
    share: Gauge,
    running: Gauge,
    run_seconds: Gauge,
}

struct OfNode {
    name: String,
    is_source: bool,
    rows_in: Grown,
    rows_out: Grown,
    rejected: Grown,
    filtered: Grown,
    bytes: Grown,
    processed: Grown,
    batches: Grown,
    buffered: Gauge,
    /// Made when there is one, so that sources without event time show nothing.
    watermark: Option<Gauge>,
    labels: [(&'static str, String); 3],
}

impl std::fmt::Debug for OfNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OfNode").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A counter and what it was told last.
#[derive(Debug)]
struct Grown {
    counter: Counter,
    last: u64,
}

impl Grown {
    fn new(counter: Counter) -> Self {
        // It is there from the start on, with its labels.
        counter.increment(0);
        Self { counter, last: 0 }
    }

    /// What falls back (a row that was counted as written and is rejected by the commit) is made up for
    /// by what comes next: counters never fall.
    fn to(&mut self, now: u64) {
        if now > self.last {
            self.counter.increment(now - self.last);
            self.last = now;
        }
    }

    /// Of figures that begin anew with each restart.
    fn live(&mut self, now: u64) {
        if now < self.last {
            self.last = 0;
        }
        self.to(now);
    }
}

impl Meter {
    pub(crate) fn new(pipeline: &str, nodes: &[NodeInfo]) -> Self {
        let of = |name: &'static str| (name, [("pipeline", pipeline.to_owned())]);
        let count =
            |(name, labels): (&'static str, [(&'static str, String); 1])| Grown::new(counter!(name, &labels));
        let level = |(name, labels): (&'static str, [(&'static str, String); 1])| gauge!(name, &labels);
        let spread = |(name, labels): (&'static str, [(&'static str, String); 1])| histogram!(name, &labels);
        let meter = Self {
            pipeline: pipeline.to_owned(),
            nodes: nodes.iter().map(|node| OfNode::new(pipeline, node)).collect(),
            epochs: count(of(name::EPOCHS)),
            restarts: count(of(name::RESTARTS)),
            retries: count(of(name::RETRIES)),
            epoch_seconds: spread(of(name::EPOCH_SECONDS)),
            commit_seconds: spread(of(name::COMMIT_SECONDS)),
            lag: level(of(name::LAG)),
            memory: level(of(name::MEMORY)),
            share: level(of(name::SHARE)),
            running: level(of(name::RUNNING)),
            run_seconds: level(of(name::RUN_SECONDS)),
        };
        meter.running.set(1.0);
        meter.lag.set(0.0);
        meter.run_seconds.set(0.0);
        meter
    }

    /// Tells what is seen of the run now.
    #[allow(clippy::cast_precision_loss)] // Gauges are floats; 2^53 bytes are far away.
    pub(crate) fn tell(&mut self, look: &Progress) {
        let vitals = &look.vitals;
        for node in &mut self.nodes {
            let committed = look.committed.get(&node.name).copied().unwrap_or_default();
            node.committed(committed);
            if let Some((_, live)) = look.nodes.iter().find(|(name, _)| *name == node.name) {
                node.processed.live(live.rows_in);
            }
            if let Some(seen) = vitals.nodes.iter().find(|seen| seen.name == node.name) {
                node.batches.live(seen.batches);
                node.buffered.set(seen.buffered as f64);
                if let Some(delay) = seen.watermark_delay {
                    let labels = &node.labels;
                    node.watermark
                        .get_or_insert_with(|| gauge!(name::WATERMARK, labels))
                        .set(delay.as_secs_f64());
                }
            }
        }
        if look.epochs > self.epochs.last {
            self.epoch_seconds.record(vitals.last_epoch.as_secs_f64());
            self.commit_seconds.record(vitals.last_commit.as_secs_f64());
        }
        self.epochs.to(look.epochs);
        self.restarts.to(vitals.restarts.into());
        self.retries.to(vitals.retries);
        self.lag.set(vitals.lag.as_secs_f64());
        self.memory.set(vitals.memory as f64);
        self.share
            .set(look.rejected_share(self.nodes.iter().filter(|n| n.is_source).map(|n| n.name.as_str())));
        self.run_seconds.set(look.elapsed.as_secs_f64());
    }

    /// The run has ended.
    pub(crate) fn end(&mut self, result: &Result<RunReport>) {
        if let Ok(report) = result {
            for node in &mut self.nodes {
                node.committed(report.node(&node.name).map(|n| n.counts).unwrap_or_default());
                node.buffered.set(0.0);
            }
            self.epochs.to(report.epochs);
        }
        self.lag.set(0.0);
        self.memory.set(0.0);
        let labels = [("pipeline", self.pipeline.clone()), ("outcome", outcome(result).to_owned())];
        counter!(name::RUNS, &labels).increment(1);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.running.set(0.0);
    }
}

/// The word for how a run has ended.
pub(crate) fn outcome(result: &Result<RunReport>) -> &'static str {
    match result {
        Ok(report) => match report.outcome {
            Outcome::Completed => "completed",
            Outcome::Stopped => "stopped",
        },
        Err(error) => match error.kind() {
            ErrorKind::Cancelled => "cancelled",
            ErrorKind::Fenced => "fenced",
            _ => "failed",
        },
    }
}

impl OfNode {
    fn new(pipeline: &str, node: &NodeInfo) -> Self {
        let labels =
            [("pipeline", pipeline.to_owned()), ("node", node.name.clone()), ("role", node.role.to_owned())];
        let count = |name: &'static str| Grown::new(counter!(name, &labels));
        Self {
            name: node.name.clone(),
            is_source: node.role == "source",
            rows_in: count(name::ROWS_IN),
            rows_out: count(name::ROWS_OUT),
            rejected: count(name::REJECTED),
            filtered: count(name::FILTERED),
            bytes: count(name::BYTES),
            processed: count(name::PROCESSED),
            batches: count(name::BATCHES),
            buffered: gauge!(name::EDGE, &labels),
            watermark: None,
            labels,
        }
    }

    fn committed(&mut self, counts: NodeCounts) {
        self.rows_in.to(counts.rows_in);
        self.rows_out.to(counts.rows_out);
        self.rejected.to(counts.rejected);
        self.filtered.to(counts.filtered);
        self.bytes.to(counts.bytes);
    }
}
