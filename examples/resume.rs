//! A run that fails in the middle, and a second one that goes on where the first was committed.
//!
//! `cargo run --example resume`

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use orbit_etl::checkpoint::Log;
use orbit_etl::prelude::*;
use orbit_etl::{Error, Result};

const FILES: usize = 4;
const ROWS: usize = 5_000;

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|e| Error::resources("no folder").caused_by(e))?;
    write_input(folder.path()).map_err(|e| Error::resources("can't write the input").caused_by(e))?;
    let (lake, state) = (folder.path().join("lake"), folder.path().join("state"));

    let down = Arc::new(AtomicBool::new(true));
    let pipeline = Pipeline::builder("resume")
        .source("files", FilesSource::csv(folder.path().join("*.csv").display().to_string()))
        .transform("enrich", Map::new(slow_service(Arc::clone(&down))))
        .sink("lake", FilesSink::parquet(lake.display().to_string()))
        .delivery(Delivery::ExactlyOnce)
        // Few rows under way, so that epochs end soon.
        .batch_rows(250)
        .edge_bytes(8 << 10)
        .checkpoint(&state, Duration::from_millis(20))
        .build()?;

    match pipeline.run().await {
        Ok(report) => println!("the service never failed:\n{report}"),
        Err(error) => println!("the first run failed: {}", error.report()),
    }
    show_positions(&state).await?;

    down.store(false, Ordering::Relaxed);
    let report = pipeline.run().await?;
    println!("the second run:\n{report}");
    show_positions(&state).await?;
    let total = report.node("lake").map_or(0, |node| node.total.rows_out);
    println!("both together have written {total} of {} rows", FILES * ROWS);
    Ok(())
}

/// A closure that takes its time, and that fails after a while as long as the service is down.
fn slow_service(down: Arc<AtomicBool>) -> impl Fn(RecordBatch) -> Result<RecordBatch> + Send + Sync {
    let served = AtomicU64::new(0);
    move |batch| {
        // A closure that blocks says so, or it holds up the tasks beside it.
        tokio::task::block_in_place(|| std::thread::sleep(Duration::from_millis(5)));
        let served = served.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        if served > 12_000 && down.load(Ordering::Relaxed) {
            return Err(Error::unavailable("the service doesn't answer").retryable(false));
        }
        Ok(batch)
    }
}

/// What a run that starts now would go on from.
async fn show_positions(state: &Path) -> Result<()> {
    let Some(head) = Log::local(state)?.peek().await? else {
        println!("  nothing is committed yet");
        return Ok(());
    };
    println!("  epoch {}, complete: {}", head.state.epoch, head.state.complete);
    for (source, known) in &head.state.sources {
        for split in &known.splits {
            match &split.position {
                Some(position) => println!("  {source}: {} after {position}", split.split.id),
                None => println!("  {source}: {} from its start", split.split.id),
            }
        }
        println!("  {source}: every other split that was found is read");
    }
    Ok(())
}

fn write_input(folder: &Path) -> std::io::Result<()> {
    for file in 0..FILES {
        let mut text = "id,name\n".to_owned();
        for row in 0..ROWS {
            let id = file * ROWS + row;
            let _ = writeln!(text, "{id},name {id}");
        }
        fs::write(folder.join(format!("part-{file}.csv")), text)?;
    }
    Ok(())
}
