//! One batch through an unnesting node of a plan.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::unnest::UnnestExec;
use futures::{FutureExt, StreamExt};
use orbit_etl_core::batch::row_bytes;

/// DataFusion's node, run anew for each batch. It keeps no state.
pub(super) struct Unnest {
    node: UnnestExec,
    task: Arc<TaskContext>,
}

impl Unnest {
    pub(super) fn new(node: &UnnestExec, task: Arc<TaskContext>) -> Self {
        Self { node: node.clone(), task }
    }

    /// What comes in.
    pub(super) fn input(&self) -> &Arc<dyn ExecutionPlan> {
        self.node.input()
    }

    /// What the batch gives, in batches of the session's size; their memory is added to `held`.
    pub(super) fn run(&self, batch: RecordBatch, held: &MemoryReservation) -> Result<Vec<RecordBatch>> {
        let schema = self.input().schema();
        let given: Arc<dyn PartitionStream> = Arc::new(Given { schema: Arc::clone(&schema), batch });
        let leaf = StreamingTableExec::try_new(schema, vec![given], None, [], false, None)?;
        // A new node: each run would add its metrics to an old one.
        let node = UnnestExec::new(
            Arc::new(leaf),
            self.node.list_column_indices().to_vec(),
            self.node.struct_column_indices().to_vec(),
            self.node.schema(),
            self.node.options().clone(),
        )?;
        let mut rows = node.execute(0, Arc::clone(&self.task))?;
        let collect = async {
            let mut made = Vec::new();
            while let Some(batch) = rows.next().await {
                let batch = batch?;
                held.try_grow(row_bytes(&batch))?;
                made.push(batch);
            }
            Ok(made)
        };
        // All of it is there, so that nothing is waited for but the task's turn.
        tokio::task::unconstrained(collect)
            .now_or_never()
            .unwrap_or_else(|| Err(DataFusionError::Internal("unnesting a batch waits for something".into())))
    }
}

impl fmt::Debug for Unnest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Unnest").field(self.node.options()).finish()
    }
}

/// One batch as a table.
#[derive(Debug)]
struct Given {
    schema: SchemaRef,
    batch: RecordBatch,
}

impl PartitionStream for Given {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _cx: Arc<TaskContext>) -> SendableRecordBatchStream {
        match MemoryStream::try_new(vec![self.batch.clone()], Arc::clone(&self.schema), None) {
            Ok(stream) => Box::pin(stream),
            Err(error) => Box::pin(datafusion::physical_plan::stream::RecordBatchStreamAdapter::new(
                Arc::clone(&self.schema),
                futures::stream::once(async { Err(error) }),
            )),
        }
    }
}
