//! Reading: which snapshot, which files, and which rows of them.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use arrow_array58 as array58;
use chrono::DateTime;
use datafusion_expr::{col, lit};
use iceberg::TableIdent;
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, MAIN_BRANCH, ManifestContentType,
    ManifestListWriter, ManifestWriterBuilder, NestedField, Operation, PrimitiveType, Snapshot,
    SnapshotReference, SnapshotRetention, Struct, Summary, Type,
};
use iceberg::table::Table;
use orbit_etl_core::{Context, ErrorKind, Position, ScanRequest, Source, StreamId, StreamInfo};
use orbit_etl_testkit::{Run, context, read, read_split, splits};
use parquet58::arrow::ArrowWriter;
use tempfile::TempDir;

use super::IcebergSource;
use crate::catalog::table_ident;
use crate::{IcebergCatalog, IcebergSink, PartitionBy, SchemaMode, types};

const IDLE: Duration = Duration::from_secs(1);

struct Lake {
    _dir: TempDir,
    catalog: IcebergCatalog,
}

impl Lake {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let catalog = IcebergCatalog::memory(dir.path().to_str().unwrap());
        Self { _dir: dir, catalog }
    }

    fn sink(&self) -> IcebergSink {
        IcebergSink::append(self.catalog.clone(), "ns.t")
    }

    fn source(&self) -> IcebergSource {
        IcebergSource::new(self.catalog.clone(), "ns.t")
    }

    async fn table(&self) -> Table {
        self.catalog.open().await.unwrap().load(&ident()).await.unwrap()
    }

    /// The newest snapshot's number.
    async fn tip(&self) -> i64 {
        self.table().await.metadata().current_snapshot_id().unwrap()
    }

    async fn append(&self, claim: u64, rows: RecordBatch) -> i64 {
        append(&self.sink(), claim, rows).await;
        self.tip().await
    }
}

async fn append(sink: &IcebergSink, claim: u64, rows: RecordBatch) {
    let stream = StreamInfo::new("rows", rows.schema());
    let mut run = Run::start(&context().unwrap(), sink, &[stream], claim).await.unwrap();
    run.epoch(claim, &[rows]).await.unwrap();
}

fn ident() -> TableIdent {
    table_ident("ns.t").unwrap()
}

fn rows(from: i64, to: i64) -> RecordBatch {
    let names = (from..to).map(|id| (id % 3 != 0).then(|| format!("name {id}")));
    RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from_iter_values(from..to)) as _, true),
        ("name", Arc::new(StringArray::from_iter(names)) as _, true),
    ])
    .unwrap()
}

fn ids(batches: &[RecordBatch]) -> Vec<i64> {
    let of = |batch: &RecordBatch| {
        batch.column_by_name("id").unwrap().as_primitive::<Int64Type>().values().to_vec()
    };
    let mut ids: Vec<i64> = batches.iter().flat_map(of).collect();
    ids.sort_unstable();
    ids
}

async fn all(source: &IcebergSource) -> Vec<i64> {
    ids(&read(source, IDLE).await.unwrap().into_batches(0))
}

/// What comes after a position: the rows, and the next position.
async fn after(source: &IcebergSource, position: Option<&Position>) -> (Vec<i64>, Position) {
    let cx = context().unwrap();
    let scan = [ScanRequest::all(StreamId(0), 64)];
    let (mut batches, mut last) = (Vec::new(), position.cloned());
    for change in splits(&cx, source, position, IDLE).await.unwrap() {
        for split in &change.added {
            for event in read_split(&cx, source, split, None, &scan, IDLE).await.unwrap() {
                if let orbit_etl_core::SourceEvent::Batch { batch, .. } = event {
                    batches.push(batch);
                }
            }
        }
        last = Some(change.position);
    }
    (ids(&batches), last.unwrap())
}

#[tokio::test]
async fn snapshots_are_found_by_number_time_and_name() {
    let lake = Lake::new();
    let first = lake.append(1, rows(0, 3)).await;
    let second = lake.append(2, rows(3, 5)).await;
    assert_eq!(all(&lake.source()).await, [0, 1, 2, 3, 4]);
    assert_eq!(all(&lake.source().snapshot(first)).await, [0, 1, 2]);
    assert_eq!(all(&lake.source().reference("main")).await, [0, 1, 2, 3, 4]);
    assert_eq!(all(&lake.source().from_snapshot(first)).await, [3, 4]);
    assert_eq!(all(&lake.source().from_snapshot(first).snapshot(second)).await, [3, 4]);
    assert_eq!(all(&lake.source().from_snapshot(second)).await, Vec::<i64>::new());

    let table = lake.table().await;
    let at =
        |id| DateTime::from_timestamp_millis(table.metadata().snapshot_by_id(id).unwrap().timestamp_ms());
    let of_first = all(&lake.source().timestamp(at(first).unwrap())).await;
    // Both may be of one millisecond.
    assert!(of_first == [0, 1, 2] || at(first) == at(second));
    for missing in [
        lake.source().snapshot(77),
        lake.source().reference("nowhere"),
        lake.source().timestamp(DateTime::from_timestamp_millis(0).unwrap()),
    ] {
        let error = missing.streams(&context().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    let lost = lake.source().from_snapshot(77);
    assert_eq!(lost.splits(&context().unwrap(), None).await.err().unwrap().kind(), ErrorKind::NotFound);
    let both = lake.source().snapshot(first).reference("main");
    assert_eq!(both.streams(&context().unwrap()).await.unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test]
async fn another_run_reads_what_was_appended_since() {
    let lake = Lake::new();
    lake.append(1, rows(0, 3)).await;
    let (first, position) = after(&lake.source(), None).await;
    assert_eq!(first, [0, 1, 2]);
    let (none, same) = after(&lake.source(), Some(&position)).await;
    assert_eq!((none, &same), (vec![], &position));
    lake.append(2, rows(3, 5)).await;
    // Columns that came later are NULL in what was before.
    let wide = RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from(vec![9])) as _, true),
        ("name", Arc::new(StringArray::from(vec!["x"])) as _, true),
        ("more", Arc::new(Int64Array::from(vec![7])) as _, true),
    ])
    .unwrap();
    append(&lake.sink().schema_mode(SchemaMode::Merge), 3, wide).await;
    let (more, position) = after(&lake.source(), Some(&position)).await;
    assert_eq!(more, [3, 4, 9]);
    assert_eq!(after(&lake.source(), Some(&position)).await.0, Vec::<i64>::new());

    // The table under the name is another one now.
    let catalog = lake.catalog.open().await.unwrap().catalog.clone();
    catalog.drop_table(&ident()).await.unwrap();
    let gone = lake.source().splits(&context().unwrap(), Some(&position)).await.err().unwrap();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    lake.append(1, rows(0, 1)).await;
    let other = lake.source().splits(&context().unwrap(), Some(&position)).await.err().unwrap();
    assert_eq!((other.kind(), other.is_retryable()), (ErrorKind::Conflict, false));
}

#[tokio::test]
async fn what_has_expired_is_told() {
    use iceberg::transaction::{ApplyTransactionAction, Transaction};

    let lake = Lake::new();
    let first = lake.append(1, rows(0, 3)).await;
    let (cx, source) = (context().unwrap(), lake.source());
    let (_, position) = after(&source, None).await;
    let told = splits_of(&cx, &lake.source().snapshot(first)).await;
    lake.append(2, rows(3, 5)).await;
    let table = lake.table().await;
    let expire = Transaction::new(&table);
    let expire =
        expire.expire_snapshots().expire_older_than_ms(i64::MAX).retain_last(1).apply(expire).unwrap();
    expire.commit(lake.catalog.open().await.unwrap().catalog.as_ref()).await.unwrap();
    assert_eq!(all(&lake.source()).await, [0, 1, 2, 3, 4]);
    let gone = lake.source().snapshot(first).streams(&cx).await.unwrap_err();
    assert_eq!((gone.kind(), gone.is_retryable()), (ErrorKind::NotFound, false));
    // Neither what was listed before nor what came after it can be told any more.
    let scan = [ScanRequest::all(StreamId(0), 64)];
    let gone = lake.source().open(&cx, &told[0], None, &scan).await.err().unwrap();
    assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");
    let gone = lake.source().splits(&cx, Some(&position)).await.err().unwrap();
    assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");
}

#[tokio::test]
async fn a_position_is_of_its_own_snapshot() {
    let lake = Lake::new();
    lake.append(1, rows(0, 200)).await;
    let cx = context().unwrap();
    let scan = [ScanRequest::all(StreamId(0), 64)];
    let told = splits(&cx, &lake.source(), None, IDLE).await.unwrap();
    let split = &told[0].added[0];
    // What comes later changes nothing of it.
    delete(&lake, "position", &rows(5, 8)).await;
    let events = read_split(&cx, &lake.source(), split, None, &scan, IDLE).await.unwrap();
    let orbit_etl_core::SourceEvent::Batch { position: Some(position), .. } = &events[0] else { panic!() };
    let rest = read_split(&cx, &lake.source(), split, Some(position), &scan, IDLE).await.unwrap();
    let rest: Vec<_> = rest
        .into_iter()
        .filter_map(|event| match event {
            orbit_etl_core::SourceEvent::Batch { batch, .. } => Some(batch),
            _ => None,
        })
        .collect();
    assert_eq!(ids(&rest), (64..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_run_keeps_the_columns_that_it_was_told_of() {
    let lake = Lake::new();
    lake.append(1, rows(0, 3)).await;
    let (cx, source) = (context().unwrap(), lake.source());
    let schema = source.streams(&cx).await.unwrap()[0].schema.clone();
    let told = splits_of(&cx, &source).await;
    let wide = RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from(vec![9])) as _, true),
        ("more", Arc::new(Int64Array::from(vec![7])) as _, true),
    ])
    .unwrap();
    append(&lake.sink().schema_mode(SchemaMode::Merge), 2, wide).await;
    // What was listed before has the columns from before; a new list is refused.
    let mut request = ScanRequest::all(StreamId(0), 64);
    request.filters = vec![col("id").gt(lit(0_i64))];
    for split in &told {
        let mut events = source.open(&cx, split, None, std::slice::from_ref(&request)).await.unwrap();
        let first = futures::StreamExt::next(&mut events).await.unwrap().unwrap();
        let orbit_etl_core::SourceEvent::Batch { batch, .. } = first else { panic!() };
        assert_eq!(batch.schema(), schema);
    }
    assert_eq!(source.splits(&cx, None).await.err().unwrap().kind(), ErrorKind::Schema);
    // Another run has the new ones, and reads old files with them.
    let next = context().unwrap();
    assert_eq!(source.streams(&next).await.unwrap()[0].schema.fields().len(), 3);
    request.filters = vec![col("more").gt(lit(0_i64))];
    let mut events = source.open(&next, &told[0], None, &[request]).await.unwrap();
    let first = futures::StreamExt::next(&mut events).await.unwrap().unwrap();
    let orbit_etl_core::SourceEvent::Batch { batch, .. } = first else { panic!() };
    assert_eq!((batch.num_columns(), batch.num_rows()), (3, 3));
}

/// The splits, without asking for the streams again.
async fn splits_of(cx: &Context, source: &IcebergSource) -> Vec<orbit_etl_core::Split> {
    use futures::TryStreamExt;

    let changes: Vec<_> = source.splits(cx, None).await.unwrap().try_collect().await.unwrap();
    changes.into_iter().flat_map(|change| change.added).collect()
}

#[tokio::test]
async fn new_snapshots_are_followed() {
    use futures::StreamExt;

    let lake = Lake::new();
    lake.append(1, rows(0, 3)).await;
    let source = lake.source().follow().poll(Duration::from_millis(5));
    let cx = Context::standalone("in").unwrap();
    assert!(!source.streams(&cx).await.unwrap()[0].bounded);
    let mut changes = source.splits(&cx, None).await.unwrap();
    assert_eq!(changes.next().await.unwrap().unwrap().added.len(), 1);
    lake.append(2, rows(3, 5)).await;
    // A claim's snapshot has no files.
    let mut added = Vec::new();
    while added.is_empty() {
        added = changes.next().await.unwrap().unwrap().added;
    }
    assert_eq!(added.len(), 1);
    let fixed = lake.source().snapshot(1).follow();
    assert_eq!(fixed.streams(&cx).await.unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test]
async fn deleted_rows_do_not_come() {
    for how in ["position", "equality"] {
        let lake = Lake::new();
        let before = lake.append(1, rows(0, 10)).await;
        let (_, position) = after(&lake.source(), None).await;
        delete(&lake, how, &rows(2, 5)).await;
        assert_eq!(all(&lake.source()).await, [0, 1, 5, 6, 7, 8, 9], "{how}");
        assert_eq!(all(&lake.source().snapshot(before)).await.len(), 10, "{how}");
        // Rows that are written afterwards are not meant.
        lake.append(2, rows(2, 4)).await;
        assert_eq!(all(&lake.source()).await, [0, 1, 2, 3, 5, 6, 7, 8, 9], "{how}");
        // What was taken away can't be told as new rows.
        let source = lake.source();
        let told = splits(&context().unwrap(), &source, Some(&position), IDLE).await;
        assert!(told.is_err_and(|e| e.to_string().contains("rows away")), "{how}");
    }
}

#[tokio::test]
async fn deletes_of_an_unknown_form_are_named() {
    let lake = Lake::new();
    let before = lake.append(1, rows(0, 10)).await;
    delete(&lake, "vector", &rows(2, 5)).await;
    let refused = lake.source().splits(&context().unwrap(), None).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    assert!(refused.context("file").unwrap().ends_with("deletes-vector.puffin"));
    assert_eq!(all(&lake.source().snapshot(before)).await.len(), 10);
}

#[tokio::test]
async fn filters_leave_files_out() {
    let lake = Lake::new();
    let sink = lake.sink().partition_by([PartitionBy::new("id", "bucket[8]")]);
    append(&sink, 1, rows(0, 100)).await;
    append(&sink, 2, rows(100, 200)).await;
    let (cx, source) = (context().unwrap(), lake.source());
    let told = splits(&cx, &source, None, IDLE).await.unwrap();
    assert_eq!(told[0].added.len(), 16);
    for (filter, files) in [
        (col("id").eq(lit(150_i64)), 1),
        (col("id").gt_eq(lit(100_i64)), 8),
        (col("id").lt(lit(0_i64)), 0),
        (col("id").in_list(vec![lit(1_i64), lit(1_i64)], false), 1),
    ] {
        let mut request = ScanRequest::all(StreamId(0), 64);
        request.filters = vec![filter.clone()];
        let mut read = 0;
        for split in &told[0].added {
            let events =
                read_split(&cx, &source, split, None, std::slice::from_ref(&request), IDLE).await.unwrap();
            read += usize::from(events.len() > 1);
        }
        assert_eq!(read, files, "{filter}");
    }
}

#[tokio::test]
async fn what_is_no_table_is_told() {
    let lake = Lake::new();
    let cx = context().unwrap();
    assert_eq!(lake.source().streams(&cx).await.unwrap_err().kind(), ErrorKind::NotFound);
    let nameless = IcebergSource::new(lake.catalog.clone(), "t");
    assert_eq!(nameless.streams(&cx).await.unwrap_err().kind(), ErrorKind::Config);
    lake.append(1, rows(0, 1)).await;
    let table = lake.table().await;
    // A catalog that points to something else.
    std::fs::write(table.metadata_location().unwrap().trim_start_matches("file://"), "{}").unwrap();
    assert_eq!(lake.source().streams(&cx).await.unwrap_err().kind(), ErrorKind::Data);
    std::fs::remove_file(table.metadata_location().unwrap().trim_start_matches("file://")).unwrap();
    assert_eq!(lake.source().streams(&cx).await.unwrap_err().kind(), ErrorKind::NotFound);
}

/// Takes rows of the newest data file away, as other engines do.
async fn delete(lake: &Lake, how: &str, gone: &RecordBatch) {
    let table = lake.table().await;
    let tasks = super::read::Plans::default();
    let view = super::View::new(table.clone(), &super::At::Newest).unwrap();
    let plan = tasks.of(&view, lake.tip().await, None).await.unwrap();
    let data = plan.keys().max().unwrap().clone();
    let gone = gone.column(0).as_primitive::<Int64Type>().values().to_vec();
    let field = |id, name: &str, of| NestedField::required(id, name, Type::Primitive(of)).into();
    let (fields, columns): (Vec<_>, Vec<array58::ArrayRef>) = match how {
        "position" | "vector" => (
            vec![
                field(2_147_483_546, "file_path", PrimitiveType::String),
                field(2_147_483_545, "pos", PrimitiveType::Long),
            ],
            vec![
                Arc::new(array58::StringArray::from(vec![data.as_str(); gone.len()])),
                Arc::new(array58::Int64Array::from(gone.clone())),
            ],
        ),
        _ => (
            vec![field(1, "id", PrimitiveType::Long)],
            vec![Arc::new(array58::Int64Array::from(gone.clone()))],
        ),
    };
    let schema = iceberg::spec::Schema::builder().with_fields(fields).build().unwrap();
    let arrow = Arc::new(iceberg::arrow::schema_to_arrow_schema(&schema).unwrap());
    let batch = array58::RecordBatch::try_new(arrow.clone(), columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, arrow, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let ending = if how == "vector" { "puffin" } else { "parquet" };
    let at = format!("{}/data/deletes-{how}.{ending}", table.metadata().location());
    let size = bytes.len() as u64;
    table.file_io().new_output(&at).unwrap().write(bytes.into()).await.unwrap();
    let mut file = DataFileBuilder::default();
    file.file_path(at)
        .file_format(DataFileFormat::Parquet)
        .partition(Struct::empty())
        .partition_spec_id(0)
        .record_count(gone.len() as u64)
        .file_size_in_bytes(size);
    match how {
        "position" | "vector" => file.content(DataContentType::PositionDeletes),
        _ => file.content(DataContentType::EqualityDeletes).equality_ids(Some(vec![1])),
    };
    commit_deletes(lake, &table, file.build().unwrap()).await;
}

/// A snapshot with one delete file more.
async fn commit_deletes(lake: &Lake, table: &Table, file: DataFile) {
    let metadata = table.metadata();
    let parent = metadata.current_snapshot().unwrap();
    let (id, sequence) = (parent.snapshot_id() / 2 + 1, metadata.next_sequence_number());
    let output = |name: &str| {
        table.file_io().new_output(format!("{}/metadata/{name}-{id}.avro", metadata.location())).unwrap()
    };
    let spec = metadata.default_partition_spec().as_ref().clone();
    let builder = ManifestWriterBuilder::new(output("m"), Some(id), metadata.current_schema().clone(), spec);
    let mut writer = builder.build_v2_deletes();
    writer.add_file(file, sequence).unwrap();
    let manifest = writer.write_manifest_file().await.unwrap();
    assert_eq!(manifest.content, ManifestContentType::Deletes);
    let list = output("snap");
    let at = list.location().to_owned();
    let mut writer =
        ManifestListWriter::v2(list.writer().await.unwrap(), id, Some(parent.snapshot_id()), sequence);
    let before = table.manifest_list_reader(parent).load().await.unwrap();
    writer.add_manifests(before.entries().iter().cloned().chain([manifest])).unwrap();
    writer.close().await.unwrap();
    let summary = Summary { operation: Operation::Delete, additional_properties: Default::default() };
    let snapshot = Snapshot::builder()
        .with_manifest_list(at)
        .with_snapshot_id(id)
        .with_parent_snapshot_id(Some(parent.snapshot_id()))
        .with_sequence_number(sequence)
        .with_summary(summary)
        .with_schema_id(metadata.current_schema_id())
        .with_timestamp_ms(metadata.last_updated_ms() + 1)
        .build();
    let retention = SnapshotRetention::branch(None, None, None);
    let builder = metadata.clone().into_builder(table.metadata_location().map(str::to_owned));
    let builder = builder.add_snapshot(snapshot).unwrap();
    let builder = builder.set_ref(MAIN_BRANCH, SnapshotReference::new(id, retention)).unwrap();
    let metadata = builder.build().unwrap().metadata;
    let at = iceberg::MetadataLocation::new_with_metadata(metadata.location(), &metadata);
    metadata.write_to(table.file_io(), &at).await.unwrap();
    let catalog = lake.catalog.open().await.unwrap().catalog.clone();
    catalog.drop_table(&ident()).await.unwrap();
    catalog.register_table(&ident(), at.to_string()).await.unwrap();
    // The schema is as it was.
    assert_eq!(types::to_arrow(metadata.current_schema()).unwrap().fields().len(), 2);
}
