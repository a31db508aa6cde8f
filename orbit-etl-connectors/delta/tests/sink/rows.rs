//! What becomes of rows.

use std::sync::Arc;

use arrow::array::{
    AsArray, Date32Array, Float64Array, Int32Array, Int64Array, StringArray, TimestampNanosecondArray,
};
use arrow::datatypes::{Int64Type, Schema};
use deltalake::DeltaTable;
use deltalake::kernel::{DataType, StructField};
use orbit_etl_connector_delta::{Compression, DeltaSink};
use orbit_etl_core::{ErrorKind, Payload, Reject};
use tempfile::TempDir;
use url::Url;

use super::{Run, batch, ids, lineage, path, query, table, visible};

fn rows_of(reject: &Reject) -> &arrow::array::RecordBatch {
    match &reject.payload {
        Payload::Rows(rows) => rows,
        Payload::Raw(_) => panic!("the reject holds no rows"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_keep_unusual_values_apart() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::append(path(&root)).partition_by(["day", "place"]).compression(Compression::Snappy);
    let rows = batch(vec![
        ("id", Arc::new(Int64Array::from(vec![1, 2, 3, 4, 5]))),
        ("day", Arc::new(Date32Array::from(vec![Some(0), None, Some(0), Some(1), Some(1)]))),
        (
            "place",
            Arc::new(StringArray::from(vec![
                Some("a/b=%20 ü"),
                Some("x"),
                Some("a/b=%20 ü"),
                None,
                Some(""),
            ])),
        ),
    ]);
    let mut run = Run::start(&sink, rows.schema(), 1).await;
    let rejects = run.epoch(1, &rows).await;
    assert_eq!(rejects.len(), 1);
    assert_eq!(rows_of(&rejects[0]).column(0).as_primitive::<Int64Type>().values(), &[5]);
    let table = table(&root).await;
    assert_eq!(table.snapshot().unwrap().log_data().num_files(), 3);
    let found =
        query(&root, "SELECT id FROM t WHERE place = 'a/b=%20 ü' AND day = DATE '1970-01-01' ORDER BY id")
            .await;
    assert_eq!(found.column(0).as_primitive::<Int64Type>().values(), &[1, 3]);
    let found = query(&root, "SELECT id FROM t WHERE place IS NULL OR day IS NULL ORDER BY id").await;
    assert_eq!(found.column(0).as_primitive::<Int64Type>().values(), &[2, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn constraints_and_lost_nanoseconds_reject_rows_one_by_one() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::append(path(&root)).property("delta.constraints.small", "id < 10 AND Word <> 'no'");
    let rows = batch(vec![
        ("id", Arc::new(Int64Array::from(vec![Some(1), Some(20), None, Some(3), Some(4)]))),
        ("Word", Arc::new(StringArray::from(vec!["yes", "yes", "yes", "no", "yes"]))),
        ("at", Arc::new(TimestampNanosecondArray::from(vec![1_000, 1_000, 1_000, 1_000, 1_001]))),
    ]);
    let mut run = Run::start(&sink, rows.schema(), 1).await;
    let rejects = run.epoch(1, &rows).await;
    assert_eq!(rejects.iter().map(|r| r.rows).sum::<u64>(), 4);
    assert!(rejects.iter().all(|r| r.kind == ErrorKind::Data));
    let broken = rejects.iter().find(|r| r.message.contains("constraint")).unwrap();
    assert_eq!(rows_of(broken).num_rows(), 3);
    assert!(!broken.message.contains("20"), "{}", broken.message);
    assert_eq!(visible(&root).await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn null_stays_out_of_columns_without_it() {
    let root = TempDir::new().unwrap();
    std::fs::create_dir_all(path(&root)).unwrap();
    let url = Url::from_directory_path(path(&root)).unwrap();
    DeltaTable::try_from_url(url)
        .await
        .unwrap()
        .create()
        .with_columns([
            StructField::new("id", DataType::LONG, false),
            StructField::new("n", DataType::LONG, true),
        ])
        .await
        .unwrap();
    // A narrower type fits, a column may be missing.
    let rows = batch(vec![("id", Arc::new(Int32Array::from(vec![Some(1), None])))]);
    let mut run = Run::start(&DeltaSink::append(path(&root)), rows.schema(), 1).await;
    assert_eq!(run.epoch(1, &rows).await[0].rows, 1);
    assert_eq!(visible(&root).await, [1]);
    let without = batch(vec![("n", Arc::new(Int64Array::from(vec![1])))]);
    let refused = Run::try_start(&DeltaSink::append(path(&root)), without.schema(), lineage(2)).await;
    assert_eq!(refused.err().unwrap().kind(), ErrorKind::Schema);
    let text = batch(vec![("id", Arc::new(StringArray::from(vec!["1"])))]);
    let refused = Run::try_start(&DeltaSink::append(path(&root)), text.schema(), lineage(2)).await;
    assert_eq!(refused.err().unwrap().kind(), ErrorKind::Schema);
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_let_readers_leave_files_out() {
    let root = TempDir::new().unwrap();
    let rows = batch(vec![
        ("id", Arc::new(Int64Array::from(vec![3, 1]))),
        ("f", Arc::new(Float64Array::from(vec![f64::NAN, 1.0]))),
    ]);
    let mut run = Run::start(&DeltaSink::append(path(&root)), rows.schema(), 1).await;
    run.epoch(1, &rows).await;
    let table = table(&root).await;
    let stats = table.snapshot().unwrap().log_data().iter().next().unwrap().stats().unwrap();
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(
        (&stats["numRecords"], &stats["minValues"]["id"], &stats["maxValues"]["id"]),
        (&2.into(), &1.into(), &3.into())
    );
    assert!(stats["minValues"].get("f").is_none_or(serde_json::Value::is_null));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_end_at_the_target_size() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::append(path(&root)).target_file_size(64 << 10).compression(Compression::None);
    let mut run = Run::start(&sink, ids(0..1).schema(), 1).await;
    let mut staged = 0;
    for part in 0..20 {
        run.writer.write(orbit_etl_core::StreamId(0), ids(part * 1_000..(part + 1) * 1_000)).await.unwrap();
    }
    let prepared = run.writer.prepare(1).await.unwrap();
    staged += prepared.committables.len();
    assert!(staged > 2, "{staged}");
    run.commit(1, prepared.committables).await.unwrap();
    assert_eq!(visible(&root).await.len(), 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_delta_lacks_is_refused_before_anything_is_made() {
    let root = TempDir::new().unwrap();
    let field = arrow::datatypes::Field::new(
        "t",
        arrow::datatypes::DataType::Time64(arrow::datatypes::TimeUnit::Microsecond),
        true,
    );
    let schema = Arc::new(Schema::new(vec![field]));
    let refused = Run::try_start(&DeltaSink::append(path(&root)), schema, lineage(1)).await.err().unwrap();
    assert_eq!((refused.kind(), refused.context("column")), (ErrorKind::Schema, Some("t")));
    assert!(!root.path().join("table").exists());
}
