//! Arrow's types and Iceberg's.
//!
//! The crate's documentation has them in a table.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, Field, Schema, SchemaRef};
use iceberg::arrow::schema_to_arrow_schema;
use iceberg::spec::{ListType, MapType, NestedField, NestedFieldRef, PrimitiveType, StructType, Type};
use orbit_etl_core::{Error, Result};

use crate::bridge;
use crate::error::cause;

/// A new table's schema for rows of this form. Every column may be NULL; field numbers count from 1.
///
/// # Errors
/// `Schema` naming the column whose type Iceberg lacks, or whose name another has.
pub(crate) fn to_iceberg(schema: &Schema) -> Result<iceberg::spec::Schema> {
    let mut names = HashSet::new();
    if let Some(twice) = schema.fields().iter().find(|field| !names.insert(field.name().to_lowercase())) {
        return Err(Error::schema("two columns have the same name but for upper and lower case")
            .with("column", twice.name())
            .remedy("rename one: many readers of Iceberg don't tell them apart"));
    }
    let fields = fields(schema.fields().iter().map(AsRef::as_ref), &mut 0, "")?;
    let schema = iceberg::spec::Schema::builder().with_fields(fields).build();
    schema.map_err(|e| Error::schema("these columns make no table").caused_by(cause(&e)))
}

/// A table's columns as Arrow has them.
pub(crate) fn to_arrow(schema: &iceberg::spec::Schema) -> Result<SchemaRef> {
    let schema = schema_to_arrow_schema(schema)
        .map_err(|e| Error::schema("the table has a type that Arrow lacks").caused_by(cause(&e)))?;
    bridge::schema_to_59(&schema)
}

/// A column's type, for a column that a table gets.
pub(crate) fn of_column(field: &Field) -> Result<Type> {
    to_type(field.data_type(), &mut 0, field.name())
}

fn fields<'a>(
    fields: impl Iterator<Item = &'a Field>,
    ids: &mut i32,
    within: &str,
) -> Result<Vec<NestedFieldRef>> {
    let fields: Vec<_> = fields.map(|field| (next(ids), field)).collect();
    let of = |(id, field): (i32, &Field)| {
        let path = match within {
            "" => field.name().clone(),
            within => format!("{within}.{}", field.name()),
        };
        Ok(Arc::new(NestedField::optional(id, field.name(), to_type(field.data_type(), ids, &path)?)))
    };
    fields.into_iter().map(of).collect()
}

fn next(ids: &mut i32) -> i32 {
    *ids += 1;
    *ids
}

fn to_type(from: &DataType, ids: &mut i32, path: &str) -> Result<Type> {
    use DataType as D;
    use PrimitiveType as P;
    let decimal = |precision: u8, scale: i8| P::Decimal {
        precision: u32::from(precision),
        scale: u32::from(scale.unsigned_abs()),
    };
    let primitive = match from {
        D::Boolean => P::Boolean,
        D::Int8 | D::Int16 | D::Int32 | D::UInt8 | D::UInt16 => P::Int,
        D::Int64 | D::UInt32 => P::Long,
        D::UInt64 => decimal(20, 0),
        D::Float16 | D::Float32 => P::Float,
        D::Float64 => P::Double,
        D::Decimal32(p, s) | D::Decimal64(p, s) | D::Decimal128(p, s) | D::Decimal256(p, s)
            if *p <= DECIMAL128_MAX_PRECISION && u8::try_from(*s).is_ok_and(|s| s <= *p) =>
        {
            decimal(*p, *s)
        }
        D::Utf8 | D::LargeUtf8 | D::Utf8View => P::String,
        D::Binary | D::LargeBinary | D::BinaryView => P::Binary,
        D::FixedSizeBinary(width) => P::Fixed(u64::from(width.unsigned_abs())),
        D::Date32 => P::Date,
        D::Date64 | D::Timestamp(_, None) => P::Timestamp,
        D::Timestamp(_, Some(_)) => P::Timestamptz,
        D::Time32(_) | D::Time64(_) => P::Time,
        D::Struct(inner) if !inner.is_empty() => {
            let inner = fields(inner.iter().map(AsRef::as_ref), ids, path)?;
            return Ok(Type::Struct(StructType::new(inner)));
        }
        D::List(item)
        | D::LargeList(item)
        | D::FixedSizeList(item, _)
        | D::ListView(item)
        | D::LargeListView(item) => {
            let id = next(ids);
            let to = to_type(item.data_type(), ids, &format!("{path}.element"))?;
            let element_field = Arc::new(NestedField::list_element(id, to, false));
            return Ok(Type::List(ListType { element_field }));
        }
        D::Map(entries, _) => match entries.data_type() {
            D::Struct(pair) if pair.len() == 2 => {
                let (key, value) = (next(ids), next(ids));
                let key_type = to_type(pair[0].data_type(), ids, &format!("{path}.key"))?;
                let value_type = to_type(pair[1].data_type(), ids, &format!("{path}.value"))?;
                return Ok(Type::Map(MapType {
                    key_field: Arc::new(NestedField::map_key_element(key, key_type)),
                    value_field: Arc::new(NestedField::map_value_element(value, value_type, false)),
                }));
            }
            _ => return Err(no_type(from, path)),
        },
        D::Dictionary(_, values) => return to_type(values, ids, path),
        D::RunEndEncoded(_, values) => return to_type(values.data_type(), ids, path),
        _ => return Err(no_type(from, path)),
    };
    Ok(Type::Primitive(primitive))
}

fn no_type(from: &DataType, path: &str) -> Error {
    Error::schema("Iceberg has no type for this column")
        .with("column", path)
        .with("type", from)
        .remedy("leave the column out, or cast it to another type")
}

/// Whether a column of a table's type can hold every value of another one of them.
pub(crate) fn holds(table: &Type, rows: &Type) -> bool {
    use PrimitiveType as P;
    match (table, rows) {
        (Type::Primitive(table), Type::Primitive(rows)) => {
            table == rows
                || match (table, rows) {
                    (P::Long, P::Int) | (P::Double, P::Float | P::Int) | (P::Uuid, P::Fixed(16)) => true,
                    (P::Decimal { precision, scale }, rows) => {
                        let (digits, decimals) = match rows {
                            P::Decimal { precision, scale } => (precision - scale, *scale),
                            P::Int => (10, 0),
                            P::Long => (19, 0),
                            _ => return false,
                        };
                        *scale >= decimals && precision - scale >= digits
                    }
                    _ => false,
                }
        }
        (Type::List(table), Type::List(rows)) => {
            holds(&table.element_field.field_type, &rows.element_field.field_type)
        }
        (Type::Map(table), Type::Map(rows)) => {
            holds(&table.key_field.field_type, &rows.key_field.field_type)
                && holds(&table.value_field.field_type, &rows.value_field.field_type)
        }
        (Type::Struct(table), Type::Struct(rows)) => {
            let (table, rows) = (table.fields(), rows.fields());
            table.len() == rows.len()
                && table
                    .iter()
                    .zip(rows)
                    .all(|(t, r)| t.name == r.name && holds(&t.field_type, &r.field_type))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::{IntervalUnit, TimeUnit};

    #[test]
    fn a_type_that_iceberg_lacks_is_named() {
        let inner = Field::new("i", DataType::Interval(IntervalUnit::DayTime), true);
        let field = Field::new("s", DataType::Struct(vec![inner].into()), true);
        let error = to_iceberg(&Schema::new(vec![field])).unwrap_err();
        assert_eq!(error.context("column"), Some("s.i"));
        let twice =
            Schema::new(vec![Field::new("a", DataType::Int8, true), Field::new("A", DataType::Int8, true)]);
        assert!(to_iceberg(&twice).is_err());
    }

    #[test]
    fn a_wider_type_holds_a_narrower_one() {
        let of = |data_type| of_column(&Field::new("c", data_type, true)).unwrap();
        let holds = |table, rows| holds(&of(table), &of(rows));
        assert!(holds(DataType::Int64, DataType::Int32));
        assert!(!holds(DataType::Int32, DataType::Int64));
        assert!(holds(DataType::Decimal128(12, 2), DataType::Int32));
        assert!(!holds(DataType::Decimal128(10, 2), DataType::Int32));
        assert!(!holds(DataType::Float64, DataType::Int64));
        assert!(!holds(DataType::Timestamp(TimeUnit::Microsecond, None), DataType::Date32));
    }
}
