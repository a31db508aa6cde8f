//! Death on the way into an Iceberg table, whose catalog is a database.

use std::path::Path;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use orbit_etl::observe::Outcome;
use orbit_etl::prelude::*;
use orbit_etl::{Context, ScanRequest, Source, SourceEvent, StreamId};

use super::child::Run;
use super::{Bench, PARTITIONED, REJECTS, expect_none, last_epoch, run};
use crate::job::{Input, Job, Row};
use crate::paced::Pace;
use crate::target;

/// Where a run dies; the next one dies at the next of a chain, the last one lives.
const CHAINS: [&[&str]; 20] = [
    &["before_claim"],
    &["after_claim"],
    &["iceberg_after_create"],
    &["after_sink_claims"],
    &["after_discard"],
    &["barrier:4"],
    &["before_prepare:3"],
    &["after_prepare"],
    &["after_prepare:4"],
    &["before_checkpoint:2"],
    &["after_checkpoint"],
    &["after_checkpoint:3"],
    &["before_commit:2"],
    &["iceberg_before_commit"],
    &["iceberg_before_commit:3", "iceberg_after_commit"],
    &["iceberg_after_commit:2"],
    &["after_commit:2", "after_sink_claims"],
    &["before_acknowledge:2"],
    &["after_acknowledge:2"],
    &["before_checkpoint:3", "after_discard", "after_checkpoint:2", "iceberg_after_commit"],
];

async fn die_everywhere(partitioned: bool, rejects: bool) {
    let bench = Bench::new(partitioned, rejects);
    let mut failures = Vec::new();
    for (i, chain) in CHAINS.into_iter().enumerate() {
        let mut job = bench.job(&format!("iceberg-{i}"));
        job.iceberg = true;
        if let Err(failure) = die_and_finish(&bench, &job, chain).await {
            failures.push(format!("{chain:?}: {failure}"));
        }
    }
    expect_none(&failures);
}

async fn die_and_finish(bench: &Bench, job: &Job, chain: &[&str]) -> Result<(), String> {
    std::fs::create_dir_all(&job.home).unwrap();
    for failpoint in chain {
        Run::start(job, Some(failpoint), None).aborts().map_err(|e| format!("{failpoint}: {e}"))?;
    }
    finish(job, &bench.input).await
}

/// Lets the load go on to its end; one more run must bring nothing.
async fn finish(job: &Job, input: &Input) -> Result<(), String> {
    for again in [false, true] {
        let report = run(&job.pipeline(&Pace::new())).await?;
        if report.outcome != Outcome::Completed || report.restarts > 0 {
            return Err(format!("the run did not go through: {report}"));
        }
        if again && (report.rows_read(), report.rows_rejected()) != (0, 0) {
            return Err(format!("one more run has read again: {report}"));
        }
        let (rows, named) = table(job).await?;
        if rows != input.rows {
            return Err(format!("{} rows, {} expected", rows.len(), input.rows.len()));
        }
        let is_data = |path: &&std::path::PathBuf| path.extension().is_some_and(|e| e == "parquet");
        let files = target::files(&job.lake());
        let stray: Vec<_> = files
            .iter()
            .filter(is_data)
            .filter(|file| !named.iter().any(|named| Path::new(named).ends_with(file)))
            .collect();
        if !stray.is_empty() {
            return Err(format!("left behind: {stray:?}"));
        }
    }
    Ok(())
}

/// The table's rows and data files.
async fn table(job: &Job) -> Result<(Vec<Row>, Vec<String>), String> {
    let fail = |e: orbit_etl::Error| e.report();
    let cx = Context::standalone("check").map_err(fail)?;
    let source = IcebergSource::new(job.catalog(), "load.rows");
    let scan = [ScanRequest::all(StreamId(0), 1_000)];
    let (mut rows, mut files) = (Vec::new(), Vec::new());
    let changes: Vec<_> = source.splits(&cx, None).await.map_err(fail)?.try_collect().await.map_err(fail)?;
    for split in changes.into_iter().flat_map(|change| change.added) {
        files.push(split.payload["path"].as_str().unwrap_or_default().to_owned());
        let events = source.open(&cx, &split, None, &scan).await.map_err(fail)?;
        for event in events.try_collect::<Vec<_>>().await.map_err(fail)? {
            let SourceEvent::Batch { batch, .. } = event else { continue };
            let text = |name| batch.column_by_name(name).unwrap().as_string::<i32>();
            let (regions, notes) = (text("region"), text("note"));
            let ids = batch.column_by_name("id").unwrap().as_primitive::<Int64Type>();
            for row in 0..batch.num_rows() {
                rows.push((ids.value(row), regions.value(row).to_owned(), notes.value(row).to_owned()));
            }
        }
    }
    rows.sort();
    Ok((rows, files))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain() {
    die_everywhere(!PARTITIONED, !REJECTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitioned_with_rejects() {
    die_everywhere(PARTITIONED, REJECTS).await;
}

/// Killed from outside after some epochs, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed() {
    let bench = Bench::new(!PARTITIONED, !REJECTS);
    let mut job = bench.job("iceberg-killed");
    job.iceberg = true;
    std::fs::create_dir_all(&job.home).unwrap();
    for more in 1..4 {
        let epoch = last_epoch(&job.state()).await;
        let mut run = Run::start(&job, None, None);
        // It may be through before.
        let _ = run.wait_for_epoch(epoch + more);
        run.signal("KILL");
        run.ends_without_error().unwrap();
    }
    finish(&job, &bench.input).await.unwrap();
}

/// An older run that wakes up late finds itself fenced, and what it would have written is there once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overtaken() {
    let bench = Bench::new(!PARTITIONED, !REJECTS);
    let mut job = bench.job("iceberg-overtaken");
    job.iceberg = true;
    std::fs::create_dir_all(&job.home).unwrap();
    let mut older = Run::start(&job, None, Some(2));
    older.wait_for_epoch(2).unwrap();
    finish(&job, &bench.input).await.unwrap();
    older.release();
    older.ends_fenced().unwrap();
    assert!(table(&job).await.unwrap().0 == bench.input.rows);
}
