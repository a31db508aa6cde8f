//! Every format and compression, whole and from every position.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use orbit_etl_connector_files::{Compression, CsvOptions, FilesSource, Format};
use orbit_etl_core::{ErrorKind, ScanRequest, StreamId};
use tempfile::tempdir;

use super::{assert_exact, read, read_with, schema};

pub(crate) fn sample(rows: usize) -> RecordBatch {
    let n = i64::try_from(rows).unwrap();
    let text: StringArray =
        (0..n).map(|i| (i % 5 != 0).then(|| format!("row {i}, \"quoted\"\nnext line é"))).collect();
    RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from_iter_values(0..n)) as ArrayRef, true),
        ("text", Arc::new(text), true),
        (
            "flag",
            Arc::new((0..n).map(|i| (i % 3 != 0).then_some(i % 2 == 0)).collect::<BooleanArray>()),
            true,
        ),
        (
            "ratio",
            Arc::new((0..n).map(|i| (i % 7 != 0).then_some(i as f64 / 4.0)).collect::<Float64Array>()),
            true,
        ),
        ("day", Arc::new(Date32Array::from_iter_values((0..rows).map(|i| i32::try_from(i).unwrap()))), true),
        ("at", Arc::new(TimestampMicrosecondArray::from_iter_values((0..n).map(|i| i * 1_000_003))), true),
    ])
    .unwrap()
}

fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    // Two members, to be read one after the other.
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let each = |part: &[u8]| match compression {
        Compression::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(part).unwrap();
            out.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(part, 1).unwrap(),
        Compression::Bzip2 => {
            let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            out.write_all(part).unwrap();
            out.finish().unwrap()
        }
        _ => part.to_vec(),
    };
    [each(first), each(second)].concat()
}

pub(crate) fn write_parquet(path: &Path, batch: &RecordBatch, row_group: usize) {
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_max_row_group_row_count(Some(row_group))
        .set_data_page_row_count_limit(10)
        .set_write_batch_size(10)
        .build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

fn encode(format: Format, batch: &RecordBatch) -> Vec<u8> {
    let mut out = Vec::new();
    let half = batch.num_rows() / 2;
    let parts = [batch.slice(0, half), batch.slice(half, batch.num_rows() - half)];
    match format {
        Format::Csv => {
            let mut writer = arrow::csv::Writer::new(&mut out);
            parts.iter().for_each(|part| writer.write(part).unwrap());
        }
        Format::Json => {
            let mut writer = arrow::json::LineDelimitedWriter::new(&mut out);
            parts.iter().for_each(|part| writer.write(part).unwrap());
            writer.finish().unwrap();
        }
        Format::Arrow => {
            let mut writer = arrow::ipc::writer::FileWriter::try_new(&mut out, &batch.schema()).unwrap();
            parts.iter().for_each(|part| writer.write(part).unwrap());
            writer.finish().unwrap();
        }
        Format::Avro => {
            let mut writer =
                arrow_avro::writer::AvroWriter::new(&mut out, batch.schema().as_ref().clone()).unwrap();
            parts.iter().for_each(|part| writer.write(part).unwrap());
            writer.finish().unwrap();
        }
        _ => unreachable!("written elsewhere"),
    }
    out
}

#[tokio::test]
async fn text_in_every_compression() {
    let dir = tempdir().unwrap();
    let batch = sample(3_000);
    for format in [Format::Csv, Format::Json] {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd, Compression::Bzip2] {
            let path = dir.path().join(format!("data.{}", format.extension(compression)));
            std::fs::write(&path, compress(&encode(format, &batch), compression)).unwrap();
            let source = FilesSource::new(path.to_str().unwrap()).schema(batch.schema());
            let read = read(&source).await.unwrap();
            assert!(read.rejects.is_empty(), "{format} {compression}: {:?}", read.rejects[0]);
            assert_eq!(read.all(&batch.schema()), batch, "{format} {compression}");
            assert_exact(&source, 700).await;
        }
    }
}

#[tokio::test]
async fn csv_schema_is_found() {
    let dir = tempdir().unwrap();
    let batch = sample(100);
    std::fs::write(dir.path().join("a.csv"), encode(Format::Csv, &batch)).unwrap();
    let source = FilesSource::csv(dir.path().to_str().unwrap());
    assert_eq!(schema(&source).await.unwrap(), batch.schema());
    assert_eq!(read(&source).await.unwrap().all(&batch.schema()), batch);
}

#[tokio::test]
async fn files_that_describe_themselves() {
    let dir = tempdir().unwrap();
    let batch = sample(300);
    let parquet = dir.path().join("a.parquet");
    write_parquet(&parquet, &batch, 100);
    let avro = dir.path().join("a.avro");
    std::fs::write(&avro, encode(Format::Avro, &batch)).unwrap();
    let arrow = dir.path().join("a.arrow");
    std::fs::write(&arrow, encode(Format::Arrow, &batch)).unwrap();
    let stream = dir.path().join("stream.arrow");
    let mut bytes = Vec::new();
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(&mut bytes, &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    std::fs::write(&stream, bytes).unwrap();

    for path in [parquet, avro, arrow, stream] {
        // With the schema given, and with the file's own.
        let path = path.to_str().unwrap();
        let source = FilesSource::new(path).schema(batch.schema());
        assert_eq!(read(&source).await.unwrap().all(&batch.schema()), batch, "{path}");
        assert_exact(&source, 37).await;
        let own = FilesSource::new(path);
        let found = read(&own).await.unwrap();
        assert_eq!(found.rows(), 300, "{path}");
        assert_eq!(found.batches[0].schema(), schema(&own).await.unwrap(), "{path}");
        let split = own.split_size(1_u64);
        assert_exact(&split, 37).await;

        let scan = ScanRequest {
            projection: Some(vec!["id".into(), "day".into()]),
            ..ScanRequest::all(StreamId(0), 64)
        };
        let narrow = read_with(&source, &scan).await.unwrap();
        let wanted = batch.project(&[0, 4]).unwrap();
        assert_eq!(narrow.all(&wanted.schema()), wanted, "{path}");
        let nothing = ScanRequest { projection: Some(Vec::new()), ..scan };
        assert_eq!(read_with(&source, &nothing).await.unwrap().rows(), 300, "{path}");
    }
}

#[tokio::test]
async fn text_with_a_projection() {
    let dir = tempdir().unwrap();
    let batch = sample(50);
    for format in [Format::Csv, Format::Json] {
        let path = dir.path().join(format!("data.{format}"));
        std::fs::write(&path, encode(format, &batch)).unwrap();
        let source = FilesSource::new(path.to_str().unwrap()).schema(batch.schema());
        for projection in [vec![3, 0], vec![5], vec![]] {
            let wanted = batch.project(&projection).unwrap();
            let names = wanted.schema().fields().iter().map(|f| f.name().clone()).collect();
            let scan = ScanRequest { projection: Some(names), ..ScanRequest::all(StreamId(0), 8) };
            let read = read_with(&source, &scan).await.unwrap();
            assert_eq!(read.all(&wanted.schema()), wanted, "{format} {projection:?}");
        }
    }
}

#[tokio::test]
async fn null_and_empty_texts() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.csv");
    std::fs::write(&path, "a,b\n,1\nNA,2\nx,\n").unwrap();
    let path = path.to_str().unwrap();
    let texts = |read: &super::Read| {
        let column = read.batches[0].column(0);
        arrow::array::AsArray::as_string::<i32>(column)
            .iter()
            .map(|v| v.map(str::to_string))
            .collect::<Vec<_>>()
    };
    let some = |text: &str| Some(text.to_string());
    let plain = read(&FilesSource::csv(path)).await.unwrap();
    assert_eq!(texts(&plain), [None, some("NA"), some("x")]);
    let kept = read(&FilesSource::csv(path).keep_empty(true)).await.unwrap();
    assert_eq!(texts(&kept), [some(""), some("NA"), some("x")]);
    let options = CsvOptions { null: "NA".into(), ..CsvOptions::default() };
    let source = FilesSource::csv(path).csv_options(options);
    let named = read(&source).await.unwrap();
    assert_eq!(texts(&named), [some(""), None, some("x")]);
    let numbers =
        serde_json::json!({ "path": path, "csv": { "null": "NA" }, "schema": { "a": "text", "b": "int64" } });
    let numbers = read(&serde_json::from_value(numbers).unwrap()).await.unwrap();
    assert_eq!(numbers.raw(), ["x,"]);
}

#[tokio::test]
async fn wide_numbers_are_not_rounded() {
    let dir = tempdir().unwrap();
    let csv = dir.path().join("a.csv");
    std::fs::write(&csv, "n,code\n1,007\n123456789012345678901234567890,42\n").unwrap();
    let read_back = read(&FilesSource::csv(csv.to_str().unwrap())).await.unwrap();
    let big = read_back.batches[0].column(0).as_any().downcast_ref::<Decimal128Array>().unwrap();
    assert_eq!(big.value(1), 123_456_789_012_345_678_901_234_567_890);
    assert!(read_back.table().contains("007"));
    let json = dir.path().join("a.json");
    std::fs::write(&json, "{\"n\": 18446744073709551615}\n{\"n\": 123456789012345678901234567890}\n")
        .unwrap();
    let read_back = read(&FilesSource::json(json.to_str().unwrap())).await.unwrap();
    assert!(read_back.table().contains("123456789012345678901234567890"), "{}", read_back.table());
}

#[tokio::test]
async fn broken_files_are_named() {
    let dir = tempdir().unwrap();
    let batch = sample(200);
    let parquet = dir.path().join("a.parquet");
    write_parquet(&parquet, &batch, 100);
    let bytes = std::fs::read(&parquet).unwrap();
    let cut = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        path.to_str().unwrap().to_string()
    };
    let gzip = compress(&encode(Format::Csv, &batch), Compression::Gzip);
    for path in [
        cut("cut.parquet", &bytes),
        cut("cut.arrow", &encode(Format::Arrow, &batch)),
        cut("cut.csv.gz", &gzip[..gzip.len() - 20]),
    ] {
        let error = read(&FilesSource::new(&path).schema(batch.schema())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data, "{error}");
        assert_eq!(error.context("file"), Some(path.as_str()));
    }
}
