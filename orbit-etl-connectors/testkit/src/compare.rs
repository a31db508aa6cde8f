//! Comparing rows without regard to their order.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, FieldRef};
use arrow::row::{RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// How many differing rows a diff shows.
const SHOWN: usize = 10;

/// Fails if two sets of batches don't hold the same rows, as often, in whatever order and however
/// cut. Floats are compared by their bits, types without nullability and metadata.
///
/// # Panics
/// They differ; the message shows the first differences.
#[allow(clippy::panic)] // It is an assertion.
pub fn assert_batches_eq(got: &[RecordBatch], expected: &[RecordBatch]) {
    if let Some(difference) = diff(got, expected) {
        panic!("{difference}");
    }
}

/// The difference between two sets of batches in readable form, or `None` if there is none; see
/// [`assert_batches_eq`].
pub fn diff(got: &[RecordBatch], expected: &[RecordBatch]) -> Option<String> {
    if let (Some(a), Some(b)) = (got.first(), expected.first())
        && let Some(difference) = columns_differ(a, b)
    {
        return Some(difference);
    }
    if let Some(odd) = got.windows(2).find_map(|pair| columns_differ(&pair[1], &pair[0])) {
        return Some(format!("the batches differ among themselves: {odd}"));
    }
    let (got, expected) = match (count(got), count(expected)) {
        (Ok(got), Ok(expected)) => (got, expected),
        (Err(error), _) | (_, Err(error)) => return Some(error),
    };
    let missing = surplus(&expected, &got);
    let extra = surplus(&got, &expected);
    if missing.is_empty() && extra.is_empty() {
        return None;
    }
    let mut text = format!("{} row(s) missing, {} too many", total(&missing), total(&extra));
    for (sign, rows) in [('-', &missing), ('+', &extra)] {
        for (shown, times) in rows.iter().take(SHOWN) {
            let _ = write!(text, "\n  {sign} {shown}");
            if *times > 1 {
                let _ = write!(text, "  ({times} times)");
            }
        }
        if rows.len() > SHOWN {
            let _ = write!(text, "\n  {sign} … and {} others", rows.len() - SHOWN);
        }
    }
    Some(text)
}

/// A type without nullability, metadata and the names of list items and map entries, which formats
/// choose as they like.
pub(crate) fn bare(data_type: &DataType) -> DataType {
    let child = |field: &FieldRef, name: &str| -> FieldRef {
        Arc::new(Field::new(name, bare(field.data_type()), true))
    };
    match data_type {
        DataType::List(f) => DataType::List(child(f, "item")),
        DataType::LargeList(f) => DataType::LargeList(child(f, "item")),
        DataType::FixedSizeList(f, n) => DataType::FixedSizeList(child(f, "item"), *n),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|f| child(f, f.name())).collect()),
        DataType::Map(f, sorted) => {
            let entries = match f.data_type() {
                DataType::Struct(kv) => {
                    let names = ["key", "value"];
                    DataType::Struct(kv.iter().zip(names).map(|(f, name)| child(f, name)).collect())
                }
                other => bare(other),
            };
            DataType::Map(Arc::new(Field::new("entries", entries, false)), *sorted)
        }
        DataType::Dictionary(k, v) => DataType::Dictionary(k.clone(), Box::new(bare(v))),
        other => other.clone(),
    }
}

fn columns_differ(got: &RecordBatch, expected: &RecordBatch) -> Option<String> {
    let columns = |batch: &RecordBatch| {
        let fields = batch.schema_ref().fields().iter();
        fields.map(|f| (f.name().clone(), bare(f.data_type()))).collect::<Vec<_>>()
    };
    let (got, expected) = (columns(got), columns(expected));
    (got != expected).then(|| format!("columns are {got:?} instead of {expected:?}"))
}

type Counts = BTreeMap<Vec<u8>, (String, usize)>;

fn count(batches: &[RecordBatch]) -> Result<Counts, String> {
    let mut counts = Counts::new();
    let options = FormatOptions::default().with_null("NULL");
    for batch in batches {
        let fields = batch.columns().iter().map(|c| SortField::new(c.data_type().clone())).collect();
        let rows = RowConverter::new(fields)
            .and_then(|converter| converter.convert_columns(batch.columns()))
            .map_err(|e| format!("rows can't be compared: {e}"))?;
        let columns = batch.columns().iter();
        let cells = columns.map(|c| ArrayFormatter::try_new(c, &options)).collect::<Result<Vec<_>, _>>();
        for i in 0..batch.num_rows() {
            let key = if batch.num_columns() == 0 { Vec::new() } else { rows.row(i).as_ref().to_vec() };
            let show = || match &cells {
                Ok(cells) => {
                    let cells = cells
                        .iter()
                        .map(|c| c.value(i).try_to_string().unwrap_or_else(|_| "(can't be shown)".into()));
                    cells.collect::<Vec<_>>().join(" | ")
                }
                Err(_) => "(can't be shown)".into(),
            };
            counts.entry(key).or_insert_with(|| (show(), 0)).1 += 1;
        }
    }
    Ok(counts)
}

/// What `a` has more of than `b`.
fn surplus(a: &Counts, b: &Counts) -> Vec<(String, usize)> {
    let more = |(key, (shown, n)): (&Vec<u8>, &(String, usize))| {
        let other = b.get(key).map_or(0, |(_, n)| *n);
        (*n > other).then(|| (shown.clone(), n - other))
    };
    a.iter().filter_map(more).collect()
}

fn total(rows: &[(String, usize)]) -> usize {
    rows.iter().map(|(_, n)| n).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray};

    fn batch(column: ArrayRef) -> RecordBatch {
        RecordBatch::try_from_iter([("c", column)]).unwrap()
    }

    fn ints(values: &[i64]) -> RecordBatch {
        batch(Arc::new(Int64Array::from(values.to_vec())))
    }

    #[test]
    fn order_and_cuts_do_not_matter_but_counts_do() {
        assert_batches_eq(&[ints(&[3, 1]), ints(&[]), ints(&[2, 1])], &[ints(&[1, 1, 2, 3])]);
        let text = diff(&[ints(&[1, 2, 2])], &[ints(&[1, 1, 2])]).unwrap();
        assert_eq!(text, "1 row(s) missing, 1 too many\n  - 1\n  + 2");
        assert!(diff(&[], &[ints(&[1])]).is_some());
    }

    #[test]
    fn bits_nulls_and_types_matter() {
        let floats = |v: &[f64]| batch(Arc::new(Float64Array::from(v.to_vec())));
        assert!(diff(&[floats(&[-0.0])], &[floats(&[0.0])]).is_some());
        assert_batches_eq(&[floats(&[f64::NAN])], &[floats(&[f64::NAN])]);
        let text = |v: Option<&str>| batch(Arc::new(StringArray::from(vec![v])));
        assert!(diff(&[text(Some(""))], &[text(None)]).is_some());
        assert!(diff(&[ints(&[1])], &[floats(&[1.0])]).unwrap().starts_with("columns are"));
    }
}
