//! One run's hold on a target: claim, commit, discard.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion_execution::memory_pool::MemoryConsumer;
use orbit_etl_core::fault::failpoint;
use orbit_etl_core::{
    CheckpointRecord, Committable, Committed, Context, Discard, Epoch, Error, LaneId, Lineage, Reject,
    Result, SinkSession, SinkWriter,
};

use super::Mode;
use super::encode::EncodeOptions;
use super::layout::{LONGEST_NAME, ManifestName, Names, PRIVATE, all_manifests, claim_of};
use super::manifest::{Manifest, Staged, from_json, to_json};
use super::place::Place;
use super::plan::StreamPlan;
use super::staged::Registry;
use super::writer::{FilesWriter, Shared};

/// A run's last file, for the length of its name.
const MOST_FILES: u64 = 999_999_999;

/// What a session writes, and how.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) place: Place,
    pub(crate) mode: Mode,
    pub(crate) options: EncodeOptions,
    pub(crate) partition_by: Vec<String>,
    pub(crate) target_file_size: u64,
    pub(crate) max_open_files: usize,
    pub(crate) streams: Vec<Arc<StreamPlan>>,
}

pub(crate) struct FilesSession {
    cx: Context,
    setup: Setup,
    claimed: Option<Claimed>,
}

struct Claimed {
    lineage: Lineage,
    shared: Arc<Shared>,
    newest: Option<Epoch>,
}

impl FilesSession {
    pub(crate) fn new(cx: &Context, setup: Setup) -> Self {
        Self { cx: cx.clone(), setup, claimed: None }
    }

    fn claimed(&mut self) -> Result<&mut Claimed> {
        self.claimed.as_mut().ok_or_else(|| Error::internal("the target was never claimed"))
    }

    /// The epochs that this lineage has published, in ascending order. Reads names, no manifest.
    async fn published(&self, names: &Names) -> Result<Vec<Epoch>> {
        let files = self.setup.place.list(&names.manifests()).await?;
        let mut epochs: Vec<Epoch> =
            files.iter().filter_map(|file| ManifestName::parse(file)).map(|name| name.epoch).collect();
        epochs.sort_unstable();
        Ok(epochs)
    }

    /// Another pipeline's manifests that stand in the way. One that appends under another sink
    /// name does not.
    async fn stranger(&self, lineage: &Lineage) -> Result<Option<Committed>> {
        let files = self.setup.place.list(&all_manifests()).await?;
        let all = files.iter().filter_map(|file| ManifestName::parse(file));
        let overwrites = self.setup.mode == Mode::Overwrite;
        let newest = all
            .filter(|name| overwrites || name.sink == lineage.sink)
            .max_by(|a, b| (a.sink == lineage.sink, a.epoch).cmp(&(b.sink == lineage.sink, b.epoch)));
        match newest {
            None => Ok(None),
            Some(name) if name.lineage == lineage.id => Err(Error::config(
                "another sink of this pipeline has published into the directory that this one overwrites",
            )
            .with("sink", name.sink)
            .with("target", self.setup.place.name(""))
            .remedy("give the sink its old name back, or use another directory")),
            Some(name) => Ok(Some(Committed {
                lineage: name.lineage,
                epoch: name.epoch,
                checkpoint: None,
                rejects: Vec::new(),
            })),
        }
    }

    /// The claims that the target knows, those of older runs. Fails if there is one of a newer run.
    async fn claims(&self, names: &Names, own: u64) -> Result<Vec<String>> {
        let claims = self.setup.place.list(&names.claims()).await?;
        if let Some(newer) = claims.iter().filter_map(|path| claim_of(path)).find(|&claim| claim > own) {
            return Err(Error::fenced("a newer run has taken the target over")
                .with("target", self.setup.place.name(""))
                .with("claim", newer));
        }
        Ok(claims)
    }

    async fn manifest(&self, path: &str) -> Result<Option<Manifest>> {
        match self.setup.place.read(path).await? {
            Some(bytes) => from_json(&bytes, &self.setup.place.name(path)).map(Some),
            None => Ok(None),
        }
    }

    /// Removes what an epoch has replaced, if it did: the files of older generations' manifests,
    /// then these. They are the record of what is left to do, so that it can be taken up at any
    /// point.
    async fn remove_replaced(&self, names: &Names, by: Epoch) -> Result<()> {
        let Some(newest) = self.manifest(&names.manifest(by)).await? else { return Ok(()) };
        if newest.mode != Mode::Overwrite {
            return Ok(());
        }
        for epoch in self.published(names).await?.into_iter().filter(|&epoch| epoch < by) {
            let path = names.manifest(epoch);
            let Some(manifest) = self.manifest(&path).await? else { continue };
            // Rows that this generation appended before the sink was told to overwrite belong to it.
            if manifest.generation >= newest.generation {
                continue;
            }
            let files: Vec<String> = manifest.files.into_iter().map(|file| file.path).collect();
            if let Some(outside) = files.iter().find(|file| !is_below(file)) {
                return Err(Error::data("a manifest names a file outside of its target")
                    .with("manifest", self.setup.place.name(&path))
                    .with("file", outside));
            }
            self.setup.place.delete(files).await?;
            failpoint("files_before_replaced_manifest");
            self.setup.place.delete(vec![path]).await?;
            failpoint("files_after_replaced");
        }
        Ok(())
    }
}

#[async_trait]
impl SinkSession for FilesSession {
    async fn claim(&mut self, lineage: &Lineage) -> Result<Option<Committed>> {
        let names = Names::new(lineage);
        let older = self.claims(&names, lineage.claim).await?;
        let known = !older.is_empty() || !self.published(&names).await?.is_empty();
        if !known && let Some(stranger) = self.stranger(lineage).await? {
            return Ok(Some(stranger));
        }
        let extension = self.setup.options.format.extension(self.setup.options.compression);
        let longest_name = names.file(MOST_FILES, &extension).len();
        if longest_name > LONGEST_NAME {
            return Err(Error::config("the sink's name is too long to be part of file names")
                .with("sink", &lineage.sink)
                .remedy("give the sink a shorter name"));
        }
        let place = &self.setup.place;
        place.make_folders(vec![names.staged_folder(), names.manifests(), names.claims()]).await?;
        // The log fences too; this stops an older run earlier, and tells it why.
        place.touch(&names.claim()).await?;
        let mut older = self.claims(&names, lineage.claim).await?;
        older.retain(|path| *path != names.claim());
        place.delete(older).await?;

        let newest = self.published(&names).await?.last().copied();
        let shared = Shared {
            place: place.clone(),
            names,
            registry: Registry::default(),
            options: self.setup.options.clone(),
            partition_by: self.setup.partition_by.clone(),
            extension,
            target_file_size: self.setup.target_file_size,
            // Each lane has a part of them.
            max_open_files: (self.setup.max_open_files / self.cx.parallelism()).max(1),
            longest_folder: self.setup.place.longest_path().saturating_sub(longest_name),
        };
        self.claimed = Some(Claimed { lineage: lineage.clone(), shared: Arc::new(shared), newest });
        Ok((known || newest.is_some()).then(|| Committed {
            lineage: lineage.id.clone(),
            epoch: newest.unwrap_or(0),
            checkpoint: None,
            rejects: Vec::new(),
        }))
    }

    async fn writer(&mut self, lane: LaneId) -> Result<Box<dyn SinkWriter>> {
        let memory = MemoryConsumer::new(format!("{} (lane {})", self.cx.node(), lane.0))
            .with_can_spill(true)
            .register(self.cx.memory());
        let shared = Arc::clone(&self.claimed()?.shared);
        Ok(Box::new(FilesWriter::new(shared, lane, self.setup.streams.clone(), memory)))
    }

    async fn commit(
        &mut self,
        epoch: Epoch,
        checkpoint: &CheckpointRecord,
        staged: Vec<Committable>,
    ) -> Result<Vec<Reject>> {
        let Claimed { lineage, shared, newest } = self.claimed()?;
        let (lineage, shared, newest) = (lineage.clone(), Arc::clone(shared), *newest);
        let Shared { names, registry, place, .. } = shared.as_ref();
        self.claims(names, lineage.claim).await?;
        if newest.is_none_or(|newest| newest < epoch) {
            let files = staged.into_iter().map(Staged::from_committable).collect::<Result<Vec<_>>>()?;
            let manifest = Manifest {
                version: Manifest::VERSION,
                lineage: lineage.id,
                sink: lineage.sink,
                epoch,
                generation: checkpoint.generation,
                claim: lineage.claim,
                run: lineage.run,
                mode: self.setup.mode,
                rows: files.iter().map(|file| file.rows).sum(),
                bytes: files.iter().map(|file| file.bytes).sum(),
                files: files.iter().map(Into::into).collect(),
            };
            place.publish(files).await?;
            failpoint("files_before_manifest");
            let temporary = names.staged(registry.number(), "tmp");
            place.put(&names.manifest(epoch), &temporary, to_json(&manifest)?).await?;
            failpoint("files_after_manifest");
            self.claimed()?.newest = Some(epoch);
        }
        registry.committed(epoch);
        if self.setup.mode == Mode::Overwrite && newest.is_none_or(|newest| newest <= epoch) {
            self.remove_replaced(names, epoch).await?;
        }
        Ok(Vec::new())
    }

    async fn discard(&mut self, what: Discard) -> Result<()> {
        let Claimed { lineage, shared, newest } = self.claimed()?;
        let (claim, shared, newest) = (lineage.claim, Arc::clone(shared), *newest);
        let Shared { names, registry, place, .. } = shared.as_ref();
        match what {
            Discard::Epoch { claim: of, epoch } => {
                // Another run's epochs can't be told apart; its files go all at once, as older.
                if of == claim { place.discard(registry.give_up(epoch)).await } else { Ok(()) }
            }
            Discard::Older { claim: than, keep } => {
                let keep = keep
                    .into_iter()
                    .map(|committable| Ok(Staged::from_committable(committable)?.staged))
                    .collect::<Result<HashSet<_>>>()?;
                let mut staged = place.list(&names.staged_folder()).await?;
                staged.retain(|file| claim_of(file).is_some_and(|of| of < than) && !keep.contains(file));
                place.discard(staged).await?;
                match newest {
                    // A run may have died between its last manifest and the end of the removal.
                    Some(newest) if self.setup.mode == Mode::Overwrite => {
                        self.remove_replaced(names, newest).await
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

/// Whether a path from a manifest stays in the target, and out of the sink's own folder.
fn is_below(path: &str) -> bool {
    let mut parts = path.split('/');
    parts.clone().all(|part| !part.is_empty() && part != "." && part != "..") && parts.next() != Some(PRIVATE)
}
