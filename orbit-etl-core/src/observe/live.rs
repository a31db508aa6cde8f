//! Figures of a run that are no row counts: times, buffers, retries.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::Serialize;

/// What is seen of a run besides its rows. Part of [`Progress`](super::Progress).
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Vitals {
    /// How often the run has restarted itself.
    pub restarts: u32,
    /// Requests that were sent again, over restarts.
    pub retries: u64,
    /// How long ago the last barrier was sent behind which nothing was left to commit.
    pub lag: Duration,
    /// Bytes that are reserved of the memory limit.
    pub memory: u64,
    /// From the last committed epoch's barrier to the end of its commit.
    pub last_epoch: Duration,
    /// How long that commit took.
    pub last_commit: Duration,
    /// By node, in the order of [`Progress::nodes`](super::Progress::nodes).
    pub nodes: Vec<NodeVitals>,
}

/// One node's part of [`Vitals`].
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct NodeVitals {
    /// The node's name.
    pub name: String,
    /// Batches that came in since the run started or restarted.
    pub batches: u64,
    /// Bytes of rows that are under way to the node.
    pub buffered: u64,
    /// How far a source's event time is behind the clock, if it tells.
    pub watermark_delay: Option<Duration>,
}

/// Requests that a node has sent again. A cheap clone; all of one run count in one place.
#[derive(Debug, Clone, Default)]
pub(crate) struct Retries(Arc<AtomicU64>);

impl Retries {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub(crate) fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// When what, in one run. Kept over restarts.
#[derive(Debug)]
pub(crate) struct Times {
    /// The last barrier behind which nothing was left to commit.
    fresh: Instant,
    /// The last barrier.
    barrier: Instant,
    commit: Instant,
    pub(crate) last_epoch: Duration,
    pub(crate) last_commit: Duration,
}

impl Default for Times {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            fresh: now,
            barrier: now,
            commit: now,
            last_epoch: Duration::ZERO,
            last_commit: Duration::ZERO,
        }
    }
}

impl Times {
    pub(crate) fn barrier(&mut self) {
        self.barrier = Instant::now();
    }

    pub(crate) fn commit(&mut self) {
        self.commit = Instant::now();
    }

    /// There was nothing to commit.
    pub(crate) fn nothing(&mut self) {
        self.fresh = self.barrier;
    }

    pub(crate) fn committed(&mut self) {
        self.fresh = self.barrier;
        self.last_epoch = self.barrier.elapsed();
        self.last_commit = self.commit.elapsed();
    }

    pub(crate) fn lag(&self) -> Duration {
        self.fresh.elapsed()
    }
}
