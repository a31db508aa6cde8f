//! The newest version of a table, as far as a sink has to know it, and the way to the next one.
//!
//! What a sink has done to a table stands in the log itself, as application transactions:
//!
//! | app id | version |
//! |---|---|
//! | `orbit/<sink>` | a hash of the lineage: whose sink of this name may write here |
//! | `orbit/<sink>/<lineage>/claim` | the newest claim's number |
//! | `orbit/<sink>/<lineage>/epoch` | the last epoch committed |
//! | `orbit/<sink>/<lineage>/swept` | nothing is left of claims below this |
//!
//! A commit is written as version *n + 1* if that doesn't exist, after these were read as of *n*: so an
//! older run that wakes up late finds the newer claim, or loses the race for the version and finds it
//! then. They carry no time, so no log cleanup removes them; a table that is to forget transactions after a
//! time is refused before that.

use std::collections::HashMap;
use std::sync::Arc;

use deltalake::DeltaTable;
use deltalake::kernel::transaction::{CommitData, TransactionError};
use deltalake::kernel::{Action, Transaction};
use deltalake::logstore::{CommitOrBytes, commit_uri_from_version, get_actions};
use deltalake::protocol::DeltaOperation;
use object_store::{ObjectMeta, ObjectStoreExt as _};
use orbit_etl_core::{Error, ErrorKind, Lineage, Result};
use serde_json::Value;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::shape::Shape;
use crate::error::{from_delta, from_store, from_transaction};
use crate::table::Place;

/// The app ids of one lineage's use of one sink, and what the owner's must say.
#[derive(Debug, Clone)]
pub(crate) struct Ids {
    owner: String,
    claim: String,
    epoch: String,
    swept: String,
    lineage: i64,
}

impl Ids {
    pub(crate) fn new(lineage: &Lineage) -> Self {
        let own = format!("orbit/{}/{}", lineage.sink, lineage.id);
        Self {
            owner: format!("orbit/{}", lineage.sink),
            claim: format!("{own}/claim"),
            epoch: format!("{own}/epoch"),
            swept: format!("{own}/swept"),
            lineage: i64::try_from(xxh3_64(lineage.id.as_bytes()) >> 1).unwrap_or(i64::MAX),
        }
    }

    pub(crate) fn owner(&self) -> Transaction {
        Transaction::new(&self.owner, self.lineage)
    }

    pub(crate) fn claim(&self, claim: u64) -> Transaction {
        Transaction::new(&self.claim, signed(claim))
    }

    pub(crate) fn epoch(&self, epoch: u64) -> Transaction {
        Transaction::new(&self.epoch, signed(epoch))
    }

    pub(crate) fn swept(&self, claim: u64) -> Transaction {
        Transaction::new(&self.swept, signed(claim))
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What the log says of a lineage's use of a sink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Known {
    owner: Option<i64>,
    pub(crate) claim: Option<u64>,
    pub(crate) epoch: Option<u64>,
    pub(crate) swept: Option<u64>,
}

/// The newest version of a table.
#[derive(Debug)]
pub(crate) struct Head {
    place: Place,
    ids: Ids,
    pub(crate) version: u64,
    pub(crate) shape: Arc<Shape>,
    pub(crate) known: Known,
    /// The newest commit's file. Another one under its name is another table's.
    entry: Option<ObjectMeta>,
}

/// What became of an attempt to write the next version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    Done,
    /// Somebody else was quicker: look again.
    Lost,
}

impl Head {
    /// The head of a table; `None` if there is no table.
    pub(crate) async fn load(place: &Place, ids: &Ids) -> Result<Option<Self>> {
        match place.try_load().await? {
            Some(table) => Self::of(place, ids, &table).await.map(Some),
            None => Ok(None),
        }
    }

    async fn of(place: &Place, ids: &Ids, table: &DeltaTable) -> Result<Self> {
        let shape = Arc::new(Shape::of(table, place)?);
        let fail = |e| from_delta(&e, "read the table's log", place);
        let state = table.snapshot().map_err(fail)?;
        let mut found = [None; 4];
        for (found, id) in found.iter_mut().zip([&ids.owner, &ids.claim, &ids.epoch, &ids.swept]) {
            *found = state.transaction_version(place.log_store(), id).await.map_err(fail)?;
        }
        let [owner, claim, epoch, swept] = found;
        let number = |found: Option<i64>| found.and_then(|n| u64::try_from(n).ok());
        let known = Known { owner, claim: number(claim), epoch: number(epoch), swept: number(swept) };
        let version = state.version();
        let mut head = Self { place: place.clone(), ids: ids.clone(), version, shape, known, entry: None };
        head.entry = head.find_entry().await?;
        Ok(head)
    }

    /// Whether a sink of this name is another lineage's.
    pub(crate) fn is_foreign(&self) -> bool {
        self.known.owner.is_some_and(|owner| owner != self.ids.lineage)
    }

    /// Whether the lineage has been here before.
    pub(crate) fn is_known(&self) -> bool {
        self.known.owner == Some(self.ids.lineage)
    }

    /// Catches up with the log.
    ///
    /// # Errors
    /// `Conflict` if the table is another one now, `NotFound` if it is gone.
    pub(crate) async fn refresh(&mut self) -> Result<()> {
        let same = match (&self.entry, self.find_entry().await?) {
            (Some(before), Some(now)) => before.e_tag == now.e_tag && before.size == now.size,
            _ => false,
        };
        if !same {
            return self.reload().await;
        }
        let log = self.place.log_store().clone();
        let Ok(newest) = log.get_latest_version(self.version).await else { return self.reload().await };
        while self.version < newest {
            let next = self.version + 1;
            let fail = |e| from_delta(&e, "read the table's log", &self.place);
            let Some(bytes) = log.read_commit_entry(next).await.map_err(fail)? else {
                return self.reload().await;
            };
            let Ok(actions) = get_actions(next, &bytes) else { return self.reload().await };
            if actions.iter().any(|a| matches!(a, Action::Metadata(_) | Action::Protocol(_))) {
                return self.reload().await;
            }
            for action in &actions {
                if let Action::Txn(txn) = action {
                    self.note(txn);
                }
            }
            self.version = next;
        }
        self.entry = self.find_entry().await?;
        Ok(())
    }

    async fn reload(&mut self) -> Result<()> {
        let Some(now) = Self::load(&self.place, &self.ids).await? else {
            return Err(crate::error::missing(&self.place).remedy(
                "the table was there when this run began: restore it, or start with a new state directory",
            ));
        };
        if now.shape.metadata.id() != self.shape.metadata.id() || now.version < self.version {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the table was replaced by another one during the run",
            )
            .retryable(false)
            .with("table", &self.place)
            .remedy("load again into the new table with a new state directory"));
        }
        *self = now;
        Ok(())
    }

    /// Writes the next version.
    pub(crate) async fn write(
        &mut self,
        actions: Vec<Action>,
        operation: DeltaOperation,
        info: HashMap<String, Value>,
        txns: Vec<Transaction>,
    ) -> Result<Written> {
        let changed = actions.iter().any(|a| matches!(a, Action::Metadata(_) | Action::Protocol(_)));
        let next = self.version + 1;
        let written = write_entry(&self.place, next, actions, operation, info, &txns).await?;
        if written == Written::Done {
            if changed {
                self.reload().await?;
            } else {
                txns.iter().for_each(|txn| self.note(txn));
                self.version = next;
                self.entry = self.find_entry().await?;
            }
        }
        Ok(written)
    }

    /// Sums the log up, where the table's interval says so. Readers need it for speed alone, so a
    /// failure is no error.
    pub(crate) async fn checkpoint(&self) {
        if !self.version.is_multiple_of(self.shape.checkpoint_interval()) {
            return;
        }
        let mut table = DeltaTable::new(self.place.log_store().clone());
        let mut done = table.load_version(self.version).await;
        if done.is_ok() {
            done = deltalake::checkpoints::create_checkpoint(&table, None).await;
        }
        if done.is_ok() && self.shape.cleans_log() {
            done = deltalake::checkpoints::cleanup_metadata(&table, None).await.map(drop);
        }
        if let Err(error) = done {
            let error = from_delta(&error, "sum the table's log up", &self.place);
            tracing::warn!(error = %error.report(), "the table's log has no checkpoint at this version");
        }
    }

    fn note(&mut self, txn: &Transaction) {
        let number = u64::try_from(txn.version).ok();
        if txn.app_id == self.ids.owner {
            self.known.owner = Some(txn.version);
        } else if txn.app_id == self.ids.claim {
            self.known.claim = number;
        } else if txn.app_id == self.ids.epoch {
            self.known.epoch = number;
        } else if txn.app_id == self.ids.swept {
            self.known.swept = number;
        }
    }

    async fn find_entry(&self) -> Result<Option<ObjectMeta>> {
        let path = commit_uri_from_version(Some(self.version));
        match self.place.store().head(&path).await {
            Ok(entry) => Ok(Some(entry)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(from_store(&error, "read the table's log", &self.place)),
        }
    }
}

/// Writes one entry of the log, if there is none of that version.
pub(crate) async fn write_entry(
    place: &Place,
    version: u64,
    actions: Vec<Action>,
    operation: DeltaOperation,
    info: HashMap<String, Value>,
    txns: &[Transaction],
) -> Result<Written> {
    let fail = |e: TransactionError| from_transaction(&e, "commit to the table", place);
    let bytes = CommitData::new(actions, operation, info, txns.to_vec()).get_bytes().map_err(fail)?;
    let entry = CommitOrBytes::LogBytes(bytes);
    match place.log_store().write_commit_entry(version, entry, Uuid::now_v7()).await {
        Ok(()) => Ok(Written::Done),
        Err(TransactionError::VersionAlreadyExists(_)) => Ok(Written::Lost),
        Err(error) => Err(fail(error)),
    }
}
