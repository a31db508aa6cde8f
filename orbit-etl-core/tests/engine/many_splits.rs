//! Thousands of splits in a few lanes: what happens costs by what happens, not by what is open.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use orbit_etl_core::memory::{MemorySink, MemoryTable};
use orbit_etl_core::{
    Connector, ConnectorInfo, Context, Health, Pipeline, Position, Replay, Result, ScanRequest, Source,
    SourceEvent, Split, SplitChange, StreamId, StreamInfo,
};
use serde_json::json;

use super::support::{all_ids, rows, schema, soon};

/// Unbounded splits, each with a channel of its own; counts how often any of them is polled.
#[derive(Debug)]
struct Channels {
    splits: Mutex<Vec<Option<UnboundedReceiver<RecordBatch>>>>,
    polls: Arc<AtomicU64>,
}

struct Counted {
    from: UnboundedReceiver<RecordBatch>,
    polls: Arc<AtomicU64>,
    read: usize,
}

impl Stream for Counted {
    type Item = Result<SourceEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        self.polls.fetch_add(1, Ordering::Relaxed);
        self.from.poll_next_unpin(cx).map(|next| {
            let Some(batch) = next else { return Some(Ok(SourceEvent::Finished)) };
            self.read += batch.num_rows();
            let position = Some(Position(json!({ "row": self.read })));
            Some(Ok(SourceEvent::Batch { stream: StreamId(0), batch, position }))
        })
    }
}

impl Channels {
    fn new(splits: usize) -> (Self, Vec<UnboundedSender<RecordBatch>>) {
        let (senders, receivers) = (0..splits).map(|_| unbounded()).map(|(s, r)| (s, Some(r))).unzip();
        (Self { splits: Mutex::new(receivers), polls: Arc::default() }, senders)
    }
}

#[async_trait]
impl Connector for Channels {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("channels", "")
    }

    async fn health(&self, _: &Context) -> Result<Health> {
        Ok(Health::default())
    }
}

#[async_trait]
impl Source for Channels {
    async fn streams(&self, _: &Context) -> Result<Vec<StreamInfo>> {
        Ok(vec![StreamInfo::new("rows", schema()).with_bounded(false)])
    }

    fn replay(&self) -> Replay {
        Replay::None
    }

    async fn splits(
        &self,
        _: &Context,
        _: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        let splits = self.splits.lock().unwrap().len();
        let split = |i: usize| Split { bounded: false, ..Split::new(format!("{i:05}"), json!(i)) };
        let added = (0..splits).map(split).collect();
        let change = SplitChange { added, revoked: Vec::new(), position: Position(json!("told")) };
        Ok(stream::iter([Ok(change)]).boxed())
    }

    async fn open(
        &self,
        _: &Context,
        split: &Split,
        _: Option<&Position>,
        _: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
        let index = usize::try_from(split.payload.as_u64().unwrap()).unwrap();
        let from = self.splits.lock().unwrap()[index].take().expect("each split is opened once");
        Ok(Counted { from, polls: Arc::clone(&self.polls), read: 0 }.boxed())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_is_polled_when_it_has_something_to_say_and_not_when_others_do() {
    const SPLITS: usize = 2_000;
    const ROUNDS: usize = 3;
    let (source, senders) = Channels::new(SPLITS);
    let polls = Arc::clone(&source.polls);
    let table = MemoryTable::new();
    let running = Pipeline::builder("p")
        .source("in", source)
        .sink("out", MemorySink::new(&table))
        .parallelism(2)
        .epoch_every(Duration::from_millis(20))
        .checkpoint_in_memory()
        .build()
        .unwrap()
        .start();
    let mut progress = Box::pin(running.progress());
    let mut sent = 0;
    for _ in 0..ROUNDS {
        for sender in senders.iter().step_by(2) {
            sender.unbounded_send(rows(sent, sent + 1)).unwrap();
            sent += 1;
        }
        // Epochs end meanwhile.
        soon(async {
            while table.rows() < usize::try_from(sent).unwrap() {
                progress.next().await.expect("the run goes on");
            }
        })
        .await;
    }
    drop(senders);
    soon(running.into_future()).await.unwrap();
    assert_eq!(all_ids(&table), (0..sent).collect::<Vec<_>>());
    // Each split: when it is opened and when it ends; each batch: when it comes, and once more to see
    // that nothing else does.
    let least = (2 * SPLITS) as u64 + u64::try_from(sent).unwrap();
    let polls = polls.load(Ordering::Relaxed);
    assert!(polls <= 2 * least, "{polls} polls for {SPLITS} splits and {sent} batches");
}
