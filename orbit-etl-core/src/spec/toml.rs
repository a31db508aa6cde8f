//! TOML with positions.

use std::sync::Arc;

use ::toml::Spanned;
use ::toml::de::{DeTable, DeValue};

use super::problem::{Place, Problem};
use super::tree::{DEPTH, Entry, Node, Text, Value};

/// Reads one document. Without a tree, the problems say why.
pub(crate) fn read(file: &Arc<str>, text: &str, problems: &mut Vec<Problem>) -> Option<Node> {
    let lines = Lines::new(file, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        for error in errors {
            let place = lines.place(error.span().map_or(0, |s| s.start));
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            problems.push(Problem::new(&place, "", format!("this isn't TOML: {message}")));
        }
        return None;
    }
    let place = lines.place(0);
    match entries(table.get_ref(), &lines, 0) {
        Ok(value) => Some(Node::new(place, value)),
        Err(problem) => {
            problems.push(problem);
            None
        }
    }
}

fn entries(table: &DeTable<'_>, lines: &Lines<'_>, depth: usize) -> Result<Value, Problem> {
    // In the order in which they were written.
    let mut keys: Vec<_> = table.iter().collect();
    keys.sort_by_key(|(key, _)| key.span().start);
    keys.into_iter()
        .map(|(key, value)| {
            Ok(Entry {
                key: key.get_ref().to_string(),
                place: lines.place(key.span().start),
                node: node(value, lines, depth + 1)?,
            })
        })
        .collect::<Result<_, _>>()
        .map(Value::Map)
}

fn node(value: &Spanned<DeValue<'_>>, lines: &Lines<'_>, depth: usize) -> Result<Node, Problem> {
    let place = lines.place(value.span().start);
    if depth > DEPTH {
        return Err(Problem::new(&place, "", format!("more than {DEPTH} levels stand in one another")));
    }
    let number = || Problem::new(&place, "", "this number is too large");
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(Text::new(text.as_ref())),
        DeValue::Integer(integer) => Value::Integer(
            i128::from_str_radix(&integer.as_str().replace('_', ""), integer.radix())
                .map_err(|_| number())?,
        ),
        DeValue::Float(float) => Value::Float(float.as_str().replace('_', "").parse().map_err(|_| number())?),
        DeValue::Boolean(bool) => Value::Bool(*bool),
        DeValue::Datetime(time) => Value::Text(Text::new(time.to_string())),
        DeValue::Array(items) => {
            Value::List(items.iter().map(|item| node(item, lines, depth + 1)).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => entries(table, lines, depth)?,
    };
    Ok(Node::new(place, value))
}

/// From byte offsets to lines and columns.
struct Lines<'a> {
    file: &'a Arc<str>,
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(file: &'a Arc<str>, text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { file, text, starts }
    }

    fn place(&self, offset: usize) -> Place {
        let line = self.starts.partition_point(|&start| start <= offset);
        let start = self.starts[line.saturating_sub(1)];
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        Place {
            file: Arc::clone(self.file),
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(column).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_order_and_place() {
        let text = "name = \"ü\"\n\n[source]\ntype = 'files' # x\nsize = 1_000\nat = 1e-3\n\n[[transforms]]\nq = [1, 2]\n";
        let mut problems = Vec::new();
        let node = read(&"t".into(), text, &mut problems).unwrap();
        let keys: Vec<_> = node.entries().iter().map(|e| e.key.as_str()).collect();
        assert_eq!(keys, ["name", "source", "transforms"]);
        assert_eq!(
            node.to_json().to_string(),
            r#"{"name":"ü","source":{"at":0.001,"size":1000,"type":"files"},"transforms":[{"q":[1,2]}]}"#
        );
        assert_eq!(node.get("source").unwrap().entry("size").unwrap().place.to_string(), "t:5:1");
        assert_eq!(node.get("source").unwrap().get("type").unwrap().place.to_string(), "t:4:8");
    }

    #[test]
    fn every_mistake_is_told() {
        let mut problems = Vec::new();
        assert!(read(&"t".into(), "a = 1\na = 2\nb = \n", &mut problems).is_none());
        assert!(problems.len() >= 2, "{problems:?}");
        assert!(problems[0].to_string().starts_with("t:2:1: this isn't TOML: "), "{problems:?}");
    }
}
