//! Columns and their values.

use std::fmt;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use chrono::{DateTime, NaiveDate, Utc};
use orbit_etl_core::{Error, Result};
use schemars::{JsonSchema, Schema as JsonSchemaValue, SchemaGenerator, json_schema};
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The words that texts are made of.
const WORDS: [&str; 32] = [
    "amber", "anchor", "basin", "birch", "candle", "cedar", "copper", "delta", "ember", "fern", "flint",
    "garnet", "harbor", "indigo", "ivory", "juniper", "lantern", "maple", "meadow", "nickel", "ochre",
    "orbit", "pebble", "quartz", "raven", "saffron", "slate", "thistle", "umber", "velvet", "willow",
    "zephyr",
];

/// What the values of a column are like. `nulls` is the share of NULLs, from 0 to 1.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Column {
    /// Whole numbers that count up, row by row.
    Sequence {
        /// The first one; 1 unless given.
        #[serde(default = "one")]
        start: i64,
        /// From row to row; 1 unless given.
        #[serde(default = "one")]
        step: i64,
    },
    /// Whole numbers.
    Int64 {
        /// The least; 0 unless given.
        #[serde(default)]
        min: i64,
        /// The greatest; 999,999 unless given.
        #[serde(default = "million")]
        max: i64,
        /// The share of NULLs.
        #[serde(default)]
        nulls: f64,
    },
    /// Numbers with a fraction.
    Float64 {
        /// The least; 0 unless given.
        #[serde(default)]
        min: f64,
        /// What all of them are below; 1 unless given.
        #[serde(default = "whole")]
        max: f64,
        /// The share of NULLs.
        #[serde(default)]
        nulls: f64,
    },
    /// Decimals.
    Decimal {
        /// How many digits; 12 unless given.
        #[serde(default = "twelve")]
        precision: u8,
        /// How many of them behind the point; 2 unless given.
        #[serde(default = "two")]
        scale: u8,
        /// The least, in units of the last digit; 0 unless given.
        #[serde(default)]
        min: i64,
        /// The greatest, in units of the last digit; 999,999 unless given.
        #[serde(default = "million")]
        max: i64,
        /// The share of NULLs.
        #[serde(default)]
        nulls: f64,
    },
    /// True and false.
    Boolean {
        /// The share of true; 0.5 unless given.
        #[serde(default = "half")]
        share: f64,
        /// The share of NULLs.
        #[serde(default)]
        nulls: f64,
    },
    /// A few words.
    Text {
        /// How many; 3 unless given.
        #[serde(default = "three")]
        words: usize,
        /// The share of NULLs.
        #[serde(default)]
        nulls: f64,
    },
    /// One of these texts.
    Choice {
        /// The texts.
        values: Vec<String>,
        /// The share of NULLs.
        #[serde(default)]
        nulls: f64,
    },
    /// Random UUIDs, as texts.
    Uuid,
    /// Days.
    Date {
        /// The first: `2024-01-01`.
        from: Day,
        /// The last.
        to: Day,
        /// The share of NULLs.
        #[serde(default)]
        nulls: f64,
    },
    /// Moments, to the microsecond, in UTC.
    Timestamp {
        /// The first: `2024-01-01T00:00:00Z`.
        from: Moment,
        /// What all of them are before.
        to: Moment,
        /// The share of NULLs.
        #[serde(default)]
        nulls: f64,
    },
}

/// A day in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Day(NaiveDate);

/// A moment in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Moment(DateTime<Utc>);

/// Columns by name, in the order in which they were written.
#[derive(Debug, Clone, PartialEq)]
pub struct Columns(Vec<(String, Column)>);

fn one() -> i64 {
    1
}

fn two() -> u8 {
    2
}

fn three() -> usize {
    3
}

fn twelve() -> u8 {
    12
}

fn million() -> i64 {
    999_999
}

fn half() -> f64 {
    0.5
}

fn whole() -> f64 {
    1.0
}

impl Columns {
    /// Of these columns.
    pub fn new(columns: impl IntoIterator<Item = (impl Into<String>, Column)>) -> Self {
        Self(columns.into_iter().map(|(name, column)| (name.into(), column)).collect())
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        let field =
            |(name, column): &(String, Column)| Field::new(name, column.data_type(), column.nulls() > 0.0);
        Arc::new(Schema::new(self.0.iter().map(field).collect::<Vec<_>>()))
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if self.0.is_empty() {
            return Err(Error::config("there are no columns").with("option", "columns"));
        }
        for (name, column) in &self.0 {
            if let Some(why) = column.mistake() {
                return Err(Error::config(why).with("option", format!("columns.{name}")));
            }
        }
        Ok(())
    }

    /// The values of rows of one column.
    pub(crate) fn values(&self, column: usize, seed: u64, rows: std::ops::Range<u64>) -> Result<ArrayRef> {
        let (_, about) =
            self.0.get(column).ok_or_else(|| Error::internal("there is no such generated column"))?;
        let salt = mix(seed ^ mix(column as u64 + 1));
        about.values(salt, rows)
    }
}

impl Column {
    fn data_type(&self) -> DataType {
        match self {
            Self::Sequence { .. } | Self::Int64 { .. } => DataType::Int64,
            Self::Float64 { .. } => DataType::Float64,
            Self::Decimal { precision, scale, .. } => {
                DataType::Decimal128(*precision, i8::try_from(*scale).unwrap_or(i8::MAX))
            }
            Self::Boolean { .. } => DataType::Boolean,
            Self::Text { .. } | Self::Choice { .. } | Self::Uuid => DataType::Utf8,
            Self::Date { .. } => DataType::Date32,
            Self::Timestamp { .. } => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        }
    }

    fn nulls(&self) -> f64 {
        match self {
            Self::Sequence { .. } | Self::Uuid => 0.0,
            Self::Int64 { nulls, .. }
            | Self::Float64 { nulls, .. }
            | Self::Decimal { nulls, .. }
            | Self::Boolean { nulls, .. }
            | Self::Text { nulls, .. }
            | Self::Choice { nulls, .. }
            | Self::Date { nulls, .. }
            | Self::Timestamp { nulls, .. } => *nulls,
        }
    }

    /// Why no values can be made, if none can.
    fn mistake(&self) -> Option<&'static str> {
        let share = |share: f64| !(0.0..=1.0).contains(&share);
        let ordered = match self {
            Self::Int64 { min, max, .. } => min <= max,
            Self::Float64 { min, max, .. } => min < max && (max - min).is_finite(),
            Self::Decimal { precision, scale, min, max, .. } => {
                let most = 10_i128.checked_pow(u32::from(*precision));
                if !(1..=38).contains(precision) || scale > precision {
                    return Some("a decimal has 1 to 38 digits, and no more of them behind the point");
                }
                if most.is_none_or(|most| i128::from(*max) >= most || i128::from(*min) <= -most) {
                    return Some("`min` and `max` need more digits than `precision`");
                }
                min <= max
            }
            Self::Date { from, to, .. } => from.0 <= to.0,
            Self::Timestamp { from, to, .. } => from.0 < to.0,
            Self::Boolean { share: given, .. } if share(*given) => {
                return Some("`share` lies between 0 and 1");
            }
            Self::Choice { values, .. } if values.is_empty() => return Some("there are no `values`"),
            _ => true,
        };
        if !ordered {
            return Some("the range ends before it begins");
        }
        share(self.nulls()).then_some("`nulls` lies between 0 and 1")
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // Random bits, cut to size.
    fn values(&self, salt: u64, rows: std::ops::Range<u64>) -> Result<ArrayRef> {
        let nulls = self.nulls();
        let is_null = |row: u64| nulls > 0.0 && unit(mix(mix(salt) ^ row)) < nulls;
        let bits = |row: u64| (!is_null(row)).then(|| mix(salt ^ row));
        let made = |array: Result<ArrayRef, arrow::error::ArrowError>| {
            array.map_err(|e| Error::internal("a generated column can't be made").caused_by(e))
        };
        Ok(match self {
            Self::Sequence { start, step } => {
                let value = |row: u64| start.wrapping_add(step.wrapping_mul(row as i64));
                Arc::new(Int64Array::from_iter_values(rows.map(value)))
            }
            Self::Int64 { min, max, .. } => {
                Arc::new(rows.map(|row| bits(row).map(|b| between(*min, *max, b))).collect::<Int64Array>())
            }
            Self::Float64 { min, max, .. } => Arc::new(
                rows.map(|row| bits(row).map(|b| min + (max - min) * unit(b))).collect::<Float64Array>(),
            ),
            Self::Decimal { precision, scale, min, max, .. } => {
                let values = rows.map(|row| bits(row).map(|b| i128::from(between(*min, *max, b))));
                let array = values.collect::<Decimal128Array>();
                let scale = i8::try_from(*scale).unwrap_or(i8::MAX);
                made(array.with_precision_and_scale(*precision, scale).map(|a| Arc::new(a) as ArrayRef))?
            }
            Self::Boolean { share, .. } => {
                Arc::new(rows.map(|row| bits(row).map(|b| unit(b) < *share)).collect::<BooleanArray>())
            }
            Self::Text { words, .. } => {
                let text = |b: u64| {
                    let word = |i: usize| WORDS[(mix(b ^ i as u64) % WORDS.len() as u64) as usize];
                    (0..*words).map(word).collect::<Vec<_>>().join(" ")
                };
                Arc::new(rows.map(|row| bits(row).map(text)).collect::<StringArray>())
            }
            Self::Choice { values, .. } => {
                let choice = |b: u64| values[(b % values.len() as u64) as usize].as_str();
                Arc::new(rows.map(|row| bits(row).map(choice)).collect::<StringArray>())
            }
            Self::Uuid => {
                let uuid = |row: u64| {
                    let (a, b) = (mix(salt ^ row), mix(mix(salt) ^ row));
                    format!(
                        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
                        a >> 32,
                        a >> 16 & 0xffff,
                        a & 0xfff,
                        0x8000 | (b >> 48 & 0x3fff),
                        b & 0xffff_ffff_ffff
                    )
                };
                Arc::new(StringArray::from_iter_values(rows.map(uuid)))
            }
            Self::Date { from, to, .. } => {
                let day = |date: NaiveDate| (date - NaiveDate::default()).num_days();
                let (from, to) = (day(from.0), day(to.0));
                let value = |b: u64| i32::try_from(between(from, to, b)).unwrap_or(i32::MAX);
                Arc::new(rows.map(|row| bits(row).map(value)).collect::<Date32Array>())
            }
            Self::Timestamp { from, to, .. } => {
                let (from, to) = (from.0.timestamp_micros(), to.0.timestamp_micros() - 1);
                let values = rows.map(|row| bits(row).map(|b| between(from, to, b)));
                Arc::new(values.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
            }
        })
    }
}

/// Well-stirred bits; the same for the same input, for good.
fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// From 0 up to 1.
#[allow(clippy::cast_precision_loss)] // 53 bits are what a double holds.
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// A number from `min` to `max`, both included.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // The sum lies between the two.
fn between(min: i64, max: i64, bits: u64) -> i64 {
    let span = (i128::from(max) - i128::from(min) + 1) as u128;
    (i128::from(min) + ((u128::from(bits) * span) >> 64) as i128) as i64
}

impl TryFrom<String> for Day {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self).map_err(|_| "expected a day, as 2024-12-31")
    }
}

impl TryFrom<String> for Moment {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self).map_err(|_| "expected a moment, as 2024-12-31T12:00:00Z")
    }
}

impl From<NaiveDate> for Day {
    fn from(day: NaiveDate) -> Self {
        Self(day)
    }
}

impl From<DateTime<Utc>> for Moment {
    fn from(moment: DateTime<Utc>) -> Self {
        Self(moment)
    }
}

impl JsonSchema for Day {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Day".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> JsonSchemaValue {
        json_schema!({ "type": "string", "description": "A day: `2024-12-31`." })
    }
}

impl JsonSchema for Moment {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Moment".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> JsonSchemaValue {
        json_schema!({ "type": "string", "description": "A moment: `2024-12-31T12:00:00Z`." })
    }
}

impl JsonSchema for Columns {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "GeneratedColumns".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> JsonSchemaValue {
        json_schema!({
            "type": "object",
            "minProperties": 1,
            "additionalProperties": generator.subschema_for::<Column>()
        })
    }
}

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Columns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from names to columns, as {id: {type: sequence}}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Columns, A::Error> {
                let mut columns: Vec<(String, Column)> = Vec::new();
                while let Some((name, column)) = map.next_entry::<String, Column>()? {
                    if columns.iter().any(|(known, _)| *known == name) {
                        return Err(de::Error::custom(format!("two columns are called {name:?}")));
                    }
                    columns.push((name, column));
                }
                Ok(Columns(columns))
            }
        }

        deserializer.deserialize_map(Reader)
    }
}
