//! The source of a history: one feed for all instances, read through each one's own mishaps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use orbit_etl_core::memory::MemorySource;
use orbit_etl_core::{
    Connector, ConnectorInfo, Context, Health, Position, Replay, Result, ScanRequest, Source, SourceEvent,
    Split, SplitChange, SplitId, StreamInfo,
};

use tokio::sync::Notify;

use super::history::Targets;
use super::world::{Instance, World};

#[derive(Debug)]
pub(crate) struct ModelSource {
    pub(crate) inner: MemorySource,
    pub(crate) bounded: bool,
    pub(crate) instance: Arc<Instance>,
    pub(crate) targets: Arc<Targets>,
    pub(crate) told: Told,
}

/// Of how many changes of its splits a source has told this instance.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told(Arc<(AtomicU64, Notify)>);

impl Told {
    fn set(&self, count: u64) {
        self.0.0.store(count, Ordering::Relaxed);
        self.0.1.notify_waiters();
    }

    fn one_more(&self) {
        self.set(self.0.0.load(Ordering::Relaxed) + 1);
    }

    /// Waits until all are told and the split isn't taken away: one that is to be given back hasn't ended.
    async fn all(&self, world: &World, source: &str, split: &str) {
        loop {
            let more = self.0.1.notified();
            let told = self.0.0.load(Ordering::Relaxed);
            let ends = {
                let world = world.lock();
                told >= world.changes.get(source).copied().unwrap_or(0) && !world.revoked.contains(split)
            };
            if ends {
                return;
            }
            more.await;
        }
    }
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
        self.told.set(after.map_or(0, |p| p.0["changes"].as_u64().unwrap()));
        let start = (self.inner.splits(cx, after).await?, Arc::clone(&self.instance), self.told.clone());
        Ok(stream::unfold(start, |(mut changes, instance, told)| async move {
            let change = changes.next().await?;
            let fate = instance.before("split change").await;
            if fate.is_ok() {
                told.one_more();
            }
            Some((fate.and(change), (changes, instance, told)))
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
        let inner = self.inner.open(cx, split, after, scan).await?;
        let (source, split) = (cx.node().to_owned(), split.id.to_string());
        let (instance, told) = (Arc::clone(&self.instance), self.told.clone());
        Ok(stream::unfold((inner, instance, told), move |(mut events, instance, told)| {
            let (source, split) = (source.clone(), split.clone());
            async move {
                let event = events.next().await?;
                let fate = instance.before("read").await;
                if matches!(event, Ok(SourceEvent::Finished)) {
                    told.all(&instance.world, &source, &split).await;
                }
                Some((fate.and(event), (events, instance, told)))
            }
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
