//! `test`: pipelines against rows that are written down.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::json::writer::{LineDelimited, WriterBuilder};
use orbit_etl::Registry;
use orbit_etl::host::FnSink;
use orbit_etl::spec::Loader;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::args::TestArgs;
use crate::failure::Failure;
use crate::load::{self, Loaded};
use crate::out;

/// A file of tests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tests {
    /// The spec, beside this file.
    pipeline: PathBuf,
    /// What `${…}` stands for in it, before the environment.
    #[serde(default)]
    variables: BTreeMap<String, String>,
    tests: Vec<Test>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Test {
    name: String,
    /// By source.
    inputs: BTreeMap<String, Given>,
    /// By node; of a sink, the rows that it gets.
    expect: BTreeMap<String, Expected>,
}

/// The rows of a source.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    /// Written here.
    rows: Option<Vec<Map<String, Value>>>,
    /// Or in a file, beside this one.
    file: Option<PathBuf>,
    /// The types of the columns, as the files connector writes them; found out unless given.
    #[serde(alias = "columns")]
    schema: Option<Map<String, Value>>,
}

/// The rows of a node.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    rows: Vec<Map<String, Value>>,
    /// Whether they come in this order.
    #[serde(default)]
    ordered: bool,
}

/// Runs every test of every file. Sources are replaced by the rows that are given, sinks by nothing.
pub(crate) async fn test(args: TestArgs) -> Result<(), Failure> {
    let registry = load::registry();
    let (mut passed, mut failed) = (0, 0);
    for file in &args.files {
        let tests: Tests = Loader::new().read(file)?;
        let dir = file.parent().unwrap_or(Path::new(""));
        for test in &tests.tests {
            let diffs =
                run(&tests, test, dir, &registry).await.map_err(|failure| failure.within(&test.name))?;
            if diffs.is_empty() {
                passed += 1;
                out::print(&format!("ok      {}\n", test.name))?;
            } else {
                failed += 1;
                out::print(&format!("FAILED  {}\n{diffs}", test.name))?;
            }
        }
    }
    out::print(&format!("{passed} passed, {failed} failed\n"))?;
    match failed {
        0 => Ok(()),
        1 => Err(Failure::failed("one test failed")),
        several => Err(Failure::failed(format!("{several} tests failed"))),
    }
}

/// What is otherwise than expected, as text; nothing if nothing is.
async fn run(tests: &Tests, test: &Test, dir: &Path, registry: &Registry) -> Result<String, Failure> {
    let folder = tempfile::tempdir()
        .map_err(|error| Failure::failed(format!("no folder for the rows can be made: {error}")))?;
    let variables = tests.variables.clone();
    let mut loader = Loader::new()
        .variables(move |name| variables.get(name).cloned().or_else(|| std::env::var(name).ok()));
    let path = dir.join(&tests.pipeline);
    let written = loader.load(&path)?;
    let sources: BTreeMap<&str, &str> = written.sources().collect();
    for (source, given) in &test.inputs {
        let Some(key) = sources.get(source.as_str()) else {
            return Err(Failure::mistake(format!("`inputs`: the pipeline has no source {source}")));
        };
        loader = loader.set(*key, stand_in(source, given, dir, folder.path())?.to_string());
    }
    if let Some(left) = sources.keys().find(|source| !test.inputs.contains_key(**source)) {
        return Err(Failure::mistake(format!(
            "`inputs`: the source {left} has no rows; give it some, or `rows: []` with a `schema`"
        )));
    }
    let spec = loader.load(&path)?;
    let pipeline = spec.build(registry)?;
    let one = Loaded { spec, pipeline };
    let mut diffs = String::new();
    for (node, expected) in &test.expect {
        let batches = collect(&one, node).await?;
        diffs.push_str(&difference(node, expected, &as_rows(&batches)?));
    }
    Ok(diffs)
}

/// The configuration of files that hold the rows.
fn stand_in(source: &str, given: &Given, dir: &Path, folder: &Path) -> Result<Value, Failure> {
    let mut config = Map::new();
    config.insert("type".into(), "files".into());
    match (&given.rows, &given.file) {
        (Some(rows), None) => {
            let path = folder.join(format!("{source}.json"));
            let mut lines = String::new();
            for row in rows {
                let _ = writeln!(lines, "{}", Value::Object(row.clone()));
            }
            std::fs::write(&path, lines)
                .map_err(|error| Failure::failed(format!("rows can't be put down: {error}")))?;
            config.insert("path".into(), path.to_string_lossy().into());
            config.insert("format".into(), "json".into());
        }
        (None, Some(file)) => {
            let path = std::path::absolute(dir.join(file))
                .map_err(|error| Failure::failed(format!("{}: {error}", file.display())))?;
            config.insert("path".into(), path.to_string_lossy().into());
        }
        _ => {
            return Err(Failure::mistake(format!("`inputs.{source}`: give either `rows` or a `file`")));
        }
    }
    if let Some(columns) = &given.schema {
        config.insert("schema".into(), Value::Object(columns.clone()));
    }
    Ok(Value::Object(config))
}

/// All rows that a node sends on, or that a sink gets.
async fn collect(one: &Loaded, node: &str) -> Result<Vec<RecordBatch>, Failure> {
    let rows: Arc<Mutex<Vec<RecordBatch>>> = Arc::default();
    let into = Arc::clone(&rows);
    let sink = FnSink::new(move |_, batch| {
        into.lock().unwrap_or_else(PoisonError::into_inner).push(batch);
        std::future::ready(Ok(()))
    });
    let part = one.pipeline.tap(node, sink).map_err(|e| Failure::of(one, &e))?;
    part.run().await.map_err(|e| Failure::of(one, &e))?;
    Ok(std::mem::take(&mut *rows.lock().unwrap_or_else(PoisonError::into_inner)))
}

fn as_rows(batches: &[RecordBatch]) -> Result<Vec<Map<String, Value>>, Failure> {
    let fail = |why: String| Failure::failed(format!("the rows can't be shown: {why}"));
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    for batch in batches {
        writer.write(batch).map_err(|e| fail(e.to_string()))?;
    }
    writer.finish().map_err(|e| fail(e.to_string()))?;
    let bytes = writer.into_inner();
    bytes
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).map_err(|e| fail(e.to_string())))
        .collect()
}

/// `-` lacks, `+` is too much.
fn difference(node: &str, expected: &Expected, found: &[Map<String, Value>]) -> String {
    if expected.ordered {
        let same = expected.rows.len() == found.len()
            && expected.rows.iter().zip(found).all(|(expected, found)| alike(expected, found));
        if same {
            return String::new();
        }
    }
    let mut lacking: Vec<&Map<String, Value>> = expected.rows.iter().collect();
    let mut surplus = Vec::new();
    for row in found {
        match lacking.iter().position(|expected| alike(expected, row)) {
            Some(at) => {
                lacking.remove(at);
            }
            None => surplus.push(row),
        }
    }
    let mut text = String::new();
    if lacking.is_empty() && surplus.is_empty() {
        if expected.ordered {
            let _ = writeln!(text, "        {node}: the rows are right, but come in another order:");
            for row in found {
                let _ = writeln!(text, "          {}", shown(row));
            }
        }
        return text;
    }
    let _ = writeln!(text, "        {node}: {} rows expected, {} found:", expected.rows.len(), found.len());
    for row in lacking {
        let _ = writeln!(text, "        - {}", shown(row));
    }
    for row in surplus {
        let _ = writeln!(text, "        + {}", shown(row));
    }
    text
}

fn shown(row: &Map<String, Value>) -> String {
    Value::Object(row.clone()).to_string()
}

/// Whether a row is the expected one; a key that isn't written is NULL.
fn alike(expected: &Map<String, Value>, found: &Map<String, Value>) -> bool {
    expected.iter().all(|(key, value)| found.get(key).is_some_and(|found| same(value, found)))
        && found.iter().all(|(key, value)| value.is_null() || expected.contains_key(key))
}

/// 1 is 1.0, within rows too.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        (Value::Object(x), Value::Object(y)) => alike(x, y),
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(rows: Value) -> Vec<Map<String, Value>> {
        serde_json::from_value(rows).unwrap()
    }

    #[test]
    fn a_difference_names_what_lacks_and_what_is_too_much() {
        let expected = |ordered| Expected {
            rows: rows(json!([{ "a": 1 }, { "a": 1 }, { "a": 2, "b": null }])),
            ordered,
        };
        assert_eq!(
            difference(
                "n",
                &expected(false),
                &rows(json!([{ "a": 2.0, "b": null }, { "a": 1 }, { "a": 1, "b": null }]))
            ),
            ""
        );
        assert_eq!(
            difference("n", &expected(false), &rows(json!([{ "a": 1 }, { "a": 3 }]))),
            "        n: 3 rows expected, 2 found:\n        - {\"a\":1}\n        - {\"a\":2,\"b\":null}\n        + {\"a\":3}\n"
        );
        let found = rows(json!([{ "a": 1 }, { "a": 2, "b": null }, { "a": 1 }]));
        assert!(difference("n", &expected(true), &found).contains("another order"));
    }
}
