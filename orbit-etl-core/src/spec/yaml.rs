//! YAML with positions.

use std::collections::HashMap;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::problem::{Place, Problem, quoted};
use super::tree::{DEPTH, Entry, MapBuilder, Node, Text, Value};

/// How many values a file may have once its aliases are followed.
const NODES: usize = 200_000;

/// Reads one document. Without a tree, the problems say why.
pub(crate) fn read(file: &Arc<str>, text: &str, problems: &mut Vec<Problem>) -> Option<Node> {
    let mut reader = Reader {
        file: Arc::clone(file),
        stack: Vec::new(),
        root: None,
        anchors: HashMap::new(),
        count: 0,
        documents: 0,
    };
    let mut parser = Parser::new_from_str(text);
    while let Some(next) = parser.next_event() {
        let (event, span) = match next {
            Ok(next) => next,
            Err(error) => {
                problems.push(explain(file, text, &error));
                return None;
            }
        };
        let end = matches!(event, Event::StreamEnd);
        if let Err(problem) = reader.event(event, span, problems) {
            problems.push(problem);
            return None;
        }
        if end {
            break;
        }
    }
    Some(reader.root.unwrap_or_else(|| {
        Node::new(Place { file: Arc::clone(file), line: 1, column: 1 }, Value::Null)
    }))
}

struct Reader {
    file: Arc<str>,
    stack: Vec<Open>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    count: usize,
    documents: usize,
}

/// A list or map whose end hasn't come.
struct Open {
    place: Place,
    anchor: usize,
    what: Inside,
}

enum Inside {
    List(Vec<Node>),
    Map(MapBuilder, Option<(String, Place)>),
}

impl Reader {
    fn event(&mut self, event: Event<'_>, span: Span, problems: &mut Vec<Problem>) -> Result<(), Problem> {
        let place = Place {
            file: Arc::clone(&self.file),
            line: u32::try_from(span.start.line()).unwrap_or(u32::MAX),
            column: u32::try_from(span.start.col() + 1).unwrap_or(u32::MAX),
        };
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(Problem::new(&place, "", "a second document begins here")
                        .help("a file holds one spec: remove the `---`, or make it two files"));
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                if tag.is_some() {
                    return Err(tagged(&place));
                }
                if self.takes_key() {
                    if style == ScalarStyle::Plain && text.is_empty() {
                        return Err(Problem::new(&place, "", "a key is missing before the `:`"));
                    }
                    self.key(text.into_owned(), place);
                } else {
                    let value = scalar(&text, style);
                    // A value that isn't there has no place of its own.
                    let place = match (&value, self.stack.last()) {
                        (
                            Value::Null,
                            Some(Open { what: Inside::Map(_, Some((_, key_place))), .. }),
                        ) if text.is_empty() => key_place.clone(),
                        _ => place,
                    };
                    self.value(Node::new(place, value), anchor, problems)?;
                }
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(Problem::new(&place, "", "this alias has no anchor before it"));
                };
                if self.takes_key() {
                    return Err(Problem::new(&place, "", "an alias can't be a key"));
                }
                self.count += size(&node);
                self.value(node, 0, problems)?;
            }
            Event::SequenceStart(anchor, tag) => {
                self.open(place, anchor, tag.is_some(), Inside::List(Vec::new()))?;
            }
            Event::MappingStart(anchor, tag) => {
                self.open(place, anchor, tag.is_some(), Inside::Map(MapBuilder::default(), None))?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.stack.pop() {
                    let value = match open.what {
                        Inside::List(items) => Value::List(items),
                        Inside::Map(map, _) => map.finish(),
                    };
                    self.value(Node::new(open.place, value), open.anchor, problems)?;
                }
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn takes_key(&self) -> bool {
        matches!(self.stack.last(), Some(Open { what: Inside::Map(_, None), .. }))
    }

    fn key(&mut self, key: String, place: Place) {
        if let Some(Open { what: Inside::Map(_, pending), .. }) = self.stack.last_mut() {
            *pending = Some((key, place));
        }
    }

    fn open(&mut self, place: Place, anchor: usize, tag: bool, what: Inside) -> Result<(), Problem> {
        if tag {
            return Err(tagged(&place));
        }
        if self.takes_key() {
            return Err(Problem::new(&place, "", "a list or map can't be a key")
                .help("put a text that holds brackets or braces into quotes"));
        }
        if self.stack.len() >= DEPTH {
            return Err(Problem::new(&place, "", format!("more than {DEPTH} levels stand in one another")));
        }
        self.stack.push(Open { place, anchor, what });
        Ok(())
    }

    fn value(&mut self, node: Node, anchor: usize, problems: &mut Vec<Problem>) -> Result<(), Problem> {
        self.count += 1;
        if self.count > NODES {
            return Err(Problem::new(
                &node.place,
                "",
                format!("the file has more than {NODES} values once its aliases are followed"),
            ));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Open { what: Inside::List(items), .. }) => items.push(node),
            Some(Open { what: Inside::Map(map, pending), .. }) => {
                if let Some((key, place)) = pending.take() {
                    map.add(Entry { key, place, node }, problems);
                }
            }
        }
        Ok(())
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|e| size(&e.node)).sum(),
        _ => 0,
    }
}

fn tagged(place: &Place) -> Problem {
    Problem::new(place, "", "tags (`!name`) have no meaning in a spec")
        .help("leave the tag out, or put a text that begins with `!` into quotes")
}

/// What a value means that has no quotes: YAML's core schema, so that `no` is a text.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::Text(Text::new(text));
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Value::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY),
        _ => {}
    }
    let radix = |prefix, radix| text.strip_prefix(prefix).and_then(|t| i128::from_str_radix(t, radix).ok());
    if let Some(integer) = radix("0x", 16).or_else(|| radix("0o", 8)) {
        return Value::Integer(integer);
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.chars().any(|c| c.is_ascii_digit())
        && digits.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'))
    {
        if let Ok(integer) = text.parse() {
            return Value::Integer(integer);
        }
        if let Ok(float) = text.parse() {
            return Value::Float(float);
        }
    }
    Value::Text(Text::new(text))
}

/// The parser's message in the words of somebody who looks at the file.
fn explain(file: &Arc<str>, text: &str, error: &ScanError) -> Problem {
    let marker = error.marker();
    let mut place = Place {
        file: Arc::clone(file),
        line: u32::try_from(marker.line()).unwrap_or(u32::MAX),
        column: u32::try_from(marker.col() + 1).unwrap_or(u32::MAX),
    };
    // A tab in the indentation breaks a file in many ways, all of which look like something else.
    let upto = text.lines().take(marker.line());
    let tab = upto.enumerate().map(|(i, line)| (i, line, leading(line))).find_map(|(i, line, indent)| {
        (indent.contains('\t') && !line.trim().is_empty() && !line.trim_start().starts_with('#'))
            .then(|| (i, indent.find('\t').unwrap_or(0)))
    });
    if let Some((line, column)) = tab {
        place.line = u32::try_from(line + 1).unwrap_or(u32::MAX);
        place.column = u32::try_from(column + 1).unwrap_or(u32::MAX);
        return Problem::new(&place, "", "a tab stands in the indentation")
            .help("YAML is indented with spaces: replace the tab");
    }
    let line = text.lines().nth(marker.line().saturating_sub(1)).unwrap_or_default();
    let key = line.split(':').next().unwrap_or_default().trim();
    let info = error.info();
    let indentation = "compare its indentation with the lines above: keys of one map begin in one column";
    if info.contains("mapping values are not allowed") {
        return Problem::new(&place, "", "a `:` can't stand here")
            .help(format!("{indentation}; a text that holds `: ` needs quotes"));
    }
    if info.contains("simple key") {
        return Problem::new(&place, "", "this line is neither a `key: value` nor a part of the one before")
            .help(format!("write a `:` and a space after the key; {indentation}"));
    }
    if info.contains("did not find expected <block end>")
        || info.contains("did not find expected key")
        || info.contains("did not find expected '-' indicator")
        || info.contains("invalid indentation")
        || info.contains("block sequence entries are not allowed")
        || info.contains("while parsing a block mapping")
        || info.contains("while parsing a block collection")
        || info.contains("while parsing a node")
    {
        let what = if key.is_empty() { "this line".to_owned() } else { quoted(key) };
        return Problem::new(&place, "", format!("{what} doesn't fit into the structure here"))
            .help(indentation);
    }
    if info.contains("quoted scalar") {
        return Problem::new(&place, "", format!("a quoted text is broken: {info}"))
            .help("close the quotes; in double quotes a backslash is written twice");
    }
    if info.contains("unexpected character") || info.contains("cannot start any token") {
        return Problem::new(&place, "", "a value can't begin with this character").help("put it into quotes");
    }
    Problem::new(&place, "", format!("this isn't YAML: {info}"))
}

fn leading(line: &str) -> &str {
    &line[..line.len() - line.trim_start_matches([' ', '\t']).len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> String {
        let mut problems = Vec::new();
        let node = read(&"t".into(), text, &mut problems);
        assert_eq!(problems, Vec::new());
        node.unwrap().to_json().to_string()
    }

    #[test]
    fn plain_values_mean_what_the_core_schema_says() {
        assert_eq!(
            value("[no, yes, on, 012, 0x1f, 0o17, -3, 1.5, 1e3, .5, ~, true, 1.2.3, 10s, -, '7', .]"),
            r#"["no","yes","on",12,31,15,-3,1.5,1000.0,0.5,null,true,"1.2.3","10s","-","7","."]"#
        );
        assert_eq!(value("a: &x {b: 1}\nc: *x"), r#"{"a":{"b":1},"c":{"b":1}}"#);
        assert_eq!(value("# nothing\n"), "null");
    }

    #[test]
    fn aliases_can_not_explode() {
        let mut text = String::from("a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n");
        for i in 1..9 {
            let before = format!("*a{}", i - 1);
            text += &format!("a{i}: &a{i} [{}]\n", vec![before; 10].join(", "));
        }
        let mut problems = Vec::new();
        assert!(read(&"t".into(), &text, &mut problems).is_none());
        assert!(problems[0].to_string().contains("aliases"), "{problems:?}");
    }

    #[test]
    fn depth_is_bounded() {
        let mut problems = Vec::new();
        let text = format!("a: {}{}", "[".repeat(70), "]".repeat(70));
        assert!(read(&"t".into(), &text, &mut problems).is_none());
        assert!(problems[0].to_string().contains("levels"), "{problems:?}");
    }
}
