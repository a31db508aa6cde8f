//! Rows and changes merged into a table by their keys.

use std::fs;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use deltalake::datafusion::execution::memory_pool::GreedyMemoryPool;
use deltalake::protocol::SaveMode;
use orbit_etl_connector_delta::{DeltaSink, SchemaMode};
use orbit_etl_core::model::Role;
use orbit_etl_core::{Discard, ErrorKind, LaneId, Sink, StreamId, StreamInfo};
use tempfile::TempDir;

use super::{Run, batch, lineage, path, query, table, visible};

type Change<'a> = (&'a str, Option<i64>, Option<&'a str>, i64);

/// Change rows: operation, id, name, order.
fn changes(changes: &[Change<'_>]) -> RecordBatch {
    let schema = Schema::new(vec![
        Role::Op.mark(Field::new("op", DataType::Utf8, false)),
        Field::new("id", DataType::Int64, true),
        Field::new("name", DataType::Utf8, true),
        Role::Order.mark(Field::new("lsn", DataType::Int64, true)),
    ]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(changes.iter().map(|c| c.0))),
        Arc::new(changes.iter().map(|c| c.1).collect::<Int64Array>()),
        Arc::new(changes.iter().map(|c| c.2).collect::<StringArray>()),
        Arc::new(changes.iter().map(|c| Some(c.3)).collect::<Int64Array>()),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

fn named(rows: &[(i64, &str)]) -> RecordBatch {
    batch(vec![
        ("id", Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.0)))),
        ("name", Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.1)))),
    ])
}

async fn rows(root: &TempDir) -> Vec<(i64, Option<String>)> {
    let rows = query(root, "SELECT id, arrow_cast(name, 'Utf8') FROM t ORDER BY id").await;
    let ids = rows.column(0).as_primitive::<Int64Type>();
    let names = rows.column(1).as_string::<i32>();
    ids.values().iter().zip(names).map(|(id, name)| (*id, name.map(str::to_owned))).collect()
}

fn some(rows: &[(i64, &str)]) -> Vec<(i64, Option<String>)> {
    rows.iter().map(|(id, name)| (*id, Some((*name).to_owned()))).collect()
}

fn staged(root: &TempDir) -> usize {
    fn below(folder: &std::path::Path) -> usize {
        let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
        entries.map(|path| if path.is_dir() { below(&path) } else { 1 }).sum()
    }
    below(&root.path().join("table/_orbit"))
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_insert_update_and_delete_in_one_version() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::merge(path(&root), ["id"]);
    let mut run = Run::start(&sink, changes(&[]).schema(), 1).await;
    let first = [("snapshot", Some(1), Some("a"), 1), ("insert", Some(2), Some("b"), 2)];
    run.epoch(1, &changes(&first)).await;
    assert_eq!(rows(&root).await, some(&[(1, "a"), (2, "b")]));
    let before = table(&root).await.version().unwrap();
    let second = [
        ("delete", Some(1), None, 3),
        ("update", Some(2), Some("B"), 4),
        ("insert", Some(3), Some("c"), 5),
        // Never there.
        ("delete", Some(9), None, 6),
    ];
    run.epoch(2, &changes(&second)).await;
    assert_eq!(rows(&root).await, some(&[(2, "B"), (3, "c")]));
    let table = table(&root).await;
    assert_eq!(table.version().unwrap(), before + 1);
    let columns: Vec<_> = table.snapshot().unwrap().schema().fields().map(|f| f.name().clone()).collect();
    assert_eq!(columns, ["id", "name"]);
    assert_eq!(staged(&root), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_change_of_a_key_counts() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::merge(path(&root), ["id"]);
    let mut run = Run::start(&sink, changes(&[]).schema(), 1).await;
    let mut other = run.session.writer(LaneId(1)).await.unwrap();
    let late = changes(&[
        ("update", Some(1), Some("newest"), 30),
        ("insert", Some(2), Some("gone"), 1),
        ("insert", Some(3), Some("first"), 5),
        ("update", Some(3), Some("second"), 5),
    ]);
    run.writer.write(StreamId(0), late).await.unwrap();
    let early = changes(&[
        ("insert", Some(1), Some("old"), 3),
        ("delete", Some(2), None, 2),
        ("insert", Some(4), Some("x"), 1),
        ("delete", Some(4), None, 2),
        ("insert", Some(4), Some("again"), 3),
    ]);
    other.write(StreamId(0), early).await.unwrap();
    let mut staged = run.writer.prepare(1).await.unwrap().committables;
    staged.extend(other.prepare(1).await.unwrap().committables);
    run.commit(1, staged).await.unwrap();
    assert_eq!(rows(&root).await, some(&[(1, "newest"), (3, "second"), (4, "again")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_operation_or_order_are_upserts_as_they_come() {
    let root = TempDir::new().unwrap();
    // The stream's own keys are taken where the sink names none.
    let sink = DeltaSink::new(path(&root), orbit_etl_connector_delta::Mode::Merge);
    let cx = orbit_etl_core::Context::standalone("out").unwrap();
    let input = StreamInfo::new("rows", named(&[]).schema()).with_keys(["id"]);
    let mut session = sink.open(&cx, &[input]).await.unwrap();
    let committed = session.claim(&lineage(1)).await.unwrap();
    let writer = session.writer(LaneId(0)).await.unwrap();
    let mut run = Run { session, writer, committed };
    run.writer.write(StreamId(0), named(&[(1, "a"), (2, "b"), (1, "c")])).await.unwrap();
    run.epoch(1, &named(&[(2, "d"), (3, "e")])).await;
    assert_eq!(rows(&root).await, some(&[(1, "c"), (2, "d"), (3, "e")]));
    run.epoch(2, &named(&[(3, "f")])).await;
    assert_eq!(rows(&root).await, some(&[(1, "c"), (2, "d"), (3, "f")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_no_changes_are_rejected_with_their_column() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::merge(path(&root), ["id"]);
    let mut run = Run::start(&sink, changes(&[]).schema(), 1).await;
    let bad = changes(&[
        ("insert", None, Some("hush"), 1),
        ("delete", None, None, 2),
        ("upsert", Some(1), Some("hush"), 3),
        ("truncate", Some(2), None, 4),
        ("insert", Some(3), Some("fine"), 5),
    ]);
    let rejects = run.epoch(1, &bad).await;
    let told: Vec<_> = rejects.iter().map(|r| (r.rows, r.kind)).collect();
    assert_eq!(told, [(2, ErrorKind::Data), (1, ErrorKind::Data), (1, ErrorKind::Data)]);
    assert!(
        rejects[0].message.contains("id") && rejects[0].message.contains("NULL"),
        "{}",
        rejects[0].message
    );
    assert!(rejects.iter().all(|r| !r.message.contains("hush") && !r.message.contains("upsert")));
    assert_eq!(rows(&root).await, some(&[(3, "fine")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deleted_row_held_does_not_matter() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::merge(path(&root), ["id"]).property("delta.constraints.named", "name IS NOT NULL");
    let mut run = Run::start(&sink, changes(&[]).schema(), 1).await;
    let both = [("insert", Some(1), Some("a"), 1), ("insert", Some(2), None, 2)];
    assert_eq!(run.epoch(1, &changes(&both)).await[0].rows, 1);
    assert!(run.epoch(2, &changes(&[("delete", Some(1), None, 3)])).await.is_empty());
    assert!(visible(&root).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_without_usable_keys_is_refused_before_anything_is_made() {
    let root = TempDir::new().unwrap();
    let refused = async |keys: &[&str]| {
        let sink = DeltaSink::merge(path(&root), keys.iter().copied());
        Run::try_start(&sink, changes(&[]).schema(), lineage(1)).await.err().unwrap()
    };
    assert_eq!(refused(&[]).await.kind(), ErrorKind::Config);
    let missing = refused(&["id", "nowhere"]).await;
    assert_eq!((missing.kind(), missing.context("column")), (ErrorKind::Schema, Some("nowhere")));
    assert!(!root.path().join("table").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_is_merged_once() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::merge(path(&root), ["id"]);
    let mut run = Run::start(&sink, named(&[]).schema(), 1).await;
    let (first, _) = run.prepare(1, &named(&[(1, "a")])).await;
    assert_eq!(staged(&root), 1);
    run.commit(1, first.clone()).await.unwrap();
    // Somebody else has taken the row away; the epoch doesn't bring it back.
    table(&root).await.delete().await.unwrap();
    let version = table(&root).await.version();
    run.commit(1, first.clone()).await.unwrap();
    let mut later = Run::start(&sink, named(&[]).schema(), 2).await;
    assert_eq!(later.committed.as_ref().unwrap().epoch, 1);
    later.commit(1, first).await.unwrap();
    assert_eq!(table(&root).await.version().unwrap(), version.unwrap() + 1, "the claim alone");
    assert!(visible(&root).await.is_empty());
    let fenced = run.prepare(2, &named(&[(2, "b")])).await.0;
    assert_eq!(run.commit(2, fenced).await.unwrap_err().kind(), ErrorKind::Fenced);
    // Changes of nothing are a version that records the epoch.
    later.session.discard(Discard::Older { claim: 2, keep: Vec::new() }).await.unwrap();
    assert_eq!(staged(&root), 0);
    later.commit(2, Vec::new()).await.unwrap();
    let third = Run::start(&sink, named(&[]).schema(), 3).await;
    assert_eq!(third.committed.unwrap().epoch, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_goes_on_top_of_what_others_did_meanwhile() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::merge(path(&root), ["id"]);
    let mut run = Run::start(&sink, named(&[]).schema(), 1).await;
    let (staged, _) = run.prepare(1, &named(&[(1, "ours"), (2, "ours")])).await;
    table(&root).await.write(vec![named(&[(2, "theirs"), (3, "theirs")])]).await.unwrap();
    run.commit(1, staged).await.unwrap();
    assert_eq!(rows(&root).await, some(&[(1, "ours"), (2, "ours"), (3, "theirs")]));
    // While we merge, over and over, somebody else appends.
    let theirs = tokio::spawn({
        let table = table(&root).await;
        async move {
            let mut table = table;
            for id in 100..110 {
                let write = table.write(vec![named(&[(id, "theirs")])]);
                table = write.with_save_mode(SaveMode::Append).await.unwrap();
            }
        }
    });
    for epoch in 2..=8 {
        run.epoch(epoch, &named(&[(1, "again"), (i64::try_from(epoch).unwrap() * 10, "new")])).await;
    }
    theirs.await.unwrap();
    let mut expected: Vec<i64> = vec![1, 2, 3, 20, 30, 40, 50, 60, 70, 80];
    expected.extend(100..110);
    assert_eq!(visible(&root).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_whose_keys_are_elsewhere_stay_as_they_are() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::append(path(&root)).partition_by(["p"]);
    let parted = |ids: &[i64], part: &[Option<&str>]| {
        let ids = Int64Array::from_iter_values(ids.iter().copied());
        batch(vec![("id", Arc::new(ids)), ("p", Arc::new(StringArray::from(part.to_vec())))])
    };
    let schema = parted(&[], &[]).schema();
    let mut run = Run::start(&sink, Arc::clone(&schema), 1).await;
    run.epoch(1, &parted(&[1, 2, 3], &[Some("a/b"), Some("c"), None])).await;
    run.epoch(2, &parted(&[11, 12, 13], &[Some("a/b"), Some("c"), None])).await;
    let before: Vec<String> = table(&root).await.get_file_uris().unwrap().collect();
    assert_eq!(before.len(), 6);
    let sink = DeltaSink::merge(path(&root), ["id", "p"]);
    let mut run = Run::start(&sink, schema, 2).await;
    run.epoch(3, &parted(&[1, 21], &[Some("a/b"), Some("d = e/f")])).await;
    let after: Vec<String> = table(&root).await.get_file_uris().unwrap().collect();
    let kept = before.iter().filter(|file| after.contains(file)).count();
    assert_eq!(kept, 5, "{after:?}");
    assert_eq!(visible(&root).await, [1, 2, 3, 11, 12, 13, 21]);
    let found = query(&root, "SELECT id FROM t WHERE p = 'd = e/f'").await;
    assert_eq!(found.column(0).as_primitive::<Int64Type>().values(), &[21]);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_come_along_and_those_that_are_missing_stay() {
    let root = TempDir::new().unwrap();
    Run::start(&DeltaSink::merge(path(&root), ["id"]), named(&[]).schema(), 1)
        .await
        .epoch(1, &named(&[(1, "a"), (2, "b")]))
        .await;
    let more = batch(vec![
        ("id", Arc::new(Int64Array::from(vec![2, 3]))),
        ("more", Arc::new(Int64Array::from(vec![7, 8]))),
    ]);
    let strict = DeltaSink::merge(path(&root), ["id"]);
    let refused = Run::try_start(&strict, more.schema(), lineage(2)).await.err().unwrap();
    assert_eq!((refused.kind(), refused.context("column")), (ErrorKind::Schema, Some("more")));
    let growing = strict.schema_mode(SchemaMode::Merge);
    Run::start(&growing, more.schema(), 2).await.epoch(2, &more).await;
    let expected = [(1, Some("a".to_owned())), (2, Some("b".to_owned())), (3, None)];
    assert_eq!(rows(&root).await, expected);
    let found = query(&root, "SELECT sum(more) FROM t").await;
    assert_eq!(found.column(0).as_primitive::<Int64Type>().value(0), 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_epoch_is_merged_in_little_memory() {
    let root = TempDir::new().unwrap();
    let pool = Arc::new(GreedyMemoryPool::new(80 << 20));
    let cx = orbit_etl_core::ContextBuilder::new("p").memory(pool).build().unwrap().for_node("out");
    let sink = DeltaSink::merge(path(&root), ["id"]);
    let schema = batch(vec![
        ("name", Arc::new(StringArray::from(Vec::<&str>::new()))),
        ("id", Arc::new(Int64Array::from(Vec::<i64>::new()))),
    ])
    .schema();
    let mut session = sink.open(&cx, &[StreamInfo::new("rows", schema)]).await.unwrap();
    session.claim(&lineage(1)).await.unwrap();
    let writer = session.writer(LaneId(0)).await.unwrap();
    let mut run = Run { session, writer, committed: None };
    // More than the pool holds.
    let wide = |from: i64, epoch: u64| {
        let ids = Int64Array::from_iter_values(from..from + 1_000);
        let notes = ids.values().iter().map(|id| format!("{epoch} {id} {}", "x".repeat(400)));
        batch(vec![("name", Arc::new(StringArray::from_iter_values(notes))), ("id", Arc::new(ids.clone()))])
    };
    for epoch in 1..=2 {
        for part in 0..100 {
            run.writer.write(StreamId(0), wide(part * 1_000, epoch)).await.unwrap();
        }
        run.epoch(epoch, &wide(0, epoch)).await;
    }
    let sql = "SELECT count(*), count(DISTINCT id) FROM t WHERE name LIKE '2 %'";
    let count = query(&root, sql).await;
    assert_eq!(count.column(0).as_primitive::<Int64Type>().value(0), 100_000);
    assert_eq!(count.column(1).as_primitive::<Int64Type>().value(0), 100_000);
}
