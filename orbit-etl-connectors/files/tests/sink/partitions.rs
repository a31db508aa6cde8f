//! Hive-style folders, and how many files stay open.

use arrow::array::{ArrayRef, Int32Array};
use orbit_etl_connector_files::FilesSink;

use super::*;

fn keyed(keys: Vec<Option<&str>>) -> RecordBatch {
    let values: ArrayRef = Arc::new(Int32Array::from_iter_values(0..i32::try_from(keys.len()).unwrap()));
    let keys: ArrayRef = Arc::new(StringArray::from(keys));
    RecordBatch::try_from_iter_with_nullable([("k", keys, true), ("v", values, false)]).unwrap()
}

#[tokio::test]
async fn folders_have_the_values_and_files_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let batch = keyed(vec![Some("a/b"), None, Some(""), Some("日本"), Some("a/b"), Some("..")]);
    let sink = FilesSink::parquet(root.to_str().unwrap()).partition_by(["k"]);
    Run::start(&sink, &batch.schema(), &lineage(1)).await.epoch(1, &batch).await;

    let found: BTreeMap<String, Vec<i32>> = visible_partitions(root);
    let expected = [
        ("k=", vec![2]),
        ("k=%E6%97%A5%E6%9C%AC", vec![3]),
        ("k=..", vec![5]),
        ("k=__HIVE_DEFAULT_PARTITION__", vec![1]),
        ("k=a%2Fb", vec![0, 4]),
    ];
    assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v)).into());
}

fn visible_partitions(root: &Path) -> BTreeMap<String, Vec<i32>> {
    let mut found: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for file in files(root).into_keys().filter(|f| !f.starts_with('_')) {
        let batch = parquet(&root.join(&file));
        assert_eq!(batch.num_columns(), 1);
        let values = batch.column(0).as_primitive::<arrow::datatypes::Int32Type>();
        found.entry(file.rsplit_once('/').unwrap().0.to_owned()).or_default().extend(values.values());
    }
    found
}

#[tokio::test]
async fn ten_thousand_partitions_need_few_open_files() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let ids = ids((0..10_000).chain(0..10_000));
    let sink = FilesSink::csv(root.to_str().unwrap()).partition_by(["id"]).max_open_files(8);
    let mut run = Run::start(&sink, &ids.schema(), &lineage(1)).await;
    let before = open_files();
    run.write(&ids).await;
    if let (Some(before), Some(after)) = (before, open_files()) {
        // Other tests run in this process too.
        assert!(after < before + 500, "{before} files were open, then {after}");
    }
    let staged = run.prepare(1).await;
    run.commit(1, staged).await.unwrap();
    let visible = visible(root);
    assert_eq!(visible.len(), 10_000);
    let first = visible.keys().find(|file| file.starts_with("id=77/")).unwrap();
    assert_eq!(fs::read_to_string(root.join(first)).unwrap(), "name\nname 77\nname 77\n");
}

fn open_files() -> Option<usize> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count())
}

#[tokio::test]
async fn a_partition_whose_file_was_closed_gets_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    // Two for each of two lanes.
    let sink = FilesSink::parquet(root.to_str().unwrap()).partition_by(["k"]).max_open_files(4);
    let batch = keyed(vec![Some("a"), Some("b")]);
    let mut run = Run::start(&sink, &batch.schema(), &lineage(1)).await;
    run.write(&batch).await;
    run.write(&keyed(vec![Some("a"), Some("c")])).await;
    run.write(&keyed(vec![Some("b"), Some("a")])).await;
    let staged = run.prepare(1).await;
    run.commit(1, staged).await.unwrap();
    let files: Vec<String> = visible(root).into_keys().collect();
    let count = |folder: &str| files.iter().filter(|file| file.starts_with(folder)).count();
    // `b` was the oldest when `c` came, then `a`; `a` was the newest of two.
    assert_eq!((count("k=a/"), count("k=b/"), count("k=c/")), (2, 2, 1));
    assert_eq!(visible_partitions(root)["k=a"].len(), 3);
}

#[tokio::test]
async fn lanes_share_the_open_files() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let sink = FilesSink::parquet(root.to_str().unwrap()).partition_by(["k"]).max_open_files(4);
    let batch = keyed(vec![Some("a"), Some("b"), Some("a"), Some("b")]);
    for (lanes, files) in [(1, 2), (4, 3), (9, 3)] {
        let cx = orbit_etl_core::ContextBuilder::new("p").parallelism(lanes).build().unwrap();
        let lineage = Lineage { sink: format!("out{lanes}"), ..lineage(1) };
        let mut run = Run::start_in(&cx, &sink, &batch.schema(), &lineage).await;
        run.write(&batch.slice(0, 2)).await;
        run.write(&batch.slice(2, 1)).await;
        // With one file a lane, `a` was closed for `b`, and `b` for `a`.
        assert_eq!(run.prepare(1).await.len(), files, "{lanes} lanes");
    }
}

#[tokio::test]
async fn values_that_make_no_folder_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let (longest, long) = ("x".repeat(253), "x".repeat(254));
    // Encoded, each of these is nine bytes.
    let wide = "日".repeat(29);
    let batch = keyed(vec![Some("a"), Some(&long), Some("a"), Some(&wide), Some(&long), Some(&longest)]);
    let sink = FilesSink::parquet(root.to_str().unwrap()).partition_by(["k"]);
    let mut run = Run::start(&sink, &batch.schema(), &lineage(1)).await;
    run.write(&batch).await;
    let prepared = run.writer.prepare(1).await.unwrap();
    let mut rejected = Vec::new();
    for reject in &prepared.rejects {
        assert_eq!(reject.kind, orbit_etl_core::ErrorKind::Data);
        assert!(reject.message.contains("column: k"), "{}", reject.message);
        assert!(!reject.message.contains("xxx"), "{}", reject.message);
        assert_eq!(reject.origin.stream.as_deref(), Some("rows"));
        let orbit_etl_core::Payload::Rows(rows) = &reject.payload else { panic!("rows are rejected") };
        assert_eq!((rows.num_rows() as u64, rows.num_columns()), (reject.rows, 2));
        let values = rows.column(1).as_primitive::<arrow::datatypes::Int32Type>();
        rejected.extend(values.values().to_vec());
    }
    rejected.sort_unstable();
    assert_eq!(rejected, [1, 3, 4]);
    run.commit(1, prepared.committables).await.unwrap();
    let found = visible_partitions(root);
    assert_eq!(found, [("k=a".to_owned(), vec![0, 2]), (format!("k={longest}"), vec![5])].into());
    // They are not told of again.
    assert!(run.writer.prepare(2).await.unwrap().rejects.is_empty());
}

#[tokio::test]
async fn a_sink_whose_name_makes_no_file_is_refused_before_it_writes() {
    let dir = tempfile::tempdir().unwrap();
    let sink = FilesSink::parquet(dir.path().to_str().unwrap());
    let inputs = [StreamInfo::new("rows", ids([1]).schema())];
    let mut session = sink.open(&context(), &inputs).await.unwrap();
    let named = Lineage { sink: "s".repeat(230), ..lineage(1) };
    let error = session.claim(&named).await.unwrap_err();
    assert_eq!(error.kind(), orbit_etl_core::ErrorKind::Config, "{error}");
    assert!(files(dir.path()).is_empty());
}
