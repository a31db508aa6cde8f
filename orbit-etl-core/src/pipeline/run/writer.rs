//! A lane of a sink.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::gate::{Event, Gate};
use super::report::Message;
use crate::error::{Error, Result};
use crate::event::StreamId;
use crate::fault::{RejectPort, failpoint};
use crate::observe::Counter;
use crate::planted::{Bug, planted};
use crate::signal::Listener;
use crate::sink::{Epoch, SinkWriter};

/// What a lane of a sink works with.
pub(crate) struct Writer {
    pub(crate) node: usize,
    pub(crate) lane: usize,
    pub(crate) gate: Gate,
    pub(crate) writer: Box<dyn SinkWriter>,
    pub(crate) rejects: RejectPort,
    pub(crate) counter: Counter,
    pub(crate) coordinator: mpsc::UnboundedSender<Message>,
    /// For a sink that can't take rows of the next epoch before this one is committed: the last
    /// epoch that is.
    pub(crate) committed: Option<Listener>,
    /// The streams' names, for rejects.
    pub(crate) streams: Arc<[String]>,
}

impl Writer {
    /// Runs until the tasks around it go.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut held = None;
        loop {
            match self.gate.next().await? {
                Event::Batch { port, batch, bytes } => {
                    self.counter.batch_in(batch.num_rows() as u64);
                    self.counter.rows_out(batch.num_rows() as u64, bytes as u64);
                    let due = match planted(Bug::BarrierAheadOfRows) {
                        true => held.replace((port, batch)),
                        false => Some((port, batch)),
                    };
                    if let Some((port, batch)) = due {
                        self.writer.write(StreamId(port), batch).await?;
                    }
                }
                Event::Schema { port, schema } => {
                    self.writer.schema_changed(StreamId(port), &schema).await?;
                }
                Event::Watermark(_) => {}
                Event::End => {
                    if let Some((port, batch)) = held.take() {
                        self.writer.write(StreamId(port), batch).await?;
                    }
                    self.tell(Message::WriterEnded)?;
                }
                Event::Barrier(epoch) => self.barrier(epoch).await?,
            }
        }
    }

    async fn barrier(&mut self, epoch: Epoch) -> Result<()> {
        failpoint("before_prepare");
        let mut prepared = self.writer.prepare(epoch).await?;
        failpoint("after_prepare");
        let mut counts = self.counter.take();
        for mut reject in std::mem::take(&mut prepared.rejects) {
            counts.rejected += reject.rows;
            counts.rows_out = counts.rows_out.saturating_sub(reject.rows);
            if let [stream] = &*self.streams {
                reject.origin.stream.get_or_insert_with(|| stream.clone());
            }
            self.rejects.reject(reject).await?;
        }
        if prepared.bytes > 0 {
            counts.bytes = prepared.bytes;
        }
        self.rejects.passed(epoch);
        let (node, lane) = (self.node, self.lane);
        self.tell(Message::WriterAtBarrier { node, lane, epoch, prepared, counts })?;
        if let Some(committed) = &mut self.committed {
            committed.wait_for(|last| last >= epoch).await;
        }
        Ok(())
    }

    fn tell(&self, message: Message) -> Result<()> {
        self.coordinator.send(message).map_err(|_| Error::cancelled())
    }
}
