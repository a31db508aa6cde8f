//! Death at each named step of the protocol, early and late, in each kind of load.

use super::child::Run;
use super::{Bench, PARTITIONED, REJECTS, expect_none, finish, last_epoch};

/// Steps that a run passes once, before its first row.
pub(super) const ONCE: [&str; 4] = ["before_claim", "after_claim", "after_sink_claims", "after_discard"];

/// Steps that it passes with every epoch.
const EACH_EPOCH: [&str; 12] = [
    "barrier",
    "before_prepare",
    "after_prepare",
    "before_checkpoint",
    "after_checkpoint",
    "before_commit",
    "files_after_rename",
    "files_before_manifest",
    "files_after_manifest",
    "after_commit",
    "before_acknowledge",
    "after_acknowledge",
];

/// Steps that it passes with every epoch if it keeps dead letters.
const LETTERS: [&str; 2] = ["before_letters", "after_letters"];

/// The first time, and later ones: odd and even, since two lanes and two sinks pass some steps in turn.
const TIMES: [u64; 3] = [1, 4, LATE];
/// By then an epoch is committed, whichever step it is, unless rows were slow to come: epochs without
/// any pass barriers, but no checkpoint is written for them. Then the run may die once more.
const LATE: u64 = 7;
const MOST_DEATHS: u32 = 10;

async fn die_everywhere(partitioned: bool, rejects: bool) {
    let bench = Bench::new(partitioned, rejects);
    let letters = if rejects { &LETTERS[..] } else { &[] };
    let each_epoch = EACH_EPOCH.iter().chain(letters);
    let claims = rejects.then_some(&"between_sink_claims");
    let steps = ONCE.iter().chain(claims).map(|step| (*step, 1));
    let steps = steps.chain(each_epoch.flat_map(|step| TIMES.map(|nth| (*step, nth))));
    let mut failures = Vec::new();
    for (step, nth) in steps {
        let failpoint = format!("{step}:{nth}");
        if let Err(failure) = die_at(&bench, &failpoint, nth).await {
            failures.push(format!("{failpoint}: {failure}"));
        }
    }
    expect_none(&failures);
}

async fn die_at(bench: &Bench, failpoint: &str, nth: u64) -> Result<(), String> {
    let job = bench.job(failpoint);
    for _ in 0..MOST_DEATHS {
        Run::start(&job, Some(failpoint), None).aborts()?;
        if nth < LATE || last_epoch(&job.state()).await > 0 {
            return finish(&job, &bench.input).await;
        }
    }
    Err("it never lived to see a checkpoint".into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain() {
    die_everywhere(!PARTITIONED, !REJECTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitioned() {
    die_everywhere(PARTITIONED, !REJECTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_rejects() {
    die_everywhere(!PARTITIONED, REJECTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitioned_with_rejects() {
    die_everywhere(PARTITIONED, REJECTS).await;
}
