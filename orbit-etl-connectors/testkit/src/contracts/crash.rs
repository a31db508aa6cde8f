//! Sinks: what a new run finds after a crash. A crash is a run that is dropped.

use orbit_etl_core::{CommitMode, Discard};

use super::Bench;
use crate::harness::{Check, Harness, Stop};

/// Contract: what a crashed run prepared, a staged sink commits in a new run from the committables
/// alone, once; an atomic sink has forgotten it.
pub async fn a_new_run_commits_what_is_pending(harness: &dyn Harness) -> Check {
    let bench = Bench::each_epoch(harness).await?;
    if bench.mode() == CommitMode::Immediate {
        return Err(Stop::skip("an immediate sink has nothing pending"));
    }
    let mut run = bench.run(1).await?;
    run.epoch(1, &[bench.sample.rows(0..10)?]).await?;
    run.write(0, 0, bench.sample.rows(10..25)?).await?;
    run.write(1, 0, bench.sample.rows(25..40)?).await?;
    let staged = run.prepare(2).await?;
    drop(run);
    bench.shows("after the crash", &[0..10]).await?;
    let mut run = bench.run(2).await?;
    if bench.mode() == CommitMode::Atomic {
        run.epoch(2, &[bench.sample.rows(90..99)?]).await?;
        return bench.shows("the crashed transaction and a new one", &[0..10, 90..99]).await;
    }
    run.commit(2, staged.clone()).await?;
    bench.shows("committed by a new run", &[0..40]).await?;
    run.discard(Discard::Older { claim: 2, keep: Vec::new() }).await?;
    bench.shows("after the older run's rest was discarded", &[0..40]).await?;
    bench.nothing_staged("after the older run's rest was discarded").await?;
    let mut third = bench.run(3).await?;
    third.commit(2, staged).await?;
    bench.shows("committed again by a third run", &[0..40]).await
}

/// Contract: rows that were written but not prepared are never seen, and `discard` of older runs
/// removes their traces.
pub async fn an_unprepared_epoch_is_gone(harness: &dyn Harness) -> Check {
    let bench = Bench::new(harness).await?;
    if bench.mode() == CommitMode::Immediate {
        return Err(Stop::skip("an immediate sink shows rows as they are written"));
    }
    let mut run = bench.run(1).await?;
    run.write(0, 0, bench.sample.rows(0..500)?).await?;
    drop(run);
    let mut run = bench.run(2).await?;
    run.discard(Discard::Older { claim: 2, keep: Vec::new() }).await?;
    bench.shows("after the crash", &[]).await?;
    bench.nothing_staged("after the older run's rest was discarded").await?;
    run.epoch(1, &[bench.sample.rows(0..500)?]).await?;
    bench.shows("written again", &[0..500]).await
}

/// Contract: a discarded epoch, prepared or not, leaves nothing behind; discarding it twice is no
/// error; epochs before it stay.
pub async fn a_discarded_epoch_is_gone(harness: &dyn Harness) -> Check {
    let bench = Bench::each_epoch(harness).await?;
    if bench.mode() == CommitMode::Immediate {
        return Err(Stop::skip("an immediate sink can't take rows back"));
    }
    let mut run = bench.run(1).await?;
    run.epoch(1, &[bench.sample.rows(0..10)?]).await?;
    run.write(0, 0, bench.sample.rows(10..20)?).await?;
    run.prepare(2).await?;
    for _ in 0..2 {
        run.discard(Discard::Epoch { claim: 1, epoch: 2 }).await?;
    }
    bench.nothing_staged("after the epoch was discarded").await?;
    drop(run);
    // As the engine does: a new claim.
    let mut run = bench.run(2).await?;
    run.epoch(2, &[bench.sample.rows(20..30)?]).await?;
    bench.shows("after a discarded epoch", &[0..10, 20..30]).await
}

/// Contract: discarding what older runs staged spares what is still to be committed, and what this run
/// has staged.
pub async fn older_staged_rows_go_but_pending_ones_stay(harness: &dyn Harness) -> Check {
    let bench = Bench::each_epoch(harness).await?;
    if bench.mode() != CommitMode::Staged {
        return Err(Stop::skip("the sink stages nothing"));
    }
    let mut run = bench.run(1).await?;
    run.write(0, 0, bench.sample.rows(0..10)?).await?;
    let pending = run.prepare(1).await?;
    run.write(0, 0, bench.sample.rows(10..20)?).await?;
    run.prepare(2).await?;
    drop(run);
    let mut run = bench.run(2).await?;
    run.write(0, 0, bench.sample.rows(20..30)?).await?;
    let mine = run.prepare(2).await?;
    for _ in 0..2 {
        run.discard(Discard::Older { claim: 2, keep: pending.clone() }).await?;
    }
    run.commit(1, pending).await?;
    run.commit(2, mine).await?;
    bench.shows("pending and own rows", &[0..10, 20..30]).await?;
    bench.nothing_staged("with everything committed or discarded").await
}

/// Contract: a claim on a fresh target finds nothing; a later one finds lineage and epoch, and with an
/// atomic sink the newest checkpoint as it was handed over.
pub async fn a_committed_epoch_is_reported(harness: &dyn Harness) -> Check {
    let bench = Bench::new(harness).await?;
    if !bench.abilities.records_epochs {
        return Err(Stop::skip("the target records no epochs"));
    }
    let mut run = bench.run(1).await?;
    if let Some(found) = run.found.as_ref().filter(|f| f.epoch > 0) {
        return Err(Stop::fail(format!("a fresh target claims to be at epoch {}", found.epoch)));
    }
    run.epoch(7, &[bench.sample.rows(0..10)?]).await?;
    let checkpoint = run.checkpoint(7);
    run.close().await?;
    let later = bench.run(2).await?;
    let Some(found) = &later.found else {
        return Err(Stop::fail("the claim doesn't find the committed epoch"));
    };
    if found.epoch != 7 || found.lineage != later.lineage.id {
        let (lineage, epoch) = (&found.lineage, found.epoch);
        return Err(Stop::fail(format!("the claim finds epoch {epoch} of {lineage} instead of 7")));
    }
    match (bench.mode(), &found.checkpoint) {
        (CommitMode::Atomic, Some(kept)) if *kept == checkpoint => Ok(()),
        (CommitMode::Atomic, _) => Err(Stop::fail("the checkpoint isn't what was handed over")),
        _ => Ok(()),
    }
}
