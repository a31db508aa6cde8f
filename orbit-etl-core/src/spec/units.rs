//! Times and sizes as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A span of time in a configuration: `10s`, `500ms`, `1h 30m`.
///
/// The units are `ms`, `s`, `m` (minutes), `h`, `d` and `w`, the parts are added up. A number needs
/// its unit.
///
/// ```
/// use std::time::Duration;
/// use orbit_etl_core::spec::Period;
///
/// let period: Period = "1h 30m".parse().unwrap();
/// assert_eq!(Duration::from(period), Duration::from_secs(5400));
/// assert_eq!(period.to_string(), "1h 30m");
/// assert!("10".parse::<Period>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(pub Duration);

/// A number of bytes in a configuration: `64MiB`, `1.5GB` or a plain number.
///
/// `KiB`, `MiB`, `GiB` and `TiB` are powers of 1,024, `kB`, `MB`, `GB` and `TB` of 1,000; capital or
/// small letters are the same.
///
/// ```
/// use orbit_etl_core::spec::ByteSize;
///
/// assert_eq!("64MiB".parse(), Ok(ByteSize(64 << 20)));
/// assert_eq!("1.5 kB".parse(), Ok(ByteSize(1500)));
/// assert_eq!(ByteSize(64 << 20).to_string(), "64MiB");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// Why a text is no [`Period`] or [`ByteSize`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

const TIMES: [(&str, u64); 6] = [
    ("w", 7 * 24 * 3_600_000),
    ("d", 24 * 3_600_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Largest first; the first of each size is the one that is printed.
const SIZES: [(&str, u64); 14] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
    ("bytes", 1),
    ("B", 1),
];

impl From<Period> for Duration {
    fn from(period: Period) -> Self {
        period.0
    }
}

impl FromStr for Period {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const HOW: &str = "write a number and a unit, as 500ms, 10s, 5m, 2h, 1d or 1h 30m";
        let wrong = |why: &str| UnitError(format!("{why}; {HOW}"));
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(wrong("the time is empty"));
        }
        let mut millis = 0_u64;
        while !rest.is_empty() {
            let (number, unit, after) = split(rest);
            if number.is_empty() {
                return Err(wrong("this is not a time"));
            }
            if unit.is_empty() {
                return Err(wrong("the time has no unit"));
            }
            let Some((_, factor)) = TIMES.iter().find(|(name, _)| *name == unit) else {
                return Err(wrong(&format!("{unit:?} is not a unit of time")));
            };
            let part = scaled(number, *factor).ok_or_else(|| wrong("this is not a time"))?;
            millis = millis.checked_add(part).ok_or_else(|| wrong("the time is too long"))?;
            rest = after.trim_start();
        }
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const HOW: &str = "write a number and a unit, as 512KiB, 64MiB or 1GiB";
        let wrong = |why: &str| UnitError(format!("{why}; {HOW}"));
        let (number, unit, after) = split(text.trim());
        if number.is_empty() || !after.is_empty() {
            return Err(wrong("this is not a number of bytes"));
        }
        let factor = if unit.is_empty() {
            1
        } else {
            let found = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
            found.ok_or_else(|| wrong(&format!("{unit:?} is not a unit of size")))?.1
        };
        scaled(number, factor).map(Self).ok_or_else(|| wrong("this is not a number of bytes"))
    }
}

/// A leading number, the letters behind it, and what follows.
fn split(text: &str) -> (&str, &str, &str) {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    let rest = rest.trim_start();
    let letters = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(letters);
    (number, unit, rest)
}

/// The product of a decimal number, exact if it has no point.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 9 || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: u64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let digits = u32::try_from(fraction.len()).ok()?;
    let part = u128::from(part) * u128::from(factor) / 10_u128.pow(digits);
    whole.checked_mul(factor)?.checked_add(u64::try_from(part).ok()?)
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let mut first = true;
        for (unit, factor) in TIMES {
            if rest >= factor {
                write!(f, "{}{}{unit}", if first { "" } else { " " }, rest / factor)?;
                rest %= factor;
                first = false;
            }
        }
        if first { f.write_str("0s") } else { Ok(()) }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIZES.iter().find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size)) {
            Some((unit, size)) if *size > 1 => write!(f, "{}{unit}", self.0 / size),
            _ => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = Period;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time with its unit, as 10s")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Period, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Reader)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, as 64MiB")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl JsonSchema for Period {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Period".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A span of time: `500ms`, `10s`, `5m`, `1h 30m`, `1d`.",
            "pattern": r"^\s*([0-9.]+\s*(ms|s|m|h|d|w)\s*)+$|\$\{"
        })
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "description": "A number of bytes: `512KiB`, `64MiB`, `1.5GB`, or a plain number.",
            "minimum": 0,
            "pattern": r"^\s*[0-9.]+\s*[A-Za-z]*\s*$|\$\{"
        })
    }
}

/// For fields that are plain numbers of bytes: `#[serde(with = "orbit_etl_core::spec::bytes")]` lets
/// them be written as `64MiB` too. The field is a `u64`, a `usize` or an `Option` of one.
pub mod bytes {
    use serde::de::{self, Deserialize, Deserializer};
    use serde::{Serialize, Serializer};

    use super::ByteSize;

    /// A field that holds a number of bytes.
    pub trait Bytes: Sized {
        /// From what was written.
        ///
        /// # Errors
        /// The number is too large, or must not lack.
        fn from_size(size: Option<ByteSize>) -> Result<Self, &'static str>;
    }

    impl Bytes for u64 {
        fn from_size(size: Option<ByteSize>) -> Result<Self, &'static str> {
            size.map(|size| size.0).ok_or("expected a number of bytes, as 64MiB")
        }
    }

    impl Bytes for usize {
        fn from_size(size: Option<ByteSize>) -> Result<Self, &'static str> {
            let bytes = u64::from_size(size)?;
            Self::try_from(bytes).map_err(|_| "more bytes than this machine can count")
        }
    }

    impl<T: Bytes> Bytes for Option<T> {
        fn from_size(size: Option<ByteSize>) -> Result<Self, &'static str> {
            size.map(|size| T::from_size(Some(size))).transpose()
        }
    }

    /// Reads a number of bytes, with or without its unit.
    ///
    /// # Errors
    /// It is none.
    pub fn deserialize<'de, T: Bytes, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        T::from_size(Option::<ByteSize>::deserialize(deserializer)?).map_err(de::Error::custom)
    }

    /// Writes the plain number.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<T: Serialize, S: Serializer>(bytes: &T, serializer: S) -> Result<S::Ok, S::Error> {
        bytes.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, millis, shown) in [
            ("10s", 10_000, "10s"),
            ("500ms", 500, "500ms"),
            ("1h30m", 5_400_000, "1h 30m"),
            (" 1.5 h ", 5_400_000, "1h 30m"),
            ("2w 1d", 15 * 86_400_000, "2w 1d"),
            ("0s", 0, "0s"),
        ] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period, Period(Duration::from_millis(millis)), "{text}");
            assert_eq!(period.to_string(), shown);
            assert_eq!(shown.parse(), Ok(period));
        }
        for (text, why) in [
            ("10", "the time has no unit"),
            ("10 sec", "\"sec\" is not a unit of time"),
            ("-1s", "this is not a time"),
            ("", "the time is empty"),
            ("1..s", "this is not a time"),
            ("99999999999999999999s", "this is not a time"),
            ("9999999999999999s 9999999999999999s", "the time is too long"),
        ] {
            assert!(text.parse::<Period>().unwrap_err().to_string().starts_with(why), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes, shown) in [
            ("64MiB", 64 << 20, "64MiB"),
            ("64mib", 64 << 20, "64MiB"),
            ("1.5 GB", 1_500_000_000, "1500MB"),
            ("1000", 1000, "1kB"),
            ("1025", 1025, "1025"),
            ("0", 0, "0"),
            ("2M", 2 << 20, "2MiB"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size, ByteSize(bytes), "{text}");
            assert_eq!(size.to_string(), shown);
            assert_eq!(shown.parse(), Ok(size));
        }
        for text in ["", "MiB", "64 mibs", "1 2", "-1", "99999999TiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }
}
