//! How many rows of one node may be rejected.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{CEILING, Error, Result};

/// How many rows a node may reject before the run stops. What the open epoch brought is not committed then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MaxRejects {
    /// No more rows than this within the window.
    pub rows: Option<u64>,
    /// No larger share (0 to 1) of the rows that the node was given within the window. Looked at when an
    /// epoch ends and the window is full, or the input has ended.
    pub share: Option<f64>,
    /// How many of the node's newest rows count, in whole epochs; unless given, all of the run.
    pub window: Option<u64>,
}

/// The ceilings of a run's nodes; they outlive its restarts.
#[derive(Debug, Default)]
pub(crate) struct Ceilings {
    by_node: BTreeMap<String, Arc<Ceiling>>,
}

#[derive(Debug)]
pub(crate) struct Ceiling {
    limit: MaxRejects,
    /// Rejects within the window, those of the open epoch included.
    rejected: AtomicU64,
    committed: Mutex<VecDeque<Epoch>>,
}

/// A committed epoch.
#[derive(Debug, Clone, Copy)]
struct Epoch {
    rows: u64,
    rejected: u64,
}

impl Ceilings {
    pub(crate) fn new<'a>(nodes: impl Iterator<Item = (&'a str, MaxRejects)>) -> Result<Self> {
        let mut by_node = BTreeMap::new();
        for (name, limit) in nodes {
            let wrong = match limit {
                MaxRejects { share: Some(share), .. } if !(0.0..=1.0).contains(&share) => {
                    Some("a share lies between 0 and 1")
                }
                MaxRejects { rows: None, share: None, .. } => Some("say how many `rows`, or which `share`"),
                MaxRejects { window: Some(0), .. } => Some("a window of no rows never fills"),
                _ => None,
            };
            if let Some(wrong) = wrong {
                return Err(Error::config(wrong).with("node", name).with("option", "max_rejects"));
            }
            by_node.insert(name.to_owned(), Arc::new(Ceiling::new(limit)));
        }
        Ok(Self { by_node })
    }

    pub(crate) fn of(&self, node: &str) -> Option<Arc<Ceiling>> {
        self.by_node.get(node).cloned()
    }

    /// What was not committed is read again.
    pub(crate) fn begin_again(&self) {
        for ceiling in self.by_node.values() {
            let known = ceiling.lock().iter().map(|e| e.rejected).sum();
            ceiling.rejected.store(known, Relaxed);
        }
    }
}

impl Ceiling {
    fn new(limit: MaxRejects) -> Self {
        Self { limit, rejected: AtomicU64::new(0), committed: Mutex::default() }
    }

    /// Rows are rejected now.
    ///
    /// # Errors
    /// They are too many.
    pub(crate) fn count(&self, rows: u64) -> Result<()> {
        let rejected = self.rejected.fetch_add(rows, Relaxed) + rows;
        match self.limit.rows {
            Some(most) if rejected > most => {
                Err(Error::data("more rows of this node were rejected than it may")
                    .with("rejected", rejected)
                    .with(CEILING, most)
                    .remedy("mend the data or raise `max_rejects`; nothing of this epoch was committed"))
            }
            _ => Ok(()),
        }
    }

    /// Rows of a committed epoch were rejected after all.
    ///
    /// # Errors
    /// They are too many.
    pub(crate) fn count_late(&self, rows: u64) -> Result<()> {
        if let Some(last) = self.lock().back_mut() {
            last.rejected += rows;
        }
        self.count(rows)
    }

    /// Looks at the share before an epoch is committed.
    ///
    /// # Errors
    /// It is too large.
    pub(crate) fn check(&self, rows: u64, rejected: u64, last: bool) -> Result<()> {
        let Some(most) = self.limit.share else { return Ok(()) };
        let (mut rows, mut rejected) = (rows, rejected);
        let full = |rows: u64| self.limit.window.is_some_and(|window| rows >= window);
        for epoch in self.lock().iter().rev() {
            if full(rows) {
                break;
            }
            rows += epoch.rows;
            rejected += epoch.rejected;
        }
        #[allow(clippy::cast_precision_loss)] // A share needs no more than 52 bits.
        let too_many = rejected as f64 > most * rows as f64;
        if too_many && (last || self.limit.window.is_none() || full(rows)) {
            return Err(Error::data("a larger share of this node's rows was rejected than it may")
                .with("rejected", rejected)
                .with("rows", rows)
                .with(CEILING, most)
                .remedy("mend the data or raise `max_rejects`; nothing of this epoch was committed"));
        }
        Ok(())
    }

    /// An epoch is committed.
    pub(crate) fn committed(&self, rows: u64, rejected: u64) {
        let mut epochs = self.lock();
        epochs.push_back(Epoch { rows, rejected });
        match self.limit.window {
            Some(window) => {
                let mut within: u64 = epochs.iter().map(|e| e.rows).sum();
                while let Some(first) = epochs.front().copied()
                    && within - first.rows >= window
                {
                    epochs.pop_front();
                    within -= first.rows;
                    self.rejected.fetch_sub(first.rejected, Relaxed);
                }
            }
            // Nothing falls out: one sum is enough.
            None => {
                if let Some(next) = (epochs.len() > 1).then(|| epochs.pop_back()).flatten()
                    && let Some(sum) = epochs.back_mut()
                {
                    sum.rows += next.rows;
                    sum.rejected += next.rejected;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Epoch>> {
        self.committed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(ceiling: &Ceiling, rows: u64, rejected: u64) -> Result<()> {
        ceiling.count(rejected)?;
        ceiling.check(rows, rejected, false)?;
        ceiling.committed(rows, rejected);
        Ok(())
    }

    #[test]
    fn old_rejects_fall_out_of_the_window() {
        let ceiling = Ceiling::new(MaxRejects { rows: Some(6), share: None, window: Some(100) });
        for _ in 0..20 {
            epoch(&ceiling, 50, 2).unwrap();
        }
        assert!(epoch(&ceiling, 50, 2).is_ok() && epoch(&ceiling, 50, 4).is_err());
        let all = Ceiling::new(MaxRejects { rows: Some(5), share: None, window: None });
        assert!(epoch(&all, 50, 2).is_ok() && epoch(&all, 50, 2).is_ok() && epoch(&all, 50, 2).is_err());
        all.count_late(1).unwrap_err();
    }

    #[test]
    fn the_share_is_that_of_the_window_once_it_is_full() {
        let ceiling = Ceiling::new(MaxRejects { rows: None, share: Some(0.1), window: Some(100) });
        epoch(&ceiling, 10, 5).unwrap();
        epoch(&ceiling, 90, 3).unwrap();
        assert!(ceiling.check(10, 6, false).is_ok(), "nine of a hundred");
        assert!(ceiling.check(10, 8, false).is_err(), "eleven of a hundred");
        epoch(&ceiling, 1_000, 0).unwrap();
        assert!(ceiling.check(1_000, 101, false).is_err() && ceiling.check(1_000, 100, false).is_ok());
        let fresh = Ceiling::new(MaxRejects { rows: None, share: Some(0.1), window: Some(100) });
        assert!(fresh.check(10, 5, false).is_ok() && fresh.check(10, 5, true).is_err());
    }
}
