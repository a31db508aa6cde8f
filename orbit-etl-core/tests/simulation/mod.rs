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

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use files::SinkBug;
use history::{Verdict, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs the histories of a range of seeds on all cores until `most` of them have gone wrong, and returns the
/// lowest of those.
fn wrong_ones(from: u64, to: u64, most: usize, judge: impl Fn(u64) -> Verdict + Sync) -> Vec<(u64, Verdict)> {
    let next = AtomicU64::new(from);
    let found: Mutex<BTreeMap<u64, Verdict>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to || found.lock().unwrap().len() >= most {
                        return;
                    }
                    let verdict = judge(seed);
                    if !verdict.wrong.is_empty() {
                        found.lock().unwrap().insert(seed, verdict);
                    }
                }
            });
        }
    });
    found.into_inner().unwrap().into_iter().take(most).collect()
}

/// How to see what happened in a history.
fn replay(seed: u64, verdict: &Verdict) -> String {
    let wrong = verdict.wrong.join("\n    ");
    format!(
        "\n  ORBIT_SIM_SEED={seed} cargo test -p orbit-etl-core --features planted-bugs simulation::no_history\n    {wrong}"
    )
}

#[test]
fn no_history_loses_or_doubles_a_row() {
    if let Some(seed) = number("ORBIT_SIM_SEED") {
        let verdict = run(seed, None, true);
        for line in &verdict.trace {
            println!("{line}");
        }
        assert!(verdict.wrong.is_empty(), "{}", replay(seed, &verdict));
        return;
    }
    let from = number("ORBIT_SIM_FROM").unwrap_or(0);
    let count = number("ORBIT_SIM_SEEDS").unwrap_or(1_000);
    let wrong = wrong_ones(from, from + count, 20, |seed| run(seed, None, false));
    let replays: String = wrong.iter().map(|(seed, verdict)| replay(*seed, verdict)).collect();
    assert!(wrong.is_empty(), "these histories go wrong; each can be seen again:{replays}");
}

#[test]
fn a_seed_gives_the_same_history_each_time() {
    let from = number("ORBIT_SIM_FROM").unwrap_or(0);
    for seed in from..from + 40 {
        let (one, two) = (run(seed, None, true), run(seed, None, true));
        let differs = one.trace.iter().zip(&two.trace).position(|(one, two)| one != two);
        if let Some(line) = differs {
            let before = &one.trace[line.saturating_sub(10)..line];
            panic!("seed {seed}: {before:#?}, then {:?} or {:?}", one.trace[line], two.trace[line]);
        }
        assert_eq!(one.trace.len(), two.trace.len(), "seed {seed}");
    }
}

/// Within how many histories each planted bug must be found.
const BOUND: u64 = 3_000;

/// The history that finds a bug: the one that is known to, or the first that does. Without the bug
/// nothing is wrong with it.
fn find(known: u64, planted: impl Fn(u64) -> Verdict + Sync) -> Option<(u64, Verdict)> {
    let verdict = planted(known);
    let found = if verdict.wrong.is_empty() {
        wrong_ones(0, BOUND, 1, planted).pop()
    } else {
        Some((known, verdict))
    };
    found.filter(|(seed, _)| run(*seed, None, false).wrong.is_empty())
}

/// That each bug is found; beside it stands the history that did when the histories were last changed.
fn expect_found<B: fmt::Debug + Copy + Sync>(bugs: &[(B, u64)], planted: impl Fn(B, u64) -> Verdict + Sync) {
    let mut missed = Vec::new();
    for (bug, known) in bugs {
        match find(*known, |seed| planted(*bug, seed)) {
            Some((seed, verdict)) => println!("{bug:?}, {seed}: {}", verdict.wrong[0]),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found within {BOUND} histories: {missed:?}");
}

#[test]
fn bugs_of_sinks_are_found() {
    let bugs = [
        (SinkBug::NonIdempotentCommit, 0),
        (SinkBug::EpochNotCompared, 0),
        (SinkBug::DiscardBeforeClaim, 16),
        (SinkBug::ClaimAfterReading, 2316),
        (SinkBug::RetriedBatchAlone, 16),
        (SinkBug::DiscardNotMine, 475),
    ];
    expect_found(&bugs, |bug, seed| run(seed, Some(bug), false));
}
