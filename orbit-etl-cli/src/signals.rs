//! SIGINT and SIGTERM: the first one drains, the second one stops at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// What the signals of this process have asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signals {
    /// Commit what was read, then stop.
    pub(crate) drain: CancellationToken,
    /// Stop at once.
    pub(crate) abort: CancellationToken,
}

impl Signals {
    /// Listens from now on. A third signal finds the process as it was before: it dies of it.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let fail = |error| Failure::failed(format!("signals can't be listened to: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
        let signals = Self::default();
        let heard = signals.clone();
        tokio::spawn(async move {
            either(&mut interrupt, &mut terminate).await;
            tracing::info!("stopping: what was read is committed first; a second signal stops at once");
            heard.drain.cancel();
            either(&mut interrupt, &mut terminate).await;
            tracing::warn!("stopping at once");
            heard.abort.cancel();
        });
        Ok(signals)
    }
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
