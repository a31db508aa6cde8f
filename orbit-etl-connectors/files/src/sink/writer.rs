//! One lane's open files.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion_execution::memory_pool::MemoryReservation;
use orbit_etl_core::checkpoint::sync_dir;
use orbit_etl_core::{Epoch, Error, LaneId, Payload, Prepared, Reject, Result, SinkWriter, StreamId};
use tokio::task::{JoinHandle, JoinSet};

use super::encode::{EncodeOptions, Encoder, describe};
use super::layout::Names;
use super::manifest::Staged;
use super::out::Out;
use super::place::{Place, Staging, blocking};
use super::plan::StreamPlan;
use super::staged::Registry;
use crate::error::from_io;

/// How many files are synced or uploaded to their end beside the writing.
const CLOSING_AT_ONCE: usize = 4;

/// The part size unless files get so large that there would be too many parts.
const PART: u64 = 8 << 20;

/// How many bytes of a local file are written before they are synced beside the writing, so that
/// little is left to sync when the epoch ends.
const SYNC_EVERY: u64 = 32 << 20;

/// Half of what S3 allows, since a file may get larger than its target.
const MOST_PARTS: u64 = 5_000;

/// What all writers of a session share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) place: Place,
    pub(crate) names: Names,
    pub(crate) registry: Registry,
    pub(crate) options: EncodeOptions,
    pub(crate) partition_by: Vec<String>,
    pub(crate) extension: String,
    pub(crate) target_file_size: u64,
    /// Per lane.
    pub(crate) max_open_files: usize,
    /// How many bytes the path of a file's folder may have.
    pub(crate) longest_folder: usize,
}

impl Shared {
    fn buffer(&self) -> usize {
        if self.partition_by.is_empty() { 1 << 20 } else { 64 << 10 }
    }

    /// The same for all parts of all files: some stores want parts of one size.
    fn part_size(&self) -> usize {
        usize::try_from(PART.max(self.target_file_size / MOST_PARTS)).unwrap_or(usize::MAX)
    }
}

pub(crate) struct FilesWriter {
    shared: Arc<Shared>,
    lane: LaneId,
    streams: Vec<Arc<StreamPlan>>,
    open: HashMap<Key, OpenFile>,
    clock: u64,
    closing: JoinSet<Result<(Staged, usize)>>,
    closed: Vec<Staged>,
    /// Rows that can't be written, until the epoch ends.
    rejects: Vec<Reject>,
    /// Memory of open and closing files, and of rejects.
    held: usize,
    memory: MemoryReservation,
}

/// Stream and folder.
type Key = (usize, String);

struct OpenFile {
    staged: Staged,
    encoder: Encoder,
    out: Out,
    staging: Staging,
    held: usize,
    used: u64,
    synced: u64,
    syncing: Option<JoinHandle<io::Result<()>>>,
}

impl OpenFile {
    /// Starts to sync what was written since the last time, if that is much.
    async fn sync_ahead(&mut self) -> io::Result<()> {
        let written = self.out.written();
        if written - self.synced < SYNC_EVERY || self.syncing.as_ref().is_some_and(|s| !s.is_finished()) {
            return Ok(());
        }
        if let Some(syncing) = self.syncing.take() {
            syncing.await??;
        }
        if let Some(file) = self.out.duplicate()? {
            self.synced = written;
            self.syncing = Some(tokio::task::spawn_blocking(move || file.sync_data()));
        }
        Ok(())
    }

    fn measure(&self) -> usize {
        let travelling = match &self.staging {
            Staging::Disk => 0,
            Staging::Store(upload) => upload.in_flight(),
        };
        self.encoder.held() + self.out.held() + travelling
    }
}

impl FilesWriter {
    pub(crate) fn new(
        shared: Arc<Shared>,
        lane: LaneId,
        streams: Vec<Arc<StreamPlan>>,
        memory: MemoryReservation,
    ) -> Self {
        Self {
            shared,
            lane,
            streams,
            open: HashMap::new(),
            clock: 0,
            closing: JoinSet::new(),
            closed: Vec::new(),
            rejects: Vec::new(),
            held: 0,
            memory,
        }
    }

    async fn append(&mut self, key: Key, rows: &RecordBatch) -> Result<()> {
        if !self.open.contains_key(&key) {
            while self.open.len() >= self.shared.max_open_files {
                self.close_oldest().await?;
            }
            let file = self.begin(&key).await?;
            self.open.insert(key.clone(), file);
        }
        let Some(file) = self.open.get_mut(&key) else {
            return Err(Error::internal("an open file is missing"));
        };
        self.clock += 1;
        file.used = self.clock;
        file.encoder.write(rows).map_err(|fault| {
            let name = self.shared.place.name(&file.staged.staged);
            describe(fault, &self.shared.options, &name, Some(rows))
        })?;
        file.staged.rows += rows.num_rows() as u64;
        if file.encoder.size() >= self.shared.target_file_size {
            return self.close(&key).await;
        }
        let synced = file.sync_ahead().await;
        synced.map_err(|e| {
            let file = self.open.get(&key).map(|file| self.shared.place.name(&file.staged.staged));
            from_io(e, "write a staged file", file.unwrap_or_default())
        })?;
        self.send_parts(&key).await?;
        self.reserve().await
    }

    // Not `&self`: encoders can't be shared between threads.
    async fn begin(&mut self, key: &Key) -> Result<OpenFile> {
        let Shared { place, names, registry, options, .. } = self.shared.as_ref();
        let number = registry.number();
        let staged = names.staged(number, place.staged_extension());
        let path = format!("{}{}", key.1, names.file(number, &self.shared.extension));
        registry.begin(self.lane, &staged);
        let (out, staging) = place.create(&staged, &path, self.shared.buffer()).await?;
        let encoder = Encoder::new(options, self.streams[key.0].files(), out.clone())
            .map_err(|fault| describe(fault, options, &place.name(&staged), None))?;
        let staged = Staged { staged, path, rows: 0, bytes: 0, upload: None };
        Ok(OpenFile { staged, encoder, out, staging, held: 0, used: 0, synced: 0, syncing: None })
    }

    /// Uploads what fills whole parts, and counts the file's memory anew.
    async fn send_parts(&mut self, key: &Key) -> Result<()> {
        let size = self.shared.part_size();
        let Some(file) = self.open.get_mut(key) else { return Ok(()) };
        if let Staging::Store(upload) = &mut file.staging {
            while let Some(part) = file.out.take_part(size) {
                upload.push(part).await?;
            }
        }
        let held = file.measure();
        self.held = self.held - file.held + held;
        file.held = held;
        Ok(())
    }

    /// Makes the pool agree with what is held. If it refuses, files are written out until it does.
    async fn reserve(&mut self) -> Result<()> {
        while let Err(refusal) = self.memory.try_resize(self.held) {
            if !self.closing.is_empty() {
                self.join_closing().await?;
                continue;
            }
            let largest = self.open.iter().max_by_key(|(_, file)| file.held);
            match largest.map(|(key, f)| (key.clone(), f.held, f.encoder.base())) {
                // What a file needs at least; closing it would only make it come back.
                Some((key, held, base)) if held > base + self.shared.buffer() + (1 << 20) => {
                    self.relieve(&key).await?;
                }
                Some(_) if self.open.len() > 1 => self.close_oldest().await?,
                _ => {
                    return Err(Error::resources("the memory limit leaves no room to write files")
                        .remedy("raise the pipeline's memory limit, or use fewer lanes")
                        .caused_by(refusal));
                }
            }
        }
        Ok(())
    }

    /// Writes out what a file holds back; ends it where that isn't enough.
    async fn relieve(&mut self, key: &Key) -> Result<()> {
        let Some(file) = self.open.get_mut(key) else { return Ok(()) };
        let before = file.held;
        file.encoder.flush().map_err(|fault| {
            describe(fault, &self.shared.options, &self.shared.place.name(&file.staged.staged), None)
        })?;
        self.send_parts(key).await?;
        let still = self.open.get(key).is_some_and(|file| file.held > before / 2);
        if still { self.close(key).await } else { Ok(()) }
    }

    async fn close_oldest(&mut self) -> Result<()> {
        match self.open.iter().min_by_key(|(_, file)| file.used).map(|(key, _)| key.clone()) {
            Some(key) => self.close(&key).await,
            None => Ok(()),
        }
    }

    async fn close(&mut self, key: &Key) -> Result<()> {
        while self.closing.len() >= CLOSING_AT_ONCE {
            self.join_closing().await?;
        }
        let Some(OpenFile { mut staged, encoder, out, staging, held, syncing, .. }) = self.open.remove(key)
        else {
            return Ok(());
        };
        let name = self.shared.place.name(&staged.staged);
        encoder.finish().map_err(|fault| describe(fault, &self.shared.options, &name, None))?;
        staged.bytes = out.written();
        match staging {
            Staging::Disk => {
                self.held -= held;
                self.closing.spawn(async move {
                    let sync = async {
                        // An error that this sync has seen is not reported again by the next.
                        if let Some(syncing) = syncing {
                            syncing.await??;
                        }
                        tokio::task::spawn_blocking(move || match out.into_file()? {
                            Some(file) => file.sync_all(),
                            None => Ok(()),
                        })
                        .await?
                    };
                    let synced: io::Result<()> = sync.await;
                    synced.map_err(|e| from_io(e, "write a staged file", &name))?;
                    Ok((staged, 0))
                });
            }
            Staging::Store(mut upload) => {
                let size = self.shared.part_size();
                while let Some(part) = out.take_part(size) {
                    upload.push(part).await?;
                }
                let last = out.take_rest();
                let left = upload.in_flight() + last.len();
                self.held = self.held - held + left;
                self.closing.spawn(async move {
                    staged.upload = Some(upload.finish(last).await?);
                    Ok((staged, left))
                });
            }
        }
        Ok(())
    }

    async fn join_closing(&mut self) -> Result<()> {
        let Some(joined) = self.closing.join_next().await else { return Ok(()) };
        let (staged, held) =
            joined.map_err(|e| Error::internal("a task that closes a file has died").caused_by(e))??;
        self.held -= held;
        self.closed.push(staged);
        Ok(())
    }
}

#[async_trait]
impl SinkWriter for FilesWriter {
    async fn write(&mut self, stream: StreamId, batch: RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let Some(plan) = self.streams.get(stream.0).cloned() else {
            return Err(
                Error::internal("rows of a stream that the sink wasn't opened for").with("stream", stream.0)
            );
        };
        let parts = plan.split(&batch, self.shared.longest_folder)?;
        for (folder, rows) in parts.fit {
            self.append((stream.0, folder), &rows).await?;
        }
        if parts.misfit.is_empty() {
            return Ok(());
        }
        for (error, rows) in parts.misfit {
            self.held += rows.get_array_memory_size();
            let count = rows.num_rows() as u64;
            let mut reject = Reject::new(error.kind(), error.to_string(), Payload::Rows(rows));
            reject.rows = count;
            reject.origin.stream = Some(plan.name().to_owned());
            self.rejects.push(reject);
        }
        self.reserve().await
    }

    async fn schema_changed(&mut self, stream: StreamId, to: &SchemaRef) -> Result<()> {
        let Some(plan) = self.streams.get(stream.0) else {
            return Err(Error::internal("a stream that the sink wasn't opened for").with("stream", stream.0));
        };
        let plan = plan.with_schema(to, &self.shared.partition_by, &self.shared.options)?;
        let keys: Vec<Key> = self.open.keys().filter(|key| key.0 == stream.0).cloned().collect();
        for key in keys {
            self.close(&key).await?;
        }
        self.streams[stream.0] = Arc::new(plan);
        Ok(())
    }

    async fn prepare(&mut self, epoch: Epoch) -> Result<Prepared> {
        let keys: Vec<Key> = self.open.keys().cloned().collect();
        for key in keys {
            self.close(&key).await?;
        }
        while !self.closing.is_empty() {
            self.join_closing().await?;
        }
        self.memory.free();
        self.held = 0;
        let mut files = std::mem::take(&mut self.closed);
        if let Place::Disk(disk) = &self.shared.place
            && !files.is_empty()
        {
            let folder = disk.at(&self.shared.names.staged_folder());
            blocking(move || sync_dir(&folder).map_err(|e| from_io(e, "sync a folder", folder.display())))
                .await?;
        }
        self.shared.registry.prepared(self.lane, epoch);
        files.sort_by(|a, b| a.staged.cmp(&b.staged));
        Ok(Prepared {
            bytes: files.iter().map(|file| file.bytes).sum(),
            committables: files.iter().map(Staged::to_committable).collect::<Result<_>>()?,
            rejects: std::mem::take(&mut self.rejects),
        })
    }
}
