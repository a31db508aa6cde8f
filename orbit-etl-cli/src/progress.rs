//! What is shown of runs while they go on: bars on a terminal, log lines elsewhere.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use futures::StreamExt;
use indicatif::{HumanBytes, HumanCount, MultiProgress, ProgressBar, ProgressStyle};
use orbit_etl::observe::Progress;
use orbit_etl::pipeline::NodeInfo;
use orbit_etl::{Pipeline, Running};
use tokio::task::JoinHandle;

use crate::metrics::Metrics;

/// How often a line is logged where there is no terminal.
const LINES_EVERY: Duration = Duration::from_secs(10);

/// Where the progress of all runs of this process is shown.
#[derive(Debug, Clone)]
pub(crate) struct Screen {
    bars: Option<MultiProgress>,
    metrics: Metrics,
}

/// The sums over a pipeline's nodes.
#[derive(Debug, Default)]
struct Sums {
    read: u64,
    written: u64,
    rejected: u64,
    bytes: u64,
}

impl Screen {
    /// Bars if standard error is a terminal.
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { bars: std::io::stderr().is_terminal().then(MultiProgress::new), metrics }
    }

    /// Watches a run until it ends, and tells what was seen last.
    pub(crate) fn watch(&self, pipeline: &Pipeline, running: &Running) -> JoinHandle<Progress> {
        let mut looks = Box::pin(running.progress());
        let name = pipeline.name().to_owned();
        let nodes = pipeline.nodes();
        let metrics = self.metrics.clone();
        metrics.begin(&name);
        match &self.bars {
            Some(bars) => {
                let bar = bars.add(ProgressBar::new_spinner());
                if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {msg}") {
                    bar.set_style(style);
                }
                bar.set_prefix(name.clone());
                bar.enable_steady_tick(Duration::from_millis(200));
                tokio::spawn(async move {
                    let mut last = Progress::default();
                    while let Some(look) = looks.next().await {
                        bar.set_message(Sums::of(&nodes, &look).to_line(&look));
                        last = look;
                    }
                    bar.finish_and_clear();
                    metrics.end(&name);
                    last
                })
            }
            None => tokio::spawn(async move {
                let mut next = LINES_EVERY;
                let mut last = Progress::default();
                while let Some(look) = looks.next().await {
                    if look.elapsed >= next {
                        next = look.elapsed + LINES_EVERY;
                        let sums = Sums::of(&nodes, &look);
                        tracing::info!(
                            pipeline = name,
                            rows_read = sums.read,
                            rows_written = sums.written,
                            rows_rejected = sums.rejected,
                            epoch = look.epoch,
                            elapsed_s = look.elapsed.as_secs(),
                            "running"
                        );
                    }
                    last = look;
                }
                metrics.end(&name);
                last
            }),
        }
    }
}

impl Sums {
    fn of(nodes: &[NodeInfo], look: &Progress) -> Self {
        look.nodes.iter().fold(Self::default(), |mut sums, (name, counts)| {
            sums.rejected += counts.rejected;
            match nodes.iter().find(|node| node.name == *name).map(|node| node.role) {
                Some("source") => {
                    sums.read += counts.rows_in;
                    sums.bytes += counts.bytes;
                }
                Some("sink" | "fallback") => sums.written += counts.rows_out,
                _ => {}
            }
            sums
        })
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A rate for the eye.
    fn to_line(&self, look: &Progress) -> String {
        let seconds = look.elapsed.as_secs_f64().max(0.001);
        let mut line = format!(
            "{} read, {} written, epoch {}, {} rows/s, {}/s",
            HumanCount(self.read),
            HumanCount(self.written),
            look.epoch,
            HumanCount((self.read as f64 / seconds) as u64),
            HumanBytes((self.bytes as f64 / seconds) as u64),
        );
        if self.rejected > 0 {
            let _ = write!(line, ", {} rejected", HumanCount(self.rejected));
        }
        line
    }
}
