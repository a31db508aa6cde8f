//! What a history runs: a pipeline drawn from the seed, and where each of its rows must end.

use std::collections::BTreeMap;

use orbit_etl_core::Replay;

use super::transforms::{Model, map_filters, map_rejects};
use super::world::Random;

/// What the plan calls the sink of dead letters.
pub(crate) const LETTERS: &str = "dead_letters";

/// How often each row of a node goes out.
pub(crate) type Rows = BTreeMap<i64, usize>;

#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) sources: Vec<SourceShape>,
    pub(crate) nodes: Vec<NodeShape>,
    pub(crate) sinks: Vec<SinkShape>,
    /// The streams say that they end.
    pub(crate) bounded: bool,
    /// All sinks publish at the end, and read anew each time.
    pub(crate) at_end: bool,
    pub(crate) rejects: bool,
    pub(crate) letters_immediate: bool,
    pub(crate) keys: bool,
    pub(crate) epoch_millis: u64,
    pub(crate) edge_bytes: usize,
    /// Calls are repeated.
    pub(crate) retries: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct SourceShape {
    pub(crate) name: String,
    pub(crate) streams: usize,
    pub(crate) replay: Replay,
    pub(crate) splits: Vec<SplitShape>,
    pub(crate) revokes: bool,
    pub(crate) releases: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct SplitShape {
    pub(crate) name: String,
    pub(crate) bounded: bool,
    pub(crate) after: Option<String>,
    pub(crate) entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
pub(crate) enum Entry {
    Rows { stream: usize, ids: Vec<i64> },
    Unit(Vec<(usize, Vec<i64>)>),
    Reject(i64),
}

#[derive(Debug, Clone)]
pub(crate) struct NodeShape {
    pub(crate) name: String,
    pub(crate) model: Model,
    pub(crate) inputs: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SinkKind {
    Staged,
    Atomic,
    Files,
    Immediate,
    Upsert,
}

#[derive(Debug, Clone)]
pub(crate) struct SinkShape {
    pub(crate) name: String,
    pub(crate) kind: SinkKind,
    pub(crate) inputs: Vec<String>,
    pub(crate) at_prepare: bool,
    pub(crate) at_commit: bool,
    /// Batches with certain rows are refused as they are.
    pub(crate) at_write: bool,
    pub(crate) fallback: Option<FallbackKind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FallbackKind {
    Staged,
    Immediate,
}

pub(crate) fn source_rejects(id: i64) -> bool {
    id % 16 == 3
}

pub(crate) fn prepare_rejects(id: i64) -> bool {
    id % 16 == 6
}

pub(crate) fn commit_rejects(id: i64) -> bool {
    id % 16 == 7
}

pub(crate) fn write_refuses(id: i64) -> bool {
    id % 16 == 9
}

impl Shape {
    /// Seeds that end in 4, 8 or 9 have guards; drawn aside, so that all others stay the histories that are
    /// known to find a bug.
    pub(crate) fn draw(r: &mut Random, seed: u64) -> Self {
        let mut shape = Self::draw_plain(r);
        if matches!(seed % 10, 4 | 8 | 9) {
            shape.draw_guards(&mut r.clone());
        }
        shape
    }

    fn draw_guards(&mut self, r: &mut Random) {
        self.retries = !r.one_in(3);
        let first_atomic = self.sinks.iter().position(|s| s.kind == SinkKind::Atomic);
        for (i, sink) in self.sinks.iter_mut().enumerate() {
            let second_atomic = sink.kind == SinkKind::Atomic && first_atomic != Some(i);
            sink.at_write = self.rejects && !second_atomic && r.one_in(2);
            if !self.at_end && !sink.at_commit && r.one_in(2) {
                sink.fallback =
                    Some(if r.one_in(4) { FallbackKind::Immediate } else { FallbackKind::Staged });
            }
        }
    }

    fn draw_plain(r: &mut Random) -> Self {
        let bounded = !r.one_in(3);
        let at_end = bounded && r.one_in(6);
        let holds = bounded && r.one_in(8);
        let rejects = !at_end && !r.one_in(3);
        let sources = draw_sources(r, holds, at_end, rejects);
        let mut known: Vec<String> = sources.iter().map(|s| s.name.clone()).collect();
        let mut nodes = Vec::new();
        for n in 0..r.below(4).max(u64::from(holds)) {
            let model = match r.below(5) {
                0 | 1 => Model::Map,
                2 | 3 => Model::Keyed,
                _ => Model::Hold,
            };
            let model = if holds && n == 0 { Model::Block } else { model };
            let name = format!("t{n}");
            nodes.push(NodeShape { name: name.clone(), model, inputs: draw_inputs(r, &known) });
            known.push(name);
        }
        let mut sinks = Vec::new();
        let mut keys = false;
        for n in 0..1 + r.below(3) {
            let kind = match r.below(10) {
                0..=2 => SinkKind::Staged,
                3..=4 => SinkKind::Atomic,
                5..=7 => SinkKind::Files,
                8 => SinkKind::Immediate,
                _ => SinkKind::Upsert,
            };
            let kind = if at_end { SinkKind::Staged } else { kind };
            keys |= kind == SinkKind::Upsert;
            let second_atomic =
                kind == SinkKind::Atomic && sinks.iter().any(|s: &SinkShape| s.kind == SinkKind::Atomic);
            sinks.push(SinkShape {
                name: format!("k{n}"),
                kind,
                inputs: draw_inputs(r, &known),
                at_prepare: rejects && !second_atomic && r.one_in(2),
                at_commit: rejects
                    && !second_atomic
                    && matches!(kind, SinkKind::Staged | SinkKind::Atomic | SinkKind::Files)
                    && r.one_in(2),
                at_write: false,
                fallback: None,
            });
        }
        for name in &known {
            let read = |inputs: &[String]| inputs.contains(name);
            if !nodes.iter().any(|n| read(&n.inputs)) && !sinks.iter().any(|s| read(&s.inputs)) {
                sinks[0].inputs.push(name.clone());
            }
        }
        Self {
            sources,
            nodes,
            sinks,
            bounded,
            at_end,
            rejects,
            letters_immediate: r.one_in(5),
            keys,
            epoch_millis: *r.pick(&[1, 3, 10, 40]),
            edge_bytes: *r.pick(&[1, 2_048, 1 << 20]),
            retries: false,
        }
    }

    /// Where rows must end: the rows of each node and sink, and the dead letters of each.
    pub(crate) fn expected(&self) -> (BTreeMap<String, Rows>, BTreeMap<(String, i64), usize>) {
        let mut rows: BTreeMap<String, Rows> = BTreeMap::new();
        let mut letters = BTreeMap::new();
        for source in &self.sources {
            let of = rows.entry(source.name.clone()).or_default();
            for id in source.splits.iter().flat_map(SplitShape::ids) {
                if self.rejects && source_rejects(id) {
                    *letters.entry((source.name.clone(), id)).or_default() += 1;
                } else {
                    *of.entry(id).or_default() += 1;
                }
            }
        }
        for node in &self.nodes {
            let mut out = Rows::new();
            for (id, count) in node.inputs.iter().flat_map(|i| rows[i].clone()) {
                let maps = node.model == Model::Map;
                if maps && self.rejects && map_rejects(id) {
                    *letters.entry((node.name.clone(), id)).or_default() += count;
                } else if !(maps && map_filters(id)) {
                    *out.entry(id).or_default() += count;
                }
            }
            rows.insert(node.name.clone(), out);
        }
        for sink in &self.sinks {
            let mut out = Rows::new();
            for (id, count) in sink.inputs.iter().flat_map(|i| rows[i].clone()) {
                if (sink.at_prepare && prepare_rejects(id))
                    || (sink.at_commit && commit_rejects(id))
                    || (sink.at_write && write_refuses(id))
                {
                    *letters.entry((sink.name.clone(), id)).or_default() += count;
                } else {
                    *out.entry(id).or_default() += if sink.kind == SinkKind::Upsert { 1 } else { count };
                }
            }
            rows.insert(sink.name.clone(), out);
        }
        (rows, letters)
    }

    /// Whether rows on their way to this node may rest in a transform's state.
    pub(crate) fn rests(&self, inputs: &[String]) -> bool {
        inputs.iter().any(|input| {
            self.nodes.iter().any(|n| n.name == *input && (n.model == Model::Hold || self.rests(&n.inputs)))
        })
    }
}

impl SplitShape {
    /// In the order of their positions.
    pub(crate) fn ids(&self) -> Vec<i64> {
        let mut ids = Vec::new();
        for entry in &self.entries {
            match entry {
                Entry::Rows { ids: of, .. } => ids.extend(of),
                Entry::Unit(parts) => parts.iter().for_each(|(_, of)| ids.extend(of)),
                Entry::Reject(id) => ids.push(*id),
            }
        }
        ids
    }
}

fn draw_inputs(r: &mut Random, known: &[String]) -> Vec<String> {
    // The newest most often, so that chains grow.
    let mut inputs = vec![if r.one_in(3) { r.pick(known).clone() } else { known[known.len() - 1].clone() }];
    if r.one_in(4) {
        let other = r.pick(known).clone();
        if !inputs.contains(&other) {
            inputs.push(other);
        }
    }
    inputs
}

fn draw_sources(r: &mut Random, holds: bool, at_end: bool, rejects: bool) -> Vec<SourceShape> {
    let mut sources = Vec::new();
    for s in 0..1 + u64::from(r.one_in(4)) {
        let name = format!("s{s}");
        let streams = 1 + usize::from(r.one_in(4));
        let replay = match r.below(14) {
            0 => Replay::None,
            1 | 2 => Replay::WholeSplit,
            _ => Replay::Exact,
        };
        let in_turn = !holds && r.one_in(6);
        let mut next = i64::try_from(s).unwrap() * 1_000_000;
        let mut splits: Vec<SplitShape> = Vec::new();
        for k in 0..1 + r.below(4) {
            let mut entries = Vec::new();
            for _ in 0..r.below(9) {
                let mut some = |r: &mut Random| {
                    let mut of = Vec::new();
                    for _ in 0..1 + r.below(6) {
                        if rejects && source_rejects(next) {
                            next += 1;
                        }
                        of.push(next);
                        next += 1;
                    }
                    (r.below(streams as u64) as usize, of)
                };
                let (stream, ids) = some(r);
                if r.one_in(6) {
                    let more = some(r);
                    entries.push(Entry::Unit(vec![(stream, ids), more]));
                } else {
                    entries.push(Entry::Rows { stream, ids });
                }
                if rejects && r.one_in(4) {
                    let id = next + (16 + 3 - next % 16) % 16;
                    entries.push(Entry::Reject(id));
                    next = id + 1;
                }
            }
            let after = (in_turn && k > 0).then(|| format!("{name}-p{}", k - 1));
            let bounded = in_turn || replay == Replay::WholeSplit || r.one_in(2);
            splits.push(SplitShape { name: format!("{name}-p{k}"), bounded, after, entries });
        }
        let revokes = !in_turn && !holds && !at_end && r.one_in(2);
        let releases = replay == Replay::Exact && !at_end;
        sources.push(SourceShape { name, streams, replay, splits, revokes, releases });
    }
    sources
}
