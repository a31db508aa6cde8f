//! The target, wherever it is.

use bytes::Bytes;
use orbit_etl_core::fault::failpoint;
use orbit_etl_core::{Error, Result};

use super::disk::Disk;
use super::manifest::Staged;
use super::out::Out;
use super::store::{Store, Uploading};
use crate::location::Location;

/// A disk or an object store. All paths are below the target's root.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Disk(Disk),
    Store(Store),
}

/// What stands behind an open staged file.
pub(crate) enum Staging {
    Disk,
    Store(Box<Uploading>),
}

impl Place {
    pub(crate) fn new(location: &Location) -> Result<Self> {
        if location.pattern.is_some() {
            return Err(Error::config("a sink's path can't have wildcards")
                .with("path", location)
                .remedy("name a directory"));
        }
        if let Some(local) = &location.local {
            return Ok(Self::Disk(Disk::new(local.clone())));
        }
        match &location.multipart {
            Some(multipart) => Ok(Self::Store(Store::new(
                location.store.clone(),
                multipart.clone(),
                location.prefix.clone(),
                location.name(&location.prefix),
            ))),
            None => Err(Error::config("this kind of store can't be written to")
                .with("path", location)
                .remedy("use a local directory, s3://, gs:// or az://")),
        }
    }

    /// Whether the target could be written to, without effect.
    pub(crate) async fn check(&self) -> Result<()> {
        match self {
            Self::Disk(disk) => {
                let disk = disk.clone();
                blocking(move || disk.check()).await
            }
            Self::Store(store) => store.check().await,
        }
    }

    /// Makes folders, where there are such.
    pub(crate) async fn make_folders(&self, folders: Vec<String>) -> Result<()> {
        match self {
            Self::Disk(disk) => {
                let disk = disk.clone();
                blocking(move || folders.iter().try_for_each(|folder| disk.make_folder(folder))).await
            }
            Self::Store(_) => Ok(()),
        }
    }

    /// The extension of staged names.
    pub(crate) fn staged_extension(&self) -> &'static str {
        match self {
            Self::Disk(_) => "part",
            Self::Store(_) => "upload",
        }
    }

    /// Begins a staged file that is to be published as `path`.
    pub(crate) async fn create(&self, staged: &str, path: &str, buffer: usize) -> Result<(Out, Staging)> {
        match self {
            // One system call, made by the lane that is about to write.
            Self::Disk(disk) => Ok((Out::file(disk.create(staged)?, buffer), Staging::Disk)),
            Self::Store(store) => {
                let upload = store.create(staged, path).await?;
                Ok((Out::memory(), Staging::Store(Box::new(upload))))
            }
        }
    }

    pub(crate) async fn read(&self, path: &str) -> Result<Option<Bytes>> {
        match self {
            Self::Disk(disk) => {
                let (disk, path) = (disk.clone(), path.to_owned());
                blocking(move || Ok(disk.read(&path)?.map(Bytes::from))).await
            }
            Self::Store(store) => store.read(path).await,
        }
    }

    /// Writes a small file, durably and whole; where that takes a temporary one, of that name.
    pub(crate) async fn put(&self, path: &str, temporary: &str, bytes: Vec<u8>) -> Result<()> {
        match self {
            Self::Disk(disk) => {
                let (disk, path, temporary) = (disk.clone(), path.to_owned(), temporary.to_owned());
                blocking(move || disk.put(&path, &temporary, &bytes)).await
            }
            Self::Store(store) => store.put(path, bytes).await,
        }
    }

    /// Makes an empty file, durably.
    pub(crate) async fn touch(&self, path: &str) -> Result<()> {
        match self {
            Self::Disk(disk) => {
                let (disk, path) = (disk.clone(), path.to_owned());
                blocking(move || disk.touch(&path)).await
            }
            Self::Store(store) => store.put(path, Vec::new()).await,
        }
    }

    /// All files below a folder.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<String>> {
        match self {
            Self::Disk(disk) => {
                let (disk, folder) = (disk.clone(), folder.to_owned());
                blocking(move || disk.list(&folder)).await
            }
            Self::Store(store) => store.list(folder).await,
        }
    }

    pub(crate) async fn delete(&self, paths: Vec<String>) -> Result<()> {
        match self {
            Self::Disk(disk) => {
                let disk = disk.clone();
                blocking(move || disk.delete(paths)).await
            }
            Self::Store(store) => store.delete(paths).await,
        }
    }

    /// Makes staged files visible under their names; idempotent.
    pub(crate) async fn publish(&self, files: Vec<Staged>) -> Result<()> {
        match self {
            Self::Disk(disk) => {
                let disk = disk.clone();
                blocking(move || disk.publish(&files)).await
            }
            Self::Store(store) => {
                let markers = files.iter().map(|file| file.staged.clone()).collect();
                store.publish(files).await?;
                failpoint("files_between_publish_and_markers");
                store.delete(markers).await
            }
        }
    }

    /// Removes staged files.
    pub(crate) async fn discard(&self, staged: Vec<String>) -> Result<()> {
        match self {
            Self::Disk(_) => self.delete(staged).await,
            Self::Store(store) => store.discard(staged).await,
        }
    }

    /// How many bytes a path below the root may have.
    pub(crate) fn longest_path(&self) -> usize {
        match self {
            Self::Disk(disk) => disk.longest_path(),
            Self::Store(store) => store.longest_path(),
        }
    }

    /// A path for messages.
    pub(crate) fn name(&self, path: &str) -> String {
        match self {
            Self::Disk(disk) => disk.at(path).display().to_string(),
            Self::Store(store) => store.name(path),
        }
    }
}

/// Runs file system calls that may take long away from the lanes.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal("a task of the file system has died").caused_by(e))?
}
