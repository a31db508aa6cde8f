//! The engine itself: SQL over batches in memory, and what a batch costs on its way.
//!
//! `cargo bench --bench engine`. One lane, one worker thread.

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use orbit_etl::Result;
use orbit_etl::prelude::*;

const BATCH_ROWS: usize = 8_192;

fn batch(rows: usize) -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("price", DataType::Float64, false),
        Field::new("kind", DataType::Utf8, false),
    ]);
    let ids = Int64Array::from_iter_values(0..rows as i64);
    let prices = Float64Array::from_iter_values((0..rows).map(|i| (i % 1_000) as f64));
    let kinds = StringArray::from_iter_values((0..rows).map(|i| ["a", "b", "c"][i % 3]));
    let columns: Vec<arrow::array::ArrayRef> = vec![Arc::new(ids), Arc::new(prices), Arc::new(kinds)];
    RecordBatch::try_new(Arc::new(schema), columns).unwrap_or_else(|e| unreachable!("{e}"))
}

/// Takes batches and drops them.
fn nowhere() -> FnSink {
    FnSink::new(|_, batch| async move {
        black_box(batch);
        Result::Ok(())
    })
}

fn run(source: &MemorySource, query: Option<&str>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let mut builder = Pipeline::builder("bench").source("in", source.clone());
    if let Some(query) = query {
        builder = builder.transform("sql", Sql::new(query));
    }
    let pipeline = builder.sink("out", nowhere()).parallelism(1).checkpoint_in_memory().build();
    let report =
        pipeline.and_then(|p| runtime.map(|r| r.block_on(p.run())).unwrap_or_else(|e| unreachable!("{e}")));
    black_box(report.unwrap_or_else(|e| unreachable!("{}", e.report())));
}

fn sql(c: &mut Criterion) {
    let mut group = c.benchmark_group("memory to SQL to memory");
    let batches = 1_000;
    let source = MemorySource::new(batch(1).schema(), vec![batch(BATCH_ROWS); batches]);
    group.throughput(Throughput::Elements((batches * BATCH_ROWS) as u64)).sample_size(10);
    group.bench_function("filter and projection", |b| {
        b.iter(|| run(&source, Some("SELECT id, price * 1.19 AS gross FROM input WHERE price > 500")));
    });
    group.finish();
}

/// The slope over the number of tiny batches is what the engine adds to each.
fn overhead(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine overhead of a batch");
    for batches in [10_000, 110_000] {
        let source = MemorySource::new(batch(1).schema(), vec![batch(1); batches]);
        group.throughput(Throughput::Elements(batches as u64)).sample_size(10);
        group.bench_with_input(BenchmarkId::from_parameter(batches), &source, |b, source| {
            b.iter(|| run(source, None));
        });
    }
    group.finish();
}

criterion_group!(benches, sql, overhead);
criterion_main!(benches);
