//! The files sink, and what its tests share.

mod formats;
mod limits;
mod partitions;
mod protocol;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use bytes::Bytes;
use orbit_etl_connector_files::FilesSink;
use orbit_etl_core::{
    CheckpointRecord, Committable, Committed, Context, Epoch, LaneId, Lineage, Result, Sink, SinkSession,
    SinkWriter, StreamId, StreamInfo,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

fn context() -> Context {
    Context::standalone("out").unwrap()
}

fn lineage(claim: u64) -> Lineage {
    Lineage {
        id: "0192-lineage".into(),
        sink: "out".into(),
        generation: 1,
        claim,
        run: format!("run-{claim}"),
    }
}

fn checkpoint(epoch: Epoch, generation: u64) -> CheckpointRecord {
    CheckpointRecord { epoch, generation, last: false, json: Bytes::from_static(b"{}") }
}

/// A session with a claim, and a writer for one lane.
struct Run {
    session: Box<dyn SinkSession>,
    writer: Box<dyn SinkWriter>,
    committed: Option<Committed>,
    generation: u64,
}

impl Run {
    async fn start(sink: &FilesSink, schema: &SchemaRef, lineage: &Lineage) -> Self {
        Self::start_in(&context(), sink, schema, lineage).await
    }

    async fn start_in(cx: &Context, sink: &FilesSink, schema: &SchemaRef, lineage: &Lineage) -> Self {
        let inputs = [StreamInfo::new("rows", Arc::clone(schema))];
        let mut session = sink.open(cx, &inputs).await.unwrap();
        let committed = session.claim(lineage).await.unwrap();
        let writer = session.writer(LaneId(0)).await.unwrap();
        Self { session, writer, committed, generation: 1 }
    }

    async fn write(&mut self, batch: &RecordBatch) {
        self.writer.write(StreamId(0), batch.clone()).await.unwrap();
    }

    async fn prepare(&mut self, epoch: Epoch) -> Vec<Committable> {
        self.writer.prepare(epoch).await.unwrap().committables
    }

    async fn commit(&mut self, epoch: Epoch, staged: Vec<Committable>) -> Result<()> {
        let rejects = self.session.commit(epoch, &checkpoint(epoch, self.generation), staged).await?;
        assert!(rejects.is_empty());
        Ok(())
    }

    async fn epoch(&mut self, epoch: Epoch, batch: &RecordBatch) {
        self.write(batch).await;
        let staged = self.prepare(epoch).await;
        self.commit(epoch, staged).await.unwrap();
    }
}

fn ids(values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let ids = Int64Array::from_iter_values(values);
    let names = StringArray::from_iter_values(ids.values().iter().map(|id| format!("name {id}")));
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, false),
    ]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(ids), Arc::new(names)]).unwrap()
}

/// The files below a directory that a reader sees, with their sizes.
fn visible(root: &Path) -> BTreeMap<String, u64> {
    files(root).into_iter().filter(|(path, _)| !path.split('/').any(|part| part.starts_with('_'))).collect()
}

fn staged(root: &Path) -> Vec<String> {
    files(root).into_keys().filter(|path| path.starts_with("_orbit/staged/")).collect()
}

fn files(root: &Path) -> BTreeMap<String, u64> {
    fn walk(root: &Path, dir: &Path, out: &mut BTreeMap<String, u64>) {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, out);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                out.insert(name, path.metadata().unwrap().len());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    out
}

fn parquet(path: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let schema = Arc::clone(reader.schema());
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    concat_batches(&schema, &batches).unwrap()
}

/// The ids of all visible Parquet files, sorted.
fn visible_ids(root: &Path) -> Vec<i64> {
    let mut ids: Vec<i64> = visible(root)
        .keys()
        .flat_map(|file| {
            let batch = parquet(&root.join(file));
            batch.column_by_name("id").unwrap().as_primitive::<Int64Type>().values().to_vec()
        })
        .collect();
    ids.sort_unstable();
    ids
}

fn json(path: &Path) -> serde_json::Value {
    let mut text = String::new();
    File::open(path).unwrap().read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}
