//! A lane of a source: reads splits, stops between two positions for a barrier.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::Instrument;

use super::narrow::Met;
use super::open_splits::{OpenSplit, OpenSplits};
use super::reopen::{Opening, list};
use super::report::Message;
use super::router::Router;
use super::splits::Splits;
use crate::batch::estimated_bytes;
use crate::context::Context;
use crate::error::{Error, Result, ResultExt};
use crate::event::{Reject, SourceEvent, SplitId, StreamId};
use crate::fault::{Guard, RejectPort, failpoint};
use crate::observe::Counter;
use crate::sink::Epoch;
use crate::source::{ScanRequest, Source};

/// How often a lane looks for silent splits in the time after which they are idle.
const LOOKS_UNTIL_IDLE: u32 = 4;
/// How seldom it may look.
const SELDOM: Duration = Duration::from_secs(3_600);
/// After so many events the clock gets its turn too.
const LOOK_AROUND: u32 = 64;

/// What a lane of a source works with.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) node: usize,
    pub(crate) lane: usize,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) cx: Context,
    pub(crate) scan: Arc<[ScanRequest]>,
    /// The streams' names, for rejects.
    pub(crate) streams: Arc<[String]>,
    /// The schema of each stream as it goes on, narrowed.
    pub(crate) schemas: Vec<SchemaRef>,
    pub(crate) splits: Arc<Splits>,
    pub(crate) barriers: mpsc::UnboundedReceiver<Order>,
    pub(crate) router: Router,
    pub(crate) rejects: RejectPort,
    pub(crate) counter: Counter,
    pub(crate) coordinator: mpsc::UnboundedSender<Message>,
    /// After this long without an event a split stops holding watermarks back.
    pub(crate) idle_after: Duration,
    pub(crate) guard: Arc<Guard>,
}

/// What the coordinator tells a lane: to end an epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    pub(crate) epoch: Epoch,
    /// Nothing is read after it.
    pub(crate) last: bool,
}

/// What a lane has said of event time.
struct Told {
    watermark: i64,
    idle: bool,
}

impl Default for Told {
    fn default() -> Self {
        Self { watermark: i64::MIN, idle: false }
    }
}

impl Reader {
    /// Runs until the coordinator goes.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut changed = self.splits.subscribe();
        changed.mark_changed();
        let mut open = OpenSplits::default();
        let mut pending: Option<Order> = None;
        let (mut stopped, mut ended) = (false, false);
        let mut told = Told::default();
        let (mut idle, silent_looks) = idle_looks(self.idle_after);
        let mut turns = 0_u32;
        loop {
            if let Some(order) = pending
                && open.may_be_cut()
            {
                pending = None;
                stopped |= order.last;
                self.barrier(order.epoch, &mut open).await?;
                open.go_on();
                continue;
            }
            let closing = pending.is_some();
            turns = turns.wrapping_add(1);
            // While splits have something to say, they are heard without waiting for anything else.
            let news = !closing && (!self.barriers.is_empty() || changed.has_changed());
            if !stopped && !news && !turns.is_multiple_of(LOOK_AROUND) {
                let next = poll_fn(|cx| Poll::Ready(open.poll_next(closing, cx))).await;
                if let Poll::Ready((slot, event)) = next {
                    if self.handle(slot, event, &mut open, &mut told).await? {
                        changed.mark_changed();
                    }
                    tokio::task::coop::consume_budget().await;
                    continue;
                }
            }
            tokio::select! {
                biased;
                order = self.barriers.recv(), if !closing => match order {
                    Some(order) => pending = Some(order),
                    None => return Ok(()),
                },
                () = changed.changed(), if !closing && !stopped => {
                    self.take_work(&mut open, &mut ended).await?;
                    self.tell_watermark(open.lowest(), &mut told).await?;
                }
                _ = idle.tick(), if !stopped => {
                    open.look_for_idle(silent_looks);
                    self.tell_watermark(open.lowest(), &mut told).await?;
                }
                (slot, event) = poll_fn(|cx| open.poll_next(closing, cx)), if !stopped => {
                    if self.handle(slot, event, &mut open, &mut told).await? {
                        changed.mark_changed();
                    }
                }
            }
        }
    }

    /// Opens what is this lane's to read and lets go of what no longer is.
    async fn take_work(&mut self, open: &mut OpenSplits, ended: &mut bool) -> Result<()> {
        let work = self.splits.work(self.lane, !open.has_bounded());
        for (split, after) in work.open {
            let span = OpenSplits::span(&split);
            let opening = Opening {
                source: Arc::clone(&self.source),
                cx: self.cx.clone(),
                split: split.clone(),
                scan: Arc::clone(&self.scan),
                guard: Arc::clone(&self.guard),
            };
            let events =
                opening.open(after.clone()).instrument(span.clone()).await.with("split", &split.id)?;
            span.in_scope(|| tracing::debug!("the split is opened"));
            open.open(split, after, events, span);
        }
        for split in open.revoke(&work.revoke) {
            self.splits.closed(self.lane, &split, false);
        }
        if work.exhausted && open.is_empty() && !*ended {
            *ended = true;
            self.router.end().await?;
        }
        if work.stuck && open.is_empty() {
            self.tell(Message::CommitWanted { node: self.node })?;
        }
        Ok(())
    }

    /// Says whether a split was closed.
    async fn handle(
        &mut self,
        slot: usize,
        event: Option<Result<SourceEvent>>,
        open: &mut OpenSplits,
        told: &mut Told,
    ) -> Result<bool> {
        let Some(now) = open.heard(slot) else { return Ok(false) };
        let event = event
            .unwrap_or_else(|| Err(Error::internal("the source's stream broke off without an end")))
            .with("split", &now.split.id)?;
        let mut ended = None;
        match event {
            SourceEvent::Batch { stream, batch, position } => {
                let batch = self.narrowed(now, stream, batch).with("stream", stream.0)?;
                open.moved(slot, position);
                self.emit(stream, batch).await?;
            }
            SourceEvent::Rejects { rejects, position } => {
                let split = now.split.id.clone();
                open.moved(slot, position);
                self.reject(&split, rejects).await?;
            }
            SourceEvent::Schema { stream, schema } => {
                if let Some(known) = self.schemas.get_mut(stream.0) {
                    *known = schema.clone();
                    open.forget_met(stream);
                }
                self.router.schema(stream.0, &schema).await?;
            }
            SourceEvent::Watermark { stream, micros } => open.watermark(slot, stream, micros),
            SourceEvent::Progress(position) => open.moved(slot, Some(position)),
            SourceEvent::Finished => ended = open.finished(slot),
        }
        let left = open.let_go(slot);
        if let Some(split) = ended.as_ref().or(left.as_ref()) {
            self.splits.closed(self.lane, split, ended.is_some());
        }
        self.tell_watermark(open.lowest(), told).await?;
        Ok(ended.is_some() || left.is_some())
    }

    fn narrowed(&self, now: &mut OpenSplit, stream: StreamId, batch: RecordBatch) -> Result<RecordBatch> {
        let Some(expected) = self.schemas.get(stream.0) else {
            return Err(Error::internal("rows of a stream that was not announced"));
        };
        let met = match now.met(stream) {
            Some(met) if met.is_for(batch.schema_ref()) => met,
            unknown => unknown.insert(Met::new(batch.schema(), expected)?),
        };
        met.narrow(batch, expected)
    }

    async fn emit(&mut self, stream: StreamId, batch: RecordBatch) -> Result<()> {
        let rows = batch.num_rows() as u64;
        if rows == 0 {
            return Ok(());
        }
        self.counter.batch_in(rows);
        let bytes = estimated_bytes(&batch);
        self.counter.rows_out(rows, bytes as u64);
        self.router.batch(stream.0, batch, bytes).await
    }

    async fn reject(&mut self, split: &SplitId, rejects: Vec<Reject>) -> Result<()> {
        for mut reject in rejects {
            self.counter.rows_in(reject.rows);
            self.counter.rejected(reject.rows);
            reject.origin.split.get_or_insert_with(|| split.clone());
            if let [only] = &*self.streams {
                reject.origin.stream.get_or_insert_with(|| only.clone());
            }
            self.rejects.reject(reject).await?;
        }
        Ok(())
    }

    /// Tells the lowest watermark of all splits that are not idle when it has risen, and that the lane
    /// is idle when there is no such split.
    async fn tell_watermark(&mut self, lowest: Option<i64>, told: &mut Told) -> Result<()> {
        match lowest {
            None if told.idle => Ok(()),
            None => {
                told.idle = true;
                self.counter.watermark(None);
                self.router.idle().await
            }
            Some(lowest) if lowest > told.watermark || told.idle => {
                *told = Told { watermark: told.watermark.max(lowest), idle: false };
                self.counter.watermark(Some(told.watermark));
                self.router.watermark(told.watermark).await
            }
            Some(_) => Ok(()),
        }
    }

    async fn barrier(&mut self, epoch: Epoch, open: &mut OpenSplits) -> Result<()> {
        failpoint("barrier");
        self.rejects.passed(epoch);
        self.router.barrier(epoch).await?;
        let (splits, counts) = (open.progress(), self.counter.take());
        self.tell(Message::ReaderAtBarrier { node: self.node, epoch, splits, counts })
    }

    fn tell(&self, message: Message) -> Result<()> {
        self.coordinator.send(message).map_err(|_| Error::cancelled())
    }
}

/// A clock that ticks, and after how many ticks without an event a split is idle.
fn idle_looks(idle_after: Duration) -> (Interval, u64) {
    let every = (idle_after / LOOKS_UNTIL_IDLE).clamp(Duration::from_millis(1), SELDOM);
    let looks = idle_after.as_nanos().div_ceil(every.as_nanos());
    let mut clock = tokio::time::interval(every);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    (clock, u64::try_from(looks).unwrap_or(u64::MAX))
}

/// Feeds a source's split changes to the board until there are no more.
pub(crate) async fn enumerate(
    source: Arc<dyn Source>,
    cx: Context,
    splits: Arc<Splits>,
    guard: Arc<Guard>,
) -> Result<()> {
    let after = splits.enumerator();
    let mut changes = list(&*source, &cx, after.as_ref(), &guard).await?;
    while let Some(change) = changes.next().await {
        splits.change(change?);
    }
    splits.enumerated();
    Ok(())
}
