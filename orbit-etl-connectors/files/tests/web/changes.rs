//! Files that are replaced while they are read.

use futures::StreamExt;
use orbit_etl_connector_files::{Changed, FilesSource};
use orbit_etl_core::{Error, ErrorKind, ScanRequest, Source, SourceEvent, StreamId};

use super::formats::numbers;
use super::server::{GOOD, Manners, Server};
use crate::source::{context, read_split, splits};

/// Rows until the end of the split, and how it ended.
async fn read_on(
    mut events: futures::stream::BoxStream<'static, orbit_etl_core::Result<SourceEvent>>,
) -> (usize, Result<(), Error>) {
    let mut rows = 0;
    while let Some(event) = events.next().await {
        match event {
            Ok(SourceEvent::Batch { batch, .. }) => rows += batch.num_rows(),
            Ok(SourceEvent::Finished) => {
                assert!(events.next().await.is_none(), "nothing comes after the end");
                return (rows, Ok(()));
            }
            Ok(_) => {}
            Err(error) => return (rows, Err(error)),
        }
    }
    panic!("the stream broke off");
}

#[tokio::test]
async fn a_file_that_is_replaced_in_the_middle_is_noticed() {
    let (old, old_rows) = numbers(13 << 20, 40);
    let (same_size, _) = numbers(13 << 20, 40);
    let same_size = same_size.replacen("id", "no", 1);
    let (shorter, shorter_rows) = numbers(5 << 20, 41);
    let plain = Manners { tags: false, conditions: false, ..GOOD };
    for (manners, new, new_rows) in [
        (GOOD, &shorter, shorter_rows),
        // Nothing but the tags of the answers says so.
        (Manners { conditions: false, ..GOOD }, &shorter, shorter_rows),
        (Manners { conditions: false, ..GOOD }, &same_size, old_rows),
        // Nothing but the size does, and that is told by an answer of 416 if the file got shorter.
        (plain, &shorter, shorter_rows),
    ] {
        for changed in [Changed::Error, Changed::Reload] {
            let new = if new.starts_with("no") { format!("\n{}", &new[1..]) } else { new.clone() };
            let server = Server::start(manners, old.clone());
            let source = FilesSource::csv(server.url("a.csv")).changed(changed);
            let cx = context();
            source.streams(&cx).await.unwrap();
            let (mut listed, position) = splits(&source, None).await.unwrap();
            let split = listed.remove(0);
            let scan = ScanRequest::all(StreamId(0), 1_000);
            // The first range is of the old version.
            server.replace_after(1, new.clone());
            let events = source.open(&cx, &split, None, std::slice::from_ref(&scan)).await.unwrap();
            let (rows, ended) = read_on(events).await;
            assert!(rows > 0 && rows < old_rows, "{manners:?}: {rows} rows");
            match changed {
                Changed::Error => {
                    let error = ended.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Conflict, "{manners:?}: {}", error.report());
                    assert_eq!(error.context("file"), Some(server.url("a.csv").as_str()));
                    assert!(!error.is_retryable());
                    let error = splits(&source, position.as_ref()).await.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
                }
                Changed::Reload => {
                    ended.unwrap();
                    // A restart opens the old split again, and lists the new one.
                    let again = read_split(&source, &cx, &split, None, &scan).await.unwrap();
                    assert_eq!(again.rows(), 0);
                    let (listed, position) = splits(&source, position.as_ref()).await.unwrap();
                    assert_eq!(listed.len(), 1);
                    if !new.starts_with('\n') {
                        let read = read_split(&source, &cx, &listed[0], None, &scan).await.unwrap();
                        assert_eq!(read.rows(), new_rows);
                    }
                    assert!(splits(&source, position.as_ref()).await.unwrap().0.is_empty());
                }
            }
        }
    }
}
