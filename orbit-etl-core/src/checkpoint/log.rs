//! The log: numbered entries in an object store, each created once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use secrecy::{ExposeSecret, SecretString};
use url::Url;
use uuid::Uuid;

use super::body::{self, BlobName, Body};
use super::claim::Claim;
use super::durable::DurableLocal;
use super::entry::{Entry, Kind, entry_number, entry_path};
use super::state::State;
use super::store::{Created, Store};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::planted::{Bug, planted};

/// How often the newest entry may be collected between the listing and the reading, and how often
/// somebody else may take the number that a claim was to have.
const RACES: usize = 64;

/// How many blobs are read or written at the same time.
pub(super) const BLOBS_AT_ONCE: usize = 8;

/// The checkpoint log of one pipeline. A cheap clone.
///
/// Entries are `{prefix}/{number}.json`, blobs `{prefix}/blobs/{name}`; nothing else may live under
/// the prefix. The store must list consistently and create-if-absent atomically, as S3, GCS, Azure and
/// [`DurableLocal`] do.
#[derive(Debug, Clone)]
pub struct Log {
    pub(crate) store: Store,
    pub(crate) prefix: Path,
}

/// The newest entry of a log, read without taking the log over.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// The entry's number.
    pub number: u64,
    /// Whether it is a claim, which repeats the state before it.
    pub claim: bool,
    /// The run that wrote it.
    pub run: String,
    /// The pipeline that the log belongs to.
    pub pipeline: String,
    /// What it says.
    pub state: State,
}

impl Log {
    /// The log at `prefix` of a store. No request is made.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { store: Store(store), prefix }
    }

    /// The log in a local directory, which is made if it isn't there. What is written survives a
    /// power failure.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn local(dir: impl AsRef<std::path::Path>) -> Result<Self> {
        Ok(Self::new(Arc::new(DurableLocal::create(dir)?), Path::default()))
    }

    /// The log in a local directory, or at a URL of an object store with these options; what isn't given
    /// is taken from the environment.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config): a URL or options that no store of this build takes. As
    /// [`Log::local`].
    pub fn open(location: &str, options: &BTreeMap<String, SecretString>) -> Result<Self> {
        match location.split_once("://") {
            None => Self::local(location),
            Some(("file", local)) => Self::local(local),
            Some(_) => {
                let (store, prefix) = open_store(location, options)?;
                Ok(Self::new(store, prefix))
            }
        }
    }

    /// Writes the newest entry and what belongs to it into another log, which must be empty; `None` if
    /// there is none. A pipeline that runs is not disturbed.
    ///
    /// A copy is for another place, or for the day when the original is lost: a target that has gone on
    /// since refuses a pipeline that would go on from an older state.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict): the other log is not empty. As [`Log::peek`].
    pub async fn copy_to(&self, other: &Self) -> Result<Option<u64>> {
        if !other.numbers().await?.is_empty() {
            return Err(Error::new(ErrorKind::Conflict, "there is a state already where this one was to go")
                .retryable(false)
                .with("log", &other.prefix)
                .remedy("remove it first if it is not needed, or name another place"));
        }
        for _ in 0..RACES {
            let Some(entry) = self.newest().await? else { return Ok(None) };
            let parsed = self.parse_body(&entry.body, entry.number)?;
            let mut whole = true;
            for name in parsed.blob_names() {
                match self.store.read(&self.blob_path(&name)).await? {
                    Some(bytes) => other.store.put(&other.blob_path(&name), &bytes).await?,
                    None => whole = false,
                }
            }
            // The run has gone on and collected what this entry named, unless it is the newest still.
            if !whole && self.newest().await?.is_some_and(|newest| newest.number != entry.number) {
                continue;
            }
            if !whole {
                return Err(Error::data("the newest checkpoint lacks a part that it names")
                    .with("entry", entry_path(&self.prefix, entry.number)));
            }
            let path = entry_path(&other.prefix, entry.number);
            return match other.store.create(&path, &entry.render().into()).await? {
                Created::Mine => Ok(Some(entry.number)),
                Created::Foreign | Created::Gone => {
                    Err(Error::new(ErrorKind::Conflict, "somebody else writes to the same place")
                        .with("entry", path))
                }
            };
        }
        Err(Error::new(ErrorKind::Conflict, "the state changes faster than it can be copied")
            .with("log", &self.prefix)
            .remedy("try again, or stop the pipeline meanwhile"))
    }

    /// A log that is forgotten with its last clone: for tests, and for pipelines that keep no state.
    pub fn memory() -> Self {
        Self::new(Arc::new(InMemory::new()), Path::default())
    }

    /// Takes the log over for the run: writes the next entry, a claim that repeats the newest
    /// checkpoint with what is pending in it. From then on older runs are fenced: they find out with
    /// their next [`append`](Claim::append) or [`still_newest`](Claim::still_newest).
    ///
    /// `run` must be new with every call, also with a restart inside one process.
    ///
    /// # Errors
    /// * [`Fenced`](ErrorKind::Fenced): another run has claimed at the same time and is newer.
    /// * [`Config`](ErrorKind::Config): the log belongs to another pipeline.
    /// * [`Data`](ErrorKind::Data): the newest entry is damaged. No older one is used instead.
    /// * [`Unsupported`](ErrorKind::Unsupported): another version of Orbit wrote it.
    /// * The store's own. If the claim's outcome is unknown, nothing is lost: claim again.
    pub async fn claim(&self, run: &str, pipeline: &str) -> Result<Claim> {
        let lineage = Uuid::now_v7().to_string();
        let mut stale = None;
        for _ in 0..RACES {
            let newest = self.newest().await?;
            if let Some(newest) = &newest {
                self.check_owner(newest, pipeline)?;
            }
            let number = newest.as_ref().map_or(1, |entry| entry.number.saturating_add(1));
            let body = match &newest {
                Some(entry) => entry.body.clone(),
                None => {
                    let state = State { lineage: lineage.clone(), ..State::default() };
                    body::encode(&state, &BTreeSet::new(), |_| BlobName::new())?.json
                }
            };
            let body = match planted(Bug::StaleCopyOnClaimRetry) {
                true => stale.get_or_insert(body).clone(),
                false => body,
            };
            let parsed = self.parse_body(&body, number - 1)?;
            let entry =
                Entry { number, kind: Kind::Claim, run: run.to_owned(), pipeline: pipeline.to_owned(), body };
            let path = entry_path(&self.prefix, number);
            match self.store.create(&path, &entry.render().into()).await? {
                Created::Mine => {}
                // Not fenced: whoever was faster is older than the next number.
                Created::Foreign | Created::Gone => continue,
            }
            if !planted(Bug::NoListAfterClaim) {
                self.check_newest(number).await?;
            }
            // Only now can nobody collect what the claim names.
            let blobs = parsed.blob_names();
            let state = self.resolve_as(parsed, number).await.with("entry", &path)?;
            return Ok(Claim::new(self.clone(), entry, newest.is_none(), state, blobs));
        }
        Err(Error::new(ErrorKind::Conflict, "too many runs claim the checkpoint log at the same time")
            .with("log", &self.prefix)
            .remedy("run one instance of the pipeline"))
    }

    /// Reads the newest entry and leaves the log as it is; `None` if it is empty. A pipeline that runs
    /// is not disturbed.
    ///
    /// # Errors
    /// As [`Log::claim`].
    pub async fn peek(&self) -> Result<Option<Head>> {
        let mut last = None;
        for _ in 0..RACES {
            let Some(entry) = self.newest().await? else { return Ok(None) };
            if last.as_ref().is_some_and(|(number, _)| *number == entry.number) {
                break;
            }
            let number = entry.number;
            let parsed = self.parse_body(&entry.body, number)?;
            match self.resolve(parsed).await {
                Ok(state) => {
                    return Ok(Some(Head {
                        number,
                        claim: entry.kind == Kind::Claim,
                        run: entry.run,
                        pipeline: entry.pipeline,
                        state,
                    }));
                }
                // The run has gone on and collected what this entry named, unless it is the newest
                // still.
                Err(error) => {
                    let path = entry_path(&self.prefix, number);
                    last = Some((number, error.with("entry", path)));
                }
            }
        }
        match last {
            Some((_, error)) => Err(error),
            None => Ok(None),
        }
    }

    /// The newest entry, sound and whole.
    pub(super) async fn newest(&self) -> Result<Option<Entry>> {
        for _ in 0..RACES {
            let Some(number) = self.numbers().await?.last().copied() else { return Ok(None) };
            let path = entry_path(&self.prefix, number);
            // Gone between list and read: there is a newer one now.
            if let Some(bytes) = self.store.read(&path).await? {
                return Entry::parse(&bytes, number, &path).map(Some);
            }
        }
        Err(Error::new(ErrorKind::Conflict, "the newest entry of the checkpoint log is listed but not there")
            .with("log", &self.prefix)
            .remedy("keep checkpoints in a store that lists consistently"))
    }

    /// The numbers of all entries, ascending.
    pub(super) async fn numbers(&self) -> Result<Vec<u64>> {
        let names = self.store.names(&self.prefix).await?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| entry_number(name)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// That `number`, which is one's own, is the newest.
    pub(super) async fn check_newest(&self, number: u64) -> Result<()> {
        let newest = self.numbers().await?.last().copied().unwrap_or(0);
        match newest.cmp(&number) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(fenced(number, newest)),
            std::cmp::Ordering::Less => {
                Err(Error::new(ErrorKind::Conflict, "the checkpoint log has lost its newest entry")
                    .retryable(false)
                    .with("entry", entry_path(&self.prefix, number))
                    .remedy("leave the state directory alone while the pipeline runs"))
            }
        }
    }

    fn check_owner(&self, newest: &Entry, pipeline: &str) -> Result<()> {
        if newest.pipeline == pipeline {
            return Ok(());
        }
        Err(Error::config("the checkpoint log belongs to another pipeline")
            .with("log", &self.prefix)
            .with("its pipeline", &newest.pipeline)
            .with("pipeline", pipeline)
            .remedy("give each pipeline a state directory of its own, and keep a pipeline's name"))
    }

    fn parse_body(&self, json: &[u8], number: u64) -> Result<Body<'static>> {
        Body::parse(json).with("entry", entry_path(&self.prefix, number))
    }

    /// Reads the blobs that a body names, and puts the state together.
    pub(super) async fn resolve(&self, body: Body<'static>) -> Result<State> {
        let names = body.blob_names();
        let blobs: HashMap<BlobName, Bytes> = futures::stream::iter(names)
            .map(|name| async move {
                let bytes = self.store.read(&self.blob_path(&name)).await?;
                Ok::<_, Error>(bytes.map(|bytes| (name, bytes)))
            })
            .buffer_unordered(BLOBS_AT_ONCE)
            .try_filter_map(|found| async { Ok(found) })
            .try_collect()
            .await?;
        body.into_state(&blobs)
    }

    /// [`Log::resolve`] for the run whose newest entry is `number`: a blob may be missing because a newer
    /// run has collected it.
    pub(super) async fn resolve_as(&self, body: Body<'static>, number: u64) -> Result<State> {
        match self.resolve(body).await {
            Ok(state) => Ok(state),
            Err(error) => Err(match self.check_newest(number).await {
                Err(fenced) if fenced.kind() == ErrorKind::Fenced => fenced,
                _ => error,
            }),
        }
    }

    pub(super) fn blobs_prefix(&self) -> Path {
        self.prefix.clone().join("blobs")
    }

    pub(super) fn blob_path(&self, name: &str) -> Path {
        self.blobs_prefix().join(name)
    }
}

fn open_store(url: &str, options: &BTreeMap<String, SecretString>) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let fail =
        |message: &str| Error::config(message).with("checkpoint", crate::spec::without_credentials(url));
    let parsed = Url::parse(url).map_err(|e| fail("the URL can't be read").caused_by(e))?;
    let from_environment = std::env::vars_os().filter_map(|(key, value)| {
        let key = key.into_string().ok()?.to_ascii_lowercase();
        let cloud = ["aws_", "google_", "azure_"].iter().any(|prefix| key.starts_with(prefix));
        Some((key, value.into_string().ok()?)).filter(|_| cloud)
    });
    let given = options.iter().map(|(key, value)| (key.clone(), value.expose_secret().to_owned()));
    object_store::parse_url_opts(&parsed, from_environment.chain(given))
        .map(|(store, path)| (Arc::from(store), path))
        .map_err(|_| {
            fail("the store of the checkpoints can't be set up")
                .remedy("check its options, and that the feature of the store (s3, gcs, azure) is on")
        })
}

pub(super) fn fenced(own: u64, newest: u64) -> Error {
    Error::fenced("a newer run of this pipeline has taken over")
        .with("own entry", own)
        .with("newest entry", newest)
        .remedy("nothing is lost: the newer run goes on; run one instance at a time to keep this one")
}
