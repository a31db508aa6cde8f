//! What happens between a look at the table and the commit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use arrow::array::{Int64Array, RecordBatch};
use async_trait::async_trait;
use futures::future::BoxFuture;
use iceberg::spec::{Transform, UnboundPartitionSpec};
use iceberg::table::Table;
use iceberg::transaction::{ApplyTransactionAction, Transaction};
use iceberg::{
    Catalog, ErrorKind as Iceberg, Namespace, NamespaceIdent, Result as IcebergResult, TableCommit,
    TableCreation, TableIdent,
};
use orbit_etl_core::{Discard, ErrorKind, Sink, StreamInfo};
use orbit_etl_testkit::{Run, context, read};
use tempfile::TempDir;

use super::IcebergSink;
use crate::catalog::table_ident;
use crate::{IcebergCatalog, IcebergSource};

type Deed = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// A catalog in which things happen.
struct Eventful {
    inner: Arc<dyn Catalog>,
    /// Done before the next commit.
    before: Mutex<Option<Deed>>,
    /// Whether the next commit's answer is lost.
    loses_answer: Mutex<bool>,
}

impl std::fmt::Debug for Eventful {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Eventful")
    }
}

#[async_trait]
impl Catalog for Eventful {
    async fn update_table(&self, commit: TableCommit) -> IcebergResult<Table> {
        let deed = self.before.lock().unwrap().take();
        if let Some(deed) = deed {
            deed().await;
        }
        let done = self.inner.update_table(commit).await;
        match std::mem::take(&mut *self.loses_answer.lock().unwrap()) {
            true => Err(iceberg::Error::new(Iceberg::Unexpected, "the commit state is unknown")),
            false => done,
        }
    }
    async fn load_table(&self, table: &TableIdent) -> IcebergResult<Table> {
        self.inner.load_table(table).await
    }
    async fn list_namespaces(&self, of: Option<&NamespaceIdent>) -> IcebergResult<Vec<NamespaceIdent>> {
        self.inner.list_namespaces(of).await
    }
    async fn create_namespace(
        &self,
        namespace: &NamespaceIdent,
        properties: HashMap<String, String>,
    ) -> IcebergResult<Namespace> {
        self.inner.create_namespace(namespace, properties).await
    }
    async fn get_namespace(&self, namespace: &NamespaceIdent) -> IcebergResult<Namespace> {
        self.inner.get_namespace(namespace).await
    }
    async fn namespace_exists(&self, namespace: &NamespaceIdent) -> IcebergResult<bool> {
        self.inner.namespace_exists(namespace).await
    }
    async fn update_namespace(
        &self,
        namespace: &NamespaceIdent,
        properties: HashMap<String, String>,
    ) -> IcebergResult<()> {
        self.inner.update_namespace(namespace, properties).await
    }
    async fn drop_namespace(&self, namespace: &NamespaceIdent) -> IcebergResult<()> {
        self.inner.drop_namespace(namespace).await
    }
    async fn list_tables(&self, namespace: &NamespaceIdent) -> IcebergResult<Vec<TableIdent>> {
        self.inner.list_tables(namespace).await
    }
    async fn create_table(&self, of: &NamespaceIdent, creation: TableCreation) -> IcebergResult<Table> {
        self.inner.create_table(of, creation).await
    }
    async fn drop_table(&self, table: &TableIdent) -> IcebergResult<()> {
        self.inner.drop_table(table).await
    }
    async fn purge_table(&self, table: &TableIdent) -> IcebergResult<()> {
        self.inner.purge_table(table).await
    }
    async fn table_exists(&self, table: &TableIdent) -> IcebergResult<bool> {
        self.inner.table_exists(table).await
    }
    async fn rename_table(&self, from: &TableIdent, to: &TableIdent) -> IcebergResult<()> {
        self.inner.rename_table(from, to).await
    }
    async fn register_table(&self, table: &TableIdent, metadata: String) -> IcebergResult<Table> {
        self.inner.register_table(table, metadata).await
    }
}

/// A table, seen by a sink through an eventful catalog and by others without.
struct Lake {
    dir: TempDir,
    plain: IcebergCatalog,
    events: Arc<Eventful>,
    eventful: IcebergCatalog,
}

impl Lake {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let plain = IcebergCatalog::memory(dir.path().to_str().unwrap());
        let opened = plain.open().await.unwrap().clone();
        let events = Arc::new(Eventful {
            inner: opened.catalog,
            before: Mutex::default(),
            loses_answer: Mutex::default(),
        });
        let eventful = IcebergCatalog::of(events.clone(), opened.stores);
        Self { dir, plain, events, eventful }
    }

    fn sink(&self) -> IcebergSink {
        IcebergSink::append(self.eventful.clone(), "ns.t")
    }

    fn other(&self) -> IcebergSink {
        IcebergSink::append(self.plain.clone(), "ns.t")
    }

    async fn run(&self, claim: u64) -> Run {
        start(&self.sink(), claim).await
    }

    async fn table(&self) -> Table {
        self.plain.open().await.unwrap().load(&ident()).await.unwrap()
    }

    async fn visible(&self) -> Vec<i64> {
        use arrow::array::AsArray;
        use arrow::datatypes::Int64Type;

        let source = IcebergSource::new(self.plain.clone(), "ns.t");
        let batches = read(&source, std::time::Duration::from_secs(1)).await.unwrap().into_batches(0);
        let ids = |batch: &RecordBatch| batch.column(0).as_primitive::<Int64Type>().values().to_vec();
        let mut ids: Vec<i64> = batches.iter().flat_map(ids).collect();
        ids.sort_unstable();
        ids
    }

    fn before_commit(&self, deed: impl Future<Output = ()> + Send + 'static) {
        *self.events.before.lock().unwrap() = Some(Box::new(move || Box::pin(deed)));
    }

    /// Commits something of another client's.
    async fn change(&self, change: impl Fn(Transaction) -> IcebergResult<Transaction>) {
        let opened = self.plain.open().await.unwrap();
        let transaction = change(Transaction::new(&self.table().await)).unwrap();
        transaction.commit(opened.catalog.as_ref()).await.unwrap();
    }
}

fn ident() -> TableIdent {
    table_ident("ns.t").unwrap()
}

async fn start(sink: &IcebergSink, claim: u64) -> Run {
    Run::start(&context().unwrap(), sink, &[stream()], claim).await.unwrap()
}

fn stream() -> StreamInfo {
    StreamInfo::new("rows", ids(0, 1).schema())
}

fn ids(from: i64, to: i64) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable([(
        "id",
        Arc::new(Int64Array::from_iter_values(from..to)) as _,
        true,
    )])
    .unwrap()
}

async fn staged(run: &mut Run, epoch: u64, rows: RecordBatch) -> Vec<orbit_etl_core::Committable> {
    run.write(0, 0, rows).await.unwrap();
    run.prepare(epoch).await.unwrap()
}

#[tokio::test]
async fn a_lost_answer_is_recognised() {
    let lake = Lake::new().await;
    let mut run = lake.run(1).await;
    *lake.events.loses_answer.lock().unwrap() = true;
    run.epoch(1, &[ids(0, 3)]).await.unwrap();
    assert_eq!(lake.visible().await, [0, 1, 2]);
    // The claim's own answer too.
    *lake.events.loses_answer.lock().unwrap() = true;
    let mut next = lake.run(2).await;
    assert_eq!(next.found.as_ref().unwrap().epoch, 1);
    next.epoch(2, &[ids(3, 4)]).await.unwrap();
    assert_eq!(lake.visible().await, [0, 1, 2, 3]);
}

#[tokio::test]
async fn an_append_is_built_on_what_others_did() {
    let lake = Lake::new().await;
    let mut run = lake.run(1).await;
    let other = lake.other();
    lake.before_commit(async move {
        let lineage = orbit_etl_core::Lineage { sink: "elsewhere".into(), ..Run::lineage(1) };
        let mut run = Run::start_as(&context().unwrap(), &other, &[stream()], lineage).await.unwrap();
        run.epoch(1, &[ids(10, 12)]).await.unwrap();
    });
    run.epoch(1, &[ids(0, 2)]).await.unwrap();
    assert_eq!(lake.visible().await, [0, 1, 10, 11]);
}

#[tokio::test]
async fn a_newer_claim_between_look_and_commit_ends_the_older_run() {
    let lake = Lake::new().await;
    let mut older = lake.run(1).await;
    older.epoch(1, &[ids(0, 1)]).await.unwrap();
    let pending = staged(&mut older, 2, ids(1, 2)).await;
    let other = lake.other();
    lake.before_commit(async move {
        start(&other, 2).await;
    });
    let refused = older.commit(2, pending.clone()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    assert_eq!(lake.visible().await, [0]);
    // Nor does an epoch without rows get through.
    assert_eq!(older.commit(2, Vec::new()).await.unwrap_err().kind(), ErrorKind::Fenced);
    let mut newest = start(&lake.other(), 3).await;
    newest.commit(2, pending).await.unwrap();
    assert_eq!(lake.visible().await, [0, 1]);
}

#[tokio::test]
async fn the_same_epoch_committed_by_two_is_there_once() {
    let lake = Lake::new().await;
    let mut run = lake.run(1).await;
    let pending = staged(&mut run, 1, ids(0, 2)).await;
    // The same run's commit, sent again, arrives while the first is on its way.
    let (other, again) = (lake.other(), pending.clone());
    let cx = context().unwrap();
    let mut twin = other.open(&cx, &[stream()]).await.unwrap();
    twin.claim(&Run::lineage(1)).await.unwrap();
    let checkpoint = run.checkpoint(1);
    lake.before_commit(async move {
        twin.commit(1, &checkpoint, again).await.unwrap();
    });
    run.commit(1, pending).await.unwrap();
    assert_eq!(lake.visible().await, [0, 1]);
}

#[tokio::test]
async fn committed_files_stay_however_their_folder_is_spelt() {
    let lake = Lake::new().await;
    let mut run = lake.run(1).await;
    run.epoch(1, &[ids(0, 2)]).await.unwrap();
    // Not committed, and not to be.
    staged(&mut run, 2, ids(2, 3)).await;
    drop(run);
    let data = format!("file:{}/ns/t/data", lake.dir.path().display());
    lake.change(|t| t.update_table_properties().set("write.data.path".into(), data.clone()).apply(t)).await;
    let mut run = lake.run(2).await;
    run.discard(Discard::Older { claim: 2, keep: Vec::new() }).await.unwrap();
    assert_eq!(lake.visible().await, [0, 1]);
    let folder = lake.dir.path().join("ns/t/data");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
    let files = std::fs::read_dir(files[0].as_ref().unwrap().path()).unwrap().count();
    assert_eq!(files, 1);
    // Files that only an older snapshot names stay as well.
    run.epoch(2, &[ids(5, 6)]).await.unwrap();
    drop(run);
    let mut run = lake.run(3).await;
    run.discard(Discard::Older { claim: 3, keep: Vec::new() }).await.unwrap();
    assert_eq!(lake.visible().await, [0, 1, 5]);
}

#[tokio::test]
async fn a_table_made_anew_gets_nothing_of_the_old_one() {
    let lake = Lake::new().await;
    let mut run = lake.run(1).await;
    run.epoch(1, &[ids(0, 2)]).await.unwrap();
    let pending = staged(&mut run, 2, ids(2, 3)).await;
    let catalog = lake.plain.open().await.unwrap().catalog.clone();
    catalog.drop_table(&ident()).await.unwrap();
    let gone = run.commit(2, pending.clone()).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");
    let creation = TableCreation::builder()
        .name("t".to_owned())
        .schema(crate::types::to_iceberg(&stream().schema).unwrap())
        .build();
    catalog.create_table(ident().namespace(), creation).await.unwrap();
    let refused = run.commit(2, pending.clone()).await.unwrap_err();
    assert_eq!((refused.kind(), refused.is_retryable()), (ErrorKind::Conflict, false));
    // A new run knows nothing of it either, and its log would have said so.
    let mut run = lake.run(2).await;
    assert!(run.found.is_none());
    let refused = run.commit(2, pending).await.unwrap_err();
    assert_eq!((refused.kind(), refused.is_retryable()), (ErrorKind::Conflict, false));
    assert!(lake.visible().await.is_empty());
}

#[tokio::test]
async fn staged_rows_wait_for_their_own_partitioning() {
    let lake = Lake::new().await;
    let mut run = lake.run(1).await;
    let pending = staged(&mut run, 1, ids(0, 2)).await;
    // The crate can't change a table's partitioning, so its metadata is made by hand.
    let opened = lake.plain.open().await.unwrap();
    let table = lake.table().await;
    let spec = UnboundPartitionSpec::builder()
        .add_partition_field(1, "id_bucket", Transform::Bucket(4))
        .unwrap()
        .build();
    let metadata = table.metadata().clone().into_builder(table.metadata_location().map(str::to_owned));
    let metadata = metadata.add_default_partition_spec(spec).unwrap().build().unwrap().metadata;
    let at = iceberg::MetadataLocation::new_with_metadata(metadata.location(), &metadata);
    metadata.write_to(table.file_io(), &at).await.unwrap();
    opened.catalog.drop_table(&ident()).await.unwrap();
    opened.catalog.register_table(&ident(), at.to_string()).await.unwrap();
    let refused = run.commit(1, pending).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("partition"), "{refused}");
    // A new run writes for the new one.
    lake.run(2).await.epoch(1, &[ids(0, 2)]).await.unwrap();
    assert_eq!(lake.visible().await, [0, 1]);
}
