//! Garbage collection.

use std::collections::BTreeSet;

use object_store::path::Path;

use super::body::{BlobName, Body, blob_claim};
use super::claim::Claim;
use super::entry::{Entry, entry_path};
use super::log::fenced;
use crate::error::Result;
use crate::planted::{Bug, pace, planted};

/// How many entries below the newest are kept, for people who want to see what happened.
const KEEP: u64 = 4;

/// How many entries one call removes, so that a long log is cleared bit by bit.
const ENTRIES_AT_ONCE: usize = 64;

impl Claim {
    /// Removes what no run can need any more: all but a few of the entries below this run's newest, the
    /// blobs that they name and that no newer checkpoint of this run does, and, once per claim, blobs that
    /// runs with lower claim numbers left behind.
    ///
    /// Best effort, bounded work, called now and then between epochs: never before every sink is claimed
    /// and, if there is an `Atomic` one, its checkpoint adopted. (As long as the state says that a target
    /// holds newer checkpoints, and none was adopted or committed, the call does nothing.) The newest entry and the blobs that it
    /// names are never touched, whatever other runs do at the same time.
    ///
    /// # Errors
    /// Fenced, with nothing removed; the store's, after which another call goes on.
    pub async fn collect(&mut self) -> Result<()> {
        self.check_fenced()?;
        if self.state().checkpoint_in.is_some() && !self.target_known {
            return Ok(());
        }
        let numbers = self.log.numbers().await?;
        if let Some(newest) = numbers.last().copied().filter(|newest| *newest > self.last) {
            return self.note_fence(Err(fenced(self.last, newest)));
        }
        self.collect_replaced().await?;
        let floor = match planted(Bug::NewestCollected) {
            true => self.last + 1,
            false => self.last.saturating_sub(pace(KEEP, 0)),
        };
        for number in numbers.into_iter().filter(|n| *n < floor).take(ENTRIES_AT_ONCE) {
            self.collect_entry(number).await?;
        }
        if self.unswept {
            self.sweep().await?;
            self.unswept = false;
        }
        Ok(())
    }

    /// What the next claimant may have to read, and what the next record takes over.
    fn named(&self, blob: &BlobName) -> bool {
        [&self.in_log, &self.in_target, &self.in_newest].iter().any(|set| set.contains(blob))
    }

    async fn collect_replaced(&mut self) -> Result<()> {
        let gone: Vec<BlobName> = self.replaced.iter().filter(|b| !self.named(b)).cloned().collect();
        self.delete_blobs(gone).await?;
        self.replaced.clear();
        Ok(())
    }

    /// Blobs first: an entry that is left over is collected again, a blob without one isn't.
    async fn collect_entry(&mut self, number: u64) -> Result<()> {
        let path = entry_path(&self.log.prefix, number);
        let blobs = match self.entries.get(&number) {
            Some(blobs) => blobs.clone(),
            None => self.blobs_of(number, &path).await?,
        };
        let gone = blobs.into_iter().filter(|b| !self.named(b)).collect();
        self.delete_blobs(gone).await?;
        self.log.store.delete(vec![path]).await?;
        self.entries.remove(&number);
        Ok(())
    }

    /// What an old entry names. One that can't be read names nothing: its blobs are left to the sweep
    /// of a later claim.
    async fn blobs_of(&self, number: u64, path: &Path) -> Result<BTreeSet<BlobName>> {
        let Some(bytes) = self.log.store.read(path).await? else { return Ok(BTreeSet::new()) };
        let entry = Entry::parse(&bytes, number, path);
        Ok(entry.and_then(|entry| Body::parse(&entry.body)).map(|body| body.blob_names()).unwrap_or_default())
    }

    /// Blobs of lower claim numbers that neither the claim nor what was adopted since names: no later
    /// checkpoint can name them, since a run takes over from its own claim alone.
    async fn sweep(&self) -> Result<()> {
        let names = self.log.store.names(&self.log.blobs_prefix()).await?;
        let old = |name: &BlobName| blob_claim(name).is_some_and(|claim| claim < self.number());
        let gone = names.into_iter().filter(|name| old(name) && !self.named(name)).collect();
        self.delete_blobs(gone).await
    }

    async fn delete_blobs(&self, names: Vec<BlobName>) -> Result<()> {
        self.log.store.delete(names.iter().map(|name| self.log.blob_path(name)).collect()).await
    }
}
