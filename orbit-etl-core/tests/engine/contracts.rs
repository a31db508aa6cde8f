//! What becomes of a sink's schema when its input's changes, between runs and during one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use orbit_etl_core::memory::{MemorySink, MemorySource, MemoryTable};
use orbit_etl_core::observe::RunReport;
use orbit_etl_core::pipeline::{Evolution, SchemaContract};
use orbit_etl_core::{Again, ErrorKind, Pipeline, Result, StreamId, StreamInfo};

use super::support::soon;

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<_> = columns.iter().map(|(n, c)| Field::new(*n, c.data_type().clone(), true)).collect();
    let columns = columns.into_iter().map(|(_, c)| c).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn narrow() -> RecordBatch {
    batch(vec![("id", Arc::new(Int32Array::from(vec![1, 2])))])
}

/// A wider type, and a column more.
fn wide() -> RecordBatch {
    batch(vec![
        ("id", Arc::new(Int64Array::from(vec![3, 1 << 40, 5])) as ArrayRef),
        ("note", Arc::new(StringArray::from(vec![None, None, Some("x")]))),
    ])
}

/// One run over the streams, with the state in a directory.
async fn run(
    dir: &Path,
    table: &MemoryTable,
    contract: SchemaContract,
    streams: &[(&str, RecordBatch)],
) -> Result<RunReport> {
    let infos = streams.iter().map(|(name, rows)| StreamInfo::new(*name, rows.schema()).with_bounded(true));
    let (source, feed) = MemorySource::unbounded(infos.collect());
    feed.add_split("s");
    for (i, (_, rows)) in streams.iter().enumerate() {
        feed.push_to("s", StreamId(i), rows.clone()).unwrap();
    }
    feed.finish_split("s").unwrap();
    feed.finish();
    let pipeline = Pipeline::builder("p")
        .source("in", source)
        .sink("out", MemorySink::new(table))
        .schema_contract(contract)
        .again(Again::Full)
        .checkpoint(dir, Duration::from_secs(3_600))
        .parallelism(1)
        .build()
        .unwrap();
    soon(pipeline.run()).await
}

fn types(table: &MemoryTable, stream: &str) -> Vec<(String, DataType)> {
    let schema: SchemaRef = table.batches(stream).last().unwrap().schema();
    schema.fields().iter().map(|f| (f.name().clone(), f.data_type().clone())).collect()
}

fn id(data_type: DataType) -> (String, DataType) {
    ("id".to_owned(), data_type)
}

#[tokio::test(flavor = "multi_thread")]
async fn between_runs_a_sink_keeps_to_its_contract() {
    use Evolution::{DiscardRow, DiscardValue, Evolve, Freeze};
    let note = ("note".to_owned(), DataType::Utf8);
    for (columns, types_policy, expected) in [
        (Evolve, Evolve, Some((vec![id(DataType::Int64), note.clone()], 5, 0))),
        (DiscardValue, DiscardValue, Some((vec![id(DataType::Int32)], 5, 0))),
        (DiscardRow, DiscardRow, Some((vec![id(DataType::Int32)], 3, 2))),
        (Evolve, DiscardRow, Some((vec![id(DataType::Int32), note.clone()], 4, 1))),
        (Freeze, Evolve, None),
        (Evolve, Freeze, None),
    ] {
        let case = format!("columns {columns}, types {types_policy}");
        let (dir, table) = (tempfile::tempdir().unwrap(), MemoryTable::new());
        let contract = SchemaContract { tables: Freeze, columns, types: types_policy };
        run(dir.path(), &table, contract, &[("t", narrow())]).await.unwrap();
        let stream = table.streams()[0].clone();
        let second = run(dir.path(), &table, contract, &[("t", wide())]).await;
        match expected {
            Some((schema, rows, left_out)) => {
                let report = second.unwrap();
                assert_eq!(types(&table, &stream), schema, "{case}");
                assert_eq!((table.rows(), report.rows_filtered()), (rows, left_out), "{case}");
                // The narrower rows come again: nothing of the sink is narrowed.
                run(dir.path(), &table, contract, &[("t", narrow())]).await.unwrap();
                assert_eq!(types(&table, &stream), schema, "{case}: again");
                assert_eq!(table.rows(), rows + 2, "{case}: again");
            }
            None => {
                let error = second.unwrap_err();
                assert_eq!((error.kind(), error.context("node")), (ErrorKind::Schema, Some("out")), "{case}");
                assert_eq!(table.rows(), 2, "{case}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_a_sink_does_not_have_are_written_refused_or_left_out() {
    for (tables, expected) in
        [(Evolution::Evolve, Some(2)), (Evolution::DiscardRow, Some(1)), (Evolution::Freeze, None)]
    {
        let (dir, table) = (tempfile::tempdir().unwrap(), MemoryTable::new());
        let contract = SchemaContract { tables, ..SchemaContract::default() };
        let two = |first: &'static str, second: &'static str| [(first, narrow()), (second, narrow())];
        run(dir.path(), &table, contract, &two("a", "b")).await.unwrap();
        assert_eq!(table.rows(), 4, "{tables}: all streams are new at first");
        match (run(dir.path(), &table, contract, &two("c", "b")).await, expected) {
            (Ok(report), Some(streams)) => {
                assert_eq!(table.rows(), 4 + streams * 2, "{tables}");
                assert_eq!(report.rows_filtered() as usize, (2 - streams) * 2, "{tables}");
                assert_eq!(table.streams().contains(&"c".to_owned()), streams == 2, "{tables}");
                assert_eq!(table.batches("b").len(), 2, "{tables}: what stands behind it is its own");
            }
            (Err(error), None) => assert_eq!(error.context("stream"), Some("c"), "{error}"),
            (ended, _) => panic!("{tables}: {ended:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn during_a_run_the_sink_follows_or_the_rows_are_made_to_fit() {
    for (policy, expected) in [
        (Evolution::Evolve, Some((2, 5))),
        (Evolution::DiscardValue, Some((1, 5))),
        (Evolution::DiscardRow, Some((1, 3))),
        (Evolution::Freeze, None),
    ] {
        let (source, feed) = MemorySource::unbounded(vec![StreamInfo::new("t", narrow().schema())]);
        feed.add_split("s");
        feed.push("s", narrow()).unwrap();
        feed.schema("s", StreamId(0), wide().schema()).unwrap();
        feed.push("s", wide()).unwrap();
        feed.finish_split("s").unwrap();
        feed.finish();
        let table = MemoryTable::new();
        let pipeline = Pipeline::builder("p")
            .source("in", source)
            .sink("out", MemorySink::new(&table))
            .schema_contract(SchemaContract { tables: policy, columns: policy, types: policy })
            .checkpoint_in_memory()
            .build()
            .unwrap();
        let ended = soon(pipeline.run()).await;
        match expected {
            Some((columns, rows)) => {
                ended.unwrap();
                let stream = table.streams()[0].clone();
                assert_eq!((types(&table, &stream).len(), table.rows()), (columns, rows), "{policy}");
                let known = pipeline.state().await.unwrap().unwrap().state.sinks["out"].streams.clone();
                assert_eq!(known.values().next().unwrap().len(), columns, "{policy}: it is remembered");
            }
            None => assert_eq!((ended.unwrap_err().kind(), table.rows()), (ErrorKind::Schema, 0)),
        }
        let told = pipeline.explain().await;
        assert!(told.is_err() || told.unwrap().to_string().contains("schema contract: tables"), "{policy}");
    }
}
