//! How the rows of one input stream become files.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use orbit_etl_core::{Error, Result, ResultExt, StreamInfo};

use super::encode::{EncodeOptions, file_columns, file_schema};
use super::layout::Template;
use super::partition::{Partitioner, Parts};
use crate::format::Format;

/// One stream with its folder, its files' schema and its partitions.
#[derive(Debug)]
pub(crate) struct StreamPlan {
    name: String,
    folder: String,
    format: Format,
    input: SchemaRef,
    files: SchemaRef,
    kept: Vec<usize>,
    partitioner: Option<Partitioner>,
}

impl StreamPlan {
    pub(crate) fn new(
        stream: &StreamInfo,
        template: &Template,
        partition_by: &[String],
        options: &EncodeOptions,
    ) -> Result<Self> {
        let folder = template.folder(&stream.name);
        Self::build(&stream.name, folder, &stream.schema, partition_by, options)
    }

    /// The same stream with another schema.
    pub(crate) fn with_schema(
        &self,
        schema: &SchemaRef,
        partition_by: &[String],
        options: &EncodeOptions,
    ) -> Result<Self> {
        Self::build(&self.name, self.folder.clone(), schema, partition_by, options)
    }

    fn build(
        name: &str,
        folder: String,
        input: &SchemaRef,
        partition_by: &[String],
        options: &EncodeOptions,
    ) -> Result<Self> {
        if input.fields().is_empty() {
            return Err(Error::schema("a stream without columns can't be written").with("stream", name));
        }
        let partitioner = Partitioner::new(input, partition_by).with("stream", name)?;
        let kept: Vec<usize> = (0..input.fields().len())
            .filter(|&column| partitioner.as_ref().is_none_or(|p| !p.takes(column)))
            .collect();
        let fields: Vec<_> = kept.iter().map(|&column| Arc::clone(&input.fields()[column])).collect();
        let schema = Schema::new_with_metadata(fields, input.metadata().clone());
        let files = file_schema(options, &schema).with("stream", name)?;
        Ok(Self {
            name: name.to_owned(),
            folder,
            format: options.format,
            input: Arc::clone(input),
            files,
            kept,
            partitioner,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The schema of the files.
    pub(crate) fn files(&self) -> &SchemaRef {
        &self.files
    }

    /// The stream's rows by folder, whose paths have at most `longest` bytes.
    pub(crate) fn split(&self, batch: &RecordBatch, longest: usize) -> Result<Parts> {
        let same_names = batch.num_columns() == self.input.fields().len()
            && (Arc::ptr_eq(batch.schema_ref(), &self.input)
                || batch
                    .schema_ref()
                    .fields()
                    .iter()
                    .zip(self.input.fields())
                    .all(|(a, b)| a.name() == b.name()));
        if !same_names {
            return Err(Error::schema("rows don't have the columns that the stream announced")
                .with("stream", &self.name));
        }
        let columns = self.kept.iter().map(|&column| Arc::clone(batch.column(column))).collect();
        let rest =
            file_columns(self.format, &self.files, columns, batch.num_rows()).with("stream", &self.name)?;
        let Some(partitioner) = &self.partitioner else {
            return Ok(Parts { fit: vec![(self.folder.clone(), rest)], misfit: Vec::new() });
        };
        let longest = longest.saturating_sub(self.folder.len());
        let mut parts = partitioner.split(batch, &rest, longest).with("stream", &self.name)?;
        if !self.folder.is_empty() {
            for (folder, _) in &mut parts.fit {
                folder.insert_str(0, &self.folder);
            }
        }
        Ok(parts)
    }
}
