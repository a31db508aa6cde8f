//! From contracts to tests.

use std::future::Future;

use crate::harness::{Check, Stop};

/// Runs one contract to its end on a runtime of its own; prints a skip.
///
/// # Panics
/// The contract is broken.
#[allow(clippy::panic)] // That is how a test fails.
pub fn run(name: &str, contract: impl Future<Output = Check>) {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => panic!("{name}: no runtime: {error}"),
    };
    match runtime.block_on(contract) {
        Ok(()) => {}
        Err(Stop::Skip(why)) => eprintln!("skipped: {name}: {why}"),
        Err(stop) => panic!("{name}: {stop}"),
    }
}

/// One test for each contract, in a module of this name: `conformance!(csv, CsvHarness::new())`.
/// The expression is evaluated in each test.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $harness:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $crate::conformance!(@each $name, $harness;
                types::every_type_comes_back
                types::random_batches_come_back
                types::slices_and_empty_batches_come_back
                read::streams_describe_their_rows
                read::splits_keep_their_names
                read::every_position_gives_the_rest
                read::a_dropped_stream_leaves_nothing_behind
                read::projection_keeps_the_rows
                read::filters_keep_what_they_must
                read::health_answers
                write::opening_has_no_effect
                write::a_prepared_epoch_is_visible_as_promised
                write::a_second_commit_does_nothing
                write::an_empty_epoch_commits
                write::lanes_and_epochs_add_up
                write::streams_stay_apart
                write::a_changed_schema_is_followed_or_refused
                write::a_generation_appears_at_its_end
                crash::a_new_run_commits_what_is_pending
                crash::an_unprepared_epoch_is_gone
                crash::a_discarded_epoch_is_gone
                crash::older_staged_rows_go_but_pending_ones_stay
                crash::a_committed_epoch_is_reported
                fence::an_older_claim_is_refused
                fence::a_fenced_run_commits_nothing
                fence::another_lineage_is_reported
                limits::writing_stays_within_the_memory
                limits::reading_stays_within_the_memory
                errors::a_missing_thing_is_not_found
                errors::bad_credentials_are_told
                errors::an_unreachable_host_is_told
            );
        }
    };
    (@each $name:ident, $harness:expr; $($group:ident::$contract:ident)*) => {
        $(
            #[test]
            fn $contract() {
                let harness = $harness;
                let name = concat!(stringify!($name), "::", stringify!($contract));
                $crate::run(name, $crate::contracts::$group::$contract(&harness));
            }
        )*
    };
}
