//! OpenLineage events of runs.

use std::time::Duration;

use orbit_etl_core::memory::{MemorySink, MemorySource, MemoryTable};
use orbit_etl_core::{OnError, Pipeline, Restart, StreamInfo};
use orbit_etl_observe::OpenLineage;
use orbit_etl_transforms::Sql;
use serde_json::{Value, json};

use crate::servers::{Http, orders, source};
use crate::shapes;

fn events(file: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    events.iter().for_each(shapes::check);
    assert!(events.iter().all(|e| e["run"]["runId"] == events[0]["run"]["runId"]));
    events
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<_> = events.iter().map(|e| e["eventType"].as_str().unwrap()).collect();
    kinds.dedup();
    kinds
}

/// Column to (input column, subtype).
fn lineage(event: &Value) -> Value {
    let facet = &event["outputs"][0]["facets"]["columnLineage"];
    let inputs = |fields: &Value| -> Value {
        let fields = fields.as_array().unwrap().iter().map(|f| {
            let how: Vec<_> =
                f["transformations"].as_array().unwrap().iter().map(|t| &t["subtype"]).collect();
            json!([f["name"], f["field"], how])
        });
        fields.collect()
    };
    let fields = facet["fields"].as_object().unwrap().iter();
    let fields: serde_json::Map<_, _> =
        fields.map(|(name, f)| (name.clone(), inputs(&f["inputFields"]))).collect();
    json!({ "fields": fields, "rows": inputs(&facet["dataset"]) })
}

#[tokio::test]
async fn a_run_that_ends_well_is_told_with_schemas_columns_and_counts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("events.ndjson");
    let observer = OpenLineage::to_file(file.to_str().unwrap()).with_namespace("shop");
    let pipeline = Pipeline::builder("copy")
        .source("orders", source())
        .transform("gross", Sql::new("SELECT id AS key, price * 1.19 AS gross FROM input WHERE price > 15"))
        .transform("half", Sql::new("SELECT key, gross / 2 AS half FROM input"))
        .sink("lake", MemorySink::new(&MemoryTable::new()))
        .checkpoint_in_memory()
        .observer(observer)
        .build()
        .unwrap();
    pipeline.run().await.unwrap();
    let events = events(&file);
    assert_eq!(kinds(&events), ["START", "RUNNING", "COMPLETE"]);
    let last = events.last().unwrap();
    assert_eq!((&last["job"]["namespace"], &last["job"]["name"]), (&json!("shop"), &json!("copy")));
    assert_eq!(last["inputs"][0]["facets"]["schema"]["fields"][0], json!({"name": "id", "type": "Int64"}));
    assert_eq!(last["inputs"][0]["inputFacets"]["inputStatistics"]["rowCount"], 4);
    assert_eq!(last["inputs"][0]["inputFacets"]["dataQualityAssertions"]["assertions"][0]["success"], true);
    assert_eq!(last["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"], 3);
    assert_eq!(
        lineage(last),
        json!({
            "fields": {
                "key": [["copy.orders", "id", ["IDENTITY"]]],
                "half": [["copy.orders", "price", ["TRANSFORMATION"]]],
            },
            "rows": [["copy.orders", "price", ["FILTER"]]],
        })
    );
    assert_eq!(last["run"]["facets"].get("errorMessage"), None);
}

#[tokio::test]
async fn joins_and_aggregates_show_in_the_columns() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("events.ndjson");
    let query =
        "SELECT o.code, sum(o.price) AS total FROM orders o JOIN known k ON o.id = k.id GROUP BY o.code";
    let pipeline = Pipeline::builder("totals")
        .source("orders", source())
        .source("known", source())
        .transform("sum", Sql::new(query))
        .inputs(["orders", "known"])
        .sink("lake", MemorySink::new(&MemoryTable::new()))
        .checkpoint_in_memory()
        .observer(OpenLineage::to_file(file.to_str().unwrap()))
        .build()
        .unwrap();
    pipeline.run().await.unwrap();
    let events = events(&file);
    assert_eq!(
        lineage(events.last().unwrap()),
        json!({
            "fields": {
                "code": [["totals.orders", "code", ["IDENTITY"]]],
                "total": [["totals.orders", "price", ["AGGREGATION"]]],
            },
            "rows": [
                ["totals.orders", "code", ["GROUP_BY"]],
                ["totals.orders", "id", ["JOIN"]],
                ["totals.known", "id", ["JOIN"]],
            ],
        })
    );
}

#[tokio::test]
async fn a_failed_run_says_why_without_a_value_of_a_row() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("events.ndjson");
    let build = |on_error: OnError| {
        Pipeline::builder("copy")
            .source("orders", source())
            .transform("cast", Sql::new("SELECT CAST(code AS BIGINT) AS code FROM input"))
            .sink("lake", MemorySink::new(&MemoryTable::new()))
            .checkpoint_in_memory()
            .on_error(on_error)
            .observer(OpenLineage::to_file(file.to_str().unwrap()))
            .build()
            .unwrap()
    };
    build(OnError::default()).run().await.unwrap_err();
    let told = events(&file);
    assert_eq!(kinds(&told).last(), Some(&"FAIL"));
    let message = told.last().unwrap()["run"]["facets"]["errorMessage"]["message"].as_str().unwrap();
    assert!(message.contains("cast") && !message.contains("private"), "{message}");
    assert_eq!(told.last().unwrap()["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"], 0);

    std::fs::remove_file(&file).unwrap();
    build(OnError::skip()).run().await.unwrap();
    let told = events(&file);
    assert_eq!(told.last().unwrap()["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"], 3);
}

#[tokio::test]
async fn a_run_that_is_told_to_stop_at_once_is_aborted() {
    let mut server = Http::start(&[503, 200]).await;
    let (endless, feed) =
        MemorySource::unbounded(vec![StreamInfo::new("orders", orders().schema()).with_bounded(false)]);
    feed.add_split("a");
    let observer = OpenLineage::to_url(format!("{}/api/v1/lineage", server.url))
        .with_token("very-secret".to_owned())
        .with_every(Duration::from_millis(20));
    assert!(!format!("{observer:?}").contains("very-secret"));
    let pipeline = Pipeline::builder("follow")
        .source("orders", endless)
        .sink("lake", MemorySink::new(&MemoryTable::new()))
        .checkpoint_in_memory()
        .observer(observer)
        .build()
        .unwrap();
    let running = pipeline.start();
    let refused = server.next().await;
    let first = server.next().await;
    assert_eq!(first.body, refused.body, "what was refused for now comes again");
    assert_eq!(first.path, "/api/v1/lineage");
    assert!(
        first.headers.iter().any(|h| h.eq_ignore_ascii_case("authorization: Bearer very-secret")),
        "{first:?}"
    );
    assert_eq!(first.body["eventType"], "START");
    for _ in 0..2 {
        let event = server.next().await.body;
        shapes::check(&event);
        assert_eq!(event["eventType"], "RUNNING");
        assert_eq!(event["job"]["facets"]["jobType"]["processingType"], "STREAMING");
    }
    running.abort();
    running.await.unwrap_err();
    let last = server.all().pop().unwrap().body;
    shapes::check(&last);
    assert_eq!(last["eventType"], "ABORT");
}

#[tokio::test]
async fn nobody_there_to_listen_fails_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = Pipeline::builder("copy")
        .source("orders", source())
        .sink("lake", MemorySink::new(&MemoryTable::new()))
        .checkpoint_in_memory()
        .restart(Restart { max: 0, ..Restart::default() })
        .observer(OpenLineage::to_file(dir.path().to_str().unwrap()))
        .build()
        .unwrap();
    assert_eq!(pipeline.run().await.unwrap().rows_written(), 4);
}
