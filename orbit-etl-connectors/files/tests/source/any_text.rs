//! Whatever the text: what is accepted comes back as an equal text, by decimal arithmetic.

use arrow::datatypes::{DataType, TimeUnit};
use chrono::{DateTime, NaiveDate, NaiveDateTime};
use proptest::prelude::*;

use super::exact::{one_column, pairs, values};

/// Digits without zeros around them, and the power of ten of the last one.
fn number(text: &str) -> Option<(bool, String, i64)> {
    let text = text.trim();
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (rest, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let short = digits.trim_start_matches('0').trim_end_matches('0');
    let dropped = digits.len() - digits.trim_end_matches('0').len();
    if short.is_empty() {
        return Some((false, String::new(), 0));
    }
    let last = exponent - i64::try_from(fraction.len()).unwrap() + i64::try_from(dropped).unwrap();
    Some((negative, short.to_string(), last))
}

/// Seconds, nanoseconds and whether a zone is named.
fn moment(text: &str) -> Option<(i64, u32, bool)> {
    let text = text.replacen(' ', "T", 1);
    if let Ok(zoned) = DateTime::parse_from_rfc3339(&text) {
        return Some((zoned.timestamp(), zoned.timestamp_subsec_nanos(), true));
    }
    if let Ok(naive) = NaiveDateTime::parse_from_str(&text, "%Y-%m-%dT%H:%M:%S%.f") {
        let utc = naive.and_utc();
        return Some((utc.timestamp(), utc.timestamp_subsec_nanos(), false));
    }
    let day =
        NaiveDate::parse_from_str(&text, "%Y-%m-%d").or_else(|_| NaiveDate::parse_from_str(&text, "%Y%m%d"));
    Some((day.ok()?.and_hms_opt(0, 0, 0)?.and_utc().timestamp(), 0, false))
}

/// Whether two texts say the same.
pub(super) fn same(a: &str, b: &str) -> bool {
    match (number(a), number(b)) {
        (Some(a), Some(b)) => a == b,
        _ => moment(a).is_some() && moment(a) == moment(b),
    }
}

fn every_flat_type() -> Vec<DataType> {
    use DataType as T;
    let mut kinds = vec![
        T::Int8,
        T::Int16,
        T::Int32,
        T::Int64,
        T::UInt8,
        T::UInt16,
        T::UInt32,
        T::UInt64,
        T::Decimal32(9, 3),
        T::Decimal64(18, 4),
        T::Decimal128(38, 10),
        T::Decimal128(5, 0),
        T::Decimal128(5, -2),
        T::Decimal256(76, 20),
        T::Date32,
        T::Date64,
        T::Utf8,
        T::LargeUtf8,
        T::Utf8View,
        T::Dictionary(Box::new(T::Int32), Box::new(T::Utf8)),
    ];
    for unit in [TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond] {
        for zone in [None, Some("UTC".into()), Some("+05:30".into())] {
            kinds.push(T::Timestamp(unit, zone));
        }
    }
    kinds
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[+-]?[0-9]{0,22}(\\.[0-9]{0,22})?([eE][+-]?[0-9]{1,2})?",
        "-?(0|[1-9][0-9]{0,8})",
        "-?(0|[1-9][0-9]{0,4})\\.[0-9]{1,5}",
        "(1[6-9]|2[0-3])[0-9]{2}-[01][0-9]-[0-3][0-9]",
        "(1[6-9]|2[0-3])[0-9]{2}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{1,11})?(Z|[+-]0[0-9]:[0-5]0)?",
        "[0-9]{8}",
        "[a-z ]{1,5}",
    ]
    .prop_filter("an empty field is NULL", |text| !text.is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn what_is_accepted_comes_back_equal(texts in proptest::collection::vec(any_text(), 200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let csv: Vec<String> = texts.iter().enumerate().map(|(i, t)| format!("{i},{t}")).collect();
        let json: Vec<String> = texts
            .iter()
            .enumerate()
            .map(|(i, t)| {
                let plain = serde_json::from_str::<serde_json::Value>(t).is_ok();
                if plain { format!("{{\"i\":{i},\"v\":{t}}}") } else { format!("{{\"i\":{i},\"v\":\"{t}\"}}") }
            })
            .collect();
        for kind in every_flat_type() {
            for (format, records) in [("csv", &csv), ("json", &json)] {
                // JSON is read into the words of a dictionary, too, and a number may count ticks.
                let read = runtime.block_on(values(format, records, Some(one_column(&kind)), 1));
                for (i, value) in pairs(&read.batches) {
                    let text = &texts[i];
                    let ticks = format == "json" && kind.is_temporal() && number(text).is_some();
                    let equal = match &kind {
                        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) => text == &value,
                        DataType::Timestamp(_, Some(_)) => {
                            let instants = (moment(text), moment(&value));
                            matches!(instants, (Some(a), Some(b)) if a == b && a.2)
                        }
                        _ => same(text, &value),
                    };
                    prop_assert!(equal || ticks, "{} {} as {} became {}", format, text, kind, value);
                }
                for reject in &read.rejects {
                    prop_assert_eq!(&reject.message, &format!("column `v` is not a valid {}", kind));
                }
            }
        }
    }

    /// With an inferred type nothing is changed either, not even by rounding.
    #[test]
    fn what_is_inferred_comes_back_equal(texts in proptest::collection::vec(any_text(), 200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for first in ["1", "1.5", "9223372036854775808", "2024-01-01", "2024-01-01T00:00:00", "2024-01-01T00:00:00.123456789Z"] {
            let mut all = vec![first.to_string()];
            all.extend(texts.iter().cloned());
            let records: Vec<String> = all.iter().enumerate().map(|(i, t)| format!("{i},{t}")).collect();
            for sample in [1, 5] {
                let read = runtime.block_on(values("csv", &records, None, sample));
                for (i, value) in pairs(&read.batches) {
                    prop_assert!(all[i] == value || same(&all[i], &value), "{} after {} became {}", all[i], first, value);
                }
                if sample == 5 {
                    prop_assert!(read.rejects.iter().all(|r| r.origin.place.as_ref().unwrap().split("line ").nth(1).unwrap().parse::<usize>().unwrap() > 6));
                }
            }
        }
    }
}
