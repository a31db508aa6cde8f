//! Histories that once lost or doubled a row, or stood still.

use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use futures::StreamExt;
use futures::stream;
use orbit_etl_core::host::{Map, StreamSource};
use orbit_etl_core::memory::{MemorySink, MemorySource, MemoryTable};
use orbit_etl_core::{Again, CommitMode, OnError, Pipeline, Publication, Replay, Restart, StreamInfo};

use super::failure::Faulty;
use super::graph::SecondFirst;
use super::support::{all_ids, numbers, rows, schema, soon};

fn every_tenth(batch: &RecordBatch, row: usize) -> Option<String> {
    let id = batch.column(0).as_primitive::<Int64Type>().value(row);
    (id % 10 == 3).then(|| "refused".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overwrite_is_published_once_though_rejects_need_one_more_epoch() {
    for own_rejects in [false, true] {
        let (replaced, other, letters) = (MemoryTable::new(), MemoryTable::new(), MemoryTable::new());
        let overwriting = MemorySink::new(&replaced).with_publication(Publication::AtEnd);
        let appending = MemorySink::new(&other);
        let (overwriting, appending) = if own_rejects {
            (overwriting.reject_at_commit_if(every_tenth), appending)
        } else {
            (overwriting, appending.reject_at_commit_if(every_tenth))
        };
        let pipeline = Pipeline::builder("p")
            .source("in", numbers(20, 2))
            .sink("replaced", overwriting)
            .sink("other", appending)
            .on_error(OnError::dead_letter(MemorySink::new(&letters)))
            .epoch_every(Duration::from_millis(1))
            .checkpoint_in_memory()
            .build()
            .unwrap();
        for run in 1..=2 {
            let report = soon(pipeline.run()).await.unwrap();
            let (full, less) = if own_rejects { (180, 200) } else { (200, 180) };
            assert_eq!(replaced.rows(), full, "own_rejects={own_rejects} run {run}");
            assert_eq!(other.rows(), less * run, "own_rejects={own_rejects} run {run}");
            assert_eq!((report.rows_rejected(), letters.rows()), (20, 20 * run));
            let sink = report.node(if own_rejects { "replaced" } else { "other" }).unwrap();
            assert_eq!((sink.total.rejected, sink.total.rows_out), (20 * run as u64, 180 * run as u64));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_after_the_last_checkpoint_begins_no_new_generation() {
    for (call, late) in [("commit", false), ("commit", true)] {
        for publication in [Publication::EachEpoch, Publication::AtEnd] {
            let table = MemoryTable::new();
            let sink = MemorySink::new(&table).with_publication(publication);
            let pipeline = Pipeline::builder("p")
                .source("in", numbers(5, 1))
                .sink("out", Faulty::new(sink, [(call, late)]))
                .again(Again::Full)
                .restart(Restart { max: 3, backoff: Duration::ZERO, max_backoff: Duration::ZERO })
                .epoch_every(Duration::from_secs(3_600))
                .checkpoint_in_memory()
                .build()
                .unwrap();
            let report = soon(pipeline.run()).await.unwrap();
            assert_eq!((report.restarts, table.rows()), (1, 50), "{call} late={late} {publication:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_streams_of_the_host_under_one_state_are_both_read() {
    let dir = tempfile::tempdir().unwrap();
    let table = MemoryTable::new();
    for from in [0, 10] {
        let batch = rows(from, from + 10);
        let pipeline = Pipeline::builder("p")
            .source("in", StreamSource::new(schema(), stream::iter([Ok(batch)])))
            .sink("out", MemorySink::new(&table))
            .checkpoint(dir.path(), Duration::from_secs(10))
            .build()
            .unwrap();
        soon(pipeline.run()).await.unwrap();
    }
    assert_eq!(all_ids(&table), (0..20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_that_comes_back_while_it_is_being_revoked_is_read_on() {
    let (source, feed) = MemorySource::unbounded(vec![StreamInfo::new("t", schema())]);
    let table = MemoryTable::new();
    let pipeline = Pipeline::builder("p")
        .source("in", source)
        .sink("out", MemorySink::new(&table).with_mode(CommitMode::Immediate))
        .epoch_every(Duration::from_millis(20))
        .checkpoint_in_memory()
        .build()
        .unwrap();
    feed.add_split("s");
    feed.push("s", rows(0, 10)).unwrap();
    let running = pipeline.start();
    for from in (0..100).step_by(10).skip(1) {
        feed.revoke("s").unwrap();
        feed.add_split("s");
        feed.push("s", rows(from, from + 10)).unwrap();
        tokio::task::yield_now().await;
    }
    // The split doesn't end: coming back after its end it would be read anew, as the source asks.
    soon(async {
        while table.rows() < 100 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    running.stop();
    soon(running.into_future()).await.unwrap();
    assert_eq!(all_ids(&table), (0..100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_read_two_sources_in_opposite_order_do_not_stand_still() {
    let table = MemoryTable::new();
    let pipeline = Pipeline::builder("p")
        .source("a", numbers(100, 2))
        .source("b", numbers(100, 2))
        .transform("ab", SecondFirst)
        .inputs(["a", "b"])
        .transform("ba", SecondFirst)
        .inputs(["b", "a"])
        .sink("out", MemorySink::new(&table))
        .inputs(["ab", "ba"])
        .edge_bytes(1)
        .checkpoint_in_memory()
        .build()
        .unwrap();
    soon(pipeline.run()).await.unwrap();
    assert_eq!(table.rows(), 4_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn looks_at_a_run_end_with_it() {
    let pipeline = Pipeline::builder("p")
        .source("in", numbers(5, 1))
        .transform("same", Map::new(Ok))
        .sink("out", MemorySink::new(&MemoryTable::new()))
        .checkpoint_in_memory()
        .build()
        .unwrap();
    let running = pipeline.start();
    let mut progress = Box::pin(running.progress());
    let last = soon(async {
        let mut last = None;
        while let Some(look) = progress.next().await {
            last = Some(look);
        }
        last
    })
    .await;
    assert_eq!(last.unwrap().nodes[0].1.rows_in, 50);
    soon(running.into_future()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_takes_nothing_from_a_source_that_it_does_not_commit() {
    let (source, feed) = MemorySource::unbounded(vec![StreamInfo::new("t", schema())]);
    let source = source.with_replay(Replay::None);
    let table = MemoryTable::new();
    let pipeline = Pipeline::builder("p")
        .source("in", source)
        .sink("out", MemorySink::new(&table))
        .epoch_every(Duration::from_secs(3_600))
        .checkpoint_in_memory()
        .build()
        .unwrap();
    feed.add_split("s");
    for i in 0..200 {
        feed.push("s", rows(i * 10, i * 10 + 10)).unwrap();
    }
    let running = pipeline.start();
    tokio::task::yield_now().await;
    running.stop();
    soon(running.into_future()).await.unwrap();
    feed.finish_split("s").unwrap();
    feed.finish();
    soon(pipeline.run()).await.unwrap();
    assert_eq!(all_ids(&table), (0..2_000).collect::<Vec<_>>());
}
