//! S3 servers that refuse, that aren't there, and what is left behind on one that works.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use futures::StreamExt;
use object_store::ObjectStoreExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use orbit_etl_connector_files::{Changed, FilesSink, FilesSource};
use orbit_etl_core::{
    Context, Discard, Error, ErrorKind, LaneId, Lineage, ScanRequest, Sink, Source, SourceEvent, StreamId,
    StreamInfo,
};
use orbit_etl_testkit::{Stop, service};

use super::failures::{SOON, closed_port};
use super::formats::numbers;
use super::server::Server;
use crate::source::{context, read, read_split, splits};

const OPTIONS: [(&str, &str); 4] = [
    ("access_key_id", "AKIAHUSH"),
    ("secret_access_key", "hush-secret"),
    ("region", "us-east-1"),
    ("allow_http", "true"),
];

fn source(endpoint: &str, path: &str) -> FilesSource {
    let source = FilesSource::parquet(path).storage("endpoint", endpoint.to_string());
    OPTIONS.into_iter().fold(source, |source, (key, value)| source.storage(key, value.to_string()))
}

fn sink(endpoint: &str) -> FilesSink {
    let sink = FilesSink::parquet("s3://bucket/lake").storage_option("endpoint", endpoint);
    OPTIONS.into_iter().fold(sink, |sink, (key, value)| sink.storage_option(key, value))
}

/// The errors of reading one object, of reading many, and of opening a sink.
async fn errors(endpoint: &str) -> [Error; 3] {
    let rows: ArrayRef = std::sync::Arc::new(Int64Array::from(vec![1]));
    let inputs = [StreamInfo::new("rows", RecordBatch::try_from_iter([("id", rows)]).unwrap().schema())];
    let cx = Context::standalone("out").unwrap();
    let Err(of_sink) = sink(endpoint).open(&cx, &inputs).await else { panic!("the sink opened") };
    [
        read(&source(endpoint, "s3://bucket/a.parquet")).await.unwrap_err(),
        read(&source(endpoint, "s3://bucket/data/")).await.unwrap_err(),
        of_sink,
    ]
}

fn assert_no_secret(error: &Error) {
    let report = format!("{} {error:?}", error.report());
    assert!(!report.contains("hush"), "{report}");
}

#[tokio::test]
async fn wrong_keys_are_told_as_such() {
    let server = Server::refusing(403);
    let begun = Instant::now();
    for error in errors(server.url("").trim_end_matches('/')).await {
        assert_eq!(error.kind(), ErrorKind::Auth, "{}", error.report());
        assert!(!error.is_retryable());
        assert!(error.to_string().contains("check the credentials"), "{error}");
        assert!(
            error.report().contains("AccessDenied") || error.report().contains("403"),
            "{}",
            error.report()
        );
        assert_no_secret(&error);
    }
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_reported_soon() {
    let begun = Instant::now();
    for error in errors(&format!("http://127.0.0.1:{}", closed_port())).await {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
        assert!(error.is_retryable());
        assert!(error.to_string().contains("check that the server runs"), "{error}");
        assert_no_secret(&error);
    }
    assert!(begun.elapsed() < SOON * 3, "{:?}", begun.elapsed());
}

/// The bucket of the test server, and a folder in it that nobody else has.
fn bucket() -> Option<(String, String)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    match service("S3", None) {
        Ok(url) => Some((url.trim_end_matches('/').to_owned(), format!("web-{now}"))),
        Err(Stop::Skip(why)) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
            None
        }
        Err(stop) => panic!("{stop:?}"),
    }
}

#[tokio::test]
async fn an_object_that_is_replaced_in_the_middle_is_noticed() {
    let Some((bucket, folder)) = bucket() else { return };
    let store = AmazonS3Builder::from_env().with_url(&bucket).build().unwrap();
    let (old, _) = numbers(13 << 20, 40);
    let (new, new_rows) = numbers(1 << 20, 41);
    for changed in [Changed::Error, Changed::Reload] {
        let key = Path::from(format!("{folder}/a.csv"));
        store.put(&key, old.clone().into()).await.unwrap();
        let source = FilesSource::csv(format!("{bucket}/{key}")).changed(changed);
        let cx = context();
        source.streams(&cx).await.unwrap();
        let (listed, position) = splits(&source, None).await.unwrap();
        let scan = ScanRequest::all(StreamId(0), 1_000);
        let mut events = source.open(&cx, &listed[0], None, std::slice::from_ref(&scan)).await.unwrap();
        assert!(matches!(events.next().await, Some(Ok(SourceEvent::Batch { .. }))));
        store.put(&key, new.clone().into()).await.unwrap();
        let end = loop {
            match events.next().await.unwrap() {
                Ok(SourceEvent::Batch { .. }) => {}
                end => break end,
            }
        };
        match end {
            Err(error) => {
                assert_eq!(
                    (changed, error.kind()),
                    (Changed::Error, ErrorKind::Conflict),
                    "{}",
                    error.report()
                );
                assert!(error.context("file").unwrap().ends_with("/a.csv"), "{error}");
            }
            Ok(event) => {
                assert_eq!(changed, Changed::Reload);
                assert!(matches!(event, SourceEvent::Finished), "{event:?}");
                assert_eq!(read_split(&source, &cx, &listed[0], None, &scan).await.unwrap().rows(), 0);
                let listed = splits(&source, position.as_ref()).await.unwrap().0;
                let read = read_split(&source, &cx, &listed[0], None, &scan).await.unwrap();
                assert_eq!((listed.len(), read.rows()), (1, new_rows));
            }
        }
    }
}

/// The uploads that nobody has completed or aborted: the server is asked, since the client can't be.
fn uploads(bucket: &str, folder: &str) -> Option<usize> {
    let endpoint = std::env::var("AWS_ENDPOINT_URL").ok()?;
    let address = endpoint.strip_prefix("http://")?.trim_end_matches('/');
    let name = bucket.strip_prefix("s3://")?;
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET /{name}?uploads&prefix={folder}/ HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("ListMultipartUploadsResult"), "{answer}");
    Some(answer.matches(&format!("<Key>{folder}/")).count())
}

#[tokio::test]
async fn uploads_of_older_runs_are_aborted() {
    let Some((bucket, folder)) = bucket() else { return };
    let ids: ArrayRef = std::sync::Arc::new(Int64Array::from_iter_values(0..10));
    let rows = RecordBatch::try_from_iter([("id", ids)]).unwrap();
    let inputs = [StreamInfo::new("rows", rows.schema())];
    let cx = Context::standalone("out").unwrap();
    let sink = FilesSink::parquet(format!("{bucket}/{folder}"));
    let lineage = |claim| Lineage {
        id: "0192".into(),
        sink: "out".into(),
        generation: 1,
        claim,
        run: format!("run-{claim}"),
    };
    let mut old = sink.open(&cx, &inputs).await.unwrap();
    old.claim(&lineage(1)).await.unwrap();
    let mut writer = old.writer(LaneId(0)).await.unwrap();
    writer.write(StreamId(0), rows.clone()).await.unwrap();
    let pending = writer.prepare(1).await.unwrap().committables;
    writer.write(StreamId(0), rows.clone()).await.unwrap();
    writer.prepare(2).await.unwrap();
    writer.write(StreamId(0), rows).await.unwrap();
    let Some(open) = uploads(&bucket, &folder) else { return };
    // The open file's too, which no epoch has.
    assert_eq!(open, 3);

    let mut new = sink.open(&cx, &inputs).await.unwrap();
    new.claim(&lineage(2)).await.unwrap();
    new.discard(Discard::Older { claim: 2, keep: pending }).await.unwrap();
    assert_eq!(uploads(&bucket, &folder), Some(1));
    new.discard(Discard::Older { claim: 2, keep: Vec::new() }).await.unwrap();
    assert_eq!(uploads(&bucket, &folder), Some(0));
}
