//! What we write as others read it, and what they write as we read it. `readers.py` says who they are.

use std::env;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Int64Type};
use orbit_etl_connector_delta::{DeltaSink, DeltaSource};
use orbit_etl_core::StreamInfo;
use orbit_etl_testkit::{read, write_rows};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::sink::{Run, batch, lineage};

const PYTHON: &str = "ORBIT_TEST_READERS_PYTHON";

/// What the script prints; `None` where it can't be run and need not.
fn python(arguments: &[&str]) -> Option<String> {
    let Ok(python) = env::var(PYTHON) else {
        let required = env::var("ORBIT_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "readers"), "{PYTHON} isn't set");
        // Not through the macro, whose text a passing test swallows.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {PYTHON} isn't set; see scripts/readers");
        return None;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/readers/readers.py");
    let ended = Command::new(python).arg(script).args(arguments).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    Some(String::from_utf8(ended.stdout).unwrap())
}

type Row = (i64, Option<&'static str>, Option<&'static str>);

fn rows(rows: &[Row]) -> RecordBatch {
    batch(vec![
        ("id", Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.0)))),
        ("name", Arc::new(rows.iter().map(|r| r.1).collect::<StringArray>())),
        ("part", Arc::new(rows.iter().map(|r| r.2).collect::<StringArray>())),
    ])
}

const FIRST: [Row; 4] = [
    (1, Some("a"), Some("x")),
    (2, None, Some("a/b = c%")),
    (3, Some("ü/=%"), None),
    (4, Some(""), Some("x")),
];
const SECOND: [Row; 2] = [(4, Some("four"), Some("x")), (5, Some("five"), Some("y"))];

#[tokio::test(flavor = "multi_thread")]
async fn others_read_what_we_write() {
    let Some(versions) = python(&["versions"]) else { return };
    let root = TempDir::new().unwrap();
    let at = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let input = StreamInfo::new("rows", rows(&[]).schema());
    let write = async |sink: DeltaSink, claim: u64, rows: RecordBatch| {
        let mut run = Run::try_start(&sink, rows.schema(), lineage(claim)).await.unwrap();
        run.epoch(claim, &rows).await;
    };
    for (name, partitioned) in [("append", false), ("append-parted", true)] {
        let sink = DeltaSink::append(at(name)).property("delta.checkpointInterval", "2");
        let sink = if partitioned { sink.partition_by(["part"]) } else { sink };
        write_rows(&sink, &input, &[rows(&FIRST)]).await.unwrap();
    }
    for (name, partitioned) in [("merge", false), ("merge-parted", true)] {
        let sink = DeltaSink::merge(at(name), ["id"]);
        let sink = if partitioned { sink.partition_by(["part"]) } else { sink };
        write(sink.clone(), 1, rows(&FIRST)).await;
        write(sink, 2, rows(&SECOND)).await;
    }
    write(DeltaSink::append(at("overwrite")), 1, rows(&FIRST)).await;
    write(DeltaSink::overwrite(at("overwrite")), 2, rows(&SECOND)).await;
    write(DeltaSink::append(at("replace")).partition_by(["part"]), 1, rows(&FIRST)).await;
    write(DeltaSink::replace_where(at("replace"), "id >= 4"), 2, rows(&SECOND)).await;

    let (all, some) = ([&FIRST[..3], &SECOND[..]].concat(), SECOND.to_vec());
    let expected = |name: &str| match name.split('-').next().unwrap() {
        "append" => FIRST.to_vec(),
        "overwrite" => some.clone(),
        _ => all.clone(),
    };
    let told = python(&["read", root.path().to_str().unwrap()]).unwrap();
    let tables: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(tables.len(), 6, "{told}");
    for table in tables {
        let expected = expected(table["table"].as_str().unwrap());
        assert_eq!(table["deltalake"], json!(expected), "{table} by {versions}");
        assert_eq!(table["polars"], json!(expected), "{table} by {versions}");
        assert_eq!(table["duckdb"], json!(expected.len()), "{table} by {versions}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn we_read_what_others_write() {
    let root = TempDir::new().unwrap();
    if python(&["write", root.path().to_str().unwrap()]).is_none() {
        return;
    }
    let three = |rows: &[Row]| -> Vec<(i64, Option<String>, Option<String>)> {
        rows.iter().map(|r| (r.0, r.1.map(str::to_owned), r.2.map(str::to_owned))).collect()
    };
    let mut deleted = three(&FIRST[..3]);
    deleted.insert(0, deleted[0].clone());
    let mut merged = three(&FIRST);
    merged[1].1 = Some("two".to_owned());
    merged.push((9, Some("nine".to_owned()), None));
    for (name, expected) in [("deltalake", deleted), ("merged", merged), ("polars", three(&FIRST))] {
        let source = DeltaSource::new(root.path().join(name).to_str().unwrap());
        let batches = read(&source, Duration::from_secs(5)).await.unwrap().into_batches(0);
        let all = concat_batches(&batches[0].schema(), &batches).unwrap();
        let ids = all.column_by_name("id").unwrap().as_primitive::<Int64Type>();
        let text = |name: &str| cast(all.column_by_name(name).unwrap(), &DataType::Utf8).unwrap();
        let (names, parts) = (text("name"), text("part"));
        let own =
            |column: &StringArray, row: usize| column.is_valid(row).then(|| column.value(row).to_owned());
        let (names, parts) = (names.as_string::<i32>(), parts.as_string::<i32>());
        let mut found: Vec<_> =
            (0..all.num_rows()).map(|row| (ids.value(row), own(names, row), own(parts, row))).collect();
        found.sort();
        assert_eq!(found, expected, "{name}");
        if name == "polars" {
            let day = cast(all.column_by_name("day").unwrap(), &DataType::Utf8).unwrap();
            let mut days: Vec<_> = day.as_string::<i32>().iter().flatten().map(str::to_owned).collect();
            days.sort();
            assert_eq!(days, ["0001-01-01", "2024-02-29", "9999-12-31"]);
        }
    }
}
