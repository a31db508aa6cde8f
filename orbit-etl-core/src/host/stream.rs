//! A stream of batches as a source.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::stream::{self, BoxStream, Stream, StreamExt};
use serde_json::json;

use crate::connector::{Connector, ConnectorInfo, Health, StreamInfo};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::event::{Position, SourceEvent, StreamId};
use crate::source::{Replay, ScanRequest, Source, Split, SplitChange};

/// Reads a stream of the host's. It can be read once: no crash, restart or second run gives its rows
/// back, so sinks behind it are promised at most once.
pub struct StreamSource {
    /// A checkpoint must not take another stream for this one.
    id: String,
    schema: SchemaRef,
    stream: Arc<Mutex<Option<BoxStream<'static, Result<RecordBatch>>>>>,
    bounded: bool,
}

impl fmt::Debug for StreamSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSource").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl StreamSource {
    /// From a stream that ends.
    pub fn new(schema: SchemaRef, stream: impl Stream<Item = Result<RecordBatch>> + Send + 'static) -> Self {
        Self {
            id: uuid::Uuid::now_v7().to_string(),
            schema,
            stream: Arc::new(Mutex::new(Some(stream.boxed()))),
            bounded: true,
        }
    }

    /// From a stream that may never end.
    pub fn unbounded(
        schema: SchemaRef,
        stream: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    ) -> Self {
        Self { bounded: false, ..Self::new(schema, stream) }
    }
}

#[async_trait]
impl Connector for StreamSource {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("stream", "a stream of the host").with_local(true)
    }

    async fn health(&self, _: &Context) -> Result<Health> {
        Ok(Health::default())
    }

    async fn discover(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        self.streams(cx).await
    }
}

#[async_trait]
impl Source for StreamSource {
    async fn streams(&self, _: &Context) -> Result<Vec<StreamInfo>> {
        Ok(vec![StreamInfo::new("rows", self.schema.clone()).with_bounded(self.bounded)])
    }

    fn replay(&self) -> Replay {
        Replay::None
    }

    async fn splits(
        &self,
        _: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        let position = Position(json!({"told": self.id}));
        let told = after == Some(&position);
        let mut split = Split::new(self.id.as_str(), json!({}));
        split.bounded = self.bounded;
        let added = if told { Vec::new() } else { vec![split] };
        let change = SplitChange { added, revoked: Vec::new(), position };
        Ok(stream::iter([Ok(change)]).boxed())
    }

    async fn open(
        &self,
        _: &Context,
        split: &Split,
        after: Option<&Position>,
        _: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
        if split.id.as_str() != self.id {
            // An older value's: what was left of it went with it.
            return Ok(stream::iter([Ok(SourceEvent::Finished)]).boxed());
        }
        let taken = self.stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(rows) = taken else {
            return Err(Error::unsupported("a stream of the host can be read only once")
                .remedy("build the pipeline anew with a new stream"));
        };
        let before = after.and_then(|p| p.0["row"].as_u64()).unwrap_or(0);
        let events = rows.scan(before, |read, batch| {
            let event = batch.map(|batch| {
                *read += batch.num_rows() as u64;
                let position = Some(json!({"row": *read}).into());
                SourceEvent::Batch { stream: StreamId(0), batch, position }
            });
            futures::future::ready(Some(event))
        });
        Ok(events.chain(stream::iter([Ok(SourceEvent::Finished)])).boxed())
    }
}
