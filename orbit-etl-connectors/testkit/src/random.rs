//! Random batches.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, ListArray,
    RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Strategy, any};
use proptest::sample::select;

use crate::data::batch;
use crate::harness::Abilities;

/// Batches of one random schema with an `id` and one to five nullable columns, cut at random places,
/// with values that `abilities` allow. Types may be ones that the connector never takes.
pub fn batches(abilities: &Abilities) -> impl Strategy<Value = Vec<RecordBatch>> + use<> {
    let abilities = abilities.clone();
    let kinds: Vec<Make> = vec![booleans, ints, floats, texts, bytes, dates, times, decimals, lists];
    let columns = vec((select(kinds), vec(option::weighted(0.8, any::<i64>()), 60)), 1..6);
    (columns, 0_usize..60, vec(0_usize..60, 0..4)).prop_map(move |(columns, rows, mut cuts)| {
        let columns = columns.iter().map(|(make, seeds)| make(&seeds[..rows], &abilities));
        let columns: Vec<ArrayRef> = columns.collect();
        let mut fields = vec![Field::new("id", DataType::Int64, false)];
        let named = columns.iter().enumerate();
        fields.extend(named.map(|(i, c)| Field::new(format!("c{i}"), c.data_type().clone(), true)));
        #[allow(clippy::cast_possible_wrap)] // At most 60.
        let ids = Int64Array::from_iter_values(0..rows as i64);
        let whole = batch(fields, [Arc::new(ids) as ArrayRef].into_iter().chain(columns).collect());
        cuts.retain(|cut| *cut <= rows);
        cuts.extend([0, rows]);
        cuts.sort_unstable();
        cuts.windows(2).map(|cut| whole.slice(cut[0], cut[1] - cut[0])).collect()
    })
}

type Make = fn(&[Option<i64>], &Abilities) -> ArrayRef;

fn booleans(seeds: &[Option<i64>], _: &Abilities) -> ArrayRef {
    Arc::new(seeds.iter().map(|s| s.map(|s| s % 2 == 0)).collect::<BooleanArray>())
}

fn ints(seeds: &[Option<i64>], _: &Abilities) -> ArrayRef {
    Arc::new(seeds.iter().copied().collect::<Int64Array>())
}

#[allow(clippy::cast_precision_loss, clippy::cast_sign_loss)] // Any number will do.
fn floats(seeds: &[Option<i64>], abilities: &Abilities) -> ArrayRef {
    let value = |seed: i64| {
        let any = f64::from_bits(seed as u64);
        let plain = !any.is_finite() && !abilities.non_finite || any == 0.0 && !abilities.negative_zero;
        if plain { seed as f64 } else { any }
    };
    Arc::new(seeds.iter().map(|s| s.map(value)).collect::<Float64Array>())
}

fn text(seed: i64, abilities: &Abilities) -> String {
    const PIECES: [&str; 8] = ["a", "\"", ",", "é", "東", " ", "🦀", "\n"];
    let mut rest = seed.unsigned_abs();
    let mut text = String::new();
    while rest > 0 && text.len() < 24 {
        let piece = PIECES[usize::try_from(rest % 8).unwrap_or_default()];
        if abilities.control_characters || piece != "\n" {
            text.push_str(piece);
        }
        rest /= 8;
    }
    if text.is_empty() && !abilities.empty_text { "x".into() } else { text }
}

fn texts(seeds: &[Option<i64>], abilities: &Abilities) -> ArrayRef {
    Arc::new(seeds.iter().map(|s| s.map(|s| text(s, abilities))).collect::<StringArray>())
}

fn bytes(seeds: &[Option<i64>], _: &Abilities) -> ArrayRef {
    let bytes =
        |seed: i64| seed.to_le_bytes()[..usize::try_from(seed.unsigned_abs() % 9).unwrap_or(8)].to_vec();
    Arc::new(seeds.iter().map(|s| s.map(bytes)).collect::<BinaryArray>())
}

/// Between 1970 and 2070, which every calendar has.
fn dates(seeds: &[Option<i64>], _: &Abilities) -> ArrayRef {
    let day = |seed: i64| i32::try_from(seed.rem_euclid(36_500)).unwrap_or_default();
    Arc::new(seeds.iter().map(|s| s.map(day)).collect::<Date32Array>())
}

fn times(seeds: &[Option<i64>], _: &Abilities) -> ArrayRef {
    let micros = |seed: i64| seed.rem_euclid(3_153_600_000_000_000);
    Arc::new(seeds.iter().map(|s| s.map(micros)).collect::<TimestampMicrosecondArray>())
}

fn decimals(seeds: &[Option<i64>], _: &Abilities) -> ArrayRef {
    let plain = seeds.iter().map(|s| s.map(i128::from)).collect::<Decimal128Array>();
    let scaled = plain.clone().with_precision_and_scale(20, 4);
    Arc::new(scaled.unwrap_or(plain))
}

fn lists(seeds: &[Option<i64>], _: &Abilities) -> ArrayRef {
    let list = |seed: i64| (0..seed.rem_euclid(4)).map(move |i| (i != 2).then_some(seed / (i + 1)));
    let lists = seeds.iter().map(|s| s.map(|s| list(s).collect::<Vec<_>>()));
    Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists))
}
