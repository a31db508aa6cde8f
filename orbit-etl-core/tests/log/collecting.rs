//! Garbage collection: what goes, and what must never go, whatever several runs do at once.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use orbit_etl_core::checkpoint::{Claim, Log, State};
use orbit_etl_core::{CheckpointRecord, Error, ErrorKind};
use serde_json::Value;

use super::faults::{Fault, On, no_answer, read};
use super::{checkpoint, groups, healthy, log_on, state_of, stores};

async fn names(store: &dyn ObjectStore, prefix: &str) -> BTreeSet<String> {
    let listed = store.list_with_delimiter(Some(&Path::from(prefix))).await.unwrap();
    listed.objects.iter().map(|object| object.location.filename().unwrap().to_owned()).collect()
}

/// One large operator, whose groups differ by `fill`.
fn filled(claim: &Claim, epoch: u64, fill: u8) -> State {
    let mut state = state_of(claim, epoch, 3);
    let mut groups = groups(3, 90_000);
    groups.groups.insert(0, vec![fill; 90_001]);
    state.operators.insert("window".into(), groups);
    state
}

#[tokio::test(start_paused = true)]
async fn old_entries_and_their_blobs_go_and_the_newest_stays_whole() {
    for (store, _dir) in stores() {
        let mut claim = log_on(&store).claim("a", "p").await.unwrap();
        for epoch in 1..=200 {
            let state = filled(&claim, epoch, epoch as u8);
            checkpoint(&mut claim, state).await.unwrap();
            if epoch % 10 == 0 {
                claim.collect().await.unwrap();
            }
        }
        let entries = names(&store.inner, "log").await;
        assert!(entries.len() < 10, "{entries:?}");
        assert!(entries.contains("00000000000000000201.json"));
        let blobs = names(&store.inner, "log/blobs").await;
        assert!(blobs.len() < 10, "{blobs:?}");
        let expected = filled(&claim, 200, 200);
        assert_eq!(healthy(&store).claim("b", "p").await.unwrap().state(), &expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_log_is_cleared_bit_by_bit() {
    let (store, _dir) = stores().remove(0);
    let mut claim = log_on(&store).claim("a", "p").await.unwrap();
    for epoch in 1..1_200 {
        let state = state_of(&claim, epoch, 0);
        checkpoint(&mut claim, state).await.unwrap();
    }
    let mut claim = log_on(&store).claim("b", "p").await.unwrap();
    assert_eq!((claim.number(), claim.state().epoch), (1_201, 1_199));
    for _ in 0..20 {
        claim.collect().await.unwrap();
    }
    assert!(names(&store.inner, "log").await.len() < 10);
}

#[tokio::test(start_paused = true)]
async fn a_claim_sweeps_what_older_runs_left_behind_and_nothing_of_newer_ones() {
    let (store, _dir) = stores().remove(0);
    let mut old = log_on(&store).claim("a", "p").await.unwrap();
    let state = filled(&old, 1, 1);
    checkpoint(&mut old, state).await.unwrap();
    let named = names(&store.inner, "log/blobs").await;
    // Blobs of a checkpoint that never came to be.
    old.encode(&filled(&old, 2, 2)).await.unwrap();
    let orphans = &names(&store.inner, "log/blobs").await - &named;
    assert!(!orphans.is_empty());

    let mut asleep = log_on(&store).claim("b", "p").await.unwrap();
    let mut new = log_on(&store).claim("c", "p").await.unwrap();
    new.encode(&filled(&new, 2, 3)).await.unwrap();
    let of_new = &(&names(&store.inner, "log/blobs").await - &named) - &orphans;
    assert_eq!(asleep.collect().await.unwrap_err().kind(), ErrorKind::Fenced);
    new.collect().await.unwrap();
    assert_eq!(names(&store.inner, "log/blobs").await, &named | &of_new);
}

#[tokio::test(start_paused = true)]
async fn a_failed_collection_is_made_up_for() {
    let mut whole = None;
    for passes in 0..8 {
        let (store, _dir) = stores().remove(0);
        let mut claim = log_on(&store).claim("a", "p").await.unwrap();
        for epoch in 1..=20 {
            let state = filled(&claim, epoch, epoch as u8);
            checkpoint(&mut claim, state).await.unwrap();
        }
        if passes > 0 {
            (1..passes).for_each(|_| store.plan(On::Delete, Fault::After(async {}.boxed())));
            store.plan(On::Delete, Fault::Dropped);
            assert_eq!(claim.collect().await.unwrap_err().kind(), ErrorKind::Unavailable);
            assert!(store.used_up());
        }
        claim.collect().await.unwrap();
        let left = (names(&store.inner, "log").await.len(), names(&store.inner, "log/blobs").await.len());
        assert!(left.0 < 10 && left.1 < 10, "{left:?}");
        assert_eq!(*whole.get_or_insert(left), left, "nothing is left over, whichever deletion failed");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_target_holds_stays_though_a_newer_record_was_made() {
    let (store, _dir) = stores().remove(0);
    let mut claim = log_on(&store).claim("a", "p").await.unwrap();
    let mut state = state_of(&claim, 0, 3);
    state.checkpoint_in = Some("pg".into());
    let mut state = checkpoint(&mut claim, state).await.unwrap();
    let mut held = None;
    // The first record's group 1 lives on in the second one, which the target holds; not in the third,
    // which it never gets.
    for (epoch, changed) in [(1, 0_u16), (2, 0), (3, 1)] {
        state.epoch = epoch;
        let operator = state.operators.entry("window".into()).or_insert_with(|| groups(3, 90_000));
        operator.groups.insert(changed, vec![100 + epoch as u8; 90_000]);
        let record = claim.encode(&state).await.unwrap();
        if epoch < 3 {
            claim.committed(&record).unwrap();
            held = Some((record, state.clone()));
        }
    }
    claim.collect().await.unwrap();
    let (record, state) = held.unwrap();
    let mut next = log_on(&store).claim("b", "p").await.unwrap();
    next.adopt(&record).await.unwrap();
    assert_eq!(next.state(), &state);
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_before_it_is_known_what_the_target_holds() {
    let (store, _dir) = stores().remove(0);
    let mut old = log_on(&store).claim("a", "p").await.unwrap();
    let mut state = state_of(&old, 0, 3);
    state.checkpoint_in = Some("pg".into());
    checkpoint(&mut old, state).await.unwrap();
    let mut state = filled(&old, 1, 1);
    state.checkpoint_in = Some("pg".into());
    let record = old.encode(&state).await.unwrap();
    old.committed(&record).unwrap();

    let mut new = log_on(&store).claim("b", "p").await.unwrap();
    new.collect().await.unwrap();
    new.adopt(&record).await.unwrap();
    new.collect().await.unwrap();
    assert_eq!(new.decode(&record).await.unwrap(), state);

    // What the target has replaced goes.
    let held = names(&store.inner, "log/blobs").await.len();
    for epoch in 2..30 {
        let mut state = filled(&new, epoch, epoch as u8);
        state.checkpoint_in = Some("pg".into());
        let record = new.encode(&state).await.unwrap();
        new.committed(&record).unwrap();
        new.collect().await.unwrap();
    }
    assert_eq!(names(&store.inner, "log/blobs").await.len(), held);
}

/// A store on which requests of several runs interleave at random, get lost or come late. After
/// every change the newest entry, and the target's checkpoint, must be whole.
struct Chaos {
    inner: InMemory,
    random: Mutex<u64>,
    /// The newest checkpoint of the target of an `Atomic` sink, under its owner's claim number.
    target: Mutex<(u64, Option<CheckpointRecord>)>,
    /// The highest epoch whose checkpoint was acknowledged.
    durable: AtomicU64,
    changes: AtomicU64,
    deletions: AtomicU64,
}

impl Chaos {
    fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            inner: InMemory::new(),
            random: Mutex::new(seed),
            target: Mutex::default(),
            durable: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            deletions: AtomicU64::new(0),
        })
    }

    /// Below `n`.
    fn roll(&self, n: u64) -> u64 {
        let mut random = self.random.lock().unwrap();
        *random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }

    async fn pause(&self, most: u64) {
        for _ in 0..self.roll(most) {
            tokio::task::yield_now().await;
        }
    }

    /// Nothing in here yields, so it sees one moment.
    async fn check(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let there = names(&self.inner, "log/blobs").await;
        let mut bodies = Vec::new();
        if let Some(newest) = names(&self.inner, "log").await.pop_last() {
            let entry: Value =
                serde_json::from_slice(&read(&self.inner, &format!("log/{newest}")).await).unwrap();
            bodies.push(entry["body"].clone());
        }
        if let Some(record) = &self.target.lock().unwrap().1 {
            bodies.push(serde_json::from_slice(&record.json).unwrap());
        }
        for body in bodies {
            let mut named = BTreeSet::new();
            blobs(&body, &mut named);
            let gone = &named - &there;
            assert!(gone.is_empty(), "named and gone: {gone:?}");
        }
    }
}

fn blobs(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(name) = fields.get("blob").and_then(|blob| blob["name"].as_str()) {
                found.insert(name.to_owned());
            }
            fields.values().for_each(|value| blobs(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| blobs(value, found)),
        _ => {}
    }
}

#[derive(Clone)]
struct Shared(Arc<Chaos>);

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chaos")
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chaos")
    }
}

impl Shared {
    /// Makes a change now, late or never, and answers or not.
    async fn change<T, F>(&self, change: impl FnOnce(Self) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send,
    {
        self.0.pause(6).await;
        match self.0.roll(30) {
            0 => Err(no_answer()),
            1 => {
                let _ = change(self.clone()).await;
                self.0.check().await;
                Err(no_answer())
            }
            2 => {
                let late = self.clone();
                tokio::spawn(async move {
                    late.0.pause(200).await;
                    let _ = change(late.clone()).await;
                    late.0.check().await;
                });
                Err(no_answer())
            }
            _ => {
                let done = change(self.clone()).await;
                self.0.check().await;
                self.0.pause(6).await;
                done
            }
        }
    }
}

#[async_trait]
impl ObjectStore for Shared {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let path = path.clone();
        self.change(|store| async move { store.0.inner.put_opts(&path, payload, options).await }).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.pause(6).await;
        if self.0.roll(40) == 0 { Err(no_answer()) } else { self.0.inner.get_opts(path, options).await }
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.0.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        paths
            .then(move |path| {
                let store = store.clone();
                async move {
                    let path = path?;
                    store.0.deletions.fetch_add(1, Ordering::Relaxed);
                    store
                        .change(|store| async move { store.0.inner.delete(&path).await.map(|()| path) })
                        .await
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.pause(6).await;
        let listed = self.0.inner.list_with_delimiter(prefix).await;
        self.0.pause(6).await;
        if self.0.roll(40) == 0 { Err(no_answer()) } else { listed }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.inner.copy_opts(from, to, options).await
    }
}

/// An instance that claims, works, collects, is killed and starts again.
async fn instance(store: Shared, name: u64, atomic: bool) {
    let log = Log::new(Arc::new(store.clone()), Path::from("log"));
    for start in 0..4 {
        let run = format!("{name}-{start}");
        if let Err(error) = one_run(&store.0, &log, &run, atomic).await {
            // Everything but damage may happen here.
            let harmless = [ErrorKind::Fenced, ErrorKind::Unavailable, ErrorKind::Conflict];
            assert!(harmless.contains(&error.kind()), "{}", error.report());
        }
        store.0.pause(40).await;
    }
}

async fn one_run(chaos: &Chaos, log: &Log, run: &str, atomic: bool) -> orbit_etl_core::Result<()> {
    let before = chaos.durable.load(Ordering::SeqCst);
    let mut claim = log.claim(run, "p").await?;
    chaos.pause(10).await;
    if atomic {
        let held = {
            let mut target = chaos.target.lock().unwrap();
            if target.0 > claim.number() {
                return Err(Error::fenced("by the target"));
            }
            target.0 = claim.number();
            target.1.clone()
        };
        if let Some(record) = held.filter(|record| record.epoch > claim.state().epoch) {
            claim.adopt(&record).await?;
        }
    }
    claim.still_newest().await?;
    let mut state = claim.state().clone();
    assert!(state.epoch >= before, "epoch {before} was durable, and {run} goes on from {}", state.epoch);
    if atomic && state.checkpoint_in.is_none() {
        state.checkpoint_in = Some("pg".into());
        let record = claim.encode(&state).await?;
        claim.append(&record).await?;
    }
    state.operators.entry("window".into()).or_insert_with(|| groups(4, 66_000));
    for _ in 0..chaos.roll(25) {
        match chaos.roll(10) {
            0..=5 => {
                state.epoch += 1;
                // Few contents, so that the same bytes come back in later epochs.
                let content = vec![chaos.roll(3) as u8; 66_000];
                let group = chaos.roll(4) as u16;
                state.operators.get_mut("window").unwrap().groups.insert(group, content);
                let record = claim.encode(&state).await?;
                chaos.pause(10).await;
                if atomic {
                    commit(chaos, &mut claim, &record)?;
                } else {
                    claim.append(&record).await?;
                }
                chaos.durable.fetch_max(state.epoch, Ordering::SeqCst);
            }
            6 => {
                // A collection that is dropped midway, its last request on its way or not.
                tokio::select! {
                    biased;
                    done = claim.collect() => ignore_store(done)?,
                    () = chaos.pause(60) => {}
                }
            }
            7 | 8 => ignore_store(claim.collect().await)?,
            _ => claim.still_newest().await?,
        }
    }
    Ok(())
}

/// One transaction of the target, whose last statement compares the owner.
fn commit(chaos: &Chaos, claim: &mut Claim, record: &CheckpointRecord) -> orbit_etl_core::Result<()> {
    {
        let mut target = chaos.target.lock().unwrap();
        if target.0 != claim.number() {
            return Err(Error::fenced("by the target"));
        }
        target.1 = Some(record.clone());
    }
    if chaos.roll(12) == 0 {
        return Err(Error::unavailable("the answer to COMMIT was lost"));
    }
    claim.committed(record)
}

fn ignore_store(done: orbit_etl_core::Result<()>) -> orbit_etl_core::Result<()> {
    done.or_else(|error| if error.kind() == ErrorKind::Unavailable { Ok(()) } else { Err(error) })
}

/// Histories per test.
const SEEDS: u64 = 40;

fn several_instances(atomic: bool) {
    let (mut changes, mut deletions, mut epochs) = (0, 0, 0);
    for seed in 0..SEEDS {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let chaos = Chaos::new(seed);
        let store = Shared(Arc::clone(&chaos));
        runtime.block_on(async {
            let tasks = (0..3).map(|name| tokio::spawn(instance(store.clone(), name, atomic)));
            for ended in futures::future::join_all(tasks).await {
                assert!(ended.is_ok(), "seed {seed}");
            }
            // What is late, lands.
            for _ in 0..500 {
                tokio::task::yield_now().await;
            }
            chaos.check().await;
            let log = Log::new(Arc::new(store.clone()), Path::from("log"));
            let left = loop {
                match log.peek().await {
                    Ok(head) => break head.map_or(0, |head| head.state.epoch),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "seed {seed}"),
                }
            };
            assert!(atomic || left >= chaos.durable.load(Ordering::SeqCst), "seed {seed}");
        });
        changes += chaos.changes.load(Ordering::Relaxed);
        deletions += chaos.deletions.load(Ordering::Relaxed);
        epochs += chaos.durable.load(Ordering::Relaxed);
    }
    // The test is worth something only if much has happened.
    assert!(changes > 500 && deletions > 200 && epochs > 300, "{changes} {deletions} {epochs}");
}

#[test]
fn several_runs_at_once_never_lose_what_the_newest_entry_names() {
    several_instances(false);
}

#[test]
fn several_runs_at_once_never_lose_what_the_targets_checkpoint_names() {
    several_instances(true);
}
