//! A circuit that opens when most calls fail.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::options::CircuitBreaker;
use crate::error::{Error, Result};

/// The window is this many parts long, and moves on by one at a time.
const PARTS: u32 = 10;

#[derive(Debug)]
pub(crate) struct Breaker {
    options: CircuitBreaker,
    circuit: Mutex<Circuit>,
}

#[derive(Debug)]
struct Circuit {
    state: State,
    /// Calls that ended while the circuit was closed.
    parts: VecDeque<Part>,
    opened: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    /// One call is under way to see whether the other side is back.
    HalfOpen,
}

#[derive(Debug)]
struct Part {
    since: Instant,
    calls: u32,
    failed: u32,
}

/// A call that may be made. Dropping it without an end says nothing of the other side.
pub(crate) struct Admitted<'a> {
    breaker: &'a Breaker,
    probe: bool,
}

impl Breaker {
    pub(crate) fn new(options: CircuitBreaker) -> Self {
        let circuit = Circuit { state: State::Closed, parts: VecDeque::new(), opened: 0 };
        Self { options, circuit: Mutex::new(circuit) }
    }

    /// Whether a call would be refused now.
    pub(crate) fn is_open(&self) -> bool {
        match self.lock().state {
            State::Closed => false,
            State::Open { until } => Instant::now() < until,
            State::HalfOpen => true,
        }
    }

    /// How often it has opened.
    pub(crate) fn opened(&self) -> u64 {
        self.lock().opened
    }

    /// `closed`, `open` or `half_open`.
    pub(crate) fn state(&self) -> &'static str {
        match self.lock().state {
            State::Closed => "closed",
            State::Open { .. } => "open",
            State::HalfOpen => "half_open",
        }
    }

    /// Opens, whatever the rate: what failed stands for many calls.
    pub(crate) fn trip(&self) {
        let mut circuit = self.lock();
        circuit.state = State::Open { until: Instant::now() + self.options.open_for };
        circuit.parts.clear();
        circuit.opened += 1;
    }

    /// Fails at once while the circuit is open, and without an effect.
    pub(crate) fn admit(&self) -> Result<Admitted<'_>> {
        let mut circuit = self.lock();
        let refused = |left: Duration| {
            Error::unavailable("the circuit is open: most calls failed lately").retry_after(left).taken(0)
        };
        match circuit.state {
            State::Closed => Ok(Admitted { breaker: self, probe: false }),
            State::Open { until } => {
                let left = until.saturating_duration_since(Instant::now());
                if !left.is_zero() {
                    return Err(refused(left));
                }
                circuit.state = State::HalfOpen;
                Ok(Admitted { breaker: self, probe: true })
            }
            State::HalfOpen => Err(refused(Duration::ZERO)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted<'_> {
    /// `failed` means that the other side failed, not that it refused what it was sent; it may have asked
    /// not to be called for a while.
    pub(crate) fn ended(mut self, failed: bool, asked: Option<Duration>) {
        let options = &self.breaker.options;
        let mut circuit = self.breaker.lock();
        let now = Instant::now();
        let open = State::Open { until: now + options.open_for.max(asked.unwrap_or_default()) };
        if self.probe {
            self.probe = false;
            circuit.state = if failed { open } else { State::Closed };
            circuit.parts.clear();
            circuit.opened += u64::from(failed);
        } else if circuit.state == State::Closed {
            circuit.count(now, options.window, failed);
            let (calls, bad) = circuit.parts.iter().fold((0, 0), |(c, f), p| (c + p.calls, f + p.failed));
            if calls >= options.min_calls
                && f64::from(bad) >= options.failure_rate * f64::from(calls)
                && failed
            {
                circuit.state = open;
                circuit.parts.clear();
                circuit.opened += 1;
            }
        }
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if self.probe {
            self.breaker.lock().state = State::Open { until: Instant::now() };
        }
    }
}

impl Circuit {
    fn count(&mut self, now: Instant, window: Duration, failed: bool) {
        while self.parts.front().is_some_and(|p| now.saturating_duration_since(p.since) >= window) {
            self.parts.pop_front();
        }
        let fresh = |p: &Part| now.saturating_duration_since(p.since) < window / PARTS;
        if !self.parts.back().is_some_and(fresh) {
            self.parts.push_back(Part { since: now, calls: 0, failed: 0 });
        }
        if let Some(part) = self.parts.back_mut() {
            part.calls += 1;
            part.failed += u32::from(failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        Breaker::new(CircuitBreaker { min_calls: 4, ..CircuitBreaker::default() })
    }

    fn call(breaker: &Breaker, failed: bool) -> Result<()> {
        breaker.admit()?.ended(failed, None);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_at_the_rate_and_a_single_probe_closes_it() {
        let breaker = breaker();
        for failed in [false, true, false, true] {
            call(&breaker, failed).unwrap();
        }
        let refused = call(&breaker, false).unwrap_err();
        assert_eq!(refused.pause_asked(), Some(Duration::from_secs(10)));
        assert_eq!((refused.rows_taken(), refused.is_retryable()), (Some(0), true));
        tokio::time::advance(Duration::from_secs(10)).await;
        let probe = breaker.admit().unwrap();
        assert!(call(&breaker, false).is_err(), "only one call tries");
        probe.ended(true, None);
        assert!(call(&breaker, false).is_err(), "it failed, so the circuit stays open");
        tokio::time::advance(Duration::from_secs(10)).await;
        drop(breaker.admit().unwrap());
        call(&breaker, false).expect("a probe that never ended is tried again");
        assert_eq!((breaker.state(), breaker.opened()), ("closed", 2));
        for _ in 0..3 {
            call(&breaker, true).unwrap();
        }
        assert!(!breaker.is_open(), "what was before counts no more");
    }

    #[tokio::test(start_paused = true)]
    async fn old_calls_and_successes_keep_it_closed() {
        let breaker = breaker();
        for _ in 0..20 {
            for failed in [true, false, false, false] {
                call(&breaker, failed).unwrap();
                tokio::time::advance(Duration::from_millis(500)).await;
            }
        }
        assert!(!breaker.is_open(), "a quarter fails, not half");
        for _ in 0..20 {
            call(&breaker, true).unwrap();
            tokio::time::advance(Duration::from_secs(11)).await;
        }
        assert!(!breaker.is_open(), "never four calls within the window");
    }
}
