//! A file on a local disk, written from front to back, durable when it is closed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use iceberg::io::FileWrite;
use orbit_etl_core::checkpoint::{create_dir_durable, sync_dir};
use tokio::task::JoinHandle;

/// How many bytes are written before they are synced beside the writing, so that little is left to
/// sync at the end.
const SYNC_EVERY: u64 = 32 << 20;

/// A new file. It has its name from the start: whoever writes it names it elsewhere when it is closed.
pub(super) struct NewFile {
    path: PathBuf,
    file: Option<File>,
    written: u64,
    synced: u64,
    syncing: Option<JoinHandle<io::Result<()>>>,
}

impl NewFile {
    /// Makes the file, and folders that it lacks. One of that name must not be there.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
            create_dir_durable(folder)?;
        }
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        Ok(Self { path: path.to_owned(), file: Some(file), written: 0, synced: 0, syncing: None })
    }

    async fn append(&mut self, bytes: &Bytes) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(closed()) };
        file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        let busy = self.syncing.as_ref().is_some_and(|syncing| !syncing.is_finished());
        if self.written - self.synced >= SYNC_EVERY && !busy {
            let file = file.try_clone()?;
            self.join().await?;
            self.synced = self.written;
            self.syncing = Some(tokio::task::spawn_blocking(move || file.sync_data()));
        }
        Ok(())
    }

    async fn finish(&mut self) -> io::Result<()> {
        // An error that this sync has seen is not reported again by the next.
        self.join().await?;
        let Some(file) = self.file.take() else { return Err(closed()) };
        let folder = self.path.parent().map(Path::to_owned);
        let sync = move || {
            file.sync_all()?;
            folder.map_or(Ok(()), sync_dir)
        };
        tokio::task::spawn_blocking(sync).await?
    }

    async fn join(&mut self) -> io::Result<()> {
        match self.syncing.take() {
            Some(syncing) => syncing.await?,
            None => Ok(()),
        }
    }

    fn failed(&self, error: io::Error) -> iceberg::Error {
        super::failed_io("write", &self.path.display().to_string(), error)
    }
}

#[async_trait]
impl FileWrite for NewFile {
    async fn write(&mut self, bytes: Bytes) -> iceberg::Result<()> {
        self.append(&bytes).await.map_err(|e| self.failed(e))
    }

    async fn close(&mut self) -> iceberg::Result<()> {
        self.finish().await.map_err(|e| self.failed(e))
    }
}

fn closed() -> io::Error {
    io::Error::other("the file is closed already")
}
