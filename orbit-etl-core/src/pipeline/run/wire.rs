//! From a plan to tasks and the edges between them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::blocking::Blocking;
use super::chain::{Chain, Link};
use super::edge::{Buffered, Receiver, Sender, edge};
use super::gate::Gate;
use super::guarded::{Fallback, GuardedWriter};
use super::letters::{Close, Letters};
use super::reader::{Order, Reader, enumerate};
use super::recover::Sessions;
use super::report::Message;
use super::router::{Keys, Route, Router, lane_of_group};
use super::splits::Splits;
use super::tasks::Tasks;
use super::writer::Writer;
use crate::checkpoint::State;
use crate::context::Context;
use crate::error::{Error, Result, ResultExt};
use crate::fault::{Ceilings, DeadLetters, Guards, RejectPort};
use crate::observe::{Counter, NodeCounts, NodeMetrics};
use crate::pipeline::lanes::Deal;
use crate::pipeline::options::{Action, OnError};
use crate::pipeline::plan::{Plan, PlanNode, Role};
use crate::signal::Signal;
use crate::sink::{CommitMode, Epoch, LaneId, SinkWriter};
use crate::transform::{Distribution, OperatorState, Started};

/// A run's tasks, started, and the coordinator's ends of all channels to them.
pub(crate) struct Wired {
    pub(crate) tasks: Tasks,
    /// How many messages an epoch brings.
    pub(crate) reporting: usize,
    pub(crate) writers: usize,
    pub(crate) barriers: Vec<mpsc::UnboundedSender<Order>>,
    pub(crate) rejects: Arc<DeadLetters>,
    pub(crate) messages: mpsc::UnboundedReceiver<Message>,
    pub(crate) splits: BTreeMap<usize, Arc<Splits>>,
    pub(crate) committed: Signal,
    pub(crate) letters: Option<mpsc::Sender<Close>>,
    pub(crate) metrics: Vec<Arc<NodeMetrics>>,
    /// The edges to each node.
    pub(crate) buffers: Vec<Vec<Buffered>>,
}

/// What the wiring needs to know of the run besides its plan.
pub(crate) struct Wiring<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) cx: &'a Context,
    pub(crate) state: &'a State,
    pub(crate) first_epoch: Epoch,
    pub(crate) on_error: &'a OnError,
    pub(crate) guards: &'a Guards,
    pub(crate) ceilings: &'a Ceilings,
    pub(crate) edge_bytes: usize,
    pub(crate) idle_after: std::time::Duration,
    /// How many rows the run has rejected in its committed epochs.
    pub(crate) rejected: u64,
    /// An earlier attempt has read the generation to its end: nothing more is read.
    pub(crate) drained: bool,
}

/// A task that receives: its node, lane and, where each input has a gate of its own, port.
type Place = (usize, usize, usize);

impl Wiring<'_> {
    /// Starts every task. Until the first barrier nothing of what they do can be seen in a target.
    pub(crate) async fn start(self, sessions: &mut Sessions) -> Result<Wired> {
        let plan = self.plan;
        let (coordinator, messages) = mpsc::unbounded_channel();
        let metrics: Vec<Arc<NodeMetrics>> = plan.nodes.iter().map(|_| Arc::default()).collect();
        let committed = Signal::default();
        let mut tasks = Tasks::default();
        let (letters, close) = self.dead_letters(sessions, &mut tasks).await?;
        let letters = Arc::new(letters);
        let mut buffers = vec![Vec::new(); plan.nodes.len()];
        let (mut routers, mut gates) = self.edges(&mut buffers)?;
        let mut wired = Wired {
            tasks,
            reporting: 0,
            writers: 0,
            barriers: Vec::new(),
            rejects: Arc::clone(&letters),
            messages,
            splits: BTreeMap::new(),
            committed,
            letters: close,
            metrics,
            buffers,
        };
        let port = |node: &PlanNode| {
            let ceiling = self.ceilings.of(&node.name);
            RejectPort::new(node.name.as_str().into(), self.first_epoch, Arc::clone(&letters), ceiling)
        };
        for (i, node) in plan.nodes.iter().enumerate() {
            let cx = self.cx.for_node(&node.name);
            let counter = || Counter::new(&wired.metrics[i]);
            match &node.role {
                Role::Source { source, scans, .. } => {
                    let splits =
                        Arc::new(Splits::new(node.lanes, self.state.sources.get(&node.name).cloned()));
                    let scan: Arc<[_]> = scans.iter().map(|s| s.request.clone()).collect();
                    for lane in 0..node.lanes {
                        let (barrier, barriers) = mpsc::unbounded_channel();
                        let reader = Reader {
                            node: i,
                            lane,
                            source: Arc::clone(source),
                            cx: cx.clone(),
                            scan: Arc::clone(&scan),
                            streams: node.outputs.iter().map(|s| s.name.clone()).collect(),
                            schemas: node.outputs.iter().map(|s| s.schema.clone()).collect(),
                            splits: Arc::clone(&splits),
                            barriers,
                            router: routers.remove(&(i, lane)).unwrap_or_default(),
                            rejects: port(node),
                            counter: counter(),
                            coordinator: coordinator.clone(),
                            idle_after: self.idle_after,
                            guard: self.guards.of(&node.name),
                        };
                        wired.barriers.push(barrier);
                        wired.reporting += 1;
                        wired.tasks.spawn_for(&node.name, reader.run());
                    }
                    if self.drained {
                        splits.enumerated();
                    } else {
                        let listing = enumerate(
                            Arc::clone(source),
                            cx,
                            Arc::clone(&splits),
                            self.guards.of(&node.name),
                        );
                        wired.tasks.spawn_for(&node.name, listing);
                    }
                    wired.splits.insert(i, splits);
                }
                Role::Transform { fused: Some(_), .. } => {}
                Role::Transform { transform, blocking: true, spooled, .. } => {
                    let streams = node.streams();
                    let Started::Blocking(operator) =
                        transform.start(&cx, &streams).await.with("node", &node.name)?
                    else {
                        return Err(Error::internal("the transform was planned as blocking, but streams")
                            .with("node", &node.name));
                    };
                    let inputs = (0..node.inputs.len())
                        .map(|p| Gate::new(gates.remove(&(i, 0, p)).unwrap_or_default()))
                        .collect();
                    let task = Blocking {
                        node: i,
                        cx,
                        gates: inputs,
                        spooled: *spooled,
                        operator,
                        router: routers.remove(&(i, 0)).unwrap_or_default(),
                        rejects: port(node),
                        live: Arc::clone(&wired.metrics[i]),
                        coordinator: coordinator.clone(),
                    };
                    wired.reporting += 1;
                    wired.tasks.spawn_for(&node.name, task.run());
                }
                Role::Transform { .. } => {
                    let members = chain_from(plan, i);
                    let last = members.last().copied().unwrap_or(i);
                    for lane in 0..node.lanes {
                        let mut links = Vec::with_capacity(members.len());
                        for member in &members {
                            let counter = Counter::new(&wired.metrics[*member]);
                            links.push(self.link(*member, lane, port(&plan.nodes[*member]), counter).await?);
                        }
                        let chain = Chain {
                            gate: Gate::new(gates.remove(&(i, lane, 0)).unwrap_or_default()),
                            links,
                            router: routers.remove(&(last, lane)).unwrap_or_default(),
                            coordinator: coordinator.clone(),
                        };
                        wired.reporting += 1;
                        wired.tasks.spawn_for(&node.name, chain.run());
                    }
                }
                Role::Sink { dead_letters: true, .. } | Role::Sink { stands_in: Some(_), .. } => {}
                Role::Sink { mode, .. } => {
                    let streams: Arc<[String]> = node.inputs.iter().map(|n| n.stream.name.clone()).collect();
                    for lane in 0..node.lanes {
                        let writer = Writer {
                            node: i,
                            lane,
                            gate: Gate::new(gates.remove(&(i, lane, 0)).unwrap_or_default()),
                            writer: self.writer(sessions, i, lane, letters.tolerates()).await?,
                            rejects: port(node),
                            counter: counter(),
                            coordinator: coordinator.clone(),
                            committed: (*mode == CommitMode::Atomic).then(|| wired.committed.subscribe()),
                            streams: Arc::clone(&streams),
                            fits: node.fits.clone(),
                            evolved: Vec::new(),
                            refused: 0,
                            left_out: 0,
                            fell_back: 0,
                        };
                        wired.reporting += 1;
                        wired.writers += 1;
                        wired.tasks.spawn_for(&node.name, writer.run());
                    }
                }
            }
        }
        Ok(wired)
    }

    /// A lane of a sink, with the lane of its fallback.
    async fn writer(
        &self,
        sessions: &mut Sessions,
        node: usize,
        lane: usize,
        bisects: bool,
    ) -> Result<GuardedWriter> {
        let writer = self.lane_of(sessions, node, lane).await?;
        let fallback = match self.plan.fallback_of(node) {
            Some(node) => {
                let writer = self.lane_of(sessions, node, lane).await?;
                let name = self.plan.nodes[node].name.clone();
                Some(Fallback { node, name, writer, counts: NodeCounts::default() })
            }
            None => None,
        };
        let guard = self.guards.of(&self.plan.nodes[node].name);
        Ok(GuardedWriter { writer, guard, bisects, fallback, dirty: false })
    }

    async fn lane_of(
        &self,
        sessions: &mut Sessions,
        node: usize,
        lane: usize,
    ) -> Result<Box<dyn SinkWriter>> {
        let name = &self.plan.nodes[node].name;
        let Some(session) = sessions.get_mut(&node) else {
            return Err(Error::internal("a sink was not opened").with("node", name));
        };
        session.writer(LaneId(lane)).await.with("node", name)
    }

    async fn dead_letters(
        &self,
        sessions: &mut Sessions,
        tasks: &mut Tasks,
    ) -> Result<(DeadLetters, Option<mpsc::Sender<Close>>)> {
        let max_rows = self.on_error.max_rows;
        match self.on_error.action {
            Action::Fail => return Ok((DeadLetters::fail(), None)),
            Action::Skip => return Ok((DeadLetters::skip(max_rows, self.rejected), None)),
            Action::DeadLetter(_) => {}
        }
        let (letters, queues) = DeadLetters::keep(max_rows, self.rejected);
        let node = self.plan.nodes.iter().position(PlanNode::is_dead_letters);
        let Some((node, session)) = node.and_then(|n| Some((n, sessions.get_mut(&n)?))) else {
            return Err(Error::internal("the dead-letter sink was not opened"));
        };
        let name = &self.plan.nodes[node].name;
        let writer = session.writer(LaneId(0)).await.with("node", name)?;
        let (close, requests) = mpsc::channel(1);
        let attempt = self.plan.resend.as_ref().map_or(1, |resend| resend.attempt);
        let task = Letters { writer, queues, close: requests, epoch: self.first_epoch, attempt };
        tasks.spawn_for(name, task.run());
        Ok((letters, Some(close)))
    }

    async fn link(&self, node: usize, lane: usize, rejects: RejectPort, counter: Counter) -> Result<Link> {
        let planned = &self.plan.nodes[node];
        let Role::Transform { transform, distribution, .. } = &planned.role else {
            return Err(Error::internal("only transforms are chained").with("node", &planned.name));
        };
        let cx = self.cx.for_node(&planned.name);
        let started = transform.start(&cx, &planned.streams()).await.with("node", &planned.name)?;
        let Started::Streaming(mut operator) = started else {
            return Err(Error::internal("the transform was planned as streaming, but blocks")
                .with("node", &planned.name));
        };
        if let Some(state) = self.state.operators.get(&planned.name) {
            let mine = |group: u16| match distribution {
                Distribution::Keyed(_) => lane_of_group(group, planned.lanes) == lane,
                _ => true,
            };
            let groups =
                state.groups.iter().filter(|(g, _)| mine(**g)).map(|(g, s)| (*g, s.clone())).collect();
            operator.restore(OperatorState { groups }).await.with("node", &planned.name)?;
        }
        Ok(Link {
            node,
            name: planned.name.as_str().into(),
            operator,
            distribution: distribution.clone(),
            rejects,
            counter,
        })
    }

    /// The edges between all tasks: a router for each task that sends, receivers for each that
    /// receives.
    #[allow(clippy::type_complexity)] // Two maps, named by what they are keyed with.
    fn edges(
        &self,
        buffers: &mut [Vec<Buffered>],
    ) -> Result<(BTreeMap<(usize, usize), Router>, BTreeMap<Place, Vec<Receiver>>)> {
        let plan = self.plan;
        let mut routers = BTreeMap::new();
        let mut gates: BTreeMap<Place, Vec<Receiver>> = BTreeMap::new();
        for (i, node) in plan.nodes.iter().enumerate() {
            for lane in 0..node.lanes {
                let mut senders: Vec<Sender> = Vec::new();
                let mut known: BTreeMap<Place, usize> = BTreeMap::new();
                let mut to = |place: Place| {
                    *known.entry(place).or_insert_with(|| {
                        let (sender, receiver) = edge(self.edge_bytes);
                        buffers[place.0].push(sender.buffered());
                        senders.push(sender);
                        gates.entry(place).or_default().push(receiver);
                        senders.len() - 1
                    })
                };
                let mut routes = Vec::new();
                for output in 0..node.outputs.len() {
                    let mut consumers = Vec::new();
                    for (consumer, port) in plan.consumers(i, output) {
                        let reader = &plan.nodes[consumer];
                        let place_of = |lane: usize| match &reader.role {
                            Role::Transform { blocking: true, .. } => (consumer, lane, port),
                            _ => (consumer, lane, 0),
                        };
                        match &reader.role {
                            Role::Transform { fused: Some(_), .. } => {}
                            Role::Transform {
                                distribution: Distribution::Keyed(keys),
                                blocking: false,
                                ..
                            } => {
                                let keys = Keys::new(keys.clone(), &node.outputs[output].schema)
                                    .with("node", &reader.name)?;
                                let edges = (0..reader.lanes).map(|l| to(place_of(l))).collect();
                                consumers.push(Route::Keyed { edges, port, keys });
                            }
                            Role::Sink { deals, .. } if deals.get(port) == Some(&Deal::InTurn) => {
                                let edges = (0..reader.lanes).map(|l| to(place_of(l))).collect();
                                consumers.push(Route::InTurn { edges, port, next: lane % reader.lanes });
                            }
                            _ => {
                                let edge = to(place_of(lane % reader.lanes));
                                consumers.push(Route::Whole { edge, port });
                            }
                        }
                    }
                    routes.push(consumers);
                }
                routers.insert((i, lane), Router::new(senders, routes));
            }
        }
        Ok((routers, gates))
    }
}

/// The nodes whose operators share a task with `head`, in order.
fn chain_from(plan: &Plan, head: usize) -> Vec<usize> {
    let mut members = vec![head];
    let mut last = head;
    while let Some(next) = plan
        .nodes
        .iter()
        .position(|n| matches!(n.role, Role::Transform { fused: Some(before), .. } if before == last))
    {
        members.push(next);
        last = next;
    }
    members
}
