//! The source of a history: one feed for all instances, read through each one's own mishaps.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use orbit_etl_core::memory::MemorySource;
use orbit_etl_core::{
    Connector, ConnectorInfo, Context, Health, Position, Replay, Result, ScanRequest, Source, SourceEvent,
    Split, SplitChange, SplitId, StreamInfo,
};

use super::history::Targets;
use super::world::Instance;

#[derive(Debug)]
pub(crate) struct ModelSource {
    pub(crate) inner: MemorySource,
    pub(crate) bounded: bool,
    pub(crate) instance: Arc<Instance>,
    pub(crate) targets: Arc<Targets>,
}

#[async_trait]
impl Connector for ModelSource {
    fn info(&self) -> ConnectorInfo {
        self.inner.info()
    }

    async fn health(&self, cx: &Context) -> Result<Health> {
        self.inner.health(cx).await
    }
}

#[async_trait]
impl Source for ModelSource {
    async fn streams(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        self.instance.before("streams").await?;
        let streams = self.inner.streams(cx).await?;
        Ok(streams.into_iter().map(|s| s.with_bounded(self.bounded)).collect())
    }

    fn replay(&self) -> Replay {
        self.inner.replay()
    }

    async fn splits(
        &self,
        cx: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        self.instance.before("splits").await?;
        let start = (self.inner.splits(cx, after).await?, Arc::clone(&self.instance));
        Ok(stream::unfold(start, |(mut changes, instance)| async move {
            let change = changes.next().await?;
            let told = instance.before("split change").await;
            Some((told.and(change), (changes, instance)))
        })
        .boxed())
    }

    async fn open(
        &self,
        cx: &Context,
        split: &Split,
        after: Option<&Position>,
        scan: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
        let at = after.map_or_else(String::new, ToString::to_string);
        self.instance.before(&format!("open {} {at}", split.id)).await?;
        let start = (self.inner.open(cx, split, after, scan).await?, Arc::clone(&self.instance));
        Ok(stream::unfold(start, |(mut events, instance)| async move {
            let event = events.next().await?;
            let told = instance.before("read").await;
            Some((told.and(event), (events, instance)))
        })
        .boxed())
    }

    async fn acknowledge(&self, cx: &Context, upto: &[(SplitId, Position)]) -> Result<()> {
        for (split, position) in upto {
            self.instance.before(&format!("acknowledge {split} {position}")).await?;
        }
        self.targets.check_acknowledged(&self.instance.world, upto);
        self.inner.acknowledge(cx, upto).await?;
        self.instance.after("acknowledge").await
    }
}
