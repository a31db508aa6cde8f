//! What Prometheus asks for: `/metrics`, and whether the process is well.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orbit_etl::observe::describe_metrics;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::failure::Failure;
use crate::recorder::Recorder;

/// The longest request that is read, and how long that may take.
const REQUEST: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

/// How many are answered at a time.
const CALLERS: usize = 16;

/// Which pipelines of this process run, and what they tell.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    running: Arc<Mutex<BTreeSet<String>>>,
    recorded: Option<Recorder>,
}

impl Metrics {
    /// A run begins.
    pub(crate) fn begin(&self, pipeline: &str) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(pipeline.to_owned());
    }

    /// A run has ended.
    pub(crate) fn end(&self, pipeline: &str) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(pipeline);
    }

    /// Records what pipelines tell and answers from now on, until the process ends.
    pub(crate) async fn serve(&mut self, address: SocketAddr) -> Result<(), Failure> {
        let recorder = Recorder::default();
        metrics::set_global_recorder(recorder.clone()).map_err(|e| Failure::failed(e.to_string()))?;
        self.recorded = Some(recorder);
        describe_metrics();
        let fail = |error| Failure::failed(format!("{address}: can't be listened at: {error}"));
        let listener = TcpListener::bind(address).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        tracing::info!(%address, "metrics are served");
        let metrics = self.clone();
        let callers = Arc::new(tokio::sync::Semaphore::new(CALLERS));
        tokio::spawn(async move {
            loop {
                let Ok(permit) = Arc::clone(&callers).acquire_owned().await else { return };
                match listener.accept().await {
                    Ok((caller, _)) => {
                        let metrics = metrics.clone();
                        tokio::spawn(async move {
                            // Whoever goes away in the middle gets no answer.
                            let _ = tokio::time::timeout(PATIENCE, metrics.answer(caller)).await;
                            drop(permit);
                        });
                    }
                    // Too many open files, say: the next one may be lucky.
                    Err(error) => {
                        tracing::warn!(%error, "a request for metrics was not taken");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Ok(())
    }

    async fn answer(&self, mut caller: TcpStream) -> std::io::Result<()> {
        let mut request = Vec::new();
        while !request.windows(4).any(|w| w == b"\r\n\r\n") {
            if request.len() > REQUEST || caller.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        let line = request.split(|b| *b == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = path.split('?').next().unwrap_or_default();
        let (status, body) = match (method, path) {
            ("GET" | "HEAD", "/metrics") => ("200 OK", self.to_text()),
            ("GET" | "HEAD", "/healthz") => ("200 OK", "ok\n".to_owned()),
            ("GET" | "HEAD", "/readyz") if self.is_ready() => ("200 OK", "ready\n".to_owned()),
            ("GET" | "HEAD", "/readyz") => ("503 Service Unavailable", "no pipeline is running\n".to_owned()),
            ("GET" | "HEAD", _) => ("404 Not Found", "there are /metrics, /healthz and /readyz\n".to_owned()),
            _ => ("405 Method Not Allowed", String::new()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        caller.write_all(head.as_bytes()).await?;
        if method != "HEAD" {
            caller.write_all(body.as_bytes()).await?;
        }
        caller.shutdown().await
    }

    fn is_ready(&self) -> bool {
        !self.running.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// In the text format of Prometheus.
    fn to_text(&self) -> String {
        self.recorded.as_ref().map(Recorder::render).unwrap_or_default()
    }
}
