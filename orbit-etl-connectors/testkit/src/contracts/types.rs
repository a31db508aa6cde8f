//! What is written comes back.

use arrow::array::RecordBatch;
use orbit_etl_core::StreamInfo;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::same;
use crate::data::{Sample, beside_ids, every_type, fit, prune};
use crate::drive::write_rows;
use crate::harness::{Abilities, Check, Comes, Harness, Stop};
use crate::random::batches;

/// Contract: a column of each Arrow type comes back with the same values, NULLs and the ends of
/// its range among them, as itself or by the declared mapping.
pub async fn every_type_comes_back(harness: &dyn Harness) -> Check {
    let abilities = harness.abilities();
    let mut broken = Vec::new();
    let mut checked = 0;
    for column in every_type() {
        let data_type = column.data_type().clone();
        if let Comes::Never(why) = (abilities.types)(&data_type) {
            eprintln!("skipped: type {data_type}: {why}");
            continue;
        }
        let column = prune(&column, &abilities)?;
        match round_trip(harness, &abilities, &[beside_ids(&column)]).await {
            Ok(()) => checked += 1,
            Err(Stop::Skip(why)) => return Err(Stop::Skip(why)),
            Err(stop) => broken.push(format!("{data_type}: {stop}")),
        }
    }
    if !broken.is_empty() {
        return Err(Stop::fail(broken.join("\n")));
    }
    if checked == 0 { Err(Stop::skip("no type is declared to come back")) } else { Ok(()) }
}

/// Contract: so do batches of random schemas, however they are cut.
pub async fn random_batches_come_back(harness: &dyn Harness) -> Check {
    const CASES: usize = 12;
    let abilities = harness.abilities();
    let mut runner = TestRunner::deterministic();
    for case in 0..CASES {
        let tree = batches(&abilities).new_tree(&mut runner);
        let rows = tree.map_err(|e| Stop::fail(format!("no random batch: {e}")))?.current();
        match round_trip(harness, &abilities, &rows).await {
            Err(Stop::Fail(why)) => {
                let schema = rows.first().map(RecordBatch::schema);
                return Err(Stop::fail(format!("case {case}, {schema:?}: {why}")));
            }
            other => other?,
        }
    }
    Ok(())
}

/// Contract: a slice brings its own rows alone, an empty batch and an epoch without rows bring none.
pub async fn slices_and_empty_batches_come_back(harness: &dyn Harness) -> Check {
    let sample = Sample::new("rows", &harness.abilities())?;
    let whole = sample.rows(0..100)?;
    let cut = [whole.slice(0, 0), whole.slice(13, 40), whole.slice(90, 0), whole.slice(90, 10)];
    let fixture = harness.fresh().await?;
    fixture.load(&sample.stream, &cut).await?;
    let got = fixture.visible(&sample.stream, harness.abilities().idle).await?;
    same("slices", &got, &[sample.expected(13..53)?, sample.expected(90..100)?])?;

    let fixture = harness.fresh().await?;
    fixture.load(&sample.stream, &[whole.slice(0, 0)]).await?;
    let got = fixture.visible(&sample.stream, harness.abilities().idle).await?;
    same("an empty batch", &got, &[sample.expected(0..0)?])
}

async fn round_trip(harness: &dyn Harness, abilities: &Abilities, rows: &[RecordBatch]) -> Check {
    let (mut sent, mut expected) = (Vec::new(), Vec::new());
    for batch in rows {
        let (to, back) = fit(batch, abilities)?;
        sent.push(to);
        expected.push(back);
    }
    let Some(first) = sent.first() else { return Ok(()) };
    let stream = StreamInfo::new("rows", first.schema()).with_keys(["id"]);
    let fixture = harness.fresh().await?;
    match fixture.sink() {
        Some(sink) => write_rows(&*sink, &stream, &sent).await?,
        None => return Err(Stop::skip("there is no sink")),
    }
    let got = fixture.visible(&stream, abilities.idle).await?;
    same("what comes back", &got, &expected)
}
