//! What a sink's schema may become when its input's changes.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::kernels::cmp::not_distinct;
use arrow::compute::{CastOptions, can_cast_types, cast_with_options, filter_record_batch, nullif};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::checkpoint::MarkedColumn;
use crate::error::{Error, Result, ResultExt};

/// What becomes of something that a sink doesn't know yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Evolution {
    /// The sink's schema follows. Types are only ever widened; what isn't a widening is an error.
    #[default]
    Evolve,
    /// An error, before a row of it is written.
    Freeze,
    /// Rows that don't fit are left out, and counted as filtered.
    DiscardRow,
    /// The values that don't fit are left out; a row only where its value must not lack.
    DiscardValue,
}

impl fmt::Display for Evolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Evolve => "evolve",
            Self::Freeze => "freeze",
            Self::DiscardRow => "discard_row",
            Self::DiscardValue => "discard_value",
        })
    }
}

/// How a sink's schema may differ from that of the last committed run, and change during a run. Streams and
/// columns are matched by name.
///
/// What a sink had is never narrowed: a column that comes with a narrower type, or not at all, keeps its type,
/// and what lacks is NULL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SchemaContract {
    /// Streams that weren't there before; to discard rows or values is the same for them.
    pub tables: Evolution,
    /// Columns that weren't there before, or lack now.
    pub columns: Evolution,
    /// Types that are wider than before or others, and columns that may be NULL now.
    pub types: Evolution,
}

/// How one stream's rows become rows of its sink.
#[derive(Debug, Clone)]
pub(crate) struct Fit {
    contract: SchemaContract,
    /// What the sink has.
    schema: SchemaRef,
    takes: Vec<Take>,
    /// Columns that the sink doesn't have, and without which a row would be another one.
    must_be_null: Vec<usize>,
    /// Rows are as the sink wants them.
    same: bool,
}

/// Where a column of the sink comes from.
#[derive(Debug, Clone)]
enum Take {
    As(usize),
    Widened(usize),
    /// Only those values that are the same in the sink's type.
    Same(usize),
    Nulls,
}

impl Fit {
    /// `known` is what the sink had; nothing, if it is new.
    pub(crate) fn new(contract: SchemaContract, known: Option<&Schema>, now: &SchemaRef) -> Result<Self> {
        let Some(known) = known else {
            let takes = (0..now.fields().len()).map(Take::As).collect();
            return Ok(Self {
                contract,
                schema: Arc::clone(now),
                takes,
                must_be_null: Vec::new(),
                same: true,
            });
        };
        let (mut fields, mut takes, mut must_be_null) = (Vec::new(), Vec::new(), Vec::new());
        for had in known.fields() {
            let (field, take) = match now.index_of(had.name()) {
                Ok(i) => keep(contract.types, had, now.field(i), i).with("column", had.name())?,
                Err(_) => (lacks(contract.columns, had).with("column", had.name())?, Take::Nulls),
            };
            fields.push(field);
            takes.push(take);
        }
        for (i, new) in now.fields().iter().enumerate() {
            if known.index_of(new.name()).is_ok() {
                continue;
            }
            match contract.columns {
                Evolution::Evolve => {
                    // Rows that are there already have no value in it.
                    fields.push(new.as_ref().clone().with_nullable(true));
                    takes.push(Take::As(i));
                }
                Evolution::Freeze => {
                    return Err(frozen("a column that the sink doesn't have", "columns"))
                        .with("column", new.name());
                }
                Evolution::DiscardRow => must_be_null.push(i),
                Evolution::DiscardValue => {}
            }
        }
        let schema = Arc::new(Schema::new_with_metadata(fields, now.metadata().clone()));
        let in_order = takes.iter().enumerate().all(|(i, take)| matches!(take, Take::As(from) if *from == i));
        let same = in_order && schema.fields() == now.fields();
        Ok(Self { contract, schema, takes, must_be_null, same })
    }

    /// What the sink has with it.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// From here on the input has this schema. Says whether the sink's changes with it.
    pub(crate) fn changed(&mut self, to: &SchemaRef) -> Result<bool> {
        let next = Self::new(self.contract, Some(&self.schema), to)?;
        let evolves = next.schema.fields() != self.schema.fields();
        *self = next;
        Ok(evolves)
    }

    /// The rows as the sink takes them, and how many were left out.
    pub(crate) fn apply(&self, batch: &RecordBatch) -> Result<(RecordBatch, u64)> {
        if self.same {
            return Ok((batch.clone(), 0));
        }
        let rows = batch.num_rows();
        let mut stay = vec![true; rows];
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.takes.len());
        for (take, field) in self.takes.iter().zip(self.schema.fields()) {
            let column = match take {
                Take::As(i) => Arc::clone(batch.column(*i)),
                Take::Widened(i) => {
                    cast(batch.column(*i), field.data_type(), false).with("column", field.name())?
                }
                Take::Same(i) => self.same_values(batch.column(*i), field, &mut stay)?,
                Take::Nulls => new_null_array(field.data_type(), rows),
            };
            if !field.is_nullable() && column.null_count() > 0 {
                leave(&mut stay, |row| column.is_null(row));
            }
            columns.push(column);
        }
        for i in &self.must_be_null {
            let column = batch.column(*i);
            leave(&mut stay, |row| column.is_valid(row));
        }
        let out = stay.iter().filter(|stays| !**stays).count() as u64;
        let failed = |e| Error::internal("rows can't be made to fit their sink").caused_by(e);
        // Where rows go, NULLs go that the schema rules out: so it is put on last.
        let loose: Vec<Field> =
            self.schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let mut made = RecordBatch::try_new_with_options(Arc::new(Schema::new(loose)), columns, &options)
            .map_err(failed)?;
        if out > 0 {
            made = filter_record_batch(&made, &BooleanArray::from(stay)).map_err(failed)?;
        }
        let options = RecordBatchOptions::new().with_row_count(Some(made.num_rows()));
        let columns = made.columns().to_vec();
        let made = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        Ok((made.map_err(failed)?, out))
    }

    /// The values that are the same in another type: cast there and back again.
    fn same_values(&self, column: &ArrayRef, field: &Field, stay: &mut [bool]) -> Result<ArrayRef> {
        let to = field.data_type();
        let plain = !to.is_nested() && !column.data_type().is_nested();
        let comes_back =
            plain && can_cast_types(column.data_type(), to) && can_cast_types(to, column.data_type());
        let (there, lost) = if comes_back {
            let there = cast(column, to, true).with("column", field.name())?;
            let back = cast(&there, column.data_type(), true).with("column", field.name())?;
            let same = not_distinct(column, &back)
                .map_err(|e| Error::internal("values can't be compared").caused_by(e))?;
            let lost: BooleanArray = same.iter().map(|same| Some(same != Some(true))).collect();
            (there, lost)
        } else {
            let lost: BooleanArray = (0..column.len()).map(|row| Some(column.is_valid(row))).collect();
            (new_null_array(to, column.len()), lost)
        };
        if self.contract.types == Evolution::DiscardRow || !field.is_nullable() {
            leave(stay, |row| lost.value(row));
            return Ok(there);
        }
        nullif(&there, &lost).map_err(|e| Error::internal("values can't be left out").caused_by(e))
    }
}

fn leave(stay: &mut [bool], goes: impl Fn(usize) -> bool) {
    for (row, stays) in stay.iter_mut().enumerate() {
        *stays = *stays && !goes(row);
    }
}

fn cast(column: &ArrayRef, to: &DataType, safe: bool) -> Result<ArrayRef> {
    let options = CastOptions { safe, ..CastOptions::default() };
    // The message of the cause may hold a value.
    cast_with_options(column, to, &options).map_err(|_| {
        Error::data("a value doesn't fit the sink's type").with("from", column.data_type()).with("to", to)
    })
}

/// A column that the sink has and that comes.
fn keep(types: Evolution, had: &Field, now: &Field, i: usize) -> Result<(Field, Take)> {
    let field = now.clone().with_data_type(had.data_type().clone());
    let nullable = match (had.is_nullable(), now.is_nullable(), types) {
        (false, true, Evolution::Freeze) => {
            return Err(frozen("a column may be NULL that may not in the sink", "types"));
        }
        (false, true, Evolution::Evolve) => true,
        (had, ..) => had,
    };
    let field = field.with_nullable(nullable);
    let (had, now) = (had.data_type(), now.data_type());
    if had == now {
        return Ok((field, Take::As(i)));
    }
    if widens(now, had) {
        return Ok((field, Take::Widened(i)));
    }
    let told = |error: Error| error.with("was", had).with("is", now);
    match types {
        Evolution::Evolve if widens(had, now) => Ok((field.with_data_type(now.clone()), Take::As(i))),
        Evolution::Evolve => Err(told(
            Error::schema("a column has another type than in the sink, and not a wider one")
                .remedy("cast it before the sink, or let the contract discard what doesn't fit"),
        )),
        Evolution::Freeze => Err(told(frozen("a column has another type than in the sink", "types"))),
        Evolution::DiscardRow | Evolution::DiscardValue => Ok((field, Take::Same(i))),
    }
}

/// A column that the sink has and that doesn't come.
fn lacks(columns: Evolution, had: &Field) -> Result<Field> {
    match (columns, had.is_nullable()) {
        (Evolution::Freeze, _) => Err(frozen("a column of the sink is gone", "columns")),
        (_, true) => Ok(had.clone()),
        (Evolution::Evolve, false) => Ok(had.clone().with_nullable(true)),
        (Evolution::DiscardRow | Evolution::DiscardValue, false) => {
            Err(Error::schema("a column of the sink is gone that may not be NULL there")
                .remedy("let `columns` of the schema contract evolve"))
        }
    }
}

pub(crate) fn frozen(what: &str, part: &str) -> Error {
    Error::schema(what)
        .with("contract", part)
        .remedy("the schema contract freezes it: mend the input, or let the contract evolve or discard")
}

/// Whether every value of `from` is the same value in `to`.
fn widens(from: &DataType, to: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, Date32, Date64, Decimal32, Decimal64, Decimal128, Decimal256, Float16, Float32,
        Float64, LargeBinary, LargeUtf8, Null, Timestamp, Utf8, Utf8View,
    };
    let decimal = |t: &DataType| match t {
        Decimal32(p, s) | Decimal64(p, s) | Decimal128(p, s) | Decimal256(p, s) => {
            Some((i16::from(*p), i16::from(*s)))
        }
        _ => None,
    };
    if let (Some((p, s)), Some((to_p, to_s))) = (decimal(from), decimal(to)) {
        return to_s >= s && to_p - to_s >= p - s;
    }
    if let (Some((signed, bits)), Some((to_signed, to_bits))) = (integer(from), integer(to)) {
        return to_bits > bits && (to_signed || !signed);
    }
    match (from, to) {
        (Null, _) | (Float16, Float32 | Float64) | (Float32, Float64) => true,
        (Utf8 | LargeUtf8 | Utf8View, Utf8 | LargeUtf8 | Utf8View) => true,
        (Binary | LargeBinary | BinaryView, Binary | LargeBinary | BinaryView) => true,
        // In nanoseconds far days don't fit.
        (
            Date32,
            Date64 | Timestamp(TimeUnit::Second | TimeUnit::Millisecond | TimeUnit::Microsecond, None),
        ) => true,
        (Timestamp(unit, zone), Timestamp(to, to_zone)) => {
            let fine = |unit: &TimeUnit| match unit {
                TimeUnit::Second => 0,
                TimeUnit::Millisecond => 1,
                TimeUnit::Microsecond => 2,
                TimeUnit::Nanosecond => 9,
            };
            zone == to_zone && fine(to) > fine(unit) && fine(to) < 9
        }
        _ => false,
    }
}

fn integer(data_type: &DataType) -> Option<(bool, u8)> {
    Some(match data_type {
        DataType::Int8 => (true, 8),
        DataType::Int16 => (true, 16),
        DataType::Int32 => (true, 32),
        DataType::Int64 => (true, 64),
        DataType::UInt8 => (false, 8),
        DataType::UInt16 => (false, 16),
        DataType::UInt32 => (false, 32),
        DataType::UInt64 => (false, 64),
        _ => return None,
    })
}

/// As a checkpoint remembers it.
pub(crate) fn marked(schema: &Schema) -> Vec<MarkedColumn> {
    let column = |field: &Arc<Field>| MarkedColumn {
        name: field.name().clone(),
        data_type: field.data_type().to_string(),
        nullable: field.is_nullable(),
    };
    schema.fields().iter().map(column).collect()
}

/// What a checkpoint remembers.
pub(crate) fn unmarked(columns: &[MarkedColumn]) -> Result<Schema> {
    let field = |column: &MarkedColumn| {
        let data_type = column.data_type.parse::<DataType>().map_err(|e| {
            Error::unsupported("the state remembers a column type that this version doesn't know")
                .with("column", &column.name)
                .with("type", &column.data_type)
                .caused_by(e)
        })?;
        Ok(Field::new(&column.name, data_type, column.nullable))
    };
    Ok(Schema::new(columns.iter().map(field).collect::<Result<Vec<_>>>()?))
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Float64Array, Int32Array, Int64Array, StringArray};
    use arrow::datatypes::{Int32Type, Int64Type};

    use super::*;

    const FROZEN: SchemaContract =
        SchemaContract { tables: Evolution::Freeze, columns: Evolution::Freeze, types: Evolution::Freeze };

    fn schema(fields: &[(&str, DataType, bool)]) -> SchemaRef {
        let field = |(name, data_type, nullable): &(&str, DataType, bool)| {
            Field::new(*name, data_type.clone(), *nullable)
        };
        Arc::new(Schema::new(fields.iter().map(field).collect::<Vec<_>>()))
    }

    fn with(columns: Evolution, types: Evolution) -> SchemaContract {
        SchemaContract { tables: Evolution::Evolve, columns, types }
    }

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap()
    }

    #[test]
    fn columns_are_added_and_kept_as_the_contract_says() {
        use Evolution::{DiscardRow, DiscardValue, Evolve, Freeze};
        let known = schema(&[("id", DataType::Int64, false), ("gone", DataType::Utf8, true)]);
        let now = schema(&[("new", DataType::Utf8, true), ("id", DataType::Int64, false)]);
        let rows = RecordBatch::try_new(
            Arc::clone(&now),
            vec![
                Arc::new(StringArray::from(vec![None, Some("x"), None])),
                Arc::new(Int64Array::from(vec![1, 2, 3])),
            ],
        )
        .unwrap();
        let fit = |columns| Fit::new(with(columns, Freeze), Some(&known), &now);
        assert!(fit(Freeze).unwrap_err().report().contains("gone"));
        for (columns, names, left, out) in [
            (Evolve, vec!["id", "gone", "new"], 3, 0),
            (DiscardValue, vec!["id", "gone"], 3, 0),
            (DiscardRow, vec!["id", "gone"], 2, 1),
        ] {
            let (made, discarded) = fit(columns).unwrap().apply(&rows).unwrap();
            let found: Vec<_> = made.schema().fields().iter().map(|f| f.name().clone()).collect();
            assert_eq!(
                (found, made.num_rows(), discarded),
                (names.iter().map(|n| n.to_string()).collect(), left, out)
            );
            assert_eq!(made.column(1).null_count(), left, "{columns:?}");
        }
        let must = schema(&[("gone", DataType::Utf8, false)]);
        assert!(Fit::new(with(DiscardRow, Evolve), Some(&must), &now).is_err());
        assert!(Fit::new(with(Evolve, Evolve), Some(&must), &now).unwrap().schema().field(0).is_nullable());
    }

    #[test]
    fn types_are_widened_and_never_narrowed() {
        use Evolution::{DiscardRow, DiscardValue, Evolve};
        let known = schema(&[("n", DataType::Int32, true)]);
        let wide = schema(&[("n", DataType::Int64, true)]);
        let evolved = Fit::new(with(Evolve, Evolve), Some(&known), &wide).unwrap();
        assert_eq!(evolved.schema().field(0).data_type(), &DataType::Int64);
        assert!(Fit::new(FROZEN, Some(&known), &wide).unwrap_err().report().contains("Int64"));
        // Narrower input never narrows the sink, whatever the contract.
        let narrow = Fit::new(FROZEN, Some(&wide), &known).unwrap();
        let (made, _) = narrow.apply(&batch(vec![("n", Arc::new(Int32Array::from(vec![7])))])).unwrap();
        assert_eq!(made.column(0).as_primitive::<Int64Type>().values(), &[7]);
        let large = batch(vec![("n", Arc::new(Int64Array::from(vec![Some(1), Some(1 << 40), None])))]);
        let values = |types| {
            let (made, out) =
                Fit::new(with(Evolve, types), Some(&known), &wide).unwrap().apply(&large).unwrap();
            (made.column(0).as_primitive::<Int32Type>().iter().collect::<Vec<_>>(), out)
        };
        assert_eq!(values(DiscardValue), (vec![Some(1), None, None], 0));
        assert_eq!(values(DiscardRow), (vec![Some(1), None], 1));
        // 1.5 is not silently 1, and "007" not 7.
        let text = schema(&[("n", DataType::Utf8, true)]);
        assert!(Fit::new(with(Evolve, Evolve), Some(&known), &text).is_err());
        for (column, kept) in [
            (Arc::new(StringArray::from(vec!["5", "007", "x"])) as ArrayRef, vec![Some(5), None, None]),
            (Arc::new(Float64Array::from(vec![5.0, 1.5, 1e300])) as ArrayRef, vec![Some(5), None, None]),
        ] {
            let rows = batch(vec![("n", column)]);
            let fit = Fit::new(with(Evolve, DiscardValue), Some(&known), &rows.schema()).unwrap();
            let made = fit.apply(&rows).unwrap().0;
            assert_eq!(made.column(0).as_primitive::<Int32Type>().iter().collect::<Vec<_>>(), kept);
        }
    }

    #[test]
    fn a_column_that_becomes_nullable_follows_or_loses_rows() {
        let known = schema(&[("n", DataType::Int32, false)]);
        let rows = batch(vec![("n", Arc::new(Int32Array::from(vec![Some(1), None])))]);
        let fit = |types| Fit::new(with(Evolution::Evolve, types), Some(&known), &rows.schema());
        assert!(fit(Evolution::Evolve).unwrap().schema().field(0).is_nullable());
        assert!(fit(Evolution::Freeze).is_err());
        for types in [Evolution::DiscardRow, Evolution::DiscardValue] {
            let (made, out) = fit(types).unwrap().apply(&rows).unwrap();
            assert_eq!((made.num_rows(), out, made.schema().field(0).is_nullable()), (1, 1, false));
        }
    }

    #[test]
    fn what_is_remembered_is_read_again() {
        let nested = DataType::List(Arc::new(Field::new("item", DataType::Int64, true)));
        let all = schema(&[
            ("a", DataType::Timestamp(TimeUnit::Microsecond, Some("Europe/Berlin".into())), false),
            ("b", DataType::Decimal128(38, 10), true),
            ("c", nested, true),
            ("d", DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)), true),
            ("e", DataType::Struct(vec![Field::new("x y", DataType::Utf8, true)].into()), true),
            ("f", DataType::Time64(TimeUnit::Nanosecond), true),
        ]);
        assert_eq!(unmarked(&marked(&all)).unwrap(), *all);
    }

    #[test]
    fn only_what_loses_nothing_is_a_widening() {
        use DataType::{
            Date32, Decimal128, Float32, Float64, Int8, Int32, Int64, Timestamp, UInt32, UInt64, Utf8,
        };
        let micros = Timestamp(TimeUnit::Microsecond, None);
        let nanos = Timestamp(TimeUnit::Nanosecond, None);
        for (from, to, wide) in [
            (Int8, Int64, true),
            (UInt32, Int64, true),
            (UInt32, Int32, false),
            (Int32, UInt64, false),
            (Int64, Int32, false),
            (Int64, Float64, false),
            (Float32, Float64, true),
            (Float64, Float32, false),
            (Decimal128(10, 2), Decimal128(12, 2), true),
            (Decimal128(10, 2), Decimal128(12, 4), true),
            (Decimal128(10, 2), Decimal128(11, 4), false),
            (Date32, micros.clone(), true),
            (Date32, nanos.clone(), false),
            (micros, nanos, false),
            (Int64, Utf8, false),
        ] {
            assert_eq!(widens(&from, &to), wide, "{from} to {to}");
        }
    }
}
