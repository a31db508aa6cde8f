//! The conformance suite, in local directories and in an S3 bucket.

#[cfg(feature = "s3")]
mod s3;
mod types;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use deltalake::DeltaTable;
use orbit_etl_connector_delta::{DeltaSink, DeltaSource, Mode};
use orbit_etl_core::{Sink, Source, StreamInfo};
use orbit_etl_testkit::{Abilities, Breakage, Broken, Check, Fixture, Harness, async_trait, conformance};
use tempfile::TempDir;
use url::Url;

struct Tables {
    mode: Mode,
}

struct Directory {
    root: TempDir,
    mode: Mode,
}

#[async_trait]
impl Harness for Tables {
    async fn fresh(&self) -> Check<Box<dyn Fixture>> {
        Ok(Box::new(Directory { root: TempDir::new().unwrap(), mode: self.mode }))
    }

    fn abilities(&self) -> Abilities {
        abilities()
    }
}

fn abilities() -> Abilities {
    // Microseconds count 292,000 years.
    Abilities { types: types::comes, years: Some((-290_000, 290_000)), ..Abilities::default() }
}

impl Directory {
    fn table(&self, stream: &str) -> String {
        format!("{}/{stream}", self.root.path().display())
    }
}

#[async_trait]
impl Fixture for Directory {
    fn sink(&self) -> Option<Arc<dyn Sink>> {
        let sink = DeltaSink::new(self.table("{stream}"), self.mode);
        Some(Arc::new(if self.mode == Mode::Merge { sink.keys(["id"]) } else { sink }))
    }

    async fn source(&self, streams: &[StreamInfo]) -> Check<Option<Arc<dyn Source>>> {
        Ok(Some(Arc::new(DeltaSource::new(self.table(&streams[0].name)).name(&streams[0].name))))
    }

    /// Data files that no version of the log names.
    async fn staged(&self) -> Check<Option<usize>> {
        let mut staged = 0;
        for table in fs::read_dir(self.root.path()).unwrap().map(|entry| entry.unwrap().path()) {
            let mut files = HashSet::new();
            files_below(&table.join("part-orbit"), &mut files);
            files_below(&table.join("_orbit"), &mut files);
            let url = Url::from_directory_path(&table).unwrap();
            for uri in named(url).await {
                files.retain(|file| !uri.ends_with(file.strip_prefix(&table).unwrap().to_str().unwrap()));
            }
            staged += files.len();
        }
        Ok(Some(staged))
    }

    async fn broken(&self, what: Breakage) -> Check<Option<Broken>> {
        let source = DeltaSource::new(self.table("nowhere"));
        Ok((what == Breakage::Missing).then(|| Broken::Source(Arc::new(source))))
    }
}

/// The files that a table's newest version has.
async fn named(table: Url) -> Vec<String> {
    let mut table = DeltaTable::try_from_url(table).await.unwrap();
    match table.load().await {
        Ok(()) => table.get_file_uris().unwrap().collect(),
        Err(_) => Vec::new(),
    }
}

fn files_below(directory: &Path, found: &mut HashSet<std::path::PathBuf>) {
    for path in fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.insert(path);
        }
    }
}

conformance!(append, Tables { mode: Mode::Append });
conformance!(overwrite, Tables { mode: Mode::Overwrite });
conformance!(merge, Tables { mode: Mode::Merge });
