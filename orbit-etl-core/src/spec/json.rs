//! JSON with positions. `serde_json` decides what is JSON; here only the places are found.

use std::sync::Arc;

use serde_json::Value as Json;

use super::problem::{Place, Problem};
use super::tree::{Entry, MapBuilder, Node, Text, Value};

/// Reads one document. Without a tree, the problems say why.
pub(crate) fn read(file: &Arc<str>, text: &str, problems: &mut Vec<Problem>) -> Option<Node> {
    if let Err(error) = serde_json::from_str::<Json>(text) {
        let number = |n: usize| u32::try_from(n.max(1)).unwrap_or(u32::MAX);
        let place =
            Place { file: Arc::clone(file), line: number(error.line()), column: number(error.column()) };
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        problems.push(Problem::new(&place, "", format!("this isn't JSON: {message}")));
        return None;
    }
    let mut scanner = Scanner { file: Arc::clone(file), text, at: 0, line: 1, line_start: 0 };
    scanner.value(problems)
}

/// Walks over text that is known to be well-formed.
struct Scanner<'a> {
    file: Arc<str>,
    text: &'a str,
    at: usize,
    line: u32,
    line_start: usize,
}

impl Scanner<'_> {
    fn value(&mut self, problems: &mut Vec<Problem>) -> Option<Node> {
        self.skip();
        let place = self.place();
        let value = match self.peek()? {
            b'{' => {
                self.at += 1;
                let mut map = MapBuilder::default();
                while self.another(b'}') {
                    let place = self.place();
                    let key = self.string()?;
                    self.another(b':');
                    let node = self.value(problems)?;
                    map.add(Entry { key, place, node }, problems);
                }
                map.finish()
            }
            b'[' => {
                self.at += 1;
                let mut items = Vec::new();
                while self.another(b']') {
                    items.push(self.value(problems)?);
                }
                Value::List(items)
            }
            b'"' => Value::Text(Text::new(self.string()?)),
            _ => {
                let rest = &self.text[self.at..];
                let end = rest
                    .find(|c: char| c.is_ascii_whitespace() || matches!(c, ',' | ']' | '}'))
                    .unwrap_or(rest.len());
                self.at += end;
                Node::from_json(&place, serde_json::from_str(&rest[..end]).ok()?).value
            }
        };
        Some(Node::new(place, value))
    }

    fn string(&mut self) -> Option<String> {
        let bytes = self.text.as_bytes();
        let begin = self.at;
        self.at += 1;
        while *bytes.get(self.at)? != b'"' {
            self.at += if bytes[self.at] == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        serde_json::from_str(&self.text[begin..self.at]).ok()
    }

    /// Passes commas and colons; whether something comes before `end`, which is passed as well.
    fn another(&mut self, end: u8) -> bool {
        self.skip();
        while matches!(self.peek(), Some(b',' | b':')) {
            self.at += 1;
            self.skip();
        }
        let ended = self.peek().is_none_or(|c| c == end);
        if ended {
            self.at += 1;
        }
        !ended
    }

    fn skip(&mut self) {
        while let Some(byte) = self.peek().filter(u8::is_ascii_whitespace) {
            self.at += 1;
            if byte == b'\n' {
                self.line += 1;
                self.line_start = self.at;
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn place(&self) -> Place {
        let column = self.text[self.line_start..self.at].chars().count() + 1;
        Place {
            file: Arc::clone(&self.file),
            line: self.line,
            column: u32::try_from(column).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_serde_json_and_know_their_places() {
        let text = "{\"a\": [1, -2.5e3, true, null],\n  \"ü\\\"\": {\"k\": \"\\ud83d\\ude00 ]}\"}, \"e\": {}, \"f\":[]}";
        let mut problems = Vec::new();
        let node = read(&"t".into(), text, &mut problems).unwrap();
        assert_eq!(node.to_json(), serde_json::from_str::<serde_json::Value>(text).unwrap());
        assert_eq!(node.entry("ü\"").unwrap().place.to_string(), "t:2:3");
        assert_eq!(node.get("ü\"").unwrap().get("k").unwrap().place.to_string(), "t:2:16");
        assert_eq!(node.entry("e").unwrap().place.to_string(), "t:2:36");
    }

    #[test]
    fn mistakes_have_a_place() {
        let mut problems = Vec::new();
        assert!(read(&"t".into(), "{\"a\": 1,\n}", &mut problems).is_none());
        assert_eq!(problems[0].to_string(), "t:2:1: this isn't JSON: trailing comma");
        assert!(read(&"t".into(), "{\"a\": 1, \"a\": 2}", &mut problems).is_some());
        assert_eq!(
            problems[1].to_string(),
            "t:1:10: a: this key stands twice in one map; the first one is in line 1; keep one of them"
        );
    }
}
