//! A number that tasks wait for to change.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Tells its listeners of changes, and wakes them in the order in which they began to wait. (tokio's
/// `watch` draws another order each time; a simulated run could not be repeated.)
#[derive(Debug, Clone, Default)]
pub(crate) struct Signal(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    value: AtomicU64,
    changed: Notify,
}

/// Remembers what it has seen.
#[derive(Debug)]
pub(crate) struct Listener {
    signal: Signal,
    seen: Option<u64>,
}

impl Signal {
    pub(crate) fn set(&self, value: u64) {
        self.0.value.store(value, Ordering::Release);
        self.0.changed.notify_waiters();
    }

    pub(crate) fn bump(&self) {
        self.0.value.fetch_add(1, Ordering::AcqRel);
        self.0.changed.notify_waiters();
    }

    /// A listener that has seen the current value.
    pub(crate) fn subscribe(&self) -> Listener {
        Listener { signal: self.clone(), seen: Some(self.value()) }
    }

    fn value(&self) -> u64 {
        self.0.value.load(Ordering::Acquire)
    }
}

impl Listener {
    pub(crate) fn has_changed(&self) -> bool {
        self.seen != Some(self.signal.value())
    }

    /// Makes the next [`changed`](Self::changed) return at once.
    pub(crate) fn mark_changed(&mut self) {
        self.seen = None;
    }

    /// Waits until the value is another than the one that was seen.
    pub(crate) async fn changed(&mut self) {
        let seen = self.seen;
        self.seen = Some(self.wait_for(|value| Some(value) != seen).await);
    }

    /// Waits for such a value.
    pub(crate) async fn wait_for(&self, fits: impl Fn(u64) -> bool) -> u64 {
        loop {
            // It hears of whatever comes after this line.
            let changed = self.signal.0.changed.notified();
            let value = self.signal.value();
            if fits(value) {
                return value;
            }
            changed.await;
        }
    }
}
