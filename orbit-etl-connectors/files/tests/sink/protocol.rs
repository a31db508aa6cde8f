//! Claim, prepare, commit and discard.

use std::fs;

use orbit_etl_connector_files::{FilesSink, Mode};
use orbit_etl_core::{
    CommitMode, Connector, Discard, ErrorKind, LaneId, Publication, Sink, StreamId, StreamInfo,
};

use super::*;

fn target() -> (tempfile::TempDir, std::path::PathBuf, FilesSink) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("a/target");
    let sink = FilesSink::parquet(root.to_str().unwrap());
    (dir, root, sink)
}

#[tokio::test]
async fn opening_and_health_have_no_effect() {
    let (dir, _, sink) = target();
    let inputs = [StreamInfo::new("rows", ids([1]).schema())];
    sink.open(&context(), &inputs).await.unwrap();
    sink.health(&context()).await.unwrap();
    assert!(files(dir.path()).is_empty());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(sink.commit_mode(), CommitMode::Staged);
    assert_eq!(sink.publication(), Publication::EachEpoch);
    assert_eq!(sink.mode(Mode::Overwrite).publication(), Publication::AtEnd);
}

#[tokio::test]
async fn nothing_shows_before_the_commit_and_all_after_it() {
    let (_dir, root, sink) = target();
    let batch = ids(0..100);
    let mut run = Run::start(&sink, &batch.schema(), &lineage(1)).await;
    assert!(run.committed.is_none());
    run.write(&batch).await;
    let staged_now = run.prepare(1).await;
    assert_eq!(staged_now.len(), 1);
    assert!(visible(&root).is_empty());
    assert!(staged(&root).iter().all(|name| !name.ends_with("parquet")));
    // Another epoch begins while this one waits.
    run.write(&ids(100..110)).await;
    run.commit(1, staged_now.clone()).await.unwrap();
    assert_eq!(visible_ids(&root), (0..100).collect::<Vec<_>>());
    run.commit(1, staged_now).await.unwrap();
    assert_eq!(visible_ids(&root), (0..100).collect::<Vec<_>>());
    let second = run.prepare(2).await;
    run.commit(2, second).await.unwrap();
    assert_eq!(visible_ids(&root), (0..110).collect::<Vec<_>>());
    assert!(staged(&root).is_empty());
}

#[tokio::test]
async fn a_manifest_names_the_files_and_the_claim_reads_its_epoch() {
    let (_dir, root, sink) = target();
    let batch = ids(0..10);
    let mut run = Run::start(&sink, &batch.schema(), &lineage(1)).await;
    run.epoch(7, &batch).await;
    let empty = run.prepare(8).await;
    assert!(empty.is_empty());
    run.commit(8, empty).await.unwrap();

    let (file, size) = visible(&root).pop_first().unwrap();
    let manifest = json(&root.join("_orbit/manifests/out/0192-lineage/000000000007.manifest"));
    assert_eq!(manifest["files"][0], serde_json::json!({ "path": file, "rows": 10, "bytes": size }));
    assert_eq!((&manifest["epoch"], &manifest["mode"]), (&7.into(), &"append".into()));

    let again = Run::start(&sink, &batch.schema(), &lineage(2)).await;
    let committed = again.committed.unwrap();
    assert_eq!((committed.lineage.as_str(), committed.epoch), ("0192-lineage", 8));
}

#[tokio::test]
async fn a_commit_is_taken_up_wherever_it_was_left() {
    let batch = ids(0..50);
    for moved in 0..=3 {
        let (_dir, root, sink) = target();
        let sink = sink.partition_by(["name"]);
        let mut run = Run::start(&sink, &batch.schema(), &lineage(1)).await;
        run.write(&batch.slice(0, 3)).await;
        let staged_now = run.prepare(1).await;
        assert_eq!(staged_now.len(), 3);
        drop(run);
        for committable in &staged_now[..moved] {
            let at = |key: &str| root.join(committable.0[key].as_str().unwrap());
            fs::create_dir_all(at("path").parent().unwrap()).unwrap();
            fs::rename(at("staged"), at("path")).unwrap();
        }
        let mut run = Run::start(&sink, &batch.schema(), &lineage(2)).await;
        assert_eq!(run.committed.as_ref().unwrap().epoch, 0);
        run.commit(1, staged_now.clone()).await.unwrap();
        run.session.discard(Discard::Older { claim: 2, keep: Vec::new() }).await.unwrap();
        assert_eq!(visible_ids(&root), vec![0, 1, 2]);
        // Epochs that the target has are skipped, even with committables that are long gone.
        let mut run = Run::start(&sink, &batch.schema(), &lineage(3)).await;
        run.commit(1, staged_now).await.unwrap();
        assert_eq!(visible_ids(&root), vec![0, 1, 2]);
    }
}

#[tokio::test]
async fn a_lost_staged_file_is_an_error_that_publishes_no_manifest() {
    let (_dir, root, sink) = target();
    let batch = ids(0..5);
    let mut run = Run::start(&sink, &batch.schema(), &lineage(1)).await;
    run.write(&batch).await;
    let staged_now = run.prepare(1).await;
    fs::remove_file(root.join(staged(&root).pop().unwrap())).unwrap();
    let error = run.commit(1, staged_now).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(!root.join("_orbit/manifests/out/0192-lineage/000000000001.manifest").exists());
}

#[tokio::test]
async fn a_strangers_file_is_not_overwritten() {
    let (_dir, root, sink) = target();
    let batch = ids(0..5);
    let mut run = Run::start(&sink, &batch.schema(), &lineage(1)).await;
    run.write(&batch).await;
    let staged_now = run.prepare(1).await;
    let path = root.join(staged_now[0].0["path"].as_str().unwrap());
    fs::write(&path, "mine").unwrap();
    let error = run.commit(1, staged_now.clone()).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Conflict, false));
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    fs::remove_file(&path).unwrap();
    run.commit(1, staged_now).await.unwrap();
    assert_eq!(visible_ids(&root), (0..5).collect::<Vec<_>>());
}

#[cfg(unix)]
#[tokio::test]
async fn a_power_cut_can_leave_both_names_of_a_file() {
    let batch = ids(0..50);
    for twice in 0..=2 {
        let (_dir, root, sink) = target();
        let sink = sink.partition_by(["name"]);
        let mut run = Run::start(&sink, &batch.schema(), &lineage(1)).await;
        run.write(&batch.slice(0, 2)).await;
        let staged_now = run.prepare(1).await;
        drop(run);
        for committable in &staged_now[..twice] {
            let at = |key: &str| root.join(committable.0[key].as_str().unwrap());
            fs::create_dir_all(at("path").parent().unwrap()).unwrap();
            fs::hard_link(at("staged"), at("path")).unwrap();
        }
        let mut run = Run::start(&sink, &batch.schema(), &lineage(2)).await;
        run.commit(1, staged_now.clone()).await.unwrap();
        assert_eq!(visible_ids(&root), [0, 1]);
        assert!(staged(&root).is_empty(), "{:?}", staged(&root));
        // Once it is committed, a name that comes back goes with the older runs' staged files.
        let at = |key: &str| root.join(staged_now[0].0[key].as_str().unwrap());
        fs::hard_link(at("path"), at("staged")).unwrap();
        let mut run = Run::start(&sink, &batch.schema(), &lineage(3)).await;
        run.session.discard(Discard::Older { claim: 3, keep: Vec::new() }).await.unwrap();
        assert_eq!(visible_ids(&root), [0, 1]);
        assert!(staged(&root).is_empty());
    }
}

#[tokio::test]
async fn an_epoch_is_discarded_without_the_one_before() {
    let (_dir, root, sink) = target();
    let batch = ids(0..5);
    let mut run = Run::start(&sink, &batch.schema(), &lineage(4)).await;
    let mut other = run.session.writer(LaneId(1)).await.unwrap();
    run.write(&batch).await;
    let first = run.prepare(1).await;
    run.write(&ids(5..9)).await;
    run.prepare(2).await;
    other.write(StreamId(0), ids(20..25)).await.unwrap();
    assert_eq!(staged(&root).len(), 3);

    run.session.discard(Discard::Epoch { claim: 4, epoch: 2 }).await.unwrap();
    run.session.discard(Discard::Epoch { claim: 4, epoch: 2 }).await.unwrap();
    assert_eq!(staged(&root).len(), 1);
    run.commit(1, first).await.unwrap();
    assert_eq!(visible_ids(&root), (0..5).collect::<Vec<_>>());
}

#[tokio::test]
async fn older_runs_leave_only_what_is_kept() {
    let (_dir, root, sink) = target();
    let batch = ids(0..5);
    let mut old = Run::start(&sink, &batch.schema(), &lineage(1)).await;
    old.write(&batch).await;
    let pending = old.prepare(1).await;
    old.write(&ids(5..9)).await;
    old.prepare(2).await;
    // A second sink of the same pipeline, whose claims count alike.
    let side = Lineage { sink: "side".into(), ..lineage(1) };
    let mut side_run = Run::start(&sink, &batch.schema(), &side).await;
    side_run.write(&ids(90..91)).await;
    side_run.prepare(1).await;

    let mut new = Run::start(&sink, &batch.schema(), &lineage(2)).await;
    new.write(&ids(50..51)).await;
    assert_eq!(staged(&root).len(), 4);
    new.session.discard(Discard::Older { claim: 2, keep: pending.clone() }).await.unwrap();
    assert_eq!(staged(&root).len(), 3);
    new.commit(1, pending).await.unwrap();
    let own = new.prepare(2).await;
    new.commit(2, own).await.unwrap();
    assert_eq!(visible_ids(&root), vec![0, 1, 2, 3, 4, 50]);
    assert_eq!(staged(&root).len(), 1);
}

#[tokio::test]
async fn a_lower_claim_is_fenced() {
    let (_dir, root, sink) = target();
    let batch = ids(0..5);
    let mut old = Run::start(&sink, &batch.schema(), &lineage(1)).await;
    old.write(&batch).await;
    let late = old.prepare(1).await;
    Run::start(&sink, &batch.schema(), &lineage(2)).await;
    assert_eq!(old.commit(1, late).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert!(visible(&root).is_empty());
    let mut third = sink.open(&context(), &[StreamInfo::new("rows", batch.schema())]).await.unwrap();
    assert_eq!(third.claim(&lineage(1)).await.unwrap_err().kind(), ErrorKind::Fenced);
}

#[tokio::test]
async fn another_pipeline_is_reported_where_it_matters() {
    let (_dir, root, sink) = target();
    let batch = ids(0..5);
    Run::start(&sink, &batch.schema(), &lineage(1)).await.epoch(3, &batch).await;

    let inputs = [StreamInfo::new("rows", batch.schema())];
    let claim = async |sink: &FilesSink, id: &str, name: &str| {
        let lineage = Lineage { id: id.into(), sink: name.into(), ..lineage(1) };
        sink.open(&context(), &inputs).await.unwrap().claim(&lineage).await
    };
    let same_name = claim(&sink, "other", "out").await.unwrap().unwrap();
    assert_eq!((same_name.lineage.as_str(), same_name.epoch), ("0192-lineage", 3));
    assert!(claim(&sink, "other", "elsewhere").await.unwrap().is_none());
    let overwriting = sink.clone().mode(Mode::Overwrite);
    let any_name = claim(&overwriting, "third", "elsewhere").await.unwrap().unwrap();
    assert_eq!(any_name.lineage, "0192-lineage");
    let renamed = claim(&overwriting, "0192-lineage", "renamed").await.unwrap_err();
    assert_eq!(renamed.kind(), ErrorKind::Config);
    assert_eq!(visible_ids(&root).len(), 5);
}

#[tokio::test]
async fn overwriting_replaces_exactly_what_was_published_before() {
    let (_dir, root, sink) = target();
    let sink = sink.mode(Mode::Overwrite).partition_by(["name"]);
    let batch = ids(0..3);
    let mut run = Run::start(&sink, &batch.schema(), &lineage(1)).await;
    run.epoch(1, &batch).await;
    fs::write(root.join("notes.parquet"), "a stranger's").unwrap();

    // Two epochs of the next generation, committed together.
    run.generation = 2;
    run.write(&ids(2..4)).await;
    let mut staged_now = run.prepare(2).await;
    run.write(&ids(4..6)).await;
    staged_now.extend(run.prepare(3).await);
    fs::rename(root.join("notes.parquet"), root.join("_notes")).unwrap();
    assert_eq!(visible_ids(&root), vec![0, 1, 2]);
    run.commit(3, staged_now.clone()).await.unwrap();
    assert_eq!(visible_ids(&root), vec![2, 3, 4, 5]);
    assert!(root.join("_notes").exists());
    let manifests = || files(&root).into_keys().filter(|f| f.contains("manifests")).collect::<Vec<_>>();
    assert_eq!(manifests(), ["_orbit/manifests/out/0192-lineage/000000000003.manifest"]);
    run.commit(3, staged_now).await.unwrap();
    assert_eq!(visible_ids(&root), vec![2, 3, 4, 5]);
    // A generation without rows leaves nothing.
    run.generation = 3;
    run.commit(4, Vec::new()).await.unwrap();
    assert!(visible_ids(&root).is_empty());
}

#[tokio::test]
async fn a_removal_that_was_cut_short_is_finished() {
    for by_commit in [true, false] {
        let (_dir, root, sink) = target();
        let batch = ids(0..3);
        Run::start(&sink, &batch.schema(), &lineage(1)).await.epoch(1, &batch).await;
        let old_file = visible(&root).pop_first().unwrap().0;
        let old_manifest = root.join("_orbit/manifests/out/0192-lineage/000000000001.manifest");
        let kept = (fs::read(root.join(&old_file)).unwrap(), fs::read(&old_manifest).unwrap());

        let sink = sink.mode(Mode::Overwrite);
        let mut run = Run::start(&sink, &batch.schema(), &lineage(2)).await;
        run.generation = 2;
        run.epoch(2, &ids(10..12)).await;
        assert_eq!(visible_ids(&root), vec![10, 11]);
        // As if the process had died right after the new manifest.
        fs::write(root.join(&old_file), kept.0).unwrap();
        fs::write(&old_manifest, kept.1).unwrap();

        let mut run = Run::start(&sink, &batch.schema(), &lineage(3)).await;
        assert_eq!(run.committed.as_ref().unwrap().epoch, 2);
        if by_commit {
            run.commit(2, Vec::new()).await.unwrap();
        } else {
            run.session.discard(Discard::Older { claim: 3, keep: Vec::new() }).await.unwrap();
        }
        assert_eq!(visible_ids(&root), vec![10, 11]);
        assert!(!old_manifest.exists());
    }
}

#[tokio::test]
async fn a_sink_that_is_told_to_overwrite_removes_nothing_before_its_generation_ends() {
    let (_dir, root, sink) = target();
    let batch = ids(0..3);
    let mut run = Run::start(&sink, &batch.schema(), &lineage(1)).await;
    run.epoch(1, &batch).await;
    run.epoch(2, &ids(3..5)).await;

    let sink = sink.mode(Mode::Overwrite);
    let mut run = Run::start(&sink, &batch.schema(), &lineage(2)).await;
    run.commit(2, Vec::new()).await.unwrap();
    run.session.discard(Discard::Older { claim: 2, keep: Vec::new() }).await.unwrap();
    assert_eq!(visible_ids(&root), vec![0, 1, 2, 3, 4]);
    // The rest of the same generation joins what is there.
    run.epoch(3, &ids(5..6)).await;
    assert_eq!(visible_ids(&root), vec![0, 1, 2, 3, 4, 5]);
    run.generation = 2;
    run.epoch(4, &ids(10..11)).await;
    assert_eq!(visible_ids(&root), vec![10]);
}

#[tokio::test]
async fn a_manifest_that_points_out_of_the_target_is_refused() {
    let (dir, root, sink) = target();
    let batch = ids(0..3);
    let sink = sink.mode(Mode::Overwrite);
    let mut run = Run::start(&sink, &batch.schema(), &lineage(1)).await;
    run.epoch(1, &batch).await;
    let precious = dir.path().join("a/precious");
    fs::write(&precious, "x").unwrap();
    let path = root.join("_orbit/manifests/out/0192-lineage/000000000001.manifest");
    let mut manifest = json(&path);
    manifest["files"][0]["path"] = "../precious".into();
    fs::write(&path, manifest.to_string()).unwrap();
    run.generation = 2;
    run.write(&batch).await;
    let staged_now = run.prepare(2).await;
    assert_eq!(run.commit(2, staged_now).await.unwrap_err().kind(), ErrorKind::Data);
    assert!(precious.exists());
}

#[tokio::test]
async fn streams_get_folders_of_their_own_and_one_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let inputs = [StreamInfo::new("a", ids([1]).schema()), StreamInfo::new("b/c", ids([1]).schema())];
    let plain = FilesSink::parquet(root.to_str().unwrap());
    let error = plain.open(&context(), &inputs).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);

    let sink = FilesSink::parquet(format!("{}/raw-{{stream}}/", root.display()));
    let mut session = sink.open(&context(), &inputs).await.unwrap();
    session.claim(&lineage(1)).await.unwrap();
    let mut writer = session.writer(LaneId(0)).await.unwrap();
    writer.write(StreamId(0), ids(0..3)).await.unwrap();
    writer.write(StreamId(1), ids(3..5)).await.unwrap();
    let prepared = writer.prepare(1).await.unwrap();
    session.commit(1, &checkpoint(1, 1), prepared.committables).await.unwrap();
    assert_eq!(visible_ids(&root.join("raw-a")), vec![0, 1, 2]);
    assert_eq!(visible_ids(&root.join("raw-b%2Fc")), vec![3, 4]);
    let manifest = json(&root.join("_orbit/manifests/out/0192-lineage/000000000001.manifest"));
    assert_eq!(manifest["rows"], 5);
}
