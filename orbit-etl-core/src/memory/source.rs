//! The source.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, Int64Array, RecordBatch};
use arrow::compute::{cast, max};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::json;

use super::feed::MemoryFeed;
use super::log::{Shared, Unit, What, change_position, count_in, row_position};
use super::reader::Reader;
use crate::connector::{Connector, ConnectorInfo, Health, StreamInfo};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::event::{Position, SourceEvent, SplitId, StreamId};
use crate::source::{FilterPushdown, Pushdown, Replay, ScanRequest, Source, Split, SplitChange};

/// Reads batches that the host holds in memory.
///
/// A clone reads the same rows and shares the acknowledgements, so a clone that stays with the host
/// is its handle. Positions are `{"row": n}`; splits keep their names, so a new run with the same
/// value resumes. Each `with_…` call lays the source out anew: use them before the first run.
#[derive(Debug, Clone)]
pub struct MemorySource {
    shared: Arc<Shared>,
    parts: Vec<(StreamInfo, Vec<RecordBatch>)>,
    splits: usize,
    event_time: Option<String>,
    replay: Replay,
    bounded: bool,
    projects: bool,
    releases: bool,
}

impl MemorySource {
    /// One bounded stream, `rows`, in one split.
    pub fn new(schema: SchemaRef, batches: Vec<RecordBatch>) -> Self {
        Self::of(vec![(StreamInfo::new("rows", schema), batches)])
    }

    /// Several bounded streams, each in one split.
    pub fn of(streams: Vec<(StreamInfo, Vec<RecordBatch>)>) -> Self {
        Self {
            shared: Arc::new(Shared::new(Vec::new())),
            parts: streams,
            splits: 1,
            event_time: None,
            replay: Replay::Exact,
            bounded: true,
            projects: true,
            releases: false,
        }
        .laid_out()
    }

    /// Streams that are fed while they are read. There is no split before the feed adds one.
    pub fn unbounded(streams: Vec<StreamInfo>) -> (Self, MemoryFeed) {
        let parts = streams.into_iter().map(|s| (s.with_bounded(false), Vec::new())).collect();
        let source = Self { bounded: false, ..Self::of(parts) }.laid_out();
        let feed = MemoryFeed::new(Arc::clone(&source.shared));
        (source, feed)
    }

    /// Gives the first stream this name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        if let Some((stream, _)) = self.parts.first_mut() {
            name.clone_into(&mut stream.name);
        }
        self.laid_out()
    }

    /// Gives the first stream these keys.
    #[must_use]
    pub fn with_keys(mut self, keys: impl IntoIterator<Item = impl Into<String>>) -> Self {
        if let Some((stream, _)) = self.parts.first_mut() {
            stream.keys = keys.into_iter().map(Into::into).collect();
        }
        self.laid_out()
    }

    /// Deals the batches of each bounded stream out to this many splits, `{stream}/{number}`.
    #[must_use]
    pub fn with_splits(mut self, splits: usize) -> Self {
        self.splits = splits.max(1);
        self.laid_out()
    }

    /// Sends a watermark after each batch of a bounded stream: the greatest value of this column
    /// so far in its split. The column is a date or a timestamp.
    #[must_use]
    pub fn with_event_time(mut self, column: &str) -> Self {
        self.event_time = Some(column.into());
        self.laid_out()
    }

    /// What opening again gives back. [`Replay::None`] hands every row out once, in whichever run.
    #[must_use]
    pub fn with_replay(mut self, replay: Replay) -> Self {
        self.replay = replay;
        self
    }

    /// Always yields all columns.
    #[must_use]
    pub fn without_pushdown(mut self) -> Self {
        self.projects = false;
        self
    }

    /// Lets go of acknowledged rows, as a replication slot or an expiring topic does: opening a
    /// split before its acknowledged position is an error.
    #[must_use]
    pub fn releasing(mut self) -> Self {
        self.releases = true;
        self
    }

    /// The newest position acknowledged for each split.
    pub fn acknowledged(&self) -> BTreeMap<SplitId, Position> {
        self.shared.lock().acknowledged.clone()
    }

    /// Fills a fresh log from the parts.
    fn laid_out(mut self) -> Self {
        let shared = Shared::new(self.parts.iter().map(|(stream, _)| stream.clone()).collect());
        if self.bounded {
            shared.change(|state| {
                let mut splits = Vec::new();
                for (stream, _) in &self.parts {
                    for part in 0..self.splits {
                        let payload = json!({ "stream": stream.name, "part": part });
                        splits.push(Split::new(format!("{}/{part}", stream.name), payload));
                    }
                }
                for (i, (_, batches)) in self.parts.iter().enumerate() {
                    for (k, split) in splits[i * self.splits..][..self.splits].iter_mut().enumerate() {
                        let mine = batches.iter().skip(k).step_by(self.splits);
                        split.bytes = Some(mine.map(|b| b.get_array_memory_size() as u64).sum());
                    }
                }
                state.add(splits);
                for (i, (_, batches)) in self.parts.iter().enumerate() {
                    let logs = &mut state.splits[i * self.splits..][..self.splits];
                    let mut latest = vec![None; self.splits];
                    for (k, batch) in batches.iter().enumerate() {
                        let (log, latest) = (&mut logs[k % self.splits], &mut latest[k % self.splits]);
                        let (stream, batch) = (StreamId(i), batch.clone());
                        let time = self.event_time.as_deref().and_then(|c| latest_time(&batch, c));
                        log.append(What::Batch { stream, batch }, Unit::Free);
                        *latest = time.max(*latest);
                        if let Some(micros) = *latest {
                            log.append(What::Watermark { stream, micros }, Unit::Free);
                        }
                    }
                    logs.iter_mut().for_each(|log| log.ended = true);
                }
                state.complete = true;
            });
        }
        self.shared = Arc::new(shared);
        self
    }
}

#[async_trait]
impl Connector for MemorySource {
    fn info(&self) -> ConnectorInfo {
        let names: Vec<_> = self.parts.iter().map(|(stream, _)| stream.name.as_str()).collect();
        ConnectorInfo::new("memory", format!("memory {}", names.join(", "))).with_local(true)
    }

    fn validate(&self) -> Result<()> {
        for (stream, batches) in &self.parts {
            if batches.iter().any(|b| b.schema() != stream.schema) {
                return Err(Error::config("a batch doesn't have its stream's schema")
                    .with("stream", &stream.name)
                    .remedy("give the stream the schema of its batches"));
            }
            if let Some(key) = stream.keys.iter().find(|k| stream.schema.index_of(k).is_err()) {
                return Err(Error::config("a key isn't among the columns")
                    .with("stream", &stream.name)
                    .with("column", key));
            }
            if let Some(column) = &self.event_time
                && !stream.schema.field_with_name(column).is_ok_and(|f| is_time(f.data_type()))
            {
                return Err(Error::config("the event time must be a date or timestamp column")
                    .with("stream", &stream.name)
                    .with("column", column));
            }
        }
        Ok(())
    }

    async fn health(&self, _cx: &Context) -> Result<Health> {
        let detail = format!("{} stream(s)", self.parts.len());
        Ok(Health { latency: Duration::ZERO, detail })
    }

    async fn discover(&self, _cx: &Context) -> Result<Vec<StreamInfo>> {
        Ok(self.shared.lock().streams.clone())
    }
}

#[async_trait]
impl Source for MemorySource {
    async fn streams(&self, _cx: &Context) -> Result<Vec<StreamInfo>> {
        self.validate()?;
        Ok(self.shared.lock().streams.clone())
    }

    fn replay(&self) -> Replay {
        self.replay
    }

    fn pushdown(&self, wanted: &ScanRequest) -> Pushdown {
        Pushdown {
            projection: self.projects,
            filters: vec![FilterPushdown::Unsupported; wanted.filters.len()],
        }
    }

    async fn splits(
        &self,
        cx: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        let told = after.map_or(Ok(0), |p| count_in(p, "changes"))?;
        let told = usize::try_from(told).unwrap_or(usize::MAX);
        let start = (Arc::clone(&self.shared), self.shared.subscribe(), cx.cancellation().clone(), told);
        let changes = stream::try_unfold(start, |(shared, mut changed, cancel, told)| async move {
            loop {
                let (change, complete) = {
                    let state = shared.lock();
                    (state.changes.get(told).cloned(), state.complete)
                };
                if let Some(change) = change {
                    let position = change_position(told + 1);
                    let change = SplitChange { added: change.added, revoked: change.revoked, position };
                    return Ok(Some((change, (shared, changed, cancel, told + 1))));
                }
                if complete {
                    return Ok(None);
                }
                tokio::select! {
                    biased;
                    () = changed.changed() => {}
                    () = cancel.cancelled() => return Err(Error::cancelled()),
                }
            }
        });
        Ok(changes.boxed())
    }

    async fn open(
        &self,
        cx: &Context,
        split: &Split,
        after: Option<&Position>,
        scan: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
        let mut rows = after.map_or(Ok(0), |p| count_in(p, "row"))?;
        let index = {
            let state = self.shared.lock();
            let index = state.find(&split.id)?;
            let log = &state.splits[index];
            if self.replay == Replay::None {
                rows = log.taken;
            }
            let whole = self.replay != Replay::WholeSplit || rows == 0 || (log.ended && rows == log.rows);
            if rows > log.rows || !whole {
                return Err(Error::config("the position isn't one of this split's")
                    .with("split", &split.id)
                    .with("row", rows)
                    .remedy("resume with the state of this very source, or begin a new state directory"));
            }
            if self.releases
                && let Some(acknowledged) = state.acknowledged.get(&split.id)
                && count_in(acknowledged, "row")? > rows
            {
                return Err(Error::not_found("rows that were acknowledged are gone")
                    .with("split", &split.id)
                    .with("row", rows));
            }
            index
        };
        let cancel = cx.cancellation().clone();
        Ok(Reader::new(&self.shared, cancel, self.replay, scan, index, rows)?.into_stream())
    }

    async fn acknowledge(&self, _cx: &Context, upto: &[(SplitId, Position)]) -> Result<()> {
        let mut state = self.shared.lock();
        for (split, position) in upto {
            let rows = count_in(position, "row")?;
            let known = state.acknowledged.get(split).map_or(Ok(0), |p| count_in(p, "row"))?;
            state.acknowledged.insert(split.clone(), row_position(rows.max(known)));
        }
        Ok(())
    }
}

fn is_time(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Date32 | DataType::Date64 | DataType::Timestamp(..))
}

/// The greatest time of a batch, in microseconds.
fn latest_time(batch: &RecordBatch, column: &str) -> Option<i64> {
    let column = batch.column_by_name(column)?;
    let times = cast(column, &DataType::Timestamp(TimeUnit::Microsecond, None)).ok()?;
    let micros = cast(&times, &DataType::Int64).ok()?;
    max(micros.as_any().downcast_ref::<Int64Array>()?)
}
