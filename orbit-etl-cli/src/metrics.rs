//! What Prometheus asks for: `/metrics`, and whether the process is well.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orbit_etl::observe::{NodeCounts, Progress};
use orbit_etl::pipeline::NodeInfo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::failure::Failure;

/// The longest request that is read, and how long that may take.
const REQUEST: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

/// How many are answered at a time.
const CALLERS: usize = 16;

/// The figures of all pipelines of this process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    pipelines: Arc<Mutex<BTreeMap<String, Figures>>>,
}

#[derive(Debug)]
struct Figures {
    nodes: Vec<NodeInfo>,
    last: Progress,
    running: bool,
}

/// One figure of a node: its name, what it means, where it is found.
type OfNode = (&'static str, &'static str, fn(&NodeCounts) -> u64);

const OF_NODES: [OfNode; 5] = [
    ("orbit_etl_rows_in_total", "Rows that came in; at a source, rows read, rejects included.", |c| {
        c.rows_in
    }),
    ("orbit_etl_rows_out_total", "Rows that went out; at a sink, rows written.", |c| c.rows_out),
    ("orbit_etl_rows_rejected_total", "Rows that could not go on.", |c| c.rejected),
    ("orbit_etl_rows_filtered_total", "Rows that were left out on purpose.", |c| c.filtered),
    ("orbit_etl_bytes_total", "Bytes that went out.", |c| c.bytes),
];

impl Metrics {
    /// A run begins.
    pub(crate) fn begin(&self, pipeline: &str, nodes: Vec<NodeInfo>) {
        let figures = Figures { nodes, last: Progress::default(), running: true };
        self.pipelines.lock().unwrap_or_else(PoisonError::into_inner).insert(pipeline.to_owned(), figures);
    }

    /// A run goes on.
    pub(crate) fn look(&self, pipeline: &str, look: &Progress) {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(figures) = pipelines.get_mut(pipeline) {
            figures.last = look.clone();
        }
    }

    /// A run has ended.
    pub(crate) fn end(&self, pipeline: &str) {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(figures) = pipelines.get_mut(pipeline) {
            figures.running = false;
        }
    }

    /// Answers from now on, until the process ends.
    pub(crate) async fn serve(&self, address: SocketAddr) -> Result<(), Failure> {
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
        self.pipelines.lock().unwrap_or_else(PoisonError::into_inner).values().any(|figures| figures.running)
    }

    /// In the text format of Prometheus. Counters count committed epochs, so they never go back.
    fn to_text(&self) -> String {
        let pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (name, help, figure) in OF_NODES {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
            for (pipeline, figures) in &*pipelines {
                for node in &figures.nodes {
                    let counts = figures.last.committed.get(&node.name).copied().unwrap_or_default();
                    // Names hold nothing that would have to be escaped.
                    let _ = writeln!(
                        text,
                        "{name}{{pipeline=\"{pipeline}\",node=\"{}\",role=\"{}\"}} {}",
                        node.name,
                        node.role,
                        figure(&counts)
                    );
                }
            }
        }
        let mut of_pipelines = |name: &str, kind: &str, help: &str, figure: &dyn Fn(&Figures) -> f64| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (pipeline, figures) in &*pipelines {
                let _ = writeln!(text, "{name}{{pipeline=\"{pipeline}\"}} {}", figure(figures));
            }
        };
        #[allow(clippy::cast_precision_loss)] // Nobody commits 2^53 epochs.
        {
            of_pipelines("orbit_etl_epochs_total", "counter", "Epochs that were committed.", &|f| {
                f.last.epochs as f64
            });
        }
        of_pipelines("orbit_etl_running", "gauge", "1 while the pipeline runs.", &|f| {
            f64::from(u8::from(f.running))
        });
        of_pipelines("orbit_etl_run_seconds", "gauge", "How long the run has been going on.", &|f| {
            f.last.elapsed.as_secs_f64()
        });
        text
    }
}
