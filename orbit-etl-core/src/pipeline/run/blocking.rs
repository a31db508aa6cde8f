//! A transform that sees its whole inputs: it pulls, the engine feeds and drains.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::{Mutex, mpsc};

use super::gate::{Event, Gate};
use super::report::Message;
use super::router::Router;
use super::spool::Spool;
use crate::batch::estimated_bytes;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::event::Reject;
use crate::fault::RejectPort;
use crate::observe::{Counter, NodeMetrics};
use crate::pipeline::output::{Downstream, Output};
use crate::pipeline::run::tasks::Tasks;
use crate::transform::{BlockingOperator, OperatorState};

/// The one task of a blocking transform.
pub(crate) struct Blocking {
    pub(crate) node: usize,
    pub(crate) cx: Context,
    /// One gate per input.
    pub(crate) gates: Vec<Gate>,
    /// Whether an input must never stand still for another, since both come from one source.
    pub(crate) spooled: bool,
    pub(crate) operator: Box<dyn BlockingOperator>,
    pub(crate) router: Router,
    pub(crate) rejects: RejectPort,
    pub(crate) live: Arc<NodeMetrics>,
    pub(crate) coordinator: mpsc::UnboundedSender<Message>,
}

type SharedGate = Arc<Mutex<Input>>;

struct Input {
    gate: Gate,
    counter: Counter,
    ended: bool,
}

impl Input {
    /// The next rows, or `None` at the end.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while !self.ended {
            match self.gate.next().await? {
                Event::Batch { batch, .. } => {
                    self.counter.batch_in(batch.num_rows() as u64);
                    return Ok(Some(batch));
                }
                Event::End => self.ended = true,
                Event::Watermark(_) => {}
                Event::Schema { .. } => {
                    return Err(Error::schema(
                        "a transform that needs its whole input can't follow a schema that changes",
                    ));
                }
                Event::Barrier(epoch) => {
                    return Err(
                        Error::internal("a barrier came before the end of an input").with("epoch", epoch)
                    );
                }
            }
        }
        Ok(None)
    }
}

impl Blocking {
    /// Runs until the tasks around it go.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut feeders = Tasks::default();
        let mut inputs: Vec<SharedGate> = Vec::new();
        let mut streams = Vec::new();
        for gate in std::mem::take(&mut self.gates) {
            let counter = Counter::new(&self.live);
            let input = Arc::new(Mutex::new(Input { gate, counter, ended: false }));
            inputs.push(Arc::clone(&input));
            if self.spooled {
                let (writer, reader) = Spool::new(&self.cx).split();
                feeders.spawn(async move {
                    while let Some(batch) = input.lock().await.next().await? {
                        writer.push(batch)?;
                    }
                    Ok(())
                });
                streams.push(reader.into_stream());
            } else {
                streams.push(read(input));
            }
        }
        let counter = Counter::new(&self.live);
        let mut next = Next { router: self.router, rejects: self.rejects, counter };
        self.operator.run(streams, &mut Output::new(&mut next)).await?;
        let Next { mut router, mut rejects, mut counter } = next;
        // What the operator didn't care to read is read all the same: positions must move on.
        feeders.join().await?;
        for input in &inputs {
            while input.lock().await.next().await?.is_some() {}
        }
        router.end().await?;
        loop {
            let mut epoch = 0;
            let mut counts = counter.take();
            for input in &inputs {
                let mut input = input.lock().await;
                epoch = match input.gate.next().await? {
                    Event::Barrier(epoch) => epoch,
                    _ => return Err(Error::internal("rows came after the end of an input")),
                };
                counts += input.counter.take();
            }
            rejects.passed(epoch);
            router.barrier(epoch).await?;
            let operators = vec![(self.node, OperatorState::default(), counts)];
            self.coordinator
                .send(Message::ChainAtBarrier { epoch, operators })
                .map_err(|_| Error::cancelled())?;
        }
    }
}

/// What follows the operator.
struct Next {
    router: Router,
    rejects: RejectPort,
    counter: Counter,
}

#[async_trait]
impl Downstream for Next {
    async fn push(&mut self, output: usize, batch: RecordBatch) -> Result<()> {
        let bytes = estimated_bytes(&batch);
        self.counter.rows_out(batch.num_rows() as u64, bytes as u64);
        self.router.batch(output, batch, bytes).await
    }

    async fn reject(&mut self, reject: Reject) -> Result<()> {
        self.counter.rejected(reject.rows);
        self.rejects.reject(reject).await
    }

    fn filtered(&mut self, rows: u64) {
        self.counter.filtered(rows);
    }
}

fn read(input: SharedGate) -> BoxStream<'static, Result<RecordBatch>> {
    stream::try_unfold(input, |input| async move {
        let next = input.lock().await.next().await?;
        Ok(next.map(|batch| (batch, input)))
    })
    .boxed()
}
