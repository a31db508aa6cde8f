//! Where the inputs of a task meet: barriers are aligned, ends and watermarks are merged.

use std::future::poll_fn;
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::edge::{Item, Receiver};
use crate::error::{Error, Result};
use crate::sink::Epoch;

/// What the inputs of a task say together.
#[derive(Debug)]
pub(crate) enum Event {
    Batch {
        port: usize,
        batch: RecordBatch,
        bytes: usize,
    },
    Schema {
        port: usize,
        schema: SchemaRef,
    },
    /// No input will bring an earlier event time.
    Watermark(i64),
    /// Every input has ended. Comes once.
    End,
    /// Every input has reached the barrier.
    Barrier(Epoch),
}

/// All edges into one task.
#[derive(Debug)]
pub(crate) struct Gate {
    inputs: Vec<Input>,
    next: usize,
    watermark: i64,
    ended: usize,
    aligned: usize,
    epoch: Epoch,
}

#[derive(Debug)]
struct Input {
    edge: Receiver,
    /// At the barrier; what follows belongs to the next epoch and waits.
    aligned: bool,
    ended: bool,
    idle: bool,
    watermark: i64,
}

impl Gate {
    pub(crate) fn new(edges: Vec<Receiver>) -> Self {
        let input = |edge| Input { edge, aligned: false, ended: false, idle: false, watermark: i64::MIN };
        Self {
            inputs: edges.into_iter().map(input).collect(),
            next: 0,
            watermark: i64::MIN,
            ended: 0,
            aligned: 0,
            epoch: 0,
        }
    }

    /// The next event of any input that may speak.
    pub(crate) async fn next(&mut self) -> Result<Event> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event>> {
        let count = self.inputs.len();
        let mut checked = 0;
        while checked < count {
            let i = self.next;
            self.next = (i + 1) % count;
            checked += 1;
            if self.inputs[i].aligned {
                continue;
            }
            match self.inputs[i].edge.poll_recv(cx) {
                Poll::Pending => {}
                Poll::Ready(None) => return Poll::Ready(Err(Error::cancelled())),
                Poll::Ready(Some(item)) => {
                    if let Some(event) = self.take(i, item)? {
                        return Poll::Ready(Ok(event));
                    }
                    checked = 0;
                }
            }
        }
        Poll::Pending
    }

    fn take(&mut self, i: usize, item: Item) -> Result<Option<Event>> {
        Ok(match item {
            Item::Batch { port, batch, bytes } => Some(Event::Batch { port, batch, bytes }),
            Item::Schema { port, schema } => Some(Event::Schema { port, schema }),
            Item::Watermark(at) => {
                self.inputs[i].watermark = at;
                self.inputs[i].idle = false;
                self.merge_watermarks()
            }
            Item::Idle => {
                self.inputs[i].idle = true;
                self.merge_watermarks()
            }
            Item::End => {
                self.inputs[i].ended = true;
                self.ended += 1;
                if self.ended == self.inputs.len() { Some(Event::End) } else { self.merge_watermarks() }
            }
            Item::Barrier(epoch) => {
                if self.aligned > 0 && epoch != self.epoch {
                    return Err(Error::internal("two barriers at once")
                        .with("epoch", epoch)
                        .with("aligning", self.epoch));
                }
                self.epoch = epoch;
                self.inputs[i].aligned = true;
                self.aligned += 1;
                if self.aligned < self.inputs.len() {
                    return Ok(None);
                }
                self.aligned = 0;
                self.inputs.iter_mut().for_each(|input| input.aligned = false);
                Some(Event::Barrier(epoch))
            }
        })
    }

    fn merge_watermarks(&mut self) -> Option<Event> {
        let lowest = self.inputs.iter().filter(|i| !i.ended && !i.idle).map(|i| i.watermark).min()?;
        if lowest > self.watermark {
            self.watermark = lowest;
            Some(Event::Watermark(lowest))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::run::edge::edge;
    use arrow::datatypes::Schema;
    use futures::FutureExt;
    use std::sync::Arc;

    fn batch() -> Item {
        Item::Batch { port: 0, batch: RecordBatch::new_empty(Arc::new(Schema::empty())), bytes: 0 }
    }

    #[tokio::test]
    async fn rows_behind_a_barrier_wait_for_the_other_inputs() {
        let (mut a, from_a) = edge(1 << 20);
        let (mut b, from_b) = edge(1 << 20);
        let mut gate = Gate::new(vec![from_a, from_b]);
        a.send(Item::Barrier(1)).await.unwrap();
        a.send(batch()).await.unwrap();
        assert!(gate.next().now_or_never().is_none(), "a's rows belong to epoch 2");
        b.send(batch()).await.unwrap();
        assert!(matches!(gate.next().await.unwrap(), Event::Batch { .. }));
        b.send(Item::Barrier(1)).await.unwrap();
        assert!(matches!(gate.next().await.unwrap(), Event::Barrier(1)));
        assert!(matches!(gate.next().await.unwrap(), Event::Batch { .. }));
    }

    #[tokio::test]
    async fn an_idle_input_holds_nobody_back_until_it_speaks_again() {
        let (mut a, from_a) = edge(1 << 20);
        let (mut b, from_b) = edge(1 << 20);
        let mut gate = Gate::new(vec![from_a, from_b]);
        a.send(Item::Watermark(10)).await.unwrap();
        assert!(gate.next().now_or_never().is_none());
        b.send(Item::Idle).await.unwrap();
        assert!(matches!(gate.next().await.unwrap(), Event::Watermark(10)));
        b.send(Item::Watermark(12)).await.unwrap();
        assert!(gate.next().now_or_never().is_none(), "still 10");
        a.send(Item::Watermark(20)).await.unwrap();
        assert!(matches!(gate.next().await.unwrap(), Event::Watermark(12)));
    }

    #[tokio::test]
    async fn watermarks_are_the_lowest_and_ends_come_once() {
        let (mut a, from_a) = edge(1 << 20);
        let (mut b, from_b) = edge(1 << 20);
        let mut gate = Gate::new(vec![from_a, from_b]);
        a.send(Item::Watermark(10)).await.unwrap();
        assert!(gate.next().now_or_never().is_none());
        b.send(Item::Watermark(5)).await.unwrap();
        assert!(matches!(gate.next().await.unwrap(), Event::Watermark(5)));
        b.send(Item::End).await.unwrap();
        assert!(
            matches!(gate.next().await.unwrap(), Event::Watermark(10)),
            "an ended input holds nobody back"
        );
        a.send(Item::Watermark(20)).await.unwrap();
        assert!(matches!(gate.next().await.unwrap(), Event::Watermark(20)));
        a.send(Item::End).await.unwrap();
        assert!(matches!(gate.next().await.unwrap(), Event::End));
        a.send(Item::Barrier(3)).await.unwrap();
        b.send(Item::Barrier(3)).await.unwrap();
        assert!(matches!(gate.next().await.unwrap(), Event::Barrier(3)));
    }
}
