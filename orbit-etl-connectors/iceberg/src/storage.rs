//! The files of tables, for the `iceberg` crate, on this project's own object stores: one TLS stack, and
//! every file on a disk synced before anything names it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
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

/// Options of object stores, by name.
pub(crate) type Options = BTreeMap<String, SecretString>;

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

impl Stores {
    pub(crate) fn new(options: Options) -> Self {
        Self { options: Arc::new(options), open: Arc::default() }
    }

    /// The files below a folder, as locations that begin with `folder`.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let folder = folder.trim_end_matches('/');
        let (store, prefix) = self.at(folder)?;
        let found: Vec<_> =
            store.list(Some(&prefix)).try_collect().await.map_err(|e| failed("list", folder, e))?;
        Ok(found
            .into_iter()
            .filter_map(|meta| {
                let below = meta.location.as_ref().strip_prefix(prefix.as_ref())?.to_owned();
                Some(format!("{folder}{below}"))
            })
            .collect())
    }

    fn at(&self, location: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
        let (scheme, rest) = location.split_once(":/").unwrap_or(("file", location));
        if scheme == "file" {
            let path = format!("/{}", rest.trim_start_matches('/'));
            let path = Path::from_absolute_path(&path).map_err(|e| invalid(location, e))?;
            return Ok((self.store("file", || Ok(Arc::new(DurableLocal::new())))?, path));
        }
        let (bucket, key) = rest.trim_start_matches('/').split_once('/').unwrap_or((rest, ""));
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

#[cfg(feature = "s3")]
fn remote(scheme: &str, bucket: &str, options: &Options) -> Result<Arc<dyn ObjectStore>> {
    use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
    use secrecy::ExposeSecret;

    if !matches!(scheme, "s3" | "s3a" | "s3n") {
        return Err(unsupported(scheme));
    }
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    for (key, value) in options {
        let key: AmazonS3ConfigKey = key.parse().map_err(|e| {
            Error::new(ErrorKind::DataInvalid, "an unknown option in `storage`").with_source(e)
        })?;
        builder = builder.with_config(key, value.expose_secret());
    }
    let store = builder.build().map_err(|e| {
        Error::new(ErrorKind::DataInvalid, "the bucket's options don't fit together").with_source(e)
    })?;
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

#[async_trait]
#[typetag::serde(name = "orbit")]
impl Storage for Stores {
    async fn exists(&self, path: &str) -> Result<bool> {
        let (store, at) = self.at(path)?;
        match store.head(&at).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(failed("look up", path, e)),
        }
    }

    async fn metadata(&self, path: &str) -> Result<FileMetadata> {
        let (store, at) = self.at(path)?;
        let meta = store.head(&at).await.map_err(|e| failed("look up", path, e))?;
        Ok(FileMetadata { size: meta.size })
    }

    async fn read(&self, path: &str) -> Result<Bytes> {
        let (store, at) = self.at(path)?;
        let fail = |e| failed("read", path, e);
        store.get(&at).await.map_err(fail)?.bytes().await.map_err(fail)
    }

    async fn reader(&self, path: &str) -> Result<Box<dyn FileRead>> {
        let (store, at) = self.at(path)?;
        Ok(Box::new(Reader { store, at }))
    }

    async fn write(&self, path: &str, bs: Bytes) -> Result<()> {
        let (store, at) = self.at(path)?;
        store.put(&at, bs.into()).await.map(drop).map_err(|e| failed("write", path, e))
    }

    async fn writer(&self, path: &str) -> Result<Box<dyn FileWrite>> {
        let (store, at) = self.at(path)?;
        Ok(Box::new(Writer { name: path.to_owned(), out: BufWriter::new(store, at) }))
    }

    async fn delete(&self, path: &str) -> Result<()> {
        let (store, at) = self.at(path)?;
        match store.delete(&at).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(failed("remove", path, e)),
        }
    }

    async fn delete_prefix(&self, path: &str) -> Result<()> {
        for file in self.list(path).await? {
            self.delete(&file).await?;
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

struct Writer {
    name: String,
    out: BufWriter,
}

#[async_trait]
impl FileWrite for Writer {
    async fn write(&mut self, bs: Bytes) -> Result<()> {
        self.out.put(bs).await.map_err(|e| failed("write", &self.name, e))
    }

    async fn close(&mut self) -> Result<()> {
        self.out.shutdown().await.map_err(|e| {
            Error::new(ErrorKind::Unexpected, format!("can't write {}", self.name)).with_source(e)
        })
    }
}
