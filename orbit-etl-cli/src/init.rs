//! `init`: a spec to start from.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;

use serde_json::Value;

use crate::args::InitArgs;
use crate::failure::Failure;
use crate::{load, out};

/// Writes a commented spec for a source and a sink type: their required keys, and the others as comments.
pub(crate) fn init(args: &InitArgs) -> Result<(), Failure> {
    let registry = load::registry();
    let schema = orbit_etl::spec::json_schema(&registry);
    let mut text = format!(
        "# A pipeline: what it reads, what it does with it, where it writes it.\n\
         # `orbit-etl validate FILE` checks it, `orbit-etl run FILE` runs it.\n\
         name: {}\n\nsource:\n",
        args.name
    );
    node(&mut text, &schema, "Source", &args.source)?;
    text.push_str(
        "\n# A list is a chain; each member reads the one before it.\n\
         # transforms:\n\
         #   - type: sql\n\
         #     query: SELECT * FROM input WHERE price > 1000\n\
         \nsink:\n",
    );
    node(&mut text, &schema, "Sink", &args.sink)?;
    text.push_str(
        "\n# Where the state is kept, and how often what was read is committed.\n\
         checkpoint: {path: .orbit/state, every: 10s}\n\
         \n# What becomes of rows that can't go on: `fail` stops the run, `skip` drops them.\n\
         on_error: fail\n\
         # on_error: {action: dead_letter, sink: {type: files, path: rejected/, format: json}, max_share: 0.01}\n",
    );
    match &args.file {
        None => out::print(&text),
        Some(path) => {
            let fail = |error| Failure::failed(format!("{}: can't be written: {error}", path.display()));
            // Nothing of the user's is overwritten.
            let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(fail)?;
            file.write_all(text.as_bytes()).map_err(fail)?;
            out::print(&format!("{}: written; fill in what stands in <…>\n", path.display()))
        }
    }
}

fn node(text: &mut String, schema: &Value, role: &str, tag: &str) -> Result<(), Failure> {
    let definitions = &schema["$defs"];
    let Some(definition) = definitions.get(format!("{role}.{tag}")) else {
        let prefix = format!("{role}.");
        let known: Vec<_> = definitions
            .as_object()
            .into_iter()
            .flat_map(|all| all.keys())
            .filter_map(|key| key.strip_prefix(&prefix))
            .collect();
        return Err(Failure::mistake(format!(
            "there is no {} of type {tag}; the types are: {}",
            role.to_ascii_lowercase(),
            known.join(", ")
        )));
    };
    let required: Vec<&str> =
        definition["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let _ = writeln!(text, "  type: {tag}");
    let all = definition["properties"].as_object();
    let own = || {
        all.into_iter().flatten().filter(|(key, _)| !matches!(key.as_str(), "type" | "inputs" | "delivery"))
    };
    for (key, about) in own().filter(|(key, _)| required.contains(&key.as_str())) {
        let _ = writeln!(text, "  {key}: {}{}", placeholder(key, about, definitions), comment(about));
    }
    for (key, about) in own().filter(|(key, _)| !required.contains(&key.as_str())) {
        let value = about.get("default").filter(|d| !d.is_null()).map_or_else(String::new, Value::to_string);
        let line = format!("  # {key}: {value}");
        let _ = writeln!(text, "{}{}", line.trim_end(), comment(about));
    }
    Ok(())
}

/// The first of its choices, or what is to be filled in.
fn placeholder(key: &str, about: &Value, definitions: &Value) -> String {
    let about = about["$ref"]
        .as_str()
        .and_then(|reference| definitions.get(reference.strip_prefix("#/$defs/")?))
        .unwrap_or(about);
    let choices = ["oneOf", "anyOf"].iter().find_map(|k| about[*k].as_array()).into_iter().flatten();
    // One of several maps: the first with what it needs.
    if let Some(choice) = choices.clone().find(|choice| choice["properties"].is_object()) {
        let required = choice["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let part = |key| match choice["properties"][key]["const"].as_str() {
            Some(fixed) => format!("{key}: {fixed}"),
            None => format!("{key}: <{key}>"),
        };
        return format!("{{{}}}", required.map(part).collect::<Vec<_>>().join(", "));
    }
    let first = choices
        .filter_map(|choice| choice["const"].as_str().or_else(|| choice["enum"].get(0)?.as_str()))
        .next()
        .or_else(|| about["enum"].get(0)?.as_str());
    first.map_or_else(|| format!("<{key}>"), str::to_owned)
}

fn comment(about: &Value) -> String {
    match about["description"].as_str() {
        Some(text) => format!("  # {}", text.split_whitespace().collect::<Vec<_>>().join(" ")),
        None => String::new(),
    }
}
