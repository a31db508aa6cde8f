//! Counting rows: per node, live and per epoch.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::checkpoint::NodeCounts;

/// A node's live figures, by lane: lanes that count the same rows in one place would slow each other
/// down.
#[derive(Debug, Default)]
pub(crate) struct NodeMetrics {
    lanes: Mutex<Vec<Arc<Lane>>>,
}

/// Written by one task, read by any.
#[derive(Debug)]
struct Lane {
    rows_in: AtomicU64,
    rows_out: AtomicU64,
    rejected: AtomicU64,
    filtered: AtomicU64,
    bytes: AtomicU64,
    batches: AtomicU64,
    /// The lane's watermark, if it holds event time; else the least number.
    watermark: AtomicI64,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            rows_in: AtomicU64::new(0),
            rows_out: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            filtered: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            watermark: AtomicI64::new(i64::MIN),
        }
    }
}

impl NodeMetrics {
    pub(crate) fn read(&self) -> NodeCounts {
        let mut counts = NodeCounts::default();
        for lane in &*self.lanes.lock().unwrap_or_else(PoisonError::into_inner) {
            counts += NodeCounts {
                rows_in: lane.rows_in.load(Relaxed),
                rows_out: lane.rows_out.load(Relaxed),
                rejected: lane.rejected.load(Relaxed),
                filtered: lane.filtered.load(Relaxed),
                bytes: lane.bytes.load(Relaxed),
            };
        }
        counts
    }

    /// How many batches came in.
    pub(crate) fn batches(&self) -> u64 {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.iter().map(|lane| lane.batches.load(Relaxed)).sum()
    }

    /// The lowest watermark of the lanes that hold one.
    pub(crate) fn watermark(&self) -> Option<i64> {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.iter().map(|lane| lane.watermark.load(Relaxed)).filter(|at| *at > i64::MIN).min()
    }
}

/// One lane's count of one node: what the open epoch has so far, and the live figures.
#[derive(Debug)]
pub(crate) struct Counter {
    epoch: NodeCounts,
    live: Arc<Lane>,
}

impl Counter {
    pub(crate) fn new(node: &NodeMetrics) -> Self {
        let live = Arc::<Lane>::default();
        node.lanes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&live));
        Self { epoch: NodeCounts::default(), live }
    }

    pub(crate) fn rows_in(&mut self, rows: u64) {
        self.epoch.rows_in += rows;
        add(&self.live.rows_in, rows);
    }

    /// One more batch came in.
    pub(crate) fn batch_in(&mut self, rows: u64) {
        self.rows_in(rows);
        add(&self.live.batches, 1);
    }

    /// The lane has come so far in event time, or holds nobody back.
    pub(crate) fn watermark(&self, micros: Option<i64>) {
        self.live.watermark.store(micros.unwrap_or(i64::MIN), Relaxed);
    }

    pub(crate) fn rows_out(&mut self, rows: u64, bytes: u64) {
        self.epoch.rows_out += rows;
        self.epoch.bytes += bytes;
        add(&self.live.rows_out, rows);
        add(&self.live.bytes, bytes);
    }

    pub(crate) fn rejected(&mut self, rows: u64) {
        self.epoch.rejected += rows;
        add(&self.live.rejected, rows);
    }

    pub(crate) fn filtered(&mut self, rows: u64) {
        self.epoch.filtered += rows;
        add(&self.live.filtered, rows);
    }

    /// The figures of the epoch that ends, which starts anew.
    pub(crate) fn take(&mut self) -> NodeCounts {
        std::mem::take(&mut self.epoch)
    }
}

/// Nobody else adds to it.
fn add(figure: &AtomicU64, more: u64) {
    figure.store(figure.load(Relaxed).wrapping_add(more), Relaxed);
}
