//! What must hold at the end.

use std::collections::BTreeMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use orbit_etl_core::Replay;

use super::files::ids;
use super::history::Targets;
use super::shape::{Rows, SinkKind};
use super::transforms::{Model, group_of};
use super::world::World;

/// What `explain` would promise, derived here a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    AtMostOnce,
    AtLeastOnce,
    Exactly,
}

impl Targets {
    fn batches(&self, sink: &str) -> Vec<RecordBatch> {
        match (self.tables.get(sink), self.folders.get(sink)) {
            (Some(table), _) => table.streams().iter().flat_map(|s| table.batches(s)).collect(),
            (None, Some(folder)) => folder.batches(),
            (None, None) => Vec::new(),
        }
    }

    pub(crate) fn rows(&self, sink: &str) -> Rows {
        let mut rows = Rows::new();
        for id in self.batches(sink).iter().flat_map(ids) {
            *rows.entry(id).or_default() += 1;
        }
        rows
    }

    /// Dead letters, by node and id.
    pub(crate) fn letters(&self) -> BTreeMap<(String, i64), usize> {
        let mut letters = BTreeMap::new();
        for batch in self.letters.streams().iter().flat_map(|s| self.letters.batches(s)) {
            let nodes = batch.column_by_name("node").unwrap().as_string::<i32>();
            let texts = batch.column_by_name("text").unwrap().as_string::<i32>();
            for (node, text) in nodes.iter().zip(texts) {
                let row: serde_json::Value = serde_json::from_str(text.unwrap()).unwrap();
                let id = row["id"].as_i64().unwrap();
                *letters.entry((node.unwrap().to_owned(), id)).or_default() += 1;
            }
        }
        letters
    }

    pub(crate) fn judge(&self, world: &World, when: &str) {
        let (expected, letters) = self.shape.expected();
        let keeper = self.shape.sinks.iter().find(|s| s.kind == SinkKind::Atomic).map(|s| &s.name);
        for sink in &self.shape.sinks {
            let promise = if self.is_lossy(&sink.inputs) {
                Promise::AtMostOnce
            } else {
                match sink.kind {
                    SinkKind::Immediate => Promise::AtLeastOnce,
                    SinkKind::Atomic if keeper != Some(&sink.name) => Promise::AtLeastOnce,
                    _ => Promise::Exactly,
                }
            };
            let found = self.rows(&sink.name);
            // No row that replay can't give back makes a sink without transactions write twice.
            compare(world, &format!("{when}, {}", sink.name), promise, &expected[&sink.name], &found);
            if promise == Promise::Exactly {
                self.judge_numbers(world, when, &sink.name, &sink.inputs);
            }
        }
        if self.shape.rejects {
            let promise = match (self.shape.sources.iter().any(|s| s.replay == Replay::None), self.shape.letters_immediate)
            {
                (true, _) => Promise::AtMostOnce,
                (false, true) => Promise::AtLeastOnce,
                (false, false) => Promise::Exactly,
            };
            compare(world, &format!("{when}, dead letters"), promise, &letters, &self.letters());
        }
    }

    /// Rows that were numbered by key bear each number once: the operator's state was that of its rows.
    fn judge_numbers(&self, world: &World, when: &str, sink: &str, inputs: &[String]) {
        let [input] = inputs else { return };
        let shape = self.shape.sinks.iter().find(|s| s.name == *sink).unwrap();
        let numbered = self.shape.nodes.iter().any(|n| n.name == *input && n.model == Model::Keyed);
        if !numbered || shape.at_prepare || shape.at_commit || shape.kind == SinkKind::Upsert {
            return;
        }
        let mut numbers: BTreeMap<Option<i64>, Vec<i64>> = BTreeMap::new();
        for batch in self.batches(sink) {
            let seq = batch.column_by_name("seq").unwrap().as_primitive::<Int64Type>();
            for (id, seq) in ids(&batch).into_iter().zip(seq.values()) {
                numbers.entry(group_of(id)).or_default().push(*seq);
            }
        }
        for (key, mut of) in numbers {
            of.sort_unstable();
            if of != (1..=of.len() as i64).collect::<Vec<_>>() {
                world.wrong(format!("{when}, {sink}: the rows of key {key:?} are numbered {of:?}"));
            }
        }
    }

    /// Whether a row that was read may be gone.
    fn is_lossy(&self, inputs: &[String]) -> bool {
        inputs.iter().any(|input| {
            self.shape.sources.iter().any(|s| s.name == *input && s.replay == Replay::None)
                || self.shape.nodes.iter().any(|n| n.name == *input && self.is_lossy(&n.inputs))
        })
    }
}

fn compare<K: Ord + std::fmt::Debug>(
    world: &World,
    place: &str,
    promise: Promise,
    expected: &BTreeMap<K, usize>,
    found: &BTreeMap<K, usize>,
) {
    for (key, wanted) in expected {
        let there = found.get(key).copied().unwrap_or(0);
        if there < *wanted && promise != Promise::AtMostOnce {
            return world.wrong(format!("{place}: {key:?} is there {there} times instead of {wanted}: lost"));
        }
        if there > *wanted && promise != Promise::AtLeastOnce {
            return world.wrong(format!("{place}: {key:?} is there {there} times instead of {wanted}: doubled"));
        }
    }
    if let Some(key) = found.keys().find(|key| !expected.contains_key(key)) {
        world.wrong(format!("{place}: {key:?} must not be there"));
    }
}
