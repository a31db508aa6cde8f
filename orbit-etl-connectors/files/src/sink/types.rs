//! Types that a format's files have instead of others, and values that it has no form for.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, OffsetSizeTrait};
use arrow::compute::{max, min};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Date64Type, DurationMillisecondType, DurationSecondType, Field,
    FieldRef, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampSecondType,
};
use arrow::temporal_conversions::{as_datetime, as_duration};

use crate::format::Format;

/// The type that stands in the file.
///
/// * Arrow files allow one dictionary a column, batches bring their own; Avro has none: there the
///   values stand by themselves.
/// * Text gives an offset in whole minutes, which some zones don't have: in UTC no instant changes.
/// * Avro has one kind of decimals.
pub(crate) fn file_type(format: Format, data_type: &DataType) -> DataType {
    let of = |data_type: &DataType| file_type(format, data_type);
    let child = |field: &FieldRef| -> FieldRef {
        Arc::new(Field::clone(field).with_data_type(of(field.data_type())))
    };
    match data_type {
        DataType::Dictionary(_, values) if matches!(format, Format::Avro | Format::Arrow) => of(values),
        DataType::Dictionary(keys, values) => DataType::Dictionary(keys.clone(), Box::new(of(values))),
        DataType::Timestamp(unit, Some(_)) if format.is_text() => {
            DataType::Timestamp(*unit, Some("UTC".into()))
        }
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale)
            if format == Format::Avro =>
        {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(child).collect()),
        DataType::List(f) => DataType::List(child(f)),
        DataType::LargeList(f) => DataType::LargeList(child(f)),
        DataType::ListView(f) => DataType::ListView(child(f)),
        DataType::LargeListView(f) => DataType::LargeListView(child(f)),
        DataType::FixedSizeList(f, size) => DataType::FixedSizeList(child(f), *size),
        DataType::Map(f, sorted) => DataType::Map(child(f), *sorted),
        other => other.clone(),
    }
}

/// Whether a format has no form for a type, though arrow's writer doesn't say so. Parquet's panics on
/// unions, and the other formats don't have them either or can't be read back; Avro's makes a union of
/// null and null for a column that is always NULL, which is no Avro schema.
pub(crate) fn is_foreign(format: Format, data_type: &DataType) -> bool {
    let within = |f: &FieldRef| is_foreign(format, f.data_type());
    match data_type {
        DataType::Union(_, _) => true,
        DataType::Null => format == Format::Avro,
        DataType::Struct(fields) => fields.iter().any(within),
        DataType::List(f)
        | DataType::LargeList(f)
        | DataType::ListView(f)
        | DataType::LargeListView(f)
        | DataType::FixedSizeList(f, _)
        | DataType::Map(f, _) => within(f),
        DataType::Dictionary(_, value) => is_foreign(format, value),
        DataType::RunEndEncoded(_, values) => within(values),
        _ => false,
    }
}

/// Whether a map is somewhere within.
pub(crate) fn has_map(data_type: &DataType) -> bool {
    match data_type {
        DataType::Map(_, _) => true,
        DataType::Struct(fields) => fields.iter().any(|f| has_map(f.data_type())),
        DataType::List(f)
        | DataType::LargeList(f)
        | DataType::ListView(f)
        | DataType::LargeListView(f)
        | DataType::FixedSizeList(f, _) => has_map(f.data_type()),
        _ => false,
    }
}

/// Whether every value has a form as text. For dates out of the calendar and spans of time that are
/// too long, arrow's writers would put a message where the value should stand.
pub(crate) fn has_text(column: &dyn Array) -> bool {
    match column.data_type() {
        DataType::Date32 => within::<Date32Type>(column, |v| as_datetime::<Date32Type>(v).is_some()),
        DataType::Date64 => within::<Date64Type>(column, |v| as_datetime::<Date64Type>(v).is_some()),
        DataType::Timestamp(TimeUnit::Second, _) => {
            within::<TimestampSecondType>(column, |v| as_datetime::<TimestampSecondType>(v).is_some())
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => within::<TimestampMillisecondType>(column, |v| {
            as_datetime::<TimestampMillisecondType>(v).is_some()
        }),
        DataType::Timestamp(TimeUnit::Microsecond, _) => within::<TimestampMicrosecondType>(column, |v| {
            as_datetime::<TimestampMicrosecondType>(v).is_some()
        }),
        DataType::Duration(TimeUnit::Second) => {
            within::<DurationSecondType>(column, |v| as_duration::<DurationSecondType>(v).is_some())
        }
        DataType::Duration(TimeUnit::Millisecond) => {
            within::<DurationMillisecondType>(column, |v| as_duration::<DurationMillisecondType>(v).is_some())
        }
        DataType::Struct(_) => column.as_struct().columns().iter().all(|column| has_text(column)),
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            has_text(&used(list.values(), list.offsets()))
        }
        DataType::LargeList(_) => {
            let list = column.as_list::<i64>();
            has_text(&used(list.values(), list.offsets()))
        }
        DataType::FixedSizeList(_, _) => has_text(column.as_fixed_size_list().values()),
        DataType::Map(_, _) => {
            let map = column.as_map();
            has_text(&used(map.values(), map.offsets()))
        }
        _ => true,
    }
}

/// The part of a list's values that its rows have.
fn used<O: OffsetSizeTrait>(values: &ArrayRef, offsets: &[O]) -> ArrayRef {
    let first = offsets.first().map_or(0, |o| o.as_usize());
    let last = offsets.last().map_or(0, |o| o.as_usize());
    values.slice(first, last - first)
}

/// Whether the least and the greatest value are known, and so all between them.
fn within<T>(column: &dyn Array, known: fn(i64) -> bool) -> bool
where
    T: ArrowPrimitiveType,
    T::Native: Into<i64>,
{
    let column = column.as_primitive::<T>();
    [min(column), max(column)].into_iter().flatten().all(|value| known(value.into()))
}
