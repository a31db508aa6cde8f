//! Files that can't hold a row that is wanted.

use datafusion_common::ScalarValue;
use datafusion_expr::{Expr, Operator};
use iceberg::expr::{Predicate, Reference};
use iceberg::spec::{Datum, PrimitiveType, Schema, Type};

/// Whether a filter can leave files out: comparisons of columns with values, and what is made of them.
pub(super) fn is_usable(filter: &Expr) -> bool {
    match filter {
        Expr::BinaryExpr(binary) => match binary.op {
            Operator::And => is_usable(&binary.left) || is_usable(&binary.right),
            Operator::Or => is_usable(&binary.left) && is_usable(&binary.right),
            Operator::Eq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq => {
                sides(&binary.left, &binary.right).is_some()
            }
            _ => false,
        },
        Expr::InList(list) => {
            !list.negated
                && matches!(*list.expr, Expr::Column(_))
                && list.list.iter().all(|item| matches!(item, Expr::Literal(value, _) if !value.is_null()))
        }
        Expr::IsNull(inner) | Expr::IsNotNull(inner) => matches!(inner.as_ref(), Expr::Column(_)),
        _ => false,
    }
}

/// A predicate that is true of every row for which all filters are; `None` if nothing can be said. The
/// filters name columns as they are now, the predicate as they were `then`.
pub(super) fn predicate(filters: &[Expr], now: &Schema, then: &Schema) -> Option<Predicate> {
    let columns = Columns { now, then };
    filters.iter().filter_map(|filter| convert(filter, columns)).reduce(Predicate::and)
}

/// Only columns that have the same name in both are spoken of.
#[derive(Clone, Copy)]
struct Columns<'a> {
    now: &'a Schema,
    then: &'a Schema,
}

fn convert(filter: &Expr, schema: Columns<'_>) -> Option<Predicate> {
    match filter {
        Expr::BinaryExpr(binary) => {
            let left = || convert(&binary.left, schema);
            let right = || convert(&binary.right, schema);
            match binary.op {
                Operator::And => match (left(), right()) {
                    (Some(left), Some(right)) => Some(left.and(right)),
                    (one, other) => one.or(other),
                },
                Operator::Or => Some(left()?.or(right()?)),
                op => {
                    let (column, value, turned) = sides(&binary.left, &binary.right)?;
                    let value = datum(value, column_type(column, schema)?)?;
                    let column = Reference::new(column);
                    Some(match (op, turned) {
                        (Operator::Eq, _) => column.equal_to(value),
                        (Operator::Lt, false) | (Operator::Gt, true) => column.less_than(value),
                        (Operator::LtEq, false) | (Operator::GtEq, true) => {
                            column.less_than_or_equal_to(value)
                        }
                        (Operator::Gt, false) | (Operator::Lt, true) => column.greater_than(value),
                        (Operator::GtEq, false) | (Operator::LtEq, true) => {
                            column.greater_than_or_equal_to(value)
                        }
                        _ => return None,
                    })
                }
            }
        }
        Expr::InList(list) if !list.negated => {
            let Expr::Column(column) = list.expr.as_ref() else { return None };
            let of = column_type(&column.name, schema)?;
            let value = |item: &Expr| match item {
                Expr::Literal(value, _) => datum(value, of),
                _ => None,
            };
            let values = list.list.iter().map(value).collect::<Option<Vec<_>>>()?;
            Some(Reference::new(&column.name).is_in(values))
        }
        Expr::IsNull(inner) | Expr::IsNotNull(inner) => {
            let Expr::Column(column) = inner.as_ref() else { return None };
            column_type(&column.name, schema)?;
            let reference = Reference::new(&column.name);
            Some(match filter {
                Expr::IsNull(_) => reference.is_null(),
                _ => reference.is_not_null(),
            })
        }
        _ => None,
    }
}

/// The column and the value that are compared, and whether the value stands first.
fn sides<'a>(left: &'a Expr, right: &'a Expr) -> Option<(&'a str, &'a ScalarValue, bool)> {
    match (left, right) {
        (Expr::Column(column), Expr::Literal(value, _)) if !value.is_null() => {
            Some((&column.name, value, false))
        }
        (Expr::Literal(value, _), Expr::Column(column)) if !value.is_null() => {
            Some((&column.name, value, true))
        }
        _ => None,
    }
}

fn column_type<'a>(name: &str, columns: Columns<'a>) -> Option<&'a PrimitiveType> {
    let find = |schema: &'a Schema| schema.as_struct().fields().iter().find(|column| column.name == name);
    let column = find(columns.then)?;
    if find(columns.now)?.id != column.id {
        return None;
    }
    match column.field_type.as_ref() {
        Type::Primitive(of) => Some(of),
        _ => None,
    }
}

/// A value of the column's own type. Floats are left out: NaN and negative zero have another order here.
fn datum(value: &ScalarValue, of: &PrimitiveType) -> Option<Datum> {
    use PrimitiveType as P;
    use ScalarValue as S;
    Some(match (of, value) {
        (P::Boolean, S::Boolean(Some(value))) => Datum::bool(*value),
        (P::Int | P::Long, value) => {
            let value = match value {
                S::Int8(value) => i64::from((*value)?),
                S::Int16(value) => i64::from((*value)?),
                S::Int32(value) => i64::from((*value)?),
                S::Int64(value) => (*value)?,
                _ => return None,
            };
            match of {
                P::Int => Datum::int(i32::try_from(value).ok()?),
                _ => Datum::long(value),
            }
        }
        (P::Date, S::Date32(Some(days))) => Datum::date(*days),
        (P::Timestamp, S::TimestampMicrosecond(Some(value), None)) => Datum::timestamp_micros(*value),
        (P::Timestamptz, S::TimestampMicrosecond(Some(value), Some(_))) => Datum::timestamptz_micros(*value),
        (P::String, S::Utf8(value) | S::LargeUtf8(value) | S::Utf8View(value)) => {
            Datum::string(value.as_ref()?)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion_expr::{col, lit};
    use iceberg::spec::NestedField;

    #[test]
    fn what_can_not_be_said_is_left_out() {
        let fields = [
            NestedField::optional(1, "id", Type::Primitive(PrimitiveType::Int)),
            NestedField::optional(2, "f", Type::Primitive(PrimitiveType::Double)),
        ];
        let schema = Schema::builder().with_fields(fields.map(Into::into)).build().unwrap();
        let of = |filter: Expr| predicate(&[filter], &schema, &schema).map(|predicate| predicate.to_string());
        assert_eq!(of(lit(3_i64).lt(col("id"))).unwrap(), "id > 3");
        assert_eq!(of(col("id").lt(lit(3_i64)).and(col("f").gt(lit(1.0)))).unwrap(), "id < 3");
        assert_eq!(of(col("id").lt(lit(3_i64)).or(col("f").gt(lit(1.0)))), None);
        assert_eq!(of(col("id").gt(lit(5_000_000_000_i64))), None);
        let other = NestedField::optional(3, "id", Type::Primitive(PrimitiveType::Int));
        let other = Schema::builder().with_fields([other.into()]).build().unwrap();
        assert!(predicate(&[col("id").lt(lit(3_i64))], &other, &schema).is_none());
        assert!(is_usable(&col("id").is_null()) && !is_usable(&col("id").not_eq(lit(1_i64))));
    }
}
