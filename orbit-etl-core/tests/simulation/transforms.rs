//! Transforms of a history: they reject, filter, count by key, hold rows back, and wait for the end.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use orbit_etl_core::{
    BlockingOperator, ConnectorInfo, Context, Distribution, KEY_GROUPS, Operator, OperatorState, Output,
    Result, Started, StreamInfo, Transform,
};
use xxhash_rust::xxh3::xxh3_64;

use super::files::{ids, refused};

pub(crate) fn schema() -> SchemaRef {
    let int = |name, nullable| Field::new(name, DataType::Int64, nullable);
    Arc::new(Schema::new(vec![int("id", false), int("group", true), int("seq", true)]))
}

pub(crate) fn batch(of: &[i64], seq: &[Option<i64>]) -> RecordBatch {
    let columns: [Int64Array; 3] =
        [of.to_vec().into(), of.iter().map(|id| group_of(*id)).collect(), seq.iter().copied().collect()];
    RecordBatch::try_new(schema(), columns.into_iter().map(|c| Arc::new(c) as _).collect()).unwrap()
}

pub(crate) fn group_of(id: i64) -> Option<i64> {
    (id % 11 != 0).then_some(id % 5)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Model {
    /// Rejects and filters some rows.
    Map,
    /// Numbers the rows of each key.
    Keyed,
    /// Holds the last batch back until the next.
    Hold,
    /// Lets nothing out before it has everything.
    Block,
}

pub(crate) fn map_rejects(id: i64) -> bool {
    id % 16 == 4
}

pub(crate) fn map_filters(id: i64) -> bool {
    id % 16 == 5
}

#[derive(Debug)]
pub(crate) struct ModelTransform {
    pub(crate) model: Model,
    pub(crate) rejects: bool,
}

#[async_trait]
impl Transform for ModelTransform {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("model", format!("{:?}", self.model))
    }

    async fn outputs(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Vec<StreamInfo>> {
        let keys = inputs[0].keys.clone();
        let bounded = inputs.iter().all(|i| i.bounded);
        Ok(vec![StreamInfo::new(cx.node(), schema()).with_keys(keys).with_bounded(bounded)])
    }

    fn distribution(&self) -> Distribution {
        match self.model {
            Model::Keyed => Distribution::Keyed(vec!["group".into()]),
            Model::Hold => Distribution::Single,
            Model::Map | Model::Block => Distribution::Any,
        }
    }

    fn maps_rows(&self) -> bool {
        matches!(self.model, Model::Map | Model::Keyed)
    }

    async fn blocking(&self, _: &Context, _: &[StreamInfo]) -> Result<bool> {
        Ok(self.model == Model::Block)
    }

    async fn start(&self, _: &Context, _: &[StreamInfo]) -> Result<Started> {
        Ok(match self.model {
            Model::Map => Started::Streaming(Box::new(Mapping { rejects: self.rejects })),
            Model::Keyed => Started::Streaming(Box::new(Numbering::default())),
            Model::Hold => Started::Streaming(Box::new(Holding::default())),
            Model::Block => Started::Blocking(Box::new(Waiting)),
        })
    }
}

struct Mapping {
    rejects: bool,
}

#[async_trait]
impl Operator for Mapping {
    async fn process(&mut self, _: usize, batch: RecordBatch, out: &mut Output<'_>) -> Result<()> {
        let rejected = |id: i64| self.rejects && map_rejects(id);
        let mut stay = Vec::new();
        for id in ids(&batch) {
            stay.push(!rejected(id) && !map_filters(id));
            if rejected(id) {
                out.reject(refused(id)).await?;
            } else if map_filters(id) {
                out.filtered(1);
            }
        }
        out.emit(0, filter_record_batch(&batch, &BooleanArray::from(stay)).unwrap()).await
    }
}

#[derive(Default)]
struct Numbering {
    seen: BTreeMap<Option<i64>, i64>,
}

fn key_group(key: Option<i64>) -> u16 {
    let converter = RowConverter::new(vec![SortField::new(DataType::Int64)]).unwrap();
    let rows = converter.convert_columns(&[Arc::new(Int64Array::from(vec![key])) as _]).unwrap();
    (xxh3_64(rows.row(0).data()) % u64::from(KEY_GROUPS)) as u16
}

#[async_trait]
impl Operator for Numbering {
    async fn process(&mut self, _: usize, rows: RecordBatch, out: &mut Output<'_>) -> Result<()> {
        let groups = rows.column(1).as_primitive::<Int64Type>();
        let mut numbers = Vec::new();
        for group in groups {
            let seen = self.seen.entry(group).or_default();
            *seen += 1;
            numbers.push(Some(*seen));
        }
        out.emit(0, batch(&ids(&rows), &numbers)).await
    }

    async fn snapshot(&mut self) -> Result<OperatorState> {
        let mut groups: BTreeMap<u16, Vec<(Option<i64>, i64)>> = BTreeMap::new();
        for (key, seen) in &self.seen {
            groups.entry(key_group(*key)).or_default().push((*key, *seen));
        }
        let groups = groups.into_iter().map(|(g, s)| (g, serde_json::to_vec(&s).unwrap()));
        Ok(OperatorState { groups: groups.collect() })
    }

    async fn restore(&mut self, state: OperatorState) -> Result<()> {
        for bytes in state.groups.values() {
            let seen: Vec<(Option<i64>, i64)> = serde_json::from_slice(bytes).unwrap();
            self.seen.extend(seen);
        }
        Ok(())
    }
}

type Held = Vec<(i64, Option<i64>)>;

#[derive(Default)]
struct Holding {
    held: Held,
}

impl Holding {
    async fn let_go(&mut self, out: &mut Output<'_>) -> Result<()> {
        let (of, seq): (Vec<_>, Vec<_>) = std::mem::take(&mut self.held).into_iter().unzip();
        out.emit(0, batch(&of, &seq)).await
    }
}

#[async_trait]
impl Operator for Holding {
    async fn process(&mut self, _: usize, rows: RecordBatch, out: &mut Output<'_>) -> Result<()> {
        self.let_go(out).await?;
        let seq = rows.column(2).as_primitive::<Int64Type>();
        self.held = ids(&rows).into_iter().zip(seq.iter()).collect();
        Ok(())
    }

    async fn finish(&mut self, out: &mut Output<'_>) -> Result<()> {
        self.let_go(out).await
    }

    async fn snapshot(&mut self) -> Result<OperatorState> {
        if self.held.is_empty() {
            return Ok(OperatorState::default());
        }
        Ok(OperatorState { groups: [(0, serde_json::to_vec(&self.held).unwrap())].into() })
    }

    async fn restore(&mut self, state: OperatorState) -> Result<()> {
        for bytes in state.groups.values() {
            self.held = serde_json::from_slice(bytes).unwrap();
        }
        Ok(())
    }
}

struct Waiting;

#[async_trait]
impl BlockingOperator for Waiting {
    async fn run(
        self: Box<Self>,
        inputs: Vec<BoxStream<'static, Result<RecordBatch>>>,
        out: &mut Output<'_>,
    ) -> Result<()> {
        let mut all = Vec::new();
        for mut input in inputs {
            while let Some(batch) = input.next().await {
                all.push(batch?);
            }
        }
        for batch in all {
            out.emit(0, batch).await?;
        }
        Ok(())
    }
}
