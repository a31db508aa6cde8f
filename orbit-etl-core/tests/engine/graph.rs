//! Graphs: what is refused, and how rows find their way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arrow::array::{AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use orbit_etl_core::host::Map;
use orbit_etl_core::memory::{MemorySink, MemoryTable};
use orbit_etl_core::{
    BlockingOperator, ConnectorInfo, Context, Distribution, ErrorKind, Operator, OperatorState, Output,
    Pipeline, Result, ScanRequest, Started, StreamId, StreamInfo, Transform,
};

use super::support::{all_ids, ids, numbers, soon};

#[test]
fn a_graph_that_cannot_work_is_refused_with_the_node_named() {
    let source = || numbers(1, 1);
    let sink = || MemorySink::new(&MemoryTable::new());
    let same = || Map::new(Ok);
    let cases: Vec<(_, &str)> = vec![
        (Pipeline::builder("p").sink("s", sink()), "a transform or sink needs an input (node: s"),
        (Pipeline::builder("p").source("a", source()), "at least one sink"),
        (
            Pipeline::builder("p").source("a", source()).source("a", source()).sink("s", sink()),
            "two nodes have the same name (node: a",
        ),
        (
            Pipeline::builder("p").source("a", source()).sink("s", sink()).inputs(["b"]),
            "there is no node of that name (node: s, input: b, pipeline: p); the nodes are: a, s",
        ),
        (
            Pipeline::builder("p").source("a", source()).source("b", source()).sink("s", sink()),
            "nothing reads this node (node: a",
        ),
        (
            Pipeline::builder("p")
                .source("a", source())
                .transform("x", same())
                .inputs(["y"])
                .transform("y", same())
                .inputs(["x"])
                .sink("s", sink())
                .inputs(["a"]),
            "these nodes read one another in a circle (nodes: x, y",
        ),
        (Pipeline::builder("p").source("a.b", source()).sink("s", sink()), "letters, digits"),
        (Pipeline::builder("a/b").source("a", source()).sink("s", sink()), "a pipeline's name"),
    ];
    for (builder, expected) in cases {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fan_out_and_fan_in_lose_nothing() {
    let (left, both) = (MemoryTable::new(), MemoryTable::new());
    let even = |keep: i64| {
        Map::new(move |batch: RecordBatch| {
            let ids = batch.column(0).as_primitive::<Int64Type>();
            let mask: BooleanArray = ids.values().iter().map(|i| Some(i % 2 == keep)).collect();
            Ok(filter_record_batch(&batch, &mask).unwrap())
        })
    };
    let pipeline = Pipeline::builder("p")
        .source("in", numbers(40, 4))
        .transform("even", even(0))
        .transform("odd", even(1))
        .inputs(["in"])
        .sink("evens", MemorySink::new(&left))
        .inputs(["even"])
        .sink("both", MemorySink::new(&both))
        .inputs(["even", "odd"])
        .checkpoint_in_memory()
        .epoch_every(std::time::Duration::from_millis(1))
        .edge_bytes(1)
        .build()
        .unwrap();
    let report = soon(pipeline.run()).await.unwrap();
    assert_eq!(all_ids(&left), (0..400).filter(|i| i % 2 == 0).collect::<Vec<_>>());
    assert_eq!(all_ids(&both), (0..400).collect::<Vec<_>>());
    assert_eq!(ids(&both, "odd").len(), 200);
    assert_eq!(report.node("even").unwrap().counts.rows_in, 400);
    assert_eq!(report.rows_written(), 600);
}

/// Counts rows per `group`, over all runs; puts the counts out when its inputs end. Remembers which
/// lane saw which key.
#[derive(Debug, Clone, Default)]
pub(super) struct CountByGroup {
    lanes: Arc<Mutex<BTreeMap<Option<i64>, Vec<usize>>>>,
    started: Arc<Mutex<usize>>,
}

#[async_trait]
impl Transform for CountByGroup {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("count", "count by group")
    }

    async fn outputs(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Vec<StreamInfo>> {
        assert_eq!(inputs.len(), 1);
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("group", DataType::Int64, true),
        ]);
        Ok(vec![StreamInfo::new(cx.node(), Arc::new(schema))])
    }

    fn distribution(&self) -> Distribution {
        Distribution::Keyed(vec!["group".into()])
    }

    async fn start(&self, _: &Context, inputs: &[StreamInfo]) -> Result<Started> {
        let mut started = self.started.lock().unwrap();
        *started += 1;
        Ok(Started::Streaming(Box::new(Counting {
            of: self.clone(),
            lane: *started,
            counts: BTreeMap::new(),
            schema: inputs[0].schema.clone(),
        })))
    }
}

struct Counting {
    of: CountByGroup,
    lane: usize,
    counts: BTreeMap<Option<i64>, i64>,
    schema: arrow::datatypes::SchemaRef,
}

#[async_trait]
impl Operator for Counting {
    async fn process(&mut self, _: usize, batch: RecordBatch, _: &mut Output<'_>) -> Result<()> {
        for group in batch.column(1).as_primitive::<Int64Type>() {
            *self.counts.entry(group).or_default() += 1;
            let mut lanes = self.of.lanes.lock().unwrap();
            let seen = lanes.entry(group).or_default();
            if !seen.contains(&self.lane) {
                seen.push(self.lane);
            }
        }
        Ok(())
    }

    async fn finish(&mut self, out: &mut Output<'_>) -> Result<()> {
        let counts = Int64Array::from_iter_values(self.counts.values().copied());
        let groups = Int64Array::from_iter(self.counts.keys().copied());
        let batch = RecordBatch::try_new(self.schema.clone(), vec![Arc::new(counts), Arc::new(groups)]);
        out.emit(0, batch.unwrap()).await
    }

    async fn snapshot(&mut self) -> Result<OperatorState> {
        Ok(OperatorState::default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_with_equal_keys_meet_in_one_lane() {
    let table = MemoryTable::new();
    let count = CountByGroup::default();
    let pipeline = Pipeline::builder("p")
        .source("in", numbers(50, 5))
        .transform("count", count.clone())
        .sink("out", MemorySink::new(&table))
        .parallelism(3)
        .checkpoint_in_memory()
        .build()
        .unwrap();
    soon(pipeline.run()).await.unwrap();
    assert_eq!(all_ids(&table).iter().sum::<i64>(), 500);
    let lanes = count.lanes.lock().unwrap();
    assert_eq!(lanes.len(), 8, "seven groups and NULL");
    assert!(lanes.values().all(|l| l.len() == 1), "{lanes:?}");
}

/// Puts its second input out before its first, as a join does that builds from the second.
#[derive(Debug)]
pub(crate) struct SecondFirst;

#[async_trait]
impl Transform for SecondFirst {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("second_first", "")
    }

    async fn outputs(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Vec<StreamInfo>> {
        Ok(vec![StreamInfo::new(cx.node(), inputs[0].schema.clone())])
    }

    async fn blocking(&self, _: &Context, _: &[StreamInfo]) -> Result<bool> {
        Ok(true)
    }

    async fn start(&self, _: &Context, _: &[StreamInfo]) -> Result<Started> {
        Ok(Started::Blocking(Box::new(Self)))
    }
}

#[async_trait]
impl BlockingOperator for SecondFirst {
    async fn run(
        self: Box<Self>,
        inputs: Vec<BoxStream<'static, Result<RecordBatch>>>,
        out: &mut Output<'_>,
    ) -> Result<()> {
        let mut inputs = inputs.into_iter();
        let (first, second) = (inputs.next().unwrap(), inputs.next().unwrap());
        let mut rows = second.chain(first);
        while let Some(batch) = rows.next().await {
            out.emit(0, batch?).await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fan_out_that_meets_again_does_not_stand_still() {
    let table = MemoryTable::new();
    let pipeline = Pipeline::builder("p")
        .source("in", numbers(200, 2))
        .transform("a", Map::new(Ok))
        .transform("b", Map::new(Ok))
        .inputs(["in"])
        .transform("join", SecondFirst)
        .inputs(["a", "b"])
        .sink("out", MemorySink::new(&table))
        .edge_bytes(1)
        .epoch_every(std::time::Duration::from_millis(1))
        .checkpoint_in_memory()
        .build()
        .unwrap();
    let plan = pipeline.explain().await.unwrap();
    assert!(plan.commits.starts_with("once, at the end: join"), "{}", plan.commits);
    assert!(plan.to_string().contains("inputs could wait for one another"), "{plan}");
    let report = soon(pipeline.run()).await.unwrap();
    assert_eq!(report.epochs, 1);
    assert_eq!(table.rows(), 4_000);
}

/// Asks for one column only.
#[derive(Debug)]
struct OnlyIds;

#[async_trait]
impl Transform for OnlyIds {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("only_ids", "")
    }

    async fn outputs(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Vec<StreamInfo>> {
        let id = inputs[0].schema.field_with_name("id").unwrap().clone();
        Ok(vec![StreamInfo::new(cx.node(), Arc::new(Schema::new(vec![id])))])
    }

    async fn scan(&self, cx: &Context, _: &[StreamInfo], input: usize) -> Result<ScanRequest> {
        let all = ScanRequest::all(StreamId(input), cx.batch_rows());
        Ok(ScanRequest { projection: Some(vec!["id".into()]), ..all })
    }

    async fn start(&self, _: &Context, inputs: &[StreamInfo]) -> Result<Started> {
        assert_eq!(inputs[0].schema.fields().len(), 1, "started with the narrowed schema");
        Ok(Started::Streaming(Box::new(Self)))
    }
}

#[async_trait]
impl Operator for OnlyIds {
    async fn process(&mut self, _: usize, batch: RecordBatch, out: &mut Output<'_>) -> Result<()> {
        assert_eq!(batch.num_columns(), 1);
        out.emit(0, batch).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_is_pushed_down_or_carried_out_by_the_engine() {
    for (source, who) in [(numbers(3, 1), "the source"), (numbers(3, 1).without_pushdown(), "the engine")] {
        let table = MemoryTable::new();
        let pipeline = Pipeline::builder("p")
            .source("in", source)
            .transform("ids", OnlyIds)
            .sink("out", MemorySink::new(&table))
            .checkpoint_in_memory()
            .build()
            .unwrap();
        let plan = pipeline.explain().await.unwrap().to_string();
        assert!(plan.contains(&format!("{who} reads only id")), "{plan}");
        soon(pipeline.run()).await.unwrap();
        assert_eq!(all_ids(&table), (0..30).collect::<Vec<_>>());
    }
}

#[derive(Debug)]
struct LosesRows;

#[async_trait]
impl Transform for LosesRows {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("loses_rows", "")
    }

    async fn outputs(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Vec<StreamInfo>> {
        Ok(vec![StreamInfo::new(cx.node(), inputs[0].schema.clone())])
    }

    fn maps_rows(&self) -> bool {
        true
    }

    async fn start(&self, _: &Context, _: &[StreamInfo]) -> Result<Started> {
        Ok(Started::Streaming(Box::new(Self)))
    }
}

#[async_trait]
impl Operator for LosesRows {
    async fn process(&mut self, _: usize, batch: RecordBatch, out: &mut Output<'_>) -> Result<()> {
        out.emit(0, batch.slice(1, batch.num_rows() - 1)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_in_which_rows_vanish_is_not_committed() {
    let table = MemoryTable::new();
    let pipeline = Pipeline::builder("p")
        .source("in", numbers(3, 1))
        .transform("bad", LosesRows)
        .sink("out", MemorySink::new(&table))
        .checkpoint_in_memory()
        .build()
        .unwrap();
    let error = soon(pipeline.run()).await.unwrap_err();
    assert_eq!((error.kind(), error.context("node")), (ErrorKind::Internal, Some("bad")));
    assert_eq!(table.rows(), 0);
}
