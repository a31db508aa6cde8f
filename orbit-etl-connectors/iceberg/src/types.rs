//! Arrow types and Iceberg's.
//!
//! | Arrow | Iceberg |
//! |---|---|
//! | `Boolean` | `boolean` |
//! | `Int8`, `Int16`, `Int32`, `UInt8`, `UInt16` | `int` |
//! | `Int64`, `UInt32` | `long` |
//! | `Float16`, `Float32`; `Float64` | `float`; `double` |
//! | `Decimal32`, `Decimal64`, `Decimal128` with a scale from 0 | `decimal` |
//! | `Date32` | `date` |
//! | `Time32`, `Time64` in microseconds | `time` |
//! | `Timestamp` down to microseconds, without and with a zone | `timestamp`, `timestamptz` (the instant; the zone's name is UTC) |
//! | all three forms of text, of bytes | `string`, `binary` |
//! | `FixedSizeBinary` | `fixed` |
//! | `Struct`, lists with offsets, fixed-size lists, `Map` | `struct`, `list`, `map` |
//! | `Dictionary` | as its values |
//!
//! Everything else is refused with the column's name: `UInt64`, `Decimal256`, `Date64`, nanoseconds,
//! durations, intervals, unions, list views, run ends and columns that are always NULL.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use iceberg::spec::{ListType, MapType, NestedField, NestedFieldRef, PrimitiveType, StructType, Type};
use orbit_etl_core::{Error, ErrorKind, Result};

/// A table's schema for rows of this form. Field numbers count from 1.
pub(crate) fn to_iceberg(schema: &Schema) -> Result<iceberg::spec::Schema> {
    let mut ids = 0;
    let fields = fields(schema.fields().iter(), &mut ids, "")?;
    iceberg::spec::Schema::builder()
        .with_fields(fields)
        .build()
        .map_err(|e| Error::schema("these columns make no table").caused_by(e))
}

/// A column's type, for a column that is added to a table.
pub(crate) fn column_to_iceberg(field: &Field) -> Result<Type> {
    to_type(field.data_type(), &mut 0, field.name())
}

fn fields<'a>(
    fields: impl Iterator<Item = &'a FieldRef>,
    ids: &mut i32,
    within: &str,
) -> Result<Vec<NestedFieldRef>> {
    let fields: Vec<_> = fields.map(|field| (next(ids), field)).collect();
    fields
        .into_iter()
        .map(|(id, field)| {
            let path =
                if within.is_empty() { field.name().clone() } else { format!("{within}.{}", field.name()) };
            let to = to_type(field.data_type(), ids, &path)?;
            Ok(Arc::new(NestedField::new(id, field.name(), to, !field.is_nullable())))
        })
        .collect()
}

fn next(ids: &mut i32) -> i32 {
    *ids += 1;
    *ids
}

fn to_type(from: &DataType, ids: &mut i32, path: &str) -> Result<Type> {
    use PrimitiveType as P;
    let refuse = |remedy: &str| {
        Err(Error::schema(format!("Iceberg has no type for {from}")).with("column", path).remedy(remedy))
    };
    let primitive = match from {
        DataType::Boolean => P::Boolean,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => P::Int,
        DataType::Int64 | DataType::UInt32 => P::Long,
        DataType::Float16 | DataType::Float32 => P::Float,
        DataType::Float64 => P::Double,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => P::String,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => P::Binary,
        DataType::FixedSizeBinary(width) => P::Fixed(u64::from(width.unsigned_abs())),
        DataType::Date32 => P::Date,
        DataType::Time32(_) | DataType::Time64(TimeUnit::Microsecond) => P::Time,
        DataType::Timestamp(unit, zone) if *unit != TimeUnit::Nanosecond => match zone {
            None => P::Timestamp,
            Some(_) => P::Timestamptz,
        },
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) | DataType::Decimal128(p, s) if *s >= 0 => {
            P::Decimal { precision: u32::from(*p), scale: u32::from(s.unsigned_abs()) }
        }
        DataType::Struct(inner) => {
            return Ok(Type::Struct(StructType::new(fields(inner.iter(), ids, path)?)));
        }
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            let id = next(ids);
            let to = to_type(item.data_type(), ids, &format!("{path}.element"))?;
            let element = NestedField::list_element(id, to, !item.is_nullable());
            return Ok(Type::List(ListType { element_field: Arc::new(element) }));
        }
        DataType::Map(entries, _) => {
            let DataType::Struct(pair) = entries.data_type() else { return refuse("mend the map's type") };
            let [key, value] = pair.as_ref() else { return refuse("mend the map's type") };
            let (key_id, value_id) = (next(ids), next(ids));
            let key_type = to_type(key.data_type(), ids, &format!("{path}.key"))?;
            let value_type = to_type(value.data_type(), ids, &format!("{path}.value"))?;
            return Ok(Type::Map(MapType {
                key_field: Arc::new(NestedField::map_key_element(key_id, key_type)),
                value_field: Arc::new(NestedField::map_value_element(
                    value_id,
                    value_type,
                    !value.is_nullable(),
                )),
            }));
        }
        DataType::Dictionary(_, values) => return to_type(values, ids, path),
        DataType::UInt64 => return refuse("cast it to DECIMAL(20, 0)"),
        DataType::Date64 => return refuse("cast it to a date or a timestamp"),
        DataType::Timestamp(_, _) | DataType::Time64(_) => return refuse("cast it to microseconds"),
        DataType::Null => return refuse("give the column a type"),
        _ => return refuse("cast the column, or leave it out"),
    };
    Ok(Type::Primitive(primitive))
}

/// Rows in a table's own form: its columns in its order, NULL where a batch lacks one.
pub(crate) fn fit(batch: &RecordBatch, to: &SchemaRef) -> Result<RecordBatch> {
    let columns = to.fields().iter().map(|field| column(batch, field)).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(to), columns, &options)
        .map_err(|e| Error::schema("rows don't fit the table").caused_by(e))
}

fn column(batch: &RecordBatch, field: &Field) -> Result<ArrayRef> {
    let Some(found) = batch.column_by_name(field.name()) else {
        if !field.is_nullable() {
            return Err(
                Error::schema("a column that the table requires is missing").with("column", field.name())
            );
        }
        return Ok(new_null_array(field.data_type(), batch.num_rows()));
    };
    if !field.is_nullable() && found.null_count() > 0 {
        return Err(Error::data("a column that the table requires holds NULL").with("column", field.name()));
    }
    if found.data_type() == field.data_type() {
        return Ok(Arc::clone(found));
    }
    // What arrow says of a failure may quote a value.
    cast_with_options(found, field.data_type(), &CastOptions { safe: false, ..CastOptions::default() })
        .map_err(|_| {
            Error::new(ErrorKind::Data, "a value doesn't fit the table's column")
                .with("column", field.name())
                .with("from", found.data_type())
                .with("to", field.data_type())
        })
}

/// Refuses a column whose values the table's own type would alter.
pub(crate) fn check_column(field: &Field, table: &Type) -> Result<()> {
    let wanted = column_to_iceberg(field)?;
    if same(&wanted, table) {
        return Ok(());
    }
    Err(Error::schema("the table has another type for a column")
        .with("column", field.name())
        .with("rows", &wanted)
        .with("in the table", table)
        .remedy("cast the column, or use another table"))
}

/// Whether types are the same but for field numbers, or the table's is wider without loss.
fn same(rows: &Type, table: &Type) -> bool {
    use PrimitiveType as P;
    match (rows, table) {
        (Type::Primitive(rows), Type::Primitive(table)) => {
            rows == table
                || matches!((rows, table), (P::Int, P::Long) | (P::Float, P::Double))
                || matches!((rows, table), (
                    P::Decimal { precision: p, scale: s },
                    P::Decimal { precision, scale },
                ) if s == scale && p <= precision)
        }
        (Type::List(rows), Type::List(table)) => {
            same(&rows.element_field.field_type, &table.element_field.field_type)
        }
        (Type::Map(rows), Type::Map(table)) => {
            same(&rows.key_field.field_type, &table.key_field.field_type)
                && same(&rows.value_field.field_type, &table.value_field.field_type)
        }
        (Type::Struct(rows), Type::Struct(table)) => {
            rows.fields().len() == table.fields().len()
                && rows
                    .fields()
                    .iter()
                    .zip(table.fields())
                    .all(|(r, t)| r.name == t.name && same(&r.field_type, &t.field_type))
        }
        _ => false,
    }
}
