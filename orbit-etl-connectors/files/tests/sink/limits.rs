//! File sizes, memory, full disks, and configurations that can't work.

use std::process::Command;

use datafusion_execution::memory_pool::{GreedyMemoryPool, MemoryPool};
use orbit_etl_connector_files::{Compression, CsvOptions, FilesSink};
use orbit_etl_core::{Connector, ContextBuilder, Discard, ErrorKind};

use super::*;

#[tokio::test]
async fn files_roll_over_at_their_target_size() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let sink = FilesSink::parquet(root.to_str().unwrap())
        .compression(Compression::None)
        .target_file_size(64 << 10)
        .row_group_rows(1_000);
    let mut run = Run::start(&sink, &ids([1]).schema(), &lineage(1)).await;
    for start in (0..40_000).step_by(1_000) {
        run.write(&ids(start..start + 1_000)).await;
    }
    let staged = run.prepare(1).await;
    run.commit(1, staged).await.unwrap();
    let visible = visible(root);
    assert!(visible.len() > 5, "{visible:?}");
    assert!(visible.values().all(|&size| size < 128 << 10), "{visible:?}");
    assert_eq!(visible_ids(root), (0..40_000).collect::<Vec<_>>());
    let (file, _) = visible.first_key_value().unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(root.join(file)).unwrap()).unwrap();
    assert!(reader.metadata().row_groups().iter().all(|group| group.num_rows() <= 1_000));
}

#[tokio::test]
async fn a_large_file_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let sink = FilesSink::arrow(root.to_str().unwrap());
    let rows = |start: i64| ids(start..start + 1).project(&[0]).unwrap();
    let mut run = Run::start(&sink, &rows(0).schema(), &lineage(1)).await;
    for start in (0..10_000_000).step_by(200_000) {
        let column: arrow::array::ArrayRef = Arc::new(Int64Array::from_iter_values(start..start + 200_000));
        run.write(&RecordBatch::try_new(rows(0).schema(), vec![column]).unwrap()).await;
    }
    let staged = run.prepare(1).await;
    run.commit(1, staged).await.unwrap();
    let (file, size) = visible(root).pop_first().unwrap();
    assert!(size > 80_000_000, "{size}");
    let reader = arrow::ipc::reader::FileReader::try_new(File::open(root.join(file)).unwrap(), None).unwrap();
    let mut next = 0;
    for batch in reader {
        for id in batch.unwrap().column(0).as_primitive::<Int64Type>().values() {
            assert_eq!(*id, next);
            next += 1;
        }
    }
    assert_eq!(next, 10_000_000);
}

#[tokio::test]
async fn a_small_memory_limit_makes_smaller_row_groups() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(8 << 20));
    let cx = ContextBuilder::new("p").memory(Arc::clone(&pool)).build().unwrap();
    let sink = FilesSink::parquet(root.to_str().unwrap()).compression(Compression::None);
    let schema = ids([1]).schema();
    let mut run = Run::start_in(&cx, &sink, &schema, &lineage(1)).await;
    for start in (0..1_000_000).step_by(50_000) {
        run.write(&ids(start..start + 50_000)).await;
        assert!(pool.reserved() <= 8 << 20);
    }
    let staged = run.prepare(1).await;
    assert_eq!(pool.reserved(), 0);
    run.commit(1, staged).await.unwrap();
    let visible = visible(root);
    let groups: usize = visible
        .keys()
        .map(|file| {
            let file = File::open(root.join(file)).unwrap();
            ParquetRecordBatchReaderBuilder::try_new(file).unwrap().metadata().num_row_groups()
        })
        .sum();
    assert!(groups > 2, "{groups} row groups in {visible:?}");
    assert_eq!(visible_ids(root).len(), 1_000_000);
}

#[tokio::test]
async fn a_memory_limit_without_room_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(64 << 10));
    let cx = ContextBuilder::new("p").memory(pool).build().unwrap();
    let sink = FilesSink::parquet(dir.path().to_str().unwrap());
    let mut run = Run::start_in(&cx, &sink, &ids([1]).schema(), &lineage(1)).await;
    let error = run.writer.write(StreamId(0), ids(0..10)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Resources);
    assert!(error.to_string().contains("memory limit"), "{error}");
}

/// A file system of 1 MiB; `None` without the right to mount one.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(dir.path())
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("SKIPPED: a full disk, since this user can't mount a tmpfs");
        }
        mounted.then_some(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_leaves_the_target_as_it_was() {
    let Some(disk) = Small::mount() else { return };
    let root = disk.0.path();
    for sink in [
        FilesSink::parquet(root.join("p").to_str().unwrap()).compression(Compression::None),
        FilesSink::csv(root.join("c").to_str().unwrap()),
        FilesSink::json(root.join("j").to_str().unwrap()).compression(Compression::Gzip),
        FilesSink::avro(root.join("a").to_str().unwrap()).compression(Compression::None),
        FilesSink::arrow(root.join("i").to_str().unwrap()),
    ] {
        let schema = ids([1]).schema();
        let mut run = Run::start(&sink, &schema, &lineage(1)).await;
        run.epoch(1, &ids(0..10)).await;
        let before = visible(root);
        let mut result = Ok(());
        for start in (0..4_000_000).step_by(100_000) {
            result = run.writer.write(StreamId(0), ids(start..start + 100_000)).await;
            if result.is_err() {
                break;
            }
        }
        let error = match result {
            Ok(()) => run.writer.prepare(2).await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.kind(), ErrorKind::Resources, "{}", error.report());
        assert!(error.to_string().contains("room"), "{error}");
        assert!(error.context("file").unwrap().contains("_orbit/staged"), "{error}");
        assert_eq!(visible(root), before);
        drop(run);

        let mut run = Run::start(&sink, &schema, &lineage(2)).await;
        run.session.discard(Discard::Older { claim: 2, keep: Vec::new() }).await.unwrap();
        assert!(files(root).keys().all(|file| !file.contains("/staged/")));
        run.epoch(2, &ids(10..20)).await;
        assert_eq!(visible(root).len(), before.len() + 1);
    }
}

/// Set in the process that may open few files.
const FEW_FILES: &str = "ORBIT_TEST_FEW_FILES";

#[cfg(unix)]
#[test]
fn too_few_open_files_are_an_error_with_a_remedy() {
    let test = "sink::limits::writing_with_few_open_files";
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 60 && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(FEW_FILES, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
}

/// The side of that process; as a test of its own it does nothing.
#[tokio::test]
async fn writing_with_few_open_files() {
    if std::env::var_os(FEW_FILES).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let batch = ids(0..200);
    let sink = FilesSink::csv(root.to_str().unwrap()).partition_by(["id"]);
    let mut run = Run::start(&sink, &batch.schema(), &lineage(1)).await;
    let error = run.writer.write(StreamId(0), batch.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Resources, "{}", error.report());
    assert!(error.to_string().contains("ulimit -n"), "{error}");
    assert!(error.to_string().contains("max_open_files"), "{error}");
    drop(run);
    // The remedy is one.
    let sink = sink.max_open_files(32);
    Run::start(&sink, &batch.schema(), &lineage(2)).await.epoch(1, &batch).await;
    assert_eq!(visible(root).len(), 200);
}

#[tokio::test]
async fn configurations_that_cannot_work_name_the_option() {
    let parquet = || FilesSink::parquet("/tmp/x");
    for (sink, option) in [
        (parquet().compression(Compression::Bzip2), "compression"),
        (FilesSink::csv("/tmp/x").compression(Compression::Snappy), "compression"),
        (parquet().compression_level(23), "compression_level"),
        (parquet().compression(Compression::Gzip).compression_level(3), "compression_level"),
        (parquet().target_file_size(0), "target_file_size"),
        (parquet().row_group_rows(0), "row_group_rows"),
        (parquet().max_open_files(0), "max_open_files"),
        (parquet().csv_options(CsvOptions { escape: Some('\\'), ..CsvOptions::default() }), "csv.escape"),
    ] {
        let error = sink.validate().unwrap_err();
        assert_eq!((error.kind(), error.context("option")), (ErrorKind::Config, Some(option)));
    }
    assert_eq!(FilesSink::csv("/data/x-*.csv").validate().unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test]
async fn a_configuration_is_read_from_a_spec() {
    let spec = serde_json::json!({
        "path": "out/{stream}", "format": "csv", "compression": "gzip", "mode": "overwrite",
        "partition_by": ["day"], "csv": {"delimiter": ";", "null": "\\N"}, "storage": {"secret": "hush"},
    });
    let sink: FilesSink = serde_json::from_value(spec).unwrap();
    assert!(!format!("{sink:?}").contains("hush"));
    assert_eq!(sink.info().summary, "csv out/{stream}");
    let unknown = serde_json::json!({ "path": "out", "format": "csv", "colour": "red" });
    assert!(serde_json::from_value::<FilesSink>(unknown).unwrap_err().to_string().contains("colour"));
}

#[tokio::test]
async fn a_target_that_is_a_file_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let sink = FilesSink::csv(file.path().join("below").to_str().unwrap());
    assert_eq!(sink.health(&context()).await.unwrap_err().kind(), ErrorKind::Config);
}
