//! JSON text, one token at a time, by the letter of RFC 8259.

use std::fmt;

use memchr::memchr2;

/// Objects and lists that nobody asked for may be nested so deeply.
const MAX_DEPTH: usize = 128;

/// Some JSON text, read from front to back.
#[derive(Debug, Clone)]
pub(crate) struct Json<'a> {
    text: &'a str,
    at: usize,
}

/// A value, or its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    Null,
    Boolean(bool),
    /// As it is written.
    Number(&'a str),
    String(Quoted<'a>),
    /// Keys are to be read by [`Json::key`].
    Object,
    /// Items are to be asked for by [`Json::item`].
    List,
}

/// What stands between quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quoted<'a> {
    raw: &'a str,
    escaped: bool,
}

/// This is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this is not JSON")
    }
}

impl<'a> Json<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// The byte at which reading stopped.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The next value, or its beginning.
    pub(crate) fn value(&mut self) -> Result<Token<'a>, Broken> {
        match self.peek().ok_or(Broken)? {
            b'{' => {
                self.at += 1;
                Ok(Token::Object)
            }
            b'[' => {
                self.at += 1;
                Ok(Token::List)
            }
            b'"' => self.string().map(Token::String),
            b'n' => self.word("null", Token::Null),
            b't' => self.word("true", Token::Boolean(true)),
            b'f' => self.word("false", Token::Boolean(false)),
            _ => self.number().map(Token::Number),
        }
    }

    /// The object's next key, with its colon behind it; `None` at the object's end.
    pub(crate) fn key(&mut self, first: bool) -> Result<Option<Quoted<'a>>, Broken> {
        if !self.goes_on(first, b'}')? {
            return Ok(None);
        }
        if self.peek() != Some(b'"') {
            return Err(Broken);
        }
        let key = self.string()?;
        self.expect(b':')?;
        Ok(Some(key))
    }

    /// Whether the list has another item.
    pub(crate) fn item(&mut self, first: bool) -> Result<bool, Broken> {
        self.goes_on(first, b']')
    }

    /// Passes what is left of a value.
    pub(crate) fn skip(&mut self, token: Token<'a>) -> Result<(), Broken> {
        self.skip_nested(token, 0)
    }

    /// Nothing but white space may be left.
    pub(crate) fn end(&mut self) -> Result<(), Broken> {
        if self.peek().is_none() { Ok(()) } else { Err(Broken) }
    }

    fn skip_nested(&mut self, token: Token<'a>, depth: usize) -> Result<(), Broken> {
        if depth > MAX_DEPTH {
            return Err(Broken);
        }
        let mut first = true;
        match token {
            Token::Object => {
                while self.key(first)?.is_some() {
                    let value = self.value()?;
                    self.skip_nested(value, depth + 1)?;
                    first = false;
                }
            }
            Token::List => {
                while self.item(first)? {
                    let value = self.value()?;
                    self.skip_nested(value, depth + 1)?;
                    first = false;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn goes_on(&mut self, first: bool, end: u8) -> Result<bool, Broken> {
        match self.peek() {
            Some(byte) if byte == end => {
                self.at += 1;
                Ok(false)
            }
            Some(b',') if !first => {
                self.at += 1;
                Ok(true)
            }
            Some(_) if first => Ok(true),
            _ => Err(Broken),
        }
    }

    /// The next byte that isn't white space.
    #[inline]
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(byte) = bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    fn expect(&mut self, byte: u8) -> Result<(), Broken> {
        if self.peek() != Some(byte) {
            return Err(Broken);
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self, word: &str, token: Token<'a>) -> Result<Token<'a>, Broken> {
        if !self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            return Err(Broken);
        }
        self.at += word.len();
        Ok(token)
    }

    fn number(&mut self) -> Result<&'a str, Broken> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        let mut at = start + usize::from(bytes.get(start) == Some(&b'-'));
        let digits = |from: usize| from + bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
        let whole = digits(at);
        if whole == at || (bytes[at] == b'0' && whole > at + 1) {
            return Err(Broken);
        }
        at = whole;
        if bytes.get(at) == Some(&b'.') {
            let end = digits(at + 1);
            if end == at + 1 {
                return Err(Broken);
            }
            at = end;
        }
        if let Some(b'e' | b'E') = bytes.get(at) {
            let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
            let end = digits(at + 1 + sign);
            if end == at + 1 + sign {
                return Err(Broken);
            }
            at = end;
        }
        self.at = at;
        Ok(&self.text[start..at])
    }

    /// The string whose opening quote is next.
    fn string(&mut self) -> Result<Quoted<'a>, Broken> {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        let mut at = start;
        let mut escaped = false;
        loop {
            at += memchr2(b'"', b'\\', bytes.get(at..).ok_or(Broken)?).ok_or(Broken)?;
            if bytes[at] == b'"' {
                break;
            }
            escaped = true;
            at += 2;
        }
        let quoted = Quoted { raw: &self.text[start..at], escaped };
        if quoted.raw.bytes().any(|byte| byte < 0x20) {
            return Err(Broken);
        }
        if escaped {
            decode(quoted.raw, &mut String::new())?;
        }
        self.at = at + 1;
        Ok(quoted)
    }
}

impl Quoted<'_> {
    /// The text that is meant, which `scratch` may hold.
    pub(crate) fn text<'s>(&'s self, scratch: &'s mut String) -> &'s str {
        if !self.escaped {
            return self.raw;
        }
        scratch.clear();
        // It was decoded once when it was found.
        let _ = decode(self.raw, scratch);
        scratch
    }
}

/// Puts the text without escapes into `into`.
fn decode(raw: &str, into: &mut String) -> Result<(), Broken> {
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        into.push_str(&rest[..at]);
        let mut after = rest[at + 1..].chars();
        let character = match after.next().ok_or(Broken)? {
            plain @ ('"' | '\\' | '/') => plain,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let (unit, tail) = hex(after.as_str())?;
                after = tail.chars();
                match unit {
                    0xd800..=0xdbff => {
                        let (low, tail) = hex(after.as_str().strip_prefix("\\u").ok_or(Broken)?)?;
                        after = tail.chars();
                        let low = low.checked_sub(0xdc00).filter(|low| *low < 0x400).ok_or(Broken)?;
                        char::from_u32(0x1_0000 + ((unit - 0xd800) << 10) + low).ok_or(Broken)?
                    }
                    _ => char::from_u32(unit).ok_or(Broken)?,
                }
            }
            _ => return Err(Broken),
        };
        into.push(character);
        rest = after.as_str();
    }
    into.push_str(rest);
    Ok(())
}

fn hex(text: &str) -> Result<(u32, &str), Broken> {
    let (digits, rest) = text.split_at_checked(4).ok_or(Broken)?;
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Broken);
    }
    u32::from_str_radix(digits, 16).map(|unit| (unit, rest)).map_err(|_| Broken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn parse(text: &str) -> Result<Value, Broken> {
        let mut json = Json::new(text);
        let token = json.value()?;
        let value = build(&mut json, token)?;
        json.end()?;
        Ok(value)
    }

    fn build<'a>(json: &mut Json<'a>, token: Token<'a>) -> Result<Value, Broken> {
        let mut scratch = String::new();
        Ok(match token {
            Token::Null => Value::Null,
            Token::Boolean(value) => value.into(),
            Token::Number(text) => serde_json::from_str(text).map_err(|_| Broken)?,
            Token::String(text) => text.text(&mut scratch).into(),
            Token::Object => {
                let mut map = serde_json::Map::new();
                let mut first = true;
                while let Some(key) = json.key(first)? {
                    let value = json.value()?;
                    let value = build(json, value)?;
                    map.insert(key.text(&mut scratch).to_string(), value);
                    first = false;
                }
                map.into()
            }
            Token::List => {
                let mut list = Vec::new();
                while json.item(list.is_empty())? {
                    let value = json.value()?;
                    list.push(build(json, value)?);
                }
                list.into()
            }
        })
    }

    #[test]
    fn what_is_no_json() {
        for bad in [
            "",
            "nul",
            "truely",
            "01",
            "1.",
            ".5",
            "+1",
            "-",
            "1e",
            "0x1",
            "NaN",
            "{",
            "[",
            "[1",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[1,,2]",
            "{a:1}",
            "\"\t\"",
            "{\"a\": \"x\u{1}y\"}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{\"a\":1 \"b\":2}",
            "{\"a\" 1}",
            "\"",
            "\"\\\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u+123\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "1 2",
        ] {
            assert_eq!(parse(bad), Err(Broken), "{bad}");
        }
        let mut deep = Json::new("[[[[");
        let token = deep.value().unwrap();
        assert!(deep.skip(token).is_err());
        let deep = "[".repeat(100_000);
        let mut json = Json::new(&deep);
        let token = json.value().unwrap();
        assert!(json.skip(token).is_err());
    }

    proptest! {
        #[test]
        fn reads_what_others_read(text in "[\\[\\]{}:,\"a1\\-.eu0\\\\ ]{0,12}") {
            prop_assert_eq!(parse(&text).ok(), serde_json::from_str::<Value>(&text).ok());
        }

        #[test]
        fn reads_what_others_write(text: String, number: f64, list in proptest::collection::vec(any::<i64>(), 0..4)) {
            let value = serde_json::json!({ "t": text, text.clone(): [number, null, true], "l": list });
            prop_assert_eq!(parse(&value.to_string()), Ok(value));
        }
    }
}
