//! What a pipeline is told beyond its graph.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sink::Sink;

/// What a run does when an earlier one read its bounded inputs to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Again {
    /// Reads what is new since: new files, later offsets. The default for sinks that append.
    Resume,
    /// Reads everything once more, as a new generation. The default where a sink overwrites.
    Full,
}

/// How often a row reaches a sink, whatever fails in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// A crash may lose rows of one source, and double those of another or of a transform's state.
    BestEffort,
    /// Never twice, but a crash may lose rows.
    AtMostOnce,
    /// Never lost, but a crash may double rows.
    AtLeastOnce,
    /// Never lost; a row written twice leaves the target as if written once.
    EffectivelyOnce,
    /// Neither lost nor doubled.
    ExactlyOnce,
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BestEffort => "best effort",
            Self::AtMostOnce => "at most once",
            Self::AtLeastOnce => "at least once",
            Self::EffectivelyOnce => "effectively once",
            Self::ExactlyOnce => "exactly once",
        })
    }
}

/// What happens to a row that can't go on.
#[derive(Debug, Clone, Default)]
pub struct OnError {
    pub(crate) action: Action,
    pub(crate) max_rows: Option<u64>,
    pub(crate) max_share: Option<f64>,
}

#[derive(Debug, Clone, Default)]
pub(crate) enum Action {
    #[default]
    Fail,
    Skip,
    DeadLetter(Arc<dyn Sink>),
}

impl OnError {
    /// The run stops at the first such row. The default.
    pub fn fail() -> Self {
        Self::default()
    }

    /// The row is counted and dropped.
    pub fn skip() -> Self {
        Self { action: Action::Skip, ..Self::default() }
    }

    /// The row goes to `sink`, committed with the epoch that met it.
    pub fn dead_letter(sink: impl Sink) -> Self {
        Self { action: Action::DeadLetter(Arc::new(sink)), ..Self::default() }
    }

    /// The run stops when more rows than this were rejected in it.
    #[must_use]
    pub fn max_rows(mut self, rows: u64) -> Self {
        self.max_rows = Some(rows);
        self
    }

    /// The run stops when, at the end of an epoch, more than this share (0 to 1) of the rows that
    /// it read were rejected.
    #[must_use]
    pub fn max_share(mut self, share: f64) -> Self {
        self.max_share = Some(share);
        self
    }
}

/// How often, and after which pauses, a run restarts itself after a passing error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// How many restarts in a row; an epoch that is committed in between starts the count anew.
    pub max: u32,
    /// The pause before the first; each further one is twice as long, with jitter.
    pub backoff: Duration,
    /// The longest pause.
    pub max_backoff: Duration,
}

impl Default for Restart {
    fn default() -> Self {
        Self { max: 5, backoff: Duration::from_millis(200), max_backoff: Duration::from_secs(30) }
    }
}
