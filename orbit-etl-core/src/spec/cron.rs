//! When a pipeline runs: cron expressions and their next times.

use std::fmt;
use std::str::FromStr;

use arrow::array::timezone::Tz;
use chrono::{DateTime, Datelike, Days, Duration, LocalResult, NaiveDateTime, TimeZone, Timelike, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

/// A cron expression of five fields: minute, hour, day of the month, month, day of the week.
///
/// A field is `*`, a number, a range `1-5`, a step `*/15` or `8-18/2`, or a list of these. Months and
/// days of the week have names too (`jan`, `mon`); 0 and 7 are Sunday. If both day fields are
/// restricted, a day needs to fit one of them, as cron has always had it. `@hourly`, `@daily`,
/// `@weekly`, `@monthly` and `@yearly` stand for what they say.
///
/// ```
/// use orbit_etl_core::spec::Cron;
///
/// assert!("*/15 8-18 * * mon-fri".parse::<Cron>().is_ok());
/// assert_eq!(
///     "0 24 * * *".parse::<Cron>().unwrap_err().to_string(),
///     "hour: 24 is not between 0 and 23"
/// );
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Cron {
    text: String,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether both day fields are restricted.
    either_day: bool,
}

/// Why a text is no [`Cron`] expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CronError(String);

/// One field: its name, its bounds, and the names of its values.
struct Field {
    name: &'static str,
    least: u32,
    most: u32,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { name: "minute", least: 0, most: 59, names: &[] },
    Field { name: "hour", least: 0, most: 23, names: &[] },
    Field { name: "day of the month", least: 1, most: 31, names: &[] },
    Field {
        name: "month",
        least: 1,
        most: 12,
        names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    },
    Field {
        name: "day of the week",
        least: 0,
        most: 7,
        names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    },
];

impl FromStr for Cron {
    type Err = CronError;

    fn from_str(text: &str) -> Result<Self, CronError> {
        let text = text.trim();
        let expanded = match text {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            other if other.starts_with('@') => {
                return Err(CronError(format!(
                    "{other:?} is none of @hourly, @daily, @weekly, @monthly and @yearly"
                )));
            }
            other => other,
        };
        let parts: Vec<&str> = expanded.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts[..] else {
            return Err(CronError(format!(
                "a schedule has five fields (minute, hour, day of the month, month, day of the week), this \
                 one has {}",
                parts.len()
            )));
        };
        let [minutes, hours, days, months, mut weekdays] = [
            FIELDS[0].read(minute)?,
            FIELDS[1].read(hour)?,
            FIELDS[2].read(day)?,
            FIELDS[3].read(month)?,
            FIELDS[4].read(weekday)?,
        ];
        weekdays |= weekdays >> 7 & 1;
        let cron = Self {
            text: text.to_owned(),
            minutes,
            hours,
            days,
            months,
            weekdays,
            either_day: !day.starts_with('*') && !weekday.starts_with('*'),
        };
        // A leap day comes at least every eight years.
        let probe = DateTime::UNIX_EPOCH.naive_utc();
        match cron.next_after(probe) {
            Some(_) => Ok(cron),
            None => Err(CronError("day of the month: no month of this schedule has such a day".into())),
        }
    }
}

impl Cron {
    /// The first time after this one, in whatever zone both are meant.
    pub fn next_after(&self, time: NaiveDateTime) -> Option<NaiveDateTime> {
        let has = |set: u64, value: u32| set >> value & 1 == 1;
        let mut next = time.with_second(0)?.with_nanosecond(0)?.checked_add_signed(Duration::minutes(1))?;
        let last = next.checked_add_days(Days::new(366 * 9))?;
        while next <= last {
            if !has(self.months, next.month()) || !self.has_day(next) {
                next = next.date().checked_add_days(Days::new(1))?.and_hms_opt(0, 0, 0)?;
            } else if !has(self.hours, next.hour()) {
                next = next.with_minute(0)?.checked_add_signed(Duration::hours(1))?;
            } else if !has(self.minutes, next.minute()) {
                next = next.checked_add_signed(Duration::minutes(1))?;
            } else {
                return Some(next);
            }
        }
        None
    }

    fn has_day(&self, time: NaiveDateTime) -> bool {
        let day = self.days >> time.day() & 1 == 1;
        let weekday = self.weekdays >> time.weekday().num_days_from_sunday() & 1 == 1;
        if self.either_day { day || weekday } else { day && weekday }
    }
}

impl Field {
    /// The values as bits.
    fn read(&self, text: &str) -> Result<u64, CronError> {
        text.split(',').try_fold(0, |set, part| Ok(set | self.read_part(part)?))
    }

    fn read_part(&self, part: &str) -> Result<u64, CronError> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => match step.parse::<u32>() {
                Ok(step) if step > 0 => (range, Some(step)),
                _ => return Err(self.wrong(&format!("{step:?} is not a step; write */15 or 8-18/2"))),
            },
            None => (part, None),
        };
        let (from, to) = match (range, range.split_once('-')) {
            ("*", _) => (self.least, self.most),
            (_, Some((from, to))) => (self.value(from)?, self.value(to)?),
            // `5/15` counts from five to the end.
            (_, None) if step.is_some() => (self.value(range)?, self.most),
            (_, None) => {
                let value = self.value(range)?;
                (value, value)
            }
        };
        if from > to {
            return Err(self.wrong(&format!("the range {range} ends before it begins")));
        }
        let step = usize::try_from(step.unwrap_or(1)).unwrap_or(usize::MAX);
        Ok((from..=to).step_by(step).fold(0, |set, value| set | 1 << value))
    }

    fn value(&self, text: &str) -> Result<u32, CronError> {
        let lower = text.to_ascii_lowercase();
        if let Some(at) = self.names.iter().position(|name| *name == lower) {
            return Ok(self.least + u32::try_from(at).unwrap_or(0));
        }
        match text.parse::<u32>() {
            Ok(value) if (self.least..=self.most).contains(&value) => Ok(value),
            Ok(value) => Err(self.wrong(&format!("{value} is not between {} and {}", self.least, self.most))),
            Err(_) if text.is_empty() => Err(self.wrong("a number is missing")),
            Err(_) if self.names.is_empty() => Err(self.wrong(&format!("{text:?} is not a number"))),
            Err(_) => {
                Err(self.wrong(&format!("{text:?} is neither a number nor one of {}", self.names.join(", "))))
            }
        }
    }

    fn wrong(&self, why: &str) -> CronError {
        CronError(format!("{}: {why}", self.name))
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cron").field(&self.text).finish()
    }
}

impl Serialize for Cron {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Cron {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Cron {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cron".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Minute, hour, day of the month, month, day of the week: `0 2 * * *`; or `@hourly`, \
                            `@daily`, `@weekly`, `@monthly`, `@yearly`.",
            "examples": ["0 2 * * *", "*/15 8-18 * * mon-fri", "@daily"]
        })
    }
}

/// When a pipeline runs by itself: `schedule: "0 2 * * *"`, or with a time zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// The times.
    pub cron: Cron,
    /// Where they hold, `Europe/Berlin`; UTC unless said.
    pub time_zone: String,
    /// What becomes of a time at which nothing could run.
    pub missed: Missed,
}

/// What becomes of a scheduled time that passed while nothing could run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// It is left out.
    #[default]
    Skip,
    /// One run makes up for all that were missed.
    RunOnce,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Written {
    cron: Cron,
    time_zone: Option<String>,
    #[serde(default)]
    missed: Missed,
}

impl Schedule {
    /// These times in UTC; missed ones are left out.
    pub fn new(cron: Cron) -> Self {
        Self { cron, time_zone: "UTC".into(), missed: Missed::default() }
    }

    /// The first time after this one.
    ///
    /// A time that the clocks skip comes when they have been put forward; one that comes twice counts
    /// once.
    pub fn next_after(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let zone: Tz = self.time_zone.parse().ok()?;
        let mut local = time.with_timezone(&zone).naive_local();
        loop {
            local = self.cron.next_after(local)?;
            let mut probe = local;
            let next = loop {
                match zone.from_local_datetime(&probe) {
                    LocalResult::Single(at) | LocalResult::Ambiguous(at, _) => break at.with_timezone(&Utc),
                    LocalResult::None => probe = probe.checked_add_signed(Duration::minutes(1))?,
                }
            };
            if next > time {
                return Some(next);
            }
        }
    }
}

impl<'de> Deserialize<'de> for Schedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> de::Visitor<'de> for Reader {
            type Value = Schedule;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a schedule as \"0 2 * * *\", or a map with `cron`, `time_zone` and `missed`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Schedule, E> {
                text.parse().map(Schedule::new).map_err(E::custom)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Schedule, A::Error> {
                let written = Written::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let time_zone = written.time_zone.unwrap_or_else(|| "UTC".into());
                if time_zone.parse::<Tz>().is_err() {
                    return Err(de::Error::custom(format!(
                        "time_zone: {time_zone:?} is not a time zone; write one as Europe/Berlin"
                    )));
                }
                Ok(Schedule { cron: written.cron, time_zone, missed: written.missed })
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl JsonSchema for Schedule {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Schedule".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let cron = generator.subschema_for::<Cron>();
        let map = Written::json_schema(generator);
        json_schema!({ "anyOf": [cron, map] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(cron: &str, after: &str) -> String {
        let time = NaiveDateTime::parse_from_str(after, "%Y-%m-%d %H:%M:%S").unwrap();
        cron.parse::<Cron>().unwrap().next_after(time).unwrap().to_string()
    }

    #[test]
    fn the_next_time_is_found() {
        for (cron, after, expected) in [
            ("0 2 * * *", "2026-01-01 02:00:00", "2026-01-02 02:00:00"),
            ("0 2 * * *", "2026-01-01 01:59:59", "2026-01-01 02:00:00"),
            ("*/15 8-18 * * mon-fri", "2026-11-20 18:45:00", "2026-11-23 08:00:00"),
            ("5/20 * * * *", "2026-01-01 00:06:00", "2026-01-01 00:25:00"),
            ("0 0 29 2 *", "2096-03-01 00:00:00", "2104-02-29 00:00:00"),
            ("0 0 13 * 5", "2026-11-21 00:00:00", "2026-11-27 00:00:00"),
            ("0 0 * * 7", "2026-11-21 00:00:00", "2026-11-22 00:00:00"),
            ("0 12 1 JAN,jul *", "2026-02-01 00:00:00", "2026-07-01 12:00:00"),
            ("@monthly", "2026-12-01 00:00:00", "2027-01-01 00:00:00"),
        ] {
            assert_eq!(next(cron, after), expected, "{cron} after {after}");
        }
    }

    #[test]
    fn mistakes_name_the_field() {
        for (cron, expected) in [
            (
                "0 2 * *",
                "a schedule has five fields (minute, hour, day of the month, month, day of the week), this one \
                 has 4",
            ),
            ("60 * * * *", "minute: 60 is not between 0 and 59"),
            ("0 0 0 * *", "day of the month: 0 is not between 1 and 31"),
            (
                "0 0 * foo *",
                "month: \"foo\" is neither a number nor one of jan, feb, mar, apr, may, jun, jul, aug, sep, oct, nov, dec",
            ),
            ("0 x * * *", "hour: \"x\" is not a number"),
            ("5-1 * * * *", "minute: the range 5-1 ends before it begins"),
            ("*/0 * * * *", "minute: \"0\" is not a step; write */15 or 8-18/2"),
            ("1,,2 * * * *", "minute: a number is missing"),
            ("0 0 31 2 *", "day of the month: no month of this schedule has such a day"),
            ("@often", "\"@often\" is none of @hourly, @daily, @weekly, @monthly and @yearly"),
        ] {
            assert_eq!(cron.parse::<Cron>().unwrap_err().to_string(), expected, "{cron}");
        }
    }

    #[test]
    fn clocks_that_are_changed_neither_skip_nor_repeat_a_run() {
        let schedule =
            Schedule { time_zone: "Europe/Berlin".into(), ..Schedule::new("30 2 * * *".parse().unwrap()) };
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        // 02:30 doesn't exist on 29 March 2026, and stands twice on 25 October.
        let march = schedule.next_after(at("2026-03-28T12:00:00Z")).unwrap();
        assert_eq!(march, at("2026-03-29T01:00:00Z"));
        assert_eq!(schedule.next_after(march).unwrap(), at("2026-03-30T00:30:00Z"));
        let october = schedule.next_after(at("2026-10-24T12:00:00Z")).unwrap();
        assert_eq!(october, at("2026-10-25T00:30:00Z"));
        assert_eq!(schedule.next_after(october).unwrap(), at("2026-10-26T01:30:00Z"));
    }
}
