//! Memory.

use std::sync::Arc;

use datafusion_execution::memory_pool::{GreedyMemoryPool, MemoryPool};
use futures::StreamExt;
use orbit_etl_core::{CommitMode, Context, ContextBuilder, ErrorKind, Result, Source};

use super::{Bench, loaded, same};
use crate::drive::{Run, everything};
use crate::harness::{Check, Harness, Stop};

/// How many rows are written at once.
const STEP: i64 = 1_000;
/// How many times.
const STEPS: i64 = 8;

/// Contract: under a small memory limit, writing works or fails with `Resources`; then everything
/// that was reserved is given back.
pub async fn writing_stays_within_the_memory(harness: &dyn Harness) -> Check {
    let bench = Bench::new(harness).await?;
    let (cx, pool) = limited(bench.abilities.memory_limit)?;
    let mut run = Run::start(&cx, &*bench.sink, bench.streams(), 1).await?;
    let outcome = write_all(&bench, &mut run).await?;
    let ended = outcome.is_ok();
    if ended {
        run.close().await?;
    } else {
        drop(run);
    }
    drained(&pool)?;
    match outcome {
        Ok(()) => bench.shows("written under a small memory limit", &[0..STEP * STEPS]).await,
        Err(error) if error.kind() != ErrorKind::Resources => Err(error.into()),
        Err(_) if bench.mode() == CommitMode::Immediate => Ok(()),
        Err(_) => bench.shows("after memory was refused", &[]).await,
    }
}

async fn write_all(bench: &Bench, run: &mut Run) -> Check<Result<()>> {
    for step in 0..STEPS {
        let rows = bench.sample.rows(step * STEP..(step + 1) * STEP)?;
        if let Err(error) = run.write(0, 0, rows).await {
            return Ok(Err(error));
        }
    }
    let staged = match run.prepare(1).await {
        Ok(staged) => staged,
        Err(error) => return Ok(Err(error)),
    };
    Ok(run.commit(1, staged).await.map(drop))
}

/// Contract: under a small memory limit, reading works or fails with `Resources`; a stream that ended
/// or was dropped has given back what it reserved.
pub async fn reading_stays_within_the_memory(harness: &dyn Harness) -> Check {
    let (_fixture, source, sample) = loaded(harness, STEP * STEPS).await?;
    let abilities = harness.abilities();
    let (cx, pool) = limited(abilities.memory_limit)?;
    let scan = everything(&cx, &*source).await?;
    let mut got = Vec::new();
    for split in crate::drive::splits(&cx, &*source, None, abilities.idle).await? {
        for split in split.added {
            let outcome = open_and_drop(&cx, &*source, &split, &scan).await;
            drained(&pool)?;
            match outcome {
                Err(error) if error.kind() == ErrorKind::Resources => return Ok(()),
                outcome => outcome?,
            }
            if source.replay() == orbit_etl_core::Replay::None {
                return Err(Stop::skip("the source can't be read again"));
            }
            let read = crate::drive::read_split(&cx, &*source, &split, None, &scan, abilities.idle);
            got.extend(crate::drive::rows(read.await?, 0));
            drained(&pool)?;
        }
    }
    same("read under a small memory limit", &got, &[sample.expected(0..STEP * STEPS)?])
}

async fn open_and_drop(
    cx: &Context,
    source: &dyn Source,
    split: &orbit_etl_core::Split,
    scan: &[orbit_etl_core::ScanRequest],
) -> Result<()> {
    let mut stream = source.open(cx, split, None, scan).await?;
    stream.next().await.map_or(Ok(()), |event| event.map(drop))
}

fn limited(bytes: usize) -> Check<(Context, Arc<dyn MemoryPool>)> {
    let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(bytes));
    Ok((ContextBuilder::new("conformance").memory(Arc::clone(&pool)).build()?, pool))
}

fn drained(pool: &Arc<dyn MemoryPool>) -> Check {
    match pool.reserved() {
        0 => Ok(()),
        bytes => Err(Stop::fail(format!("{bytes} bytes are still reserved"))),
    }
}
