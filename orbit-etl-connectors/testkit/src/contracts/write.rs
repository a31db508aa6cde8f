//! Sinks: what becomes visible, and when.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use orbit_etl_core::{CommitMode, ErrorKind, Publication, StreamId, StreamInfo};

use super::{Bench, same};
use crate::data::Sample;
use crate::drive::Run;
use crate::harness::{Check, Harness, Stop};

/// Contract: `open` and health checks leave no trace: nothing is visible, nothing staged, and no run
/// is fenced.
pub async fn opening_has_no_effect(harness: &dyn Harness) -> Check {
    let bench = Bench::new(harness).await?;
    let mut run = bench.run(1).await?;
    bench.sink.health(&bench.cx).await?;
    drop(bench.sink.open(&bench.cx, bench.streams()).await?);
    bench.shows("after opening", &[]).await?;
    bench.nothing_staged("after opening").await?;
    run.epoch(1, &[bench.sample.rows(0..10)?]).await?;
    bench.shows("after the first run's commit", &[0..10]).await
}

/// Contract: prepared rows are invisible until they are committed, but for an immediate sink, which
/// shows them when `prepare` returns. Unprepared rows of the next epoch stay out of a commit.
pub async fn a_prepared_epoch_is_visible_as_promised(harness: &dyn Harness) -> Check {
    let bench = Bench::each_epoch(harness).await?;
    let mut run = bench.run(1).await?;
    run.write(0, 0, bench.sample.rows(0..50)?).await?;
    run.write(0, 0, bench.sample.rows(50..80)?).await?;
    let staged = run.prepare(1).await?;
    match bench.mode() {
        CommitMode::Immediate => bench.shows("prepared", &[0..80]).await?,
        _ => bench.shows("prepared, not committed", &[]).await?,
    }
    if bench.mode() == CommitMode::Staged {
        run.write(0, 0, bench.sample.rows(80..90)?).await?;
    }
    run.commit(1, staged).await?;
    bench.shows("committed", &[0..80]).await?;
    if bench.mode() == CommitMode::Staged {
        let staged = run.prepare(2).await?;
        run.commit(2, staged).await?;
        bench.shows("the next epoch committed", &[0..90]).await?;
    }
    bench.nothing_staged("with everything committed").await?;
    Ok(run.close().await?)
}

/// Contract: committing an epoch again, in the same run or a later one, changes nothing.
pub async fn a_second_commit_does_nothing(harness: &dyn Harness) -> Check {
    let bench = Bench::each_epoch(harness).await?;
    let mut run = bench.run(1).await?;
    let first = run.epoch(1, &[bench.sample.rows(0..30)?]).await?;
    run.commit(1, first.clone()).await?;
    bench.shows("the epoch committed twice", &[0..30]).await?;
    let second = run.epoch(2, &[bench.sample.rows(30..40)?]).await?;
    drop(run);
    let mut later = bench.run(2).await?;
    later.commit(1, first).await?;
    later.commit(2, second).await?;
    bench.shows("both epochs committed again by a later run", &[0..40]).await?;
    later.epoch(3, &[bench.sample.rows(40..50)?]).await?;
    bench.shows("the later run's own epoch", &[0..50]).await
}

/// Contract: an epoch without rows can be committed, is recorded, and shows nothing new.
pub async fn an_empty_epoch_commits(harness: &dyn Harness) -> Check {
    let bench = Bench::each_epoch(harness).await?;
    let mut run = bench.run(1).await?;
    run.epoch(1, &[]).await?;
    run.writer(0).await?;
    run.epoch(2, &[]).await?;
    bench.shows("after empty epochs", &[]).await?;
    run.epoch(3, &[bench.sample.rows(0..5)?]).await?;
    run.epoch(4, &[]).await?;
    bench.shows("after rows between empty epochs", &[0..5]).await?;
    drop(run);
    let found = bench.run(2).await?.found.map_or(0, |f| f.epoch);
    if bench.abilities.records_epochs && found != 4 {
        return Err(Stop::fail(format!("epoch 4 was empty, and epoch {found} is recorded")));
    }
    Ok(())
}

/// Contract: the rows of all lanes and all epochs are there, each once.
pub async fn lanes_and_epochs_add_up(harness: &dyn Harness) -> Check {
    let bench = Bench::each_epoch(harness).await?;
    let mut run = bench.run(1).await?;
    let mut start = 0;
    for epoch in 1..=3 {
        for lane in 0..3 {
            let rows = bench.sample.rows(start..start + 100)?;
            run.write(lane, 0, rows.slice(0, 60)).await?;
            run.write(lane, 0, rows.slice(60, 40)).await?;
            start += 100;
        }
        let staged = run.prepare(epoch).await?;
        run.commit(epoch, staged).await?;
    }
    run.close().await?;
    bench.shows("three lanes, three epochs", &[0..900]).await
}

/// Contract: several streams of one run keep their rows apart and are committed together.
pub async fn streams_stay_apart(harness: &dyn Harness) -> Check {
    let bench = Bench::new(harness).await?;
    if !bench.abilities.several_streams {
        return Err(Stop::skip("the target holds one stream"));
    }
    let other = Sample::new("others", &bench.abilities)?;
    let streams = [bench.sample.stream.clone(), other.stream.clone()];
    let mut run = Run::start(&bench.cx, &*bench.sink, &streams, 1).await?;
    run.write(0, 1, other.rows(100..120)?).await?;
    run.write(0, 0, bench.sample.rows(0..10)?).await?;
    run.write(0, 1, other.rows(120..130)?).await?;
    let staged = run.prepare(1).await?;
    run.commit(1, staged).await?;
    bench.shows("the first stream", &[0..10]).await?;
    let got = bench.fixture.visible(&other.stream, bench.abilities.idle).await?;
    same("the second stream", &got, &[other.expected(100..130)?])
}

/// Contract: when a stream gains a nullable column, the writer follows, and both old and new rows are
/// there; or it refuses with `Schema`, and what was committed stays.
pub async fn a_changed_schema_is_followed_or_refused(harness: &dyn Harness) -> Check {
    let bench = Bench::each_epoch(harness).await?;
    let mut run = bench.run(1).await?;
    run.epoch(1, &[bench.sample.rows(0..10)?]).await?;
    let rows = bench.sample.rows(10..20)?;
    let extra: ArrayRef = Arc::new(Int64Array::from_iter_values(0..10));
    let mut fields = rows.schema().fields().to_vec();
    fields.push(Arc::new(Field::new("extra", DataType::Int64, true)));
    let schema = Arc::new(Schema::new(fields));
    let columns = rows.columns().iter().cloned().chain([extra]).collect();
    let wider = RecordBatch::try_new(schema.clone(), columns).map_err(|e| Stop::fail(e.to_string()))?;
    match run.writer(0).await?.schema_changed(StreamId(0), &schema).await {
        Err(error) if error.kind() == ErrorKind::Schema => {
            drop(run);
            return bench.shows("after a refused schema", &[0..10]).await;
        }
        other => other?,
    }
    run.epoch(2, &[wider]).await?;
    run.close().await?;
    let stream = StreamInfo { schema, ..bench.sample.stream.clone() };
    let got = bench.fixture.visible(&stream, bench.abilities.idle).await?;
    let mut ids = integers(&got, "id");
    ids.sort_unstable();
    let mut extras = integers(&got, "extra");
    extras.sort_unstable();
    if ids != (0..20).collect::<Vec<_>>() || extras != (0..10).collect::<Vec<_>>() {
        let found = (ids.len(), extras.len());
        return Err(Stop::fail(format!(
            "(rows, values in the new column) are {found:?} instead of (20, 10)"
        )));
    }
    Ok(())
}

/// Contract: a sink that publishes at the end shows nothing of a generation before, and then all of
/// it; nothing if it is never committed.
pub async fn a_generation_appears_at_its_end(harness: &dyn Harness) -> Check {
    let bench = Bench::new(harness).await?;
    if bench.sink.publication() != Publication::AtEnd {
        return Err(Stop::skip("the sink publishes each epoch"));
    }
    let mut run = bench.run(1).await?;
    run.write(0, 0, bench.sample.rows(0..10)?).await?;
    let mut staged = run.prepare(1).await?;
    drop(run);
    bench.shows("before the end", &[]).await?;
    let mut run = bench.run(2).await?;
    run.write(0, 0, bench.sample.rows(10..20)?).await?;
    staged.extend(run.prepare(2).await?);
    bench.shows("before the end", &[]).await?;
    run.commit(2, staged.clone()).await?;
    bench.shows("at the end", &[0..20]).await?;
    run.commit(2, staged).await?;
    bench.shows("committed again", &[0..20]).await
}

fn integers(batches: &[RecordBatch], column: &str) -> Vec<i64> {
    let columns = batches.iter().filter_map(|b| b.column_by_name(column));
    let columns = columns.filter_map(|c| cast(c, &DataType::Int64).ok());
    columns.flat_map(|c| c.as_primitive::<Int64Type>().iter().flatten().collect::<Vec<_>>()).collect()
}
