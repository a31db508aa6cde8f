//! The conformance suite: catalogs in memory, in SQLite and over REST, tables on a disk and in an S3
//! bucket.

mod types;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orbit_etl_connector_iceberg::{IcebergCatalog, IcebergSink, IcebergSource};
use orbit_etl_core::{Sink, Source, StreamInfo};
use orbit_etl_testkit::{Abilities, Breakage, Broken, Check, Fixture, Harness, async_trait, conformance};
use tempfile::TempDir;

use crate::named_files;

/// With a catalog in memory.
struct InMemory;

/// With a catalog in SQLite, opened anew for each run.
#[cfg(feature = "sql")]
struct InSqlite;

/// With files in a bucket and a catalog in memory.
#[cfg(feature = "s3")]
struct InBucket;

/// With a catalog behind a REST server.
struct OverRest;

struct Lake {
    dir: TempDir,
    catalog: Box<dyn Fn() -> IcebergCatalog + Send + Sync>,
    /// Whether the files are in `dir`.
    local: bool,
    namespace: String,
}

fn abilities() -> Abilities {
    // Microseconds count 292,000 years.
    Abilities { types: types::comes, years: Some((-290_000, 290_000)), ..Abilities::default() }
}

#[async_trait]
impl Harness for InMemory {
    async fn fresh(&self) -> Check<Box<dyn Fixture>> {
        let dir = TempDir::new().unwrap();
        let catalog = IcebergCatalog::memory(dir.path().to_str().unwrap());
        Ok(Box::new(Lake {
            dir,
            catalog: Box::new(move || catalog.clone()),
            local: true,
            namespace: "suite".into(),
        }))
    }

    fn abilities(&self) -> Abilities {
        abilities()
    }
}

#[cfg(feature = "sql")]
#[async_trait]
impl Harness for InSqlite {
    async fn fresh(&self) -> Check<Box<dyn Fixture>> {
        let dir = TempDir::new().unwrap();
        let at = dir.path().display().to_string();
        let catalog =
            move || IcebergCatalog::sql(format!("sqlite://{at}/catalog.db")).warehouse(format!("{at}/lake"));
        Ok(Box::new(Lake { dir, catalog: Box::new(catalog), local: true, namespace: "suite".into() }))
    }

    fn abilities(&self) -> Abilities {
        abilities()
    }
}

#[cfg(feature = "s3")]
#[async_trait]
impl Harness for InBucket {
    async fn fresh(&self) -> Check<Box<dyn Fixture>> {
        let prefix = unique("iceberg");
        let bucket = orbit_etl_testkit::service("S3", None)?.trim_end_matches('/').to_owned();
        let catalog = IcebergCatalog::memory(format!("{bucket}/{prefix}"));
        let dir = TempDir::new().unwrap();
        Ok(Box::new(Lake {
            dir,
            catalog: Box::new(move || catalog.clone()),
            local: false,
            namespace: "suite".into(),
        }))
    }

    fn abilities(&self) -> Abilities {
        abilities()
    }
}

#[async_trait]
impl Harness for OverRest {
    async fn fresh(&self) -> Check<Box<dyn Fixture>> {
        let url = orbit_etl_testkit::service("ICEBERG", None)?;
        let catalog = move || IcebergCatalog::rest(&url);
        let dir = TempDir::new().unwrap();
        Ok(Box::new(Lake { dir, catalog: Box::new(catalog), local: false, namespace: unique("suite") }))
    }

    fn abilities(&self) -> Abilities {
        abilities()
    }
}

/// A name that no other test has.
fn unique(name: &str) -> String {
    use std::time::{SystemTime, UNIX_EPOCH};

    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let name = format!("{name}_{now}_{:?}", std::thread::current().id());
    name.replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

impl Lake {
    fn table(&self, stream: &str) -> String {
        format!("{}.{stream}", self.namespace)
    }
}

#[async_trait]
impl Fixture for Lake {
    fn sink(&self) -> Option<Arc<dyn Sink>> {
        Some(Arc::new(IcebergSink::append((self.catalog)(), self.table("{stream}"))))
    }

    async fn source(&self, streams: &[StreamInfo]) -> Check<Option<Arc<dyn Source>>> {
        let table = self.table(&streams[0].name);
        Ok(Some(Arc::new(IcebergSource::new((self.catalog)(), table).name(&streams[0].name))))
    }

    /// Data files that no snapshot names.
    async fn staged(&self) -> Check<Option<usize>> {
        if !self.local {
            return Ok(None);
        }
        let mut files = HashSet::new();
        files_below(self.dir.path(), &mut files);
        for table in ["suite.rows", "suite.others"] {
            for named in named_files(&(self.catalog)(), table).await {
                files.retain(|file| !named.ends_with(file.to_str().unwrap()));
            }
        }
        Ok(Some(files.len()))
    }

    async fn broken(&self, what: Breakage) -> Check<Option<Broken>> {
        let source = match what {
            Breakage::Missing => IcebergSource::new((self.catalog)(), self.table("none")),
            Breakage::Unreachable => {
                let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
                let nobody = IcebergCatalog::rest(format!("http://127.0.0.1:{port}"));
                IcebergSource::new(nobody, "suite.rows")
            }
            Breakage::BadCredentials => return Ok(None),
        };
        Ok(Some(Broken::Source(Arc::new(source))))
    }
}

fn files_below(directory: &Path, found: &mut HashSet<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            found.insert(path);
        }
    }
}

conformance!(memory, InMemory);
conformance!(rest, OverRest);
#[cfg(feature = "sql")]
conformance!(sqlite, InSqlite);
#[cfg(feature = "s3")]
conformance!(s3, InBucket);
