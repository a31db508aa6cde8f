//! `generate`: made-up rows into files.

use orbit_etl::spec::{Loader, SpecError, Syntax};
use serde_json::json;

use crate::args::GenerateArgs;
use crate::failure::Failure;
use crate::load::{self, Loaded};
use crate::out;

/// Runs a pipeline of a `generate` source and a sink of files.
pub(crate) async fn generate(args: GenerateArgs) -> Result<(), Failure> {
    // A folder that is there may hold somebody's rows.
    if args.path.exists() {
        return Err(Failure::failed(format!("{}: is there already; remove it first", args.path.display())));
    }
    let sink = json!({ "type": "files", "path": args.path.to_string_lossy(), "format": args.format });
    let source = json!({ "type": "generate", "rows": args.rows, "seed": args.seed, "columns": {} });
    let spec = json!({
        "name": "generate",
        "source": source,
        "sink": sink,
        "checkpoint": { "in_memory": true },
        "parallelism": 1,
    });
    let mut loader = Loader::new();
    for (name, about) in &args.column {
        // `sequence` is short for `{type: sequence}`.
        let about = about.trim();
        let about = if about.starts_with('{') { about.to_owned() } else { format!("{{type: {about}}}") };
        loader = loader.set(format!("source.columns.{name}"), about);
    }
    let spec = loader.parse(&spec.to_string(), Syntax::Json).map_err(|e| mistakes(&e))?;
    let pipeline = spec.build(&load::registry()).map_err(|e| mistakes(&e))?;
    let one = Loaded { spec, pipeline };
    let report = one.pipeline.run().await.map_err(|e| Failure::of(&one, &e))?;
    out::print(&format!("{}: {} rows\n", args.path.display(), report.rows_written()))
}

/// The mistakes at the options of the command: nobody has written the spec.
fn mistakes(error: &SpecError) -> Failure {
    let lines = error.problems().iter().map(|problem| {
        let place = match problem.key().split_once("columns.") {
            Some((_, column)) => format!("--column {column}"),
            None if problem.key() == "sink.format" => "--format".to_owned(),
            None => problem.key().to_owned(),
        };
        let remedy = problem.remedy().map(|remedy| format!("; {remedy}")).unwrap_or_default();
        format!("{place}: {}{remedy}", problem.message())
    });
    Failure::mistake(lines.collect::<Vec<_>>().join("\n"))
}
