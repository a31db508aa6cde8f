//! From a spec to a pipeline.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::DataType;

use super::de::Fault;
use super::document::{ActionWritten, CheckpointWritten, Document, NodeSpec, Role};
use super::fit::fit;
use super::problem::{Place, Problem, SpecError, nearest, quoted};
use super::schema::{prepare, resolve};
use super::tree::{Entry, Node, Text, Value, join};
use super::{Spec, graph, secrets};
use crate::checkpoint::Log;
use crate::error::{Error, Result};
use crate::fault::dead_letter_schema;
use crate::observe::Observer;
use crate::pipeline::{Action, Delivery, Kind, NodeOptions, OnError, Pipeline, PipelineBuilder};
use crate::registry::{Factory, Registered, Registry};
use crate::sink::{CommitMode, Sink};
use crate::source::Source;

/// Where a pipeline's state is unless the spec says otherwise.
const STATE: &str = ".orbit/state";

/// Every mistake of the spec, or the pipeline.
pub(crate) fn build(spec: &Spec, registry: &Registry) -> Result<Pipeline, SpecError> {
    let mut problems = spec.problems.clone();
    let document = &spec.document;
    graph::check(&document.nodes, document.whole, &mut problems);
    check_defaults(document, registry, &mut problems);
    let mut secrets = secrets::Secrets::default();
    let mut make = |node: &NodeSpec| {
        let mut own = Vec::new();
        let made = make_node(node, document, registry, &mut own, &mut secrets);
        problems.extend(own.into_iter().map(|p| p.map(|text| secrets.hide(&text))));
        made
    };
    let nodes: Vec<Option<Kind>> = document.nodes.iter().map(&mut make).collect();
    let fallbacks: Vec<Option<Kind>> =
        document.nodes.iter().map(|node| node.fallback.as_deref().and_then(&mut make)).collect();
    let letters = document.dead_letters.as_ref().and_then(&mut make);
    check_delivery(document, &nodes, &mut problems);
    let mut observers = Vec::new();
    for entry in &document.observers {
        let mut own = Vec::new();
        observers.extend(make_observer(entry, registry, &mut own, &mut secrets));
        problems.extend(own.into_iter().map(|p| p.map(|text| secrets.hide(&text))));
    }
    if problems.is_empty() {
        match assemble(spec, document, nodes.into_iter().zip(fallbacks), letters, observers) {
            Ok(pipeline) => return Ok(pipeline),
            Err(error) => problems.push(locate(spec, &error).map(|text| secrets.hide(&text))),
        }
    }
    Err(SpecError::new(problems))
}

/// A pipeline from the place to which the dead letters go into a sink; `None` if they go nowhere.
pub(crate) fn read_dead_letters(
    spec: &Spec,
    registry: &Registry,
    into: impl Sink,
) -> Result<Option<Pipeline>, SpecError> {
    let Some(source) = letters(spec, registry)? else { return Ok(None) };
    let built = Pipeline::builder(spec.name().unwrap_or_default())
        .node("letters".into(), Kind::Source(source), Vec::new(), None, NodeOptions::default())
        .node(
            "reader".into(),
            Kind::Sink(Arc::new(into)),
            vec!["letters".into()],
            None,
            NodeOptions::default(),
        )
        .checkpoint_in_memory()
        .parallelism(1)
        .build();
    built.map(Some).map_err(|error| SpecError::new(vec![locate(spec, &error)]))
}

/// A source over the place to which the dead letters go: of the sink's type, with those of its keys that
/// the source has too.
pub(crate) fn letters(spec: &Spec, registry: &Registry) -> Result<Option<Arc<dyn Source>>, SpecError> {
    let document = &spec.document;
    let Some(written) = &document.dead_letters else { return Ok(None) };
    let mut problems = spec.problems.clone();
    let mut secrets = secrets::Secrets::default();
    make_node(written, document, registry, &mut problems, &mut secrets);
    let tag = written.type_tag.as_ref().map(|(tag, _)| tag.as_str());
    let keys = tag.and_then(|tag| registry.source_entry(tag)?.schema()?.get("properties")?.as_object());
    let source = match keys {
        Some(keys) => {
            let mut node = written.clone();
            node.role = Role::Source;
            if let Some(defaults) = defaults_of(document, Role::Sink, tag.unwrap_or_default()) {
                node.config.merge_under(defaults);
            }
            node.config.retain(|key| keys.contains_key(key));
            if keys.contains_key("schema") {
                describe_letters(&mut node.config);
            }
            make_node(&node, document, registry, &mut problems, &mut secrets)
        }
        None => {
            let what = quoted(tag.unwrap_or_default());
            problems.push(
                Problem::new(
                    &written.place,
                    &written.key,
                    format!("dead letters in {what} can't be read from here"),
                )
                .help("read them with the tools of that place"),
            );
            None
        }
    };
    match source {
        Some(Kind::Source(source)) if problems.is_empty() => Ok(Some(source)),
        _ => Err(SpecError::new(problems.into_iter().map(|p| p.map(|text| secrets.hide(&text))).collect())),
    }
}

/// Names the columns where they would be found out of text: a record `007` is no number.
fn describe_letters(config: &mut Node) {
    let is_text = config
        .get("format")
        .and_then(Node::as_text)
        .is_some_and(|format| matches!(format.value.as_str(), "csv" | "json"));
    if !is_text || config.get("schema").is_some() {
        return;
    }
    let place = config.place.clone();
    let entry = |key: &str, kind: &str| Entry {
        key: key.to_owned(),
        place: place.clone(),
        node: Node::new(place.clone(), Value::Text(Text::new(kind))),
    };
    let columns = dead_letter_schema()
        .fields()
        .iter()
        .map(|field| {
            let kind = match field.data_type() {
                DataType::Timestamp(..) => "timestamp(us, UTC)",
                DataType::UInt64 => "uint64",
                DataType::Int32 => "int32",
                // Bytes stand there in hexadecimal.
                _ => "text",
            };
            entry(field.name(), kind)
        })
        .collect();
    let schema = Entry {
        key: "schema".into(),
        place: place.clone(),
        node: Node::new(place.clone(), Value::Map(columns)),
    };
    config.merge_under(&Node::new(place.clone(), Value::Map(vec![schema])));
}

fn defaults_of<'a>(document: &'a Document, role: Role, tag: &str) -> Option<&'a Node> {
    document.defaults.as_ref()?.get(role.as_str())?.get(tag)
}

/// `alerts` or `lineage`.
fn make_observer(
    entry: &Entry,
    registry: &Registry,
    problems: &mut Vec<Problem>,
    secrets: &mut secrets::Secrets,
) -> Option<Arc<dyn Observer>> {
    let Some(known) = registry.observer_entry(&entry.key) else {
        let problem = Problem::new(&entry.place, &entry.key, "this build doesn't know the key");
        problems.push(match registry.absent(&entry.key) {
            Some(feature) => problem.help(format!("build with the cargo feature `{feature}`")),
            None => problem,
        });
        return None;
    };
    let mut config = entry.node.clone();
    match known.schema() {
        Some(schema) => prepare(&mut config, schema, &entry.key, problems),
        None => secrets::mark(&mut config),
    }
    secrets.collect(&config);
    let failed = config.has_failed();
    let made = match &known.factory {
        Factory::Made(_) if failed => None,
        Factory::Made(make) => make(config.to_json())
            .map_err(|error| problems.push(at_key(&entry.key, &entry.place, &config, &error)))
            .ok(),
        Factory::Typed(make) => {
            let made = fit(&config, &entry.key, &entry.place, problems, |node: &Node| -> Result<_, Fault> {
                make(node)
            });
            made.filter(|made| {
                let checked = made.validate();
                let fine = checked.is_ok();
                problems.extend(checked.err().map(|e| at_key(&entry.key, &entry.place, &config, &e)));
                fine
            })
        }
    };
    made.filter(|_| !failed)
}

/// An error of a plan or a run, at the node that it names.
pub(crate) fn locate(spec: &Spec, error: &Error) -> Problem {
    let document = &spec.document;
    let node = error.context("node").and_then(|name| document.all_nodes().find(|node| node.name == name));
    match node {
        Some(node) => at_node(node, &node.config, error),
        None => {
            let place = document_place(spec);
            told(Problem::new(&place, "", words(error, &["pipeline"])), error)
        }
    }
}

fn document_place(spec: &Spec) -> Place {
    spec.root.entry("name").map_or_else(|| spec.root.place.clone(), |e| e.place.clone())
}

/// At the key that the error names, if it names one, or else at the node.
fn at_node(node: &NodeSpec, config: &Node, error: &Error) -> Problem {
    at_key(&node.key, &node.place, config, error)
}

fn at_key(at: &str, place: &Place, config: &Node, error: &Error) -> Problem {
    let option = error.context("option").or_else(|| error.context("key"));
    let mut key = at.to_owned();
    let mut place = place;
    let mut here = config;
    for step in option.into_iter().flat_map(|option| option.split('.')) {
        let Some(entry) = here.entry(step) else { break };
        key = join(&key, step);
        place = &entry.node.place;
        here = &entry.node;
    }
    told(Problem::new(place, key, words(error, &["node", "option", "key", "type"])), error)
}

/// The message with its place and its causes, but for what is said elsewhere.
fn words(error: &Error, elsewhere: &[&str]) -> String {
    let mut text = error.message().to_owned();
    let rest: Vec<String> = error
        .contexts()
        .filter(|(key, _)| !elsewhere.contains(key))
        .map(|(key, value)| format!("{key}: {value}"))
        .collect();
    if !rest.is_empty() {
        text.push_str(&format!(" ({})", rest.join(", ")));
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}

fn told(problem: Problem, error: &Error) -> Problem {
    match error.remedy_text() {
        Some(remedy) => problem.help(remedy),
        None => problem,
    }
}

/// The types that are named in `defaults` must exist.
fn check_defaults(document: &Document, registry: &Registry, problems: &mut Vec<Problem>) {
    let Some(defaults) = &document.defaults else { return };
    for role in Role::ALL {
        for entry in defaults.get(role.as_str()).map(Node::entries).unwrap_or_default() {
            let key = format!("defaults.{}.{}", role.as_str(), entry.key);
            problems.extend(registry_knows(registry, role, &entry.key, &entry.place, &key).err());
        }
    }
}

fn registry_knows(
    registry: &Registry,
    role: Role,
    tag: &str,
    place: &Place,
    key: &str,
) -> Result<(), Problem> {
    let (sources, transforms, sinks) = registry.types();
    let (known, others) = match role {
        Role::Source => (sources, [("transform", transforms), ("sink", sinks)]),
        Role::Transform => (transforms, [("source", sources), ("sink", sinks)]),
        Role::Sink => (sinks, [("source", sources), ("transform", transforms)]),
    };
    if known.contains(&tag) {
        return Ok(());
    }
    let problem = Problem::new(place, key, format!("there is no {} of type {}", role.as_str(), quoted(tag)));
    if let Some(feature) = registry.absent(tag) {
        return Err(problem.help(format!("build with the cargo feature `{feature}`")));
    }
    if let Some((other, _)) = others.iter().find(|(_, known)| known.contains(&tag)) {
        return Err(problem.help(format!("it is a {other}")));
    }
    // A feature that is off may be what was meant.
    if nearest(tag, known.iter().copied()).is_none()
        && let Some(near) = nearest(tag, registry.absent_types().map(|(tag, _)| tag))
        && let Some(feature) = registry.absent(near)
    {
        return Err(
            problem.help(format!("did you mean {}? It needs the cargo feature `{feature}`", quoted(near)))
        );
    }
    Err(problem.nearest(tag, known))
}

fn make_node(
    node: &NodeSpec,
    document: &Document,
    registry: &Registry,
    problems: &mut Vec<Problem>,
    secrets: &mut secrets::Secrets,
) -> Option<Kind> {
    let (tag, tag_place) = node.type_tag.as_ref()?;
    if let Err(problem) = registry_knows(registry, node.role, tag, tag_place, &join(&node.key, "type")) {
        problems.push(problem);
        return None;
    }
    let mut config = node.config.clone();
    if let Some(defaults) = defaults_of(document, node.role, tag) {
        config.merge_under(defaults);
    }
    match node.role {
        Role::Source => {
            let source = make(registry.source_entry(tag)?, node, &mut config, problems, secrets)?;
            checked(source.validate(), node, &config, problems)?;
            Some(Kind::Source(source))
        }
        Role::Transform => {
            make(registry.transform_entry(tag)?, node, &mut config, problems, secrets).map(Kind::Transform)
        }
        Role::Sink => {
            let sink = make(registry.sink_entry(tag)?, node, &mut config, problems, secrets)?;
            checked(sink.validate(), node, &config, problems)?;
            Some(Kind::Sink(sink))
        }
    }
}

fn make<T: ?Sized>(
    entry: &Registered<T>,
    node: &NodeSpec,
    config: &mut Node,
    problems: &mut Vec<Problem>,
    secrets: &mut secrets::Secrets,
) -> Option<Arc<T>> {
    match entry.schema() {
        Some(schema) => prepare(config, schema, &node.key, problems),
        None => secrets::mark(config),
    }
    secrets.collect(config);
    let failed = config.has_failed();
    let made = match &entry.factory {
        Factory::Typed(make) => {
            fit(config, &node.key, &node.place, problems, |node: &Node| -> Result<_, Fault> { make(node) })
        }
        Factory::Made(_) if failed => None,
        Factory::Made(make) => checked(make(config.to_json()), node, config, problems),
    };
    made.filter(|_| !failed)
}

fn checked<T>(result: Result<T>, node: &NodeSpec, config: &Node, problems: &mut Vec<Problem>) -> Option<T> {
    result.map_err(|error| problems.push(at_node(node, config, &error))).ok()
}

/// What can be known of guarantees without asking anybody.
fn check_delivery(document: &Document, nodes: &[Option<Kind>], problems: &mut Vec<Problem>) {
    let everywhere = document.settings.as_ref().and_then(|s| s.delivery);
    let atomic = |sink: &dyn Sink| sink.commit_mode() == CommitMode::Atomic;
    let mut sinks = document.nodes.iter().zip(nodes).filter_map(|(node, kind)| match kind {
        Some(Kind::Sink(sink)) if atomic(&**sink) => Some(node),
        _ => None,
    });
    let Some(first) = sinks.next() else { return };
    for node in sinks {
        if node.delivery.or(everywhere) == Some(Delivery::ExactlyOnce) {
            problems.push(
                Problem::new(
                    &node.place,
                    &node.key,
                    format!(
                        "{} and {} ({}) can't both be exactly once: each commits in a transaction of its own \
                         target, and only one of them can carry the positions",
                        quoted(&node.name),
                        quoted(&first.name),
                        first.place,
                    ),
                )
                .help(format!(
                    "give {} `delivery: at_least_once`, or write it from a pipeline of its own",
                    quoted(&node.name)
                )),
            );
        }
    }
}

fn assemble(
    spec: &Spec,
    document: &Document,
    nodes: impl Iterator<Item = (Option<Kind>, Option<Kind>)>,
    letters: Option<Kind>,
    observers: Vec<Arc<dyn Observer>>,
) -> Result<Pipeline> {
    let settings =
        document.settings.as_ref().ok_or_else(|| Error::internal("a spec without problems or settings"))?;
    let mut builder = Pipeline::builder(settings.name.as_str());
    for (node, (kind, fallback)) in document.nodes.iter().zip(nodes) {
        let kind = kind.ok_or_else(|| Error::internal("a node without problems or value"))?;
        let inputs = node.inputs.iter().map(|(input, _)| input.clone()).collect();
        let fallback = match fallback {
            // The builder gives it its name.
            Some(Kind::Sink(sink)) => Some((String::new(), sink)),
            _ => None,
        };
        let everywhere = settings.schema_contract.filter(|_| node.role == Role::Sink);
        let options = NodeOptions {
            guards: node.guards.clone(),
            fallback,
            max_rejects: node.max_rejects,
            schema_contract: node.schema_contract.or(everywhere),
        };
        builder = builder.node(node.name.clone(), kind, inputs, node.delivery, options);
    }
    let action = match (document.on_error.action, letters) {
        (ActionWritten::DeadLetter, Some(Kind::Sink(sink))) => Action::DeadLetter(sink),
        (ActionWritten::DeadLetter, _) => {
            return Err(Error::internal("dead letters without problems or sink"));
        }
        (ActionWritten::Skip, _) => Action::Skip,
        (ActionWritten::Fail, _) => Action::Fail,
    };
    builder = builder.on_error(OnError {
        action,
        max_rows: document.on_error.max_rows,
        max_share: document.on_error.max_share,
    });
    builder = keep_state(builder, spec, &settings.checkpoint, &settings.name)?;
    if let Some(delivery) = settings.delivery {
        builder = builder.delivery(delivery);
    }
    if let Some(again) = settings.again {
        builder = builder.again(again);
    }
    if let Some(restart) = &settings.restart {
        builder = builder.restart(restart.into());
    }
    if let Some(lanes) = settings.parallelism {
        builder = builder.parallelism(lanes.get());
    }
    if let Some(rows) = settings.batch_rows {
        builder = builder.batch_rows(rows.get());
    }
    let bytes = |size: super::ByteSize| usize::try_from(size.0).unwrap_or(usize::MAX);
    if let Some(size) = settings.memory {
        builder = builder.memory_limit(bytes(size));
    }
    if let Some(size) = settings.edge_bytes {
        builder = builder.edge_bytes(bytes(size));
    }
    if let Some(idle) = settings.idle_after {
        builder = builder.idle_after(idle.into());
    }
    if let Some(dir) = &settings.spill_in {
        builder = builder.spill_in(dir);
    }
    for observer in observers {
        builder = builder.observer_arc(observer);
    }
    builder.build()
}

/// In memory, in a directory or in an object store; below the path each pipeline has a place of its
/// own, so that several may name the same.
fn keep_state(
    mut builder: PipelineBuilder,
    spec: &Spec,
    checkpoint: &CheckpointWritten,
    name: &str,
) -> Result<PipelineBuilder> {
    let every = checkpoint.every.map_or_else(|| builder.every(), Into::into);
    if checkpoint.in_memory {
        return Ok(builder.checkpoint_in_memory().epoch_every(every));
    }
    let path = match &checkpoint.path {
        Some(path) => path.clone(),
        None => resolve(STATE, &spec.file),
    };
    match path.split_once("://") {
        None => builder = builder.checkpoint(Path::new(&path).join(name), every),
        Some(("file", local)) => builder = builder.checkpoint(Path::new(local).join(name), every),
        Some(_) => {
            let log = Log::open(&path, &checkpoint.storage)?;
            builder = builder.checkpoint_store(log.store.0, log.prefix.join(name), every);
        }
    }
    Ok(builder)
}
