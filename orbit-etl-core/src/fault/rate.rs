//! So much per second. On tokio's clock, so that it can be tested without waiting.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lets through what is asked for and makes the next one wait for it: over any time, no more than the rate
/// and one helping.
#[derive(Debug)]
pub(crate) struct Rate {
    per_second: u64,
    /// From when on the next may pass.
    free: Mutex<Option<Instant>>,
}

impl Rate {
    pub(crate) fn new(per_second: u64) -> Self {
        Self { per_second: per_second.max(1), free: Mutex::new(None) }
    }

    pub(crate) fn per_second(&self) -> u64 {
        self.per_second
    }

    /// Waits its turn, and says how long that took. Whoever stops waiting has used its turn up.
    pub(crate) async fn pass(&self, amount: u64) -> Duration {
        let now = Instant::now();
        let turn = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = free.unwrap_or(now).max(now);
            #[allow(clippy::cast_precision_loss)] // Rates and helpings are far below 52 bits.
            let takes = Duration::try_from_secs_f64(amount as f64 / self.per_second as f64);
            *free = Some(turn + takes.unwrap_or(Duration::from_secs(86_400)));
            turn
        };
        if turn > now {
            tokio::time::sleep_until(turn).await;
        }
        turn - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_over_several_who_pass_at_once() {
        let rate = Rate::new(100);
        let started = Instant::now();
        let pass = || async {
            for _ in 0..10 {
                rate.pass(25).await;
            }
        };
        futures::join!(pass(), pass());
        // The last of the twenty helpings begins after the other nineteen.
        assert_eq!(started.elapsed().as_millis() / 10, 475);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(rate.pass(1_000).await, Duration::ZERO, "an idle time is no debt");
    }
}
