//! What specs mean: names, inputs, values from outside, includes and defaults.

use std::fs;

use orbit_etl_core::spec::{Loader, Spec, Syntax};
use orbit_etl_core::{Delivery, ErrorKind, Pipeline};

use super::types::registry;

fn loader() -> Loader {
    Loader::new().variables(|name| match name {
        "LANES" => Some("3".into()),
        "DIR" => Some("data".into()),
        "EMPTY" => Some(String::new()),
        "TRICKY" => Some("a\", evil: [1] # ${LANES}".into()),
        _ => None,
    })
}

fn parse(text: &str) -> Spec {
    loader().parse(text, Syntax::Yaml).unwrap()
}

fn pipeline(text: &str) -> Pipeline {
    parse(text).build(&registry()).unwrap_or_else(|e| panic!("{e}"))
}

/// The plan in words, which has everything that shapes it.
async fn plan(text: &str) -> String {
    pipeline(text).explain().await.unwrap().to_string()
}

/// The names of nodes with what they read.
async fn edges(text: &str) -> Vec<String> {
    let explained = pipeline(text).explain().await.unwrap();
    explained.nodes.iter().map(|n| format!("{} < {}", n.name, n.inputs.join(" "))).collect()
}

const ENDS: &str = "
name: p
source: {type: files, path: in.csv, format: csv}
sink: {type: files, path: out, format: json}
";

#[tokio::test]
async fn chains_and_graphs_are_connected() {
    assert_eq!(edges(ENDS).await, ["source < ", "sink < source.rows"]);
    let chain = format!(
        "{ENDS}transforms: [{{type: sql, query: a}}, {{type: sql, query: b, name: named}}, {{type: sql, query: c}}]"
    );
    assert_eq!(
        edges(&chain).await,
        ["source < ", "sql < source.rows", "named < sql.source", "sql_2 < named.sql", "sink < sql_2.named"]
    );
    let graph = "
name: p
sources:
  orders: {type: files, path: in.csv, format: csv}
  customers: {type: files, path: in.csv, format: csv}
transforms:
  late: {type: sql, query: a, inputs: joined}
  joined: {type: sql, query: a, inputs: [orders, customers]}
sinks:
  lake: {type: files, path: out, format: json, inputs: [late, joined]}
  copy: {type: files, path: out, format: json, inputs: [orders.rows]}
";
    assert_eq!(
        edges(graph).await,
        [
            "orders < ",
            "customers < ",
            "joined < orders.rows customers.rows",
            "late < joined.orders",
            "lake < late.joined joined.orders",
            "copy < orders.rows",
        ]
    );
}

#[tokio::test]
async fn the_three_syntaxes_mean_the_same() {
    let yaml = plan(
        "
name: p
parallelism: 2
source: {type: files, path: in.csv, format: csv, csv: {header: true}, partition_by: [a, b]}
sink: {type: files, path: out, format: json}
",
    )
    .await;
    let json = r#"{"name": "p", "parallelism": 2,
        "source": {"type": "files", "path": "in.csv", "format": "csv", "csv": {"header": true}, "partition_by": ["a", "b"]},
        "sink": {"type": "files", "path": "out", "format": "json"}}"#;
    let toml = "
name = 'p'
parallelism = 2
source = { type = 'files', path = 'in.csv', format = 'csv', csv.header = true, partition_by = ['a', 'b'] }
[sink]
type = 'files'
path = 'out'
format = 'json'
";
    for (text, syntax) in [(json, Syntax::Json), (toml, Syntax::Toml)] {
        let spec = loader().parse(text, syntax).unwrap();
        let plan = spec.build(&registry()).unwrap().explain().await.unwrap().to_string();
        assert_eq!(plan, yaml, "{syntax:?}");
    }
    assert!(yaml.contains("header true"), "{yaml}");
}

#[tokio::test]
async fn every_setting_is_taken() {
    let spec = parse("
name: p
description: all settings
x-anchors: {in: &in {type: files, path: in.csv, format: csv}}
source: *in
sinks:
  out: {type: files, path: out, format: json, delivery: at_least_once}
checkpoint: {in_memory: true, every: 2m 30s}
on_error: {action: dead_letter, sink: {type: files, path: rejected, format: json}, max_rows: 5, max_share: 0.5}
delivery: exactly_once
again: full
restart: {max: 1, backoff: 10ms, max_backoff: 1s}
parallelism: ${LANES}
batch_rows: 100
memory: 64MiB
edge_bytes: 1000
idle_after: 5s
spill_in: tmp
schedule: {cron: '@daily', time_zone: Europe/Berlin, missed: run_once}
after: [a, b]
");
    let built = format!("{:?}", spec.build(&registry()).unwrap());
    for part in [
        "every: 150s",
        "checkpoints: Memory",
        "max_rows: Some(5)",
        "max_share: Some(0.5)",
        "delivery: Some(ExactlyOnce)",
        "delivery: Some(AtLeastOnce)",
        "again: Some(Full)",
        "max: 1, backoff: 10ms, max_backoff: 1s",
        "parallelism: 3",
        "batch_rows: 100",
        "memory_limit: 67108864",
        "edge_bytes: 1000",
        "idle_after: 5s",
        "spill_in: Some(\"tmp\")",
        "DeadLetter",
    ] {
        assert!(built.contains(part), "no {part} in {built}");
    }
    assert_eq!((spec.name(), spec.description()), (Some("p"), Some("all settings")));
    assert_eq!(spec.after(), ["a", "b"]);
    assert_eq!(spec.schedule().unwrap().time_zone, "Europe/Berlin");
}

#[tokio::test]
async fn variables_are_text_and_nothing_else() {
    let spec = "
name: p
source:
  type: files
  path: ${DIR}/$${DIR}/${NOT:-there}/${EMPTY:-full}/$x
  format: csv
  sample_rows: ${LANES}
  partition_by: ['${TRICKY}']
sink: {type: files, path: '${EMPTY}out', format: json}
";
    let plan = plan(spec).await;
    assert!(plan.contains("data/${DIR}/there/full/$x by 3a\", evil: [1] # ${LANES}"), "{plan}");
}

#[tokio::test]
async fn includes_and_defaults_fill_in_and_paths_stay_where_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("shared")).unwrap();
    fs::create_dir(dir.path().join("tmp")).unwrap();
    let write = |path: &str, text: &str| fs::write(dir.path().join(path), text).unwrap();
    write(
        "shared/base.yaml",
        "
include: lowest.json
parallelism: 2
source: {type: files, path: in.csv, csv: {header: true}}
defaults: {source: {files: {format: csv, sample_rows: 7}}, sink: {files: {path: lake}}}
",
    );
    write("shared/lowest.json", "{\"parallelism\": 9, \"batch_rows\": 77}");
    write(
        "orders.yaml",
        "
name: p
include: shared/base.yaml
source: {csv: {delimiter: ;}}
sink: {type: files, format: json}
spill_in: tmp
",
    );
    let built =
        |loader: Loader| loader.load(dir.path().join("orders.yaml")).unwrap().build(&registry()).unwrap();
    let pipeline = built(loader());
    let plan = pipeline.explain().await.unwrap();
    let shared = dir.path().join("shared");
    assert_eq!(
        plan.node("source").unwrap().summary,
        format!("files Csv {}/in.csv by 7 header true", shared.display())
    );
    assert_eq!(plan.node("sink").unwrap().summary, format!("files Json {}/lake", shared.display()));
    let debug = format!("{pipeline:?}");
    for part in [
        "parallelism: 2".to_owned(),
        "batch_rows: 77".to_owned(),
        format!("spill_in: Some({:?})", dir.path().join("tmp")),
        format!("checkpoints: Local({:?})", dir.path().join(".orbit/state/p")),
    ] {
        assert!(debug.contains(&part), "no {part} in {debug}");
    }

    let set = loader().set("source.csv.header", "false").set("sink.path", "${DIR}/x").set("parallelism", "5");
    let pipeline = built(set);
    let plan = pipeline.explain().await.unwrap();
    assert!(plan.node("source").unwrap().summary.ends_with("header false"));
    assert_eq!(plan.node("sink").unwrap().summary, "files Json data/x");
    assert!(format!("{pipeline:?}").contains("parallelism: 5"));
    let wrong = loader().set("source.csv.header", "maybe").load(dir.path().join("orders.yaml")).unwrap();
    assert_eq!(
        wrong.build(&registry()).unwrap_err().to_string(),
        "--set: source.csv.header: expected true or false, found the text \"maybe\""
    );
}

#[tokio::test]
async fn errors_of_a_plan_find_their_node() {
    let spec = parse(
        "
name: p
source: {type: files, path: in.csv, format: csv}
transforms:
  - type: sql
    query: SELECT * FROM nowhere
sink: {type: files, path: out, format: json}
",
    );
    let error = spec.build(&registry()).unwrap().explain().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert_eq!(
        spec.locate(&error).to_string(),
        "spec:5:5: transforms[0]: there is no table \"nowhere\"; name an input"
    );
}

#[tokio::test]
async fn guarantees_are_asked_for_as_the_builder_does() {
    let text = format!("{ENDS}delivery: exactly_once\ncheckpoint: {{in_memory: true}}");
    let explained = pipeline(&text).explain().await.unwrap();
    let guarantee = explained.node("sink").unwrap().guarantee.clone().unwrap();
    assert_eq!(guarantee.delivery, Delivery::ExactlyOnce);
}

#[test]
fn fifty_nodes_are_checked_in_a_blink() {
    let mut text = "name: p\nsources:\n".to_owned();
    for i in 0..10 {
        text += &format!("  s{i}: {{type: files, path: in.csv, format: csv}}\n");
    }
    text += "transforms:\n";
    for i in 0..30 {
        let before = if i < 10 { format!("s{i}") } else { format!("t{}", i - 10) };
        text += &format!("  t{i}: {{type: sql, query: SELECT 1, inputs: [{before}]}}\n");
    }
    text += "sinks:\n";
    for i in 20..30 {
        text += &format!("  out{i}: {{type: files, path: out, format: json, inputs: [t{i}]}}\n");
    }
    let begun = std::time::Instant::now();
    parse(&text).build(&registry()).unwrap();
    // Unoptimised code on a busy machine; the bound is for what grows with the square.
    assert!(begun.elapsed().as_millis() < 1000, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn guards_are_written_beside_the_keys_of_the_type() {
    let told = plan(
        "
name: p
source:
  type: files
  path: in.csv
  format: csv
  retry: {max: 7, max_time: 5m}
  rate_limit: {rows: 1000, bytes: 64MiB}
  max_rejects: {rows: 10, share: 0.01, window: 100000}
transforms: [{type: sql, query: a, max_rejects: {rows: '${LANES}'}}]
sink:
  type: files
  path: out
  format: json
  timeout: 30s
  retry: {}
  circuit_breaker: {failure_rate: 0.2, open_for: 1m}
  bulkhead: {service: lake, max_calls: 4}
  fallback: {type: files, path: aside, format: json}
schema_contract: {columns: freeze, types: discard_value}
on_error: skip
",
    )
    .await;
    for note in [
        "retry: up to 7 times within 300s",
        "rate limit: 1000 rows, 67108864 bytes per second",
        "rejects at most 10 rows and a share of 0.01 of the last 100000 rows",
        "rejects at most 3 rows in a run",
        "timeout: 30s per call",
        "retry: up to 4 times within 60s",
        "circuit breaker: opens for 60s when 0.2 of at least 5 calls within 30s fail",
        "bulkhead: 4 calls at a time to lake",
        "schema contract: tables evolve, columns freeze, types discard_value",
        "fallback: sink_fallback",
        "fallback sink_fallback",
        "takes what sink can't",
    ] {
        assert!(told.contains(note), "{note} is not in:\n{told}");
    }
}

#[test]
fn guards_that_make_no_sense_are_told_at_their_keys() {
    let tell = |guard: &str| {
        let text = format!(
            "{}  {guard}\n",
            ENDS.replace(
                "sink: {type: files, path: out, format: json}\n",
                "sink:\n  type: files\n  path: out\n  format: json\n"
            )
        );
        let parsed = loader().parse(&text, Syntax::Yaml).and_then(|spec| spec.build(&registry()));
        parsed.unwrap_err().to_string()
    };
    for (guard, words) in [
        ("retry: {maks: 3}", vec!["sink.retry.maks", "max"]),
        ("timeout: 3 parsecs", vec!["sink.timeout"]),
        ("schema_contract: {columns: drop}", vec!["sink.schema_contract.columns", "discard_row"]),
        ("timeout: 0s", vec!["sink", "a timeout of nothing"]),
        ("bulkhead: {service: a}", vec!["sink.bulkhead", "max_calls"]),
        ("max_rejects: {share: 3}", vec!["sink", "between 0 and 1"]),
        ("fallback: {type: files, format: json}", vec!["sink.fallback", "path"]),
        ("fallback: {type: files, path: a, format: json, retry: {}}", vec!["sink.fallback", "guards"]),
    ] {
        let told = tell(guard);
        for word in words {
            assert!(told.contains(word), "{guard}: {word} is not in:\n{told}");
        }
    }
}
