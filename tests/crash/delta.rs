//! Death, and two runs at once, on the way into a Delta table: appended to, merged into, overwritten.

use orbit_etl::connectors::delta::Mode;
use orbit_etl::observe::Outcome;

use super::child::Run;
use super::steps::ONCE;
use super::{Bench, PARTITIONED, REJECTS, expect_none, last_epoch, run};
use crate::job::Job;
use crate::paced::Pace;
use crate::target;

/// Steps that a run passes with every epoch.
const EACH_EPOCH: [&str; 11] = [
    "barrier",
    "before_prepare",
    "after_prepare",
    "before_checkpoint",
    "after_checkpoint",
    "before_commit",
    "delta_before_commit",
    "delta_after_commit",
    "after_commit",
    "before_acknowledge",
    "after_acknowledge",
];
/// The first time, and one by which an epoch is prepared, if not committed.
const TIMES: [u64; 2] = [1, 3];
/// Those of the table's own commit, where each time counts.
const COMMIT: [&str; 4] = ["before_commit", "delta_before_commit", "delta_after_commit", "after_commit"];

/// Steps of a second load that takes the place of a first one.
const OVERWRITING: [&str; 12] = [
    "barrier:6",
    "before_prepare:3",
    "after_prepare:4",
    "before_checkpoint",
    "after_checkpoint:3",
    "before_acknowledge:2",
    "after_acknowledge:3",
    "before_commit",
    "delta_before_commit",
    "delta_after_commit",
    "after_commit",
    "after_discard",
];

fn job(bench: &Bench, name: &str, mode: Mode) -> Job {
    let mut job = bench.job(name);
    job.delta = Some(mode);
    job
}

async fn finish(bench: &Bench, job: &Job) -> Result<(), String> {
    let report = run(&job.pipeline(&Pace::new())).await?;
    if report.outcome != Outcome::Completed || report.restarts > 0 {
        return Err(format!("the run did not go through: {report}"));
    }
    check_loaded(bench, job).await
}

/// Checks the table; one more run must bring nothing, and tidy up.
async fn check_loaded(bench: &Bench, job: &Job) -> Result<(), String> {
    target::check(job, &bench.input)?;
    let report = run(&job.pipeline(&Pace::new())).await?;
    if (report.rows_read(), report.rows_written(), report.rows_rejected()) != (0, 0, 0) {
        return Err(format!("one more run has read again: {report}"));
    }
    target::check(job, &bench.input)?;
    target::check_clean(job)
}

async fn die_everywhere(mode: Mode, partitioned: bool, rejects: bool) {
    let bench = Bench::new(partitioned, rejects);
    let once = ONCE.iter().chain(&["delta_after_create"]).map(|step| (*step, 1));
    // At the other steps the modes don't differ: one dies early where the other dies late.
    let turn = usize::from(mode == Mode::Merge);
    let is_due = |at: usize, step: &str, time: usize| COMMIT.contains(&step) || (at + turn) % 2 == time;
    let each_epoch = EACH_EPOCH.iter().enumerate().flat_map(|(at, step)| {
        TIMES
            .iter()
            .enumerate()
            .filter_map(move |(time, nth)| is_due(at, step, time).then_some((*step, *nth)))
    });
    let steps = once.chain(each_epoch);
    let mut failures = Vec::new();
    for (step, nth) in steps {
        let failpoint = format!("{step}:{nth}");
        let job = job(&bench, &failpoint, mode);
        let ended = match Run::start(&job, Some(&failpoint), None).aborts() {
            Ok(()) => finish(&bench, &job).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = ended {
            failures.push(format!("{failpoint}: {failure}"));
        }
    }
    expect_none(&failures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append() {
    die_everywhere(Mode::Append, PARTITIONED, REJECTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merge() {
    die_everywhere(Mode::Merge, !PARTITIONED, !REJECTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overwrite() {
    let bench = Bench::new(PARTITIONED, !REJECTS);
    let mut failures = Vec::new();
    for failpoint in OVERWRITING {
        let job = job(&bench, failpoint, Mode::Overwrite);
        if let Err(failure) = replace(&bench, &job, failpoint).await {
            failures.push(format!("{failpoint}: {failure}"));
        }
    }
    expect_none(&failures);
}

async fn replace(bench: &Bench, job: &Job, failpoint: &str) -> Result<(), String> {
    run(&job.pipeline(&Pace::new())).await?;
    target::check(job, &bench.input)?;
    Run::start(job, Some(failpoint), None).aborts()?;
    // Either all of the first load or all of the second.
    target::check(job, &bench.input).map_err(|e| format!("after the crash: {e}"))?;
    run(&job.pipeline(&Pace::new())).await?;
    target::check(job, &bench.input)?;
    target::check_clean(job)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_run_that_wakes_up_late_ends_fenced() {
    for mode in [Mode::Append, Mode::Merge] {
        let bench = Bench::new(PARTITIONED, !REJECTS);
        let job = job(&bench, "late", mode);
        let mut older = Run::start(&job, None, Some(3));
        older.wait_for_epoch(3).unwrap();
        assert!(last_epoch(&job.state()).await >= 3);
        finish(&bench, &job).await.unwrap();
        older.release();
        older.ends_fenced().unwrap();
        // What it has staged since it was swept, if it appends, stays: no version names it.
        target::check(&job, &bench.input).unwrap();
    }
}

/// The older run is stopped anywhere, in the middle of a commit too, and goes on when the newer one has
/// loaded everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_run_that_was_frozen_anywhere_does_no_harm() {
    let bench = Bench::new(!PARTITIONED, !REJECTS);
    let mut failures = Vec::new();
    for (mode, epoch) in [(Mode::Append, 1), (Mode::Append, 3), (Mode::Merge, 2), (Mode::Merge, 4)] {
        let job = job(&bench, &format!("frozen-{mode:?}-{epoch}"), mode);
        if let Err(failure) = freeze(&bench, &job, epoch).await {
            failures.push(format!("{mode:?} after epoch {epoch}: {failure}"));
        }
    }
    expect_none(&failures);
}

async fn freeze(bench: &Bench, job: &Job, epoch: u64) -> Result<(), String> {
    let mut older = Run::start(job, None, None);
    older.wait_for_epoch(epoch)?;
    older.signal("STOP");
    run(&job.pipeline(&Pace::new())).await?;
    older.signal("CONT");
    older.ends_without_error()?;
    target::check(job, &bench.input)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle() {
    let bench = Bench::new(!PARTITIONED, !REJECTS);
    let mut failures = Vec::new();
    for (mode, epoch) in [(Mode::Append, 2), (Mode::Merge, 1), (Mode::Merge, 3)] {
        let job = job(&bench, &format!("killed-{mode:?}-{epoch}"), mode);
        let mut child = Run::start(&job, None, None);
        let killed = child.wait_for_epoch(epoch).map(|()| child.signal("KILL"));
        let ended = killed.and_then(|()| child.ends_without_error());
        let ended = match ended {
            Ok(()) => finish(&bench, &job).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = ended {
            failures.push(format!("{mode:?} after epoch {epoch}: {failure}"));
        }
    }
    expect_none(&failures);
}
