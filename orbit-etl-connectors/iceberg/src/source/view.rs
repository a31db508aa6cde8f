//! A table as of one snapshot.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::SchemaRef as ArrowSchema;
use chrono::{DateTime, Utc};
use iceberg::spec::{SchemaRef, SnapshotRef};
use iceberg::table::Table;
use orbit_etl_core::{Error, Result};

use crate::error::from_iceberg;
use crate::types;

/// Which snapshot is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum At {
    Newest,
    Snapshot(i64),
    Time(DateTime<Utc>),
    Reference(String),
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("the newest"),
            Self::Snapshot(id) => write!(f, "snapshot {id}"),
            Self::Time(time) => write!(f, "{time}"),
            Self::Reference(name) => write!(f, "reference {name}"),
        }
    }
}

/// How many runs one source is read by at a time.
const RUNS: usize = 8;

/// The view that each run was told the columns of. Its rows have just these, whatever becomes of the
/// table meanwhile.
#[derive(Debug, Clone, Default)]
pub(super) struct Announced(Arc<Mutex<Vec<(String, View)>>>);

impl Announced {
    pub(super) fn get(&self, run: &str) -> Option<View> {
        let views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        views.iter().find(|(of, _)| of == run).map(|(_, view)| view.clone())
    }

    pub(super) fn put(&self, run: &str, view: &View) {
        let mut views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        views.retain(|(of, _)| of != run);
        if views.len() >= RUNS {
            views.remove(0);
        }
        views.push((run.to_owned(), view.clone()));
    }
}

/// A table, and the snapshot of it that is read.
#[derive(Debug, Clone)]
pub(super) struct View {
    table: Table,
    snapshot: Option<SnapshotRef>,
    schema: SchemaRef,
}

impl View {
    /// # Errors
    /// `NotFound`: there is no such snapshot.
    pub(super) fn new(table: Table, at: &At) -> Result<Self> {
        let metadata = table.metadata();
        let found = match at {
            At::Newest => metadata.current_snapshot(),
            At::Snapshot(id) => metadata.snapshot_by_id(*id),
            At::Reference(name) => metadata.snapshot_for_ref(name),
            At::Time(time) => {
                let upto = time.timestamp_millis();
                let entry = metadata.history().iter().rev().find(|entry| entry.timestamp_ms() <= upto);
                entry.and_then(|entry| metadata.snapshot_by_id(entry.snapshot_id))
            }
        };
        let snapshot = found.cloned();
        if snapshot.is_none() && *at != At::Newest {
            return Err(Error::not_found("the table has no such snapshot, or it has expired")
                .with("table", table.identifier())
                .with("wanted", at)
                .with("newest", metadata.current_snapshot_id().unwrap_or_default())
                .remedy("name a snapshot that the table still has"));
        }
        let schema = match &snapshot {
            Some(snapshot) => snapshot
                .schema(metadata)
                .map_err(|e| from_iceberg(&e, "read the table's schema", table.identifier()))?,
            None => Arc::clone(metadata.current_schema()),
        };
        Ok(Self { table, snapshot, schema })
    }

    /// The same with the columns of another.
    pub(super) fn with_schema_of(mut self, other: &Self) -> Self {
        self.schema = Arc::clone(&other.schema);
        self
    }

    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// The table's own id.
    pub(super) fn table_id(&self) -> String {
        self.table.metadata().uuid().to_string()
    }

    /// None of a table that nobody has written to.
    pub(super) fn snapshot(&self) -> Option<&SnapshotRef> {
        self.snapshot.as_ref()
    }

    /// The columns that are read, whichever snapshot a file came with.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The columns that the table had with a snapshot.
    pub(super) fn schema_at(&self, snapshot: i64) -> Option<SchemaRef> {
        let metadata = self.table.metadata();
        metadata.snapshot_by_id(snapshot)?.schema(metadata).ok()
    }

    pub(super) fn arrow_schema(&self) -> Result<ArrowSchema> {
        types::to_arrow(&self.schema).map_err(|e| e.with("table", self.table.identifier()))
    }

    /// The snapshots after `from` up to this one, oldest first.
    ///
    /// # Errors
    /// `NotFound`: the snapshot isn't among this one's ancestors, or not any more.
    pub(super) fn since(&self, from: Option<i64>) -> Result<Vec<SnapshotRef>> {
        let mut between = Vec::new();
        let mut next = self.snapshot.clone();
        while let Some(snapshot) = next {
            if Some(snapshot.snapshot_id()) == from {
                between.reverse();
                return Ok(between);
            }
            next = match snapshot.parent_snapshot_id() {
                Some(parent) => {
                    let parent = self.table.metadata().snapshot_by_id(parent).cloned();
                    Some(parent.ok_or_else(|| self.expired(from))?)
                }
                None => None,
            };
            between.push(snapshot);
        }
        if from.is_some() {
            return Err(self.expired(from));
        }
        between.reverse();
        Ok(between)
    }

    fn expired(&self, from: Option<i64>) -> Error {
        Error::not_found(
            "what was appended since can't be told: the snapshots have expired, or the table was set back",
        )
        .with("table", self.table.identifier())
        .with("since snapshot", from.unwrap_or_default())
        .remedy("read the table as a whole again, with `again: full`")
    }
}
