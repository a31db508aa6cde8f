//! How much memory a batch keeps alive, and how to make it keep less.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, AsArray, BinaryViewArray, RecordBatch, StringViewArray, UInt32Array,
};
use arrow::compute::take;
use arrow::datatypes::{ArrowNativeType, DataType};

use crate::error::{Error, Result};

/// The bytes of buffers that a batch keeps alive. A buffer that several columns or slices share is
/// counted once.
pub fn retained_bytes(batch: &RecordBatch) -> usize {
    let mut seen = HashSet::new();
    batch.columns().iter().map(|c| retained(&c.to_data(), &mut seen)).sum()
}

/// The bytes that the rows of a batch need, whatever they are a slice of. Dictionary values count
/// whole.
pub fn row_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(needed).sum()
}

/// About what [`row_bytes`] says, at the cost of a few nanoseconds a column: for accounting on hot
/// paths. Nested columns count with the buffers that they keep.
pub fn estimated_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(estimate).sum()
}

/// A batch that keeps at most about twice its own size alive: itself where that holds already,
/// otherwise a copy. To be called before a batch is buffered.
///
/// # Errors
/// [`Internal`](crate::ErrorKind::Internal) if arrow refuses the copy.
pub fn compact(batch: RecordBatch) -> Result<RecordBatch> {
    if retained_bytes(&batch) <= 2 * row_bytes(&batch) + 4_096 {
        return Ok(batch);
    }
    let every = UInt32Array::from_iter_values(0..u32::try_from(batch.num_rows()).unwrap_or(u32::MAX));
    let columns = batch.columns().iter().map(|column| copy(column, &every)).collect::<Result<Vec<_>>>()?;
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(batch.schema(), columns, &options)
        .map_err(|e| Error::internal("can't compact a batch").caused_by(e))
}

fn estimate(column: &ArrayRef) -> usize {
    let rows = column.len();
    match column.data_type() {
        DataType::Null => 0,
        DataType::Boolean => rows.div_ceil(8),
        DataType::Utf8 => {
            let offsets = column.as_string::<i32>().value_offsets();
            rows * 4 + (offsets[rows] - offsets[0]).as_usize()
        }
        DataType::Binary => {
            let offsets = column.as_binary::<i32>().value_offsets();
            rows * 4 + (offsets[rows] - offsets[0]).as_usize()
        }
        DataType::LargeUtf8 => {
            let offsets = column.as_string::<i64>().value_offsets();
            rows * 8 + (offsets[rows] - offsets[0]).as_usize()
        }
        DataType::LargeBinary => {
            let offsets = column.as_binary::<i64>().value_offsets();
            rows * 8 + (offsets[rows] - offsets[0]).as_usize()
        }
        DataType::FixedSizeBinary(width) => rows * usize::try_from(*width).unwrap_or(0),
        other => match other.primitive_width() {
            Some(width) => rows * width,
            None => column.get_array_memory_size(),
        },
    }
}

fn copy(column: &ArrayRef, every: &UInt32Array) -> Result<ArrayRef> {
    let column =
        take(column, every, None).map_err(|e| Error::internal("can't compact a column").caused_by(e))?;
    // Taking from a view array copies the views alone.
    Ok(match column.data_type() {
        DataType::Utf8View => match column.as_any().downcast_ref::<StringViewArray>() {
            Some(views) => Arc::new(views.gc()),
            None => column,
        },
        DataType::BinaryView => match column.as_any().downcast_ref::<BinaryViewArray>() {
            Some(views) => Arc::new(views.gc()),
            None => column,
        },
        _ => column,
    })
}

fn retained(data: &ArrayData, seen: &mut HashSet<usize>) -> usize {
    let mut bytes = 0;
    for buffer in data.buffers() {
        // The start of the allocation, not of the slice: slices of one buffer share it.
        let start = buffer.data_ptr().as_ptr() as usize;
        if seen.insert(start) {
            bytes += buffer.capacity();
        }
    }
    if let Some(nulls) = data.nulls()
        && seen.insert(nulls.buffer().data_ptr().as_ptr() as usize)
    {
        bytes += nulls.buffer().capacity();
    }
    bytes + data.child_data().iter().map(|child| retained(child, seen)).sum::<usize>()
}

fn needed(column: &ArrayRef) -> usize {
    let data = column.to_data();
    match column.data_type() {
        DataType::Utf8View | DataType::BinaryView => {
            let views = data.buffers()[0].typed_data::<u128>();
            let views = &views[data.offset()..data.offset() + data.len()];
            #[allow(clippy::cast_possible_truncation)] // The length stands in the low 32 bits.
            views.iter().map(|v| 16 + if *v as u32 > 12 { *v as u32 as usize } else { 0 }).sum()
        }
        _ => data.get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{Field, Schema};

    fn batch(column: ArrayRef) -> RecordBatch {
        let field = Field::new("c", column.data_type().clone(), true);
        RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![column]).unwrap()
    }

    #[test]
    fn a_shared_buffer_counts_once() {
        let ints: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1_000));
        let schema =
            Schema::new(vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Int64, true)]);
        let both =
            RecordBatch::try_new(Arc::new(schema), vec![ints.slice(0, 10), ints.slice(500, 10)]).unwrap();
        assert_eq!(retained_bytes(&both), 8_000);
        assert_eq!(row_bytes(&both), 160);
    }

    #[test]
    fn small_slices_of_large_batches_are_copied() {
        for column in [
            Arc::new(Int64Array::from_iter_values(0..100_000)) as ArrayRef,
            Arc::new(StringArray::from_iter_values((0..100_000).map(|i| i.to_string()))),
            Arc::new(StringViewArray::from_iter_values(
                (0..100_000).map(|i| format!("longer than twelve bytes {i}")),
            )),
        ] {
            let slice = batch(column.slice(77, 10));
            let small = compact(slice.clone()).unwrap();
            assert_eq!(small, slice);
            assert!(retained_bytes(&small) < 4_096, "{}", retained_bytes(&small));
            let whole = batch(column);
            assert_eq!(retained_bytes(&compact(whole.clone()).unwrap()), retained_bytes(&whole));
        }
    }
}
