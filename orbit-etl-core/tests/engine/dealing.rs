//! Rows that come out of one lane and go on in several.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use orbit_etl_core::host::Map;
use orbit_etl_core::memory::{MemorySink, MemoryTable};
use orbit_etl_core::model::Role;
use orbit_etl_core::{
    BlockingOperator, CheckpointRecord, CommitMode, Committable, Committed, Connector, ConnectorInfo,
    Context, Discard, Distribution, Epoch, Health, LaneId, Lineage, Operator, Output, Pipeline,
    PipelineBuilder, Prepared, Reject, Result, Sink, SinkSession, SinkWriter, Started, StreamId, StreamInfo,
    Transform,
};

use super::support::{all_ids, numbers, schema, soon};

/// Hands its rows on in one lane.
#[derive(Debug, Clone, Copy)]
struct OneLane {
    blocking: bool,
    ordered: bool,
    keys: bool,
    changes: bool,
}

const FREE: OneLane = OneLane { blocking: true, ordered: false, keys: false, changes: false };

#[async_trait]
impl Transform for OneLane {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("one_lane", "")
    }

    async fn outputs(&self, cx: &Context, _: &[StreamInfo]) -> Result<Vec<StreamInfo>> {
        let mut fields: Vec<_> = schema().fields().iter().map(|f| f.as_ref().clone()).collect();
        if self.changes {
            fields[0] = Role::Order.mark(fields[0].clone());
        }
        let stream = StreamInfo::new(cx.node(), Arc::new(arrow::datatypes::Schema::new(fields)));
        Ok(vec![if self.keys { stream.with_keys(["id"]) } else { stream }])
    }

    fn distribution(&self) -> Distribution {
        if self.blocking { Distribution::Any } else { Distribution::Single }
    }

    async fn blocking(&self, _: &Context, _: &[StreamInfo]) -> Result<bool> {
        Ok(self.blocking)
    }

    async fn ordered(&self, _: &Context, _: &[StreamInfo]) -> Result<bool> {
        Ok(self.ordered)
    }

    async fn start(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Started> {
        let schema = self.outputs(cx, inputs).await?.remove(0).schema;
        let this = Passing { schema };
        Ok(if self.blocking { Started::Blocking(Box::new(this)) } else { Started::Streaming(Box::new(this)) })
    }
}

struct Passing {
    schema: arrow::datatypes::SchemaRef,
}

#[async_trait]
impl Operator for Passing {
    async fn process(&mut self, _: usize, batch: RecordBatch, out: &mut Output<'_>) -> Result<()> {
        out.emit(0, RecordBatch::try_new(self.schema.clone(), batch.columns().to_vec()).unwrap()).await
    }
}

#[async_trait]
impl BlockingOperator for Passing {
    async fn run(
        mut self: Box<Self>,
        mut inputs: Vec<BoxStream<'static, Result<RecordBatch>>>,
        out: &mut Output<'_>,
    ) -> Result<()> {
        let mut rows = inputs.remove(0);
        while let Some(batch) = rows.next().await {
            self.process(0, batch?, out).await?;
        }
        Ok(())
    }
}

/// A memory sink that remembers which lane wrote which rows, and when.
#[derive(Debug, Clone)]
struct Watched {
    inner: Arc<MemorySink>,
    lanes: Arc<Mutex<BTreeMap<usize, Vec<i64>>>>,
    unordered: bool,
}

impl Watched {
    fn new(table: &MemoryTable) -> Self {
        Self::over(MemorySink::new(table))
    }

    fn over(inner: MemorySink) -> Self {
        Self { inner: Arc::new(inner), lanes: Arc::default(), unordered: false }
    }
}

#[async_trait]
impl Connector for Watched {
    fn info(&self) -> ConnectorInfo {
        self.inner.info()
    }

    async fn health(&self, cx: &Context) -> Result<Health> {
        self.inner.health(cx).await
    }
}

#[async_trait]
impl Sink for Watched {
    fn commit_mode(&self) -> CommitMode {
        self.inner.commit_mode()
    }

    fn needs_order(&self, input: &StreamInfo) -> bool {
        !self.unordered && self.inner.needs_order(input)
    }

    async fn open(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Box<dyn SinkSession>> {
        Ok(Box::new(WatchedSession { inner: self.inner.open(cx, inputs).await?, of: self.clone() }))
    }
}

struct WatchedSession {
    inner: Box<dyn SinkSession>,
    of: Watched,
}

#[async_trait]
impl SinkSession for WatchedSession {
    async fn claim(&mut self, lineage: &Lineage) -> Result<Option<Committed>> {
        self.inner.claim(lineage).await
    }

    async fn writer(&mut self, lane: LaneId) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(WatchedWriter { inner: self.inner.writer(lane).await?, of: self.of.clone(), lane }))
    }

    async fn commit(
        &mut self,
        epoch: Epoch,
        checkpoint: &CheckpointRecord,
        staged: Vec<Committable>,
    ) -> Result<Vec<Reject>> {
        self.inner.commit(epoch, checkpoint, staged).await
    }

    async fn discard(&mut self, what: Discard) -> Result<()> {
        self.inner.discard(what).await
    }
}

struct WatchedWriter {
    inner: Box<dyn SinkWriter>,
    of: Watched,
    lane: LaneId,
}

#[async_trait]
impl SinkWriter for WatchedWriter {
    async fn write(&mut self, stream: StreamId, batch: RecordBatch) -> Result<()> {
        let ids = batch.column(0).as_primitive::<Int64Type>().values().to_vec();
        self.of.lanes.lock().unwrap().entry(self.lane.0).or_default().extend(ids);
        self.inner.write(stream, batch).await
    }

    async fn prepare(&mut self, epoch: Epoch) -> Result<Prepared> {
        self.inner.prepare(epoch).await
    }
}

fn through(transform: OneLane, batches: i64) -> PipelineBuilder {
    Pipeline::builder("p")
        .source("in", numbers(batches, 1))
        .transform("one", transform)
        .parallelism(3)
        .epoch_every(Duration::from_millis(1))
        .checkpoint_in_memory()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_an_order_are_written_by_all_lanes() {
    for blocking in [true, false] {
        for between in [false, true] {
            let table = MemoryTable::new();
            let sink = Watched::new(&table);
            let builder = through(OneLane { blocking, ..FREE }, 30);
            let builder = if between { builder.transform("same", Map::new(Ok)) } else { builder };
            let pipeline = builder.sink("out", sink.clone()).build().unwrap();
            let plan = pipeline.explain().await.unwrap();
            assert_eq!((plan.node("one").unwrap().lanes, plan.node("out").unwrap().lanes), (1, 3));
            assert!(plan.to_string().contains("dealt out to 3 lanes"), "{plan}");
            soon(pipeline.run()).await.unwrap();
            assert_eq!(all_ids(&table), (0..300).collect::<Vec<_>>());
            let lanes = sink.lanes.lock().unwrap();
            assert!(lanes.len() == 3 && lanes.values().all(|ids| ids.len() == 100), "{lanes:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_with_an_order_stay_in_it() {
    let cases = [
        (OneLane { ordered: true, ..FREE }, "its rows have an order"),
        (OneLane { ordered: true, blocking: false, ..FREE }, "its rows have an order"),
        (OneLane { keys: true, ..FREE }, "the sink needs the order"),
        (OneLane { changes: true, ..FREE }, "the sink needs the order"),
    ];
    for (transform, why) in cases {
        let table = MemoryTable::new();
        let sink = Watched::new(&table);
        let pipeline = through(transform, 30).sink("out", sink.clone()).build().unwrap();
        let plan = pipeline.explain().await.unwrap();
        assert_eq!(plan.node("out").unwrap().lanes, 1);
        assert!(plan.to_string().contains(why), "{plan}");
        soon(pipeline.run()).await.unwrap();
        let lanes = sink.lanes.lock().unwrap();
        assert_eq!(*lanes, BTreeMap::from([(0, (0..300).collect::<Vec<_>>())]), "{transform:?}");
    }
    // A sink that only appends needs no order of keys, but one that was asked for is kept all the same.
    let plan = |transform| async move {
        let sink = Watched { unordered: true, ..Watched::new(&MemoryTable::new()) };
        let pipeline = through(transform, 1).sink("out", sink).build().unwrap();
        pipeline.explain().await.unwrap().node("out").unwrap().lanes
    };
    assert_eq!(plan(OneLane { keys: true, changes: true, ..FREE }).await, 3);
    assert_eq!(plan(OneLane { keys: true, ordered: true, ..FREE }).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn epochs_end_in_all_lanes_together() {
    for mode in [CommitMode::Staged, CommitMode::Atomic] {
        for edge_bytes in [1, 8 << 20] {
            let table = MemoryTable::new();
            let sink = Watched::over(MemorySink::new(&table).with_mode(mode));
            let pipeline = through(OneLane { blocking: false, ..FREE }, 300)
                .sink("out", sink)
                .edge_bytes(edge_bytes)
                .build()
                .unwrap();
            let report = soon(pipeline.run()).await.unwrap();
            assert_eq!(all_ids(&table), (0..3_000).collect::<Vec<_>>(), "{mode} {edge_bytes}");
            assert_eq!(report.rows_written(), 3_000);
            assert_eq!(soon(pipeline.run()).await.unwrap().rows_read(), 0);
        }
    }
}
