//! Pipelines that are written down, with the connectors and transforms that are built in.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema};
use orbit_etl::connectors::files::{Compression, CsvOptions, Format, Mode};
use orbit_etl::prelude::*;
use orbit_etl::spec::{Loader, Spec, Syntax, json_schema};
use orbit_etl::transforms::sql::Joins;
use orbit_etl::{Registry, register_enabled};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn registry() -> Registry {
    let mut registry = Registry::new();
    register_enabled(&mut registry);
    registry
}

#[tokio::test]
async fn builder_and_spec_make_the_same_plan() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path).display().to_string();
    fs::write(at("in.csv"), "id;price\n1;2.5\n").unwrap();
    fs::write(at("names.json"), "{\"id\": 1, \"name\": \"a\"}\n").unwrap();
    fs::write(
        at("job.yaml"),
        "
name: job
sources:
  prices:
    type: files
    path: in.csv
    format: csv
    csv: {delimiter: ;}
    schema: {id: int64, price: float64}
    split_size: 1MiB
    sample_rows: 5
    missing: error
  names: {type: files, path: names.json, storage: {region: nowhere}}
transforms:
  cheap: {type: sql, query: 'SELECT id, price FROM input WHERE price < 3', inputs: prices}
  joined: {type: sql, query: SELECT * FROM cheap JOIN names USING (id), joins: sort_merge, inputs: [cheap, names]}
sinks:
  lake:
    {type: files, path: lake, format: parquet, compression: zstd, compression_level: 5, mode: overwrite,
     partition_by: [id], target_file_size: 1GiB, inputs: joined, delivery: exactly_once}
  copy: {type: files, path: copy, format: json, inputs: names}
checkpoint: {path: state, every: 1m}
on_error: {action: dead_letter, sink: {type: files, path: bad, format: json}, max_rows: 3}
delivery: at_least_once
again: full
restart: {max: 2, backoff: 1s, max_backoff: 5s}
parallelism: 3
batch_rows: 1000
memory: 100MiB
edge_bytes: 1MiB
idle_after: 30s
spill_in: .
",
    )
    .unwrap();
    let written = Spec::load(at("job.yaml")).unwrap().build(&registry()).unwrap_or_else(|e| panic!("{e}"));

    let columns = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("price", DataType::Float64, true),
    ]));
    let prices = FilesSource::csv(at("in.csv"))
        .csv_options(CsvOptions { delimiter: ';', ..CsvOptions::default() })
        .schema(columns)
        .split_size(1 << 20)
        .sample_rows(5)
        .missing(orbit_etl::connectors::files::Missing::Error);
    let lake = FilesSink::new(at("lake"), Format::Parquet)
        .compression(Compression::Zstd)
        .compression_level(5)
        .mode(Mode::Overwrite)
        .partition_by(["id"])
        .target_file_size(1 << 30);
    let built = Pipeline::builder("job")
        .source("prices", prices)
        .source("names", FilesSource::new(at("names.json")).storage("region", "nowhere"))
        .transform("cheap", Sql::new("SELECT id, price FROM input WHERE price < 3"))
        .inputs(["prices"])
        .transform(
            "joined",
            Sql::new("SELECT * FROM cheap JOIN names USING (id)").with_joins(Joins::SortMerge),
        )
        .inputs(["cheap", "names"])
        .sink("lake", lake)
        .inputs(["joined"])
        .sink_delivery(Delivery::ExactlyOnce)
        .sink("copy", FilesSink::json(at("copy")))
        .inputs(["names"])
        .checkpoint(at("state/job"), Duration::from_secs(60))
        .on_error(OnError::dead_letter(FilesSink::json(at("bad"))).max_rows(3))
        .delivery(Delivery::AtLeastOnce)
        .again(Again::Full)
        .restart(Restart { max: 2, backoff: Duration::from_secs(1), max_backoff: Duration::from_secs(5) })
        .parallelism(3)
        .batch_rows(1000)
        .memory_limit(100 << 20)
        .edge_bytes(1 << 20)
        .idle_after(Duration::from_secs(30))
        .spill_in(at("."))
        .build()
        .unwrap();
    assert_eq!(format!("{written:#?}"), format!("{built:#?}"));
    let explained = written.explain().await.unwrap().to_string();
    assert_eq!(explained, built.explain().await.unwrap().to_string());
    assert!(explained.contains("delivery: exactly once"), "{explained}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_runs_twice_and_does_its_work_once() {
    let folder = tempfile::tempdir().unwrap();
    let example = Path::new(HERE).join("examples/specs");
    fs::create_dir(folder.path().join("data")).unwrap();
    for file in ["orders.yaml", "data/orders-1.csv", "data/orders-2.csv", "data/customers.csv"] {
        fs::copy(example.join(file), folder.path().join(file)).unwrap();
    }
    let spec = Spec::load(folder.path().join("orders.yaml")).unwrap();
    let pipeline = spec.build(&registry()).unwrap_or_else(|e| panic!("{e}"));
    let report = pipeline.run().await.unwrap();
    assert_eq!((report.rows_read(), report.rows_written(), report.rows_rejected()), (7, 3, 1));
    let list = fs::read_dir(folder.path().join("lake/quiet")).unwrap();
    let list: String = list.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok()).collect();
    assert_eq!(list, "id,name\n3,Edsger\n");
    assert!(folder.path().join("lake/large/ordered=2026-11-02").is_dir());
    assert!(folder.path().join(".orbit/state/orders").is_dir());
    let again = pipeline.run().await.unwrap();
    assert_eq!((again.rows_read(), again.rows_written()), (0, 0));
}

#[test]
fn delta_tables_are_written_down_by_these_names() {
    let text = "
name: p
sources:
  old: {type: delta, path: lake/a, version: 7}
  then: {type: delta, path: lake/a, timestamp: 2026-01-31T12:00:00Z}
  all: {type: delta, path: lake/b, changes: true, follow: true, poll: 5s, storage: {secret_access_key: hunter2}}
sinks:
  whole: {type: delta, path: out/a, mode: overwrite, partition_by: [day], inputs: old}
  more: {type: delta, path: out/b, mode: append, schema_mode: merge, target_file_size: 64MiB, inputs: [then, all],
    storage: {secret_access_key: hunter3}}
";
    let spec = Loader::new().parse(text, Syntax::Yaml).unwrap();
    let pipeline = spec.build(&registry()).unwrap_or_else(|e| panic!("{e}"));
    let shown = format!("{pipeline:#?}\n{spec:?}\n{}", spec.to_yaml(&registry()));
    assert!(shown.contains("lake/b") && !shown.contains("hunter"), "{shown}");
    let text = text.replace("version: 7", "verison: 7").replace("overwrite", "replace").replace("5s", "5");
    let error = Loader::new().parse(&text, Syntax::Yaml).unwrap().build(&registry()).unwrap_err();
    let keys: Vec<_> = error.problems().iter().map(|p| (p.line(), p.key())).collect();
    assert_eq!(
        keys,
        [(4, "sources.old.verison"), (6, "sources.all.poll"), (8, "sinks.whole.mode")],
        "{error}"
    );
}

#[test]
fn iceberg_tables_are_written_down_by_these_names() {
    let text = "
name: p
sources:
  old: {type: iceberg, catalog: {type: rest, uri: 'https://x', warehouse: lake, token: hunter1}, table: a.b, snapshot: 7}
  then: {type: iceberg, catalog: {type: sql, uri: 'postgresql://me:hunter2@x/db', warehouse: lake, name: n}, table: a.b,
    timestamp: 2026-01-31T12:00:00Z}
  all:
    type: iceberg
    catalog: {type: rest, uri: 'https://x', properties: {scope: hunter3}, storage: {secret_access_key: hunter4}}
    table: a.b
    reference: main
    from_snapshot: 3
    follow: true
    poll: 5s
sinks:
  more:
    type: iceberg
    catalog: {type: memory, warehouse: lake}
    table: 'out.{stream}'
    mode: append
    schema_mode: merge
    partition_by: [{column: day, transform: month}, {column: id}]
    properties: {write.metadata.previous-versions-max: '10'}
    compression: snappy
    target_file_size: 64MiB
    inputs: [old, then, all]
";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.yaml");
    fs::write(&file, text).unwrap();
    let spec = Loader::new().load(&file).unwrap();
    let pipeline = spec.build(&registry()).unwrap_or_else(|e| panic!("{e}"));
    let shown = format!("{pipeline:#?}\n{spec:?}\n{}", spec.to_yaml(&registry()));
    assert!(shown.contains("write.metadata") && !shown.contains("hunter"), "{shown}");
    // A path is relative to the file; a server's warehouse is no path.
    let lake = folder.path().join("lake").display().to_string();
    assert!(shown.contains(&format!("warehouse: {lake:?}")), "{shown}");
    assert!(shown.contains("\"lake\""), "{shown}");
    let text = text.replace("snapshot: 7", "snapshto: 7").replace("poll: 5s", "poll: 5");
    let text = text.replace("type: memory", "type: hive");
    let error = Loader::new().parse(&text, Syntax::Yaml).unwrap().build(&registry()).unwrap_err();
    let keys: Vec<_> = error.problems().iter().map(|p| (p.line(), p.key())).collect();
    assert_eq!(
        keys,
        [(4, "sources.old.snapshto"), (14, "sources.all.poll"), (18, "sinks.more.catalog.type")],
        "{error}"
    );
    assert!(!error.to_string().contains("hunter"), "{error}");
}

#[test]
fn mistakes_in_built_in_types_are_told_all_at_once() {
    let text = "
name: p
source:
  type: files
  path: in.csv
  schema: {id: int46}
  csv: {delimiter: tab}
  smaple_rows: 5
  changed: reloaded
transforms: [{type: sql, qurey: SELECT 1}]
sink: {type: files, path: 's3://bucket/x', format: parquet, compression: gzip, compression_level: 50,
  storage: {region: [hunter2]}}
";
    let error = Loader::new().parse(text, Syntax::Yaml).unwrap().build(&registry()).unwrap_err();
    assert_eq!(
        error.to_string().lines().collect::<Vec<_>>(),
        [
            "spec:6:11: source.schema: column `id`: `int46` is not a type",
            "spec:7:20: source.csv.delimiter: expected a single character, found the text \"tab\"",
            "spec:8:3: source.smaple_rows: unknown key; did you mean \"sample_rows\"?",
            "spec:9:12: source.changed: expected one of error, reload, found the text \"reloaded\"; did you mean \
             \"reload\"?",
            "spec:10:26: transforms[0].qurey: unknown key; did you mean \"query\"?",
            "spec:12:21: sink.storage.region: expected a text, found a list",
        ]
    );
    let text = text.replace("[hunter2]", "hunter2").replace("{id: int46}", "{id: int64}");
    let error = Loader::new().parse(&text, Syntax::Yaml).unwrap().build(&registry()).unwrap_err();
    let told: Vec<_> = error.problems().iter().filter(|p| p.key().starts_with("sink")).collect();
    assert_eq!(told.len(), 1, "{error}");
    assert_eq!((told[0].line(), told[0].key()), (11, "sink.compression_level"));
}

/// `ORBIT_BLESS=1 cargo test` writes it anew.
#[test]
fn the_schema_in_the_documentation_is_current() {
    let path = Path::new(HERE).join("docs/spec.schema.json");
    let schema = json_schema(&registry());
    let current = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
    if std::env::var_os("ORBIT_BLESS").is_some() {
        fs::write(&path, &current).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap();
    assert!(committed == current, "docs/spec.schema.json is old: run this test with ORBIT_BLESS=1");
}
