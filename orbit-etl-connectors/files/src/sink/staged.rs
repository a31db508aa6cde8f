//! The staged files of a run that no commit has published yet.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orbit_etl_core::{Epoch, LaneId};

/// Shared by a session and its writers. Staged names say which run made them, but not for which
/// epoch: a writer learns that only when it prepares.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registry {
    entries: Arc<Mutex<Vec<Entry>>>,
    numbers: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Entry {
    staged: String,
    lane: LaneId,
    /// `None` while the epoch is open.
    epoch: Option<Epoch>,
}

impl Registry {
    /// A number that no other file of this run has.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A file is about to be staged.
    pub(crate) fn begin(&self, lane: LaneId, staged: &str) {
        self.lock().push(Entry { staged: staged.to_owned(), lane, epoch: None });
    }

    /// What a lane has staged since it last prepared belongs to this epoch.
    pub(crate) fn prepared(&self, lane: LaneId, epoch: Epoch) {
        for entry in self.lock().iter_mut().filter(|e| e.lane == lane && e.epoch.is_none()) {
            entry.epoch = Some(epoch);
        }
    }

    /// Everything up to this epoch is published.
    pub(crate) fn committed(&self, epoch: Epoch) {
        self.lock().retain(|e| e.epoch.is_none_or(|of| of > epoch));
    }

    /// Takes out what belongs to this epoch, to one after it or to the open one: what follows an
    /// epoch that is given up is never committed either.
    pub(crate) fn give_up(&self, epoch: Epoch) -> Vec<String> {
        let mut gone = Vec::new();
        self.lock().retain_mut(|entry| {
            let keep = entry.epoch.is_some_and(|of| of < epoch);
            if !keep {
                gone.push(std::mem::take(&mut entry.staged));
            }
            keep
        });
        gone
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_that_is_given_up_takes_the_open_one_along() {
        let registry = Registry::default();
        let (a, b) = (LaneId(0), LaneId(1));
        registry.begin(a, "a1");
        registry.begin(b, "b1");
        registry.prepared(a, 1);
        registry.prepared(b, 1);
        registry.begin(a, "a2");
        registry.prepared(a, 2);
        registry.begin(b, "b2");
        assert_eq!(registry.give_up(2), ["a2", "b2"]);
        registry.committed(1);
        assert!(registry.give_up(1).is_empty());
    }
}
