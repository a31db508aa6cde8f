//! What a node's guards have done.

use std::time::Duration;

use serde::Serialize;

/// What the guards of a node (`retry`, `timeout`, `rate_limit`, `circuit_breaker`, `bulkhead`, `fallback`)
/// have done since the run began, over all its restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GuardCounts {
    /// Calls that were repeated.
    pub retries: u64,
    /// Calls that took too long.
    pub timeouts: u64,
    /// How long calls waited for the rate limits, over all lanes.
    pub throttled: Duration,
    /// How long calls waited for their turn in the bulkhead, over all lanes.
    pub queued: Duration,
    /// `closed`, `open` or `half_open`.
    pub circuit: Option<&'static str>,
    /// How often the circuit has opened.
    pub circuit_opened: u64,
    /// Calls that were not made because it was open.
    pub refused: u64,
    /// Batches that were halved because the sink refused a row of them.
    pub bisections: u64,
    /// Rows that the fallback took instead. Those of epochs that were discarded count too.
    pub fallback_rows: u64,
}
