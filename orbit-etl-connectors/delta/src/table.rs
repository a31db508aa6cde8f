//! Where a table is, and the store that holds it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use deltalake::DeltaTable;
use deltalake::logstore::{LogStoreRef, StorageConfig, default_logstore};
use object_store::ObjectStore;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use orbit_etl_core::checkpoint::DurableLocal;
use orbit_etl_core::{Error, ErrorKind, Result};
use secrecy::SecretString;
use url::Url;

use crate::error::{from_delta, from_io, missing};

/// Options of an object store: `region`, `endpoint`, `access_key_id` … What isn't given here is
/// taken from the environment.
pub(crate) type Storage = BTreeMap<String, SecretString>;

/// A place that may hold a table.
#[derive(Clone)]
pub(crate) struct Place {
    log_store: LogStoreRef,
    /// The table's folder, if it is on the local disk.
    local: Option<PathBuf>,
    display: String,
}

/// Which state of a table is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Newest,
    Version(u64),
    Time(DateTime<Utc>),
}

impl Place {
    /// Understands a path or a URL. Touches neither network nor disk.
    ///
    /// # Errors
    /// `Config`: not a path or URL, an unknown scheme or option, a feature that is off.
    pub(crate) fn parse(path: &str, storage: &Storage) -> Result<Self> {
        if path.is_empty() {
            return Err(Error::config("the path is empty").remedy("name the table's folder"));
        }
        match path.split_once("://") {
            Some(("file", _)) => {
                let local = Url::parse(path).ok().and_then(|url| url.to_file_path().ok());
                let local = local.ok_or_else(|| {
                    Error::config("a file URL needs an absolute path")
                        .with("path", path)
                        .remedy("write file:///path")
                })?;
                Self::local(local, path)
            }
            Some((scheme, _)) if scheme.len() > 1 => Self::remote(path, storage),
            _ => Self::local(PathBuf::from(path), path),
        }
    }

    fn local(path: PathBuf, display: &str) -> Result<Self> {
        let path = absolute(path)?;
        let url = Url::from_directory_path(&path)
            .map_err(|()| Error::config("the path can't be used").with("path", display))?;
        let prefix = Path::from_absolute_path(&path)
            .map_err(|e| Error::config("the path can't be used").with("path", display).caused_by(e))?;
        let root: Arc<dyn ObjectStore> = Arc::new(DurableLocal::new());
        Ok(Self { log_store: log_store(root, prefix, &url), local: Some(path), display: display.to_owned() })
    }

    fn remote(path: &str, storage: &Storage) -> Result<Self> {
        let display = redact(path);
        let mut url = Url::parse(path)
            .map_err(|e| Error::config("the URL can't be read").with("path", &display).caused_by(e))?;
        let root = open_store(&url, storage, &display)?;
        let folder = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{folder}/"));
        let prefix = Path::from_url_path(&folder)
            .map_err(|e| Error::config("the path can't be used").with("path", &display).caused_by(e))?;
        Ok(Self { log_store: log_store(root, prefix, &url), local: None, display })
    }

    /// The log, and with it the table's folder as a store.
    pub(crate) fn log_store(&self) -> &LogStoreRef {
        &self.log_store
    }

    /// The table's folder as a store.
    pub(crate) fn store(&self) -> Arc<dyn ObjectStore> {
        self.log_store.object_store(None)
    }

    /// The table's folder on the local disk.
    pub(crate) fn folder(&self) -> Option<&PathBuf> {
        self.local.as_ref()
    }

    /// Loads the table.
    ///
    /// # Errors
    /// `NotFound` where there is no table, or no such version.
    pub(crate) async fn load(&self, at: At) -> Result<DeltaTable> {
        if let Some(folder) = &self.local {
            match std::fs::metadata(folder) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => {
                    return Err(Error::config("the table's path is a file, not a folder")
                        .with("table", self)
                        .remedy("name the folder that holds `_delta_log`"));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing(self)),
                Err(error) => return Err(from_io(error, "open the table", self)),
            }
        }
        let mut table = DeltaTable::new(self.log_store.clone());
        let loaded = match at {
            At::Newest => table.load().await,
            At::Version(version) => table.load_version(version).await,
            At::Time(time) => table.load_with_datetime(time).await,
        };
        match loaded {
            Ok(()) => Ok(table),
            Err(error) => Err(self.tell_missing_version(at, &error).await),
        }
    }

    /// The table, or `None` if there isn't one.
    pub(crate) async fn try_load(&self) -> Result<Option<DeltaTable>> {
        match self.load(At::Newest).await {
            Ok(table) => Ok(Some(table)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A version can be missing because it is yet to come, or because its log is gone. The library
    /// has no error for that.
    async fn tell_missing_version(&self, at: At, error: &deltalake::DeltaTableError) -> Error {
        let told = from_delta(error, "open the table", &self.display);
        let At::Version(version) = at else { return told };
        // What the server refused or didn't answer says nothing of versions.
        if !matches!(told.kind(), ErrorKind::NotFound | ErrorKind::Data) {
            return told;
        }
        let mut newest = DeltaTable::new(self.log_store.clone());
        if newest.load().await.is_err() {
            return told;
        }
        Error::not_found("the table has no such version, or its log is gone")
            .with("table", &self.display)
            .with("version", version)
            .with("newest", newest.version().unwrap_or_default())
            .remedy("name a version that the table's history still has")
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.display).finish()
    }
}

fn log_store(root: Arc<dyn ObjectStore>, prefix: Path, url: &Url) -> LogStoreRef {
    let table: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(Arc::clone(&root), prefix));
    default_logstore(table, root, url, &StorageConfig::default())
}

/// A path or URL without user names, passwords and query strings, for messages.
pub(crate) fn redact(path: &str) -> String {
    let Some((scheme, rest)) = path.split_once("://") else { return path.to_owned() };
    let rest = rest.split(['?', '#']).next().unwrap_or(rest);
    let (authority, key) = rest.split_once('/').map_or((rest, None), |(a, k)| (a, Some(k)));
    let shown = match authority.rsplit_once('@') {
        Some((user, host)) if user.contains(':') => host,
        _ => authority,
    };
    match key {
        Some(key) => format!("{scheme}://{shown}/{key}"),
        None => format!("{scheme}://{shown}"),
    }
}

#[cfg_attr(not(feature = "s3"), allow(unused_variables))]
fn open_store(url: &Url, storage: &Storage, display: &str) -> Result<Arc<dyn ObjectStore>> {
    match url.scheme() {
        #[cfg(feature = "s3")]
        "s3" | "s3a" => open_s3(url, storage, display),
        #[cfg(not(feature = "s3"))]
        "s3" | "s3a" => Err(Error::config("`s3://` is not compiled in")
            .with("path", display)
            .remedy("turn the cargo feature `s3` on")),
        other => Err(Error::config(format!("nothing is known of `{other}://`"))
            .with("path", display)
            .remedy("use a path, file:// or s3://")),
    }
}

#[cfg(feature = "s3")]
fn open_s3(url: &Url, storage: &Storage, display: &str) -> Result<Arc<dyn ObjectStore>> {
    use secrecy::ExposeSecret as _;
    use std::time::Duration;

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
    let mut bucket = url.clone();
    bucket.set_path("");
    let mut builder =
        object_store::aws::AmazonS3Builder::from_env().with_url(bucket.as_str()).with_retry(retry);
    for (key, value) in storage {
        let known = key.to_ascii_lowercase().parse().map_err(|_| {
            Error::config("the store doesn't know this option")
                .with("option", key)
                .with("path", display)
                .remedy("see the options of the `object_store` crate for Amazon S3")
        })?;
        builder = builder.with_config(known, value.expose_secret());
    }
    // The cause is kept out: it may quote an option's value.
    let store = builder.build().map_err(|_| {
        Error::config("the store can't be set up")
            .with("path", display)
            .remedy("check the URL and the store's options in `storage` and in the environment")
    })?;
    Ok(Arc::new(store))
}

/// Against the current directory, without `.` and `..`, links left as they are.
fn absolute(path: PathBuf) -> Result<PathBuf> {
    let path = std::path::absolute(&path).map_err(|e| {
        Error::config("the path can't be made absolute").with("path", path.display()).caused_by(e)
    })?;
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_are_told_apart() {
        let none = Storage::new();
        let place = Place::parse("/data/x/../lake t", &none).unwrap();
        assert_eq!(place.folder(), Some(&PathBuf::from("/data/lake t")));
        let place = Place::parse("file:///data/lake%20t/", &none).unwrap();
        assert_eq!(place.folder(), Some(&PathBuf::from("/data/lake t")));
        let error = Place::parse("ftp://me:hush@host/x", &none).unwrap_err();
        assert!(error.to_string().contains("ftp") && !error.to_string().contains("hush"), "{error}");
        assert!(Place::parse("", &none).is_err());
    }
}
