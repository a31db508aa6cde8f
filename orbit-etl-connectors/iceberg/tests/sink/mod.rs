//! The sink: what becomes of rows, of columns and of partitions.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, TimestampNanosecondArray, TimestampSecondArray,
};
use arrow::compute::concat_batches;
use orbit_etl_connector_iceberg::{
    Compression, IcebergCatalog, IcebergSink, IcebergSource, Mode, PartitionBy, SchemaMode,
};
use orbit_etl_core::{Context, ErrorKind, LaneId, Sink, StreamId, StreamInfo};
use orbit_etl_testkit::{Run, context, read};
use tempfile::TempDir;

fn lake() -> (TempDir, IcebergCatalog) {
    let dir = TempDir::new().unwrap();
    let catalog = IcebergCatalog::memory(dir.path().to_str().unwrap());
    (dir, catalog)
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap()
}

fn ids(from: i64, to: i64) -> RecordBatch {
    batch(vec![("id", Arc::new(Int64Array::from_iter_values(from..to)))])
}

async fn start(sink: &IcebergSink, rows: &RecordBatch, claim: u64) -> orbit_etl_core::Result<Run> {
    Run::start(&context().unwrap(), sink, &[StreamInfo::new("rows", rows.schema())], claim).await
}

/// The rows of the table, in the order of their ids.
async fn visible(catalog: &IcebergCatalog) -> RecordBatch {
    let source = IcebergSource::new(catalog.clone(), "ns.t");
    let batches = read(&source, std::time::Duration::from_secs(1)).await.unwrap().into_batches(0);
    let rows = concat_batches(&batches[0].schema(), &batches).unwrap();
    let order = arrow::compute::sort_to_indices(rows.column_by_name("id").unwrap(), None, None).unwrap();
    arrow::compute::take_record_batch(&rows, &order).unwrap()
}

fn data_files(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|p| match p.is_dir() {
            true => data_files(&p),
            false => usize::from(p.extension().is_some_and(|e| e == "parquet")),
        })
        .sum()
}

#[tokio::test]
async fn partitions_keep_unusual_values_apart() {
    let (dir, catalog) = lake();
    let times = [Some(0), None, Some(86_400_000_000), Some(-1), Some(0), Some(1)];
    let rows = batch(vec![
        ("id", Arc::new(Int64Array::from_iter_values(0..6))),
        ("then", Arc::new(TimestampMicrosecondArray::from(times.to_vec()))),
        (
            "pl ace/1",
            Arc::new(StringArray::from(vec![
                Some("a/b=%20 ü"),
                Some("../x"),
                Some("a/b=%20 ü"),
                None,
                Some(""),
                Some("null"),
            ])),
        ),
        ("day", Arc::new(Date32Array::from(vec![Some(0), None, Some(-800), Some(1), Some(1), Some(20_000)]))),
        ("at", Arc::new(TimestampMicrosecondArray::from(times.to_vec()).with_timezone("UTC"))),
        (
            "price",
            Arc::new(
                Decimal128Array::from(vec![Some(-1), Some(12_345), None, Some(0), Some(-12_345), Some(7)])
                    .with_precision_and_scale(20, 4)
                    .unwrap(),
            ),
        ),
        ("ok", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), None, None, Some(true)]))),
    ]);
    for (n, by) in [
        vec![("pl ace/1", "identity")],
        vec![("price", "identity"), ("day", "identity")],
        vec![("day", "year"), ("at", "hour"), ("id", "bucket[4]"), ("ok", "identity")],
        vec![("at", "day"), ("pl ace/1", "truncate[2]"), ("price", "bucket[3]")],
        vec![("then", "identity"), ("price", "truncate[50]")],
    ]
    .into_iter()
    .enumerate()
    {
        let table = format!("ns{n}.t");
        let by = by.into_iter().map(|(column, transform)| PartitionBy::new(column, transform));
        let sink = IcebergSink::append(catalog.clone(), &table).max_open_files(2).partition_by(by);
        let mut run = start(&sink, &rows, 1).await.unwrap();
        run.epoch(1, &[rows.clone(), rows.slice(2, 2)]).await.unwrap();
        let source = IcebergSource::new(catalog.clone(), &table);
        let got = read(&source, std::time::Duration::from_secs(1)).await.unwrap().into_batches(0);
        let got = concat_batches(&got[0].schema(), &got).unwrap();
        let order = arrow::compute::sort_to_indices(got.column(0), None, None).unwrap();
        let got = arrow::compute::take_record_batch(&got, &order).unwrap();
        let wanted = concat_batches(&rows.schema(), [&rows, &rows.slice(2, 2)]).unwrap();
        let order = arrow::compute::sort_to_indices(wanted.column(0), None, None).unwrap();
        let wanted = arrow::compute::take_record_batch(&wanted, &order).unwrap();
        for i in 0..wanted.num_columns() {
            let wanted = arrow::compute::cast(wanted.column(i), got.column(i).data_type()).unwrap();
            assert_eq!(got.column(i), &wanted, "{table}, column {i}");
        }
        assert!(data_files(&dir.path().join(format!("ns{n}"))) > 3);
    }
}

#[tokio::test]
async fn dates_that_no_calendar_has_are_rejected_as_partitions() {
    let (_dir, catalog) = lake();
    let rows = batch(vec![
        ("id", Arc::new(Int64Array::from_iter_values(0..3))),
        ("day", Arc::new(Date32Array::from(vec![i32::MAX, 0, i32::MIN]))),
    ]);
    let sink =
        IcebergSink::append(catalog.clone(), "ns.t").partition_by([PartitionBy::new("day", "identity")]);
    let mut run = start(&sink, &rows, 1).await.unwrap();
    run.write(0, 0, rows).await.unwrap();
    let prepared = run.writer(0).await.unwrap().prepare(1).await.unwrap();
    assert_eq!(prepared.rejects.iter().map(|reject| reject.rows).sum::<u64>(), 2);
    run.commit(1, prepared.committables).await.unwrap();
    assert_eq!(visible(&catalog).await.column(0).as_ref(), &Int64Array::from(vec![1]));
    let times = batch(vec![("at", Arc::new(TimestampMicrosecondArray::from(vec![-1]).with_timezone("UTC")))]);
    let sink = IcebergSink::append(catalog, "ns.other").partition_by([PartitionBy::new("at", "identity")]);
    assert_eq!(start(&sink, &times, 1).await.unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test]
async fn lost_digits_and_nulls_reject_rows_one_by_one() {
    let (_dir, catalog) = lake();
    let rows = batch(vec![
        ("id", Arc::new(Int64Array::from_iter_values(0..4))),
        ("at", Arc::new(TimestampNanosecondArray::from(vec![Some(1_000), Some(1_001), None, Some(0)]))),
        ("far", Arc::new(TimestampSecondArray::from(vec![1, 2, 3, i64::MAX]))),
    ]);
    let sink = IcebergSink::append(catalog.clone(), "ns.t");
    let cx = Context::standalone("out").unwrap();
    let mut session = sink.open(&cx, &[StreamInfo::new("rows", rows.schema())]).await.unwrap();
    session.claim(&Run::lineage(1)).await.unwrap();
    let mut writer = session.writer(LaneId(0)).await.unwrap();
    writer.write(StreamId(0), rows).await.unwrap();
    let prepared = writer.prepare(1).await.unwrap();
    assert_eq!(prepared.rejects.iter().map(|reject| reject.rows).sum::<u64>(), 2);
    assert!(prepared.rejects.iter().all(|reject| reject.kind == ErrorKind::Data));
    assert!(!prepared.rejects[0].message.contains("1001"), "{}", prepared.rejects[0].message);
    let checkpoint = start(&sink, &ids(0, 1), 1).await.unwrap().checkpoint(1);
    session.commit(1, &checkpoint, prepared.committables).await.unwrap();
    let got = visible(&catalog).await;
    assert_eq!(got.column(0).as_ref(), &Int64Array::from(vec![0, 2]));
    assert_eq!(got.column(1).as_ref(), &TimestampMicrosecondArray::from(vec![Some(1), None]));
}

#[tokio::test]
async fn a_table_grows_if_it_may() {
    let (_dir, catalog) = lake();
    let strict = IcebergSink::append(catalog.clone(), "ns.t");
    start(&strict, &ids(0, 2), 1).await.unwrap().epoch(1, &[ids(0, 2)]).await.unwrap();
    let wide = batch(vec![
        ("more", Arc::new(StringArray::from(vec!["x"])) as ArrayRef),
        ("id", Arc::new(Int64Array::from(vec![2]))),
    ]);
    let refused = start(&strict, &wide, 2).await.unwrap_err();
    assert_eq!((refused.kind(), refused.context("column")), (ErrorKind::Schema, Some("more")));
    let growing = strict.clone().schema_mode(SchemaMode::Merge);
    let mut run = start(&growing, &wide, 2).await.unwrap();
    run.epoch(2, std::slice::from_ref(&wide)).await.unwrap();
    run.epoch(3, &[wide]).await.unwrap();
    let got = visible(&catalog).await;
    assert_eq!(got.column(1).as_ref(), &StringArray::from(vec![None, None, Some("x"), Some("x")]));
    // A stream may lack a column that may be NULL.
    start(&strict, &ids(9, 10), 3).await.unwrap().epoch(4, &[ids(9, 10)]).await.unwrap();
    assert_eq!(visible(&catalog).await.num_rows(), 5);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_anything_is_made() {
    let (dir, catalog) = lake();
    let sink = IcebergSink::append(catalog.clone(), "ns.t");
    let span = batch(vec![("span", Arc::new(arrow::array::DurationSecondArray::from(vec![1])))]);
    let refused = start(&sink, &span, 1).await.unwrap_err();
    assert_eq!((refused.kind(), refused.context("column")), (ErrorKind::Schema, Some("span")));
    let by = sink.clone().partition_by([PartitionBy::new("nowhere", "identity")]);
    assert_eq!(start(&by, &ids(0, 1), 1).await.unwrap_err().kind(), ErrorKind::Config);
    let by = sink.clone().partition_by([PartitionBy::new("id", "month")]);
    assert_eq!(start(&by, &ids(0, 1), 1).await.unwrap_err().kind(), ErrorKind::Config);
    for mode in [Mode::Overwrite, Mode::Upsert] {
        let other = IcebergSink::new(catalog.clone(), "ns.t", mode);
        assert_eq!(start(&other, &ids(0, 1), 1).await.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    assert!(!dir.path().join("ns").exists());

    start(&sink, &ids(0, 1), 1).await.unwrap().epoch(1, &[ids(0, 1)]).await.unwrap();
    let text = batch(vec![("id", Arc::new(StringArray::from(vec!["1"])))]);
    let refused = start(&sink, &text, 2).await.unwrap_err();
    assert_eq!((refused.kind(), refused.context("column")), (ErrorKind::Schema, Some("id")));
    let upper = batch(vec![("ID", Arc::new(Int64Array::from(vec![1])))]);
    assert_eq!(start(&sink, &upper, 2).await.unwrap_err().kind(), ErrorKind::Schema);
    let by = sink.clone().partition_by([PartitionBy::new("id", "identity")]);
    assert_eq!(start(&by, &ids(0, 1), 2).await.unwrap_err().kind(), ErrorKind::Config);
    let two = [StreamInfo::new("a", ids(0, 1).schema()), StreamInfo::new("b", ids(0, 1).schema())];
    let cx = context().unwrap();
    assert_eq!(sink.open(&cx, &two).await.map(drop).unwrap_err().kind(), ErrorKind::Config);
}

/// Each with a catalog of its own, as in other processes.
#[cfg(feature = "sql")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelines_append_to_one_table_at_the_same_time() {
    const WRITERS: i64 = 4;
    const EPOCHS: i64 = 5;
    let dir = TempDir::new().unwrap();
    let at = dir.path().display().to_string();
    let catalog =
        move || IcebergCatalog::sql(format!("sqlite://{at}/catalog.db")).warehouse(format!("{at}/lake"));
    let writers = (0..WRITERS).map(|writer| {
        let sink = IcebergSink::append(catalog(), "ns.t");
        tokio::spawn(async move {
            let lineage = orbit_etl_core::Lineage { sink: format!("out{writer}"), ..Run::lineage(1) };
            let stream = StreamInfo::new("rows", ids(0, 1).schema());
            let mut run = Run::start_as(&context().unwrap(), &sink, &[stream], lineage).await.unwrap();
            for epoch in 0..EPOCHS {
                let from = (writer * EPOCHS + epoch) * 10;
                run.epoch(1 + epoch as u64, &[ids(from, from + 10)]).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let all = visible(&catalog()).await;
    assert_eq!(all.column(0).as_ref(), ids(0, WRITERS * EPOCHS * 10).column(0).as_ref());
}

#[tokio::test]
async fn files_end_at_the_target_size() {
    let (dir, catalog) = lake();
    let sink = IcebergSink::append(catalog.clone(), "ns.t")
        .target_file_size(64 << 10)
        .compression(Compression::None);
    let mut run = start(&sink, &ids(0, 1), 1).await.unwrap();
    let parts: Vec<_> = (0..20).map(|part| ids(part * 1_000, (part + 1) * 1_000)).collect();
    run.epoch(1, &parts).await.unwrap();
    let files = data_files(dir.path());
    assert!((2..10).contains(&files), "{files}");
    assert_eq!(visible(&catalog).await.num_rows(), 20_000);
}

#[test]
fn a_spec_reads_as_documented() {
    let text = r#"{
        "catalog": {"type": "sql", "uri": "sqlite:///c.db", "warehouse": "/lake", "name": "n"},
        "table": "ns.t", "mode": "append", "schema_mode": "merge", "compression": "snappy",
        "partition_by": [{"column": "day", "transform": "month"}, {"column": "id"}],
        "properties": {"write.metadata.previous-versions-max": "10"}, "target_file_size": 1000000
    }"#;
    serde_json::from_str::<IcebergSink>(text).unwrap();
    let source: IcebergSource = serde_json::from_str(
        r#"{"catalog": {"type": "rest", "uri": "http://x", "token": "t"}, "table": "a.b", "snapshot": 1}"#,
    )
    .unwrap();
    assert!(!format!("{source:?}").contains("\"t\""));
    let unknown = r#"{"catalog": {"type": "memory", "warehouse": "/x"}, "table": "a.b", "wat": 1}"#;
    assert!(serde_json::from_str::<IcebergSink>(unknown).is_err());
}
