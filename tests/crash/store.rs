//! Death on the way into an object store, where an epoch's files are uploads that are not completed.

use std::fs;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::child::Run;
use super::{Bench, PARTITIONED, REJECTS, expect_none, run};
use crate::job::Job;
use crate::paced::Pace;
use crate::target;

/// Names the bucket. The credentials are in the environment too.
const URL: &str = "ORBIT_TEST_S3_URL";

const CHAINS: [&[&str]; 8] = [
    &["after_prepare:4"],
    &["before_checkpoint:3", "after_discard"],
    &["after_checkpoint:2"],
    &["before_commit:3", "before_commit", "after_commit:2"],
    &["files_between_publish_and_markers:2"],
    &["files_before_manifest:2", "files_after_manifest"],
    &["after_commit:3", "after_sink_claims"],
    &["before_acknowledge:2"],
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads() {
    let Ok(bucket) = std::env::var(URL) else {
        // Not through the macro, whose text a passing test swallows.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {URL} names no bucket");
        return;
    };
    let bench = Bench::new(PARTITIONED, REJECTS);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let mut failures = Vec::new();
    for (i, chain) in CHAINS.into_iter().enumerate() {
        let mut job = bench.job(&format!("uploads-{i}"));
        job.lake_url = Some(format!("{}/crash-{now}/{i}", bucket.trim_end_matches('/')));
        if let Err(failure) = die_and_finish(&bench, &job, chain).await {
            failures.push(format!("{chain:?}: {failure}"));
        }
    }
    expect_none(&failures);
}

async fn die_and_finish(bench: &Bench, job: &Job, chain: &[&str]) -> Result<(), String> {
    for failpoint in chain {
        Run::start(job, Some(failpoint), None).aborts().map_err(|e| format!("{failpoint}: {e}"))?;
    }
    for again in [false, true] {
        let report = run(&job.pipeline(&Pace::new())).await?;
        if again && report.rows_read() > 0 {
            return Err(format!("one more run has read again: {report}"));
        }
        copy_lake(job).await.map_err(|e| e.to_string())?;
        target::check(job, &bench.input)?;
        target::check_clean(job)?;
    }
    Ok(())
}

/// Brings the lake to where it would be on the disk.
async fn copy_lake(job: &Job) -> object_store::Result<()> {
    let url = job.lake_url.as_deref().unwrap();
    let store = AmazonS3Builder::from_env().with_url(url).build()?;
    let prefix = Path::from(url.trim_start_matches("s3://").split_once('/').unwrap().1);
    let _ = fs::remove_dir_all(job.lake());
    let objects: Vec<_> = store.list(Some(&prefix)).try_collect().await?;
    for object in objects {
        let below: Vec<_> = object.location.prefix_match(&prefix).unwrap().collect();
        let to = below.iter().fold(job.lake(), |path, part| path.join(part.as_ref()));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, store.get(&object.location).await?.bytes().await?).unwrap();
    }
    Ok(())
}
