//! Bugs put into the engine on purpose: each must be found.

use orbit_etl_core::planted::{Bug, plant};

use super::expect_found;
use super::history::run;

#[test]
fn bugs_of_the_engine_are_found() {
    let bugs = [
        (Bug::NoListAfterClaim, 4721),
        (Bug::NoListAfterCheckpoint, 37),
        (Bug::StaleCopyOnClaimRetry, 15),
        (Bug::NoHashCheck, 15),
        (Bug::NewestCollected, 0),
        (Bug::NewestCommittableOnly, 26),
        (Bug::PendingNotCarried, 2),
        (Bug::PendingDropped, 0),
        (Bug::DiscardBeforeRecommit, 5),
        (Bug::LivingRunDiscarded, 5),
        (Bug::CommitBeforeCheckpoint, 0),
        (Bug::CommitOrderSwapped, 22),
        (Bug::AcknowledgeBeforeCheckpoint, 1),
        (Bug::AcknowledgeBeforeCommit, 1),
        (Bug::EpochNotCompared, 0),
        (Bug::LineageNotCompared, 1),
        (Bug::StateOfWrongEpoch, 0),
        (Bug::RejectsNotInEpoch, 0),
        (Bug::CommitRejectsDropped, 16),
        (Bug::BarrierAheadOfRows, 3),
        (Bug::TakenRowsRepeated, 4),
        (Bug::UnknownWriteRepeated, 4),
        (Bug::ReadOnInsideUnit, 4),
    ];
    expect_found(&bugs, |bug, seed| {
        plant(Some(bug));
        let verdict = run(seed, None, false);
        plant(None);
        verdict
    });
}
