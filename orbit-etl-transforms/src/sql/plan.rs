//! From a query's text to its plan.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, TableReference};
use datafusion::datasource::source_as_provider;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::memory_pool::MemoryLimit;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::execution::{FunctionRegistry, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, TableScan, Volatility};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Query, SetExpr, Statement as SqlStatement};
use orbit_etl_core::{Context, Error, Result, StreamInfo};

use super::input::{Feeds, InputTable};
use super::program::Program;
use super::{Joins, Sql, error, names};

/// What a sort sets aside to merge what it has spilled: DataFusion's own value, less in a small pool.
const SORT_RESERVATION: usize = 10 << 20;

/// All sorts of one join together set aside an eighth of the memory.
const SORT_SHARE: usize = 16;

/// What a part of a join by sorting needs for its two sorts: each merges what it has spilled from some
/// files at once, with a batch or two of each.
const PART_MEMORY: usize = 5 << 20;

/// A planned query: what it gives, and how. Nothing in it belongs to a run.
pub(super) struct Planned {
    /// As it was written.
    written: LogicalPlan,
    /// As it will run.
    pub(super) optimized: LogicalPlan,
    /// What comes out.
    pub(super) schema: SchemaRef,
    /// Whether the query asks for an order of its result. One that only comes of how the plan works is
    /// not what was asked for.
    pub(super) ordered: bool,
    program: Option<Arc<Program>>,
}

impl Planned {
    /// Plans the query over these inputs.
    pub(super) async fn new(sql: &Sql, cx: &Context, inputs: &[StreamInfo]) -> Result<Self> {
        let state = session(
            sql,
            cx,
            SessionConfig::new().with_target_partitions(1),
            Arc::new(RuntimeEnv::default()),
        )?;
        let named = names::tables(inputs)?;
        for (name, index) in &named {
            let table: Arc<dyn TableProvider> =
                Arc::new(InputTable::new(*index, Arc::clone(&inputs[*index].schema)));
            let reference = TableReference::bare(name.as_str());
            state
                .schema_for_ref(reference)
                .and_then(|schema| schema.register_table(name.clone(), table))
                .map_err(|_| {
                    Error::internal("an input can't be registered as a table").with("table", name)
                })?;
        }
        let fail = |e: DataFusionError| error::planning(&e, inputs);
        let dialect = state.config().options().sql_parser.dialect;
        let mut statement = state.sql_to_statement(&sql.query, &dialect).map_err(fail)?;
        let ordered = match &mut statement {
            Statement::Statement(inner) => {
                let SqlStatement::Query(query) = inner.as_ref() else { return Err(not_a_query()) };
                let ordered = asks_order(query);
                names::settle(inner, inputs, &named);
                ordered
            }
            _ => return Err(not_a_query()),
        };
        for reference in state.resolve_table_references(&statement).map_err(fail)? {
            known_table(&state, &reference, &named, &statement)?;
        }
        let written = state.statement_to_plan(statement).await.map_err(fail)?;
        let reads =
            SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        reads.verify_plan(&written).map_err(|_| not_a_query())?;
        used(&written, inputs)?;
        let optimized = state.optimize(&written).map_err(fail)?;
        let schema = Arc::new(optimized.schema().as_arrow().clone());
        unique(&schema)?;
        // What can't be run is told now.
        let physical = physical(&state, &optimized).await.map_err(fail)?;
        let program = match row_wise(&written).map_err(fail)? {
            true => Program::compile(&physical, &schema, &state.task_ctx(), sql.functions.scalar_names())?,
            false => None,
        };
        Ok(Self { written, optimized, schema, ordered, program: program.map(Arc::new) })
    }

    /// The physical plan for a run whose inputs have these rows.
    pub(super) async fn run(
        &self,
        sql: &Sql,
        cx: &Context,
        inputs: &[StreamInfo],
        rows: Feeds,
        runtime: Arc<RuntimeEnv>,
    ) -> Result<(Arc<dyn ExecutionPlan>, Arc<TaskContext>)> {
        let config = SessionConfig::new()
            .with_target_partitions(partitions(sql, cx))
            .with_sort_spill_reservation_bytes(sort_reservation(sql, cx))
            .with_extension(Arc::new(rows));
        let state = session(sql, cx, config, runtime)?;
        let plan = physical(&state, &self.optimized).await.map_err(|e| error::planning(&e, inputs))?;
        Ok((plan, state.task_ctx()))
    }

    /// The program that maps rows batch by batch, if the query can be run so.
    pub(super) fn program(&self) -> Option<&Arc<Program>> {
        self.program.as_ref()
    }

    /// Whether the time at which a run began stands in the plan.
    pub(super) fn timed(&self) -> bool {
        let stable = |e: &Expr| match e {
            Expr::ScalarFunction(f) => f.func.signature().volatility == Volatility::Stable,
            _ => false,
        };
        let mut found = false;
        let walked = self.written.apply_with_subqueries(|node| {
            node.apply_expressions(|expr| {
                found = found || expr.exists(|e| Ok(stable(e)))?;
                Ok(TreeNodeRecursion::Continue)
            })
        });
        found || walked.is_err()
    }

    /// The key columns of the only input by their names in the result, where all of them are passed
    /// through and the rows are still the same ones.
    pub(super) fn keys(&self, inputs: &[StreamInfo]) -> Vec<String> {
        let [input] = inputs else { return Vec::new() };
        if self.program.is_none() {
            return Vec::new();
        }
        let origins: Vec<Option<String>> =
            (0..self.schema.fields().len()).map(|i| origin(&self.optimized, i)).collect();
        let keys = input.keys.iter().map(|key| {
            let at = origins.iter().position(|o| o.as_deref() == Some(key.as_str()))?;
            Some(self.schema.field(at).name().clone())
        });
        keys.collect::<Option<Vec<_>>>().unwrap_or_default()
    }

    /// The scans of each input that the optimized plan has, with the input's index.
    pub(super) fn scans(&self) -> Result<Vec<(usize, TableScan)>> {
        scans_of(&self.optimized)
    }

    /// Calls `note` with every column that the query's expressions name.
    pub(super) fn each_written_column(&self, note: &mut impl FnMut(&Column)) {
        // An error would stop the walk, and there is none.
        let _ = self.written.apply_with_subqueries(|node| {
            node.apply_expressions(|expr| {
                expr.column_refs().into_iter().for_each(&mut *note);
                Ok(TreeNodeRecursion::Continue)
            })
        });
    }

    /// Whether a part of the plan runs again and again.
    pub(super) fn repeats(&self) -> bool {
        self.optimized.exists(|p| Ok(matches!(p, LogicalPlan::RecursiveQuery(_)))).unwrap_or(true)
    }
}

/// Whether a query, not one of its parts, has an ORDER BY. The plan doesn't tell: a last projection may
/// have dropped the columns that it sorted by.
fn asks_order(query: &Query) -> bool {
    query.order_by.is_some() || matches!(query.body.as_ref(), SetExpr::Query(inner) if asks_order(inner))
}

/// How many parts of the data are worked on at once.
fn partitions(sql: &Sql, cx: &Context) -> usize {
    match sql.joins {
        Joins::Hash => cx.parallelism(),
        Joins::SortMerge => {
            let room = match cx.memory().memory_limit() {
                MemoryLimit::Finite(limit) => limit / PART_MEMORY,
                _ => usize::MAX,
            };
            // DataFusion doesn't think of sorting where there is one part only.
            cx.parallelism().min(room).max(2)
        }
    }
}

/// What each sort sets aside.
pub(super) fn sort_reservation(sql: &Sql, cx: &Context) -> usize {
    match cx.memory().memory_limit() {
        MemoryLimit::Finite(limit) => (limit / (SORT_SHARE * partitions(sql, cx))).min(SORT_RESERVATION),
        _ => SORT_RESERVATION,
    }
}

async fn physical(
    state: &SessionState,
    plan: &LogicalPlan,
) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    state.query_planner().create_physical_plan(plan, state).await
}

fn session(sql: &Sql, cx: &Context, config: SessionConfig, runtime: Arc<RuntimeEnv>) -> Result<SessionState> {
    let mut config = config.with_batch_size(cx.batch_rows());
    let options = config.options_mut();
    options.sql_parser.enable_ident_normalization = false;
    options.sql_parser.collect_spans = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.optimizer.expand_views_at_output = false;
    options.optimizer.prefer_hash_join = sql.joins == Joins::Hash;
    let mut state = SessionStateBuilder::new_with_default_features()
        .with_config(config)
        .with_runtime_env(runtime)
        .build();
    state.execution_props_mut().query_execution_start_time = Some(sql.plans.time(cx).into());
    let refused = |e: DataFusionError, name: &str| {
        Error::config(format!("a function of the host can't be registered: {e}")).with("function", name)
    };
    for f in &sql.functions.scalar {
        state.register_udf(Arc::clone(f)).map_err(|e| refused(e, f.name()))?;
    }
    for f in &sql.functions.aggregate {
        state.register_udaf(Arc::clone(f)).map_err(|e| refused(e, f.name()))?;
    }
    for f in &sql.functions.window {
        state.register_udwf(Arc::clone(f)).map_err(|e| refused(e, f.name()))?;
    }
    Ok(state)
}

fn not_a_query() -> Error {
    Error::config("the sql transform takes one SELECT query and nothing else")
        .remedy("leave out statements like INSERT, CREATE, COPY, SET or EXPLAIN; a sink does the writing")
}

/// A table that the query names is an input or a table function.
fn known_table(
    state: &SessionState,
    named: &TableReference,
    tables: &[(String, usize)],
    statement: &Statement,
) -> Result<()> {
    if let TableReference::Bare { table } = named
        && (tables.iter().any(|(name, _)| name.as_str() == table.as_ref())
            || state.table_functions().contains_key(table.as_ref()))
    {
        return Ok(());
    }
    let named = named.to_string();
    let place = match statement {
        Statement::Statement(inner) => names::place_of_table(inner, &named),
        _ => None,
    };
    Err(error::unknown_table(&named, place, tables.iter().map(|(name, _)| name.clone())))
}

/// Every input is read: rows that go nowhere are a mistake.
fn used(plan: &LogicalPlan, inputs: &[StreamInfo]) -> Result<()> {
    let scans = scans_of(plan)?;
    match (0..inputs.len()).find(|i| scans.iter().all(|(input, _)| input != i)) {
        None => Ok(()),
        Some(unused) => Err(Error::config("the query doesn't read one of its inputs")
            .with("input", &inputs[unused].name)
            .remedy("name it in the query, or take it off the node's inputs")),
    }
}

fn unique(schema: &Schema) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    match schema.fields().iter().find(|f| !seen.insert(f.name().as_str())) {
        None => Ok(()),
        Some(field) => Err(error::twice(field.name())),
    }
}

/// Whether what a row of one input gives doesn't depend on the other rows.
fn row_wise(plan: &LogicalPlan) -> Result<bool, DataFusionError> {
    let mut subquery = false;
    plan.apply_subqueries(|_| {
        subquery = true;
        Ok(TreeNodeRecursion::Stop)
    })?;
    if subquery {
        return Ok(false);
    }
    match plan {
        LogicalPlan::Projection(p) => row_wise(&p.input),
        LogicalPlan::Filter(f) => row_wise(&f.input),
        LogicalPlan::Unnest(u) => row_wise(&u.input),
        LogicalPlan::SubqueryAlias(a) => row_wise(&a.input),
        LogicalPlan::TableScan(scan) => Ok(input_of(scan).is_some()),
        _ => Ok(false),
    }
}

/// The input's column that comes out unchanged as column `at` of the plan.
fn origin(plan: &LogicalPlan, at: usize) -> Option<String> {
    match plan {
        LogicalPlan::Projection(p) => {
            let mut expr = p.expr.get(at)?;
            while let Expr::Alias(alias) = expr {
                expr = &alias.expr;
            }
            let Expr::Column(column) = expr else { return None };
            origin(&p.input, p.input.schema().maybe_index_of_column(column)?)
        }
        LogicalPlan::Filter(f) => origin(&f.input, at),
        LogicalPlan::SubqueryAlias(a) => origin(&a.input, at),
        LogicalPlan::TableScan(scan) => Some(scan.projected_schema.field(at).name().clone()),
        _ => None,
    }
}

fn scans_of(plan: &LogicalPlan) -> Result<Vec<(usize, TableScan)>> {
    let mut scans = Vec::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Some(input) = input_of(scan)
        {
            scans.push((input, scan.clone()));
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .map_err(|_| Error::internal("the plan of the query can't be walked"))?;
    Ok(scans)
}

pub(super) fn input_of(scan: &TableScan) -> Option<usize> {
    let provider = source_as_provider(&scan.source).ok()?;
    provider.downcast_ref::<InputTable>().map(InputTable::index)
}
