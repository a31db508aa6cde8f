//! `kill -9` at any moment.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use super::child::Run;
use super::{Bench, PARTITIONED, REJECTS, expect_none, finish};

const ROUNDS: u32 = 5;
/// About as many milliseconds as a load takes.
const LATEST: u64 = 400;

/// Moments that a seed names, the same whenever it is given again.
struct Moments(u64);

impl Moments {
    fn next(&mut self) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_millis((self.0 >> 33) % LATEST)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random() {
    let seed = match std::env::var("ORBIT_KILL_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => RandomState::new().build_hasher().finish(),
    };
    println!("ORBIT_KILL_SEED={seed}");
    let mut moments = Moments(seed);
    let bench = Bench::new(PARTITIONED, REJECTS);
    let mut failures = Vec::new();
    for round in 0..ROUNDS {
        let job = bench.job(&format!("round-{round}"));
        for _ in 0..2 {
            let child = Run::start(&job, None, None);
            tokio::time::sleep(moments.next()).await;
            child.signal("KILL");
            if let Err(failure) = child.ends_without_error() {
                failures.push(format!("round {round}: {failure}"));
            }
        }
        if let Err(failure) = finish(&job, &bench.input).await {
            failures.push(format!("round {round}: {failure}"));
        }
    }
    expect_none(&failures);
}
