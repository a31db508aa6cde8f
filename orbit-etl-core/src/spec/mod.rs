//! Pipelines that are written down: YAML, JSON or TOML instead of Rust.
//!
//! A [`Spec`] is a file (and what it includes), read into a tree in which every key and value knows
//! its place. [`Spec::build`] hands each node's part to the type that understands it and makes the
//! same [`Pipeline`] as the builder, or tells every mistake of the spec at once.
//!
//! ```
//! # use std::sync::Arc;
//! # use arrow::array::{Int64Array, RecordBatch};
//! # use arrow::datatypes::{DataType, Field, Schema};
//! use orbit_etl_core::memory::{MemorySink, MemorySource, MemoryTable};
//! use orbit_etl_core::{Registry, Spec};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> orbit_etl_core::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("orders.yaml");
//! # let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
//! # let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(Int64Array::from(vec![1, 2, 3]))]).unwrap();
//! # let rows = MemorySource::new(schema, vec![batch]);
//! # let table = MemoryTable::new();
//! # let target = MemorySink::new(&table);
//! // A host offers what it wants; `orbit_etl::register_enabled` adds all that is built in.
//! let mut registry = Registry::new();
//! registry.add_source_with("rows", move |_| Ok(Arc::new(rows.clone())));
//! registry.add_sink_with("table", move |_| Ok(Arc::new(target.clone())));
//!
//! std::fs::write(&path, "
//! name: orders
//! source: {type: rows}
//! sink: {type: table}
//! checkpoint: {in_memory: true}
//! ").unwrap();
//! let report = Spec::load(&path)?.build(&registry)?.run().await?;
//! assert_eq!(report.rows_written(), 3);
//!
//! std::fs::write(&path, "
//! name: orders
//! source: {type: row}
//! sink: {type: table}
//! paralelism: 4
//! ").unwrap();
//! let mistakes = Spec::load(&path)?.build(&registry).unwrap_err();
//! let told: Vec<String> =
//!     mistakes.problems().iter().map(|p| format!("{}: {}: {}", p.line(), p.key(), p.message())).collect();
//! assert_eq!(told, ["3: source.type: there is no source of type \"row\"", "5: paralelism: unknown key"]);
//! # Ok(())
//! # }
//! ```
//!
//! # Shape
//!
//! ```yaml
//! name: orders
//! source:                        # or sources: {name: {…}, …}
//!   type: files
//!   path: data/orders-*.csv
//! transforms:                    # a list is a chain; a map is a graph and names `inputs`
//!   - type: sql
//!     query: SELECT id, price FROM input WHERE price > 1000
//! sink:                          # or sinks: {name: {inputs: […], …}, …}
//!   type: files
//!   path: lake/orders
//!   format: parquet
//! checkpoint: {path: .orbit/state, every: 10s}
//! on_error: {action: dead_letter, sink: {type: files, path: rejected/, format: json}, max_share: 0.01}
//! delivery: exactly_once
//! ```
//!
//! * **Names.** A single `source` is the node `source`, a single `sink` the node `sink`; members of a
//!   chain go by their `name`, or else by their type (`sql`, `sql_2`). In `sources`, `sinks` and a map of
//!   transforms the keys are the names.
//! * **Inputs.** In a chain each node reads the one before it. Elsewhere `inputs` names nodes, or one
//!   stream of a node (`cdc.orders`).
//! * **Settings**: `checkpoint`, `on_error`, `delivery` (of a sink too), `again`, `restart`, `parallelism`,
//!   `batch_rows`, `memory`, `edge_bytes`, `idle_after`, `spill_in`, `schedule`, `triggers`, `after`. Times are written
//!   `10s` ([`Period`]), sizes `64MiB` ([`ByteSize`]), schedules as cron expressions ([`Cron`]).
//! * **Observers**: `alerts` and `lineage`, if the registry has them.
//! * **State** of a pipeline lies in the directory of its name below `checkpoint.path`, so that specs can
//!   share that path.
//! * Keys that begin with `x-` are for people, and for YAML's anchors.
//!
//! # Values from outside
//!
//! `${VAR}`, `${VAR:-default}` and `${file:/run/secrets/x}` may stand in any text, after parsing: what is
//! put in can't add keys. `$${` stands for the two characters. Where a number is wanted, the text of a
//! variable is read as one. **Relative paths**, those of `${file:…}` too, are relative to the file in
//! which they are written. Which keys are paths is said by the type's schema ([`PathText`]).
//!
//! `include: base.yaml` (or a list) fills in what this file lacks, key by key through maps; a list is
//! taken whole. Later files stand above earlier ones. `defaults: {source: {files: {…}}}` fills in what
//! nodes of a type lack.
//!
//! # Secrets
//!
//! Secret are: the keys that a type's schema calls secret ([`Secret`]), the content of files, and, for
//! types without a schema, keys that sound like it (`password`, `token`, …). The content of a file may
//! stand in secret keys alone. Secrets appear in no error, and neither they nor the values of variables
//! in a printed spec: what was written, `${VAR}`, stands there instead.

mod build;
mod cron;
mod de;
mod document;
mod env;
mod fit;
mod graph;
mod json;
mod load;
mod print;
mod problem;
mod schema;
mod secrets;
mod toml;
mod tree;
mod triggers;
mod units;
mod variables;
mod yaml;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

pub use cron::{Cron, CronError, Missed, Schedule};
pub use env::{from_env, from_variables};
pub use load::{Loader, Syntax};
pub use problem::{Problem, SpecError};
pub use schema::{PathText, Secret, json_schema};
pub use triggers::{NewFiles, OnCall, Triggers};
pub use units::{ByteSize, Period, UnitError, bytes};

pub(crate) use de::Fault;
pub(crate) use env::{environment, prefix as prefix_of_variables, tree as tree_of_variables};
pub(crate) use fit::fit;
pub(crate) use problem::Place;
pub(crate) use schema::{Describe, alone, prepare};
pub(crate) use secrets::{Secrets, without_credentials};
pub(crate) use tree::Node;

use self::document::Document;
use crate::error::Error;
use crate::pipeline::Pipeline;
use crate::registry::Registry;
use crate::sink::Sink;

/// A pipeline as it was written down. See the [module](self).
#[derive(Clone)]
pub struct Spec {
    file: Arc<str>,
    root: Node,
    document: Arc<Document>,
    /// What is wrong whatever the registry holds.
    problems: Vec<Problem>,
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spec").field("file", &self.file).field("name", &self.name()).finish_non_exhaustive()
    }
}

impl Spec {
    /// Loads a file and what it includes, with the variables of the process. [`Loader`] does it with
    /// others.
    ///
    /// # Errors
    /// The file can't be read, or isn't YAML, JSON or TOML. Other mistakes come with
    /// [`Spec::build`], all at once.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, SpecError> {
        Loader::new().load(path)
    }

    fn new(file: Arc<str>, root: Node, mut problems: Vec<Problem>) -> Self {
        let document = Arc::new(Document::read(&root, &mut problems));
        Self { file, root, document, problems }
    }

    /// The pipeline's name, if the settings could be read.
    pub fn name(&self) -> Option<&str> {
        self.document.settings.as_ref().map(|s| s.name.as_str())
    }

    /// What the pipeline is for.
    pub fn description(&self) -> Option<&str> {
        self.document.settings.as_ref()?.description.as_deref()
    }

    /// When the pipeline is to run by itself.
    pub fn schedule(&self) -> Option<&Schedule> {
        self.document.settings.as_ref()?.schedule.as_ref()
    }

    /// What else lets the pipeline run by itself.
    pub fn triggers(&self) -> Option<&Triggers> {
        self.document.settings.as_ref()?.triggers.as_ref()
    }

    /// The pipelines that must have succeeded before.
    pub fn after(&self) -> &[String] {
        self.document.settings.as_ref().map(|s| s.after.as_slice()).unwrap_or_default()
    }

    /// The names of the sources, each with the key under which it stands: `source`, `sources.orders`.
    pub fn sources(&self) -> impl Iterator<Item = (&str, &str)> {
        let sources = self.document.nodes.iter().filter(|node| node.role == document::Role::Source);
        sources.map(|node| (node.name.as_str(), node.key.as_str()))
    }

    /// Makes the pipeline. Reads no data and connects to nothing.
    ///
    /// # Errors
    /// Every mistake in the files, with its place.
    pub fn build(&self, registry: &Registry) -> Result<Pipeline, SpecError> {
        build::build(self, registry)
    }

    /// A pipeline that reads what this one's dead-letter sink has written, into another sink; `None` if
    /// there is no such sink. It keeps its state in memory and changes nothing.
    ///
    /// # Errors
    /// The mistakes of `on_error.sink`, and a type that only writes.
    pub fn read_dead_letters(
        &self,
        registry: &Registry,
        into: impl Sink,
    ) -> Result<Option<Pipeline>, SpecError> {
        build::read_dead_letters(self, registry, into)
    }

    /// Sends the dead letters of a node that were tried `attempt` times through the rest of the pipeline
    /// again; see [`Pipeline::resend`]. `None` if the pipeline keeps no dead letters.
    ///
    /// # Errors
    /// The mistakes of the spec, and those of [`Pipeline::resend`].
    pub async fn resend_dead_letters(
        &self,
        registry: &Registry,
        node: &str,
        attempt: i32,
    ) -> Result<Option<Pipeline>, SpecError> {
        let pipeline = self.build(registry)?;
        let Some(letters) = build::letters(self, registry)? else { return Ok(None) };
        let resent = pipeline.resend(letters, node, attempt).await;
        resent.map(Some).map_err(|error| self.locate(&error))
    }

    /// Finds the place in the spec that an error of [`Pipeline::explain`] or a run is about.
    pub fn locate(&self, error: &Error) -> SpecError {
        let mut root = self.root.clone();
        secrets::mark(&mut root);
        let mut secrets = Secrets::default();
        secrets.collect(&root);
        SpecError::new(vec![build::locate(self, error).map(|text| secrets.hide(&text))])
    }

    /// The whole spec as YAML: includes and overrides joined, every `${…}` as it was written, and
    /// secrets redacted. The registry knows which keys are secret.
    pub fn to_yaml(&self, registry: &Registry) -> String {
        print::print(self, registry)
    }
}
