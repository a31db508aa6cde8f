//! Records that are too long to be held.

use std::fs;

use arrow::datatypes::DataType;
use futures::TryStreamExt as _;
use orbit_etl_connector_files::FilesSource;
use orbit_etl_core::{ErrorKind, ScanRequest, Source as _, SourceEvent, StreamId};
use tempfile::tempdir;

use super::exact::one_column;
use super::{assert_exact, context, read, read_with, splits};

#[tokio::test]
async fn records_that_are_too_long() {
    const MOST: usize = 100_000;
    let dir = tempdir().unwrap();
    let long = "x".repeat(3 << 20);
    let lines = "\n".repeat(1_000);
    for format in ["csv", "json"] {
        let path = dir.path().join(format!("a.{format}"));
        let quoted = |i: usize, text: &str| match format {
            "csv" => format!("{i},\"{text}\"\n"),
            _ => format!("{{\"i\": {i}, \"v\": \"{text}\"}}\n"),
        };
        let mut text = if format == "csv" { "i,v\n".to_string() } else { String::new() };
        let mut places = Vec::new();
        for i in 0..40 {
            let value = match i {
                7 => long.clone(),
                20 => "y".repeat(MOST + 1),
                // Line breaks in quotes belong to the record.
                30 if format == "csv" => format!("{long},{lines}\"\""),
                _ => "fine".into(),
            };
            if value.len() > MOST {
                places.push((text.len(), 1 + text.matches('\n').count()));
            }
            text.push_str(&quoted(i, &value));
        }
        fs::write(&path, &text).unwrap();
        for size in [None, Some(1 << 20)] {
            let source = FilesSource::new(path.to_str().unwrap())
                .schema(one_column(&DataType::Utf8))
                .split_size(size)
                .max_record(MOST);
            for rows in [1_000, 3] {
                let read = read_with(&source, &ScanRequest::all(StreamId(0), rows)).await.unwrap();
                let bad = places.len();
                assert_eq!((read.rows(), read.rejects.len()), (40 - bad, bad), "{format} {rows}");
                for (reject, (byte, line)) in read.rejects.iter().zip(&places) {
                    assert_eq!(reject.kind, ErrorKind::Data);
                    assert!(reject.message.starts_with("the record is longer than 100000 bytes"));
                    assert!(reject.message.contains("`max_record`") && reject.message.contains("65536"));
                    let place = reject.origin.place.as_ref().unwrap();
                    assert!(place.ends_with(&format!("byte {byte}, line {line}")), "{place} {byte} {line}");
                }
                assert!(read.raw().iter().all(|raw| raw.len() == 65_536));
            }
            assert_exact(&source, 5).await;
        }
    }
}

#[tokio::test]
async fn a_quote_that_is_never_closed_takes_the_rest() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.csv");
    let mut text = "i,v\n1,a\n2,\"open".to_string();
    for i in 3..400_000 {
        text.push_str(&format!("\n{i},b"));
    }
    fs::write(&path, &text).unwrap();
    let other = dir.path().join("b.csv");
    fs::write(&other, "i,v\n9,z\n").unwrap();
    let source =
        FilesSource::csv(dir.path().to_str().unwrap()).schema(one_column(&DataType::Utf8)).max_record(10_000);
    let read = read(&source).await.unwrap();
    assert_eq!((read.rows(), read.rejects.len()), (2, 1));
    assert_eq!(read.raw()[0].len(), 10_000);
    assert!(read.rejects[0].origin.place.as_ref().unwrap().ends_with("byte 8, line 3"));
    assert_exact(&source, 5).await;
}

/// Where the run stops at the first reject, it doesn't read what may be the rest of the file first.
#[tokio::test]
async fn the_reject_goes_out_before_the_end_is_looked_for() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, format!("{{\"i\": 1}}\n{{\"i\": {}\n{{\"i\": 2}}\n", " ".repeat(5 << 20))).unwrap();
    let source =
        FilesSource::json(path.to_str().unwrap()).schema(one_column(&DataType::Utf8)).max_record(1_000);
    let cx = context();
    source.streams(&cx).await.unwrap();
    let split = splits(&source, None).await.unwrap().0.remove(0);
    let scan = ScanRequest::all(StreamId(0), 100);
    let events = source.open(&cx, &split, None, &[scan]).await.unwrap();
    let events: Vec<SourceEvent> = events.try_collect().await.unwrap();
    let [
        SourceEvent::Batch { position: Some(_), .. },
        SourceEvent::Rejects { rejects, position: None },
        SourceEvent::Progress(behind),
        SourceEvent::Batch { position: Some(_), .. },
        SourceEvent::Finished,
    ] = events.as_slice()
    else {
        panic!("{events:?}");
    };
    assert_eq!((rejects.len(), behind.0["row"].as_u64()), (1, Some(2)));
}
