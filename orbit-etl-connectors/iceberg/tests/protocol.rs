//! Claims, epochs and partitions.

use std::sync::Arc;

use arrow::array::{Date32Array, Int64Array, RecordBatch, StringArray};
use orbit_etl_connector_iceberg::{IcebergCatalog, IcebergSink, IcebergSource, PartitionBy};
use orbit_etl_core::{Discard, ErrorKind, Sink, StreamInfo};
use orbit_etl_testkit::{Run, context, read};
use tempfile::TempDir;

fn rows(from: i64, to: i64) -> RecordBatch {
    let ids = from..to;
    let names: Vec<Option<String>> =
        ids.clone().map(|i| (i % 3 != 0).then(|| format!("a/b {}", i % 5))).collect();
    RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from_iter_values(ids.clone())) as _, true),
        ("name", Arc::new(StringArray::from(names)) as _, true),
        ("day", Arc::new(Date32Array::from_iter_values(ids.map(|i| i as i32 * 10))) as _, true),
    ])
    .unwrap()
}

fn stream() -> StreamInfo {
    StreamInfo::new("rows", rows(0, 1).schema())
}

fn lake() -> (TempDir, IcebergCatalog) {
    let dir = TempDir::new().unwrap();
    let catalog = IcebergCatalog::memory(dir.path().to_str().unwrap());
    (dir, catalog)
}

async fn count(catalog: &IcebergCatalog) -> usize {
    let source = IcebergSource::new(catalog.clone(), "ns.t");
    let reading = read(&source, std::time::Duration::from_secs(1)).await.unwrap();
    reading.into_batches(0).iter().map(RecordBatch::num_rows).sum()
}

fn data_files(dir: &TempDir) -> usize {
    fn walk(dir: &std::path::Path) -> usize {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|p| {
                if p.is_dir() { walk(&p) } else { usize::from(p.extension().is_some_and(|e| e == "parquet")) }
            })
            .sum()
    }
    walk(dir.path())
}

#[tokio::test]
async fn an_epoch_committed_twice_is_there_once() {
    let (_dir, catalog) = lake();
    let cx = context().unwrap();
    let sink = IcebergSink::append(catalog.clone(), "ns.t");
    let mut run = Run::start(&cx, &sink, &[stream()], 1).await.unwrap();
    assert!(run.found.is_none());
    let staged = run.epoch(1, &[rows(0, 100)]).await.unwrap();
    run.commit(1, staged.clone()).await.unwrap();
    let mut next = Run::start(&cx, &sink, &[stream()], 2).await.unwrap();
    assert_eq!(next.found.as_ref().unwrap().epoch, 1);
    next.commit(1, staged).await.unwrap();
    assert_eq!(count(&catalog).await, 100);
    let late = run.epoch(2, &[rows(0, 1)]).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Fenced);
    assert_eq!(count(&catalog).await, 100);
}

#[tokio::test]
async fn discard_keeps_what_is_committed_or_pending() {
    let (dir, catalog) = lake();
    let cx = context().unwrap();
    let sink = IcebergSink::append(catalog.clone(), "ns.t");
    let mut first = Run::start(&cx, &sink, &[stream()], 1).await.unwrap();
    first.epoch(1, &[rows(0, 10)]).await.unwrap();
    first.write(0, 0, rows(10, 20)).await.unwrap();
    let pending = first.prepare(2).await.unwrap();
    first.write(0, 0, rows(20, 30)).await.unwrap();
    first.prepare(3).await.unwrap();
    assert_eq!(data_files(&dir), 3);
    let mut second = Run::start(&cx, &sink, &[stream()], 2).await.unwrap();
    second.discard(Discard::Older { claim: 2, keep: pending.clone() }).await.unwrap();
    assert_eq!(data_files(&dir), 2);
    second.commit(2, pending).await.unwrap();
    assert_eq!(count(&catalog).await, 20);
}

#[tokio::test]
async fn rows_go_to_their_partitions() {
    let (dir, catalog) = lake();
    let cx = context().unwrap();
    let sink = IcebergSink::append(catalog.clone(), "ns.t").max_open_files(2).partition_by([
        PartitionBy::new("name", "identity"),
        PartitionBy::new("day", "year"),
        PartitionBy::new("id", "bucket[4]"),
    ]);
    let mut run = Run::start(&cx, &sink, &[stream()], 1).await.unwrap();
    run.epoch(1, &[rows(0, 200)]).await.unwrap();
    assert_eq!(count(&catalog).await, 200);
    assert!(data_files(&dir) > 20);
}

#[tokio::test]
async fn new_columns_are_added_and_others_refused() {
    let (_dir, catalog) = lake();
    let cx = context().unwrap();
    let sink = IcebergSink::append(catalog.clone(), "ns.t");
    let narrow = rows(0, 10).project(&[0]).unwrap();
    let info = StreamInfo::new("rows", narrow.schema());
    Run::start(&cx, &sink, &[info], 1).await.unwrap().epoch(1, &[narrow]).await.unwrap();
    let mut wide = Run::start(&cx, &sink, &[stream()], 2).await.unwrap();
    wide.epoch(2, &[rows(10, 20)]).await.unwrap();
    assert_eq!(count(&catalog).await, 20);

    let text = RecordBatch::try_from_iter([("id", Arc::new(StringArray::from(vec!["x"])) as _)]).unwrap();
    let info = StreamInfo::new("rows", text.schema());
    let refused = Run::start(&cx, &sink, &[info], 3).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Schema);
    assert!(refused.to_string().contains("id"), "{refused}");
}

#[tokio::test]
async fn a_type_without_a_form_is_refused_by_name() {
    let (_dir, catalog) = lake();
    let column = arrow::array::UInt64Array::from(vec![1]);
    let batch = RecordBatch::try_from_iter([("big", Arc::new(column) as _)]).unwrap();
    let sink = IcebergSink::append(catalog, "ns.t");
    let info = StreamInfo::new("rows", batch.schema());
    let refused = sink.open(&context().unwrap(), &[info]).await.map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Schema);
    assert!(refused.to_string().contains("big"), "{refused}");
}
