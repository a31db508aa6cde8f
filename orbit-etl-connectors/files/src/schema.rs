//! Types by name, types that fit into one another, and types guessed from text.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use schemars::{JsonSchema, SchemaGenerator, json_schema};
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeSeq as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::source::moment::timestamp;
use crate::source::number::{Rules, Written, float64, integer};

/// A schema in a configuration: `{id: int64, at: "timestamp(us, UTC)"}`, or, where the order of a
/// map is lost, `[{name: id, type: "int64 not null"}, …]`.
#[derive(Debug, Clone)]
pub(crate) struct Columns(pub(crate) SchemaRef);

impl JsonSchema for Columns {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Columns".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> schemars::Schema {
        let column = generator.subschema_for::<Column>();
        json_schema!({
            "description": "Columns with their types: `{id: int64, price: \"decimal(10, 2)\"}`.",
            "anyOf": [
                { "type": "object", "additionalProperties": { "type": "string" } },
                { "type": "array", "items": column }
            ]
        })
    }
}

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ColumnsVisitor)
    }
}

impl Serialize for Columns {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut columns = serializer.serialize_seq(Some(self.0.fields().len()))?;
        for field in self.0.fields() {
            columns.serialize_element(&Column {
                name: field.name().clone(),
                kind: format!(
                    "{}{}",
                    type_name(field.data_type()),
                    if field.is_nullable() { "" } else { " not null" }
                ),
            })?;
        }
        columns.end()
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Column {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

struct ColumnsVisitor;

impl<'de> Visitor<'de> for ColumnsVisitor {
    type Value = Columns;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from column names to types, or a list of {name, type}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Columns, A::Error> {
        let mut fields = Vec::new();
        while let Some((name, kind)) = map.next_entry::<String, String>()? {
            fields.push(parse_field(&name, &kind).map_err(de::Error::custom)?);
        }
        Ok(Columns(Arc::new(Schema::new(fields))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Columns, A::Error> {
        let mut fields = Vec::new();
        while let Some(column) = list.next_element::<Column>()? {
            fields.push(parse_field(&column.name, &column.kind).map_err(de::Error::custom)?);
        }
        Ok(Columns(Arc::new(Schema::new(fields))))
    }
}

fn parse_field(name: &str, kind: &str) -> Result<Field, String> {
    let kind = kind.trim();
    let (kind, nullable) = match kind.strip_suffix("not null") {
        Some(kind) => (kind.trim(), false),
        None => (kind, true),
    };
    parse_type(kind).map(|kind| Field::new(name, kind, nullable)).map_err(|e| format!("column `{name}`: {e}"))
}

/// A type by its name: `int64`, `text`, `decimal(10, 2)`, `timestamp(us, UTC)`, `list<int64>`,
/// `struct<a: int64, b: text>`; otherwise as arrow writes it.
fn parse_type(text: &str) -> Result<DataType, String> {
    let text = text.trim();
    let lower = text.to_ascii_lowercase();
    let simple = match lower.as_str() {
        "bool" | "boolean" => DataType::Boolean,
        "int8" => DataType::Int8,
        "int16" => DataType::Int16,
        "int32" | "int" => DataType::Int32,
        "int64" | "bigint" => DataType::Int64,
        "uint8" => DataType::UInt8,
        "uint16" => DataType::UInt16,
        "uint32" => DataType::UInt32,
        "uint64" => DataType::UInt64,
        "float32" | "float" => DataType::Float32,
        "float64" | "double" => DataType::Float64,
        "text" | "string" | "utf8" => DataType::Utf8,
        "binary" => DataType::Binary,
        "date" => DataType::Date32,
        "time" => DataType::Time64(TimeUnit::Microsecond),
        "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, None),
        _ => return parse_nested(text, &lower),
    };
    Ok(simple)
}

fn parse_nested(text: &str, lower: &str) -> Result<DataType, String> {
    let inside = |open: &str, close: char| {
        lower
            .strip_prefix(open)
            .and_then(|r| r.strip_suffix(close))
            .map(|_| &text[open.len()..text.len() - 1])
    };
    if let Some(arguments) = inside("decimal(", ')') {
        let (precision, scale) = arguments.split_once(',').unwrap_or((arguments, "0"));
        let precision: u8 = precision.trim().parse().map_err(|_| "decimal needs (precision, scale)")?;
        let scale: i8 = scale.trim().parse().map_err(|_| "decimal needs (precision, scale)")?;
        return match precision {
            1..=38 if scale.unsigned_abs() <= precision => Ok(DataType::Decimal128(precision, scale)),
            39..=76 if scale.unsigned_abs() <= precision => Ok(DataType::Decimal256(precision, scale)),
            _ => Err("a decimal has 1 to 76 digits, and no more of them behind the point".into()),
        };
    }
    // Arrow's own notation names the units in full.
    if let Some(arguments) = inside("timestamp(", ')')
        && let (unit, zone) = arguments.split_once(',').map_or((arguments, None), |(u, z)| (u, Some(z)))
        && let Some(unit) = unit_of(unit.trim())
    {
        return Ok(DataType::Timestamp(unit, zone.map(|z| z.trim().trim_matches('"').into())));
    }
    if let Some(item) = inside("list<", '>') {
        return Ok(DataType::List(Arc::new(Field::new_list_field(parse_type(item)?, true))));
    }
    if let Some(inner) = inside("struct<", '>') {
        let fields = top_level(inner)
            .into_iter()
            .map(|part| {
                let (name, kind) = part.split_once(':').ok_or("struct needs <name: type, …>")?;
                parse_field(name.trim(), kind)
            })
            .collect::<Result<Fields, String>>()?;
        return Ok(DataType::Struct(fields));
    }
    DataType::from_str(text).map_err(|_| format!("`{text}` is not a type"))
}

/// Parts between commas that stand in no bracket.
fn top_level(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0_usize, 0, Vec::new());
    for (at, character) in text.char_indices() {
        match character {
            '<' | '(' => depth += 1,
            '>' | ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unit_of(name: &str) -> Option<TimeUnit> {
    match name {
        "s" => Some(TimeUnit::Second),
        "ms" => Some(TimeUnit::Millisecond),
        "us" => Some(TimeUnit::Microsecond),
        "ns" => Some(TimeUnit::Nanosecond),
        _ => None,
    }
}

/// The name that [`parse_type`] reads back.
fn type_name(kind: &DataType) -> String {
    match kind {
        DataType::Boolean => "bool".into(),
        DataType::Utf8 => "text".into(),
        DataType::Date32 => "date".into(),
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale)
            if (*precision <= 38) == matches!(kind, DataType::Decimal128(..)) =>
        {
            format!("decimal({precision}, {scale})")
        }
        DataType::Timestamp(unit, zone) => {
            let unit = match unit {
                TimeUnit::Second => "s",
                TimeUnit::Millisecond => "ms",
                TimeUnit::Microsecond => "us",
                TimeUnit::Nanosecond => "ns",
            };
            zone.as_ref()
                .map_or_else(|| format!("timestamp({unit})"), |zone| format!("timestamp({unit}, {zone})"))
        }
        DataType::List(item) if item.is_nullable() => format!("list<{}>", type_name(item.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<_> = fields
                .iter()
                .map(|f| {
                    let suffix = if f.is_nullable() { "" } else { " not null" };
                    format!("{}: {}{suffix}", f.name(), type_name(f.data_type()))
                })
                .collect();
            format!("struct<{}>", fields.join(", "))
        }
        other => other.to_string(),
    }
}

/// Whether both hold the same values under the same names. Names count, since a cast goes by position.
fn same(a: &DataType, b: &DataType) -> bool {
    use DataType::{FixedSizeList, LargeList, List, Struct};
    match (a, b) {
        (Struct(a), Struct(b)) => {
            let alike =
                |(a, b): (&FieldRef, &FieldRef)| a.name() == b.name() && same(a.data_type(), b.data_type());
            a.len() == b.len() && a.iter().zip(b.iter()).all(alike)
        }
        (List(a), List(b)) | (LargeList(a), LargeList(b)) => same(a.data_type(), b.data_type()),
        (FixedSizeList(a, n), FixedSizeList(b, m)) => n == m && same(a.data_type(), b.data_type()),
        _ => a.equals_datatype(b),
    }
}

/// Whether every value of `from` is a value of `to`.
pub(crate) fn widens(from: &DataType, to: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, Decimal128, Decimal256, Dictionary, Float16, Float32, Float64, Int8, Int16,
        Int32, Int64, LargeBinary, LargeUtf8, Null, Timestamp, UInt8, UInt16, UInt32, UInt64, Utf8, Utf8View,
    };
    if same(from, to) {
        return true;
    }
    match (from, to) {
        (Null, _) => true,
        (Dictionary(_, values), to) => widens(values, to),
        (Utf8 | LargeUtf8 | Utf8View, Utf8 | LargeUtf8 | Utf8View)
        | (Binary | LargeBinary | BinaryView, Binary | LargeBinary | BinaryView)
        | (Int8, Int16 | Int32 | Int64 | Float32 | Float64)
        | (Int16, Int32 | Int64 | Float32 | Float64)
        | (Int32, Int64 | Float64)
        | (UInt8, UInt16 | UInt32 | UInt64 | Int16 | Int32 | Int64 | Float32 | Float64)
        | (UInt16, UInt32 | UInt64 | Int32 | Int64 | Float32 | Float64)
        | (UInt32, UInt64 | Int64 | Float64)
        | (Float16, Float32 | Float64)
        | (Float32, Float64) => true,
        (Timestamp(a, zone), Timestamp(b, other)) => zone == other && a <= b,
        (
            Decimal128(precision, scale) | Decimal256(precision, scale),
            Decimal128(wider, longer) | Decimal256(wider, longer),
        ) => {
            longer >= scale
                && i16::from(*wider) - i16::from(*longer) >= i16::from(*precision) - i16::from(*scale)
        }
        (from, Decimal128(precision, scale) | Decimal256(precision, scale)) => {
            let digits = match from {
                Int8 | UInt8 => 3,
                Int16 | UInt16 => 5,
                Int32 | UInt32 => 10,
                Int64 => 19,
                UInt64 => 20,
                _ => return false,
            };
            *scale >= 0 && i16::from(*precision) - i16::from(*scale) >= digits
        }
        _ => false,
    }
}

/// A type that holds the values of both, if one of them does.
pub(crate) fn common(a: &DataType, b: &DataType) -> Option<DataType> {
    match (widens(a, b), widens(b, a)) {
        (_, true) => Some(a.clone()),
        (true, false) => Some(b.clone()),
        (false, false) => None,
    }
}

/// What the values of a text column look like; the order is that of [`guess`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guess {
    Bool,
    /// A whole number that a double holds, too.
    Int,
    /// A whole number of 64 bits that a double would round.
    Long,
    /// A whole number that needs more than 64 bits.
    Big,
    Float,
    /// A day; one that has no timestamp in nanoseconds?
    Date {
        far: bool,
    },
    /// A time of day on a day; with a zone?, in nanoseconds?, or out of their range?
    Timestamp {
        zoned: bool,
        nanos: bool,
        far: bool,
    },
    Text,
}

impl Guess {
    /// What holds both.
    pub(crate) fn or(self, other: Self) -> Self {
        use Guess::{Big, Date, Float, Int, Long, Text, Timestamp};
        match (self, other) {
            (a, b) if a == b => a,
            (Int, Long) | (Long, Int) => Long,
            (Int | Long, Big) | (Big, Int | Long) => Big,
            (Int, Float) | (Float, Int) => Float,
            (Date { far: a }, Date { far: b }) => Date { far: a || b },
            (Date { far: a }, Timestamp { zoned: false, nanos, far: b })
            | (Timestamp { zoned: false, nanos, far: a }, Date { far: b }) => {
                Self::moment(false, nanos, a || b)
            }
            (Timestamp { zoned, nanos: a, far: x }, Timestamp { zoned: other, nanos: b, far: y })
                if zoned == other =>
            {
                Self::moment(zoned, a || b, x || y)
            }
            _ => Text,
        }
    }

    /// No type of 64 bits has both nanoseconds and all years.
    fn moment(zoned: bool, nanos: bool, far: bool) -> Self {
        if nanos && far { Self::Text } else { Self::Timestamp { zoned, nanos, far } }
    }

    pub(crate) fn data_type(self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int | Self::Long => DataType::Int64,
            Self::Big => DataType::Decimal128(38, 0),
            Self::Float => DataType::Float64,
            Self::Date { .. } => DataType::Date32,
            Self::Timestamp { zoned, nanos, .. } => DataType::Timestamp(
                if nanos { TimeUnit::Nanosecond } else { TimeUnit::Microsecond },
                zoned.then(|| "UTC".into()),
            ),
            Self::Text => DataType::Utf8,
        }
    }
}

/// The narrowest type that keeps a text's meaning: `007` stays text, and no number is rounded.
pub(crate) fn guess(text: &str) -> Guess {
    if text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false") {
        return Guess::Bool;
    }
    guess_number(text).unwrap_or_else(|| guess_moment(text))
}

/// What a number in the form of JSON is; `None` if it isn't one.
pub(crate) fn guess_number(text: &str) -> Option<Guess> {
    let written = Written::parse(text.as_bytes(), true)?;
    let rules = Rules { inferred: true, json: false };
    if !written.is_plain_whole() || (written.is_zero() && text != "0") {
        // Only a floating-point zero keeps its sign.
        return Some(if float64(text, rules).is_some() { Guess::Float } else { Guess::Text });
    }
    Some(match integer::<i64>(text, rules) {
        Some(value) if value.unsigned_abs() <= 1 << f64::MANTISSA_DIGITS => Guess::Int,
        Some(_) => Guess::Long,
        None if text.trim_start_matches('-').len() <= 38 => Guess::Big,
        None => Guess::Text,
    })
}

fn guess_moment(text: &str) -> Guess {
    let Some(moment) = timestamp(text, true) else { return Guess::Text };
    let far = moment.ticks(TimeUnit::Nanosecond).is_none();
    if text.len() == 10 {
        return Guess::Date { far };
    }
    Guess::moment(moment.is_zoned(), moment.digits > 6, far)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_names_read_back() {
        for text in [
            "bool",
            "int64 not null",
            "text",
            "decimal(10, 2)",
            "timestamp(us, UTC)",
            "timestamp(ns)",
            "list<int32>",
            "struct<a: int64, b: list<text>, c: decimal(3, 1) not null>",
            "date",
            "float64",
            "Time64(µs)",
            "binary",
        ] {
            let Ok(field) = parse_field("x", text) else { panic!("{text}") };
            let columns = Columns(Arc::new(Schema::new(vec![field])));
            let json = serde_json::to_string(&columns).unwrap();
            let back: Columns = serde_json::from_str(&json).unwrap();
            assert_eq!(back.0, columns.0, "{json}");
        }
        assert!(serde_json::from_str::<Columns>(r#"{"a": "int65"}"#).is_err());
        let ordered: Columns = serde_json::from_str(r#"{"z": "int64", "a": "text"}"#).unwrap();
        assert_eq!(ordered.0.field(0).name(), "z");
    }

    #[test]
    fn guesses_lose_nothing() {
        for (text, expected) in [
            ("12", DataType::Int64),
            ("-0", DataType::Float64),
            ("0", DataType::Int64),
            ("9007199254740993.5", DataType::Utf8),
            ("0.30000000000000004", DataType::Float64),
            ("1e400", DataType::Utf8),
            ("007", DataType::Utf8),
            ("9223372036854775808", DataType::Decimal128(38, 0)),
            ("1.50", DataType::Float64),
            ("-1e-7", DataType::Float64),
            ("0.1234567890123456789", DataType::Utf8),
            ("1.", DataType::Utf8),
            ("1e", DataType::Utf8),
            ("TRUE", DataType::Boolean),
            ("2024-02-29", DataType::Date32),
            ("2023-02-29", DataType::Utf8),
            ("2024-02-29 01:02:03", DataType::Timestamp(TimeUnit::Microsecond, None)),
            ("2024-02-29T01:02:03.123Z", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
            (
                "2024-02-29T01:02:03.123456789+01:00",
                DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
            ),
            ("9999-12-31T00:00:00.123456789", DataType::Utf8),
            ("9999-12-31T00:00:00.123456", DataType::Timestamp(TimeUnit::Microsecond, None)),
            ("2016-12-31T23:59:60", DataType::Utf8),
            ("2024-02-29T01:02:03.0000000001", DataType::Utf8),
            ("2024-02-29T01:02:03 Europe/Berlin", DataType::Utf8),
            ("12-24", DataType::Utf8),
            ("+5", DataType::Utf8),
            ("NaN", DataType::Utf8),
        ] {
            assert_eq!(guess(text).data_type(), expected, "{text}");
        }
        assert_eq!(guess("1").or(guess("2.5")), Guess::Float);
        assert_eq!(guess("9007199254740993").or(guess("2.5")), Guess::Text);
        assert_eq!(guess("9223372036854775808").or(guess("2.5")), Guess::Text);
        let fine = guess("2024-02-29T01:02:03.123456789");
        assert_eq!(guess("9999-12-31").or(fine), Guess::Text);
        assert_eq!(guess("2024-12-31").or(fine), fine);
    }

    #[test]
    fn types_widen_one_way() {
        assert!(widens(&DataType::Int32, &DataType::Int64));
        assert!(!widens(&DataType::Int64, &DataType::Int32));
        assert!(!widens(&DataType::Int64, &DataType::Float64));
        assert!(widens(&DataType::Decimal128(5, 2), &DataType::Decimal128(10, 4)));
        assert!(!widens(&DataType::Decimal128(5, 2), &DataType::Decimal128(5, 3)));
        assert_eq!(common(&DataType::Int64, &DataType::Utf8), None);
    }
}
