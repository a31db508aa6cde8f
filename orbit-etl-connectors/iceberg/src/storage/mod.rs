//! The files of tables, for the `iceberg` crate, on this project's own object stores: one TLS stack, and
//! every file on a disk synced before anything names it.

mod disk;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use iceberg::io::{
    FileMetadata, FileRead, FileWrite, InputFile, OutputFile, Storage, StorageConfig, StorageFactory,
};
use iceberg::{Error, ErrorKind, Result};
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use orbit_etl_core::checkpoint::DurableLocal;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use self::disk::NewFile;

/// Options of object stores, by name.
pub(crate) type Options = BTreeMap<String, SecretString>;

/// The size of a part of an upload; S3 takes 10,000 of them.
const PART: usize = 16 << 20;
/// How many parts of a file travel at a time.
const PARTS_AT_ONCE: usize = 2;

/// All stores that a catalog's tables lie in, opened when they are first used.
///
/// Serialised by the crate's rules it is empty: options hold secrets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Stores {
    #[serde(skip)]
    options: Arc<Options>,
    #[serde(skip)]
    open: Arc<Mutex<HashMap<String, Arc<dyn ObjectStore>>>>,
}

/// Where a file is.
enum At {
    Disk(PathBuf),
    Store(Arc<dyn ObjectStore>, Path),
}

impl Stores {
    pub(crate) fn new(options: Options) -> Self {
        Self { options: Arc::new(options), open: Arc::default() }
    }

    /// With one store in the place of a bucket's, such as `s3://bucket`.
    #[cfg(test)]
    pub(crate) fn of(bucket: &str, store: Arc<dyn ObjectStore>) -> Self {
        let open = HashMap::from([(bucket.to_owned(), store)]);
        Self { options: Arc::default(), open: Arc::new(Mutex::new(open)) }
    }

    /// The names of the files in a folder, from `offset` on.
    pub(crate) async fn list(&self, folder: &str, offset: &str) -> Result<Vec<String>> {
        let (store, prefix) = self.object(folder)?;
        let offset = Path::from(format!("{prefix}/{offset}"));
        let found = store.list_with_offset(Some(&prefix), &offset);
        let names = found.try_filter_map(|file| {
            let name = file.location.filename().map(str::to_owned);
            futures::future::ready(Ok(name))
        });
        names.try_collect().await.map_err(|e| failed("list", folder, e))
    }

    /// Removes a file; one that is missing is gone.
    pub(crate) async fn remove(&self, location: &str) -> Result<()> {
        Storage::delete(self, location).await
    }

    /// How many bytes a file that is being written keeps in memory, besides what its writer does.
    pub(crate) fn buffered(location: &str) -> usize {
        if is_local(location) { 0 } else { PART * (1 + PARTS_AT_ONCE) }
    }

    fn at(&self, location: &str) -> Result<At> {
        if is_local(location) {
            let rest = location.split_once(":/").map_or(location, |(_, rest)| rest);
            return Ok(At::Disk(PathBuf::from(format!("/{}", rest.trim_start_matches('/')))));
        }
        self.object(location).map(|(store, path)| At::Store(store, path))
    }

    fn object(&self, location: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
        let (scheme, rest) = location.split_once(":/").unwrap_or(("file", location));
        let rest = rest.trim_start_matches('/');
        if is_local(location) {
            let path = Path::from_absolute_path(format!("/{rest}")).map_err(|e| invalid(location, e))?;
            return Ok((self.store("file", || Ok(Arc::new(DurableLocal::new())))?, path));
        }
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let path = Path::parse(key).map_err(|e| invalid(location, e))?;
        let store = self.store(&format!("{scheme}://{bucket}"), || remote(scheme, bucket, &self.options))?;
        Ok((store, path))
    }

    fn store(
        &self,
        name: &str,
        open: impl FnOnce() -> Result<Arc<dyn ObjectStore>>,
    ) -> Result<Arc<dyn ObjectStore>> {
        let mut known = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = known.get(name) {
            return Ok(Arc::clone(store));
        }
        let store = open()?;
        known.insert(name.to_owned(), Arc::clone(&store));
        Ok(store)
    }
}

fn is_local(location: &str) -> bool {
    location.starts_with("file:") || !location.contains(":/")
}

#[cfg(feature = "s3")]
fn remote(scheme: &str, bucket: &str, options: &Options) -> Result<Arc<dyn ObjectStore>> {
    use std::time::Duration;

    use object_store::aws::AmazonS3Builder;
    use secrecy::ExposeSecret;

    if !matches!(scheme, "s3" | "s3a" | "s3n") {
        return Err(unsupported(scheme));
    }
    // So that a server that isn't there is reported soon.
    let retry = object_store::RetryConfig {
        backoff: object_store::BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
        max_retries: 6,
        retry_timeout: Duration::from_secs(30),
    };
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
    for (key, value) in options {
        let known = key.to_ascii_lowercase().parse().map_err(|_| {
            Error::new(ErrorKind::DataInvalid, format!("the store doesn't know the option {key}"))
        })?;
        builder = builder.with_config(known, value.expose_secret());
    }
    // The cause is kept out: it may quote an option's value.
    let store = builder
        .build()
        .map_err(|_| Error::new(ErrorKind::DataInvalid, "the bucket's options don't fit together"))?;
    Ok(Arc::new(store))
}

#[cfg(not(feature = "s3"))]
fn remote(scheme: &str, _bucket: &str, _options: &Options) -> Result<Arc<dyn ObjectStore>> {
    Err(unsupported(scheme))
}

fn unsupported(scheme: &str) -> Error {
    Error::new(ErrorKind::FeatureUnsupported, format!("this build has no store for {scheme}:// locations"))
}

fn invalid(location: &str, error: object_store::path::Error) -> Error {
    Error::new(ErrorKind::DataInvalid, format!("{location} is no location")).with_source(error)
}

fn failed(doing: &str, location: &str, error: object_store::Error) -> Error {
    Error::new(ErrorKind::Unexpected, format!("can't {doing} {location}")).with_source(error)
}

fn failed_io(doing: &str, location: &str, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unexpected, format!("can't {doing} {location}")).with_source(error)
}

#[async_trait]
#[typetag::serde(name = "orbit")]
impl Storage for Stores {
    async fn exists(&self, path: &str) -> Result<bool> {
        let (store, at) = self.object(path)?;
        match store.head(&at).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(failed("look up", path, e)),
        }
    }

    async fn metadata(&self, path: &str) -> Result<FileMetadata> {
        let (store, at) = self.object(path)?;
        let meta = store.head(&at).await.map_err(|e| failed("look up", path, e))?;
        Ok(FileMetadata { size: meta.size })
    }

    async fn read(&self, path: &str) -> Result<Bytes> {
        let (store, at) = self.object(path)?;
        let fail = |e| failed("read", path, e);
        store.get(&at).await.map_err(fail)?.bytes().await.map_err(fail)
    }

    async fn reader(&self, path: &str) -> Result<Box<dyn FileRead>> {
        let (store, at) = self.object(path)?;
        Ok(Box::new(Reader { store, at }))
    }

    async fn write(&self, path: &str, bs: Bytes) -> Result<()> {
        let (store, at) = self.object(path)?;
        store.put(&at, bs.into()).await.map(drop).map_err(|e| failed("write", path, e))
    }

    async fn writer(&self, path: &str) -> Result<Box<dyn FileWrite>> {
        match self.at(path)? {
            At::Disk(at) => Ok(Box::new(NewFile::create(&at).map_err(|e| failed_io("make", path, e))?)),
            At::Store(store, at) => {
                let out = BufWriter::with_capacity(store, at, PART).with_max_concurrency(PARTS_AT_ONCE);
                Ok(Box::new(Upload { name: path.to_owned(), out }))
            }
        }
    }

    async fn delete(&self, path: &str) -> Result<()> {
        let (store, at) = self.object(path)?;
        match store.delete(&at).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(failed("remove", path, e)),
        }
    }

    async fn delete_prefix(&self, path: &str) -> Result<()> {
        let (store, prefix) = self.object(path)?;
        let found: Vec<_> =
            store.list(Some(&prefix)).try_collect().await.map_err(|e| failed("list", path, e))?;
        for file in found {
            match store.delete(&file.location).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(failed("remove", path, e)),
            }
        }
        Ok(())
    }

    async fn delete_stream(&self, mut paths: BoxStream<'static, String>) -> Result<()> {
        while let Some(path) = paths.next().await {
            self.delete(&path).await?;
        }
        Ok(())
    }

    fn new_input(&self, path: &str) -> Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), path.to_owned()))
    }

    fn new_output(&self, path: &str) -> Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), path.to_owned()))
    }
}

#[typetag::serde(name = "orbit")]
impl StorageFactory for Stores {
    fn build(&self, _config: &StorageConfig) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.clone()))
    }
}

#[derive(Debug)]
struct Reader {
    store: Arc<dyn ObjectStore>,
    at: Path,
}

#[async_trait]
impl FileRead for Reader {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        self.store.get_range(&self.at, range).await.map_err(|e| failed("read", self.at.as_ref(), e))
    }
}

struct Upload {
    name: String,
    out: BufWriter,
}

#[async_trait]
impl FileWrite for Upload {
    async fn write(&mut self, bs: Bytes) -> Result<()> {
        self.out.put(bs).await.map_err(|e| failed("write", &self.name, e))
    }

    async fn close(&mut self) -> Result<()> {
        self.out.shutdown().await.map_err(|e| failed_io("write", &self.name, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_understood() {
        let stores = Stores::default();
        for location in ["/a/b c%2F", "file:/a/b c%2F", "file:///a/b c%2F"] {
            match stores.at(location).unwrap() {
                At::Disk(path) => assert_eq!(path, PathBuf::from("/a/b c%2F")),
                At::Store(..) => panic!("{location}"),
            }
        }
        let refused = stores.at("gs://bucket/x").err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::FeatureUnsupported);
    }
}
