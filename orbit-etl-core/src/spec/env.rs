//! Configurations out of environment variables.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::fit::fit;
use super::problem::{Place, Problem, SpecError};
use super::schema::{Describe, alone, prepare};
use super::secrets::Secrets;
use super::tree::{Entry, Node, Text, Value};
use super::yaml;

/// Reads a configuration from the environment: the key `path` of the node `orders` is the variable
/// `ORBIT_ORDERS__PATH`, the key `delimiter` in its map `csv` is `ORBIT_ORDERS__CSV__DELIMITER`.
///
/// Names are written in capitals, a `-` of the node's name as `_`, and two underscores stand between
/// the parts. A value that begins with `[` or `{` is a list or map in YAML or JSON.
///
/// ```
/// use orbit_etl_core::spec::from_variables;
///
/// #[derive(Debug, PartialEq, serde::Deserialize, schemars::JsonSchema)]
/// #[serde(deny_unknown_fields)]
/// struct Config {
///     path: String,
///     rows: u32,
///     columns: Vec<String>,
/// }
///
/// let variables = [
///     ("ORBIT_DAILY_ORDERS__PATH", "data/orders.csv"),
///     ("ORBIT_DAILY_ORDERS__ROWS", "100"),
///     ("ORBIT_DAILY_ORDERS__COLUMNS", "[id, price]"),
///     ("HOME", "/root"),
/// ];
/// let config: Config = from_variables("daily-orders", variables)?;
/// assert_eq!((config.path.as_str(), config.rows, config.columns.len()), ("data/orders.csv", 100, 2));
/// # Ok::<(), orbit_etl_core::spec::SpecError>(())
/// ```
///
/// # Errors
/// Every variable that doesn't fit the configuration.
pub fn from_env<T: DeserializeOwned + schemars::JsonSchema>(node: &str) -> Result<T, SpecError> {
    from_variables(node, environment())
}

/// As [`from_env`], from other variables than the process's.
///
/// # Errors
/// Every variable that doesn't fit the configuration.
pub fn from_variables<T: DeserializeOwned + schemars::JsonSchema>(
    node: &str,
    variables: impl IntoIterator<Item = (impl AsRef<str>, impl Into<String>)>,
) -> Result<T, SpecError> {
    let mut problems = Vec::new();
    let mut tree = tree(node, variables, &mut problems);
    let describe: Describe = T::json_schema;
    prepare(&mut tree, &alone(describe), "", &mut problems);
    let mut secrets = Secrets::default();
    secrets.collect(&tree);
    let place = tree.place.clone();
    let value = fit(&tree, "", &place, &mut problems, |tree| T::deserialize(tree));
    match value {
        Some(value) if problems.is_empty() => Ok(value),
        _ => Err(SpecError::new(problems.into_iter().map(|p| p.map(|t| secrets.hide(&t))).collect())),
    }
}

/// The process's variables, as far as they are texts.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
}

/// The beginning of the names of a node's variables.
pub(crate) fn prefix(node: &str) -> String {
    format!("ORBIT_{}__", node.to_ascii_uppercase().replace('-', "_"))
}

/// The variables of a node as the map that a file would hold.
pub(crate) fn tree(
    node: &str,
    variables: impl IntoIterator<Item = (impl AsRef<str>, impl Into<String>)>,
    problems: &mut Vec<Problem>,
) -> Node {
    let prefix = prefix(node);
    let mut found: Vec<(String, String)> = variables
        .into_iter()
        .filter(|(name, _)| name.as_ref().starts_with(&prefix))
        .map(|(name, value)| (name.as_ref().to_owned(), value.into()))
        .collect();
    found.sort();
    let mut root = Node::new(Place::whole(&format!("${prefix}…")), Value::Map(Vec::new()));
    for (name, value) in found {
        let place = Place::whole(&format!("${name}"));
        let keys: Vec<String> = name[prefix.len()..].split("__").map(str::to_ascii_lowercase).collect();
        let value = read_value(&name, value, &place, problems);
        if !insert(&mut root, &keys, value, &place) {
            problems.push(Problem::new(
                &place,
                keys.join("."),
                "this is a value in one variable and a map in another",
            ));
        }
    }
    root
}

fn read_value(name: &str, value: String, place: &Place, problems: &mut Vec<Problem>) -> Node {
    if value.trim_start().starts_with(['[', '{']) {
        let origin: Arc<str> = Arc::clone(&place.file);
        if let Some(node) = yaml::read(&origin, &value, problems) {
            return node;
        }
    }
    // Shown as a variable, and taken for a number where one is wanted.
    let text = Text { written: Some(format!("${{{name}}}")), ..Text::new(value) };
    Node::new(place.clone(), Value::Text(text))
}

fn insert(node: &mut Node, keys: &[String], value: Node, place: &Place) -> bool {
    let Value::Map(entries) = &mut node.value else { return false };
    let Some((key, rest)) = keys.split_first() else { return false };
    let at = entries.iter().position(|e| e.key == *key);
    match (at, rest.is_empty()) {
        (Some(_), true) => false,
        (Some(at), false) => insert(&mut entries[at].node, rest, value, place),
        (None, true) => {
            entries.push(Entry { key: key.clone(), place: place.clone(), node: value });
            true
        }
        (None, false) => {
            let mut node = Node::new(place.clone(), Value::Map(Vec::new()));
            let done = insert(&mut node, rest, value, place);
            entries.push(Entry { key: key.clone(), place: place.clone(), node });
            done
        }
    }
}
