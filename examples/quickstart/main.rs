//! TPC-H tables as CSV, malformed lines included, joined and cleaned into partitioned Parquet,
//! exactly once.
//!
//! `cargo run --example quickstart`; run it again, and nothing is loaded twice. Everything is under
//! `target/quickstart/`; delete that folder to begin anew.

mod input;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use arrow::util::pretty::pretty_format_batches;
use futures::StreamExt;
use orbit_etl::observe::RunReport;
use orbit_etl::prelude::*;
use orbit_etl::{Error, Result};
use tokio::sync::mpsc;

const QUERY: &str = "
    SELECT l.l_orderkey, l.l_linenumber, l.l_shipdate, l.l_quantity,
           l.l_extendedprice * (1 - l.l_discount) AS revenue,
           trim(o.o_orderpriority) AS priority, o.o_orderdate,
           c.c_name, c.c_mktsegment AS segment
    FROM lineitem l
    JOIN orders o ON l.l_orderkey = o.o_orderkey
    JOIN customer c ON o.o_custkey = c.c_custkey
    WHERE l.l_quantity > 0";

const SUMMARY: &str = "
    SELECT segment, count(*) AS lines, round(sum(revenue), 2) AS revenue, max(l_shipdate) AS last_shipped
    FROM input GROUP BY segment ORDER BY segment";

#[tokio::main]
async fn main() -> ExitCode {
    match quickstart(&Path::new(env!("CARGO_MANIFEST_DIR")).join("target/quickstart")).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.report());
            ExitCode::FAILURE
        }
    }
}

async fn quickstart(home: &Path) -> Result<()> {
    let at = |name: &str| home.join(name).display().to_string();
    input::generate(&home.join("input"))
        .map_err(|e| Error::resources("can't write the input").with("folder", at("input")).caused_by(e))?;

    let pipeline = Pipeline::builder("quickstart")
        .source("lineitem", FilesSource::csv(at("input/lineitem.csv")))
        .source("orders", FilesSource::csv(at("input/orders.csv")))
        .source("customer", FilesSource::csv(at("input/customer.csv")))
        .transform("joined", Sql::new(QUERY))
        .inputs(["lineitem", "orders", "customer"])
        .sink("lake", FilesSink::parquet(at("output")).partition_by(["segment"]))
        .on_error(OnError::dead_letter(FilesSink::json(at("rejected"))).max_share(0.01))
        .delivery(Delivery::ExactlyOnce)
        .checkpoint(home.join("state"), Duration::from_secs(10))
        .build()?;

    println!("{}", pipeline.explain().await?);
    let report = with_progress(&pipeline).await?;
    println!("{report}");
    if report.rows_rejected() > 0 {
        println!("{} malformed lines went to {}", report.rows_rejected(), at("rejected"));
    }
    if report.rows_read() == 0 {
        println!("everything was loaded before; delete {} to begin anew", home.display());
    }
    read_back(&at("output")).await
}

async fn with_progress(pipeline: &Pipeline) -> Result<RunReport> {
    let running = pipeline.start();
    let mut progress = Box::pin(running.progress());
    let printing = tokio::spawn(async move {
        while let Some(now) = progress.next().await {
            let read: u64 = now.nodes.iter().take(3).map(|(_, counts)| counts.rows_in).sum();
            println!("  {:5.1} s: {read} rows read", now.elapsed.as_secs_f64());
        }
    });
    let report = running.await;
    printing.abort();
    report
}

/// A pipeline can just as well end in the host.
async fn read_back(output: &str) -> Result<()> {
    let (sender, mut rows) = mpsc::channel(8);
    let pipeline = Pipeline::builder("summary")
        .source("lake", FilesSource::parquet(output))
        .transform("by_segment", Sql::new(SUMMARY))
        .sink("host", ChannelSink::new(sender))
        .checkpoint_in_memory()
        .build()?;
    let collected = tokio::spawn(async move {
        let mut batches = Vec::new();
        while let Some(batch) = rows.recv().await {
            batches.push(batch);
        }
        batches
    });
    pipeline.run().await?;
    drop(pipeline);
    let batches =
        collected.await.map_err(|e| Error::internal("the reader of the channel died").caused_by(e))?;
    let table = pretty_format_batches(&batches).map_err(|e| Error::internal("can't print").caused_by(e))?;
    println!("{table}");
    Ok(())
}
