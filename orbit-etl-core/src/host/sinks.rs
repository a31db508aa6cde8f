//! A channel or a closure as a sink.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;

use crate::connector::{Connector, ConnectorInfo, Health, StreamInfo};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::event::{Reject, StreamId};
use crate::sink::{
    CheckpointRecord, CommitMode, Committable, Committed, Epoch, LaneId, Lineage, Prepared, Sink,
    SinkSession, SinkWriter,
};

type Function = dyn Fn(String, RecordBatch) -> BoxFuture<'static, Result<()>> + Send + Sync;

/// Hands every batch to an async closure, with the name of its stream. Batches are the host's as soon
/// as the closure has them: at least once.
///
/// Lanes call it at the same time; set [`parallelism`](crate::PipelineBuilder::parallelism) to 1 for
/// one call after another.
#[derive(Clone)]
pub struct FnSink {
    function: Arc<Function>,
}

impl fmt::Debug for FnSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FnSink")
    }
}

impl FnSink {
    /// From an async closure.
    pub fn new<F, R>(function: F) -> Self
    where
        F: Fn(String, RecordBatch) -> R + Send + Sync + 'static,
        R: Future<Output = Result<()>> + Send + 'static,
    {
        Self { function: Arc::new(move |stream, batch| function(stream, batch).boxed()) }
    }
}

/// Sends every batch into a channel and waits while it is full. When the receiver is gone, the run
/// stops with an error. At least once, as with [`FnSink`].
#[derive(Debug, Clone)]
pub struct ChannelSink {
    sender: mpsc::Sender<RecordBatch>,
}

impl ChannelSink {
    /// From the channel's sending end.
    pub fn new(sender: mpsc::Sender<RecordBatch>) -> Self {
        Self { sender }
    }

    fn as_function(&self) -> FnSink {
        let sender = self.sender.clone();
        FnSink::new(move |_, batch| {
            let sender = sender.clone();
            async move {
                sender.send(batch).await.map_err(|_| {
                    Error::new(crate::ErrorKind::Unavailable, "the receiver of the channel is gone")
                        .retryable(false)
                })
            }
        })
    }
}

#[async_trait]
impl Connector for FnSink {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("closure", "a closure of the host").with_local(true)
    }

    async fn health(&self, _: &Context) -> Result<Health> {
        Ok(Health::default())
    }
}

#[async_trait]
impl Sink for FnSink {
    fn commit_mode(&self) -> CommitMode {
        CommitMode::Immediate
    }

    async fn open(&self, _: &Context, inputs: &[StreamInfo]) -> Result<Box<dyn SinkSession>> {
        let names = inputs.iter().map(|s| s.name.clone()).collect();
        Ok(Box::new(Session { function: Arc::clone(&self.function), names }))
    }
}

#[async_trait]
impl Connector for ChannelSink {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("channel", "a channel of the host").with_local(true)
    }

    async fn health(&self, _: &Context) -> Result<Health> {
        if self.sender.is_closed() {
            return Err(Error::unavailable("the receiver of the channel is gone").retryable(false));
        }
        Ok(Health::default())
    }
}

#[async_trait]
impl Sink for ChannelSink {
    fn commit_mode(&self) -> CommitMode {
        CommitMode::Immediate
    }

    async fn open(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Box<dyn SinkSession>> {
        self.as_function().open(cx, inputs).await
    }
}

struct Session {
    function: Arc<Function>,
    names: Vec<String>,
}

#[async_trait]
impl SinkSession for Session {
    async fn claim(&mut self, _: &Lineage) -> Result<Option<Committed>> {
        Ok(None)
    }

    async fn writer(&mut self, _: LaneId) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(Writer { function: Arc::clone(&self.function), names: self.names.clone() }))
    }

    async fn commit(&mut self, _: Epoch, _: &CheckpointRecord, _: Vec<Committable>) -> Result<Vec<Reject>> {
        Ok(Vec::new())
    }
}

struct Writer {
    function: Arc<Function>,
    names: Vec<String>,
}

#[async_trait]
impl SinkWriter for Writer {
    async fn write(&mut self, stream: StreamId, batch: RecordBatch) -> Result<()> {
        let name = self.names.get(stream.0).cloned().unwrap_or_default();
        (self.function)(name, batch).await
    }

    async fn schema_changed(&mut self, _: StreamId, _: &arrow::datatypes::SchemaRef) -> Result<()> {
        // Every batch says its schema itself.
        Ok(())
    }

    async fn prepare(&mut self, _: Epoch) -> Result<Prepared> {
        Ok(Prepared::default())
    }
}
