//! A lane of a sink.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use tokio::sync::mpsc;

use super::gate::{Event, Gate};
use super::guarded::GuardedWriter;
use super::report::Message;
use crate::error::{Error, Result, ResultExt};
use crate::event::{Reject, StreamId};
use crate::fault::{RejectPort, failpoint};
use crate::observe::Counter;
use crate::pipeline::Fit;
use crate::planted::{Bug, planted};
use crate::signal::Listener;
use crate::sink::Epoch;

/// What a lane of a sink works with.
pub(crate) struct Writer {
    pub(crate) node: usize,
    pub(crate) lane: usize,
    pub(crate) gate: Gate,
    pub(crate) writer: GuardedWriter,
    pub(crate) rejects: RejectPort,
    pub(crate) counter: Counter,
    pub(crate) coordinator: mpsc::UnboundedSender<Message>,
    /// For a sink that can't take rows of the next epoch before this one is committed: the last
    /// epoch that is.
    pub(crate) committed: Option<Listener>,
    /// The streams' names, for rejects.
    pub(crate) streams: Arc<[String]>,
    /// By input, for a sink with a schema contract: how its rows are made to fit, unless they are left out.
    pub(crate) fits: Option<Vec<Option<Fit>>>,
    /// What the sink's schemas have become in the open epoch.
    pub(crate) evolved: Vec<(String, SchemaRef)>,
    /// Rows of the open epoch that were counted as written, and were not.
    pub(crate) refused: u64,
    pub(crate) left_out: u64,
    pub(crate) fell_back: u64,
}

impl Writer {
    /// Runs until the tasks around it go.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut held = None;
        loop {
            match self.gate.next().await? {
                Event::Batch { port, batch, bytes } => {
                    self.counter.rows_in(batch.num_rows() as u64);
                    self.counter.rows_out(batch.num_rows() as u64, bytes as u64);
                    let due = match planted(Bug::BarrierAheadOfRows) {
                        true => held.replace((port, batch)),
                        false => Some((port, batch)),
                    };
                    if let Some((port, batch)) = due {
                        self.write(port, batch).await?;
                    }
                }
                Event::Schema { port, schema } => {
                    self.schema_changed(port, schema).await?;
                }
                Event::Watermark(_) => {}
                Event::End => {
                    if let Some((port, batch)) = held.take() {
                        self.write(port, batch).await?;
                    }
                    self.tell(Message::WriterEnded)?;
                }
                Event::Barrier(epoch) => self.barrier(epoch).await?,
            }
        }
    }

    /// The sink's own number of an input: those that are left out have none.
    fn stream(&self, port: usize) -> Option<StreamId> {
        let Some(fits) = &self.fits else { return Some(StreamId(port)) };
        fits.get(port)?.as_ref()?;
        Some(StreamId(fits[..port].iter().filter(|fit| fit.is_some()).count()))
    }

    async fn schema_changed(&mut self, port: usize, schema: SchemaRef) -> Result<()> {
        let Some(stream) = self.stream(port) else { return Ok(()) };
        let fit = self.fits.as_mut().and_then(|fits| fits.get_mut(port)?.as_mut());
        let name = self.streams.get(port).cloned().unwrap_or_default();
        let schema = match fit {
            Some(fit) => {
                if !fit.changed(&schema).with("stream", &name)? {
                    return Ok(());
                }
                self.evolved.push((name, Arc::clone(fit.schema())));
                Arc::clone(fit.schema())
            }
            None => schema,
        };
        self.writer.schema_changed(stream, &schema).await
    }

    async fn write(&mut self, port: usize, mut batch: RecordBatch) -> Result<()> {
        let Some(stream) = self.stream(port) else {
            self.left_out += batch.num_rows() as u64;
            return Ok(());
        };
        if let Some(fit) = self.fits.as_ref().and_then(|fits| fits.get(port)?.as_ref()) {
            let (fitted, left_out) = fit.apply(&batch)?;
            self.left_out += left_out;
            batch = fitted;
            if batch.num_rows() == 0 {
                return Ok(());
            }
        }
        let left = self.writer.write(stream, batch).await?;
        self.fell_back += left.fell_back;
        for mut reject in left.rejects {
            self.refused += reject.rows;
            if let Some(stream) = self.streams.get(port) {
                reject.origin.stream.get_or_insert_with(|| stream.clone());
            }
            self.rejects.reject(reject).await?;
        }
        Ok(())
    }

    async fn reject(&mut self, mut reject: Reject) -> Result<()> {
        if let [stream] = &*self.streams {
            reject.origin.stream.get_or_insert_with(|| stream.clone());
        }
        self.rejects.reject(reject).await
    }

    async fn barrier(&mut self, epoch: Epoch) -> Result<()> {
        failpoint("before_prepare");
        let (mut prepared, mut aside) = self.writer.prepare(epoch).await?;
        failpoint("after_prepare");
        let mut counts = self.counter.take();
        let refused = std::mem::take(&mut self.refused);
        counts.rejected += refused;
        let left_out = std::mem::take(&mut self.left_out);
        counts.filtered += left_out;
        counts.rows_out =
            counts.rows_out.saturating_sub(refused + left_out + std::mem::take(&mut self.fell_back));
        for reject in std::mem::take(&mut prepared.rejects) {
            counts.rejected += reject.rows;
            counts.rows_out = counts.rows_out.saturating_sub(reject.rows);
            self.reject(reject).await?;
        }
        if let Some(aside) = &mut aside {
            for reject in std::mem::take(&mut aside.prepared.rejects) {
                aside.counts.rejected += reject.rows;
                aside.counts.rows_out = aside.counts.rows_out.saturating_sub(reject.rows);
                self.reject(reject).await?;
            }
        }
        if prepared.bytes > 0 {
            counts.bytes = prepared.bytes;
        }
        self.rejects.passed(epoch);
        let (node, lane) = (self.node, self.lane);
        let evolved = std::mem::take(&mut self.evolved);
        self.tell(Message::WriterAtBarrier { node, lane, epoch, prepared, counts, aside, evolved })?;
        if let Some(committed) = &mut self.committed {
            committed.wait_for(|last| last >= epoch).await;
        }
        Ok(())
    }

    fn tell(&self, message: Message) -> Result<()> {
        self.coordinator.send(message).map_err(|_| Error::cancelled())
    }
}
