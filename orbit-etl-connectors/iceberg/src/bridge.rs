//! Record batches between this project's Arrow major and the one of the `iceberg` crate, without a copy.
//!
//! # Why this is sound
//!
//! Both majors export and import the Arrow C Data Interface, whose two structs have a layout that the
//! Arrow specification fixes and that both declare as `repr(C)`. An exported struct owns its buffers
//! through a release callback. `from_raw` moves it out and leaves an empty struct without callback
//! behind, so that it is released exactly once, by the importing side, when the last array lets go of
//! it. The callbacks are functions of this very binary, and arrays are `Send`. The sizes and alignments
//! are compared below when the crate is compiled.
#![allow(unsafe_code)]

use std::mem::{align_of, size_of};
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, RecordBatchOptions, make_array};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ffi as ffi59;
use arrow_array58 as array58;
use arrow_array58::Array as _;
use arrow_array58::ffi as ffi58;
use arrow_schema58 as schema58;
use orbit_etl_core::{Error, Result};

const _: () = {
    assert!(size_of::<ffi59::FFI_ArrowArray>() == size_of::<ffi58::FFI_ArrowArray>());
    assert!(align_of::<ffi59::FFI_ArrowArray>() == align_of::<ffi58::FFI_ArrowArray>());
    assert!(size_of::<ffi59::FFI_ArrowSchema>() == size_of::<ffi58::FFI_ArrowSchema>());
    assert!(align_of::<ffi59::FFI_ArrowSchema>() == align_of::<ffi58::FFI_ArrowSchema>());
};

/// The way of batches of one schema to the `iceberg` crate. What a schema costs is paid once.
#[derive(Debug)]
pub(crate) struct To58 {
    from: SchemaRef,
    to: schema58::SchemaRef,
}

impl To58 {
    pub(crate) fn new(from: &SchemaRef) -> Result<Self> {
        let to = schema58::Schema::try_from(&export_schema(from)?).map_err(|e| failed("schema", e))?;
        Ok(Self { from: Arc::clone(from), to: Arc::new(to) })
    }

    /// Each column crosses by itself, so that one that is dropped lets its memory go.
    pub(crate) fn batch(&self, batch: &RecordBatch) -> Result<array58::RecordBatch> {
        if !Arc::ptr_eq(&self.from, batch.schema_ref()) && self.from != *batch.schema_ref() {
            return Err(Error::internal("a batch has another schema than those before"));
        }
        let columns = batch.columns().iter().zip(self.to.fields()).map(|(column, field)| {
            let mut array = ffi59::FFI_ArrowArray::new(&column.to_data());
            let array: *mut ffi59::FFI_ArrowArray = &raw mut array;
            // SAFETY: same layout, checked above; valid and ours, left empty.
            let array = unsafe { ffi58::FFI_ArrowArray::from_raw(array.cast()) };
            let data_type = field.data_type().clone();
            // SAFETY: the array was exported just now; its type crossed with the schema.
            let data = unsafe { ffi58::from_ffi_and_data_type(array, data_type) };
            data.map(array58::make_array).map_err(|e| failed("batch", e))
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = array58::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        array58::RecordBatch::try_new_with_options(Arc::clone(&self.to), columns, &options)
            .map_err(|e| failed("batch", e))
    }
}

/// The way of batches of one schema from the `iceberg` crate.
#[derive(Debug)]
pub(crate) struct To59 {
    from: schema58::SchemaRef,
    to: SchemaRef,
}

impl To59 {
    pub(crate) fn new(from: &schema58::SchemaRef) -> Result<Self> {
        Ok(Self { from: Arc::clone(from), to: schema_to_59(from)? })
    }

    /// Whether a batch has this schema.
    pub(crate) fn takes(&self, batch: &array58::RecordBatch) -> bool {
        Arc::ptr_eq(&self.from, batch.schema_ref()) || self.from == *batch.schema_ref()
    }

    /// Each column crosses by itself, so that one that is dropped lets its memory go.
    pub(crate) fn batch(&self, batch: &array58::RecordBatch) -> Result<RecordBatch> {
        if !self.takes(batch) {
            return Err(Error::internal("a batch has another schema than those before"));
        }
        let columns = batch.columns().iter().zip(self.to.fields()).map(|(column, field)| {
            let mut array = ffi58::FFI_ArrowArray::new(&column.to_data());
            let array: *mut ffi58::FFI_ArrowArray = &raw mut array;
            // SAFETY: same layout, checked above; valid and ours, left empty.
            let array = unsafe { ffi59::FFI_ArrowArray::from_raw(array.cast()) };
            let data_type = field.data_type().clone();
            // SAFETY: the array was exported just now; its type crossed with the schema.
            let data = unsafe { ffi59::from_ffi_and_data_type(array, data_type) };
            data.map(make_array).map_err(|e| failed("batch", e))
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&self.to), columns, &options)
            .map_err(|e| failed("batch", e))
    }
}

/// A schema from the `iceberg` crate.
pub(crate) fn schema_to_59(schema: &schema58::Schema) -> Result<SchemaRef> {
    Ok(Arc::new(Schema::try_from(&import_schema(schema)?).map_err(|e| failed("schema", e))?))
}

fn export_schema(schema: &Schema) -> Result<ffi58::FFI_ArrowSchema> {
    let mut out = ffi59::FFI_ArrowSchema::try_from(schema).map_err(|e| failed("schema", e))?;
    let out: *mut ffi59::FFI_ArrowSchema = &raw mut out;
    // SAFETY: same layout, checked above; valid and ours, left empty.
    Ok(unsafe { ffi58::FFI_ArrowSchema::from_raw(out.cast()) })
}

fn import_schema(schema: &schema58::Schema) -> Result<ffi59::FFI_ArrowSchema> {
    let mut out = ffi58::FFI_ArrowSchema::try_from(schema).map_err(|e| failed("schema", e))?;
    let out: *mut ffi58::FFI_ArrowSchema = &raw mut out;
    // SAFETY: same layout, checked above; valid and ours, left empty.
    Ok(unsafe { ffi59::FFI_ArrowSchema::from_raw(out.cast()) })
}

fn failed(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::schema(format!("a {what} can't cross between two Arrow versions")).caused_by(error)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::array::{AsArray, Int64Array, StringViewArray};
    use arrow::datatypes::{DataType, Field, Int64Type};
    use orbit_etl_testkit::data;
    use proptest::prelude::*;

    use super::*;

    fn both_ways(batch: &RecordBatch) -> RecordBatch {
        let there = To58::new(batch.schema_ref()).unwrap().batch(batch).unwrap();
        To59::new(there.schema_ref()).unwrap().batch(&there).unwrap()
    }

    #[test]
    fn every_type_comes_back() {
        for column in data::every_type() {
            let name = column.data_type().clone();
            let batch = RecordBatch::try_from_iter([("a", column)]).unwrap();
            assert_eq!(both_ways(&batch), batch, "{name}");
            let part = batch.slice(batch.num_rows() / 3, batch.num_rows() / 2);
            assert_eq!(both_ways(&part), part, "{name}, sliced");
            assert_eq!(both_ways(&batch.slice(0, 0)), batch.slice(0, 0), "{name}, empty");
        }
    }

    #[test]
    fn buffers_are_not_copied() {
        let numbers = Int64Array::from_iter_values(0..1_000);
        let texts =
            StringViewArray::from_iter_values((0..1_000).map(|i| format!("a text longer than twelve {i}")));
        let at = numbers.values().as_ptr();
        let text_at = texts.data_buffers()[0].as_ptr();
        let batch =
            RecordBatch::try_from_iter([("n", Arc::new(numbers) as _), ("t", Arc::new(texts) as _)]).unwrap();
        let back = both_ways(&batch.slice(100, 50));
        assert_eq!(back.column(0).as_primitive::<Int64Type>().values().as_ptr(), at.wrapping_add(100));
        assert_eq!(back.column(1).as_string_view().data_buffers()[0].as_ptr(), text_at);
        let other = batch.project(&[0]).unwrap();
        assert!(To58::new(batch.schema_ref()).unwrap().batch(&other).is_err());
    }

    #[test]
    fn metadata_and_rows_without_columns_are_kept() {
        let meta = |k: &str| HashMap::from([(k.to_owned(), "v".to_owned())]);
        let field = Field::new("a", DataType::Int64, false).with_metadata(meta("PARQUET:field_id"));
        let schema = Arc::new(Schema::new(vec![field]).with_metadata(meta("of the schema")));
        let batch = RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(vec![1]))]).unwrap();
        assert_eq!(both_ways(&batch).schema(), batch.schema());

        let options = RecordBatchOptions::new().with_row_count(Some(7));
        let none = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).unwrap();
        assert_eq!(both_ways(&none).num_rows(), 7);
    }

    proptest! {
        #[test]
        fn any_slice_comes_back(values in proptest::collection::vec(any::<Option<i64>>(), 0..200), cut in 0..200_usize) {
            let batch = RecordBatch::try_from_iter([("a", Arc::new(Int64Array::from(values)) as _)]).unwrap();
            let start = cut.min(batch.num_rows());
            let part = batch.slice(start, (batch.num_rows() - start) / 2);
            prop_assert_eq!(both_ways(&part), part);
        }
    }
}
