//! Sources: splits, positions, pushdown.

use std::collections::BTreeSet;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use datafusion_expr::{Expr, col, lit};
use futures::StreamExt;
use orbit_etl_core::{FilterPushdown, Position, Replay, ScanRequest, Source, SourceEvent, StreamId};

use super::{loaded, same};
use crate::data::{name, score};
use crate::drive::{context, everything, read, read_split, rows, splits};
use crate::harness::{Abilities, Check, Harness, Stop};

/// How many rows the source contracts read.
const ROWS: i64 = 400;

/// Contract: `streams` names each stream once, with keys among its columns and the schema that its
/// batches have.
pub async fn streams_describe_their_rows(harness: &dyn Harness) -> Check {
    let (_fixture, source, sample) = loaded(harness, ROWS).await?;
    let streams = source.streams(&context()?).await?;
    let names: BTreeSet<_> = streams.iter().map(|s| &s.name).collect();
    if streams.is_empty() || names.len() != streams.len() {
        return Err(Stop::fail(format!("stream names aren't unique: {names:?}")));
    }
    for stream in &streams {
        if let Some(key) = stream.keys.iter().find(|k| stream.schema.index_of(k).is_err()) {
            return Err(Stop::fail(format!("the key {key} of stream {} isn't a column", stream.name)));
        }
    }
    let batches = read(&*source, harness.abilities().idle).await?.into_batches(0);
    if let Some(odd) = batches.iter().find(|b| b.schema() != streams[0].schema) {
        let (got, announced) = (odd.schema(), &streams[0].schema);
        return Err(Stop::fail(format!("a batch has {got:?} where the stream announces {announced:?}")));
    }
    same("the whole stream", &batches, &[sample.expected(0..ROWS)?])
}

/// Contract: splits have the same names whenever they are listed, each name once; after each of the
/// enumerator's positions come just the changes that follow.
pub async fn splits_keep_their_names(harness: &dyn Harness) -> Check {
    let (fixture, source, sample) = loaded(harness, ROWS).await?;
    let (cx, idle) = (context()?, harness.abilities().idle);
    let told = splits(&cx, &*source, None, idle).await?;
    let ids = |changes: &[orbit_etl_core::SplitChange]| -> Vec<_> {
        changes.iter().flat_map(|c| &c.added).map(|s| s.id.clone()).collect()
    };
    let all = ids(&told);
    if all.iter().collect::<BTreeSet<_>>().len() != all.len() {
        return Err(Stop::fail(format!("splits are told of twice: {all:?}")));
    }
    // Another value of the same configuration, as in another process.
    let again = fixture.source(std::slice::from_ref(&sample.stream)).await?;
    let again = again.ok_or_else(|| Stop::skip("there is no source"))?;
    let second = ids(&splits(&cx, &*again, None, idle).await?);
    if second != all {
        return Err(Stop::fail(format!("splits change their names: {all:?}, then {second:?}")));
    }
    for (i, change) in told.iter().enumerate() {
        let position = through_json(&change.position)?;
        let rest = ids(&splits(&cx, &*again, Some(&position), idle).await?);
        if rest != ids(&told[i + 1..]) {
            return Err(Stop::fail(format!("after {position} come {rest:?}")));
        }
    }
    Ok(())
}

/// Contract: opening a split after any position that it has given yields exactly the rows after it.
pub async fn every_position_gives_the_rest(harness: &dyn Harness) -> Check {
    let (fixture, source, sample) = loaded(harness, ROWS).await?;
    if source.replay() == Replay::None {
        return Err(Stop::skip("the source can't be read again"));
    }
    let (cx, idle) = (context()?, harness.abilities().idle);
    let scan = everything(&cx, &*source).await?;
    let again = fixture.source(std::slice::from_ref(&sample.stream)).await?;
    let again = again.ok_or_else(|| Stop::skip("there is no source"))?;
    let (mut all, mut positions) = (Vec::new(), 0);
    for split in splits(&cx, &*source, None, idle).await?.into_iter().flat_map(|c| c.added) {
        let events = read_split(&cx, &*source, &split, None, &scan, idle).await?;
        let last = events.len();
        for i in 0..last {
            let Some(position) = position_of(&events[i]) else { continue };
            positions += 1;
            let rest = rows(events[i + 1..].iter().cloned(), 0);
            if source.replay() == Replay::WholeSplit && rest.iter().any(|b| b.num_rows() > 0) {
                return Err(Stop::fail(format!("{} has the position {position} inside", split.id)));
            }
            let position = through_json(position)?;
            let got = read_split(&cx, &*again, &split, Some(&position), &scan, idle).await?;
            same(&format!("{} after {position}", split.id), &rows(got, 0), &rest)?;
        }
        all.extend(rows(events, 0));
    }
    same("all splits", &all, &[sample.expected(0..ROWS)?])?;
    if positions == 0 {
        return Err(Stop::fail("no split gives any position: no epoch could end"));
    }
    Ok(())
}

/// Contract: a stream can be dropped at any event; opened again, the split gives every row.
pub async fn a_dropped_stream_leaves_nothing_behind(harness: &dyn Harness) -> Check {
    let (_fixture, source, sample) = loaded(harness, ROWS).await?;
    if source.replay() == Replay::None {
        return Err(Stop::skip("the source can't be read again"));
    }
    let (cx, idle) = (context()?, harness.abilities().idle);
    let scan = everything(&cx, &*source).await?;
    for split in splits(&cx, &*source, None, idle).await?.into_iter().flat_map(|c| c.added) {
        for events in [0, 1, 2] {
            let mut stream = source.open(&cx, &split, None, &scan).await?;
            for _ in 0..events {
                if let Some(event) = stream.next().await {
                    event?;
                }
            }
        }
    }
    let batches = read(&*source, idle).await?.into_batches(0);
    same("after dropped streams", &batches, &[sample.expected(0..ROWS)?])
}

/// Contract: a projection that the source takes leaves just the wanted columns, of the same rows, and
/// positions mean the same under it.
pub async fn projection_keeps_the_rows(harness: &dyn Harness) -> Check {
    let (_fixture, source, sample) = loaded(harness, ROWS).await?;
    let (cx, idle) = (context()?, harness.abilities().idle);
    let whole = sample.expected(0..ROWS)?;
    let last = whole.num_columns() - 1;
    for columns in [vec![0], vec![last], (0..=last).collect::<Vec<_>>(), Vec::new()] {
        let expected = whole.project(&columns).map_err(|e| Stop::fail(e.to_string()))?;
        let names: Vec<_> = expected.schema().fields().iter().map(|f| f.name().clone()).collect();
        let mut request = ScanRequest::all(StreamId(0), 64);
        request.projection = Some(names.clone());
        if !source.pushdown(&request).projection {
            return Err(Stop::skip("the source has no projection pushdown"));
        }
        let full = everything(&cx, &*source).await?;
        let mut got = Vec::new();
        for split in splits(&cx, &*source, None, idle).await?.into_iter().flat_map(|c| c.added) {
            let narrow = [request.clone()];
            let events = read_split(&cx, &*source, &split, None, &narrow, idle).await?;
            if source.replay() == Replay::Exact
                && let Some(middle) = events.iter().filter_map(position_of).nth(1)
            {
                let rest = read_split(&cx, &*source, &split, Some(middle), &full, idle).await?;
                let narrowed = read_split(&cx, &*source, &split, Some(middle), &narrow, idle).await?;
                if count(&rows(rest, 0)) != count(&rows(narrowed, 0)) {
                    return Err(Stop::fail(format!("{middle} means something else under {names:?}")));
                }
            }
            got.extend(rows(events, 0));
        }
        same(&format!("columns {names:?}"), &got, &[expected])?;
    }
    Ok(())
}

/// Contract: a filter taken as `Inexact` leaves at least the rows for which it is true, one taken as
/// `Exact` just those. NULL and NaN are where it goes wrong.
pub async fn filters_keep_what_they_must(harness: &dyn Harness) -> Check {
    let (_fixture, source, sample) = loaded(harness, ROWS).await?;
    let (cx, abilities) = (context()?, harness.abilities());
    let schema = sample.expected(0..0)?.schema();
    let (mut taken, mut seen) = (0, 0);
    for (filter, keeps) in filters() {
        if filter.column_refs().iter().any(|c| schema.index_of(&c.name).is_err()) {
            continue;
        }
        seen += 1;
        let mut request = ScanRequest::all(StreamId(0), 64);
        request.filters = vec![filter.clone()];
        let answers = source.pushdown(&request).filters;
        let [answer] = answers[..] else {
            return Err(Stop::fail(format!("one filter is answered {} times", answers.len())));
        };
        if answer == FilterPushdown::Unsupported {
            continue;
        }
        taken += 1;
        let got = ids(&scan_all(&cx, &*source, &request, abilities.idle).await?);
        let wanted: BTreeSet<_> = (0..ROWS).filter(|id| keeps(*id, &abilities)).collect();
        if let Some(lost) = wanted.iter().find(|id| !got.contains(id)) {
            return Err(Stop::fail(format!("{filter} loses row {lost}")));
        }
        if answer == FilterPushdown::Exact && got.len() != wanted.len() {
            let surplus = got.len().abs_diff(wanted.len());
            return Err(Stop::fail(format!("{filter} is exact, but {surplus} row(s) too many come")));
        }
    }
    if taken == 0 { Err(Stop::skip(format!("the source takes none of {seen} filters"))) } else { Ok(()) }
}

/// Contract: a health check of something healthy passes.
pub async fn health_answers(harness: &dyn Harness) -> Check {
    let fixture = harness.fresh().await?;
    let cx = context()?;
    if let Some(sink) = fixture.sink() {
        sink.validate()?;
        sink.health(&cx).await?;
    }
    match loaded(harness, 10).await {
        Ok((_fixture, source, _)) => {
            source.validate()?;
            source.health(&cx).await?;
            Ok(())
        }
        Err(Stop::Skip(_)) if fixture.sink().is_some() => Ok(()),
        Err(stop) => Err(stop),
    }
}

type Keeps = fn(i64, &Abilities) -> bool;

fn filters() -> Vec<(Expr, Keeps)> {
    // DataFusion puts NaN above every number.
    vec![
        (col("id").gt(lit(350_i64)), |id, _| id > 350),
        (col("id").lt_eq(lit(3_i64)), |id, _| id <= 3),
        (col("id").eq(lit(77_i64)), |id, _| id == 77),
        (col("id").gt(lit(1_000_000_i64)), |_, _| false),
        (col("id").gt_eq(lit(100_i64)).and(col("id").lt(lit(110_i64))), |id, _| (100..110).contains(&id)),
        (col("id").eq(lit(5_i64)).or(col("id").eq(lit(300_i64))), |id, _| id == 5 || id == 300),
        (col("id").in_list(vec![lit(1_i64), lit(399_i64)], false), |id, _| id == 1 || id == 399),
        (col("name").eq(lit("name 3")), |id, _| name(id).as_deref() == Some("name 3")),
        (col("name").not_eq(lit("name 3")), |id, _| name(id).is_some_and(|n| n != "name 3")),
        (col("name").gt(lit("name 5")), |id, _| name(id).is_some_and(|n| n.as_str() > "name 5")),
        (col("name").is_null(), |id, _| name(id).is_none()),
        (col("name").is_not_null(), |id, _| name(id).is_some()),
        (col("score").gt(lit(50.0_f64)), |id, a| score(id, a).is_some_and(|s| s.is_nan() || s > 50.0)),
        (col("score").lt(lit(50.0_f64)), |id, a| score(id, a).is_some_and(|s| s < 50.0)),
        (col("score").is_null(), |id, a| score(id, a).is_none()),
    ]
}

async fn scan_all(
    cx: &orbit_etl_core::Context,
    source: &dyn Source,
    request: &ScanRequest,
    idle: std::time::Duration,
) -> Check<Vec<RecordBatch>> {
    let mut got = Vec::new();
    for split in splits(cx, source, None, idle).await?.into_iter().flat_map(|c| c.added) {
        let request = std::slice::from_ref(request);
        got.extend(rows(read_split(cx, source, &split, None, request, idle).await?, 0));
    }
    Ok(got)
}

fn ids(batches: &[RecordBatch]) -> Vec<i64> {
    let column = |b: &RecordBatch| {
        let ids = b
            .column_by_name("id")
            .and_then(|c| arrow::compute::cast(c, &arrow::datatypes::DataType::Int64).ok());
        ids.map_or_else(Vec::new, |c| c.as_primitive::<Int64Type>().values().to_vec())
    };
    batches.iter().flat_map(column).collect()
}

fn count(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

fn position_of(event: &SourceEvent) -> Option<&Position> {
    match event {
        SourceEvent::Batch { position, .. } | SourceEvent::Rejects { position, .. } => position.as_ref(),
        SourceEvent::Progress(position) => Some(position),
        _ => None,
    }
}

/// A position as it comes out of a checkpoint.
fn through_json(position: &Position) -> Check<Position> {
    let text = serde_json::to_string(position);
    let back = text.and_then(|text| serde_json::from_str(&text));
    back.map_err(|e| Stop::fail(format!("a position isn't JSON: {e}")))
}
