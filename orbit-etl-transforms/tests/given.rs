//! What the tests begin with: small tables, and ways to run a transform outside a pipeline.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::util::pretty::pretty_format_batches;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use futures::stream::StreamExt;
use orbit_etl_core::pipeline::Collected;
use orbit_etl_core::{Context, ContextBuilder, Result, Started, StreamInfo, Transform};
use orbit_etl_transforms::Sql;

pub(crate) fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap()
}

pub(crate) fn stream(name: &str, batch: &RecordBatch) -> StreamInfo {
    StreamInfo::new(name, batch.schema())
}

pub(crate) fn cx() -> Context {
    Context::standalone("node").unwrap()
}

pub(crate) fn cx_with(pool_bytes: usize, lanes: usize, batch_rows: usize) -> Context {
    ContextBuilder::new("test")
        .memory(Arc::new(GreedyMemoryPool::new(pool_bytes)))
        .parallelism(lanes)
        .batch_rows(batch_rows)
        .build()
        .unwrap()
        .for_node("node")
}

/// Runs a streaming query over these batches, which have the announced schema.
pub(crate) async fn streamed(sql: &Sql, batches: &[RecordBatch]) -> Collected {
    streamed_over(sql, &[stream("src", &batches[0])], batches).await
}

pub(crate) async fn streamed_over(sql: &Sql, inputs: &[StreamInfo], batches: &[RecordBatch]) -> Collected {
    let cx = cx();
    assert!(!sql.blocking(&cx, inputs).await.unwrap(), "{} blocks", sql.query());
    let outputs = sql.outputs(&cx, inputs).await.unwrap();
    let Started::Streaming(mut operator) = sql.start(&cx, inputs).await.unwrap() else {
        panic!("{} started as blocking", sql.query());
    };
    let mut collected = Collected::default();
    for batch in batches {
        operator.process(0, batch.clone(), &mut collected.output()).await.unwrap();
    }
    assert!(operator.snapshot().await.unwrap().groups.is_empty());
    let before = collected.batches.len();
    operator.finish(&mut collected.output()).await.unwrap();
    assert_eq!(collected.batches.len(), before, "no row is held back");
    for (output, batch) in &collected.batches {
        assert_eq!(*output, 0);
        assert_eq!(batch.schema(), outputs[0].schema, "the schema is the announced one");
    }
    collected
}

/// Runs a blocking query, and checks that its batches have the announced schema.
pub(crate) async fn blocked(
    sql: &Sql,
    cx: &Context,
    inputs: Vec<(StreamInfo, Vec<RecordBatch>)>,
) -> Result<Vec<RecordBatch>> {
    let infos: Vec<StreamInfo> = inputs.iter().map(|(i, _)| i.clone()).collect();
    let outputs = sql.outputs(cx, &infos).await?;
    assert!(sql.blocking(cx, &infos).await?, "{} streams", sql.query());
    let Started::Blocking(operator) = sql.start(cx, &infos).await? else {
        panic!("{} started as streaming", sql.query());
    };
    let rows = inputs.into_iter().map(|(_, b)| futures::stream::iter(b.into_iter().map(Ok)).boxed());
    let mut out = Collected::default();
    operator.run(rows.collect(), &mut out.output()).await?;
    assert!(out.rejects.is_empty());
    for (output, batch) in &out.batches {
        assert_eq!(*output, 0);
        assert_eq!(batch.schema(), outputs[0].schema, "the schema is the announced one");
    }
    Ok(out.batches.into_iter().map(|(_, b)| b).collect())
}

pub(crate) fn shown(batches: &[RecordBatch]) -> String {
    pretty_format_batches(batches).unwrap().to_string()
}

pub(crate) fn rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

/// The only batch of the only output.
pub(crate) fn only(collected: &Collected) -> &RecordBatch {
    let [(0, batch)] = collected.batches.as_slice() else {
        panic!("{} batches came out", collected.batches.len());
    };
    batch
}
