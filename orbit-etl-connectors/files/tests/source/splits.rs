//! Parts of files: every row once, whatever stands in it.

use std::fs;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::DataType;
use datafusion_expr::{col, lit};
use futures::StreamExt;
use orbit_etl_connector_files::{Changed, FilesSource};
use orbit_etl_core::{ErrorKind, FilterPushdown, Position, ScanRequest, Source, Split, StreamId};
use proptest::prelude::*;
use tempfile::tempdir;

use super::formats::{sample, write_parquet};
use super::{assert_exact, context, read, read_split, read_with, splits};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn quote(text: &str, always: bool) -> String {
    if always || text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_string()
    }
}

fn rows_of(batches: &[RecordBatch]) -> Vec<Vec<Option<String>>> {
    let mut rows = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let value = |c: &arrow::array::ArrayRef| {
                let texts = c.as_string::<i32>();
                arrow::array::Array::is_valid(texts, row).then(|| texts.value(row).to_string())
            };
            rows.push(batch.columns().iter().map(value).collect());
        }
    }
    rows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn parts_of_csv_hold_every_row_once(
        rows in prop::collection::vec(("[aé,\"\n\r5]{0,8}", "[a€,\"\n]{1,6}", any::<bool>()), 0..60),
        crlf: bool, end: bool, size in 5_u64..80,
    ) {
        let newline = if crlf { "\r\n" } else { "\n" };
        let mut text = format!("first,second{newline}");
        for (first, second, always) in &rows {
            text.push_str(&format!("{},{}{newline}", quote(first, *always), quote(second, *always)));
        }
        if !end {
            text.truncate(text.len() - newline.len());
        }
        let dir = tempdir().unwrap();
        let path = dir.path().join("a.csv");
        fs::write(&path, text).unwrap();
        let schema = arrow::datatypes::Schema::new(vec![
            arrow::datatypes::Field::new("first", arrow::datatypes::DataType::Utf8, true),
            arrow::datatypes::Field::new("second", arrow::datatypes::DataType::Utf8, true),
        ]);
        let source = FilesSource::csv(path.to_str().unwrap()).schema(schema.into()).keep_empty(true);
        let expected: Vec<Vec<Option<String>>> =
            rows.iter().map(|(a, b, _)| vec![Some(a.clone()), Some(b.clone())]).collect();
        runtime().block_on(async {
            let whole = read(&source.clone().split_size(None)).await.unwrap();
            assert_eq!(rows_of(&whole.batches), expected);
            assert!(whole.rejects.is_empty());
            let parts = source.split_size(size);
            assert_eq!(rows_of(&read(&parts).await.unwrap().batches), expected);
            assert_exact(&parts, 3).await;
        });
    }

    #[test]
    fn pruning_keeps_what_a_filter_wants(
        low in 0i64..300, high in 0i64..300, rows_per_group in 20usize..120,
    ) {
        let dir = tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        let batch = sample(300);
        write_parquet(&path, &batch, rows_per_group);
        let source = FilesSource::parquet(path.to_str().unwrap()).schema(batch.schema());
        let filters = vec![col("id").gt_eq(lit(low)).and(col("id").lt(lit(high))), col("id").is_not_null()];
        let scan = ScanRequest { filters, ..ScanRequest::all(StreamId(0), 16) };
        assert_eq!(source.pushdown(&scan).filters, [FilterPushdown::Inexact; 2]);
        runtime().block_on(async {
            let cx = context();
            let split = splits(&source, None).await.unwrap().0.remove(0);
            let read = read_split(&source, &cx, &split, None, &scan).await.unwrap();
            let ids = |batches: &[RecordBatch]| -> Vec<i64> {
                batches.iter().flat_map(|b| b.column(0).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec()).collect()
            };
            let found = ids(&read.batches);
            let wanted: Vec<i64> = (low..high).collect();
            assert!(wanted.iter().all(|id| found.contains(id)));
            // Pages have ten rows: at most one of them too much at either end.
            assert!(found.len() <= wanted.len() + 20, "{} rows for {}", found.len(), wanted.len());
            assert_eq!(read.positions.last().map(|p| p.0.0["row"].clone()), Some(300.into()));
            for (position, before, _) in &read.positions {
                let rest = read_split(&source, &cx, &split, Some(position), &scan).await.unwrap();
                assert_eq!(ids(&rest.batches), found[*before..].to_vec());
            }
        });
    }
}

#[tokio::test]
async fn json_lines_are_split_between_lines() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.json");
    let text: String = (0..500).map(|i| format!("{{\"id\": {i}, \"text\": \"line\\n{i}\"}}\n")).collect();
    fs::write(&path, text).unwrap();
    let source = FilesSource::json(path.to_str().unwrap()).split_size(1_000_u64);
    assert!(splits(&source, None).await.unwrap().0.len() > 5);
    let found = read(&source).await.unwrap();
    assert_eq!(found.rows(), 500);
    assert!(found.rejects.is_empty());
    assert_exact(&source, 7).await;
}

#[tokio::test]
async fn enumeration_goes_on_where_it_was() {
    let dir = tempdir().unwrap();
    let text: String = (0..200).map(|i| format!("{i},\"a\nb\"\n")).collect();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("a.csv"), format!("id,text\n{text}")).unwrap();
    fs::write(path("b.csv"), "id,text\n1,x\n").unwrap();
    let source = FilesSource::csv(dir.path().to_str().unwrap()).split_size(300_u64);

    let changes: Vec<_> =
        futures::TryStreamExt::try_collect(source.splits(&context(), None).await.unwrap()).await.unwrap();
    let changes: Vec<orbit_etl_core::SplitChange> = changes;
    let all: Vec<_> = changes.iter().flat_map(|c| c.added.clone()).collect();
    assert!(changes.len() > 2 && all.len() > 4);
    for (index, change) in changes.iter().enumerate() {
        let rest = splits(&source, Some(&change.position)).await.unwrap().0;
        let expected: Vec<_> = changes[index + 1..].iter().flat_map(|c| c.added.clone()).collect();
        assert_eq!(rest, expected);
    }

    let last = &changes.last().unwrap().position;
    fs::write(path("c.csv"), "id,text\n2,y\n").unwrap();
    let new = splits(&source, Some(last)).await.unwrap().0;
    assert_eq!(new.len(), 1);
    assert!(new[0].id.as_str().contains("c.csv"));

    fs::write(path("b.csv"), "id,text\n1,x\n2,changed\n").unwrap();
    let error = splits(&source, Some(last)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let reloading = source.changed(Changed::Reload);
    assert_eq!(splits(&reloading, Some(last)).await.unwrap().0.len(), 2);
    // What the old split named is gone, and comes with the new one.
    let old = all.iter().find(|s| s.id.as_str().contains("b.csv")).unwrap();
    let scan = ScanRequest::all(StreamId(0), 10);
    assert_eq!(read_split(&reloading, &context(), old, None, &scan).await.unwrap().rows(), 0);
}

/// The splits of a run that is stopped after so many changes, and where it stood.
async fn stopped_after(
    source: &FilesSource,
    after: Option<&Position>,
    changes: usize,
) -> (Vec<Split>, Option<Position>) {
    let told = source.splits(&context(), after).await.unwrap().take(changes);
    let told: Vec<_> = told.map(Result::unwrap).collect().await;
    let position = told.last().map(|c| c.position.clone());
    (told.into_iter().flat_map(|c| c.added).collect(), position)
}

#[tokio::test]
async fn a_partly_told_file_is_finished_before_one_that_came_in_between() {
    let dir = tempdir().unwrap();
    let text: String = (0..400).map(|i| format!("r{i},\"a\nb\"\n")).collect();
    let put = |name: &str| fs::write(dir.path().join(name), format!("id,text\n{text}")).unwrap();
    let source = FilesSource::csv(dir.path().to_str().unwrap()).split_size(300_u64);
    put("b.csv");
    let (mut told, mut position) = stopped_after(&source, None, 1).await;
    put("a.csv");
    for changes in [1, 2, 1] {
        // Whatever the configuration says in between.
        let source = if changes == 2 { source.clone().split_size(None) } else { source.clone() };
        let (more, at) = stopped_after(&source, position.as_ref(), changes).await;
        told.extend(more);
        position = at.or(position);
    }
    told.extend(splits(&source, position.as_ref()).await.unwrap().0);
    let scan = ScanRequest::all(StreamId(0), 1_000);
    let mut rows = Vec::new();
    for split in &told {
        let found = read_split(&source, &context(), split, None, &scan).await.unwrap();
        rows.extend(rows_of(&found.batches));
    }
    let mut expected: Vec<_> = (0..400).chain(0..400).map(|i| format!("r{i}")).collect();
    let mut found: Vec<_> = rows.iter().map(|r| r[0].clone().unwrap()).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn parquet_is_split_between_row_groups() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let batch = sample(300);
    write_parquet(&path, &batch, 50);
    let source = FilesSource::parquet(path.to_str().unwrap()).schema(batch.schema()).split_size(1_u64);
    assert_eq!(splits(&source, None).await.unwrap().0.len(), 6);
    let found = read_with(&source, &ScanRequest::all(StreamId(0), 64)).await.unwrap();
    assert_eq!(found.all(&batch.schema()), batch);
}

#[tokio::test]
async fn a_local_file_that_is_written_over_in_the_middle_is_noticed() {
    use orbit_etl_core::SourceEvent;

    let dir = tempdir().unwrap();
    let path = dir.path().join("a.csv");
    let text = |rows: usize, name: &str| -> String {
        (0..rows).fold("id,name\n".to_owned(), |text, i| text + &format!("{i},{name}{i:060}\n"))
    };
    for reload in [false, true] {
        fs::write(&path, text(60_000, "old")).unwrap();
        let changed = if reload { Changed::Reload } else { Changed::Error };
        let source = FilesSource::csv(path.to_str().unwrap()).changed(changed);
        let cx = context();
        source.streams(&cx).await.unwrap();
        let (mut listed, position) = splits(&source, None).await.unwrap();
        let scan = ScanRequest::all(StreamId(0), 1_000);
        let old = listed.remove(0);
        let mut events = source.open(&cx, &old, None, std::slice::from_ref(&scan)).await.unwrap();
        let Some(Ok(SourceEvent::Batch { batch, .. })) = events.next().await else { panic!("no rows") };
        // In place, and no shorter.
        fs::write(&path, text(60_001, "new")).unwrap();
        let (mut rows, mut end) = (batch.num_rows(), None);
        while let Some(event) = events.next().await {
            match event {
                Ok(SourceEvent::Batch { batch, .. }) => {
                    rows += batch.num_rows();
                    let new = rows_of(&[batch.project(&[1]).unwrap()]).into_iter().flatten().flatten();
                    assert!(new.into_iter().all(|name| name.starts_with("old")));
                }
                other => {
                    end = Some(other);
                    break;
                }
            }
        }
        assert!(rows < 60_000, "all was read");
        match end.unwrap() {
            Ok(event) => assert!(reload && matches!(event, SourceEvent::Finished), "{event:?}"),
            Err(error) => {
                assert!(!reload, "{}", error.report());
                assert_eq!(error.kind(), ErrorKind::Conflict);
                assert_eq!(error.context("file"), path.to_str());
            }
        }
        if reload {
            let new = splits(&source, position.as_ref()).await.unwrap().0;
            let read = read_split(&source, &cx, &new[0], None, &scan).await.unwrap();
            assert_eq!((new.len(), read.rows()), (1, 60_001));
            assert_eq!(read_split(&source, &cx, &old, None, &scan).await.unwrap().rows(), 0);
        }
    }
}

#[tokio::test]
async fn a_position_takes_little_room_per_file() {
    let dir = tempdir().unwrap();
    for file in 0..2_500 {
        fs::write(dir.path().join(format!("a-file-with-a-rather-long-name-{file:09}.csv")), "a\n1\n")
            .unwrap();
    }
    let source = FilesSource::csv(dir.path().to_str().unwrap());
    let (told, position) = splits(&source, None).await.unwrap();
    assert_eq!(told.len(), 2_500);
    let length = position.as_ref().unwrap().0.to_string().len();
    assert!(length < 2_500 * 21, "{length} bytes");
    assert!(splits(&source, position.as_ref()).await.unwrap().0.is_empty());
    fs::write(dir.path().join("a-file-with-a-rather-long-name-000000007.csv"), "a\n1\n2\n").unwrap();
    let error = splits(&source, position.as_ref()).await.unwrap_err();
    assert!(error.context("file").unwrap().contains("000000007"), "{error}");
    let reloading = source.changed(Changed::Reload);
    assert_eq!(splits(&reloading, position.as_ref()).await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn a_row_group_is_reserved_while_it_is_read() {
    use std::sync::Arc;

    use datafusion_execution::memory_pool::{GreedyMemoryPool, MemoryPool};
    use orbit_etl_core::ContextBuilder;

    let dir = tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let batch = sample(100_000);
    write_parquet(&path, &batch, 50_000);
    let source = FilesSource::parquet(path.to_str().unwrap());
    let scan = ScanRequest::all(StreamId(0), 1_000);
    let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(64 << 20));
    let cx = ContextBuilder::new("p").memory(Arc::clone(&pool)).build().unwrap();
    source.streams(&cx).await.unwrap();
    let split = splits(&source, None).await.unwrap().0.remove(0);
    let mut events = source.open(&cx, &split, None, std::slice::from_ref(&scan)).await.unwrap();
    let mut most = 0;
    while let Some(event) = events.next().await {
        event.unwrap();
        most = most.max(pool.reserved());
    }
    let size = fs::metadata(&path).unwrap().len() as usize;
    // One of two row groups at a time.
    assert!(most > size / 3 && most < size * 2 / 3, "{most} bytes of {size} were reserved");
    drop(events);
    assert_eq!(pool.reserved(), 0);

    let small: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(size / 4));
    let cx = ContextBuilder::new("p").memory(Arc::clone(&small)).build().unwrap();
    source.streams(&cx).await.unwrap();
    let error = read_split(&source, &cx, &split, None, &scan).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Resources, "{}", error.report());
    assert_eq!(error.context("file"), path.to_str());
    assert!(error.to_string().contains("memory limit"), "{error}");
    // A column alone has room.
    let scan = ScanRequest { projection: Some(vec!["flag".into()]), ..scan };
    assert_eq!(read_split(&source, &cx, &split, None, &scan).await.unwrap().rows(), 100_000);
    assert_eq!(small.reserved(), 0);
}

/// Only splits that were read survive their file.
#[tokio::test]
async fn a_file_that_is_gone_before_it_was_read() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.csv");
    for n in ["a", "b"] {
        fs::write(dir.path().join(format!("{n}.csv")), "v\n1\n2\n").unwrap();
    }
    let source = FilesSource::csv(format!("{}/*.csv", dir.path().display()));
    let (listed, _) = splits(&source, None).await.unwrap();
    fs::remove_file(&path).unwrap();
    let scan = ScanRequest::all(StreamId(0), 10);
    let pending = &listed[0];
    let error = read_split(&source, &context(), pending, None, &scan).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
    assert!(error.to_string().contains("put the file back"), "{error}");
    let reloading = source.changed(Changed::Reload);
    assert_eq!(read_split(&reloading, &context(), pending, None, &scan).await.unwrap().rows(), 0);
}

#[tokio::test]
async fn a_file_that_is_gone_before_all_of_it_was_told() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.csv");
    fs::write(&path, format!("v\n{}", "12345678\n".repeat(1_000))).unwrap();
    fs::write(dir.path().join("b.csv"), "v\n1\n").unwrap();
    let source = FilesSource::csv(format!("{}/*.csv", dir.path().display())).split_size(1_024);
    let cx = context();
    let mut changes = source.splits(&cx, None).await.unwrap();
    let Some(Ok(change)) = changes.next().await else { panic!("nothing was told") };
    drop(changes);
    let position = change.position;
    fs::remove_file(&path).unwrap();
    let error = splits(&source, Some(&position)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
    assert!(error.context("file").is_some_and(|file| file.ends_with("a.csv")), "{}", error.report());
    let reloading = source.changed(Changed::Reload);
    assert_eq!(splits(&reloading, Some(&position)).await.unwrap().0.len(), 1, "the other file");
}

/// Of a file with nothing but bad lines, no more than the sample is looked at.
#[tokio::test]
async fn a_sample_of_bad_lines_ends() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.csv");
    fs::write(&path, format!("a,b\n0,0\n{}5,six\n", "1,2,3\n".repeat(500))).unwrap();
    let source = |rows| FilesSource::csv(path.to_str().unwrap()).sample_rows(rows);
    let column = |source| async move { super::schema(&source).await.unwrap().field(1).data_type().clone() };
    assert_eq!(column(source(502)).await, DataType::Utf8);
    assert_ne!(column(source(501)).await, DataType::Utf8, "more than the sample was read");
}
