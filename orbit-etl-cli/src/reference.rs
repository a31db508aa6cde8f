//! The reference of specs as Markdown, made of their JSON Schema.

use std::fmt::Write as _;

use serde_json::Value;

/// The definitions that have no section of their own: those of the nodes come first, by role.
const ROLES: [(&str, &str); 3] = [("Source", "Sources"), ("Transform", "Transforms"), ("Sink", "Sinks")];

/// Every key of a spec, of each type of node, and of the values that these have in common.
pub(crate) fn markdown(schema: &Value) -> String {
    let mut text = String::from(
        "# Spec reference\n\n\
         Every key of a spec. This page is made by `orbit-etl schema --format markdown` from the documentation \
         of the configurations themselves; `orbit-etl schema` prints the JSON Schema by which editors complete \
         and check specs. How a spec is put together is told in [Getting started](getting-started.md).\n\n\
         A key in **bold** must be there. Wherever a value stands, `${NAME}`, `${NAME:-default}` and, for \
         secrets, `${file:/run/secrets/x}` may stand for it.\n\n## Pipeline\n\n",
    );
    table(&mut text, schema);
    let definitions = schema["$defs"].as_object();
    let all = || definitions.into_iter().flatten();
    for (role, title) in ROLES {
        let _ = writeln!(text, "\n## {title}");
        for (name, definition) in all() {
            if let Some(tag) = name.strip_prefix(role).and_then(|rest| rest.strip_prefix('.')) {
                let _ = writeln!(text, "\n### {role} `{tag}`\n");
                describe(&mut text, definition);
                table(&mut text, definition);
            }
        }
    }
    text.push_str("\n## Values\n");
    for (name, definition) in all() {
        if ROLES.iter().any(|(role, _)| name == role || name.starts_with(&format!("{role}."))) {
            continue;
        }
        let _ = writeln!(text, "\n### {name}\n");
        describe(&mut text, definition);
        if definition["properties"].is_object() {
            table(&mut text, definition);
        } else {
            choices(&mut text, definition);
        }
    }
    text
}

fn describe(text: &mut String, definition: &Value) {
    if let Some(about) = definition["description"].as_str() {
        let _ = writeln!(text, "{about}\n");
    }
}

fn table(text: &mut String, definition: &Value) {
    let required: Vec<&str> =
        definition["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    text.push_str("| key | value | default | |\n|---|---|---|---|\n");
    for (key, about) in definition["properties"].as_object().into_iter().flatten() {
        let shown =
            if required.contains(&key.as_str()) { format!("**`{key}`**") } else { format!("`{key}`") };
        let default = match &about["default"] {
            Value::Null => String::new(),
            value => format!("`{value}`"),
        };
        let about_it = cell(about["description"].as_str().unwrap_or_default());
        let _ = writeln!(text, "| {shown} | {} | {default} | {about_it} |", kind(about));
    }
}

/// The words that a value may be, with what they mean.
fn choices(text: &mut String, definition: &Value) {
    let mut any = false;
    let alternatives = ["oneOf", "anyOf"].iter().filter_map(|key| definition[*key].as_array()).flatten();
    for choice in alternatives.chain([definition]) {
        let words = choice["const"].as_str().into_iter();
        let words = words.chain(choice["enum"].as_array().into_iter().flatten().filter_map(Value::as_str));
        for word in words {
            any = true;
            let about = choice["description"].as_str().filter(|_| choice != definition);
            let about = about.map(|about| format!(": {}", one_line(about))).unwrap_or_default();
            let _ = writeln!(text, "- `{word}`{about}");
        }
    }
    if let Some(examples) = definition["examples"].as_array() {
        any = true;
        let examples: Vec<_> = examples.iter().map(|example| format!("`{}`", plain(example))).collect();
        let _ = writeln!(text, "Examples: {}", examples.join(", "));
    }
    if !any {
        let _ = writeln!(text, "{}", kind(definition));
    }
}

/// What a value is, in a few words, with links to the definitions.
fn kind(about: &Value) -> String {
    if let Some(name) = about["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/$defs/")) {
        return format!("[{name}](#{})", name.to_ascii_lowercase());
    }
    if let Some(word) = about["const"].as_str() {
        return format!("`{word}`");
    }
    if let Some(words) = about["enum"].as_array() {
        return words.iter().map(|word| format!("`{}`", plain(word))).collect::<Vec<_>>().join(", ");
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(alternatives) = about[key].as_array() {
            let mut kinds: Vec<String> = Vec::new();
            // A place for a variable, and for nothing, is everywhere.
            let said = alternatives.iter().filter(|a| a["type"] != "null" && a["pattern"].is_null());
            for kind in said.map(kind) {
                if !kinds.contains(&kind) {
                    kinds.push(kind);
                }
            }
            return kinds.join(" or ");
        }
    }
    let one = |name: &str| match name {
        "array" => format!("list of {}", kind(&about["items"])),
        "object" if about["additionalProperties"]["type"].is_string() => {
            format!("map to {}", kind(&about["additionalProperties"]))
        }
        "object" => "map".to_owned(),
        "boolean" => "`true` or `false`".to_owned(),
        "string" => match about["format"].as_str() {
            Some("path") => "path".to_owned(),
            _ if about["writeOnly"] == true => "secret".to_owned(),
            _ => "text".to_owned(),
        },
        other => other.to_owned(),
    };
    match &about["type"] {
        Value::String(name) => one(name),
        Value::Array(names) => {
            let names: Vec<&str> = names.iter().filter_map(Value::as_str).filter(|n| *n != "null").collect();
            let variable = names.len() > 1 && about["pattern"].is_string();
            let kept = names.into_iter().filter(|name| !(variable && *name == "string"));
            kept.map(one).collect::<Vec<_>>().join(" or ")
        }
        _ => "anything".to_owned(),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn cell(text: &str) -> String {
    one_line(text).replace('|', "\\|")
}
