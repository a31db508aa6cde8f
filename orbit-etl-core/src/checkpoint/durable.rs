//! Local disks, so that what was put is there after a power failure.
//!
//! `object_store`'s own local store leaves it to the operating system when bytes and names reach the
//! disk: a file may come back empty under its final name. Here content is synced before it is named,
//! and the directory that holds the name is synced before the call returns.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::path::{Path as FsPath, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, RenameTargetMode, Result,
    UploadPart,
};

/// Makes a file's content durable, whoever has written it. The name needs [`sync_dir`] as well.
///
/// # Errors
/// The file isn't there, or the disk fails; then nothing may be assumed about what was written.
pub fn sync_file(path: impl AsRef<FsPath>) -> io::Result<()> {
    Disk::Real.sync_file(path.as_ref())
}

/// Makes the names in a directory durable: files that were made, renamed or removed in it.
///
/// # Errors
/// The directory isn't there, or the disk fails.
pub fn sync_dir(path: impl AsRef<FsPath>) -> io::Result<()> {
    Disk::Real.sync_dir(path.as_ref())
}

/// Makes a directory with its parents, durably; one that is there is left as it is.
///
/// # Errors
/// It can't be made, or something else has its name.
pub fn create_dir_durable(path: impl AsRef<FsPath>) -> io::Result<()> {
    Disk::Real.make_dirs(path.as_ref())
}

/// Renames a file within one filesystem, replacing what has the new name. Its content is durable before
/// it has that name; the new name is durable, and the old one gone, when this returns. Missing
/// directories of the new name are made.
///
/// # Errors
/// The file isn't there, the names are on different filesystems, or the disk fails. It may or may not
/// be renamed.
pub fn rename_durable(from: impl AsRef<FsPath>, to: impl AsRef<FsPath>) -> io::Result<()> {
    Disk::Real.rename_file(from.as_ref(), to.as_ref())
}

/// [`LocalFileSystem`] whose writes are durable when they return.
///
/// A put writes a hidden file beside the destination, syncs it, then links
/// ([`PutMode::Create`]) or renames it into place and syncs the directory. What a crash leaves of
/// hidden files isn't listed.
#[derive(Debug, Clone)]
pub struct DurableLocal {
    inner: Arc<LocalFileSystem>,
    disk: Disk,
}

impl DurableLocal {
    /// A store whose paths are absolute.
    pub fn new() -> Self {
        Self { inner: Arc::new(LocalFileSystem::new()), disk: Disk::Real }
    }

    /// A store of what is in `dir`, which is made if it isn't there.
    ///
    /// # Errors
    /// The directory can't be made or entered.
    pub fn create(dir: impl AsRef<FsPath>) -> crate::Result<Self> {
        let dir = dir.as_ref();
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            crate::Error::config("can't use the directory")
                .with("directory", dir.display())
                .remedy("name a directory that can be made and written to")
                .caused_by(error)
        };
        create_dir_durable(dir).map_err(|e| failed(e.into()))?;
        let inner = LocalFileSystem::new_with_prefix(dir).map_err(|e| failed(e.into()))?;
        Ok(Self { inner: Arc::new(inner), disk: Disk::Real })
    }

    #[cfg(test)]
    fn recorded(dir: &FsPath, recorder: Arc<Recorder>) -> Self {
        let mut store = Self::create(dir).unwrap();
        store.disk = Disk::Recorded(recorder);
        store
    }

    fn target(&self, location: &Path) -> Result<PathBuf> {
        self.inner.path_to_filesystem(location)
    }
}

impl Default for DurableLocal {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for DurableLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Durable{}", self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl ObjectStore for DurableLocal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let mode = match opts.mode {
            PutMode::Overwrite => CopyMode::Overwrite,
            PutMode::Create => CopyMode::Create,
            PutMode::Update(_) => return Err(self.lacks("updates on condition")),
        };
        if !opts.attributes.is_empty() {
            return Err(self.lacks("attributes"));
        }
        let (disk, target) = (self.disk.clone(), self.target(location)?);
        blocking(move || {
            let mut staged = Staged::beside(&disk, &target)?;
            staged.write(|file| payload.iter().try_for_each(|part| file.write_all(part)))?;
            staged.publish(mode)
        })
        .await?;
        self.put_result(location).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        if !opts.attributes.is_empty() {
            return Err(self.lacks("attributes"));
        }
        let (disk, target) = (self.disk.clone(), self.target(location)?);
        let staged = blocking(move || Staged::beside(&disk, &target)).await?;
        let staged = Arc::new(Mutex::new(Some(staged)));
        Ok(Box::new(Upload { store: self.clone(), location: location.clone(), staged, offset: 0 }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    /// Directories are synced once per group of files that is deleted at the same time.
    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations
            .ready_chunks(64)
            .then(move |group| {
                let store = store.clone();
                async move {
                    let deleted = blocking(move || Ok(store.delete_group(group))).await;
                    futures::stream::iter(deleted.unwrap_or_else(|e| vec![Err(e)]))
                }
            })
            .flatten()
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let (disk, from, to) = (self.disk.clone(), self.target(from)?, self.target(to)?);
        blocking(move || {
            let mut staged = Staged::beside(&disk, &to)?;
            let mut source = File::open(&from).map_err(|e| at(&from, e))?;
            staged.write(|file| io::copy(&mut source, file).map(|_| ()))?;
            staged.publish(options.mode)
        })
        .await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let (disk, from, to) = (self.disk.clone(), self.target(from)?, self.target(to)?);
        blocking(move || match options.target_mode {
            RenameTargetMode::Overwrite => disk.rename_file(&from, &to).map_err(|e| at(&from, e)),
            RenameTargetMode::Create => {
                disk.sync_file(&from).map_err(|e| at(&from, e))?;
                disk.make_parents(&to).map_err(|e| at(&to, e))?;
                let linked = disk.link(&from, &to);
                disk.sync_parent(&to).map_err(|e| at(&to, e))?;
                linked.map_err(|e| at(&to, e))?;
                disk.remove(&from).and_then(|()| disk.sync_parent(&from)).map_err(|e| at(&from, e))
            }
        })
        .await
    }
}

impl DurableLocal {
    fn lacks(&self, what: &str) -> object_store::Error {
        object_store::Error::NotImplemented { operation: what.to_owned(), implementer: self.to_string() }
    }

    /// The tag of what is there now: another put may have come after.
    async fn put_result(&self, location: &Path) -> Result<PutResult> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        let e_tag = match self.inner.get_opts(location, options).await {
            Ok(found) => found.meta.e_tag,
            Err(_) => None,
        };
        Ok(PutResult { e_tag, version: None })
    }

    fn delete_group(&self, group: Vec<Result<Path>>) -> Vec<Result<Path>> {
        let remove = |location: Result<Path>| {
            let location = location?;
            let path = self.target(&location)?;
            self.disk.remove(&path).map_err(|e| at(&path, e))?;
            Ok((location, path.parent().map(FsPath::to_path_buf).unwrap_or_default()))
        };
        let removed: Vec<Result<(Path, PathBuf)>> = group.into_iter().map(remove).collect();
        let dirs: BTreeSet<&PathBuf> = removed.iter().flatten().map(|(_, dir)| dir).collect();
        let failed: BTreeSet<PathBuf> =
            dirs.into_iter().filter(|dir| self.disk.sync_dir(dir).is_err()).cloned().collect();
        let answer = |(location, dir): (Path, PathBuf)| {
            if failed.contains(&dir) {
                Err(at(&dir, io::Error::other("can't sync the directory")))
            } else {
                Ok(location)
            }
        };
        removed.into_iter().map(|result| result.and_then(answer)).collect()
    }
}

/// A put in parts: they are written where they belong in the hidden file, in any order.
#[derive(Debug)]
struct Upload {
    store: DurableLocal,
    location: Path,
    staged: Arc<Mutex<Option<Staged>>>,
    offset: u64,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (staged, offset) = (Arc::clone(&self.staged), self.offset);
        self.offset += data.content_length() as u64;
        Box::pin(blocking(move || {
            let mut staged = staged.lock().unwrap_or_else(PoisonError::into_inner);
            let staged = staged.as_mut().ok_or_else(ended)?;
            staged.write(|file| {
                io::Seek::seek(file, io::SeekFrom::Start(offset))?;
                data.iter().try_for_each(|part| file.write_all(part))
            })
        }))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let staged = Arc::clone(&self.staged);
        blocking(move || {
            let staged = staged.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(ended)?;
            staged.publish(CopyMode::Overwrite)
        })
        .await?;
        self.store.put_result(&self.location).await
    }

    async fn abort(&mut self) -> Result<()> {
        let staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner).take();
        staged.map(drop).ok_or_else(ended)
    }
}

fn ended() -> object_store::Error {
    generic(io::Error::other("the upload has ended"))
}

/// A hidden file that becomes an object, or is removed when it is dropped.
#[derive(Debug)]
struct Staged {
    disk: Disk,
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Staged {
    fn beside(disk: &Disk, target: &FsPath) -> Result<Self> {
        disk.make_parents(target).map_err(|e| at(target, e))?;
        // The store takes names that end in # and digits for uploads under way, and hides them.
        let path = target.with_file_name(format!("orbit#{}", uuid::Uuid::now_v7().as_u128()));
        let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(|e| at(&path, e))?;
        Ok(Self { disk: disk.clone(), file, path, target: target.to_path_buf() })
    }

    fn write(&mut self, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
        write(&mut self.file).map_err(|e| at(&self.target, e))
    }

    fn publish(self, mode: CopyMode) -> Result<()> {
        let (disk, target) = (&self.disk, &self.target);
        disk.sync_open(&self.file, &self.path).map_err(|e| at(target, e))?;
        let named = match mode {
            CopyMode::Create => disk.link(&self.path, target),
            CopyMode::Overwrite => disk.rename(&self.path, target),
        };
        // Also if the name is taken: who reads it may rely on it.
        let synced = disk.sync_parent(target);
        named.and(synced).map_err(|e| at(target, e))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a rename there is nothing, after a link a second name. Neither matters to a reader.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The calls whose order makes writes durable.
#[derive(Debug, Clone)]
enum Disk {
    Real,
    #[cfg(test)]
    Recorded(Arc<Recorder>),
}

impl Disk {
    fn sync_open(&self, file: &File, path: &FsPath) -> io::Result<()> {
        self.step("sync", path)?;
        file.sync_all()
    }

    fn sync_file(&self, path: &FsPath) -> io::Result<()> {
        // Windows syncs only what is open for writing.
        let file = OpenOptions::new().read(true).write(cfg!(windows)).open(path)?;
        self.sync_open(&file, path)
    }

    /// On Windows, directories can't be synced, and renames are journaled.
    fn sync_dir(&self, path: &FsPath) -> io::Result<()> {
        self.step("sync dir", path)?;
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
    }

    fn sync_parent(&self, path: &FsPath) -> io::Result<()> {
        path.parent().map_or(Ok(()), |dir| self.sync_dir(or_here(dir)))
    }

    fn make_parents(&self, path: &FsPath) -> io::Result<()> {
        path.parent().map_or(Ok(()), |dir| self.make_dirs(or_here(dir)))
    }

    /// A directory's own name is durable before anything is put into it.
    fn make_dirs(&self, path: &FsPath) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        self.make_parents(path)?;
        self.step("make dir", path)?;
        match std::fs::create_dir(path) {
            // Made by somebody else in between, who may not have synced it yet.
            Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
            made => made?,
        }
        self.sync_parent(path)
    }

    fn link(&self, from: &FsPath, to: &FsPath) -> io::Result<()> {
        self.step("name", to)?;
        std::fs::hard_link(from, to)
    }

    fn rename(&self, from: &FsPath, to: &FsPath) -> io::Result<()> {
        self.step("name", to)?;
        std::fs::rename(from, to)
    }

    fn rename_file(&self, from: &FsPath, to: &FsPath) -> io::Result<()> {
        self.sync_file(from)?;
        self.make_parents(to)?;
        self.rename(from, to)?;
        self.sync_parent(to)?;
        if from.parent() == to.parent() { Ok(()) } else { self.sync_parent(from) }
    }

    fn remove(&self, path: &FsPath) -> io::Result<()> {
        self.step("remove", path)?;
        std::fs::remove_file(path)
    }

    #[cfg(not(test))]
    fn step(&self, _: &str, _: &FsPath) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn step(&self, step: &'static str, path: &FsPath) -> io::Result<()> {
        match self {
            Self::Real => Ok(()),
            Self::Recorded(recorder) => recorder.step(step, path),
        }
    }
}

/// The parent of a bare file name is the empty path.
fn or_here(dir: &FsPath) -> &FsPath {
    if dir.as_os_str().is_empty() { FsPath::new(".") } else { dir }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => {
            let done = runtime.spawn_blocking(work).await;
            done.map_err(|source| object_store::Error::JoinError { source })?
        }
        Err(_) => work(),
    }
}

fn at(path: &FsPath, error: io::Error) -> object_store::Error {
    let (shown, source) = (path.display().to_string(), error);
    match source.kind() {
        ErrorKind::NotFound => object_store::Error::NotFound { path: shown, source: source.into() },
        ErrorKind::AlreadyExists => object_store::Error::AlreadyExists { path: shown, source: source.into() },
        ErrorKind::PermissionDenied => {
            object_store::Error::PermissionDenied { path: shown, source: source.into() }
        }
        _ => generic(source),
    }
}

fn generic(source: io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "DurableLocal", source: source.into() }
}

/// Writes down the calls and fails where a test says so.
#[cfg(test)]
#[derive(Debug, Default)]
struct Recorder {
    steps: Mutex<Vec<(&'static str, PathBuf)>>,
    fail: Mutex<Option<&'static str>>,
}

#[cfg(test)]
impl Recorder {
    fn step(&self, step: &'static str, path: &FsPath) -> io::Result<()> {
        self.steps.lock().unwrap().push((step, path.to_path_buf()));
        if *self.fail.lock().unwrap() == Some(step) {
            return Err(io::Error::other("planted"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;

    use super::*;

    struct Bench {
        dir: tempfile::TempDir,
        recorder: Arc<Recorder>,
        store: DurableLocal,
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Arc::new(Recorder::default());
        let store = DurableLocal::recorded(dir.path(), Arc::clone(&recorder));
        Bench { dir, recorder, store }
    }

    impl Bench {
        /// The steps since the last call, hidden files as `#`.
        fn steps(&self) -> Vec<String> {
            let steps = std::mem::take(&mut *self.recorder.steps.lock().unwrap());
            let root = self.dir.path().canonicalize().unwrap();
            let short = |path: &FsPath| {
                let path =
                    path.strip_prefix(&root).or(path.strip_prefix(self.dir.path())).unwrap().to_owned();
                let text = path.display().to_string();
                match text.split_once("orbit#") {
                    Some((dir, _)) => format!("{dir}#"),
                    None if text.is_empty() => ".".to_owned(),
                    None => text,
                }
            };
            steps.iter().map(|(step, path)| format!("{step} {}", short(path))).collect()
        }
    }

    fn create() -> PutOptions {
        PutOptions { mode: PutMode::Create, ..PutOptions::default() }
    }

    #[tokio::test]
    async fn content_is_synced_before_it_is_named_and_the_name_before_the_answer() {
        let bench = bench();
        let path = Path::from("a/b/c");
        bench.store.put_opts(&path, "one".into(), create()).await.unwrap();
        let made = ["make dir a", "sync dir .", "make dir a/b", "sync dir a"];
        let put = ["sync a/b/#", "name a/b/c", "sync dir a/b"];
        assert_eq!(bench.steps(), [&made[..], &put[..]].concat());
        bench.store.put(&path, "two".into()).await.unwrap();
        assert_eq!(bench.steps(), put);
        // A name that is taken is durable, too, before the loser hears of it.
        bench.store.put_opts(&path, "three".into(), create()).await.unwrap_err();
        assert_eq!(bench.steps(), put);
    }

    #[tokio::test]
    async fn multipart_copy_rename_and_delete_are_in_order() {
        let bench = bench();
        let mut upload = bench.store.put_multipart(&Path::from("a")).await.unwrap();
        upload.put_part("one".into()).await.unwrap();
        assert!(bench.steps().is_empty());
        upload.complete().await.unwrap();
        assert_eq!(bench.steps(), ["sync #", "name a", "sync dir ."]);
        bench.store.copy(&Path::from("a"), &Path::from("b")).await.unwrap();
        assert_eq!(bench.steps(), ["sync #", "name b", "sync dir ."]);
        bench.store.rename(&Path::from("b"), &Path::from("x/c")).await.unwrap();
        let expected = ["sync b", "make dir x", "sync dir .", "name x/c", "sync dir x", "sync dir ."];
        assert_eq!(bench.steps(), expected);
        bench.store.rename_if_not_exists(&Path::from("x/c"), &Path::from("d")).await.unwrap();
        assert_eq!(bench.steps(), ["sync x/c", "name d", "sync dir .", "remove x/c", "sync dir x"]);
        let paths = ["a", "none", "d"].map(|path| Ok(Path::from(path)));
        let deleted =
            bench.store.delete_stream(futures::stream::iter(paths).boxed()).collect::<Vec<_>>().await;
        assert_eq!(deleted.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(bench.steps(), ["remove a", "remove none", "remove d", "sync dir ."]);
    }

    #[tokio::test]
    async fn what_cant_be_synced_is_not_named() {
        let bench = bench();
        *bench.recorder.fail.lock().unwrap() = Some("sync");
        bench.store.put(&Path::from("a"), "one".into()).await.unwrap_err();
        let mut upload = bench.store.put_multipart(&Path::from("a")).await.unwrap();
        upload.put_part("one".into()).await.unwrap();
        upload.complete().await.unwrap_err();
        *bench.recorder.fail.lock().unwrap() = None;
        bench.store.head(&Path::from("a")).await.unwrap_err();
        assert_eq!(std::fs::read_dir(bench.dir.path()).unwrap().count(), 0, "no hidden file is left");
    }

    #[tokio::test]
    async fn a_name_that_cant_be_synced_is_an_error() {
        let bench = bench();
        *bench.recorder.fail.lock().unwrap() = Some("sync dir");
        bench.store.put(&Path::from("a"), "one".into()).await.unwrap_err();
        bench.store.delete(&Path::from("a")).await.unwrap_err();
    }
}
