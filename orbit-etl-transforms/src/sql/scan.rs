//! What a query needs of an input: columns, and conditions that rows must meet.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::utils::{conjunction, disjunction};
use datafusion::logical_expr::{Expr, LogicalPlan, TableScan};
use orbit_etl_core::{Context, Error, Result, ScanRequest, StreamId, StreamInfo};

use super::Sql;
use super::plan::Planned;

/// The wish for input `index`.
pub(super) async fn wish(
    sql: &Sql,
    cx: &Context,
    inputs: &[StreamInfo],
    index: usize,
) -> Result<ScanRequest> {
    let mut request = ScanRequest::all(StreamId(index), cx.batch_rows());
    let Some(input) = inputs.get(index) else {
        return Err(Error::internal("there is no input of that number").with("input", index));
    };
    let planned = sql.planned(cx, inputs).await?;
    let scans: Vec<TableScan> =
        planned.scans()?.into_iter().filter(|(i, _)| *i == index).map(|(_, scan)| scan).collect();
    if scans.is_empty() {
        return Ok(request);
    }
    request.filters = filters(&scans);
    let all = (0..input.schema.fields().len()).collect::<BTreeSet<_>>();
    let mut columns = BTreeSet::new();
    for scan in &scans {
        match &scan.projection {
            Some(projection) => columns.extend(projection.iter().copied()),
            None => columns.extend(all.iter().copied()),
        }
    }
    if columns.is_empty() {
        // Rows without columns can't be read everywhere: the smallest column will do.
        columns.extend(cheapest(input));
    }
    // A column may be named in the query and yet not be needed to run it; the query must still be
    // understood over what is left, and mean the same.
    let mut tries = vec![columns.clone()];
    columns.extend(named(&planned, input));
    tries.push(columns);
    for columns in tries {
        if columns.len() == all.len() {
            break;
        }
        if same_over(&planned, sql, cx, inputs, index, &columns).await {
            let names = columns.iter().map(|i| input.schema.field(*i).name().clone());
            request.projection = Some(names.collect());
            break;
        }
    }
    Ok(request)
}

/// Whether the query over just these columns of the input has the same plan.
async fn same_over(
    planned: &Planned,
    sql: &Sql,
    cx: &Context,
    inputs: &[StreamInfo],
    index: usize,
    columns: &BTreeSet<usize>,
) -> bool {
    let columns: Vec<usize> = columns.iter().copied().collect();
    let Ok(schema) = inputs[index].schema.project(&columns) else { return false };
    let mut narrowed = inputs.to_vec();
    narrowed[index].schema = Arc::new(schema);
    match sql.planned(cx, &narrowed).await {
        Ok(other) => other.schema == planned.schema && shown(&other.optimized) == shown(&planned.optimized),
        Err(_) => false,
    }
}

fn shown(plan: &LogicalPlan) -> String {
    plan.display_indent().to_string()
}

/// The columns of this input that the query may name, wherever it does.
fn named(planned: &Planned, input: &StreamInfo) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut note = |column: &Column| {
        if let Ok(at) = input.schema.index_of(&column.name) {
            found.insert(at);
        }
    };
    planned.each_written_column(&mut note);
    found
}

fn cheapest(input: &StreamInfo) -> Option<usize> {
    let fields = input.schema.fields();
    let width = |i: &usize| fields[*i].data_type().primitive_width().unwrap_or(usize::MAX);
    (0..fields.len()).min_by_key(width)
}

/// The rows that one of the scans needs.
fn filters(scans: &[TableScan]) -> Vec<Expr> {
    let usable = |scan: &TableScan| -> Vec<Expr> {
        scan.filters.iter().filter(|f| !f.is_volatile()).filter_map(unqualified).collect()
    };
    match scans {
        [scan] => usable(scan),
        several => {
            let each: Option<Vec<Expr>> = several.iter().map(|scan| conjunction(usable(scan))).collect();
            // One scan without conditions needs all rows.
            each.and_then(disjunction).into_iter().collect()
        }
    }
}

/// The condition with bare column names; `None` if it reaches outside the table.
fn unqualified(filter: &Expr) -> Option<Expr> {
    let outside = |e: &Expr| {
        matches!(
            e,
            Expr::ScalarSubquery(_)
                | Expr::InSubquery(_)
                | Expr::Exists(_)
                | Expr::SetComparison(_)
                | Expr::OuterReferenceColumn(..)
                | Expr::Placeholder(_)
        )
    };
    if filter.exists(|e| Ok(outside(e))).unwrap_or(true) {
        return None;
    }
    let bare = filter.clone().transform(|e| {
        Ok(match e {
            Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name))),
            other => Transformed::no(other),
        })
    });
    bare.ok().map(|t| t.data)
}
