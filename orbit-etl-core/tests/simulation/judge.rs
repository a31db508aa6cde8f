//! What must hold at the end.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use orbit_etl_core::memory::MemoryTable;
use orbit_etl_core::{Delivery, Replay};

use super::files::ids;
use super::history::Targets;
use super::shape::{FallbackKind, LETTERS, NodeShape, Rows, Shape, SinkKind};
use super::transforms::{Model, group_of};
use super::world::World;

impl Targets {
    fn batches(&self, sink: &str) -> Vec<RecordBatch> {
        let of = |table: &MemoryTable| -> Vec<_> {
            table.streams().iter().flat_map(|s| table.batches(s)).collect()
        };
        let mut batches = match (self.tables.get(sink), self.folders.get(sink)) {
            (Some(table), _) => of(table),
            (None, Some(folder)) => folder.batches(),
            (None, None) => Vec::new(),
        };
        // A row is in the sink or in its fallback.
        batches.extend(self.fallbacks.get(sink).map(of).unwrap_or_default());
        batches
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
        for sink in &self.shape.sinks {
            let promise = self.shape.promise(&sink.name);
            let found = self.rows(&sink.name);
            compare(world, &format!("{when}, {}", sink.name), promise, &expected[&sink.name], &found);
            if promise == Delivery::ExactlyOnce {
                self.judge_numbers(world, when, &sink.name, &sink.inputs);
            }
        }
        if self.shape.rejects {
            let promise = self.shape.promise(LETTERS);
            compare(world, &format!("{when}, dead letters"), promise, &letters, &self.letters());
        }
    }

    /// Rows that were numbered by key bear each number once: the operator's state was that of its rows.
    fn judge_numbers(&self, world: &World, when: &str, sink: &str, inputs: &[String]) {
        let [input] = inputs else { return };
        let shape = self.shape.sinks.iter().find(|s| s.name == *sink).unwrap();
        let numbered = self.shape.nodes.iter().any(|n| n.name == *input && n.model == Model::Keyed);
        if !numbered
            || shape.at_prepare
            || shape.at_commit
            || shape.at_write
            || shape.kind == SinkKind::Upsert
        {
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
}

impl Shape {
    /// What a sink must keep to: derived here a second time, and compared with what the plan says.
    pub(crate) fn promise(&self, sink: &str) -> Delivery {
        let mut origins = BTreeSet::new();
        let by_sink = match self.sinks.iter().find(|s| s.name == sink) {
            Some(shape) => {
                self.origins(&shape.inputs, &mut origins);
                let keeper = self.sinks.iter().find(|s| s.kind == SinkKind::Atomic).map(|s| &s.name);
                match shape.kind {
                    _ if shape.fallback == Some(FallbackKind::Immediate) => Delivery::AtLeastOnce,
                    SinkKind::Staged | SinkKind::Files => Delivery::ExactlyOnce,
                    SinkKind::Atomic if keeper == Some(&shape.name) => Delivery::ExactlyOnce,
                    SinkKind::Upsert if shape.fallback.is_none() => Delivery::EffectivelyOnce,
                    SinkKind::Atomic | SinkKind::Immediate | SinkKind::Upsert => Delivery::AtLeastOnce,
                }
            }
            None => {
                origins.extend(self.sources.iter().map(|s| s.name.as_str()));
                if self.letters_immediate { Delivery::AtLeastOnce } else { Delivery::ExactlyOnce }
            }
        };
        let read = self.sources.iter().filter(|s| origins.contains(s.name.as_str()));
        let (gone, again): (Vec<_>, Vec<_>) = read.partition(|s| s.replay == Replay::None);
        match by_sink {
            kept if gone.is_empty() => kept,
            Delivery::AtLeastOnce if !again.is_empty() || self.keeps_state(sink) => Delivery::BestEffort,
            _ => Delivery::AtMostOnce,
        }
    }

    /// Whether a transform with a state lies before a sink, or anywhere for dead letters.
    fn keeps_state(&self, sink: &str) -> bool {
        let keeps = |n: &NodeShape| matches!(n.model, Model::Keyed | Model::Hold);
        let Some(sink) = self.sinks.iter().find(|s| s.name == sink) else {
            return self.nodes.iter().any(keeps);
        };
        let mut before: Vec<&String> = sink.inputs.iter().collect();
        while let Some(name) = before.pop() {
            let Some(node) = self.nodes.iter().find(|n| n.name == *name) else { continue };
            if keeps(node) {
                return true;
            }
            before.extend(&node.inputs);
        }
        false
    }

    fn origins<'a>(&'a self, inputs: &'a [String], found: &mut BTreeSet<&'a str>) {
        for input in inputs {
            match self.nodes.iter().find(|n| n.name == *input) {
                Some(node) => self.origins(&node.inputs, found),
                None => {
                    found.insert(input);
                }
            }
        }
    }
}

fn compare<K: Ord + std::fmt::Debug>(
    world: &World,
    place: &str,
    promise: Delivery,
    expected: &BTreeMap<K, usize>,
    found: &BTreeMap<K, usize>,
) {
    for (key, wanted) in expected {
        let there = found.get(key).copied().unwrap_or(0);
        if there < *wanted && promise > Delivery::AtMostOnce {
            return world.wrong(format!("{place}: {key:?} is there {there} times instead of {wanted}: lost"));
        }
        if there > *wanted && !matches!(promise, Delivery::AtLeastOnce | Delivery::BestEffort) {
            return world
                .wrong(format!("{place}: {key:?} is there {there} times instead of {wanted}: doubled"));
        }
    }
    if let Some(key) = found.keys().find(|key| !expected.contains_key(key)) {
        world.wrong(format!("{place}: {key:?} must not be there"));
    }
}
