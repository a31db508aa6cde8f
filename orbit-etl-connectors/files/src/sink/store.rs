//! The target in an object store. A staged file is an upload that nobody has completed.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use orbit_etl_core::{Error, ErrorKind, Result};
use tokio::task::JoinSet;

use super::manifest::{Marker, Staged, Upload, from_json, to_json};
use crate::error::from_store;

/// How many parts of one file travel at once.
const PARTS_AT_ONCE: usize = 3;

/// The longest key that S3, Google's and Azure's stores take, in bytes.
const LONGEST_KEY: usize = 1_024;

/// How many objects are completed or removed at once.
const OBJECTS_AT_ONCE: usize = 8;

/// A prefix in a store. Paths are below it.
#[derive(Clone)]
pub(crate) struct Store {
    store: Arc<dyn ObjectStore>,
    multipart: Arc<dyn MultipartStore>,
    prefix: Path,
    display: String,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.display).finish()
    }
}

impl Store {
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        multipart: Arc<dyn MultipartStore>,
        prefix: Path,
        display: String,
    ) -> Self {
        Self { store, multipart, prefix, display: display.trim_end_matches('/').to_owned() }
    }

    /// Whether the store answers.
    pub(crate) async fn check(&self) -> Result<()> {
        let mut objects = self.store.list(Some(&self.prefix));
        match objects.next().await {
            Some(Err(e)) => Err(from_store(e, "list the target", &self.display)),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    /// Begins an upload and leaves a marker for whoever has to clean up.
    pub(crate) async fn create(&self, staged: &str, path: &str) -> Result<Uploading> {
        let to = self.at(path)?;
        let upload = self
            .multipart
            .create_multipart(&to)
            .await
            .map_err(|e| from_store(e, "begin an upload", self.name(path)))?;
        let marker = Marker { path: path.to_owned(), upload: upload.clone() };
        // Dying in between leaves an upload that nobody knows of, but without a part in it: it costs
        // nothing, and a bucket's lifecycle rule takes it away.
        if let Err(error) = self.put(staged, to_json(&marker)?).await {
            let _ = self.abort(path, &upload).await;
            return Err(error);
        }
        Ok(Uploading {
            multipart: Arc::clone(&self.multipart),
            name: self.name(path),
            path: to,
            id: upload,
            tasks: JoinSet::new(),
            in_flight: 0,
            parts: Vec::new(),
        })
    }

    pub(crate) async fn read(&self, path: &str) -> Result<Option<Bytes>> {
        let result = match self.store.get(&self.at(path)?).await {
            Ok(object) => object.bytes().await,
            Err(e) => Err(e),
        };
        match result {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(from_store(e, "read one of the sink's own files", self.name(path))),
        }
    }

    pub(crate) async fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        self.store
            .put(&self.at(path)?, PutPayload::from(bytes))
            .await
            .map(drop)
            .map_err(|e| from_store(e, "write one of the sink's own files", self.name(path)))
    }

    /// All objects below a folder, as paths below the prefix.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let within = self.at(folder)?;
        let below = self.prefix.as_ref().len() + usize::from(!self.prefix.as_ref().is_empty());
        self.store
            .list(Some(&within))
            .map_ok(|object| object.location.as_ref()[below..].to_owned())
            .try_collect()
            .await
            .map_err(|e| from_store(e, "list a folder", self.name(folder)))
    }

    /// Removes objects; what is missing is gone.
    pub(crate) async fn delete(&self, paths: Vec<String>) -> Result<()> {
        futures::stream::iter(paths)
            .map(|path| self.clone().delete_one(path))
            .buffer_unordered(OBJECTS_AT_ONCE)
            .try_collect()
            .await
    }

    /// Completes uploads. Those that were completed already are done.
    pub(crate) async fn publish(&self, files: Vec<Staged>) -> Result<()> {
        futures::stream::iter(files)
            .map(|file| self.clone().complete(file))
            .buffer_unordered(OBJECTS_AT_ONCE)
            .try_collect()
            .await
    }

    /// Aborts the uploads that these markers name, and removes the markers.
    pub(crate) async fn discard(&self, markers: Vec<String>) -> Result<()> {
        for name in markers {
            let Some(bytes) = self.read(&name).await? else { continue };
            let marker: Marker = from_json(&bytes, &self.name(&name))?;
            self.abort(&marker.path, &marker.upload).await?;
            self.clone().delete_one(name).await?;
        }
        Ok(())
    }

    /// How many bytes a path below the prefix may have.
    pub(crate) fn longest_path(&self) -> usize {
        LONGEST_KEY.saturating_sub(self.prefix.as_ref().len() + 1)
    }

    /// The name of an object for messages.
    pub(crate) fn name(&self, path: &str) -> String {
        format!("{}/{path}", self.display)
    }

    async fn delete_one(self, path: String) -> Result<()> {
        match self.store.delete(&self.at(&path)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(from_store(e, "remove a file", self.name(&path))),
        }
    }

    async fn complete(self, file: Staged) -> Result<()> {
        let Some(upload) = &file.upload else {
            return Err(Error::internal("a committable for an object store names no upload")
                .with("file", self.name(&file.path)));
        };
        let to = self.at(&file.path)?;
        let parts = upload.parts.iter().map(|id| PartId { content_id: id.clone() }).collect();
        let Err(error) = self.multipart.complete_multipart(&to, &upload.id, parts).await else {
            return Ok(());
        };
        // The name is this upload's alone: if something stands there, an earlier attempt went
        // through, whatever the answer to this one.
        match self.store.head(&to).await {
            Ok(object) if object.size == file.bytes => Ok(()),
            Ok(_) => Err(Error::new(
                ErrorKind::Conflict,
                "a file of another origin stands where a staged file belongs",
            )
            .retryable(false)
            .with("file", self.name(&file.path))
            .remedy("move that file away and run again")),
            Err(object_store::Error::NotFound { .. })
                if matches!(error, object_store::Error::NotFound { .. }) =>
            {
                Err(Error::internal("an upload is gone before it was published")
                    .with("file", self.name(&file.path))
                    .remedy(
                        "rows of this epoch are lost; check that the bucket's life-cycle rules keep \
                         incomplete uploads, and load again with a new target",
                    )
                    .caused_by(error))
            }
            Err(_) => Err(from_store(error, "complete an upload", self.name(&file.path))),
        }
    }

    async fn abort(&self, path: &str, upload: &str) -> Result<()> {
        match self.multipart.abort_multipart(&self.at(path)?, &upload.to_owned()).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(from_store(e, "abort an upload", self.name(path))),
        }
    }

    fn at(&self, path: &str) -> Result<Path> {
        let whole =
            if self.prefix.as_ref().is_empty() { path.to_owned() } else { format!("{}/{path}", self.prefix) };
        Path::parse(whole)
            .map_err(|e| Error::config("the path can't be used").with("file", self.name(path)).caused_by(e))
    }
}

/// An upload in progress.
pub(crate) struct Uploading {
    multipart: Arc<dyn MultipartStore>,
    name: String,
    path: Path,
    id: String,
    tasks: JoinSet<Result<(usize, usize, PartId)>>,
    in_flight: usize,
    parts: Vec<Option<PartId>>,
}

impl Uploading {
    /// Sends one more part, waiting if too many travel already.
    pub(crate) async fn push(&mut self, part: Bytes) -> Result<()> {
        while self.tasks.len() >= PARTS_AT_ONCE {
            self.arrive().await?;
        }
        let number = self.parts.len();
        self.parts.push(None);
        let size = part.len();
        self.in_flight += size;
        let (multipart, path, id, name) =
            (Arc::clone(&self.multipart), self.path.clone(), self.id.clone(), self.name.clone());
        self.tasks.spawn(async move {
            let sent = multipart.put_part(&path, &id, number, PutPayload::from(part)).await;
            let id = sent.map_err(|e| from_store(e, "upload a part", name))?;
            Ok((number, size, id))
        });
        Ok(())
    }

    /// How many bytes travel.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Waits for all parts.
    pub(crate) async fn finish(mut self, last: Bytes) -> Result<Upload> {
        if !last.is_empty() {
            self.push(last).await?;
        }
        while !self.tasks.is_empty() {
            self.arrive().await?;
        }
        let parts: Option<Vec<String>> =
            self.parts.into_iter().map(|part| part.map(|p| p.content_id)).collect();
        let parts = parts.ok_or_else(|| Error::internal("a part was never sent").with("file", &self.name))?;
        Ok(Upload { id: self.id, parts })
    }

    async fn arrive(&mut self) -> Result<()> {
        let Some(arrived) = self.tasks.join_next().await else { return Ok(()) };
        let (number, size, id) =
            arrived.map_err(|e| Error::internal("an upload's task has died").caused_by(e))??;
        self.in_flight -= size;
        if let Some(part) = self.parts.get_mut(number) {
            *part = Some(id);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::Location;
    use crate::sink::place::Place;
    use crate::{Compression, FilesSink};
    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    use object_store::memory::InMemory;
    use orbit_etl_core::{
        CheckpointRecord, Committable, Context, Discard, LaneId, Lineage, SinkSession, SinkWriter, StreamId,
        StreamInfo,
    };
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    fn rows(from: i64, count: i64) -> RecordBatch {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(from..from + count));
        // Hard to compress, so that there are several parts.
        let text = (from..from + count)
            .map(|id| format!("{:016x}", (id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).repeat(4));
        let text: ArrayRef = Arc::new(StringArray::from_iter_values(text));
        RecordBatch::try_from_iter([("id", ids), ("text", text)]).unwrap()
    }

    struct Fixture {
        memory: Arc<InMemory>,
        cx: Context,
        sink: FilesSink,
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                memory: Arc::new(InMemory::new()),
                cx: Context::standalone("out").unwrap(),
                sink: FilesSink::parquet("test://store/lake").compression(Compression::None),
            }
        }

        async fn start(&self, claim: u64) -> (Box<dyn SinkSession>, Box<dyn SinkWriter>) {
            let (store, parts) = (Arc::clone(&self.memory), Arc::clone(&self.memory));
            let location = Location::in_store(store, Some(parts), "lake").unwrap();
            let inputs = [StreamInfo::new("rows", rows(0, 1).schema())];
            let place = Place::new(&location).unwrap();
            let mut session: Box<dyn SinkSession> =
                Box::new(self.sink.open_at(&self.cx, &inputs, place).unwrap());
            let lineage = Lineage {
                id: "0192".into(),
                sink: "out".into(),
                generation: 1,
                claim,
                run: format!("run-{claim}"),
            };
            session.claim(&lineage).await.unwrap();
            let writer = session.writer(LaneId(0)).await.unwrap();
            (session, writer)
        }

        async fn objects(&self) -> Vec<String> {
            let listed: Vec<_> = self.memory.list(None).try_collect().await.unwrap();
            listed.into_iter().map(|object| object.location.to_string()).collect()
        }

        async fn visible(&self) -> Vec<String> {
            self.objects().await.into_iter().filter(|path| !path.contains("/_orbit/")).collect()
        }

        async fn markers(&self) -> Vec<String> {
            self.objects().await.into_iter().filter(|path| path.contains("/_orbit/staged/")).collect()
        }

        async fn count(&self) -> i64 {
            let mut count = 0;
            for path in self.visible().await {
                let bytes = self.memory.get(&Path::from(path)).await.unwrap().bytes().await.unwrap();
                let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
                count += reader.metadata().file_metadata().num_rows();
            }
            count
        }
    }

    async fn commit(session: &mut dyn SinkSession, epoch: u64, staged: Vec<Committable>) -> Result<()> {
        let checkpoint = CheckpointRecord { epoch, generation: 1, last: false, json: Bytes::new() };
        session.commit(epoch, &checkpoint, staged).await.map(drop)
    }

    #[tokio::test]
    async fn an_upload_in_parts_appears_with_the_commit() {
        let fixture = Fixture::new();
        let (mut session, mut writer) = fixture.start(1).await;
        for start in 0..20 {
            writer.write(StreamId(0), rows(start * 20_000, 20_000)).await.unwrap();
        }
        let staged = writer.prepare(1).await.unwrap().committables;
        assert_eq!(staged.len(), 1);
        let parts = staged[0].0["upload"]["parts"].as_array().unwrap().len();
        assert!(parts > 2, "{parts} parts");
        assert!(fixture.visible().await.is_empty());
        assert_eq!(fixture.markers().await.len(), 1);

        commit(session.as_mut(), 1, staged.clone()).await.unwrap();
        assert_eq!(fixture.count().await, 400_000);
        assert!(fixture.markers().await.is_empty());

        // The answer to the completion and the manifest are lost: the next run does it again.
        fixture
            .memory
            .delete(&Path::from("lake/_orbit/manifests/out/0192/000000000001.manifest"))
            .await
            .unwrap();
        let (mut session, _) = fixture.start(2).await;
        commit(session.as_mut(), 1, staged).await.unwrap();
        assert_eq!(fixture.count().await, 400_000);
        assert!(fixture.objects().await.iter().any(|path| path.ends_with("000000000001.manifest")));
    }

    #[tokio::test]
    async fn older_uploads_are_aborted_and_kept_ones_are_not() {
        let fixture = Fixture::new();
        let (_session, mut writer) = fixture.start(1).await;
        writer.write(StreamId(0), rows(0, 10)).await.unwrap();
        let pending = writer.prepare(1).await.unwrap().committables;
        writer.write(StreamId(0), rows(10, 10)).await.unwrap();
        let lost = writer.prepare(2).await.unwrap().committables;

        let (mut session, _) = fixture.start(2).await;
        session.discard(Discard::Older { claim: 2, keep: pending.clone() }).await.unwrap();
        assert_eq!(fixture.markers().await.len(), 1);
        commit(session.as_mut(), 1, pending).await.unwrap();
        assert_eq!(fixture.count().await, 10);
        assert!(commit(session.as_mut(), 2, lost).await.is_err());
        assert_eq!(fixture.count().await, 10);
        assert!(fixture.markers().await.is_empty());
    }

    #[tokio::test]
    async fn an_open_epoch_is_discarded() {
        let fixture = Fixture::new();
        let (mut session, mut writer) = fixture.start(1).await;
        writer.write(StreamId(0), rows(0, 10)).await.unwrap();
        session.discard(Discard::Epoch { claim: 1, epoch: 1 }).await.unwrap();
        assert!(fixture.markers().await.is_empty());
        assert!(writer.prepare(1).await.is_err());
    }
}
