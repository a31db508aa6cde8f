//! `connectors`, `schema` and `discover`: what there is to build pipelines from.

use std::fmt::Write as _;

use orbit_etl::{Context, StreamInfo};
use serde_json::{Map, Value, json};

use crate::args::{ConnectorsArgs, DiscoverArgs, SchemaFormat, TableFormat};
use crate::failure::Failure;
use crate::{load, out, reference};

/// Lists the types of this build.
pub(crate) fn connectors(args: &ConnectorsArgs) -> Result<(), Failure> {
    let registry = load::registry();
    let (sources, transforms, sinks) = registry.types();
    let absent: Vec<(&str, &str)> = registry.absent_types().collect();
    if args.format == TableFormat::Json {
        let absent: Map<String, Value> =
            absent.iter().map(|(tag, feature)| ((*tag).into(), json!(feature))).collect();
        let all = json!({ "sources": sources, "transforms": transforms, "sinks": sinks, "absent": absent });
        return out::print(&format!("{all}\n"));
    }
    let mut text = String::new();
    for (role, tags) in [("sources", sources), ("transforms", transforms), ("sinks", sinks)] {
        let _ = writeln!(text, "{role:<11} {}", tags.join(", "));
    }
    for (tag, feature) in absent {
        let _ = writeln!(text, "{tag} is not in this build; it needs the cargo feature `{feature}`");
    }
    out::print(&text)
}

/// Prints the JSON Schema of specs, or what it says as a page.
pub(crate) fn schema(format: SchemaFormat) -> Result<(), Failure> {
    let schema = orbit_etl::spec::json_schema(&load::registry());
    out::print(&match format {
        SchemaFormat::Json => format!("{schema:#}\n"),
        SchemaFormat::Markdown => reference::markdown(&schema),
    })
}

/// Asks a source for its streams.
pub(crate) async fn discover(args: DiscoverArgs) -> Result<(), Failure> {
    let mut config = Value::Object(Map::new());
    for (key, value) in &args.config {
        // What isn't JSON is a text.
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.clone()));
        if !put(&mut config, key, value) {
            return Err(Failure::mistake(format!("{key}: stands below a key that holds a value of its own")));
        }
    }
    let source = load::registry().source(&args.type_tag, config)?;
    source.validate()?;
    let cx = Context::standalone(&args.type_tag)?;
    source.connect(&cx).await?;
    let streams = source.discover(&cx).await;
    source.disconnect(&cx).await?;
    let streams = streams?;
    out::print(&match args.format {
        TableFormat::Json => format!("{:#}\n", Value::Array(streams.iter().map(as_json).collect())),
        TableFormat::Table => streams.iter().map(as_text).collect(),
    })
}

/// `storage.region` is the key `region` of the map `storage`.
fn put(config: &mut Value, key: &str, value: Value) -> bool {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let Value::Object(map) = config else { return false };
    match rest {
        None => {
            map.insert(first.to_owned(), value);
            true
        }
        Some(rest) => put(map.entry(first).or_insert_with(|| json!({})), rest, value),
    }
}

fn as_json(stream: &StreamInfo) -> Value {
    let columns = stream.schema.fields().iter().map(|field| {
        json!({ "name": field.name(), "type": field.data_type().to_string(), "nullable": field.is_nullable() })
    });
    json!({
        "name": stream.name,
        "bounded": stream.bounded,
        "keys": stream.keys,
        "columns": columns.collect::<Vec<_>>(),
    })
}

fn as_text(stream: &StreamInfo) -> String {
    let mut text = stream.name.clone();
    if !stream.bounded {
        text.push_str(" (without an end)");
    }
    text.push('\n');
    let width = stream.schema.fields().iter().map(|field| field.name().len()).max().unwrap_or(0);
    for field in stream.schema.fields() {
        let key = if stream.keys.contains(field.name()) { " key" } else { "" };
        let null = if field.is_nullable() { "" } else { " not null" };
        let _ = writeln!(text, "  {:<width$}  {}{null}{key}", field.name(), field.data_type());
    }
    text
}
