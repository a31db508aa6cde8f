//! The pipeline's memory as one query sees it: the same bytes, shared out so that an operator
//! which can spill does so before it takes what its neighbours need to begin at all.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};

/// This part of what is left is kept from those that can spill, for those that come later and can't.
const SPARE: usize = 8;

/// Every byte is taken from the pipeline's pool. Beyond that, one that can spill may hold at most
/// its equal part of what is left beside those that can't, and beside the pipeline's other nodes.
#[derive(Debug)]
pub(super) struct FairShare {
    pool: Arc<dyn MemoryPool>,
    /// How many of the query's consumers can spill.
    spillers: AtomicUsize,
    /// What they hold together.
    spillable: AtomicUsize,
}

impl FairShare {
    pub(super) fn of(pool: &Arc<dyn MemoryPool>) -> Self {
        Self { pool: Arc::clone(pool), spillers: AtomicUsize::new(0), spillable: AtomicUsize::new(0) }
    }

    /// What one that can spill may hold now; `None` for a pool without a known limit.
    fn share(&self) -> Option<usize> {
        let MemoryLimit::Finite(limit) = self.pool.memory_limit() else { return None };
        let others = self.pool.reserved().saturating_sub(self.spillable.load(Ordering::Relaxed));
        let left = limit.saturating_sub(others);
        Some((left - left / SPARE) / self.spillers.load(Ordering::Relaxed).max(1))
    }
}

impl fmt::Display for FairShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fair share of {}", self.pool)
    }
}

impl MemoryPool for FairShare {
    fn name(&self) -> &str {
        "fair share"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        if consumer.can_spill() {
            self.spillers.fetch_add(1, Ordering::Relaxed);
        }
        self.pool.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        if consumer.can_spill() {
            self.spillers.fetch_sub(1, Ordering::Relaxed);
        }
        self.pool.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.pool.grow(reservation, additional);
        if reservation.consumer().can_spill() {
            self.spillable.fetch_add(additional, Ordering::Relaxed);
        }
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        if reservation.consumer().can_spill() {
            self.spillable.fetch_sub(shrink, Ordering::Relaxed);
        }
        self.pool.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        if additional == 0 {
            // Others may have outgrown the limit; nothing more is nothing more.
            return Ok(());
        }
        let spills = reservation.consumer().can_spill();
        if spills
            && let Some(share) = self.share()
            && reservation.size() + additional > share
        {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{} asked for {additional} bytes more than its {}, its share being {share} bytes",
                reservation.consumer().name(),
                reservation.size(),
            )));
        }
        self.pool.try_grow(reservation, additional)?;
        if spills {
            self.spillable.fetch_add(additional, Ordering::Relaxed);
        }
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.pool.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.pool.memory_limit()
    }
}
