//! Sinks: older runs and other pipelines.

use orbit_etl_core::{CommitMode, ErrorKind, Lineage, Publication};

use super::{Bench, fails_with};
use crate::drive::Run;
use crate::harness::{Check, Harness, Stop};

/// Contract: a claim with a lower number than the target's owner is refused as `Fenced`, and the owner
/// goes on.
pub async fn an_older_claim_is_refused(harness: &dyn Harness) -> Check {
    let bench = fencing(harness).await?;
    let mut owner = bench.run(5).await?;
    let mut older = bench.sink.open(&bench.cx, bench.streams()).await?;
    fails_with("an older claim", older.claim(&Run::lineage(3)).await, &[ErrorKind::Fenced])?;
    owner.epoch(1, &[bench.sample.rows(0..10)?]).await?;
    bench.shows("the owner's epoch", &[0..10]).await
}

/// Contract: after a newer claim, the older run's rows don't become visible and its commit is refused as
/// `Fenced`; a staged sink's newer run can still commit them.
pub async fn a_fenced_run_commits_nothing(harness: &dyn Harness) -> Check {
    let bench = fencing(harness).await?;
    if bench.sink.publication() == Publication::AtEnd {
        return Err(Stop::skip("the sink publishes a generation at its end alone"));
    }
    let mut older = bench.run(1).await?;
    older.epoch(1, &[bench.sample.rows(0..10)?]).await?;
    let rows = bench.sample.rows(10..20)?;
    if bench.mode() == CommitMode::Immediate {
        let _newer = bench.run(2).await?;
        let refused = match older.write(0, 0, rows).await {
            Ok(()) => older.prepare(2).await.map(drop),
            refused => refused,
        };
        fails_with("a fenced run's epoch", refused, &[ErrorKind::Fenced])?;
        return bench.shows("after a fenced run's writes", &[0..10]).await;
    }
    older.write(0, 0, rows).await?;
    let staged = older.prepare(2).await?;
    let mut newer = bench.run(2).await?;
    fails_with("a fenced run's commit", older.commit(2, staged.clone()).await, &[ErrorKind::Fenced])?;
    bench.shows("after a fenced run's commit", &[0..10]).await?;
    if bench.mode() == CommitMode::Staged {
        newer.commit(2, staged).await?;
        return bench.shows("what was pending", &[0..20]).await;
    }
    newer.epoch(2, &[bench.sample.rows(20..30)?]).await?;
    bench.shows("the newer run's epoch", &[0..10, 20..30]).await
}

/// Contract: another pipeline's claim is told whose target it is, or refused, and takes nothing over.
pub async fn another_lineage_is_reported(harness: &dyn Harness) -> Check {
    let bench = Bench::each_epoch(harness).await?;
    if !bench.abilities.records_epochs {
        return Err(Stop::skip("the target records no lineage"));
    }
    let mut owner = bench.run(1).await?;
    owner.epoch(1, &[bench.sample.rows(0..10)?]).await?;
    let stranger = Lineage { id: "another".into(), ..Run::lineage(9) };
    let mut other = bench.sink.open(&bench.cx, bench.streams()).await?;
    match other.claim(&stranger).await {
        Ok(Some(found)) if found.lineage == owner.lineage.id => {}
        Ok(found) => {
            let found = found.map(|f| f.lineage);
            return Err(Stop::fail(format!("another pipeline is told {found:?} of the target's lineage")));
        }
        Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Config) => {}
        Err(error) => return Err(error.into()),
    }
    owner.epoch(2, &[bench.sample.rows(10..20)?]).await?;
    bench.shows("the owner's rows", &[0..20]).await
}

async fn fencing(harness: &dyn Harness) -> Check<Bench> {
    let bench = Bench::new(harness).await?;
    if bench.abilities.fences { Ok(bench) } else { Err(Stop::skip("the target doesn't know its owner")) }
}
