//! Tasks that end together.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::task::{JoinError, JoinSet};
use tracing::Instrument;

use crate::error::{Error, ErrorKind, Result};

/// How long a task that saw a neighbour go is believed to have a cause that is still to come.
const CAUSE_WITHIN: Duration = Duration::from_secs(2);

/// A set of tasks; dropping it ends them all.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    set: JoinSet<Result<()>>,
}

impl Tasks {
    pub(crate) fn spawn(&mut self, task: impl Future<Output = Result<()>> + Send + 'static) {
        self.set.spawn(task);
    }

    /// Spawns a task whose errors and panics name its node.
    pub(crate) fn spawn_for(&mut self, node: &str, task: impl Future<Output = Result<()>> + Send + 'static) {
        let node = node.to_owned();
        let span = tracing::info_span!("node", %node);
        let task = async move {
            // Nothing of a task that panicked is used again.
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            ended.unwrap_or_else(|_| Err(panicked())).map_err(|e| e.with("node", node))
        };
        self.set.spawn(task.instrument(span));
    }

    /// Waits for all to end; the first error ends it early.
    pub(crate) async fn join(&mut self) -> Result<()> {
        while let Some(ended) = self.set.join_next().await {
            flatten(ended)?;
        }
        Ok(())
    }

    /// Waits until a task fails; never ends while none does.
    pub(crate) async fn failure(&mut self) -> Error {
        loop {
            match self.set.join_next().await {
                Some(ended) => {
                    if let Err(error) = flatten(ended) {
                        return error;
                    }
                }
                None => std::future::pending::<()>().await,
            }
        }
    }

    /// Ends all tasks and returns the error that began it: `first`, unless that is a `Cancelled` by
    /// which a task only tells that a neighbour has gone. Then the neighbour's own error is waited for.
    pub(crate) async fn abort(&mut self, first: Option<Error>, told_to: bool) -> Option<Error> {
        let mut cause = first;
        if !told_to && cause.as_ref().is_some_and(|e| e.kind() == ErrorKind::Cancelled) {
            let real = async {
                while let Some(ended) = self.set.join_next().await {
                    if let Err(error) = flatten(ended)
                        && error.kind() != ErrorKind::Cancelled
                    {
                        return Some(error);
                    }
                }
                None
            };
            // Tasks that wait for the coordinator don't end by themselves.
            if let Ok(Some(error)) = tokio::time::timeout(CAUSE_WITHIN, real).await {
                cause = Some(error);
            }
        }
        self.set.abort_all();
        while let Some(ended) = self.set.join_next().await {
            if !ended.as_ref().is_err_and(JoinError::is_cancelled) {
                cause = worse(cause, flatten(ended).err());
            }
        }
        cause
    }
}

fn worse(known: Option<Error>, new: Option<Error>) -> Option<Error> {
    match (known, new) {
        (Some(known), Some(new)) if known.kind() == ErrorKind::Cancelled => Some(new),
        (None, new) => new,
        (known, _) => known,
    }
}

fn flatten(ended: Result<Result<()>, JoinError>) -> Result<()> {
    match ended {
        Ok(result) => result,
        Err(e) if e.is_cancelled() => Err(Error::cancelled()),
        Err(_) => Err(panicked()),
    }
}

/// The panic's message may hold a cell value; it is on stderr already.
fn panicked() -> Error {
    Error::internal("a task panicked; its message is on standard error")
}
