//! How many lanes each node has, which transforms share a task, and how rows come from one lane into
//! several.

use crate::pipeline::plan::{Plan, PlanNode, Role};
use crate::transform::Distribution;

/// How the rows of one of a sink's inputs reach its lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deal {
    /// Those of each lane go to one lane.
    ByLane,
    /// Each lane deals its batches out to all lanes.
    InTurn,
    /// As [`ByLane`](Self::ByLane), though there could be more lanes: they were put into this order on
    /// purpose.
    Ordered,
    /// As [`ByLane`](Self::ByLane), though there could be more lanes: the sink needs their order.
    Needed,
}

impl Plan {
    /// Decides how many lanes each node has and which transforms share a task.
    pub(crate) fn lay_out(&mut self, parallelism: usize) {
        for i in 0..self.nodes.len() {
            let from_inputs =
                self.nodes[i].inputs.iter().map(|n| self.nodes[n.node].lanes).max().unwrap_or(1);
            let fuse_with = self.fuses_with(i);
            let shared = self.inputs_can_wait_for_one_another(i);
            let dealt = self.deals(i, parallelism);
            let node = &mut self.nodes[i];
            node.lanes = match &mut node.role {
                Role::Source { .. } => parallelism,
                Role::Transform { distribution, blocking, fused, spooled, .. } => {
                    *fused = fuse_with;
                    *spooled = *blocking && shared;
                    match distribution {
                        _ if *blocking => 1,
                        Distribution::Any => from_inputs,
                        Distribution::Keyed(_) => parallelism,
                        Distribution::Single => 1,
                    }
                }
                Role::Sink { deals, .. } => {
                    *deals = dealt;
                    if deals.contains(&Deal::InTurn) { parallelism } else { from_inputs }
                }
            };
        }
    }

    /// The only producer, if a transform can run in its task.
    fn fuses_with(&self, node: usize) -> Option<usize> {
        match (&self.nodes[node].role, self.nodes[node].inputs.as_slice()) {
            (Role::Transform { distribution: Distribution::Any, blocking: false, .. }, [only]) => {
                let producer = &self.nodes[only.node];
                let streaming = matches!(producer.role, Role::Transform { blocking: false, .. });
                let outputs = producer.outputs.len();
                (streaming && outputs == 1 && self.consumers(only.node, 0).len() == 1).then_some(only.node)
            }
            _ => None,
        }
    }

    fn deals(&self, node: usize, parallelism: usize) -> Vec<Deal> {
        let Role::Sink { sink, .. } = &self.nodes[node].role else { return Vec::new() };
        let inputs = self.nodes[node].inputs.iter();
        let deal = inputs.map(|input| {
            if self.nodes[input.node].lanes >= parallelism {
                Deal::ByLane
            } else if self.is_ordered(&self.nodes[input.node]) {
                Deal::Ordered
            } else if sink.needs_order(&input.stream) {
                Deal::Needed
            } else {
                Deal::InTurn
            }
        });
        deal.collect()
    }

    /// Whether the order in which rows leave a node in few lanes means something.
    fn is_ordered(&self, node: &PlanNode) -> bool {
        match &node.role {
            Role::Transform { blocking: false, distribution: Distribution::Any, .. } => {
                node.inputs.iter().any(|input| self.is_ordered(&self.nodes[input.node]))
            }
            Role::Transform { ordered, .. } => *ordered,
            Role::Source { .. } | Role::Sink { .. } => true,
        }
    }

    /// Whether what flows into a node can be held up by a reader elsewhere: some node before it has
    /// more readers than one. Then an input that isn't read could hold up one that is waited for, here or
    /// in another node that reads in another order.
    fn inputs_can_wait_for_one_another(&self, node: usize) -> bool {
        let shared = |n: usize| self.nodes.iter().flat_map(|c| &c.inputs).filter(|i| i.node == n).count() > 1;
        let mut before: Vec<usize> = self.nodes[node].inputs.iter().map(|i| i.node).collect();
        let several = before.len() > 1;
        while let Some(next) = before.pop() {
            if several && shared(next) {
                return true;
            }
            before.extend(self.nodes[next].inputs.iter().map(|i| i.node));
        }
        false
    }
}
