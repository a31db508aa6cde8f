//! A source that lets epochs keep up: so that many end while little is read, whatever the disk's speed.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use orbit_etl::{
    Connector, ConnectorInfo, Context, Health, Position, Pushdown, Replay, Result, ScanRequest, Source,
    SourceEvent, Split, SplitChange, SplitId, StreamInfo,
};
use tokio::sync::watch;

/// Another source, each of whose splits gives no more than one event with a position an epoch.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    inner: S,
    pace: Pace,
}

/// The host's side of a [`Paced`] source.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    /// How many epochs were acknowledged.
    acknowledged: Arc<watch::Sender<u64>>,
    /// After this many no event comes any more until the host says so.
    hold_after: Arc<watch::Sender<u64>>,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self::holding_after(u64::MAX)
    }

    pub(crate) fn holding_after(epochs: u64) -> Self {
        let acknowledged = Arc::new(watch::Sender::new(0));
        Self { acknowledged, hold_after: Arc::new(watch::Sender::new(epochs)) }
    }

    pub(crate) fn acknowledged(&self) -> watch::Receiver<u64> {
        self.acknowledged.subscribe()
    }

    pub(crate) fn release(&self) {
        self.hold_after.send_replace(u64::MAX);
    }
}

impl<S: Source> Paced<S> {
    pub(crate) fn new(inner: S, pace: &Pace) -> Self {
        Self { inner, pace: pace.clone() }
    }
}

#[async_trait]
impl<S: Source> Connector for Paced<S> {
    fn info(&self) -> ConnectorInfo {
        self.inner.info()
    }

    fn validate(&self) -> Result<()> {
        self.inner.validate()
    }

    async fn health(&self, cx: &Context) -> Result<Health> {
        self.inner.health(cx).await
    }

    async fn connect(&self, cx: &Context) -> Result<()> {
        self.inner.connect(cx).await
    }

    async fn disconnect(&self, cx: &Context) -> Result<()> {
        self.inner.disconnect(cx).await
    }
}

#[async_trait]
impl<S: Source> Source for Paced<S> {
    async fn streams(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        self.inner.streams(cx).await
    }

    fn replay(&self) -> Replay {
        self.inner.replay()
    }

    fn pushdown(&self, wanted: &ScanRequest) -> Pushdown {
        self.inner.pushdown(wanted)
    }

    async fn splits(
        &self,
        cx: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        self.inner.splits(cx, after).await
    }

    async fn open(
        &self,
        cx: &Context,
        split: &Split,
        after: Option<&Position>,
        scan: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
        let events = self.inner.open(cx, split, after, scan).await?;
        let pace = self.pace.clone();
        Ok(stream::unfold((events, None), move |(mut events, wait_for)| {
            let mut acknowledged = pace.acknowledged.subscribe();
            let mut hold_after = pace.hold_after.subscribe();
            async move {
                if let Some(more_than) = wait_for {
                    acknowledged.wait_for(|epochs| *epochs > more_than).await.ok()?;
                }
                // Counted before the event goes out: an epoch that covers it comes after this in any
                // case.
                let before = *acknowledged.borrow();
                hold_after.wait_for(|limit| before < *limit).await.ok()?;
                let event = events.next().await?;
                let whole = matches!(
                    &event,
                    Ok(SourceEvent::Batch { position: Some(_), .. }
                        | SourceEvent::Rejects { position: Some(_), .. }
                        | SourceEvent::Progress(_))
                );
                Some((event, (events, whole.then_some(before))))
            }
        })
        .boxed())
    }

    async fn acknowledge(&self, cx: &Context, upto: &[(SplitId, Position)]) -> Result<()> {
        self.inner.acknowledge(cx, upto).await?;
        self.pace.acknowledged.send_modify(|epochs| *epochs += 1);
        Ok(())
    }
}
