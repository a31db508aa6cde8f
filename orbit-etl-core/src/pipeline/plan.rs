//! A graph with its streams known: what is asked of sources, transforms and sinks before a run.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::checkpoint::SinkMark;
use crate::connector::{ConnectorInfo, StreamInfo};
use crate::context::Context;
use crate::error::{Error, Result, ResultExt};
use crate::event::StreamId;
use crate::fault::{GuardOptions, MaxRejects, dead_letter_schema};
use crate::pipeline::contract::{Evolution, Fit, SchemaContract, frozen, unmarked};
use crate::pipeline::delivery::{self, Guarantee};
use crate::pipeline::graph::{DEAD_LETTERS, Graph, Kind, split_reference};
use crate::pipeline::lanes::Deal;
use crate::pipeline::options::{Action, Again, Delivery, OnError};
use crate::sink::{CommitMode, Publication, Sink};
use crate::source::{FilterPushdown, Pushdown, Replay, ScanRequest, Source};
use crate::transform::{Distribution, Transform};

/// What every run of a pipeline begins with.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: Vec<PlanNode>,
    pub(crate) again: Again,
    /// Some node must see its whole input: there is one epoch, the last.
    pub(crate) held: bool,
    /// The one sink that keeps the checkpoints, if there is an atomic one.
    pub(crate) keeper: Option<usize>,
    /// Set where dead letters are sent once more.
    pub(crate) resend: Option<Resend>,
}

/// What sets a pipeline of dead letters apart from the one that they are of.
#[derive(Debug, Clone)]
pub(crate) struct Resend {
    /// How often its rows have been tried, this time included.
    pub(crate) attempt: i32,
    /// Follows the sinks' names where the targets know them: a target tells pipelines apart by the names
    /// of their sinks.
    pub(crate) mark: String,
}

#[derive(Debug)]
pub(crate) struct PlanNode {
    pub(crate) name: String,
    pub(crate) info: ConnectorInfo,
    pub(crate) role: Role,
    /// Where each input comes from, and what it looks like.
    pub(crate) inputs: Vec<Input>,
    /// What others can read; empty for sinks.
    pub(crate) outputs: Vec<StreamInfo>,
    pub(crate) lanes: usize,
    pub(crate) guards: GuardOptions,
    pub(crate) max_rejects: Option<MaxRejects>,
    pub(crate) schema_contract: Option<SchemaContract>,
    /// By input of a sink with a contract: how its rows are made to fit, unless they are left out.
    pub(crate) fits: Option<Vec<Option<Fit>>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Input {
    pub(crate) node: usize,
    pub(crate) output: usize,
    pub(crate) stream: StreamInfo,
}

#[derive(Debug)]
pub(crate) enum Role {
    Source {
        source: Arc<dyn Source>,
        replay: Replay,
        /// One per stream: what the source was asked for and takes on.
        scans: Vec<Scan>,
    },
    Transform {
        transform: Arc<dyn Transform>,
        distribution: Distribution,
        blocking: bool,
        /// The order of what comes out means something, if it comes out of one lane.
        ordered: bool,
        /// The node whose operators run just before, in the same task.
        fused: Option<usize>,
        /// Inputs could wait for one another: none may stand still.
        spooled: bool,
    },
    Sink {
        sink: Arc<dyn Sink>,
        mode: CommitMode,
        publication: Publication,
        guarantee: Guarantee,
        /// By input: how its rows reach the lanes.
        deals: Vec<Deal>,
        dead_letters: bool,
        /// The sink whose rows it takes when that one can't.
        stands_in: Option<usize>,
    },
}

/// What becomes of a stream's scan.
#[derive(Debug, Clone)]
pub(crate) struct Scan {
    /// What the node that follows would like.
    pub(crate) wanted: ScanRequest,
    /// What the source takes on of it.
    pub(crate) pushdown: Pushdown,
    /// What the source is opened with.
    pub(crate) request: ScanRequest,
}

/// What shapes a plan besides the graph.
#[derive(Debug, Clone)]
pub(crate) struct PlanOptions {
    pub(crate) parallelism: usize,
    pub(crate) again: Option<Again>,
    pub(crate) delivery: Option<Delivery>,
    pub(crate) on_error: OnError,
    /// Whether checkpoints outlive the process.
    pub(crate) durable: bool,
    pub(crate) resend: Option<Resend>,
}

impl Plan {
    pub(crate) async fn new(graph: &Graph, options: &PlanOptions, cx: &Context) -> Result<Self> {
        let mut nodes: Vec<PlanNode> = Vec::with_capacity(graph.nodes.len() + 1);
        for node in &graph.nodes {
            let inputs = resolve(graph, &nodes, &node.inputs).with("node", &node.name)?;
            let cx = cx.for_node(&node.name);
            let planned = match &node.kind {
                Kind::Source(source) => plan_source(source, &cx).await,
                Kind::Transform(transform) => plan_transform(transform, inputs, &cx).await,
                Kind::Sink(sink) => plan_sink(sink, inputs),
            };
            let (info, role, inputs, outputs) = planned.with("node", &node.name)?;
            nodes.push(PlanNode {
                name: node.name.clone(),
                info,
                role,
                inputs,
                outputs,
                lanes: 1,
                guards: node.options.guards.clone(),
                max_rejects: node.options.max_rejects,
                schema_contract: node.options.schema_contract,
                fits: None,
            });
        }
        push_down(&mut nodes, cx).await?;
        settle_transforms(&mut nodes, cx).await?;
        for (i, node) in graph.nodes.iter().enumerate() {
            if let Some((name, sink)) = &node.options.fallback {
                let planned = fallback_node(name, sink, i, &nodes[i]).with("node", name)?;
                nodes.push(planned);
            }
        }
        if let Action::DeadLetter(sink) = &options.on_error.action {
            nodes.push(dead_letter_node(sink));
        }
        let held = nodes.iter().any(PlanNode::is_blocking);
        let mut plan = Self {
            again: settle_again(&nodes, options)?,
            held,
            keeper: keeper(&nodes),
            nodes,
            resend: options.resend.clone(),
        };
        plan.check_bounds()?;
        plan.lay_out(options.parallelism);
        for i in 0..plan.nodes.len() {
            if let Role::Sink { stands_in: Some(sink), .. } = plan.nodes[i].role {
                plan.nodes[i].lanes = plan.nodes[sink].lanes;
            }
        }
        delivery::settle(&mut plan, graph, options)?;
        Ok(plan)
    }

    pub(crate) fn sources(&self) -> impl Iterator<Item = (usize, &PlanNode)> {
        self.nodes.iter().enumerate().filter(|(_, n)| matches!(n.role, Role::Source { .. }))
    }

    pub(crate) fn sinks(&self) -> impl Iterator<Item = (usize, &PlanNode)> {
        self.nodes.iter().enumerate().filter(|(_, n)| matches!(n.role, Role::Sink { .. }))
    }

    /// The name by which targets know a sink.
    pub(crate) fn name_in_target(&self, sink: usize) -> String {
        let name = &self.nodes[sink].name;
        self.resend.as_ref().map_or_else(|| name.clone(), |resend| format!("{name}{}", resend.mark))
    }

    /// Who reads an output of a node: (consumer, its input).
    pub(crate) fn consumers(&self, node: usize, output: usize) -> Vec<(usize, usize)> {
        let mut consumers = Vec::new();
        for (i, consumer) in self.nodes.iter().enumerate() {
            for (port, input) in consumer.inputs.iter().enumerate() {
                if (input.node, input.output) == (node, output) {
                    consumers.push((i, port));
                }
            }
        }
        consumers
    }

    /// The node that takes the rows that a sink can't.
    pub(crate) fn fallback_of(&self, sink: usize) -> Option<usize> {
        self.nodes.iter().position(|n| matches!(n.role, Role::Sink { stands_in: Some(s), .. } if s == sink))
    }

    /// What a sink is opened for.
    pub(crate) fn streams_of(&self, sink: usize) -> Vec<StreamInfo> {
        let node = match self.nodes[sink].role {
            Role::Sink { stands_in: Some(other), .. } => &self.nodes[other],
            _ => &self.nodes[sink],
        };
        let Some(fits) = &node.fits else { return node.streams() };
        let fitted = node.streams().into_iter().zip(fits).filter_map(|(stream, fit)| {
            Some(StreamInfo { schema: Arc::clone(fit.as_ref()?.schema()), ..stream })
        });
        fitted.collect()
    }

    pub(crate) fn has_contracts(&self) -> bool {
        self.nodes.iter().any(|node| node.schema_contract.is_some())
    }

    /// Holds what comes against what sinks with a contract have had.
    ///
    /// # Errors
    /// A contract forbids it.
    pub(crate) fn fit_sinks(&mut self, marks: &BTreeMap<String, SinkMark>) -> Result<()> {
        for node in &mut self.nodes {
            let Some(contract) = node.schema_contract else { continue };
            let known = marks.get(&node.name).map(|mark| &mark.streams);
            let mut fits = Vec::with_capacity(node.inputs.len());
            for input in &node.inputs {
                let stream = &input.stream;
                let had = known.and_then(|streams| streams.get(&stream.name));
                let new_one = had.is_none() && known.is_some_and(|streams| !streams.is_empty());
                let fit = match (new_one, contract.tables) {
                    (true, Evolution::Freeze) => Err(frozen("a stream that the sink doesn't have", "tables")),
                    (true, Evolution::DiscardRow | Evolution::DiscardValue) => Ok(None),
                    _ => had
                        .map(|columns| unmarked(columns))
                        .transpose()
                        .and_then(|had| Fit::new(contract, had.as_ref(), &stream.schema).map(Some)),
                };
                fits.push(fit.with("stream", &stream.name).with("node", &node.name)?);
            }
            node.fits = Some(fits);
        }
        Ok(())
    }

    /// The sources that a node's rows come from.
    pub(crate) fn origins(&self, node: usize) -> Vec<usize> {
        origins(&self.nodes, node)
    }

    fn check_bounds(&self) -> Result<()> {
        let unbounded = |streams: &[StreamInfo]| streams.iter().find(|s| !s.bounded).map(|s| s.name.clone());
        if self.held
            && let Some(holder) = self.nodes.iter().find(|n| n.is_blocking())
            && let Some((_, source)) = self.sources().find(|(_, n)| n.outputs.iter().any(|s| !s.bounded))
        {
            return Err(Error::unsupported(
                "a node that needs its whole input lets nothing be committed before the end, \
                 but a source of this pipeline has no end",
            )
            .with("node", &holder.name)
            .with("source", &source.name)
            .remedy("use a window, or give the bounded part a pipeline of its own"));
        }
        for (_, node) in self.sinks() {
            let reads = if node.is_dead_letters() {
                self.sources().find_map(|(_, s)| unbounded(&s.outputs))
            } else {
                unbounded(&node.streams())
            };
            if let Role::Sink { publication: Publication::AtEnd, .. } = node.role
                && let Some(stream) = reads
            {
                return Err(Error::config(
                    "this sink publishes at the end of its input, but the input has none",
                )
                .with("node", &node.name)
                .with("stream", stream)
                .remedy("let the sink append"));
            }
        }
        Ok(())
    }
}

impl PlanNode {
    pub(crate) fn is_blocking(&self) -> bool {
        matches!(self.role, Role::Transform { blocking: true, .. })
    }

    pub(crate) fn is_dead_letters(&self) -> bool {
        matches!(self.role, Role::Sink { dead_letters: true, .. })
    }

    pub(crate) fn role_name(&self) -> &'static str {
        match self.role {
            Role::Source { .. } => "source",
            Role::Transform { .. } => "transform",
            Role::Sink { dead_letters: true, .. } => "dead letters",
            Role::Sink { stands_in: Some(_), .. } => "fallback",
            Role::Sink { .. } => "sink",
        }
    }

    pub(crate) fn streams(&self) -> Vec<StreamInfo> {
        self.inputs.iter().map(|i| i.stream.clone()).collect()
    }
}

type Planned = (ConnectorInfo, Role, Vec<Input>, Vec<StreamInfo>);

fn origins(nodes: &[PlanNode], node: usize) -> Vec<usize> {
    if nodes[node].inputs.is_empty() {
        return vec![node];
    }
    let mut found: Vec<usize> = nodes[node].inputs.iter().flat_map(|i| origins(nodes, i.node)).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The streams that references mean. Where a transform or a lone source has one, its name is the
/// node's, so that SQL can speak of it.
fn resolve(graph: &Graph, nodes: &[PlanNode], references: &[String]) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for reference in references {
        let (name, output) = split_reference(reference);
        let Some(node) = graph.index_of(name).filter(|i| *i < nodes.len()) else {
            return Err(Error::internal("an input is planned after its reader").with("input", reference));
        };
        let outputs = &nodes[node].outputs;
        match output {
            Some(wanted) => {
                let Some(index) = outputs.iter().position(|s| s.name == wanted) else {
                    let names: Vec<_> = outputs.iter().map(|s| s.name.as_str()).collect();
                    return Err(Error::config("that node has no such output")
                        .with("input", reference)
                        .remedy(format!("its outputs are: {}", names.join(", "))));
                };
                inputs.push(Input { node, output: index, stream: outputs[index].clone() });
            }
            None if matches!(nodes[node].role, Role::Transform { .. }) => {
                // The other outputs of a transform are read by name alone.
                let mut stream = outputs[0].clone();
                stream.name = name.to_owned();
                inputs.push(Input { node, output: 0, stream });
            }
            None => {
                for (index, stream) in outputs.iter().enumerate() {
                    let mut stream = stream.clone();
                    if outputs.len() == 1 {
                        stream.name = name.to_owned();
                    }
                    inputs.push(Input { node, output: index, stream });
                }
            }
        }
    }
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for input in &mut inputs {
        let seen = names.entry(input.stream.name.clone()).or_default();
        *seen += 1;
        if *seen > 1 {
            input.stream.name = format!("{}.{}", nodes[input.node].name, input.stream.name);
        }
    }
    Ok(inputs)
}

async fn plan_source(source: &Arc<dyn Source>, cx: &Context) -> Result<Planned> {
    source.validate()?;
    let outputs = source.streams(cx).await?;
    if outputs.is_empty() {
        return Err(Error::not_found("the source has no stream to read"));
    }
    let scans = (0..outputs.len())
        .map(|i| {
            let request = ScanRequest::all(StreamId(i), cx.batch_rows());
            Scan { pushdown: Pushdown::none(&request), wanted: request.clone(), request }
        })
        .collect();
    let role = Role::Source { source: Arc::clone(source), replay: source.replay(), scans };
    Ok((source.info(), role, Vec::new(), outputs))
}

async fn plan_transform(transform: &Arc<dyn Transform>, inputs: Vec<Input>, cx: &Context) -> Result<Planned> {
    let streams: Vec<_> = inputs.iter().map(|i| i.stream.clone()).collect();
    let outputs = transform.outputs(cx, &streams).await?;
    if outputs.is_empty() {
        return Err(Error::internal("the transform has no output"));
    }
    let blocking = transform.blocking(cx, &streams).await?;
    let distribution = transform.distribution();
    let one_lane = blocking || distribution == Distribution::Single;
    let ordered = one_lane && transform.ordered(cx, &streams).await?;
    if let Distribution::Keyed(keys) = &distribution {
        check_keys(keys, &streams)?;
    }
    let role = Role::Transform {
        transform: Arc::clone(transform),
        distribution,
        blocking,
        ordered,
        fused: None,
        spooled: false,
    };
    Ok((transform.info(), role, inputs, outputs))
}

/// Equal keys must be equal bytes, in whichever input.
fn check_keys(keys: &[String], streams: &[StreamInfo]) -> Result<()> {
    for key in keys {
        let mut types =
            streams.iter().filter_map(|s| s.schema.field_with_name(key).ok()).map(|f| f.data_type());
        if let Some(first) = types.next()
            && let Some(other) = types.find(|t| *t != first)
        {
            return Err(Error::schema("a key has another type in each input")
                .with("column", key)
                .with("types", format!("{first}, {other}"))
                .remedy("cast it to one type before this node"));
        }
    }
    Ok(())
}

fn plan_sink(sink: &Arc<dyn Sink>, inputs: Vec<Input>) -> Result<Planned> {
    sink.validate()?;
    let role = Role::Sink {
        sink: Arc::clone(sink),
        mode: sink.commit_mode(),
        publication: sink.publication(),
        guarantee: Guarantee::unknown(),
        deals: Vec::new(),
        dead_letters: false,
        stands_in: None,
    };
    Ok((sink.info(), role, inputs, Vec::new()))
}

/// A fallback takes part in every epoch as its sink does, so it must be one that can.
fn fallback_node(name: &str, sink: &Arc<dyn Sink>, of: usize, main: &PlanNode) -> Result<PlanNode> {
    sink.validate()?;
    let at_end = |publication| publication == Publication::AtEnd;
    if sink.commit_mode() == CommitMode::Atomic {
        return Err(Error::unsupported("a sink with transactions of its own can't be a fallback")
            .remedy("let files or another staged sink take the rows"));
    }
    if at_end(sink.publication())
        || matches!(main.role, Role::Sink { publication, .. } if at_end(publication))
    {
        return Err(Error::unsupported(
            "what overwrites needs all rows in one place, and can't have or be a fallback",
        )
        .remedy("let both sinks append"));
    }
    Ok(PlanNode {
        name: name.to_owned(),
        info: sink.info(),
        role: Role::Sink {
            sink: Arc::clone(sink),
            mode: sink.commit_mode(),
            publication: sink.publication(),
            guarantee: Guarantee::unknown(),
            deals: Vec::new(),
            dead_letters: false,
            stands_in: Some(of),
        },
        inputs: Vec::new(),
        outputs: Vec::new(),
        lanes: 1,
        guards: GuardOptions::default(),
        max_rejects: None,
        schema_contract: None,
        fits: None,
    })
}

fn dead_letter_node(sink: &Arc<dyn Sink>) -> PlanNode {
    PlanNode {
        name: DEAD_LETTERS.to_owned(),
        info: sink.info(),
        role: Role::Sink {
            sink: Arc::clone(sink),
            mode: sink.commit_mode(),
            publication: sink.publication(),
            guarantee: Guarantee::unknown(),
            deals: Vec::new(),
            dead_letters: true,
            stands_in: None,
        },
        inputs: Vec::new(),
        outputs: Vec::new(),
        lanes: 1,
        guards: GuardOptions::default(),
        max_rejects: None,
        schema_contract: None,
        fits: None,
    }
}

/// The stream that a dead-letter sink is opened with.
pub(crate) fn dead_letter_stream() -> StreamInfo {
    StreamInfo::new(DEAD_LETTERS, dead_letter_schema())
}

/// Asks each transform that alone reads a source's stream what it needs, and the source what of
/// that it takes on; narrows the stream accordingly.
async fn push_down(nodes: &mut [PlanNode], cx: &Context) -> Result<()> {
    for i in 0..nodes.len() {
        for output in 0..nodes[i].outputs.len() {
            let Role::Source { source, .. } = &nodes[i].role else { break };
            let source = Arc::clone(source);
            let mut readers = Vec::new();
            for (n, node) in nodes.iter().enumerate() {
                for (port, input) in node.inputs.iter().enumerate() {
                    if (input.node, input.output) == (i, output) {
                        readers.push((n, port));
                    }
                }
            }
            let [(reader, port)] = readers[..] else { continue };
            let Role::Transform { transform, .. } = &nodes[reader].role else { continue };
            let reader_cx = cx.for_node(&nodes[reader].name);
            let streams = nodes[reader].streams();
            let mut wanted =
                transform.scan(&reader_cx, &streams, port).await.with("node", &nodes[reader].name)?;
            wanted.stream = StreamId(output);
            if let Some(columns) = &mut wanted.projection {
                let schema = &nodes[i].outputs[output].schema;
                columns.sort_by_key(|c| schema.index_of(c).unwrap_or(usize::MAX));
                columns.dedup();
            }
            let pushdown = source.pushdown(&wanted);
            let request = ScanRequest {
                stream: wanted.stream,
                projection: wanted.projection.clone().filter(|_| pushdown.projection),
                filters: wanted
                    .filters
                    .iter()
                    .zip(&pushdown.filters)
                    .filter(|(_, answer)| **answer != FilterPushdown::Unsupported)
                    .map(|(filter, _)| filter.clone())
                    .collect(),
                batch_rows: wanted.batch_rows,
            };
            if let Some(columns) = &wanted.projection {
                let narrowed =
                    narrow(&nodes[i].outputs[output], columns).with("node", &nodes[reader].name)?;
                let named =
                    StreamInfo { name: nodes[reader].inputs[port].stream.name.clone(), ..narrowed.clone() };
                nodes[reader].inputs[port].stream = named;
                nodes[i].outputs[output] = narrowed;
            }
            if let Role::Source { scans, .. } = &mut nodes[i].role {
                scans[output] = Scan { wanted, pushdown, request };
            }
        }
    }
    Ok(())
}

fn narrow(stream: &StreamInfo, columns: &[String]) -> Result<StreamInfo> {
    let mut indices = Vec::with_capacity(columns.len());
    for column in columns {
        indices.push(stream.schema.index_of(column).map_err(|_| {
            Error::internal("a transform asks for a column that its input doesn't have")
                .with("column", column)
        })?);
    }
    let schema =
        stream.schema.project(&indices).map_err(|e| Error::internal("can't narrow a schema").caused_by(e))?;
    Ok(StreamInfo { schema: Arc::new(schema), ..stream.clone() })
}

/// After the inputs were narrowed, asks once more what comes out: it must be the same.
async fn settle_transforms(nodes: &mut [PlanNode], cx: &Context) -> Result<()> {
    for node in nodes {
        let Role::Transform { transform, .. } = &node.role else { continue };
        let streams: Vec<_> = node.inputs.iter().map(|i| i.stream.clone()).collect();
        let again = transform.outputs(&cx.for_node(&node.name), &streams).await.with("node", &node.name)?;
        let same = again.iter().map(|s| &s.schema).eq(node.outputs.iter().map(|s| &s.schema));
        if !same {
            return Err(Error::internal("a transform changes its output with the columns that it asked for")
                .with("node", &node.name));
        }
    }
    Ok(())
}

fn settle_again(nodes: &[PlanNode], options: &PlanOptions) -> Result<Again> {
    let overwriter = nodes
        .iter()
        .find(|n| matches!(n.role, Role::Sink { publication: Publication::AtEnd, dead_letters: false, .. }));
    match (overwriter, options.again) {
        (Some(node), Some(Again::Resume)) => Err(Error::config(
            "a sink that overwrites needs all rows, but `again: resume` reads only new ones",
        )
        .with("node", &node.name)
        .remedy("let the sink append, or leave `again` at `full`")),
        (Some(_), None) => Ok(Again::Full),
        (_, again) => Ok(again.unwrap_or(Again::Resume)),
    }
}

fn keeper(nodes: &[PlanNode]) -> Option<usize> {
    nodes
        .iter()
        .position(|n| matches!(n.role, Role::Sink { mode: CommitMode::Atomic, dead_letters: false, .. }))
}
