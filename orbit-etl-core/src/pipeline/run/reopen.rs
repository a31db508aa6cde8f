//! Splits behind their node's guards: opened again after a failure that passes, and read on where that is
//! the same as if nothing had happened.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::time::Instant;

use super::open_splits::Events;
use crate::batch::estimated_bytes;
use crate::context::Context;
use crate::error::Result;
use crate::event::{Position, SourceEvent};
use crate::fault::{Guard, Load, Tries};
use crate::planted::{Bug, planted};
use crate::source::{Replay, ScanRequest, Source, Split, SplitChange};

/// A split that isn't looked at for so long after its time can't be said to have let it pass.
const SLACK: Duration = Duration::from_millis(100);

/// How a split is opened.
#[derive(Debug, Clone)]
pub(crate) struct Opening {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) cx: Context,
    pub(crate) split: Split,
    pub(crate) scan: Arc<[ScanRequest]>,
    pub(crate) guard: Arc<Guard>,
}

impl Opening {
    pub(crate) async fn open(self, after: Option<Position>) -> Result<Events> {
        let mut tries = Tries::default();
        let events = self.open_at(after.as_ref(), &mut tries).await?;
        if self.guard.is_idle() {
            return Ok(events);
        }
        Ok(Reading { opening: self, events, at: after, whole: true, owed: Load::default(), tries }.stream())
    }

    async fn open_at(&self, after: Option<&Position>, tries: &mut Tries) -> Result<Events> {
        loop {
            let opened = self.source.open(&self.cx, &self.split, after, &self.scan);
            match self.guard.call(Load::default(), opened).await {
                Ok(events) => return Ok(events),
                Err(error) => match self.guard.again(tries, &error) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(error),
                },
            }
        }
    }
}

/// Asks for a source's splits.
pub(crate) async fn list(
    source: &dyn Source,
    cx: &Context,
    after: Option<&Position>,
    guard: &Guard,
) -> Result<stream::BoxStream<'static, Result<SplitChange>>> {
    let mut tries = Tries::default();
    loop {
        match guard.call(Load::default(), source.splits(cx, after)).await {
            Ok(changes) => return Ok(changes),
            Err(error) => match guard.again(&mut tries, &error) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            },
        }
    }
}

/// A split that is read.
struct Reading {
    opening: Opening,
    events: Events,
    /// The last position met.
    at: Option<Position>,
    /// Whether all that came is before that position.
    whole: bool,
    /// What has come and is still to be let pass by the rates.
    owed: Load,
    tries: Tries,
}

impl Reading {
    fn stream(self) -> Events {
        let next = |reading: Option<Self>| async move {
            let mut reading = reading?;
            let event = reading.next().await?;
            let goes_on = event.is_ok();
            Some((event, goes_on.then_some(reading)))
        };
        stream::unfold(Some(self), next).boxed()
    }

    async fn next(&mut self) -> Option<Result<SourceEvent>> {
        let guard = Arc::clone(&self.opening.guard);
        guard.pass(std::mem::take(&mut self.owed), false).await;
        loop {
            // Silence of a split without an end is no failure.
            let limit = guard.timeout().filter(|_| self.opening.split.bounded);
            match heard(&mut self.events, limit, &guard).await? {
                Ok(event) => {
                    self.note(&event);
                    return Some(Ok(event));
                }
                Err(error) => {
                    let whole = self.whole || planted(Bug::ReadOnInsideUnit);
                    let same = whole && self.opening.source.replay() == Replay::Exact;
                    let Some(pause) = (if same { guard.again(&mut self.tries, &error) } else { None }) else {
                        return Some(Err(error));
                    };
                    tracing::debug!(
                        split = %self.opening.split.id, error = %error.report(), "read again in {pause:?}"
                    );
                    tokio::time::sleep(pause).await;
                    match self.opening.open_at(self.at.as_ref(), &mut self.tries).await {
                        Ok(events) => self.events = events,
                        Err(error) => return Some(Err(error)),
                    }
                }
            }
        }
    }

    fn note(&mut self, event: &SourceEvent) {
        let position = match event {
            SourceEvent::Batch { batch, position, .. } => {
                self.owed = Load { rows: batch.num_rows() as u64, bytes: estimated_bytes(batch) as u64 };
                position.clone()
            }
            SourceEvent::Rejects { rejects, position } => {
                self.owed.rows = rejects.iter().map(|r| r.rows).sum();
                position.clone()
            }
            SourceEvent::Progress(position) => Some(position.clone()),
            // A split that is opened again must not tell of it twice, or forget it.
            SourceEvent::Schema { .. } => None,
            SourceEvent::Watermark { .. } | SourceEvent::Finished => return,
        };
        self.whole = position.is_some();
        if position.is_some() {
            self.at = position;
            self.tries.forget();
        }
    }
}

async fn heard(events: &mut Events, limit: Option<Duration>, guard: &Guard) -> Option<Result<SourceEvent>> {
    let Some(limit) = limit else { return events.next().await };
    loop {
        let until = Instant::now() + limit;
        match tokio::time::timeout_at(until, events.next()).await {
            Ok(event) => return event,
            Err(_) if Instant::now() > until + SLACK => {}
            Err(_) => return Some(Err(guard.timed_out(limit))),
        }
    }
}
