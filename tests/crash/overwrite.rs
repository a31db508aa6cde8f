//! Death while everything is loaded once more, to take the place of what was loaded before.

use super::child::Run;
use super::steps::ONCE;
use super::{Bench, PARTITIONED, REJECTS, expect_none, run};
use crate::job::Job;
use crate::paced::Pace;
use crate::target;

/// Steps of epochs that publish nothing, and of the last one, which publishes all.
const LATER: [&str; 20] = [
    "barrier",
    "barrier:8",
    "before_prepare:5",
    "after_prepare",
    "after_prepare:6",
    "before_checkpoint",
    "before_checkpoint:4",
    "after_checkpoint",
    "after_checkpoint:4",
    "before_acknowledge:3",
    "after_acknowledge",
    "after_acknowledge:4",
    "before_commit",
    "files_after_rename",
    "files_after_rename:4",
    "files_before_manifest",
    "files_after_manifest",
    "files_before_replaced_manifest",
    "files_after_replaced",
    "after_commit",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_sees_one_load_or_the_next() {
    let bench = Bench::new(PARTITIONED, !REJECTS);
    let mut failures = Vec::new();
    for failpoint in ONCE.into_iter().chain(LATER) {
        let mut job = bench.job(failpoint);
        job.overwrite = true;
        if let Err(failure) = replace(&bench, &job, failpoint).await {
            failures.push(format!("{failpoint}: {failure}"));
        }
    }
    expect_none(&failures);
}

async fn replace(bench: &Bench, job: &Job, failpoint: &str) -> Result<(), String> {
    let pipeline = || job.pipeline(&Pace::new());
    run(&pipeline()).await?;
    target::check(job, &bench.input)?;
    let before = target::published(&job.lake());
    Run::start(job, Some(failpoint), None).aborts()?;
    // Either all of the first load or all of the second.
    target::check_by_manifests(job, &bench.input).map_err(|e| format!("after the crash: {e}"))?;
    run(&pipeline()).await?;
    target::check(job, &bench.input)?;
    target::check_clean(job)?;
    if target::published(&job.lake()).keys().any(|file| before.contains_key(file)) {
        return Err("files of the first load are still there".into());
    }
    Ok(())
}
