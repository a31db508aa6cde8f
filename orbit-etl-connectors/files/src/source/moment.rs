//! Dates, times of day and timestamps from text, exactly: nothing behind the type's last digit is
//! dropped, and a zone is neither dropped nor made up.

use arrow::array::timezone::Tz;
use arrow::compute::kernels::cast_utils::{Parser as _, string_to_time_nanoseconds};
use arrow::datatypes::{Date32Type, TimeUnit};
use chrono::{DateTime, Offset as _, TimeZone as _};

const DAY: i64 = 86_400;

/// A day, and a time on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Seconds since the start of 1970, by the clock of the zone.
    seconds: i64,
    nanos: u32,
    /// The zone's distance to UTC in seconds, where one is named.
    offset: Option<i32>,
    /// Digits of the fraction, up to nine.
    pub(crate) digits: usize,
}

impl Moment {
    pub(crate) fn is_zoned(&self) -> bool {
        self.offset.is_some()
    }

    /// The count of units since 1970, in UTC if there is a zone; `None` if that isn't exact.
    pub(crate) fn ticks(&self, unit: TimeUnit) -> Option<i64> {
        let seconds = self.seconds - i64::from(self.offset.unwrap_or(0));
        let per_second = per_second(unit);
        let tick = 1_000_000_000 / per_second;
        let nanos = i64::from(self.nanos);
        if nanos % tick != 0 {
            return None;
        }
        // Before 1970 the whole seconds alone may be out of range where the sum isn't.
        let total = i128::from(seconds) * i128::from(per_second) + i128::from(nanos / tick);
        i64::try_from(total).ok()
    }
}

fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

/// Days since 1970. Strict: `2024-12-31` alone; otherwise also `20241231`, `2024-1-5`, years of
/// other lengths with a sign, and midnights.
#[inline]
pub(crate) fn date(text: &str, strict: bool) -> Option<i32> {
    match plain_date(text.as_bytes()) {
        Some(days) if text.len() == 10 => Some(days),
        _ if strict => None,
        _ => other_date(text),
    }
}

#[cold]
fn other_date(text: &str) -> Option<i32> {
    if !text.is_ascii() {
        return None;
    }
    let signed = text.starts_with(['+', '-']);
    if (signed && !text.contains(':')) || text.len() <= 10 {
        return Date32Type::parse(text);
    }
    let moment = timestamp(text, false)?;
    let midnight = moment.offset.is_none() && moment.nanos == 0 && moment.seconds.rem_euclid(DAY) == 0;
    if midnight { i32::try_from(moment.seconds.div_euclid(DAY)).ok() } else { None }
}

/// `2024-12-31` at the start of a text.
#[inline]
fn plain_date(text: &[u8]) -> Option<i32> {
    let text: &[u8; 10] = text.first_chunk()?;
    let [a, b, c, d, _, m, n, _, x, y] = text.map(|byte| byte.wrapping_sub(b'0'));
    let digits = a.max(b).max(c).max(d).max(m).max(n).max(x).max(y) <= 9;
    let year = i32::from(a) * 1_000 + i32::from(b) * 100 + i32::from(c) * 10 + i32::from(d);
    let (month, day) = (usize::from(m) * 10 + usize::from(n), i32::from(x) * 10 + i32::from(y));
    if !digits || text[4] != b'-' || text[7] != b'-' || !(1..=12).contains(&month) || day < 1 {
        return None;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let (before, after) = (BEFORE[month - 1], BEFORE[month]);
    if day > after - before + i32::from(leap && month == 2) {
        return None;
    }
    // Leap days before the year, the one of the year 0 left out.
    let last = year + 399;
    let leaps = last / 4 - last / 100 + last / 400 - 97;
    Some(year * 365 + leaps + before + i32::from(leap && month > 2) + day - 719_528)
}

/// Days of a common year before each month.
const BEFORE: [i32; 13] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365];

#[inline]
fn two(a: u8, b: u8) -> Option<u32> {
    let (a, b) = (a.wrapping_sub(b'0'), b.wrapping_sub(b'0'));
    (a <= 9 && b <= 9).then(|| u32::from(a) * 10 + u32::from(b))
}

/// A time of day: seconds, nanoseconds, digits of the fraction, and what stands behind it.
#[inline]
fn clock(text: &[u8]) -> Option<(i64, u32, usize, &[u8])> {
    let (&[h, g, b':', m, n, b':', s, t], rest) = text.split_first_chunk::<8>()? else { return None };
    let (hour, minute, second) = (two(h, g)?, two(m, n)?, two(s, t)?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let seconds = i64::from(hour * 3_600 + minute * 60 + second);
    let [b'.', fraction @ ..] = rest else { return Some((seconds, 0, 0, rest)) };
    let length = fraction.iter().position(|b| !b.is_ascii_digit()).unwrap_or(fraction.len());
    let (fraction, rest) = fraction.split_at(length);
    let (nanos, digits) = fraction_of(fraction)?;
    Some((seconds, nanos, digits, rest))
}

/// Nanoseconds, and the number of digits; beyond the ninth there may be nothing but zeros.
#[inline]
fn fraction_of(digits: &[u8]) -> Option<(u32, usize)> {
    let (head, tail) = digits.split_at(digits.len().min(9));
    if head.is_empty() || tail.iter().any(|b| *b != b'0') {
        return None;
    }
    let mut nanos = 0;
    for at in 0..9 {
        nanos = nanos * 10 + head.get(at).map_or(0, |b| u32::from(b - b'0'));
    }
    Some((nanos, head.len()))
}

/// A timestamp. Strict: `2024-12-31`, or with a time `T12:30:15` (or a space in place of the `T`), a
/// fraction, and `Z` or an offset as `+01:00`, `+0100` or `+01`; otherwise also times without colons,
/// a space before the zone, names of zones, and years of other lengths with a sign.
#[inline]
pub(crate) fn timestamp(text: &str, strict: bool) -> Option<Moment> {
    let bytes = text.as_bytes();
    let (days, rest) = match plain_date(bytes) {
        Some(days) => (days, &text.as_bytes()[10..]),
        None if strict => return None,
        None => signed_date(bytes)?,
    };
    let midnight = i64::from(days) * DAY;
    let [b'T' | b't' | b' ', time @ ..] = rest else {
        let moment = Moment { seconds: midnight, nanos: 0, offset: None, digits: 0 };
        return rest.is_empty().then_some(moment);
    };
    let (seconds, nanos, digits, zone) = match clock(time) {
        Some(found) => found,
        None if strict => return None,
        None => tight_clock(time)?,
    };
    let moment = Moment { seconds: midnight + seconds, nanos, offset: None, digits };
    match zone {
        [] => Some(moment),
        [b'Z' | b'z'] => Some(Moment { offset: Some(0), ..moment }),
        zone => match offset(zone) {
            Some(offset) => Some(Moment { offset: Some(offset), ..moment }),
            None if strict => None,
            None => named(moment, zone),
        },
    }
}

/// A date with a sign before its year.
#[cold]
fn signed_date(text: &[u8]) -> Option<(i32, &[u8])> {
    if !matches!(text, [b'+' | b'-', ..]) {
        return None;
    }
    let end = text.iter().position(|b| matches!(b, b'T' | b't' | b' ')).unwrap_or(text.len());
    let (date, rest) = text.split_at(end);
    Some((Date32Type::parse(std::str::from_utf8(date).ok()?)?, rest))
}

/// `123015` at the start of a text.
#[cold]
fn tight_clock(text: &[u8]) -> Option<(i64, u32, usize, &[u8])> {
    let (&[h, g, m, n, s, t], rest) = text.split_first_chunk::<6>()?;
    let spread = [h, g, b':', m, n, b':', s, t];
    let (seconds, ..) = clock(&spread)?;
    (!rest.first().is_some_and(u8::is_ascii_digit)).then_some((seconds, 0, 0, rest))
}

#[inline]
fn offset(zone: &[u8]) -> Option<i32> {
    let (sign, digits) = match zone {
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = match *digits {
        [a, b, b':', c, d] | [a, b, c, d] => (two(a, b)?, two(c, d)?),
        [a, b] => (two(a, b)?, 0),
        _ => return None,
    };
    (hours < 24 && minutes < 60).then(|| sign * (hours * 3_600 + minutes * 60).cast_signed())
}

/// A zone by its name, or behind a space. A time that comes twice or never there is none.
#[cold]
fn named(moment: Moment, zone: &[u8]) -> Option<Moment> {
    let zone: Tz = std::str::from_utf8(zone).ok()?.trim_ascii_start().parse().ok()?;
    let local = DateTime::from_timestamp(moment.seconds, 0)?.naive_utc();
    let offset = zone.offset_from_local_datetime(&local).single()?.fix().local_minus_utc();
    Some(Moment { offset: Some(offset), ..moment })
}

/// A time of day in the unit, written `12:30:15.5`; also `12:30` and `6:00 pm`.
#[inline]
pub(crate) fn time(text: &str, unit: TimeUnit) -> Option<i64> {
    let nanos = match clock(text.as_bytes()) {
        Some((seconds, nanos, _, [])) => seconds * 1_000_000_000 + i64::from(nanos),
        _ => other_time(text)?,
    };
    let tick = 1_000_000_000 / per_second(unit);
    (nanos % tick == 0).then_some(nanos / tick)
}

#[cold]
fn other_time(text: &str) -> Option<i64> {
    if let Some((_, fraction)) = text.split_once('.') {
        let length = fraction.bytes().take_while(u8::is_ascii_digit).count();
        fraction_of(&fraction.as_bytes()[..length])?;
    }
    // A leap second is no second of a plain day.
    if text.contains(":60") { None } else { string_to_time_nanoseconds(text).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::NaiveDate;
    use proptest::prelude::*;

    fn micros(text: &str) -> Option<i64> {
        timestamp(text, false).filter(|m| !m.is_zoned()).and_then(|m| m.ticks(TimeUnit::Microsecond))
    }

    #[test]
    fn every_day_of_ten_thousand_years() {
        let first = NaiveDate::from_ymd_opt(0, 1, 1).unwrap();
        let epoch = NaiveDate::from_ymd_opt(1970, 1, 1).unwrap();
        for (at, day) in first.iter_days().take_while(|d| d.to_string().len() == 10).enumerate() {
            let days = i32::try_from((day - epoch).num_days()).unwrap();
            assert_eq!(date(&day.to_string(), true), Some(days), "{day} {at}");
        }
    }

    #[test]
    fn dates() {
        for bad in ["2023-02-29", "2024-13-01", "2024-00-10", "2024-01-32", "2024-01-00", "2024/01/01", ""] {
            assert_eq!(date(bad, false), None, "{bad}");
        }
        for odd in ["20240102", "2024-1-2", "2024-01-02T00:00:00", "2024-01-02 00:00:00.000"] {
            assert_eq!((date(odd, false), date(odd, true)), (Some(19_724), None), "{odd}");
        }
        for lost in ["2024-01-02T00:00:01", "2024-01-02T00:00:00Z", "2024-01-02T00:00:00.000000001"] {
            assert_eq!(date(lost, false), None, "{lost}");
        }
        assert_eq!(date("+10999-12-31", false), Date32Type::parse("+10999-12-31"));
    }

    #[test]
    fn timestamps() {
        assert_eq!(micros("1970-01-01"), Some(0));
        assert_eq!(micros("1970-01-01T00:00:01.5"), Some(1_500_000));
        assert_eq!(micros("1969-12-31 23:59:59.999999"), Some(-1));
        assert_eq!(micros("1970-01-01 000001"), Some(1_000_000));
        assert_eq!(micros("1970-01-01T00:00:00.0000010000000"), Some(1));
        for lost in [
            "1970-01-01T00:00:00.0000001",
            "1970-01-01T00:00:00.0000000000001",
            "2016-12-31T23:59:60",
            "1970-01-01T24:00:00",
            "1970-01-01T00:00:00.",
            "1970-01-01T00:00",
            "1970-01-01T",
            "1970-01-01x",
            "1970-01-01T00:00:00+25:00",
            "1970-01-01T00:00:00 Nowhere/Town",
        ] {
            assert_eq!(micros(lost), None, "{lost}");
        }
        let zoned = |text| timestamp(text, false).unwrap().ticks(TimeUnit::Second);
        for text in [
            "2024-01-02T03:04:05Z",
            "2024-01-02 04:04:05+01:00",
            "2024-01-02T04:04:05+0100",
            "2024-01-02T02:04:05-01",
            "2024-01-02T04:04:05 +01:00",
            "2024-01-02T04:04:05 Europe/Berlin",
        ] {
            assert_eq!(zoned(text), Some(1_704_164_645), "{text}");
        }
        // This hour came twice, and the other one never.
        assert_eq!(timestamp("2024-10-27T02:30:00 Europe/Berlin", false), None);
        assert_eq!(timestamp("2024-03-31T02:30:00 Europe/Berlin", false), None);
        let far = timestamp("2263-01-01T00:00:00", true).unwrap();
        assert_eq!(far.ticks(TimeUnit::Nanosecond), None);
        assert!(far.ticks(TimeUnit::Microsecond).is_some());
        let first = timestamp("1677-09-21T00:12:43.145224192", true).unwrap();
        assert_eq!(first.ticks(TimeUnit::Nanosecond), Some(i64::MIN));
    }

    #[test]
    fn times_of_day() {
        assert_eq!(time("23:59:59.999999999", TimeUnit::Nanosecond), Some(86_399_999_999_999));
        assert_eq!(time("12:30", TimeUnit::Second), Some(45_000));
        assert_eq!(time("6:00 pm", TimeUnit::Second), Some(64_800));
        for lost in
            ["12:30:15.5", "23:59:60", "24:00:00", "12:60", "1200", "12:30:15Z", "12:30:15.0000000001"]
        {
            assert_eq!(time(lost, TimeUnit::Second), None, "{lost}");
        }
        assert_eq!(time("12:30:15.000", TimeUnit::Second), Some(45_015));
    }

    proptest! {
        #[test]
        fn every_moment_comes_back(seconds in -62_135_596_800_i64..253_402_300_800, nanos in 0_u32..1_000_000_000) {
            let moment = DateTime::from_timestamp(seconds, nanos).unwrap();
            let text = moment.format("%Y-%m-%dT%H:%M:%S%.f").to_string();
            let read = timestamp(&text, true).unwrap();
            prop_assert_eq!((read.seconds, read.nanos, read.offset), (seconds, nanos, None));
            let shifted = moment.with_timezone(&chrono::FixedOffset::east_opt(20_700).unwrap());
            let read = timestamp(&shifted.format("%Y-%m-%d %H:%M:%S%.f%:z").to_string(), true);
            if let Some(read) = read {
                prop_assert_eq!(read.offset, Some(20_700));
                prop_assert_eq!(read.ticks(TimeUnit::Nanosecond), moment.timestamp_nanos_opt());
            }
        }
    }
}
