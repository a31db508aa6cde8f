//! Which rows go into which file.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Int8Type, Int16Type, Int32Type, Int64Type, Schema,
    TimestampMicrosecondType,
};
use arrow::row::{RowConverter, SortField};
use chrono::{DateTime, Datelike, NaiveDate, TimeDelta};
use orbit_etl_core::{Error, Result};

/// The values of the partition columns, as the log has them.
pub(crate) type Values = BTreeMap<String, Option<String>>;

/// Cuts rows by the values of some of their columns.
#[derive(Debug)]
pub(crate) struct Partitioner {
    names: Vec<String>,
    columns: Vec<usize>,
    rows: RowConverter,
}

/// Rows of one partition, or why they can't be in one, with their numbers.
pub(crate) type Part = (Result<Values>, Vec<u32>);

impl Partitioner {
    /// By these columns of `schema`, which has a table's types.
    ///
    /// # Errors
    /// `Config` for a column that isn't there or comes twice, `Schema` for a type that has no text.
    pub(crate) fn new(schema: &Schema, names: &[String]) -> Result<Option<Self>> {
        if names.is_empty() {
            return Ok(None);
        }
        let mut columns = Vec::with_capacity(names.len());
        for name in names {
            let column = schema.index_of(name).map_err(|_| {
                let known: Vec<_> = schema.fields().iter().map(|f| f.name().as_str()).collect();
                Error::config("the column to partition by isn't there")
                    .with("column", name)
                    .remedy(format!("name one of these: {}", known.join(", ")))
            })?;
            if columns.contains(&column) {
                return Err(Error::config("a column is named twice in `partition_by`").with("column", name));
            }
            columns.push(column);
            let data_type = schema.field(column).data_type();
            if !has_text(data_type) {
                return Err(Error::schema("values of this type can't tell partitions apart")
                    .with("column", name)
                    .with("type", data_type)
                    .remedy("partition by another column, or by an expression of this one"));
            }
        }
        if columns.len() == schema.fields().len() {
            return Err(Error::config("all columns are partition columns, so none is left for the files")
                .remedy("leave a column out of `partition_by`"));
        }
        let fields = columns.iter().map(|&c| SortField::new(schema.field(c).data_type().clone())).collect();
        let rows = RowConverter::new(fields)
            .map_err(|e| Error::schema("these columns can't be partitioned by").caused_by(e))?;
        Ok(Some(Self { names: names.to_vec(), columns, rows }))
    }

    /// The row numbers of each partition, in the order in which these first appear.
    pub(crate) fn split(&self, batch: &RecordBatch) -> Result<Vec<Part>> {
        let keys: Vec<ArrayRef> = self.columns.iter().map(|&c| Arc::clone(batch.column(c))).collect();
        let rows = self
            .rows
            .convert_columns(&keys)
            .map_err(|e| Error::internal("a batch can't be partitioned").caused_by(e))?;
        let mut groups: HashMap<&[u8], usize> = HashMap::new();
        let mut members: Vec<Vec<u32>> = Vec::new();
        let mut last: Option<(usize, usize)> = None;
        for row in 0..batch.num_rows() {
            let key = rows.row(row);
            // Neighbours are often alike.
            let group = match last {
                Some((before, group)) if rows.row(before) == key => group,
                _ => *groups.entry(rows.row(row).data()).or_insert_with(|| {
                    members.push(Vec::new());
                    members.len() - 1
                }),
            };
            last = Some((row, group));
            members[group]
                .push(u32::try_from(row).map_err(|_| {
                    Error::unsupported("a batch of more than 2^32 rows can't be partitioned")
                })?);
        }
        Ok(members.into_iter().map(|rows| (self.values(&keys, rows[0] as usize), rows)).collect())
    }

    fn values(&self, keys: &[ArrayRef], row: usize) -> Result<Values> {
        self.names
            .iter()
            .zip(keys)
            .map(|(name, column)| {
                if column.is_null(row) {
                    return Ok((name.clone(), None));
                }
                let text = text(column, row).ok_or_else(|| {
                    Error::data("a value of a partition column has no form in a Delta log")
                        .with("column", name)
                        .remedy("empty texts and years beyond 9999 can't be partition values")
                })?;
                Ok((name.clone(), Some(text)))
            })
            .collect()
    }
}

/// The rows of these numbers; all of them if there are as many.
pub(crate) fn pick(batch: &RecordBatch, rows: Vec<u32>) -> Result<RecordBatch> {
    if rows.len() == batch.num_rows() {
        return Ok(batch.clone());
    }
    take_record_batch(batch, &UInt32Array::from(rows))
        .map_err(|e| Error::internal("rows can't be picked").caused_by(e))
}

fn has_text(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Boolean
            | DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Utf8
            | DataType::Date32
            | DataType::Decimal128(_, _)
            | DataType::Timestamp(_, _)
    )
}

fn four_digits(year: i32) -> bool {
    (0..=9999).contains(&year)
}

/// One value as Delta's readers parse it back. An empty text would come back as NULL.
fn text(column: &ArrayRef, row: usize) -> Option<String> {
    Some(match column.data_type() {
        DataType::Boolean => column.as_boolean().value(row).to_string(),
        DataType::Int8 => column.as_primitive::<Int8Type>().value(row).to_string(),
        DataType::Int16 => column.as_primitive::<Int16Type>().value(row).to_string(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::Utf8 => Some(column.as_string::<i32>().value(row).to_owned()).filter(|s| !s.is_empty())?,
        DataType::Date32 => {
            let days = TimeDelta::try_days(column.as_primitive::<Date32Type>().value(row).into())?;
            let date = NaiveDate::default().checked_add_signed(days)?;
            four_digits(date.year()).then(|| date.format("%Y-%m-%d").to_string())?
        }
        DataType::Timestamp(_, _) => {
            let time = DateTime::from_timestamp_micros(
                column.as_primitive::<TimestampMicrosecondType>().value(row),
            )?;
            four_digits(time.year()).then(|| time.format("%Y-%m-%d %H:%M:%S%.6f").to_string())?
        }
        DataType::Decimal128(_, _) => column.as_primitive::<Decimal128Type>().value_as_string(row),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Date32Array, Decimal128Array, Int32Array, StringArray, TimestampMicrosecondArray};

    #[test]
    fn values_are_as_the_log_has_them() {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("s", Arc::new(StringArray::from(vec![Some("a/b=%"), None, Some("a/b=%"), Some("")]))),
            ("d", Arc::new(Date32Array::from(vec![0, 0, 0, 1]))),
            ("t", Arc::new(TimestampMicrosecondArray::from(vec![1, 1, 1, 1]))),
            (
                "n",
                Arc::new(
                    Decimal128Array::from(vec![-150, 0, -150, 0]).with_precision_and_scale(9, 2).unwrap(),
                ),
            ),
            ("v", Arc::new(Int32Array::from(vec![1, 2, 3, 4]))),
        ];
        let batch =
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
        let names = ["s", "d", "t", "n"].map(String::from);
        let parts = Partitioner::new(batch.schema_ref(), &names).unwrap().unwrap().split(&batch).unwrap();
        let value = |part: &Part, name: &str| part.0.as_ref().unwrap()[name].clone();
        assert_eq!(parts[0].1, [0, 2]);
        assert_eq!(value(&parts[0], "s").as_deref(), Some("a/b=%"));
        assert_eq!(value(&parts[0], "d").as_deref(), Some("1970-01-01"));
        assert_eq!(value(&parts[0], "t").as_deref(), Some("1970-01-01 00:00:00.000001"));
        assert_eq!(value(&parts[0], "n").as_deref(), Some("-1.50"));
        assert_eq!(value(&parts[1], "s"), None);
        assert_eq!(parts[2].0.as_ref().unwrap_err().context("column"), Some("s"));
    }

    #[test]
    fn wrong_columns_are_refused() {
        use arrow::datatypes::Field;
        let schema = Schema::new(vec![
            Field::new("a", DataType::Int32, true),
            Field::new("b", DataType::Float64, true),
        ]);
        for names in [vec!["c"], vec!["a", "a"], vec!["b"], vec!["a", "b"]] {
            let names: Vec<String> = names.into_iter().map(String::from).collect();
            assert!(Partitioner::new(&schema, &names).is_err(), "{names:?}");
        }
    }
}
