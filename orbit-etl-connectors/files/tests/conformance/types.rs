//! Which Arrow types come back as what, for each format.

use arrow::datatypes::{DataType, IntervalUnit, TimeUnit};
use orbit_etl_connector_files::Format;
use orbit_etl_testkit::Comes;

pub(super) fn of(format: Format) -> fn(&DataType) -> Comes {
    match format {
        Format::Csv => csv,
        Format::Json => json,
        Format::Parquet => parquet,
        Format::Avro => avro,
        _ => arrow,
    }
}

fn parquet(data_type: &DataType) -> Comes {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 => Comes::As(DataType::Utf8View),
        DataType::Binary | DataType::LargeBinary => Comes::As(DataType::BinaryView),
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            Comes::Never("Parquet's intervals are months, days and milliseconds")
        }
        _ => Comes::Same,
    }
}

fn arrow(data_type: &DataType) -> Comes {
    match data_type {
        DataType::Dictionary(_, values) => Comes::As(values.as_ref().clone()),
        _ => Comes::Same,
    }
}

/// Read with given columns, since JSON has few types of its own.
fn json(data_type: &DataType) -> Comes {
    match data_type {
        DataType::Duration(_) | DataType::Interval(_) => Comes::Never("spans of time come back as text"),
        _ => Comes::Same,
    }
}

/// Read with given columns, since CSV has no types.
fn csv(data_type: &DataType) -> Comes {
    match data_type {
        DataType::Duration(_) | DataType::Interval(_) => Comes::Never("spans of time come back as text"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            Comes::Never("bytes come back as hexadecimal text")
        }
        nested if nested.is_nested() => Comes::Never("CSV is flat"),
        _ => Comes::Same,
    }
}

fn avro(data_type: &DataType) -> Comes {
    Comes::As(match data_type {
        DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::Duration(_) => DataType::Int64,
        DataType::Null => return Comes::Never("Avro has no nullable null"),
        DataType::UInt64 => return Comes::Never("Avro's integers have a sign and 64 bits"),
        DataType::Float16 => DataType::Float32,
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::Date64 => DataType::Timestamp(TimeUnit::Millisecond, None),
        DataType::Time32(_) => DataType::Time32(TimeUnit::Millisecond),
        DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Timestamp(unit, zone) => {
            let unit = if *unit == TimeUnit::Second { TimeUnit::Millisecond } else { *unit };
            DataType::Timestamp(unit, zone.as_ref().map(|_| "+00:00".into()))
        }
        DataType::Interval(_) => {
            return Comes::Never("Avro's durations are whole milliseconds and never negative");
        }
        DataType::Dictionary(_, values) => values.as_ref().clone(),
        DataType::LargeList(item) | DataType::FixedSizeList(item, _) => DataType::List(item.clone()),
        _ => return Comes::Same,
    })
}
