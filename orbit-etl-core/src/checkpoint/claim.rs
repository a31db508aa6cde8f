//! A run's hold on the log.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt};

use super::body::{self, BlobName, Body, blob_name};
use super::entry::{Entry, Kind, entry_path};
use super::log::{BLOBS_AT_ONCE, Log, fenced};
use super::state::State;
use super::store::{Created, undecided};
use crate::error::{Error, ErrorKind, Result};
use crate::planted::{Bug, planted};
use crate::sink::CheckpointRecord;

/// The hold of one run on its pipeline's log, until a newer run claims.
///
/// Once a method has returned [`Fenced`](crate::ErrorKind::Fenced), so does every later one that would
/// write or delete: a fenced run leaves everything as it is. Dropping a claim lets nothing go; the
/// next run just claims.
#[derive(Debug)]
pub struct Claim {
    pub(super) log: Log,
    run: String,
    pipeline: String,
    number: u64,
    first: bool,
    state: State,
    /// The newest entry of the log that is this run's own.
    pub(super) last: u64,
    /// Whether an entry of this run's was sent and nobody knows if it is there.
    in_doubt: bool,
    /// The number of a newer run's entry, once one was seen.
    newer: Option<u64>,
    /// How many checkpoints were encoded: a part of the names of blobs.
    encoded: u64,
    /// The blobs of the newest own entry of the log.
    pub(super) in_log: BTreeSet<BlobName>,
    /// The blobs of the checkpoint that the target of an `Atomic` sink holds.
    pub(super) in_target: BTreeSet<BlobName>,
    /// The blobs of the checkpoint that was encoded last, from which the next one takes over.
    pub(super) in_newest: BTreeSet<BlobName>,
    /// The blobs of own entries, by number, so that collecting them needs no reading.
    pub(super) entries: BTreeMap<u64, BTreeSet<BlobName>>,
    /// Whether it is known what that target holds.
    pub(super) target_known: bool,
    /// Blobs that only checkpoints named that the target has replaced since.
    pub(super) replaced: BTreeSet<BlobName>,
    /// Whether blobs of older claims are still to be swept.
    pub(super) unswept: bool,
}

impl Claim {
    pub(super) fn new(log: Log, entry: Entry, first: bool, state: State, blobs: BTreeSet<BlobName>) -> Self {
        Self {
            log,
            number: entry.number,
            last: entry.number,
            run: entry.run,
            pipeline: entry.pipeline,
            first,
            state,
            in_doubt: false,
            newer: None,
            encoded: 0,
            entries: BTreeMap::from([(entry.number, blobs.clone())]),
            in_newest: blobs.clone(),
            in_log: blobs,
            in_target: BTreeSet::new(),
            target_known: false,
            replaced: BTreeSet::new(),
            unswept: true,
        }
    }

    /// The claim's number: the run's fencing token. Higher is newer.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The run that claimed.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// Whether the log was empty: the pipeline has never run with it.
    pub fn is_first(&self) -> bool {
        self.first
    }

    /// The state to go on from: that of the newest checkpoint as it was claimed or, later, adopted.
    /// [`append`](Self::append) doesn't change it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Lists the log once more. To be called after every sink is claimed, before anything is
    /// committed or discarded. An entry of this run's own whose answer was lost fences nobody.
    ///
    /// # Errors
    /// Fenced; the store's.
    pub async fn still_newest(&mut self) -> Result<()> {
        self.check_fenced()?;
        let checked = self.log.check_newest(self.last).await;
        if self.in_doubt && checked.as_ref().is_err_and(|e| e.kind() == ErrorKind::Fenced) {
            let newest = self.log.newest().await?;
            if newest
                .is_some_and(|entry| entry.number == self.last.saturating_add(1) && entry.run == self.run)
            {
                return Ok(());
            }
        }
        self.note_fence(checked)
    }

    /// Turns a state into a record for [`append`](Self::append) or for the commit of an `Atomic`
    /// sink. Parts that make it too large are written as blobs, durable before this returns; those that
    /// the record encoded or adopted last had in blobs already, unchanged, are not written again.
    ///
    /// Records are encoded in the order in which they become checkpoints.
    ///
    /// # Errors
    /// [`Resources`](ErrorKind::Resources) for a state that can't be brought below 512 KiB, or a
    /// full disk; [`Internal`](ErrorKind::Internal) for a state of another lineage; fenced; the
    /// store's. Nothing is part of a checkpoint yet: the epoch is still open.
    pub async fn encode(&mut self, state: &State) -> Result<CheckpointRecord> {
        self.check_fenced()?;
        if state.lineage != self.state.lineage {
            return Err(Error::internal("a checkpoint must keep the lineage of its log")
                .with("lineage", &self.state.lineage)
                .with("checkpoint", &state.lineage));
        }
        self.encoded += 1;
        let (claim, epoch, serial) = (self.number, state.epoch, self.encoded);
        let encoded = body::encode(state, &self.in_newest, |hash| blob_name(claim, epoch, serial, hash))?;
        let log = &self.log;
        futures::stream::iter(encoded.new)
            .map(|(blob, bytes)| async move { log.store.put(&log.blob_path(&blob.name), &bytes).await })
            .buffer_unordered(BLOBS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        self.in_newest = encoded.blobs;
        Ok(CheckpointRecord {
            epoch: state.epoch,
            generation: state.generation,
            last: state.complete,
            json: encoded.json,
        })
    }

    /// Writes a record as the log's next entry: the checkpoint. From the moment that this is called
    /// until it has returned `Ok`, only the next claim knows whether the checkpoint is there.
    ///
    /// After an error that [`is_undecided`](super::is_undecided) the same record may be appended again,
    /// no other.
    ///
    /// # Errors
    /// Fenced by a newer run, whether or not the entry was written; the store's.
    pub async fn append(&mut self, record: &CheckpointRecord) -> Result<()> {
        self.check_fenced()?;
        let blobs = Body::parse(&record.json)?.blob_names();
        let number = self.last.saturating_add(1);
        let entry = Entry {
            number,
            kind: Kind::Checkpoint,
            run: self.run.clone(),
            pipeline: self.pipeline.clone(),
            body: record.json.clone(),
        };
        let path = entry_path(&self.log.prefix, number);
        self.in_doubt = true;
        match self.log.store.create(&path, &entry.render().into()).await? {
            Created::Mine => {}
            Created::Foreign => {
                self.newer = Some(number);
                return Err(fenced(self.last, number));
            }
            Created::Gone => {
                // Collected, which only a newer entry allows: then the list shows that.
                let newest = self.log.numbers().await.map_err(undecided)?.last().copied();
                if let Some(newest) = newest.filter(|newest| *newest > self.last) {
                    self.newer = Some(newest);
                    return Err(fenced(self.last, newest));
                }
                return Err(undecided(
                    Error::new(ErrorKind::Conflict, "the store says that a log entry exists, and has none")
                        .with("path", path),
                ));
            }
        }
        let checked = match planted(Bug::NoListAfterCheckpoint) {
            true => Ok(()),
            false => self.log.check_newest(number).await,
        };
        self.note_fence(checked).map_err(|e| if e.kind() == ErrorKind::Fenced { e } else { undecided(e) })?;
        self.last = number;
        self.in_doubt = false;
        self.entries.insert(number, blobs.clone());
        self.in_log = blobs;
        Ok(())
    }

    /// Goes on from a record that the target of an `Atomic` sink holds and that is newer than the log's
    /// newest checkpoint. To be called after the sink's claim.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config) if the record is of another lineage; those of
    /// [`decode`](Self::decode).
    pub async fn adopt(&mut self, record: &CheckpointRecord) -> Result<()> {
        let body = Body::parse(&record.json)?;
        if body.lineage() != self.state.lineage {
            return Err(Error::config("the target holds checkpoints of another pipeline or state directory")
                .with("lineage", &self.state.lineage)
                .with("target's lineage", body.lineage())
                .remedy("use the state directory that the target was loaded with, or another target"));
        }
        let blobs = body.blob_names();
        self.state = self.log.resolve_as(body, self.last).await?;
        self.in_newest.clone_from(&blobs);
        self.in_target = blobs;
        self.target_known = true;
        Ok(())
    }

    /// Takes note that the target of an `Atomic` sink has committed a record, which so has replaced the
    /// one before it. [`collect`](Self::collect) then removes what only that one named.
    ///
    /// # Errors
    /// The record isn't one that [`encode`](Self::encode) made.
    pub fn committed(&mut self, record: &CheckpointRecord) -> Result<()> {
        let blobs = Body::parse(&record.json)?.blob_names();
        let before = std::mem::replace(&mut self.in_target, blobs);
        self.replaced.extend(before);
        self.target_known = true;
        Ok(())
    }

    /// The state that a record stands for; reads the blobs that it names.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for a record of another version of Orbit;
    /// [`Data`](ErrorKind::Data) for a damaged one; fenced, if it is
    /// damaged because a newer run has collected parts of it; the store's.
    pub async fn decode(&self, record: &CheckpointRecord) -> Result<State> {
        self.log.resolve_as(Body::parse(&record.json)?, self.last).await
    }

    /// That no newer run was seen.
    pub(super) fn check_fenced(&self) -> Result<()> {
        self.newer.map_or(Ok(()), |newer| Err(fenced(self.last, newer)))
    }

    pub(super) fn note_fence(&mut self, checked: Result<()>) -> Result<()> {
        if let Err(error) = &checked
            && error.kind() == ErrorKind::Fenced
        {
            self.newer = Some(error.context("newest entry").and_then(|n| n.parse().ok()).unwrap_or(u64::MAX));
        }
        checked
    }
}
