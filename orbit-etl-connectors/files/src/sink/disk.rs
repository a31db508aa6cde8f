//! The target on a disk. What is named durable here is synced: the file, then its folder.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use orbit_etl_core::checkpoint::{create_dir_durable, sync_dir};
use orbit_etl_core::fault::failpoint;
use orbit_etl_core::{Error, Result, ResultExt};

use super::manifest::Staged;
use crate::error::from_io;

/// The longest path that a system call takes, without the zero behind it.
const LONGEST_PATH: usize = 4_095;

/// A root directory. Paths are below it, with slashes.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    root: PathBuf,
}

impl Disk {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Whether files could be written here, as far as that can be told without doing so.
    pub(crate) fn check(&self) -> Result<()> {
        let there = self.root.ancestors().find_map(|dir| fs::metadata(dir).ok().map(|meta| (dir, meta)));
        let Some((dir, meta)) = there else { return Ok(()) };
        if !meta.is_dir() {
            return Err(Error::config("the target is a file, not a directory")
                .with("file", dir.display())
                .remedy("name a directory"));
        }
        if meta.permissions().readonly() {
            return Err(from_io(
                io::ErrorKind::PermissionDenied.into(),
                "write to the target",
                dir.display(),
            ));
        }
        Ok(())
    }

    /// Makes a folder and all above it.
    pub(crate) fn make_folder(&self, folder: &str) -> Result<()> {
        let dir = self.at(folder);
        create_dir_durable(&dir).map_err(|e| from_io(e, "make a folder", dir.display()))
    }

    /// A new staged file.
    pub(crate) fn create(&self, path: &str) -> Result<File> {
        let path = self.at(path);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| from_io(e, "make a staged file", path.display()))
    }

    pub(crate) fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let path = self.at(path);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(from_io(e, "read one of the sink's own files", path.display())),
        }
    }

    /// Writes a small file, by way of a temporary one: whole or not at all.
    pub(crate) fn put(&self, path: &str, temporary: &str, bytes: &[u8]) -> Result<()> {
        let (to, temporary) = (self.at(path), self.at(temporary));
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &to)?;
            to.parent().map_or(Ok(()), sync_dir)
        };
        write().map_err(|e| {
            let _ = fs::remove_file(&temporary);
            from_io(e, "write one of the sink's own files", to.display())
        })
    }

    /// Makes an empty file.
    pub(crate) fn touch(&self, path: &str) -> Result<()> {
        let path = self.at(path);
        File::create(&path)
            .and_then(|_| path.parent().map_or(Ok(()), sync_dir))
            .map_err(|e| from_io(e, "write one of the sink's own files", path.display()))
    }

    /// All files below a folder, as paths below the root. A folder that isn't there is empty.
    pub(crate) fn list(&self, folder: &str) -> Result<Vec<String>> {
        let mut files = Vec::new();
        let mut folders = vec![folder.trim_end_matches('/').to_owned()];
        while let Some(folder) = folders.pop() {
            let dir = self.at(&folder);
            let fail = |e| from_io(e, "list a folder", dir.display());
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(fail(e)),
            };
            for entry in entries {
                let entry = entry.map_err(fail)?;
                // Names of ours are ASCII.
                let Ok(name) = entry.file_name().into_string() else { continue };
                let path = format!("{folder}/{name}");
                if entry.file_type().map_err(fail)?.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        Ok(files)
    }

    /// Removes files, durably; what is missing is gone.
    pub(crate) fn delete(&self, paths: impl IntoIterator<Item = impl AsRef<str>>) -> Result<()> {
        let mut folders = BTreeSet::new();
        for path in paths {
            let path = self.at(path.as_ref());
            folders.extend(path.parent().map(std::path::Path::to_path_buf));
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(from_io(e, "remove a file", path.display()));
                }
                Ok(()) | Err(_) => {}
            }
        }
        for folder in folders.iter().filter(|folder| folder.exists()) {
            sync_dir(folder).map_err(|e| from_io(e, "sync a folder", folder.display()))?;
        }
        Ok(())
    }

    /// Moves staged files to their places and syncs the folders. Files that were moved already
    /// are done.
    pub(crate) fn publish(&self, files: &[Staged]) -> Result<()> {
        let mut folders = BTreeSet::new();
        for file in files {
            let (from, to) = (self.at(&file.staged), self.at(&file.path));
            if let Some(folder) = to.parent()
                && !folders.contains(folder)
            {
                create_dir_durable(folder).map_err(|e| from_io(e, "make a folder", folder.display()))?;
                let within = folder.ancestors().take_while(|dir| dir.starts_with(&self.root));
                folders.extend(within.map(Path::to_path_buf));
            }
            self.move_file(&from, &to).with("file", to.display())?;
            failpoint("files_after_rename");
        }
        // The staged folders too: a name that comes back after a power cut would look like a
        // file that was never moved.
        folders.extend(files.iter().filter_map(|file| Some(self.at(&file.staged).parent()?.to_path_buf())));
        for folder in folders {
            match sync_dir(&folder) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(from_io(e, "sync a folder", folder.display()));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn move_file(&self, from: &Path, to: &Path) -> Result<()> {
        match (look_up(from)?, look_up(to)?) {
            (_, None) => {}
            (None, Some(_)) => return Ok(()),
            // A power cut while it was moved can leave both names of the one file on some file
            // systems. Renaming would do nothing then, and say that it went well.
            (Some(staged), Some(there)) if is_same(&staged, &there) => {
                return fs::remove_file(from).map_err(|e| from_io(e, "remove a staged file", from.display()));
            }
            (Some(_), Some(_)) => {
                return Err(Error::new(
                    orbit_etl_core::ErrorKind::Conflict,
                    "a file of another origin stands where a staged file belongs",
                )
                .retryable(false)
                .remedy("move that file away and run again"));
            }
        }
        match fs::rename(from, to) {
            Ok(()) => Ok(()),
            // An older run that woke up late may have been quicker.
            Err(e) if e.kind() == io::ErrorKind::NotFound && look_up(to)?.is_some() => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(Error::internal("a staged file is gone before it was published")
                    .with("staged", from.display())
                    .remedy("rows of this epoch are lost; restore the file, or load again with a new target")
                    .caused_by(e))
            }
            Err(e) => Err(from_io(e, "publish a file", to.display())),
        }
    }

    /// How many bytes a path below the root may have.
    pub(crate) fn longest_path(&self) -> usize {
        LONGEST_PATH.saturating_sub(self.root.as_os_str().len() + 1)
    }

    /// A path of the operating system, also for messages.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

fn look_up(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(from_io(e, "look up a file", path.display())),
    }
}

/// Whether two names are one file's.
#[cfg(unix)]
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(not(unix))]
fn is_same(_one: &Metadata, _other: &Metadata) -> bool {
    false
}
