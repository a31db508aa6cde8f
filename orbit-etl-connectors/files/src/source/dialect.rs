//! Where CSV records end: for headers, for records too long to be held, and for the points where a
//! large file may be split.

use memchr::{memchr, memchr2, memchr3};

use crate::format::CsvOptions;

/// The characters that structure a CSV file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dialect {
    pub(crate) delimiter: u8,
    pub(crate) quote: u8,
    pub(crate) escape: Option<u8>,
}

/// One record within a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Its first byte; line breaks before it belong to nothing.
    pub(crate) start: usize,
    /// The end without the line break.
    pub(crate) end: usize,
    /// Where the next one may begin.
    pub(crate) next: usize,
    /// Whether every quote was closed.
    pub(crate) closed: bool,
    /// The number of fields, where that is known.
    pub(crate) fields: usize,
}

impl From<&CsvOptions> for Dialect {
    fn from(options: &CsvOptions) -> Self {
        let byte = |c: char| u8::try_from(c).unwrap_or(b'?');
        let quote = byte(options.quote);
        Self {
            delimiter: byte(options.delimiter),
            quote,
            escape: options.escape.map(byte).filter(|e| *e != quote),
        }
    }
}

impl Dialect {
    /// The record that begins at or after `at`; `None` if it doesn't end in `bytes` and more may
    /// come, or if there is none.
    pub(crate) fn cut(&self, bytes: &[u8], at: usize, eof: bool) -> Option<Cut> {
        let start = at + bytes[at..].iter().position(|b| !matches!(b, b'\r' | b'\n'))?;
        let mut i = start;
        let mut fields = 1;
        loop {
            if bytes.get(i) == Some(&self.quote) {
                match self.close(bytes, i + 1) {
                    Some(after) if after < bytes.len() || eof => i = after,
                    Some(_) => return None,
                    None if eof => {
                        let end = bytes.len();
                        return Some(Cut { start, end, next: end, closed: false, fields });
                    }
                    None => return None,
                }
            }
            let Some(found) = memchr3(self.delimiter, b'\n', b'\r', &bytes[i..]) else {
                let end = bytes.len();
                return eof.then_some(Cut { start, end, next: end, closed: true, fields });
            };
            let end = i + found;
            if bytes[end] == self.delimiter {
                fields += 1;
                i = end + 1;
                continue;
            }
            let crlf = bytes[end] == b'\r' && bytes.get(end + 1) == Some(&b'\n');
            return Some(Cut { start, end, next: end + 1 + usize::from(crlf), closed: true, fields });
        }
    }

    /// The values of one record, as [`Dialect::cut`] found it.
    pub(crate) fn values(&self, record: &[u8]) -> Vec<String> {
        let mut values = Vec::new();
        let mut i = 0;
        loop {
            let mut value = Vec::new();
            if record.get(i) == Some(&self.quote) {
                i += 1;
                while let Some(&byte) = record.get(i) {
                    i += 1;
                    if byte == self.quote {
                        if record.get(i) != Some(&self.quote) {
                            break;
                        }
                        i += 1;
                        value.push(byte);
                    } else if self.escape == Some(byte) {
                        value.extend(record.get(i));
                        i += 1;
                    } else {
                        value.push(byte);
                    }
                }
            }
            let rest = record.get(i..).unwrap_or_default();
            let end = memchr(self.delimiter, rest);
            value.extend_from_slice(&rest[..end.unwrap_or(rest.len())]);
            values.push(String::from_utf8_lossy(&value).into_owned());
            match end {
                Some(end) => i += end + 1,
                None => return values,
            }
        }
    }

    /// The byte after the quote that closes what was opened before `i`; the buffer's end if a
    /// quote is its last byte.
    pub(super) fn close(&self, bytes: &[u8], mut i: usize) -> Option<usize> {
        loop {
            let rest = bytes.get(i..)?;
            let at = i + match self.escape {
                Some(escape) => memchr2(self.quote, escape, rest)?,
                None => memchr(self.quote, rest)?,
            };
            // An escape or a doubled quote takes the byte behind it along.
            if bytes[at] != self.quote || bytes.get(at + 1) == Some(&self.quote) {
                i = at + 2;
            } else {
                return Some(at + 1);
            }
        }
    }
}

/// Follows a file from its first record and finds ends of records past given offsets.
///
/// A line break ends a record only outside quotes, and whether a byte stands inside quotes
/// depends on all bytes before it. So the whole file is looked at, from quote to quote. Without a
/// dialect (JSON lines) every line feed ends a record.
#[derive(Debug)]
pub(crate) struct Cutter {
    dialect: Option<Dialect>,
    state: State,
    /// Whether a carriage return ends a record, too, as it does in some old files.
    any_break: bool,
    /// The byte before the next one; a line feed at the start, since a record begins there.
    last: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Outside,
    Quoted,
    /// After an escape inside quotes.
    Escaped,
    /// After a quote inside quotes: the end, or half of a doubled one.
    Closing,
}

impl Cutter {
    pub(crate) fn new(dialect: Option<Dialect>) -> Self {
        Self { dialect, state: State::Outside, any_break: false, last: b'\n' }
    }

    /// The same, where a lone carriage return ends a CSV record as well.
    pub(crate) fn at_any_break(self) -> Self {
        Self { any_break: true, ..self }
    }

    /// Goes on over `bytes` up to the first end of a record at or behind `target`, an index into
    /// them; returns the index after it. The rest is to be given again.
    pub(crate) fn find(&mut self, bytes: &[u8], target: usize) -> Option<usize> {
        let found = match self.dialect {
            None => {
                let from = target.saturating_sub(1).min(bytes.len());
                memchr(b'\n', &bytes[from..]).map(|n| from + n + 1)
            }
            Some(dialect) => self.follow(&dialect, bytes, target),
        };
        let used = found.unwrap_or(bytes.len());
        if used > 0 {
            self.last = bytes[used - 1];
        }
        found
    }

    fn follow(&mut self, dialect: &Dialect, bytes: &[u8], target: usize) -> Option<usize> {
        let mut i = 0;
        while i < bytes.len() {
            match self.state {
                State::Escaped => {
                    self.state = State::Quoted;
                    i += 1;
                }
                State::Closing => {
                    if bytes[i] == dialect.quote {
                        self.state = State::Quoted;
                        i += 1;
                    } else {
                        self.state = State::Outside;
                    }
                }
                State::Quoted => {
                    let rest = &bytes[i..];
                    let next = match dialect.escape {
                        Some(escape) => memchr2(dialect.quote, escape, rest),
                        None => memchr(dialect.quote, rest),
                    };
                    i += next? + 1;
                    let quote = bytes[i - 1] == dialect.quote;
                    self.state = if quote { State::Closing } else { State::Escaped };
                }
                State::Outside => {
                    let quote = memchr(dialect.quote, &bytes[i..]).map(|n| i + n);
                    let end = quote.unwrap_or(bytes.len());
                    let from = i.max(target.saturating_sub(1));
                    if from < end
                        && let Some(n) = self.line_break(&bytes[from..end])
                    {
                        return Some(from + n + 1);
                    }
                    let at = quote?;
                    let before = if at == 0 { self.last } else { bytes[at - 1] };
                    // Within an unquoted field a quote is a character like any other.
                    if before == dialect.delimiter || before == b'\n' || before == b'\r' {
                        self.state = State::Quoted;
                    }
                    i = at + 1;
                }
            }
        }
        None
    }

    fn line_break(&self, bytes: &[u8]) -> Option<usize> {
        if self.any_break { memchr2(b'\n', b'\r', bytes) } else { memchr(b'\n', bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: Dialect = Dialect { delimiter: b',', quote: b'"', escape: None };

    fn cuts(dialect: &Dialect, bytes: &[u8]) -> Vec<Cut> {
        let mut all = Vec::new();
        let mut at = 0;
        while let Some(cut) = dialect.cut(bytes, at, true) {
            at = cut.next;
            all.push(cut);
        }
        all
    }

    #[test]
    fn quotes_open_at_the_start_of_a_field_alone() {
        let text = b"5\" pipe,3\n\"a\nb\",\"say \"\"x\"\"\"\r\n\r\nlast,\"\"";
        let records: Vec<_> = cuts(&PLAIN, text).iter().map(|c| (&text[c.start..c.end], c.fields)).collect();
        assert_eq!(records.len(), 3);
        assert_eq!(records[0], (&b"5\" pipe,3"[..], 2));
        assert_eq!(PLAIN.values(records[1].0), ["a\nb", "say \"x\""]);
        assert_eq!(PLAIN.values(records[2].0), ["last", ""]);
        assert!(!cuts(&PLAIN, b"a,\"b\nc").last().unwrap().closed);
    }

    #[test]
    fn a_record_that_may_go_on_is_not_cut() {
        assert_eq!(PLAIN.cut(b"a,b", 0, false), None);
        assert_eq!(PLAIN.cut(b"a,\"b\"", 0, false), None);
        assert_eq!(PLAIN.cut(b"\r\n\n", 0, true), None);
    }

    proptest! {
        #[test]
        fn the_cutter_finds_ends_that_the_scanner_finds(
            text in "[a\"\\\\,\n\r]{0,60}", target in 0usize..60, chunk in 1usize..9, escape: bool,
        ) {
            let dialect = Dialect { escape: escape.then_some(b'\\'), ..PLAIN };
            let bytes = text.as_bytes();
            let mut cutter = Cutter::new(Some(dialect));
            let (mut done, mut found) = (0, None);
            while done < bytes.len() && found.is_none() {
                let end = (done + chunk).min(bytes.len());
                found = cutter.find(&bytes[done..end], target.saturating_sub(done)).map(|n| done + n);
                done = end;
            }
            if let Some(at) = found {
                prop_assert!(at >= target);
                let whole = cuts(&dialect, bytes);
                prop_assert!(whole.iter().all(|c| at <= c.start || at >= c.end), "{at} {whole:?}");
                prop_assert_eq!(bytes[at - 1], b'\n');
            }
        }
    }
}
