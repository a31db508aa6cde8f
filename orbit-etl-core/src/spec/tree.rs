//! What YAML, JSON and TOML have in common: values that know where they were written.

use serde_json::{Map, Number, Value as Json};

use super::problem::{Place, Problem, quoted};

/// How deep maps and lists may stand in one another.
pub(crate) const DEPTH: usize = 64;

/// A value and where it begins.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

#[derive(Clone)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(Text),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a map.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Place,
    pub(crate) node: Node,
}

/// A text, and what it was before something was put in its place.
#[derive(Clone, Default)]
pub(crate) struct Text {
    pub(crate) value: String,
    /// As it was written, if it held a `${…}`: what is shown instead of the value.
    pub(crate) written: Option<String>,
    /// The content of a file stands in it.
    pub(crate) from_file: bool,
    /// Never to be shown.
    pub(crate) secret: bool,
    /// Something in it has no value; that has been told.
    pub(crate) failed: bool,
}

impl Text {
    pub(crate) fn new(value: impl Into<String>) -> Self {
        Self { value: value.into(), ..Self::default() }
    }

    /// What people may see of it.
    pub(crate) fn shown(&self) -> &str {
        match &self.written {
            Some(written) => written,
            None if self.secret => REDACTED,
            None => &self.value,
        }
    }
}

/// What stands for a secret.
pub(crate) const REDACTED: &str = "[redacted]";

impl Node {
    pub(crate) fn new(place: Place, value: Value) -> Self {
        Self { place, value }
    }

    /// A value that no file holds.
    pub(crate) fn from_json(place: &Place, json: Json) -> Self {
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(bool) => Value::Bool(bool),
            Json::Number(number) => match number.as_i128() {
                Some(integer) => Value::Integer(integer),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::Text(Text::new(text)),
            Json::Array(items) => {
                Value::List(items.into_iter().map(|item| Self::from_json(place, item)).collect())
            }
            Json::Object(map) => Value::Map(
                map.into_iter()
                    .map(|(key, value)| Entry {
                        key,
                        place: place.clone(),
                        node: Self::from_json(place, value),
                    })
                    .collect(),
            ),
        };
        Self::new(place.clone(), value)
    }

    /// The same value without places, for those who read JSON.
    pub(crate) fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(bool) => Json::Bool(*bool),
            Value::Integer(integer) => Number::from_i128(*integer).map_or(Json::Null, Json::Number),
            Value::Float(float) => Number::from_f64(*float).map_or(Json::Null, Json::Number),
            Value::Text(text) => Json::String(text.value.clone()),
            Value::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Value::Map(entries) => {
                Json::Object(entries.iter().map(|e| (e.key.clone(), e.node.to_json())).collect::<Map<_, _>>())
            }
        }
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|e| e.key == key)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|e| &e.node)
    }

    pub(crate) fn as_text(&self) -> Option<&Text> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Removes a key.
    pub(crate) fn take(&mut self, key: &str) -> Option<Entry> {
        match &mut self.value {
            Value::Map(entries) => {
                let at = entries.iter().position(|e| e.key == key)?;
                Some(entries.remove(at))
            }
            _ => None,
        }
    }

    /// Removes the keys that aren't wanted.
    pub(crate) fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        if let Value::Map(entries) = &mut self.value {
            entries.retain(|entry| wanted(&entry.key));
        }
    }

    /// Fills in what `base` has and this lacks; maps are joined key by key.
    pub(crate) fn merge_under(&mut self, base: &Self) {
        if let (Value::Map(own), Value::Map(base)) = (&mut self.value, &base.value) {
            for entry in base {
                match own.iter_mut().find(|e| e.key == entry.key) {
                    Some(known) => known.node.merge_under(&entry.node),
                    None => own.push(entry.clone()),
                }
            }
        }
    }

    /// Calls `change` for every text.
    pub(crate) fn each_text(&mut self, key: &str, change: &mut impl FnMut(&str, &Place, &mut Text)) {
        match &mut self.value {
            Value::Text(text) => change(key, &self.place, text),
            Value::List(items) => {
                for (i, item) in items.iter_mut().enumerate() {
                    item.each_text(&join(key, &format!("[{i}]")), change);
                }
            }
            Value::Map(entries) => {
                for entry in entries {
                    entry.node.each_text(&join(key, &entry.key), change);
                }
            }
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {}
        }
    }

    /// What stands here, in words that give no secret away.
    pub(crate) fn described(&self) -> String {
        match &self.value {
            Value::Null => "nothing".into(),
            Value::Bool(bool) => format!("{bool}"),
            Value::Integer(integer) => format!("the whole number {integer}"),
            Value::Float(float) => format!("the number {float}"),
            Value::Text(text) if text.written.is_some() => format!("a text from {}", quoted(text.shown())),
            Value::Text(text) if text.secret => "a text".into(),
            Value::Text(text) => format!("the text {}", quoted(&text.value)),
            Value::List(items) if items.is_empty() => "an empty list".into(),
            Value::List(_) => "a list".into(),
            Value::Map(entries) if entries.is_empty() => "an empty map".into(),
            Value::Map(_) => "a map".into(),
        }
    }

    /// Whether a text in it has no value.
    pub(crate) fn has_failed(&self) -> bool {
        match &self.value {
            Value::Text(text) => text.failed,
            Value::List(items) => items.iter().any(Self::has_failed),
            Value::Map(entries) => entries.iter().any(|e| e.node.has_failed()),
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) => false,
        }
    }
}

/// A map in the making, which takes each key once.
#[derive(Default)]
pub(crate) struct MapBuilder {
    entries: Vec<Entry>,
    seen: std::collections::HashMap<String, Place>,
}

impl MapBuilder {
    /// Adds a key, or notes that it is there already.
    pub(crate) fn add(&mut self, entry: Entry, problems: &mut Vec<Problem>) {
        match self.seen.get(&entry.key) {
            Some(first) => problems.push(
                Problem::new(&entry.place, &entry.key, "this key stands twice in one map")
                    .help(format!("the first one is in line {}; keep one of them", first.line)),
            ),
            None => {
                self.seen.insert(entry.key.clone(), entry.place.clone());
                self.entries.push(entry);
            }
        }
    }

    pub(crate) fn finish(self) -> Value {
        Value::Map(self.entries)
    }
}

/// `a` and `b` make `a.b`, and an index `a[0]`.
pub(crate) fn join(path: &str, key: &str) -> String {
    match (path.is_empty(), key.starts_with('[')) {
        (true, _) => key.to_owned(),
        (false, true) => format!("{path}{key}"),
        (false, false) => format!("{path}.{key}"),
    }
}
