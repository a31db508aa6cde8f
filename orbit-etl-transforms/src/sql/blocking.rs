//! The blocking operator: one DataFusion plan over the whole inputs.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::error::DataFusionError;
use datafusion::physical_plan::execute_stream;
use futures::FutureExt;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use orbit_etl_core::{BlockingOperator, Context, Error, Output, Result, StreamInfo};

use super::error::{Panicked, Suspects};
use super::feed::{self, FirstError, Many, Once};
use super::input::{Feeds, Rows};
use super::plan::sort_reservation;
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
        let suspects = Suspects { host: sql.functions.any(), disk: true };
        let planned = sql.planned(&cx, &infos).await?;
        let scans = planned.scans()?;
        let repeats = planned.repeats();
        let (runtime, pool) = feed::runtime(&cx, sort_reservation(&sql, &cx))?;
        let errors = FirstError::default();
        let feeds = inputs.into_iter().zip(&infos).enumerate().map(|(i, (rows, info))| {
            let once = Once::new(Arc::clone(&info.schema), rows, errors.clone());
            let reads = scans.iter().filter(|(input, _)| *input == i).count();
            let rows: Arc<dyn Rows> = if reads > 1 || (repeats && reads == 1) {
                Arc::new(Many::new(once, Arc::clone(&runtime)))
            } else {
                Arc::new(once)
            };
            rows
        });
        let feeds = Feeds(feeds.collect());
        let (physical, task) = planned.run(&sql, &cx, &infos, feeds, runtime).await?;
        let failed = move |e: DataFusionError| match pool.refused() {
            Some(refused) if error::lacks_memory(&e, suspects) => {
                error::short_of(error::running(&e, suspects), refused)
            }
            _ => error::running(&e, suspects),
        };
        let rows = execute_stream(physical, task).map_err(&failed)?;
        let schema = Arc::clone(&planned.schema);
        let rows = rows
            .map_err(move |e| errors.take().unwrap_or_else(|| failed(e)))
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

fn panicked() -> Error {
    error::running(&DataFusionError::External(Box::new(Panicked)), Suspects { host: true, disk: true })
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
            // A panic in one of the plan's tasks comes out here; nothing of the plan is used after it.
            next = AssertUnwindSafe(rows.next()).catch_unwind() => next.unwrap_or_else(|_| Some(Err(panicked()))),
        };
        match next {
            Some(Ok(batch)) => Some((Ok(batch), Some((rows, cx)))),
            Some(Err(error)) => Some((Err(error), None)),
            None => None,
        }
    })
    .boxed()
}
