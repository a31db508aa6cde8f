//! The pipeline's memory as one query sees it: the same bytes, shared out so that an operator
//! which can spill does so before it takes what its neighbours need to begin at all.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};

/// This part of what is left is kept from those that can spill, for those that come later and can't.
const SPARE: usize = 8;

/// DataFusion's name of what a sort needs to merge what it has spilled. It takes all that it gets, and
/// does with two batches where it gets no more.
const MERGE: &str = "ExternalSorterMerge";

/// Every byte is taken from the pipeline's pool. Beyond that, one that can spill may hold at most
/// its equal part of what is left beside those that can't, and beside the pipeline's other nodes; and
/// a sort that merges leaves the others room to sort and to merge.
#[derive(Debug)]
pub(super) struct FairShare {
    pool: Arc<dyn MemoryPool>,
    /// How many of the query's consumers can spill.
    spillers: AtomicUsize,
    /// What they hold together.
    spillable: AtomicUsize,
    /// How many sorts may have to merge, and what they hold for that together.
    merges: AtomicUsize,
    merging: AtomicUsize,
    /// What each of them takes before its first row; kept for it until then.
    merge_bytes: usize,
    /// The last one that was told no.
    refused: Mutex<Option<Refused>>,
}

/// Who was told no, and under which limit it would have been told yes, all else being the same.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    pub(super) who: String,
    pub(super) enough: usize,
}

impl FairShare {
    pub(super) fn of(pool: &Arc<dyn MemoryPool>, merge_bytes: usize) -> Self {
        Self {
            pool: Arc::clone(pool),
            spillers: AtomicUsize::new(0),
            spillable: AtomicUsize::new(0),
            merges: AtomicUsize::new(0),
            merging: AtomicUsize::new(0),
            merge_bytes,
            refused: Mutex::new(None),
        }
    }

    /// The last refusal. One that could spill has gone on after it; one that couldn't has failed.
    pub(super) fn refused(&self) -> Option<Refused> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refuse(&self, reservation: &MemoryReservation, enough: usize) {
        let who = reservation.consumer().name().to_owned();
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(Refused { who, enough });
    }

    /// What is held, or promised, beside those that can spill.
    fn others(&self) -> usize {
        let merging = self.merging.load(Ordering::Relaxed);
        let promised = self.merges.load(Ordering::Relaxed) * self.merge_bytes;
        let held = self.pool.reserved().saturating_sub(self.spillable.load(Ordering::Relaxed));
        held + promised.saturating_sub(merging)
    }

    /// What one merge may hold: all of them together leave half of the memory to those that sort.
    fn merge_share(&self) -> Option<usize> {
        let MemoryLimit::Finite(limit) = self.pool.memory_limit() else { return None };
        Some((limit / 2 / self.merges.load(Ordering::Relaxed).max(1)).max(self.merge_bytes))
    }

    /// Where what such a consumer holds is counted.
    fn tally(&self, consumer: &MemoryConsumer) -> Option<&AtomicUsize> {
        if consumer.can_spill() {
            Some(&self.spillable)
        } else if consumer.name().starts_with(MERGE) {
            Some(&self.merging)
        } else {
            None
        }
    }

    /// Where such consumers are counted.
    fn count(&self, consumer: &MemoryConsumer) -> Option<&AtomicUsize> {
        if consumer.can_spill() {
            Some(&self.spillers)
        } else if consumer.name().starts_with(MERGE) {
            Some(&self.merges)
        } else {
            None
        }
    }

    /// What one that can spill may hold now; `None` for a pool without a known limit.
    fn share(&self) -> Option<usize> {
        let MemoryLimit::Finite(limit) = self.pool.memory_limit() else { return None };
        let left = limit.saturating_sub(self.others());
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
        if let Some(count) = self.count(consumer) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.pool.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        if let Some(count) = self.count(consumer) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
        self.pool.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.pool.grow(reservation, additional);
        if let Some(tally) = self.tally(reservation.consumer()) {
            tally.fetch_add(additional, Ordering::Relaxed);
        }
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        if let Some(tally) = self.tally(reservation.consumer()) {
            tally.fetch_sub(shrink, Ordering::Relaxed);
        }
        self.pool.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        if additional == 0 {
            // Others may have outgrown the limit; nothing more is nothing more.
            return Ok(());
        }
        let consumer = reservation.consumer();
        let wanted = reservation.size() + additional;
        let (share, enough) = if consumer.can_spill() {
            // One that holds nothing has nothing to spill: it takes what there is, or fails.
            let share = if reservation.size() == 0 { None } else { self.share() };
            let all = wanted * self.spillers.load(Ordering::Relaxed).max(1);
            (share, self.others() + all + all / (SPARE - 1) + 1)
        } else if consumer.name().starts_with(MERGE) {
            (self.merge_share(), 2 * wanted * self.merges.load(Ordering::Relaxed).max(1))
        } else {
            (None, 0)
        };
        if let Some(share) = share
            && wanted > share
        {
            self.refuse(reservation, enough);
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{} asked for {additional} bytes more than its {}, its share being {share} bytes",
                consumer.name(),
                reservation.size(),
            )));
        }
        if let Err(error) = self.pool.try_grow(reservation, additional) {
            self.refuse(reservation, (self.pool.reserved() + additional).max(enough));
            return Err(error);
        }
        if let Some(tally) = self.tally(consumer) {
            tally.fetch_add(additional, Ordering::Relaxed);
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
