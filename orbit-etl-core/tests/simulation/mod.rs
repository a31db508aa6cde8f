//! The whole engine in simulated histories: crashes, lost answers, late wake-ups, two instances at once.
//!
//! Everything that happens follows from a seed: `ORBIT_SIM_SEED=17 cargo test -p orbit-etl-core simulation`
//! runs that one and prints each call. `ORBIT_SIM_SEEDS=100000` runs so many, `ORBIT_SIM_FROM` says from
//! which.

mod files;
mod history;
mod judge;
#[cfg(feature = "planted-bugs")]
mod planted;
mod shape;
mod sink;
mod source;
mod store;
mod transforms;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use files::SinkBug;
use history::{Verdict, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// The first seed of a range whose history goes wrong, looked for on all cores.
fn first_wrong(from: u64, to: u64, judge: impl Fn(u64) -> Verdict + Sync) -> Option<(u64, Verdict)> {
    let next = AtomicU64::new(from);
    let found: Mutex<Option<(u64, Verdict)>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let known = found.lock().unwrap().as_ref().map(|(seed, _)| *seed);
                    if seed >= to || known.is_some_and(|known| known < seed) {
                        return;
                    }
                    let verdict = judge(seed);
                    if !verdict.wrong.is_empty() {
                        let mut found = found.lock().unwrap();
                        if found.as_ref().is_none_or(|(known, _)| seed < *known) {
                            *found = Some((seed, verdict));
                        }
                    }
                }
            });
        }
    });
    found.into_inner().unwrap()
}

#[test]
fn no_history_loses_or_doubles_a_row() {
    if let Some(seed) = number("ORBIT_SIM_SEED") {
        let verdict = run(seed, None, true);
        for line in &verdict.trace {
            println!("{line}");
        }
        assert!(verdict.wrong.is_empty(), "seed {seed}: {:#?}", verdict.wrong);
        return;
    }
    let from = number("ORBIT_SIM_FROM").unwrap_or(0);
    let count = number("ORBIT_SIM_SEEDS").unwrap_or(1_000);
    if let Some((seed, verdict)) = first_wrong(from, from + count, |seed| run(seed, None, false)) {
        panic!("ORBIT_SIM_SEED={seed} goes wrong: {:#?}", verdict.wrong);
    }
}

#[test]
fn a_seed_gives_the_same_history_each_time() {
    for seed in 0..40 {
        let (one, two) = (run(seed, None, true), run(seed, None, true));
        assert_eq!(one.trace, two.trace, "seed {seed}");
        assert!(one.faults > 0 || one.wrong.is_empty());
    }
}

#[test]
fn bugs_of_sinks_are_found() {
    let bugs = [
        SinkBug::NonIdempotentCommit,
        SinkBug::EpochNotCompared,
        SinkBug::DiscardBeforeClaim,
        SinkBug::ClaimAfterReading,
        SinkBug::RetriedBatchAlone,
        SinkBug::DiscardNotMine,
    ];
    let mut missed = Vec::new();
    for bug in bugs {
        match first_wrong(0, 2_000, |seed| run(seed, Some(bug), false)) {
            Some((seed, verdict)) => println!("{bug:?} | {seed} | {}", verdict.wrong[0]),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
