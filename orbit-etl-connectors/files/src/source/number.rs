//! Numbers from text, exactly: a text whose number a type can't hold is not a value of that type.

use arrow::datatypes::i256;

/// Which texts stand for a value.
///
/// Columns whose type was given take every text that says exactly a value of that type, and for
/// floating point the nearest value, which is what such a type is for. Columns whose type was
/// inferred take what would come back: a text that the sample would have made text is none of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    /// The type was guessed from a sample.
    pub(crate) inferred: bool,
    /// JSON numbers, where `1.0` and `1e3` are as whole as `1`.
    pub(crate) json: bool,
}

impl Rules {
    /// For types that somebody chose.
    pub(crate) const GIVEN: Self = Self { inferred: false, json: false };
}

/// The most digits of any decimal.
const MOST_DIGITS: usize = 76;
/// Any exponent beyond is as good as this one.
const FAR: i32 = 1 << 20;

const TENS: [u64; 19] = {
    let mut tens = [1; 19];
    let mut i = 1;
    while i < tens.len() {
        tens[i] = tens[i - 1] * 10;
        i += 1;
    }
    tens
};

/// A number in the form that texts have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written<'a> {
    negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
    exponent: Option<i32>,
}

impl<'a> Written<'a> {
    /// `-12.5e3`. A strict one is what JSON allows: no plus sign, no zeros in front, digits on both
    /// sides of a point; otherwise white space around it is fine, too.
    pub(crate) fn parse(text: &'a [u8], strict: bool) -> Option<Self> {
        let text = if strict { text } else { text.trim_ascii() };
        let (negative, rest) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] if !strict => (false, rest),
            _ => (false, text),
        };
        let (whole, rest) = digits(rest);
        let (fraction, rest, point) = match rest {
            [b'.', rest @ ..] => {
                let (fraction, rest) = digits(rest);
                (fraction, rest, true)
            }
            _ => (&rest[..0], rest, false),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let sloppy =
            whole.is_empty() || (whole.len() > 1 && whole[0] == b'0') || (point && fraction.is_empty());
        if strict && sloppy {
            return None;
        }
        let exponent = match rest {
            [] => None,
            [b'e' | b'E', rest @ ..] => Some(exponent(rest)?),
            _ => return None,
        };
        Some(Self { negative, whole, fraction, exponent })
    }

    /// All digits, first to last.
    fn digits(&self) -> impl DoubleEndedIterator<Item = u8> {
        self.whole.iter().chain(self.fraction).copied()
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.digits().all(|d| d == b'0')
    }

    /// Whether it has neither a point nor an exponent.
    pub(crate) fn is_plain_whole(&self) -> bool {
        self.fraction.is_empty() && self.exponent.is_none()
    }

    /// The power of ten that the last digit stands for.
    fn last(&self) -> i64 {
        i64::from(self.exponent.unwrap_or(0)) - i64::try_from(self.fraction.len()).unwrap_or(i64::from(FAR))
    }

    /// The number times ten to the power of `scale`, if that is whole and has at most so many digits.
    fn scaled(&self, scale: i32, most: usize) -> Option<i256> {
        let mut text = String::with_capacity(MOST_DIGITS + 1);
        if self.negative {
            text.push('-');
        }
        let sign = text.len();
        let shift = self.last() + i64::from(scale);
        let cut = usize::try_from(-shift.min(0)).ok()?;
        let total = self.whole.len() + self.fraction.len();
        for (at, digit) in self.digits().enumerate() {
            if at + cut >= total {
                // Behind the type's last digit there may be nothing but zeros.
                if digit != b'0' {
                    return None;
                }
            } else if digit != b'0' || text.len() > sign {
                if text.len() - sign == most {
                    return None;
                }
                text.push(char::from(digit));
            }
        }
        if text.len() == sign {
            return Some(i256::ZERO);
        }
        for _ in 0..shift.max(0) {
            if text.len() - sign == most {
                return None;
            }
            text.push('0');
        }
        i256::from_string(&text)
    }

    /// The digits that count and the power of ten of the last one; alike for equal numbers.
    fn normal(&self) -> (Vec<u8>, i64) {
        let mut digits: Vec<u8> = self.digits().skip_while(|d| *d == b'0').collect();
        let mut last = self.last();
        while digits.last() == Some(&b'0') {
            digits.pop();
            last += 1;
        }
        if digits.is_empty() { (digits, 0) } else { (digits, last) }
    }
}

fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len()))
}

fn exponent(text: &[u8]) -> Option<i32> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    if text.is_empty() {
        return None;
    }
    let mut value = 0_i32;
    for digit in text {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = (value * 10 + i32::from(digit - b'0')).min(FAR);
    }
    Some(if negative { -value } else { value })
}

/// A plain whole number of up to 18 digits, which is what nearly all are.
#[inline]
fn short(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let first = *digits.first()?;
    if digits.len() > 18 || (first == b'0' && (digits.len() > 1 || negative)) {
        return None;
    }
    let mut value = 0_i64;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + i64::from(digit);
    }
    Some(if negative { -value } else { value })
}

/// A whole number.
#[inline]
pub(crate) fn integer<T: TryFrom<i64> + TryFrom<i128>>(text: &str, rules: Rules) -> Option<T> {
    match short(text.as_bytes()) {
        Some(value) => T::try_from(value).ok(),
        None => long_integer(text, rules),
    }
}

#[cold]
fn long_integer<T: TryFrom<i128>>(text: &str, rules: Rules) -> Option<T> {
    let written = Written::parse(text.as_bytes(), rules.inferred)?;
    if rules.inferred && written.negative && written.is_zero() {
        // The sign of a zero would be lost.
        return None;
    }
    if rules.inferred && !rules.json && !written.is_plain_whole() {
        return None;
    }
    written.scaled(0, 38)?.to_i128().and_then(|value| T::try_from(value).ok())
}

/// A decimal as its digits without the point. `Ok` holds short ones, `Err` the others.
#[inline]
pub(crate) fn decimal(text: &str, precision: u8, scale: i8, rules: Rules) -> Option<Result<i64, i256>> {
    match short_decimal(text.as_bytes(), precision, scale, rules) {
        Some(value) => Some(Ok(value)),
        None => long_decimal(text, precision, scale, rules).map(Err),
    }
}

#[inline]
fn short_decimal(text: &[u8], precision: u8, scale: i8, rules: Rules) -> Option<i64> {
    let (negative, unsigned) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let scale = usize::try_from(scale).ok()?;
    if unsigned.len() > 19 || rules.inferred {
        return None;
    }
    let mut value = 0_u64;
    let mut point = None;
    for (at, &byte) in unsigned.iter().enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit <= 9 {
            value = value * 10 + u64::from(digit);
        } else if byte == b'.' && point.is_none() {
            point = Some(at);
        } else {
            return None;
        }
    }
    let fraction = point.map_or(0, |at| unsigned.len() - at - 1);
    let digits = unsigned.len() - usize::from(point.is_some());
    let missing = scale.checked_sub(fraction)?;
    if digits == 0 || digits > 18 || digits + missing > 18 {
        return None;
    }
    let value = value * TENS[missing];
    if usize::from(precision) < TENS.len() && value >= TENS[usize::from(precision)] {
        return None;
    }
    let value = i64::try_from(value).ok()?;
    Some(if negative { -value } else { value })
}

#[cold]
fn long_decimal(text: &str, precision: u8, scale: i8, rules: Rules) -> Option<i256> {
    let written = Written::parse(text.as_bytes(), rules.inferred)?;
    if rules.inferred
        && ((written.negative && written.is_zero()) || (!rules.json && !written.is_plain_whole()))
    {
        return None;
    }
    written.scaled(i32::from(scale), usize::from(precision))
}

/// A double. Where the type was inferred, only a number that the double gives back when it is
/// written again in as few digits as it needs; `0.1` is one, `9007199254740993` isn't.
#[inline]
pub(crate) fn float64(text: &str, rules: Rules) -> Option<f64> {
    match short_float(text.as_bytes()) {
        Some(value) => Some(value),
        None => long_float64(text, rules),
    }
}

/// Up to 15 digits and a point: both numbers of the division are exact, so it is rounded right, and
/// a double holds 15 digits for certain.
#[inline]
fn short_float(text: &[u8]) -> Option<f64> {
    let (negative, unsigned) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let first = *unsigned.first()?;
    if unsigned.len() > 16 || !first.is_ascii_digit() {
        return None;
    }
    let mut value = 0_u64;
    let mut point = None;
    for (at, &byte) in unsigned.iter().enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit <= 9 {
            value = value * 10 + u64::from(digit);
        } else if byte == b'.' && point.is_none() {
            point = Some(at);
        } else {
            return None;
        }
    }
    let whole = point.unwrap_or(unsigned.len());
    let fraction = unsigned.len() - whole - usize::from(point.is_some());
    if (point.is_some() && fraction == 0) || whole + fraction > 15 || (first == b'0' && whole > 1) {
        return None;
    }
    #[allow(clippy::cast_precision_loss)] // Fewer than 16 digits.
    let value = value as f64 / TENS[fraction] as f64;
    Some(if negative { -value } else { value })
}

#[cold]
fn long_float64(text: &str, rules: Rules) -> Option<f64> {
    let Some(written) = Written::parse(text.as_bytes(), rules.inferred) else {
        return unwritten(text, rules);
    };
    let value: f64 = text.trim_ascii().parse().ok()?;
    if value.is_infinite() || (value == 0.0 && !written.is_zero()) {
        return None;
    }
    if rules.inferred {
        let back = format!("{value:e}");
        if Written::parse(back.as_bytes(), false)?.normal() != written.normal() {
            return None;
        }
    }
    Some(value)
}

/// A single; only ever where the type was given.
pub(crate) fn float32(text: &str, rules: Rules) -> Option<f32> {
    let Some(written) = Written::parse(text.as_bytes(), rules.inferred) else {
        #[allow(clippy::cast_possible_truncation)] // Neither infinities nor NaN have digits.
        return unwritten(text, rules).map(|value| value as f32);
    };
    let value: f32 = text.trim_ascii().parse().ok()?;
    (value.is_finite() && (value != 0.0 || written.is_zero())).then_some(value)
}

/// What has no digits: infinities and "not a number".
fn unwritten(text: &str, rules: Rules) -> Option<f64> {
    let text = if rules.inferred { text } else { text.trim_ascii() };
    let name = text.strip_prefix(['-', '+']).unwrap_or(text);
    ["nan", "inf", "infinity"].iter().any(|n| name.eq_ignore_ascii_case(n)).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLED: Rules = Rules { inferred: true, json: false };
    const SAMPLED_JSON: Rules = Rules { inferred: true, json: true };

    #[test]
    fn whole_numbers() {
        for (text, given, csv, json) in [
            ("0", Some(0), true, true),
            ("-9223372036854775808", Some(i64::MIN), true, true),
            ("9223372036854775807", Some(i64::MAX), true, true),
            ("9223372036854775808", None, false, false),
            ("007", Some(7), false, false),
            ("+7", Some(7), false, false),
            (" 7 ", Some(7), false, false),
            ("-0", Some(0), false, false),
            ("7.0", Some(7), false, true),
            ("1.5", None, false, false),
            ("15e-1", None, false, false),
            ("1.5e1", Some(15), false, true),
            ("1e18", Some(1_000_000_000_000_000_000), false, true),
            ("1e999999999999", None, false, false),
            ("0e999999999999", Some(0), false, true),
            ("", None, false, false),
            ("-", None, false, false),
            (".", None, false, false),
            ("1 2", None, false, false),
            ("0x10", None, false, false),
            ("١", None, false, false),
        ] {
            assert_eq!(integer::<i64>(text, Rules::GIVEN), given, "{text}");
            assert_eq!(integer::<i64>(text, SAMPLED), given.filter(|_| csv), "{text}");
            assert_eq!(integer::<i64>(text, SAMPLED_JSON), given.filter(|_| json), "{text}");
        }
        assert_eq!(integer::<u64>("18446744073709551615", Rules::GIVEN), Some(u64::MAX));
        assert_eq!(integer::<u64>("18446744073709551616", Rules::GIVEN), None);
        assert_eq!(integer::<u8>("-1", Rules::GIVEN), None);
        assert_eq!(integer::<i8>("128", Rules::GIVEN), None);
    }

    #[test]
    fn decimals() {
        let read = |text: &str, precision, scale| {
            decimal(text, precision, scale, Rules::GIVEN).map(|v| match v {
                Ok(short) => i256::from_i128(short.into()),
                Err(long) => long,
            })
        };
        let is = |value: i128| Some(i256::from_i128(value));
        assert_eq!(read("1.23", 5, 2), is(123));
        assert_eq!(read("-1.2", 5, 2), is(-120));
        assert_eq!(read("1.230", 5, 2), is(123));
        assert_eq!(read("1.239", 5, 2), None);
        assert_eq!(read("999.99", 5, 2), is(99_999));
        assert_eq!(read("1000", 5, 2), None);
        assert_eq!(read("1.5e2", 5, 2), is(15_000));
        assert_eq!(read("1e-3", 5, 2), None);
        assert_eq!(read("1200", 3, -2), is(12));
        assert_eq!(read("1250", 3, -2), None);
        assert_eq!(read(".", 5, 2), None);
        assert_eq!(read("-", 5, 2), None);
        assert_eq!(read("1.2.3", 5, 2), None);
        assert_eq!(read(&"9".repeat(76), 76, 0), i256::from_string(&"9".repeat(76)));
        assert_eq!(read(&"9".repeat(77), 76, 0), None);
        assert_eq!(decimal("1.0", 38, 0, SAMPLED), None);
        assert_eq!(decimal("007", 38, 0, SAMPLED), None);
        assert_eq!(decimal("9007199254740993.5", 38, 0, SAMPLED_JSON), None);
    }

    #[test]
    fn doubles() {
        for (text, given, sampled) in [
            ("0.1", true, true),
            ("1.50", true, true),
            ("-0", true, true),
            ("0.30000000000000004", true, true),
            ("1e300", true, true),
            ("5e-324", true, true),
            ("9007199254740993", true, false),
            ("0.1234567890123456789", true, false),
            ("3e-324", true, false),
            ("1e400", false, false),
            ("1e-400", false, false),
            ("0e-400", true, true),
            ("NaN", true, true),
            ("-inf", true, true),
            ("infinite", false, false),
            ("1.", true, false),
            (".5", true, false),
            ("+1.5", true, false),
            ("00.5", true, false),
            (" 1.5", true, false),
            ("1,5", false, false),
            ("", false, false),
            (".", false, false),
            ("1e", false, false),
        ] {
            assert_eq!(float64(text, Rules::GIVEN).is_some(), given, "{text}");
            assert_eq!(float64(text, SAMPLED).is_some(), sampled, "{text}");
        }
        assert!(float64("-0", SAMPLED).unwrap().is_sign_negative());
        assert_eq!(float32("0.1", Rules::GIVEN), Some(0.1));
        assert_eq!(float32("1e39", Rules::GIVEN), None);
        assert!(float32("nan", Rules::GIVEN).unwrap().is_nan());
    }

    proptest! {
        #[test]
        fn doubles_are_read_as_the_standard_library_reads_them(
            text in "-?(0|[1-9][0-9]{0,17})(\\.[0-9]{1,18})?([eE][+-]?[0-9]{1,2})?",
        ) {
            let expected: f64 = text.parse().unwrap();
            prop_assert_eq!(float64(&text, Rules::GIVEN).map(f64::to_bits), Some(expected.to_bits()));
            if let Some(value) = float64(&text, SAMPLED) {
                prop_assert_eq!(value.to_bits(), expected.to_bits());
            }
        }

        #[test]
        fn every_double_comes_back(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            for text in [format!("{value}"), format!("{value:e}")] {
                prop_assert_eq!(float64(&text, SAMPLED).map(f64::to_bits), Some(bits), "{}", text);
            }
        }

        #[test]
        fn every_integer_comes_back(value: i64, small: i8) {
            prop_assert_eq!(integer::<i64>(&value.to_string(), SAMPLED), Some(value));
            prop_assert_eq!(integer::<i8>(&value.to_string(), SAMPLED), i8::try_from(value).ok());
            prop_assert_eq!(integer::<i8>(&small.to_string(), SAMPLED), Some(small));
        }
    }
}
