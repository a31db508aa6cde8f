//! A closure as a transform.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;

use crate::connector::{ConnectorInfo, StreamInfo};
use crate::context::Context;
use crate::error::{Error, Result, ResultExt};
use crate::pipeline::Output;
use crate::transform::{Operator, Started, Transform};

type Function = dyn Fn(RecordBatch) -> Result<RecordBatch> + Send + Sync;

/// Applies a closure to every batch.
///
/// The output's schema is that of the closure's answer to an empty batch, which it gets once while
/// the pipeline is planned. It may return more or fewer rows than it is given; it must not keep any. One
/// that waits for something else than the processor belongs into `tokio::task::block_in_place`, or it
/// holds up the epochs too.
#[derive(Clone)]
pub struct Map {
    function: Arc<Function>,
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Map")
    }
}

impl Map {
    /// From a closure.
    pub fn new(function: impl Fn(RecordBatch) -> Result<RecordBatch> + Send + Sync + 'static) -> Self {
        Self { function: Arc::new(function) }
    }
}

#[async_trait]
impl Transform for Map {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("map", "a closure of the host")
    }

    async fn outputs(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Vec<StreamInfo>> {
        let [input] = inputs else {
            return Err(Error::config("a closure reads exactly one stream")
                .with("streams", inputs.len())
                .remedy("pick one as `node.stream`"));
        };
        let answer = (self.function)(RecordBatch::new_empty(input.schema.clone()))
            .map_err(|e| e.with("while", "the closure was given an empty batch"))?;
        Ok(vec![StreamInfo::new(cx.node(), answer.schema()).with_bounded(input.bounded)])
    }

    async fn start(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Started> {
        let schema = self.outputs(cx, inputs).await?.remove(0).schema;
        Ok(Started::Streaming(Box::new(Mapping { function: Arc::clone(&self.function), schema })))
    }
}

struct Mapping {
    function: Arc<Function>,
    schema: arrow::datatypes::SchemaRef,
}

#[async_trait]
impl Operator for Mapping {
    async fn process(&mut self, _: usize, batch: RecordBatch, out: &mut Output<'_>) -> Result<()> {
        let mapped = (self.function)(batch)?;
        if mapped.schema_ref() != &self.schema {
            return Err(Error::schema("the closure returns another schema than for an empty batch"))
                .with("node", "map");
        }
        out.emit(0, mapped).await
    }
}
