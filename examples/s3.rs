//! Rows and state in an object store: exactly once, without a disk.
//!
//! ```text
//! export ORBIT_TEST_S3_URL=s3://bucket
//! export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… AWS_REGION=…
//! export AWS_ENDPOINT_URL=http://127.0.0.1:5555 AWS_ALLOW_HTTP=true    # for a server of one's own
//! cargo run --example s3 --features s3
//! ```
//!
//! `eval "$(scripts/services env s3)"` sets them for the server that `scripts/services up s3` starts. Run
//! twice, it does not load twice.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use orbit_etl::prelude::*;
use orbit_etl::{Error, Result};
use tokio::sync::mpsc;

const URL: &str = "ORBIT_TEST_S3_URL";

#[tokio::main]
async fn main() -> Result<()> {
    let Ok(url) = std::env::var(URL) else {
        println!(
            "set {URL} to s3://bucket or s3://bucket/folder, and AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"
        );
        println!(
            "for a server other than Amazon's, set AWS_ENDPOINT_URL too, and AWS_ALLOW_HTTP=true for http"
        );
        return Ok(());
    };
    let url = format!("{}/orbit-example", url.trim_end_matches('/'));
    let Some((_, folder)) = url.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) else {
        return Err(Error::config("not the URL of a bucket")
            .with("variable", URL)
            .remedy("write s3://bucket"));
    };

    let store = AmazonS3Builder::from_env()
        .with_url(&url)
        .build()
        .map_err(|e| Error::config("can't use the object store").caused_by(e))?;
    let load = Pipeline::builder("s3-example")
        .source("numbers", numbers()?)
        .sink("lake", FilesSink::parquet(format!("{url}/lake")))
        .delivery(Delivery::ExactlyOnce)
        .checkpoint_store(Arc::new(store), Path::from(format!("{folder}/state")), Duration::from_secs(10))
        .build()?;
    println!("{}", load.run().await?);

    let (sender, mut rows) = mpsc::channel(8);
    let count = Pipeline::builder("s3-example-read")
        .source("lake", FilesSource::parquet(format!("{url}/lake")))
        .sink("host", ChannelSink::new(sender))
        .checkpoint_in_memory()
        .build()?;
    let run = count.start();
    drop(count);
    let mut read = 0;
    while let Some(batch) = rows.recv().await {
        read += batch.num_rows();
    }
    run.await?;
    println!("{url}/lake holds {read} rows");
    Ok(())
}

fn numbers() -> Result<MemorySource> {
    let schema = Arc::new(Schema::new(vec![Field::new("number", DataType::Int64, false)]));
    let batches = (0..10).map(|i| {
        let numbers = Int64Array::from_iter_values(i * 1_000..(i + 1) * 1_000);
        RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(numbers)])
            .map_err(|e| Error::internal("can't build a batch").caused_by(e))
    });
    Ok(MemorySource::new(Arc::clone(&schema), batches.collect::<Result<_>>()?))
}
