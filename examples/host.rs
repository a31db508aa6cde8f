//! A pipeline between the parts of a program: a stream goes in, a closure maps, a channel and a closure
//! take the rows.
//!
//! `cargo run --example host`

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{AsArray, Float64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Float64Type, Schema};
use futures::stream;
use orbit_etl::prelude::*;
use orbit_etl::{Error, Result};
use tokio::sync::mpsc;

#[tokio::main]
async fn main() -> Result<()> {
    let schema = Arc::new(Schema::new(vec![Field::new("celsius", DataType::Float64, false)]));

    // Anything that yields batches: an HTTP body, a query's result, a device.
    let of = Arc::clone(&schema);
    let measured = stream::iter((0..10).map(move |hour| {
        let values =
            Float64Array::from_iter_values((0..60).map(|minute| f64::from(hour * 60 + minute) / 20.0));
        RecordBatch::try_new(of.clone(), vec![Arc::new(values)])
            .map_err(|e| Error::internal("can't build a batch").caused_by(e))
    }));

    let (sender, mut rows) = mpsc::channel(4);
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let pipeline = Pipeline::builder("host")
        .source("measured", StreamSource::new(schema, measured))
        .transform("fahrenheit", Map::new(fahrenheit))
        .sink("channel", ChannelSink::new(sender))
        .sink(
            "counter",
            FnSink::new(move |_stream, batch: RecordBatch| {
                counter.fetch_add(batch.num_rows(), Ordering::Relaxed);
                async { Ok(()) }
            }),
        )
        .checkpoint_in_memory()
        .build()?;

    // The pipeline runs in the background; it waits whenever the channel is full.
    let run = pipeline.start();
    // The channel closes when nobody can send any more.
    drop(pipeline);
    let mut hottest = f64::MIN;
    while let Some(batch) = rows.recv().await {
        let values = batch.column(0).as_primitive::<Float64Type>();
        hottest = values.values().iter().fold(hottest, |a, b| a.max(*b));
    }
    println!("{}", run.await?);
    println!("{} rows, the hottest {hottest:.1} °F", seen.load(Ordering::Relaxed));
    Ok(())
}

fn fahrenheit(batch: RecordBatch) -> Result<RecordBatch> {
    let celsius = batch.column(0).as_primitive::<Float64Type>();
    let fahrenheit: Float64Array = celsius.unary(|value| value * 1.8 + 32.0);
    let schema = Schema::new(vec![Field::new("fahrenheit", DataType::Float64, false)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(fahrenheit)])
        .map_err(|e| Error::internal("can't build a batch").caused_by(e))
}
