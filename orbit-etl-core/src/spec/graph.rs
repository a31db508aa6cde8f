//! How the nodes of a spec hang together: every mistake, with its place.

use std::collections::{BTreeMap, BTreeSet};

use super::document::{NodeSpec, Role};
use super::problem::{Problem, quoted};
use super::tree::join;

/// Looks for names used twice, inputs that aren't there, circles, and nodes that nothing reads. Unless
/// the graph is `whole`, nobody can tell what reads a node.
pub(crate) fn check(nodes: &[NodeSpec], mut whole: bool, problems: &mut Vec<Problem>) {
    let mut by_name: BTreeMap<&str, &NodeSpec> = BTreeMap::new();
    for node in nodes {
        if let Some(first) = by_name.get(node.name.as_str()) {
            problems.push(
                Problem::new(&node.place, &node.key, format!("two nodes are named {}", quoted(&node.name)))
                    .help(format!("the other one is {} ({}); rename one of them", first.key, first.place)),
            );
        } else {
            by_name.insert(&node.name, node);
        }
    }
    let mut read: BTreeSet<&str> = BTreeSet::new();
    for node in nodes {
        for (input, place) in &node.inputs {
            let name = producer(input);
            read.insert(name);
            let key = join(&node.key, "inputs");
            match by_name.get(name) {
                Some(found) if found.role == Role::Sink => {
                    whole = false;
                    problems.push(
                        Problem::new(place, key, format!("{} is a sink and can't be read", quoted(name)))
                            .help("read the node before it"),
                    );
                }
                Some(_) => {}
                None => {
                    whole = false;
                    let known = by_name.values().filter(|n| n.role != Role::Sink).map(|n| n.name.as_str());
                    problems.push(
                        Problem::new(place, key, format!("there is no node {}", quoted(name)))
                            .nearest(name, known),
                    );
                }
            }
        }
    }
    let circled = circles(nodes, &by_name, problems);
    // A misspelt input would make the node that was meant look unread.
    if !whole {
        return;
    }
    for node in nodes {
        if node.role != Role::Sink
            && !read.contains(node.name.as_str())
            && !circled.contains(node.name.as_str())
        {
            problems.push(Problem::new(&node.place, &node.key, "nothing reads this node").help(format!(
                "name {} in the `inputs` of a transform or sink, or remove it",
                quoted(&node.name)
            )));
        }
    }
}

/// The node that an input means: `node` or `node.stream`.
fn producer(input: &str) -> &str {
    input.split_once('.').map_or(input, |(node, _)| node)
}

/// Tells each circle once, and says who stands in one.
fn circles<'a>(
    nodes: &'a [NodeSpec],
    by_name: &BTreeMap<&str, &'a NodeSpec>,
    problems: &mut Vec<Problem>,
) -> BTreeSet<&'a str> {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut circled = BTreeSet::new();
    for start in nodes {
        // The way from `start` to here, with how many inputs of each node were followed.
        let mut way: Vec<(&NodeSpec, usize)> = Vec::new();
        let mut on_way: BTreeSet<&str> = BTreeSet::new();
        if !done.contains(start.name.as_str()) {
            way.push((start, 0));
            on_way.insert(&start.name);
        }
        while let Some((node, followed)) = way.last_mut() {
            let node = *node;
            let Some((input, _)) = node.inputs.get(*followed) else {
                done.insert(&node.name);
                on_way.remove(node.name.as_str());
                way.pop();
                continue;
            };
            *followed += 1;
            let Some(next) = by_name.get(producer(input)) else { continue };
            if on_way.contains(next.name.as_str()) {
                let from = way.iter().position(|(n, _)| n.name == next.name).unwrap_or(0);
                // Rows flow against the way that was walked.
                let mut names: Vec<&str> = way[from..].iter().rev().map(|(n, _)| n.name.as_str()).collect();
                circled.extend(names.iter().copied());
                names.insert(0, &next.name);
                problems.push(
                    Problem::new(&next.place, &next.key, "these nodes read one another in a circle")
                        .help(format!("rows would run {} for ever", names.join(" → "))),
                );
            } else if !done.contains(next.name.as_str()) {
                way.push((next, 0));
                on_way.insert(&next.name);
            }
        }
    }
    circled
}
