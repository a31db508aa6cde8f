//! States of every shape and size, there and back.

use std::collections::BTreeMap;

use orbit_etl_core::checkpoint::{Claim, NodeCounts, SinkMark, SourceState, State};
use orbit_etl_core::{Committable, OperatorState, Position};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{checkpoint, groups, healthy, log_on, pending, split, state_of, stores};

const LIMIT: usize = 512 << 10;

#[tokio::test(start_paused = true)]
async fn everything_comes_back() {
    for (store, _dir) in stores() {
        let mut claim = log_on(&store).claim("a", "p").await.unwrap();
        let mut state = state_of(&claim, 9, 10);
        state.complete = true;
        state.checkpoint_in = Some("pg".into());
        state.sinks.insert("out".into(), SinkMark { type_tag: "files".into(), ..SinkMark::default() });
        let counts = NodeCounts { rows_in: u64::MAX, rows_out: 1, rejected: 2, filtered: 3, bytes: 4 };
        state.totals.insert("in".into(), counts);
        state.pending = vec![pending(8, 1), pending(9, 1)];
        state.operators.insert("few".into(), groups(2, 10));
        state.operators.insert("none".into(), OperatorState::default());
        state.operators.insert("many".into(), groups(128, 5_000));
        state.sources.insert("empty".into(), SourceState { ended: true, ..SourceState::default() });
        // JSON null is a position, too.
        state.sources.get_mut("in").unwrap().enumerator = Some(Position(Value::Null));
        state.sources.get_mut("in").unwrap().splits[1].position = Some(Position(Value::Null));

        let record = claim.encode(&state).await.unwrap();
        assert_eq!((record.epoch, record.generation, record.last), (9, 1, true));
        assert_eq!(claim.decode(&record).await.unwrap(), state);
        claim.append(&record).await.unwrap();
        assert_eq!(healthy(&store).peek().await.unwrap().unwrap().state, state);
    }
}

#[tokio::test(start_paused = true)]
async fn a_small_state_needs_no_blobs() {
    let (store, _dir) = stores().remove(0);
    let mut claim = log_on(&store).claim("a", "p").await.unwrap();
    let state = state_of(&claim, 1, 200);
    checkpoint(&mut claim, state).await.unwrap();
    assert!(store.blobs_put().is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_twenty_thousand_splits_only_what_changes_is_written_again() {
    for (store, _dir) in stores() {
        let mut claim = log_on(&store).claim("a", "p").await.unwrap();
        let mut state = state_of(&claim, 1, 20_000);
        let record = claim.encode(&state).await.unwrap();
        assert!(record.json.len() <= LIMIT, "{}", record.json.len());
        claim.append(&record).await.unwrap();
        let all = store.blobs_put().len();
        assert!(all > 10, "{all}");

        // Nothing changed but the epoch.
        state.epoch = 2;
        checkpoint(&mut claim, state.clone()).await.unwrap();
        assert_eq!(store.blobs_put().len(), 0);

        // One split moves on, one is gone, one is new: three places at most.
        state.epoch = 3;
        let splits = &mut state.sources.get_mut("in").unwrap().splits;
        splits[7_000].position = Some(Position(json!({"rows": 5})));
        splits.remove(12_345);
        splits.push(split(20_000));
        checkpoint(&mut claim, state.clone()).await.unwrap();
        assert!(store.blobs_put().len() <= 3);

        // And the next run takes over what is there.
        let mut next = log_on(&store).claim("b", "p").await.unwrap();
        assert_eq!(next.state(), &state);
        state.epoch = 4;
        checkpoint(&mut next, state).await.unwrap();
        assert_eq!(store.blobs_put().len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn of_keyed_state_only_the_groups_that_change_are_written_again() {
    let (store, _dir) = stores().remove(0);
    let mut claim = log_on(&store).claim("a", "p").await.unwrap();
    let mut state = state_of(&claim, 1, 1);
    state.operators.insert("window".into(), groups(128, 20_000));
    let state = checkpoint(&mut claim, state).await.unwrap();
    assert!(store.blobs_put().len() > 100);
    let mut next = state.clone();
    next.epoch = 2;
    next.operators.get_mut("window").unwrap().groups.insert(17, vec![1; 90_000]);
    checkpoint(&mut claim, next.clone()).await.unwrap();
    assert!(store.blobs_put().len() <= 1);
    assert_eq!(healthy(&store).peek().await.unwrap().unwrap().state, next);
}

#[tokio::test(start_paused = true)]
async fn what_is_pending_for_thousands_of_epochs_grows_at_its_end_only() {
    let (store, _dir) = stores().remove(0);
    let mut claim = log_on(&store).claim("a", "p").await.unwrap();
    let mut state = state_of(&claim, 1, 1);
    state.pending = (1..5_000).map(|epoch| pending(epoch, 1)).collect();
    // One epoch alone may be large.
    let files = (0..10_000).map(|i| Committable(json!(format!("out/date=2020/part-{i}.parquet"))));
    state.pending[2_500].committables = files.collect();
    let mut state = checkpoint(&mut claim, state).await.unwrap();
    assert!(!store.blobs_put().is_empty());
    let mut written = 0;
    for epoch in 5_000..5_020 {
        state.epoch = epoch;
        state.pending.push(pending(epoch, 1));
        let record = claim.encode(&state).await.unwrap();
        assert!(record.json.len() <= LIMIT);
        claim.append(&record).await.unwrap();
        written += store.blobs_put().len();
    }
    assert!(written <= 3, "{written}");
    assert_eq!(log_on(&store).claim("b", "p").await.unwrap().state(), &state);
}

#[tokio::test(start_paused = true)]
async fn hundreds_of_thousands_of_splits_fit() {
    let (store, _dir) = stores().remove(0);
    let mut claim = log_on(&store).claim("a", "p").await.unwrap();
    let mut state = state_of(&claim, 1, 0);
    let splits = (0..200_000).map(|i| {
        let mut split = split(0);
        split.split.id = orbit_etl_core::SplitId::new(i.to_string());
        split.split.payload = Value::Null;
        split
    });
    state.sources.get_mut("in").unwrap().splits = splits.collect();
    let record = claim.encode(&state).await.unwrap();
    assert!(record.json.len() <= LIMIT, "{}", record.json.len());
    assert!(claim.decode(&record).await.unwrap() == state);
}

#[tokio::test(start_paused = true)]
async fn what_has_no_large_parts_and_is_too_large_is_an_error() {
    let (store, _dir) = stores().remove(0);
    let mut claim = log_on(&store).claim("a", "p").await.unwrap();
    let mut state = state_of(&claim, 1, 0);
    state.totals = (0..20_000).map(|i| (format!("node-{i}"), NodeCounts::default())).collect();
    let error = claim.encode(&state).await.unwrap_err();
    assert_eq!(error.kind(), orbit_etl_core::ErrorKind::Resources);
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_of_the_target_is_adopted() {
    let (store, _dir) = stores().remove(0);
    let mut old = log_on(&store).claim("a", "p").await.unwrap();
    let state = State { checkpoint_in: Some("pg".into()), ..state_of(&old, 0, 2) };
    checkpoint(&mut old, state).await.unwrap();
    let in_target = State { checkpoint_in: Some("pg".into()), ..state_of(&old, 5, 20_000) };
    let record = old.encode(&in_target).await.unwrap();
    old.committed(&record).unwrap();
    store.blobs_put();

    let mut claim = log_on(&store).claim("b", "p").await.unwrap();
    assert_eq!(claim.state().epoch, 0);
    claim.adopt(&record).await.unwrap();
    assert_eq!(claim.state(), &in_target);
    claim.collect().await.unwrap();
    assert_eq!(claim.decode(&record).await.unwrap(), in_target);
    let next = claim.encode(&State { epoch: 6, ..in_target }).await.unwrap();
    assert_eq!(store.blobs_put().len(), 0, "it goes on from the blobs of the target's checkpoint");
    assert_eq!(claim.decode(&next).await.unwrap().epoch, 6);
}

#[test]
fn counts_add_up() {
    let mut sum = NodeCounts { rows_in: 1, rows_out: 2, rejected: 3, filtered: 4, bytes: 5 };
    sum += NodeCounts { rows_in: 10, rows_out: 20, rejected: 30, filtered: 40, bytes: 50 };
    assert_eq!(sum, NodeCounts { rows_in: 11, rows_out: 22, rejected: 33, filtered: 44, bytes: 55 });
}

/// A state that has little in common with the one before.
fn shape(claim: &Claim, (splits, group, bytes, epochs, odd): (usize, u16, usize, u64, f64)) -> State {
    let mut state = state_of(claim, epochs, splits);
    state.operators = BTreeMap::from([("op".into(), groups(group, bytes))]);
    state.pending = (0..epochs).map(|epoch| pending(epoch, epoch % 3)).collect();
    state.sources.get_mut("in").unwrap().enumerator = Some(Position(json!(odd)));
    state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_sequence_of_states_comes_back(
        shapes in prop::collection::vec(
            (0_usize..6_000, 0_u16..128, 0_usize..4_000, 0_u64..900, any::<i32>().prop_map(f64::from)),
            1..4,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (store, _dir) = stores().remove(0);
            let mut claim = log_on(&store).claim("a", "p").await.unwrap();
            for wanted in shapes {
                let state = shape(&claim, wanted);
                let record = claim.encode(&state).await.unwrap();
                prop_assert!(record.json.len() <= LIMIT);
                prop_assert!(claim.decode(&record).await.unwrap() == state);
                claim.append(&record).await.unwrap();
            }
            Ok(())
        })?;
    }
}
