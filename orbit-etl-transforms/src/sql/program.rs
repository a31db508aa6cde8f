//! A query that maps rows one by one, compiled: physical expressions that are evaluated batch by
//! batch, without running a plan.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::FilterBuilder;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr_common::physical_expr::fmt_sql;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::streaming::StreamingTableExec;
use orbit_etl_core::{Error, Result};

use super::error;

/// The longest expression that a message quotes whole.
const QUOTED: usize = 200;

/// The steps from a batch of the input to a batch of the output. Cheap to share, keeps no state.
#[derive(Debug)]
pub(super) struct Program {
    /// The columns that are read, in the order in which the steps count them.
    pub(super) columns: SchemaRef,
    steps: Vec<Step>,
    /// What comes out.
    pub(super) schema: SchemaRef,
}

#[derive(Debug)]
enum Step {
    /// Keeps the rows for which the condition is true, and of their columns those at `keep`.
    Filter { condition: Arc<dyn PhysicalExpr>, keep: Option<Vec<usize>>, schema: SchemaRef },
    /// Makes new columns.
    Project { columns: Vec<Arc<dyn PhysicalExpr>>, schema: SchemaRef },
    /// No row can pass.
    Nothing,
}

/// Why a batch didn't get through, and where.
pub(super) struct Failure {
    error: DataFusionError,
    step: usize,
    column: usize,
}

impl Program {
    /// The program of a plan that consists of filters and projections over one scan; `None` if there
    /// is anything else in it. `schema` is what must come out.
    pub(super) fn compile(plan: &Arc<dyn ExecutionPlan>, schema: &SchemaRef) -> Result<Option<Self>> {
        let mut steps = Vec::new();
        let mut node = plan;
        let columns = loop {
            if node.fetch().is_some() {
                return Ok(None);
            }
            if let Some(exec) = node.downcast_ref::<ProjectionExec>() {
                let columns = exec.expr().iter().map(|e| Arc::clone(&e.expr)).collect();
                steps.push(Step::Project { columns, schema: node.schema() });
                node = exec.input();
            } else if let Some(exec) = node.downcast_ref::<FilterExec>() {
                steps.push(Step::Filter {
                    condition: Arc::clone(exec.predicate()),
                    keep: exec.projection().as_ref().map(|p| p.to_vec()),
                    schema: node.schema(),
                });
                node = exec.input();
            } else if let Some(exec) = node.downcast_ref::<CooperativeExec>() {
                node = exec.input();
            } else if node.downcast_ref::<StreamingTableExec>().is_some() {
                break node.schema();
            } else if node.downcast_ref::<EmptyExec>().is_some() {
                steps.push(Step::Nothing);
                break Arc::new(Schema::empty());
            } else {
                return Ok(None);
            }
        };
        steps.reverse();
        let planned = plan.schema();
        let same = planned.fields().len() == schema.fields().len()
            && planned.fields().iter().zip(schema.fields()).all(|(a, b)| a.data_type() == b.data_type());
        if !same {
            return Err(Error::internal("the query's plan doesn't give the types that it promised"));
        }
        // The last step makes what was announced, names and metadata included.
        match steps.last_mut() {
            Some(Step::Filter { schema: last, .. } | Step::Project { schema: last, .. }) => {
                *last = Arc::clone(schema);
            }
            Some(Step::Nothing) | None => {}
        }
        Ok(Some(Self { columns, steps, schema: Arc::clone(schema) }))
    }

    /// Maps the rows of a batch whose columns stand at `positions`. `None` if none is left.
    pub(super) fn run(
        &self,
        batch: &RecordBatch,
        positions: &[usize],
    ) -> std::result::Result<Option<RecordBatch>, Failure> {
        let schema = if self.steps.is_empty() { &self.schema } else { &self.columns };
        let columns = positions.iter().map(|p| Arc::clone(batch.column(*p))).collect();
        let mut now = made(schema, columns, batch.num_rows()).map_err(|e| Failure::at(0, 0, e))?;
        for (at, step) in self.steps.iter().enumerate() {
            now = match step {
                Step::Filter { condition, keep, schema } => {
                    match filter(&now, condition, keep.as_deref(), schema)
                        .map_err(|e| Failure::at(at, 0, e))?
                    {
                        Some(kept) => kept,
                        None => return Ok(None),
                    }
                }
                Step::Project { columns, schema } => {
                    let rows = now.num_rows();
                    let mut made_columns = Vec::with_capacity(columns.len());
                    for (i, column) in columns.iter().enumerate() {
                        let value = column.evaluate(&now).and_then(|v| v.into_array(rows));
                        made_columns.push(value.map_err(|e| Failure::at(at, i, e))?);
                    }
                    made(schema, made_columns, rows).map_err(|e| Failure::at(at, 0, e))?
                }
                Step::Nothing => return Ok(None),
            };
        }
        Ok(Some(now))
    }

    /// Whether one of the rows may be to blame.
    pub(super) fn blames_a_row(failure: &Failure) -> bool {
        error::blame(&failure.error).is_some()
    }

    /// What to say about a row that failed.
    pub(super) fn complaint(&self, failure: &Failure) -> String {
        let why = error::blame(&failure.error).unwrap_or("it failed");
        match self.steps.get(failure.step) {
            Some(Step::Filter { condition, .. }) => format!("the condition `{}`: {why}", quoted(condition)),
            Some(Step::Project { columns, schema }) => match columns.get(failure.column) {
                Some(column) => {
                    let name = schema.field(failure.column).name();
                    format!("the column `{name}`, made by `{}`: {why}", quoted(column))
                }
                None => why.to_owned(),
            },
            Some(Step::Nothing) | None => why.to_owned(),
        }
    }

    /// The error for a batch that failed for another reason than its rows.
    pub(super) fn error(&self, failure: &Failure) -> Error {
        let error = error::running(&failure.error);
        match self.steps.get(failure.step) {
            Some(Step::Filter { condition, .. }) => error.with("condition", quoted(condition)),
            Some(Step::Project { columns, .. }) => match columns.get(failure.column) {
                Some(column) => error.with("expression", quoted(column)),
                None => error,
            },
            Some(Step::Nothing) | None => error,
        }
    }
}

impl Failure {
    fn at(step: usize, column: usize, error: DataFusionError) -> Self {
        Self { error, step, column }
    }
}

/// The rows for which the condition is true; `None` if there are none.
fn filter(
    batch: &RecordBatch,
    condition: &Arc<dyn PhysicalExpr>,
    keep: Option<&[usize]>,
    schema: &SchemaRef,
) -> Result<Option<RecordBatch>, DataFusionError> {
    let rows = batch.num_rows();
    let mask = condition.evaluate(batch)?.into_array(rows)?;
    let Some(mask) = mask.as_boolean_opt() else {
        return Err(DataFusionError::Internal("a condition isn't boolean".into()));
    };
    let kept = mask.true_count();
    if kept == 0 {
        return Ok(None);
    }
    let columns: Vec<_> = match keep {
        Some(keep) => keep.iter().map(|i| batch.column(*i)).collect(),
        None => batch.columns().iter().collect(),
    };
    let columns =
        if kept == rows { columns.into_iter().map(Arc::clone).collect() } else { filtered(mask, &columns)? };
    made(schema, columns, kept).map(Some)
}

fn filtered(
    mask: &BooleanArray,
    columns: &[&Arc<dyn Array>],
) -> Result<Vec<Arc<dyn Array>>, DataFusionError> {
    let mut filter = FilterBuilder::new(mask);
    if columns.len() > 1 {
        filter = filter.optimize();
    }
    let filter = filter.build();
    Ok(columns.iter().map(|c| filter.filter(c.as_ref())).collect::<Result<_, _>>()?)
}

fn made(
    schema: &SchemaRef,
    columns: Vec<Arc<dyn Array>>,
    rows: usize,
) -> Result<RecordBatch, DataFusionError> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|_| DataFusionError::Internal("rows don't fit the schema that was promised".into()))
}

fn quoted(expr: &Arc<dyn PhysicalExpr>) -> String {
    let text = fmt_sql(expr.as_ref()).to_string();
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
