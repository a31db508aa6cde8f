//! Death on death: a run that dies while it takes up what an older one left.

use super::child::Run;
use super::{Bench, PARTITIONED, REJECTS, expect_none, finish};

/// Where the first run dies, and where the ones after it do. What stands first leaves rows staged, an
/// epoch pending, or one that is committed though no checkpoint says so.
const CHAINS: [&[&str]; 13] = [
    &["after_prepare:4", "before_claim"],
    &["after_prepare:4", "after_claim"],
    &["after_prepare:5", "after_discard", "after_prepare:2"],
    &["before_checkpoint:3", "after_sink_claims"],
    &["before_checkpoint:3", "before_checkpoint:2", "after_acknowledge:2"],
    // From here on an epoch is pending: the next run commits it before it reads.
    &["after_checkpoint:3", "after_claim"],
    &["after_checkpoint:3", "after_sink_claims"],
    &["after_checkpoint:3", "before_commit"],
    &["after_checkpoint:3", "after_commit"],
    &["after_checkpoint:3", "after_commit", "after_claim", "after_discard"],
    &["before_commit:3", "after_commit:2", "barrier:3"],
    &["after_commit:3", "before_commit", "before_commit:2"],
    &["before_acknowledge:3", "after_commit", "after_checkpoint:2", "before_commit"],
];

async fn die_again_and_again(partitioned: bool, rejects: bool) {
    let bench = Bench::new(partitioned, rejects);
    let mut failures = Vec::new();
    for chain in CHAINS {
        let job = bench.job(&chain.join("-"));
        let died = chain.iter().try_for_each(|failpoint| {
            Run::start(&job, Some(failpoint), None).aborts().map_err(|e| format!("{failpoint}: {e}"))
        });
        let ended = match died {
            Ok(()) => finish(&job, &bench.input).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = ended {
            failures.push(format!("{chain:?}: {failure}"));
        }
    }
    expect_none(&failures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain() {
    die_again_and_again(!PARTITIONED, !REJECTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitioned_with_rejects() {
    die_again_and_again(PARTITIONED, REJECTS).await;
}
