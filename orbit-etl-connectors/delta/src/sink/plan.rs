//! How the rows of one stream become rows of one table.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::{filter, filter_record_batch, not};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use deltalake::kernel::StructType;
use orbit_etl_core::{Error, ErrorKind, Result};

use super::SchemaMode;
use super::change::{Changes, Taken, table_columns, unless};
use super::check::Checks;
use super::partition::{Partitioner, Values, pick};
use super::shape::Shape;
use super::staged::How;
use crate::types::{arrow_schema, batch, fit, holds, table_schema};

/// One stream on its way into one table.
#[derive(Debug)]
pub(crate) struct StreamPlan {
    name: String,
    /// The stream's columns, in the table's types.
    rows: SchemaRef,
    /// Those that stand in the files.
    file: SchemaRef,
    in_file: Vec<usize>,
    partition: Option<Partitioner>,
    checks: Checks,
    mark: String,
    /// The stream's columns as Delta has them, if the table lacks some.
    wider: Option<String>,
    bounded_columns: usize,
    how: How,
    changes: Option<Changes>,
    stream_columns: usize,
}

/// The rows of a batch, sorted out.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// The rows of each partition, as the files have them.
    pub(crate) fit: Vec<(Values, RecordBatch)>,
    /// Rows that can't be written, as they came, and why.
    pub(crate) misfit: Vec<(Error, RecordBatch)>,
}

impl StreamPlan {
    /// For rows of `stream` and a table of this shape. What the table lacks is added if `mode` allows
    /// it.
    ///
    /// # Errors
    /// `Schema` naming the column that doesn't fit.
    pub(crate) fn new(
        name: &str,
        stream: &Schema,
        table: &Shape,
        mode: SchemaMode,
        how: How,
    ) -> Result<Self> {
        let stream_columns = stream.fields().len();
        let changes = match &how {
            How::Merge { keys, .. } => Some(Changes::new(stream, keys)?),
            How::Add | How::Replace { .. } => None,
        };
        let stream = &changed_columns(stream, &how);
        let wanted = table_schema(stream)?;
        let (wide, added) = widen(&table.columns, &wanted, mode)?;
        let wide = arrow_schema(&wide)?;
        let mut fields = Vec::with_capacity(stream.fields().len());
        for field in arrow_schema(&wanted)?.fields() {
            // `widen` has found each.
            let (_, found) = find(&wide, field.name())
                .ok_or_else(|| Error::internal("a column got lost").with("column", field.name()))?;
            fields.push(found.clone());
        }
        // An operation sorts the rows into partitions by itself.
        let partitions = if how.is_add() { table.partition_columns() } else { &[] };
        let as_written = |(f, from): (&Field, &Arc<Field>)| {
            let apart = partitions.contains(f.name());
            let kept = !apart && is_written_alike(from.data_type(), f.data_type());
            let data_type = if kept { from.data_type() } else { f.data_type() };
            Arc::new(Field::new(f.name(), data_type.clone(), true))
        };
        let rows: Fields = fields.iter().zip(stream.fields()).map(as_written).collect();
        let rows = Arc::new(Schema::new(rows));
        let partition = Partitioner::new(&rows, partitions)?;
        let apart = |f: &Field| partitions.contains(f.name());
        let in_file: Vec<usize> = (0..rows.fields().len()).filter(|&i| !apart(rows.field(i))).collect();
        let beside = changes.as_ref().map(Changes::beside).unwrap_or_default();
        let file = in_file.iter().map(|&i| Arc::clone(&rows.fields()[i])).chain(beside);
        let file: Fields = file.collect();
        let replaced = match &how {
            How::Replace { predicate } => Some(predicate.as_str()),
            How::Add | How::Merge { .. } => None,
        };
        let wider = added.then(|| serde_json::to_string(&wanted)).transpose();
        Ok(Self {
            name: name.to_owned(),
            checks: Checks::new(&rows, &wide, &table.constraints, replaced)?,
            file: Arc::new(Schema::new(file)),
            rows,
            in_file,
            partition,
            mark: table.checks(),
            wider: wider.map_err(|e| Error::internal("a schema can't be described").caused_by(e))?,
            bounded_columns: table.bounded_columns(),
            how,
            changes,
            stream_columns,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What the commit does with the files.
    pub(crate) fn how(&self) -> &How {
        &self.how
    }

    /// The columns of the files.
    pub(crate) fn file(&self) -> &SchemaRef {
        &self.file
    }

    pub(crate) fn mark(&self) -> &str {
        &self.mark
    }

    pub(crate) fn wider(&self) -> Option<&str> {
        self.wider.as_deref()
    }

    pub(crate) fn bounded_columns(&self) -> usize {
        self.bounded_columns
    }

    /// Sorts the rows of a batch out, the first of which came as number `sequence`.
    pub(crate) fn split(&self, rows: &RecordBatch, sequence: i64) -> Result<Parts> {
        if rows.num_columns() != self.stream_columns {
            return Err(Error::schema("rows don't have the columns that the stream announced")
                .with("stream", &self.name));
        }
        let mut misfits = Misfits::default();
        let mut taken = match &self.changes {
            Some(changes) => Some(changes.take(rows, sequence)?),
            None => None,
        };
        if let Some(taken) = &mut taken {
            misfits.found.append(&mut taken.misfits);
        }
        let stored =
            self.stored(taken.as_ref().map_or(rows, |taken| &taken.rows), taken.as_ref(), &mut misfits)?;
        for (why, mut failing) in self.checks.failing(&stored)? {
            if let Some(taken) = &taken {
                failing = unless(&failing, &taken.deletes)?;
            }
            misfits.add(why, failing);
        }
        let mut beside = taken.map(|taken| taken.beside).unwrap_or_default();
        let mut stored = stored;
        let mut parts = Parts::default();
        let mut kept = rows.clone();
        if let Some(mask) = misfits.mask(rows.num_rows()) {
            let internal = |e| Error::internal("rows can't be picked").caused_by(e);
            let keep = not(&mask).map_err(internal)?;
            parts.misfit = misfits.split(rows)?;
            kept = filter_record_batch(rows, &keep).map_err(internal)?;
            stored = filter_record_batch(&stored, &keep).map_err(internal)?;
            for column in &mut beside {
                *column = filter(column, &keep).map_err(internal)?;
            }
        }
        if stored.num_rows() == 0 {
            return Ok(parts);
        }
        // Rows that are sorted into partitions have nothing beside them.
        let project = |rows: &RecordBatch| {
            let columns = self.in_file.iter().map(|&i| Arc::clone(rows.column(i)));
            batch(&self.file, columns.chain(beside.iter().cloned()).collect(), rows.num_rows())
        };
        let Some(partition) = &self.partition else {
            parts.fit.push((Values::new(), project(&stored)?));
            return Ok(parts);
        };
        for (values, numbers) in partition.split(&stored)? {
            match values {
                Ok(values) => parts.fit.push((values, project(&pick(&stored, numbers)?)?)),
                Err(error) if error.kind() == ErrorKind::Data => {
                    parts.misfit.push((error, pick(&kept, numbers)?));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(parts)
    }

    /// The rows in the table's types.
    fn stored(
        &self,
        rows: &RecordBatch,
        taken: Option<&Taken>,
        misfits: &mut Misfits,
    ) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(rows.num_columns());
        for (column, field) in rows.columns().iter().zip(self.rows.fields()) {
            let (stored, misfit) = fit(column, field)?;
            if let Some(mut misfit) = misfit {
                if let (Some(changes), Some(taken)) = (&self.changes, taken) {
                    misfit = changes.counts(field.name(), misfit, &taken.deletes)?;
                }
                let why = Error::data("a value can't be stored as the table's type")
                    .with("column", field.name())
                    .with("type", column.data_type())
                    .with("type in the table", field.data_type());
                misfits.add(why, misfit);
            }
            columns.push(stored);
        }
        batch(&self.rows, columns, rows.num_rows())
    }
}

/// The columns of the table that a stream's rows have.
pub(crate) fn changed_columns(stream: &Schema, how: &How) -> SchemaRef {
    match how {
        How::Merge { .. } => table_columns(stream),
        How::Add | How::Replace { .. } => Arc::new(stream.clone()),
    }
}

/// A table's columns with those of `wanted` that it lacks, and whether it lacks any.
///
/// # Errors
/// `Schema` naming the column that doesn't fit.
pub(crate) fn widen(table: &StructType, wanted: &StructType, mode: SchemaMode) -> Result<(StructType, bool)> {
    let (there, asked) = (arrow_schema(table)?, arrow_schema(wanted)?);
    let mut fields: Vec<_> = table.fields().cloned().collect();
    let before = fields.len();
    for (field, arrow) in wanted.fields().zip(asked.fields()) {
        match find(&there, field.name()) {
            Some((_, found)) if found.name() != field.name() => {
                return Err(Error::schema("a column's name differs from the table's by case")
                    .with("column", field.name())
                    .with("column in the table", found.name())
                    .remedy("rename the column before the sink"));
            }
            Some((_, found)) if !holds(found.data_type(), arrow.data_type()) => {
                return Err(no_fit(found, arrow.data_type()));
            }
            Some(_) => {}
            None if mode == SchemaMode::Merge => fields.push(field.clone()),
            None => {
                return Err(Error::schema("the table lacks a column of the stream")
                    .with("column", field.name())
                    .remedy("leave the column out, or let the table grow with `schema_mode: merge`"));
            }
        }
    }
    let added = fields.len() > before;
    let wide = StructType::try_new(fields)
        .map_err(|e| Error::schema("the table can't have these columns").caused_by(e))?;
    Ok((wide, added))
}

/// Whether Parquet has texts and bytes of both forms alike, so that there is nothing to cast.
fn is_written_alike(from: &DataType, to: &DataType) -> bool {
    match to {
        DataType::Utf8 => matches!(from, DataType::LargeUtf8 | DataType::Utf8View),
        DataType::Binary => matches!(from, DataType::LargeBinary | DataType::BinaryView),
        _ => false,
    }
}

fn no_fit(field: &Field, found: &DataType) -> Error {
    Error::schema("a column's type doesn't fit the table's")
        .with("column", field.name())
        .with("type", found)
        .with("type in the table", field.data_type())
        .remedy("cast the column before the sink")
}

fn find<'a>(schema: &'a Schema, name: &str) -> Option<(usize, &'a Field)> {
    let same = |field: &Field| field.name().to_lowercase() == name.to_lowercase();
    schema.fields().iter().enumerate().map(|(i, f)| (i, f.as_ref())).find(|(_, field)| same(field))
}

/// Which rows can't be written, each for the first reason that was found.
#[derive(Default)]
struct Misfits {
    found: Vec<(Error, BooleanArray)>,
}

impl Misfits {
    fn add(&mut self, why: Error, rows: BooleanArray) {
        if rows.true_count() > 0 {
            self.found.push((why, rows));
        }
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
                parts.push((why, pick(rows, numbers)?));
            }
        }
        Ok(parts)
    }
}
