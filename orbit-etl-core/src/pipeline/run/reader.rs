//! A lane of a source: reads splits, stops between two positions for a barrier.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::report::Message;
use super::router::Router;
use super::splits::{SplitProgress, Splits};
use crate::batch::estimated_bytes;
use crate::context::Context;
use crate::error::{Error, Result, ResultExt};
use crate::event::{Position, SourceEvent, SplitId, StreamId};
use crate::fault::{RejectPort, failpoint};
use crate::observe::Counter;
use crate::sink::Epoch;
use crate::source::{ScanRequest, Source, Split};

/// How seldom a lane may look whether a split has become idle.
const LONGEST_IDLE: Duration = Duration::from_secs(3_600);

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
}

/// What the coordinator tells a lane: to end an epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    pub(crate) epoch: Epoch,
    /// Nothing is read after it.
    pub(crate) last: bool,
}

/// A split that the lane has open.
struct OpenSplit {
    split: Split,
    events: BoxStream<'static, Result<SourceEvent>>,
    /// The last position met.
    position: Option<Position>,
    /// Whether that position is where the split stands: not inside a unit that must not be cut.
    whole: bool,
    revoked: bool,
    /// By stream, those that have one.
    watermarks: BTreeMap<StreamId, i64>,
    heard: Instant,
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

/// What a lane has to report of a split at the next barrier.
#[derive(Debug, Default)]
struct Touched {
    position: Option<Position>,
    finished: bool,
    parked: bool,
}

impl Reader {
    /// Runs until the coordinator goes.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut changed = self.splits.subscribe();
        changed.mark_changed();
        let mut open: Vec<OpenSplit> = Vec::new();
        let mut touched: BTreeMap<SplitId, Touched> = BTreeMap::new();
        let mut pending: Option<Order> = None;
        let (mut stopped, mut ended) = (false, false);
        let mut next = 0;
        let mut told = Told::default();
        let mut idle = tokio::time::interval(self.idle_after.clamp(Duration::from_millis(1), LONGEST_IDLE));
        idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Some(order) = pending
                && open.iter().all(|o| o.whole)
            {
                pending = None;
                stopped |= order.last;
                self.barrier(order.epoch, &mut touched).await?;
                continue;
            }
            tokio::select! {
                biased;
                order = self.barriers.recv(), if pending.is_none() => match order {
                    Some(order) => pending = Some(order),
                    None => return Ok(()),
                },
                _ = changed.changed(), if pending.is_none() && !stopped => {
                    self.take_work(&mut open, &mut touched, &mut ended).await?;
                    self.tell_watermark(self.lowest(&open), &mut told).await?;
                }
                (i, event) = poll_fn(|cx| poll_open(&mut open, &mut next, pending.is_some(), cx)),
                    if !stopped =>
                {
                    let timed = matches!(event, Some(Ok(SourceEvent::Watermark { .. } | SourceEvent::Finished)));
                    let before = open.len();
                    self.handle(i, event, &mut open, &mut touched).await?;
                    if open.len() < before {
                        changed.mark_changed();
                    }
                    if timed || told.idle {
                        self.tell_watermark(self.lowest(&open), &mut told).await?;
                    }
                }
                _ = idle.tick(), if !stopped => self.tell_watermark(self.lowest(&open), &mut told).await?,
            }
        }
    }

    /// Opens what is this lane's to read and lets go of what no longer is.
    async fn take_work(
        &mut self,
        open: &mut Vec<OpenSplit>,
        touched: &mut BTreeMap<SplitId, Touched>,
        ended: &mut bool,
    ) -> Result<()> {
        let work = self.splits.work(self.lane, !open.iter().any(|o| o.split.bounded));
        for id in work.revoke {
            open.iter_mut().filter(|o| o.split.id == id).for_each(|o| o.revoked = true);
        }
        for (split, after) in work.open {
            open.push(self.open(split, after).await?);
        }
        self.drop_revoked(open, touched);
        if work.exhausted && open.is_empty() && !*ended {
            *ended = true;
            self.router.end().await?;
        }
        if work.stuck && open.is_empty() {
            self.tell(Message::CommitWanted { node: self.node })?;
        }
        Ok(())
    }

    async fn open(&self, split: Split, after: Option<Position>) -> Result<OpenSplit> {
        let events =
            self.source.open(&self.cx, &split, after.as_ref(), &self.scan).await.with("split", &split.id)?;
        Ok(OpenSplit {
            split,
            events,
            position: after,
            whole: true,
            revoked: false,
            watermarks: BTreeMap::new(),
            heard: Instant::now(),
        })
    }

    async fn handle(
        &mut self,
        i: usize,
        event: Option<Result<SourceEvent>>,
        open: &mut Vec<OpenSplit>,
        touched: &mut BTreeMap<SplitId, Touched>,
    ) -> Result<()> {
        let now = &mut open[i];
        now.heard = Instant::now();
        let event = event
            .unwrap_or_else(|| Err(Error::internal("the source's stream broke off without an end")))
            .with("split", &now.split.id)?;
        match event {
            SourceEvent::Batch { stream, batch, position } => {
                now.moved(position, touched);
                self.emit(stream, batch).await?;
            }
            SourceEvent::Rejects { rejects, position } => {
                now.moved(position, touched);
                let split = now.split.id.clone();
                for mut reject in rejects {
                    self.counter.rows_in(reject.rows);
                    self.counter.rejected(reject.rows);
                    reject.origin.split.get_or_insert_with(|| split.clone());
                    if let [only] = &*self.streams {
                        reject.origin.stream.get_or_insert_with(|| only.clone());
                    }
                    self.rejects.reject(reject).await?;
                }
            }
            SourceEvent::Schema { stream, schema } => {
                if let Some(known) = self.schemas.get_mut(stream.0) {
                    *known = schema.clone();
                }
                self.router.schema(stream.0, &schema).await?;
            }
            SourceEvent::Watermark { stream, micros } => {
                let known = now.watermarks.entry(stream).or_insert(micros);
                *known = micros.max(*known);
            }
            SourceEvent::Progress(position) => now.moved(Some(position), touched),
            SourceEvent::Finished => {
                let done = open.swap_remove(i);
                let entry = touched.entry(done.split.id.clone()).or_default();
                entry.finished = true;
                if entry.position.is_none() {
                    entry.position = done.position.clone();
                }
                self.splits.closed(self.lane, &done.split);
            }
        }
        if open.iter().any(|o| o.revoked) {
            self.drop_revoked(open, touched);
        }
        Ok(())
    }

    async fn emit(&mut self, stream: StreamId, batch: RecordBatch) -> Result<()> {
        let Some(expected) = self.schemas.get_mut(stream.0) else {
            return Err(Error::internal("rows of a stream that was not announced").with("stream", stream.0));
        };
        let schema = batch.schema_ref();
        let batch = if Arc::ptr_eq(schema, expected) || schema.fields() == expected.fields() {
            // From now on the pointers are equal.
            *expected = batch.schema();
            batch
        } else {
            narrow(&batch, expected).with("stream", stream.0)?
        };
        let rows = batch.num_rows() as u64;
        if rows == 0 {
            return Ok(());
        }
        self.counter.rows_in(rows);
        self.counter.rows_out(rows, estimated_bytes(&batch) as u64);
        self.router.batch(stream.0, batch).await
    }

    fn drop_revoked(&self, open: &mut Vec<OpenSplit>, touched: &mut BTreeMap<SplitId, Touched>) {
        open.retain(|o| {
            let leave = o.revoked && o.whole;
            if leave {
                let entry = touched.entry(o.split.id.clone()).or_default();
                entry.parked = true;
                if entry.position.is_none() {
                    entry.position = o.position.clone();
                }
                self.splits.closed(self.lane, &o.split);
            }
            !leave
        });
    }

    /// Tells the lowest watermark of all splits that are not idle when it has risen, and that the lane
    /// is idle when there is no such split.
    async fn tell_watermark(&mut self, lowest: Option<i64>, told: &mut Told) -> Result<()> {
        match lowest {
            None if told.idle => Ok(()),
            None => {
                told.idle = true;
                self.router.idle().await
            }
            Some(lowest) if lowest > told.watermark || told.idle => {
                *told = Told { watermark: told.watermark.max(lowest), idle: false };
                self.router.watermark(told.watermark).await
            }
            Some(_) => Ok(()),
        }
    }

    /// The lowest watermark of the splits that are not idle; `None` if all are.
    fn lowest(&self, open: &[OpenSplit]) -> Option<i64> {
        let lively = open.iter().filter(|o| o.heard.elapsed() < self.idle_after);
        lively.map(|o| o.watermarks.values().min().copied().unwrap_or(i64::MIN)).min()
    }

    async fn barrier(&mut self, epoch: Epoch, touched: &mut BTreeMap<SplitId, Touched>) -> Result<()> {
        failpoint("barrier");
        self.rejects.passed(epoch);
        self.router.barrier(epoch).await?;
        let splits = std::mem::take(touched)
            .into_iter()
            .map(|(id, t)| SplitProgress { id, position: t.position, finished: t.finished, parked: t.parked })
            .collect();
        let counts = self.counter.take();
        self.tell(Message::ReaderAtBarrier { node: self.node, epoch, splits, counts })
    }

    fn tell(&self, message: Message) -> Result<()> {
        self.coordinator.send(message).map_err(|_| Error::cancelled())
    }
}

impl OpenSplit {
    fn moved(&mut self, position: Option<Position>, touched: &mut BTreeMap<SplitId, Touched>) {
        self.whole = position.is_some();
        if position.is_some() {
            self.position.clone_from(&position);
            touched.entry(self.split.id.clone()).or_default().position = position;
        }
    }
}

/// The next event of any open split, in turn. Before a barrier only those splits go on that stand
/// inside a unit that must not be cut.
fn poll_open(
    open: &mut [OpenSplit],
    next: &mut usize,
    closing: bool,
    cx: &mut TaskContext<'_>,
) -> Poll<(usize, Option<Result<SourceEvent>>)> {
    let count = open.len();
    for step in 0..count {
        let i = (*next + step) % count;
        if closing && open[i].whole {
            continue;
        }
        if let Poll::Ready(event) = open[i].events.poll_next_unpin(cx) {
            *next = (i + 1) % count;
            return Poll::Ready((i, event));
        }
    }
    Poll::Pending
}

/// The expected columns of a batch that has more, or has them in another order.
fn narrow(batch: &RecordBatch, expected: &SchemaRef) -> Result<RecordBatch> {
    let schema = batch.schema_ref();
    let mut indices = Vec::with_capacity(expected.fields().len());
    for field in expected.fields() {
        match schema.index_of(field.name()) {
            Ok(i) if schema.field(i).data_type() == field.data_type() => indices.push(i),
            Ok(i) => {
                return Err(Error::internal("the source's rows don't have the announced type")
                    .with("column", field.name())
                    .with("expected", field.data_type())
                    .with("found", schema.field(i).data_type()));
            }
            Err(_) => {
                return Err(Error::internal("the source's rows lack an announced column")
                    .with("column", field.name()));
            }
        }
    }
    let narrowed =
        batch.project(&indices).map_err(|e| Error::internal("can't narrow a batch").caused_by(e))?;
    narrowed
        .with_schema(expected.clone())
        .map_err(|e| Error::internal("the source's rows don't have the announced schema").caused_by(e))
}

/// Feeds a source's split changes to the board until there are no more.
pub(crate) async fn enumerate(source: Arc<dyn Source>, cx: Context, splits: Arc<Splits>) -> Result<()> {
    let after = splits.enumerator();
    let mut changes = source.splits(&cx, after.as_ref()).await?;
    while let Some(change) = changes.next().await {
        splits.change(change?);
    }
    splits.enumerated();
    Ok(())
}
