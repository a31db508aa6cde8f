//! One row as one line.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Builder, RecordBatch, RecordBatchOptions, StringBuilder};
use arrow::datatypes::{DataType, Int64Type, SchemaRef};
use orbit_etl_core::{Error, Result};

/// Appends the rows of a batch.
pub(crate) fn write(batch: &RecordBatch, out: &mut String) {
    for row in 0..batch.num_rows() {
        let mut gap = "";
        for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            if column.is_null(row) {
                continue;
            }
            out.push_str(gap);
            gap = " ";
            out.push_str(field.name());
            out.push('=');
            match column.data_type() {
                DataType::Int64 => out.push_str(&column.as_primitive::<Int64Type>().value(row).to_string()),
                // A JSON string: quoted, and always on one line.
                _ => out.push_str(&serde_json::Value::from(column.as_string::<i32>().value(row)).to_string()),
            }
        }
        out.push('\n');
    }
}

/// Reads lines as rows with just these columns.
pub(crate) fn read<'a>(lines: impl Iterator<Item = &'a str>, schema: &SchemaRef) -> Result<RecordBatch> {
    let mut ints: Vec<_> = schema.fields().iter().map(|_| Int64Builder::new()).collect();
    let mut texts: Vec<_> = schema.fields().iter().map(|_| StringBuilder::new()).collect();
    let mut rows = 0;
    for line in lines {
        rows += 1;
        let pairs = parse(line).ok_or_else(|| Error::data("a line isn't made of key=value pairs"))?;
        for (i, field) in schema.fields().iter().enumerate() {
            let value = pairs.iter().find(|(key, _)| key == field.name()).map(|(_, value)| value);
            if *field.data_type() == DataType::Int64 {
                let number = value.map(|v| v.parse::<i64>()).transpose();
                let number =
                    number.map_err(|_| Error::data("a value isn't an integer").with("column", field.name()));
                ints[i].append_option(number?);
            } else {
                texts[i].append_option(value);
            }
        }
    }
    let columns = schema.fields().iter().enumerate().map(|(i, field)| match field.data_type() {
        DataType::Int64 => Arc::new(ints[i].finish()) as ArrayRef,
        _ => Arc::new(texts[i].finish()),
    });
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), columns.collect(), &options)
        .map_err(|e| Error::schema("rows don't fit the schema").caused_by(e))
}

fn parse(mut line: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    while !line.is_empty() {
        let (key, rest) = line.split_once('=')?;
        let (value, rest) = if rest.starts_with('"') {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
            let value = values.next()?.ok()?;
            (value, &rest[values.byte_offset()..])
        } else {
            let end = rest.find(' ').unwrap_or(rest.len());
            (rest[..end].to_owned(), &rest[end..])
        };
        pairs.push((key.to_owned(), value));
        line = rest.strip_prefix(' ').unwrap_or(rest);
    }
    Some(pairs)
}
