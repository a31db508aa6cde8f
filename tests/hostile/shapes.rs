//! Few things, each too large; or far too many small ones.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use orbit_etl::ErrorKind;
use orbit_etl::connectors::files::Compression;
use orbit_etl::prelude::*;

use super::{MIB, tell_peak};
use crate::target::{files, published};

const LONG: usize = 100 * MIB;
/// More than a text of that length takes, and less than two of them.
const POOL: usize = 512 * MIB;

/// `id,text`: a short row, the long one, a short row.
fn write_long_row(path: &Path) {
    let mut file = std::io::BufWriter::new(fs::File::create(path).unwrap());
    write!(file, "id,text\n1,short\n2,").unwrap();
    for piece in 0..LONG / 16 {
        write!(file, "{piece:016x}").unwrap();
    }
    write!(file, "\n3,short\n").unwrap();
    file.flush().unwrap();
}

fn long_row(home: &Path) -> orbit_etl::PipelineBuilder {
    let path = home.join("long.csv");
    write_long_row(&path);
    let schema =
        Schema::new(vec![Field::new("id", DataType::Int64, true), Field::new("text", DataType::Utf8, true)]);
    let source = FilesSource::csv(path.display().to_string()).schema(Arc::new(schema)).max_record(2 * LONG);
    Pipeline::builder("row")
        .source("files", source)
        .sink("lake", FilesSink::parquet(home.join("lake").display().to_string()))
        .checkpoint(home.join("state"), Duration::from_secs(60))
}

pub(super) async fn a_row_of_a_hundred_megabytes() {
    let home = tempfile::tempdir().unwrap();
    let report = long_row(home.path()).memory_limit(POOL).build().unwrap().run().await.unwrap();
    assert_eq!(report.rows_written(), 3);
    tell_peak();
}

/// Refused by name, and nothing of it in the target.
pub(super) async fn a_row_without_room() {
    let home = tempfile::tempdir().unwrap();
    let error = long_row(home.path()).memory_limit(64 * MIB).build().unwrap().run().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Resources, "{}", error.report());
    assert_eq!(error.context("node"), Some("files"), "{}", error.report());
    assert!(published(&home.path().join("lake")).is_empty());
    tell_peak();
}

pub(super) async fn ten_thousand_columns() {
    const COLUMNS: usize = 10_000;
    const ROWS: usize = 50;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("wide.csv");
    let mut text = (0..COLUMNS).map(|c| format!("c{c}")).collect::<Vec<_>>().join(",");
    for row in 0..ROWS {
        text.push('\n');
        text.push_str(&(0..COLUMNS).map(|c| (row * c).to_string()).collect::<Vec<_>>().join(","));
    }
    fs::write(&path, text).unwrap();
    let report = Pipeline::builder("columns")
        .source("files", FilesSource::csv(path.display().to_string()))
        .sink("lake", FilesSink::parquet(home.path().join("lake").display().to_string()))
        .checkpoint(home.path().join("state"), Duration::from_secs(60))
        .memory_limit(POOL)
        .parallelism(2)
        .build()
        .unwrap()
        .run()
        .await
        .unwrap();
    assert_eq!(report.rows_written(), ROWS as u64);
    tell_peak();
}

pub(super) async fn ten_thousand_partitions_in_one_batch() {
    const PARTITIONS: usize = 10_000;
    let home = tempfile::tempdir().unwrap();
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("part", DataType::Utf8, false),
    ]));
    let rows = 2 * PARTITIONS;
    let parts = StringArray::from_iter_values((0..rows).map(|row| format!("p{}", row % PARTITIONS)));
    let ids = Int64Array::from_iter_values(0..rows as i64);
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(ids), Arc::new(parts)]).unwrap();
    let lake = home.path().join("lake");
    let sink = FilesSink::csv(lake.display().to_string())
        .compression(Compression::None)
        .partition_by(["part"])
        .max_open_files(128);
    let report = Pipeline::builder("partitions")
        .source("batch", MemorySource::new(schema, vec![batch]))
        .sink("lake", sink)
        .checkpoint(home.path().join("state"), Duration::from_secs(60))
        .memory_limit(256 * MIB)
        .parallelism(2)
        .batch_rows(rows)
        .build()
        .unwrap()
        .run()
        .await
        .unwrap();
    assert_eq!(report.rows_written(), rows as u64);
    let folders = fs::read_dir(&lake)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("part="));
    assert_eq!(folders.count(), PARTITIONS);
    assert!(files(&lake.join("_orbit/staged")).is_empty());
    tell_peak();
}

pub(super) async fn ten_thousand_files() {
    const FILES: usize = 10_000;
    let home = tempfile::tempdir().unwrap();
    let input = home.path().join("input");
    fs::create_dir(&input).unwrap();
    for file in 0..FILES {
        fs::write(input.join(format!("{file:05}.csv")), format!("id,text\n{file},one\n{file},two\n"))
            .unwrap();
    }
    let pipeline = || {
        Pipeline::builder("files")
            .source("files", FilesSource::csv(format!("{}/*.csv", input.display())))
            .sink("lake", FilesSink::parquet(home.path().join("lake").display().to_string()))
            .checkpoint(home.path().join("state"), Duration::from_millis(500))
            .memory_limit(128 * MIB)
            .parallelism(2)
            .build()
            .unwrap()
    };
    let report = pipeline().run().await.unwrap();
    assert_eq!(report.rows_written(), 2 * FILES as u64);
    // All of them are remembered.
    fs::write(input.join("new.csv"), "id,text\n1,new\n").unwrap();
    assert_eq!(pipeline().run().await.unwrap().rows_written(), 1);
    tell_peak();
}

/// Every row of one side meets every row of the other.
pub(super) async fn a_join_on_one_key() {
    const LEFT: usize = 200_000;
    const RIGHT: usize = 20;
    let side = |name: &str, rows: usize| {
        let schema = Arc::new(Schema::new(vec![
            Field::new("key", DataType::Int64, false),
            Field::new(name, DataType::Utf8, false),
        ]));
        let batches = (0..rows.div_ceil(10_000)).map(|batch| {
            let range = batch * 10_000..rows.min((batch + 1) * 10_000);
            let keys = Int64Array::from_iter_values(range.clone().map(|_| 7));
            let texts = StringArray::from_iter_values(range.map(|row| {
                let mut text = String::new();
                write!(text, "{name} {row:050}").unwrap();
                text
            }));
            RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(keys), Arc::new(texts)]).unwrap()
        });
        MemorySource::new(Arc::clone(&schema), batches.collect())
    };
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let sink = FnSink::new(move |_, batch: RecordBatch| {
        counter.fetch_add(batch.num_rows(), Ordering::Relaxed);
        async { Ok(()) }
    });
    let home = tempfile::tempdir().unwrap();
    Pipeline::builder("join")
        .source("l", side("a", LEFT))
        .source("r", side("b", RIGHT))
        .transform("joined", Sql::new("SELECT l.key, l.a, r.b FROM l JOIN r ON l.key = r.key"))
        .inputs(["l", "r"])
        .sink("out", sink)
        .checkpoint_in_memory()
        .spill_in(home.path())
        .memory_limit(64 * MIB)
        .parallelism(2)
        .build()
        .unwrap()
        .run()
        .await
        .unwrap();
    assert_eq!(seen.load(Ordering::Relaxed), LEFT * RIGHT);
    tell_peak();
}
