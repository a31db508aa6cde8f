//! Where a task's results go: to one edge, to several, or to the edge that owns the key.

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use xxhash_rust::xxh3::xxh3_64;

use super::edge::{Item, Sender};
use crate::batch::estimated_bytes;
use crate::error::{Error, Result};
use crate::sink::Epoch;
use crate::transform::KEY_GROUPS;

/// All edges out of one task.
#[derive(Debug, Default)]
pub(crate) struct Router {
    edges: Vec<Sender>,
    /// By output: every consumer gets every batch.
    routes: Vec<Vec<Route>>,
}

/// One consumer of one output.
#[derive(Debug)]
pub(crate) enum Route {
    /// All rows go along one edge.
    Whole { edge: usize, port: usize },
    /// Each batch goes along one of the edges: in turn, but for those that are full while another
    /// isn't.
    InTurn { edges: Vec<usize>, port: usize, next: usize },
    /// Each row goes to the lane that owns its key group; one edge per lane.
    Keyed { edges: Vec<usize>, port: usize, keys: Keys },
}

impl Router {
    pub(crate) fn new(edges: Vec<Sender>, routes: Vec<Vec<Route>>) -> Self {
        Self { edges, routes }
    }

    /// `bytes` is about how many the rows have.
    pub(crate) async fn batch(&mut self, output: usize, batch: RecordBatch, bytes: usize) -> Result<()> {
        let Some(routes) = self.routes.get_mut(output) else {
            return Err(Error::internal("rows for an output that was not announced").with("output", output));
        };
        // The last reader takes the batch itself.
        let Some((last, others)) = routes.split_last_mut() else { return Ok(()) };
        for route in others {
            route.send(&mut self.edges, batch.clone(), bytes).await?;
        }
        last.send(&mut self.edges, batch, bytes).await
    }

    pub(crate) async fn schema(&mut self, output: usize, schema: &SchemaRef) -> Result<()> {
        for route in self.routes.get_mut(output).into_iter().flatten() {
            let (edges, port) = match route {
                Route::Whole { edge, port } => (std::slice::from_ref(edge), *port),
                Route::InTurn { edges, port, .. } => (edges.as_slice(), *port),
                Route::Keyed { edges, port, keys } => {
                    *keys = Keys::new(keys.columns.clone(), schema)?;
                    (edges.as_slice(), *port)
                }
            };
            for edge in edges {
                self.edges[*edge].send(Item::Schema { port, schema: schema.clone() }).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn watermark(&mut self, micros: i64) -> Result<()> {
        self.everywhere(|| Item::Watermark(micros)).await
    }

    pub(crate) async fn idle(&mut self) -> Result<()> {
        self.everywhere(|| Item::Idle).await
    }

    pub(crate) async fn end(&mut self) -> Result<()> {
        self.everywhere(|| Item::End).await
    }

    pub(crate) async fn barrier(&mut self, epoch: Epoch) -> Result<()> {
        self.everywhere(|| Item::Barrier(epoch)).await
    }

    /// None of these items needs credit, so no consumer that waits can hold them back from another.
    async fn everywhere(&mut self, item: impl Fn() -> Item) -> Result<()> {
        for edge in &mut self.edges {
            edge.send(item()).await?;
        }
        Ok(())
    }
}

impl Route {
    async fn send(&mut self, senders: &mut [Sender], batch: RecordBatch, bytes: usize) -> Result<()> {
        match self {
            Self::Whole { edge, port } => {
                senders[*edge].send(Item::Batch { port: *port, batch, bytes }).await
            }
            Self::InTurn { edges, port, next } => {
                let count = edges.len();
                let lane = (0..count)
                    .map(|step| (*next + step) % count)
                    .find(|lane| senders[edges[*lane]].has_room(bytes))
                    .unwrap_or(*next);
                *next = (lane + 1) % count;
                senders[edges[lane]].send(Item::Batch { port: *port, batch, bytes }).await
            }
            Self::Keyed { edges, port, keys } => {
                for (lane, rows) in keys.partition(&batch, edges.len())? {
                    let bytes = estimated_bytes(&rows);
                    senders[edges[lane]].send(Item::Batch { port: *port, batch: rows, bytes }).await?;
                }
                Ok(())
            }
        }
    }
}

/// The columns that decide which lane owns a row.
#[derive(Debug)]
pub(crate) struct Keys {
    columns: Vec<String>,
    indices: Vec<usize>,
    rows: RowConverter,
}

impl Keys {
    pub(crate) fn new(columns: Vec<String>, schema: &Schema) -> Result<Self> {
        let mut indices = Vec::with_capacity(columns.len());
        for column in &columns {
            indices.push(schema.index_of(column).map_err(|_| {
                Error::schema("the key column isn't in the input").with("column", column).remedy(format!(
                    "the columns are: {}",
                    schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ")
                ))
            })?);
        }
        let fields = indices.iter().map(|i| SortField::new(schema.field(*i).data_type().clone())).collect();
        let rows = RowConverter::new(fields)
            .map_err(|e| Error::unsupported("rows can't be distributed by these columns").caused_by(e))?;
        Ok(Self { columns, indices, rows })
    }

    fn partition(&mut self, batch: &RecordBatch, lanes: usize) -> Result<Vec<(usize, RecordBatch)>> {
        let columns: Vec<_> = self.indices.iter().map(|i| batch.column(*i).clone()).collect();
        let failed = |e| Error::internal("can't distribute rows by key").caused_by(e);
        let keys = self.rows.convert_columns(&columns).map_err(failed)?;
        let mut picked: Vec<Vec<u32>> = vec![Vec::new(); lanes];
        for (index, key) in (0u32..).zip(keys.iter()) {
            let group = (xxh3_64(key.data()) % u64::from(KEY_GROUPS)) as u16;
            picked[lane_of_group(group, lanes)].push(index);
        }
        let mut parts = Vec::with_capacity(lanes);
        for (lane, rows) in picked.into_iter().enumerate() {
            if rows.len() == batch.num_rows() {
                return Ok(vec![(lane, batch.clone())]);
            }
            if !rows.is_empty() {
                parts.push((lane, take_record_batch(batch, &UInt32Array::from(rows)).map_err(failed)?));
            }
        }
        Ok(parts)
    }
}

/// Which of `lanes` lanes owns a key group.
pub(crate) fn lane_of_group(group: u16, lanes: usize) -> usize {
    usize::from(group) * lanes / usize::from(KEY_GROUPS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    #[test]
    fn equal_keys_meet_in_one_lane_and_no_row_is_lost() {
        let schema = Arc::new(Schema::new(vec![
            Field::new("k", DataType::Utf8, true),
            Field::new("n", DataType::Int64, false),
        ]));
        let names: StringArray = (0..1_000).map(|i| (i % 7 != 0).then(|| format!("k{}", i % 50))).collect();
        let batch = RecordBatch::try_new(
            schema.clone(),
            vec![Arc::new(names), Arc::new(Int64Array::from_iter_values(0..1_000))],
        )
        .unwrap();
        let mut keys = Keys::new(vec!["k".into()], &schema).unwrap();
        let parts = keys.partition(&batch, 3).unwrap();
        assert_eq!(parts.iter().map(|(_, b)| b.num_rows()).sum::<usize>(), 1_000);
        assert!(parts.len() > 1);
        let mut owner = BTreeMap::new();
        for (lane, part) in parts {
            let names = part.column(0).as_any().downcast_ref::<StringArray>().unwrap();
            for name in names {
                assert_eq!(*owner.entry(name.map(String::from)).or_insert(lane), lane);
            }
        }
        assert_eq!(
            Keys::new(vec!["x".into()], &schema).unwrap_err().to_string(),
            "the key column isn't in the input (column: x); the columns are: k, n"
        );
    }
}
