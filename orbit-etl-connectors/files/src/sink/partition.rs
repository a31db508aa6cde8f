//! Which rows go into which folder.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{CastOptions, cast_with_options, take_record_batch};
use arrow::datatypes::{DataType, Schema};
use arrow::row::{RowConverter, SortField};
use arrow::util::display::FormatOptions;
use orbit_etl_core::{Error, ErrorKind, Result};

use super::layout::partition_folder;

/// The rows of a batch, cut by folders.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// The rows of each folder, without the partition columns.
    pub(crate) fit: Vec<(String, RecordBatch)>,
    /// Rows for which there can't be a folder, as they came, and why.
    pub(crate) misfit: Vec<(Error, RecordBatch)>,
}

/// Cuts batches by the values of some of their columns.
#[derive(Debug)]
pub(crate) struct Partitioner {
    names: Vec<String>,
    columns: Vec<usize>,
    rows: RowConverter,
}

impl Partitioner {
    /// By these columns of `schema`; `None` if there are none.
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
                return Err(Error::schema("values of this type can't be folder names")
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

    /// Whether this column of the schema is left out of the files.
    pub(crate) fn takes(&self, column: usize) -> bool {
        self.columns.contains(&column)
    }

    /// The parts of `rest`, which has the rows of `batch` in other columns, with their folders
    /// (`a=1/b=2/`, of at most `longest` bytes), in the order in which these first appear.
    pub(crate) fn split(&self, batch: &RecordBatch, rest: &RecordBatch, longest: usize) -> Result<Parts> {
        let keys: Vec<ArrayRef> = self.columns.iter().map(|&c| Arc::clone(batch.column(c))).collect();
        let internal = |e| Error::internal("a batch can't be partitioned").caused_by(e);
        let rows = self.rows.convert_columns(&keys).map_err(internal)?;
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
        let mut parts = Parts::default();
        for rows in members {
            let folder = self.folder(&keys, rows[0] as usize, longest);
            let pick = |from: &RecordBatch| match rows.len() == from.num_rows() {
                true => Ok(from.clone()),
                false => take_record_batch(from, &UInt32Array::from(rows)).map_err(internal),
            };
            match folder {
                Ok(folder) => parts.fit.push((folder, pick(rest)?)),
                Err(error) if error.kind() == ErrorKind::Data => parts.misfit.push((error, pick(batch)?)),
                Err(error) => return Err(error),
            }
        }
        Ok(parts)
    }

    fn folder(&self, keys: &[ArrayRef], row: usize, longest: usize) -> Result<String> {
        let mut path = String::new();
        for (name, column) in self.names.iter().zip(keys) {
            let text = text(name, &column.slice(row, 1))?;
            path.push_str(&partition_folder(name, text.as_deref())?);
            path.push('/');
        }
        if path.len() > longest {
            return Err(Error::data("the values of the partition columns are too long for a path")
                .with("columns", self.names.join(", "))
                .remedy("partition by fewer or shorter columns"));
        }
        Ok(path)
    }
}

/// One value as readers parse it back.
fn text(name: &str, value: &ArrayRef) -> Result<Option<String>> {
    let options = CastOptions { safe: false, format_options: FormatOptions::new().with_display_error(false) };
    // Not the cause: its text may hold the value.
    let text = cast_with_options(value, &DataType::Utf8, &options)
        .map_err(|_| Error::data("a value of a partition column has no text").with("column", name))?;
    let text = text.as_string::<i32>();
    Ok((!text.is_empty() && text.is_valid(0)).then(|| text.value(0).to_owned()))
}

fn has_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => has_text(value),
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_)
        | DataType::Duration(_)
        | DataType::Interval(_)
        | DataType::Null
        | DataType::Union(_, _)
        | DataType::RunEndEncoded(_, _) => false,
        other => !other.is_nested(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{BooleanArray, Date32Array, DictionaryArray, Int32Array, StringViewArray};
    use arrow::datatypes::{Field, Int8Type};

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap()
    }

    #[test]
    fn rows_go_to_their_folders_in_order() {
        let batch = batch(vec![
            ("day", Arc::new(Date32Array::from(vec![Some(0), Some(1), Some(0), None]))),
            ("ok", Arc::new(BooleanArray::from(vec![Some(true), None, Some(true), None]))),
            ("name", Arc::new(StringViewArray::from(vec!["a/b", "", "a/b", ""]))),
            ("v", Arc::new(Int32Array::from(vec![1, 2, 3, 4]))),
        ]);
        let names = ["name", "day", "ok"].map(String::from);
        let partitioner = Partitioner::new(batch.schema_ref(), &names).unwrap().unwrap();
        let parts = partitioner.split(&batch, &batch, 4_000).unwrap().fit;
        let found: Vec<(&str, Vec<i32>)> = parts
            .iter()
            .map(|(folder, part)| {
                let values = part.column(3).as_primitive::<arrow::datatypes::Int32Type>();
                (folder.as_str(), values.values().to_vec())
            })
            .collect();
        let null = "__HIVE_DEFAULT_PARTITION__";
        assert_eq!(
            found,
            vec![
                ("name=a%2Fb/day=1970-01-01/ok=true/", vec![1, 3]),
                (format!("name=/day=1970-01-02/ok={null}/").as_str(), vec![2]),
                (format!("name=/day={null}/ok={null}/").as_str(), vec![4]),
            ]
        );
    }

    #[test]
    fn a_dictionary_is_its_values() {
        let day: DictionaryArray<Int8Type> = vec![Some("x"), None, Some("x")].into_iter().collect();
        let batch = batch(vec![("k", Arc::new(day)), ("v", Arc::new(Int32Array::from(vec![1, 2, 3])))]);
        let partitioner = Partitioner::new(batch.schema_ref(), &["k".to_owned()]).unwrap().unwrap();
        let folders: Vec<String> =
            partitioner.split(&batch, &batch, 4_000).unwrap().fit.into_iter().map(|p| p.0).collect();
        assert_eq!(folders, ["k=x/", "k=__HIVE_DEFAULT_PARTITION__/"]);
    }

    #[test]
    fn rows_without_a_possible_folder_are_set_apart() {
        let long = "x".repeat(300);
        let batch = batch(vec![
            ("a", Arc::new(StringViewArray::from(vec!["1", &long, "1", "222222222"]))),
            ("b", Arc::new(StringViewArray::from(vec!["2", "2", "2", "2"]))),
            ("v", Arc::new(Int32Array::from(vec![1, 2, 3, 4]))),
        ]);
        let partitioner = Partitioner::new(batch.schema_ref(), &["a".into(), "b".into()]).unwrap().unwrap();
        let parts = partitioner.split(&batch, &batch, 10).unwrap();
        assert_eq!(parts.fit.iter().map(|p| p.0.as_str()).collect::<Vec<_>>(), ["a=1/b=2/"]);
        let misfit: Vec<_> = parts.misfit.iter().map(|(e, rows)| (e.to_string(), rows.num_rows())).collect();
        assert!(misfit[0].0.contains("column: a") && misfit[0].1 == 1, "{misfit:?}");
        assert!(misfit[1].0.contains("columns: a, b") && misfit[1].1 == 1, "{misfit:?}");
        assert!(misfit.iter().all(|(text, _)| !text.contains("xxx") && !text.contains("222")));
    }

    #[test]
    fn wrong_columns_are_refused() {
        let schema = Schema::new(vec![
            Field::new("a", DataType::Int32, true),
            Field::new("b", DataType::Binary, true),
        ]);
        for names in [vec!["c"], vec!["a", "a"], vec!["b"], vec!["a", "b"]] {
            let names: Vec<String> = names.into_iter().map(String::from).collect();
            assert!(Partitioner::new(&schema, &names).is_err(), "{names:?}");
        }
    }
}
