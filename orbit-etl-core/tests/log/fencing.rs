//! Who owns the log, whatever happens to the requests.

use std::sync::Arc;

use futures::FutureExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use orbit_etl_core::ErrorKind;
use orbit_etl_core::checkpoint::{Log, is_undecided};

use super::faults::{Fault, On};
use super::{checkpoint, healthy, log_on, pending, state_of, stores};

const TRIES: usize = 5;

#[tokio::test(start_paused = true)]
async fn a_run_goes_on_where_the_last_one_stopped() {
    for (store, _dir) in stores() {
        let log = log_on(&store);
        let mut first = log.claim("a", "p").await.unwrap();
        assert!(first.is_first());
        assert_eq!((first.number(), first.run()), (1, "a"));
        let mut state = state_of(&first, 1, 3);
        state.pending.push(pending(1, 1));
        let state = checkpoint(&mut first, state).await.unwrap();
        first.still_newest().await.unwrap();

        let mut second = log.claim("b", "p").await.unwrap();
        assert!(!second.is_first());
        assert_eq!(second.number(), 3);
        assert_eq!(second.state(), &state);
        second.still_newest().await.unwrap();

        // A claim without a checkpoint hands on what it took over.
        let third = log.claim("c", "p").await.unwrap();
        assert_eq!(third.number(), 4);
        assert_eq!(third.state(), &state);
    }
}

#[tokio::test(start_paused = true)]
async fn the_older_run_is_fenced_for_good() {
    for (store, _dir) in stores() {
        let log = log_on(&store);
        let mut old = log.claim("a", "p").await.unwrap();
        let state = state_of(&old, 1, 3);
        let record = old.encode(&state).await.unwrap();
        let _new = log.claim("b", "p").await.unwrap();

        let before = store.puts.lock().unwrap().len();
        assert_eq!(old.still_newest().await.unwrap_err().kind(), ErrorKind::Fenced);
        assert_eq!(old.append(&record).await.unwrap_err().kind(), ErrorKind::Fenced);
        assert_eq!(old.encode(&state).await.unwrap_err().kind(), ErrorKind::Fenced);
        assert_eq!(old.collect().await.unwrap_err().kind(), ErrorKind::Fenced);
        assert_eq!(store.puts.lock().unwrap().len(), before, "a fenced run writes nothing");
    }
}

#[tokio::test(start_paused = true)]
async fn an_append_alone_finds_out_about_a_newer_claim() {
    let (store, _dir) = stores().remove(0);
    let log = log_on(&store);
    let mut old = log.claim("a", "p").await.unwrap();
    let record = old.encode(&state_of(&old, 1, 3)).await.unwrap();
    let new = log.claim("b", "p").await.unwrap();
    assert_eq!(old.append(&record).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(new.state().epoch, 0);
}

#[tokio::test(start_paused = true)]
async fn a_claimant_that_was_overtaken_takes_the_next_number_with_a_fresh_copy() {
    for (store, _dir) in stores() {
        let other = healthy(&store);
        // Between listing and creating, another run claims and ends an epoch.
        store.plan(
            On::Put,
            Fault::After(
                async move {
                    let mut claim = other.claim("b", "p").await.unwrap();
                    let mut state = state_of(&claim, 7, 5);
                    state.pending.push(pending(7, claim.number()));
                    checkpoint(&mut claim, state).await.unwrap();
                }
                .boxed(),
            ),
        );
        let claim = log_on(&store).claim("a", "p").await.unwrap();
        assert_eq!(claim.number(), 3);
        assert!(!claim.is_first());
        assert_eq!(claim.state().epoch, 7);
        assert_eq!(claim.state().pending, [pending(7, 1)]);
        assert!(store.used_up());
    }
}

#[tokio::test(start_paused = true)]
async fn a_claimant_that_sees_a_newer_one_is_fenced() {
    let (store, _dir) = stores().remove(0);
    let other = healthy(&store);
    store.plan(On::List, Fault::After(async {}.boxed()));
    // After the creation, before the second listing.
    let overtake = async move { drop(other.claim("b", "p").await.unwrap()) };
    store.plan(On::List, Fault::After(overtake.boxed()));
    assert_eq!(log_on(&store).claim("a", "p").await.unwrap_err().kind(), ErrorKind::Fenced);
    assert!(store.used_up());
}

#[tokio::test(start_paused = true)]
async fn both_of_two_first_claimants_have_one_lineage() {
    let (store, _dir) = stores().remove(0);
    let other = healthy(&store);
    let overtake = async move { drop(other.claim("b", "p").await.unwrap()) };
    store.plan(On::Put, Fault::After(overtake.boxed()));
    let claim = log_on(&store).claim("a", "p").await.unwrap();
    let again = healthy(&store).claim("c", "p").await.unwrap();
    assert_eq!(claim.number(), 2);
    assert_eq!(claim.state().lineage, again.state().lineage);
    assert!(!claim.state().lineage.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_found_out_by_asking_again() {
    for (store, _dir) in stores() {
        let log = log_on(&store);
        store.plan(On::Put, Fault::Lost);
        let mut claim = log.claim("a", "p").await.unwrap();
        assert_eq!(claim.number(), 1);
        let record = claim.encode(&state_of(&claim, 1, 3)).await.unwrap();
        store.plan(On::Put, Fault::Dropped);
        store.plan(On::Put, Fault::Lost);
        claim.append(&record).await.unwrap();
        claim.still_newest().await.unwrap();
        assert_eq!(healthy(&store).peek().await.unwrap().unwrap().number, 2);
        assert!(store.used_up());
    }
}

#[tokio::test(start_paused = true)]
async fn an_undecided_append_may_be_sent_again_as_it_was() {
    for landed in [false, true] {
        let (store, _dir) = stores().remove(0);
        let mut claim = log_on(&store).claim("a", "p").await.unwrap();
        let state = state_of(&claim, 1, 3);
        let record = claim.encode(&state).await.unwrap();
        store.plan(On::Put, if landed { Fault::Lost } else { Fault::Dropped });
        (1..TRIES).for_each(|_| store.plan(On::Put, Fault::Dropped));
        let error = claim.append(&record).await.unwrap_err();
        assert!(is_undecided(&error), "{error}");
        assert!(store.used_up());
        claim.append(&record).await.unwrap();
        let head = healthy(&store).peek().await.unwrap().unwrap();
        assert_eq!((head.number, head.claim, head.state), (2, false, state));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_not_undecided_unless_an_answer_was_lost_before() {
    let denied = || object_store::Error::PermissionDenied { path: "x".into(), source: "no".into() };
    for lost in [false, true] {
        let (store, _dir) = stores().remove(0);
        let mut claim = log_on(&store).claim("a", "p").await.unwrap();
        let record = claim.encode(&state_of(&claim, 1, 3)).await.unwrap();
        if lost {
            store.plan(On::Put, Fault::Dropped);
        }
        store.plan(On::Put, Fault::Refused(denied()));
        let error = claim.append(&record).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Auth);
        assert_eq!(is_undecided(&error), lost);
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_whose_listing_fails_is_undecided() {
    let (store, _dir) = stores().remove(0);
    let mut claim = log_on(&store).claim("a", "p").await.unwrap();
    let record = claim.encode(&state_of(&claim, 1, 3)).await.unwrap();
    (0..TRIES).for_each(|_| store.plan(On::List, Fault::Dropped));
    let error = claim.append(&record).await.unwrap_err();
    assert!(is_undecided(&error), "{error}");
    claim.append(&record).await.unwrap();
    claim.still_newest().await.unwrap();
    assert_eq!(healthy(&store).peek().await.unwrap().unwrap().number, 2);
}

#[tokio::test(start_paused = true)]
async fn the_own_run_with_other_content_is_not_success() {
    let (store, _dir) = stores().remove(0);
    let mut claim = log_on(&store).claim("a", "p").await.unwrap();
    let record = claim.encode(&state_of(&claim, 1, 3)).await.unwrap();
    store.plan(On::Put, Fault::Lost);
    (1..TRIES).for_each(|_| store.plan(On::Put, Fault::Dropped));
    assert!(is_undecided(&claim.append(&record).await.unwrap_err()));
    let other = claim.encode(&state_of(&claim, 1, 4)).await.unwrap();
    assert_eq!(claim.append(&other).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(healthy(&store).peek().await.unwrap().unwrap().state.sources["in"].splits.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_late_checkpoint_counts_before_the_next_claim_and_not_after() {
    for claims_first in [false, true] {
        let (store, _dir) = stores().remove(0);
        let mut old = log_on(&store).claim("a", "p").await.unwrap();
        let record = old.encode(&state_of(&old, 1, 3)).await.unwrap();
        store.plan(On::Put, Fault::Delayed);
        (1..TRIES).for_each(|_| store.plan(On::Put, Fault::Dropped));
        assert!(is_undecided(&old.append(&record).await.unwrap_err()));

        let other = healthy(&store);
        if claims_first {
            let mut new = other.claim("b", "p").await.unwrap();
            assert_eq!((new.number(), new.state().epoch), (2, 0));
            assert_eq!(store.land().await, 0);
            let state = state_of(&new, 1, 9);
            checkpoint(&mut new, state).await.unwrap();
        } else {
            assert_eq!(store.land().await, 1);
            let new = other.claim("b", "p").await.unwrap();
            assert_eq!((new.number(), new.state().epoch), (3, 1));
        }
        assert_eq!(old.append(&record).await.unwrap_err().kind(), ErrorKind::Fenced);
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_checkpoint_between_listing_and_claiming_is_copied() {
    let (store, _dir) = stores().remove(0);
    let mut old = log_on(&store).claim("a", "p").await.unwrap();
    let record = old.encode(&state_of(&old, 1, 3)).await.unwrap();
    store.plan(On::Put, Fault::Delayed);
    (1..TRIES).for_each(|_| store.plan(On::Put, Fault::Dropped));
    assert!(is_undecided(&old.append(&record).await.unwrap_err()));
    let late = Arc::clone(&store);
    store.plan(On::Put, Fault::After(async move { assert_eq!(late.land().await, 1) }.boxed()));
    let new = log_on(&store).claim("b", "p").await.unwrap();
    assert_eq!((new.number(), new.state().epoch), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_gone_between_listing_and_reading_is_looked_for_again() {
    let (store, _dir) = stores().remove(0);
    let mut busy = healthy(&store).claim("b", "p").await.unwrap();
    let go_on = async move {
        for epoch in 1..=20 {
            let state = state_of(&busy, epoch, 3);
            checkpoint(&mut busy, state).await.unwrap();
        }
        busy.collect().await.unwrap();
    };
    store.plan(On::Get, Fault::After(go_on.boxed()));
    let claim = log_on(&store).claim("a", "p").await.unwrap();
    assert_eq!((claim.number(), claim.state().epoch), (22, 20));
    assert!(store.used_up());
}

#[tokio::test(start_paused = true)]
async fn a_number_that_was_collected_is_of_no_use() {
    let (store, _dir) = stores().remove(0);
    let log = log_on(&store);
    let mut asleep = log.claim("a", "p").await.unwrap();
    let record = asleep.encode(&state_of(&asleep, 1, 3)).await.unwrap();
    let mut busy = log.claim("b", "p").await.unwrap();
    for epoch in 1..=20 {
        let state = state_of(&busy, epoch, 3);
        checkpoint(&mut busy, state).await.unwrap();
    }
    busy.collect().await.unwrap();
    let second = Path::from("log/00000000000000000002.json");
    assert!(store.inner.head(&second).await.is_err(), "the number is free again");
    assert_eq!(asleep.append(&record).await.unwrap_err().kind(), ErrorKind::Fenced);
    busy.still_newest().await.unwrap();
    assert_eq!(log.claim("c", "p").await.unwrap().state().epoch, 20);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_says_taken_while_nothing_is_there_is_asked_again() {
    let taken = || object_store::Error::AlreadyExists { path: "x".into(), source: "409".into() };
    let (store, _dir) = stores().remove(0);
    let mut claim = log_on(&store).claim("a", "p").await.unwrap();
    let record = claim.encode(&state_of(&claim, 1, 3)).await.unwrap();
    store.plan(On::Put, Fault::Refused(taken()));
    claim.append(&record).await.unwrap();
    assert_eq!(healthy(&store).peek().await.unwrap().unwrap().number, 2);
    // For good: an error, and certainly no success.
    let record = claim.encode(&state_of(&claim, 2, 3)).await.unwrap();
    (0..TRIES).for_each(|_| store.plan(On::Put, Fault::Refused(taken())));
    let error = claim.append(&record).await.unwrap_err();
    assert!(is_undecided(&error), "{error}");
    assert_eq!(healthy(&store).peek().await.unwrap().unwrap().number, 2);
}

#[tokio::test]
async fn many_claimants_at_once_end_with_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::local(dir.path()).unwrap();
    let claims = (0..8).map(|i| {
        let log = log.clone();
        tokio::spawn(async move { log.claim(&format!("run-{i}"), "p").await })
    });
    let claims = futures::future::join_all(claims).await;
    let mut owners = 0;
    for claim in claims {
        match claim.unwrap() {
            Ok(mut claim) => owners += usize::from(claim.still_newest().await.is_ok()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Fenced, "{error}"),
        }
    }
    assert_eq!(owners, 1);
    assert_eq!(log.peek().await.unwrap().unwrap().number, 8);
}

#[tokio::test]
async fn peeking_leaves_the_log_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::local(dir.path()).unwrap();
    assert_eq!(log.peek().await.unwrap(), None);
    let mut claim = log.claim("a", "p").await.unwrap();
    let head = log.peek().await.unwrap().unwrap();
    assert_eq!((head.number, head.claim, head.run.as_str(), head.pipeline.as_str()), (1, true, "a", "p"));
    claim.still_newest().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_deleted_under_a_run_stops_it() {
    let (store, _dir) = stores().remove(0);
    let mut claim = log_on(&store).claim("a", "p").await.unwrap();
    store.inner.delete(&Path::from("log/00000000000000000001.json")).await.unwrap();
    let error = claim.still_newest().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(!error.is_retryable());
}
