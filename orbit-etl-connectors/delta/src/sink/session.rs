//! One run's hold on its tables: claim, commit, discard.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion_execution::memory_pool::MemoryConsumer;
use deltalake::kernel::Action;
use deltalake::protocol::{DeltaOperation, SaveMode};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use orbit_etl_core::checkpoint::create_dir_durable;
use orbit_etl_core::fault::failpoint;
use orbit_etl_core::{
    CheckpointRecord, Committable, Committed, Context, Discard, Epoch, Error, ErrorKind, LaneId, Lineage,
    Reject, Result, SinkSession, SinkWriter, StreamInfo,
};

use super::commit::{actions, check, info, operation, wider};
use super::head::{Head, Ids, Written, write_entry};
use super::operate::{Operated, Operation};
use super::plan::StreamPlan;
use super::staged::{FOLDER, How, Registry, Staged, WAITING, claim_of, folder, run_folder};
use super::writer::{DeltaWriter, Route, Shared};
use super::{DeltaSink, Mode};
use crate::error::{from_delta, from_io, from_store};
use crate::table::Place;

/// How often a version may be lost to other writers before the commit gives up.
const ATTEMPTS: usize = 100;
/// The same for an operation, which reads the table each time.
const OPERATIONS: usize = 20;
/// How many tables are claimed at a time.
const TABLES_AT_ONCE: usize = 8;

pub(crate) struct DeltaSession {
    cx: Context,
    sink: DeltaSink,
    inputs: Vec<StreamInfo>,
    claimed: Option<Claimed>,
}

struct Claimed {
    lineage: Lineage,
    ids: Ids,
    shared: Arc<Shared>,
    routes: Vec<Route>,
    /// By the stream's name.
    heads: BTreeMap<String, Head>,
    /// Tables without rests of older runs, which their next commit tells.
    swept: HashSet<String>,
}

impl DeltaSession {
    pub(crate) fn new(cx: &Context, sink: &DeltaSink, inputs: &[StreamInfo]) -> Self {
        Self { cx: cx.clone(), sink: sink.clone(), inputs: inputs.to_vec(), claimed: None }
    }

    fn claimed(&mut self) -> Result<&mut Claimed> {
        self.claimed.as_mut().ok_or_else(|| Error::internal("the target was never claimed"))
    }

    /// Commits one epoch's files to one table.
    async fn commit_table(&mut self, stream: &str, epoch: Epoch, files: &[Staged]) -> Result<()> {
        let place = self.sink.place(stream)?;
        let how = match files.first() {
            Some(file) => file.how.clone(),
            None => self.how_by_config(stream),
        };
        self.find_head(stream, &place).await?;
        if how.is_add() {
            self.add(stream, &place, epoch, files).await
        } else {
            self.operate(stream, &place, epoch, &how, files).await?;
            // Whoever finds them later removes them.
            let paths: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
            if let Err(error) = delete(&place, paths).await {
                tracing::warn!(error = %error.report(), "staged rows are left behind");
            }
            Ok(())
        }
    }

    fn how_by_config(&self, stream: &str) -> How {
        self.inputs.iter().find(|input| input.name == stream).map_or(How::Add, |input| self.sink.how(input))
    }

    async fn find_head(&mut self, stream: &str, place: &Place) -> Result<()> {
        let Claimed { lineage, ids, heads, .. } = self.claimed()?;
        if !heads.contains_key(stream) {
            // A stream that this run doesn't have any more.
            let (head, _) = take_over(place, ids, lineage, None).await?;
            heads.insert(stream.to_owned(), head);
        }
        Ok(())
    }

    /// Names files in a table's log.
    async fn add(&mut self, stream: &str, place: &Place, epoch: Epoch, files: &[Staged]) -> Result<()> {
        let (mode, schema_mode) = (self.sink.mode, self.sink.schema_mode);
        let Claimed { lineage, ids, heads, swept, .. } = self.claimed()?;
        let Some(head) = heads.get_mut(stream) else { return Err(headless()) };
        let mut found = false;
        for _ in 0..ATTEMPTS {
            if !is_new(head, lineage, epoch, place).await? {
                return Ok(());
            }
            if mode == Mode::Overwrite && head.shape.is_append_only() {
                return Err(append_only(place));
            }
            check(&head.shape, place, files)?;
            if !found {
                let older = |file: &&Staged| claim_of(&file.path) != Some(lineage.claim);
                find(place, files.iter().filter(older)).await?;
                found = true;
            }
            let actions = actions(head, place, files, mode, schema_mode).await?;
            let info = info(lineage, Some(epoch), &actions, files);
            let mut txns = vec![ids.epoch(epoch)];
            if swept.contains(stream) {
                txns.push(ids.swept(lineage.claim));
            }
            failpoint("delta_before_commit");
            let operation = operation(mode, &head.shape);
            if head.write(actions, operation, info, txns).await? == Written::Done {
                failpoint("delta_after_commit");
                swept.remove(stream);
                head.checkpoint().await;
                return Ok(());
            }
        }
        Err(too_slow(place))
    }

    /// Runs an operation over files.
    async fn operate(
        &mut self,
        stream: &str,
        place: &Place,
        epoch: Epoch,
        how: &How,
        files: &[Staged],
    ) -> Result<()> {
        let (cx, schema_mode) = (self.cx.clone(), self.sink.schema_mode);
        let Claimed { lineage, ids, heads, swept, shared, .. } = self.claimed()?;
        let Some(head) = heads.get_mut(stream) else { return Err(headless()) };
        for _ in 0..OPERATIONS {
            if !is_new(head, lineage, epoch, place).await? {
                return Ok(());
            }
            if head.shape.is_append_only() {
                return Err(append_only(place));
            }
            check(&head.shape, place, files)?;
            find(place, files).await?;
            if let Some(columns) = wider(&head.shape, place, files, schema_mode)? {
                // The operation knows the table's own columns only. Nobody has to find the epoch here:
                // columns that are there already are not added again.
                let txns = vec![ids.claim(lineage.claim)];
                let info = info(lineage, None, &[], &[]);
                head.write(vec![columns], operation(Mode::Append, &head.shape), info, txns).await?;
                failpoint("delta_after_columns");
                continue;
            }
            let mut txns = vec![ids.epoch(epoch)];
            if swept.contains(stream) {
                txns.push(ids.swept(lineage.claim));
            }
            let mut info = info(lineage, Some(epoch), &[], &[]);
            info.insert("isBlindAppend".to_owned(), false.into());
            failpoint("delta_before_commit");
            let operation = Operation {
                cx: &cx,
                place,
                writing: &shared.properties,
                info: info.clone(),
                txns: txns.clone(),
            };
            let done = match operation.run(head, how, files).await? {
                Operated::Lost => false,
                Operated::Done => true,
                Operated::Nothing => {
                    let operation = self::operation(Mode::Append, &head.shape);
                    head.write(Vec::new(), operation, info, txns).await? == Written::Done
                }
            };
            if done {
                failpoint("delta_after_commit");
                swept.remove(stream);
                head.refresh().await?;
                head.checkpoint().await;
                return Ok(());
            }
        }
        Err(too_slow(place))
    }

    /// Removes what older runs have left in one table's folder: files that neither the log nor `keep`
    /// names.
    async fn sweep(&mut self, stream: &str, than: u64, keep: &HashSet<String>) -> Result<()> {
        let place = self.sink.place(stream)?;
        let Claimed { lineage, heads, swept, .. } = self.claimed()?;
        let from = heads.get(stream).and_then(|head| head.known.swept).unwrap_or(0);
        if from >= than {
            return Ok(());
        }
        let store = place.store();
        let fail = |e: object_store::Error| from_store(&e, "list the table's folder", &place);
        let mut rest = HashSet::new();
        for root in [FOLDER, WAITING] {
            // Rows that wait are few, so all are looked at: a run may stage some after it was swept.
            let from = if root == FOLDER { from } else { 0 };
            let offset = Path::from(run_folder(root, lineage, from));
            let all = store.list_with_offset(Some(&Path::from(folder(root, lineage))), &offset);
            let older: Vec<String> = all
                .map_ok(|file| file.location.to_string())
                .try_filter(|path| {
                    let older = claim_of(path).is_some_and(|claim| claim < than) && !keep.contains(path);
                    futures::future::ready(older)
                })
                .try_collect()
                .await
                .map_err(fail)?;
            rest.extend(older);
        }
        if !rest.is_empty()
            && let Some(table) = place.try_load().await?
        {
            let fail = |e| from_delta(&e, "list the table's files", &place);
            let state = table.snapshot().map_err(fail)?;
            for file in state.log_data().iter() {
                rest.remove(file.path().as_ref());
            }
            // Older versions still need what was replaced.
            let mut tombstones = state.all_tombstones(place.log_store());
            while let Some(tombstone) = tombstones.try_next().await.map_err(fail)? {
                rest.remove(tombstone.path().as_ref());
            }
        }
        delete(&place, rest).await?;
        if keep.is_empty() {
            swept.insert(stream.to_owned());
        }
        Ok(())
    }
}

#[async_trait]
impl SinkSession for DeltaSession {
    async fn claim(&mut self, lineage: &Lineage) -> Result<Option<Committed>> {
        let ids = Ids::new(lineage);
        let sink = &self.sink;
        let taken = futures::stream::iter(self.inputs.clone()).map(|input| {
            let ids = &ids;
            async move {
                let place = sink.place(&input.name)?;
                let (head, known) = take_over(&place, ids, lineage, Some((sink, &input))).await?;
                let how = sink.how(&input);
                if sink.mode != Mode::Append && head.shape.is_append_only() {
                    return Err(append_only(&place));
                }
                if let Some(root) = place.folder() {
                    let folder = root.join(run_folder(how.root(), lineage, lineage.claim));
                    create_dir_durable(&folder).map_err(|e| from_io(e, "make a folder", folder.display()))?;
                }
                let shape = Arc::clone(&head.shape);
                let plan = StreamPlan::new(&input.name, &input.schema, &shape, sink.schema_mode, how)
                    .map_err(|e| e.with("table", &place))?;
                Ok((head, known, Route { place, shape, plan: Arc::new(plan) }))
            }
        });
        let taken: Vec<_> = taken.buffered(TABLES_AT_ONCE).try_collect().await?;
        let shared = Shared {
            registry: Registry::default(),
            // Each sink stages in one way.
            run_folder: run_folder(self.sink.root(), lineage, lineage.claim),
            properties: self.sink.writer_properties()?,
            target_file_size: self.sink.target_file_size,
            // Each lane has a part of them.
            max_open_files: (self.sink.max_open_files / self.cx.parallelism()).max(1),
            schema_mode: self.sink.schema_mode,
        };
        let known = taken.iter().any(|(_, known, _)| *known);
        // A table that was idle is behind the others; each skips by itself what it has.
        let epoch = taken.iter().map(|(head, _, _)| head.known.epoch.unwrap_or(0)).min().unwrap_or(0);
        let mut claimed = Claimed {
            lineage: lineage.clone(),
            ids,
            shared: Arc::new(shared),
            routes: Vec::new(),
            heads: BTreeMap::new(),
            swept: HashSet::new(),
        };
        for (head, _, route) in taken {
            claimed.heads.insert(route.plan.name().to_owned(), head);
            claimed.routes.push(route);
        }
        self.claimed = Some(claimed);
        Ok(known.then(|| Committed {
            lineage: lineage.id.clone(),
            epoch,
            checkpoint: None,
            rejects: Vec::new(),
        }))
    }

    async fn writer(&mut self, lane: LaneId) -> Result<Box<dyn SinkWriter>> {
        let memory = MemoryConsumer::new(format!("{} (lane {})", self.cx.node(), lane.0))
            .with_can_spill(true)
            .register(self.cx.memory());
        let Claimed { shared, routes, .. } = self.claimed()?;
        Ok(Box::new(DeltaWriter::new(Arc::clone(shared), lane, routes.clone(), memory)))
    }

    async fn commit(
        &mut self,
        epoch: Epoch,
        _checkpoint: &CheckpointRecord,
        staged: Vec<Committable>,
    ) -> Result<Vec<Reject>> {
        let mut files: BTreeMap<String, Vec<Staged>> = BTreeMap::new();
        // An epoch without rows is recorded too, and an overwrite without rows leaves none.
        files.extend(self.inputs.iter().map(|input| (input.name.clone(), Vec::new())));
        for committable in staged {
            let file = Staged::from_committable(committable)?;
            files.entry(file.stream.clone()).or_default().push(file);
        }
        for (stream, files) in files {
            self.commit_table(&stream, epoch, &files).await?;
        }
        self.claimed()?.shared.registry.committed(epoch);
        Ok(Vec::new())
    }

    async fn discard(&mut self, what: Discard) -> Result<()> {
        match what {
            Discard::Epoch { claim, epoch } => {
                let Claimed { lineage, shared, .. } = self.claimed()?;
                // Another run's epochs can't be told apart; its files go all at once, as older.
                if claim != lineage.claim {
                    return Ok(());
                }
                let mut gone: BTreeMap<String, Vec<String>> = BTreeMap::new();
                for (stream, path) in shared.registry.give_up(epoch) {
                    gone.entry(stream).or_default().push(path);
                }
                for (stream, paths) in gone {
                    delete(&self.sink.place(&stream)?, paths).await?;
                }
                Ok(())
            }
            Discard::Older { claim, keep } => {
                let keep = keep
                    .into_iter()
                    .map(|committable| Ok(Staged::from_committable(committable)?.path))
                    .collect::<Result<HashSet<_>>>()?;
                for input in self.inputs.clone() {
                    self.sweep(&input.name, claim, &keep).await?;
                }
                Ok(())
            }
        }
    }
}

/// Writes the claim into a table's log; makes the table, if there is none and `new` says how. Also says
/// whether the lineage was there before.
async fn take_over(
    place: &Place,
    ids: &Ids,
    lineage: &Lineage,
    new: Option<(&DeltaSink, &StreamInfo)>,
) -> Result<(Head, bool)> {
    for _ in 0..ATTEMPTS {
        let Some(mut head) = Head::load(place, ids).await? else {
            let Some((sink, input)) = new else { return Err(crate::error::missing(place)) };
            let (actions, operation) = sink.new_table(input)?.into_actions(place);
            let txns = [ids.owner(), ids.claim(lineage.claim)];
            write_entry(place, 0, actions, operation, info(lineage, None, &[], &[]), &txns).await?;
            failpoint("delta_after_create");
            // Known now, but not from before: unless somebody else has made it in this moment.
            match Head::load(place, ids).await? {
                Some(head) if head.version == 0 && head.known.claim == Some(lineage.claim) => {
                    return Ok((head, false));
                }
                _ => continue,
            }
        };
        if head.is_foreign() {
            return Err(Error::new(ErrorKind::Conflict, "another pipeline writes to the table through a sink of this name")
                .retryable(false)
                .with("table", place)
                .with("sink", &lineage.sink)
                .remedy("give the sink another name to append beside the other pipeline; a pipeline that has lost its state directory would add its rows a second time"));
        }
        let known = head.is_known();
        match head.known.claim {
            Some(claim) if claim > lineage.claim => return Err(fenced(place, claim)),
            Some(claim) if claim == lineage.claim => return Ok((head, known)),
            _ => {}
        }
        let mut txns = vec![ids.claim(lineage.claim)];
        if !known {
            txns.push(ids.owner());
        }
        let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
        let info = info(lineage, None, &[], &[]);
        if head.write(Vec::<Action>::new(), operation, info, txns).await? == Written::Done {
            return Ok((head, known));
        }
    }
    Err(too_slow(place))
}

/// Whether an epoch is yet to be committed, as of the table's newest version, and this run the one to do
/// it.
async fn is_new(head: &mut Head, lineage: &Lineage, epoch: Epoch, place: &Place) -> Result<bool> {
    head.refresh().await?;
    check_owner(head, lineage, place)?;
    Ok(head.known.epoch.is_none_or(|known| known < epoch))
}

/// Whether this run may still commit.
fn check_owner(head: &Head, lineage: &Lineage, place: &Place) -> Result<()> {
    match head.known.claim {
        Some(claim) if claim == lineage.claim => Ok(()),
        Some(claim) if claim > lineage.claim => Err(fenced(place, claim)),
        _ => Err(Error::new(ErrorKind::Conflict, "this run's claim is gone from the table")
            .retryable(false)
            .with("table", place)
            .remedy(
                "the table was restored or replaced: load again into a new one with a new state directory",
            )),
    }
}

fn fenced(place: &Place, claim: u64) -> Error {
    Error::fenced("a newer run has taken the table over").with("table", place).with("claim", claim)
}

fn too_slow(place: &Place) -> Error {
    Error::new(ErrorKind::Conflict, "other writers were always quicker").with("table", place)
}

fn headless() -> Error {
    Error::internal("a table's head is missing")
}

fn append_only(place: &Place) -> Error {
    Error::config("the table only takes appended rows")
        .with("table", place)
        .remedy("use `mode: append`, or unset the table's property delta.appendOnly")
}

/// Makes sure that staged files are still there: other tools may have cleaned up since.
async fn find(place: &Place, files: impl IntoIterator<Item = &Staged>) -> Result<()> {
    let store = place.store();
    for file in files {
        let path = Path::parse(&file.path)
            .map_err(|e| Error::internal("a committable's path can't be read").caused_by(e))?;
        match store.head(&path).await {
            Ok(_) => {}
            Err(object_store::Error::NotFound { .. }) => {
                return Err(Error::not_found("a staged data file is gone")
                    .with("table", place)
                    .with("file", &file.path)
                    .remedy("load again into a new table with a new state directory, and let other tools' vacuum keep files for longer than a pipeline stands still"));
            }
            Err(error) => return Err(from_store(&error, "look for a staged data file", place)),
        }
    }
    Ok(())
}

/// Removes files; what is missing is gone.
async fn delete(place: &Place, paths: impl IntoIterator<Item = String>) -> Result<()> {
    let store = place.store();
    for path in paths {
        let Ok(path) = Path::parse(path) else { continue };
        match store.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(from_store(&error, "remove a data file", place)),
        }
    }
    Ok(())
}
