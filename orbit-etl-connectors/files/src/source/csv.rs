//! CSV: headers, and records decoded by arrow.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StringArray};
use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Decoder;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use orbit_etl_core::{Error, Result};
use regex::Regex;

use super::dialect::{Cut, Dialect};
use super::input::Input;
use super::list::FileEntry;
use super::text::Records;
use crate::format::CsvOptions;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// CSV records of one file.
pub(crate) struct CsvRecords {
    dialect: Dialect,
    /// One field per column of the file.
    schema: SchemaRef,
    projection: Vec<usize>,
    null: Option<Regex>,
    /// Whether an empty text is an empty string and not NULL.
    keep_empty: bool,
    decoder: Decoder,
    rows: usize,
}

impl CsvRecords {
    pub(crate) fn new(
        options: &CsvOptions,
        keep_empty: bool,
        schema: SchemaRef,
        projection: Vec<usize>,
    ) -> Result<Self> {
        let null = match options.null.as_str() {
            "" => None,
            text => Some(Regex::new(&format!("^{}$", regex::escape(text))).map_err(|e| {
                Error::config("the text for NULL can't be used").with("option", "csv.null").caused_by(e)
            })?),
        };
        let mut fields = projection.iter().map(|&index| schema.field(index));
        if let Some(field) = fields.find(|field| !reads(field.data_type())) {
            return Err(Error::schema("CSV can't be read into this column's type")
                .with("column", field.name())
                .with("type", field.data_type())
                .remedy("use another type in `columns`, such as `text`"));
        }
        let decoder = ReaderBuilder::new(Arc::clone(&schema)).build_decoder();
        Ok(Self { dialect: Dialect::from(options), schema, projection, null, keep_empty, decoder, rows: 0 })
    }

    fn decoder(&self, rows: usize, projection: Vec<usize>) -> Decoder {
        let mut builder = ReaderBuilder::new(Arc::clone(&self.schema))
            .with_delimiter(self.dialect.delimiter)
            .with_quote(self.dialect.quote)
            .with_batch_size(rows)
            .with_projection(projection);
        if let Some(escape) = self.dialect.escape {
            builder = builder.with_escape(escape);
        }
        if let Some(null) = &self.null {
            builder = builder.with_null_regex(null.clone());
        }
        builder.build_decoder()
    }

    /// Puts empty strings where an empty field was read as NULL.
    fn restore_empty(&self, batch: RecordBatch) -> Result<RecordBatch, ArrowError> {
        if !self.keep_empty || self.null.is_some() {
            return Ok(batch);
        }
        let (schema, columns, rows) = batch.into_parts();
        let columns = columns.into_iter().map(|column| match column.data_type() {
            // A NULL string takes no bytes, so its offsets are those of an empty one.
            DataType::Utf8 if column.null_count() > 0 => {
                let (offsets, values, _) = column.as_string::<i32>().clone().into_parts();
                Arc::new(StringArray::new(offsets, values, None)) as ArrayRef
            }
            _ => column,
        });
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(schema, columns.collect(), &options)
    }
}

impl Records for CsvRecords {
    fn begin(&mut self, rows: usize) -> Result<()> {
        self.rows = rows;
        self.decoder = self.decoder(rows, self.projection.clone());
        Ok(())
    }

    fn decode(&mut self, bytes: &[u8]) -> Result<usize, ArrowError> {
        self.decoder.decode(bytes)
    }

    fn full(&self) -> bool {
        self.decoder.capacity() == 0
    }

    fn end(&mut self) -> Result<(), ArrowError> {
        self.decoder.decode(&[]).map(|_| ())
    }

    fn flush(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        self.decoder.flush()?.map(|batch| self.restore_empty(batch)).transpose()
    }

    fn cut(&self, bytes: &[u8], at: usize, eof: bool) -> Option<Cut> {
        self.dialect.cut(bytes, at, eof)
    }

    /// Arrow takes the end of the file for a missing quote, which would swallow rows.
    fn agrees(&self, bytes: &[u8], _rows: usize, eof: bool) -> bool {
        if !eof || memchr::memchr(self.dialect.quote, bytes).is_none() {
            return true;
        }
        let mut at = 0;
        while let Some(cut) = self.dialect.cut(bytes, at, true) {
            if !cut.closed {
                return false;
            }
            at = cut.next;
        }
        true
    }

    fn reason(&mut self, record: &[u8], cut: &Cut) -> String {
        if !cut.closed {
            return "a quote is not closed".into();
        }
        let expected = self.schema.fields().len();
        if cut.fields != expected {
            return format!("the line has {} fields instead of {expected}", cut.fields);
        }
        if std::str::from_utf8(record).is_err() {
            return "the line is not UTF-8".into();
        }
        let mut columns = Vec::new();
        for &index in &self.projection {
            let mut decoder = self.decoder(1, vec![index]);
            let read = decoder.decode(record).and_then(|_| decoder.decode(&[])).and_then(|_| decoder.flush());
            if !matches!(read, Ok(Some(_))) {
                let field = self.schema.field(index);
                columns.push(format!("column `{}` is not a valid {}", field.name(), field.data_type()));
            }
        }
        if columns.is_empty() { "the line can't be read".into() } else { columns.join(", ") }
    }
}

/// Whether arrow reads text into this type.
fn reads(data_type: &DataType) -> bool {
    match data_type {
        DataType::Null
        | DataType::Boolean
        | DataType::Utf8
        | DataType::Utf8View
        | DataType::Date32
        | DataType::Date64
        | DataType::Time32(_)
        | DataType::Time64(_)
        | DataType::Timestamp(_, _) => true,
        DataType::Dictionary(keys, values) => keys.is_integer() && **values == DataType::Utf8,
        other => other.is_numeric(),
    }
}

/// The first line of a file.
pub(crate) struct Head {
    /// The columns' names: those of the header, or else `column_1` …
    pub(crate) names: Vec<String>,
    /// What was read beyond it.
    pub(crate) rest: Vec<u8>,
    /// Where the first record begins, in bytes and in line feeds.
    pub(crate) byte: u64,
    pub(crate) lines: u64,
}

/// Reads the header, or what stands in for it. A file without any line has no columns.
pub(crate) async fn read_head(
    input: &mut Input,
    options: &CsvOptions,
    file: &FileEntry,
    max_record: usize,
) -> Result<Head> {
    let dialect = Dialect::from(options);
    let mut buffer = Vec::new();
    let mut eof = false;
    let (cut, bom) = loop {
        let bom = if buffer.starts_with(BOM) { BOM.len() } else { 0 };
        match dialect.cut(&buffer, bom, eof) {
            Some(cut) => break (Some(cut), bom),
            None if eof => break (None, bom),
            None if buffer.len() > max_record => {
                return Err(Error::schema("the first line is too long")
                    .with("file", &file.name)
                    .remedy("check that this is CSV, or raise `max_record`"));
            }
            None => eof = !input.fill(&mut buffer).await?,
        }
    };
    let Some(cut) = cut else {
        return Ok(Head { names: Vec::new(), rest: Vec::new(), byte: buffer.len() as u64, lines: 0 });
    };
    let line = &buffer[cut.start..cut.end];
    if !cut.closed || std::str::from_utf8(line).is_err() {
        return Err(Error::schema("the first line can't be read")
            .with("file", &file.name)
            .with("line", 1)
            .remedy("check that this is CSV in UTF-8, and its compression"));
    }
    let names = if options.header {
        dialect.values(line)
    } else {
        (1..=cut.fields).map(|n| format!("column_{n}")).collect()
    };
    if let Some(twice) = names.iter().enumerate().find_map(|(i, n)| names[..i].contains(n).then_some(n)) {
        return Err(Error::schema("the header has a column twice")
            .with("file", &file.name)
            .with("column", twice)
            .remedy("rename one of them"));
    }
    let start = if options.header { cut.next } else { bom };
    Ok(Head {
        names,
        lines: memchr::memchr_iter(b'\n', &buffer[..start]).count() as u64,
        byte: start as u64,
        rest: buffer.split_off(start),
    })
}
