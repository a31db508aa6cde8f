//! Rows in the form that a table has them.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, PrimitiveArray, RecordBatch, RecordBatchOptions, make_array,
};
use arrow::compute::{CastOptions, and, cast_with_options, is_not_null, is_null, or};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, SchemaRef, Time64NanosecondType, TimeUnit, TimestampNanosecondType,
};
use arrow::error::ArrowError;
use orbit_etl_core::{Error, Result};

/// A column as the table has it, and for which rows that can't be.
///
/// # Errors
/// `Data` where a nested column holds a value that can't be stored: its rows can't be told apart.
pub(crate) fn fit(column: &ArrayRef, field: &Field) -> Result<(ArrayRef, Option<BooleanArray>)> {
    let fail = |_: ArrowError| {
        Error::data("a column holds a value that the table's type can't")
            .with("column", field.name())
            .with("type", column.data_type())
            .with("type in the table", field.data_type())
            .remedy("cast or filter it before the sink")
    };
    if column.data_type() == field.data_type() {
        return Ok((Arc::clone(column), None));
    }
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let column = &match column.data_type() {
        DataType::Dictionary(_, values) => cast_with_options(column, values, &strict).map_err(fail)?,
        DataType::RunEndEncoded(_, values) => {
            cast_with_options(column, values.data_type(), &strict).map_err(fail)?
        }
        _ => Arc::clone(column),
    };
    if column.data_type().is_nested() {
        if cuts_nanoseconds(column) {
            return Err(fail(ArrowError::CastError(String::new())));
        }
        return Ok((cast_with_options(column, field.data_type(), &strict).map_err(fail)?, None));
    }
    let lenient = CastOptions { safe: true, ..CastOptions::default() };
    let stored = cast_with_options(column, field.data_type(), &lenient).map_err(fail)?;
    let mut misfit = None;
    if stored.null_count() > column.null_count() {
        let lost = and(&is_null(&stored).map_err(fail)?, &is_not_null(column).map_err(fail)?);
        misfit = Some(lost.map_err(fail)?);
    }
    if let Some(cut) = cut_rows(column) {
        misfit = Some(match misfit {
            Some(lost) => or(&lost, &cut).map_err(fail)?,
            None => cut,
        });
    }
    Ok((stored, misfit))
}

/// Columns of one schema as a batch of another that differs in names of parts and what may be NULL.
pub(crate) fn batch(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|e| Error::schema("rows don't have the columns that were announced").caused_by(e))
}

/// The rows of a time that would lose nanoseconds, if there are any.
fn cut_rows(column: &ArrayRef) -> Option<BooleanArray> {
    match column.data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, _) => cut(column.as_primitive::<TimestampNanosecondType>()),
        DataType::Time64(TimeUnit::Nanosecond) => cut(column.as_primitive::<Time64NanosecondType>()),
        _ => None,
    }
}

fn cut<T: ArrowPrimitiveType<Native = i64>>(times: &PrimitiveArray<T>) -> Option<BooleanArray> {
    let cut: BooleanArray =
        times.iter().map(|time| Some(time.is_some_and(|time| time % 1_000 != 0))).collect();
    (cut.true_count() > 0).then_some(cut)
}

fn cuts_nanoseconds(column: &ArrayRef) -> bool {
    if !column.data_type().is_nested() {
        return cut_rows(column).is_some();
    }
    column.to_data().child_data().iter().any(|child| cuts_nanoseconds(&make_array(child.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, TimestampNanosecondArray, TimestampSecondArray, UInt64Array};

    #[test]
    fn what_can_not_be_stored_is_told_row_by_row() {
        let micros = Field::new("t", DataType::Timestamp(TimeUnit::Microsecond, None), true);
        let nanos: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![Some(1_000), Some(1_001), None]));
        let (stored, misfit) = fit(&nanos, &micros).unwrap();
        assert_eq!(stored.null_count(), 1);
        assert_eq!(misfit.unwrap(), BooleanArray::from(vec![false, true, false]));
        let seconds: ArrayRef = Arc::new(TimestampSecondArray::from(vec![Some(i64::MAX), Some(1), None]));
        let (_, misfit) = fit(&seconds, &micros).unwrap();
        assert_eq!(misfit.unwrap(), BooleanArray::from(vec![true, false, false]));
        let large: ArrayRef = Arc::new(UInt64Array::from(vec![u64::MAX]));
        let (stored, misfit) = fit(&large, &Field::new("n", DataType::Decimal128(20, 0), true)).unwrap();
        assert!(misfit.is_none());
        assert_eq!(stored.as_primitive::<arrow::datatypes::Decimal128Type>().value(0), i128::from(u64::MAX));
        let wide: ArrayRef = Arc::new(Int64Array::from(vec![5_000_000_000]));
        let (_, misfit) = fit(&wide, &Field::new("n", DataType::Int32, true)).unwrap();
        assert_eq!(misfit.unwrap().true_count(), 1);
    }
}
