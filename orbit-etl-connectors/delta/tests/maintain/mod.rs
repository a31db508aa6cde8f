//! Looking after a table.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use orbit_etl_connector_delta::{DeltaMaintenance, DeltaSink};
use orbit_etl_core::ErrorKind;
use tempfile::TempDir;

use crate::sink::{Run, ids, path, table, visible};

/// Gives all files below a folder the time of now: the file system's own clock may be some milliseconds
/// behind that of the log.
fn touch(folder: &Path) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            touch(&path);
        } else {
            fs::File::options().write(true).open(path).unwrap().set_modified(SystemTime::now()).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_become_large_ones_and_old_ones_go() {
    let root = TempDir::new().unwrap();
    let sink =
        DeltaSink::append(path(&root)).property("delta.deletedFileRetentionDuration", "interval 0 seconds");
    let mut run = Run::start(&sink, ids(0..1).schema(), 1).await;
    for epoch in 0..4 {
        run.epoch(epoch as u64 + 1, &ids(epoch..epoch + 1)).await;
    }
    let (pending, _) = run.prepare(5, &ids(4..5)).await;
    touch(&root.path().join("table/part-orbit"));
    let tending = DeltaMaintenance::new(path(&root));
    let done = tending.optimize().await.unwrap();
    assert_eq!((done.added, done.removed), (1, 4));
    let refused = tending.vacuum(Duration::ZERO).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{}", refused.report());
    assert!(refused.context("file").is_some_and(|file| file.starts_with("part-orbit/")));
    run.commit(5, pending).await.unwrap();
    assert_eq!(tending.vacuum(Duration::ZERO).await.unwrap(), 4);
    assert_eq!(visible(&root).await, [0, 1, 2, 3, 4]);
    let done = tending.z_order(["id", "name"]).await.unwrap();
    assert_eq!((done.added, done.removed), (1, 2));
    assert_eq!(visible(&root).await, [0, 1, 2, 3, 4]);
    assert_eq!(table(&root).await.snapshot().unwrap().log_data().num_files(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_may_be_read_are_kept() {
    let root = TempDir::new().unwrap();
    Run::start(&DeltaSink::append(path(&root)), ids(0..1).schema(), 1).await.epoch(1, &ids(0..1)).await;
    let tending = DeltaMaintenance::new(path(&root));
    assert_eq!(tending.vacuum(Duration::from_secs(3_600)).await.unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(tending.z_order(Vec::<String>::new()).await.unwrap_err().kind(), ErrorKind::Config);
    let nowhere = DeltaMaintenance::new(format!("{}x", path(&root)));
    assert_eq!(nowhere.optimize().await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_epoch_forbids_a_shorter_retention_only() {
    let root = TempDir::new().unwrap();
    let keep = "interval 0 seconds";
    let sink = DeltaSink::merge(path(&root), ["id"]).property("delta.deletedFileRetentionDuration", keep);
    let mut run = Run::start(&sink, ids(0..1).schema(), 1).await;
    run.epoch(1, &ids(0..2)).await;
    let (pending, _) = run.prepare(2, &ids(1..3)).await;
    touch(&root.path().join("table/_orbit"));
    let tending = DeltaMaintenance::new(path(&root));
    assert_eq!(tending.vacuum(Duration::from_secs(3_600)).await.unwrap(), 0);
    assert_eq!(tending.vacuum(Duration::ZERO).await.unwrap_err().kind(), ErrorKind::Conflict);
    // Another client's versions commit nothing of it.
    table(&root).await.write(vec![ids(7..8)]).await.unwrap();
    assert_eq!(tending.vacuum(Duration::ZERO).await.unwrap_err().kind(), ErrorKind::Conflict);
    run.commit(2, pending).await.unwrap();
    tending.vacuum(Duration::ZERO).await.unwrap();
    assert_eq!(visible(&root).await, [0, 1, 2, 7]);
}
