//! A spec as YAML again, without its secrets.

use std::fmt::Write as _;

use schemars::JsonSchema as _;

use super::Spec;
use super::document::{OBSERVERS, Role, Settings};
use super::schema::{self, alone};
use super::secrets::{mark, without_credentials};
use super::tree::{Node, Value};
use crate::registry::Registry;

/// The tree after includes and overrides, with every `${…}` as it was written.
pub(crate) fn print(spec: &Spec, registry: &Registry) -> String {
    let mut root = spec.root.clone();
    redact(&mut root, registry);
    let mut out = String::new();
    match &root.value {
        Value::Map(entries) if !entries.is_empty() => block(&root, 0, &mut out),
        _ => {
            out.push_str(&inline(&root));
            out.push('\n');
        }
    }
    out
}

/// Marks every secret by the schemas of settings and types.
fn redact(root: &mut Node, registry: &Registry) {
    let settings = alone(Settings::json_schema);
    let Value::Map(entries) = &mut root.value else { return };
    for entry in entries {
        let node = &mut entry.node;
        match entry.key.as_str() {
            "source" => redact_node(node, Role::Source, None, registry),
            "sink" => redact_node(node, Role::Sink, None, registry),
            "sources" => redact_all(node, Role::Source, registry),
            "transforms" => redact_all(node, Role::Transform, registry),
            "sinks" => redact_all(node, Role::Sink, registry),
            key if OBSERVERS.contains(&key) => {
                let schema = registry.observer_entry(key).and_then(|e| e.schema());
                mark(node);
                if let Some(schema) = schema {
                    mark_secrets(node, schema);
                }
            }
            "on_error" => {
                if let Value::Map(entries) = &mut node.value {
                    for entry in entries.iter_mut().filter(|e| e.key == "sink") {
                        redact_node(&mut entry.node, Role::Sink, None, registry);
                    }
                }
            }
            "defaults" => {
                for role in Role::ALL {
                    let Value::Map(roles) = &mut node.value else { continue };
                    let types = roles.iter_mut().filter(|e| e.key == role.as_str());
                    for types in types {
                        let Value::Map(types) = &mut types.node.value else { continue };
                        for entry in types {
                            redact_node(&mut entry.node, role, Some(&entry.key), registry);
                        }
                    }
                }
            }
            _ => {
                mark(node);
                if let Some(schema) = settings.pointer(&format!("/properties/{}", entry.key)) {
                    mark_secrets(node, schema);
                }
            }
        }
    }
}

fn redact_all(node: &mut Node, role: Role, registry: &Registry) {
    match &mut node.value {
        Value::Map(entries) => {
            for entry in entries {
                redact_node(&mut entry.node, role, None, registry);
            }
        }
        Value::List(items) => {
            for item in items {
                redact_node(item, role, None, registry);
            }
        }
        _ => {}
    }
}

fn redact_node(node: &mut Node, role: Role, tag: Option<&str>, registry: &Registry) {
    let own = node.get("type").and_then(Node::as_text).map(|t| t.value.clone());
    let tag = tag.map(str::to_owned).or(own).unwrap_or_default();
    let schema = match role {
        Role::Source => registry.source_entry(&tag).and_then(|e| e.schema()),
        Role::Transform => registry.transform_entry(&tag).and_then(|e| e.schema()),
        Role::Sink => registry.sink_entry(&tag).and_then(|e| e.schema()),
    };
    if let Value::Map(entries) = &mut node.value {
        for entry in entries.iter_mut().filter(|e| role == Role::Sink && e.key == "fallback") {
            redact_node(&mut entry.node, Role::Sink, None, registry);
        }
    }
    // What a name gives away is hidden even where the schema doesn't say so.
    mark(node);
    if let Some(schema) = schema {
        mark_secrets(node, schema);
    }
}

/// As [`schema::prepare`] does, but leaves paths as they were written.
fn mark_secrets(node: &mut Node, schema: &serde_json::Value) {
    let mut marked = node.clone();
    schema::prepare(&mut marked, schema, "", &mut Vec::new());
    copy_marks(node, &marked);
}

fn copy_marks(node: &mut Node, marked: &Node) {
    match (&mut node.value, &marked.value) {
        (Value::Text(text), Value::Text(marked)) => text.secret |= marked.secret,
        (Value::List(items), Value::List(marked)) => {
            for (item, marked) in items.iter_mut().zip(marked) {
                copy_marks(item, marked);
            }
        }
        (Value::Map(entries), Value::Map(marked)) => {
            for (entry, marked) in entries.iter_mut().zip(marked) {
                copy_marks(&mut entry.node, &marked.node);
            }
        }
        _ => {}
    }
}

/// A map or list in lines of its own.
fn block(node: &Node, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                let _ = write!(out, "{pad}{}:", quote(&entry.key));
                value(&entry.node, indent, out);
            }
        }
        Value::List(items) => {
            for item in items {
                let _ = write!(out, "{pad}-");
                match &item.value {
                    // The first key stands behind the dash.
                    Value::Map(entries) if !entries.is_empty() => {
                        let mut inner = String::new();
                        block(item, indent + 2, &mut inner);
                        out.push(' ');
                        out.push_str(inner.trim_start());
                    }
                    _ => value(item, indent, out),
                }
            }
        }
        _ => {}
    }
}

fn value(node: &Node, indent: usize, out: &mut String) {
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => {
            out.push('\n');
            block(node, indent + 2, out);
        }
        Value::List(items) if !items.is_empty() => {
            out.push('\n');
            block(node, indent + 2, out);
        }
        Value::Text(text) if fits_literal(text.shown()) => {
            let shown = without_credentials(text.shown());
            out.push_str(if shown.ends_with('\n') { " |\n" } else { " |-\n" });
            for line in shown.lines() {
                match line {
                    "" => out.push('\n'),
                    line => {
                        let _ = writeln!(out, "{}{line}", " ".repeat(indent + 2));
                    }
                }
            }
        }
        _ => {
            let _ = writeln!(out, " {}", inline(node));
        }
    }
}

/// Whether a text of several lines can be written as it is.
fn fits_literal(text: &str) -> bool {
    text.trim_end_matches('\n').contains('\n')
        && !text.ends_with("\n\n")
        && !text.starts_with([' ', '\n', '\t'])
        && text.chars().all(|c| c == '\n' || !c.is_control())
        && text.lines().all(|line| line.trim_end() == line)
}

fn inline(node: &Node) -> String {
    match &node.value {
        Value::Null => "null".into(),
        Value::Bool(bool) => bool.to_string(),
        Value::Integer(integer) => integer.to_string(),
        Value::Float(float) if float.is_nan() => ".nan".into(),
        Value::Float(float) if float.is_infinite() => if *float > 0.0 { ".inf" } else { "-.inf" }.into(),
        Value::Float(float) => format!("{float:?}"),
        Value::Text(text) => quote(&without_credentials(text.shown())),
        Value::List(_) => "[]".into(),
        Value::Map(_) => "{}".into(),
    }
}

/// In quotes unless it is plainly a text without them.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '/' | '.' | '$' | '-' | '+' | '=');
    let bare = text.starts_with(|c: char| c.is_alphabetic() || matches!(c, '_' | '/'))
        && text.chars().all(|c| plain(c) || c == ' ')
        && text.trim() == text
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "null" | "true" | "false" | "yes" | "no" | "on" | "off"
        );
    if bare {
        return text.to_owned();
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{feff}' | '\u{2028}' | '\u{2029}') => {
                let _ = write!(out, "\\U{:08X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
