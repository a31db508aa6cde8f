//! An object store that fails once, at each kind of request that a sink makes.

mod proxy;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use orbit_etl_connector_delta::{DeltaSink, DeltaSource, Mode};
use orbit_etl_core::{Committable, Discard, Error, ErrorKind, Result, StreamId};
use orbit_etl_testkit::{Stop, read, service};

use self::proxy::{Fault, Proxy};
use crate::sink::{Run, ids, lineage};

const ROWS: i64 = 3;

/// What a pipeline's checkpoint knows.
#[derive(Default)]
struct State {
    claims: u64,
    /// The last epoch that is prepared, and its files.
    prepared: u64,
    staged: Vec<Committable>,
}

/// A load of a few epochs into one table.
struct Load<'a> {
    bucket: &'a str,
    proxy: &'a Proxy,
    name: String,
    mode: Mode,
}

impl Load<'_> {
    fn path(&self) -> String {
        format!("{}/{}", self.bucket, self.name)
    }

    /// Goes on to the end, or to the first failure.
    async fn run(&self, state: &mut State) -> Result<()> {
        let sink = DeltaSink::new(self.path(), self.mode).storage_option("endpoint", self.proxy.url());
        let sink = if self.mode == Mode::Merge { sink.keys(["id"]) } else { sink };
        state.claims += 1;
        let mut run = Run::try_start(&sink, ids(0..1).schema(), lineage(state.claims)).await?;
        if run.committed.as_ref().map_or(0, |committed| committed.epoch) < state.prepared {
            run.commit(state.prepared, state.staged.clone()).await?;
        }
        run.session.discard(Discard::Older { claim: state.claims, keep: Vec::new() }).await?;
        for epoch in state.prepared + 1..=epochs(self.mode) {
            let from = i64::try_from(epoch).unwrap() * ROWS;
            run.writer.write(StreamId(0), ids(from..from + ROWS)).await?;
            let staged = run.writer.prepare(epoch).await?.committables;
            (state.prepared, state.staged) = (epoch, staged.clone());
            run.commit(epoch, staged).await?;
        }
        Ok(())
    }

    /// The ids that a reader finds, past the proxy.
    async fn ids(&self) -> Vec<i64> {
        let batches = read(&DeltaSource::new(self.path()), Duration::from_secs(10)).await.unwrap();
        let mut ids = Vec::new();
        for batch in batches.into_batches(0) {
            ids.extend(batch.column_by_name("id").unwrap().as_primitive::<Int64Type>().values());
        }
        ids.sort_unstable();
        ids
    }
}

/// A second merge finds rows to merge into; a second append asks for nothing new.
fn epochs(mode: Mode) -> u64 {
    if mode == Mode::Merge { 2 } else { 1 }
}

fn all(mode: Mode) -> Vec<i64> {
    (ROWS..ROWS * (i64::try_from(epochs(mode)).unwrap() + 1)).collect()
}

/// The kind of a request, without the names that differ from run to run.
fn kind(request: &str) -> String {
    let (method, path) = request.split_once(' ').unwrap();
    let of = match path {
        path if path.contains("list-type") => "a list",
        path if path.contains("_last_checkpoint") => "the last checkpoint",
        path if path.contains("_delta_log") => "the log",
        path if path.contains("/_orbit/") => "rows that wait",
        path if path.contains("part-orbit") => "rows",
        _ => "a data file",
    };
    format!("{method} {of}")
}

/// What goes wrong where: the first and the last request of each kind are refused; of those that change
/// something, the answers are lost too, and the first finds the server busy.
fn faults(requests: &[String]) -> Vec<(usize, Fault)> {
    let mut kinds: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (number, request) in requests.iter().enumerate() {
        kinds.entry(kind(request)).or_default().push(number);
    }
    let mut faults = Vec::new();
    for (kind, numbers) in kinds {
        let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
        let mut both = vec![first, last];
        both.dedup();
        faults.extend(both.iter().map(|number| (*number, Fault::Refused)));
        if !kind.starts_with("GET") && !kind.starts_with("HEAD") {
            faults.extend(both.iter().map(|number| (*number, Fault::Unanswered)));
            faults.push((first, Fault::Busy));
        }
    }
    faults
}

async fn fail_everywhere(mode: Mode) {
    let bucket = match service("S3", None) {
        Ok(bucket) => bucket,
        Err(Stop::Skip(why)) => {
            // Not through the macro, whose text a passing test swallows.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
            return;
        }
        Err(stop) => panic!("{stop:?}"),
    };
    let server = std::env::var("AWS_ENDPOINT_URL").unwrap();
    let proxy = Proxy::start(server.trim_start_matches("http://").trim_end_matches('/'));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let load = |number: usize| Load {
        bucket: bucket.trim_end_matches('/'),
        proxy: &proxy,
        name: format!("outage-{now}-{mode:?}-{number}"),
        mode,
    };
    let whole = load(0);
    proxy.restart(None);
    whole.run(&mut State::default()).await.unwrap();
    let requests = proxy.requests();
    assert_eq!(whole.ids().await, all(mode));
    for (table, (number, fault)) in faults(&requests).into_iter().enumerate() {
        let load = load(table + 1);
        let what = format!("{mode:?}: {fault:?}, request {number}, {}", kind(&requests[number]));
        proxy.restart(Some((number, fault)));
        let mut state = State::default();
        let ended = load.run(&mut state).await;
        check(fault, ended, &what);
        proxy.restart(None);
        load.run(&mut state).await.map_err(|e| e.report()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(load.ids().await, all(mode), "{what}");
    }
}

/// A request that is refused ends the run, unless nobody needs its answer; the error says so. What may
/// succeed later is tried again.
fn check(fault: Fault, ended: Result<()>, what: &str) {
    let Err(error) = ended else { return };
    let told = |error: &Error| format!("{what}: {}", error.report());
    match fault {
        Fault::Refused => assert_eq!(error.kind(), ErrorKind::Auth, "{}", told(&error)),
        Fault::Busy => panic!("{}", told(&error)),
        Fault::Unanswered => assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", told(&error)),
    }
    assert!(!error.report().contains("name 3"), "{}", told(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_survive_a_failure_of_each_request() {
    fail_everywhere(Mode::Append).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn merges_survive_a_failure_of_each_request() {
    fail_everywhere(Mode::Merge).await;
}
