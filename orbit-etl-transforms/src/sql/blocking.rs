//! The blocking operator: one DataFusion plan over the whole inputs.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::physical_plan::execute_stream;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use orbit_etl_core::{BlockingOperator, Context, Error, Output, Result, StreamInfo};

use super::feed::{self, FirstError, Many, Once};
use super::input::{InputTable, Rows};
use super::plan::Planned;
use super::{Sql, error};

/// A query that sees its whole inputs.
#[derive(Debug)]
pub(super) struct Whole {
    sql: Sql,
    cx: Context,
    inputs: Vec<StreamInfo>,
}

impl Whole {
    pub(super) fn new(sql: Sql, cx: Context, inputs: Vec<StreamInfo>) -> Self {
        Self { sql, cx, inputs }
    }
}

#[async_trait]
impl BlockingOperator for Whole {
    async fn run(
        self: Box<Self>,
        inputs: Vec<BoxStream<'static, Result<RecordBatch>>>,
        out: &mut Output<'_>,
    ) -> Result<()> {
        let Self { sql, cx, inputs: infos } = *self;
        if inputs.len() != infos.len() {
            return Err(Error::internal("a query got another number of inputs than it was started with"));
        }
        let looked = Planned::new(&sql, &cx, &infos).await?;
        let scans = looked.scans()?;
        let repeats = looked.repeats();
        let runtime = feed::runtime(&cx)?;
        let errors = FirstError::default();
        let tables = inputs.into_iter().zip(&infos).enumerate().map(|(i, (rows, info))| {
            let once = Once::new(Arc::clone(&info.schema), rows, errors.clone());
            let reads = scans.iter().filter(|(input, _)| *input == i).count();
            let rows: Arc<dyn Rows> = if reads > 1 || (repeats && reads == 1) {
                Arc::new(Many::new(once, Arc::clone(&runtime)))
            } else {
                Arc::new(once)
            };
            Arc::new(InputTable::with_rows(i, Arc::clone(&info.schema), rows))
        });
        let tables = tables.collect();
        let planned = Planned::over(&sql, &cx, &infos, tables, runtime, cx.parallelism()).await?;
        let physical = planned.physical(&infos).await?;
        let rows = execute_stream(physical, planned.state().task_ctx()).map_err(|e| error::running(&e))?;
        let schema = Arc::clone(&planned.schema);
        let rows = rows
            .map_err(move |e| errors.take().unwrap_or_else(|| error::running(&e)))
            .map(move |batch| batch.and_then(|b| announced(&b, &schema)))
            .boxed();
        let mut rows = until_cancelled(rows, cx);
        while let Some(batch) = rows.try_next().await? {
            out.emit(0, batch).await?;
        }
        Ok(())
    }
}

/// The rows under the announced schema.
fn announced(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), batch.columns().to_vec(), &options)
        .map_err(|_| Error::internal("the query's rows don't fit the schema that it announced"))
}

/// Ends with an error as soon as the run is told to stop, and drops the plan with all its tasks.
fn until_cancelled(
    rows: BoxStream<'static, Result<RecordBatch>>,
    cx: Context,
) -> BoxStream<'static, Result<RecordBatch>> {
    futures::stream::unfold(Some((rows, cx)), |state| async move {
        let (mut rows, cx) = state?;
        let next = tokio::select! {
            biased;
            () = cx.cancellation().cancelled() => Some(Err(Error::cancelled())),
            next = rows.next() => next,
        };
        match next {
            Some(Ok(batch)) => Some((Ok(batch), Some((rows, cx)))),
            Some(Err(error)) => Some((Err(error), None)),
            None => None,
        }
    })
    .boxed()
}
