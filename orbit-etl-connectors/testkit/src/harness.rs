//! What a connector's tests provide.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use async_trait::async_trait;
use orbit_etl_core::{Error, ErrorKind, Sink, Source, StreamInfo};

use crate::drive;

/// One configuration of a connector, ready to be tested. A connector with several commit modes or
/// formats has several.
#[async_trait]
pub trait Harness: Send + Sync {
    /// A target in a namespace of its own: a temporary directory, a new schema, a new topic. Where
    /// the server isn't there, this is [`Stop::Skip`]; see [`service`](crate::service()).
    async fn fresh(&self) -> Check<Box<dyn Fixture>>;

    /// What this configuration can do. Everything, unless overridden.
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }
}

/// One empty target, and ways into and out of it. Cleans up when it is dropped.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// A sink that writes to the target. Called several times: each stands for another run.
    fn sink(&self) -> Option<Arc<dyn Sink>> {
        None
    }

    /// A source that reads, in this order, just these streams of the target, as they are visible
    /// now. A connector without a source gives none and overrides [`Fixture::visible`].
    async fn source(&self, streams: &[StreamInfo]) -> Check<Option<Arc<dyn Source>>> {
        let _ = streams;
        Ok(None)
    }

    /// Puts rows into the target, for the tests of the source. Through the sink, unless
    /// overridden.
    async fn load(&self, stream: &StreamInfo, batches: &[RecordBatch]) -> Check {
        match self.sink() {
            Some(sink) => drive::write_rows(&*sink, stream, batches).await,
            None => Err(Stop::Skip("there is no sink, and the harness can't load rows".into())),
        }
    }

    /// The rows of a stream that a reader sees now; none if the stream isn't there. Through the
    /// source, unless overridden.
    async fn visible(&self, stream: &StreamInfo, idle: Duration) -> Check<Vec<RecordBatch>> {
        let source = match self.source(std::slice::from_ref(stream)).await {
            Err(Stop::Missing) => return Ok(Vec::new()),
            other => other?,
        };
        let Some(source) = source else {
            return Err(Stop::Skip("there is no source, and the harness can't read rows".into()));
        };
        match drive::read(&*source, idle).await {
            Err(Stop::Missing) => Ok(Vec::new()),
            other => Ok(other?.into_batches(0)),
        }
    }

    /// How many staged things lie in the target, if that can be seen from outside.
    async fn staged(&self) -> Check<Option<usize>> {
        Ok(None)
    }

    /// A source or sink that must fail in this way, if such a thing exists here.
    async fn broken(&self, what: Breakage) -> Check<Option<Broken>> {
        let _ = what;
        Ok(None)
    }
}

/// What a configuration can do, as data. What it can't is printed as skipped.
#[derive(Debug, Clone)]
pub struct Abilities {
    /// What comes back of a column of this type.
    pub types: fn(&DataType) -> Comes,
    /// Whether an empty text differs from NULL.
    pub empty_text: bool,
    /// Whether floats may be NaN or infinite.
    pub non_finite: bool,
    /// Whether −0.0 stays apart from 0.0.
    pub negative_zero: bool,
    /// Whether text may hold control characters, U+0000 among them.
    pub control_characters: bool,
    /// The years that dates and timestamps may lie in; all if `None`.
    pub years: Option<(i32, i32)>,
    /// Whether the target may hold several streams, each under its name.
    pub several_streams: bool,
    /// Whether the target itself knows its owner: an older claim is refused, and so is what an
    /// older run does after a newer claim.
    pub fences: bool,
    /// Whether the target records epochs. Only an immediate sink may say no.
    pub records_epochs: bool,
    /// How long a source that never ends may be silent before it is taken to have no more rows.
    pub idle: Duration,
    /// A memory limit under which a few thousand rows can be written and read, or be refused.
    pub memory_limit: usize,
}

impl Default for Abilities {
    fn default() -> Self {
        Self {
            types: |_| Comes::Same,
            empty_text: true,
            non_finite: true,
            negative_zero: true,
            control_characters: true,
            years: None,
            several_streams: true,
            fences: true,
            records_epochs: true,
            idle: Duration::from_secs(1),
            memory_limit: 1 << 20,
        }
    }
}

/// What comes back of a column that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comes {
    /// The same type and values.
    Same,
    /// This type, by the documented mapping; the values as arrow casts them.
    As(DataType),
    /// Nothing: the connector doesn't take it, for this reason.
    Never(&'static str),
}

/// A way in which a connector can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breakage {
    /// What is to be read isn't there: a table, a file, a topic.
    Missing,
    /// The credentials are wrong.
    BadCredentials,
    /// Nobody listens at the address.
    Unreachable,
}

/// A connector that must fail.
#[derive(Debug, Clone)]
pub enum Broken {
    /// When it is asked for its health, its streams or its rows.
    Source(Arc<dyn Source>),
    /// When it is asked for its health, opened or claimed.
    Sink(Arc<dyn Sink>),
}

/// The outcome of a contract.
pub type Check<T = ()> = Result<T, Stop>;

/// Why a contract didn't pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// It doesn't apply, for this reason.
    Skip(String),
    /// It is broken, in this way.
    Fail(String),
    /// A call answered `NotFound`: broken too, unless an absent stream counts as an empty one.
    Missing,
}

impl Stop {
    pub(crate) fn fail(message: impl Into<String>) -> Self {
        Self::Fail(message.into())
    }

    pub(crate) fn skip(message: impl Into<String>) -> Self {
        Self::Skip(message.into())
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skip(why) => write!(f, "skipped: {why}"),
            Self::Fail(why) => f.write_str(why),
            Self::Missing => f.write_str("the connector says that something isn't there"),
        }
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound => Self::Missing,
            _ => Self::Fail(error.report()),
        }
    }
}
