//! The source.

mod gone;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use deltalake::DeltaTable;
use futures::StreamExt;
use orbit_etl_connector_delta::{DeltaSink, DeltaSource};
use orbit_etl_core::{
    Context, ErrorKind, FilterPushdown, Position, Replay, Result, ScanRequest, Source, SourceEvent, Split,
    StreamId,
};
use tempfile::TempDir;
use url::Url;

use crate::sink::{Run, ids, path, table};

fn context() -> Context {
    Context::standalone("in").unwrap()
}

/// All splits that there are now, and the enumerator's position.
async fn splits(source: &DeltaSource, after: Option<&Position>) -> Result<(Vec<Split>, Option<Position>)> {
    let mut told = source.splits(&context(), after).await?;
    let (mut splits, mut position) = (Vec::new(), after.cloned());
    while let Some(change) = told.next().await {
        let change = change?;
        splits.extend(change.added);
        position = Some(change.position);
    }
    Ok((splits, position))
}

async fn events(
    source: &DeltaSource,
    split: &Split,
    after: Option<&Position>,
    scan: ScanRequest,
) -> Result<Vec<SourceEvent>> {
    let mut events = source.open(&context(), split, after, &[scan]).await?;
    let mut all = Vec::new();
    while let Some(event) = events.next().await {
        all.push(event?);
    }
    assert!(matches!(all.last(), Some(SourceEvent::Finished)));
    Ok(all)
}

fn all() -> ScanRequest {
    ScanRequest::all(StreamId(0), 100)
}

fn batches(events: &[SourceEvent]) -> Vec<(RecordBatch, Option<Position>)> {
    let batch = |event: &SourceEvent| match event {
        SourceEvent::Batch { batch, position, .. } => Some((batch.clone(), position.clone())),
        _ => None,
    };
    events.iter().filter_map(batch).collect()
}

fn id_values(events: &[SourceEvent]) -> Vec<i64> {
    let ids = |batch: &RecordBatch| {
        batch.column_by_name("id").unwrap().as_primitive::<Int64Type>().values().to_vec()
    };
    batches(events).iter().flat_map(|(batch, _)| ids(batch)).collect()
}

async fn read(source: &DeltaSource, after: Option<&Position>) -> Result<(Vec<i64>, Option<Position>)> {
    let (splits, position) = splits(source, after).await?;
    let mut ids = Vec::new();
    for split in &splits {
        ids.extend(id_values(&events(source, split, None, all()).await?));
    }
    ids.sort_unstable();
    Ok((ids, position))
}

/// A table of three epochs with three rows each, in versions 1 to 3.
async fn three_epochs(root: &TempDir) -> Run {
    let sink = DeltaSink::append(path(root)).property("delta.enableChangeDataFeed", "true");
    let mut run = Run::start(&sink, ids(0..1).schema(), 1).await;
    for epoch in 0..3 {
        run.epoch(epoch as u64 + 1, &ids(epoch * 3..epoch * 3 + 3)).await;
    }
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_and_times_are_travelled_to() {
    let root = TempDir::new().unwrap();
    three_epochs(&root).await;
    let source = DeltaSource::new(path(&root));
    assert_eq!(source.streams(&context()).await.unwrap()[0].name, "table");
    assert_eq!(read(&source, None).await.unwrap().0, (0..9).collect::<Vec<_>>());
    assert_eq!(read(&source.clone().version(2), None).await.unwrap().0, (0..6).collect::<Vec<_>>());
    assert!(read(&source.clone().version(0), None).await.unwrap().0.is_empty());
    let later = chrono::Utc::now() + chrono::TimeDelta::hours(1);
    assert_eq!(read(&source.clone().timestamp(later), None).await.unwrap().0.len(), 9);
    let missing = read(&source.version(77), None).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(missing.to_string().contains("77"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_resumed_after_any_row() {
    let root = TempDir::new().unwrap();
    let mut run = Run::start(&DeltaSink::append(path(&root)), ids(0..1).schema(), 1).await;
    run.epoch(1, &ids(0..1_000)).await;
    let source = DeltaSource::new(path(&root));
    assert_eq!(source.replay(), Replay::Exact);
    let (found, _) = splits(&source, None).await.unwrap();
    let whole = events(&source, &found[0], None, all()).await.unwrap();
    assert_eq!(batches(&whole).len(), 10);
    for (batch, position) in batches(&whole) {
        let last = batch.column(0).as_primitive::<Int64Type>().values().last().copied().unwrap();
        // With another projection and another size of batches.
        let scan = ScanRequest { projection: Some(vec!["id".into()]), batch_rows: 333, ..all() };
        let rest = events(&source, &found[0], position.as_ref(), scan).await.unwrap();
        assert_eq!(id_values(&rest), (last + 1..1_000).collect::<Vec<_>>());
    }
    let none = ScanRequest { projection: Some(Vec::new()), ..all() };
    let counted = events(&source, &found[0], None, none).await.unwrap();
    assert_eq!(
        batches(&counted)
            .iter()
            .map(|(b, _)| (b.num_columns(), b.num_rows()))
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        (0, 1_000)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_leave_files_out_and_only_whole_files() {
    use deltalake::datafusion::logical_expr::{col, lit};
    let root = TempDir::new().unwrap();
    three_epochs(&root).await;
    let source = DeltaSource::new(path(&root));
    let scan = ScanRequest { filters: vec![col("id").eq(lit(4_i64))], ..all() };
    assert_eq!(source.pushdown(&scan).filters, [FilterPushdown::Inexact]);
    let odd = ScanRequest { filters: vec![(col("id") % lit(2_i64)).eq(lit(1_i64))], ..all() };
    assert_eq!(source.pushdown(&odd).filters, [FilterPushdown::Unsupported]);
    let mut found = Vec::new();
    for split in splits(&source, None).await.unwrap().0 {
        found.extend(id_values(&events(&source, &split, None, scan.clone()).await.unwrap()));
    }
    assert_eq!(found, [3, 4, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_run_reads_what_was_added() {
    let root = TempDir::new().unwrap();
    let mut run = three_epochs(&root).await;
    let source = DeltaSource::new(path(&root));
    let (_, position) = read(&source, None).await.unwrap();
    assert!(read(&source, position.as_ref()).await.unwrap().0.is_empty());
    run.epoch(4, &ids(9..11)).await;
    table(&root).await.optimize().await.unwrap();
    let (added, position) = read(&source, position.as_ref()).await.unwrap();
    assert_eq!(added, [9, 10]);
    table(&root).await.delete().with_predicate("id = 0").await.unwrap();
    let refused = read(&source, position.as_ref()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("changes"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_versions_are_followed() {
    let root = TempDir::new().unwrap();
    let mut run = three_epochs(&root).await;
    let source = DeltaSource::new(path(&root)).follow().poll(Duration::from_millis(5));
    assert!(!source.streams(&context()).await.unwrap()[0].bounded);
    let mut told = source.splits(&context(), None).await.unwrap();
    assert_eq!(told.next().await.unwrap().unwrap().added.len(), 3);
    run.epoch(4, &ids(9..11)).await;
    let added = told.next().await.unwrap().unwrap().added;
    assert_eq!(id_values(&events(&source, &added[0], None, all()).await.unwrap()), [9, 10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_have_kinds_and_an_order() {
    let root = TempDir::new().unwrap();
    three_epochs(&root).await;
    table(&root).await.delete().with_predicate("id = 0").await.unwrap();
    table(&root).await.update().with_predicate("id = 1").with_update("name", "'new'").await.unwrap();
    let source = DeltaSource::new(path(&root)).changes().from_version(3);
    assert_eq!(source.replay(), Replay::WholeSplit);
    let schema = Arc::clone(&source.streams(&context()).await.unwrap()[0].schema);
    let op = orbit_etl_core::model::Role::Op.find(&schema).unwrap();
    let (found, _) = splits(&source, None).await.unwrap();
    assert_eq!(found.len(), 3);
    let mut seen = Vec::new();
    for split in &found {
        for (batch, position) in batches(&events(&source, split, None, all()).await.unwrap()) {
            assert!(position.is_none());
            let (ids, ops) =
                (batch.column(0).as_primitive::<Int64Type>(), batch.column(op).as_string::<i32>());
            seen.extend(ids.values().iter().zip(ops).map(|(id, op)| (*id, op.unwrap().to_owned())));
        }
    }
    seen.sort();
    let expected = [(0, "delete"), (1, "update"), (6, "insert"), (7, "insert"), (8, "insert")];
    assert_eq!(seen, expected.map(|(id, op)| (id, op.to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_replaced_is_not_read_on() {
    let root = TempDir::new().unwrap();
    three_epochs(&root).await;
    let source = DeltaSource::new(path(&root));
    let (found, position) = splits(&source, None).await.unwrap();
    std::fs::remove_dir_all(path(&root)).unwrap();
    assert_eq!(read(&source, None).await.unwrap_err().kind(), ErrorKind::NotFound);
    std::fs::create_dir_all(path(&root)).unwrap();
    let url = Url::from_directory_path(path(&root)).unwrap();
    let mut other = DeltaTable::try_from_url(url).await.unwrap();
    for _ in 0..5 {
        other = other.write(vec![ids(0..1)]).await.unwrap();
    }
    assert_eq!(read(&source, position.as_ref()).await.unwrap_err().kind(), ErrorKind::Conflict);
    let refused = events(&source, &found[0], None, all()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_that_contradict_themselves_are_refused() {
    use orbit_etl_core::Connector;
    let source = || DeltaSource::new("t");
    for wrong in [
        source().version(1).timestamp(chrono::Utc::now()),
        source().version(1).follow(),
        source().from_version(1),
        source().poll(Duration::ZERO),
    ] {
        assert_eq!(wrong.validate().unwrap_err().kind(), ErrorKind::Config);
    }
}
