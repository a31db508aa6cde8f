//! Data files that no snapshot has named yet: their paths, what a committable says of them, and which
//! of this run's they are.
//!
//! ```text
//! <the table's data folder>/orbit-<lineage, sink and table, hashed>/<claim>-<number>.parquet
//! ```
//!
//! They stand at their final places from the start: no reader of the table sees a file before a
//! snapshot names it. What follows the data folder is unique to one file of one run, whatever the
//! table's location is called, so a file is told from others by that alone. Partitions don't show in
//! paths: their values may be of any length and hold any character.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use iceberg::spec::{
    DataFile, FormatVersion, TableMetadata, read_data_files_from_avro, write_data_files_to_avro,
};
use orbit_etl_core::{Committable, Epoch, Error, LaneId, Lineage, Result};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::from_iceberg;

/// Data files of one lane that wait for their epoch's commit: the body of a committable.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Staged {
    /// The stream's name; it says which table.
    pub(super) stream: String,
    /// The table's own id: the files belong to no other, even if that has the same name.
    pub(super) table: String,
    pub(super) paths: Vec<String>,
    pub(super) rows: u64,
    /// The schema, the partition spec and the format version that they were written for.
    pub(super) schema: i32,
    pub(super) spec: i32,
    version: u8,
    /// As a manifest lists them: Avro, as text.
    files: String,
}

impl Staged {
    pub(super) fn new(stream: &str, table: &TableMetadata, files: Vec<DataFile>) -> Result<Self> {
        let fail = |e| from_iceberg(&e, "describe data files", stream);
        let (schema, spec) = (table.current_schema(), table.default_partition_spec());
        let partition = spec.partition_type(schema).map_err(fail)?;
        let version = table.format_version();
        let paths = files.iter().map(|file| file.file_path().to_owned()).collect();
        let rows = files.iter().map(DataFile::record_count).sum();
        let mut avro = Vec::new();
        write_data_files_to_avro(&mut avro, files, &partition, version).map_err(fail)?;
        Ok(Self {
            stream: stream.to_owned(),
            table: table.uuid().to_string(),
            paths,
            rows,
            schema: schema.schema_id(),
            spec: spec.spec_id(),
            version: version as u8,
            files: BASE64_STANDARD.encode(avro),
        })
    }

    pub(super) fn to_committable(&self) -> Result<Committable> {
        serde_json::to_value(self)
            .map(Committable)
            .map_err(|e| Error::internal("can't describe staged files").caused_by(e))
    }

    pub(super) fn from_committable(committable: Committable) -> Result<Self> {
        serde_json::from_value(committable.0).map_err(unreadable)
    }

    /// The files as the table's metadata lists them.
    pub(super) fn data_files(&self, table: &TableMetadata) -> Result<Vec<DataFile>> {
        let lost = || Error::schema("staged files were written for a schema that the table has lost");
        let schema = table.schema_by_id(self.schema).ok_or_else(lost)?;
        let spec = table.partition_spec_by_id(self.spec).ok_or_else(lost)?;
        let version = match self.version {
            1 => FormatVersion::V1,
            2 => FormatVersion::V2,
            _ => FormatVersion::V3,
        };
        let avro = BASE64_STANDARD.decode(&self.files).map_err(unreadable)?;
        let fail = |e| from_iceberg(&e, "read a committable", &self.stream);
        let partition = spec.partition_type(schema).map_err(fail)?;
        let files = read_data_files_from_avro(&mut avro.as_slice(), schema, self.spec, &partition, version);
        let files = files.map_err(fail)?;
        if files.iter().map(DataFile::file_path).ne(self.paths.iter().map(String::as_str)) {
            return Err(Error::internal("a committable of this sink is damaged"));
        }
        Ok(files)
    }
}

fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal("a committable of this sink can't be read")
        .remedy("commit it with the version of the connector that staged it")
        .caused_by(error)
}

/// The folder, below a table's data folder, of all runs of a lineage through one sink. A table that is
/// made anew in the place of another has another one.
pub(super) fn folder(lineage: &Lineage, table: impl Display) -> String {
    let all = format!("{}\n{}\n{table}", lineage.id, lineage.sink);
    format!("orbit-{:016x}", xxh3_64(all.as_bytes()))
}

/// How the names of one run's files begin. Numbers have a width, so that names sort as claims do.
pub(super) fn run_prefix(claim: u64) -> String {
    format!("{claim:020}-")
}

/// Which claim's file this is.
pub(super) fn claim_of(path: &str) -> Option<u64> {
    path.rsplit('/').next()?.split_once('-')?.0.parse().ok()
}

/// What tells a file from all others of the sink: its name alone.
pub(super) fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// This run's files that are not known to be committed. Names say which run made them, but not for
/// which epoch: a writer learns that only when it prepares.
#[derive(Debug, Clone, Default)]
pub(super) struct Registry {
    entries: Arc<Mutex<Vec<Entry>>>,
    numbers: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Entry {
    path: String,
    lane: LaneId,
    /// `None` while the epoch is open.
    epoch: Option<Epoch>,
}

impl Registry {
    /// A number that no other file of this run has.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A file is about to be written.
    pub(super) fn begin(&self, lane: LaneId, path: &str) {
        self.lock().push(Entry { path: path.to_owned(), lane, epoch: None });
    }

    /// What a lane has written since it last prepared belongs to this epoch.
    pub(super) fn prepared(&self, lane: LaneId, epoch: Epoch) {
        for entry in self.lock().iter_mut().filter(|e| e.lane == lane && e.epoch.is_none()) {
            entry.epoch = Some(epoch);
        }
    }

    /// Everything up to this epoch is committed.
    pub(super) fn committed(&self, epoch: Epoch) {
        self.lock().retain(|e| e.epoch.is_none_or(|of| of > epoch));
    }

    /// Takes out the paths of what belongs to this epoch, to one after it or to the open one: what
    /// follows an epoch that is given up is never committed either.
    pub(super) fn give_up(&self, epoch: Epoch) -> Vec<String> {
        let mut gone = Vec::new();
        self.lock().retain_mut(|entry| {
            let keep = entry.epoch.is_some_and(|of| of < epoch);
            if !keep {
                gone.push(std::mem::take(&mut entry.path));
            }
            keep
        });
        gone
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_whose_it_is() {
        let lineage =
            Lineage { id: "l".into(), sink: "out".into(), generation: 1, claim: 12, run: "r".into() };
        let path = format!("s3://b/t/data/{}/{}000007.parquet", folder(&lineage, "t"), run_prefix(12));
        assert_eq!(claim_of(&path), Some(12));
        assert_eq!(name_of(&path), "00000000000000000012-000007.parquet");
        assert_eq!(claim_of("s3://b/t/data/00000-1-a.parquet.crc"), Some(0));
        assert_eq!(claim_of("s3://b/t/data/part-1.parquet"), None);
        assert_ne!(folder(&lineage, "t"), folder(&lineage, "u"));
        assert_ne!(folder(&lineage, "t"), folder(&Lineage { sink: "other".into(), ..lineage.clone() }, "t"));
    }

    #[test]
    fn an_epoch_that_is_given_up_takes_the_open_one_along() {
        let registry = Registry::default();
        let lane = LaneId(0);
        for epoch in 1..=2 {
            registry.begin(lane, &epoch.to_string());
            registry.prepared(lane, epoch);
        }
        registry.begin(lane, "3");
        assert_eq!(registry.give_up(2), ["2", "3"]);
        registry.committed(1);
        assert!(registry.give_up(1).is_empty());
    }
}
