//! What outlives the instances of a history: the seed's decisions, requests still under way, what was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::future::BoxFuture;
use object_store::memory::InMemory;
use orbit_etl_core::{Error, ErrorKind, Result};
use tokio::sync::Notify;

/// Every fault that a history injects says so.
pub(crate) const INJECTED: &str = "injected";

/// A small generator of our own: the same numbers for a seed, whatever the libraries do.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

type Late = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// The decisions and the findings of one history.
pub(crate) struct World {
    pub(crate) log: Arc<InMemory>,
    state: Mutex<State>,
}

pub(crate) struct State {
    pub(crate) random: Random,
    /// A call goes wrong about once in so many; none do at the end.
    pub(crate) rate: Option<u64>,
    /// So many requests to the log are still to go unanswered.
    pub(crate) outage: u64,
    late: Vec<(String, Late)>,
    trace: Option<Vec<String>>,
    /// What must never have happened and did.
    pub(crate) wrong: Vec<String>,
    /// The ids in each split, in their order.
    pub(crate) splits: BTreeMap<String, Vec<i64>>,
    /// How often splits of a source were added or taken away.
    pub(crate) changes: BTreeMap<String, u64>,
    /// The splits that are taken away and not yet given back.
    pub(crate) revoked: BTreeSet<String>,
    /// The sinks that a run of the pipeline has claimed.
    pub(crate) claimed: BTreeSet<String>,
}

impl World {
    pub(crate) fn new(random: Random, rate: u64, traced: bool) -> Arc<Self> {
        let state = State {
            random,
            rate: Some(rate),
            outage: 0,
            late: Vec::new(),
            trace: traced.then(Vec::new),
            wrong: Vec::new(),
            splits: BTreeMap::new(),
            changes: BTreeMap::new(),
            revoked: BTreeSet::new(),
            claimed: BTreeSet::new(),
        };
        Arc::new(Self { log: Arc::new(InMemory::new()), state: Mutex::new(state) })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.lock().random)
    }

    pub(crate) fn note(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.lock().trace {
            trace.push(line());
        }
    }

    pub(crate) fn trace(&self) -> Vec<String> {
        self.lock().trace.clone().unwrap_or_default()
    }

    pub(crate) fn wrong(&self, what: String) {
        self.note(|| format!("!! {what}"));
        self.lock().wrong.push(what);
    }

    pub(crate) fn changed(&self, source: &str) {
        *self.lock().changes.entry(source.to_owned()).or_default() += 1;
    }

    pub(crate) fn delayed(&self, what: String, request: Late) {
        self.lock().late.push((what, request));
    }

    /// A request that nobody waits for any more takes effect after all.
    pub(crate) async fn land(&self) -> bool {
        let taken = {
            let mut state = self.lock();
            let count = state.late.len() as u64;
            if count == 0 {
                return false;
            }
            let i = state.random.below(count) as usize;
            state.late.swap_remove(i)
        };
        self.note(|| format!("-- {} takes effect late", taken.0));
        (taken.1)().await;
        true
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Go,
    /// The history goes on elsewhere first.
    Switch,
    /// The history goes on elsewhere for many steps: one that wakes up late.
    Sleep(u64),
    Delay,
    Crash,
    Fail(ErrorKind),
    /// Takes effect at some later time; the caller hears of a time-out.
    Late,
}

/// One instance of the pipeline: what its calls pass through.
pub(crate) struct Instance {
    pub(crate) id: usize,
    pub(crate) world: Arc<World>,
    crashed: AtomicBool,
    /// For how many steps of the history it is left alone.
    asleep: AtomicU64,
    pub(crate) pause: Notify,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "instance {}", self.id)
    }
}

impl Instance {
    pub(crate) fn new(id: usize, world: &Arc<World>) -> Arc<Self> {
        Arc::new(Self {
            id,
            world: Arc::clone(world),
            crashed: AtomicBool::new(false),
            asleep: AtomicU64::new(0),
            pause: Notify::new(),
        })
    }

    /// Whether it sleeps through this step.
    pub(crate) fn sleeps(&self) -> bool {
        let left = self.asleep.load(Ordering::Relaxed);
        self.asleep.store(left.saturating_sub(1), Ordering::Relaxed);
        left > 0
    }

    pub(crate) fn has_crashed(&self) -> bool {
        self.crashed.load(Ordering::Relaxed)
    }

    fn draw(&self, late: bool) -> Fate {
        let mut state = self.world.lock();
        let Some(rate) = state.rate else { return Fate::Go };
        if state.random.one_in(24) {
            return if state.random.one_in(6) {
                Fate::Sleep(2 + state.random.below(12))
            } else {
                Fate::Switch
            };
        }
        if state.random.one_in(40) {
            return Fate::Delay;
        }
        if !state.random.one_in(rate) {
            return Fate::Go;
        }
        match state.random.below(10) {
            0..=2 => Fate::Crash,
            3..=5 => Fate::Fail(ErrorKind::Unavailable),
            6 => Fate::Fail(ErrorKind::Timeout),
            7 => Fate::Fail(ErrorKind::Auth),
            _ if late => Fate::Late,
            _ => Fate::Fail(ErrorKind::Unavailable),
        }
    }

    /// Settles a call's fate before its effect. `Late` only if asked for.
    pub(crate) async fn fate(&self, call: &str, late: bool) -> Result<Fate> {
        self.alive().await;
        let fate = self.draw(late);
        self.world.note(|| match fate {
            Fate::Go => format!("{}: {call}", self.id),
            other => format!("{}: {call}: {other:?}", self.id),
        });
        match fate {
            Fate::Fail(kind) => Err(injected(kind).with("call", call)),
            Fate::Late => Ok(Fate::Late),
            other => {
                self.suffer(other).await;
                Ok(Fate::Go)
            }
        }
    }

    pub(crate) async fn before(&self, call: &str) -> Result<()> {
        self.fate(call, false).await.map(|_| ())
    }

    /// After a call's effect: the answer may be lost.
    pub(crate) async fn after(&self, call: &str) -> Result<()> {
        let fate = self.draw(false);
        if fate == Fate::Go {
            return Ok(());
        }
        self.world.note(|| format!("{}: {call} is done: {fate:?}", self.id));
        match fate {
            Fate::Fail(ErrorKind::Auth) => Err(injected(ErrorKind::Auth).with("answer", call)),
            Fate::Fail(_) => Err(injected(ErrorKind::Timeout).with("answer", call)),
            other => {
                self.suffer(other).await;
                Ok(())
            }
        }
    }

    async fn suffer(&self, fate: Fate) {
        match fate {
            Fate::Switch | Fate::Sleep(_) => {
                if let Fate::Sleep(steps) = fate {
                    self.asleep.store(steps, Ordering::Relaxed);
                }
                self.pause.notify_one();
                tokio::task::yield_now().await;
                self.alive().await;
            }
            Fate::Delay => {
                let millis = self.world.random(|r| 1 + r.below(120));
                tokio::time::sleep(Duration::from_millis(millis)).await;
                self.alive().await;
            }
            Fate::Crash => {
                self.crashed.store(true, Ordering::Relaxed);
                self.pause.notify_one();
                self.alive().await;
            }
            _ => {}
        }
    }

    /// Nothing that a dead instance had begun goes on.
    pub(crate) async fn alive(&self) {
        if self.has_crashed() {
            std::future::pending::<()>().await;
        }
    }
}

pub(crate) fn injected(kind: ErrorKind) -> Error {
    Error::new(kind, INJECTED)
}
