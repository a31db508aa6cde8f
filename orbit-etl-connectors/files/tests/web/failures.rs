//! Servers that refuse, fail, or aren't there.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, Field, Schema};
use orbit_etl_connector_files::FilesSource;
use orbit_etl_core::ErrorKind;

use super::formats::numbers;
use super::server::{GOOD, Server};
use crate::source::read;

/// Sooner than this, with all retries.
pub(super) const SOON: Duration = Duration::from_secs(25);

/// A port that nobody listens on.
pub(super) fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn a_server_that_fails_is_asked_again() {
    let server = Server::start(GOOD, "a\n1\n2\n");
    server.fail_next([500, 503]);
    assert_eq!(read(&FilesSource::csv(server.url("a.csv"))).await.unwrap().rows(), 2);
    let requests = server.take_requests();
    assert!(requests.iter().filter(|r| r.starts_with("HEAD")).count() >= 3, "{requests:?}");
}

#[tokio::test]
async fn an_answer_that_is_too_short_is_no_answer() {
    let (text, rows) = numbers(3 << 20, 40);
    let server = Server::start(GOOD, text);
    let columns =
        Schema::new(vec![Field::new("id", DataType::Int64, true), Field::new("name", DataType::Utf8, true)]);
    let source = FilesSource::csv(server.url("a.csv")).schema(Arc::new(columns));
    server.shorten_next(1);
    let error = read(&source).await.unwrap_err();
    assert!(error.is_retryable(), "{}", error.report());
    assert!(error.context("file").is_some_and(|file| file.ends_with("a.csv")), "{}", error.report());
    assert_eq!(read(&source).await.unwrap().rows(), rows);
}

#[tokio::test]
async fn refusals_and_failures_have_their_kinds() {
    for (status, kind, remedy) in [
        (404, ErrorKind::NotFound, "check the path"),
        (401, ErrorKind::Auth, "credentials"),
        (403, ErrorKind::Auth, "credentials"),
        (500, ErrorKind::Unavailable, "server"),
    ] {
        let server = Server::refusing(status);
        let url = server.url("dir/a.csv?signature=hush").replace("//", "//me:hush@");
        let error = read(&FilesSource::csv(url).storage("max_retries", "1".to_string())).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.report());
        assert!(error.to_string().contains(remedy), "{error}");
        assert!(error.report().contains("/dir/a.csv"), "{}", error.report());
        assert!(!error.report().contains("hush"), "{}", error.report());
        assert_eq!(error.is_retryable(), status == 500);
        let requests = server.take_requests();
        // Both are sent, though neither is shown.
        assert!(
            requests.iter().all(|r| r.contains("signature=hush") && r.ends_with("authorized")),
            "{requests:?}"
        );
        let heads = requests.iter().filter(|r| r.starts_with("HEAD")).count();
        assert_eq!(heads, if status == 500 { 2 } else { 1 }, "{requests:?}");
    }
}

#[tokio::test]
async fn a_host_that_is_not_there_is_reported_soon() {
    let begun = Instant::now();
    let source = FilesSource::csv(format!("http://127.0.0.1:{}/a.csv", closed_port()));
    let error = read(&source).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
    assert!(error.is_retryable());
    assert!(error.to_string().contains("check that the server runs"), "{error}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}
