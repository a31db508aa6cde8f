//! What the engine's tests share: rows with a number each, and a look at what arrived.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use async_trait::async_trait;
use futures::stream::BoxStream;
use orbit_etl_core::memory::{MemorySource, MemoryTable};
use orbit_etl_core::{
    Connector, ConnectorInfo, Context, Health, Position, Replay, Result, ScanRequest, Source, SourceEvent,
    Split, SplitChange, StreamInfo,
};

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("group", DataType::Int64, true),
    ]))
}

/// Rows `from..to`, in groups of seven.
pub(crate) fn rows(from: i64, to: i64) -> RecordBatch {
    let ids = Int64Array::from_iter_values(from..to);
    let groups = Int64Array::from_iter((from..to).map(|i| (i % 5 != 0).then_some(i % 7)));
    RecordBatch::try_new(schema(), vec![Arc::new(ids), Arc::new(groups)]).unwrap()
}

/// A bounded source of `batches` batches of ten rows, dealt out to `splits` splits.
pub(crate) fn numbers(batches: i64, splits: usize) -> MemorySource {
    let batches = (0..batches).map(|i| rows(i * 10, i * 10 + 10)).collect();
    MemorySource::new(schema(), batches).with_splits(splits)
}

/// The ids that are visible in a stream of the table, sorted.
pub(crate) fn ids(table: &MemoryTable, stream: &str) -> Vec<i64> {
    let mut ids: Vec<i64> = table
        .batches(stream)
        .iter()
        .flat_map(|b| b.column_by_name("id").unwrap().as_primitive::<Int64Type>().values().to_vec())
        .collect();
    ids.sort_unstable();
    ids
}

/// All visible ids, whatever the streams are called.
pub(crate) fn all_ids(table: &MemoryTable) -> Vec<i64> {
    let mut all: Vec<i64> = table.streams().iter().flat_map(|s| ids(table, s)).collect();
    all.sort_unstable();
    all
}

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in bounded time")
}

/// A fed source that says of its streams that they end.
pub(crate) fn ends(source: MemorySource) -> impl Source {
    Ends(source)
}

#[derive(Debug)]
struct Ends(MemorySource);

#[async_trait]
impl Connector for Ends {
    fn info(&self) -> ConnectorInfo {
        self.0.info()
    }

    async fn health(&self, cx: &Context) -> Result<Health> {
        self.0.health(cx).await
    }
}

#[async_trait]
impl Source for Ends {
    async fn streams(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        Ok(self.0.streams(cx).await?.into_iter().map(|s| s.with_bounded(true)).collect())
    }

    fn replay(&self) -> Replay {
        self.0.replay()
    }

    async fn splits(
        &self,
        cx: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        self.0.splits(cx, after).await
    }

    async fn open(
        &self,
        cx: &Context,
        split: &Split,
        after: Option<&Position>,
        scan: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
        self.0.open(cx, split, after, scan).await
    }
}
