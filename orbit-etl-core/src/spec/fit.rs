//! Tells everything that keeps a tree from being a configuration, and not only the first thing.

use super::de::{Fault, Step, What};
use super::problem::{Place, Problem, nearest, quoted};
use super::tree::{Node, Value, join};

/// More mistakes than this in one map are not told.
const TOLD: usize = 30;

/// Decodes `node`. Where that fails, notes the mistake, takes the offending key out and tries again,
/// until every key has been looked at. `at` are the keys that lead to `node`, and `place` is where
/// people look for what is missing in it.
pub(crate) fn fit<T>(
    node: &Node,
    at: &str,
    place: &Place,
    problems: &mut Vec<Problem>,
    mut decode: impl FnMut(&Node) -> Result<T, Fault>,
) -> Option<T> {
    let fault = match decode(node) {
        Ok(value) => return Some(value),
        Err(fault) => fault,
    };
    // Only somebody who made a mistake pays for the copy.
    let mut rest = node.clone();
    // Keys that seem to lack because what stood for them was wrong and was taken out.
    let mut excused: Vec<String> = Vec::new();
    // Keys that lack, and have an empty text so that the others are looked at.
    let mut filled: Vec<String> = Vec::new();
    let mut fault = Some(fault);
    for _ in 0..TOLD {
        let Some(found) = fault.take() else { break };
        let mut steps: Vec<Step> = found.steps().cloned().collect();
        let at_fault = path(&steps);
        if let What::MissingKey(key) = found.what {
            let missing = join(&at_fault, key);
            if filled.contains(&missing) {
                break;
            }
            if !excused.contains(&missing) {
                problems.push(describe(&rest, at, place, &found));
            }
            if !fill(&mut rest, &steps, key) {
                break;
            }
            filled.push(missing);
        } else {
            // It takes no text, so nothing more can be learnt.
            if filled.contains(&at_fault) {
                break;
            }
            let told = walk(&mut rest, &steps).is_some_and(|n| n.as_text().is_some_and(|t| t.failed));
            if !told {
                problems.push(describe(&rest, at, place, &found));
            }
            if let What::UnknownKey { key, known } = &found.what {
                excused.extend(nearest(key, known.iter().copied()).map(|near| join(&at_fault, near)));
                steps.push(Step::Key(key.clone()));
            }
            match remove(&mut rest, &steps) {
                Some(removed) => excused.push(removed),
                None => break,
            }
        }
        fault = decode(&rest).err();
    }
    None
}

/// The mistake in words.
pub(crate) fn describe(node: &Node, at: &str, place: &Place, fault: &Fault) -> Problem {
    let mut here = node;
    let mut here_place = if node.place.line == 0 { place } else { &node.place };
    let mut entry_place = place;
    let mut key = at.to_owned();
    for step in fault.steps() {
        let next = match step {
            Step::Key(name) => {
                key = join(&key, name);
                here.entry(name).map(|e| (&e.node, &e.place))
            }
            Step::Index(index) => {
                key = join(&key, &format!("[{index}]"));
                match &here.value {
                    Value::List(items) => items.get(*index).map(|n| (n, &n.place)),
                    _ => None,
                }
            }
        };
        let Some((next, place)) = next else { break };
        (here, here_place, entry_place) = (next, &next.place, place);
    }
    match &fault.what {
        What::UnknownKey { key: unknown, known } => {
            let place = here.entry(unknown).map_or(entry_place, |e| &e.place);
            let problem = Problem::new(place, join(&key, unknown), "unknown key");
            // `{query: SELECT a, b FROM input}` is a map with a key "b FROM input".
            let torn =
                unknown.contains(' ') && here.get(unknown).is_some_and(|n| matches!(n.value, Value::Null));
            if torn {
                problem.help("within braces a text that holds a comma needs quotes")
            } else {
                problem.nearest(unknown, known.iter().copied())
            }
        }
        What::MissingKey(missing) => {
            Problem::new(entry_place, &key, format!("the key {} is missing", quoted(missing)))
        }
        What::UnknownVariant { known } => {
            let problem = Problem::new(
                here_place,
                &key,
                format!("expected one of {}, found {}", known.join(", "), here.described()),
            );
            match here.as_text().and_then(|t| nearest(t.shown(), known.iter().copied())) {
                Some(near) => problem.help(format!("did you mean {}?", quoted(near))),
                None => problem,
            }
        }
        What::Type { expected } | What::Range { expected } => {
            let problem =
                Problem::new(here_place, &key, format!("expected {expected}, found {}", here.described()));
            match (&here.value, expected.as_str()) {
                (Value::Integer(_) | Value::Float(_) | Value::Bool(_), "a text") => {
                    problem.help("put it into quotes")
                }
                (Value::Text(text), _) if text.written.is_none() && is_scalar(&text.value) => {
                    problem.help("remove the quotes")
                }
                _ => problem,
            }
        }
        What::Custom(message) => Problem::new(here_place, &key, message.clone()),
    }
}

fn is_scalar(text: &str) -> bool {
    text.parse::<f64>().is_ok() || matches!(text, "true" | "false")
}

fn path(steps: &[Step]) -> String {
    steps.iter().fold(String::new(), |path, step| match step {
        Step::Key(key) => join(&path, key),
        Step::Index(index) => join(&path, &format!("[{index}]")),
    })
}

/// Takes the innermost key on this way out of the tree; returns the way to it.
fn remove(node: &mut Node, steps: &[Step]) -> Option<String> {
    let last = steps.iter().rposition(|s| matches!(s, Step::Key(_)))?;
    let Step::Key(key) = &steps[last] else { return None };
    walk(node, &steps[..last])?.take(key)?;
    Some(path(&steps[..=last]))
}

/// Puts an empty text where a key is missing, so that the others are looked at.
fn fill(node: &mut Node, steps: &[Step], key: &str) -> bool {
    let Some(node) = walk(node, steps) else { return false };
    let place = node.place.clone();
    let Value::Map(entries) = &mut node.value else { return false };
    let text = Node::new(place.clone(), Value::Text(super::tree::Text::new("")));
    entries.push(super::tree::Entry { key: key.to_owned(), place, node: text });
    true
}

fn walk<'a>(node: &'a mut Node, steps: &[Step]) -> Option<&'a mut Node> {
    steps.iter().try_fold(node, |node, step| match (step, &mut node.value) {
        (Step::Key(key), Value::Map(entries)) => {
            entries.iter_mut().find(|e| e.key == *key).map(|e| &mut e.node)
        }
        (Step::Index(index), Value::List(items)) => items.get_mut(*index),
        _ => None,
    })
}
