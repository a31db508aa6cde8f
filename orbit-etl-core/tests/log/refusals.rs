//! What must never be taken for an older or an empty log.

use object_store::ObjectStoreExt;
use object_store::path::Path;
use orbit_etl_core::checkpoint::{Log, is_undecided};
use orbit_etl_core::{CheckpointRecord, Error, ErrorKind};

use super::faults::{Fault, On, read};
use super::{checkpoint, groups, healthy, log_on, state_of, stores};

const NEWEST: &str = "log/00000000000000000002.json";

/// A log with a claim and a checkpoint, the newest entry changed by `change`; the error of the claim
/// and of the peek that come next.
async fn after(change: impl Fn(Vec<u8>) -> Vec<u8>) -> Error {
    let (store, _dir) = stores().remove(0);
    let mut claim = healthy(&store).claim("a", "p").await.unwrap();
    let state = state_of(&claim, 1, 3);
    checkpoint(&mut claim, state).await.unwrap();
    let changed = change(read(&store.inner, NEWEST).await.to_vec());
    store.inner.put(&Path::from(NEWEST), changed.into()).await.unwrap();
    let error = log_on(&store).claim("b", "p").await.unwrap_err();
    assert!(store.puts.lock().unwrap().is_empty(), "a refused claim writes nothing");
    assert_eq!(error.context("entry"), Some(NEWEST), "{error}");
    assert!(!error.is_retryable() && !is_undecided(&error));
    assert!(error.to_string().contains("; "), "a remedy: {error}");
    let peeked = log_on(&store).peek().await.unwrap_err();
    assert_eq!(peeked.kind(), error.kind());
    error
}

fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = std::str::from_utf8(bytes).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    text.replacen(from, to, 1).into_bytes()
}

#[tokio::test(start_paused = true)]
async fn a_damaged_newest_entry_is_an_error() {
    assert_eq!(after(|_| Vec::new()).await.kind(), ErrorKind::Data);
    assert_eq!(after(|_| b"no json\n".to_vec()).await.kind(), ErrorKind::Data);
    assert_eq!(after(|bytes| vec![0; bytes.len()]).await.kind(), ErrorKind::Data);
    assert_eq!(after(|mut bytes| bytes.split_off(10)).await.kind(), ErrorKind::Data);
    assert_eq!(after(|bytes| replaced(&bytes, "\"epoch\":1", "\"epoch\":0")).await.kind(), ErrorKind::Data);
    assert_eq!(
        after(|bytes| replaced(&bytes, "\"run\":\"a\"", "\"run\":\"b\"")).await.kind(),
        ErrorKind::Data
    );
    assert_eq!(after(|bytes| replaced(&bytes, "\"number\":2", "\"number\":1")).await.kind(), ErrorKind::Data);
}

#[tokio::test(start_paused = true)]
async fn every_truncation_is_noticed() {
    let (store, _dir) = stores().remove(0);
    healthy(&store).claim("a", "p").await.unwrap();
    let path = "log/00000000000000000001.json";
    let whole = read(&store.inner, path).await;
    for length in 0..whole.len() {
        store.inner.put(&Path::from(path), whole.slice(..length).into()).await.unwrap();
        assert_eq!(healthy(&store).peek().await.unwrap_err().kind(), ErrorKind::Data, "{length}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_under_another_number_is_an_error() {
    let (store, _dir) = stores().remove(0);
    healthy(&store).claim("a", "p").await.unwrap();
    let entry = read(&store.inner, "log/00000000000000000001.json").await;
    store.inner.put(&Path::from("log/00000000000000000005.json"), entry.into()).await.unwrap();
    assert_eq!(log_on(&store).claim("b", "p").await.unwrap_err().kind(), ErrorKind::Data);
}

#[tokio::test(start_paused = true)]
async fn another_version_is_refused_by_name() {
    let error = after(|bytes| replaced(&bytes, "{\"version\":1", "{\"version\":2,\"new\":true")).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.context("version"), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn a_record_of_another_version_is_refused_by_name() {
    let log = Log::memory();
    let mut claim = log.claim("a", "p").await.unwrap();
    let record = claim.encode(&state_of(&claim, 1, 3)).await.unwrap();
    let json = replaced(&record.json, "{\"version\":1", "{\"version\":7");
    let newer = CheckpointRecord { json: json.into(), ..record.clone() };
    for error in [claim.decode(&newer).await.unwrap_err(), claim.adopt(&newer).await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.context("version"), Some("7"));
    }
    let json = replaced(&record.json, "\"complete\":false", "\"complete\":false,\"unknown\":1");
    let odd = CheckpointRecord { json: json.into(), ..record.clone() };
    assert_eq!(claim.decode(&odd).await.unwrap_err().kind(), ErrorKind::Data);
    let cut = CheckpointRecord { json: record.json.slice(..40), ..record };
    assert_eq!(claim.adopt(&cut).await.unwrap_err().kind(), ErrorKind::Data);
    assert_eq!(claim.state().epoch, 0, "a refused record changes nothing");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_older_entry_disturbs_nobody() {
    let (store, _dir) = stores().remove(0);
    let log = healthy(&store);
    let mut claim = log.claim("a", "p").await.unwrap();
    store.inner.put(&Path::from("log/00000000000000000001.json"), "torn".into()).await.unwrap();
    for epoch in 1..=10 {
        let state = state_of(&claim, epoch, 3);
        checkpoint(&mut claim, state).await.unwrap();
    }
    let mut claim = log.claim("b", "p").await.unwrap();
    assert_eq!(claim.state().epoch, 10);
    claim.collect().await.unwrap();
    assert!(store.inner.head(&Path::from("log/00000000000000000001.json")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn other_files_beside_the_entries_are_left_alone() {
    let (store, _dir) = stores().remove(0);
    for name in ["log/notes.txt", "log/99.json", "log/0000000000000000000x.json", "log/blobs/notes"] {
        store.inner.put(&Path::from(name), "mine".into()).await.unwrap();
    }
    let mut claim = log_on(&store).claim("a", "p").await.unwrap();
    assert_eq!(claim.number(), 1);
    claim.collect().await.unwrap();
    for name in ["log/notes.txt", "log/99.json", "log/blobs/notes"] {
        store.inner.head(&Path::from(name)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn another_pipelines_log_is_refused() {
    for (store, _dir) in stores() {
        healthy(&store).claim("a", "orders").await.unwrap();
        let error = log_on(&store).claim("b", "customers").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert_eq!(error.context("its pipeline"), Some("orders"));
        assert!(store.puts.lock().unwrap().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_of_another_lineage_is_refused() {
    let mut other = Log::memory().claim("a", "p").await.unwrap();
    let foreign = other.encode(&state_of(&other, 9, 3)).await.unwrap();
    let mut claim = Log::memory().claim("a", "p").await.unwrap();
    assert_eq!(claim.adopt(&foreign).await.unwrap_err().kind(), ErrorKind::Config);
    let state = state_of(&other, 1, 3);
    assert_eq!(claim.encode(&state).await.unwrap_err().kind(), ErrorKind::Internal);
}

#[tokio::test(start_paused = true)]
async fn a_missing_or_damaged_blob_is_an_error_that_names_it() {
    for damage in ["missing", "damaged"] {
        let (store, _dir) = stores().remove(0);
        let mut claim = log_on(&store).claim("a", "p").await.unwrap();
        let mut state = state_of(&claim, 1, 3);
        state.operators.insert("window".into(), groups(4, 100_000));
        checkpoint(&mut claim, state).await.unwrap();
        let blob = store.blobs_put().pop_first().unwrap();
        if damage == "missing" {
            store.inner.delete(&Path::from(blob.as_str())).await.unwrap();
        } else {
            let mut bytes = read(&store.inner, &blob).await.to_vec();
            bytes[77] ^= 1;
            store.inner.put(&Path::from(blob.as_str()), bytes.into()).await.unwrap();
        }
        for error in
            [log_on(&store).peek().await.unwrap_err(), log_on(&store).claim("b", "p").await.unwrap_err()]
        {
            assert_eq!(error.kind(), ErrorKind::Data);
            assert!(error.message().contains(damage), "{error}");
            assert!(blob.ends_with(error.context("blob").unwrap()), "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cant_create_if_absent_is_refused() {
    let (store, _dir) = stores().remove(0);
    let lacks = object_store::Error::NotImplemented { operation: "create".into(), implementer: "it".into() };
    store.plan(On::Put, Fault::Refused(lacks));
    let error = log_on(&store).claim("a", "p").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(!is_undecided(&error));
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_told_as_such() {
    let (store, _dir) = stores().remove(0);
    let mut claim = log_on(&store).claim("a", "p").await.unwrap();
    let mut state = state_of(&claim, 1, 3);
    state.operators.insert("window".into(), groups(4, 100_000));
    let full = || {
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull).into();
        object_store::Error::Generic { store: "disk", source }
    };
    (0..100).for_each(|_| store.plan(On::Put, Fault::Refused(full())));
    let error = claim.encode(&state).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Resources);
    assert!(!is_undecided(&error), "no checkpoint was sent yet");
}

#[tokio::test]
async fn a_directory_that_cant_be_made_is_an_error_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Log::local(file.join("state")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.context("directory").unwrap().contains("state"));
}
