//! The rows that the suite writes and reads.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Decimal128Array, Decimal256Array,
    FixedSizeBinaryArray, FixedSizeListArray, Float32Array, Float64Array, Int32Array, Int64Array,
    Int64Builder, IntervalDayTimeArray, IntervalMonthDayNanoArray, IntervalYearMonthArray, ListArray,
    MapBuilder, NullArray, RecordBatch, StringArray, StringBuilder, StructArray, UInt64Array,
};
use arrow::compute::{cast, filter};
use arrow::datatypes::{
    DataType, Date32Type, Field, Fields, Float32Type, Float64Type, Int32Type, Int64Type, IntervalDayTime,
    IntervalMonthDayNano, Schema, TimeUnit, i256,
};
use orbit_etl_core::StreamInfo;

use crate::harness::{Abilities, Check, Comes, Stop};

const DAY: i64 = 86_400;

/// A stream of numbered rows, fitted to what a configuration can do: `id`, a nullable text `name`
/// and a nullable float `score`.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The stream as it is written.
    pub stream: StreamInfo,
    abilities: Abilities,
}

impl Sample {
    /// A sample stream of this name.
    ///
    /// # Errors
    /// The configuration can't hold 64-bit integers.
    pub fn new(name: &str, abilities: &Abilities) -> Check<Self> {
        if let Comes::Never(why) = (abilities.types)(&DataType::Int64) {
            return Err(Stop::Skip(format!("the sample needs 64-bit integers: {why}")));
        }
        let (sent, _) = fit(&numbered(0..0, abilities), abilities)?;
        let stream = StreamInfo::new(name, sent.schema()).with_keys(["id"]);
        Ok(Self { stream, abilities: abilities.clone() })
    }

    /// Rows to be written.
    ///
    /// # Errors
    /// A bug in the suite.
    pub fn rows(&self, ids: Range<i64>) -> Check<RecordBatch> {
        Ok(fit(&numbered(ids, &self.abilities), &self.abilities)?.0)
    }

    /// The rows that come back.
    ///
    /// # Errors
    /// The declared mapping isn't a cast of arrow's.
    pub fn expected(&self, ids: Range<i64>) -> Check<RecordBatch> {
        Ok(fit(&numbered(ids, &self.abilities), &self.abilities)?.1)
    }
}

/// The sample's name in row `id`.
pub(crate) fn name(id: i64) -> Option<String> {
    (id % 7 != 0).then(|| format!("name {}", id % 10))
}

/// The sample's score in row `id`.
pub(crate) fn score(id: i64, abilities: &Abilities) -> Option<f64> {
    if id % 11 == 0 && abilities.non_finite {
        return Some(f64::NAN);
    }
    #[allow(clippy::cast_precision_loss)] // Small numbers.
    (id % 5 != 0).then_some(id as f64 / 4.0)
}

fn numbered(ids: Range<i64>, abilities: &Abilities) -> RecordBatch {
    let names: StringArray = ids.clone().map(name).collect();
    let scores: Float64Array = ids.clone().map(|id| score(id, abilities)).collect();
    let fields = vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("score", DataType::Float64, true),
    ];
    let ids = Int64Array::from_iter_values(ids);
    batch(fields, vec![Arc::new(ids), Arc::new(names), Arc::new(scores)])
}

/// A batch as it is sent, without the columns that can't be, and as it comes back.
pub(crate) fn fit(whole: &RecordBatch, abilities: &Abilities) -> Check<(RecordBatch, RecordBatch)> {
    let (mut sent, mut back) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for (field, column) in whole.schema_ref().fields().iter().zip(whole.columns()) {
        let expected = match (abilities.types)(column.data_type()) {
            Comes::Never(_) => continue,
            Comes::Same => column.clone(),
            Comes::As(to) => cast(column, &to)
                .map_err(|e| Stop::fail(format!("{} doesn't come back as {to}: {e}", column.data_type())))?,
        };
        sent.0.push(field.as_ref().clone());
        sent.1.push(column.clone());
        back.0.push(field.as_ref().clone().with_data_type(expected.data_type().clone()));
        back.1.push(expected);
    }
    Ok((batch(sent.0, sent.1), batch(back.0, back.1)))
}

/// Rows of `column` under the name `value`, numbered by `id`.
pub(crate) fn beside_ids(column: &ArrayRef) -> RecordBatch {
    #[allow(clippy::cast_possible_wrap)] // Small numbers.
    let ids = Int64Array::from_iter_values(0..column.len() as i64);
    let value = Field::new("value", column.data_type().clone(), true);
    batch(vec![Field::new("id", DataType::Int64, false), value], vec![Arc::new(ids), column.clone()])
}

pub(crate) fn batch(fields: Vec<Field>, columns: Vec<ArrayRef>) -> RecordBatch {
    #[allow(clippy::expect_used)] // Fields and columns are made together, of one length.
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("columns of one length")
}

/// One column of every Arrow type, with NULLs and with the ends of its range.
pub fn every_type() -> Vec<ArrayRef> {
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])),
        Arc::new(NullArray::new(3)),
        Arc::new(UInt64Array::from(vec![Some(0), None, Some(u64::MAX)])),
    ];
    for (to, low, high) in [
        (DataType::Int8, i64::from(i8::MIN), i64::from(i8::MAX)),
        (DataType::Int16, i64::from(i16::MIN), i64::from(i16::MAX)),
        (DataType::Int32, i64::from(i32::MIN), i64::from(i32::MAX)),
        (DataType::Int64, i64::MIN, i64::MAX),
        (DataType::UInt8, 0, i64::from(u8::MAX)),
        (DataType::UInt16, 0, i64::from(u16::MAX)),
        (DataType::UInt32, 0, i64::from(u32::MAX)),
        (DataType::Time32(TimeUnit::Second), 0, DAY - 1),
        (DataType::Time32(TimeUnit::Millisecond), 0, DAY * 1_000 - 1),
        (DataType::Time64(TimeUnit::Microsecond), 0, DAY * 1_000_000 - 1),
        (DataType::Time64(TimeUnit::Nanosecond), 0, DAY * 1_000_000_000 - 1),
    ] {
        columns.push(from_ints(&to, &[low, 0, 1, 77, high]));
    }
    floats(&mut columns);
    decimals(&mut columns);
    times(&mut columns);
    texts(&mut columns);
    nested(&mut columns);
    columns
}

/// The values that a configuration can hold.
pub(crate) fn prune(column: &ArrayRef, abilities: &Abilities) -> Check<ArrayRef> {
    let fits = |i: usize| -> bool {
        if column.is_null(i) {
            return true;
        }
        match column.data_type() {
            DataType::Float16 | DataType::Float32 | DataType::Float64 => {
                let value = cast(&column.slice(i, 1), &DataType::Float64)
                    .map_or(0.0, |c| c.as_primitive::<Float64Type>().value(0));
                (abilities.non_finite || value.is_finite())
                    && (abilities.negative_zero || value != 0.0 || value.is_sign_positive())
            }
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                let text = cast(&column.slice(i, 1), &DataType::Utf8)
                    .map_or_else(|_| String::new(), |c| c.as_string::<i32>().value(0).to_owned());
                (abilities.empty_text || !text.is_empty())
                    && (abilities.control_characters || !text.chars().any(char::is_control))
            }
            DataType::Date32 => {
                within(abilities, i64::from(column.as_primitive::<Date32Type>().value(i)) * DAY)
            }
            DataType::Date64 => within(abilities, number(column, i).div_euclid(1_000)),
            DataType::Timestamp(unit, _) => {
                within(abilities, number(column, i).div_euclid(per_second(*unit)))
            }
            _ => true,
        }
    };
    let mask: BooleanArray = (0..column.len()).map(|i| Some(fits(i))).collect();
    filter(column, &mask).map_err(|e| Stop::fail(format!("the suite can't filter: {e}")))
}

fn number(column: &ArrayRef, row: usize) -> i64 {
    let ints = cast(&column.slice(row, 1), &DataType::Int64);
    ints.map_or(0, |c| c.as_primitive::<Int64Type>().value(0))
}

fn within(abilities: &Abilities, seconds: i64) -> bool {
    let Some((first, last)) = abilities.years else { return true };
    // A day to spare at either end, so that no time zone leads out of the years.
    let year = |y: i32| (f64::from(y) - 1970.0) * 365.2425 * 86_400.0;
    #[allow(clippy::cast_precision_loss)] // Years are far coarser.
    let seconds = seconds as f64;
    seconds > year(first) + 86_400.0 && seconds < year(last + 1) - 86_400.0
}

fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

/// These numbers and a NULL as another type.
fn from_ints(to: &DataType, values: &[i64]) -> ArrayRef {
    let ints: Int64Array = values.iter().copied().map(Some).chain([None]).collect();
    let narrow: ArrayRef = match to {
        DataType::Date32 | DataType::Time32(_) => casted(&(Arc::new(ints) as ArrayRef), &DataType::Int32),
        _ => Arc::new(ints),
    };
    casted(&narrow, to)
}

fn casted(column: &ArrayRef, to: &DataType) -> ArrayRef {
    #[allow(clippy::expect_used)] // Arrow has a cast for each pair that the suite asks for.
    cast(column, to).expect("a cast between primitive types")
}

fn floats(columns: &mut Vec<ArrayRef>) {
    let singles =
        [0.0, -0.0, 0.1, f32::MIN, f32::MAX, f32::MIN_POSITIVE, f32::NAN, f32::INFINITY, -f32::INFINITY];
    let singles = Float32Array::from_iter(singles.into_iter().map(Some).chain([None]));
    let doubles = [0.0, -0.0, 0.1, f64::MIN, f64::MAX, 5e-324, f64::NAN, f64::INFINITY, -f64::INFINITY];
    let halves =
        Float32Array::from_iter([Some(0.0), Some(-0.0), Some(0.5), Some(65_504.0), Some(f32::NAN), None]);
    columns.push(casted(&(Arc::new(halves) as ArrayRef), &DataType::Float16));
    columns.push(Arc::new(singles));
    columns.push(Arc::new(Float64Array::from_iter(doubles.into_iter().map(Some).chain([None]))));
}

fn decimals(columns: &mut Vec<ArrayRef>) {
    for (precision, scale) in [(1, 0), (10, 2), (38, 0), (38, 10), (38, 38)] {
        let end = 10_i128.pow(u32::from(precision)) - 1;
        let values = Decimal128Array::from(vec![Some(-end), Some(0), Some(1), None, Some(end)]);
        columns.extend(values.with_precision_and_scale(precision, scale).map(|a| Arc::new(a) as ArrayRef));
    }
    let end = i256::from_string(&"9".repeat(76)).unwrap_or(i256::ONE);
    for scale in [0, 38] {
        let values = Decimal256Array::from(vec![Some(-end), Some(i256::ZERO), None, Some(end)]);
        columns.extend(values.with_precision_and_scale(76, scale).map(|a| Arc::new(a) as ArrayRef));
    }
    let small: ArrayRef =
        Arc::new(Float64Array::from(vec![Some(-99_999.99), Some(0.01), None, Some(99_999.99)]));
    columns.push(casted(&small, &DataType::Decimal32(9, 2)));
    columns.push(casted(&small, &DataType::Decimal64(18, 4)));
}

fn times(columns: &mut Vec<ArrayRef>) {
    // Year 1, just before 1970, 1970, a leap day, the end of year 9999.
    let seconds: [i64; 5] = [-62_135_596_800, -1, 0, 951_782_400, 253_402_300_799];
    let days: Vec<_> = seconds.iter().map(|s| s.div_euclid(DAY)).collect();
    columns.push(from_ints(&DataType::Date32, &days));
    let millis: Vec<_> = days.iter().map(|d| d * DAY * 1_000).collect();
    columns.push(from_ints(&DataType::Date64, &millis));
    for unit in [TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond] {
        let fine = per_second(unit);
        let mut values: Vec<_> = seconds.iter().filter_map(|s| s.checked_mul(fine)).collect();
        values.extend([-1, 1, 1_700_000_000 * fine + fine / 3, i64::MIN, i64::MAX]);
        for zone in [None, Some("UTC".into()), Some("+02:30".into()), Some("Europe/Berlin".into())] {
            columns.push(from_ints(&DataType::Timestamp(unit, zone), &values));
        }
        columns.push(from_ints(&DataType::Duration(unit), &[i64::MIN, -1, 0, 1, i64::MAX]));
    }
    columns.push(Arc::new(IntervalYearMonthArray::from(vec![Some(-1), Some(0), None, Some(i32::MAX)])));
    let days = [IntervalDayTime::new(-1, 2), IntervalDayTime::new(i32::MAX, i32::MIN)];
    columns.push(Arc::new(IntervalDayTimeArray::from_iter(days.into_iter().map(Some).chain([None]))));
    let mixed =
        [IntervalMonthDayNano::new(1, -2, 3), IntervalMonthDayNano::new(i32::MAX, i32::MIN, i64::MAX)];
    columns.push(Arc::new(IntervalMonthDayNanoArray::from_iter(mixed.into_iter().map(Some).chain([None]))));
}

fn texts(columns: &mut Vec<ArrayRef>) {
    let long = "a text that is longer than twelve bytes ".repeat(8);
    let texts = [
        "",
        " ",
        "plain",
        "NULL",
        "null",
        "\\N",
        "comma, \"quote\" and 'apostrophe'",
        "line\nfeed\r\n and\ttab",
        "\u{0}\u{1}",
        "Zoë 東京 🦀 e\u{301} \u{202e}rtl",
        "\u{feff}mark",
        "123",
        "true",
        long.as_str(),
    ];
    let texts: ArrayRef = Arc::new(StringArray::from_iter(texts.into_iter().map(Some).chain([None])));
    let bytes = [&b""[..], b"\x00", b"\xff\xfe\x00\x80", b"more than twelve bytes of it", b"\"\n,"];
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter(bytes.into_iter().map(Some).chain([None])));
    for to in [DataType::Utf8, DataType::LargeUtf8, DataType::Utf8View] {
        columns.push(casted(&texts, &to));
    }
    for to in [DataType::Binary, DataType::LargeBinary, DataType::BinaryView] {
        columns.push(casted(&bytes, &to));
    }
    let fixed = [Some(&b"abc"[..]), None, Some(&b"\x00\xff\x80"[..])];
    let fixed = FixedSizeBinaryArray::try_from_sparse_iter_with_size(fixed.into_iter(), 3);
    columns.extend(fixed.map(|a| Arc::new(a) as ArrayRef));
    let words: ArrayRef = Arc::new(StringArray::from(vec![Some("red"), None, Some("blue"), Some("red")]));
    let words_by_int = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    columns.push(casted(&words, &words_by_int));
}

fn nested(columns: &mut Vec<ArrayRef>) {
    let lists = || [Some(vec![Some(1), None, Some(3)]), Some(vec![]), None, Some(vec![Some(i32::MIN)])];
    let list: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists()));
    let texts = DataType::LargeList(Arc::new(Field::new_list_field(DataType::Utf8, true)));
    columns.push(casted(&list, &texts));
    columns.push(list);
    let triples =
        [Some(vec![Some(1.0), Some(-0.5), Some(3.0)]), None, Some(vec![Some(0.0), None, Some(2.0)])];
    columns.push(Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(triples, 3)));
    let fields =
        Fields::from(vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Utf8, true)]);
    let a: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]));
    let b: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), Some("y"), None]));
    let valid = vec![true, false, true].into();
    columns.extend(StructArray::try_new(fields, vec![a, b], Some(valid)).map(|a| Arc::new(a) as ArrayRef));
    let mut map = MapBuilder::new(None, StringBuilder::new(), Int64Builder::new());
    for entries in [Some(vec![("k", Some(1)), ("l", None)]), None, Some(vec![])] {
        for (key, value) in entries.iter().flatten() {
            map.keys().append_value(key);
            map.values().append_option(*value);
        }
        let _ = map.append(entries.is_some());
    }
    columns.push(Arc::new(map.finish()));
    let n: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), None, Some(2)]));
    let field = Arc::new(Field::new("n", DataType::Int32, true));
    let inner: ArrayRef = Arc::new(StructArray::from(vec![(field, n)]));
    let offsets = arrow::buffer::OffsetBuffer::from_lengths([2, 0, 1]);
    let item = Arc::new(Field::new_list_field(inner.data_type().clone(), true));
    columns.extend(ListArray::try_new(item, offsets, inner, None).map(|a| Arc::new(a) as ArrayRef));
}
