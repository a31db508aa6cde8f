//! Tables and versions that can't be read.

use std::fs;

use chrono::TimeDelta;
use deltalake::operations::vacuum::VacuumMode;
use orbit_etl_connector_delta::{DeltaSink, DeltaSource};
use orbit_etl_core::{ErrorKind, Source};
use tempfile::TempDir;

use super::{all, context, events, splits};
use crate::sink::{Run, ids, path, table};

#[tokio::test(flavor = "multi_thread")]
async fn a_version_whose_files_were_vacuumed_is_not_found() {
    let root = TempDir::new().unwrap();
    let sink = DeltaSink::append(path(&root));
    let mut run = Run::start(&sink, ids(0..1).schema(), 1).await;
    run.epoch(1, &ids(0..3)).await;
    let old = table(&root).await.version().unwrap();
    Run::start(&DeltaSink::overwrite(path(&root)), ids(0..1).schema(), 2).await.epoch(2, &ids(3..4)).await;
    let vacuum = table(&root).await.vacuum().with_mode(VacuumMode::Lite);
    let vacuum = vacuum.with_retention_period(TimeDelta::zero()).with_enforce_retention_duration(false);
    assert_eq!(vacuum.await.unwrap().1.files_deleted.len(), 1);
    let source = DeltaSource::new(path(&root)).version(old);
    let (found, _) = splits(&source, None).await.unwrap();
    let error = events(&source, &found[0], None, all()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
    // What the newest version has is still there.
    let newest = DeltaSource::new(path(&root));
    let (found, _) = splits(&newest, None).await.unwrap();
    events(&newest, &found[0], None, all()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feature_that_can_not_be_read_is_named() {
    let root = TempDir::new().unwrap();
    let log = root.path().join("table/_delta_log");
    fs::create_dir_all(&log).unwrap();
    let schema = r#"{\"type\":\"struct\",\"fields\":[{\"name\":\"id\",\"type\":\"long\",\"nullable\":true,\"metadata\":{}}]}"#;
    let entry = format!(
        "{{\"protocol\":{{\"minReaderVersion\":3,\"minWriterVersion\":7,\"readerFeatures\":[\"fromTheFuture\"],\
         \"writerFeatures\":[\"fromTheFuture\"]}}}}\n\
         {{\"metaData\":{{\"id\":\"x\",\"format\":{{\"provider\":\"parquet\",\"options\":{{}}}},\"schemaString\":\"{schema}\",\
         \"partitionColumns\":[],\"configuration\":{{}},\"createdTime\":0}}}}\n"
    );
    fs::write(log.join("00000000000000000000.json"), entry).unwrap();
    let error = DeltaSource::new(path(&root)).streams(&context()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", error.report());
    assert!(error.report().contains("fromTheFuture"), "{}", error.report());
}
