//! Where the records and fields of CSV text are, found eight bytes at a time.

use super::dialect::Dialect;
use super::text::{BATCH_BYTES, Bad, Want};

/// Records that were found in a text but not taken yet. All offsets count from the text's start.
#[derive(Debug)]
pub(crate) struct Found {
    dialect: Dialect,
    finder: Special,
    /// Fields of a record.
    fields: usize,
    /// Where each good record starts.
    starts: Vec<u32>,
    /// Where each of their fields ends, record by record.
    ends: Vec<u32>,
    bad: Vec<Bad>,
    records: usize,
    /// Where the first record that wasn't found whole begins.
    next: usize,
    /// The text that was taken last, if not all of it was UTF-8.
    cleaned: String,
}

/// What is wrong with the shape of a record.
enum Flaw {
    Unclosed,
    Trailing,
    Fields(usize),
}

impl Found {
    pub(crate) fn new(dialect: Dialect, fields: usize) -> Self {
        Self {
            dialect,
            finder: Special::new([dialect.delimiter, b'\n', b'\r']),
            fields,
            starts: Vec::new(),
            ends: Vec::new(),
            bad: Vec::new(),
            records: 0,
            next: 0,
            cleaned: String::new(),
        }
    }

    pub(crate) fn records(&self) -> usize {
        self.records
    }

    pub(crate) fn next(&self) -> usize {
        self.next
    }

    pub(crate) fn clear(&mut self) {
        self.starts.clear();
        self.ends.clear();
        self.bad.clear();
        self.records = 0;
        self.next = 0;
    }

    /// Goes on where the last call stopped; whether there is enough to be taken.
    pub(crate) fn scan(&mut self, text: &[u8], want: &Want) -> bool {
        loop {
            if self.records >= want.rows || (self.records > 0 && self.next >= BATCH_BYTES) {
                return true;
            }
            while let Some(b'\n' | b'\r') = text.get(self.next) {
                self.next += 1;
            }
            if self.next == text.len() || !self.record(text, want) {
                return want.eof;
            }
        }
    }

    /// Finds the next record; `false` if it may go on behind the text.
    fn record(&mut self, text: &[u8], want: &Want) -> bool {
        let start = self.next;
        let mark = self.ends.len();
        let mut cursor = self.finder.cursor(text, start);
        let mut field = start;
        let mut fields = 0;
        let mut trailing = false;
        let mut closed = true;
        let end = loop {
            if text.get(field) == Some(&self.dialect.quote) {
                match self.dialect.close(text, field + 1) {
                    Some(after) if after < text.len() || want.eof => {
                        let fits = |b: &u8| *b == self.dialect.delimiter || matches!(b, b'\n' | b'\r');
                        trailing |= !text.get(after).is_none_or(fits);
                        cursor.seek(after);
                    }
                    None if want.eof => {
                        closed = false;
                        break text.len();
                    }
                    _ => {
                        self.ends.truncate(mark);
                        return false;
                    }
                }
            }
            let found = cursor.next();
            if found.is_none() && !want.eof {
                self.ends.truncate(mark);
                return false;
            }
            let end = found.unwrap_or(text.len());
            fields += 1;
            if fields <= self.fields {
                self.ends.push(small(end));
            }
            if text.get(end) != Some(&self.dialect.delimiter) {
                break end;
            }
            field = end + 1;
        };
        let flaw = if !closed {
            Some(Flaw::Unclosed)
        } else if trailing {
            Some(Flaw::Trailing)
        } else {
            (fields != self.fields).then_some(Flaw::Fields(fields))
        };
        if flaw.is_none() && end - start <= want.max_record {
            self.starts.push(small(start));
        } else {
            self.ends.truncate(mark);
            let message = match flaw {
                _ if end - start > want.max_record => want.too_long(),
                Some(Flaw::Trailing) => "text follows a closing quote".into(),
                Some(Flaw::Fields(fields)) => {
                    format!("the line has {fields} fields instead of {}", self.fields)
                }
                Some(Flaw::Unclosed) | None => "a quote is not closed".into(),
            };
            self.bad.push(Bad { before: self.records, start, end, message });
        }
        self.records += 1;
        self.next = end + usize::from(end < text.len());
        if text.get(end) == Some(&b'\r') && text.get(self.next) == Some(&b'\n') {
            self.next += 1;
        }
        true
    }

    /// The good records in `text`, the one that was scanned; the bad ones, those that aren't UTF-8
    /// among them, are put into `bad`.
    pub(crate) fn cells<'a>(&'a mut self, text: &'a [u8], null: &'a str, bad: &mut Vec<Bad>) -> Cells<'a> {
        bad.append(&mut self.bad);
        let text = &text[..self.next];
        let whole = std::str::from_utf8(text).ok();
        if whole.is_none() {
            self.cleaned = self.drop_foreign(text, bad);
        }
        Cells {
            text: whole.unwrap_or(&self.cleaned),
            dialect: self.dialect,
            null,
            keep_empty: false,
            fields: self.fields,
            starts: &self.starts,
            ends: &self.ends,
        }
    }

    /// Takes records out that aren't UTF-8; the text without their bytes.
    fn drop_foreign(&mut self, text: &[u8], bad: &mut Vec<Bad>) -> String {
        let mut text = text.to_vec();
        for record in &*bad {
            text[record.start..record.end].fill(b' ');
        }
        let flawed: Vec<usize> = bad.iter().map(|b| b.start).collect();
        let mut kept = 0;
        for row in 0..self.starts.len() {
            let ends = row * self.fields..(row + 1) * self.fields;
            let (start, end) = (self.starts[row] as usize, self.ends[ends.end - 1] as usize);
            if std::str::from_utf8(&text[start..end]).is_ok() {
                self.starts[kept] = self.starts[row];
                self.ends.copy_within(ends, kept * self.fields);
                kept += 1;
            } else {
                text[start..end].fill(b' ');
                let before = row + flawed.partition_point(|s| *s < start);
                bad.push(Bad { before, start, end, message: "the line is not UTF-8".into() });
            }
        }
        self.starts.truncate(kept);
        self.ends.truncate(kept * self.fields);
        bad.sort_by_key(|b| b.start);
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Texts are far shorter than four gigabytes here.
fn small(offset: usize) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

/// The fields of well-formed records.
#[derive(Debug)]
pub(crate) struct Cells<'a> {
    text: &'a str,
    dialect: Dialect,
    null: &'a str,
    /// Whether an empty text is no NULL, though nothing else is said to be one.
    pub(crate) keep_empty: bool,
    fields: usize,
    starts: &'a [u32],
    ends: &'a [u32],
}

impl Cells<'_> {
    pub(crate) fn rows(&self) -> usize {
        self.starts.len()
    }

    /// Where a record starts and ends.
    pub(crate) fn range(&self, row: usize) -> (usize, usize) {
        (self.starts[row] as usize, self.ends[(row + 1) * self.fields - 1] as usize)
    }

    /// One field without its quotes, which `scratch` may hold.
    #[inline]
    pub(crate) fn get<'a>(&'a self, row: usize, index: usize, scratch: &'a mut String) -> &'a str {
        let at = row * self.fields + index;
        let start = if index == 0 { self.starts[row] as usize } else { self.ends[at - 1] as usize + 1 };
        let raw = &self.text[start..self.ends[at] as usize];
        if raw.as_bytes().first() == Some(&self.dialect.quote) { self.unquote(raw, scratch) } else { raw }
    }

    fn unquote<'a>(&self, raw: &'a str, scratch: &'a mut String) -> &'a str {
        let inside = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
        let special = |b: u8| b == self.dialect.quote || Some(b) == self.dialect.escape;
        if !inside.bytes().any(special) {
            return inside;
        }
        scratch.clear();
        let mut rest = inside;
        // What stands behind a quote or an escape is meant, whatever it is.
        while let Some(at) = rest.bytes().position(special) {
            scratch.push_str(&rest[..at]);
            let mut after = rest[at + 1..].chars();
            scratch.extend(after.next());
            rest = after.as_str();
        }
        scratch.push_str(rest);
        scratch
    }

    /// Whether a field stands for NULL.
    #[inline]
    pub(crate) fn is_null(&self, cell: &str, text: bool) -> bool {
        cell == self.null && !(text && self.keep_empty && cell.is_empty())
    }
}

const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;

/// Three bytes to look for.
#[derive(Debug, Clone, Copy)]
struct Special([u64; 3]);

impl Special {
    fn new(bytes: [u8; 3]) -> Self {
        Self(bytes.map(|b| u64::from_ne_bytes([b; 8])))
    }

    /// A bit, the highest of its byte, for each of eight bytes that is one of the three.
    #[inline]
    fn mask(self, word: u64) -> u64 {
        let mut none = !0;
        for pattern in self.0 {
            let zero = word ^ pattern;
            none &= ((zero & LOW) + LOW) | zero;
        }
        !(none | LOW)
    }

    #[inline]
    fn cursor(self, text: &[u8], from: usize) -> Cursor<'_> {
        let mut cursor = Cursor { text, special: self, base: 0, mask: 0 };
        cursor.seek(from);
        cursor
    }
}

/// Goes from one such byte to the next.
#[derive(Debug)]
struct Cursor<'a> {
    text: &'a [u8],
    special: Special,
    /// Eight bytes from here on are in the mask.
    base: usize,
    mask: u64,
}

impl Cursor<'_> {
    #[inline]
    fn seek(&mut self, to: usize) {
        self.base = to;
        self.mask = self.load();
    }

    #[inline]
    fn load(&self) -> u64 {
        match self.text.get(self.base..).and_then(<[u8]>::first_chunk::<8>) {
            Some(word) => self.special.mask(u64::from_le_bytes(*word)),
            None => self.load_last(),
        }
    }

    /// The last bytes of the text, which are fewer than eight.
    fn load_last(&self) -> u64 {
        let rest = self.text.get(self.base..).unwrap_or_default();
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        let beyond = if rest.len() == 8 { 0 } else { !0 << (8 * rest.len()) };
        self.special.mask(u64::from_le_bytes(word)) & !beyond
    }

    #[inline]
    fn next(&mut self) -> Option<usize> {
        while self.mask == 0 {
            if self.base >= self.text.len() {
                return None;
            }
            self.base += 8;
            self.mask = self.load();
        }
        let at = self.base + (self.mask.trailing_zeros() / 8) as usize;
        self.mask &= self.mask - 1;
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(text: &[u8], dialect: Dialect, fields: usize, chunk: usize) -> (Vec<Vec<String>>, Vec<Bad>) {
        let mut found = Found::new(dialect, fields);
        let mut end = 0;
        loop {
            end = (end + chunk).min(text.len());
            let want = Want { rows: usize::MAX, max_record: 1_000, eof: end == text.len() };
            if found.scan(&text[..end], &want) {
                break;
            }
        }
        let mut bad = Vec::new();
        let cells = found.cells(text, "", &mut bad);
        let mut scratch = String::new();
        let rows = (0..cells.rows())
            .map(|row| (0..fields).map(|i| cells.get(row, i, &mut scratch).to_string()).collect())
            .collect();
        (rows, bad)
    }

    fn dialect(escape: bool) -> Dialect {
        Dialect { delimiter: b',', quote: b'"', escape: escape.then_some(b'\\') }
    }

    #[test]
    fn shapes() {
        let text = b"\n1,a\r\n\"2\",\"b \"\"x\"\"\n\"\r3\n4,\"d\"e\n5\xff,f\n6,\n7,\"g";
        let (rows, bad) = found(text, dialect(false), 2, text.len());
        assert_eq!(rows, [["1", "a"], ["2", "b \"x\"\n"], ["6", ""]]);
        let bad: Vec<_> = bad.iter().map(|b| (b.before, b.message.as_str())).collect();
        assert_eq!(
            bad,
            [
                (2, "the line has 1 fields instead of 2"),
                (3, "text follows a closing quote"),
                (4, "the line is not UTF-8"),
                (6, "a quote is not closed"),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_records_or_rejects(
            text in proptest::collection::vec(proptest::sample::select(b"a,\"\n\r\xff\xc3\xa9".to_vec()), 0..40),
            chunk in 1usize..50,
        ) {
            let (rows, bad) = found(&text, dialect(false), 2, chunk);
            let (mut at, mut all) = (0, Vec::new());
            while let Some(cut) = dialect(false).cut(&text, at, true) {
                at = cut.next;
                all.push((cut.start, cut.end));
            }
            prop_assert_eq!(rows.len() + bad.len(), all.len());
            for bad in bad {
                prop_assert_eq!(all[bad.before], (bad.start, bad.end));
            }
        }

        #[test]
        fn records_are_those_of_the_cutter(text in "[a\"\\\\,\n\r]{0,40}", chunk in 1usize..9, escape: bool) {
            let dialect = dialect(escape);
            let (rows, bad) = found(text.as_bytes(), dialect, 2, chunk);
            let whole = found(text.as_bytes(), dialect, 2, text.len().max(1));
            prop_assert_eq!(&rows, &whole.0);
            prop_assert_eq!(bad.len(), whole.1.len());
            let mut at = 0;
            let (mut expected, mut flawed) = (Vec::new(), 0);
            while let Some(cut) = dialect.cut(text.as_bytes(), at, true) {
                let values = dialect.values(&text.as_bytes()[cut.start..cut.end]);
                let trailing = bad.iter().any(|b| b.start == cut.start && b.message.starts_with("text"));
                if cut.closed && cut.fields == 2 && !trailing { expected.push(values) } else { flawed += 1 }
                at = cut.next;
            }
            prop_assert_eq!(rows, expected);
            prop_assert_eq!(bad.len(), flawed);
        }
    }
}
