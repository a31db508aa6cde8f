//! Input, settings and disks that no load can work with: a plain error, and a target as it was.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use orbit_etl::connectors::files::Missing;
use orbit_etl::prelude::*;
use orbit_etl::{Error, ErrorKind, PipelineBuilder};
use parquet::arrow::ArrowWriter;

use crate::job::schema;
use crate::target::published;

/// A folder with an input and a lake into which a first file was loaded.
struct Loaded {
    folder: tempfile::TempDir,
    before: BTreeMap<PathBuf, Vec<u8>>,
}

impl Loaded {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut loaded = Self { folder, before: BTreeMap::new() };
        fs::create_dir(loaded.at("input")).unwrap();
        fs::write(loaded.at("input/a.csv"), csv(0..100)).unwrap();
        let report = loaded.pipeline(loaded.csv()).build().unwrap().run().await.unwrap();
        assert_eq!(report.rows_written(), 100);
        loaded.before = published(&loaded.at("lake"));
        assert_eq!(loaded.before.len(), 2, "a file and a manifest");
        loaded
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn text(&self, path: &str) -> String {
        self.at(path).display().to_string()
    }

    fn csv(&self) -> FilesSource {
        FilesSource::csv(self.text("input/*.csv")).schema(schema())
    }

    fn pipeline(&self, source: FilesSource) -> PipelineBuilder {
        let lake = FilesSink::parquet(self.text("lake"));
        load("load", source, lake).checkpoint(self.at("state"), Duration::from_secs(60))
    }

    /// Runs what must fail, and looks whether it has left its mark.
    async fn fails(&self, pipeline: PipelineBuilder) -> Error {
        let error = pipeline.build().unwrap().run().await.expect_err("the run went through");
        assert_eq!(published(&self.at("lake")), self.before, "the target is not as it was: {error}");
        error
    }
}

fn load(name: &str, source: FilesSource, lake: FilesSink) -> PipelineBuilder {
    Pipeline::builder(name).source("files", source).sink("lake", lake).parallelism(2)
}

fn csv(ids: std::ops::Range<u32>) -> String {
    let rows = ids.map(|id| format!("{id},north,note {id}\n"));
    "id,region,note\n".chars().chain(rows.collect::<String>().chars()).collect()
}

#[track_caller]
fn expect(error: &Error, kind: ErrorKind, place: &[(&str, &str)]) {
    assert_eq!(error.kind(), kind, "{}", error.report());
    for (key, part) in place {
        let value = error.context(key).unwrap_or_else(|| panic!("no {key}: {}", error.report()));
        assert!(value.contains(part), "{key} is {value:?}: {}", error.report());
    }
    assert!(error.to_string().contains("; "), "no remedy: {}", error.report());
}

#[tokio::test]
async fn a_missing_file() {
    let loaded = Loaded::new().await;
    let error = loaded.fails(loaded.pipeline(FilesSource::csv(loaded.text("input/b.csv")))).await;
    expect(&error, ErrorKind::NotFound, &[("node", "files"), ("pipeline", "load")]);
    assert!(error.to_string().contains("b.csv"), "{error}");
}

#[tokio::test]
async fn a_glob_that_nothing_matches() {
    let loaded = Loaded::new().await;
    let error = loaded.fails(loaded.pipeline(FilesSource::new(loaded.text("input/*.parquet")))).await;
    expect(&error, ErrorKind::NotFound, &[("node", "files")]);
    assert!(error.to_string().contains("*.parquet"), "{error}");
}

#[tokio::test]
async fn a_column_that_sql_does_not_know() {
    let loaded = Loaded::new().await;
    let pipeline = Pipeline::builder("load")
        .source("files", loaded.csv())
        .transform("query", Sql::new("SELECT id, price FROM input"))
        .sink("lake", FilesSink::parquet(loaded.text("lake")))
        .checkpoint(loaded.at("state"), Duration::from_secs(60));
    let error = loaded.fails(pipeline).await;
    expect(&error, ErrorKind::NotFound, &[("node", "query"), ("column", "price"), ("columns", "region")]);
}

#[tokio::test]
async fn a_state_directory_of_another_pipeline() {
    let loaded = Loaded::new().await;
    let lake = FilesSink::parquet(loaded.text("lake"));
    let other = load("other", loaded.csv(), lake).checkpoint(loaded.at("state"), Duration::from_secs(60));
    let error = loaded.fails(other).await;
    expect(&error, ErrorKind::Config, &[("its pipeline", "load"), ("pipeline", "other")]);
}

#[tokio::test]
async fn a_state_directory_of_another_lineage() {
    let loaded = Loaded::new().await;
    let error = loaded
        .fails(loaded.pipeline(loaded.csv()).checkpoint(loaded.at("new"), Duration::from_secs(60)))
        .await;
    expect(&error, ErrorKind::Conflict, &[("node", "lake"), ("lineage", "-"), ("target's lineage", "-")]);
    assert!(!error.is_retryable());
    // The rightful one goes on.
    fs::write(loaded.at("input/b.csv"), csv(100..110)).unwrap();
    let report = loaded.pipeline(loaded.csv()).build().unwrap().run().await.unwrap();
    assert_eq!(report.rows_written(), 10);
}

#[tokio::test]
async fn a_state_directory_that_was_put_back() {
    let loaded = Loaded::new().await;
    let copied = Command::new("cp").arg("-r").args([loaded.at("state"), loaded.at("copy")]).status().unwrap();
    assert!(copied.success());
    fs::write(loaded.at("input/b.csv"), csv(100..110)).unwrap();
    let report = loaded.pipeline(loaded.csv()).build().unwrap().run().await.unwrap();
    assert_eq!(report.rows_written(), 10);
    let lake = published(&loaded.at("lake"));
    let stale = loaded.pipeline(loaded.csv()).checkpoint(loaded.at("copy"), Duration::from_secs(60));
    let error = stale.build().unwrap().run().await.unwrap_err();
    expect(&error, ErrorKind::Conflict, &[("node", "lake")]);
    assert_eq!(published(&loaded.at("lake")), lake);
}

#[tokio::test]
async fn a_memory_limit_that_no_sort_fits_into() {
    let loaded = Loaded::new().await;
    fs::write(loaded.at("input/b.csv"), csv(100..40_000)).unwrap();
    let pipeline = Pipeline::builder("load")
        .source("files", loaded.csv())
        .transform("sorted", Sql::new("SELECT * FROM input ORDER BY note"))
        .sink("lake", FilesSink::parquet(loaded.text("lake")))
        .checkpoint(loaded.at("state"), Duration::from_secs(60))
        .memory_limit(100_000);
    let error = loaded.fails(pipeline).await;
    expect(&error, ErrorKind::Resources, &[("node", "sorted")]);
}

#[tokio::test]
async fn a_malformed_line_where_nothing_is_to_be_left_out() {
    let loaded = Loaded::new().await;
    fs::write(loaded.at("input/b.csv"), csv(100..110) + "secret,north,a note\n").unwrap();
    let error = loaded.fails(loaded.pipeline(loaded.csv())).await;
    expect(&error, ErrorKind::Data, &[("node", "files"), ("place", "b.csv"), ("place", "12")]);
    assert!(!error.report().contains("secret"), "{}", error.report());
}

#[tokio::test]
async fn a_parquet_file_that_was_cut_off() {
    let loaded = Loaded::new().await;
    fs::create_dir(loaded.at("parquet")).unwrap();
    write_parquet(&loaded.at("parquet/a.parquet"));
    write_parquet(&loaded.at("parquet/b.parquet"));
    let whole = fs::read(loaded.at("parquet/b.parquet")).unwrap();
    fs::write(loaded.at("parquet/b.parquet"), &whole[..whole.len() / 2]).unwrap();
    let error = loaded.fails(loaded.pipeline(FilesSource::parquet(loaded.text("parquet")))).await;
    expect(&error, ErrorKind::Data, &[("node", "files"), ("file", "b.parquet")]);
}

#[tokio::test]
async fn files_of_different_schemas() {
    let loaded = Loaded::new().await;
    fs::write(loaded.at("input/b.csv"), "id,region\n1,north\n").unwrap();
    let source = loaded.csv().missing(Missing::Error);
    let error = loaded.fails(loaded.pipeline(source)).await;
    expect(&error, ErrorKind::Schema, &[("node", "files"), ("file", "b.csv"), ("column", "note")]);
}

#[tokio::test]
async fn a_partition_that_is_no_number() {
    let loaded = Loaded::new().await;
    let folder = loaded.at("parts/year=last");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("a.csv"), csv(0..10)).unwrap();
    let mut columns = schema().fields().to_vec();
    columns.push(Arc::new(Field::new("year", DataType::Int64, true)));
    let columns = Arc::new(Schema::new(columns));
    let source = FilesSource::csv(loaded.text("parts")).schema(columns);
    let error = loaded.fails(loaded.pipeline(source)).await;
    expect(&error, ErrorKind::Data, &[("node", "files"), ("file", "year=last"), ("column", "year")]);
}

#[tokio::test]
async fn a_disk_that_is_full() {
    let loaded = Loaded::new().await;
    let Some(disk) = SmallDisk::mount(&loaded.at("lake-on-small-disk"), "400k") else { return };
    let pipeline = |source| {
        load("small", source, FilesSink::parquet(disk.path.display().to_string()))
            .checkpoint(loaded.at("small-state"), Duration::from_millis(5))
            .build()
            .unwrap()
    };
    let report = pipeline(loaded.csv()).run().await.unwrap();
    assert_eq!(report.rows_written(), 100);
    let before = published(&disk.path);
    fs::write(loaded.at("input/b.csv"), incompressible(100..30_000)).unwrap();
    let error = pipeline(loaded.csv()).run().await.unwrap_err();
    expect(&error, ErrorKind::Resources, &[("node", "lake"), ("file", "lake-on-small-disk")]);
    // Whole epochs may have been committed before the disk was full; what was there stays as it was.
    let after = published(&disk.path);
    assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)));
    // With room, the next run goes on and leaves nothing behind.
    disk.resize("64m");
    let report = pipeline(loaded.csv()).run().await.unwrap();
    let total = report.node("lake").unwrap().total;
    assert_eq!(total.rows_out, 30_000);
    let staged = crate::target::files(&disk.path.join("_orbit/staged"));
    assert!(staged.is_empty(), "{staged:?}");
}

#[tokio::test]
async fn a_full_disk_under_the_state_directory() {
    let loaded = Loaded::new().await;
    let Some(disk) = SmallDisk::mount(&loaded.at("small-disk"), "256k") else { return };
    let pipeline = || {
        load("small", loaded.csv(), FilesSink::parquet(loaded.text("other-lake")))
            .checkpoint(disk.path.join("state"), Duration::from_secs(60))
            .build()
            .unwrap()
    };
    assert_eq!(pipeline().run().await.unwrap().rows_written(), 100);
    let before = published(&loaded.at("other-lake"));
    let filler = disk.path.join("filler");
    assert!(fs::write(&filler, vec![0; 1 << 20]).is_err(), "the disk is not that small");
    fs::write(loaded.at("input/b.csv"), csv(100..110)).unwrap();
    let error = pipeline().run().await.unwrap_err();
    expect(&error, ErrorKind::Resources, &[("pipeline", "small")]);
    assert_eq!(published(&loaded.at("other-lake")), before);
    fs::remove_file(filler).unwrap();
    assert_eq!(pipeline().run().await.unwrap().rows_written(), 10);
}

/// Text that no compression makes small.
fn incompressible(ids: std::ops::Range<u32>) -> String {
    let mut text = "id,region,note\n".to_owned();
    let mut state = 1_u64;
    for id in ids {
        let note: String = (0..4)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                format!("{:08x}", state >> 32)
            })
            .collect();
        text.push_str(&format!("{id},north,{note}\n"));
    }
    text
}

fn write_parquet(path: &Path) {
    let ids: Vec<i64> = (0..5_000).collect();
    let texts = |prefix: &str| StringArray::from_iter_values(ids.iter().map(|id| format!("{prefix} {id}")));
    let columns: Vec<ArrayRef> =
        vec![Arc::new(Int64Array::from(ids.clone())), Arc::new(texts("region")), Arc::new(texts("note"))];
    let batch = RecordBatch::try_new(schema(), columns).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// A file system in memory, unmounted with this.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// `None`, and a word about it, where mounting isn't allowed.
    fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir(path).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(path)
            .output();
        match mount {
            Ok(output) if output.status.success() => Some(Self { path: path.to_owned() }),
            refused => {
                // Not through the macro, whose text a passing test swallows.
                let _ =
                    writeln!(std::io::stderr(), "SKIPPED: no small disk can be mounted here: {refused:?}");
                None
            }
        }
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.path).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.path).status();
    }
}
