//! Arrow's types and Delta's.
//!
//! The crate's documentation has them in a table.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, make_array};
use arrow::compute::{CastOptions, cast_with_options, is_not_null, is_null};
use arrow::datatypes::{
    DECIMAL128_MAX_PRECISION, DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit,
    TimestampNanosecondType,
};
use deltalake::kernel::StructType;
use deltalake::kernel::engine::arrow_conversion::{TryIntoArrow, TryIntoKernel};
use orbit_etl_core::{Error, Result};

/// The names of roles start so; they are the only notes on columns that a table keeps.
const OURS: &str = "orbit.";

/// Columns of a stream as a Delta table has them.
///
/// # Errors
/// `Schema` naming the column whose type Delta lacks, or whose name differs from another's by case
/// alone.
pub(crate) fn table_schema(schema: &Schema) -> Result<StructType> {
    let mut seen = std::collections::HashSet::new();
    for field in schema.fields() {
        if !seen.insert(field.name().to_lowercase()) {
            return Err(Error::schema("two columns have the same name but for upper and lower case")
                .with("column", field.name())
                .remedy("rename one: Delta doesn't tell them apart"));
        }
    }
    let fields = schema
        .fields()
        .iter()
        .map(|field| {
            let data_type = table_type(field.data_type()).map_err(|e| {
                e.with("column", field.name()).remedy("leave the column out, or cast it to another type")
            })?;
            let notes = field.metadata().iter().filter(|(key, _)| key.starts_with(OURS));
            let notes = notes.map(|(k, v)| (k.clone(), v.clone())).collect();
            Ok(Field::new(field.name(), data_type, true).with_metadata(notes))
        })
        .collect::<Result<Fields>>()?;
    (&Schema::new(fields))
        .try_into_kernel()
        .map_err(|e: arrow::error::ArrowError| Error::schema("Delta can't hold these columns").caused_by(e))
}

/// A table's columns as Arrow has them.
pub(crate) fn arrow_schema(schema: &StructType) -> Result<SchemaRef> {
    let schema: Schema = schema.try_into_arrow().map_err(|e: arrow::error::ArrowError| {
        Error::schema("the table has a type that Arrow lacks").caused_by(e)
    })?;
    Ok(Arc::new(schema))
}

/// The type that holds every value of another one.
fn table_type(data_type: &DataType) -> Result<DataType> {
    use DataType as D;
    let list = |item: &FieldRef| Ok::<_, Error>(D::List(inner("element", item.data_type())?));
    Ok(match data_type {
        D::Boolean | D::Int8 | D::Int16 | D::Int32 | D::Int64 | D::Float32 | D::Float64 | D::Date32 => {
            data_type.clone()
        }
        D::UInt8 => D::Int16,
        D::UInt16 => D::Int32,
        D::UInt32 => D::Int64,
        D::UInt64 => D::Decimal128(20, 0),
        D::Float16 => D::Float32,
        D::Decimal32(precision, scale)
        | D::Decimal64(precision, scale)
        | D::Decimal128(precision, scale)
        | D::Decimal256(precision, scale)
            if *precision <= DECIMAL128_MAX_PRECISION
                && u8::try_from(*scale).is_ok_and(|scale| scale <= *precision) =>
        {
            D::Decimal128(*precision, *scale)
        }
        D::Utf8 | D::LargeUtf8 | D::Utf8View => D::Utf8,
        D::Binary | D::LargeBinary | D::BinaryView | D::FixedSizeBinary(_) => D::Binary,
        D::Timestamp(_, Some(_)) => D::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        D::Timestamp(_, None) | D::Date64 => D::Timestamp(TimeUnit::Microsecond, None),
        D::List(item)
        | D::LargeList(item)
        | D::FixedSizeList(item, _)
        | D::ListView(item)
        | D::LargeListView(item) => list(item)?,
        D::Struct(fields) if !fields.is_empty() => {
            D::Struct(fields.iter().map(|f| inner(f.name(), f.data_type())).collect::<Result<_>>()?)
        }
        D::Map(entries, _) => match entries.data_type() {
            D::Struct(fields) if fields.len() == 2 => {
                let key = Field::new("key", table_type(fields[0].data_type())?, false);
                let value = inner("value", fields[1].data_type())?;
                let entries = D::Struct(vec![Arc::new(key), value].into());
                D::Map(Arc::new(Field::new("key_value", entries, false)), false)
            }
            _ => return Err(no_type(data_type)),
        },
        D::Dictionary(_, values) => table_type(values)?,
        D::RunEndEncoded(_, values) => table_type(values.data_type())?,
        _ => return Err(no_type(data_type)),
    })
}

fn inner(name: &str, data_type: &DataType) -> Result<FieldRef> {
    Ok(Arc::new(Field::new(name, table_type(data_type)?, true)))
}

fn no_type(data_type: &DataType) -> Error {
    Error::schema("Delta has no type for this column").with("type", data_type)
}

/// Whether a column of one of a table's types can hold every value of another.
pub(crate) fn holds(wide: &DataType, narrow: &DataType) -> bool {
    use DataType as D;
    let whole = |data_type: &DataType| match data_type {
        D::Int8 => Some(3),
        D::Int16 => Some(5),
        D::Int32 => Some(10),
        D::Int64 => Some(19),
        _ => None,
    };
    if same_type(wide, narrow) {
        return true;
    }
    match (wide, narrow) {
        (D::Float64, D::Float32 | D::Int8 | D::Int16 | D::Int32) => true,
        (D::Float32, D::Int8 | D::Int16) => true,
        (D::Decimal128(p, s), D::Decimal128(q, t)) => {
            s >= t && i16::from(*p) - i16::from(*s) >= i16::from(*q) - i16::from(*t)
        }
        (D::Decimal128(p, s), narrow) => {
            whole(narrow).is_some_and(|digits| i16::from(*p) - i16::from(*s) >= digits)
        }
        (wide, narrow) => {
            matches!((whole(wide), whole(narrow)), (Some(wide), Some(narrow)) if wide >= narrow)
        }
    }
}

/// Whether two types are the same but for what may be NULL and for notes.
pub(crate) fn same_type(one: &DataType, other: &DataType) -> bool {
    use DataType as D;
    match (one, other) {
        (D::List(a), D::List(b)) => same_type(a.data_type(), b.data_type()),
        (D::Map(a, _), D::Map(b, _)) => same_type(a.data_type(), b.data_type()),
        (D::Struct(a), D::Struct(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| {
                    let entry = matches!(a.name().as_str(), "key" | "value" | "keys" | "values");
                    (a.name() == b.name() || entry) && same_type(a.data_type(), b.data_type())
                })
        }
        (one, other) => one == other,
    }
}

/// A column as the table has it, and for which rows that can't be.
///
/// # Errors
/// `Data` where a nested column holds a value that can't be stored: its rows can't be told apart.
pub(crate) fn fit(column: &ArrayRef, field: &Field) -> Result<(ArrayRef, Option<BooleanArray>)> {
    if column.data_type() == field.data_type() {
        return Ok((Arc::clone(column), None));
    }
    let fail = || {
        Error::data("a column holds a value that the table's type can't")
            .with("column", field.name())
            .with("type", column.data_type())
            .with("type in the table", field.data_type())
            .remedy("cast or filter it before the sink")
    };
    let column = unpack(column).map_err(|_| fail())?;
    if column.data_type().is_nested() {
        if cuts_nanoseconds(&column) {
            return Err(fail());
        }
        let strict = CastOptions { safe: false, ..CastOptions::default() };
        return Ok((cast_with_options(&column, field.data_type(), &strict).map_err(|_| fail())?, None));
    }
    let lenient = CastOptions { safe: true, ..CastOptions::default() };
    let stored = cast_with_options(&column, field.data_type(), &lenient).map_err(|_| fail())?;
    let mut misfit = None;
    if stored.null_count() > column.null_count() {
        let lost = arrow::compute::and(
            &is_null(&stored).map_err(|_| fail())?,
            &is_not_null(&column).map_err(|_| fail())?,
        );
        misfit = Some(lost.map_err(|_| fail())?);
    }
    if let Some(cut) = cut_rows(&column) {
        misfit = Some(match misfit {
            Some(lost) => arrow::compute::or(&lost, &cut).map_err(|_| fail())?,
            None => cut,
        });
    }
    Ok((stored, misfit))
}

/// Columns of one schema as a batch of another that differs in names of parts and what may be NULL.
pub(crate) fn batch(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|e| Error::schema("rows don't have the columns that the stream announced").caused_by(e))
}

/// Dictionaries and runs as plain values.
fn unpack(column: &ArrayRef) -> Result<ArrayRef, arrow::error::ArrowError> {
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    match column.data_type() {
        DataType::Dictionary(_, values) => cast_with_options(column, values, &strict),
        DataType::RunEndEncoded(_, values) => cast_with_options(column, values.data_type(), &strict),
        _ => Ok(Arc::clone(column)),
    }
}

/// The rows of a timestamp that would lose nanoseconds, if there are any.
fn cut_rows(column: &ArrayRef) -> Option<BooleanArray> {
    let DataType::Timestamp(TimeUnit::Nanosecond, _) = column.data_type() else { return None };
    let times = column.as_primitive::<TimestampNanosecondType>();
    let cut: BooleanArray =
        times.iter().map(|time| Some(time.is_some_and(|time| time % 1_000 != 0))).collect();
    (cut.true_count() > 0).then_some(cut)
}

fn cuts_nanoseconds(column: &ArrayRef) -> bool {
    let within = |column: &ArrayRef| {
        column.to_data().child_data().iter().any(|child| cuts_nanoseconds(&make_array(child.clone())))
    };
    if column.data_type().is_nested() { within(column) } else { cut_rows(column).is_some() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, TimestampNanosecondArray, TimestampSecondArray, UInt64Array};

    #[test]
    fn a_type_that_delta_lacks_is_named() {
        let schema = Schema::new(vec![Field::new("t", DataType::Time64(TimeUnit::Nanosecond), true)]);
        let error = table_schema(&schema).unwrap_err();
        assert_eq!(error.context("column"), Some("t"));
        let twice =
            Schema::new(vec![Field::new("a", DataType::Int8, true), Field::new("A", DataType::Int8, true)]);
        assert!(table_schema(&twice).is_err());
    }

    #[test]
    fn what_can_not_be_stored_is_told_row_by_row() {
        let micros = Field::new("t", DataType::Timestamp(TimeUnit::Microsecond, None), true);
        let nanos: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![Some(1_000), Some(1_001), None]));
        let (stored, misfit) = fit(&nanos, &micros).unwrap();
        assert_eq!(stored.null_count(), 1);
        assert_eq!(misfit.unwrap(), BooleanArray::from(vec![false, true, false]));
        let seconds: ArrayRef = Arc::new(TimestampSecondArray::from(vec![Some(i64::MAX), Some(1), None]));
        let (_, misfit) = fit(&seconds, &micros).unwrap();
        assert_eq!(misfit.unwrap(), BooleanArray::from(vec![true, false, false]));
        let large: ArrayRef = Arc::new(UInt64Array::from(vec![u64::MAX]));
        let (stored, misfit) = fit(&large, &Field::new("n", DataType::Decimal128(20, 0), true)).unwrap();
        assert!(misfit.is_none());
        assert_eq!(stored.as_primitive::<arrow::datatypes::Decimal128Type>().value(0), i128::from(u64::MAX));
    }

    #[test]
    fn a_wider_column_holds_a_narrower_one() {
        assert!(holds(&DataType::Int64, &DataType::Int32));
        assert!(!holds(&DataType::Int32, &DataType::Int64));
        assert!(holds(&DataType::Decimal128(10, 0), &DataType::Int32));
        assert!(!holds(&DataType::Decimal128(10, 2), &DataType::Int32));
        assert!(!holds(&DataType::Float64, &DataType::Int64));
        let narrow: ArrayRef = Arc::new(Int64Array::from(vec![5_000_000_000]));
        let (_, misfit) = fit(&narrow, &Field::new("n", DataType::Int32, true)).unwrap();
        assert_eq!(misfit.unwrap().true_count(), 1);
    }
}
