//! Where files are: a path or a URL, a glob, and the store that holds it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::path::{Component, PathBuf};
use std::sync::Arc;
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure", feature = "http"))]
use std::time::Duration;

use globset::{GlobBuilder, GlobMatcher};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use orbit_etl_core::{Error, Result};
use secrecy::SecretString;
use serde::{Deserialize, Serialize, Serializer};
use url::Url;

/// Options of an object store: `region`, `endpoint`, `access_key_id` … What isn't given here is
/// taken from the environment. Two are ours: `max_retries` and `retry_timeout`, in seconds.
pub(crate) type Storage = BTreeMap<String, SecretString>;

/// A place that may hold files.
#[derive(Clone)]
pub(crate) struct Location {
    /// The store; the whole local disk for local paths.
    pub(crate) store: Arc<dyn ObjectStore>,
    /// The same store where it can upload in parts that outlive the process.
    pub(crate) multipart: Option<Arc<dyn MultipartStore>>,
    /// The directory or file; with a glob, the directory before its first wildcard.
    pub(crate) prefix: Path,
    /// Matches whole paths of the store (with a leading `/` on the local disk).
    pub(crate) pattern: Option<GlobMatcher>,
    /// `prefix` as an absolute path if it is on the local disk.
    pub(crate) local: Option<PathBuf>,
    /// What people wrote, without user names, passwords and query strings.
    display: String,
    /// What stands before a store's path to name an object: `s3://bucket/`, or `/`.
    root: String,
    /// Whether what people wrote ends with a slash.
    pub(crate) directory: bool,
    /// Whether the store can list what it holds.
    pub(crate) lists: bool,
}

impl Location {
    /// Understands a path or a URL. Touches neither network nor disk, except that a local path
    /// with wildcard characters is looked up as it stands first.
    ///
    /// # Errors
    /// `Config`: not a path or URL, an unknown scheme or option, a feature that is off.
    pub(crate) fn parse(path: &str, storage: &Storage) -> Result<Self> {
        if path.is_empty() {
            return Err(Error::config("the path is empty").remedy("name a file, a directory or a glob"));
        }
        match scheme(path) {
            None => Self::local(path),
            Some("file") => {
                let rest = path.strip_prefix("file://").unwrap_or(path);
                let rest = rest.strip_prefix("localhost").unwrap_or(rest);
                if !rest.starts_with('/') {
                    return Err(Error::config("a file URL needs an absolute path")
                        .with("path", path)
                        .remedy("write file:///path"));
                }
                let decoded = percent_encoding::percent_decode_str(rest)
                    .decode_utf8()
                    .map_err(|e| Error::config("the URL is not UTF-8").with("path", path).caused_by(e))?;
                Self::local(&decoded)
            }
            Some(_) => Self::remote(path, storage),
        }
    }

    /// The name of an object of this store, for people, ids and messages.
    pub(crate) fn name(&self, path: &Path) -> String {
        format!("{}{path}", self.root)
    }

    fn local(path: &str) -> Result<Self> {
        let absolute = absolute(path)?;
        let text = absolute
            .to_str()
            .ok_or_else(|| Error::config("the path is not UTF-8").with("path", path))?
            .to_string();
        let (base, pattern) = match wildcard(&text) {
            Some(_) if absolute.exists() => (absolute, None),
            Some(at) => {
                let base = text[..at].rsplit_once('/').map_or("/", |(dir, _)| dir);
                (PathBuf::from(if base.is_empty() { "/" } else { base }), Some(glob(&text)?))
            }
            None => (absolute, None),
        };
        let prefix = Path::from_absolute_path(&base)
            .map_err(|e| Error::config("the path can't be used").with("path", path).caused_by(e))?;
        Ok(Self {
            store: Arc::new(LocalFileSystem::new()),
            multipart: None,
            prefix,
            pattern,
            local: Some(base),
            display: path.to_string(),
            root: "/".into(),
            directory: path.ends_with('/'),
            lists: true,
        })
    }

    fn remote(path: &str, storage: &Storage) -> Result<Self> {
        let url = Url::parse(path)
            .map_err(|e| Error::config("the URL can't be read").with("path", redact(path)).caused_by(e))?;
        let display = redact(path);
        let fail = |e: object_store::Error| {
            Error::config("the store can't be set up").with("path", display.clone()).caused_by(e)
        };
        // The raw text, since a URL would encode `{`, `[` and `?`.
        let after = path.split_once("://").map_or("", |(_, rest)| rest);
        let (authority, key) = after.split_once('/').unwrap_or((after, ""));
        let is_http = matches!(url.scheme(), "http" | "https");
        let key = if is_http { url.path().trim_start_matches('/') } else { key };
        let opened = open_store(&url, storage, &display)?;

        let pattern_at = if is_http { None } else { wildcard(key) };
        let (base, pattern) = match pattern_at {
            Some(at) => (key[..at].rsplit_once('/').map_or("", |(dir, _)| dir), Some(glob(key)?)),
            None => (key, None),
        };
        let prefix =
            if is_http { Path::from_url_path(base) } else { Path::parse(base.trim_end_matches('/')) };
        let prefix = prefix.map_err(|e| fail(object_store::Error::from(e)))?;
        let host = authority.rsplit_once('@').map_or(authority, |(before, host)| {
            // `abfss://container@account…` names the container there, `https://user:pass@…` a secret.
            if is_http || before.contains(':') { host } else { authority }
        });
        Ok(Self {
            store: opened.store,
            multipart: opened.multipart,
            prefix,
            pattern,
            local: None,
            root: format!("{}://{host}/", url.scheme()),
            directory: key.is_empty() || key.ends_with('/'),
            lists: !is_http,
            display,
        })
    }

    /// The same location in another store, under a name of its own.
    #[cfg(test)]
    pub(crate) fn in_store(
        store: Arc<dyn ObjectStore>,
        multipart: Option<Arc<dyn MultipartStore>>,
        key: &str,
    ) -> Result<Self> {
        let (base, pattern) = match wildcard(key) {
            Some(at) => (key[..at].rsplit_once('/').map_or("", |(dir, _)| dir), Some(glob(key)?)),
            None => (key, None),
        };
        Ok(Self {
            store,
            multipart,
            prefix: Path::from(base),
            pattern,
            local: None,
            display: format!("test://store/{key}"),
            root: "test://store/".into(),
            directory: key.is_empty() || key.ends_with('/'),
            lists: true,
        })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Location").field(&self.display).finish()
    }
}

/// A path or URL as it was given. Whatever shows it leaves the secrets out.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub(crate) struct Given(String);

impl From<String> for Given {
    fn from(path: String) -> Self {
        Self(path)
    }
}

impl Deref for Given {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&redact(self), f)
    }
}

impl Serialize for Given {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&redact(self))
    }
}

/// A path or URL without user names, passwords and query strings, for messages.
pub(crate) fn redact(path: &str) -> String {
    let Some((scheme, rest)) = path.split_once("://") else { return path.to_string() };
    let http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    let rest = if http { rest.split(['?', '#']).next().unwrap_or(rest) } else { rest };
    let (authority, key) = match rest.split_once('/') {
        Some((authority, key)) => (authority, Some(key)),
        None => (rest, None),
    };
    let shown = match authority.rsplit_once('@') {
        Some((user, host)) if http || user.contains(':') => host,
        _ => authority,
    };
    match key {
        Some(key) => format!("{scheme}://{shown}/{key}"),
        None => format!("{scheme}://{shown}"),
    }
}

struct Opened {
    store: Arc<dyn ObjectStore>,
    multipart: Option<Arc<dyn MultipartStore>>,
}

#[allow(unused_variables)] // Without any store feature, `storage` has no reader.
fn open_store(url: &Url, storage: &Storage, display: &str) -> Result<Opened> {
    #[cfg(any(feature = "s3", feature = "gcs", feature = "azure", feature = "http"))]
    macro_rules! build {
        ($builder:expr, $multipart:expr) => {{
            use secrecy::ExposeSecret as _;
            let mut builder = $builder.with_retry(retries(storage, display)?);
            for (key, value) in storage {
                if key == MAX_RETRIES || key == RETRY_TIMEOUT {
                    continue;
                }
                let known = key.to_ascii_lowercase().parse().map_err(|_| {
                    Error::config("the store doesn't know this option")
                        .with("option", key)
                        .with("path", display)
                        .remedy("see the options of the `object_store` crate for this kind of store")
                })?;
                builder = builder.with_config(known, value.expose_secret());
            }
            // The cause is kept out: it may quote an option's value.
            let store = Arc::new(builder.build().map_err(|_| {
                Error::config("the store can't be set up")
                    .with("path", display)
                    .remedy("check the URL and the store's options in `storage` and in the environment")
            })?);
            #[allow(clippy::redundant_closure_call)]
            Ok(Opened { multipart: $multipart(&store), store })
        }};
    }
    #[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
    macro_rules! parts {
        () => {
            |store: &Arc<_>| Some(Arc::clone(store) as Arc<dyn MultipartStore>)
        };
    }
    match url.scheme() {
        #[cfg(feature = "s3")]
        "s3" | "s3a" => {
            build!(object_store::aws::AmazonS3Builder::from_env().with_url(url.as_str()), parts!())
        }
        #[cfg(feature = "gcs")]
        "gs" => {
            build!(object_store::gcp::GoogleCloudStorageBuilder::from_env().with_url(url.as_str()), parts!())
        }
        #[cfg(feature = "azure")]
        "az" | "azure" | "adl" | "abfs" | "abfss" => {
            build!(object_store::azure::MicrosoftAzureBuilder::from_env().with_url(url.as_str()), parts!())
        }
        #[cfg(feature = "http")]
        "http" | "https" => {
            // A query string may be what gives access; it goes with each request.
            let mut base = url.clone();
            base.set_path("");
            base.set_fragment(None);
            // Who writes `http://` wants it.
            let mut options = object_store::ClientOptions::new().with_allow_http(url.scheme() == "http");
            if let Some(login) = login(url) {
                let mut headers = object_store::HeaderMap::new();
                headers.insert("authorization", login);
                options = options.with_default_headers(headers);
                // Only without a host would these be refused.
                let _ = base.set_username("").and_then(|()| base.set_password(None));
            }
            let builder = object_store::http::HttpBuilder::new().with_url(base).with_client_options(options);
            build!(builder, |_: &Arc<_>| None)
        }
        other => Err(match feature_of(other) {
            Some(feature) => Error::config(format!("`{other}://` is not compiled in"))
                .with("path", display)
                .remedy(format!("turn the cargo feature `{feature}` on")),
            None => Error::config(format!("nothing is known of `{other}://`"))
                .with("path", display)
                .remedy("use a path, file://, s3://, gs://, az://, abfss://, http:// or https://"),
        }),
    }
}

/// The header that a URL's user name and password stand for.
#[cfg(feature = "http")]
fn login(url: &Url) -> Option<object_store::HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let plain = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
    let login = [plain(url.username()), b":".to_vec(), plain(url.password().unwrap_or_default())].concat();
    let mut header = object_store::HeaderValue::from_str(&format!("Basic {}", base64(&login))).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(feature = "http")]
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, i| (bits << 8) | u32::from(three.get(i).copied().unwrap_or(0)));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(any(feature = "s3", feature = "gcs", feature = "azure", feature = "http"))]
const MAX_RETRIES: &str = "max_retries";
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure", feature = "http"))]
const RETRY_TIMEOUT: &str = "retry_timeout";

/// How often a request is sent again that the server was too busy for, or didn't get: 6 times
/// within 30 seconds unless said otherwise, so that a server that isn't there is reported soon.
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure", feature = "http"))]
fn retries(storage: &Storage, display: &str) -> Result<object_store::RetryConfig> {
    use secrecy::ExposeSecret as _;
    let number = |option: &'static str, default: u64| match storage.get(option) {
        None => Ok(default),
        Some(value) => value.expose_secret().parse().map_err(|_| {
            Error::config("the store's option is not a whole number")
                .with("option", option)
                .with("path", display)
        }),
    };
    Ok(object_store::RetryConfig {
        backoff: object_store::BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
        max_retries: usize::try_from(number(MAX_RETRIES, 6)?).unwrap_or(usize::MAX),
        retry_timeout: Duration::from_secs(number(RETRY_TIMEOUT, 30)?),
    })
}

fn feature_of(scheme: &str) -> Option<&'static str> {
    match scheme {
        "s3" | "s3a" => Some("s3"),
        "gs" => Some("gcs"),
        "az" | "azure" | "adl" | "abfs" | "abfss" => Some("azure"),
        "http" | "https" => Some("http"),
        _ => None,
    }
}

/// The scheme of a URL; a single letter is a Windows drive.
fn scheme(path: &str) -> Option<&str> {
    let (scheme, _) = path.split_once("://")?;
    let valid = scheme.len() > 1
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    valid.then_some(scheme)
}

/// Where the first wildcard stands.
fn wildcard(path: &str) -> Option<usize> {
    path.find(['*', '?', '[', '{'])
}

fn glob(pattern: &str) -> Result<GlobMatcher> {
    GlobBuilder::new(pattern)
        .literal_separator(true)
        .build()
        .map(|glob| glob.compile_matcher())
        .map_err(|e| Error::config("the glob can't be read").with("path", pattern).caused_by(e))
}

/// Against the current directory, without `.` and `..`, links left as they are.
fn absolute(path: &str) -> Result<PathBuf> {
    let path = std::path::absolute(path)
        .map_err(|e| Error::config("the path can't be made absolute").with("path", path).caused_by(e))?;
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
    fn local_paths_become_absolute_and_globs_get_a_base() {
        let none = Storage::new();
        let plain = Location::parse("some/dir/", &none).unwrap();
        assert!(plain.directory && plain.pattern.is_none());
        assert_eq!(plain.local, Some(std::env::current_dir().unwrap().join("some/dir")));

        let globbed = Location::parse("/data/a/../x-*.csv", &none).unwrap();
        assert_eq!(globbed.local, Some(PathBuf::from("/data")));
        let pattern = globbed.pattern.unwrap();
        assert!(pattern.is_match("/data/x-1.csv"));
        assert!(!pattern.is_match("/data/deeper/x-1.csv"));

        let url = Location::parse("file:///data/with%20space.csv", &none).unwrap();
        assert_eq!(url.local, Some(PathBuf::from("/data/with space.csv")));
    }

    #[test]
    fn a_missing_feature_or_an_unknown_scheme_is_named() {
        let error = Location::parse("ftp://host/x.csv", &Storage::new()).unwrap_err();
        assert_eq!(error.kind(), orbit_etl_core::ErrorKind::Config);
        #[cfg(not(feature = "s3"))]
        {
            let error = Location::parse("s3://bucket/x.csv", &Storage::new()).unwrap_err();
            assert!(error.to_string().contains("`s3`"), "{error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(redact("https://me:pw@host/a.csv?sig=1"), "https://host/a.csv");
        assert_eq!(
            redact("abfss://box@acc.dfs.core.windows.net/a"),
            "abfss://box@acc.dfs.core.windows.net/a"
        );
        assert_eq!(redact("s3://bucket/a?.csv"), "s3://bucket/a?.csv");
    }

    #[cfg(feature = "http")]
    #[test]
    fn a_login_becomes_a_header() {
        let header = |url: &str| login(&Url::parse(url).unwrap()).map(|h| h.to_str().unwrap().to_owned());
        assert_eq!(header("http://host/a"), None);
        assert_eq!(header("http://a:b@host/a").unwrap(), "Basic YTpi");
        assert_eq!(
            header("http://Aladdin:open%20sesame@host/a").unwrap(),
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
        );
        assert_eq!(header("http://ab@host/a").unwrap(), "Basic YWI6");
    }

    #[cfg(feature = "s3")]
    #[test]
    fn s3_urls_keep_their_bucket_and_refuse_unknown_options() {
        let mut storage = Storage::new();
        storage.insert("region".into(), SecretString::from("eu-west-1".to_string()));
        let place = Location::parse("s3://bucket/data/year=*/x.parquet", &storage).unwrap();
        assert_eq!(place.prefix.as_ref(), "data");
        assert_eq!(place.name(&Path::from("data/a")), "s3://bucket/data/a");
        assert!(place.multipart.is_some());
        storage.insert("max_retries".into(), SecretString::from("0".to_string()));
        storage.insert("retry_timeout".into(), SecretString::from("7".to_string()));
        assert_eq!(retries(&storage, "").unwrap().retry_timeout.as_secs(), 7);
        assert!(Location::parse("s3://bucket/data", &storage).is_ok());
        storage.insert("max_retries".into(), SecretString::from("often".to_string()));
        let error = Location::parse("s3://bucket/data", &storage).unwrap_err();
        assert_eq!(error.context("option"), Some("max_retries"));
        storage.remove("max_retries");
        storage.insert("colour".into(), SecretString::from("red".to_string()));
        assert!(Location::parse("s3://bucket/data", &storage).is_err());
    }
}
