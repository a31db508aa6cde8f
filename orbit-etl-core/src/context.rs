//! What a node is given to work with.

use std::path::Path;
use std::sync::Arc;

use datafusion_execution::memory_pool::{GreedyMemoryPool, MemoryPool};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::observe::Retries;

/// The number of rows that a batch has unless somebody says otherwise.
pub const DEFAULT_BATCH_ROWS: usize = 8_192;

/// The run that a call belongs to: its id, the node's name, cancellation, memory. A cheap clone.
#[derive(Debug, Clone)]
pub struct Context {
    run: Arc<Run>,
    node: Arc<str>,
}

#[derive(Debug)]
struct Run {
    id: String,
    pipeline: String,
    cancel: CancellationToken,
    memory: Arc<dyn MemoryPool>,
    spill: tempfile::TempDir,
    batch_rows: usize,
    parallelism: usize,
    retries: Retries,
}

impl Context {
    /// A context outside any pipeline, for tests and for calls like `discover`: a pool of 256 MiB
    /// and two lanes.
    ///
    /// # Errors
    /// No temporary directory can be made.
    pub fn standalone(node: &str) -> Result<Self> {
        ContextBuilder::new("standalone").build().map(|cx| cx.for_node(node))
    }

    /// The id of the run; new with each start and restart.
    pub fn run_id(&self) -> &str {
        &self.run.id
    }

    /// The pipeline's name.
    pub fn pipeline(&self) -> &str {
        &self.run.pipeline
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Is cancelled when the run stops at once. Long waits watch it.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.run.cancel
    }

    /// The pipeline's one memory pool. It answers yes or no and never waits.
    pub fn memory(&self) -> &Arc<dyn MemoryPool> {
        &self.run.memory
    }

    /// A directory of this run for spilled data, removed with the run.
    pub fn spill_dir(&self) -> &Path {
        self.run.spill.path()
    }

    /// The number of rows that batches should have.
    pub fn batch_rows(&self) -> usize {
        self.run.batch_rows
    }

    /// The number of lanes, and of partitions that a blocking transform may use.
    pub fn parallelism(&self) -> usize {
        self.run.parallelism
    }

    /// Counts a request that is sent again, for the metric `orbit_etl_retries_total`.
    pub fn count_retry(&self) {
        self.run.retries.add();
    }

    /// The same run, seen from another node.
    #[must_use]
    pub fn for_node(&self, node: &str) -> Self {
        Self { run: Arc::clone(&self.run), node: node.into() }
    }
}

/// Makes a [`Context`]; the engine does so for each run, tests do for one call.
#[derive(Debug)]
pub struct ContextBuilder {
    pipeline: String,
    cancel: CancellationToken,
    memory: Arc<dyn MemoryPool>,
    spill_in: Option<std::path::PathBuf>,
    batch_rows: usize,
    parallelism: usize,
    retries: Retries,
}

impl ContextBuilder {
    /// With a pool of 256 MiB, batches of [`DEFAULT_BATCH_ROWS`] rows and two lanes.
    pub fn new(pipeline: impl Into<String>) -> Self {
        Self {
            pipeline: pipeline.into(),
            cancel: CancellationToken::new(),
            memory: Arc::new(GreedyMemoryPool::new(256 << 20)),
            spill_in: None,
            batch_rows: DEFAULT_BATCH_ROWS,
            parallelism: 2,
            retries: Retries::default(),
        }
    }

    /// Stops at once when this token is cancelled.
    #[must_use]
    pub fn cancellation(mut self, token: CancellationToken) -> Self {
        self.cancel = token;
        self
    }

    /// Uses this pool.
    #[must_use]
    pub fn memory(mut self, pool: Arc<dyn MemoryPool>) -> Self {
        self.memory = pool;
        self
    }

    /// Spills into a new directory under this one instead of the system's temporary directory.
    #[must_use]
    pub fn spill_in(mut self, dir: Option<std::path::PathBuf>) -> Self {
        self.spill_in = dir;
        self
    }

    /// The number of rows that batches should have; at least 1.
    #[must_use]
    pub fn batch_rows(mut self, rows: usize) -> Self {
        self.batch_rows = rows.max(1);
        self
    }

    /// The number of lanes; at least 1.
    #[must_use]
    pub fn parallelism(mut self, lanes: usize) -> Self {
        self.parallelism = lanes.max(1);
        self
    }

    /// Where repeated requests are counted.
    pub(crate) fn retries(mut self, retries: &Retries) -> Self {
        self.retries = retries.clone();
        self
    }

    /// A context with a new run id.
    ///
    /// # Errors
    /// [`Resources`](crate::ErrorKind::Resources) if the spill directory can't be made.
    pub fn build(self) -> Result<Context> {
        let mut make = tempfile::Builder::new();
        let make = make.prefix("orbit-spill-");
        let spill = match &self.spill_in {
            Some(dir) => make.tempdir_in(dir),
            None => make.tempdir(),
        }
        .map_err(|e| {
            Error::resources("can't make a directory for spilled data")
                .with("directory", self.spill_in.clone().unwrap_or_else(std::env::temp_dir).display())
                .remedy("make room there, or name another directory")
                .caused_by(e)
        })?;
        Ok(Context {
            run: Arc::new(Run {
                id: uuid::Uuid::now_v7().to_string(),
                pipeline: self.pipeline,
                cancel: self.cancel,
                memory: self.memory,
                spill,
                batch_rows: self.batch_rows,
                parallelism: self.parallelism,
                retries: self.retries,
            }),
            node: "".into(),
        })
    }
}
