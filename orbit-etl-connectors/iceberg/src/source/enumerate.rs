//! Which files are to be read.

use std::collections::VecDeque;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use iceberg::TableIdent;
use iceberg::spec::{DataContentType, DataFileFormat, ManifestStatus, Operation, SnapshotRef};
use orbit_etl_core::{Context, Error, Position, Result, Split, SplitChange};
use serde_json::{Value, json};

use super::read::{Part, Plans, not_parquet};
use super::view::{At, View};
use crate::catalog::Opened;
use crate::error::{from_iceberg, replaced};

/// What to read, and whether it ends.
pub(super) struct Enumerator {
    pub(super) opened: Opened,
    pub(super) ident: TableIdent,
    pub(super) at: At,
    /// Which of the table's schemas the run reads.
    pub(super) schema: i32,
    /// Only what was appended after this snapshot.
    pub(super) from: Option<i64>,
    pub(super) follow: bool,
    pub(super) poll: Duration,
    pub(super) plans: Plans,
}

struct State {
    enumerator: Enumerator,
    cx: Context,
    /// The table's own id.
    table: String,
    /// The last snapshot that was told of.
    last: Option<i64>,
    /// The snapshots that are to be told of next.
    next: VecDeque<SnapshotRef>,
    /// The table as of the last look.
    view: View,
    /// Already made out.
    ready: VecDeque<SplitChange>,
}

impl Enumerator {
    pub(super) async fn run(
        self,
        cx: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        let view = self.look().await?;
        let table = view.table_id();
        let newest = view.snapshot().map(|snapshot| snapshot.snapshot_id());
        let mut state = State {
            cx: cx.clone(),
            last: newest,
            next: VecDeque::new(),
            ready: VecDeque::new(),
            table,
            view,
            enumerator: self,
        };
        state.check()?;
        let since = match after {
            Some(after) => Some(state.after(after)?),
            None => state.enumerator.from.map(Some),
        };
        match since {
            Some(since) => {
                state.last = since;
                state.next = state.view.since(since)?.into();
            }
            None => state.tell_all().await?,
        }
        Ok(futures::stream::try_unfold(state, |mut state| async move {
            let change = state.step().await?;
            Ok(change.map(|change| (change, state)))
        })
        .boxed())
    }

    async fn look(&self) -> Result<View> {
        View::new(self.opened.load(&self.ident).await?, &self.at)
    }
}

impl State {
    /// The snapshot that a position stands for.
    fn after(&self, after: &Position) -> Result<Option<i64>> {
        if after.0.get("table").and_then(Value::as_str) != Some(self.table.as_str()) {
            return Err(replaced(&self.enumerator.ident));
        }
        match after.0.get("snapshot") {
            Some(Value::Null) => Ok(None),
            Some(Value::Number(id)) if id.is_i64() => Ok(id.as_i64()),
            _ => Err(Error::internal("the position isn't one of this source")),
        }
    }

    /// All files of the snapshot.
    async fn tell_all(&mut self) -> Result<()> {
        let mut splits = Vec::new();
        if let Some(id) = self.last {
            for task in self.enumerator.plans.of(&self.view, id, None).await?.values() {
                let part = Part {
                    table: self.table.clone(),
                    snapshot: id,
                    path: task.data_file_path.clone(),
                    bytes: task.file_size_in_bytes,
                    appended: false,
                };
                splits.push(part.into_split());
            }
        }
        // As they were written, as far as names tell.
        splits.sort_by(|a, b| a.id.cmp(&b.id));
        self.tell(splits);
        Ok(())
    }

    async fn step(&mut self) -> Result<Option<SplitChange>> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(Some(change));
            }
            if let Some(snapshot) = self.next.pop_front() {
                let splits = self.appended(&snapshot).await?;
                self.last = Some(snapshot.snapshot_id());
                self.tell(splits);
            } else if self.enumerator.follow {
                self.wait().await?;
            } else {
                return Ok(None);
            }
        }
    }

    /// Waits for a new snapshot.
    async fn wait(&mut self) -> Result<()> {
        self.view = self.enumerator.look().await?;
        if self.view.table_id() != self.table {
            return Err(replaced(&self.enumerator.ident));
        }
        self.check()?;
        self.next = self.view.since(self.last)?.into();
        if self.next.is_empty() {
            tokio::select! {
                () = self.cx.cancellation().cancelled() => return Err(Error::cancelled()),
                () = tokio::time::sleep(self.enumerator.poll) => {}
            }
        }
        Ok(())
    }

    /// Whether the columns are still those that the run was told of.
    fn check(&self) -> Result<()> {
        if self.view.schema().schema_id() == self.enumerator.schema {
            return Ok(());
        }
        Err(Error::schema("the table's columns were changed")
            .with("table", &self.enumerator.ident)
            .remedy("start the pipeline again: it goes on with the new columns"))
    }

    /// The files that one snapshot brought.
    async fn appended(&self, snapshot: &SnapshotRef) -> Result<Vec<Split>> {
        let ident = &self.enumerator.ident;
        let id = snapshot.snapshot_id();
        match snapshot.summary().operation {
            Operation::Append => {}
            // Files were rewritten, the rows are the same.
            Operation::Replace => return Ok(Vec::new()),
            Operation::Overwrite | Operation::Delete => {
                return Err(Error::unsupported("a snapshot took rows away, which can't be read as new rows")
                    .with("table", ident)
                    .with("snapshot", id)
                    .remedy("read the table as a whole again, with `again: full`"));
            }
        }
        let fail = |e| from_iceberg(&e, "read the table's manifests", ident).with("snapshot", id);
        let table = self.view.table();
        let list = table.manifest_list_reader(snapshot).load().await.map_err(fail)?;
        let mut splits = Vec::new();
        for manifest in list.entries().iter().filter(|manifest| manifest.added_snapshot_id == id) {
            let manifest = manifest.load_manifest(table.file_io()).await.map_err(fail)?;
            for entry in manifest.entries() {
                let added = entry.status() == ManifestStatus::Added
                    && entry.content_type() == DataContentType::Data
                    && entry.snapshot_id().is_none_or(|of| of == id);
                if !added {
                    continue;
                }
                if entry.file_format() != DataFileFormat::Parquet {
                    return Err(not_parquet(ident, entry.file_path()));
                }
                let part = Part {
                    table: self.table.clone(),
                    snapshot: id,
                    path: entry.file_path().to_owned(),
                    bytes: entry.file_size_in_bytes(),
                    appended: true,
                };
                splits.push(part.into_split());
            }
        }
        splits.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(splits)
    }

    /// A snapshot's splits all at once: its number is the enumerator's position.
    fn tell(&mut self, added: Vec<Split>) {
        let position = Position(json!({"table": self.table, "snapshot": self.last}));
        self.ready.push_back(SplitChange { added, revoked: Vec::new(), position });
    }
}
