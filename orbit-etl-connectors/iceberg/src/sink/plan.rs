//! How the rows of one stream become rows of one table.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt32Array, new_null_array};
use arrow::compute::{filter_record_batch, is_null, not, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use iceberg::arrow::RecordBatchPartitionSplitter;
use iceberg::spec::{Literal, PartitionKey, PrimitiveLiteral, PrimitiveType, StructType, TableMetadata};
use orbit_etl_core::{Error, Result};

use super::SchemaMode;
use crate::bridge::{To58, To59};
use crate::error::from_iceberg;
use crate::fit::{batch, fit};
use crate::types;

/// Which columns a table lacks.
///
/// # Errors
/// `Schema` naming the column that doesn't fit.
pub(super) fn missing<'a>(
    stream: &'a Schema,
    table: &TableMetadata,
    mode: SchemaMode,
) -> Result<Vec<&'a Field>> {
    let there = table.current_schema();
    let mut missing = Vec::new();
    for field in stream.fields() {
        let wanted = types::of_column(field)?;
        // The schema's own index also knows parts of columns, by names with dots.
        let find = |same: &dyn Fn(&str) -> bool| there.as_struct().fields().iter().find(|f| same(&f.name));
        match find(&|name| name == field.name()) {
            Some(found) if types::holds(&found.field_type, &wanted) => {}
            Some(found) => {
                return Err(Error::schema("a column's type doesn't fit the table's")
                    .with("column", field.name())
                    .with("type", &wanted)
                    .with("type in the table", &found.field_type)
                    .remedy("cast the column before the sink"));
            }
            None if find(&|name| name.eq_ignore_ascii_case(field.name())).is_some() => {
                return Err(Error::schema("a column's name differs from the table's by case")
                    .with("column", field.name())
                    .remedy("rename the column before the sink"));
            }
            None if mode == SchemaMode::Merge => missing.push(field.as_ref()),
            None => {
                return Err(Error::schema("the table lacks a column of the stream")
                    .with("column", field.name())
                    .remedy("leave the column out, or let the table grow with `schema_mode: merge`"));
            }
        }
    }
    let required = there.as_struct().fields().iter().filter(|field| field.required);
    for field in required {
        if stream.column_with_name(&field.name).is_none() {
            return Err(
                Error::schema("the rows lack a column that the table requires").with("column", &field.name)
            );
        }
    }
    Ok(missing)
}

/// One stream on its way into one table.
#[derive(Debug)]
pub(super) struct StreamPlan {
    pub(super) name: String,
    /// The table's columns as they are written, and where each stands in the stream.
    columns: SchemaRef,
    from: Vec<Option<usize>>,
    width: usize,
    crossing: To58,
    pub(super) table: Arc<TableMetadata>,
}

/// The rows of a batch, sorted out.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// The rows of each partition; without a key in a table without partitions.
    pub(super) fit: Vec<(Option<PartitionKey>, arrow_array58::RecordBatch)>,
    /// Rows that can't be written, as they came, and why.
    pub(super) misfit: Vec<(Error, RecordBatch)>,
}

impl StreamPlan {
    /// For rows of `stream` and a table that has all its columns.
    ///
    /// # Errors
    /// `Schema` naming the column that doesn't fit.
    pub(super) fn new(name: &str, stream: &Schema, table: Arc<TableMetadata>) -> Result<Self> {
        missing(stream, &table, SchemaMode::Strict)?;
        let there = types::to_arrow(table.current_schema())?;
        // Whoever computes the values of partitions wants just the table's own types.
        let exact = !table.default_partition_spec().is_unpartitioned();
        let mut fields = Vec::with_capacity(there.fields().len());
        let mut from = Vec::with_capacity(there.fields().len());
        for field in there.fields() {
            let found = stream.column_with_name(field.name());
            from.push(found.map(|(i, _)| i));
            fields.push(match found {
                Some((_, own)) if !exact && is_written_alike(own.data_type(), field.data_type()) => {
                    Arc::new(field.as_ref().clone().with_data_type(own.data_type().clone()))
                }
                _ => Arc::clone(field),
            });
        }
        let columns = Arc::new(Schema::new(fields));
        let crossing = To58::new(&columns)?;
        Ok(Self { name: name.to_owned(), columns, from, width: stream.fields().len(), crossing, table })
    }

    /// Sorts the rows of a batch out. `splitter` is made when it is first needed.
    pub(super) fn split(
        &self,
        rows: &RecordBatch,
        splitter: &mut Option<RecordBatchPartitionSplitter>,
    ) -> Result<Parts> {
        if rows.num_columns() != self.width {
            return Err(Error::schema("rows don't have the columns that the stream announced")
                .with("stream", &self.name));
        }
        let mut misfits = Misfits::default();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.from.len());
        for (field, from) in self.columns.fields().iter().zip(&self.from) {
            let Some(from) = *from else {
                columns.push(new_null_array(field.data_type(), rows.num_rows()));
                continue;
            };
            let (stored, misfit) = fit(rows.column(from), field)?;
            if let Some(misfit) = misfit {
                let why = Error::data("a value can't be stored as the table's type")
                    .with("column", field.name())
                    .with("type", rows.column(from).data_type())
                    .with("type in the table", field.data_type());
                misfits.add(why, misfit);
            } else if !field.is_nullable() && stored.null_count() > 0 {
                let nulls = is_null(&stored).map_err(picking)?;
                let why = Error::data("a column that the table requires holds NULL");
                misfits.add(why.with("column", field.name()), nulls);
            }
            columns.push(stored);
        }
        let mut parts = Parts::default();
        let mut kept = None;
        if let Some(mask) = misfits.mask(rows.num_rows()) {
            kept = Some(not(&mask).map_err(picking)?);
            parts.misfit = misfits.split(rows)?;
        }
        let stored = match &kept {
            None => batch(&self.columns, columns, rows.num_rows())?,
            Some(kept) => {
                // NULL where the table has none goes with its row.
                let open: Vec<_> =
                    self.columns.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
                let all = batch(&Arc::new(Schema::new(open)), columns, rows.num_rows())?;
                let fitting = filter_record_batch(&all, kept).map_err(picking)?;
                batch(&self.columns, fitting.columns().to_vec(), fitting.num_rows())?
            }
        };
        if stored.num_rows() == 0 {
            return Ok(parts);
        }
        let spec = self.table.default_partition_spec();
        if spec.is_unpartitioned() {
            parts.fit.push((None, self.crossing.batch(&stored)?));
            return Ok(parts);
        }
        let fail = |e| from_iceberg(&e, "tell which partitions rows belong to", &self.name);
        if splitter.is_none() {
            let schema = Arc::clone(self.table.current_schema());
            *splitter = Some(
                RecordBatchPartitionSplitter::try_new_with_computed_values(schema, Arc::clone(spec))
                    .map_err(fail)?,
            );
        }
        if let Some(splitter) = splitter {
            let types = spec.partition_type(self.table.current_schema()).map_err(fail)?;
            for (key, rows) in splitter.split(&self.crossing.batch(&stored)?).map_err(fail)? {
                if can_be_shown(&key, &types) {
                    parts.fit.push((Some(key), rows));
                } else {
                    let why = Error::data("a date or a time is too far away for a partition");
                    parts
                        .misfit
                        .push((why.with("stream", &self.name), To59::new(rows.schema_ref())?.batch(&rows)?));
                }
            }
        }
        Ok(parts)
    }
}

/// Whether a partition's dates are among those that the crate can write as text, which it does for
/// each: it panics at others.
fn can_be_shown(key: &PartitionKey, types: &StructType) -> bool {
    const DAYS: u32 = 90_000_000;
    const MICROS: u64 = DAYS as u64 * 86_400_000_000;
    key.data().fields().iter().zip(types.fields()).all(|(value, field)| {
        match (value, field.field_type.as_primitive_type()) {
            (Some(Literal::Primitive(PrimitiveLiteral::Int(days))), Some(PrimitiveType::Date)) => {
                days.unsigned_abs() <= DAYS
            }
            (Some(Literal::Primitive(PrimitiveLiteral::Long(micros))), Some(PrimitiveType::Timestamp)) => {
                micros.unsigned_abs() <= MICROS
            }
            _ => true,
        }
    })
}

/// Whether Parquet has texts and bytes of all forms alike, so that there is nothing to cast.
fn is_written_alike(from: &DataType, to: &DataType) -> bool {
    match to {
        DataType::Utf8 => matches!(from, DataType::LargeUtf8 | DataType::Utf8View),
        DataType::LargeBinary => matches!(from, DataType::Binary | DataType::BinaryView),
        _ => false,
    }
}

fn picking(error: arrow::error::ArrowError) -> Error {
    Error::internal("rows can't be picked").caused_by(error)
}

/// Which rows can't be written, each for the first reason that was found.
#[derive(Default)]
struct Misfits {
    found: Vec<(Error, BooleanArray)>,
}

impl Misfits {
    fn add(&mut self, why: Error, rows: BooleanArray) {
        self.found.push((why, rows));
    }

    fn mask(&self, rows: usize) -> Option<BooleanArray> {
        (!self.found.is_empty())
            .then(|| (0..rows).map(|row| Some(self.found.iter().any(|(_, rows)| rows.value(row)))).collect())
    }

    fn split(self, rows: &RecordBatch) -> Result<Vec<(Error, RecordBatch)>> {
        let mut taken = vec![false; rows.num_rows()];
        let mut parts = Vec::new();
        for (why, mask) in self.found {
            let mut numbers = Vec::new();
            for (row, taken) in taken.iter_mut().enumerate() {
                if mask.value(row) && !*taken {
                    *taken = true;
                    numbers.push(u32::try_from(row).map_err(|_| {
                        Error::unsupported("a batch of more than 2^32 rows can't be sorted out")
                    })?);
                }
            }
            if !numbers.is_empty() {
                let picked = take_record_batch(rows, &UInt32Array::from(numbers)).map_err(picking)?;
                parts.push((why, picked));
            }
        }
        Ok(parts)
    }
}
