//! The contracts, as functions: each makes fixtures of its own and says what is broken.
//!
//! [`conformance!`](crate::conformance) turns each into a test.

#![allow(clippy::single_range_in_vec_init)] // Ranges of ids, one or several.

pub mod crash;
pub mod errors;
pub mod fence;
pub mod limits;
pub mod read;
pub mod types;
pub mod write;

use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use orbit_etl_core::{CommitMode, Context, ErrorKind, Publication, Result, Sink, Source, StreamInfo};

use crate::compare::diff;
use crate::data::Sample;
use crate::drive::{Run, context};
use crate::harness::{Abilities, Check, Fixture, Harness, Stop};

/// A fixture with its sink.
struct Bench {
    fixture: Box<dyn Fixture>,
    sink: Arc<dyn Sink>,
    abilities: Abilities,
    sample: Sample,
    cx: Context,
}

impl Bench {
    async fn new(harness: &dyn Harness) -> Check<Self> {
        let fixture = harness.fresh().await?;
        let sink = fixture.sink().ok_or_else(|| Stop::skip("there is no sink"))?;
        let abilities = harness.abilities();
        let sample = Sample::new("rows", &abilities)?;
        Ok(Self { fixture, sink, abilities, sample, cx: context()? })
    }

    /// A bench for contracts about single epochs.
    async fn each_epoch(harness: &dyn Harness) -> Check<Self> {
        let bench = Self::new(harness).await?;
        if bench.sink.publication() == Publication::AtEnd {
            return Err(Stop::skip("the sink publishes a generation at its end alone"));
        }
        Ok(bench)
    }

    fn mode(&self) -> CommitMode {
        self.sink.commit_mode()
    }

    fn streams(&self) -> &[StreamInfo] {
        std::slice::from_ref(&self.sample.stream)
    }

    /// A run of a fresh sink value, as after a restart.
    async fn run(&self, claim: u64) -> Check<Run> {
        let sink = self.fixture.sink().ok_or_else(|| Stop::skip("there is no sink"))?;
        Ok(Run::start(&self.cx, &*sink, self.streams(), claim).await?)
    }

    async fn visible(&self) -> Check<Vec<RecordBatch>> {
        self.fixture.visible(&self.sample.stream, self.abilities.idle).await
    }

    /// Fails unless just these rows are visible.
    async fn shows(&self, when: &str, ids: &[Range<i64>]) -> Check {
        let mut expected = Vec::new();
        for range in ids {
            expected.push(self.sample.expected(range.clone())?);
        }
        same(when, &self.visible().await?, &expected)
    }

    async fn nothing_staged(&self, when: &str) -> Check {
        match self.fixture.staged().await? {
            Some(0) | None => Ok(()),
            Some(n) => Err(Stop::fail(format!("{when}, {n} staged part(s) are left"))),
        }
    }
}

/// A source over the sample's rows in this range, loaded in four pieces.
async fn loaded(harness: &dyn Harness, rows: i64) -> Check<(Box<dyn Fixture>, Arc<dyn Source>, Sample)> {
    let fixture = harness.fresh().await?;
    let abilities = harness.abilities();
    let sample = Sample::new("rows", &abilities)?;
    let cut = |i: i64| rows * i / 4;
    let mut batches = Vec::new();
    for i in 0..4 {
        batches.push(sample.rows(cut(i)..cut(i + 1))?);
    }
    fixture.load(&sample.stream, &batches).await?;
    let source = fixture.source(std::slice::from_ref(&sample.stream)).await?;
    let source = source.ok_or_else(|| Stop::skip("there is no source"))?;
    Ok((fixture, source, sample))
}

/// Fails unless both hold the same rows.
fn same(when: &str, got: &[RecordBatch], expected: &[RecordBatch]) -> Check {
    match diff(got, expected) {
        Some(difference) => Err(Stop::fail(format!("{when}: {difference}"))),
        None => Ok(()),
    }
}

/// Fails unless the result is an error of this kind.
fn fails_with<T>(what: &str, result: Result<T>, kinds: &[ErrorKind]) -> Check {
    match result {
        Err(error) if kinds.contains(&error.kind()) => Ok(()),
        Err(error) => Err(Stop::fail(format!("{what} fails with the wrong kind: {}", error.report()))),
        Ok(_) => Err(Stop::fail(format!("{what} succeeds"))),
    }
}
