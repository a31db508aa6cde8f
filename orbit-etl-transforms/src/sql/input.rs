//! The inputs as tables of DataFusion.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};

/// Where the rows of an input come from while a plan runs. Asked once for each scan in the plan.
pub(super) trait Rows: fmt::Debug + Send + Sync {
    fn read(&self) -> Result<SendableRecordBatchStream>;
}

/// The rows of all inputs, for the session of one run.
pub(super) struct Feeds(pub(super) Vec<Arc<dyn Rows>>);

/// One input of the query. It takes every filter as a wish, so that filters are seen in the scans
/// and still stand in the plan. Its rows are those that the session has for it, if any.
#[derive(Debug)]
pub(super) struct InputTable {
    index: usize,
    schema: SchemaRef,
}

impl InputTable {
    pub(super) fn new(index: usize, schema: SchemaRef) -> Self {
        Self { index, schema }
    }

    /// Which input it is.
    pub(super) fn index(&self) -> usize {
        self.index
    }
}

#[async_trait]
impl TableProvider for InputTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let feeds = state.config().get_extension::<Feeds>();
        let rows = feeds.and_then(|feeds| feeds.0.get(self.index).cloned());
        let partition = Arc::new(InputPartition { schema: self.schema(), rows });
        let partition: Arc<dyn PartitionStream> = partition;
        let scan = StreamingTableExec::try_new(self.schema(), vec![partition], projection, [], false, limit)?;
        Ok(Arc::new(scan))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }
}

#[derive(Debug)]
struct InputPartition {
    schema: SchemaRef,
    rows: Option<Arc<dyn Rows>>,
}

impl PartitionStream for InputPartition {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _cx: Arc<TaskContext>) -> SendableRecordBatchStream {
        let stream = match &self.rows {
            Some(rows) => rows.read(),
            None => Err(DataFusionError::Internal("a table without rows was read".into())),
        };
        stream.unwrap_or_else(|error| {
            let failed = futures::stream::once(async { Err(error) });
            Box::pin(datafusion::physical_plan::stream::RecordBatchStreamAdapter::new(
                Arc::clone(&self.schema),
                failed,
            ))
        })
    }
}
