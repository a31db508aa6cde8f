//! Directories, globs, partitions, and what is wrong with them.

use std::fs;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion_expr::{col, lit};
use orbit_etl_connector_files::FilesSource;
use orbit_etl_core::{ErrorKind, ScanRequest, StreamId};
use tempfile::tempdir;

use super::{read, read_with, schema, splits};

#[tokio::test]
async fn directories_and_globs() {
    let dir = tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("x-1.csv", "a\n1\n");
    put("deep/er/x-2.csv", "a\n2\n");
    put("empty.csv", "");
    put("_staged.csv", "a\n99\n");
    put(".hidden/x.csv", "a\n99\n");
    put("README.md", "no data");
    let base = dir.path().to_str().unwrap();
    let rows = async |path: String| read(&FilesSource::csv(path)).await.unwrap().rows();
    assert_eq!(rows(format!("{base}/")).await, 2);
    assert_eq!(rows(format!("{base}/x-*.csv")).await, 1);
    assert_eq!(rows(format!("{base}/**/x-?.csv")).await, 2);
    assert_eq!(rows(format!("file://{base}/x-{{1,3}}.csv")).await, 1);

    let names: Vec<_> =
        splits(&FilesSource::csv(base), None).await.unwrap().0.iter().map(|s| s.id.to_string()).collect();
    assert!(names.is_sorted());
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_that_leads_back_is_not_followed_again() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("a.csv"), "a\n1\n").unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("again")).unwrap();
    let source = FilesSource::csv(dir.path().to_str().unwrap());
    assert_eq!(read(&source).await.unwrap().rows(), 1);
}

#[tokio::test]
async fn partition_columns() {
    let dir = tempdir().unwrap();
    for (path, text) in [
        ("year=2023/city=K%C3%B6ln/a.csv", "v\n1\n"),
        ("year=2024/city=__HIVE_DEFAULT_PARTITION__/a.csv", "v\n2\n"),
    ] {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let base = dir.path().to_str().unwrap();
    let source = FilesSource::csv(base);
    let found = schema(&source).await.unwrap();
    let types: Vec<_> = found.fields().iter().map(|f| (f.name().as_str(), f.data_type().clone())).collect();
    assert_eq!(types, [("v", DataType::Int64), ("year", DataType::Int64), ("city", DataType::Utf8)]);
    let table = read(&source).await.unwrap().table();
    assert!(table.contains("| 1 | 2023 | Köln |"), "{table}");
    assert!(table.contains("| 2 | 2024 |      |"), "{table}");

    let scan = |filter| ScanRequest { filters: vec![filter], ..ScanRequest::all(StreamId(0), 10) };
    assert_eq!(read_with(&source, &scan(col("year").gt(lit(2023_i64)))).await.unwrap().rows(), 1);
    assert_eq!(read_with(&source, &scan(col("city").is_null())).await.unwrap().rows(), 1);
    let only = ScanRequest { projection: Some(vec!["city".into()]), ..ScanRequest::all(StreamId(0), 10) };
    assert_eq!(read_with(&source, &only).await.unwrap().batches[0].num_columns(), 1);
    assert_eq!(schema(&FilesSource::csv(base).partitions(false)).await.unwrap().fields().len(), 1);

    let typed = Schema::new(vec![
        Field::new("v", DataType::Int64, true),
        Field::new("city", DataType::Date32, true),
        Field::new("year", DataType::Int32, true),
    ]);
    let error = read(&FilesSource::csv(base).schema(typed.into())).await.unwrap_err();
    assert_eq!((error.kind(), error.context("column")), (ErrorKind::Data, Some("city")));
    assert!(error.context("file").unwrap().contains("2023"));
    assert!(!error.message().contains("Köln"));
}

#[tokio::test]
async fn what_is_not_there() {
    let dir = tempdir().unwrap();
    let base = dir.path().to_str().unwrap();
    let kind = async |path: String| {
        let error = schema(&FilesSource::csv(&path)).await.unwrap_err();
        assert!(error.to_string().contains(&path), "{error}");
        error.kind()
    };
    assert_eq!(kind(format!("{base}/none.csv")).await, ErrorKind::NotFound);
    assert_eq!(kind(format!("{base}/none-*.csv")).await, ErrorKind::NotFound);
    assert_eq!(kind(format!("{base}/no/where/*.csv")).await, ErrorKind::NotFound);
    assert_eq!(kind(base.to_string()).await, ErrorKind::NotFound);
    fs::write(dir.path().join("empty.csv"), "").unwrap();
    let error = schema(&FilesSource::csv(base)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    fs::write(dir.path().join("a.json"), "{\"a\": 1}").unwrap();
    let error = schema(&FilesSource::new(base)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}
