//! The checkpoint log, tested through its public API on stores that go wrong.

mod collecting;
mod durable;
pub(crate) mod faults;
mod fencing;
mod refusals;
mod states;

use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::path::Path;
use orbit_etl_core::checkpoint::{Claim, DurableLocal, Log, Pending, SourceState, SplitState, State};
use orbit_etl_core::{Committable, OperatorState, Position, Split};
use serde_json::json;

use faults::Faults;

/// The stores that the log must work on; the directory lives as long as it is held.
fn stores() -> Vec<(Arc<Faults>, Option<tempfile::TempDir>)> {
    let dir = tempfile::tempdir().unwrap();
    let local = DurableLocal::create(dir.path().join("deep/state")).unwrap();
    vec![(Faults::over(Arc::new(InMemory::new())), None), (Faults::over(Arc::new(local)), Some(dir))]
}

fn log_on(store: &Arc<Faults>) -> Log {
    Log::new(Arc::clone(store) as _, Path::from("log"))
}

/// A log beside the faults: what another, healthy process sees.
fn healthy(store: &Arc<Faults>) -> Log {
    Log::new(Arc::clone(&store.inner), Path::from("log"))
}

fn split(number: usize) -> SplitState {
    let path = format!("data/part-{number:06}.csv");
    let payload = json!({"path": path, "size": 1_048_576, "etag": "0123456789abcdef", "from": 0});
    SplitState {
        split: Split::new(format!("{path}@{number}"), payload),
        position: (number.is_multiple_of(3)).then(|| Position(json!({"rows": number}))),
        parked: number.is_multiple_of(7),
    }
}

/// A state with that many splits, the only thing that grows.
fn state_of(claim: &Claim, epoch: u64, splits: usize) -> State {
    let mut state = claim.state().clone();
    state.epoch = epoch;
    state.generation = 1;
    let splits = (0..splits).map(split).collect();
    let enumerator = Some(Position(json!({"listed": epoch})));
    state.sources.insert("in".into(), SourceState { enumerator, splits, ended: false });
    state
}

fn pending(epoch: u64, claim: u64) -> Pending {
    let file = format!("out/{claim}-{epoch}.parquet");
    Pending { sink: "out".into(), epoch, claim, committables: vec![Committable(json!({"file": file}))] }
}

fn groups(count: u16, bytes: usize) -> OperatorState {
    OperatorState { groups: (0..count).map(|g| (g, vec![g as u8; bytes])).collect() }
}

/// Encodes and appends; hands the state back.
async fn checkpoint(claim: &mut Claim, state: State) -> orbit_etl_core::Result<State> {
    let record = claim.encode(&state).await?;
    claim.append(&record).await?;
    Ok(state)
}
