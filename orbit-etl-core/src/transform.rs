//! The contract of transforms.
//!
//! A [`Transform`] is a configuration; started, it becomes one [`Operator`] per lane, which maps
//! batches as they come, or one [`BlockingOperator`], which sees its whole bounded inputs.

use std::fmt::Debug;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::connector::{ConnectorInfo, StreamInfo};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::event::StreamId;
use crate::pipeline::Output;
use crate::source::ScanRequest;

/// Something that turns streams into streams.
#[async_trait]
pub trait Transform: Debug + Send + Sync + 'static {
    /// The transform's type tag and a description of this configuration. Pure.
    fn info(&self) -> ConnectorInfo;

    /// The streams that come out of these inputs; the first is the default one, the others are
    /// picked by `node.name`. Has no effect.
    ///
    /// # Errors
    /// An input that doesn't fit: a missing column, a wrong type, a wrong number of inputs.
    async fn outputs(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Vec<StreamInfo>>;

    /// Which rows must meet in one lane. Pure.
    fn distribution(&self) -> Distribution {
        Distribution::Any
    }

    /// Whether, unless it is blocking, every input row goes out once, is rejected or is counted as
    /// filtered. The engine then checks it with each epoch. Pure.
    fn maps_rows(&self) -> bool {
        false
    }

    /// Whether the inputs must end before the first row comes out. A pipeline with such a node
    /// commits once, at its end. Pure; asked after `outputs` has accepted the inputs.
    async fn blocking(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<bool> {
        let _ = (cx, inputs);
        Ok(false)
    }

    /// Whether the order in which rows come out means something, as after an `ORDER BY`. Asked of
    /// transforms that work in one lane (blocking ones and [`Distribution::Single`]): if it means
    /// nothing, sinks that don't need an order get the rows in several lanes again. Pure; asked after
    /// `outputs` has accepted the inputs.
    async fn ordered(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<bool> {
        let _ = (cx, inputs);
        Ok(true)
    }

    /// What is needed of input `input`: a wish for its source. The transform must give the same
    /// result if the wish isn't granted, whole or in part, but for columns: it is started with the
    /// narrowed schema.
    async fn scan(&self, cx: &Context, inputs: &[StreamInfo], input: usize) -> Result<ScanRequest> {
        let _ = inputs;
        Ok(ScanRequest::all(StreamId(input), cx.batch_rows()))
    }

    /// What each column of the outputs is made of, for lineage; `None` if that isn't known. Pure; asked
    /// after `outputs` has accepted the inputs, and only if somebody wants to know.
    ///
    /// # Errors
    /// As [`Transform::outputs`]; the run goes on without.
    async fn columns(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Option<ColumnLineage>> {
        let _ = (cx, inputs);
        Ok(None)
    }

    /// Makes one lane's operator. Blocking transforms are started once.
    ///
    /// # Errors
    /// As [`Transform::outputs`].
    async fn start(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Started>;
}

/// What a transform makes its columns of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ColumnLineage {
    /// The columns of the outputs that come from columns of the inputs.
    pub columns: Vec<ColumnOrigins>,
    /// What decides which rows come out: conditions, keys of joins and groups, orders.
    pub rows: Vec<ColumnOrigin>,
}

/// What one column is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnOrigins {
    /// Which output.
    pub output: usize,
    /// Its column.
    pub column: String,
    /// Columns of inputs; none for a constant.
    pub from: Vec<ColumnOrigin>,
}

/// A column of an input and what is done with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ColumnOrigin {
    /// Which input.
    pub input: usize,
    /// Its column.
    pub column: String,
    /// What is done with it.
    pub usage: ColumnUsage,
}

/// What is done with a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ColumnUsage {
    /// Handed on as it is.
    Same,
    /// Computed with, row by row.
    Computed,
    /// Many rows give one value.
    Aggregated,
    /// A condition that rows must meet.
    Filter,
    /// A key of a join.
    Join,
    /// A key of groups.
    Group,
    /// An order.
    Sort,
    /// Something that the row's value depends on among its neighbours.
    Window,
}

/// A started transform.
pub enum Started {
    /// Maps batches as they come.
    Streaming(Box<dyn Operator>),
    /// Sees its whole inputs.
    Blocking(Box<dyn BlockingOperator>),
}

/// Which rows must be handled by the same operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Distribution {
    /// Any row may go to any lane: the operator keeps no state.
    Any,
    /// Rows with equal values in these columns, in all inputs.
    Keyed(Vec<String>),
    /// All rows.
    Single,
}

/// One lane of a transform at work.
///
/// Calls come one after another. Every input row goes out, is rejected or is counted as filtered,
/// if the transform maps rows one by one.
#[async_trait]
pub trait Operator: Send {
    /// Handles one batch of one input. Results go to `out`; a row that can't be handled is rejected
    /// there.
    ///
    /// # Errors
    /// Any error discards the open epoch and restarts or stops the pipeline, as a retryable error
    /// or not.
    async fn process(&mut self, input: usize, batch: RecordBatch, out: &mut Output<'_>) -> Result<()>;

    /// No row with an event time below `micros` is to be expected in any input.
    ///
    /// # Errors
    /// As `process`.
    async fn watermark(&mut self, micros: i64, out: &mut Output<'_>) -> Result<()> {
        let _ = (micros, out);
        Ok(())
    }

    /// From the next batch on, the input has this schema.
    ///
    /// # Errors
    /// [`Schema`](crate::ErrorKind::Schema) where the operator can't follow; that is the default.
    async fn schema_changed(&mut self, input: usize, to: &SchemaRef, out: &mut Output<'_>) -> Result<()> {
        let _ = (to, out);
        Err(Error::schema("this transform can't follow a schema that changes during a run")
            .with("input", input))
    }

    /// All inputs have ended; what is still held goes out.
    ///
    /// # Errors
    /// As `process`.
    async fn finish(&mut self, out: &mut Output<'_>) -> Result<()> {
        let _ = out;
        Ok(())
    }

    /// The state at a barrier. `Keyed` operators return key groups, `Single` ones what they like
    /// under group 0, `Any` ones nothing.
    ///
    /// # Errors
    /// As `process`.
    async fn snapshot(&mut self) -> Result<OperatorState> {
        Ok(OperatorState::default())
    }

    /// The state of the last checkpoint, before the first batch: of a `Keyed` operator just the
    /// groups that this lane owns now.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if the state is of another version or shape.
    async fn restore(&mut self, state: OperatorState) -> Result<()> {
        if state.groups.is_empty() {
            Ok(())
        } else {
            Err(Error::config("the checkpoint holds state for a transform that keeps none")
                .remedy("give the changed transform another node name, or begin a new state directory"))
        }
    }
}

/// A transform that pulls its whole inputs.
///
/// It may read them in any order and at any pace. Memory is reserved in [`Context::memory`]; what
/// doesn't fit is spilled or refused.
#[async_trait]
pub trait BlockingOperator: Send {
    /// Turns the inputs into what goes to `out`; a row that can't be handled is rejected there, and
    /// belongs to the pipeline's only epoch as all others do. How many rows go in and out is not
    /// compared. One that returns early leaves the rest of the inputs unread; the engine drains them.
    ///
    /// # Errors
    /// As [`Operator::process`].
    async fn run(
        self: Box<Self>,
        inputs: Vec<BoxStream<'static, Result<RecordBatch>>>,
        out: &mut Output<'_>,
    ) -> Result<()>;
}

/// The number of key groups that keyed state is divided into. Fixed, so that the number of lanes can
/// change between runs.
pub const KEY_GROUPS: u16 = 128;

/// An operator's state, by key group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorState {
    /// Group number, below [`KEY_GROUPS`], to bytes that only the operator understands.
    pub groups: BTreeMap<u16, Vec<u8>>,
}
