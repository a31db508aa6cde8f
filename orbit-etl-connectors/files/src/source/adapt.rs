//! From the columns of one file to the columns of the stream: by name, in the stream's order, with
//! partition values, and NULL for what a file doesn't have.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion_common::ScalarValue;
use orbit_etl_core::{Error, ErrorKind, Result};

use super::column::column;
use super::list::FileEntry;
use super::number::Rules;
use super::{Extra, Missing, Resolved};
use crate::schema::widens;

/// How the batches of one file become batches of the stream.
#[derive(Debug, Clone)]
pub(crate) struct Adapt {
    schema: SchemaRef,
    slots: Vec<Slot>,
    /// The columns to read from the file, as indices into its schema, ascending.
    pub(crate) read: Vec<usize>,
    file: String,
}

#[derive(Debug, Clone)]
enum Slot {
    /// A column of the batches that are read, and whether its type has to be changed.
    Read(usize, bool),
    Null,
    Constant(ScalarValue),
}

impl Adapt {
    /// For a file with these columns (without types, `columns[i].1` is `None`: it is read as the
    /// stream says).
    pub(crate) fn new(
        resolved: &Resolved,
        projection: Option<&[String]>,
        columns: &[(String, Option<DataType>)],
        file: &FileEntry,
    ) -> Result<Self> {
        let is_partition = |name: &str| file.partitions.iter().any(|(column, _)| column == name);
        if resolved.extra == Extra::Error
            && let Some((extra, _)) = columns
                .iter()
                .find(|(n, _)| resolved.schema.column_with_name(n).is_none() && !is_partition(n))
        {
            return Err(Error::schema("the file has a column that is not in the schema")
                .with("file", &file.name)
                .with("column", extra)
                .remedy("add it to `schema`, or set `extra: ignore`"));
        }
        let fields: Vec<Arc<Field>> = match projection {
            None => resolved.schema.fields().iter().cloned().collect(),
            Some(names) => names
                .iter()
                .map(|name| {
                    resolved
                        .schema
                        .field_with_name(name)
                        .map(|f| Arc::new(f.clone()))
                        .map_err(|_| Error::schema("there is no such column").with("column", name))
                })
                .collect::<Result<_>>()?,
        };
        let mut read: Vec<usize> = fields
            .iter()
            .filter(|f| !is_partition(f.name()))
            .filter_map(|f| columns.iter().position(|(name, _)| name == f.name()))
            .collect();
        read.sort_unstable();
        read.dedup();
        let slots = fields
            .iter()
            .map(|field| Self::slot(resolved, field, columns, &read, file))
            .collect::<Result<_>>()?;
        Ok(Self { schema: Arc::new(Schema::new(fields)), slots, read, file: file.name.clone() })
    }

    fn slot(
        resolved: &Resolved,
        field: &Field,
        columns: &[(String, Option<DataType>)],
        read: &[usize],
        file: &FileEntry,
    ) -> Result<Slot> {
        let name = field.name();
        if let Some((_, value)) = file.partitions.iter().find(|(column, _)| column == name) {
            return partition_value(field, value.as_deref(), file).map(Slot::Constant);
        }
        if let Some(index) = columns.iter().position(|(column, _)| column == name) {
            let place = read.iter().position(|i| *i == index).unwrap_or(0);
            return match &columns[index].1 {
                None => Ok(Slot::Read(place, false)),
                Some(found) if found == field.data_type() => Ok(Slot::Read(place, false)),
                Some(found) if widens(found, field.data_type()) => Ok(Slot::Read(place, true)),
                Some(found) => Err(Error::schema(format!(
                    "a column has type {found} where {} is expected",
                    field.data_type()
                ))
                .with("file", &file.name)
                .with("other file", &resolved.reference)
                .with("column", name)
                .remedy("give `schema` with a type that both fit, or read the files as two sources")),
            };
        }
        if resolved.missing == Missing::Error || !field.is_nullable() {
            let remedy = if field.is_nullable() { "set `missing: null`" } else { "let the column be NULL" };
            return Err(Error::schema("the file lacks a column of the schema")
                .with("file", &file.name)
                .with("column", name)
                .remedy(remedy));
        }
        Ok(Slot::Null)
    }

    /// The same, where every column of the file is read whether it is needed or not.
    pub(crate) fn reading_all(mut self, columns: &[(String, Option<DataType>)], file: &FileEntry) -> Self {
        let is_partition = |name: &str| file.partitions.iter().any(|(column, _)| column == name);
        let all: Vec<usize> = (0..columns.len()).filter(|i| !is_partition(&columns[*i].0)).collect();
        for slot in &mut self.slots {
            if let Slot::Read(at, _) = slot {
                *at = all.iter().position(|i| *i == self.read[*at]).unwrap_or(0);
            }
        }
        self.read = all;
        self
    }

    /// The stream's columns for a batch that holds the columns of `read`.
    pub(crate) fn apply(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let fail = |e: arrow::error::ArrowError| {
            // Arrow's text may quote a value.
            drop(e);
            Error::data("a batch doesn't fit the schema").with("file", &self.file)
        };
        let columns = self
            .slots
            .iter()
            .zip(self.schema.fields())
            .map(|(slot, field)| match slot {
                Slot::Read(at, false) => Ok(Arc::clone(batch.column(*at))),
                Slot::Read(at, true) => {
                    let strict = CastOptions { safe: false, ..CastOptions::default() };
                    cast_with_options(batch.column(*at), field.data_type(), &strict).map_err(|_| {
                        Error::data(format!("a value doesn't fit into {}", field.data_type()))
                            .with("file", &self.file)
                            .with("column", field.name())
                    })
                }
                Slot::Null => Ok(new_null_array(field.data_type(), rows)),
                Slot::Constant(value) => value
                    .to_array_of_size(rows)
                    .map_err(|e| Error::internal("can't repeat a partition value").caused_by(e)),
            })
            .collect::<Result<Vec<ArrayRef>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options).map_err(fail)
    }

    /// The values that hold for every row of the file.
    pub(crate) fn constants(resolved: &Resolved, file: &FileEntry) -> Result<Vec<(String, ScalarValue)>> {
        file.partitions
            .iter()
            .filter_map(|(column, value)| {
                let field = resolved.schema.field_with_name(column).ok()?;
                Some(partition_value(field, value.as_deref(), file).map(|v| (column.clone(), v)))
            })
            .collect()
    }
}

/// A partition value in its column's type.
fn partition_value(field: &Field, value: Option<&str>, file: &FileEntry) -> Result<ScalarValue> {
    let fail = || {
        Error::new(ErrorKind::Data, format!("a partition value is not a valid {}", field.data_type()))
            .with("file", &file.name)
            .with("column", field.name())
            .remedy("rename the directory, or give the column type `text` in `schema`")
    };
    let mut column = column(field.data_type(), Rules::GIVEN).ok_or_else(fail)?;
    match value {
        Some(value) if !column.text(value) => return Err(fail()),
        Some(_) => {}
        None if !field.is_nullable() => return Err(fail()),
        None => column.null(),
    }
    let typed = column.finish().map_err(|_| fail())?;
    ScalarValue::try_from_array(&typed, 0).map_err(|_| fail())
}
