//! Writing: staged files, renamed by the commit.
//!
//! A committed file is named after its epoch and lane, a staged one also after its claim. The last
//! epoch stands in the file `owner`, with lineage and claim.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use orbit_etl_core::{
    CheckpointRecord, CommitMode, Committable, Committed, Context, Discard, Epoch, Error, LaneId, Lineage,
    Prepared, Reject, Result, Sink, SinkSession, SinkWriter, StreamId, StreamInfo,
};
use serde_json::{Value, json};

use crate::{KeyValueLog, failed, line};

/// A writer stages its rows in pieces of this many bytes.
const PIECE: usize = 256 << 10;

#[async_trait]
impl Sink for KeyValueLog {
    fn commit_mode(&self) -> CommitMode {
        CommitMode::Staged
    }

    async fn open(&self, _cx: &Context, inputs: &[StreamInfo]) -> Result<Box<dyn SinkSession>> {
        let [input] = inputs else {
            return Err(Error::unsupported("a log directory holds one stream"));
        };
        let this = Self { schema: input.schema.clone(), ..self.clone() };
        orbit_etl_core::Connector::validate(&this)?;
        Ok(Box::new(Session { directory: this.directory, lineage: None }))
    }
}

struct Session {
    directory: PathBuf,
    lineage: Option<Lineage>,
}

/// What the target knows: lineage, claim, epoch.
struct Owner {
    lineage: String,
    claim: u64,
    epoch: Epoch,
}

impl Session {
    fn owner(&self) -> Result<Option<Owner>> {
        let path = self.directory.join("owner");
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|e| failed("can't read", &path, e))?,
        };
        let owner = serde_json::from_str::<Value>(&text).ok().and_then(|v| {
            let lineage = v["lineage"].as_str()?.to_owned();
            Some(Owner { lineage, claim: v["claim"].as_u64()?, epoch: v["epoch"].as_u64()? })
        });
        owner.map(Some).ok_or_else(|| Error::data("the owner file is damaged").with("file", path.display()))
    }

    fn set_owner(&self, owner: &Owner) -> Result<()> {
        let text = json!({ "lineage": owner.lineage, "claim": owner.claim, "epoch": owner.epoch });
        let (next, path) = (self.directory.join("owner.next"), self.directory.join("owner"));
        write_synced(&next, text.to_string().as_bytes())?;
        fs::rename(&next, &path).map_err(|e| failed("can't rename", &path, e))?;
        self.sync()
    }

    fn sync(&self) -> Result<()> {
        let synced = File::open(&self.directory).and_then(|d| d.sync_all());
        synced.map_err(|e| failed("can't sync", &self.directory, e))
    }

    /// Removes the staged files for which this holds, by claim and epoch.
    fn remove(&self, unwanted: impl Fn(u64, Option<Epoch>, &str) -> bool) -> Result<()> {
        for entry in fs::read_dir(&self.directory).map_err(|e| failed("can't list", &self.directory, e))? {
            let path = entry.map_err(|e| failed("can't list", &self.directory, e))?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let Some((claim, epoch)) = staged_parts(name) else { continue };
            if unwanted(claim, epoch, name) {
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(failed("can't remove", &path, e));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl SinkSession for Session {
    async fn claim(&mut self, lineage: &Lineage) -> Result<Option<Committed>> {
        fs::create_dir_all(&self.directory).map_err(|e| failed("can't make", &self.directory, e))?;
        let found = self.owner()?;
        if let Some(owner) = &found {
            if owner.lineage == lineage.id && owner.claim > lineage.claim {
                return Err(Error::fenced("a newer run owns this directory").with("owner", owner.claim));
            }
        }
        if found.as_ref().is_none_or(|owner| owner.lineage == lineage.id) {
            let epoch = found.as_ref().map_or(0, |owner| owner.epoch);
            self.set_owner(&Owner { lineage: lineage.id.clone(), claim: lineage.claim, epoch })?;
            self.lineage = Some(lineage.clone());
        }
        Ok(found.map(|owner| Committed {
            lineage: owner.lineage,
            epoch: owner.epoch,
            checkpoint: None,
            rejects: Vec::new(),
        }))
    }

    async fn writer(&mut self, lane: LaneId) -> Result<Box<dyn SinkWriter>> {
        let lineage = self.lineage.as_ref().ok_or_else(|| Error::internal("not claimed"))?;
        let open = format!("staged-{}-open-{}", lineage.claim, lane.0);
        let directory = self.directory.clone();
        Ok(Box::new(Writer { directory, claim: lineage.claim, lane, open, file: None, text: String::new() }))
    }

    async fn commit(
        &mut self,
        epoch: Epoch,
        _checkpoint: &CheckpointRecord,
        staged: Vec<Committable>,
    ) -> Result<Vec<Reject>> {
        let lineage = self.lineage.clone().ok_or_else(|| Error::internal("not claimed"))?;
        let owner = self.owner()?.filter(|o| o.lineage == lineage.id && o.claim == lineage.claim);
        let owner = owner.ok_or_else(|| Error::fenced("another run has taken over this directory"))?;
        if epoch <= owner.epoch {
            return Ok(Vec::new());
        }
        for committable in &staged {
            let name = |key| committable.0.get(key).and_then(Value::as_str);
            let (Some(from), Some(to)) = (name("from"), name("to")) else {
                return Err(Error::config("a committable isn't one of this sink's"));
            };
            let (from, to) = (self.directory.join(from), self.directory.join(to));
            // Renamed already: the last commit stopped on its way.
            if from.exists() || !to.exists() {
                fs::rename(&from, &to).map_err(|e| failed("can't publish", &from, e))?;
            }
        }
        self.sync()?;
        self.set_owner(&Owner { epoch, ..owner })?;
        Ok(Vec::new())
    }

    async fn discard(&mut self, what: Discard) -> Result<()> {
        match what {
            Discard::Epoch { claim, epoch } => {
                self.remove(|c, e, _| c == claim && e.is_none_or(|e| e == epoch))
            }
            Discard::Older { claim, keep } => self.remove(|c, _, name| {
                c < claim && !keep.iter().any(|k| k.0.get("from").and_then(Value::as_str) == Some(name))
            }),
        }
    }
}

struct Writer {
    directory: PathBuf,
    claim: u64,
    lane: LaneId,
    /// The name of the file as long as its epoch is open.
    open: String,
    file: Option<File>,
    text: String,
}

impl Writer {
    fn flush(&mut self) -> Result<()> {
        let path = self.directory.join(&self.open);
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::create(&path).map_err(|e| failed("can't make", &path, e))?),
        };
        file.write_all(self.text.as_bytes()).map_err(|e| failed("can't write", &path, e))?;
        self.text.clear();
        Ok(())
    }
}

#[async_trait]
impl SinkWriter for Writer {
    async fn write(&mut self, _stream: StreamId, batch: RecordBatch) -> Result<()> {
        line::write(&batch, &mut self.text);
        if self.text.len() >= PIECE { self.flush() } else { Ok(()) }
    }

    async fn prepare(&mut self, epoch: Epoch) -> Result<Prepared> {
        if !self.text.is_empty() {
            self.flush()?;
        }
        let Some(file) = self.file.take() else { return Ok(Prepared::default()) };
        let (open, lane) = (self.directory.join(&self.open), self.lane.0);
        let from = format!("staged-{}-{epoch}-{lane}", self.claim);
        let path = self.directory.join(&from);
        file.sync_all().map_err(|e| failed("can't sync", &open, e))?;
        let bytes = file.metadata().map_or(0, |m| m.len());
        fs::rename(&open, &path).map_err(|e| failed("can't rename", &path, e))?;
        let synced = File::open(&self.directory).and_then(|d| d.sync_all());
        synced.map_err(|e| failed("can't sync", &self.directory, e))?;
        // Names sort by epoch, so that a reader's position stays right as files are added.
        let to = format!("{epoch:020}-{lane:06}.log");
        let committables = vec![Committable(json!({ "from": from, "to": to }))];
        Ok(Prepared { committables, rejects: Vec::new(), bytes })
    }
}

/// Claim and epoch in a staged file's name; an open one has no epoch yet.
fn staged_parts(name: &str) -> Option<(u64, Option<Epoch>)> {
    let mut parts = name.strip_prefix("staged-")?.split('-');
    let claim = parts.next()?.parse().ok()?;
    Some((claim, parts.next()?.parse().ok()))
}

fn write_synced(path: &std::path::Path, bytes: &[u8]) -> Result<()> {
    let written = File::create(path).and_then(|mut f| f.write_all(bytes).and_then(|()| f.sync_all()));
    written.map_err(|e| failed("can't write", path, e))
}
