//! Which Arrow types come back as what.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use orbit_etl_testkit::Comes;

pub(super) fn comes(data_type: &DataType) -> Comes {
    match stored(data_type) {
        Err(why) => Comes::Never(why),
        Ok(to) if to == *data_type => Comes::Same,
        Ok(to) => Comes::As(to),
    }
}

fn stored(data_type: &DataType) -> Result<DataType, &'static str> {
    use DataType as D;
    Ok(match data_type {
        D::Int8 | D::Int16 | D::UInt8 | D::UInt16 => D::Int32,
        D::UInt32 => D::Int64,
        D::UInt64 => D::Decimal128(20, 0),
        D::Float16 => D::Float32,
        D::Decimal32(_, scale) | D::Decimal64(_, scale) | D::Decimal128(_, scale) if *scale < 0 => {
            return Err("Iceberg's decimals have no negative scale");
        }
        D::Decimal32(p, s) | D::Decimal64(p, s) | D::Decimal128(p, s) => D::Decimal128(*p, *s),
        D::Decimal256(p, s) if *p <= 38 && *s >= 0 => D::Decimal128(*p, *s),
        D::Decimal256(_, _) => return Err("Iceberg's decimals have 38 digits"),
        D::LargeUtf8 | D::Utf8View => D::Utf8,
        D::Binary | D::BinaryView => D::LargeBinary,
        D::Timestamp(TimeUnit::Nanosecond, _) | D::Time64(TimeUnit::Nanosecond) => {
            return Err("Iceberg's times have microseconds");
        }
        D::Timestamp(_, Some(_)) => D::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
        D::Timestamp(_, None) | D::Date64 => D::Timestamp(TimeUnit::Microsecond, None),
        D::Time32(_) => D::Time64(TimeUnit::Microsecond),
        D::Duration(_) | D::Interval(_) => return Err("Iceberg has no spans of time"),
        D::Null => return Err("Iceberg has no columns without a type"),
        D::List(item) | D::LargeList(item) | D::FixedSizeList(item, _) => D::List(inner("element", item)?),
        D::Struct(fields) => D::Struct(fields.iter().map(|f| inner(f.name(), f)).collect::<Result<_, _>>()?),
        D::Map(entries, _) => {
            let D::Struct(fields) = entries.data_type() else { return Err("not a map") };
            let key = Field::new("key", stored(fields[0].data_type())?, false);
            let both = D::Struct(vec![Arc::new(key), inner("value", &fields[1])?].into());
            D::Map(Arc::new(Field::new("key_value", both, false)), false)
        }
        D::Dictionary(_, values) => stored(values)?,
        plain => plain.clone(),
    })
}

fn inner(name: &str, field: &Field) -> Result<FieldRef, &'static str> {
    Ok(Arc::new(Field::new(name, stored(field.data_type())?, true)))
}
