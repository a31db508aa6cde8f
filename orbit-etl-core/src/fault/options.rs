//! How a node is guarded against the failures of what it talks to. All off unless asked for.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::spec::{ByteSize, Period};

/// How calls are repeated that failed with an error that passes by itself: opening a split, reading on at
/// the last position of a source that replays exactly, and writes of which the sink says what it took. What
/// can't be repeated is left to the restart of the run.
///
/// Pauses have full jitter, and are never shorter than the other side asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// How often a call is repeated; 4 unless given. Any progress starts the count anew.
    pub max: u32,
    /// No repetition begins later than this after the first failure; `1m` unless given.
    #[serde(deserialize_with = "period", serialize_with = "as_period")]
    #[schemars(with = "Period")]
    pub max_time: Duration,
    /// The longest pause before the first repetition; each further one may be twice as long. `100ms`
    /// unless given.
    #[serde(deserialize_with = "period", serialize_with = "as_period")]
    #[schemars(with = "Period")]
    pub backoff: Duration,
    /// The longest pause; `10s` unless given.
    #[serde(deserialize_with = "period", serialize_with = "as_period")]
    #[schemars(with = "Period")]
    pub max_backoff: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max: 4,
            max_time: Duration::from_secs(60),
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
        }
    }
}

/// How much passes through a node per second, all lanes together. Larger batches of a sink are
/// cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// Rows per second.
    pub rows: Option<u64>,
    /// Bytes per second, as the rows lie in memory.
    #[schemars(with = "Option<ByteSize>")]
    #[serde(deserialize_with = "crate::spec::bytes::deserialize")]
    pub bytes: Option<u64>,
    /// Calls per second: splits that are opened, batches that are written.
    pub requests: Option<u64>,
}

/// When calls are no longer made because most of them fail: the circuit is open. After a while a single
/// call tries whether it can be closed again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CircuitBreaker {
    /// The share (0 to 1) of calls that fail at which the circuit opens; 0.5 unless given.
    pub failure_rate: f64,
    /// How far back calls count; `30s` unless given.
    #[serde(deserialize_with = "period", serialize_with = "as_period")]
    #[schemars(with = "Period")]
    pub window: Duration,
    /// So many calls must be within the window before it opens; 5 unless given.
    pub min_calls: u32,
    /// How long it stays open before a call is tried; `10s` unless given.
    #[serde(deserialize_with = "period", serialize_with = "as_period")]
    #[schemars(with = "Period")]
    pub open_for: Duration,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            failure_rate: 0.5,
            window: Duration::from_secs(30),
            min_calls: 5,
            open_for: Duration::from_secs(10),
        }
    }
}

/// How many calls to one service may be under way at a time, from all nodes of the pipeline that name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bulkhead {
    /// The service's name; the node's own unless given.
    #[serde(default)]
    pub service: Option<String>,
    /// How many calls at a time.
    pub max_calls: usize,
    /// How long a call waits for its turn before it fails; `30s` unless given.
    #[serde(default = "patience", deserialize_with = "period", serialize_with = "as_period")]
    #[schemars(with = "Period")]
    pub max_wait: Duration,
}

impl Bulkhead {
    /// So many calls at a time, to a service of the node's own.
    pub fn new(max_calls: usize) -> Self {
        Self { service: None, max_calls, max_wait: patience() }
    }

    /// Shared by all nodes that name this service.
    #[must_use]
    pub fn of(mut self, service: impl Into<String>) -> Self {
        self.service = Some(service.into());
        self
    }
}

fn patience() -> Duration {
    Duration::from_secs(30)
}

/// What a node was asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct GuardOptions {
    pub(crate) retry: Option<Retry>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) rate_limit: Option<RateLimit>,
    pub(crate) circuit_breaker: Option<CircuitBreaker>,
    pub(crate) bulkhead: Option<Bulkhead>,
}

impl GuardOptions {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |option: &'static str, why: &str| Err(Error::config(why).with("option", option));
        if self.timeout == Some(Duration::ZERO) {
            return refuse("timeout", "a timeout of nothing lets no call end");
        }
        if let Some(limit) = &self.rate_limit
            && [limit.rows, limit.bytes, limit.requests].contains(&Some(0))
        {
            return refuse("rate_limit", "a rate of 0 lets nothing pass");
        }
        if let Some(breaker) = &self.circuit_breaker
            && !(breaker.failure_rate > 0.0 && breaker.failure_rate <= 1.0)
        {
            return refuse("circuit_breaker", "`failure_rate` is a share above 0, and at most 1");
        }
        if self.bulkhead.as_ref().is_some_and(|b| b.max_calls == 0) {
            return refuse("bulkhead", "`max_calls` of 0 lets no call begin");
        }
        Ok(())
    }

    /// For people.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(Retry { max, max_time, .. }) = self.retry {
            notes.push(format!("retry: up to {max} times within {max_time:?}"));
        }
        if let Some(timeout) = self.timeout {
            notes.push(format!("timeout: {timeout:?} per call"));
        }
        if let Some(limit) = &self.rate_limit {
            let named = [(limit.rows, "rows"), (limit.bytes, "bytes"), (limit.requests, "calls")];
            let parts: Vec<_> =
                named.iter().filter_map(|(n, what)| Some(format!("{} {what}", (*n)?))).collect();
            notes.push(format!("rate limit: {} per second", parts.join(", ")));
        }
        if let Some(breaker) = &self.circuit_breaker {
            notes.push(format!(
                "circuit breaker: opens for {:?} when {} of at least {} calls within {:?} fail",
                breaker.open_for, breaker.failure_rate, breaker.min_calls, breaker.window
            ));
        }
        if let Some(bulkhead) = &self.bulkhead {
            let service = bulkhead.service.as_deref().unwrap_or("its service");
            notes.push(format!("bulkhead: {} calls at a time to {service}", bulkhead.max_calls));
        }
        notes
    }
}

fn period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Period::deserialize(deserializer).map(Into::into)
}

fn as_period<S: Serializer>(period: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    Period(*period).serialize(serializer)
}
