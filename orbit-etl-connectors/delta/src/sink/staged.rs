//! Data files that no commit has named yet: their paths, what a committable says of them, and which
//! of this run's they are.
//!
//! ```text
//! <table>/part-orbit/<lineage and sink, hashed>/<claim>/[<column>=<value>/]<number>.parquet
//! <table>/_orbit/<lineage and sink, hashed>/<claim>/<number>.parquet
//! ```
//!
//! The first are named by the table as they are. The second are read by an operation that runs in the
//! commit, and removed after it; readers and other tools pass over folders with such a name.
//!
//! The log alone says which partition a file is of; some readers look at the folders nevertheless.
//!
//! No reader of the table sees a file before the log names it. The claim number in the path says which run wrote it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use deltalake::kernel::Add;
use orbit_etl_core::{Committable, Epoch, Error, LaneId, Lineage, Result};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::partition::Values;

/// The folder in the table's own that holds data files. Not hidden: a vacuum has to find them when
/// they are replaced.
pub(crate) const FOLDER: &str = "part-orbit";

/// The folder in the table's own that holds rows for an operation.
pub(crate) const WAITING: &str = "_orbit";

/// Where the log says, beside a commit, whose it is.
pub(crate) const INFO: &str = "orbit";

const NULL_PARTITION: &str = "__HIVE_DEFAULT_PARTITION__";
/// The longest name that file systems take.
const LONGEST_NAME: usize = 255;
/// How much of a path partitions may take: object stores have names of 1,024 bytes.
const LONGEST_FOLDERS: usize = 600;

/// What a commit does with staged files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum How {
    /// It names them.
    #[default]
    Add,
    /// It merges their rows, which are changes.
    Merge {
        /// The columns that tell rows apart.
        keys: Vec<String>,
        /// Whether the stream says in which order the changes happened.
        ordered: bool,
    },
    /// It puts their rows in the place of those that satisfy a predicate.
    Replace {
        /// SQL over the table's columns.
        predicate: String,
    },
}

impl How {
    pub(crate) fn is_add(&self) -> bool {
        *self == Self::Add
    }

    /// The folder, in the table's own, for such files.
    pub(crate) fn root(&self) -> &'static str {
        if self.is_add() { FOLDER } else { WAITING }
    }
}

/// A data file that waits for its epoch's commit: the body of a committable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Staged {
    /// The stream's name; it says which table.
    pub(crate) stream: String,
    /// The table's own id: the file belongs to no other, even if that has the same place.
    pub(crate) table: String,
    /// Below the table's folder.
    pub(crate) path: String,
    pub(crate) partition: BTreeMap<String, Option<String>>,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    /// Milliseconds since 1970.
    pub(crate) modified: i64,
    pub(crate) stats: String,
    /// Which constraints the rows were checked against.
    pub(crate) checks: String,
    /// The stream's columns, if the table lacked some of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) columns: Option<String>,
    #[serde(default, skip_serializing_if = "How::is_add")]
    pub(crate) how: How,
}

impl Staged {
    pub(crate) fn to_committable(&self) -> Result<Committable> {
        serde_json::to_value(self)
            .map(Committable)
            .map_err(|e| Error::internal("can't describe a staged file").caused_by(e))
    }

    pub(crate) fn from_committable(committable: Committable) -> Result<Self> {
        serde_json::from_value(committable.0).map_err(|e| {
            Error::internal("a committable of this sink can't be read")
                .remedy("commit it with the version of the connector that staged it")
                .caused_by(e)
        })
    }

    pub(crate) fn to_add(&self) -> Add {
        Add {
            path: self.path.clone(),
            partition_values: self.partition.clone().into_iter().collect(),
            size: i64::try_from(self.bytes).unwrap_or(i64::MAX),
            modification_time: self.modified,
            data_change: true,
            stats: Some(self.stats.clone()),
            ..Add::default()
        }
    }
}

/// The folder, below one of the two in the table's, of all runs of a lineage through one sink.
pub(crate) fn folder(root: &str, lineage: &Lineage) -> String {
    format!("{root}/{}", own_folder(&lineage.id, &lineage.sink))
}

/// That folder's name.
pub(crate) fn own_folder(lineage: &str, sink: &str) -> String {
    format!("{:016x}", xxh3_64(format!("{lineage}\n{sink}").as_bytes()))
}

/// The folder of one run. Numbers have a width, so that names sort as claims do.
pub(crate) fn run_folder(root: &str, lineage: &Lineage, claim: u64) -> String {
    format!("{}/{claim:020}", folder(root, lineage))
}

/// Which claim's file this is.
pub(crate) fn claim_of(path: &str) -> Option<u64> {
    path.split('/').nth(2)?.parse().ok()
}

/// The folders of a partition, each ending with a slash. None at all where a value is too long for a
/// folder's name.
pub(crate) fn partition_folders(values: &Values) -> String {
    let mut folders = String::new();
    for (column, value) in values {
        let value = value.as_deref().map_or_else(|| NULL_PARTITION.to_owned(), encoded);
        let folder = format!("{}={value}", encoded(column));
        if folder.len() > LONGEST_NAME {
            return String::new();
        }
        folders.push_str(&folder);
        folders.push('/');
    }
    if folders.len() > LONGEST_FOLDERS { String::new() } else { folders }
}

/// Letters, digits and what is harmless in names everywhere; the rest percent-encoded.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'-' | b'_' | b'.' => out.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// This run's files that are not known to be committed. Names say which run made them, but not for
/// which epoch: a writer learns that only when it prepares.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registry {
    entries: Arc<Mutex<Vec<Entry>>>,
    numbers: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Entry {
    stream: String,
    path: String,
    lane: LaneId,
    /// `None` while the epoch is open.
    epoch: Option<Epoch>,
}

impl Registry {
    /// A number that no other file of this run has.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A file is about to be written.
    pub(crate) fn begin(&self, lane: LaneId, stream: &str, path: &str) {
        self.lock().push(Entry { stream: stream.to_owned(), path: path.to_owned(), lane, epoch: None });
    }

    /// What a lane has written since it last prepared belongs to this epoch.
    pub(crate) fn prepared(&self, lane: LaneId, epoch: Epoch) {
        for entry in self.lock().iter_mut().filter(|e| e.lane == lane && e.epoch.is_none()) {
            entry.epoch = Some(epoch);
        }
    }

    /// Everything up to this epoch is committed.
    pub(crate) fn committed(&self, epoch: Epoch) {
        self.lock().retain(|e| e.epoch.is_none_or(|of| of > epoch));
    }

    /// Takes out what belongs to this epoch, to one after it or to the open one, as streams and
    /// paths: what follows an epoch that is given up is never committed either.
    pub(crate) fn give_up(&self, epoch: Epoch) -> Vec<(String, String)> {
        let mut gone = Vec::new();
        self.lock().retain_mut(|entry| {
            let keep = entry.epoch.is_some_and(|of| of < epoch);
            if !keep {
                gone.push((std::mem::take(&mut entry.stream), std::mem::take(&mut entry.path)));
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
        let values = Values::from([("a b".to_owned(), Some("x/=%".to_owned())), ("c".to_owned(), None)]);
        let folders = partition_folders(&values);
        assert_eq!(folders, "a%20b=x%2F%3D%25/c=__HIVE_DEFAULT_PARTITION__/");
        assert_eq!(partition_folders(&Values::from([("a".to_owned(), Some("x".repeat(300)))])), "");
        let path = format!("{}/{folders}000001.parquet", run_folder(FOLDER, &lineage, 12));
        assert_eq!(claim_of(&path), Some(12));
        assert!(path.starts_with(&folder(FOLDER, &lineage)));
        assert_ne!(folder(WAITING, &lineage), folder(WAITING, &Lineage { sink: "other".into(), ..lineage }));
    }

    #[test]
    fn an_epoch_that_is_given_up_takes_the_open_one_along() {
        let registry = Registry::default();
        let lane = LaneId(0);
        registry.begin(lane, "s", "1");
        registry.prepared(lane, 1);
        registry.begin(lane, "s", "2");
        registry.prepared(lane, 2);
        registry.begin(lane, "s", "3");
        let gone: Vec<_> = registry.give_up(2).into_iter().map(|(_, path)| path).collect();
        assert_eq!(gone, ["2", "3"]);
        registry.committed(1);
        assert!(registry.give_up(1).is_empty());
    }
}
