//! CSV: headers, and records whose fields become exactly what they say, or a reject.

use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::filter;
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use orbit_etl_core::{Error, Result};

use super::column::{Column, column};
use super::dialect::{Cutter, Dialect};
use super::input::Input;
use super::list::FileEntry;
use super::node::refusal;
use super::number::Rules;
use super::record::{Cells, Found};
use super::text::{BOM, Bad, Records, Taken, Want};
use crate::format::CsvOptions;

/// So many fields and their places stay in the processor's cache from one column to the next.
const BLOCK: usize = 4_096;

/// CSV records of one file.
pub(crate) struct CsvRecords {
    dialect: Dialect,
    null: String,
    /// Whether an empty text is an empty string and not NULL.
    keep_empty: bool,
    rules: Rules,
    /// One field per column that is read.
    schema: SchemaRef,
    columns: Vec<Slot>,
    /// Fields of a record.
    fields: usize,
    found: Found,
}

/// A column that is read.
struct Slot {
    /// Which field of a record it is.
    index: usize,
    field: Arc<Field>,
    column: Box<dyn Column>,
}

impl CsvRecords {
    /// `schema` has a field for each one of a record, `projection` says which of them to read.
    /// `inferred`: nobody gave the columns, they were found in a sample.
    pub(crate) fn new(
        options: &CsvOptions,
        keep_empty: bool,
        schema: &SchemaRef,
        projection: &[usize],
        inferred: bool,
    ) -> Result<Self> {
        let rules = Rules { inferred, json: false };
        let columns = projection
            .iter()
            .map(|&index| {
                let field = Arc::clone(&schema.fields()[index]);
                let Some(column) = column(field.data_type(), rules) else {
                    return Err(Error::schema("CSV can't be read into this column's type")
                        .with("column", field.name())
                        .with("type", field.data_type())
                        .remedy("use another type in `schema`, such as `text`"));
                };
                Ok(Slot { index, field, column })
            })
            .collect::<Result<Vec<_>>>()?;
        let fields: Vec<_> = columns.iter().map(|slot| Arc::clone(&slot.field)).collect();
        let dialect = Dialect::from(options);
        Ok(Self {
            dialect,
            null: options.null.clone(),
            keep_empty,
            rules,
            schema: Arc::new(Schema::new(fields)),
            columns,
            fields: schema.fields().len().max(1),
            found: Found::new(dialect, schema.fields().len()),
        })
    }
}

impl Records for CsvRecords {
    fn scan(&mut self, text: &[u8], want: &Want) -> bool {
        self.found.scan(text, want)
    }

    fn found(&self) -> (usize, usize) {
        (self.found.records(), self.found.next())
    }

    fn take(&mut self, text: &[u8]) -> Result<Taken> {
        let (records, end) = self.found();
        let mut bad = Vec::new();
        let mut cells = self.found.cells(text, &self.null, &mut bad);
        cells.keep_empty = self.keep_empty;
        let mut wrong = Vec::new();
        let rows = (BLOCK / self.fields).clamp(16, 1_024);
        for from in (0..cells.rows()).step_by(rows) {
            let block = from..cells.rows().min(from + rows);
            for (at, slot) in self.columns.iter_mut().enumerate() {
                let mut hear = |row| wrong.push((row, at));
                slot.column.extend(&cells, block.clone(), slot.index, slot.field.is_nullable(), &mut hear);
            }
        }
        let good = reject(&cells, &self.columns, self.rules, wrong, &mut bad);
        let rows = good.as_ref().map_or(cells.rows(), BooleanArray::true_count);
        let batch = batch(&self.schema, &mut self.columns, good.as_ref(), rows).map_err(|e| {
            Error::data("the records can't be made a batch").remedy("read fewer rows at a time").caused_by(e)
        })?;
        self.found.clear();
        Ok(Taken { batch: (rows > 0).then_some(batch), records, end, bad })
    }

    fn clear(&mut self) {
        self.found.clear();
    }

    fn cutter(&self) -> Cutter {
        Cutter::new(Some(self.dialect)).at_any_break()
    }
}

/// Tells of the records with a field that its column refused; says which ones are good, if not all.
fn reject(
    cells: &Cells<'_>,
    columns: &[Slot],
    rules: Rules,
    mut wrong: Vec<(usize, usize)>,
    bad: &mut Vec<Bad>,
) -> Option<BooleanArray> {
    if wrong.is_empty() {
        return None;
    }
    wrong.sort_unstable();
    let shapeless: Vec<usize> = bad.iter().map(|b| b.start).collect();
    let mut good = vec![true; cells.rows()];
    for refused in wrong.chunk_by(|a, b| a.0 == b.0) {
        let row = refused[0].0;
        good[row] = false;
        let reasons: Vec<_> =
            refused.iter().map(|&(_, at)| reason(cells, row, &columns[at], rules)).collect();
        let (start, end) = cells.range(row);
        let before = row + shapeless.partition_point(|s| *s < start);
        bad.push(Bad { before, start, end, message: reasons.join(", ") });
    }
    bad.sort_by_key(|b| b.start);
    Some(good.into())
}

fn reason(cells: &Cells<'_>, row: usize, slot: &Slot, rules: Rules) -> String {
    let mut scratch = String::new();
    let cell = cells.get(row, slot.index, &mut scratch);
    let (name, kind) = (slot.field.name(), slot.field.data_type());
    if cells.is_null(cell, slot.column.is_text()) {
        return format!("column `{name}` is NULL");
    }
    let fits = rules.inferred && column(kind, Rules::GIVEN).is_some_and(|mut column| column.text(cell));
    refusal(name, kind, fits)
}

fn batch(
    schema: &SchemaRef,
    columns: &mut [Slot],
    good: Option<&BooleanArray>,
    rows: usize,
) -> Result<RecordBatch, ArrowError> {
    let columns = columns
        .iter_mut()
        .map(|slot| {
            let array = slot.column.finish()?;
            match good {
                Some(good) => filter(&array, good),
                None => Ok(array),
            }
        })
        .collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
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
