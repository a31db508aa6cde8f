//! Runs that die, and what the next run makes of it.

mod chains;
mod child;
mod delta;
mod doubles;
mod iceberg;
mod kill;
mod overwrite;
mod steps;
mod store;

use std::path::Path;

use orbit_etl::Pipeline;
use orbit_etl::checkpoint::Log;
use orbit_etl::observe::{Outcome, RunReport};

use crate::job::{Input, Job, write_input};
use crate::paced::Pace;
use crate::target;

/// The kinds of load: `PARTITIONED` or not, with `REJECTS` or without.
const PARTITIONED: bool = true;
const REJECTS: bool = true;

/// An input and room for the loads that read it.
struct Bench {
    folder: tempfile::TempDir,
    input: Input,
    partitioned: bool,
    rejects: bool,
}

impl Bench {
    fn new(partitioned: bool, rejects: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let input = write_input(&folder.path().join("input"), rejects);
        Self { folder, input, partitioned, rejects }
    }

    /// A load that has not begun.
    fn job(&self, name: &str) -> Job {
        let home = self.folder.path().join(name.replace(':', "-"));
        let mut job = Job::new(&self.folder.path().join("input"), &home);
        job.partitioned = self.partitioned;
        job.rejects = self.rejects;
        job
    }
}

async fn run(pipeline: &Pipeline) -> Result<RunReport, String> {
    pipeline.run().await.map_err(|e| e.report())
}

/// Lets a load go on to its end, checks what it has brought, and that one more run brings nothing.
async fn finish(job: &Job, input: &Input) -> Result<(), String> {
    let report = run(&job.pipeline(&Pace::new())).await?;
    if report.outcome != Outcome::Completed || report.restarts > 0 {
        return Err(format!("the run did not go through: {report}"));
    }
    target::check_clean(job)?;
    check_loaded(job, input).await
}

/// Checks what a completed load has brought; one more run must bring nothing, and tidy up after an older
/// run that was fenced: such a run discards nothing itself.
async fn check_loaded(job: &Job, input: &Input) -> Result<(), String> {
    target::check(job, input)?;
    let (lake, rejected) = (target::published(&job.lake()), target::published(&job.rejected()));
    let report = run(&job.pipeline(&Pace::new())).await?;
    if (report.rows_read(), report.rows_written(), report.rows_rejected()) != (0, 0, 0) {
        return Err(format!("one more run has read again: {report}"));
    }
    if target::published(&job.lake()) != lake || target::published(&job.rejected()) != rejected {
        return Err("one more run has changed the target".into());
    }
    target::check_clean(job)
}

/// The last epoch that a state directory has a checkpoint of; 0 for none.
async fn last_epoch(state: &Path) -> u64 {
    let log = Log::local(state).unwrap();
    log.peek().await.unwrap().map_or(0, |head| head.state.epoch)
}

/// Fails with every scenario that went wrong.
fn expect_none(failures: &[String]) {
    assert!(failures.is_empty(), "{} scenarios went wrong:\n{}", failures.len(), failures.join("\n"));
}
