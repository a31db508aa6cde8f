//! What it costs a batch to cross between two Arrow versions and back.

// Its tests, too, where benches are checked as tests are.
#[allow(dead_code, unused_imports, clippy::unwrap_used)]
#[path = "../src/bridge.rs"]
mod bridge;

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use criterion::{Criterion, criterion_group, criterion_main};

fn batch(columns: usize) -> RecordBatch {
    const ROWS: i64 = 8_192;
    let column = |i: usize| -> ArrayRef {
        match i % 4 {
            0 => Arc::new(Int64Array::from_iter_values(0..ROWS)),
            1 => Arc::new(StringArray::from_iter_values((0..ROWS).map(|row| format!("row {row}")))),
            2 => Arc::new(Float64Array::from_iter_values((0..ROWS).map(|row| row as f64))),
            _ => Arc::new(TimestampMicrosecondArray::from_iter_values(0..ROWS)),
        }
    };
    RecordBatch::try_from_iter((0..columns).map(|i| (format!("column {i}"), column(i))))
        .unwrap_or_else(|_| RecordBatch::new_empty(Arc::new(arrow::datatypes::Schema::empty())))
}

fn crossings(batch: &RecordBatch) -> Option<(bridge::To58, bridge::To59)> {
    let there = bridge::To58::new(batch.schema_ref()).ok()?;
    let back = bridge::To59::new(there.batch(batch).ok()?.schema_ref()).ok()?;
    Some((there, back))
}

fn crossing(criterion: &mut Criterion) {
    for columns in [1, 16, 100] {
        let batch = batch(columns);
        let Some((there, back)) = crossings(&batch) else { continue };
        criterion.bench_function(&format!("there and back, {columns} columns"), |bencher| {
            bencher.iter(|| there.batch(&batch).and_then(|batch| back.batch(&batch)))
        });
    }
}

criterion_group!(benches, crossing);
criterion_main!(benches);
