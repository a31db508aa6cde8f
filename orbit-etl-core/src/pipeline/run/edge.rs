//! The channel between two tasks, bounded by bytes.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::batch::estimated_bytes;
use crate::error::{Error, Result};
use crate::sink::Epoch;

/// What flows along an edge.
#[derive(Debug)]
pub(crate) enum Item {
    /// Rows for one input of the consumer.
    Batch { port: usize, batch: RecordBatch },
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

/// The producer's end.
#[derive(Debug)]
pub(crate) struct Sender {
    items: mpsc::UnboundedSender<(Item, Option<OwnedSemaphorePermit>)>,
    credit: Arc<Semaphore>,
    bytes: usize,
}

/// The consumer's end.
#[derive(Debug)]
pub(crate) struct Receiver {
    items: mpsc::UnboundedReceiver<(Item, Option<OwnedSemaphorePermit>)>,
    /// The credit of the item that was received last: given back when the next one is asked for,
    /// since its rows are in the consumer's hands until then.
    held: Option<OwnedSemaphorePermit>,
}

/// An edge on which batches of at most `bytes` are under way, or a single larger one.
pub(crate) fn edge(bytes: usize) -> (Sender, Receiver) {
    let bytes = bytes.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
    let (sender, receiver) = mpsc::unbounded_channel();
    (
        Sender { items: sender, credit: Arc::new(Semaphore::new(bytes)), bytes },
        Receiver { items: receiver, held: None },
    )
}

impl Sender {
    /// The credit that a batch takes.
    pub(crate) fn cost(&self, batch: &RecordBatch) -> u32 {
        // At least a KiB, so that no flood of empty rows gets through for nothing.
        let cost = estimated_bytes(batch).clamp(1_024.min(self.bytes), self.bytes);
        u32::try_from(cost).unwrap_or(u32::MAX)
    }

    /// Whether so much credit is there.
    pub(crate) fn has_room(&self, cost: u32) -> bool {
        self.credit.available_permits() >= cost as usize
    }

    /// Waits for credit and hands the item over.
    pub(crate) async fn send(&self, item: Item) -> Result<()> {
        let permit = match &item {
            Item::Batch { batch, .. } => {
                let cost = self.cost(batch);
                let credit = Arc::clone(&self.credit);
                Some(credit.acquire_many_owned(cost).await.map_err(|_| gone())?)
            }
            _ => None,
        };
        self.items.send((item, permit)).map_err(|_| gone())
    }
}

/// The task at the other end has gone: it failed or the run stops, which it has told itself.
fn gone() -> Error {
    Error::cancelled()
}

impl Receiver {
    /// The next item, or `None` when the producer has gone.
    pub(crate) fn poll_recv(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Item>> {
        self.held = None;
        self.items.poll_recv(cx).map(|next| {
            next.map(|(item, permit)| {
                self.held = permit;
                item
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Schema};
    use futures::FutureExt;
    use std::future::poll_fn;

    fn rows(n: usize) -> RecordBatch {
        let schema = Schema::new(vec![Field::new("n", DataType::Int64, false)]);
        let column = Int64Array::from(vec![0; n]);
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(column)]).unwrap()
    }

    #[tokio::test]
    async fn credit_is_bytes_and_one_oversized_batch_passes_alone() {
        let (sender, mut receiver) = edge(16_384);
        let batch = |n| Item::Batch { port: 0, batch: rows(n) };
        sender.send(batch(1_024)).await.unwrap();
        sender.send(batch(1_024)).await.unwrap();
        assert!(sender.send(batch(1)).now_or_never().is_none(), "the credit is used up");
        sender.send(Item::Barrier(1)).now_or_never().unwrap().unwrap();
        assert!(poll_fn(|cx| receiver.poll_recv(cx)).await.is_some());
        assert!(sender.send(batch(1)).now_or_never().is_none(), "the batch is still being handled");
        assert!(poll_fn(|cx| receiver.poll_recv(cx)).await.is_some());
        sender.send(batch(1)).now_or_never().unwrap().unwrap();
        for _ in 0..2 {
            poll_fn(|cx| receiver.poll_recv(cx)).await;
        }
        assert!(poll_fn(|cx| receiver.poll_recv(cx)).now_or_never().is_none());
        sender.send(batch(1_000_000)).now_or_never().unwrap().unwrap();
    }
}
