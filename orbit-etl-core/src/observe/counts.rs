//! Counting rows: per node, live and per epoch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::checkpoint::NodeCounts;

/// A node's live figures, over all its lanes.
#[derive(Debug, Default)]
pub(crate) struct NodeMetrics {
    rows_in: AtomicU64,
    rows_out: AtomicU64,
    rejected: AtomicU64,
    filtered: AtomicU64,
    bytes: AtomicU64,
}

impl NodeMetrics {
    pub(crate) fn read(&self) -> NodeCounts {
        NodeCounts {
            rows_in: self.rows_in.load(Relaxed),
            rows_out: self.rows_out.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            filtered: self.filtered.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
        }
    }
}

/// One lane's count of one node: what the open epoch has so far, and the live figures.
#[derive(Debug)]
pub(crate) struct Counter {
    epoch: NodeCounts,
    live: Arc<NodeMetrics>,
}

impl Counter {
    pub(crate) fn new(live: Arc<NodeMetrics>) -> Self {
        Self { epoch: NodeCounts::default(), live }
    }

    pub(crate) fn rows_in(&mut self, rows: u64) {
        self.epoch.rows_in += rows;
        self.live.rows_in.fetch_add(rows, Relaxed);
    }

    pub(crate) fn rows_out(&mut self, rows: u64, bytes: u64) {
        self.epoch.rows_out += rows;
        self.epoch.bytes += bytes;
        self.live.rows_out.fetch_add(rows, Relaxed);
        self.live.bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn rejected(&mut self, rows: u64) {
        self.epoch.rejected += rows;
        self.live.rejected.fetch_add(rows, Relaxed);
    }

    pub(crate) fn filtered(&mut self, rows: u64) {
        self.epoch.filtered += rows;
        self.live.filtered.fetch_add(rows, Relaxed);
    }

    /// The figures of the epoch that ends, which starts anew.
    pub(crate) fn take(&mut self) -> NodeCounts {
        std::mem::take(&mut self.epoch)
    }
}
