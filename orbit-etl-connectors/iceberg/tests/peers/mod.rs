//! Tables that Python's client writes, and that it reads.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, ListBuilder,
    RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{Date32Type, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use orbit_etl_connector_iceberg::{IcebergCatalog, IcebergSink, IcebergSource, PartitionBy};
use orbit_etl_core::{Position, ScanRequest, SourceEvent, StreamId, StreamInfo};
use orbit_etl_testkit::{Run, context, read_split, splits};
use serde_json::{Value, json};
use tempfile::TempDir;

const IDLE: std::time::Duration = std::time::Duration::from_secs(1);

/// A database with a catalog, and a folder with its tables.
struct Shared {
    dir: TempDir,
    python: String,
}

impl Shared {
    /// `None` where there is no Python with the client.
    fn new() -> Option<Self> {
        let Ok(python) = std::env::var("ORBIT_TEST_ICEBERG_PYTHON") else {
            let required = std::env::var("ORBIT_TEST_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name.trim() == "iceberg"), "there is no pyiceberg");
            // Not through the macro, whose text a passing test swallows.
            let _ = writeln!(std::io::stderr(), "SKIPPED: ORBIT_TEST_ICEBERG_PYTHON names no Python");
            return None;
        };
        Some(Self { dir: TempDir::new().unwrap(), python })
    }

    fn catalog(&self) -> IcebergCatalog {
        let at = self.dir.path().display();
        IcebergCatalog::sql(format!("sqlite://{at}/catalog.db")).warehouse(format!("{at}/lake"))
    }

    fn source(&self) -> IcebergSource {
        IcebergSource::new(self.catalog(), "ns.t")
    }

    fn python(&self, what: &[&str]) -> String {
        let at = self.dir.path().display();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/peer.py");
        let mut command = Command::new(&self.python);
        command.arg(script).args([format!("{at}/catalog.db"), format!("file://{at}/lake")]).args(what);
        let done = command.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{what:?}: {said}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// What Python reads, line by line.
    fn read_by_python(&self) -> Vec<Value> {
        self.python(&["read", "ns.t"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What this crate reads after a position, in the same form, and the next position.
    async fn read(&self, after: Option<&Position>) -> (Vec<Value>, Position) {
        let (cx, source) = (context().unwrap(), self.source());
        let scan = [ScanRequest::all(StreamId(0), 64)];
        let (mut rows, mut last) = (Vec::new(), after.cloned());
        for change in splits(&cx, &source, after, IDLE).await.unwrap() {
            for split in &change.added {
                for event in read_split(&cx, &source, split, None, &scan, IDLE).await.unwrap() {
                    if let SourceEvent::Batch { batch, .. } = event {
                        rows.extend((0..batch.num_rows()).map(|row| shown(&batch, row)));
                    }
                }
            }
            last = Some(change.position);
        }
        rows.sort_by_key(|row| row["id"].as_i64());
        (rows, last.unwrap())
    }
}

fn rows(from: i64, to: i64) -> RecordBatch {
    let ids = from..to;
    let mut tags = ListBuilder::new(StringBuilder::new());
    for id in ids.clone() {
        if id % 4 != 0 {
            tags.values().append_value(format!("t{id}"));
            tags.values().append_value("ü");
        }
        tags.append(id % 4 != 0);
    }
    let name = |id: i64| (id % 3 != 0).then(|| format!("a/b {}", id.rem_euclid(2)));
    let day = |id: i64| (id % 5 != 0).then(|| i32::try_from(id * 100 - 500).unwrap());
    let at = TimestampMicrosecondArray::from_iter_values(ids.clone().map(|id| id * 1_000_000_000_000 - 1));
    let price = Decimal128Array::from_iter_values(ids.clone().map(|id| i128::from(id * 7 - 20)));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from_iter_values(ids.clone()))),
        ("name", Arc::new(StringArray::from_iter(ids.clone().map(name)))),
        ("day", Arc::new(Date32Array::from_iter(ids.clone().map(day)))),
        ("at", Arc::new(at.with_timezone("UTC"))),
        ("price", Arc::new(price.with_precision_and_scale(12, 2).unwrap())),
        ("score", Arc::new(Float64Array::from_iter_values(ids.clone().map(|id| id as f64 / 4.0)))),
        ("ok", Arc::new(BooleanArray::from_iter(ids.map(|id| Some(id % 2 == 0))))),
        ("tags", Arc::new(tags.finish())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap()
}

/// A row as Python prints it.
fn shown(batch: &RecordBatch, row: usize) -> Value {
    let mut out = serde_json::Map::new();
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let value = match field.name().as_str() {
            _ if column.is_null(row) => Value::Null,
            "id" | "more" => json!(column.as_primitive::<Int64Type>().value(row)),
            "name" => json!(column.as_string::<i32>().value(row)),
            "day" => json!(column.as_primitive::<Date32Type>().value(row)),
            "at" => json!(column.as_primitive::<TimestampMicrosecondType>().value(row)),
            "price" => json!(column.as_primitive::<Decimal128Type>().value_as_string(row)),
            "score" => json!(column.as_primitive::<Float64Type>().value(row)),
            "ok" => json!(column.as_boolean().value(row)),
            _ => {
                let tags = column.as_list::<i32>().value(row);
                json!(tags.as_string::<i32>().iter().collect::<Vec<_>>())
            }
        };
        out.insert(field.name().clone(), value);
    }
    Value::Object(out)
}

fn expected(ids: impl IntoIterator<Item = i64>) -> Vec<Value> {
    ids.into_iter().map(|id| shown(&rows(id, id + 1), 0)).collect()
}

async fn append(sink: &IcebergSink, claim: u64, rows: RecordBatch) {
    let stream = StreamInfo::new("rows", rows.schema());
    let mut run = Run::start(&context().unwrap(), sink, &[stream], claim).await.unwrap();
    run.epoch(claim, &[rows]).await.unwrap();
}

#[tokio::test]
async fn python_reads_and_extends_what_is_written_here() {
    let Some(shared) = Shared::new() else { return };
    for (table, by) in [
        ("ns.t", vec![]),
        ("parts.t", vec![PartitionBy::new("name", "identity"), PartitionBy::new("ok", "identity")]),
        (
            "hidden.t",
            vec![
                PartitionBy::new("day", "month"),
                PartitionBy::new("at", "day"),
                PartitionBy::new("id", "bucket[3]"),
                PartitionBy::new("price", "truncate[10]"),
            ],
        ),
    ] {
        let sink = IcebergSink::append(shared.catalog(), table).partition_by(by);
        append(&sink, 1, rows(0, 40)).await;
        append(&sink, 2, rows(40, 50)).await;
        let read = shared.python(&["read", table]);
        let read: Vec<Value> = read.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, expected(0..50), "{table}");
    }
    let (_, position) = shared.read(None).await;
    shared.python(&["write", "ns.t", "50", "60"]);
    assert_eq!(shared.read(Some(&position)).await.0, expected(50..60));
    append(&IcebergSink::append(shared.catalog(), "ns.t"), 3, rows(60, 70)).await;
    assert_eq!(shared.read_by_python(), expected(0..70));
}

#[tokio::test]
async fn what_python_writes_is_read_and_extended_here() {
    let Some(shared) = Shared::new() else { return };
    shared.python(&["write", "ns.t", "0", "20"]);
    let (first, position) = shared.read(None).await;
    assert_eq!(first, expected(0..20));
    append(&IcebergSink::append(shared.catalog(), "ns.t"), 1, rows(20, 30)).await;
    assert_eq!(shared.read_by_python(), expected(0..30));
    // Other partitions and one column more, of which the rows so far know nothing.
    shared.python(&["evolve", "ns.t"]);
    shared.python(&["write", "ns.t", "30", "40"]);
    append(&IcebergSink::append(shared.catalog(), "ns.t"), 2, rows(40, 45)).await;
    let with_more = |ids: std::ops::Range<i64>| {
        let mut rows = expected(ids);
        rows.iter_mut().for_each(|row| row["more"] = Value::Null);
        rows
    };
    assert_eq!(shared.read(None).await.0, with_more(0..45));
    assert_eq!(shared.read_by_python(), with_more(0..45));
    assert_eq!(shared.read(Some(&position)).await.0, with_more(20..45));
    shared.python(&["delete", "ns.t", "7"]);
    let mut left = with_more(0..45);
    left.remove(7);
    assert_eq!(shared.read(None).await.0, left);
    let (cx, source) = (context().unwrap(), shared.source());
    let since = splits(&cx, &source, Some(&position), IDLE).await;
    assert!(since.is_err(), "rows that were taken away are not new ones");
}
