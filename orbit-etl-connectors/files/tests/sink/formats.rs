//! What is written is read back.

use std::io::BufReader;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, DurationSecondArray,
    Float64Array, Int32Array, ListArray, StringViewArray, StructArray, TimestampMicrosecondArray, UnionArray,
    new_null_array,
};
use arrow::datatypes::{Int8Type, Int32Type};
use orbit_etl_connector_files::{Compression, CsvOptions, FilesSink, Format};
use orbit_etl_core::ErrorKind;

use super::*;

fn flat() -> RecordBatch {
    let text = vec![Some("plain"), Some("a,\"b\"\nc"), None, Some("ünïcode 日本")];
    let kinds: DictionaryArray<Int8Type> = [Some("x"), None, Some("y"), Some("x")].into_iter().collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from(vec![1, 2, 3, 4]))),
        ("text", Arc::new(StringArray::from(text.clone()))),
        ("view", Arc::new(StringViewArray::from(text))),
        ("float", Arc::new(Float64Array::from(vec![Some(1.5), None, Some(-0.1), Some(1e300)]))),
        ("bool", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None, None]))),
        ("date", Arc::new(Date32Array::from(vec![Some(0), Some(-1), Some(20_000), None]))),
        (
            "time",
            Arc::new(
                TimestampMicrosecondArray::from(vec![Some(1), None, Some(-1), Some(1_700_000_000_000_001)])
                    .with_timezone("UTC"),
            ),
        ),
        (
            "price",
            Arc::new(
                Decimal128Array::from(vec![Some(12_345), None, Some(-1), Some(0)])
                    .with_precision_and_scale(12, 2)
                    .unwrap(),
            ),
        ),
        ("kind", Arc::new(kinds)),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap()
}

fn nested() -> RecordBatch {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([
        Some(vec![Some(1), None]),
        None,
        Some(vec![]),
        Some(vec![Some(4)]),
    ]);
    let inner: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("c"), Some("d")]));
    let structs = StructArray::from(vec![(Arc::new(Field::new("inner", DataType::Utf8, true)), inner)]);
    let binary = BinaryArray::from_opt_vec(vec![Some(&[0xca, 0xfe][..]), None, Some(b""), Some(b"xyz")]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from(vec![1, 2, 3, 4]))),
        ("list", Arc::new(list)),
        ("struct", Arc::new(structs)),
        ("payload", Arc::new(binary)),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap()
}

async fn written(sink: FilesSink, root: &Path, batch: &RecordBatch) -> std::path::PathBuf {
    let mut run = Run::start(&sink, &batch.schema(), &lineage(1)).await;
    run.write(&batch.slice(0, 3)).await;
    run.write(&batch.slice(3, 1)).await;
    let staged = run.prepare(1).await;
    run.commit(1, staged).await.unwrap();
    let files = visible(root);
    assert_eq!(files.len(), 1, "{files:?}");
    root.join(files.into_keys().next().unwrap())
}

fn plain(path: &Path, compression: Compression) -> Box<dyn Read> {
    let file = File::open(path).unwrap();
    match compression {
        Compression::Gzip => Box::new(flate2::read::GzDecoder::new(file)),
        Compression::Zstd => Box::new(zstd::Decoder::new(file).unwrap()),
        Compression::Bzip2 => Box::new(bzip2::read::BzDecoder::new(file)),
        _ => Box::new(file),
    }
}

fn read_back(path: &Path, format: Format, compression: Compression, expected: &SchemaRef) -> RecordBatch {
    let batches: Vec<RecordBatch> = match format {
        Format::Parquet => return parquet(path),
        Format::Csv => arrow::csv::ReaderBuilder::new(Arc::clone(expected))
            .with_header(true)
            .build(plain(path, compression))
            .unwrap()
            .map(Result::unwrap)
            .collect(),
        Format::Json => arrow::json::ReaderBuilder::new(Arc::clone(expected))
            .build(BufReader::new(plain(path, compression)))
            .unwrap()
            .map(Result::unwrap)
            .collect(),
        Format::Avro => arrow_avro::reader::ReaderBuilder::new()
            .build(BufReader::new(File::open(path).unwrap()))
            .unwrap()
            .map(Result::unwrap)
            .collect(),
        Format::Arrow => arrow::ipc::reader::FileReader::try_new(File::open(path).unwrap(), None)
            .unwrap()
            .map(Result::unwrap)
            .collect(),
        other => panic!("{other} is new"),
    };
    concat_batches(&batches[0].schema(), &batches).unwrap()
}

/// Equal as text, column by column: formats differ in the types that they give back.
fn assert_same_values(found: &RecordBatch, expected: &RecordBatch, what: &str) {
    let text = |batch: &RecordBatch| {
        arrow::util::pretty::pretty_format_batches(std::slice::from_ref(batch)).unwrap().to_string()
    };
    assert_eq!(text(found), text(expected), "{what}");
}

#[tokio::test]
async fn every_format_and_compression_keeps_flat_rows() {
    let batch = flat();
    // Text has no dictionaries; its reader is told the type.
    let plain_kind: SchemaRef = Arc::new(Schema::new(
        batch
            .schema()
            .fields()
            .iter()
            .map(|f| match f.data_type() {
                DataType::Dictionary(_, value) => {
                    Arc::new(Field::new(f.name(), value.as_ref().clone(), true))
                }
                _ => Arc::clone(f),
            })
            .collect::<Vec<_>>(),
    ));
    for format in Format::ALL {
        for &compression in format.compressions() {
            let dir = tempfile::tempdir().unwrap();
            let sink = FilesSink::new(dir.path().to_str().unwrap(), format).compression(compression);
            let path = written(sink, dir.path(), &batch).await;
            assert!(path.to_str().unwrap().ends_with(&format.extension(compression)), "{path:?}");
            let found = read_back(&path, format, compression, &plain_kind);
            assert_same_values(&found, &batch, &format!("{format} with {compression}"));
        }
    }
}

#[tokio::test]
async fn nested_and_binary_columns_are_kept_where_the_format_has_them() {
    let batch = nested();
    for format in [Format::Parquet, Format::Avro, Format::Arrow, Format::Json] {
        let dir = tempfile::tempdir().unwrap();
        let path = written(FilesSink::new(dir.path().to_str().unwrap(), format), dir.path(), &batch).await;
        let found = read_back(&path, format, Compression::None, &batch.schema());
        assert_same_values(&found, &batch, format.as_str());
    }
}

#[tokio::test]
async fn parquet_keeps_types_and_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let schema = Schema::new_with_metadata(
        vec![
            Field::new("t", DataType::Utf8View, true)
                .with_metadata([("orbit.role".into(), "time".into())].into()),
        ],
        [("made".to_owned(), "here".to_owned())].into(),
    );
    let column = new_null_array(&DataType::Utf8View, 4);
    let batch = RecordBatch::try_new(Arc::new(schema), vec![column]).unwrap();
    let path = written(FilesSink::parquet(dir.path().to_str().unwrap()), dir.path(), &batch).await;
    let found = parquet(&path);
    assert_eq!(found.schema().fields(), batch.schema().fields());
    assert_eq!(found.schema().metadata()["made"], "here");
}

#[tokio::test]
async fn arrow_files_take_dictionaries_that_change() {
    let dir = tempfile::tempdir().unwrap();
    let sink = FilesSink::arrow(dir.path().to_str().unwrap());
    let batch = |value: &str| {
        let column: DictionaryArray<Int8Type> = [Some(value)].into_iter().collect();
        RecordBatch::try_from_iter([("k", Arc::new(column) as ArrayRef)]).unwrap()
    };
    let mut run = Run::start(&sink, &batch("a").schema(), &lineage(1)).await;
    run.write(&batch("a")).await;
    run.write(&batch("b")).await;
    let staged = run.prepare(1).await;
    run.commit(1, staged).await.unwrap();
    let file = dir.path().join(visible(dir.path()).into_keys().next().unwrap());
    let found = read_back(&file, Format::Arrow, Compression::None, &batch("a").schema());
    assert_eq!(found.column(0).as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["a", "b"]);
}

#[tokio::test]
async fn an_avro_schema_that_came_along_is_not_taken_for_the_one_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let note = r#"{"type":"record","name":"r","fields":[{"name":"other","type":"long"}]}"#;
    let schema =
        ids([1]).schema().as_ref().clone().with_metadata([("avro.schema".into(), note.into())].into());
    let batch = ids(0..4).with_schema(Arc::new(schema)).unwrap();
    let path = written(FilesSink::avro(dir.path().to_str().unwrap()), dir.path(), &batch).await;
    let found = read_back(&path, Format::Avro, Compression::None, &batch.schema());
    assert_same_values(&found, &batch, "avro");
}

#[tokio::test]
async fn csv_is_written_as_asked_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let text = ["a;b", "it's", "\\", "c\\;d'e", "", "\\N2"];
    let values: ArrayRef = Arc::new(StringArray::from_iter(text.iter().map(|t| Some(*t)).chain([None])));
    let n: ArrayRef = Arc::new(Int32Array::from_iter_values(0..7));
    let batch = RecordBatch::try_from_iter_with_nullable([("t", values, true), ("n", n, false)]).unwrap();
    let csv = CsvOptions { delimiter: ';', quote: '\'', escape: None, header: false, null: "\\N".into() };
    let sink = FilesSink::csv(dir.path().to_str().unwrap()).csv_options(csv);
    let mut run = Run::start(&sink, &batch.schema(), &lineage(1)).await;
    run.epoch(1, &batch).await;
    let file = dir.path().join(visible(dir.path()).into_keys().next().unwrap());
    let found = arrow::csv::ReaderBuilder::new(batch.schema())
        .with_header(false)
        .with_delimiter(b';')
        .with_quote(b'\'')
        .build(File::open(&file).unwrap())
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let back: Vec<_> = found.column(0).as_string::<i32>().iter().collect();
    assert_eq!(back[..4], text[..4].iter().map(|t| Some(*t)).collect::<Vec<_>>());
    assert_eq!(back[5..], [Some("\\N2"), Some("\\N")]);
}

#[tokio::test]
async fn types_that_a_format_does_not_have_are_refused_by_name() {
    let open = async |format: Format, data_type: DataType| {
        let dir = tempfile::tempdir().unwrap();
        let schema =
            Schema::new(vec![Field::new("fine", DataType::Int64, true), Field::new("odd", data_type, true)]);
        let inputs = [StreamInfo::new("rows", Arc::new(schema))];
        FilesSink::new(dir.path().to_str().unwrap(), format).open(&context(), &inputs).await.map(drop)
    };
    let list = nested().column(1).data_type().clone();
    let union = UnionArray::try_new(
        [(0, Arc::new(Field::new("a", DataType::Int32, true)))].into_iter().collect(),
        vec![0].into(),
        None,
        vec![Arc::new(Int32Array::from(vec![1]))],
    )
    .unwrap();
    let union = arrow::array::Array::data_type(&union).clone();
    for (format, data_type) in [
        (Format::Csv, list),
        (Format::Csv, nested().column(2).data_type().clone()),
        (Format::Csv, union.clone()),
        (Format::Json, union.clone()),
        (Format::Parquet, union.clone()),
        (Format::Avro, union.clone()),
        (Format::Avro, DataType::Null),
        (Format::Arrow, union),
    ] {
        let error = open(format, data_type).await.unwrap_err();
        assert_eq!((error.kind(), error.context("column")), (ErrorKind::Schema, Some("odd")), "{format}");
    }
}

#[tokio::test]
async fn a_value_that_a_format_does_not_have_is_named_by_column_only() {
    let far: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![i64::MAX - 4_711]));
    let zoned: ArrayRef =
        Arc::new(TimestampMicrosecondArray::from(vec![i64::MIN + 4_711]).with_timezone("Europe/Berlin"));
    let long: ArrayRef = Arc::new(DurationSecondArray::from(vec![i64::MAX - 4_711]));
    let within = Arc::new(Field::new("inner", far.data_type().clone(), true));
    let nested: ArrayRef = Arc::new(StructArray::from(vec![(within, far.clone())]));
    for (format, column) in [
        (Format::Csv, &far),
        (Format::Csv, &long),
        (Format::Json, &far),
        (Format::Json, &zoned),
        (Format::Json, &long),
        (Format::Json, &nested),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let sink = FilesSink::new(dir.path().to_str().unwrap(), format);
        let ids = ids([1]).column(0).clone();
        let batch = RecordBatch::try_from_iter([("id", ids), ("far", column.clone())]).unwrap();
        let mut run = Run::start(&sink, &batch.schema(), &lineage(1)).await;
        let error = run.writer.write(StreamId(0), batch).await.unwrap_err();
        assert_eq!((error.kind(), error.context("column")), (ErrorKind::Data, Some("far")), "{format}");
        assert!(!error.report().contains("922337"), "{}", error.report());
    }
}

#[tokio::test]
async fn a_schema_may_change_between_batches() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let sink = FilesSink::parquet(root.to_str().unwrap());
    let mut run = Run::start(&sink, &ids([1]).schema(), &lineage(1)).await;
    run.write(&ids(0..3)).await;
    let wider = RecordBatch::try_from_iter([
        ("id", ids(3..5).column(0).clone()),
        ("more", Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef),
    ])
    .unwrap();
    let error = run.writer.write(StreamId(0), wider.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    run.writer.schema_changed(StreamId(0), &wider.schema()).await.unwrap();
    run.write(&wider).await;
    let staged = run.prepare(1).await;
    run.commit(1, staged).await.unwrap();
    assert_eq!(visible(root).len(), 2);
    assert_eq!(visible_ids(root), vec![0, 1, 2, 3, 4]);
}
