//! The part of a pipeline through which dead letters are sent again.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::fault::{LetterSource, Reading};
use crate::pipeline::graph::{Graph, Kind, Node, NodeOptions, split_reference};
use crate::pipeline::plan::{Plan, Role};
use crate::sink::Publication;
use crate::source::Source;

/// The nodes behind the letters of one node, and a source of these letters in front of them.
pub(crate) fn nodes(
    graph: &Graph,
    plan: &Plan,
    letters: Arc<dyn Source>,
    node: &str,
    attempt: i32,
) -> Result<Vec<Node>> {
    let Some(at) = graph.index_of(node) else {
        return Err(Error::config("the pipeline has no node of that name any more").with("node", node));
    };
    let begin = &graph.nodes[at];
    let (name, streams, reading) = match &begin.kind {
        Kind::Source(source) => (begin.name.clone(), Vec::new(), Reading::Records(Arc::clone(source))),
        Kind::Transform(_) | Kind::Sink(_) => {
            let names: BTreeSet<&str> = begin.inputs.iter().map(|input| split_reference(input).0).collect();
            let mut streams = plan.nodes[at].streams();
            let mut names = names.into_iter();
            let (Some(name), None) = (names.next(), names.next()) else { return Err(needs_more(node)) };
            // A reference to one of several outputs goes by the output's name.
            for (stream, input) in streams.iter_mut().zip(&plan.nodes[at].inputs) {
                stream.name.clone_from(&plan.nodes[input.node].outputs[input.output].name);
            }
            (name.to_owned(), streams, Reading::Rows)
        }
    };
    let mut behind: BTreeSet<&str> = BTreeSet::from([node]);
    let mut nodes = Vec::new();
    // Nodes come after their inputs.
    for (i, other) in graph.nodes.iter().enumerate() {
        let from: Vec<bool> =
            other.inputs.iter().map(|input| behind.contains(split_reference(input).0)).collect();
        if other.name == node {
            if !matches!(other.kind, Kind::Source(_)) {
                check(plan, i)?;
                nodes.push(other.clone());
            }
            continue;
        }
        if !from.contains(&true) {
            continue;
        }
        if from.contains(&false) {
            return Err(needs_more(&other.name));
        }
        check(plan, i)?;
        behind.insert(&other.name);
        nodes.push(other.clone());
    }
    let source = LetterSource::new(letters, node, attempt, streams, reading);
    let source = Kind::Source(Arc::new(source));
    let options = NodeOptions::default();
    nodes.insert(0, Node { name, kind: source, inputs: Vec::new(), delivery: None, options });
    Ok(nodes)
}

fn check(plan: &Plan, at: usize) -> Result<()> {
    let node = &plan.nodes[at];
    match &node.role {
        Role::Transform { blocking: true, .. } => Err(needs_more(&node.name)),
        Role::Sink { publication: Publication::AtEnd, .. } => Err(Error::unsupported(
            "letters can't be sent again into a sink that overwrites: they would take the place of all rows",
        )
        .with("node", &node.name)
        .remedy("mend the cause and run the pipeline: it reads everything anew")),
        _ => Ok(()),
    }
}

fn needs_more(node: &str) -> Error {
    Error::unsupported("letters can't be sent through this node again: it needs other rows beside them")
        .with("node", node)
        .remedy("mend the cause, and load the rows once more: `state reset`, or a new file with them")
}
