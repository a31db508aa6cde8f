//! Whole runs: what arrives, what a second run does, what each sink is promised.

use std::time::Duration;

use orbit_etl_core::memory::{MemorySink, MemorySource, MemoryTable};
use orbit_etl_core::{
    Again, CommitMode, Delivery, ErrorKind, OnError, Pipeline, Publication, Replay, StreamInfo,
};

use super::graph::CountByGroup;
use super::support::{all_ids, ids, numbers, rows, schema, soon};

const MODES: [CommitMode; 3] = [CommitMode::Staged, CommitMode::Atomic, CommitMode::Immediate];

#[tokio::test(flavor = "multi_thread")]
async fn every_row_arrives_once_in_every_mode_and_a_second_run_adds_nothing() {
    for mode in MODES {
        for replay in [Replay::Exact, Replay::WholeSplit] {
            for splits in [1, 3] {
                let table = MemoryTable::new();
                let pipeline = Pipeline::builder("p")
                    .source("in", numbers(20, splits).with_replay(replay))
                    .sink("out", MemorySink::new(&table).with_mode(mode))
                    .checkpoint_in_memory()
                    .epoch_every(Duration::from_millis(1))
                    .build()
                    .unwrap();
                let report = soon(pipeline.run()).await.unwrap();
                assert_eq!(all_ids(&table), (0..200).collect::<Vec<_>>(), "{mode} {replay} {splits}");
                assert_eq!((report.rows_read(), report.rows_written()), (200, 200));
                assert!(report.epochs >= 1);
                let again = soon(pipeline.run()).await.unwrap();
                assert_eq!((again.rows_read(), table.rows()), (0, 200), "{mode} {replay} {splits}");
                assert_eq!(again.node("in").unwrap().total.rows_in, 200);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_in_a_directory_outlives_the_pipeline_value() {
    let dir = tempfile::tempdir().unwrap();
    let (table, source) = (MemoryTable::new(), numbers(5, 2));
    let build = || {
        Pipeline::builder("p")
            .source("in", source.clone())
            .sink("out", MemorySink::new(&table))
            .checkpoint(dir.path().join("state"), Duration::from_secs(10))
            .build()
            .unwrap()
    };
    soon(build().run()).await.unwrap();
    assert_eq!(soon(build().run()).await.unwrap().rows_read(), 0);
    assert_eq!(table.rows(), 50);

    let other = Pipeline::builder("another")
        .source("in", source.clone())
        .sink("out", MemorySink::new(&table))
        .checkpoint(dir.path().join("state"), Duration::from_secs(10))
        .build()
        .unwrap();
    assert_eq!(soon(other.run()).await.unwrap_err().kind(), ErrorKind::Config);

    let forgetful = Pipeline::builder("p")
        .source("in", source.clone())
        .sink("out", MemorySink::new(&table))
        .checkpoint_in_memory()
        .build()
        .unwrap();
    let error = soon(forgetful.run()).await.unwrap_err();
    assert_eq!((error.kind(), error.context("node")), (ErrorKind::Conflict, Some("out")));
    assert!(error.context("target's lineage").is_some(), "{error}");
    assert_eq!(table.rows(), 50, "the target is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn again_full_is_a_new_generation_and_overwriting_replaces() {
    for (publication, expected) in [(Publication::EachEpoch, 100), (Publication::AtEnd, 50)] {
        let table = MemoryTable::new();
        let mut builder = Pipeline::builder("p")
            .source("in", numbers(5, 2))
            .sink("out", MemorySink::new(&table).with_publication(publication))
            .epoch_every(Duration::from_millis(1))
            .checkpoint_in_memory();
        if publication == Publication::EachEpoch {
            builder = builder.again(Again::Full);
        }
        let pipeline = builder.build().unwrap();
        for _ in 0..2 {
            assert_eq!(soon(pipeline.run()).await.unwrap().rows_read(), 50);
        }
        assert_eq!(table.rows(), expected, "{publication:?}");
    }
    let table = MemoryTable::new();
    let refused = Pipeline::builder("p")
        .source("in", numbers(1, 1))
        .sink("out", MemorySink::new(&table).with_publication(Publication::AtEnd))
        .again(Again::Resume)
        .checkpoint_in_memory()
        .build()
        .unwrap();
    assert_eq!(soon(refused.run()).await.unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_streams_of_a_source_reach_a_sink_under_their_names() {
    let table = MemoryTable::new();
    let streams = (0..3)
        .map(|i| (StreamInfo::new(format!("t{i}"), schema()), vec![rows(i * 100, i * 100 + 10)]))
        .collect();
    let pipeline = Pipeline::builder("p")
        .source("db", MemorySource::of(streams))
        .sink("all", MemorySink::new(&table))
        .sink("one", MemorySink::new(&table))
        .inputs(["db.t1"])
        .checkpoint_in_memory()
        .build()
        .unwrap();
    soon(pipeline.run()).await.unwrap();
    assert_eq!(ids(&table, "t0"), (0..10).collect::<Vec<_>>());
    assert_eq!(ids(&table, "t2"), (200..210).collect::<Vec<_>>());
    assert_eq!(ids(&table, "t1").len(), 20, "both sinks wrote it");
}

#[tokio::test]
async fn guarantees_are_derived_printed_and_demanded() {
    let table = MemoryTable::new();
    let promised = |replay, mode| {
        let pipeline = Pipeline::builder("p")
            .source("in", numbers(1, 1).with_replay(replay))
            .sink("out", MemorySink::new(&table).with_mode(mode))
            .checkpoint_in_memory()
            .build()
            .unwrap();
        async move { pipeline.explain().await.unwrap().node("out").unwrap().guarantee.clone().unwrap() }
    };
    for (replay, mode, expected) in [
        (Replay::Exact, CommitMode::Staged, Delivery::ExactlyOnce),
        (Replay::WholeSplit, CommitMode::Staged, Delivery::ExactlyOnce),
        (Replay::Exact, CommitMode::Atomic, Delivery::ExactlyOnce),
        (Replay::Exact, CommitMode::Immediate, Delivery::AtLeastOnce),
        (Replay::None, CommitMode::Staged, Delivery::AtMostOnce),
    ] {
        let guarantee = promised(replay, mode).await;
        assert_eq!(guarantee.delivery, expected, "{replay} {mode}");
        assert!(!guarantee.reason.is_empty());
    }
    for (mode, expected) in [
        (CommitMode::Staged, Delivery::AtMostOnce),
        // What the one source loses, the other may double.
        (CommitMode::Immediate, Delivery::BestEffort),
    ] {
        let pipeline = Pipeline::builder("p")
            .source("gone", numbers(1, 1).with_replay(Replay::None))
            .source("again", numbers(1, 1))
            .sink("out", MemorySink::new(&table).with_mode(mode))
            .inputs(["gone", "again"])
            .checkpoint_in_memory()
            .build()
            .unwrap();
        let plan = pipeline.explain().await.unwrap();
        assert_eq!(plan.node("out").unwrap().guarantee.as_ref().unwrap().delivery, expected, "{mode}");
    }
    for (mode, expected) in [
        (CommitMode::Staged, Delivery::AtMostOnce),
        // What comes out of a state is in the checkpoint before.
        (CommitMode::Immediate, Delivery::BestEffort),
    ] {
        let pipeline = Pipeline::builder("p")
            .source("gone", numbers(1, 1).with_replay(Replay::None))
            .transform("count", CountByGroup::default())
            .sink("out", MemorySink::new(&table).with_mode(mode))
            .on_error(OnError::dead_letter(MemorySink::new(&table).with_mode(mode)))
            .checkpoint_in_memory()
            .build()
            .unwrap();
        let plan = pipeline.explain().await.unwrap();
        for sink in ["out", "dead_letters"] {
            let delivery = plan.node(sink).unwrap().guarantee.as_ref().unwrap().delivery;
            assert_eq!(delivery, expected, "{mode} {sink}");
        }
    }
    let two_atomic = |first: Option<Delivery>| {
        let mut builder = Pipeline::builder("p")
            .source("in", numbers(1, 1))
            .sink("a", MemorySink::new(&MemoryTable::new()).with_mode(CommitMode::Atomic))
            .sink("b", MemorySink::new(&MemoryTable::new()).with_mode(CommitMode::Atomic))
            .checkpoint_in_memory();
        if let Some(demanded) = first {
            builder = builder.sink_delivery(demanded);
        }
        builder.build().unwrap()
    };
    let plan = two_atomic(None).explain().await.unwrap();
    assert_eq!(plan.node("b").unwrap().guarantee.as_ref().unwrap().delivery, Delivery::AtLeastOnce);
    assert!(
        plan.to_string().contains("delivery: at least once: the positions ride in the transactions of a")
    );
    let error = two_atomic(Some(Delivery::ExactlyOnce)).explain().await.unwrap_err();
    assert_eq!((error.kind(), error.context("node")), (ErrorKind::Config, Some("b")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_atomic_and_a_staged_sink_commit_the_same_epochs() {
    let (database, files) = (MemoryTable::new(), MemoryTable::new());
    let source = numbers(30, 2);
    let pipeline = Pipeline::builder("p")
        .source("in", source.clone())
        .sink("db", MemorySink::new(&database).with_mode(CommitMode::Atomic))
        .sink("files", MemorySink::new(&files))
        .checkpoint_in_memory()
        .epoch_every(Duration::from_millis(1))
        .build()
        .unwrap();
    soon(pipeline.run()).await.unwrap();
    assert_eq!(all_ids(&database), (0..300).collect::<Vec<_>>());
    assert_eq!(all_ids(&files), (0..300).collect::<Vec<_>>());
    assert_eq!(source.acknowledged().len(), 2, "both splits to their ends");
    soon(pipeline.run()).await.unwrap();
    assert_eq!((database.rows(), files.rows()), (300, 300));
}
