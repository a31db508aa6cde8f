//! Bugs put in on purpose, one at a time, for the simulation to find: for the engine's own tests alone.
//! Without the feature `planted-bugs` every question is answered with a constant no.
#![cfg_attr(not(feature = "planted-bugs"), allow(unreachable_pub))]

/// A bug that the protocol must not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum Bug {
    /// Neither at once nor after the sinks are claimed, which finds the same.
    NoListAfterClaim,
    NoListAfterCheckpoint,
    StaleCopyOnClaimRetry,
    NoHashCheck,
    NewestCollected,
    NewestCommittableOnly,
    PendingNotCarried,
    PendingDropped,
    DiscardBeforeRecommit,
    LivingRunDiscarded,
    CommitBeforeCheckpoint,
    CommitOrderSwapped,
    AcknowledgeBeforeCheckpoint,
    AcknowledgeBeforeCommit,
    EpochNotCompared,
    LineageNotCompared,
    StateOfWrongEpoch,
    RejectsNotInEpoch,
    CommitRejectsDropped,
    BarrierAheadOfRows,
    TakenRowsRepeated,
    UnknownWriteRepeated,
    ReadOnInsideUnit,
}

#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}

/// How often something is done in a run, or how much is kept: as it is given.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn pace(normal: u64, _hurried: u64) -> u64 {
    normal
}

#[cfg(feature = "planted-bugs")]
pub use armed::{at_send, hurry, plant};
#[cfg(feature = "planted-bugs")]
pub(crate) use armed::{pace, planted};

#[cfg(feature = "planted-bugs")]
mod armed {
    use std::cell::Cell;
    use std::time::Duration;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
        static HURRIED: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// Plants a bug in all runs of this thread, or pulls it out.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    /// Lets runs of this thread collect old entries early, and tasks pause now and then before they send,
    /// as this seed says.
    pub fn hurry(seed: Option<u64>) {
        HURRIED.set(seed);
    }

    pub(crate) fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    pub(crate) fn pace(normal: u64, hurried: u64) -> u64 {
        if HURRIED.get().is_some() { hurried } else { normal }
    }

    /// Before a task sends to another.
    pub async fn at_send() {
        let Some(state) = HURRIED.get() else { return };
        let next = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        HURRIED.set(Some(next));
        match next >> 58 {
            0 => tokio::time::sleep(Duration::from_millis(1)).await,
            1..8 => tokio::task::yield_now().await,
            _ => {}
        }
    }
}
