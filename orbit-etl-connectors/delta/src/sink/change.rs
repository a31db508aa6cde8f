//! Rows as changes of a table: what each does to the row of its key.
//!
//! Changes wait in files of their own, with three columns beside the table's:
//!
//! | column | |
//! |---|---|
//! | `__orbit_delete` | whether the row goes away |
//! | `__orbit_order` | the stream's order (`orbit.role` = `order`), as bytes that sort alike |
//! | `__orbit_seq` | when the row came: the lane's number, then a count |
//!
//! The last change of a key is the one of the highest order, and among those of the same order, or
//! where the stream has none, the one that came last.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::compute::{and, and_not, cast, is_null};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use orbit_etl_core::model::Role;
use orbit_etl_core::{Error, LaneId, Result};

/// Whether a change takes its row away.
pub(crate) const DELETE: &str = "__orbit_delete";
/// What the stream says of a change's place among the others.
pub(crate) const ORDER: &str = "__orbit_order";
/// When a change came.
pub(crate) const SEQUENCE: &str = "__orbit_seq";

/// Room for a lane's rows in one run.
const LANE_BITS: u32 = 44;

/// The number of a lane's first row.
pub(crate) fn first_of(lane: LaneId) -> i64 {
    i64::try_from(lane.0).unwrap_or(i64::MAX).checked_mul(1 << LANE_BITS).unwrap_or(i64::MAX)
}

/// How a stream tells changes.
#[derive(Debug)]
pub(crate) struct Changes {
    /// Positions of the columns that say what the row becomes.
    columns: Vec<usize>,
    /// Positions and names of the keys.
    keys: Vec<(usize, String)>,
    op: Option<usize>,
    order: Option<(usize, RowConverter)>,
}

/// A batch of changes, taken apart.
pub(crate) struct Taken {
    /// What the rows become.
    pub(crate) rows: RecordBatch,
    /// Which go away.
    pub(crate) deletes: BooleanArray,
    /// The columns that files of changes have beside the table's.
    pub(crate) beside: Vec<ArrayRef>,
    /// Rows that are no changes, and why.
    pub(crate) misfits: Vec<(Error, BooleanArray)>,
}

impl Changes {
    /// Of a stream with these columns, for rows that these keys tell apart.
    ///
    /// # Errors
    /// `Config` without keys, `Schema` for a key that isn't there or has a type that can't be one,
    /// `Unsupported` for changes that aren't told in full.
    pub(crate) fn new(stream: &Schema, keys: &[String]) -> Result<Self> {
        if keys.is_empty() {
            return Err(
                Error::config("a merge needs the columns that tell rows apart").remedy("name them in `keys`")
            );
        }
        if let Some(at) = Role::Unchanged.find(stream) {
            return Err(Error::unsupported("changes that leave out what did not change can't be merged")
                .with("column", stream.field(at).name())
                .remedy("let the source tell whole rows"));
        }
        let columns: Vec<usize> = (0..stream.fields().len()).filter(|&i| is_kept(stream.field(i))).collect();
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let at = columns.iter().copied().find(|&i| stream.field(i).name() == key);
            let at = at.ok_or_else(|| {
                let known: Vec<_> = columns.iter().map(|&i| stream.field(i).name().as_str()).collect();
                Error::schema("the stream lacks a column of `keys`")
                    .with("column", key)
                    .remedy(format!("name one of these: {}", known.join(", ")))
            })?;
            if found.iter().any(|(other, _)| *other == at) {
                return Err(Error::config("a column is named twice in `keys`").with("column", key));
            }
            let data_type = stream.field(at).data_type();
            if data_type.is_nested() || data_type.is_floating() {
                return Err(Error::schema("values of this type can't tell rows apart")
                    .with("column", key)
                    .with("type", data_type)
                    .remedy("take another column, or cast this one before the sink"));
            }
            found.push((at, key.clone()));
        }
        for hidden in [DELETE, ORDER, SEQUENCE] {
            if columns.iter().any(|&i| stream.field(i).name() == hidden) {
                return Err(Error::schema("a column has a name that a merge needs for itself")
                    .with("column", hidden)
                    .remedy("rename the column before the sink"));
            }
        }
        let order = Role::Order.find(stream).map(|at| {
            let field = SortField::new(stream.field(at).data_type().clone());
            let rows = RowConverter::new(vec![field]).map_err(|_| {
                Error::schema("changes can't be put in order by a column of this type")
                    .with("column", stream.field(at).name())
                    .with("type", stream.field(at).data_type())
            });
            rows.map(|rows| (at, rows))
        });
        Ok(Self { columns, keys: found, op: Role::Op.find(stream), order: order.transpose()? })
    }

    /// Whether the stream says in which order its changes happened.
    pub(crate) fn is_ordered(&self) -> bool {
        self.order.is_some()
    }

    /// The columns that files of changes have beside the table's.
    pub(crate) fn beside(&self) -> Vec<FieldRef> {
        let mut fields = vec![Arc::new(Field::new(DELETE, DataType::Boolean, false))];
        if self.is_ordered() {
            fields.push(Arc::new(Field::new(ORDER, DataType::Binary, true)));
        }
        fields.push(Arc::new(Field::new(SEQUENCE, DataType::Int64, false)));
        fields
    }

    /// Takes a batch apart whose first row came as this number.
    pub(crate) fn take(&self, batch: &RecordBatch, first: i64) -> Result<Taken> {
        let internal = |e| Error::internal("changes can't be read").caused_by(e);
        let rows = batch.project(&self.columns).map_err(internal)?;
        let mut misfits = Vec::new();
        for (at, name) in &self.keys {
            let key = batch.column(*at);
            if key.logical_null_count() > 0 {
                let nulls = match key.logical_nulls() {
                    Some(nulls) => BooleanArray::new(!nulls.inner(), None),
                    None => is_null(key).map_err(internal)?,
                };
                let why = Error::data("a key must not be NULL").with("column", name);
                misfits.push((why, nulls));
            }
        }
        let deletes = match self.op {
            Some(at) => self.operations(batch, at, &mut misfits)?,
            None => BooleanArray::from(vec![false; batch.num_rows()]),
        };
        let mut beside: Vec<ArrayRef> = vec![Arc::new(deletes.clone())];
        if let Some((at, converter)) = &self.order {
            let order = converter.convert_columns(&[Arc::clone(batch.column(*at))]).map_err(internal)?;
            beside.push(Arc::new(order.try_into_binary().map_err(internal)?));
        }
        let count = i64::try_from(batch.num_rows()).unwrap_or(i64::MAX);
        beside.push(Arc::new(Int64Array::from_iter_values(first..first.saturating_add(count))));
        Ok(Taken { rows, deletes, beside, misfits })
    }

    /// Which rows go away.
    fn operations(
        &self,
        batch: &RecordBatch,
        at: usize,
        misfits: &mut Vec<(Error, BooleanArray)>,
    ) -> Result<BooleanArray> {
        let name = batch.schema_ref().field(at).name().clone();
        let texts = cast(batch.column(at), &DataType::Utf8).map_err(|_| {
            Error::schema("the column that says what a change does holds no text").with("column", &name)
        })?;
        let texts = texts.as_string::<i32>();
        let told = |wanted: &[&str]| -> BooleanArray {
            texts.iter().map(|op| Some(op.is_some_and(|op| wanted.contains(&op)))).collect()
        };
        let truncates = told(&["truncate"]);
        if truncates.true_count() > 0 {
            let why = Error::data("a truncation of the whole table can't be merged")
                .with("column", &name)
                .remedy("empty the table by hand, and skip this change");
            misfits.push((why, truncates));
        }
        let known = told(&["insert", "update", "snapshot", "delete", "truncate"]);
        if known.true_count() < known.len() {
            let all = BooleanArray::from(vec![true; known.len()]);
            let unknown =
                and_not(&all, &known).map_err(|e| Error::internal("changes can't be read").caused_by(e))?;
            let why = Error::data("what a change does isn't known").with("column", &name);
            misfits.push((why.remedy("it is insert, update, snapshot or delete"), unknown));
        }
        Ok(told(&["delete"]))
    }

    /// Whether a misfit counts: what else a row that goes away held does not.
    pub(crate) fn counts(
        &self,
        column: &str,
        misfit: BooleanArray,
        deletes: &BooleanArray,
    ) -> Result<BooleanArray> {
        if self.keys.iter().any(|(_, key)| key == column) {
            return Ok(misfit);
        }
        unless(&misfit, deletes)
    }
}

/// The columns of what a stream's rows become: all but those that are about changes.
pub(crate) fn table_columns(stream: &Schema) -> SchemaRef {
    let fields: Vec<FieldRef> = stream.fields().iter().filter(|field| is_kept(field)).cloned().collect();
    Arc::new(Schema::new(fields))
}

fn is_kept(field: &Field) -> bool {
    let about_changes = [Role::Op, Role::Order, Role::Before, Role::Unchanged];
    let role = field.metadata().get(orbit_etl_core::model::ROLE);
    !role.is_some_and(|role| about_changes.iter().any(|about| about.as_str() == role))
}

/// The one but not the other.
pub(crate) fn unless(rows: &BooleanArray, but: &BooleanArray) -> Result<BooleanArray> {
    let internal = |e| Error::internal("rows can't be told apart").caused_by(e);
    let others = arrow::compute::not(but).map_err(internal)?;
    and(rows, &others).map_err(internal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{StringArray, UInt64Array};

    fn changes() -> RecordBatch {
        let op = Role::Op.mark(Field::new("op", DataType::Utf8, true));
        let order = Role::Order.mark(Field::new("lsn", DataType::UInt64, true));
        let schema = Schema::new(vec![Field::new("id", DataType::Int64, true), op, order]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(vec![Some(1), None, Some(3), Some(4), Some(5)])),
            Arc::new(StringArray::from(vec![
                Some("insert"),
                Some("update"),
                Some("delete"),
                None,
                Some("truncate"),
            ])),
            Arc::new(UInt64Array::from(vec![Some(u64::MAX), Some(1), Some(256), None, Some(2)])),
        ];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    #[test]
    fn what_changes_do_is_read_from_their_roles() {
        let batch = changes();
        let changes = Changes::new(batch.schema_ref(), &["id".into()]).unwrap();
        let taken = changes.take(&batch, first_of(LaneId(1))).unwrap();
        assert_eq!(taken.rows.num_columns(), 1);
        assert_eq!(taken.deletes, BooleanArray::from(vec![false, false, true, false, false]));
        let misfits: Vec<_> =
            taken.misfits.iter().map(|(why, rows)| (why.context("column").unwrap(), rows.clone())).collect();
        let rows = |row: usize| (0..5).map(|i| Some(i == row)).collect::<BooleanArray>();
        assert_eq!(misfits, [("id", rows(1)), ("op", rows(4)), ("op", rows(3))]);
        let order = taken.beside[1].as_binary::<i32>();
        assert!(order.value(0) > order.value(2) && order.value(2) > order.value(4));
        assert!(order.value(3) < order.value(1), "NULL comes first");
    }

    #[test]
    fn wrong_keys_are_refused() {
        let batch = changes();
        let refused = |keys: &[&str]| {
            let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
            Changes::new(batch.schema_ref(), &keys).unwrap_err()
        };
        assert!(refused(&[]).to_string().contains("merge"));
        assert_eq!(refused(&["ID"]).context("column"), Some("ID"));
        assert_eq!(refused(&["op"]).context("column"), Some("op"));
        assert_eq!(refused(&["id", "id"]).context("column"), Some("id"));
    }
}
