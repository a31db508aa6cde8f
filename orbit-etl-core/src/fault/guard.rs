//! What stands between a node and what it talks to: its turn, the circuit, a time limit, another try.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::backoff::pause;
use super::breaker::Breaker;
use super::options::{Bulkhead, GuardOptions};
use super::rate::Rate;
use crate::error::{Error, ErrorKind, Result};
use crate::observe::GuardCounts;

/// The guards of a run's nodes; they outlive its restarts.
#[derive(Debug, Default)]
pub(crate) struct Guards {
    by_node: BTreeMap<String, Arc<Guard>>,
}

/// One node's guard, shared by its lanes.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    options: GuardOptions,
    rows: Option<Rate>,
    bytes: Option<Rate>,
    requests: Option<Rate>,
    breaker: Option<Breaker>,
    bulkhead: Option<(Arc<Semaphore>, Duration)>,
    figures: Figures,
}

#[derive(Debug, Default)]
struct Figures {
    retries: AtomicU64,
    timeouts: AtomicU64,
    throttled_micros: AtomicU64,
    queued_micros: AtomicU64,
    refused: AtomicU64,
    bisections: AtomicU64,
    fallback_rows: AtomicU64,
}

/// How much a call carries.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Load {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

/// Failures of one thing that is tried, since it last came on.
#[derive(Debug, Default)]
pub(crate) struct Tries {
    failed: u32,
    since: Option<Instant>,
}

impl Guards {
    /// # Errors
    /// Options that make no sense, or nodes that disagree on a service.
    pub(crate) fn new<'a>(nodes: impl Iterator<Item = (&'a str, &'a GuardOptions)>) -> Result<Self> {
        let mut services: BTreeMap<String, (usize, Arc<Semaphore>)> = BTreeMap::new();
        let mut by_node = BTreeMap::new();
        for (name, options) in nodes.filter(|(_, options)| !options.is_empty()) {
            options.check().map_err(|e| e.with("node", name))?;
            let mut guard = Guard::new(options.clone());
            if let Some(Bulkhead { service, max_calls, max_wait }) = &options.bulkhead {
                let key = service.as_ref().map_or_else(|| format!("node {name}"), |s| format!("service {s}"));
                let (known, turns) =
                    services.entry(key).or_insert_with(|| (*max_calls, Arc::new(Semaphore::new(*max_calls))));
                if known != max_calls {
                    return Err(Error::config("two nodes allow one service a different number of calls")
                        .with("node", name)
                        .with("option", "bulkhead")
                        .with("service", service.as_deref().unwrap_or_default())
                        .remedy("give both the same `max_calls`"));
                }
                guard.bulkhead = Some((Arc::clone(turns), *max_wait));
            }
            by_node.insert(name.to_owned(), Arc::new(guard));
        }
        Ok(Self { by_node })
    }

    /// One that lets everything through, if nothing was asked for.
    pub(crate) fn of(&self, node: &str) -> Arc<Guard> {
        self.by_node.get(node).cloned().unwrap_or_default()
    }

    /// What the node's guard has done, if it has one.
    pub(crate) fn counts(&self, node: &str) -> Option<GuardCounts> {
        self.by_node.get(node).map(|guard| guard.counts())
    }
}

impl Guard {
    pub(crate) fn new(options: GuardOptions) -> Self {
        let limit = options.rate_limit.unwrap_or_default();
        Self {
            rows: limit.rows.map(Rate::new),
            bytes: limit.bytes.map(Rate::new),
            requests: limit.requests.map(Rate::new),
            breaker: options.circuit_breaker.map(Breaker::new),
            bulkhead: None,
            figures: Figures::default(),
            options,
        }
    }

    /// Makes a call once it may be made. A call that is refused has done nothing; one that took too long
    /// may have done anything.
    pub(crate) async fn call<T>(&self, load: Load, work: impl Future<Output = Result<T>>) -> Result<T> {
        if self.options.is_empty() {
            return work.await;
        }
        self.check_circuit()?;
        self.pass(load, true).await;
        let turn = match &self.bulkhead {
            Some((turns, max_wait)) => Some(self.turn(turns, *max_wait).await?),
            None => None,
        };
        let admitted = match &self.breaker {
            Some(breaker) => Some(breaker.admit().inspect_err(|_| add(&self.figures.refused, 1))?),
            None => None,
        };
        let ended = self.in_time(work).await;
        drop(turn);
        if let Some(admitted) = admitted {
            let error = ended.as_ref().err();
            admitted.ended(error.is_some_and(Error::is_retryable), error.and_then(Error::pause_asked));
        }
        ended
    }

    /// Ends what earlier calls began, whatever the circuit: a call that isn't made would only fail later.
    pub(crate) async fn finish<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        if self.options.is_empty() {
            return work.await;
        }
        let turn = match &self.bulkhead {
            Some((turns, max_wait)) => Some(self.turn(turns, *max_wait).await?),
            None => None,
        };
        let admitted = self.breaker.as_ref().and_then(|breaker| breaker.admit().ok());
        let ended = self.in_time(work).await;
        drop(turn);
        if let Some(admitted) = admitted {
            let error = ended.as_ref().err();
            admitted.ended(error.is_some_and(Error::is_retryable), error.and_then(Error::pause_asked));
        }
        ended
    }

    /// Waits until so much may pass.
    pub(crate) async fn pass(&self, load: Load, request: bool) {
        let amounts =
            [(&self.requests, u64::from(request)), (&self.rows, load.rows), (&self.bytes, load.bytes)];
        for (rate, amount) in amounts {
            if let Some(rate) = rate
                && amount > 0
            {
                let waited = rate.pass(amount).await;
                add(&self.figures.throttled_micros, micros(waited));
            }
        }
    }

    /// How many rows one call may carry, if each row has so many bytes: what passes in a second.
    pub(crate) fn rows_at_once(&self, row_bytes: u64) -> usize {
        let by_rows = self.rows.as_ref().map_or(u64::MAX, Rate::per_second);
        let by_bytes = self.bytes.as_ref().map_or(u64::MAX, |rate| rate.per_second() / row_bytes.max(1));
        usize::try_from(by_rows.min(by_bytes).max(1)).unwrap_or(usize::MAX)
    }

    /// Whether and after which pause something that failed is tried again.
    pub(crate) fn again(&self, tries: &mut Tries, error: &Error) -> Option<Duration> {
        let retry = self.options.retry.as_ref().filter(|_| error.is_retryable())?;
        tries.failed += 1;
        let now = Instant::now();
        let since = *tries.since.get_or_insert(now);
        let pause = pause(retry.backoff, retry.max_backoff, tries.failed, error.pause_asked());
        if tries.failed > retry.max || now + pause > since + retry.max_time {
            return None;
        }
        add(&self.figures.retries, 1);
        Some(pause)
    }

    /// Whether nothing was asked for.
    pub(crate) fn is_idle(&self) -> bool {
        self.options.is_empty()
    }

    /// How long a call may take.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.options.timeout
    }

    pub(crate) fn is_open(&self) -> bool {
        self.breaker.as_ref().is_some_and(Breaker::is_open)
    }

    pub(crate) fn trip(&self) {
        if let Some(breaker) = &self.breaker {
            breaker.trip();
        }
    }

    pub(crate) fn timed_out(&self, limit: Duration) -> Error {
        add(&self.figures.timeouts, 1);
        timed_out(limit)
    }

    pub(crate) fn bisected(&self) {
        add(&self.figures.bisections, 1);
    }

    pub(crate) fn fell_back(&self, rows: u64) {
        add(&self.figures.fallback_rows, rows);
    }

    pub(crate) fn counts(&self) -> GuardCounts {
        let Figures {
            retries,
            timeouts,
            throttled_micros,
            queued_micros,
            refused,
            bisections,
            fallback_rows,
        } = &self.figures;
        GuardCounts {
            retries: retries.load(Relaxed),
            timeouts: timeouts.load(Relaxed),
            throttled: Duration::from_micros(throttled_micros.load(Relaxed)),
            queued: Duration::from_micros(queued_micros.load(Relaxed)),
            circuit: self.breaker.as_ref().map(Breaker::state),
            circuit_opened: self.breaker.as_ref().map_or(0, Breaker::opened),
            refused: refused.load(Relaxed),
            bisections: bisections.load(Relaxed),
            fallback_rows: fallback_rows.load(Relaxed),
        }
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match self.options.timeout {
            Some(limit) => {
                tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(self.timed_out(limit)))
            }
            None => work.await,
        }
    }

    /// Nobody waits for a turn only to be refused.
    fn check_circuit(&self) -> Result<()> {
        match &self.breaker {
            Some(breaker) if breaker.is_open() => {
                add(&self.figures.refused, 1);
                breaker.admit().map(drop)
            }
            _ => Ok(()),
        }
    }

    async fn turn<'a>(
        &self,
        turns: &'a Semaphore,
        max_wait: Duration,
    ) -> Result<tokio::sync::SemaphorePermit<'a>> {
        let started = Instant::now();
        let got = tokio::time::timeout(max_wait, turns.acquire()).await;
        add(&self.figures.queued_micros, micros(started.elapsed()));
        match got {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(Error::new(ErrorKind::Unavailable, "no call of the bulkhead's became free in time")
                .with("waited", format!("{max_wait:?}"))
                .remedy("allow more calls, or a longer `max_wait`")
                .taken(0)),
        }
    }
}

impl Tries {
    /// It has come on.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

fn timed_out(limit: Duration) -> Error {
    Error::new(ErrorKind::Timeout, "no answer within the node's timeout")
        .with("timeout", format!("{limit:?}"))
}

fn add(figure: &AtomicU64, more: u64) {
    figure.fetch_add(more, Relaxed);
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
