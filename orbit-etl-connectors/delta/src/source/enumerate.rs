//! Which files, or which versions, are to be read.

use std::collections::VecDeque;
use std::time::Duration;

use deltalake::kernel::Action;
use deltalake::logstore::get_actions;
use futures::StreamExt;
use futures::stream::BoxStream;
use orbit_etl_core::{Context, Error, Position, Result, Split, SplitChange};
use serde_json::json;

use super::changes;
use super::read::Part;
use crate::error::from_delta;
use crate::table::{At, Place};

/// What to read, and whether it ends.
pub(crate) struct Enumerator {
    pub(crate) place: Place,
    pub(crate) at: At,
    pub(crate) changes: bool,
    /// The first version whose changes are read.
    pub(crate) first: u64,
    pub(crate) follow: bool,
    pub(crate) poll: Duration,
}

struct State {
    enumerator: Enumerator,
    cx: Context,
    table: String,
    /// The next version to look at.
    next: u64,
    /// The last one that there is to look at, as far as is known.
    last: u64,
    /// Already made out.
    ready: VecDeque<SplitChange>,
}

impl Enumerator {
    pub(crate) async fn run(
        self,
        cx: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        let table = self.place.load(self.at).await?;
        let fail = |e| from_delta(&e, "list the table's files", &self.place);
        let state = table.snapshot().map_err(fail)?;
        let id = state.metadata().id().to_owned();
        let last = state.version();
        let mut ready = VecDeque::new();
        let next = match after {
            Some(after) => self.after(after, &id)?,
            None if self.changes => self.first,
            None => {
                let mut splits = Vec::new();
                for file in state.log_data().iter() {
                    let path = file.path().into_owned();
                    let bytes = u64::try_from(file.size()).ok();
                    splits.push(Part { table: id.clone(), version: last, path }.into_split(bytes));
                }
                // As they were added, as far as names tell; the log has no order.
                splits.sort_by(|a, b| a.id.cmp(&b.id));
                tell(&mut ready, splits, &id, last);
                last + 1
            }
        };
        let state = State { enumerator: self, cx: cx.clone(), table: id, next, last, ready };
        Ok(futures::stream::try_unfold(state, |mut state| async move {
            let change = state.step().await?;
            Ok(change.map(|change| (change, state)))
        })
        .boxed())
    }

    fn after(&self, after: &Position, table: &str) -> Result<u64> {
        let version = after.0.get("version").and_then(serde_json::Value::as_u64);
        let version = version.ok_or_else(|| Error::internal("the position isn't one of this source"))?;
        if after.0.get("table").and_then(serde_json::Value::as_str) != Some(table) {
            return Err(Error::new(
                orbit_etl_core::ErrorKind::Conflict,
                "the table was replaced by another one",
            )
            .retryable(false)
            .with("table", &self.place)
            .remedy("run the pipeline with a new state directory"));
        }
        Ok(version + 1)
    }
}

impl State {
    async fn step(&mut self) -> Result<Option<SplitChange>> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(Some(change));
            }
            if self.next <= self.last {
                let version = self.next;
                let splits = self.of_version(version).await?;
                tell(&mut self.ready, splits, &self.table, version);
                self.next += 1;
            } else if self.enumerator.follow {
                self.wait().await?;
            } else {
                return Ok(None);
            }
        }
    }

    /// Waits for a new version.
    async fn wait(&mut self) -> Result<()> {
        let place = &self.enumerator.place;
        let last = self.last;
        let newest = place.log_store().get_latest_version(last).await;
        self.last = newest.map_err(|e| from_delta(&e, "look for new versions", place))?;
        if self.last == last {
            tokio::select! {
                () = self.cx.cancellation().cancelled() => return Err(Error::cancelled()),
                () = tokio::time::sleep(self.enumerator.poll) => {}
            }
        }
        Ok(())
    }

    /// What one version brings.
    async fn of_version(&self, version: u64) -> Result<Vec<Split>> {
        if self.enumerator.changes {
            return Ok(vec![changes::split(&self.table, version)]);
        }
        let place = &self.enumerator.place;
        let fail = |e| from_delta(&e, "read the table's log", place).with("version", version);
        let entry = place.log_store().read_commit_entry(version).await.map_err(fail)?;
        let entry = entry.ok_or_else(|| {
            Error::not_found("the table's log no longer has this version")
                .with("table", place)
                .with("version", version)
                .remedy("read the table as a whole again, with `again: full`")
        })?;
        let mut splits = Vec::new();
        for action in get_actions(version, &entry).map_err(fail)? {
            match action {
                Action::Add(add) if add.data_change => {
                    let part = Part { table: self.table.clone(), version, path: add.path };
                    splits.push(part.into_split(u64::try_from(add.size).ok()));
                }
                Action::Remove(remove) if remove.data_change => {
                    return Err(Error::unsupported(
                        "a version took rows away, which can't be read as new rows",
                    )
                    .with("table", place)
                    .with("version", version)
                    .remedy(
                        "read the table's changes with `changes: true`, or all of it with `again: full`",
                    ));
                }
                Action::Metadata(_) if version > 0 => {
                    return Err(Error::schema("the table's columns or properties were changed")
                        .with("table", place)
                        .with("version", version)
                        .remedy("restart the pipeline with `again: full`"));
                }
                _ => {}
            }
        }
        Ok(splits)
    }
}

/// A version's splits all at once: its number is the enumerator's position.
fn tell(ready: &mut VecDeque<SplitChange>, splits: Vec<Split>, table: &str, version: u64) {
    let position = Position(json!({"table": table, "version": version}));
    ready.push_back(SplitChange { added: splits, revoked: Vec::new(), position });
}
