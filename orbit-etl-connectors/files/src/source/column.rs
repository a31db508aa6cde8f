//! Columns that are built from texts, one value after the other, none of them altered.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{
    Array as _, ArrayRef, BinaryViewBuilder, BooleanBuilder, FixedSizeBinaryBuilder, GenericBinaryBuilder,
    GenericStringBuilder, NullArray, NullBufferBuilder, OffsetSizeTrait, PrimitiveArray,
    StringDictionaryBuilder, StringViewBuilder,
};
use arrow::datatypes::{
    ArrowDictionaryKeyType, ArrowPrimitiveType, DataType, Date32Type, Date64Type, Decimal32Type,
    Decimal64Type, Decimal128Type, Decimal256Type, DurationMicrosecondType, DurationMillisecondType,
    DurationNanosecondType, DurationSecondType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, Time32MillisecondType, Time32SecondType, Time64MicrosecondType,
    Time64NanosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type, i256,
};
use arrow::error::ArrowError;

use super::moment;
use super::number::{self, Rules};
use super::record::Cells;

/// A column under construction. Every call but `finish` adds one value, unless it says `false`: then
/// the text is no value of this type and nothing was added.
pub(crate) trait Column: Send {
    /// A CSV field or a JSON string.
    fn text(&mut self, text: &str) -> bool;

    /// A JSON number, as it is written.
    fn number(&mut self, text: &str) -> bool {
        self.text(text)
    }

    /// `true` or `false` in JSON.
    fn boolean(&mut self, _value: bool) -> bool {
        false
    }

    fn null(&mut self);

    /// Whether any text is a value.
    fn is_text(&self) -> bool {
        false
    }

    /// The array so far; the column is empty then.
    fn finish(&mut self) -> Result<ArrayRef, ArrowError>;

    /// Adds one field of these records. `bad` hears of records whose field is no value of this type,
    /// or NULL though that is not allowed; they have a NULL here.
    fn extend(
        &mut self,
        cells: &Cells<'_>,
        rows: Range<usize>,
        index: usize,
        nullable: bool,
        bad: &mut dyn FnMut(usize),
    ) {
        let text = self.is_text();
        let mut unquoted = String::new();
        for row in rows {
            let cell = cells.get(row, index, &mut unquoted);
            let good = if cells.is_null(cell, text) {
                self.null();
                nullable
            } else {
                let good = self.text(cell);
                if !good {
                    self.null();
                }
                good
            };
            if !good {
                bad(row);
            }
        }
    }
}

/// A column of a type that text is read into; `None` if it isn't read into that type.
pub(crate) fn column(data_type: &DataType, rules: Rules) -> Option<Box<dyn Column>> {
    let strict = rules.inferred;
    macro_rules! integers {
        ($kind:ty) => {
            boxed::<$kind>(data_type, move |t| number::integer(t, rules), None)
        };
    }
    macro_rules! durations {
        ($kind:ty) => {
            // Spans of time have numbers, but no text of their own.
            boxed::<$kind>(data_type, |_| None, Some(ticks))
        };
    }
    macro_rules! moments {
        ($kind:ty, $unit:expr, $zoned:expr) => {{
            let zoned = $zoned;
            let parse = move |t: &str| {
                moment::timestamp(t, strict).filter(|m| m.is_zoned() == zoned).and_then(|m| m.ticks($unit))
            };
            boxed::<$kind>(data_type, parse, Some(ticks))
        }};
    }
    macro_rules! decimals {
        ($kind:ty, $precision:expr, $scale:expr, $short:expr, $long:expr) => {{
            let (precision, scale) = (*$precision, *$scale);
            let parse = move |t: &str| match number::decimal(t, precision, scale, rules)? {
                Ok(short) => $short(short),
                Err(long) => $long(long),
            };
            boxed::<$kind>(data_type, parse, None)
        }};
    }
    let long128 = |v: i256| v.to_i128();
    let column: Box<dyn Column> = match data_type {
        DataType::Null => Box::new(Nulls(0)),
        DataType::Boolean => Box::new(Booleans(BooleanBuilder::new())),
        DataType::Int8 => integers!(Int8Type),
        DataType::Int16 => integers!(Int16Type),
        DataType::Int32 => integers!(Int32Type),
        DataType::Int64 => integers!(Int64Type),
        DataType::UInt8 => integers!(UInt8Type),
        DataType::UInt16 => integers!(UInt16Type),
        DataType::UInt32 => integers!(UInt32Type),
        DataType::UInt64 => integers!(UInt64Type),
        DataType::Float16 => boxed::<Float16Type>(data_type, move |t| float16(t, rules), None),
        DataType::Float32 => boxed::<Float32Type>(data_type, move |t| number::float32(t, rules), None),
        DataType::Float64 => boxed::<Float64Type>(data_type, move |t| number::float64(t, rules), None),
        DataType::Decimal32(p, s) => {
            let narrow = |v: i128| i32::try_from(v).ok();
            decimals!(Decimal32Type, p, s, |v| narrow(i128::from(v)), |v: i256| v.to_i128().and_then(narrow))
        }
        DataType::Decimal64(p, s) => {
            let narrow = |v: i128| i64::try_from(v).ok();
            decimals!(Decimal64Type, p, s, Some, |v: i256| v.to_i128().and_then(narrow))
        }
        DataType::Decimal128(p, s) => decimals!(Decimal128Type, p, s, |v| Some(i128::from(v)), long128),
        DataType::Decimal256(p, s) => {
            decimals!(Decimal256Type, p, s, |v| Some(i256::from_i128(i128::from(v))), Some)
        }
        DataType::Date32 => boxed::<Date32Type>(data_type, move |t| moment::date(t, strict), Some(ticks)),
        DataType::Date64 => boxed::<Date64Type>(data_type, move |t| date64(t, strict), Some(ticks)),
        DataType::Time32(TimeUnit::Second) => boxed::<Time32SecondType>(
            data_type,
            |t| time32(t, TimeUnit::Second),
            Some(time_ticks::<_, 86_400>),
        ),
        DataType::Time32(TimeUnit::Millisecond) => boxed::<Time32MillisecondType>(
            data_type,
            |t| time32(t, TimeUnit::Millisecond),
            Some(time_ticks::<_, 86_400_000>),
        ),
        DataType::Time64(TimeUnit::Microsecond) => boxed::<Time64MicrosecondType>(
            data_type,
            |t| moment::time(t, TimeUnit::Microsecond),
            Some(time_ticks::<_, 86_400_000_000>),
        ),
        DataType::Time64(TimeUnit::Nanosecond) => boxed::<Time64NanosecondType>(
            data_type,
            |t| moment::time(t, TimeUnit::Nanosecond),
            Some(time_ticks::<_, 86_400_000_000_000>),
        ),
        DataType::Timestamp(unit, zone) => {
            if let Some(zone) = zone {
                zone.parse::<Tz>().ok()?;
            }
            let zoned = zone.is_some();
            match unit {
                TimeUnit::Second => moments!(TimestampSecondType, TimeUnit::Second, zoned),
                TimeUnit::Millisecond => moments!(TimestampMillisecondType, TimeUnit::Millisecond, zoned),
                TimeUnit::Microsecond => moments!(TimestampMicrosecondType, TimeUnit::Microsecond, zoned),
                TimeUnit::Nanosecond => moments!(TimestampNanosecondType, TimeUnit::Nanosecond, zoned),
            }
        }
        DataType::Duration(unit) if rules.json => match unit {
            TimeUnit::Second => durations!(DurationSecondType),
            TimeUnit::Millisecond => durations!(DurationMillisecondType),
            TimeUnit::Microsecond => durations!(DurationMicrosecondType),
            TimeUnit::Nanosecond => durations!(DurationNanosecondType),
        },
        DataType::Utf8 => Box::new(Texts(GenericStringBuilder::<i32>::new())),
        DataType::LargeUtf8 => Box::new(Texts(GenericStringBuilder::<i64>::new())),
        DataType::Utf8View => Box::new(Views(StringViewBuilder::new())),
        DataType::Dictionary(keys, values) if **values == DataType::Utf8 => match **keys {
            DataType::Int8 => words::<Int8Type>(),
            DataType::Int16 => words::<Int16Type>(),
            DataType::Int32 => words::<Int32Type>(),
            DataType::Int64 => words::<Int64Type>(),
            DataType::UInt8 => words::<UInt8Type>(),
            DataType::UInt16 => words::<UInt16Type>(),
            DataType::UInt32 => words::<UInt32Type>(),
            DataType::UInt64 => words::<UInt64Type>(),
            _ => return None,
        },
        DataType::Binary if rules.json => bytes(GenericBinaryBuilder::<i32>::new()),
        DataType::LargeBinary if rules.json => bytes(GenericBinaryBuilder::<i64>::new()),
        DataType::BinaryView if rules.json => bytes(BinaryViewBuilder::new()),
        DataType::FixedSizeBinary(width) if rules.json => {
            // The builder takes no negative width.
            usize::try_from(*width).ok()?;
            bytes(FixedSizeBinaryBuilder::new(*width))
        }
        _ => return None,
    };
    Some(column)
}

fn float16(text: &str, rules: Rules) -> Option<<Float16Type as ArrowPrimitiveType>::Native> {
    use arrow::compute::kernels::cast_utils::Parser as _;
    let single = number::float32(text, rules)?;
    let half = Float16Type::parse(text)?;
    (half.is_finite() == single.is_finite() && (single == 0.0 || half.to_f32() != 0.0)).then_some(half)
}

fn date64(text: &str, strict: bool) -> Option<i64> {
    if let Some(days) = moment::date(text, strict) {
        return Some(i64::from(days) * 86_400_000);
    }
    let moment = moment::timestamp(text, strict).filter(|m| !m.is_zoned())?;
    moment.ticks(TimeUnit::Millisecond)
}

fn time32(text: &str, unit: TimeUnit) -> Option<i32> {
    moment::time(text, unit).and_then(|ticks| i32::try_from(ticks).ok())
}

/// A JSON number for a time: the count of the column's units.
fn ticks<T: TryFrom<i64> + TryFrom<i128>>(text: &str) -> Option<T> {
    number::integer(text, Rules { inferred: true, json: true })
}

/// The same within a day.
fn time_ticks<T: TryFrom<i64>, const DAY: i64>(text: &str) -> Option<T> {
    ticks(text).filter(|ticks| (0..DAY).contains(ticks)).and_then(|ticks| T::try_from(ticks).ok())
}

/// What makes a value of a text.
type Parse<T> = fn(&str) -> Option<<T as ArrowPrimitiveType>::Native>;

struct Values<T: ArrowPrimitiveType, P> {
    data_type: DataType,
    parse: P,
    /// Numbers in JSON, where they mean something else than texts.
    number: Option<Parse<T>>,
    values: Vec<T::Native>,
    nulls: NullBufferBuilder,
}

fn boxed<T: ArrowPrimitiveType>(
    data_type: &DataType,
    parse: impl Fn(&str) -> Option<T::Native> + Send + 'static,
    number: Option<Parse<T>>,
) -> Box<dyn Column> {
    Box::new(Values::<T, _> {
        data_type: data_type.clone(),
        parse,
        number,
        values: Vec::new(),
        nulls: NullBufferBuilder::new(0),
    })
}

impl<T: ArrowPrimitiveType, P> Values<T, P> {
    #[inline]
    fn put(&mut self, value: Option<T::Native>) -> bool {
        let Some(value) = value else { return false };
        self.values.push(value);
        self.nulls.append_non_null();
        true
    }
}

impl<T: ArrowPrimitiveType, P: Fn(&str) -> Option<T::Native> + Send> Column for Values<T, P> {
    #[inline]
    fn text(&mut self, text: &str) -> bool {
        self.put((self.parse)(text))
    }

    fn number(&mut self, text: &str) -> bool {
        match self.number {
            Some(number) => self.put(number(text)),
            None => self.text(text),
        }
    }

    #[inline]
    fn null(&mut self) {
        self.values.push(T::default_value());
        self.nulls.append_null();
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let capacity = self.values.len();
        let values = std::mem::replace(&mut self.values, Vec::with_capacity(capacity));
        let array = PrimitiveArray::<T>::try_new(values.into(), self.nulls.finish())?;
        Ok(Arc::new(array.with_data_type(self.data_type.clone())))
    }
}

struct Booleans(BooleanBuilder);

impl Column for Booleans {
    fn text(&mut self, text: &str) -> bool {
        let value = text.eq_ignore_ascii_case("true");
        let good = value || text.eq_ignore_ascii_case("false");
        good && self.boolean(value)
    }

    fn boolean(&mut self, value: bool) -> bool {
        self.0.append_value(value);
        true
    }

    fn null(&mut self) {
        self.0.append_null();
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(self.0.finish()))
    }
}

/// A column that has no values at all.
struct Nulls(usize);

impl Column for Nulls {
    fn text(&mut self, _text: &str) -> bool {
        false
    }

    fn null(&mut self) {
        self.0 += 1;
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(NullArray::new(std::mem::take(&mut self.0))))
    }
}

struct Texts<O: OffsetSizeTrait>(GenericStringBuilder<O>);

impl<O: OffsetSizeTrait> Column for Texts<O> {
    #[inline]
    fn text(&mut self, text: &str) -> bool {
        self.0.append_value(text);
        true
    }

    fn boolean(&mut self, value: bool) -> bool {
        self.text(if value { "true" } else { "false" })
    }

    fn null(&mut self) {
        self.0.append_null();
    }

    fn is_text(&self) -> bool {
        true
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let array = self.0.finish();
        // The next batch is likely to be as large as this one.
        self.0 = GenericStringBuilder::with_capacity(array.len(), array.values().len());
        Ok(Arc::new(array))
    }
}

struct Views(StringViewBuilder);

impl Column for Views {
    #[inline]
    fn text(&mut self, text: &str) -> bool {
        self.0.try_append_value(text).is_ok()
    }

    fn boolean(&mut self, value: bool) -> bool {
        self.text(if value { "true" } else { "false" })
    }

    fn null(&mut self) {
        self.0.append_null();
    }

    fn is_text(&self) -> bool {
        true
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(self.0.finish()))
    }
}

struct Words<K: ArrowDictionaryKeyType>(StringDictionaryBuilder<K>);

fn words<K: ArrowDictionaryKeyType + Send>() -> Box<dyn Column> {
    Box::new(Words(StringDictionaryBuilder::<K>::new()))
}

impl<K: ArrowDictionaryKeyType + Send> Column for Words<K> {
    /// More words than the keys can tell apart are refused.
    fn text(&mut self, text: &str) -> bool {
        self.0.append(text).is_ok()
    }

    fn boolean(&mut self, value: bool) -> bool {
        self.text(if value { "true" } else { "false" })
    }

    fn null(&mut self) {
        self.0.append_null();
    }

    fn is_text(&self) -> bool {
        true
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(self.0.finish()))
    }
}

/// What takes bytes.
trait Bytes: Send {
    fn put(&mut self, value: &[u8]) -> Result<(), ArrowError>;
    fn skip(&mut self);
    fn done(&mut self) -> ArrayRef;
}

impl<O: OffsetSizeTrait> Bytes for GenericBinaryBuilder<O> {
    fn put(&mut self, value: &[u8]) -> Result<(), ArrowError> {
        self.append_value(value);
        Ok(())
    }

    fn skip(&mut self) {
        self.append_null();
    }

    fn done(&mut self) -> ArrayRef {
        Arc::new(self.finish())
    }
}

impl Bytes for BinaryViewBuilder {
    fn put(&mut self, value: &[u8]) -> Result<(), ArrowError> {
        self.try_append_value(value)
    }

    fn skip(&mut self) {
        self.append_null();
    }

    fn done(&mut self) -> ArrayRef {
        Arc::new(self.finish())
    }
}

impl Bytes for FixedSizeBinaryBuilder {
    fn put(&mut self, value: &[u8]) -> Result<(), ArrowError> {
        self.append_value(value)
    }

    fn skip(&mut self) {
        self.append_null();
    }

    fn done(&mut self) -> ArrayRef {
        Arc::new(self.finish())
    }
}

/// Bytes from hexadecimal text.
struct Hex<B> {
    builder: B,
    bytes: Vec<u8>,
}

fn bytes<B: Bytes + 'static>(builder: B) -> Box<dyn Column> {
    Box::new(Hex { builder, bytes: Vec::new() })
}

impl<B: Bytes> Column for Hex<B> {
    fn text(&mut self, text: &str) -> bool {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        self.bytes.clear();
        for [high, low] in pairs {
            let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
            let (Some(high), Some(low)) = (digit(high), digit(low)) else { return false };
            self.bytes.push(high << 4 | low);
        }
        rest.is_empty() && self.builder.put(&self.bytes).is_ok()
    }

    fn number(&mut self, _text: &str) -> bool {
        false
    }

    fn null(&mut self) {
        self.builder.skip();
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(self.builder.done())
    }
}
