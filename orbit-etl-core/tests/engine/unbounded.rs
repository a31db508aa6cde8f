//! Streams without an end: splits that come and go, units that must not be cut, stopping.

use std::time::Duration;

use futures::StreamExt;
use orbit_etl_core::memory::{MemoryFeed, MemorySink, MemorySource, MemoryTable};
use orbit_etl_core::observe::Outcome;
use orbit_etl_core::{CommitMode, ErrorKind, Pipeline, Running, Split, SplitId, StreamId, StreamInfo};
use serde_json::json;

use super::support::{all_ids, ids, rows, schema, soon};

fn pipeline(source: &MemorySource, table: &MemoryTable, mode: CommitMode) -> Pipeline {
    Pipeline::builder("p")
        .source("in", source.clone())
        .sink("out", MemorySink::new(table).with_mode(mode))
        .checkpoint_in_memory()
        .epoch_every(Duration::from_millis(2))
        .build()
        .unwrap()
}

fn fed() -> (MemorySource, MemoryFeed) {
    MemorySource::unbounded(vec![StreamInfo::new("a", schema()), StreamInfo::new("b", schema())])
}

/// Follows the run's progress until the table has that many rows.
async fn until(running: &Running, table: &MemoryTable, count: usize) {
    let mut progress = std::pin::pin!(running.progress());
    soon(async {
        while table.rows() < count {
            progress.next().await.expect("the run goes on");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_committed_while_the_stream_goes_on_and_a_stop_commits_the_rest() {
    for mode in [CommitMode::Staged, CommitMode::Atomic, CommitMode::Immediate] {
        let (source, feed) = fed();
        let table = MemoryTable::new();
        let pipeline = pipeline(&source, &table, mode);
        for i in 0..5 {
            feed.add_split(&format!("s{i}"));
            feed.push(&format!("s{i}"), rows(i * 10, i * 10 + 10)).unwrap();
        }
        let running = pipeline.start();
        until(&running, &table, 50).await;
        feed.push_to("s1", StreamId(1), rows(100, 110)).unwrap();
        until(&running, &table, 60).await;
        running.stop();
        let report = soon(running.into_future()).await.unwrap();
        assert_eq!((report.outcome, report.rows_written()), (Outcome::Stopped, 60));
        assert_eq!(ids(&table, "b"), (100..110).collect::<Vec<_>>());

        // While nobody reads, more comes; the next run goes on from the positions.
        feed.push("s0", rows(200, 210)).unwrap();
        let running = pipeline.start();
        until(&running, &table, 70).await;
        running.abort();
        assert_eq!(soon(running.into_future()).await.unwrap_err().kind(), ErrorKind::Cancelled);
        let expected: Vec<i64> = (0..50).chain(100..110).chain(200..210).collect();
        assert_eq!(all_ids(&table), expected, "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_split_is_left_at_its_position_and_read_on_when_it_comes_back() {
    let (source, feed) = fed();
    let table = MemoryTable::new();
    let pipeline = pipeline(&source, &table, CommitMode::Staged);
    feed.add_split("moves");
    feed.add_split("stays");
    feed.push("moves", rows(0, 10)).unwrap();
    let running = pipeline.start();
    until(&running, &table, 10).await;
    feed.revoke("moves").unwrap();
    feed.push("stays", rows(10, 20)).unwrap();
    until(&running, &table, 20).await;
    feed.push("moves", rows(20, 30)).unwrap();
    feed.push("stays", rows(30, 40)).unwrap();
    until(&running, &table, 30).await;
    assert!(!all_ids(&table).contains(&20), "another instance has it");
    feed.add_split("moves");
    until(&running, &table, 40).await;
    feed.finish_split("moves").unwrap();
    feed.finish_split("stays").unwrap();
    feed.finish();
    let report = soon(running.into_future()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Completed);
    assert_eq!(all_ids(&table), (0..40).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_never_cut_by_an_epoch() {
    let (source, feed) = fed();
    let table = MemoryTable::new();
    let pipeline = pipeline(&source, &table, CommitMode::Atomic);
    feed.add_split("slot");
    for i in 0..50 {
        let parts =
            (0..4).map(|k| (StreamId(k % 2), rows(i * 40 + k as i64 * 10, i * 40 + k as i64 * 10 + 10)));
        feed.push_unit("slot", parts.collect()).unwrap();
    }
    let running = pipeline.start();
    let mut progress = std::pin::pin!(running.progress());
    soon(async {
        while table.rows() < 2_000 {
            assert_eq!(table.rows() % 40, 0, "a part of a transaction is visible");
            progress.next().await.expect("the run goes on");
        }
    })
    .await;
    running.stop();
    soon(running.into_future()).await.unwrap();
    assert_eq!(all_ids(&table), (0..2_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_opens_only_after_those_that_it_waits_for_are_committed() {
    let (source, feed) = fed();
    let table = MemoryTable::new();
    let pipeline = Pipeline::builder("p")
        .source("in", source)
        .sink("out", MemorySink::new(&table))
        .checkpoint_in_memory()
        .epoch_every(Duration::from_secs(3_600))
        .build()
        .unwrap();
    let mut snapshot = Split::new("snapshot", json!({"stream": "a"}));
    snapshot.bounded = true;
    let mut changes = Split::new("changes", json!({"stream": "a"}));
    changes.bounded = false;
    changes.after = vec![SplitId::new("snapshot")];
    feed.add(snapshot);
    feed.add(changes);
    feed.push("changes", rows(10, 20)).unwrap();
    feed.push("snapshot", rows(0, 10)).unwrap();
    feed.finish_split("snapshot").unwrap();
    feed.finish_split("changes").unwrap();
    feed.finish();
    let report = soon(pipeline.run()).await.unwrap();
    assert_eq!(report.epochs, 2, "one for the snapshot, one for the changes");
    assert_eq!(all_ids(&table), (0..20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_that_has_ended_is_read_anew_only_if_it_is_told_of_after_that_was_acknowledged() {
    let (source, feed) = fed();
    let table = MemoryTable::new();
    let pipeline = pipeline(&source, &table, CommitMode::Staged);
    feed.add_split("s");
    feed.add_split("s");
    feed.push("s", rows(0, 10)).unwrap();
    feed.finish_split("s").unwrap();
    for run in 1..=2 {
        let running = pipeline.start();
        if run == 1 {
            let ended = |source: &MemorySource| {
                let acknowledged = source.acknowledged();
                acknowledged.get(&SplitId::new("s")).is_some_and(|p| p.0 == json!({"row": 10}))
            };
            let mut progress = std::pin::pin!(running.progress());
            soon(async {
                while !ended(&source) {
                    progress.next().await.expect("the run goes on");
                }
            })
            .await;
            assert_eq!(table.rows(), 10, "told of twice, read once");
            feed.add_split("s");
        }
        until(&running, &table, 10 + 10 * run).await;
        running.stop();
        soon(running.into_future()).await.unwrap();
        // For the next run: a finished split is forgotten over runs, too.
        feed.add_split("s");
    }
    assert_eq!(table.rows(), 30);
}
