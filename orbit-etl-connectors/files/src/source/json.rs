//! JSON lines: one object a line, each value exactly what its column holds, or a reject.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, SchemaRef};
use arrow::error::ArrowError;
use memchr::memchr;
use orbit_etl_core::{Error, Result};

use super::dialect::Cutter;
use super::node::{Findings, Node};
use super::number::Rules;
use super::text::{BATCH_BYTES, Bad, Records, Taken, Want};
use super::token::{Broken, Json, Token};

/// JSON records with these columns; others are skipped, or refused.
pub(crate) struct JsonRecords {
    schema: SchemaRef,
    root: Node,
    found: Findings,
    /// Lines with something on them, as offsets of the first byte and the one behind the last.
    lines: Vec<(usize, usize)>,
    /// Lines that are too long; the first number counts the lines before.
    long: Vec<Bad>,
    next: usize,
}

impl JsonRecords {
    /// `inferred`: nobody gave the columns, they were found in a sample.
    pub(crate) fn new(schema: SchemaRef, strict: bool, inferred: bool) -> Result<Self> {
        let rules = Rules { inferred, json: true };
        let root = Node::root(schema.fields(), rules).map_err(|kind| {
            let within = |f: &&Arc<Field>| Node::new("", f, rules).is_err();
            let column = schema.fields().iter().find(within).map_or("", |f| f.name());
            Error::schema("JSON can't be read into this column's type")
                .with("column", column)
                .with("type", kind)
                .remedy("use another type in `schema`")
        })?;
        let found = Findings::new(rules, strict);
        Ok(Self { schema, root, found, lines: Vec::new(), long: Vec::new(), next: 0 })
    }

    /// Adds one line to the columns; what is wrong with it, if something is.
    fn read(&mut self, line: &str) -> Option<String> {
        self.found.wrong.clear();
        let mut json = Json::new(line);
        let read = json.value().and_then(|token| match token {
            Token::Object => {
                self.root.read(&mut json, token, &mut self.found)?;
                json.end().map(|()| true)
            }
            _ => json.skip(token).and_then(|()| json.end()).map(|()| false),
        });
        match read {
            Err(Broken) => {
                Some(format!("the line is not valid JSON from character {} on", place(line, &json)))
            }
            Ok(false) => Some("the line is not a JSON object".into()),
            Ok(true) if self.found.wrong.is_empty() => None,
            Ok(true) => Some(self.found.wrong.join(", ")),
        }
    }

    fn batch(&mut self, rows: usize) -> Result<RecordBatch, ArrowError> {
        let columns = self.root.finish_columns()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
    }
}

impl Records for JsonRecords {
    fn scan(&mut self, text: &[u8], want: &Want) -> bool {
        loop {
            let records = self.lines.len() + self.long.len();
            if records >= want.rows || (records > 0 && self.next >= BATCH_BYTES) {
                return true;
            }
            let rest = &text[self.next..];
            let blank = rest.iter().position(|b| !b.is_ascii_whitespace());
            self.next += blank.unwrap_or(rest.len());
            let rest = &text[self.next..];
            let end = match memchr(b'\n', rest) {
                Some(end) => end,
                None if want.eof && !rest.is_empty() => rest.len(),
                None => return want.eof,
            };
            let line = (self.next, self.next + rest[..end].trim_ascii_end().len());
            if end > want.max_record {
                let bad = Bad { before: records, start: line.0, end: line.1, message: want.too_long() };
                self.long.push(bad);
            } else {
                self.lines.push(line);
            }
            self.next = (self.next + end + 1).min(text.len());
        }
    }

    fn found(&self) -> (usize, usize) {
        (self.lines.len() + self.long.len(), self.next)
    }

    fn take(&mut self, text: &[u8]) -> Result<Taken> {
        let (records, end) = self.found();
        self.next = 0;
        let mut bad = std::mem::take(&mut self.long);
        let long: Vec<usize> = bad.iter().map(|b| b.start).collect();
        let lines = std::mem::take(&mut self.lines);
        let whole = std::str::from_utf8(&text[..end]).ok();
        let line = |(start, end): (usize, usize)| match whole {
            Some(text) => text.get(start..end),
            None => std::str::from_utf8(&text[start..end]).ok(),
        };
        let mut good = Vec::with_capacity(lines.len());
        for (at, &(start, end)) in lines.iter().enumerate() {
            let wrong = match line((start, end)) {
                Some(line) => self.read(line),
                None => Some("the line is not UTF-8".into()),
            };
            match wrong {
                None => good.push((start, end)),
                Some(message) => {
                    let before = at + long.partition_point(|s| *s < start);
                    bad.push(Bad { before, start, end, message });
                }
            }
        }
        if good.len() < lines.len() {
            // A rejected line has left its traces in the columns; the others are read once more.
            self.root = Node::root(self.schema.fields(), self.found.rules)
                .map_err(|_| Error::internal("a column can't be made twice"))?;
            for line in good.iter().filter_map(|at| line(*at)) {
                self.read(line);
            }
        }
        bad.sort_by_key(|b| b.start);
        let batch = match good.len() {
            0 => None,
            rows => Some(self.batch(rows).map_err(|e| {
                Error::data("the records can't be made a batch")
                    .remedy("read fewer rows at a time")
                    .caused_by(e)
            })?),
        };
        self.lines = lines;
        self.lines.clear();
        Ok(Taken { batch, records, end, bad })
    }

    fn clear(&mut self) {
        self.lines.clear();
        self.long.clear();
        self.next = 0;
    }

    fn cutter(&self) -> Cutter {
        Cutter::new(None)
    }
}

/// The character at which a line stops being JSON, counted in bytes from one.
fn place(line: &str, json: &Json<'_>) -> usize {
    match serde_json::from_str::<serde::de::IgnoredAny>(line) {
        Err(e) => e.column(),
        Ok(_) => json.at() + 1,
    }
}
