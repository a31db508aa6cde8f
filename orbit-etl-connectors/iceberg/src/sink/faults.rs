//! A bucket whose requests fail, each in its turn.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use futures::stream::{BoxStream, once};
use futures::{StreamExt, TryStreamExt};
use iceberg::CatalogBuilder;
use iceberg::memory::{MEMORY_CATALOG_WAREHOUSE, MemoryCatalogBuilder};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use orbit_etl_core::memory::MemorySource;
use orbit_etl_core::{Delivery, Pipeline, Restart, Source};
use orbit_etl_testkit::{context, read};
use tempfile::TempDir;

use super::IcebergSink;
use crate::storage::Stores;
use crate::{IcebergCatalog, IcebergSource};

const ROWS: i64 = 40;

#[derive(Debug)]
struct Faults {
    inner: InMemory,
    /// How many requests go well before the one that fails.
    left: AtomicI64,
    /// Whether that one is done, and only its answer is lost.
    lost: bool,
}

/// What becomes of a request.
#[derive(PartialEq)]
enum Turn {
    Pass,
    Refused,
    Lost,
}

impl Faults {
    fn turn(&self) -> Turn {
        match (self.left.fetch_sub(1, Ordering::SeqCst), self.lost) {
            (0, false) => Turn::Refused,
            (0, true) => Turn::Lost,
            _ => Turn::Pass,
        }
    }

    async fn answer<T>(&self, request: impl Future<Output = Result<T>> + Send) -> Result<T> {
        match self.turn() {
            Turn::Pass => request.await,
            Turn::Refused => Err(no_answer()),
            Turn::Lost => request.await.and_then(|_| Err(no_answer())),
        }
    }
}

fn no_answer() -> object_store::Error {
    object_store::Error::Generic { store: "Faults", source: "no answer".into() }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faults")
    }
}

#[async_trait]
impl ObjectStore for Faults {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.answer(self.inner.put_opts(path, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.answer(self.inner.put_multipart_opts(path, options)).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.answer(self.inner.get_opts(path, options)).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.turn() {
            Turn::Pass => self.inner.delete_stream(paths),
            Turn::Refused => once(async { Err(no_answer()) }).boxed(),
            Turn::Lost => {
                let done = self.inner.delete_stream(paths).collect::<Vec<_>>();
                once(done).map(|_| Err(no_answer())).boxed()
            }
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.turn() {
            Turn::Pass => self.inner.list(prefix),
            _ => once(async { Err(no_answer()) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.answer(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.answer(self.inner.copy_opts(from, to, options)).await
    }
}

/// Loads rows while the request of this number fails; whether there were so many.
async fn load(nth: i64, lost: bool) -> bool {
    let store = Arc::new(Faults { inner: InMemory::new(), left: AtomicI64::new(nth), lost });
    let stores = Stores::of("s3://bucket", store.clone());
    let catalog = MemoryCatalogBuilder::default().with_storage_factory(Arc::new(stores.clone()));
    let lake = HashMap::from([(MEMORY_CATALOG_WAREHOUSE.to_owned(), "s3://bucket/lake".to_owned())]);
    let catalog = IcebergCatalog::of(Arc::new(catalog.load("lake", lake).await.unwrap()), stores);
    let state = TempDir::new().unwrap();
    let batch = |from| {
        let ids = Int64Array::from_iter_values(from..from + ROWS / 4);
        RecordBatch::try_from_iter([("id", Arc::new(ids) as _)]).unwrap()
    };
    let batches: Vec<_> = (0..4).map(|part| batch(part * ROWS / 4)).collect();
    let soon = Duration::from_millis(1);
    let pipeline = Pipeline::builder("load")
        .source("in", MemorySource::new(batches[0].schema(), batches).with_splits(2))
        .sink("out", IcebergSink::append(catalog.clone(), "ns.t"))
        .delivery(Delivery::ExactlyOnce)
        .restart(Restart { max: 3, backoff: soon, max_backoff: soon })
        .checkpoint(state.path(), soon)
        .parallelism(1)
        .build()
        .unwrap();
    let what = format!("request {nth}, {}", if lost { "answer lost" } else { "refused" });
    let mut ended = pipeline.run().await;
    if let Err(error) = &ended {
        // Before the first claim a host is told at once, and tries again itself.
        assert!(error.is_retryable(), "{what}: {}", error.report());
        ended = pipeline.run().await;
    }
    ended.unwrap_or_else(|error| panic!("{what}: {}", error.report()));
    let failed = store.left.swap(i64::MAX, Ordering::SeqCst) < 0;

    let source = IcebergSource::new(catalog, "ns.t");
    let cx = context().unwrap();
    let rows = read(&source, Duration::from_secs(5)).await.unwrap().into_batches(0);
    let ids = rows.iter().flat_map(|rows| rows.column(0).as_primitive::<Int64Type>().values().to_vec());
    let mut ids: Vec<_> = ids.collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..ROWS).collect::<Vec<_>>(), "{what}");
    let told: Vec<_> = source.splits(&cx, None).await.unwrap().try_collect().await.unwrap();
    let path = |split: &orbit_etl_core::Split| split.payload["path"].as_str().unwrap().to_owned();
    let named: BTreeSet<_> = told.iter().flat_map(|change| change.added.iter().map(path)).collect();
    let there: Vec<_> = store.inner.list(None).try_collect().await.unwrap();
    let there = there.iter().filter(|file| file.location.extension() == Some("parquet"));
    let there: BTreeSet<_> = there.map(|file| format!("s3://bucket/{}", file.location)).collect();
    assert_eq!(there, named, "{what}");
    failed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_there_once_whichever_request_fails() {
    for lost in [false, true] {
        let mut nth = 0;
        while load(nth, lost).await {
            nth += 1;
        }
        assert!(nth > 10, "{nth} requests");
    }
}
