//! Files that can't hold a row that is wanted.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion_expr::{Expr, Operator};
use deltalake::datafusion::common::DFSchema;
use deltalake::datafusion::logical_expr::utils::conjunction;
use deltalake::datafusion::physical_optimizer::pruning::PruningPredicateBuilder;

use super::loaded::Loaded;
use super::read::Part;

/// Whether a filter can leave files out: comparisons of columns with values, and what is made of them.
pub(crate) fn is_usable(filter: &Expr) -> bool {
    match filter {
        Expr::Column(_) => true,
        Expr::Literal(value, _) => !value.is_null(),
        Expr::BinaryExpr(binary) => {
            let known = matches!(
                binary.op,
                Operator::Eq
                    | Operator::NotEq
                    | Operator::Lt
                    | Operator::LtEq
                    | Operator::Gt
                    | Operator::GtEq
                    | Operator::And
                    | Operator::Or
            );
            known && is_usable(&binary.left) && is_usable(&binary.right)
        }
        Expr::IsNull(inner) | Expr::IsNotNull(inner) => matches!(inner.as_ref(), Expr::Column(_)),
        _ => false,
    }
}

/// Whether a file may hold a row for which all filters are true. In doubt it may.
pub(crate) fn is_needed(loaded: &Loaded, part: &Part, filters: &[Expr]) -> bool {
    let schema = Arc::clone(loaded.schema());
    let usable = filters.iter().filter(|filter| is_usable(filter) && has_sure_bounds(filter, &schema));
    let Some(filter) = conjunction(usable.cloned()) else { return true };
    let Ok(state) = loaded.table().snapshot() else { return true };
    let Ok(columns) = DFSchema::try_from(schema.as_ref().clone()) else { return true };
    let Ok(filter) = loaded.session().create_physical_expr(filter, &columns) else { return true };
    let builder = PruningPredicateBuilder::new().with_file_schema(schema);
    let Ok(predicate) = builder.try_build(filter) else { return true };
    let files = state.log_data();
    let Some(at) = files.iter().position(|file| file.path() == part.path) else { return true };
    match predicate.prune(&files) {
        Ok(kept) => kept.get(at).copied().unwrap_or(true),
        Err(_) => true,
    }
}

/// Whether the bounds of all columns in a filter can be relied on, whoever wrote them. Times are cut to
/// milliseconds by some, decimals go through a double in others, and floats may hide a NaN.
fn has_sure_bounds(filter: &Expr, schema: &Schema) -> bool {
    filter.column_refs().iter().all(|column| {
        schema.field_with_name(column.name()).is_ok_and(|field| {
            matches!(
                field.data_type(),
                DataType::Boolean
                    | DataType::Int8
                    | DataType::Int16
                    | DataType::Int32
                    | DataType::Int64
                    | DataType::Date32
                    | DataType::Utf8View
            )
        })
    })
}
