//! Columns by name, and files that don't fit together.

use std::fs;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use orbit_etl_connector_files::{Extra, FilesSource, Missing};
use orbit_etl_core::{ErrorKind, Source as _};
use tempfile::tempdir;

use super::formats::write_parquet;
use super::{read, schema};

#[tokio::test]
async fn columns_in_any_order() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("a.csv"), "\u{feff}a,b\n1,x\n").unwrap();
    fs::write(dir.path().join("b.csv"), "b,a\ny,2\n").unwrap();
    fs::write(dir.path().join("c.csv"), "extra,a\n!,3\n").unwrap();
    let base = dir.path().to_str().unwrap();
    let source = FilesSource::csv(base).sample_files(1);
    let found = read(&source).await.unwrap();
    let table = found.table();
    for row in ["| 1 | x |", "| 2 | y |", "| 3 |   |"] {
        assert!(table.contains(row), "{table}");
    }
    let error = read(&source.clone().missing(Missing::Error)).await.unwrap_err();
    assert_eq!((error.kind(), error.context("column")), (ErrorKind::Schema, Some("b")));
    assert!(error.context("file").unwrap().ends_with("c.csv"));
    let error = read(&source.extra(Extra::Error)).await.unwrap_err();
    assert_eq!((error.kind(), error.context("column")), (ErrorKind::Schema, Some("extra")));
    // All files are looked at unless said otherwise.
    assert_eq!(schema(&FilesSource::csv(base)).await.unwrap().fields().len(), 3);
}

#[tokio::test]
async fn json_with_extra_keys() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, "{\"a\": 1}\n{\"a\": 2, \"b\": 3}\n").unwrap();
    let source = FilesSource::json(path.to_str().unwrap()).sample_rows(1);
    assert_eq!(read(&source).await.unwrap().rows(), 2);
    let strict = read(&source.extra(Extra::Error)).await.unwrap();
    assert_eq!((strict.rows(), strict.rejects.len()), (1, 1));
    assert!(strict.rejects[0].message.contains("not in the schema"));
}

#[tokio::test]
async fn parquet_types_widen_or_clash() {
    let dir = tempdir().unwrap();
    let one = |array: ArrayRef| RecordBatch::try_from_iter([("a", array)]).unwrap();
    let put = |name: &str, batch: &RecordBatch| write_parquet(&dir.path().join(name), batch, 100);
    put("1.parquet", &one(Arc::new(Int32Array::from(vec![1]))));
    put("2.parquet", &one(Arc::new(Int64Array::from(vec![1 << 40]))));
    let base = dir.path().to_str().unwrap();
    let found = read(&FilesSource::parquet(base)).await.unwrap();
    assert!(found.table().contains("1099511627776"));
    put("3.parquet", &one(Arc::new(StringArray::from(vec!["x"]))));
    let error = read(&FilesSource::parquet(base)).await.unwrap_err();
    assert_eq!((error.kind(), error.context("column")), (ErrorKind::Schema, Some("a")));
    assert!(error.context("file").unwrap().ends_with("3.parquet"));
    assert!(error.context("other file").unwrap().ends_with("1.parquet"));
    let error = read(&FilesSource::parquet(base).sample_files(2)).await.unwrap_err();
    assert_eq!((error.kind(), error.context("column")), (ErrorKind::Schema, Some("a")));
    assert!(error.context("file").unwrap().ends_with("3.parquet"));
}

#[tokio::test]
async fn a_configuration_reads_like_the_builder() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.csv");
    fs::write(&path, "1;x\n2;y\n").unwrap();
    let config = serde_json::json!({
        "path": path, "csv": { "delimiter": ";", "header": false },
        "schema": [{ "name": "id", "type": "int32 not null" }, { "name": "text", "type": "text" }],
        "storage": { "secret_access_key": "hush" },
    });
    let source: FilesSource = serde_json::from_value(config.clone()).unwrap();
    assert!(read(&source).await.unwrap().table().contains("| 2  | y    |"));
    assert!(!format!("{source:?}").contains("hush"));
    assert!(!serde_json::to_string(&source).unwrap().contains("hush"));
    let mut unknown = config;
    unknown["colour"] = "red".into();
    assert!(serde_json::from_value::<FilesSource>(unknown).is_err());
    let error = FilesSource::parquet("x").compression(orbit_etl_connector_files::Compression::Gzip);
    assert_eq!(orbit_etl_core::Connector::validate(&error).unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(source.replay(), orbit_etl_core::Replay::Exact);
}

#[tokio::test]
async fn a_type_that_csv_is_not_read_into_is_an_error_and_no_reject() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.csv");
    fs::write(&path, "id,bytes\n1,cafe\n").unwrap();
    let config = serde_json::json!({ "path": path, "schema": [{ "name": "bytes", "type": "binary" }] });
    let source: FilesSource = serde_json::from_value(config).unwrap();
    let error = read(&source).await.unwrap_err();
    assert_eq!((error.kind(), error.context("column")), (ErrorKind::Schema, Some("bytes")));
}

#[test]
fn what_shows_a_connector_shows_no_secret_of_its_url() {
    let url = "https://me:hush@host/a.csv?sig=hush";
    let source = FilesSource::csv(url);
    let sink = orbit_etl_connector_files::FilesSink::csv(url);
    let shown = [format!("{source:?}"), format!("{sink:?}"), serde_json::to_string(&source).unwrap()];
    assert!(
        shown.iter().all(|text| text.contains("https://host/a.csv") && !text.contains("hush")),
        "{shown:?}"
    );
}
