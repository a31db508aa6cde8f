//! Generated rows: the same ones however they are read.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Decimal128Type, Float64Type, Int64Type};
use futures::TryStreamExt;
use orbit_etl_connector_generate::GenerateSource;
use orbit_etl_core::{Connector, Context, Position, ScanRequest, Source, SourceEvent, Split, StreamId};
use serde_json::json;

fn source(rows: u64, seed: u64) -> GenerateSource {
    serde_json::from_value(json!({
        "rows": rows,
        "seed": seed,
        "split_rows": 300,
        "columns": {
            "id": { "type": "sequence", "start": 10, "step": 5 },
            "whole": { "type": "int64", "min": -3, "max": 3, "nulls": 0.25 },
            "part": { "type": "float64", "min": 1.5, "max": 2.5 },
            "price": { "type": "decimal", "precision": 6, "scale": 2, "min": 100, "max": 99_999 },
            "flag": { "type": "boolean", "share": 0.2 },
            "note": { "type": "text", "words": 2 },
            "city": { "type": "choice", "values": ["Bonn", "Ulm"] },
            "key": { "type": "uuid" },
            "day": { "type": "date", "from": "2024-02-28", "to": "2024-03-01" },
            "at": { "type": "timestamp", "from": "2024-01-01T00:00:00Z", "to": "2024-01-01T00:00:01Z" },
        }
    }))
    .unwrap()
}

fn cx() -> Context {
    Context::standalone("generated").unwrap()
}

async fn splits(source: &GenerateSource, after: Option<&Position>) -> Vec<Split> {
    let changes: Vec<_> = source.splits(&cx(), after).await.unwrap().try_collect().await.unwrap();
    changes.into_iter().flat_map(|change| change.added).collect()
}

/// The rows of a split with the positions after each batch.
async fn read(
    source: &GenerateSource,
    split: &Split,
    after: Option<&Position>,
    batch_rows: usize,
) -> (Vec<RecordBatch>, Vec<Position>) {
    let scan = [ScanRequest::all(StreamId(0), batch_rows)];
    let mut events = source.open(&cx(), split, after, &scan).await.unwrap();
    let (mut batches, mut positions) = (Vec::new(), Vec::new());
    loop {
        match events.try_next().await.unwrap().unwrap() {
            SourceEvent::Batch { batch, position, .. } => {
                batches.push(batch);
                positions.extend(position);
            }
            SourceEvent::Finished => return (batches, positions),
            other => panic!("{other:?}"),
        }
    }
}

async fn all(source: &GenerateSource, batch_rows: usize) -> RecordBatch {
    let mut batches = Vec::new();
    for split in splits(source, None).await {
        batches.extend(read(source, &split, None, batch_rows).await.0);
    }
    concat_batches(&batches[0].schema(), &batches).unwrap()
}

#[tokio::test]
async fn values_are_what_was_asked_for() {
    let rows = all(&source(1_000, 1), 64).await;
    assert_eq!(rows.num_rows(), 1_000);
    let ids = rows["id"].as_primitive::<Int64Type>();
    assert!((0..1_000).all(|i| ids.value(i) == 10 + 5 * i as i64));
    let whole = rows["whole"].as_primitive::<Int64Type>();
    assert!((150..350).contains(&whole.null_count()), "{}", whole.null_count());
    let mut seen: Vec<i64> = whole.iter().flatten().collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [-3, -2, -1, 0, 1, 2, 3]);
    assert!(rows["part"].as_primitive::<Float64Type>().iter().flatten().all(|v| (1.5..2.5).contains(&v)));
    assert!(
        rows["price"].as_primitive::<Decimal128Type>().iter().flatten().all(|v| (100..=99_999).contains(&v))
    );
    assert!((120..280).contains(&rows["flag"].as_boolean().true_count()));
    let keys: std::collections::BTreeSet<_> = rows["key"].as_string::<i32>().iter().flatten().collect();
    assert!(keys.len() == 1_000 && keys.iter().all(|key| key.len() == 36), "{}", keys.len());
    assert!(rows["note"].as_string::<i32>().iter().flatten().all(|note| note.split(' ').count() == 2));
}

#[tokio::test]
async fn rows_are_the_same_however_they_are_cut_and_others_for_another_seed() {
    let once = all(&source(1_000, 1), 1_000).await;
    assert_eq!(once, all(&source(1_000, 1), 7).await);
    assert_ne!(once, all(&source(1_000, 2), 7).await);
    assert_eq!(once.slice(0, 500), all(&source(500, 1), 64).await);
}

#[tokio::test]
async fn a_split_goes_on_after_any_position() {
    let source = source(1_000, 3);
    let split = &splits(&source, None).await[1];
    let (batches, positions) = read(&source, split, None, 70).await;
    let whole = concat_batches(&batches[0].schema(), &batches).unwrap();
    let mut read_before = 0;
    for (batch, position) in batches.iter().zip(&positions) {
        read_before += batch.num_rows();
        let (rest, _) = read(&source, split, Some(position), 33).await;
        let rest = concat_batches(&whole.schema(), &rest).unwrap();
        assert_eq!(rest, whole.slice(read_before, whole.num_rows() - read_before));
    }
    let scan = [ScanRequest::all(StreamId(0), 10)];
    for wrong in [json!({ "row": 5_000 }), json!({ "rows": 1 }), json!(null)] {
        assert!(source.open(&cx(), split, Some(&wrong.into()), &scan).await.is_err());
    }
}

#[tokio::test]
async fn more_rows_are_new_rows() {
    let before = source(450, 4);
    let changes: Vec<_> = before.splits(&cx(), None).await.unwrap().try_collect().await.unwrap();
    let position = changes.last().unwrap().position.clone();
    assert!(splits(&before, Some(&position)).await.is_empty());
    let names: Vec<_> =
        splits(&source(1_000, 4), Some(&position)).await.iter().map(|s| s.id.to_string()).collect();
    assert_eq!(names, ["450-750", "750-1000"]);
}

#[tokio::test]
async fn only_wanted_columns_are_made() {
    let source = source(10, 5);
    let split = &splits(&source, None).await[0];
    let request = ScanRequest { projection: Some(vec!["city".into()]), ..ScanRequest::all(StreamId(0), 100) };
    let mut events = source.open(&cx(), split, None, &[request]).await.unwrap();
    let Some(SourceEvent::Batch { batch, .. }) = events.try_next().await.unwrap() else { panic!() };
    assert_eq!((batch.num_columns(), batch.num_rows()), (1, 10));
    assert_eq!(batch["city"].len(), 10);
}

#[test]
fn mistakes_name_the_column() {
    for (column, why) in [
        (json!({ "type": "int64", "min": 3, "max": 2 }), "the range ends before it begins"),
        (json!({ "type": "choice", "values": [] }), "there are no `values`"),
        (json!({ "type": "boolean", "nulls": 1.5 }), "`nulls` lies between 0 and 1"),
        (json!({ "type": "decimal", "precision": 3 }), "`min` and `max` need more digits than `precision`"),
        (json!({ "type": "float64", "min": 1.0, "max": 1.0 }), "the range ends before it begins"),
    ] {
        let source: GenerateSource =
            serde_json::from_value(json!({ "rows": 1, "columns": { "x": column } })).unwrap();
        let error = source.validate().unwrap_err();
        assert_eq!((error.message(), error.context("option")), (why, Some("columns.x")));
    }
    let unknown = json!({ "rows": 1, "columns": { "x": { "type": "int64", "mni": 1 } } });
    assert!(serde_json::from_value::<GenerateSource>(unknown).is_err());
}
