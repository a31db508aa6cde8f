//! Bugs put into the engine on purpose: each must be found.

use orbit_etl_core::planted::{Bug, plant};

use super::history::run;
use super::wrong_ones;

/// Within how many histories each must be found.
const BOUND: u64 = 3_000;

#[test]
fn bugs_of_the_engine_are_found() {
    let bugs = [
        Bug::NoListAfterClaim,
        Bug::NoListAfterCheckpoint,
        Bug::NoListAfterSinkClaims,
        Bug::StaleCopyOnClaimRetry,
        Bug::NoHashCheck,
        Bug::NewestCollected,
        Bug::NewestCommittableOnly,
        Bug::PendingNotCarried,
        Bug::PendingDropped,
        Bug::DiscardBeforeRecommit,
        Bug::LivingRunDiscarded,
        Bug::CommitBeforeCheckpoint,
        Bug::CommitOrderSwapped,
        Bug::AcknowledgeBeforeCheckpoint,
        Bug::AcknowledgeBeforeCommit,
        Bug::EpochNotCompared,
        Bug::LineageNotCompared,
        Bug::StateOfWrongEpoch,
        Bug::RejectsNotInEpoch,
        Bug::CommitRejectsDropped,
        Bug::BarrierAheadOfRows,
    ];
    let mut missed = Vec::new();
    for bug in bugs {
        let found = wrong_ones(0, BOUND, 1, |seed| {
            plant(Some(bug));
            let verdict = run(seed, None, false);
            plant(None);
            verdict
        });
        match found.first() {
            Some((seed, verdict)) => println!("{bug:?} | {seed} | {}", verdict.wrong[0]),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found within {BOUND} seeds: {missed:?}");
}
