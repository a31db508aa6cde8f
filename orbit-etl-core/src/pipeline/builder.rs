//! Building a pipeline in code.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use datafusion_execution::memory_pool::{GreedyMemoryPool, MemoryPool};
use object_store::ObjectStore;
use object_store::path::Path;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::{Head, Log, State};
use crate::connector::{Connector, Health};
use crate::context::{Context, ContextBuilder, DEFAULT_BATCH_ROWS};
use crate::error::{Error, Result, ResultExt};
use crate::event::{Position, SplitId};
use crate::fault::{Bulkhead, Ceilings, CircuitBreaker, GuardOptions, Guards, MaxRejects, RateLimit, Retry};
use crate::observe::{Meter, Observer, Retries, RunReport};
use crate::pipeline::contract::SchemaContract;
use crate::pipeline::explain::Explanation;
use crate::pipeline::graph::{Graph, Kind, Node, NodeInfo, NodeOptions};
use crate::pipeline::options::{Action, Again, Delivery, OnError, Restart};
use crate::pipeline::plan::{Plan, PlanOptions, Resend};
use crate::pipeline::run::{Control, Mend, Running, mend, run};
use crate::pipeline::{news, resend};
use crate::sink::Sink;
use crate::source::Source;
use crate::transform::Transform;

/// Sources, transforms and sinks, joined and checked. Building one has no effect outside the process;
/// one pipeline can be run many times.
#[derive(Debug, Clone)]
pub struct Pipeline {
    definition: Arc<Definition>,
}

/// All that a run needs to know.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) name: String,
    pub(crate) graph: Graph,
    pub(crate) settings: Settings,
    /// One for all runs of this value, so that a log in memory is remembered between them.
    memory_log: Log,
}

/// What a pipeline is told besides its nodes.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) on_error: OnError,
    pub(crate) restart: Restart,
    pub(crate) every: Duration,
    pub(crate) edge_bytes: usize,
    pub(crate) idle_after: Duration,
    pub(crate) observers: Vec<Arc<dyn Observer>>,
    checkpoints: Checkpoints,
    again: Option<Again>,
    delivery: Option<Delivery>,
    parallelism: usize,
    batch_rows: usize,
    memory_limit: usize,
    memory_pool: Option<Arc<dyn MemoryPool>>,
    spill_in: Option<PathBuf>,
    stop: CancellationToken,
    resend: Option<Resend>,
}

#[derive(Debug, Clone)]
enum Checkpoints {
    Local(PathBuf),
    Store(Arc<dyn ObjectStore>, Path),
    Memory,
}

impl Checkpoints {
    /// The place for the letters of one node, beside the pipeline's own.
    fn beside(&self, pipeline: &str, node: &str, attempt: i32) -> Result<Self> {
        let part = format!("{node}-{attempt}");
        match self {
            Self::Local(dir) => {
                let name = dir.file_name().map_or_else(|| pipeline.into(), |name| name.to_os_string());
                let mut beside = name;
                beside.push(".replay");
                Ok(Self::Local(dir.with_file_name(beside).join(part)))
            }
            Self::Store(store, prefix) => {
                let beside = Path::from(format!("{prefix}.replay")).join(part);
                Ok(Self::Store(Arc::clone(store), beside))
            }
            Self::Memory => Err(Error::config(
                "the pipeline forgets its state, so nothing would remember which letters were sent again",
            )
            .remedy("give it a `checkpoint.path`")),
        }
    }
}

impl Pipeline {
    /// Begins a pipeline. The name is part of its identity: it owns its state directory.
    pub fn builder(name: impl Into<String>) -> PipelineBuilder {
        PipelineBuilder::new(name.into())
    }

    /// The pipeline's name.
    pub fn name(&self) -> &str {
        &self.definition.name
    }

    /// The nodes, each after those that it reads, the dead letters last. Pure.
    pub fn nodes(&self) -> Vec<NodeInfo> {
        let nodes = self.definition.graph.nodes.iter().map(NodeInfo::of);
        let letters = match &self.definition.settings.on_error.action {
            Action::DeadLetter(sink) => Some(NodeInfo::dead_letters(&**sink)),
            Action::Fail | Action::Skip => None,
        };
        let fallbacks = self.definition.graph.fallbacks().map(|(name, sink)| NodeInfo::fallback(name, sink));
        nodes.chain(fallbacks).chain(letters).collect()
    }

    /// The part that leads to a node, with this sink behind it: it gets what a source or a transform sends
    /// on, or what a sink would get. State is kept in memory, and rows that can't go on are skipped, so
    /// that running it reads from the start and leaves everything as it is.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config): there is no such node.
    pub fn tap(&self, node: &str, sink: impl Sink) -> Result<Self> {
        let sink: Arc<dyn Sink> = Arc::new(sink);
        let graph = &self.definition.graph;
        let mut nodes = graph.leading_to(node);
        match nodes.last_mut() {
            Some(last) if matches!(last.kind, Kind::Sink(_)) => {
                last.kind = Kind::Sink(sink);
                last.delivery = None;
                last.options = NodeOptions::default();
            }
            Some(last) => {
                let mut name = "tap".to_owned();
                while graph.index_of(&name).is_some() {
                    name.push('_');
                }
                let inputs = vec![last.name.clone()];
                nodes.push(Node {
                    name,
                    kind: Kind::Sink(sink),
                    inputs,
                    delivery: None,
                    options: NodeOptions::default(),
                });
            }
            None => return Err(Error::config("there is no node of that name").with("node", node)),
        }
        let settings = Settings {
            on_error: OnError::skip(),
            checkpoints: Checkpoints::Memory,
            observers: Vec::new(),
            again: None,
            delivery: None,
            ..self.definition.settings.clone()
        };
        Ok(Self {
            definition: Arc::new(Definition {
                name: self.definition.name.clone(),
                graph: Graph::new(nodes)?,
                settings,
                memory_log: Log::memory(),
            }),
        })
    }

    /// A pipeline of its own that sends the dead letters of one node through the rest of this one again:
    /// those that were tried `attempt` times and that it hasn't taken yet. `letters` reads the place to
    /// which this pipeline writes them. Each is taken once: the new pipeline keeps its state beside this
    /// one's, and the targets know its sinks by names of their own. What is rejected again becomes a letter
    /// of attempt + 1.
    ///
    /// Records that a source couldn't read are read by [`Source::decode`], rows that a transform or sink
    /// refused go to that node again.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where a letter's way leads through a node that needs
    /// its whole input or other rows too, or into a sink that overwrites. [`Config`](crate::ErrorKind::Config):
    /// there is no such node, or the state is kept in memory. Otherwise as [`Pipeline::explain`].
    pub async fn resend(&self, letters: Arc<dyn Source>, node: &str, attempt: i32) -> Result<Self> {
        let definition = &self.definition;
        let mark = format!("-replay-{node}-{attempt}");
        let checkpoints = definition.settings.checkpoints.beside(&definition.name, node, attempt)?;
        let cx = definition.context(CancellationToken::new(), &Retries::default())?;
        let planned = match definition.connect(&cx).await {
            Ok(()) => Plan::new(&definition.graph, &definition.plan_options(), &cx).await,
            Err(error) => Err(error),
        };
        definition.disconnect(&cx).await;
        let nodes = resend::nodes(&definition.graph, &planned?, letters, node, attempt)?;
        // More than a ceiling of them may still be bad, which is no news.
        let on_error = OnError { max_rows: None, max_share: None, ..definition.settings.on_error.clone() };
        let settings = Settings {
            on_error,
            checkpoints,
            again: None,
            resend: Some(Resend { attempt: attempt.saturating_add(1), mark }),
            ..definition.settings.clone()
        };
        Ok(Self {
            definition: Arc::new(Definition {
                name: format!("{}.replay", definition.name),
                graph: Graph::new(nodes)?,
                settings,
                memory_log: Log::memory(),
            }),
        })
    }

    /// Whether a run would find something that no run has read to its end: a source has splits, such as
    /// files, that the state doesn't know yet. Lists and reads no data.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported): a source has no end. Otherwise those of the listing.
    pub async fn has_news(&self) -> Result<bool> {
        let Some(head) = self.state().await? else { return Ok(true) };
        let cx = self.definition.context(CancellationToken::new(), &Retries::default())?;
        let looked = match self.definition.connect(&cx).await {
            Ok(()) => news::look(&self.definition.graph, &head.state, &cx).await,
            Err(error) => Err(error),
        };
        self.definition.disconnect(&cx).await;
        looked
    }

    /// The log of the pipeline's checkpoints.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn log(&self) -> Result<Log> {
        self.definition.log()
    }

    /// The newest state, without disturbing a run; `None` before the first.
    ///
    /// # Errors
    /// As [`Log::peek`].
    pub async fn state(&self) -> Result<Option<Head>> {
        self.definition.peek().await
    }

    /// Lets the next run read everything once more, as a new generation. What is staged is published
    /// first; a table that the older generation was to replace stays as it is until the new one does. A run
    /// that goes on is fenced.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): there is no state yet. Otherwise as the start of a run.
    pub async fn reset(&self) -> Result<State> {
        mend(&self.definition, &Mend::Reset).await
    }

    /// Lets the next run read a split on from another position; without a split, lets the source look for
    /// splits from another position on. The source is asked whether it can go on there before anything is
    /// changed. A run that goes on is fenced.
    ///
    /// # Errors
    /// The source's answer; [`NotFound`](crate::ErrorKind::NotFound): the state knows no such source or
    /// split. Otherwise as the start of a run.
    pub async fn set_position(
        &self,
        source: &str,
        split: Option<&str>,
        position: impl Into<Position>,
    ) -> Result<State> {
        let split = split.map(SplitId::new);
        mend(&self.definition, &Mend::Position { source, split, position: position.into() }).await
    }

    /// Asks sources, transforms and sinks what a run would do: streams, lanes, what is pushed down, and
    /// what each sink is promised. Reads schemas; claims and writes nothing.
    ///
    /// # Errors
    /// Everything that would stop a run before its first row.
    pub async fn explain(&self) -> Result<Explanation> {
        let definition = &self.definition;
        let cx = definition.context(CancellationToken::new(), &Retries::default())?;
        let plan = definition.plan(&cx).await?;
        let every = format!("every {:?}, and at the end", definition.settings.every);
        Ok(Explanation::new(&definition.name, &plan, &every))
    }

    /// Checks every source and sink, without effect; one answer per node.
    ///
    /// # Errors
    /// No context can be made. A node's own failure is its answer.
    pub async fn health(&self) -> Result<Vec<(String, Result<Health>)>> {
        let cx = self.definition.context(CancellationToken::new(), &Retries::default())?;
        let mut answers = Vec::new();
        for (name, connector) in self.definition.connectors() {
            let answer = connector.health(&cx.for_node(name)).await.with("node", name);
            answers.push((name.to_owned(), answer));
        }
        Ok(answers)
    }

    /// Runs the pipeline until its inputs end.
    ///
    /// # Errors
    /// The error that stopped it. Every target stands as at its last committed epoch; the next run goes
    /// on from there.
    pub async fn run(&self) -> Result<RunReport> {
        self.start().await
    }

    /// Starts a run in the background. Must be called within a tokio runtime.
    pub fn start(&self) -> Running {
        let nodes = self.nodes();
        let meter = Meter::new(&self.definition.name, &nodes);
        let control = Control::new(self.definition.settings.stop.child_token(), meter);
        let definition = Arc::clone(&self.definition);
        Running::start(control, |control| run(definition, control, nodes))
    }
}

impl Definition {
    pub(crate) fn context(&self, cancel: CancellationToken, retries: &Retries) -> Result<Context> {
        let pool = match &self.settings.memory_pool {
            Some(pool) => Arc::clone(pool),
            None => Arc::new(GreedyMemoryPool::new(self.settings.memory_limit)),
        };
        ContextBuilder::new(&self.name)
            .cancellation(cancel)
            .memory(pool)
            .spill_in(self.settings.spill_in.clone())
            .batch_rows(self.settings.batch_rows)
            .parallelism(self.settings.parallelism)
            .retries(retries)
            .build()
    }

    /// The plan of a run that begins now.
    pub(crate) async fn plan(&self, cx: &Context) -> Result<Plan> {
        let mut plan = Plan::new(&self.graph, &self.plan_options(), cx).await?;
        if plan.has_contracts() {
            let head = self.peek().await?;
            plan.fit_sinks(&head.map(|head| head.state.sinks).unwrap_or_default())?;
        }
        Ok(plan)
    }

    pub(crate) fn log(&self) -> Result<Log> {
        match &self.settings.checkpoints {
            Checkpoints::Local(dir) => Log::local(dir),
            Checkpoints::Store(store, prefix) => Ok(Log::new(Arc::clone(store), prefix.clone())),
            Checkpoints::Memory => Ok(self.memory_log.clone()),
        }
    }

    /// The newest state; looking makes no directory.
    pub(crate) async fn peek(&self) -> Result<Option<Head>> {
        match &self.settings.checkpoints {
            Checkpoints::Local(dir) if !dir.exists() => Ok(None),
            _ => self.log()?.peek().await,
        }
    }

    pub(crate) fn plan_options(&self) -> PlanOptions {
        PlanOptions {
            parallelism: self.settings.parallelism,
            again: self.settings.again,
            delivery: self.settings.delivery,
            on_error: self.settings.on_error.clone(),
            durable: !matches!(self.settings.checkpoints, Checkpoints::Memory),
            resend: self.settings.resend.clone(),
        }
    }

    /// Every source and sink, the one of the dead letters too, with its node's name.
    pub(crate) fn connectors(&self) -> impl Iterator<Item = (&str, &dyn Connector)> {
        let nodes = self.graph.nodes.iter().filter_map(|node| match &node.kind {
            Kind::Source(source) => Some((node.name.as_str(), &**source as &dyn Connector)),
            Kind::Sink(sink) => Some((node.name.as_str(), &**sink as &dyn Connector)),
            Kind::Transform(_) => None,
        });
        let letters = match &self.settings.on_error.action {
            Action::DeadLetter(sink) => {
                Some((crate::pipeline::graph::DEAD_LETTERS, &**sink as &dyn Connector))
            }
            Action::Fail | Action::Skip => None,
        };
        let fallbacks = self.graph.fallbacks().map(|(name, sink)| (name, sink as &dyn Connector));
        nodes.chain(fallbacks).chain(letters)
    }

    /// The ceilings of one run.
    pub(crate) fn ceilings(&self) -> Result<Ceilings> {
        ceilings(&self.graph)
    }

    /// The guards of one run.
    pub(crate) fn guards(&self) -> Result<Guards> {
        guards(&self.graph)
    }
}

/// Collects the parts of a [`Pipeline`]. Setters don't fail; [`build`](Self::build) checks.
///
/// A transform or sink reads the node that was added just before it, unless its inputs are named
/// with [`inputs`](Self::inputs). An input is `node`, or `node.stream` for one stream of several.
#[derive(Debug)]
pub struct PipelineBuilder {
    name: String,
    nodes: Vec<Node>,
    /// The last source or transform: what the next node reads.
    last: Option<String>,
    misplaced: Option<&'static str>,
    settings: Settings,
}

impl PipelineBuilder {
    fn new(name: String) -> Self {
        let state = PathBuf::from(".orbit").join("state").join(&name);
        Self {
            name,
            nodes: Vec::new(),
            last: None,
            misplaced: None,
            settings: Settings {
                on_error: OnError::default(),
                restart: Restart::default(),
                every: Duration::from_secs(10),
                edge_bytes: 8 << 20,
                idle_after: Duration::from_secs(60),
                observers: Vec::new(),
                checkpoints: Checkpoints::Local(state),
                again: None,
                delivery: None,
                parallelism: std::thread::available_parallelism().map_or(1, usize::from),
                batch_rows: DEFAULT_BATCH_ROWS,
                memory_limit: 1 << 30,
                memory_pool: None,
                spill_in: None,
                stop: CancellationToken::new(),
                resend: None,
            },
        }
    }

    /// Adds a source.
    #[must_use]
    pub fn source(mut self, name: impl Into<String>, source: impl Source) -> Self {
        self.push(name.into(), Kind::Source(Arc::new(source)));
        self
    }

    /// Adds a transform.
    #[must_use]
    pub fn transform(mut self, name: impl Into<String>, transform: impl Transform) -> Self {
        self.push(name.into(), Kind::Transform(Arc::new(transform)));
        self
    }

    /// Adds a sink.
    #[must_use]
    pub fn sink(mut self, name: impl Into<String>, sink: impl Sink) -> Self {
        self.push(name.into(), Kind::Sink(Arc::new(sink)));
        self
    }

    /// Names what the transform or sink that was just added reads, instead of the node before it.
    #[must_use]
    pub fn inputs(mut self, inputs: impl IntoIterator<Item = impl Into<String>>) -> Self {
        match self.nodes.last_mut() {
            Some(Node { kind: Kind::Transform(_) | Kind::Sink(_), inputs: own, .. }) => {
                *own = inputs.into_iter().map(Into::into).collect();
            }
            _ => self.misplaced = Some("`inputs` belongs behind a transform or sink"),
        }
        self
    }

    /// Demands a guarantee for the sink that was just added, instead of the pipeline's.
    #[must_use]
    pub fn sink_delivery(mut self, delivery: Delivery) -> Self {
        match self.nodes.last_mut() {
            Some(Node { kind: Kind::Sink(_), delivery: own, .. }) => *own = Some(delivery),
            _ => self.misplaced = Some("`sink_delivery` belongs behind a sink"),
        }
        self
    }

    /// Repeats calls of the source or sink that was just added, where that is safe.
    #[must_use]
    pub fn retry(self, retry: Retry) -> Self {
        self.guard("`retry` belongs behind a source or sink", |guards| guards.retry = Some(retry))
    }

    /// Gives up each call of the source or sink that was just added after this time: opening a split, the
    /// next rows of a bounded split, a write, a prepare. What it did by then is found out by the restart.
    #[must_use]
    pub fn timeout(self, limit: Duration) -> Self {
        self.guard("`timeout` belongs behind a source or sink", |guards| guards.timeout = Some(limit))
    }

    /// Lets only so much per second through the source or sink that was just added.
    #[must_use]
    pub fn rate_limit(self, limit: RateLimit) -> Self {
        self.guard("`rate_limit` belongs behind a source or sink", |guards| guards.rate_limit = Some(limit))
    }

    /// Makes no calls of the source or sink that was just added for a while when most of them fail.
    #[must_use]
    pub fn circuit_breaker(self, breaker: CircuitBreaker) -> Self {
        self.guard("`circuit_breaker` belongs behind a source or sink", |guards| {
            guards.circuit_breaker = Some(breaker);
        })
    }

    /// Allows only so many calls of the source or sink that was just added at a time.
    #[must_use]
    pub fn bulkhead(self, bulkhead: Bulkhead) -> Self {
        self.guard("`bulkhead` belongs behind a source or sink", |guards| guards.bulkhead = Some(bulkhead))
    }

    /// Stops the run when the node that was just added rejects more than this, whatever the pipeline's
    /// [`OnError`] allows all nodes together.
    #[must_use]
    pub fn max_rejects(mut self, limit: MaxRejects) -> Self {
        match self.nodes.last_mut() {
            Some(node) => node.options.max_rejects = Some(limit),
            None => self.misplaced = Some("`max_rejects` belongs behind a node"),
        }
        self
    }

    /// Says how the schema of the sink that was just added may change.
    #[must_use]
    pub fn schema_contract(mut self, contract: SchemaContract) -> Self {
        match self.nodes.last_mut() {
            Some(Node { kind: Kind::Sink(_), options, .. }) => options.schema_contract = Some(contract),
            _ => self.misplaced = Some("`schema_contract` belongs behind a sink"),
        }
        self
    }

    /// Lets another sink take the rows that the sink that was just added can't: those of writes that still
    /// fail when `retry` is used up, and all while its circuit is open; a circuit breaker comes with it. The
    /// node is called after the sink: `NAME_fallback`.
    #[must_use]
    pub fn fallback(mut self, sink: impl Sink) -> Self {
        match self.nodes.last_mut() {
            Some(Node { kind: Kind::Sink(_), name, options, .. }) => {
                options.fallback = Some((fallback_name(name), Arc::new(sink)));
            }
            _ => self.misplaced = Some("`fallback` belongs behind a sink"),
        }
        self
    }

    /// Keeps the state in this local directory and ends an epoch this often. Without it the state is
    /// kept in `.orbit/state/NAME` and an epoch ends every ten seconds.
    #[must_use]
    pub fn checkpoint(mut self, dir: impl Into<PathBuf>, every: Duration) -> Self {
        self.settings.checkpoints = Checkpoints::Local(dir.into());
        self.settings.every = every;
        self
    }

    /// Keeps the state in an object store that lists consistently and creates if absent.
    #[must_use]
    pub fn checkpoint_store(mut self, store: Arc<dyn ObjectStore>, prefix: Path, every: Duration) -> Self {
        self.settings.checkpoints = Checkpoints::Store(store, prefix);
        self.settings.every = every;
        self
    }

    /// Forgets the state with the pipeline value: for tests, and for loads that are never resumed.
    #[must_use]
    pub fn checkpoint_in_memory(mut self) -> Self {
        self.settings.checkpoints = Checkpoints::Memory;
        self
    }

    /// Ends an epoch this often.
    #[must_use]
    pub fn epoch_every(mut self, every: Duration) -> Self {
        self.settings.every = every;
        self
    }

    /// What becomes of rows that can't go on.
    #[must_use]
    pub fn on_error(mut self, on_error: OnError) -> Self {
        self.settings.on_error = on_error;
        self
    }

    /// How often the run restarts itself after a passing error.
    #[must_use]
    pub fn restart(mut self, restart: Restart) -> Self {
        self.settings.restart = restart;
        self
    }

    /// What a run does once an earlier one has read the inputs to their end.
    #[must_use]
    pub fn again(mut self, again: Again) -> Self {
        self.settings.again = Some(again);
        self
    }

    /// Demands at least this guarantee of every sink; a weaker one is an error before the run.
    #[must_use]
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.settings.delivery = Some(delivery);
        self
    }

    /// The number of lanes; by default one per core.
    #[must_use]
    pub fn parallelism(mut self, lanes: usize) -> Self {
        self.settings.parallelism = lanes.max(1);
        self
    }

    /// The number of rows that sources put into a batch; 8,192 by default.
    #[must_use]
    pub fn batch_rows(mut self, rows: usize) -> Self {
        self.settings.batch_rows = rows.max(1);
        self
    }

    /// The bytes that sorts, joins, writers and spools may use together; 1 GiB by default. What doesn't
    /// fit is flushed or spilled, or the run fails. The edges between tasks are not part of it.
    #[must_use]
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.settings.memory_limit = bytes;
        self
    }

    /// Uses this pool instead of one of the pipeline's own, for a limit over several pipelines.
    #[must_use]
    pub fn memory_pool(mut self, pool: Arc<dyn MemoryPool>) -> Self {
        self.settings.memory_pool = Some(pool);
        self
    }

    /// The bytes of rows that may be under way between two tasks; 8 MiB by default.
    #[must_use]
    pub fn edge_bytes(mut self, bytes: usize) -> Self {
        self.settings.edge_bytes = bytes.max(1);
        self
    }

    /// After this long without an event, a split holds watermarks back no more; a minute by default.
    #[must_use]
    pub fn idle_after(mut self, idle: Duration) -> Self {
        self.settings.idle_after = idle;
        self
    }

    /// Lets somebody watch every run: lineage, alerts. Several may.
    #[must_use]
    pub fn observer(self, observer: impl Observer) -> Self {
        self.observer_arc(Arc::new(observer))
    }

    pub(crate) fn observer_arc(mut self, observer: Arc<dyn Observer>) -> Self {
        self.settings.observers.push(observer);
        self
    }

    /// Spills under this directory instead of the system's temporary one.
    #[must_use]
    pub fn spill_in(mut self, dir: impl Into<PathBuf>) -> Self {
        self.settings.spill_in = Some(dir.into());
        self
    }

    /// Stops every run of this pipeline, after a last epoch, when the token is cancelled.
    #[must_use]
    pub fn stop_on(mut self, token: CancellationToken) -> Self {
        self.settings.stop = token;
        self
    }

    /// Checks the graph and makes the pipeline. Pure: no file, no connection.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config): a name used twice, an input that isn't there, nodes that
    /// read one another in a circle, a node that nothing reads, no source or no sink.
    pub fn build(mut self) -> Result<Pipeline> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if self.name.is_empty() || self.name.starts_with('.') || !self.name.chars().all(fits) {
            return Err(Error::config(
                "a pipeline's name is made of letters, digits, '_', '-' and '.', and doesn't begin with '.'",
            )
            .with("pipeline", format!("{:?}", self.name)));
        }
        if let Some(misplaced) = self.misplaced {
            return Err(Error::config(misplaced).with("pipeline", &self.name));
        }
        if let Some(share) = self.settings.on_error.max_share
            && !(0.0..=1.0).contains(&share)
        {
            return Err(Error::config("a share lies between 0 and 1").with("max_share", share));
        }
        for node in &mut self.nodes {
            // What stands in for a sink must know when that one is down.
            if node.options.fallback.is_some() {
                node.options.guards.circuit_breaker.get_or_insert_default();
            }
        }
        for observer in &self.settings.observers {
            observer.validate().with("pipeline", &self.name)?;
        }
        let graph = Graph::new(self.nodes).with("pipeline", &self.name)?;
        guards(&graph).with("pipeline", &self.name)?;
        ceilings(&graph).with("pipeline", &self.name)?;
        Ok(Pipeline {
            definition: Arc::new(Definition {
                name: self.name,
                graph,
                settings: self.settings,
                memory_log: Log::memory(),
            }),
        })
    }

    /// Adds a node that was made elsewhere.
    pub(crate) fn node(
        mut self,
        name: String,
        kind: Kind,
        inputs: Vec<String>,
        delivery: Option<Delivery>,
        mut options: NodeOptions,
    ) -> Self {
        if let Some((fallback, _)) = &mut options.fallback {
            *fallback = fallback_name(&name);
        }
        self.nodes.push(Node { name, kind, inputs, delivery, options });
        self
    }

    /// How often an epoch ends as it stands.
    pub(crate) fn every(&self) -> Duration {
        self.settings.every
    }

    fn guard(mut self, belongs: &'static str, set: impl FnOnce(&mut GuardOptions)) -> Self {
        match self.nodes.last_mut() {
            Some(Node { kind: Kind::Source(_) | Kind::Sink(_), options, .. }) => set(&mut options.guards),
            _ => self.misplaced = Some(belongs),
        }
        self
    }

    fn push(&mut self, name: String, kind: Kind) {
        let inputs = match kind {
            Kind::Source(_) => Vec::new(),
            Kind::Transform(_) | Kind::Sink(_) => self.last.iter().cloned().collect(),
        };
        if !matches!(kind, Kind::Sink(_)) {
            self.last = Some(name.clone());
        }
        self.nodes.push(Node { name, kind, inputs, delivery: None, options: NodeOptions::default() });
    }
}

fn fallback_name(sink: &str) -> String {
    format!("{sink}_fallback")
}

fn guards(graph: &Graph) -> Result<Guards> {
    Guards::new(graph.nodes.iter().map(|node| (node.name.as_str(), &node.options.guards)))
}

fn ceilings(graph: &Graph) -> Result<Ceilings> {
    let limits = graph.nodes.iter().filter_map(|node| Some((node.name.as_str(), node.options.max_rejects?)));
    Ceilings::new(limits)
}
