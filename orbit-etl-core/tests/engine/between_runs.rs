//! What is done to a pipeline between its runs: its state set back, reset and copied, parts of it tapped.

use std::time::Duration;

use futures::StreamExt;
use orbit_etl_core::checkpoint::Log;
use orbit_etl_core::memory::{MemoryFeed, MemorySink, MemorySource, MemoryTable};
use orbit_etl_core::{CommitMode, ErrorKind, Pipeline, Position, StreamInfo};
use serde_json::json;

use super::support::{ids, rows, schema, soon};

fn pipeline(mode: CommitMode) -> (Pipeline, MemoryFeed, MemoryTable) {
    let (source, feed) = MemorySource::unbounded(vec![StreamInfo::new("a", schema())]);
    let table = MemoryTable::new();
    let pipeline = Pipeline::builder("p")
        .source("in", source)
        .sink("out", MemorySink::new(&table).with_mode(mode))
        .checkpoint_in_memory()
        .epoch_every(Duration::from_millis(2))
        .build()
        .unwrap();
    (pipeline, feed, table)
}

/// Runs until the table has that many rows.
async fn run_to(pipeline: &Pipeline, table: &MemoryTable, count: usize) {
    let running = pipeline.start();
    {
        let mut progress = std::pin::pin!(running.progress());
        soon(async {
            while table.rows() < count {
                progress.next().await.expect("the run goes on");
            }
        })
        .await;
    }
    running.stop();
    soon(running.into_future()).await.unwrap();
    assert_eq!(table.rows(), count);
}

async fn position(pipeline: &Pipeline) -> Position {
    let state = pipeline.state().await.unwrap().unwrap().state;
    state.sources["in"].splits[0].position.clone().unwrap()
}

fn ranges(parts: &[(i64, i64)]) -> Vec<i64> {
    let mut ids: Vec<i64> = parts.iter().flat_map(|(from, to)| *from..*to).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_is_read_on_where_it_is_set_back_to() {
    let (pipeline, feed, table) = pipeline(CommitMode::Staged);
    let error = pipeline.set_position("in", Some("s"), json!(0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(pipeline.state().await.unwrap().is_none());

    feed.add_split("s");
    feed.push("s", rows(0, 10)).unwrap();
    run_to(&pipeline, &table, 10).await;
    let early = position(&pipeline).await;
    feed.push("s", rows(10, 20)).unwrap();
    run_to(&pipeline, &table, 20).await;

    let before = pipeline.state().await.unwrap().unwrap();
    for (source, split) in [("in", "t"), ("out", "s")] {
        pipeline.set_position(source, Some(split), early.clone()).await.unwrap_err();
    }
    pipeline.set_position("in", Some("s"), json!({ "no": "position" })).await.unwrap_err();
    // What is refused claims nothing.
    assert_eq!(pipeline.state().await.unwrap().unwrap(), before);

    pipeline.set_position("in", Some("s"), early).await.unwrap();
    run_to(&pipeline, &table, 30).await;
    assert_eq!(ids(&table, "a"), ranges(&[(0, 10), (10, 20), (10, 20)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reset_everything_is_read_as_a_new_generation() {
    let (pipeline, feed, table) = pipeline(CommitMode::Staged);
    feed.add_split("s");
    feed.push("s", rows(0, 10)).unwrap();
    run_to(&pipeline, &table, 10).await;
    assert_eq!(pipeline.reset().await.unwrap().generation, 2);
    run_to(&pipeline, &table, 20).await;
    assert_eq!(ids(&table, "a"), ranges(&[(0, 10), (0, 10)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_goes_on_is_fenced_by_a_reset() {
    let (pipeline, feed, table) = pipeline(CommitMode::Staged);
    feed.add_split("s");
    feed.push("s", rows(0, 10)).unwrap();
    run_to(&pipeline, &table, 10).await;
    let running = pipeline.start();
    {
        let mut progress = std::pin::pin!(running.progress());
        feed.push("s", rows(10, 20)).unwrap();
        soon(async {
            while table.rows() < 20 {
                progress.next().await.expect("the run goes on");
            }
        })
        .await;
    }
    pipeline.reset().await.unwrap();
    feed.push("s", rows(20, 30)).unwrap();
    let error = soon(running.into_future()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert_eq!(table.rows(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_in_the_target_are_left_alone() {
    let (pipeline, feed, table) = pipeline(CommitMode::Atomic);
    feed.add_split("s");
    feed.push("s", rows(0, 10)).unwrap();
    run_to(&pipeline, &table, 10).await;
    assert_eq!(pipeline.reset().await.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_log_is_whole_and_replaces_nothing() {
    let (pipeline, feed, table) = pipeline(CommitMode::Staged);
    let log = pipeline.log().unwrap();
    let copy = Log::memory();
    assert_eq!(log.copy_to(&copy).await.unwrap(), None);
    feed.add_split("s");
    feed.push("s", rows(0, 10)).unwrap();
    run_to(&pipeline, &table, 10).await;
    let head = log.peek().await.unwrap().unwrap();
    assert_eq!(log.copy_to(&copy).await.unwrap(), Some(head.number));
    assert_eq!(copy.peek().await.unwrap().unwrap(), head);
    assert_eq!(log.copy_to(&copy).await.unwrap_err().kind(), ErrorKind::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tap_gets_the_rows_and_leaves_the_rest_alone() {
    let source = MemorySource::new(schema(), vec![rows(0, 10)]).named("a");
    let (table, tapped) = (MemoryTable::new(), MemoryTable::new());
    let pipeline = Pipeline::builder("p")
        .source("in", source)
        .source("other", MemorySource::new(schema(), vec![rows(50, 60)]).named("b"))
        .sink("out", MemorySink::new(&table))
        .inputs(["in"])
        .sink("rest", MemorySink::new(&table))
        .inputs(["other"])
        .build()
        .unwrap();
    for node in ["in", "out"] {
        let part = pipeline.tap(node, MemorySink::new(&tapped)).unwrap();
        assert_eq!(part.nodes().len(), 2);
        part.run().await.unwrap();
    }
    assert_eq!(ids(&tapped, "a"), ranges(&[(0, 10), (0, 10)]));
    assert_eq!(table.rows(), 0);
    assert!(pipeline.tap("nobody", MemorySink::new(&tapped)).is_err());
}
