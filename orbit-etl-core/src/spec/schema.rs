//! The JSON Schema of configurations: what it says to the engine, and that of a whole spec.

use std::path::Path;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value as Json, json};

use super::document::{OnErrorWritten, Settings};
use super::problem::Problem;
use super::tree::{Entry, Node, Value, join};
use super::units::Period;
use crate::fault::{Bulkhead, CircuitBreaker, MaxRejects, RateLimit, Retry};
use crate::pipeline::{Delivery, SchemaContract};
use crate::registry::Registry;

/// Stands for the type of a secret field in a derived schema: a text that is never shown.
///
/// ```
/// use std::collections::BTreeMap;
/// use orbit_etl_core::spec::Secret;
/// use secrecy::SecretString;
///
/// #[derive(schemars::JsonSchema, serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Config {
///     user: String,
///     #[schemars(with = "Secret")]
///     password: SecretString,
///     #[serde(default)]
///     #[schemars(with = "BTreeMap<String, Secret>")]
///     options: BTreeMap<String, SecretString>,
/// }
/// ```
#[derive(Debug)]
pub struct Secret;

impl JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "writeOnly": true })
    }
}

/// Stands for the type of a path field in a derived schema: a local path that is relative to the
/// file in which it was written, or a URL.
///
/// ```
/// use orbit_etl_core::spec::PathText;
///
/// #[derive(schemars::JsonSchema, serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Config {
///     #[schemars(with = "PathText")]
///     path: String,
/// }
/// ```
#[derive(Debug)]
pub struct PathText;

impl JsonSchema for PathText {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PathText".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "path" })
    }
}

/// Makes the schema of a configuration within a larger one.
pub(crate) type Describe = fn(&mut SchemaGenerator) -> Schema;

/// One configuration's schema by itself, as [`prepare`] wants it.
pub(crate) fn alone(describe: Describe) -> Json {
    let mut generator = generator(true);
    let mut schema = describe(&mut generator);
    let definitions = generator.take_definitions(false);
    if !definitions.is_empty() {
        schema.insert("$defs".into(), Json::Object(definitions));
    }
    schema.to_value()
}

fn generator(inline: bool) -> SchemaGenerator {
    SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = inline).into_generator()
}

/// Does what a schema says of a tree: marks secrets and resolves paths. The content of a file may
/// stand in secrets alone, since everything else is shown.
pub(crate) fn prepare(node: &mut Node, schema: &Json, key: &str, problems: &mut Vec<Problem>) {
    visit(node, &[schema], schema, key, problems);
}

fn visit(node: &mut Node, schemas: &[&Json], root: &Json, key: &str, problems: &mut Vec<Problem>) {
    let mut all = Vec::new();
    for schema in schemas {
        flatten(schema, root, 0, &mut all);
    }
    if all.iter().any(|s| s.get("writeOnly") == Some(&Json::Bool(true))) {
        node.each_text(key, &mut |_, _, text| text.secret = true);
        return;
    }
    match &mut node.value {
        Value::Text(text) => {
            if text.from_file {
                problems.push(
                    Problem::new(&node.place, key, "the content of a file stands in a key that isn't secret")
                        .help("use a variable for what may be shown in plans and logs"),
                );
            }
            if all.iter().any(|s| s.get("format").is_some_and(|f| f == "path")) {
                text.value = resolve(&text.value, &node.place.file);
            }
        }
        Value::List(items) => {
            let inner: Vec<&Json> = all.iter().filter_map(|s| s.get("items")).collect();
            for (i, item) in items.iter_mut().enumerate() {
                visit(item, &inner, root, &join(key, &format!("[{i}]")), problems);
            }
        }
        Value::Map(entries) => {
            all.retain(|schema| !is_another(schema, entries));
            for entry in entries {
                let inner: Vec<&Json> = all
                    .iter()
                    .filter_map(|s| {
                        let own = s.get("properties").and_then(|p| p.get(&entry.key));
                        own.or_else(|| s.get("additionalProperties").filter(|a| a.is_object()))
                    })
                    .collect();
                visit(&mut entry.node, &inner, root, &join(key, &entry.key), problems);
            }
        }
        Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {}
    }
}

/// Whether a schema is one of several choices, and another one than a map makes: by a key such as
/// `type` that has a fixed text.
fn is_another(schema: &Json, entries: &[Entry]) -> bool {
    entries.iter().any(|entry| {
        let fixed = schema.get("properties").and_then(|p| p.get(&entry.key)).and_then(|own| own.get("const"));
        match (fixed.and_then(Json::as_str), entry.node.as_text()) {
            (Some(fixed), Some(text)) => text.value != fixed,
            _ => false,
        }
    })
}

/// A schema and all that it is put together from.
fn flatten<'a>(schema: &'a Json, root: &'a Json, depth: usize, all: &mut Vec<&'a Json>) {
    if depth > 16 {
        return;
    }
    all.push(schema);
    if let Some(reference) = schema.get("$ref").and_then(Json::as_str)
        && let Some(target) = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer))
    {
        flatten(target, root, depth + 1, all);
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for part in schema.get(key).and_then(Json::as_array).into_iter().flatten() {
            flatten(part, root, depth + 1, all);
        }
    }
}

/// A relative path, seen from the file in which it was written.
pub(crate) fn resolve(path: &str, file: &str) -> String {
    if path.is_empty() || path.contains("://") || Path::new(path).is_absolute() {
        return path.to_owned();
    }
    match Path::new(file).parent().and_then(Path::to_str) {
        Some("") | None => path.to_owned(),
        Some(dir) => format!("{}/{}", dir.trim_end_matches('/'), path.trim_start_matches("./")),
    }
}

/// The JSON Schema of specs with the types of a registry, for editors.
///
/// Types that were registered without a schema are allowed any keys.
pub fn json_schema(registry: &Registry) -> Json {
    let mut generator = generator(false);
    let mut properties = object(Settings::json_schema(&mut generator), "properties");
    let (sources, transforms, sinks) = registry.described();
    let delivery = generator.subschema_for::<Delivery>().to_value();
    let inputs = json!({
        "description": "The nodes that this one reads, as `node` or `node.stream`. Left out in a chain.",
        "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" }, "minItems": 1 }]
    });
    let name =
        json!({ "type": "string", "description": "In a list, the node's name; its type unless given." });
    let contract = generator.subschema_for::<SchemaContract>().to_value();
    let guards = guards(&mut generator);
    let max_rejects = guards["max_rejects"].clone();
    let mut of_sink = json!({ "inputs": inputs, "delivery": delivery, "schema_contract": contract, "fallback": {
        "description": "The sink that takes the rows that this one can't.",
        "allOf": [{ "$ref": "#/$defs/Sink" }]
    } });
    if let (Some(of_sink), Some(guards)) = (of_sink.as_object_mut(), guards.as_object()) {
        of_sink.extend(guards.clone());
    }
    let roles = [
        ("Source", sources, guards),
        ("Transform", transforms, json!({ "inputs": inputs, "name": name, "max_rejects": max_rejects })),
        ("Sink", sinks, of_sink),
    ];
    let mut defaults = Map::new();
    for (role, types, extra) in roles {
        let mut choices = Vec::new();
        let mut tags = Map::new();
        for (tag, describe) in types {
            let config = describe.map(|describe| describe(&mut generator).to_value());
            let definition = format!("{role}.{tag}");
            choices.push(json!({ "$ref": format!("#/$defs/{definition}") }));
            tags.insert(tag.to_owned(), json!({ "type": "object" }));
            generator.definitions_mut().insert(definition, typed(tag, config, &extra));
        }
        generator.definitions_mut().insert(role.to_owned(), json!({ "oneOf": choices }));
        defaults.insert(
            role.to_ascii_lowercase(),
            json!({ "type": "object", "properties": tags, "additionalProperties": false }),
        );
    }
    let node = |role: &str| json!({ "$ref": format!("#/$defs/{role}") });
    let named = |role: &str| json!({ "type": "object", "additionalProperties": node(role) });
    let mut on_error = OnErrorWritten::json_schema(&mut generator).to_value();
    if let Some(properties) = on_error.pointer_mut("/properties").and_then(Json::as_object_mut) {
        properties.insert("sink".into(), node("Sink"));
    }
    let mut structure = json!({
        "include": {
            "description": "Specs that this one builds on: what is missing here comes from there.",
            "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }]
        },
        "defaults": {
            "description": "By role and type, what every node of the type has unless it says otherwise.",
            "type": "object",
            "properties": defaults,
            "additionalProperties": false
        },
        "source": node("Source"),
        "sources": named("Source"),
        "transforms": {
            "description": "A list is a chain; a map is a graph, in which each node names its inputs.",
            "anyOf": [
                { "type": "array", "items": node("Transform") },
                named("Transform")
            ]
        },
        "sink": node("Sink"),
        "sinks": named("Sink"),
        "on_error": {
            "description": "What becomes of rows that can't go on.",
            "anyOf": [{ "enum": ["fail", "skip"] }, on_error]
        }
    });
    if let Some(structure) = structure.as_object_mut() {
        properties.append(structure);
    }
    for (key, describe) in registry.described_observers() {
        let schema = describe.map_or_else(|| json!({}), |describe| describe(&mut generator).to_value());
        properties.insert(key.to_owned(), schema);
    }
    let definitions = generator.take_definitions(true);
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Orbit ETL pipeline",
        "type": "object",
        "properties": properties,
        "patternProperties": { "^x-": {} },
        "additionalProperties": false,
        "anyOf": [{ "required": ["name"] }, { "required": ["include"] }],
        "$defs": definitions
    });
    suit_editors(&mut schema);
    sorted(schema)
}

/// What every source and sink may have.
fn guards(generator: &mut SchemaGenerator) -> Json {
    json!({
        "retry": generator.subschema_for::<Retry>().to_value(),
        "timeout": {
            "description": "How long one call may take: opening a split, the next rows, a write, a prepare.",
            "allOf": [generator.subschema_for::<Period>().to_value()]
        },
        "rate_limit": generator.subschema_for::<RateLimit>().to_value(),
        "circuit_breaker": generator.subschema_for::<CircuitBreaker>().to_value(),
        "bulkhead": generator.subschema_for::<Bulkhead>().to_value(),
        "max_rejects": generator.subschema_for::<MaxRejects>().to_value(),
    })
}

fn object(schema: Schema, key: &str) -> Map<String, Json> {
    match schema.to_value().get_mut(key).map(Json::take) {
        Some(Json::Object(map)) => map,
        _ => Map::new(),
    }
}

/// A configuration as a node: with its `type` and what every node has.
fn typed(tag: &str, config: Option<Json>, extra: &Json) -> Json {
    let mut schema = config.unwrap_or_else(|| json!({ "type": "object" }));
    let mut own = Map::new();
    own.insert("type".into(), json!({ "const": tag }));
    own.extend(extra.as_object().cloned().unwrap_or_default());
    let plain = schema.get("oneOf").is_none() && schema.get("anyOf").is_none();
    match schema.as_object_mut().filter(|_| plain) {
        Some(map) => {
            if let Json::Object(properties) = map.entry("properties").or_insert_with(|| json!({})) {
                properties.extend(own);
            }
            if let Json::Array(required) = map.entry("required").or_insert_with(|| json!([])) {
                required.insert(0, "type".into());
            }
            schema
        }
        None => json!({ "allOf": [schema, { "properties": own, "required": ["type"] }] }),
    }
}

/// Numbers, truth values and choices may come out of a `${…}`; and of a description, editors show the
/// first paragraph.
fn suit_editors(schema: &mut Json) {
    const VARIABLE: &str = r"\$\{.+\}";
    match schema {
        Json::Object(map) => {
            let plain = |t: &Json| matches!(t.as_str(), Some("integer" | "number" | "boolean"));
            let types = match map.get("type") {
                Some(Json::Array(types)) => types.clone(),
                Some(one) => vec![one.clone()],
                None => Vec::new(),
            };
            if types.iter().any(plain) && !types.contains(&json!("string")) {
                let mut types = types;
                types.push("string".into());
                map.insert("type".into(), Json::Array(types));
                map.insert("pattern".into(), VARIABLE.into());
            }
            if let Some(Json::Array(choices)) = map.get_mut("oneOf")
                && choices.iter().all(|c| c.get("const").is_some_and(Json::is_string))
            {
                choices.push(json!({ "type": "string", "pattern": VARIABLE }));
            }
            if let Some(Json::Array(choices)) = map.get_mut("enum") {
                let choices = std::mem::take(choices);
                map.remove("enum");
                map.remove("type");
                let variable = json!({ "type": "string", "pattern": VARIABLE });
                map.insert("anyOf".into(), json!([{ "enum": choices }, variable]));
                return;
            }
            if let Some(Json::String(text)) = map.get_mut("description")
                && let Some(end) = text.find("\n\n")
            {
                text.truncate(end);
            }
            for value in map.values_mut() {
                suit_editors(value);
            }
        }
        Json::Array(items) => items.iter_mut().for_each(suit_editors),
        _ => {}
    }
}

/// Keys in the order of the alphabet, whatever order serde_json was built to keep.
fn sorted(value: Json) -> Json {
    match value {
        Json::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Object(entries.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        Json::Array(items) => Json::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_their_file() {
        for (path, file, expected) in [
            ("data/a.csv", "jobs/orders.yaml", "jobs/data/a.csv"),
            ("./a", "/etc/orders.yaml", "/etc/a"),
            ("../a/", "jobs/orders.yaml", "jobs/../a/"),
            ("a", "orders.yaml", "a"),
            ("/a", "jobs/orders.yaml", "/a"),
            ("s3://bucket/a", "jobs/orders.yaml", "s3://bucket/a"),
            ("", "jobs/orders.yaml", ""),
        ] {
            assert_eq!(resolve(path, file), expected, "{path} in {file}");
        }
    }
}
