//! The host's hold on a run that goes on.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures::Stream;
use futures::stream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::observe::{Meter, Progress, Retries, RunReport};

/// How a host stops and watches a run; shared with the run.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    /// Finish the open epoch, then stop.
    pub(crate) stop: CancellationToken,
    /// Stop at once.
    pub(crate) abort: CancellationToken,
    pub(crate) progress: Arc<watch::Sender<Progress>>,
    pub(crate) retries: Retries,
    meter: Arc<Mutex<Meter>>,
}

impl Control {
    pub(crate) fn new(stop: CancellationToken, meter: Meter) -> Self {
        Self {
            stop,
            abort: CancellationToken::new(),
            progress: Arc::new(watch::Sender::default()),
            retries: Retries::default(),
            meter: Arc::new(Mutex::new(meter)),
        }
    }

    /// Tells those who look on.
    pub(crate) fn tell(&self, look: Progress) {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner).tell(&look);
        self.progress.send_replace(look);
    }

    /// The run has ended.
    pub(crate) fn end(&self, result: &Result<RunReport>) {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner).end(result);
    }
}

/// A pipeline at work. Awaiting it gives the report. Dropping it stops the run at once; what was
/// not committed is read again by the next run.
#[derive(Debug)]
pub struct Running {
    stop: CancellationToken,
    abort: CancellationToken,
    /// The run alone holds the sender, so that looks end with it.
    progress: watch::Receiver<Progress>,
    task: Option<JoinHandle<Result<RunReport>>>,
}

impl Running {
    /// Begins to look before the run begins, so that even a short one is seen.
    pub(crate) fn start<R>(control: Control, run: impl FnOnce(Control) -> R) -> Self
    where
        R: Future<Output = Result<RunReport>> + Send + 'static,
    {
        let progress = control.progress.subscribe();
        let (stop, abort) = (control.stop.clone(), control.abort.clone());
        Self { stop, abort, progress, task: Some(tokio::spawn(run(control))) }
    }

    /// Tells the run to commit what it has read and then to stop. Where a node needs its whole input,
    /// nothing can be committed early: the run just stops.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Tells the run to stop at once. Awaiting it gives an error of kind
    /// [`Cancelled`](crate::ErrorKind::Cancelled).
    pub fn abort(&self) {
        self.abort.cancel();
    }

    /// A way to stop the run from elsewhere, as [`Running::stop`] does.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// A way to stop the run at once from elsewhere, as [`Running::abort`] does.
    pub fn abort_token(&self) -> CancellationToken {
        self.abort.clone()
    }

    /// Looks at the run: about five a second and one for each epoch, until it ends. Looks that nobody
    /// took are skipped.
    pub fn progress(&self) -> impl Stream<Item = Progress> + Send + use<> {
        let receiver = self.progress.clone();
        stream::unfold(receiver, |mut receiver| async move {
            receiver.changed().await.ok()?;
            let progress = receiver.borrow_and_update().clone();
            Some((progress, receiver))
        })
    }
}

impl IntoFuture for Running {
    type Output = Result<RunReport>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<RunReport>> + Send>>;

    fn into_future(mut self) -> Self::IntoFuture {
        Box::pin(async move {
            let Some(task) = self.task.as_mut() else {
                return Err(Error::internal("the run was awaited before"));
            };
            let ended = task.await;
            // Nothing is left to abort when `self` goes.
            drop(self.task.take());
            ended.map_err(|_| {
                Error::internal("the run's own task panicked; its message is on standard error")
            })?
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.task.is_some() {
            self.abort.cancel();
        }
    }
}
