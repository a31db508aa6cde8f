//! From the rows that a source yields to those that it has announced.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Schema, SchemaRef};

use crate::error::{Error, Result};

/// How rows of one schema become rows of the expected one: found out once, with the first of them.
#[derive(Debug)]
pub(crate) struct Met {
    schema: SchemaRef,
    /// Where the expected columns stand; `None` if they are all there is, in order.
    columns: Option<Vec<usize>>,
}

impl Met {
    /// Compares the schemas.
    ///
    /// # Errors
    /// A column is missing or has another type.
    pub(crate) fn new(schema: SchemaRef, expected: &Schema) -> Result<Self> {
        if schema.fields() == expected.fields() {
            return Ok(Self { schema, columns: None });
        }
        let columns = Some(positions(&schema, expected)?);
        Ok(Self { schema, columns })
    }

    /// Whether it was found out for this very schema.
    pub(crate) fn is_for(&self, schema: &SchemaRef) -> bool {
        Arc::ptr_eq(&self.schema, schema)
    }

    /// The expected columns of a batch.
    ///
    /// # Errors
    /// A column has NULLs that the expected schema rules out.
    pub(crate) fn narrow(&self, batch: RecordBatch, expected: &SchemaRef) -> Result<RecordBatch> {
        let Some(columns) = &self.columns else { return Ok(batch) };
        let columns = columns.iter().map(|i| Arc::clone(batch.column(*i))).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(expected), columns, &options)
            .map_err(|e| Error::internal("the source's rows don't have the announced schema").caused_by(e))
    }
}

fn positions(schema: &Schema, expected: &Schema) -> Result<Vec<usize>> {
    let mut positions = Vec::with_capacity(expected.fields().len());
    for field in expected.fields() {
        match schema.index_of(field.name()) {
            Ok(i) if schema.field(i).data_type() == field.data_type() => positions.push(i),
            Ok(i) => {
                return Err(Error::schema("the source's rows don't have the announced type")
                    .with("column", field.name())
                    .with("expected", field.data_type())
                    .with("found", schema.field(i).data_type())
                    .remedy("a source must tell of a changed schema before it sends such rows"));
            }
            Err(_) => {
                return Err(Error::schema("the source's rows lack an announced column")
                    .with("column", field.name())
                    .remedy("a source must tell of a changed schema before it sends such rows"));
            }
        }
    }
    Ok(positions)
}
