//! An HTTP and an SMTP server of a few lines, and small pipelines to watch.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use orbit_etl_core::memory::MemorySource;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Posted {
    pub(crate) path: String,
    pub(crate) headers: Vec<String>,
    pub(crate) body: Value,
}

/// Answers requests and hands them on.
pub(crate) struct Http {
    pub(crate) url: String,
    posted: mpsc::UnboundedReceiver<Posted>,
}

impl Http {
    /// Answers with these codes in turn, then with 200.
    pub(crate) async fn start(codes: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let codes = Arc::new(Mutex::new(codes.iter().copied().collect::<VecDeque<_>>()));
        let (sender, posted) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (codes, sender) = (Arc::clone(&codes), sender.clone());
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    loop {
                        let mut head = Vec::new();
                        loop {
                            let mut line = String::new();
                            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                                return;
                            }
                            match line.trim_end() {
                                "" => break,
                                line => head.push(line.to_owned()),
                            }
                        }
                        let length = head.iter().find_map(|line| {
                            line.to_lowercase().strip_prefix("content-length: ")?.parse().ok()
                        });
                        let mut body = vec![0; length.unwrap_or(0)];
                        stream.read_exact(&mut body).await.unwrap();
                        let path = head[0].split(' ').nth(1).unwrap().to_owned();
                        let body = serde_json::from_slice(&body).unwrap();
                        let _ = sender.send(Posted { path, headers: head.split_off(1), body });
                        let code = codes.lock().unwrap().pop_front().unwrap_or(200);
                        let answer = format!("HTTP/1.1 {code} X\r\ncontent-length: 0\r\n\r\n");
                        stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        Self { url, posted }
    }

    pub(crate) async fn next(&mut self) -> Posted {
        tokio::time::timeout(Duration::from_secs(30), self.posted.recv()).await.expect("a request").unwrap()
    }

    /// Everything that has come so far.
    pub(crate) fn all(&mut self) -> Vec<Posted> {
        std::iter::from_fn(|| self.posted.try_recv().ok()).collect()
    }
}

/// Takes mail and hands it on: envelope and text. The first `refusals` mails are refused for now.
pub(crate) async fn smtp(mut refusals: u32) -> (u16, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, mails) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            stream.get_mut().write_all(b"220 here\r\n").await.unwrap();
            let (mut mail, mut data) = (String::new(), false);
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                    break;
                }
                let answer: &[u8] = if data {
                    data = line != ".\r\n";
                    mail.push_str(&line);
                    if data {
                        continue;
                    }
                    let _ = sender.send(std::mem::take(&mut mail));
                    b"250 taken\r\n"
                } else if line.starts_with("EHLO") {
                    b"250-here\r\n250 8BITMIME\r\n"
                } else if line.starts_with("MAIL") && refusals > 0 {
                    refusals -= 1;
                    b"451 not now\r\n"
                } else if line.starts_with("DATA") {
                    data = true;
                    b"354 go on\r\n"
                } else if line.starts_with("QUIT") {
                    b"221 bye\r\n"
                } else {
                    mail.push_str(&line);
                    b"250 fine\r\n"
                };
                if stream.get_mut().write_all(answer).await.is_err() {
                    break;
                }
            }
        }
    });
    (port, mails)
}

pub(crate) fn orders() -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3, 4]));
    let prices: ArrayRef = Arc::new(Float64Array::from(vec![10.0, 20.0, 30.0, 40.0]));
    let codes: ArrayRef = Arc::new(StringArray::from(vec!["7", "8", "very private", "9"]));
    RecordBatch::try_from_iter([("id", ids), ("price", prices), ("code", codes)]).unwrap()
}

pub(crate) fn source() -> MemorySource {
    MemorySource::new(orders().schema(), vec![orders()])
}
