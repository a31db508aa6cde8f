//! What can be left out by knowing the least and the greatest value of each column.
//!
//! Only types whose order here is the order of the filter's evaluation are looked at: whole
//! numbers, decimals, dates, timestamps of one unit and zone, booleans and text by its bytes. NaN
//! and −0.0 make floats unfit.

use std::cmp::Ordering;

use datafusion_common::ScalarValue;
use datafusion_expr::{BinaryExpr, Expr, Operator};

/// What is known of a column in some rows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) min: Option<ScalarValue>,
    pub(crate) max: Option<ScalarValue>,
    /// `Some(true)`: some rows are NULL. `Some(false)`: none is.
    pub(crate) nulls: Option<bool>,
    /// Every row is NULL.
    pub(crate) all_null: bool,
}

/// Where [`Known`] comes from.
pub(crate) trait Bounds {
    fn known(&self, column: &str) -> Option<Known>;
}

/// Columns that have one value in all rows.
pub(crate) struct Constants<'a>(pub(crate) &'a [(String, ScalarValue)]);

impl Bounds for Constants<'_> {
    fn known(&self, column: &str) -> Option<Known> {
        let (_, value) = self.0.iter().find(|(name, _)| name == column)?;
        let null = value.is_null();
        let bound = (!null).then(|| value.clone());
        Some(Known { min: bound.clone(), max: bound, nulls: Some(null), all_null: null })
    }
}

/// Whether [`may_match`] may ever say no to this filter.
pub(crate) fn understands(filter: &Expr) -> bool {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            understands(left) || understands(right)
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            understands(left) && understands(right)
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => comparison(left, *op, right).is_some(),
        Expr::IsNull(inner) | Expr::IsNotNull(inner) => matches!(inner.as_ref(), Expr::Column(_)),
        Expr::InList(list) => {
            !list.negated
                && matches!(list.expr.as_ref(), Expr::Column(_))
                && list.list.iter().all(|item| literal(item).is_some())
        }
        Expr::Between(between) => {
            !between.negated
                && matches!(between.expr.as_ref(), Expr::Column(_))
                && literal(&between.low).is_some()
                && literal(&between.high).is_some()
        }
        _ => false,
    }
}

/// The columns that a filter looks at, as far as [`may_match`] does.
pub(crate) fn columns(filter: &Expr) -> Vec<String> {
    filter.column_refs().into_iter().map(|column| column.name.clone()).collect()
}

/// `false` only if the filter is true for no row.
pub(crate) fn may_match(filter: &Expr, bounds: &dyn Bounds) -> bool {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            may_match(left, bounds) && may_match(right, bounds)
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            may_match(left, bounds) || may_match(right, bounds)
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match comparison(left, *op, right) {
            Some((column, op, value)) => known(bounds, column).is_none_or(|k| may_compare(&k, op, value)),
            None => true,
        },
        Expr::IsNull(inner) => {
            column(inner).and_then(|c| bounds.known(c)).is_none_or(|k| k.nulls != Some(false))
        }
        Expr::IsNotNull(inner) => column(inner).and_then(|c| bounds.known(c)).is_none_or(|k| !k.all_null),
        Expr::InList(list) if !list.negated => match column(&list.expr).and_then(|c| known(bounds, c)) {
            Some(known) => list
                .list
                .iter()
                .any(|item| literal(item).is_none_or(|value| may_compare(&known, Operator::Eq, value))),
            None => true,
        },
        Expr::Between(between) if !between.negated => {
            let Some(known) = column(&between.expr).and_then(|c| known(bounds, c)) else { return true };
            literal(&between.low).is_none_or(|low| may_compare(&known, Operator::GtEq, low))
                && literal(&between.high).is_none_or(|high| may_compare(&known, Operator::LtEq, high))
        }
        _ => true,
    }
}

fn known(bounds: &dyn Bounds, column: &str) -> Option<Known> {
    bounds.known(column)
}

fn may_compare(known: &Known, op: Operator, value: &ScalarValue) -> bool {
    if known.all_null {
        return false;
    }
    // Unknown or unlike: anything is possible.
    let below = |bound: &Option<ScalarValue>| bound.as_ref().and_then(|b| compare(b, value));
    let (min, max) = (below(&known.min), below(&known.max));
    match op {
        Operator::Eq => min != Some(Ordering::Greater) && max != Some(Ordering::Less),
        Operator::NotEq => !(min == Some(Ordering::Equal) && max == Some(Ordering::Equal)),
        Operator::Lt => !matches!(min, Some(Ordering::Greater | Ordering::Equal)),
        Operator::LtEq => min != Some(Ordering::Greater),
        Operator::Gt => !matches!(max, Some(Ordering::Less | Ordering::Equal)),
        Operator::GtEq => max != Some(Ordering::Less),
        _ => true,
    }
}

fn comparison<'a>(
    left: &'a Expr,
    op: Operator,
    right: &'a Expr,
) -> Option<(&'a str, Operator, &'a ScalarValue)> {
    let turned = match op {
        Operator::Eq | Operator::NotEq => op,
        Operator::Lt => Operator::Gt,
        Operator::LtEq => Operator::GtEq,
        Operator::Gt => Operator::Lt,
        Operator::GtEq => Operator::LtEq,
        _ => return None,
    };
    match (column(left), literal(right), literal(left), column(right)) {
        (Some(column), Some(value), _, _) => Some((column, op, value)),
        (_, _, Some(value), Some(column)) => Some((column, turned, value)),
        _ => None,
    }
}

fn column(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Column(column) => Some(&column.name),
        _ => None,
    }
}

fn literal(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(value, _) if !value.is_null() && class(value).is_some() => Some(value),
        _ => None,
    }
}

enum Class<'a> {
    Whole(i128),
    Text(&'a str),
    /// Comparable with values of the very same type.
    Same,
}

fn class(value: &ScalarValue) -> Option<Class<'_>> {
    use ScalarValue as S;
    Some(match value {
        S::Int8(Some(v)) => Class::Whole((*v).into()),
        S::Int16(Some(v)) => Class::Whole((*v).into()),
        S::Int32(Some(v)) => Class::Whole((*v).into()),
        S::Int64(Some(v)) => Class::Whole((*v).into()),
        S::UInt8(Some(v)) => Class::Whole((*v).into()),
        S::UInt16(Some(v)) => Class::Whole((*v).into()),
        S::UInt32(Some(v)) => Class::Whole((*v).into()),
        S::UInt64(Some(v)) => Class::Whole((*v).into()),
        S::Utf8(Some(v)) | S::LargeUtf8(Some(v)) | S::Utf8View(Some(v)) => Class::Text(v),
        S::Boolean(_)
        | S::Decimal128(..)
        | S::Decimal256(..)
        | S::Date32(_)
        | S::TimestampSecond(..)
        | S::TimestampMillisecond(..)
        | S::TimestampMicrosecond(..)
        | S::TimestampNanosecond(..) => Class::Same,
        _ => return None,
    })
}

fn compare(a: &ScalarValue, b: &ScalarValue) -> Option<Ordering> {
    if a.is_null() || b.is_null() {
        return None;
    }
    match (class(a)?, class(b)?) {
        (Class::Whole(a), Class::Whole(b)) => Some(a.cmp(&b)),
        (Class::Text(a), Class::Text(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
        (Class::Same, Class::Same) if a.data_type() == b.data_type() => a.partial_cmp(b),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion_expr::{col, lit};
    use proptest::prelude::*;

    struct One(Known);

    impl Bounds for One {
        fn known(&self, column: &str) -> Option<Known> {
            (column == "x").then(|| self.0.clone())
        }
    }

    fn holds(filter: usize, a: i64, b: i64, x: Option<i64>) -> bool {
        match (filter, x) {
            (6, x) => x.is_none(),
            (7, x) => x.is_some(),
            (_, None) => false,
            (0, Some(x)) => x == a,
            (1, Some(x)) => x != a,
            (2, Some(x)) => x < a,
            (3, Some(x)) => a <= x,
            (4, Some(x)) => x >= a && x <= b,
            (5, Some(x)) => x == a || x == b,
            (8, Some(x)) => x > a || x < b,
            (_, Some(x)) => x > a && x < b,
        }
    }

    fn expr(filter: usize, a: i64, b: i64) -> Expr {
        match filter {
            0 => col("x").eq(lit(a)),
            1 => col("x").not_eq(lit(a)),
            2 => col("x").lt(lit(a)),
            3 => lit(a).lt_eq(col("x")),
            4 => col("x").between(lit(a), lit(b)),
            5 => col("x").in_list(vec![lit(a), lit(b)], false),
            6 => col("x").is_null(),
            7 => col("x").is_not_null(),
            8 => col("x").gt(lit(a)).or(col("x").lt(lit(b))),
            _ => col("x").gt(lit(a)).and(col("x").lt(lit(b))),
        }
    }

    proptest! {
        #[test]
        fn no_row_is_pruned_that_a_filter_wants(
            rows in prop::collection::vec(prop::option::of(-4i64..4), 1..6),
            filter in 0usize..10, a in -5i64..5, b in -5i64..5,
        ) {
            let values: Vec<i64> = rows.iter().flatten().copied().collect();
            let known = Known {
                min: values.iter().min().map(|v| ScalarValue::Int32(i32::try_from(*v).ok())),
                max: values.iter().max().map(|v| ScalarValue::Int32(i32::try_from(*v).ok())),
                nulls: Some(values.len() < rows.len()),
                all_null: values.is_empty(),
            };
            let wanted = rows.iter().any(|x| holds(filter, a, b, *x));
            prop_assert!(understands(&expr(filter, a, b)));
            prop_assert!(!wanted || may_match(&expr(filter, a, b), &One(known)));
        }
    }

    #[test]
    fn floats_and_other_columns_are_left_alone() {
        assert!(!understands(&col("x").eq(lit(1.5))));
        assert!(!understands(&(col("x") + lit(1)).eq(lit(1))));
        let known = Known {
            min: Some(ScalarValue::from("b")),
            max: Some(ScalarValue::from("c")),
            ..Known::default()
        };
        assert!(may_match(&col("y").eq(lit("z")), &One(known.clone())));
        assert!(may_match(&col("x").eq(lit(1)), &One(known.clone())));
        assert!(!may_match(&col("x").eq(lit("z")), &One(known)));
    }
}
