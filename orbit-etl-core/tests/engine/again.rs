//! A run after another: what the one has completed, the other's restarts don't take for their own.

use std::time::Duration;

use orbit_etl_core::memory::{MemorySink, MemorySource, MemoryTable};
use orbit_etl_core::observe::Outcome;
use orbit_etl_core::{Again, Pipeline, Publication, StreamInfo};
use tokio_util::sync::CancellationToken;

use super::failure::{Faulty, quick};
use super::support::{all_ids, ends, numbers, rows, schema, soon};

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_fails_before_its_first_epoch_reads_what_is_new_all_the_same() {
    for call in ["claim", "writer", "write", "prepare"] {
        let (source, feed) = MemorySource::unbounded(vec![StreamInfo::new("t", schema())]);
        let table = MemoryTable::new();
        let sink = Faulty::new(MemorySink::new(&table), []);
        let pipeline = Pipeline::builder("p")
            .source("in", ends(source))
            .sink("out", sink.clone())
            .restart(quick())
            .checkpoint_in_memory()
            .build()
            .unwrap();
        for (run, split) in (0..).zip(["a", "b"]) {
            feed.add_split(split);
            feed.push(split, rows(run * 10, run * 10 + 10)).unwrap();
            feed.finish();
            let report = soon(pipeline.run()).await.unwrap();
            assert_eq!(report.rows_read(), 10, "{call}, run {run}");
            sink.add((call, false));
        }
        assert_eq!(all_ids(&table), (0..20).collect::<Vec<_>>(), "{call}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_is_read_whole_though_its_run_fails_before_its_first_epoch() {
    for (publication, kept) in [(Publication::EachEpoch, 100), (Publication::AtEnd, 50)] {
        for call in ["claim", "writer", "write", "prepare"] {
            let table = MemoryTable::new();
            let sink = Faulty::new(MemorySink::new(&table).with_publication(publication), []);
            let mut builder = Pipeline::builder("p")
                .source("in", numbers(5, 2))
                .sink("out", sink.clone())
                .restart(quick())
                .checkpoint_in_memory();
            if publication == Publication::EachEpoch {
                builder = builder.again(Again::Full);
            }
            let pipeline = builder.build().unwrap();
            soon(pipeline.run()).await.unwrap();
            sink.add((call, false));
            let report = soon(pipeline.run()).await.unwrap();
            assert_eq!((report.rows_read(), report.restarts), (50, 1), "{publication:?} {call}");
            assert_eq!(table.rows(), kept, "{publication:?} {call}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_stays_though_the_run_is_stopped_between_its_last_checkpoint_and_its_end() {
    let table = MemoryTable::new();
    let stop = CancellationToken::new();
    // Told to stop while it takes up again what it has read to its end.
    let in_commit = stop.clone();
    let sink =
        MemorySink::new(&table).with_publication(Publication::AtEnd).reject_at_commit_if(move |_, _| {
            in_commit.cancel();
            None
        });
    let pipeline = |stop: CancellationToken, log: &std::path::Path| {
        Pipeline::builder("p")
            .source("in", numbers(5, 1))
            .sink("out", Faulty::new(sink.clone(), [("commit", false)]))
            .restart(quick())
            .checkpoint(log, Duration::from_secs(3_600))
            .stop_on(stop)
            .build()
            .unwrap()
    };
    let log = tempfile::tempdir().unwrap();
    let report = soon(pipeline(stop, log.path()).run()).await.unwrap();
    assert_eq!((report.outcome, report.restarts), (Outcome::Stopped, 1));
    assert_eq!(all_ids(&table), (0..50).collect::<Vec<_>>());
    let report = soon(pipeline(CancellationToken::new(), log.path()).run()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Completed);
    assert_eq!(all_ids(&table), (0..50).collect::<Vec<_>>(), "an empty generation took its place");
}
