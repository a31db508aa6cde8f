//! The channel between two tasks, bounded by bytes.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::task::AtomicWaker;
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::sink::Epoch;

/// What flows along an edge.
#[derive(Debug)]
pub(crate) enum Item {
    /// Rows for one input of the consumer, and about how many bytes they have.
    Batch { port: usize, batch: RecordBatch, bytes: usize },
    /// From here on that input has another schema.
    Schema { port: usize, schema: SchemaRef },
    /// The producer promises no earlier event time.
    Watermark(i64),
    /// Until its next watermark the producer holds none back.
    Idle,
    /// The producer has no more rows. Barriers still come.
    End,
    /// The epoch ends here.
    Barrier(Epoch),
}

/// The producer's end. One task sends.
#[derive(Debug)]
pub(crate) struct Sender {
    items: mpsc::UnboundedSender<(Item, usize)>,
    credit: Arc<Credit>,
}

/// The consumer's end.
#[derive(Debug)]
pub(crate) struct Receiver {
    items: mpsc::UnboundedReceiver<(Item, usize)>,
    credit: Arc<Credit>,
    /// The credit of the item that was received last: given back when the next one is asked for,
    /// since its rows are in the consumer's hands until then.
    held: usize,
}

/// How many bytes are under way on an edge.
#[derive(Debug, Clone)]
pub(crate) struct Buffered(Arc<Credit>);

impl Buffered {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed) as u64
    }
}

/// How many bytes may be under way. One task takes, one gives back.
#[derive(Debug)]
struct Credit {
    bytes: usize,
    used: AtomicUsize,
    gone: AtomicBool,
    producer: AtomicWaker,
}

/// An edge on which batches of at most `bytes` are under way, or a single larger one.
pub(crate) fn edge(bytes: usize) -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let credit = Arc::new(Credit {
        bytes: bytes.max(1),
        used: AtomicUsize::new(0),
        gone: AtomicBool::new(false),
        producer: AtomicWaker::new(),
    });
    (Sender { items: sender, credit: Arc::clone(&credit) }, Receiver { items: receiver, credit, held: 0 })
}

impl Credit {
    /// What a batch takes: at least a KiB, so that no flood of empty rows gets through for nothing, and
    /// not more than there is.
    fn cost(&self, bytes: usize) -> usize {
        bytes.clamp(1_024.min(self.bytes), self.bytes)
    }

    fn has(&self, cost: usize) -> bool {
        self.used.load(Ordering::Acquire) + cost <= self.bytes
    }

    /// Nobody else takes, so what was there is there still.
    fn take(&self, cost: usize) -> bool {
        let there = self.has(cost);
        if there {
            self.used.fetch_add(cost, Ordering::AcqRel);
        }
        there
    }

    /// A producer that waits is woken for more than one batch; when nothing is under way, at the latest.
    fn give_back(&self, cost: usize) {
        let left = self.used.fetch_sub(cost, Ordering::AcqRel) - cost;
        if left <= self.bytes / 2 {
            self.producer.wake();
        }
    }
}

impl Sender {
    /// For whoever looks on.
    pub(crate) fn buffered(&self) -> Buffered {
        Buffered(Arc::clone(&self.credit))
    }

    /// Whether a batch could be sent without waiting.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.credit.has(self.credit.cost(bytes))
    }

    /// Waits for credit and hands the item over.
    pub(crate) async fn send(&mut self, item: Item) -> Result<()> {
        let cost = match &item {
            Item::Batch { bytes, .. } => self.credit.cost(*bytes),
            _ => 0,
        };
        #[cfg(feature = "planted-bugs")]
        crate::planted::at_send().await;
        if cost > 0 && !self.credit.take(cost) {
            poll_fn(|cx| self.poll_take(cost, cx)).await?;
        }
        self.items.send((item, cost)).map_err(|_| gone())
    }

    fn poll_take(&self, cost: usize, cx: &mut Context<'_>) -> Poll<Result<()>> {
        // To be woken for what is given back from now on; then what was before is seen.
        self.credit.producer.register(cx.waker());
        if self.credit.take(cost) {
            Poll::Ready(Ok(()))
        } else if self.credit.gone.load(Ordering::Acquire) {
            Poll::Ready(Err(gone()))
        } else {
            Poll::Pending
        }
    }
}

/// The task at the other end has gone: it failed or the run stops, which it has told itself.
fn gone() -> Error {
    Error::cancelled()
}

impl Receiver {
    /// The next item, or `None` when the producer has gone.
    pub(crate) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let held = std::mem::take(&mut self.held);
        if held > 0 {
            self.credit.give_back(held);
        }
        self.items.poll_recv(cx).map(|next| {
            next.map(|(item, cost)| {
                self.held = cost;
                item
            })
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.credit.gone.store(true, Ordering::Release);
        self.credit.producer.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::Schema;
    use futures::FutureExt;

    fn batch(bytes: usize) -> Item {
        Item::Batch { port: 0, batch: RecordBatch::new_empty(Arc::new(Schema::empty())), bytes }
    }

    async fn received(receiver: &mut Receiver) -> Item {
        poll_fn(|cx| receiver.poll_recv(cx)).await.unwrap()
    }

    #[tokio::test]
    async fn credit_is_bytes_and_one_oversized_batch_passes_alone() {
        let (mut sender, mut receiver) = edge(16_384);
        sender.send(batch(8_192)).await.unwrap();
        sender.send(batch(8_192)).await.unwrap();
        assert!(sender.send(batch(1)).now_or_never().is_none(), "the credit is used up");
        assert!(!sender.has_room(1));
        sender.send(Item::Barrier(1)).now_or_never().unwrap().unwrap();
        received(&mut receiver).await;
        assert!(sender.send(batch(1)).now_or_never().is_none(), "the batch is still being handled");
        received(&mut receiver).await;
        sender.send(batch(1)).now_or_never().unwrap().unwrap();
        for _ in 0..2 {
            received(&mut receiver).await;
        }
        assert!(poll_fn(|cx| receiver.poll_recv(cx)).now_or_never().is_none());
        sender.send(batch(1_000_000)).now_or_never().unwrap().unwrap();
        assert!(sender.send(batch(1)).now_or_never().is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_producer_that_waits_is_woken_whatever_the_sizes() {
        for edge_bytes in [1, 1_024, 5_000, 100_000] {
            let (mut sender, mut receiver) = edge(edge_bytes);
            let producer = tokio::spawn(async move {
                for i in 0..5_000 {
                    sender.send(batch(i * 37 % 9_000)).await.unwrap();
                }
            });
            for i in 0..5_000 {
                let Item::Batch { bytes, .. } = received(&mut receiver).await else { panic!("a batch") };
                assert_eq!(bytes, i * 37 % 9_000);
                assert!(receiver.credit.used.load(Ordering::Acquire) <= edge_bytes);
            }
            producer.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_producer_that_waits_hears_that_the_consumer_is_gone() {
        let (mut sender, receiver) = edge(1);
        sender.send(batch(1)).await.unwrap();
        let waiting = tokio::spawn(async move { sender.send(batch(1)).await });
        tokio::task::yield_now().await;
        drop(receiver);
        assert!(waiting.await.unwrap().is_err());
    }
}
