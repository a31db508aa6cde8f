//! A small web server with one file, and with manners of its own.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// What a server can do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manners {
    pub(super) ranges: bool,
    /// Tells versions apart by ETags.
    pub(super) tags: bool,
    /// Heeds `If-Match`.
    pub(super) conditions: bool,
    pub(super) head: bool,
}

pub(super) const GOOD: Manners = Manners { ranges: true, tags: true, conditions: true, head: true };

/// It stops when this is dropped.
pub(super) struct Server {
    port: u16,
    state: Arc<State>,
}

struct State {
    manners: Manners,
    body: Mutex<Vec<u8>>,
    /// What takes the place of the body after so many answers with content.
    next: Mutex<Option<(usize, Vec<u8>)>>,
    /// How many of the coming answers to ranges end after half of their bytes.
    short: Mutex<usize>,
    /// The answers to the coming requests, while there are any.
    failures: Mutex<VecDeque<u16>>,
    /// The answer to all others.
    failing: Mutex<Option<u16>>,
    requests: Mutex<Vec<String>>,
    stopped: AtomicBool,
}

impl Server {
    pub(super) fn start(manners: Manners, body: impl Into<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            manners,
            body: Mutex::new(body.into()),
            next: Mutex::new(None),
            short: Mutex::new(0),
            failures: Mutex::new(VecDeque::new()),
            failing: Mutex::new(None),
            requests: Mutex::new(Vec::new()),
            stopped: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&shared);
                // A client that goes away is no failure.
                thread::spawn(move || while shared.answer(&stream).is_ok_and(|open| open) {});
            }
        });
        Self { port, state }
    }

    /// A server that answers everything with this status.
    pub(super) fn refusing(status: u16) -> Self {
        let server = Self::start(GOOD, "");
        *server.state.failing.lock().unwrap() = Some(status);
        server
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    pub(super) fn fail_next(&self, statuses: impl IntoIterator<Item = u16>) {
        self.state.failures.lock().unwrap().extend(statuses);
    }

    /// Gives half of a range, and calls it the whole, so many times.
    pub(super) fn shorten_next(&self, answers: usize) {
        *self.state.short.lock().unwrap() = answers;
    }

    /// Replaces the file after so many more answers with content.
    pub(super) fn replace_after(&self, answers: usize, body: impl Into<Vec<u8>>) {
        *self.state.next.lock().unwrap() = Some((answers, body.into()));
    }

    /// The requests so far: method, path, range.
    pub(super) fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.requests.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl State {
    /// Answers one request; `false` when the client has gone.
    fn answer(&self, stream: &TcpStream) -> std::io::Result<bool> {
        let mut reader = BufReader::new(stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(false);
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let header = |name: &str| {
            let found = lines.iter().filter_map(|line| line.split_once(": "));
            found.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
        };
        let mut words = lines[0].split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let range = header("range");
        let access = header("authorization").map(|_| " authorized").unwrap_or_default();
        let request = format!("{method} {path} {}{access}", range.as_deref().unwrap_or("-"));
        self.requests.lock().unwrap().push(request);

        let failure = self.failures.lock().unwrap().pop_front().or(*self.failing.lock().unwrap());
        let mut out = Vec::new();
        let is_head = method == "HEAD";
        let body = self.body.lock().unwrap().clone();
        let tag = format!("\"{}-{:?}\"", body.len(), body.first());
        let (status, extra, content) = if let Some(status) = failure {
            let said = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>\
                        <StringToSign>GET hush</StringToSign></Error>";
            (status, String::new(), said.as_bytes().to_vec())
        } else if is_head && !self.manners.head {
            (405, String::new(), Vec::new())
        } else if self.manners.conditions && header("if-match").is_some_and(|wanted| wanted != tag) {
            (412, String::new(), Vec::new())
        } else {
            let wanted = range.filter(|_| self.manners.ranges).map(|range| {
                let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                let to = to.parse().map_or(body.len(), |to: usize| (to + 1).min(body.len()));
                from.parse().unwrap()..to
            });
            match wanted {
                None => (200, String::new(), body.clone()),
                Some(range) if range.start >= body.len() => (416, String::new(), Vec::new()),
                Some(range) => {
                    let extra =
                        format!("Content-Range: bytes {}-{}/{}\r\n", range.start, range.end - 1, body.len());
                    let mut content = body[range].to_vec();
                    let mut short = self.short.lock().unwrap();
                    if !is_head && *short > 0 {
                        *short -= 1;
                        content.truncate(content.len() / 2);
                    }
                    (206, extra, content)
                }
            }
        };
        write!(out, "HTTP/1.1 {status} Some\r\nContent-Length: {}\r\n{extra}", content.len())?;
        if self.manners.tags && failure.is_none() {
            write!(out, "ETag: {tag}\r\n")?;
        }
        write!(out, "\r\n")?;
        if !is_head {
            out.extend(content);
        }
        if matches!(status, 200 | 206) && !is_head {
            let mut next = self.next.lock().unwrap();
            if let Some((0 | 1, body)) = &*next {
                *self.body.lock().unwrap() = body.clone();
                *next = None;
            } else if let Some((answers, _)) = &mut *next {
                *answers -= 1;
            }
        }
        let mut writer = stream;
        writer.write_all(&out)?;
        Ok(true)
    }
}
