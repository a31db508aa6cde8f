//! The contract of sources.
//!
//! A source *enumerates* splits and *opens* them. A split is a part of the data that is read in
//! order by one reader: a file or a part of one, a table range, a topic partition, a replication
//! slot. The engine decides which lane reads which split, remembers how far each has come, and
//! opens it again after that position.

use std::fmt;

use async_trait::async_trait;
use datafusion_expr::Expr;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::connector::{Connector, StreamInfo};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::event::{Position, Reject, SourceEvent, SplitId, StreamId};

/// Where rows come from.
///
/// * **Order.** Events of one split arrive in order; nothing is promised between splits.
/// * **Idempotence.** Opening a split twice after the same position yields what
///   [`Source::replay`] says.
/// * **Concurrency.** Different splits are opened and read at the same time; one split is read
///   by one reader at a time.
/// * **Cancellation.** Dropping a stream stops the reading at once and leaves nothing behind.
/// * **Memory.** A source holds a bounded number of batches of a split, whatever its size.
#[async_trait]
pub trait Source: Connector {
    /// The streams that this configuration reads, with their schemas. Called once per run, before
    /// anything else; the order gives the [`StreamId`]s.
    ///
    /// # Errors
    /// Not found, not allowed, no readable schema.
    async fn streams(&self, cx: &Context) -> Result<Vec<StreamInfo>>;

    /// What opening after a position gives back, for this configuration. Pure.
    fn replay(&self) -> Replay;

    /// Which parts of a wish this source will carry out when it is opened with it. Pure.
    fn pushdown(&self, wanted: &ScanRequest) -> Pushdown {
        Pushdown::none(wanted)
    }

    /// The splits, now and as they come and go: those not yet told of after `after`, the
    /// enumerator's own position. The stream ends when no further split can come; an unbounded
    /// source's never does.
    ///
    /// Each split is told of once, and again only to bring it back after it was revoked. **What has
    /// ended is the enumerator's to remember**: the engine forgets a split with the epoch in which it
    /// was read to its end, in this run and in all that follow. Told of again after that (after its end
    /// was [acknowledged](Source::acknowledge)) it is a new split, read from its start, and its rows
    /// come once more. Told of again before, it is still the split that has ended, and nothing is left
    /// to read.
    ///
    /// # Errors
    /// The listing failed. A file that changed since it was read is an error here, if the
    /// configuration says so.
    async fn splits(
        &self,
        cx: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>>;

    /// Reads one split after `after` (from its start if `None`). `scan` holds one request per
    /// stream, in the order of [`Source::streams`], with just those parts that
    /// [`Source::pushdown`] took.
    ///
    /// # Errors
    /// Those of the opening; the stream yields those of the reading. After an error the stream is
    /// dropped.
    async fn open(
        &self,
        cx: &Context,
        split: &Split,
        after: Option<&Position>,
        scan: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>>;

    /// Reads records once more that this source, as it was configured before, has rejected as they stood
    /// ([`Payload::Raw`](crate::Payload::Raw)), so that they can be sent again after the configuration was
    /// mended. The events are batches and rejects without positions; rejects keep their origins.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) unless overridden; what the records were read with,
    /// such as a file's header, is gone.
    async fn decode(&self, cx: &Context, records: Vec<Reject>) -> Result<Vec<SourceEvent>> {
        let _ = (cx, records);
        Err(Error::unsupported(format!("{} can't read rejected records again", self.info().type_tag))
            .remedy("mend the data at its source"))
    }

    /// The epoch that covers these positions is durable in every sink, its dead letters too.
    /// What came before them will not be asked for again. Does nothing unless overridden.
    ///
    /// # Errors
    /// An error restarts the pipeline; the positions are acknowledged again by the next epoch.
    async fn acknowledge(&self, cx: &Context, upto: &[(SplitId, Position)]) -> Result<()> {
        let _ = (cx, upto);
        Ok(())
    }
}

/// What a source gives back when a split is opened again after a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Replay {
    /// Exactly the rows after the position, though batches may be cut elsewhere.
    Exact,
    /// A split can only be read whole: positions come at its end alone.
    WholeSplit,
    /// There is no way back. Positions still come, or no epoch could end; they are told again when
    /// a split is opened, but need not be honoured.
    None,
}

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::WholeSplit => "whole split",
            Self::None => "none",
        })
    }
}

/// A part of a source that one reader reads in order. It describes itself completely: a plan with
/// its splits can be sent elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// The same in every run that reads the same data.
    pub id: SplitId,
    /// What the connector needs to open it.
    pub payload: Value,
    /// Whether it ends. Bounded splits pass through the lanes in turn; unbounded ones share them.
    pub bounded: bool,
    /// Its rough size, for progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Splits that must be read and committed before this one is opened (a snapshot before the
    /// changes that follow it). They are announced before it or with it: a split that the engine
    /// doesn't know, or knows no more, holds nothing back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<SplitId>,
}

impl Split {
    /// A bounded split.
    pub fn new(id: impl Into<std::sync::Arc<str>>, payload: Value) -> Self {
        Self { id: SplitId::new(id), payload, bounded: true, bytes: None, after: Vec::new() }
    }
}

/// News of the enumerator.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitChange {
    /// Splits to read from now on. One that is known already is read on from where it stood; one that
    /// has ended, see [`Source::splits`].
    pub added: Vec<Split>,
    /// Splits that this run must not read any further (a partition that moved elsewhere).
    pub revoked: Vec<SplitId>,
    /// The enumerator's position after this change.
    pub position: Position,
}

/// What the engine would like a source to leave out.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanRequest {
    /// Which stream.
    pub stream: StreamId,
    /// The columns that are needed, by name, in the stream's order; `None` for all.
    pub projection: Option<Vec<String>>,
    /// Rows for which one of these isn't true are not needed. Column references are unqualified.
    pub filters: Vec<Expr>,
    /// The number of rows that a batch should have.
    pub batch_rows: usize,
}

impl ScanRequest {
    /// Everything, in batches of `batch_rows`.
    pub fn all(stream: StreamId, batch_rows: usize) -> Self {
        Self { stream, projection: None, filters: Vec::new(), batch_rows }
    }
}

/// A source's answer to a [`ScanRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushdown {
    /// Whether only the wanted columns will come. Otherwise the engine drops the rest.
    pub projection: bool,
    /// One answer per filter, in order.
    pub filters: Vec<FilterPushdown>,
}

impl Pushdown {
    /// Nothing can be left out.
    pub fn none(wanted: &ScanRequest) -> Self {
        Self { projection: false, filters: vec![FilterPushdown::Unsupported; wanted.filters.len()] }
    }
}

/// How far a source carries out a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterPushdown {
    /// Just the rows for which it is true will come.
    Exact,
    /// A superset of them will come, as after pruning by statistics.
    Inexact,
    /// All rows will come.
    Unsupported,
}
