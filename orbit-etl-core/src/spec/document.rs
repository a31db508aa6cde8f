//! What a spec says, sorted: the pipeline's settings, and its nodes with what each reads.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::cron::Schedule;
use super::de::What;
use super::fit::fit;
use super::problem::{Place, Problem, nearest, quoted};
use super::schema::{self, PathText, Secret};
use super::tree::{Entry, Node, Text, Value, join};
use super::units::{ByteSize, Period};
use crate::fault::{Bulkhead, CircuitBreaker, GuardOptions, MaxRejects, RateLimit, Retry};
use crate::pipeline::{Again, Delivery, Restart, SchemaContract};

/// The keys that hold nodes, or shape them.
const STRUCTURE: [&str; 8] =
    ["include", "defaults", "source", "sources", "transforms", "sink", "sinks", "on_error"];

/// Everything but the nodes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The pipeline's name: letters, digits, `_`, `-` and `.`. Part of its identity.
    pub(crate) name: String,
    /// What the pipeline is for.
    #[serde(default)]
    pub(crate) description: Option<String>,
    /// Where the state is kept, and how often an epoch ends.
    #[serde(default)]
    pub(crate) checkpoint: CheckpointWritten,
    /// The guarantee that every sink must have; by default each has the strongest that is possible.
    #[serde(default)]
    pub(crate) delivery: Option<Delivery>,
    /// How the schemas of those sinks may change that don't say so themselves.
    #[serde(default)]
    pub(crate) schema_contract: Option<SchemaContract>,
    /// What a run does once an earlier one has read the inputs to their end.
    #[serde(default)]
    pub(crate) again: Option<Again>,
    /// How often a run restarts itself after a passing error.
    #[serde(default)]
    pub(crate) restart: Option<RestartWritten>,
    /// The number of lanes; by default one per core.
    #[serde(default)]
    pub(crate) parallelism: Option<NonZeroUsize>,
    /// The number of rows that sources put into a batch; 8,192 by default.
    #[serde(default)]
    pub(crate) batch_rows: Option<NonZeroUsize>,
    /// The bytes that sorts, joins, writers and spools may use together; 1 GiB by default.
    #[serde(default)]
    pub(crate) memory: Option<ByteSize>,
    /// The bytes of rows that may be under way between two tasks; 8 MiB by default.
    #[serde(default)]
    pub(crate) edge_bytes: Option<ByteSize>,
    /// After this long without an event, a split holds watermarks back no more; a minute by default.
    #[serde(default)]
    pub(crate) idle_after: Option<Period>,
    /// The directory under which is spilled, instead of the system's temporary one.
    #[serde(default)]
    #[schemars(with = "Option<PathText>")]
    pub(crate) spill_in: Option<String>,
    /// When the pipeline runs by itself, if its host keeps schedules.
    #[serde(default)]
    pub(crate) schedule: Option<Schedule>,
    /// The pipelines that must have succeeded before this one runs, if its host runs several.
    #[serde(default)]
    pub(crate) after: Vec<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Checkpoint")]
pub(crate) struct CheckpointWritten {
    /// A directory or a URL, in which each pipeline has a directory of its name. `.orbit/state`
    /// unless given.
    #[schemars(with = "Option<PathText>")]
    pub(crate) path: Option<String>,
    /// How often an epoch ends; `10s` unless given.
    pub(crate) every: Option<Period>,
    /// Forgets the state with the process, for loads that are never resumed.
    pub(crate) in_memory: bool,
    /// Options of the object store: `region`, `endpoint`, `access_key_id` …
    #[schemars(with = "BTreeMap<String, Secret>")]
    pub(crate) storage: BTreeMap<String, SecretString>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Restart")]
pub(crate) struct RestartWritten {
    /// How many restarts in a row; 5 unless given.
    #[serde(default)]
    max: Option<u32>,
    /// The pause before the first; each further one is twice as long. `200ms` unless given.
    #[serde(default)]
    backoff: Option<Period>,
    /// The longest pause; `30s` unless given.
    #[serde(default)]
    max_backoff: Option<Period>,
}

impl From<&RestartWritten> for Restart {
    fn from(written: &RestartWritten) -> Self {
        let usual = Self::default();
        Self {
            max: written.max.unwrap_or(usual.max),
            backoff: written.backoff.map_or(usual.backoff, Into::into),
            max_backoff: written.max_backoff.map_or(usual.max_backoff, Into::into),
        }
    }
}

/// `on_error` without its sink.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "OnError")]
pub(crate) struct OnErrorWritten {
    /// `fail` stops the run, `skip` drops the row, `dead_letter` writes it to `sink`.
    pub(crate) action: ActionWritten,
    /// The run stops when more rows than this were rejected in it.
    pub(crate) max_rows: Option<u64>,
    /// The run stops when more than this share (0 to 1) of the rows it read were rejected.
    pub(crate) max_share: Option<f64>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Action")]
pub(crate) enum ActionWritten {
    #[default]
    Fail,
    Skip,
    DeadLetter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Source,
    Transform,
    Sink,
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::Source, Self::Transform, Self::Sink];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Transform => "transform",
            Self::Sink => "sink",
        }
    }
}

/// One node as it was written.
#[derive(Clone)]
pub(crate) struct NodeSpec {
    pub(crate) role: Role,
    pub(crate) name: String,
    /// Where the node begins, and the keys that lead to it.
    pub(crate) place: Place,
    pub(crate) key: String,
    pub(crate) type_tag: Option<(String, Place)>,
    pub(crate) inputs: Vec<(String, Place)>,
    pub(crate) delivery: Option<Delivery>,
    pub(crate) guards: GuardOptions,
    pub(crate) max_rejects: Option<MaxRejects>,
    pub(crate) schema_contract: Option<SchemaContract>,
    /// The sink that takes what this one can't.
    pub(crate) fallback: Option<Box<NodeSpec>>,
    /// The rest, which is for the type to understand.
    pub(crate) config: Node,
}

/// A spec, taken apart.
#[derive(Default)]
pub(crate) struct Document {
    pub(crate) settings: Option<Settings>,
    pub(crate) on_error: OnErrorWritten,
    pub(crate) dead_letters: Option<NodeSpec>,
    pub(crate) nodes: Vec<NodeSpec>,
    /// Whether every node and every input could be read.
    pub(crate) whole: bool,
    pub(crate) defaults: Option<Node>,
}

impl Document {
    /// Those that only help others too.
    pub(crate) fn all_nodes(&self) -> impl Iterator<Item = &NodeSpec> {
        let fallbacks = self.nodes.iter().filter_map(|node| node.fallback.as_deref());
        self.nodes.iter().chain(fallbacks).chain(&self.dead_letters)
    }

    pub(crate) fn read(root: &Node, problems: &mut Vec<Problem>) -> Self {
        let mut document = Self::default();
        let Value::Map(entries) = &root.value else {
            problems.push(
                Problem::new(&root.place, "", format!("expected a map, found {}", root.described()))
                    .help("a spec begins with `name: …`"),
            );
            return document;
        };
        let mut rest = Node::new(root.place.clone(), Value::Map(Vec::with_capacity(entries.len())));
        let mut structure = BTreeMap::new();
        if let Value::Map(kept) = &mut rest.value {
            for entry in entries.iter().filter(|e| !e.key.starts_with("x-")) {
                match STRUCTURE.iter().find(|key| **key == entry.key) {
                    Some(key) => drop(structure.insert(*key, entry)),
                    None => kept.push(entry.clone()),
                }
            }
        }
        schema::prepare(&mut rest, &schema::alone(Settings::json_schema), "", problems);
        document.settings = fit(&rest, "", &root.place, problems, |node| {
            Settings::deserialize(node).map_err(|mut fault| {
                if fault.steps().next().is_none()
                    && let What::UnknownKey { known, .. } = &mut fault.what
                {
                    known.extend(STRUCTURE);
                }
                fault
            })
        });
        if let Some(defaults) = structure.get("defaults") {
            document.read_defaults(&defaults.node, problems);
        }
        let before = problems.len();
        document.read_nodes(&structure, root, problems);
        document.whole = problems.len() == before;
        if let Some(on_error) = structure.get("on_error") {
            document.read_on_error(on_error, problems);
        }
        document
    }

    fn read_defaults(&mut self, defaults: &Node, problems: &mut Vec<Problem>) {
        let Value::Map(roles) = &defaults.value else {
            problems.push(wanted(defaults, "defaults", "a map with source, transform and sink"));
            return;
        };
        for role in roles {
            if !Role::ALL.iter().any(|r| r.as_str() == role.key) {
                problems.push(
                    Problem::new(&role.place, join("defaults", &role.key), "unknown key")
                        .nearest(&role.key, Role::ALL.map(Role::as_str)),
                );
            }
            match &role.node.value {
                Value::Map(types) => {
                    for entry in types.iter().filter(|e| !matches!(e.node.value, Value::Map(_))) {
                        let key = join(&join("defaults", &role.key), &entry.key);
                        problems.push(wanted(&entry.node, &key, "a map of keys"));
                    }
                }
                _ => problems.push(wanted(&role.node, &join("defaults", &role.key), "a map of types")),
            }
        }
        self.defaults = Some(defaults.clone());
    }

    fn read_nodes(&mut self, structure: &BTreeMap<&str, &Entry>, root: &Node, problems: &mut Vec<Problem>) {
        let mut clash = false;
        for (one, many) in [("source", "sources"), ("sink", "sinks")] {
            if let (Some(_), Some(second)) = (structure.get(one), structure.get(many)) {
                problems.push(
                    Problem::new(&second.place, many, format!("`{one}` and `{many}` stand side by side"))
                        .help(format!("move the one into the other: `{many}: {{name: …}}`")),
                );
                clash = true;
            }
        }
        let mut read = |key: &str, role: Role| {
            if let Some(entry) = structure.get(key) {
                self.read_group(entry, role, problems);
            }
        };
        read("source", Role::Source);
        read("sources", Role::Source);
        read("transforms", Role::Transform);
        read("sink", Role::Sink);
        read("sinks", Role::Sink);
        if !clash {
            self.connect(structure.get("transforms").map(|t| &t.node.value), problems);
        }
        for (role, keys) in [(Role::Source, ["source", "sources"]), (Role::Sink, ["sink", "sinks"])] {
            let given = keys.iter().any(|key| structure.contains_key(key));
            if !given {
                problems.push(
                    Problem::new(&root.place, "", format!("a pipeline needs at least one {}", role.as_str()))
                        .help(format!("add `{}: {{type: …}}`", role.as_str())),
                );
            }
        }
    }

    /// `source`, `sources`, `transforms`, `sink` or `sinks`.
    fn read_group(&mut self, group: &Entry, role: Role, problems: &mut Vec<Problem>) {
        let several = group.key.ends_with('s');
        match &group.node.value {
            Value::Map(_) if !several => {
                let node = self.read_node(role, &group.key, &group.place, &group.key, &group.node, problems);
                self.nodes.extend(node);
            }
            Value::Map(entries) => {
                if entries.is_empty() {
                    problems.push(Problem::new(&group.place, &group.key, "there is nothing in it"));
                }
                for entry in entries {
                    let key = join(&group.key, &entry.key);
                    check_name(&entry.key, &entry.place, &key, problems);
                    let node = self.read_node(role, &entry.key, &entry.place, &key, &entry.node, problems);
                    self.nodes.extend(node);
                }
            }
            Value::List(items) if role == Role::Transform => {
                let first = self.nodes.len();
                for (i, item) in items.iter().enumerate() {
                    let key = format!("{}[{i}]", group.key);
                    let node = self.read_node(role, "", &item.place, &key, item, problems);
                    self.nodes.extend(node);
                }
                self.name_chain(first, problems);
            }
            _ if several => {
                let expected = match role {
                    Role::Transform => "a list of transforms, or a map from names to transforms",
                    Role::Source => "a map from names to sources",
                    Role::Sink => "a map from names to sinks",
                };
                problems.push(wanted(&group.node, &group.key, expected));
            }
            _ => problems.push(wanted(&group.node, &group.key, "a map with `type`")),
        }
    }

    /// Gives the members of a chain the names that they ask for, or those of their types.
    fn name_chain(&mut self, first: usize, problems: &mut Vec<Problem>) {
        let mut taken: Vec<String> = self.nodes[..first].iter().map(|n| n.name.clone()).collect();
        for node in &mut self.nodes[first..] {
            if let Some(name) = node.config.take("name") {
                let key = join(&node.key, "name");
                match name.node.as_text() {
                    Some(text) => {
                        check_name(&text.value, &name.node.place, &key, problems);
                        node.name.clone_from(&text.value);
                    }
                    None => problems.push(wanted(&name.node, &key, "a text")),
                }
                taken.push(node.name.clone());
            }
        }
        for node in self.nodes[first..].iter_mut().filter(|n| n.name.is_empty()) {
            let base = node.type_tag.as_ref().map_or("transform", |(tag, _)| tag.as_str());
            let fits = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
            let base: String = base.chars().map(fits).collect();
            let mut name = base.clone();
            let mut number = 1;
            while taken.contains(&name) {
                number += 1;
                name = format!("{base}_{number}");
            }
            taken.push(name.clone());
            node.name = name;
        }
    }

    fn read_node(
        &self,
        role: Role,
        name: &str,
        place: &Place,
        key: &str,
        node: &Node,
        problems: &mut Vec<Problem>,
    ) -> Option<NodeSpec> {
        if !matches!(node.value, Value::Map(_)) {
            problems.push(wanted(node, key, "a map with `type`"));
            return None;
        }
        let mut config = node.clone();
        let type_tag = match config.take("type") {
            Some(entry) => match entry.node.as_text() {
                Some(text) => Some((text.value.clone(), entry.node.place.clone())),
                None => {
                    problems.push(wanted(&entry.node, &join(key, "type"), "a text"));
                    None
                }
            },
            None => {
                let problem = Problem::new(place, key, "the key \"type\" is missing");
                // `typ: files` is a slip, and told here, since nobody else knows what keys there are.
                match node.entries().iter().find(|e| nearest(&e.key, ["type"]).is_some()) {
                    Some(slip) => problems.push(
                        Problem::new(&slip.place, join(key, &slip.key), "unknown key")
                            .nearest(&slip.key, ["type"]),
                    ),
                    None => problems.push(problem.help("it says what kind of node this is: `type: files`")),
                }
                None
            }
        };
        let inputs = match role {
            Role::Source => {
                if let Some(inputs) = config.take("inputs") {
                    problems.push(Problem::new(&inputs.place, join(key, "inputs"), "a source reads no node"));
                }
                Vec::new()
            }
            Role::Transform | Role::Sink => {
                config.take("inputs").map(|e| read_inputs(&e, key, problems)).unwrap_or_default()
            }
        };
        let delivery = (role == Role::Sink).then(|| config.take("delivery")).flatten().and_then(|entry| {
            fit(&entry.node, &join(key, "delivery"), &entry.place, problems, |node| {
                Delivery::deserialize(node)
            })
        });
        let guards = match role {
            Role::Source | Role::Sink => read_guards(&mut config, key, problems),
            Role::Transform => GuardOptions::default(),
        };
        let max_rejects = config.take("max_rejects").and_then(|entry| {
            fit(&entry.node, &join(key, "max_rejects"), &entry.place, problems, |n| {
                MaxRejects::deserialize(n)
            })
        });
        let schema_contract =
            (role == Role::Sink).then(|| config.take("schema_contract")).flatten().and_then(|entry| {
                let key = join(key, "schema_contract");
                fit(&entry.node, &key, &entry.place, problems, |n| SchemaContract::deserialize(n))
            });
        let fallback = (role == Role::Sink).then(|| config.take("fallback")).flatten().and_then(|entry| {
            let key = join(key, "fallback");
            let sink =
                self.read_node(role, &format!("{name}_fallback"), &entry.place, &key, &entry.node, problems)?;
            refuse_guards(&sink, problems);
            Some(Box::new(sink))
        });
        Some(NodeSpec {
            role,
            name: name.to_owned(),
            place: place.clone(),
            key: key.to_owned(),
            type_tag,
            inputs,
            delivery,
            guards,
            max_rejects,
            schema_contract,
            fallback,
            config,
        })
    }

    /// Lets nodes that name no inputs read the one before them, where there is just one.
    fn connect(&mut self, transforms: Option<&Value>, problems: &mut Vec<Problem>) {
        let list = matches!(transforms, Some(Value::List(_)));
        let sources: Vec<String> = self.named(Role::Source);
        let transforms: Vec<String> = self.named(Role::Transform);
        let chained = !transforms.is_empty() && (list || transforms.len() == 1);
        let mut before = match sources.as_slice() {
            [only] => Some(only.clone()),
            _ => None,
        };
        for node in &mut self.nodes {
            let implied = match node.role {
                Role::Source => continue,
                Role::Transform if list || transforms.len() == 1 => before.clone(),
                Role::Transform => None,
                Role::Sink if chained => transforms.last().cloned(),
                Role::Sink if transforms.is_empty() => before.clone(),
                Role::Sink => None,
            };
            if node.role == Role::Transform {
                before = Some(node.name.clone());
            }
            // What was written wrongly has been told.
            if !node.inputs.is_empty() || node.config.get("inputs").is_some() {
                continue;
            }
            match implied {
                Some(input) => node.inputs = vec![(input, node.place.clone())],
                None if sources.is_empty() && transforms.is_empty() => {}
                None => {
                    let known = if node.role == Role::Sink && !transforms.is_empty() {
                        &transforms
                    } else {
                        &sources
                    };
                    let example = known.first().map_or("orders", String::as_str);
                    problems.push(
                        Problem::new(&node.place, &node.key, "the key \"inputs\" is missing").help(format!(
                            "with several nodes to choose from, say which it reads: `inputs: [{example}]`"
                        )),
                    );
                }
            }
        }
    }

    fn named(&self, role: Role) -> Vec<String> {
        self.nodes.iter().filter(|n| n.role == role).map(|n| n.name.clone()).collect()
    }

    fn read_on_error(&mut self, entry: &Entry, problems: &mut Vec<Problem>) {
        let mut node = entry.node.clone();
        // `on_error: skip` is short for a map.
        if let Value::Text(_) = &node.value {
            let place = node.place.clone();
            node = Node::new(
                place.clone(),
                Value::Map(vec![Entry { key: "action".into(), place, node: entry.node.clone() }]),
            );
        }
        let sink = node.take("sink");
        let read = fit(&node, "on_error", &entry.place, problems, |node| {
            OnErrorWritten::deserialize(node).map_err(|mut fault| {
                if let What::UnknownKey { known, .. } = &mut fault.what {
                    known.push("sink");
                }
                fault
            })
        });
        if let Some(sink) = &sink {
            self.dead_letters = self.read_node(
                Role::Sink,
                crate::pipeline::DEAD_LETTERS,
                &sink.place,
                "on_error.sink",
                &sink.node,
                problems,
            );
            if let Some(letters) = &self.dead_letters {
                refuse_guards(letters, problems);
            }
        }
        let Some(on_error) = read else { return };
        if let Some(share) = on_error.max_share
            && !(0.0..=1.0).contains(&share)
        {
            let place = node.get("max_share").map_or(&entry.place, |n| &n.place);
            problems.push(
                Problem::new(place, "on_error.max_share", format!("{share} is not a share"))
                    .help("write a number from 0 to 1: 0.01 is one in a hundred"),
            );
        }
        match (on_error.action, &sink) {
            (ActionWritten::DeadLetter, None) => {
                problems.push(Problem::new(&entry.place, "on_error", "the key \"sink\" is missing").help(
                    "say where the rejected rows go: `sink: {type: files, path: rejected/, format: json}`",
                ))
            }
            (ActionWritten::Fail | ActionWritten::Skip, Some(sink)) => problems.push(
                Problem::new(&sink.place, "on_error.sink", "nothing is written here")
                    .help("add `action: dead_letter`, or remove the sink"),
            ),
            _ => {}
        }
        self.on_error = on_error;
    }
}

fn read_guards(config: &mut Node, key: &str, problems: &mut Vec<Problem>) -> GuardOptions {
    fn read<T>(
        config: &mut Node,
        name: &'static str,
        key: &str,
        problems: &mut Vec<Problem>,
        decode: impl Fn(&Node) -> Result<T, super::de::Fault>,
    ) -> Option<T> {
        let entry = config.take(name)?;
        fit(&entry.node, &join(key, name), &entry.place, problems, decode)
    }
    GuardOptions {
        retry: read(config, "retry", key, problems, |n| Retry::deserialize(n)),
        timeout: read(config, "timeout", key, problems, |n| Period::deserialize(n)).map(Into::into),
        rate_limit: read(config, "rate_limit", key, problems, |n| RateLimit::deserialize(n)),
        circuit_breaker: read(config, "circuit_breaker", key, problems, |n| CircuitBreaker::deserialize(n)),
        bulkhead: read(config, "bulkhead", key, problems, |n| Bulkhead::deserialize(n)),
    }
}

/// A sink that only helps others isn't helped itself.
fn refuse_guards(node: &NodeSpec, problems: &mut Vec<Problem>) {
    let own = node.fallback.is_some()
        || node.schema_contract.is_some()
        || node.max_rejects.is_some()
        || node.delivery.is_some();
    if own || !node.guards.is_empty() {
        problems.push(
            Problem::new(&node.place, &node.key, "this sink takes neither guards nor a delivery of its own")
                .help("give them to the sinks of the pipeline"),
        );
    }
}

fn read_inputs(entry: &Entry, key: &str, problems: &mut Vec<Problem>) -> Vec<(String, Place)> {
    let key = join(key, "inputs");
    let text = |node: &Node, key: &str, problems: &mut Vec<Problem>| match node.as_text() {
        Some(Text { value, .. }) => Some((value.clone(), node.place.clone())),
        None => {
            problems.push(wanted(node, key, "a node's name"));
            None
        }
    };
    match &entry.node.value {
        Value::Text(_) => text(&entry.node, &key, problems).into_iter().collect(),
        Value::List(items) if !items.is_empty() => items
            .iter()
            .enumerate()
            .filter_map(|(i, item)| text(item, &format!("{key}[{i}]"), problems))
            .collect(),
        _ => {
            problems.push(wanted(&entry.node, &key, "a list of nodes' names"));
            Vec::new()
        }
    }
}

fn check_name(name: &str, place: &Place, key: &str, problems: &mut Vec<Problem>) {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || !name.chars().all(fits) {
        problems.push(
            Problem::new(place, key, format!("{} is not a node's name", quoted(name)))
                .help("it is made of letters, digits, `_` and `-`"),
        );
    } else if name == crate::pipeline::DEAD_LETTERS {
        problems.push(
            Problem::new(place, key, "this name is kept for the pipeline's own dead letters")
                .help("give the node another name"),
        );
    }
}

fn wanted(node: &Node, key: &str, expected: &str) -> Problem {
    Problem::new(&node.place, key, format!("expected {expected}, found {}", node.described()))
}
