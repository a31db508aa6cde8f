//! The sink, and what the tests share.

mod merge;
mod others;
mod replace;
mod rows;

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use deltalake::DeltaTable;
use deltalake::datafusion::prelude::SessionContext;
use orbit_etl_connector_delta::DeltaSink;
use orbit_etl_core::{
    CheckpointRecord, Committable, Committed, Context, Epoch, LaneId, Lineage, Reject, Result, Sink,
    SinkSession, SinkWriter, StreamId, StreamInfo,
};
use tempfile::TempDir;
use url::Url;

pub(crate) fn lineage(claim: u64) -> Lineage {
    Lineage { id: "0192-l".into(), sink: "out".into(), generation: 1, claim, run: format!("run-{claim}") }
}

/// A run with one writer.
pub(crate) struct Run {
    pub(crate) session: Box<dyn SinkSession>,
    pub(crate) writer: Box<dyn SinkWriter>,
    pub(crate) committed: Option<Committed>,
}

impl Run {
    pub(crate) async fn start(sink: &DeltaSink, schema: SchemaRef, claim: u64) -> Self {
        Self::try_start(sink, schema, lineage(claim)).await.unwrap()
    }

    pub(crate) async fn try_start(sink: &DeltaSink, schema: SchemaRef, lineage: Lineage) -> Result<Self> {
        let cx = Context::standalone("out")?;
        let mut session = sink.open(&cx, &[StreamInfo::new("rows", schema)]).await?;
        let committed = session.claim(&lineage).await?;
        let writer = session.writer(LaneId(0)).await?;
        Ok(Self { session, writer, committed })
    }

    pub(crate) async fn prepare(
        &mut self,
        epoch: Epoch,
        rows: &RecordBatch,
    ) -> (Vec<Committable>, Vec<Reject>) {
        self.writer.write(StreamId(0), rows.clone()).await.unwrap();
        let prepared = self.writer.prepare(epoch).await.unwrap();
        (prepared.committables, prepared.rejects)
    }

    pub(crate) async fn commit(&mut self, epoch: Epoch, staged: Vec<Committable>) -> Result<()> {
        let json = Bytes::from_static(b"{}");
        let checkpoint = CheckpointRecord { epoch, generation: 1, last: true, json };
        self.session.commit(epoch, &checkpoint, staged).await.map(drop)
    }

    pub(crate) async fn epoch(&mut self, epoch: Epoch, rows: &RecordBatch) -> Vec<Reject> {
        let (staged, rejects) = self.prepare(epoch, rows).await;
        self.commit(epoch, staged).await.unwrap();
        rejects
    }
}

pub(crate) fn ids(values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let ids = Int64Array::from_iter_values(values);
    let names = StringArray::from_iter_values(ids.values().iter().map(|id| format!("name {id}")));
    batch(vec![("id", Arc::new(ids)), ("name", Arc::new(names))])
}

pub(crate) fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap()
}

pub(crate) fn path(root: &TempDir) -> String {
    root.path().join("table").to_str().unwrap().to_owned()
}

/// The table as another client sees it.
pub(crate) async fn table(root: &TempDir) -> DeltaTable {
    let url = Url::from_directory_path(root.path().join("table")).unwrap();
    let mut table = DeltaTable::try_from_url(url).await.unwrap();
    table.load().await.unwrap();
    table
}

/// What another client's SQL says of the table `t`.
pub(crate) async fn query(root: &TempDir, sql: &str) -> RecordBatch {
    let session = SessionContext::new();
    session.register_table("t", table(root).await.table_provider().await.unwrap()).unwrap();
    let result = session.sql(sql).await.unwrap();
    let schema = Arc::new(result.schema().as_arrow().clone());
    concat_batches(&schema, &result.collect().await.unwrap()).unwrap()
}

/// The ids of the table, sorted.
pub(crate) async fn visible(root: &TempDir) -> Vec<i64> {
    use arrow::array::AsArray;
    let rows = query(root, "SELECT id FROM t ORDER BY id").await;
    rows.column(0).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec()
}
