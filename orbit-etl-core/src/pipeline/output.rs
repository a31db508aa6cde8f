//! Where an operator's results go.

use std::fmt;

use arrow::array::RecordBatch;
use async_trait::async_trait;

use crate::error::Result;
use crate::event::Reject;

/// The way out of an operator: rows to the nodes that follow, rejects to the dead letters.
pub struct Output<'a> {
    next: &'a mut dyn Downstream,
}

impl fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Output")
    }
}

impl<'a> Output<'a> {
    pub(crate) fn new(next: &'a mut dyn Downstream) -> Self {
        Self { next }
    }

    /// Hands rows on through the output of that index and returns when they are taken. An empty
    /// batch is dropped.
    ///
    /// # Errors
    /// A node that follows failed, or the run stops.
    pub async fn emit(&mut self, output: usize, batch: RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 { Ok(()) } else { self.next.push(output, batch).await }
    }

    /// Gives up rows that can't be handled, by the pipeline's `on_error`.
    ///
    /// # Errors
    /// The pipeline doesn't tolerate this reject: it stops.
    pub async fn reject(&mut self, reject: Reject) -> Result<()> {
        self.next.reject(reject).await
    }

    /// Counts rows that were left out on purpose.
    pub fn filtered(&mut self, rows: u64) {
        self.next.filtered(rows);
    }
}

/// What stands behind an [`Output`].
#[async_trait]
pub(crate) trait Downstream: Send {
    async fn push(&mut self, output: usize, batch: RecordBatch) -> Result<()>;
    async fn reject(&mut self, reject: Reject) -> Result<()>;
    fn filtered(&mut self, rows: u64);
}

/// Keeps what an operator puts out: for trying a transform outside a pipeline.
#[derive(Debug, Default)]
pub struct Collected {
    /// The rows, with the index of the output that they left through.
    pub batches: Vec<(usize, RecordBatch)>,
    /// The rejects.
    pub rejects: Vec<Reject>,
    /// How many rows were filtered.
    pub filtered: u64,
}

impl Collected {
    /// An output that ends here.
    pub fn output(&mut self) -> Output<'_> {
        Output::new(self)
    }
}

#[async_trait]
impl Downstream for Collected {
    async fn push(&mut self, output: usize, batch: RecordBatch) -> Result<()> {
        self.batches.push((output, batch));
        Ok(())
    }

    async fn reject(&mut self, reject: Reject) -> Result<()> {
        self.rejects.push(reject);
        Ok(())
    }

    fn filtered(&mut self, rows: u64) {
        self.filtered += rows;
    }
}
