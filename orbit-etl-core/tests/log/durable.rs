//! The durable local store keeps the object store's contract.

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use orbit_etl_core::checkpoint::{DurableLocal, create_dir_durable, rename_durable, sync_dir, sync_file};

use super::faults::read;

async fn listed(store: &DurableLocal) -> Vec<String> {
    let mut names: Vec<String> =
        store.list(None).map_ok(|object| object.location.to_string()).try_collect().await.unwrap();
    names.sort();
    names
}

fn files(dir: &std::path::Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[tokio::test]
async fn objects_come_back_and_nothing_else_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let store = DurableLocal::create(dir.path()).unwrap();
    let path = Path::from("a/b/c");
    let put = store.put(&path, "one".into()).await.unwrap();
    assert_eq!(put.e_tag, store.head(&path).await.unwrap().e_tag);
    assert!(put.e_tag.is_some());
    store.put(&path, "two".into()).await.unwrap();
    assert_eq!(read(&store, "a/b/c").await, "two");
    let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let taken = store.put_opts(&path, "three".into(), create.clone()).await.unwrap_err();
    assert!(matches!(taken, object_store::Error::AlreadyExists { .. }), "{taken}");
    assert_eq!(read(&store, "a/b/c").await, "two");
    store.put_opts(&Path::from("a/b/d"), "four".into(), create).await.unwrap();
    assert_eq!(listed(&store).await, ["a/b/c", "a/b/d"]);
    assert_eq!(files(&dir.path().join("a/b")), 2, "no hidden file is left");
    assert_eq!(store.get_range(&path, 1..3).await.unwrap(), "wo");
}

#[tokio::test]
async fn copies_renames_and_deletions() {
    let dir = tempfile::tempdir().unwrap();
    let store = DurableLocal::create(dir.path()).unwrap();
    let (a, b, c) = (Path::from("a"), Path::from("x/b"), Path::from("y/c"));
    store.put(&a, "one".into()).await.unwrap();
    store.copy(&a, &b).await.unwrap();
    store.copy(&a, &b).await.unwrap();
    let create = CopyOptions { mode: CopyMode::Create, ..CopyOptions::default() };
    let taken = store.copy_opts(&a, &b, create).await.unwrap_err();
    assert!(matches!(taken, object_store::Error::AlreadyExists { .. }), "{taken}");
    store.rename(&a, &c).await.unwrap();
    assert_eq!(listed(&store).await, ["x/b", "y/c"]);
    let taken = store.rename_if_not_exists(&b, &c).await.unwrap_err();
    assert!(matches!(taken, object_store::Error::AlreadyExists { .. }), "{taken}");
    store.rename_if_not_exists(&b, &a).await.unwrap();
    assert_eq!(listed(&store).await, ["a", "y/c"]);
    assert_eq!(read(&store, "a").await, "one");
    store.delete(&c).await.unwrap();
    for missing in [
        store.delete(&c).await.unwrap_err(),
        store.copy(&c, &a).await.unwrap_err(),
        store.rename(&c, &a).await.unwrap_err(),
        store.get(&c).await.unwrap_err(),
    ] {
        assert!(matches!(missing, object_store::Error::NotFound { .. }), "{missing}");
    }
    assert_eq!(listed(&store).await, ["a"]);
}

#[tokio::test]
async fn parts_land_where_they_belong_and_appear_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = DurableLocal::create(dir.path()).unwrap();
    let path = Path::from("out/big");
    let mut upload = store.put_multipart(&path).await.unwrap();
    let parts: Vec<_> = (0..10_u8)
        .map(|i| upload.put_part(PutPayload::from(Bytes::from(vec![i; 1_000 + usize::from(i)]))))
        .collect();
    // The last part first.
    for part in parts.into_iter().rev() {
        part.await.unwrap();
    }
    assert!(listed(&store).await.is_empty());
    upload.complete().await.unwrap();
    let expected: Vec<u8> = (0..10_u8).flat_map(|i| vec![i; 1_000 + usize::from(i)]).collect();
    assert_eq!(read(&store, "out/big").await, expected);
    assert!(upload.complete().await.is_err());
    assert!(upload.put_part("late".into()).await.is_err());

    let mut aborted = store.put_multipart(&path).await.unwrap();
    aborted.put_part("x".into()).await.unwrap();
    aborted.abort().await.unwrap();
    let mut dropped = store.put_multipart(&path).await.unwrap();
    dropped.put_part("x".into()).await.unwrap();
    drop(dropped);
    assert_eq!(read(&store, "out/big").await, expected);
    assert_eq!(files(&dir.path().join("out")), 1, "no hidden file is left");
}

#[tokio::test]
async fn what_a_crash_left_is_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let store = DurableLocal::create(dir.path()).unwrap();
    let mut upload = store.put_multipart(&Path::from("name#with hash")).await.unwrap();
    upload.put_part("half".into()).await.unwrap();
    std::mem::forget(upload);
    assert_eq!(files(dir.path()), 1);
    assert!(listed(&store).await.is_empty());
    assert!(store.list_with_delimiter(None).await.unwrap().objects.is_empty());
}

#[tokio::test]
async fn of_many_creators_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let store = DurableLocal::create(dir.path()).unwrap();
    let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let creators = (0..16).map(|i| {
        let (store, create) = (store.clone(), create.clone());
        tokio::spawn(async move {
            let path = Path::from("deep/er/one");
            store.put_opts(&path, format!("{i}").into(), create).await.is_ok().then_some(i)
        })
    });
    let won: Vec<i32> =
        futures::future::join_all(creators).await.into_iter().filter_map(|done| done.unwrap()).collect();
    assert_eq!(won.len(), 1);
    assert_eq!(read(&store, "deep/er/one").await, won[0].to_string());
}

#[tokio::test]
async fn what_it_lacks_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = DurableLocal::create(dir.path()).unwrap();
    let update = PutMode::Update(object_store::UpdateVersion { e_tag: None, version: None });
    let options = PutOptions { mode: update, ..PutOptions::default() };
    let error = store.put_opts(&Path::from("a"), "one".into(), options).await.unwrap_err();
    assert!(matches!(error, object_store::Error::NotImplemented { .. }), "{error}");
}

#[test]
fn files_are_renamed_into_directories_that_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("x/y/to"));
    std::fs::write(&from, "one").unwrap();
    sync_file(&from).unwrap();
    sync_dir(dir.path()).unwrap();
    rename_durable(&from, &to).unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), b"one");
    assert!(!from.exists());
    assert_eq!(rename_durable(&from, &to).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert!(sync_file(dir.path().join("none")).is_err());
    create_dir_durable(dir.path().join("x/y")).unwrap();
    assert!(create_dir_durable(&to).is_err(), "a file has the name");
}
