//! Who watches runs from within the process: lineage, alerts, a host's own.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Progress, RunReport};
use crate::connector::StreamInfo;
use crate::error::{ErrorKind, Result};
use crate::pipeline::NodeInfo;
use crate::transform::ColumnLineage;

/// How long a run that has ended waits for its observers.
const GRACE: Duration = Duration::from_secs(10);
/// How long it waits if it was told to stop at once.
const SHORT_GRACE: Duration = Duration::from_secs(2);

/// Watches runs.
///
/// Each run gets a task of its own, which ends when the run has ended and all is told. Nothing that an
/// observer does holds a run back or fails it: what it didn't look at in time is gone, and it is cut off
/// ten seconds after the run's end, two if the run was told to stop at once.
pub trait Observer: Debug + Send + Sync + 'static {
    /// Checks the configuration without touching anything outside the process.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) with the key (`option`) and the remedy.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Watches one run, until [`RunView::ended`] has a value.
    fn watch(&self, run: RunView) -> BoxFuture<'static, ()>;
}

/// One run as an observer sees it.
#[derive(Debug, Clone)]
pub struct RunView {
    /// The pipeline's name.
    pub pipeline: String,
    /// The run's own id; the same over its restarts.
    pub run_id: String,
    /// When it began.
    pub started: SystemTime,
    /// The nodes, as [`Pipeline::nodes`](crate::Pipeline::nodes) gives them.
    pub nodes: Arc<[NodeInfo]>,
    /// The streams between the nodes, once sources and targets were asked.
    pub plan: watch::Receiver<Option<Arc<PlanView>>>,
    /// How it goes on.
    pub progress: watch::Receiver<Progress>,
    /// How it ended; comes last.
    pub ended: watch::Receiver<Option<Arc<Ending>>>,
}

impl RunView {
    /// Waits for the plan; `None` if the run's own task goes first.
    pub async fn planned(&self) -> Option<Arc<PlanView>> {
        let mut plan = self.plan.clone();
        let plan = plan.wait_for(Option::is_some).await.ok()?;
        plan.clone()
    }

    /// Waits for the end; `None` if the run's own task panicked.
    pub async fn end(&self) -> Option<Arc<Ending>> {
        let mut ended = self.ended.clone();
        let ended = ended.wait_for(Option::is_some).await.ok()?;
        ended.clone()
    }
}

/// The streams of a planned run.
#[derive(Debug, Clone)]
pub struct PlanView {
    /// The nodes, each after those that it reads, the dead letters last.
    pub nodes: Vec<PlannedNode>,
}

/// One node of a [`PlanView`].
#[derive(Debug, Clone)]
pub struct PlannedNode {
    /// What the node is.
    pub info: NodeInfo,
    /// What it reads: the index of the node, the output of that node, and the stream.
    pub inputs: Vec<(usize, usize, StreamInfo)>,
    /// What others can read; empty for sinks.
    pub outputs: Vec<StreamInfo>,
    /// Of a transform that can tell: what each column is made of.
    pub columns: Option<ColumnLineage>,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Ending {
    /// `completed`, `stopped`, `cancelled`, `fenced` or `failed`.
    pub outcome: &'static str,
    /// The error's kind.
    pub kind: Option<ErrorKind>,
    /// The error with its place and causes. Holds no cell values and no secrets.
    pub message: Option<String>,
    /// The report of a run that ended well.
    pub report: Option<RunReport>,
}

impl Ending {
    pub(crate) fn of(result: &Result<RunReport>) -> Self {
        Self {
            outcome: super::meter::outcome(result),
            kind: result.as_ref().err().map(crate::error::Error::kind),
            message: result.as_ref().err().map(crate::error::Error::report),
            report: result.as_ref().ok().cloned(),
        }
    }
}

/// A run's observers at work.
#[derive(Debug)]
pub(crate) struct Observers {
    pub(crate) plan: watch::Sender<Option<Arc<PlanView>>>,
    ended: watch::Sender<Option<Arc<Ending>>>,
    tasks: JoinSet<()>,
}

impl Observers {
    pub(crate) fn start(
        observers: &[Arc<dyn Observer>],
        pipeline: &str,
        nodes: Vec<NodeInfo>,
        progress: &watch::Sender<Progress>,
    ) -> Option<Self> {
        if observers.is_empty() {
            return None;
        }
        let started =
            Self { plan: watch::Sender::new(None), ended: watch::Sender::new(None), tasks: JoinSet::new() };
        let view = RunView {
            pipeline: pipeline.to_owned(),
            run_id: uuid::Uuid::now_v7().to_string(),
            started: SystemTime::now(),
            nodes: nodes.into(),
            plan: started.plan.subscribe(),
            progress: progress.subscribe(),
            ended: started.ended.subscribe(),
        };
        let mut started = started;
        for observer in observers {
            started.tasks.spawn(observer.watch(view.clone()));
        }
        Some(started)
    }

    /// Tells how the run ended and lets the observers tell it on.
    pub(crate) async fn end(mut self, result: &Result<RunReport>, at_once: bool) {
        self.ended.send_replace(Some(Arc::new(Ending::of(result))));
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                if ended.is_err() {
                    tracing::warn!("an observer of the run panicked; its message is on standard error");
                }
            }
        };
        let grace = if at_once { SHORT_GRACE } else { GRACE };
        if tokio::time::timeout(grace, all).await.is_err() {
            tracing::warn!("an observer of the run was cut off {grace:?} after its end");
        }
    }
}
