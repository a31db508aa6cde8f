//! Each format over HTTP, with ranges and without.

use std::fs;
use std::io::Write as _;

use arrow::array::RecordBatch;
use flate2::write::GzEncoder;
use orbit_etl_connector_files::FilesSource;
use orbit_etl_core::{ErrorKind, Position, ScanRequest, Source, StreamId};
use tempfile::tempdir;

use super::server::{GOOD, Manners, Server};
use crate::source::formats::{sample, write_parquet};
use crate::source::{context, read, read_split, splits};

const WHOLE: Manners = Manners { ranges: false, ..GOOD };
const MIB: usize = 1 << 20;

/// CSV of more than `bytes` bytes, and its rows.
pub(super) fn numbers(bytes: usize, width: usize) -> (String, usize) {
    let mut text = "id,name\n".to_owned();
    let mut rows = 0;
    while text.len() < bytes {
        text.push_str(&format!("{rows},{rows:0width$}\n"));
        rows += 1;
    }
    (text, rows)
}

#[tokio::test]
async fn csv_is_read_range_by_range() {
    let (text, rows) = numbers(9 * MIB, 40);
    let server = Server::start(GOOD, text);
    let source = FilesSource::csv(server.url("data/a.csv"));
    assert_eq!(read(&source).await.unwrap().rows(), rows);
    let requests = server.take_requests();
    assert_eq!(requests[0], "HEAD /data/a.csv -");
    for range in ["bytes=0-4194303", "bytes=4194304-8388607"] {
        assert!(requests.contains(&format!("GET /data/a.csv {range}")), "{requests:?}");
    }
    assert!(requests.iter().all(|r| r.starts_with("HEAD") || r.contains("bytes=")), "{requests:?}");

    // A split that is taken up again asks for what is left.
    let cx = context();
    let split = splits(&source, None).await.unwrap().0.remove(0);
    let scan = ScanRequest::all(StreamId(0), 1_000);
    let whole = read_split(&source, &cx, &split, None, &scan).await.unwrap();
    let (position, before, _) = whole.positions[whole.positions.len() - 2].clone();
    server.take_requests();
    let rest = read_split(&source, &cx, &split, Some(&position), &scan).await.unwrap();
    assert_eq!(rest.rows(), rows - before);
    let at = position.0["byte"].as_u64().unwrap();
    assert!(server.take_requests().iter().any(|r| r.contains(&format!("bytes={at}-"))));
}

#[tokio::test]
async fn text_is_read_from_servers_without_ranges() {
    let (text, rows) = numbers(5 * MIB, 40);
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    for (name, body) in [("a.csv", text.into_bytes()), ("a.csv.gz", gzip.finish().unwrap())] {
        for manners in [WHOLE, Manners { tags: false, head: false, ..WHOLE }, Manners { head: false, ..GOOD }]
        {
            // Without HEAD, the size comes from the answer to a range.
            if !manners.head && !manners.ranges {
                continue;
            }
            let server = Server::start(manners, body.clone());
            let source = FilesSource::csv(server.url(name));
            assert_eq!(read(&source).await.unwrap().rows(), rows, "{name} {manners:?}");
            resumes(&source).await;
        }
    }
}

/// A split can be taken up in the middle.
async fn resumes(source: &FilesSource) {
    let cx = context();
    source.streams(&cx).await.unwrap();
    let scan = ScanRequest::all(StreamId(0), 20_000);
    for split in splits(source, None).await.unwrap().0 {
        let whole = read_split(source, &cx, &split, None, &scan).await.unwrap();
        let Some((position, before, _)) = whole.positions.get(whole.positions.len() / 2) else { continue };
        let rest = read_split(source, &cx, &split, Some(&position.clone()), &scan).await.unwrap();
        assert_eq!(rest.rows(), whole.rows() - before, "{position}");
    }
}

#[tokio::test]
async fn parquet_is_read_by_row_groups() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let batch = sample(30_000);
    write_parquet(&path, &batch, 5_000);
    let bytes = fs::read(&path).unwrap();
    let size = bytes.len();
    let server = Server::start(GOOD, bytes);
    let source = FilesSource::parquet(server.url("a.parquet")).split_size(size as u64 / 8);
    assert!(splits(&source, None).await.unwrap().0.len() > 3);
    assert_eq!(read(&source).await.unwrap().rows(), 30_000);
    let requests = server.take_requests();
    assert!(requests.iter().all(|r| r.starts_with("HEAD") || r.contains("bytes=")), "{requests:?}");
    resumes(&source).await;

    // One column alone is less than everything.
    let cx = context();
    source.streams(&cx).await.unwrap();
    let split = splits(&source, None).await.unwrap().0.remove(0);
    let scan = ScanRequest { projection: Some(vec!["id".into()]), ..ScanRequest::all(StreamId(0), 1_000) };
    let read = read_split(&source, &cx, &split, None, &scan).await.unwrap();
    assert_eq!(read.batches[0].num_columns(), 1);
}

#[tokio::test]
async fn parquet_needs_ranges_and_says_so() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    write_parquet(&path, &sample(10), 5);
    let server = Server::start(WHOLE, fs::read(&path).unwrap());
    let error = read(&FilesSource::parquet(server.url("a.parquet"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", error.report());
    assert!(error.context("file").unwrap().ends_with("/a.parquet"), "{error}");
    assert!(error.to_string().contains("copy the file"), "{error}");
}

#[tokio::test]
async fn arrow_files_and_streams_are_read() {
    let batch = sample(50_000);
    let encoded = |file: bool| -> Vec<u8> {
        let parts = (0..5).map(|part| batch.slice(part * 10_000, 10_000));
        if file {
            let mut writer = arrow::ipc::writer::FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
            parts.for_each(|part| writer.write(&part).unwrap());
            writer.finish().unwrap();
            writer.into_inner().unwrap()
        } else {
            let mut writer = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
            parts.for_each(|part| writer.write(&part).unwrap());
            writer.finish().unwrap();
            writer.into_inner().unwrap()
        }
    };
    for manners in [GOOD, WHOLE, Manners { tags: false, conditions: false, ..GOOD }] {
        for file in [true, false] {
            let server = Server::start(manners, encoded(file));
            let source = FilesSource::arrow(server.url("a.arrow"));
            let found = read(&source).await.unwrap_or_else(|e| panic!("{manners:?} {file}: {}", e.report()));
            let ids = |batch: &RecordBatch| batch.column(0).clone();
            let all = found.all(&found.batches[0].schema());
            assert_eq!(&ids(&all), &ids(&batch), "{manners:?}, a file: {file}");
            resumes(&source).await;
        }
    }
}

#[tokio::test]
async fn avro_is_read() {
    let batch = sample(1_000).project(&[0]).unwrap();
    let mut writer =
        arrow_avro::writer::AvroWriter::new(Vec::new(), batch.schema().as_ref().clone()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    let server = Server::start(WHOLE, writer.into_inner());
    let source = FilesSource::avro(server.url("a.avro"));
    assert_eq!(read(&source).await.unwrap().rows(), 1_000);
    let _: Option<Position> = splits(&source, None).await.unwrap().1;
}
