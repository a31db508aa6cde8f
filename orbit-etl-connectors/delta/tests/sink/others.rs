//! The sink among other writers, and on tables that it didn't make.

use std::fs;
use std::sync::Arc;

use arrow::array::Int64Array;
use deltalake::kernel::{DataType, PrimitiveType};
use deltalake::{DeltaTable, DeltaTableBuilder};
use orbit_etl_connector_delta::{DeltaSink, Mode, SchemaMode};
use orbit_etl_core::{Connector, Discard, ErrorKind, Lineage, Sink};
use tempfile::TempDir;
use url::Url;

use super::{Run, batch, ids, lineage, path, table, visible};

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_is_committed_once_on_top_of_what_others_did() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::append(path(&root));
    let mut run = Run::start(&sink, ids(0..1).schema(), 1).await;
    assert!(run.committed.is_none());
    let (first, _) = run.prepare(1, &ids(0..3)).await;
    table(&root).await.write(vec![ids(100..102)]).await.unwrap();
    run.commit(1, first.clone()).await.unwrap();
    let version = table(&root).await.version();
    run.commit(1, first.clone()).await.unwrap();
    assert_eq!(table(&root).await.version(), version);
    table(&root).await.write(vec![ids(102..103)]).await.unwrap();
    // A later run commits what it believes to be pending.
    let mut later = Run::start(&sink, ids(0..1).schema(), 2).await;
    assert_eq!(later.committed.as_ref().unwrap().epoch, 1);
    later.commit(1, first).await.unwrap();
    later.session.discard(Discard::Older { claim: 2, keep: Vec::new() }).await.unwrap();
    later.epoch(2, &ids(3..4)).await;
    assert_eq!(visible(&root).await, [0, 1, 2, 3, 100, 101, 102]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_replaced_is_not_swept() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::append(path(&root));
    let mut run = Run::start(&sink, ids(0..1).schema(), 1).await;
    run.epoch(1, &ids(0..3)).await;
    run.epoch(2, &ids(3..6)).await;
    run.prepare(3, &ids(6..9)).await;
    let before = table(&root).await.version().unwrap();
    table(&root).await.optimize().await.unwrap();
    let mut later = Run::start(&sink, ids(0..1).schema(), 2).await;
    later.session.discard(Discard::Older { claim: 2, keep: Vec::new() }).await.unwrap();
    later.epoch(3, &ids(6..7)).await;
    assert_eq!(visible(&root).await, [0, 1, 2, 3, 4, 5, 6]);
    let mut old = table(&root).await;
    old.load_version(before).await.unwrap();
    for uri in old.get_file_uris().unwrap() {
        let file = Url::parse(&uri).map_or(uri.clone(), |url| url.path().to_owned());
        assert!(fs::exists(&file).unwrap(), "{file} is gone");
    }
    assert_eq!(fs::read_dir(run_folder(&root, 1)).unwrap().count(), 2);
}

fn run_folder(root: &TempDir, claim: u64) -> std::path::PathBuf {
    let own = fs::read_dir(root.path().join("table/part-orbit")).unwrap().next().unwrap().unwrap();
    own.path().join(format!("{claim:020}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_summed_up_and_remembers() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::append(path(&root)).property("delta.checkpointInterval", "2");
    let mut run = Run::start(&sink, ids(0..1).schema(), 1).await;
    for epoch in 1..=4 {
        run.epoch(epoch, &ids(0..1)).await;
    }
    assert!(root.path().join("table/_delta_log/_last_checkpoint").exists());
    assert_eq!(Run::start(&sink, ids(0..1).schema(), 2).await.committed.unwrap().epoch, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_pipeline_needs_another_name() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::append(path(&root));
    Run::start(&sink, ids(0..1).schema(), 1).await.epoch(1, &ids(0..1)).await;
    let other = Lineage { id: "other".into(), ..lineage(1) };
    let refused = Run::try_start(&sink, ids(0..1).schema(), other.clone()).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    let beside = Lineage { sink: "beside".into(), ..other };
    Run::try_start(&sink, ids(0..1).schema(), beside).await.unwrap().epoch(1, &ids(1..2)).await;
    assert_eq!(visible(&root).await, [0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_replaced_between_epochs_is_an_error() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::append(path(&root));
    let mut run = Run::start(&sink, ids(0..1).schema(), 1).await;
    run.epoch(1, &ids(0..1)).await;
    let (staged, _) = run.prepare(2, &ids(1..2)).await;
    fs::remove_dir_all(path(&root)).unwrap();
    assert_eq!(run.commit(2, staged.clone()).await.unwrap_err().kind(), ErrorKind::NotFound);
    fs::create_dir_all(path(&root)).unwrap();
    let url = Url::from_directory_path(path(&root)).unwrap();
    DeltaTable::try_from_url(url).await.unwrap().write(vec![ids(7..8)]).await.unwrap();
    assert_eq!(run.commit(2, staged.clone()).await.unwrap_err().kind(), ErrorKind::Conflict);
    let mut later = Run::start(&sink, ids(0..1).schema(), 2).await;
    assert_eq!(later.commit(2, staged).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(visible(&root).await, [7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn features_that_are_not_kept_are_named() {
    let root = TempDir::new().unwrap();
    let log = root.path().join("table/_delta_log");
    fs::create_dir_all(&log).unwrap();
    let schema = r#"{\"type\":\"struct\",\"fields\":[{\"name\":\"id\",\"type\":\"long\",\"nullable\":true,\"metadata\":{}}]}"#;
    let entry = format!(
        "{{\"protocol\":{{\"minReaderVersion\":1,\"minWriterVersion\":7,\"writerFeatures\":[\"rowTracking\",\"domainMetadata\"]}}}}\n\
         {{\"metaData\":{{\"id\":\"x\",\"format\":{{\"provider\":\"parquet\",\"options\":{{}}}},\"schemaString\":\"{schema}\",\
         \"partitionColumns\":[],\"configuration\":{{}},\"createdTime\":0}}}}\n"
    );
    fs::write(log.join("00000000000000000000.json"), entry).unwrap();
    let only_id = batch(vec![("id", Arc::new(Int64Array::from(vec![1])))]);
    let refused =
        Run::try_start(&DeltaSink::append(path(&root)), only_id.schema(), lineage(1)).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("rowTracking"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn overwriting_replaces_everything_in_one_version() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::new(path(&root), Mode::Overwrite);
    let mut run = Run::start(&sink, ids(0..1).schema(), 1).await;
    table(&root).await.write(vec![ids(100..102)]).await.unwrap();
    let before = table(&root).await.version().unwrap();
    let (mut staged, _) = run.prepare(1, &ids(0..2)).await;
    staged.extend(run.prepare(2, &ids(2..4)).await.0);
    run.commit(2, staged).await.unwrap();
    assert_eq!(visible(&root).await, [0, 1, 2, 3]);
    assert_eq!(table(&root).await.version().unwrap(), before + 1);
    run.commit(3, Vec::new()).await.unwrap();
    assert!(visible(&root).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_only_table_is_not_overwritten() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::append(path(&root)).property("delta.appendOnly", "true");
    Run::start(&sink, ids(0..1).schema(), 1).await.epoch(1, &ids(0..1)).await;
    let over = DeltaSink::overwrite(path(&root));
    let refused = Run::try_start(&over, ids(0..1).schema(), lineage(2)).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Config);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_grows_with_the_commit_if_it_may() {
    let root = TempDir::new().unwrap();
    Run::start(&DeltaSink::append(path(&root)), ids(0..1).schema(), 1).await.epoch(1, &ids(0..2)).await;
    let more = batch(vec![
        ("id", Arc::new(Int64Array::from(vec![2]))),
        ("more", Arc::new(Int64Array::from(vec![7]))),
    ]);
    let strict = DeltaSink::append(path(&root));
    let refused = Run::try_start(&strict, more.schema(), lineage(2)).await.err().unwrap();
    assert_eq!((refused.kind(), refused.context("column")), (ErrorKind::Schema, Some("more")));
    let merging = strict.schema_mode(SchemaMode::Merge);
    let mut run = Run::start(&merging, more.schema(), 2).await;
    let before = table(&root).await.version().unwrap();
    run.epoch(2, &more).await;
    run.epoch(3, &more).await;
    let table = table(&root).await;
    assert_eq!(table.version().unwrap(), before + 2);
    let schema = table.snapshot().unwrap().schema();
    assert_eq!(schema.field("more").unwrap().data_type(), &DataType::Primitive(PrimitiveType::Long));
    assert_eq!(visible(&root).await, [0, 1, 2, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_made_after_staging_stops_the_commit() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::append(path(&root));
    let mut run = Run::start(&sink, ids(0..1).schema(), 1).await;
    let (staged, _) = run.prepare(1, &ids(0..2)).await;
    table(&root).await.add_constraint().with_constraint("positive", "id > 0").await.unwrap();
    let refused = run.commit(1, staged).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(!refused.is_retryable());
    assert!(visible(&root).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_other_things_is_no_table() {
    let root = TempDir::new().unwrap();
    fs::create_dir_all(path(&root)).unwrap();
    fs::write(root.path().join("table/readme"), "x").unwrap();
    let sink = DeltaSink::append(path(&root));
    sink.health(&orbit_etl_core::Context::standalone("out").unwrap()).await.unwrap();
    let url = Url::from_directory_path(path(&root)).unwrap();
    assert!(DeltaTableBuilder::from_url(url).unwrap().load().await.is_err());
    let two = [
        orbit_etl_core::StreamInfo::new("a", ids(0..1).schema()),
        orbit_etl_core::StreamInfo::new("b", ids(0..1).schema()),
    ];
    let cx = orbit_etl_core::Context::standalone("out").unwrap();
    assert_eq!(sink.open(&cx, &two).await.err().unwrap().kind(), ErrorKind::Config);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_forgets_transactions_is_refused() {
    let property = "delta.setTransactionRetentionDuration";
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::append(path(&root)).property(property, "interval 7 days");
    let refused = Run::try_start(&sink, ids(0..1).schema(), lineage(1)).await.err().unwrap();
    assert_eq!((refused.kind(), refused.context("property")), (ErrorKind::Config, Some(property)));
    assert!(!root.path().join("table").exists());
    // Also one that others made, or changed since.
    let sink = DeltaSink::append(path(&root));
    Run::start(&sink, ids(0..1).schema(), 1).await.epoch(1, &ids(0..1)).await;
    let properties = [(property.to_owned(), "interval 7 days".to_owned())].into();
    table(&root).await.set_tbl_properties().with_properties(properties).await.unwrap();
    let refused = Run::try_start(&sink, ids(0..1).schema(), lineage(2)).await.err().unwrap();
    assert_eq!((refused.kind(), refused.context("property")), (ErrorKind::Config, Some(property)));
}

#[tokio::test(flavor = "multi_thread")]
async fn staged_files_that_others_removed_are_not_named() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::append(path(&root));
    let mut run = Run::start(&sink, ids(0..1).schema(), 1).await;
    let (staged, _) = run.prepare(1, &ids(0..3)).await;
    for file in fs::read_dir(run_folder(&root, 1)).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    let mut later = Run::start(&sink, ids(0..1).schema(), 2).await;
    let version = table(&root).await.version();
    let error = later.commit(1, staged).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
    assert_eq!(table(&root).await.version(), version);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_the_place_of_a_table_is_refused() {
    let root = TempDir::new().unwrap();
    fs::write(path(&root), "x").unwrap();
    for sink in [DeltaSink::append(path(&root)), DeltaSink::merge(path(&root), ["id"])] {
        let refused = Run::try_start(&sink, ids(0..1).schema(), lineage(1)).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Config, "{}", refused.report());
    }
}
