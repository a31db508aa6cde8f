//! The nodes of a pipeline and how they hang together, before anything is asked of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::connector::ConnectorInfo;
use crate::error::{Error, Result};
use crate::fault::{GuardOptions, MaxRejects};
use crate::pipeline::contract::SchemaContract;
use crate::pipeline::options::Delivery;
use crate::sink::Sink;
use crate::source::Source;
use crate::transform::Transform;

/// The reserved name of the node that takes the dead letters.
pub(crate) const DEAD_LETTERS: &str = "dead_letters";

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Source(Arc<dyn Source>),
    Transform(Arc<dyn Transform>),
    Sink(Arc<dyn Sink>),
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// `node` or `node.output`.
    pub(crate) inputs: Vec<String>,
    /// What this sink demands, if it demands anything.
    pub(crate) delivery: Option<Delivery>,
    pub(crate) options: NodeOptions,
}

/// What a node is asked for besides what its type understands.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeOptions {
    pub(crate) guards: GuardOptions,
    /// The sink that takes what this one can't, with its name.
    pub(crate) fallback: Option<(String, Arc<dyn Sink>)>,
    pub(crate) max_rejects: Option<MaxRejects>,
    pub(crate) schema_contract: Option<SchemaContract>,
}

/// One node of a pipeline, before anything is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// The node's name.
    pub name: String,
    /// `source`, `transform`, `sink`, `fallback` or `dead letters`.
    pub role: &'static str,
    /// What the node says of itself.
    pub info: ConnectorInfo,
    /// What it reads, as `node` or `node.stream`.
    pub inputs: Vec<String>,
}

impl NodeInfo {
    pub(crate) fn of(node: &Node) -> Self {
        let (role, info) = match &node.kind {
            Kind::Source(source) => ("source", source.info()),
            Kind::Transform(transform) => ("transform", transform.info()),
            Kind::Sink(sink) => ("sink", sink.info()),
        };
        Self { name: node.name.clone(), role, info, inputs: node.inputs.clone() }
    }

    pub(crate) fn fallback(name: &str, sink: &dyn Sink) -> Self {
        Self { name: name.into(), role: "fallback", info: sink.info(), inputs: Vec::new() }
    }

    pub(crate) fn dead_letters(sink: &dyn Sink) -> Self {
        Self { name: DEAD_LETTERS.into(), role: "dead letters", info: sink.info(), inputs: Vec::new() }
    }
}

/// A checked graph: names are unique, inputs are there, nothing runs in a circle, nothing dangles.
/// Nodes stand in an order in which each comes after its inputs.
#[derive(Debug, Clone)]
pub(crate) struct Graph {
    pub(crate) nodes: Vec<Node>,
}

impl Graph {
    pub(crate) fn new(nodes: Vec<Node>) -> Result<Self> {
        check_names(&nodes)?;
        check_inputs(&nodes)?;
        check_ends(&nodes)?;
        check_fallbacks(&nodes)?;
        Ok(Self { nodes: sort(nodes)? })
    }

    /// A node and those that its rows come from; none if it isn't there.
    pub(crate) fn leading_to(&self, name: &str) -> Vec<Node> {
        let mut wanted = BTreeSet::from([name]);
        // Nodes come after their inputs.
        for node in self.nodes.iter().rev() {
            if wanted.contains(node.name.as_str()) {
                wanted.extend(node.inputs.iter().map(|input| split_reference(input).0));
            }
        }
        self.nodes.iter().filter(|node| wanted.contains(node.name.as_str())).cloned().collect()
    }

    /// The sinks that take what others can't.
    pub(crate) fn fallbacks(&self) -> impl Iterator<Item = (&str, &dyn Sink)> {
        self.nodes.iter().filter_map(|node| {
            let (name, sink) = node.options.fallback.as_ref()?;
            Some((name.as_str(), &**sink))
        })
    }

    pub(crate) fn index_of(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|n| n.name == name)
    }
}

/// The node and, if one is named, the output that a reference means.
pub(crate) fn split_reference(reference: &str) -> (&str, Option<&str>) {
    match reference.split_once('.') {
        Some((node, output)) => (node, Some(output)),
        None => (reference, None),
    }
}

fn check_names(nodes: &[Node]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for node in nodes {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if node.name.is_empty() || !node.name.chars().all(fits) {
            return Err(Error::config("a node's name is made of letters, digits, '_' and '-'")
                .with("node", format!("{:?}", node.name)));
        }
        if node.name == DEAD_LETTERS {
            return Err(Error::config("this name is kept for the pipeline's own dead letters")
                .with("node", &node.name)
                .remedy("give the node another name"));
        }
        if !seen.insert(&node.name) {
            return Err(Error::config("two nodes have the same name")
                .with("node", &node.name)
                .remedy("rename one of them"));
        }
    }
    Ok(())
}

/// Their names are made, and may be taken.
fn check_fallbacks(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        if let Some((name, _)) = &node.options.fallback
            && nodes.iter().any(|n| n.name == *name)
        {
            return Err(Error::config("a sink's fallback needs this name")
                .with("node", name)
                .with("sink", &node.name)
                .remedy("give the other node another name"));
        }
    }
    Ok(())
}

fn check_inputs(nodes: &[Node]) -> Result<()> {
    let kinds: BTreeMap<&str, &Kind> = nodes.iter().map(|n| (n.name.as_str(), &n.kind)).collect();
    for node in nodes {
        if node.inputs.is_empty() && !matches!(node.kind, Kind::Source(_)) {
            return Err(Error::config("a transform or sink needs an input")
                .with("node", &node.name)
                .remedy("add it after the node that it reads, or name its inputs"));
        }
        for input in &node.inputs {
            match kinds.get(split_reference(input).0) {
                Some(Kind::Sink(_)) => {
                    return Err(Error::config("a sink has no output to read from")
                        .with("node", &node.name)
                        .with("input", input));
                }
                Some(_) => {}
                None => {
                    return Err(Error::config("there is no node of that name")
                        .with("node", &node.name)
                        .with("input", input)
                        .remedy(format!(
                            "the nodes are: {}",
                            kinds.keys().copied().collect::<Vec<_>>().join(", ")
                        )));
                }
            }
        }
    }
    Ok(())
}

fn check_ends(nodes: &[Node]) -> Result<()> {
    for (kind, found) in [
        ("source", nodes.iter().any(|n| matches!(n.kind, Kind::Source(_)))),
        ("sink", nodes.iter().any(|n| matches!(n.kind, Kind::Sink(_)))),
    ] {
        if !found {
            return Err(Error::config(format!("a pipeline needs at least one {kind}")));
        }
    }
    let read: BTreeSet<&str> = nodes.iter().flat_map(|n| &n.inputs).map(|i| split_reference(i).0).collect();
    for node in nodes {
        if !matches!(node.kind, Kind::Sink(_)) && !read.contains(node.name.as_str()) {
            return Err(Error::config("nothing reads this node")
                .with("node", &node.name)
                .remedy("let a sink or transform read it, or leave it out"));
        }
    }
    Ok(())
}

/// Each node after its inputs, otherwise in the order in which they were added.
fn sort(nodes: Vec<Node>) -> Result<Vec<Node>> {
    let mut sorted: Vec<Node> = Vec::with_capacity(nodes.len());
    let mut left = nodes;
    while !left.is_empty() {
        let ready = left.iter().position(|node| {
            node.inputs.iter().all(|i| sorted.iter().any(|s| s.name == split_reference(i).0))
        });
        match ready {
            Some(next) => sorted.push(left.remove(next)),
            None => {
                let names: Vec<_> = left.iter().map(|n| n.name.as_str()).collect();
                return Err(
                    Error::config("these nodes read one another in a circle").with("nodes", names.join(", "))
                );
            }
        }
    }
    Ok(sorted)
}
