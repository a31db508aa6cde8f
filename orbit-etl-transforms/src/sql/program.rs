//! A query that maps rows one by one, compiled: physical expressions that are evaluated batch by
//! batch, without running a plan.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::FilterBuilder;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::tree_node::TreeNode;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_expr_common::physical_expr::fmt_sql;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::streaming::StreamingTableExec;
use datafusion::physical_plan::unnest::UnnestExec;
use orbit_etl_core::{Error, Result};

use super::error::{self, Panicked, Suspects};
use super::unnest::Unnest;

/// The longest expression that a message quotes whole.
const QUOTED: usize = 200;

/// The steps from a batch of the input to the output. Keeps no state, so that lanes share it.
#[derive(Debug)]
pub(super) struct Program {
    /// The columns that are read, in the order in which the steps count them.
    pub(super) columns: SchemaRef,
    steps: Vec<Step>,
    /// What comes out.
    pub(super) schema: SchemaRef,
    /// The names of the host's functions.
    host: HashSet<String>,
}

#[derive(Debug)]
enum Step {
    /// Keeps the rows for which the condition is true, and of their columns those at `keep`.
    Filter { condition: Arc<dyn PhysicalExpr>, keep: Option<Vec<usize>>, schema: SchemaRef },
    /// Makes new columns.
    Project { columns: Vec<Arc<dyn PhysicalExpr>>, schema: SchemaRef },
    /// Makes any number of rows of each.
    Unnest { unnest: Unnest, schema: SchemaRef },
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
    /// The program of a plan that consists of filters, projections and unnesting over one scan; `None`
    /// if there is anything else in it. `schema` is what must come out.
    pub(super) fn compile(
        plan: &Arc<dyn ExecutionPlan>,
        schema: &SchemaRef,
        task: &Arc<TaskContext>,
        host: HashSet<String>,
    ) -> Result<Option<Self>> {
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
            } else if let Some(exec) = node.downcast_ref::<UnnestExec>() {
                let unnest = Unnest::new(exec, Arc::clone(task));
                steps.push(Step::Unnest { unnest, schema: node.schema() });
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
            Some(
                Step::Filter { schema: last, .. }
                | Step::Project { schema: last, .. }
                | Step::Unnest { schema: last, .. },
            ) => *last = Arc::clone(schema),
            Some(Step::Nothing) | None => {}
        }
        Ok(Some(Self { columns, steps, schema: Arc::clone(schema), host }))
    }

    /// Whether a row may give several.
    pub(super) fn expands(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Unnest { .. }))
    }

    /// Maps the rows of a batch whose columns stand at `positions`, and adds what they give to `out`:
    /// at most one batch, unless rows are made; these are added to `held` too.
    pub(super) fn run(
        &self,
        batch: &RecordBatch,
        positions: &[usize],
        out: &mut Vec<RecordBatch>,
        held: &MemoryReservation,
    ) -> std::result::Result<(), Failure> {
        let schema = if self.steps.is_empty() { &self.schema } else { &self.columns };
        let columns = positions.iter().map(|p| Arc::clone(batch.column(*p))).collect();
        let first = made(schema, columns, batch.num_rows()).map_err(|e| Failure::at(0, 0, e))?;
        self.run_from(0, first, out, held)
    }

    fn run_from(
        &self,
        from: usize,
        mut now: RecordBatch,
        out: &mut Vec<RecordBatch>,
        held: &MemoryReservation,
    ) -> std::result::Result<(), Failure> {
        for (at, step) in self.steps.iter().enumerate().skip(from) {
            now = match step {
                Step::Filter { condition, keep, schema } => {
                    match filter(&now, condition, keep.as_deref(), schema)
                        .map_err(|e| Failure::at(at, 0, e))?
                    {
                        Some(kept) => kept,
                        None => return Ok(()),
                    }
                }
                Step::Project { columns, schema } => {
                    let rows = now.num_rows();
                    let mut made_columns = Vec::with_capacity(columns.len());
                    for (i, column) in columns.iter().enumerate() {
                        let value = evaluate(column, &now).and_then(|v| v.into_array(rows));
                        made_columns.push(value.map_err(|e| Failure::at(at, i, e))?);
                    }
                    made(schema, made_columns, rows).map_err(|e| Failure::at(at, 0, e))?
                }
                Step::Unnest { unnest, schema } => {
                    for piece in unnest.run(now, held).map_err(|e| Failure::at(at, 0, e))? {
                        let rows = piece.num_rows();
                        let piece = made(schema, piece.columns().to_vec(), rows);
                        self.run_from(at + 1, piece.map_err(|e| Failure::at(at, 0, e))?, out, held)?;
                    }
                    return Ok(());
                }
                Step::Nothing => return Ok(()),
            };
        }
        out.push(now);
        Ok(())
    }

    /// Whether one of the rows may be to blame.
    pub(super) fn blames_a_row(&self, failure: &Failure) -> bool {
        error::blame(&failure.error, self.suspects(failure)).is_some()
    }

    /// Whether fewer rows at a time might do.
    pub(super) fn lacks_memory(&self, failure: &Failure) -> bool {
        error::lacks_memory(&failure.error, self.suspects(failure))
    }

    /// The expression that failed.
    fn culprit(&self, failure: &Failure) -> Option<&Arc<dyn PhysicalExpr>> {
        match self.steps.get(failure.step)? {
            Step::Filter { condition, .. } => Some(condition),
            Step::Project { columns, .. } => columns.get(failure.column),
            Step::Unnest { .. } | Step::Nothing => None,
        }
    }

    /// A function of the host is suspected where it was called.
    fn suspects(&self, failure: &Failure) -> Suspects {
        let calls = |e: &Arc<dyn PhysicalExpr>| {
            Ok(e.downcast_ref::<ScalarFunctionExpr>().is_some_and(|f| self.host.contains(f.fun().name())))
        };
        let host = self.culprit(failure).is_some_and(|e| e.exists(calls).unwrap_or(true));
        Suspects { host, disk: false }
    }

    /// What to say about a row that failed.
    pub(super) fn complaint(&self, failure: &Failure) -> String {
        let why = error::blame(&failure.error, self.suspects(failure)).unwrap_or("it failed");
        match (self.steps.get(failure.step), self.culprit(failure)) {
            (Some(Step::Project { schema, .. }), Some(column)) => {
                let name = schema.field(failure.column).name();
                format!("the column `{name}`, made by `{}`: {why}", quoted(column))
            }
            (Some(Step::Unnest { .. }), _) => format!("unnesting: {why}"),
            (_, Some(condition)) => format!("the condition `{}`: {why}", quoted(condition)),
            (_, None) => why.to_owned(),
        }
    }

    /// The error for a batch that failed for another reason than its rows.
    pub(super) fn error(&self, failure: &Failure) -> Error {
        let error = error::running(&failure.error, self.suspects(failure));
        match (self.steps.get(failure.step), self.culprit(failure)) {
            (Some(Step::Filter { .. }), Some(condition)) => error.with("condition", quoted(condition)),
            (_, Some(column)) => error.with("expression", quoted(column)),
            (_, None) => error,
        }
    }
}

impl Failure {
    fn at(step: usize, column: usize, error: DataFusionError) -> Self {
        Self { error, step, column }
    }
}

/// The expression's value. A panic in it, most likely in a function of the host, becomes an error
/// that has a place; nothing of the run is used after it.
fn evaluate(expr: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<ColumnarValue, DataFusionError> {
    catch_unwind(AssertUnwindSafe(|| expr.evaluate(batch)))
        .unwrap_or_else(|_| Err(DataFusionError::External(Box::new(Panicked))))
}

/// The rows for which the condition is true; `None` if there are none.
fn filter(
    batch: &RecordBatch,
    condition: &Arc<dyn PhysicalExpr>,
    keep: Option<&[usize]>,
    schema: &SchemaRef,
) -> Result<Option<RecordBatch>, DataFusionError> {
    let rows = batch.num_rows();
    let mask = evaluate(condition, batch)?.into_array(rows)?;
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
