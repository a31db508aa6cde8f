//! Rows that can't go on: stopped at, dropped, or kept, wherever they are met.

use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use orbit_etl_core::fault::MaxRejects;
use orbit_etl_core::memory::{MemorySink, MemorySource, MemoryTable};
use orbit_etl_core::{
    BlockingOperator, CommitMode, ConnectorInfo, Context, ErrorKind, OnError, Output, Payload, Pipeline,
    Reject, Result, Started, StreamInfo, Transform,
};

use super::support::{all_ids, numbers, rows, schema, soon};

fn every_tenth(batch: &RecordBatch, row: usize) -> Option<String> {
    let id = batch.column(0).as_primitive::<Int64Type>().value(row);
    (id % 10 == 3).then(|| "the target refuses it".to_owned())
}

fn good(rows: i64) -> Vec<i64> {
    (0..rows).filter(|i| i % 10 != 3).collect()
}

fn messages(letters: &MemoryTable) -> Vec<String> {
    let batches: Vec<_> = letters.streams().iter().flat_map(|s| letters.batches(s)).collect();
    batches
        .iter()
        .flat_map(|b| {
            let messages = b.column_by_name("message").unwrap().as_string::<i32>().clone();
            (0..b.num_rows()).map(move |i| messages.value(i).to_owned()).collect::<Vec<_>>()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_sink_refuses_become_dead_letters_once() {
    for mode in [CommitMode::Staged, CommitMode::Atomic] {
        for at_commit in [false, true] {
            for letters_mode in [CommitMode::Staged, CommitMode::Immediate] {
                let (table, letters) = (MemoryTable::new(), MemoryTable::new());
                let sink = MemorySink::new(&table).with_mode(mode);
                let sink = if at_commit {
                    sink.reject_at_commit_if(every_tenth)
                } else {
                    sink.reject_if(every_tenth)
                };
                let source = numbers(20, 2);
                let pipeline = Pipeline::builder("p")
                    .source("in", source.clone())
                    .sink("out", sink)
                    .on_error(OnError::dead_letter(MemorySink::new(&letters).with_mode(letters_mode)))
                    .epoch_every(Duration::from_millis(1))
                    .checkpoint_in_memory()
                    .build()
                    .unwrap();
                let report = soon(pipeline.run()).await.unwrap();
                let case = format!("{mode} at_commit={at_commit} letters={letters_mode}");
                assert_eq!(all_ids(&table), good(200), "{case}");
                assert_eq!(letters.rows(), 20, "{case}");
                assert_eq!((report.rows_written(), report.rows_rejected()), (180, 20), "{case}");
                assert_eq!(messages(&letters)[0], "the target refuses it");
                assert_eq!(source.acknowledged().len(), 2, "{case}");
                soon(pipeline.run()).await.unwrap();
                assert_eq!((table.rows(), letters.rows()), (180, 20), "{case}: second run");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fail_stops_and_skip_counts_and_ceilings_hold() {
    let run = |on_error: OnError| {
        let table = MemoryTable::new();
        let pipeline = Pipeline::builder("p")
            .source("in", numbers(20, 1))
            .sink("out", MemorySink::new(&table).reject_if(every_tenth))
            .on_error(on_error)
            .checkpoint_in_memory()
            .build()
            .unwrap();
        async move { (soon(pipeline.run()).await, table.rows()) }
    };
    let (failed, rows) = run(OnError::fail()).await;
    assert_eq!((failed.unwrap_err().kind(), rows), (ErrorKind::Data, 0));
    let (skipped, rows) = run(OnError::skip()).await;
    assert_eq!((skipped.unwrap().rows_rejected(), rows), (20, 180));
    let (capped, rows) = run(OnError::skip().max_rows(19)).await;
    assert_eq!((capped.unwrap_err().context("ceiling").map(String::from), rows), (Some("19".into()), 0));
    assert!(run(OnError::skip().max_rows(20)).await.0.is_ok());
    let (capped, rows) = run(OnError::skip().max_share(0.09)).await;
    assert_eq!((capped.unwrap_err().kind(), rows), (ErrorKind::Data, 0));
    assert!(run(OnError::skip().max_share(0.1)).await.0.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_a_source_cannot_read_keep_their_bytes_and_place() {
    let (source, feed) = MemorySource::unbounded(vec![StreamInfo::new("t", schema())]);
    feed.add_split("s");
    feed.push("s", rows(0, 5)).unwrap();
    let mut bad =
        Reject::new(ErrorKind::Data, "not a row", Payload::Raw(bytes::Bytes::from_static(b"a,b,c\xff")));
    bad.origin.place = Some("file.csv, line 6, byte 40".into());
    feed.reject("s", bad).unwrap();
    feed.push("s", rows(5, 9)).unwrap();
    feed.finish_split("s").unwrap();
    feed.finish();
    let (table, letters) = (MemoryTable::new(), MemoryTable::new());
    let pipeline = Pipeline::builder("p")
        .source("in", source)
        .sink("out", MemorySink::new(&table))
        .on_error(OnError::dead_letter(MemorySink::new(&letters)))
        .checkpoint_in_memory()
        .build()
        .unwrap();
    let report = soon(pipeline.run()).await.unwrap();
    assert_eq!(all_ids(&table), (0..9).collect::<Vec<_>>());
    assert_eq!((report.rows_read(), report.rows_rejected()), (10, 1));
    let letter = &letters.batches(&letters.streams()[0])[0];
    let text = |c: &str| letter.column_by_name(c).unwrap().as_string::<i32>().value(0).to_owned();
    assert_eq!(text("place"), "file.csv, line 6, byte 40");
    assert_eq!((text("node"), text("split"), text("kind")), ("in".into(), "s".into(), "data".into()));
    assert_eq!(letter.column_by_name("payload").unwrap().as_binary::<i32>().value(0), b"a,b,c\xff");
}

/// Needs its whole input, and can do nothing with every tenth row of it.
#[derive(Debug)]
struct Picky;

#[async_trait]
impl Transform for Picky {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("picky", "")
    }

    async fn outputs(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Vec<StreamInfo>> {
        Ok(vec![StreamInfo::new(cx.node(), inputs[0].schema.clone())])
    }

    async fn blocking(&self, _: &Context, _: &[StreamInfo]) -> Result<bool> {
        Ok(true)
    }

    async fn start(&self, _: &Context, _: &[StreamInfo]) -> Result<Started> {
        Ok(Started::Blocking(Box::new(Self)))
    }
}

#[async_trait]
impl BlockingOperator for Picky {
    async fn run(
        self: Box<Self>,
        mut inputs: Vec<BoxStream<'static, Result<RecordBatch>>>,
        out: &mut Output<'_>,
    ) -> Result<()> {
        let mut rows = inputs.remove(0);
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            for row in 0..batch.num_rows() {
                let one = batch.slice(row, 1);
                match every_tenth(&batch, row) {
                    Some(why) => {
                        out.reject(Reject::new(ErrorKind::Data, why, Payload::Rows(one))).await?;
                    }
                    // As an aggregate would, it makes other rows than it was given.
                    None if row % 2 == 0 => {
                        out.emit(0, batch.slice(row, 2.min(batch.num_rows() - row))).await?
                    }
                    None => out.filtered(1),
                }
            }
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_needs_its_whole_input_can_reject_rows_of_it() {
    let run = |on_error: OnError| {
        let table = MemoryTable::new();
        let pipeline = Pipeline::builder("p")
            .source("in", numbers(20, 2))
            .transform("picky", Picky)
            .sink("out", MemorySink::new(&table))
            .on_error(on_error)
            .epoch_every(Duration::from_millis(1))
            .checkpoint_in_memory()
            .build()
            .unwrap();
        async move {
            let report = soon(pipeline.run()).await;
            if report.is_ok() {
                assert_eq!(soon(pipeline.run()).await.unwrap().rows_read(), 0, "nothing is read twice");
            }
            (report, table)
        }
    };
    let letters = MemoryTable::new();
    let (report, table) = run(OnError::dead_letter(MemorySink::new(&letters))).await;
    let report = report.unwrap();
    let counts = report.node("picky").unwrap().counts;
    assert_eq!((counts.rows_in, counts.rows_out, counts.rejected, counts.filtered), (200, 200, 20, 80));
    assert_eq!((report.epochs, table.rows(), letters.rows()), (1, 200, 20));
    assert_eq!(messages(&letters)[0], "the target refuses it");
    let letter = &letters.batches(&letters.streams()[0])[0];
    assert_eq!(letter.column_by_name("node").unwrap().as_string::<i32>().value(0), "picky");

    let (failed, table) = run(OnError::fail()).await;
    let error = failed.unwrap_err();
    assert_eq!((error.kind(), error.context("node"), table.rows()), (ErrorKind::Data, Some("picky"), 0));
    let (capped, table) = run(OnError::skip().max_rows(19)).await;
    assert_eq!((capped.unwrap_err().context("ceiling"), table.rows()), (Some("19"), 0));
    assert_eq!(run(OnError::skip().max_share(0.1)).await.0.unwrap().rows_rejected(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_has_a_ceiling_of_its_own() {
    let run = |limit: MaxRejects, every: u64| {
        let (source, feed) = MemorySource::unbounded(vec![StreamInfo::new("t", schema())]);
        feed.add_split("s");
        for i in 0..20 {
            feed.push("s", rows(i * 10, i * 10 + 10)).unwrap();
        }
        feed.finish_split("s").unwrap();
        feed.finish();
        let (table, other, letters) = (MemoryTable::new(), MemoryTable::new(), MemoryTable::new());
        let pipeline = Pipeline::builder("p")
            .source("in", source)
            .sink("out", MemorySink::new(&table).reject_if(every_tenth))
            .inputs(["in"])
            .max_rejects(limit)
            .sink("other", MemorySink::new(&other).reject_if(every_tenth))
            .inputs(["in"])
            .on_error(OnError::dead_letter(MemorySink::new(&letters)))
            .epoch_every(Duration::from_secs(every))
            .checkpoint_in_memory()
            .build()
            .unwrap();
        async move { (soon(pipeline.run()).await, table.rows(), other.rows(), letters.rows()) }
    };
    let limit = MaxRejects { rows: Some(20), share: Some(0.1), window: None };
    let (report, rows, _, letters) = run(limit, 3_600).await;
    assert_eq!((report.unwrap().rows_rejected(), rows, letters), (40, 180, 40));
    for limit in [
        MaxRejects { rows: Some(19), ..MaxRejects::default() },
        MaxRejects { share: Some(0.09), ..MaxRejects::default() },
        MaxRejects { share: Some(0.09), window: Some(1_000), ..MaxRejects::default() },
    ] {
        let (failed, rows, other, letters) = run(limit, 3_600).await;
        let failed = failed.unwrap_err();
        assert_eq!((failed.is_ceiling(), failed.context("node")), (true, Some("out")), "{limit:?}");
        assert_eq!((rows, other, letters), (0, 0, 0), "{limit:?}: nothing of the epoch is committed");
    }
    for wrong in [
        MaxRejects::default(),
        MaxRejects { share: Some(2.0), ..MaxRejects::default() },
        MaxRejects { rows: Some(1), window: Some(0), ..MaxRejects::default() },
    ] {
        let table = MemoryTable::new();
        let built = Pipeline::builder("p")
            .source("in", numbers(1, 1))
            .max_rejects(wrong)
            .sink("out", MemorySink::new(&table));
        assert_eq!(built.build().unwrap_err().context("option"), Some("max_rejects"), "{wrong:?}");
    }
}
