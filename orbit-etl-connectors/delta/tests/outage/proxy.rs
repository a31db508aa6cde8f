//! A way to an object store on which one request goes wrong.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The request is refused, and not carried out.
    Refused,
    /// The server is busy, and doesn't carry it out.
    Busy,
    /// It is carried out, but the answer is lost.
    Unanswered,
}

/// It stops when this is dropped.
pub(super) struct Proxy {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    server: String,
    /// Method and path of each request, in the order in which they came.
    requests: Mutex<Vec<String>>,
    /// Which request, by its number, goes wrong, and how.
    fault: Mutex<Option<(usize, Fault)>>,
    stopped: AtomicBool,
}

impl Proxy {
    /// In front of a server, such as `127.0.0.1:80`.
    pub(super) fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State { server: server.to_owned(), ..State::default() });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&shared);
                // A client that goes away is no failure.
                thread::spawn(move || shared.pass_on(&stream));
            }
        });
        Self { port, state }
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Forgets the requests so far; the one with this number goes wrong, if there is to be one.
    pub(super) fn restart(&self, fault: Option<(usize, Fault)>) {
        self.state.requests.lock().unwrap().clear();
        *self.state.fault.lock().unwrap() = fault;
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl State {
    /// One request and its answer; then the connection is closed.
    fn pass_on(&self, mut client: &TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(client);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim_end().is_empty() {
                break;
            }
            let lower = line.to_ascii_lowercase();
            if let Some(bytes) = lower.strip_prefix("content-length:") {
                length = bytes.trim().parse().unwrap();
            }
            if !lower.starts_with("connection:") {
                head.push_str(&line);
            }
        }
        head.push_str("connection: close\r\n\r\n");
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let fault = self.note(head.lines().next().unwrap_or_default());
        let status = match fault {
            Some(Fault::Refused) => "403 Forbidden",
            Some(Fault::Busy) => "503 Service Unavailable",
            Some(Fault::Unanswered) | None => {
                let mut server = TcpStream::connect(&self.server)?;
                server.write_all(head.as_bytes())?;
                server.write_all(&body)?;
                let mut answer = Vec::new();
                server.read_to_end(&mut answer)?;
                if fault.is_none() {
                    client.write_all(&answer)?;
                }
                return client.shutdown(Shutdown::Both);
            }
        };
        client.write_all(
            format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes(),
        )
    }

    /// Notes a request, and says what is to happen to it.
    fn note(&self, line: &str) -> Option<Fault> {
        let mut requests = self.requests.lock().unwrap();
        let number = requests.len();
        requests.push(line.trim_end_matches(" HTTP/1.1").to_owned());
        self.fault.lock().unwrap().and_then(|(at, fault)| (at == number).then_some(fault))
    }
}
