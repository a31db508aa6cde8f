//! What an `Add` action says of its file's columns, so that readers can leave the file out.

use std::cmp::Ordering;

use chrono::{DateTime, Datelike, NaiveDate, TimeDelta};
use parquet::basic::{ConvertedType, LogicalType, TimeUnit, Type};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnDescriptor;

/// The statistics of one file as JSON: rows, and for its first `columns` columns the bounds and the
/// number of NULLs. `unbounded` names columns whose bounds must not be told: those with NaN, which
/// Parquet leaves out of its bounds and Delta doesn't.
///
/// Written as text, since numbers of a decimal column must not pass through a double.
pub(crate) fn stats(file: &ParquetMetaData, columns: usize, unbounded: impl Fn(&str) -> bool) -> String {
    let (mut least, mut greatest, mut nulls) = (Object::default(), Object::default(), Object::default());
    let leaves = file.file_metadata().schema_descr().columns();
    for (i, leaf) in leaves.iter().enumerate().take(columns) {
        // Parts of nested columns have no bounds of their own in most readers.
        if leaf.path().parts().len() != 1 {
            continue;
        }
        let name = leaf.name();
        let groups: Option<Vec<&Statistics>> =
            file.row_groups().iter().map(|group| group.column(i).statistics()).collect();
        let Some(groups) = groups else { continue };
        if let Some(count) = groups.iter().map(|s| s.null_count_opt()).sum::<Option<u64>>() {
            nulls.push(name, &count.to_string());
        }
        if unbounded(name) {
            continue;
        }
        // A group of NULLs alone has no bounds and needs none.
        let known = |group: &RowGroupMetaData, s: &Statistics| {
            s.min_bytes_opt().is_some() || s.null_count_opt() == u64::try_from(group.num_rows()).ok()
        };
        if !file.row_groups().iter().zip(&groups).all(|(group, s)| known(group, s)) {
            continue;
        }
        let bounds = groups.iter().filter_map(|s| Bounds::of(leaf, s)).reduce(Bounds::join);
        if let Some((low, high)) = bounds.and_then(|bounds| bounds.text(leaf)) {
            least.push(name, &low);
            greatest.push(name, &high);
        }
    }
    format!(
        "{{\"numRecords\":{},\"minValues\":{},\"maxValues\":{},\"nullCount\":{}}}",
        file.file_metadata().num_rows(),
        least.finish(),
        greatest.finish(),
        nulls.finish()
    )
}

/// A JSON object that grows.
#[derive(Default)]
struct Object(String);

impl Object {
    fn push(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(&quoted(name));
        self.0.push(':');
        self.0.push_str(value);
    }

    fn finish(self) -> String {
        format!("{{{}}}", self.0)
    }
}

/// The smallest and the largest value of a column.
enum Bounds {
    Whole(i128, i128),
    Real(f64, f64),
    Text(String, String),
}

impl Bounds {
    fn of(leaf: &ColumnDescriptor, statistics: &Statistics) -> Option<Self> {
        match statistics {
            Statistics::Int32(s) => Some(Self::Whole((*s.min_opt()?).into(), (*s.max_opt()?).into())),
            Statistics::Int64(s) => Some(Self::Whole((*s.min_opt()?).into(), (*s.max_opt()?).into())),
            Statistics::Float(s) => Some(Self::Real((*s.min_opt()?).into(), (*s.max_opt()?).into())),
            Statistics::Double(s) => Some(Self::Real(*s.min_opt()?, *s.max_opt()?)),
            Statistics::ByteArray(s) if leaf.converted_type() == ConvertedType::UTF8 => {
                let low = std::str::from_utf8(s.min_bytes_opt()?).ok()?;
                let high = std::str::from_utf8(s.max_bytes_opt()?).ok()?;
                Some(Self::Text(low.to_owned(), high.to_owned()))
            }
            Statistics::FixedLenByteArray(s) if leaf.converted_type() == ConvertedType::DECIMAL => {
                Some(Self::Whole(big_endian(s.min_bytes_opt()?)?, big_endian(s.max_bytes_opt()?)?))
            }
            _ => None,
        }
    }

    fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Whole(a, b), Self::Whole(c, d)) => Self::Whole(a.min(c), b.max(d)),
            (Self::Real(a, b), Self::Real(c, d)) => Self::Real(
                if c.total_cmp(&a) == Ordering::Less { c } else { a },
                if d.total_cmp(&b) == Ordering::Greater { d } else { b },
            ),
            (Self::Text(a, b), Self::Text(c, d)) => Self::Text(a.min(c), b.max(d)),
            (one, _) => one,
        }
    }

    /// Both as JSON; `None` where the log has no form for them.
    fn text(&self, leaf: &ColumnDescriptor) -> Option<(String, String)> {
        match self {
            Self::Text(low, high) => Some((quoted(low), quoted(high))),
            Self::Real(low, high) => (low.is_finite() && high.is_finite()).then(|| {
                let text = |value: &f64| match leaf.physical_type() {
                    // The shortest text of the float itself, not of the double that it became.
                    Type::FLOAT => format!("{:?}", *value as f32),
                    _ => format!("{value:?}"),
                };
                (text(low), text(high))
            }),
            Self::Whole(low, high) => match leaf.logical_type_ref() {
                Some(LogicalType::Date) => Some((quoted(&date(*low)?), quoted(&date(*high)?))),
                Some(LogicalType::Timestamp(kind)) if matches!(kind.unit, TimeUnit::MICROS) => {
                    let utc = kind.is_adjusted_to_u_t_c;
                    Some((quoted(&time(*low, utc, false)?), quoted(&time(*high, utc, true)?)))
                }
                Some(LogicalType::Decimal(_)) => {
                    let scale = usize::try_from(leaf.type_scale()).ok()?;
                    Some((decimal(*low, scale), decimal(*high, scale)))
                }
                None | Some(LogicalType::Integer(_)) => Some((low.to_string(), high.to_string())),
                _ => None,
            },
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn big_endian(bytes: &[u8]) -> Option<i128> {
    let sign = if bytes.first()? & 0x80 == 0 { 0 } else { 0xff };
    let mut all = [sign; 16];
    all.get_mut(16_usize.checked_sub(bytes.len())?..)?.copy_from_slice(bytes);
    Some(i128::from_be_bytes(all))
}

fn decimal(value: i128, scale: usize) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, part) = digits.split_at(digits.len() - scale);
    if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{part}") }
}

/// The log's dates have years of four digits.
fn date(days: i128) -> Option<String> {
    let days = TimeDelta::try_days(days.try_into().ok()?)?;
    let date = NaiveDate::default().checked_add_signed(days)?;
    (0..=9999).contains(&date.year()).then(|| date.format("%Y-%m-%d").to_string())
}

/// The log's times have milliseconds: a lower bound is cut, an upper one rounded up.
fn time(micros: i128, utc: bool, up: bool) -> Option<String> {
    let micros = i64::try_from(micros).ok()?;
    let millis = micros.div_euclid(1_000).checked_add(i64::from(up && micros.rem_euclid(1_000) != 0))?;
    let time = DateTime::from_timestamp_millis(millis)?;
    let form = if utc { "%Y-%m-%dT%H:%M:%S%.3fZ" } else { "%Y-%m-%dT%H:%M:%S%.3f" };
    (0..=9999).contains(&time.year()).then(|| time.format(form).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, Date32Array, Decimal128Array, Float64Array, Int64Array, RecordBatch, StringArray,
        TimestampMicrosecondArray,
    };
    use parquet::arrow::ArrowWriter;

    #[test]
    fn bounds_are_exact_or_wider() {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("n", Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(7)]))),
            (
                "d",
                Arc::new(
                    Decimal128Array::from(vec![-5, 12_345_678_901_234_567_890, 0])
                        .with_precision_and_scale(38, 3)
                        .unwrap(),
                ),
            ),
            ("f", Arc::new(Float64Array::from(vec![0.1, 2.0, f64::NAN]))),
            ("s", Arc::new(StringArray::from(vec!["a\"", "é", "b"]))),
            ("t", Arc::new(TimestampMicrosecondArray::from(vec![-1, 1, 0]).with_timezone("UTC"))),
            ("day", Arc::new(Date32Array::from(vec![0, 31, 2]))),
            ("far", Arc::new(Date32Array::from(vec![i32::MAX, 31, 2]))),
        ];
        let rows =
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), None).unwrap();
        writer.write(&rows).unwrap();
        let told = stats(&writer.close().unwrap(), 32, |name| name == "f");
        assert_eq!(
            told,
            "{\"numRecords\":3,\"minValues\":{\"n\":-9223372036854775808,\"d\":-0.005,\"s\":\"a\\\"\",\
             \"t\":\"1969-12-31T23:59:59.999Z\",\"day\":\"1970-01-01\"},\"maxValues\":{\"n\":7,\
             \"d\":12345678901234567.890,\"s\":\"é\",\"t\":\"1970-01-01T00:00:00.001Z\",\"day\":\"1970-02-01\"},\
             \"nullCount\":{\"n\":1,\"d\":0,\"f\":0,\"s\":0,\"t\":0,\"day\":0,\"far\":0}}"
        );
    }
}
