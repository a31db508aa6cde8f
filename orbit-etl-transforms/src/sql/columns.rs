//! What each column of a query's result is made of.

use std::collections::BTreeSet;

use datafusion::common::tree_node::TreeNode;
use datafusion::common::{Column, DFSchema};
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::{Distinct, Expr, JoinType, LogicalPlan};
use orbit_etl_core::{ColumnLineage, ColumnOrigin, ColumnOrigins, ColumnUsage};

use super::plan::{Planned, input_of};

type Origins = BTreeSet<ColumnOrigin>;

/// A part of the plan: by column of its result, and what decides on its rows.
#[derive(Default)]
struct Traced {
    columns: Vec<Origins>,
    rows: Origins,
}

/// `None` where the plan has something in it that nothing is known of.
pub(super) fn lineage(planned: &Planned) -> Option<ColumnLineage> {
    let traced = trace(&planned.optimized)?;
    let fields = planned.schema.fields();
    if traced.columns.len() != fields.len() {
        return None;
    }
    let columns = fields.iter().zip(traced.columns).map(|(field, from)| ColumnOrigins {
        output: 0,
        column: field.name().clone(),
        from: from.into_iter().collect(),
    });
    Some(ColumnLineage { columns: columns.collect(), rows: traced.rows.into_iter().collect() })
}

fn trace(plan: &LogicalPlan) -> Option<Traced> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let input = input_of(scan)?;
            let of = |column: &str, usage| ColumnOrigin { input, column: column.to_owned(), usage };
            let fields = scan.projected_schema.fields().iter();
            let filtered = scan.filters.iter().flat_map(Expr::column_refs);
            Some(Traced {
                columns: fields.map(|f| Origins::from([of(f.name(), ColumnUsage::Same)])).collect(),
                rows: filtered.map(|c| of(&c.name, ColumnUsage::Filter)).collect(),
            })
        }
        LogicalPlan::Projection(projection) => {
            let below = trace(&projection.input)?;
            let schema = projection.input.schema();
            let columns =
                projection.expr.iter().map(|expr| made_of(expr, schema, &below)).collect::<Option<_>>();
            Some(Traced { columns: columns?, rows: below.rows })
        }
        LogicalPlan::Filter(filter) => {
            let mut below = trace(&filter.input)?;
            let used = used(&filter.predicate, filter.input.schema(), &below, ColumnUsage::Filter)?;
            below.rows.extend(used);
            Some(below)
        }
        LogicalPlan::Sort(sort) => {
            let mut below = trace(&sort.input)?;
            for key in &sort.expr {
                let used = used(&key.expr, sort.input.schema(), &below, ColumnUsage::Sort)?;
                below.rows.extend(used);
            }
            Some(below)
        }
        LogicalPlan::SubqueryAlias(alias) => trace(&alias.input),
        LogicalPlan::Limit(limit) => trace(&limit.input),
        LogicalPlan::Repartition(repartition) => trace(&repartition.input),
        LogicalPlan::Distinct(Distinct::All(input)) => {
            let mut below = trace(input)?;
            let all: Vec<_> = below.columns.iter().flatten().cloned().collect();
            below.rows.extend(all.into_iter().map(|o| ColumnOrigin { usage: ColumnUsage::Group, ..o }));
            Some(below)
        }
        LogicalPlan::Join(join) => {
            let (mut left, mut right) = (trace(&join.left)?, trace(&join.right)?);
            let mut rows = Origins::new();
            for (l, r) in &join.on {
                rows.extend(used(l, join.left.schema(), &left, ColumnUsage::Join)?);
                rows.extend(used(r, join.right.schema(), &right, ColumnUsage::Join)?);
            }
            for column in join.filter.iter().flat_map(Expr::column_refs) {
                let from = at(column, join.left.schema(), &left)
                    .or_else(|| at(column, join.right.schema(), &right))?;
                rows.extend(from.iter().map(|o| ColumnOrigin { usage: ColumnUsage::Join, ..o.clone() }));
            }
            rows.append(&mut left.rows);
            rows.append(&mut right.rows);
            let columns = match join.join_type {
                JoinType::LeftSemi | JoinType::LeftAnti => left.columns,
                JoinType::RightSemi | JoinType::RightAnti => right.columns,
                // The mark says whether there is a match, which is said of the keys already.
                JoinType::LeftMark => with_mark(left.columns),
                JoinType::RightMark => with_mark(right.columns),
                _ => {
                    left.columns.append(&mut right.columns);
                    left.columns
                }
            };
            Some(Traced { columns, rows })
        }
        LogicalPlan::Aggregate(aggregate) => {
            let below = trace(&aggregate.input)?;
            let schema = aggregate.input.schema();
            let mut columns = Vec::with_capacity(aggregate.schema.fields().len());
            let mut rows = Origins::new();
            for key in &aggregate.group_expr {
                if matches!(key, Expr::GroupingSet(_)) {
                    return None;
                }
                columns.push(made_of(key, schema, &below)?);
                rows.extend(used(key, schema, &below, ColumnUsage::Group)?);
            }
            for value in &aggregate.aggr_expr {
                columns.push(used(value, schema, &below, ColumnUsage::Aggregated)?);
            }
            rows.extend(below.rows);
            Some(Traced { columns, rows })
        }
        LogicalPlan::Window(window) => {
            let mut below = trace(&window.input)?;
            let schema = window.input.schema();
            let mut more = Vec::with_capacity(window.window_expr.len());
            for expr in &window.window_expr {
                more.push(windowed(unaliased(expr), schema, &below)?);
            }
            below.columns.append(&mut more);
            Some(below)
        }
        LogicalPlan::Union(union) => {
            let mut inputs = union.inputs.iter();
            let mut all = trace(inputs.next()?)?;
            for input in inputs {
                let next = trace(input)?;
                if next.columns.len() != all.columns.len() {
                    return None;
                }
                all.columns.iter_mut().zip(next.columns).for_each(|(a, b)| a.extend(b));
                all.rows.extend(next.rows);
            }
            Some(all)
        }
        LogicalPlan::Unnest(unnest) => {
            let below = trace(&unnest.input)?;
            let columns = unnest.dependency_indices.iter().map(|i| below.columns.get(*i).cloned());
            Some(Traced { columns: columns.collect::<Option<_>>()?, rows: below.rows })
        }
        LogicalPlan::EmptyRelation(_) | LogicalPlan::Values(_) => {
            Some(Traced { columns: vec![Origins::new(); plan.schema().fields().len()], rows: Origins::new() })
        }
        _ => None,
    }
}

fn with_mark(mut columns: Vec<Origins>) -> Vec<Origins> {
    columns.push(Origins::new());
    columns
}

fn unaliased(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

/// A column comes through as it is; everything else is computed.
fn made_of(expr: &Expr, schema: &DFSchema, below: &Traced) -> Option<Origins> {
    match unaliased(expr) {
        Expr::Column(column) => at(column, schema, below).cloned(),
        other if asks_elsewhere(other) => None,
        other => {
            let mut from = Origins::new();
            for column in other.column_refs() {
                from.extend(at(column, schema, below)?.iter().map(|origin| ColumnOrigin {
                    usage: origin.usage.max(ColumnUsage::Computed),
                    ..origin.clone()
                }));
            }
            Some(from)
        }
    }
}

fn used(expr: &Expr, schema: &DFSchema, below: &Traced, usage: ColumnUsage) -> Option<Origins> {
    if asks_elsewhere(expr) {
        return None;
    }
    let mut from = Origins::new();
    for column in expr.column_refs() {
        from.extend(at(column, schema, below)?.iter().map(|origin| ColumnOrigin { usage, ..origin.clone() }));
    }
    Some(from)
}

/// A subquery that was not made a join: its columns don't show in the expression.
fn asks_elsewhere(expr: &Expr) -> bool {
    let subquery =
        |e: &Expr| Ok(matches!(e, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_)));
    expr.exists(subquery).unwrap_or(true)
}

/// What a function over a window is called with, and what makes the window.
fn windowed(expr: &Expr, schema: &DFSchema, below: &Traced) -> Option<Origins> {
    let Expr::WindowFunction(function) = expr else {
        return used(expr, schema, below, ColumnUsage::Window);
    };
    let WindowFunction { params, .. } = &**function;
    let mut from = Origins::new();
    for arg in &params.args {
        from.extend(used(arg, schema, below, ColumnUsage::Computed)?);
    }
    if let Some(filter) = &params.filter {
        from.extend(used(filter, schema, below, ColumnUsage::Filter)?);
    }
    for key in params.partition_by.iter().chain(params.order_by.iter().map(|key| &key.expr)) {
        from.extend(used(key, schema, below, ColumnUsage::Window)?);
    }
    Some(from)
}

fn at<'a>(column: &Column, schema: &DFSchema, below: &'a Traced) -> Option<&'a Origins> {
    below.columns.get(schema.maybe_index_of_column(column)?)
}
