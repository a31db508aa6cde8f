//! Two runs of one pipeline at once: the newest goes on, the older one is fenced, no row comes twice.

use super::child::Run;
use super::{Bench, PARTITIONED, REJECTS, check_loaded, expect_none, finish, last_epoch, run};
use crate::paced::Pace;

/// The older run wakes up when the newer one is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_run_that_wakes_up_late_ends_fenced() {
    let bench = Bench::new(PARTITIONED, REJECTS);
    let job = bench.job("late");
    let mut older = Run::start(&job, None, Some(3));
    older.wait_for_epoch(3).unwrap();
    assert!(last_epoch(&job.state()).await >= 3);
    finish(&job, &bench.input).await.unwrap();
    older.release();
    older.ends_fenced().unwrap();
    check_loaded(&job, &bench.input).await.unwrap();
}

/// Both read and write at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_run_is_fenced_while_both_are_at_work() {
    let bench = Bench::new(PARTITIONED, REJECTS);
    let job = bench.job("both");
    let mut older = Run::start(&job, None, Some(2));
    older.wait_for_epoch(2).unwrap();
    let before = last_epoch(&job.state()).await;
    assert!(before >= 2);
    let pace = Pace::new();
    let mut acknowledged = pace.acknowledged();
    let pipeline = job.pipeline(&pace);
    let newer = pipeline.start();
    acknowledged.wait_for(|epochs| *epochs >= 1).await.unwrap();
    older.release();
    newer.await.unwrap();
    older.ends_fenced().unwrap();
    assert!(last_epoch(&job.state()).await > before);
    check_loaded(&job, &bench.input).await.unwrap();
}

/// The older run is stopped anywhere, in the middle of a commit too, and goes on when the newer one
/// has loaded everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_run_that_was_frozen_anywhere_does_no_harm() {
    let bench = Bench::new(!PARTITIONED, REJECTS);
    let mut failures = Vec::new();
    for epoch in 1..=5 {
        let job = bench.job(&format!("frozen-{epoch}"));
        if let Err(failure) = freeze(&bench, &job, epoch).await {
            failures.push(format!("after epoch {epoch}: {failure}"));
        }
    }
    expect_none(&failures);
}

async fn freeze(bench: &Bench, job: &crate::job::Job, epoch: u64) -> Result<(), String> {
    let mut older = Run::start(job, None, None);
    older.wait_for_epoch(epoch)?;
    older.signal("STOP");
    run(&job.pipeline(&Pace::new())).await?;
    older.signal("CONT");
    older.ends_without_error()?;
    check_loaded(job, &bench.input).await
}
