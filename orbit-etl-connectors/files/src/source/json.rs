//! JSON lines, decoded by arrow.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use arrow::json::reader::Decoder;
use memchr::{memchr, memchr_iter};
use orbit_etl_core::{Error, Result};

use super::dialect::Cut;
use super::text::Records;

/// JSON records with these columns; others are skipped, or refused.
pub(crate) struct JsonRecords {
    schema: SchemaRef,
    strict: bool,
    decoder: Decoder,
    rows: usize,
}

impl JsonRecords {
    pub(crate) fn new(schema: SchemaRef, strict: bool) -> Result<Self> {
        let decoder = decoder(&schema, strict, 1)?;
        Ok(Self { schema, strict, decoder, rows: 1 })
    }
}

fn decoder(schema: &SchemaRef, strict: bool, rows: usize) -> Result<Decoder> {
    ReaderBuilder::new(Arc::clone(schema))
        .with_batch_size(rows)
        .with_strict_mode(strict)
        .with_coerce_primitive(true)
        .build_decoder()
        .map_err(|e| {
            Error::schema("JSON can't be read into this schema")
                .remedy("use another type in `columns`")
                .caused_by(e)
        })
}

impl Records for JsonRecords {
    fn begin(&mut self, rows: usize) -> Result<()> {
        self.rows = rows;
        self.decoder = decoder(&self.schema, self.strict, rows)?;
        Ok(())
    }

    fn decode(&mut self, bytes: &[u8]) -> Result<usize, ArrowError> {
        self.decoder.decode(bytes)
    }

    fn full(&self) -> bool {
        self.decoder.len() >= self.rows
    }

    fn end(&mut self) -> Result<(), ArrowError> {
        if self.decoder.has_partial_record() {
            return Err(ArrowError::JsonError("cut short".into()));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        self.decoder.flush()
    }

    fn cut(&self, bytes: &[u8], at: usize, eof: bool) -> Option<Cut> {
        let start = at + bytes[at..].iter().position(|b| !b.is_ascii_whitespace())?;
        let (end, next) = match memchr(b'\n', &bytes[start..]) {
            Some(n) => (start + n, start + n + 1),
            None if eof => (bytes.len(), bytes.len()),
            None => return None,
        };
        let end = start + bytes[start..end].trim_ascii_end().len();
        Some(Cut { start, end, next, closed: true, fields: 0 })
    }

    /// The decoder doesn't care for lines: an object may span several, or two may share one.
    fn agrees(&self, bytes: &[u8], rows: usize, _eof: bool) -> bool {
        memchr_iter(b'\n', bytes.trim_ascii()).count() + 1 == rows
    }

    fn reason(&mut self, record: &[u8], _cut: &Cut) -> String {
        let value = match serde_json::from_slice::<serde_json::Value>(record) {
            Ok(value) => value,
            Err(e) => return format!("the line is not valid JSON from character {} on", e.column()),
        };
        if !value.is_object() {
            return "the line is not a JSON object".into();
        }
        let mut columns = Vec::new();
        for field in self.schema.fields() {
            let one = Arc::new(Schema::new(vec![Arc::clone(field)]));
            let Ok(mut decoder) = decoder(&one, false, 1) else { continue };
            let read = decoder.decode(record).and_then(|_| decoder.flush());
            if !matches!(read, Ok(Some(_))) {
                columns.push(format!("column `{}` is not a valid {}", field.name(), field.data_type()));
            }
        }
        if columns.is_empty() && self.strict {
            return "the object has a key that is not in the schema".into();
        }
        if columns.is_empty() { "the line can't be read".into() } else { columns.join(", ") }
    }
}
