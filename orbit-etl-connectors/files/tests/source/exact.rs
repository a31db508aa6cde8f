//! A text becomes exactly what it says, or its record is rejected.

use std::fs;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch};
use arrow::datatypes::{DataType, Field, Float64Type, Int32Type, Int64Type, Schema, SchemaRef, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use orbit_etl_connector_files::{CsvOptions, FilesSource};
use orbit_etl_core::{ErrorKind, ScanRequest, StreamId};
use tempfile::tempdir;

use super::any_text::same;
use super::{Read, assert_exact, read, read_with, schema};

fn micros(zone: Option<&str>) -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, zone.map(Into::into))
}

pub(super) fn one_column(kind: &DataType) -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("i", DataType::Int32, false), Field::new("v", kind.clone(), true)]))
}

/// Reads records of a number and a value.
pub(super) async fn values(
    format: &str,
    records: &[String],
    columns: Option<SchemaRef>,
    sample: usize,
) -> Read {
    let dir = tempdir().unwrap();
    let path = dir.path().join(format!("a.{format}"));
    let head = if format == "csv" { "i,v\n" } else { "" };
    fs::write(&path, format!("{head}{}\n", records.join("\n"))).unwrap();
    let mut source = FilesSource::new(path.to_str().unwrap()).sample_rows(sample);
    if let Some(columns) = columns {
        source = source.schema(columns);
    }
    let read = read(&source).await.unwrap();
    assert_eq!(read.rows() + read.rejects.len(), records.len());
    read
}

fn shown(array: &ArrayRef, row: usize) -> String {
    ArrayFormatter::try_new(array, &FormatOptions::default()).unwrap().value(row).to_string()
}

/// The numbers and values that were read.
pub(super) fn pairs(batches: &[RecordBatch]) -> Vec<(usize, String)> {
    let mut all = Vec::new();
    for batch in batches {
        let ids = batch.column(0);
        for row in 0..batch.num_rows() {
            let id = shown(ids, row).parse().unwrap();
            all.push((id, shown(batch.column(1), row)));
        }
    }
    all
}

/// Types, texts (CSV fields; in JSON as they stand) and what they become, if anything.
async fn check(format: &str, cases: &[(DataType, &str, Option<&str>)]) {
    for (kind, text, expected) in cases {
        let record = match format {
            "csv" => format!("1,{text}"),
            _ => format!("{{\"i\": 1, \"v\": {text}}}"),
        };
        let read = values(format, std::slice::from_ref(&record), Some(one_column(kind)), 1).await;
        let value = pairs(&read.batches).pop().map(|p| p.1);
        assert_eq!(value.as_deref(), *expected, "{format}: {text} as {kind}");
        if expected.is_none() {
            assert_eq!(read.rejects[0].message, format!("column `v` is not a valid {kind}"), "{text}");
            assert_eq!(read.raw(), [record]);
            let place = read.rejects[0].origin.place.as_deref().unwrap();
            let end = if format == "csv" { "byte 4, line 2" } else { "byte 0, line 1" };
            assert!(place.ends_with(end), "{place}");
        }
    }
}

#[tokio::test]
async fn csv_fields_of_given_types() {
    use DataType as T;
    let nanos = T::Timestamp(TimeUnit::Nanosecond, None);
    check(
        "csv",
        &[
            (T::Int64, "007", Some("7")),
            (T::Int64, "1.5", None),
            (T::Int64, "2.0", Some("2")),
            (T::Int8, "128", None),
            (T::UInt8, "-1", None),
            (T::Int64, "9223372036854775808", None),
            (T::Decimal128(5, 2), "1.23", Some("1.23")),
            (T::Decimal128(5, 2), "1.239", None),
            (T::Decimal128(5, 2), "1.230", Some("1.23")),
            (T::Decimal128(5, 2), "1000", None),
            (T::Decimal128(5, 2), "1e-3", None),
            (
                T::Decimal256(60, 0),
                "1e59",
                Some("100000000000000000000000000000000000000000000000000000000000"),
            ),
            (T::Decimal32(5, 2), "-999.99", Some("-999.99")),
            (T::Decimal64(18, 4), "0.00001", None),
            (T::Float64, "0.1", Some("0.1")),
            (T::Float64, "9007199254740993", Some("9007199254740992.0")),
            (T::Float64, "1e999", None),
            (T::Float64, "1e-999", None),
            (T::Date32, "2024-02-29", Some("2024-02-29")),
            (T::Date32, "2024-02-29T00:00:00", Some("2024-02-29")),
            (T::Date32, "2024-02-29T10:00:00", None),
            (T::Date32, "2024-02-29T00:00:00Z", None),
            (micros(None), "2024-02-29T10:00:00", Some("2024-02-29T10:00:00")),
            (micros(None), "2024-02-29T10:00:00Z", None),
            (micros(None), "2024-02-29T10:00:00+01:00", None),
            (micros(None), "2024-02-29T10:00:00.1234567", None),
            (micros(None), "2016-12-31T23:59:60", None),
            (micros(Some("UTC")), "2024-02-29T10:00:00", None),
            (micros(Some("UTC")), "2024-02-29", None),
            (micros(Some("UTC")), "2024-02-29T10:00:00+01:00", Some("2024-02-29T09:00:00Z")),
            (nanos.clone(), "2262-04-11T23:47:16.854775807", Some("2262-04-11T23:47:16.854775807")),
            (nanos, "2262-04-11T23:47:16.854775808", None),
            (T::Time32(TimeUnit::Second), "10:00:00.5", None),
            (T::Time32(TimeUnit::Second), "1200", None),
            (T::Time64(TimeUnit::Microsecond), "10:00:00.5", Some("10:00:00.500")),
            (T::Boolean, "TRUE", Some("true")),
            (T::Boolean, "1", None),
            (T::Null, "x", None),
            (T::Utf8, "\"a \"\"b\"\"\"", Some("a \"b\"")),
            (T::LargeUtf8, "x", Some("x")),
            (T::Utf8View, "x", Some("x")),
        ],
    )
    .await;
}

#[tokio::test]
async fn json_values_of_given_types() {
    use DataType as T;
    check(
        "json",
        &[
            (T::Int64, "1.5", None),
            (T::Int64, "1.0", Some("1")),
            (T::Int64, "1e3", Some("1000")),
            (T::Int64, "9007199254740993", Some("9007199254740993")),
            (T::Int64, "9223372036854775808", None),
            (T::Int64, "9223372036854775807.0", Some("9223372036854775807")),
            (T::Int64, "\"12\"", Some("12")),
            (T::Int64, "true", None),
            (T::Int64, "[1]", None),
            (T::Decimal128(5, 2), "1.239", None),
            (T::Decimal128(5, 2), "1.2", Some("1.20")),
            (T::Decimal128(38, 1), "9007199254740993.5", Some("9007199254740993.5")),
            (T::Float64, "1e999", None),
            (T::Boolean, "1", None),
            (T::Date32, "\"2024-02-29T10:00:00\"", None),
            (T::Date32, "\"20240229\"", Some("2024-02-29")),
            (T::Date32, "19782", Some("2024-02-29")),
            (micros(None), "\"2024-02-29T10:00:00Z\"", None),
            (micros(Some("UTC")), "\"2024-02-29T10:00:00\"", None),
            (micros(None), "1000000", Some("1970-01-01T00:00:01")),
            (micros(None), "1.5", None),
            (micros(None), "\"1000000\"", None),
            (T::Time32(TimeUnit::Second), "-1", None),
            (T::Time32(TimeUnit::Second), "86399", Some("23:59:59")),
            (T::Time64(TimeUnit::Nanosecond), "86400000000000", None),
            (T::Duration(TimeUnit::Second), "1.5", None),
            (T::Binary, "\"cafe\"", Some("cafe")),
            (T::Binary, "\"caf\"", None),
            (T::FixedSizeBinary(2), "\"cafe00\"", None),
            (T::Utf8, "1.50", Some("1.50")),
            (T::Utf8, "{\"a\": 1}", None),
            (T::new_list(T::Int64, true), "[1, 2]", Some("[1, 2]")),
            (T::new_list(T::Int64, true), "[]", Some("[]")),
        ],
    )
    .await;
}

#[tokio::test]
async fn json_inside_lists_and_objects() {
    let inner = Field::new("x", DataType::new_list(DataType::Int64, false), true);
    let kind = DataType::Struct(vec![inner, Field::new("y", DataType::Utf8, false)].into());
    let records: Vec<String> = [
        "{\"i\": 0, \"v\": {\"y\": \"a\", \"x\": [1, 2]}}",
        "{\"i\": 1, \"v\": {\"y\": \"b\", \"x\": [1, 2.5]}}",
        "{\"i\": 2, \"v\": {\"y\": \"c\", \"x\": [null]}}",
        "{\"i\": 3, \"v\": {\"x\": []}}",
        "{\"i\": 4, \"v\": null}",
        "{\"i\": 5, \"v\": {\"y\": \"d\", \"y\": \"e\"}}",
        "{\"i\": 6, \"v\": {\"y\": \"\\u00e9\\n\", \"z\": [{}]}}",
        "{\"i\": 7, \"v\": {\"y\": \"f\", \"x\": [1",
        "{\"i\": null}",
    ]
    .map(String::from)
    .to_vec();
    let read = values("json", &records, Some(one_column(&kind)), 1).await;
    let found: Vec<_> = pairs(&read.batches);
    assert_eq!(
        found,
        [(0, "{x: [1, 2], y: a}".to_string()), (4, String::new()), (6, "{x: , y: é\n}".to_string()),]
    );
    let messages: Vec<_> = read.rejects.iter().map(|r| r.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "column `v.x` is not a valid Int64",
            "column `v.x` is NULL",
            "column `v.y` is NULL",
            "column `v.y` is there twice",
            "the line is not valid JSON from character 32 on",
            "column `i` is NULL",
        ]
    );
}

/// The first record makes the schema; the second one is another kind of text.
#[tokio::test]
async fn what_a_sample_would_have_made_text() {
    let cases = [
        ("csv", "1", "007", true),
        ("csv", "1", "+7", true),
        ("csv", "1", " 7", true),
        ("csv", "1", "-0", true),
        ("csv", "1", "7.0", true),
        ("csv", "1", "7.5", false),
        ("csv", "1.5", "0.1234567890123456789", true),
        ("csv", "1.5", "9007199254740993", true),
        ("csv", "1.5", "007", true),
        ("csv", "2024-01-01", "20240101", true),
        ("csv", "2024-01-01", "2024-01-01T00:00:00", true),
        ("csv", "2024-01-01", "2024-01-01T10:00:00", false),
        ("csv", "2024-01-01T10:00:00", "2024-01-01T10:00:00Z", false),
        ("csv", "2024-01-01T10:00:00", "2024-01-01 100000", true),
        ("csv", "2024-01-01T10:00:00Z", "2024-01-01T10:00:00", false),
        ("csv", "9223372036854775808", "1.5", false),
        ("json", "1", "1.5", false),
        ("json", "1", "-0", true),
        ("json", "1", "\"007\"", true),
        ("json", "1", "\"12\"", true),
        ("json", "1.5", "\"NaN\"", true),
        ("json", "true", "\"false\"", true),
        ("json", "1", "\"\"", false),
        ("json", "1.5", "9007199254740993", true),
    ];
    for (format, first, second, would_fit) in cases {
        let record = |i: usize, v: &str| match format {
            "csv" => format!("{i},{v}"),
            _ => format!("{{\"i\": {i}, \"v\": {v}}}"),
        };
        let records = [record(0, first), record(1, second)];
        let read = values(format, &records, None, 1).await;
        assert_eq!(read.rejects.len(), 1, "{format} {first} {second}: {}", read.table());
        assert_eq!(read.raw(), [records[1].clone()]);
        let message = &read.rejects[0].message;
        assert_eq!(message.contains("would be altered by the inferred"), would_fit, "{second}: {message}");
        // In the sample it decides.
        let read = values(format, &records, None, 2).await;
        assert!(read.rejects.is_empty(), "{format} {first} {second}: {:?}", read.rejects);
        if format == "csv" && !second.contains("T00:00:00") {
            let kept = pairs(&read.batches).pop().unwrap().1;
            assert!(same(second, &kept) || kept == second, "{second} became {kept}");
        }
    }
    // These come back, though another text stands for them.
    for (first, second) in [("1.5", "0.30000000000000004"), ("1.5", "1e300"), ("1.5", "7"), ("true", "FALSE")]
    {
        let read = values("csv", &[format!("0,{first}"), format!("1,{second}")], None, 1).await;
        assert!(read.rejects.is_empty(), "{second}");
    }
}

#[tokio::test]
async fn a_big_number_with_a_fraction_is_text() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, "{\"v\": 9007199254740993.5}\n").unwrap();
    let source = FilesSource::json(path.to_str().unwrap());
    assert_eq!(schema(&source).await.unwrap().field(0).data_type(), &DataType::Utf8);
    assert!(read(&source).await.unwrap().table().contains("9007199254740993.5"));
}

#[tokio::test]
async fn a_byte_order_mark_before_json() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, "\u{feff}{\"a\": 1}\n{\"a\": 2}\nx\n{\"a\": 3}\n").unwrap();
    for size in [None, Some(12_u64)] {
        let source = FilesSource::json(path.to_str().unwrap()).split_size(size).sample_rows(1);
        let read = read(&source).await.unwrap();
        assert_eq!((read.rows(), read.rejects.len()), (3, 1), "{:?}", read.rejects);
        assert!(read.rejects[0].origin.place.as_ref().unwrap().ends_with("byte 21, line 3"));
        assert_exact(&source, 2).await;
    }
}

#[tokio::test]
async fn empty_texts_where_there_is_no_null() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.csv");
    fs::write(&path, "a,b\n,x\n\"\",y\n").unwrap();
    for kind in [DataType::Utf8, DataType::LargeUtf8, DataType::Utf8View] {
        for nullable in [true, false] {
            let schema = Arc::new(Schema::new(vec![Field::new("a", kind.clone(), nullable)]));
            let source = FilesSource::csv(path.to_str().unwrap()).schema(schema);
            let kept = read(&source.clone().keep_empty(true)).await.unwrap();
            assert_eq!((kept.rows(), kept.rejects.len()), (2, 0), "{kind}");
            assert_eq!(kept.batches[0].column(0).null_count(), 0, "{kind}");
            let null = read(&source).await.unwrap();
            assert_eq!(null.rows(), if nullable { 2 } else { 0 }, "{kind}");
            if !nullable {
                assert_eq!(null.rejects[0].message, "column `a` is NULL");
            }
        }
    }
    fs::write(&path, "a,b\n\\N,\\N\n,1\n").unwrap();
    let options = CsvOptions { null: "\\N".into(), ..CsvOptions::default() };
    let source = FilesSource::csv(path.to_str().unwrap()).csv_options(options);
    let read = read(&source).await.unwrap();
    assert_eq!((read.rows(), read.batches[0].column(0).null_count()), (2, 1));
    assert_eq!(read.batches[0].column(1).as_primitive::<Int64Type>().value(1), 1);
}

#[tokio::test]
async fn which_json_lines_are_good_does_not_depend_on_the_batch() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.json");
    let text =
        "{\"a\":1}{\"a\":2}\n{\"a\":\n3}\n{\"a\":4}\n[1,,2]\n{\"a\":5,}\n{\"a\":6 \"b\":1}\n{\"a\":7}\n";
    fs::write(&path, text).unwrap();
    let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]));
    let source = FilesSource::json(path.to_str().unwrap()).schema(schema);
    for rows in 1..10 {
        let read = read_with(&source, &ScanRequest::all(StreamId(0), rows)).await.unwrap();
        let found: Vec<_> = read
            .batches
            .iter()
            .flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec())
            .collect();
        assert_eq!((found, read.rejects.len()), (vec![4, 7], 6), "{rows}");
        assert_exact(&source, rows).await;
    }
}

#[tokio::test]
async fn text_behind_a_closing_quote() {
    let records = ["0,\"a\"b", "1,\"a\" ", "2,a\"b\"", "3,\"a\""].map(String::from);
    let read = values("csv", &records, Some(one_column(&DataType::Utf8)), 1).await;
    assert_eq!(pairs(&read.batches), [(2, "a\"b\"".to_string()), (3, "a".to_string())]);
    assert!(read.rejects.iter().all(|r| r.message == "text follows a closing quote"));
}

#[tokio::test]
async fn columns_that_nobody_asked_for_are_not_looked_at() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.csv");
    fs::write(&path, "a,b\n1,2\nx,3\n").unwrap();
    let source = FilesSource::csv(path.to_str().unwrap()).sample_rows(1);
    let mut scan = ScanRequest::all(StreamId(0), 10);
    scan.projection = Some(vec!["b".into()]);
    let read = read_with(&source, &scan).await.unwrap();
    assert_eq!((read.rows(), read.rejects.len()), (2, 0));
    scan.projection = Some(vec![]);
    assert_eq!(read_with(&source, &scan).await.unwrap().rows(), 2);
}

#[tokio::test]
async fn doubles_and_integers_are_exact() {
    let read = values("csv", &["0,0.1".into(), "1,-0".into(), "2,1e22".into()], None, 3).await;
    let found = read.batches[0].column(1).as_primitive::<Float64Type>();
    assert_eq!(
        found.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
        [0.1, -0.0, 1e22].map(f64::to_bits)
    );
    let read = values(
        "csv",
        &["0,2147483647".into(), "1,-2147483648".into()],
        Some(one_column(&DataType::Int32)),
        1,
    )
    .await;
    assert_eq!(read.batches[0].column(1).as_primitive::<Int32Type>().values(), &[i32::MAX, i32::MIN]);
}

#[tokio::test]
async fn values_in_paths() {
    let dir = tempdir().unwrap();
    for (value, kind, expected) in [
        ("1.23", DataType::Decimal128(5, 2), Some("1.23")),
        ("1.239", DataType::Decimal128(5, 2), None),
        ("007", DataType::Int64, Some("7")),
        ("2024-01-01T10:00:00", DataType::Date32, None),
    ] {
        let below = dir.path().join(format!("v={value}"));
        fs::create_dir(&below).unwrap();
        fs::write(below.join("a.csv"), "i\n1\n").unwrap();
        let source = FilesSource::csv(dir.path().to_str().unwrap()).schema(one_column(&kind));
        match (read(&source).await, expected) {
            (Ok(read), Some(expected)) => assert_eq!(pairs(&read.batches), [(1, expected.to_string())]),
            (Err(error), None) => {
                assert_eq!((error.kind(), error.context("column")), (ErrorKind::Data, Some("v")));
            }
            (read, _) => panic!("{value}: {read:?}"),
        }
        fs::remove_dir_all(below).unwrap();
    }
}
