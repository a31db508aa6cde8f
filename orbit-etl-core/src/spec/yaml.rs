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
    Some(
        reader
            .root
            .unwrap_or_else(|| Node::new(Place { file: Arc::clone(file), line: 1, column: 1 }, Value::Null)),
    )
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
                        (Value::Null, Some(Open { what: Inside::Map(_, Some((_, key_place))), .. }))
                            if text.is_empty() =>
                        {
                            key_place.clone()
                        }
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
    const COLUMNS: &str =
        "compare its indentation with the lines above: the keys of one map begin in one column";
    let lines: Vec<&str> = text.lines().collect();
    let (line, column) = (error.marker().line().saturating_sub(1), error.marker().col());
    let at = |line: usize, column: usize, message: String| {
        let number = |n: usize| u32::try_from(n + 1).unwrap_or(u32::MAX);
        let place = Place { file: Arc::clone(file), line: number(line), column: number(column) };
        Problem::new(&place, "", message)
    };
    // A tab in the indentation breaks a file in many ways, all of which look like something else.
    let tab = lines.iter().take(line + 2).enumerate().find_map(|(i, line)| {
        let written = !line.trim().is_empty() && !line.trim_start().starts_with('#');
        leading(line).find('\t').filter(|_| written).map(|column| (i, column))
    });
    if let Some((line, column)) = tab {
        return at(line, column, "a tab stands in the indentation".into())
            .help("YAML is indented with spaces: replace the tab");
    }
    let info = error.info();
    let here = lines.get(line).copied().unwrap_or_default();
    if info.contains("mapping values are not allowed") || info.contains("simple key") {
        // What is wrong is often the line before: without its colon it is taken for a text.
        let before = lines.iter().take(line).enumerate().rev().find(|(_, line)| is_content(line));
        if let Some((line, text)) = before.filter(|(_, text)| is_bare(text)) {
            let word = text.trim().split(':').next().unwrap_or_default();
            let missing = if text.contains(':') { "space behind the colon" } else { "colon" };
            return at(line, leading(text).len(), format!("the {missing} of {} is missing", quoted(word)))
                .help("write `key: value`");
        }
        let first_colon = here.find(':').is_some_and(|colon| here[..colon].chars().count() >= column);
        if !first_colon {
            return at(line, column, "a `:` can't stand in a text without quotes".into())
                .help("put the text into quotes");
        }
        return at(
            line,
            leading(here).len(),
            format!("{} doesn't fit into the structure here", quoted(word(here))),
        )
        .help(COLUMNS);
    }
    if matches!(here.chars().nth(column), Some('"' | '\'')) || info.contains("quoted scalar") {
        return at(line, column, "a text in quotes is broken, or its quotes are not closed".into())
            .help("close the quotes; in double quotes a backslash is written twice");
    }
    if info.contains("flow mapping") || info.contains("flow sequence") || info.contains("flow construct") {
        return at(line, column, "a `{` or `[` before this is not closed, or a comma is missing".into())
            .help("close the bracket, and put texts that hold brackets or commas into quotes");
    }
    if info.contains("<block end>")
        || info.contains("expected key")
        || info.contains("expected '-'")
        || info.contains("indentation")
        || info.contains("block sequence entries")
        || info.contains("while parsing a block")
        || info.contains("while parsing a node")
    {
        let what = match word(here) {
            "" => "this line".to_owned(),
            word => quoted(word),
        };
        return at(line, column, format!("{what} doesn't fit into the structure here")).help(COLUMNS);
    }
    if info.contains("unexpected character") || info.contains("cannot start any token") {
        return at(line, column, "a value can't begin with this character".into()).help("put it into quotes");
    }
    at(line, column, format!("this isn't YAML: {info}"))
}

/// Whether a line says something.
fn is_content(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#')
}

/// Whether a line looks like a key without its colon, or without the space behind it.
fn is_bare(line: &str) -> bool {
    let line = line.trim();
    let (key, rest) = line.split_once(':').unwrap_or((line, "x"));
    let word = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
    word && !key.starts_with('-') && !rest.is_empty() && !rest.starts_with(char::is_whitespace)
}

/// The key at the beginning of a line.
fn word(line: &str) -> &str {
    line.split(':').next().unwrap_or_default().trim()
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
            value("[no, yes, on, 012, 0x1f, 0o17, -3, 1.5, 1e3, .5, ~, true, 1.2.3, 10s, '7', .]"),
            r#"["no","yes","on",12,31,15,-3,1.5,1000.0,0.5,null,true,"1.2.3","10s","7","."]"#
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
