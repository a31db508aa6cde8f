//! A lane of transforms, fused: a batch goes from one operator to the next without a hop.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use tokio::sync::mpsc;

use super::gate::{Event, Gate};
use super::report::Message;
use super::router::Router;
use crate::batch::estimated_bytes;
use crate::error::{Error, Result, ResultExt};
use crate::event::Reject;
use crate::fault::RejectPort;
use crate::observe::Counter;
use crate::pipeline::output::{Downstream, Output};
use crate::sink::Epoch;
use crate::transform::{Distribution, Operator};

/// One operator with what belongs to its node.
pub(crate) struct Link {
    pub(crate) node: usize,
    pub(crate) name: Arc<str>,
    pub(crate) operator: Box<dyn Operator>,
    pub(crate) distribution: Distribution,
    pub(crate) rejects: RejectPort,
    pub(crate) counter: Counter,
}

/// A lane of fused transforms.
pub(crate) struct Chain {
    pub(crate) gate: Gate,
    pub(crate) links: Vec<Link>,
    pub(crate) router: Router,
    pub(crate) coordinator: mpsc::UnboundedSender<Message>,
}

impl Chain {
    /// Runs until the tasks around it go.
    pub(crate) async fn run(mut self) -> Result<()> {
        loop {
            match self.gate.next().await? {
                Event::Batch { port, batch, bytes } => {
                    feed(&mut self.links, &mut self.router, port, batch, bytes).await?;
                }
                Event::Schema { port, schema } => {
                    let Some((first, rest)) = self.links.split_first_mut() else { continue };
                    let (operator, mut next) = first.open(rest, &mut self.router);
                    let mut out = Output::new(&mut next);
                    operator.schema_changed(port, &schema, &mut out).await.with("node", &first.name)?;
                }
                Event::Watermark(micros) => {
                    for i in 0..self.links.len() {
                        let Some((link, rest)) = self.links[i..].split_first_mut() else { break };
                        let (operator, mut next) = link.open(rest, &mut self.router);
                        let mut out = Output::new(&mut next);
                        operator.watermark(micros, &mut out).await.with("node", &link.name)?;
                    }
                    self.router.watermark(micros).await?;
                }
                Event::End => {
                    for i in 0..self.links.len() {
                        let Some((link, rest)) = self.links[i..].split_first_mut() else { break };
                        let (operator, mut next) = link.open(rest, &mut self.router);
                        let mut out = Output::new(&mut next);
                        operator.finish(&mut out).await.with("node", &link.name)?;
                    }
                    self.router.end().await?;
                }
                Event::Barrier(epoch) => self.barrier(epoch).await?,
            }
        }
    }

    async fn barrier(&mut self, epoch: Epoch) -> Result<()> {
        let mut operators = Vec::with_capacity(self.links.len());
        for link in &mut self.links {
            let state = link.operator.snapshot().await.with("node", &link.name)?;
            if link.distribution == Distribution::Any && !state.groups.is_empty() {
                return Err(Error::internal("a transform that takes rows in any lane can't keep state")
                    .with("node", &link.name));
            }
            link.rejects.passed(epoch);
            operators.push((link.node, state, link.counter.take()));
        }
        self.router.barrier(epoch).await?;
        self.coordinator.send(Message::ChainAtBarrier { epoch, operators }).map_err(|_| Error::cancelled())
    }
}

impl Link {
    fn open<'a>(
        &'a mut self,
        rest: &'a mut [Link],
        router: &'a mut Router,
    ) -> (&'a mut Box<dyn Operator>, Next<'a>) {
        let next = Next { rest, router, counter: &mut self.counter, rejects: &self.rejects };
        (&mut self.operator, next)
    }
}

/// Hands a batch to the first link, or out of the chain.
async fn feed(
    links: &mut [Link],
    router: &mut Router,
    port: usize,
    batch: RecordBatch,
    bytes: usize,
) -> Result<()> {
    let Some((link, rest)) = links.split_first_mut() else {
        return router.batch(port, batch, bytes).await;
    };
    link.counter.batch_in(batch.num_rows() as u64);
    let (operator, mut next) = link.open(rest, router);
    operator.process(port, batch, &mut Output::new(&mut next)).await.with("node", &link.name)
}

/// What follows a link.
struct Next<'a> {
    rest: &'a mut [Link],
    router: &'a mut Router,
    counter: &'a mut Counter,
    rejects: &'a RejectPort,
}

#[async_trait]
impl Downstream for Next<'_> {
    async fn push(&mut self, output: usize, batch: RecordBatch) -> Result<()> {
        let bytes = estimated_bytes(&batch);
        self.counter.rows_out(batch.num_rows() as u64, bytes as u64);
        if self.rest.is_empty() {
            self.router.batch(output, batch, bytes).await
        } else {
            // Only the single consumer of an only output is fused: it reads it as its input 0.
            feed(self.rest, self.router, 0, batch, bytes).await
        }
    }

    async fn reject(&mut self, reject: Reject) -> Result<()> {
        self.counter.rejected(reject.rows);
        self.rejects.reject(reject).await
    }

    fn filtered(&mut self, rows: u64) {
        self.counter.filtered(rows);
    }
}
