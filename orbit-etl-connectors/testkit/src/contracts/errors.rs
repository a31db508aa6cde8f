//! Errors have the kind that a caller can act on.

use orbit_etl_core::{ErrorKind, Result};

use crate::data::Sample;
use crate::drive::{Run, context, everything};
use crate::harness::{Breakage, Broken, Check, Harness, Stop};

/// Contract: what isn't there is `NotFound`.
pub async fn a_missing_thing_is_not_found(harness: &dyn Harness) -> Check {
    check(harness, Breakage::Missing, &[ErrorKind::NotFound]).await
}

/// Contract: wrong credentials are `Auth`.
pub async fn bad_credentials_are_told(harness: &dyn Harness) -> Check {
    check(harness, Breakage::BadCredentials, &[ErrorKind::Auth]).await
}

/// Contract: an address where nobody listens is `Unavailable` or `Timeout`, in bounded time.
pub async fn an_unreachable_host_is_told(harness: &dyn Harness) -> Check {
    check(harness, Breakage::Unreachable, &[ErrorKind::Unavailable, ErrorKind::Timeout]).await
}

async fn check(harness: &dyn Harness, what: Breakage, kinds: &[ErrorKind]) -> Check {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
    let fixture = harness.fresh().await?;
    let Some(broken) = fixture.broken(what).await? else {
        return Err(Stop::skip(format!("the harness has nothing that fails as {what:?}")));
    };
    let sample = Sample::new("rows", &harness.abilities())?;
    let cx = context()?;
    let health = match &broken {
        Broken::Source(source) => tokio::time::timeout(PATIENCE, source.health(&cx)).await,
        Broken::Sink(sink) => tokio::time::timeout(PATIENCE, sink.health(&cx)).await,
    };
    let late = |_| Stop::fail(format!("there is no answer within {PATIENCE:?}"));
    super::fails_with("the health check", health.map_err(late)?, kinds)?;
    let used = tokio::time::timeout(PATIENCE, async {
        match &broken {
            Broken::Source(source) => read_first(&cx, &**source).await,
            Broken::Sink(sink) => {
                let streams = std::slice::from_ref(&sample.stream);
                Run::start(&cx, &**sink, streams, 1).await.map(drop)
            }
        }
    });
    super::fails_with("the use", used.await.map_err(late)?, kinds)
}

/// Goes as far as the first event.
async fn read_first(cx: &orbit_etl_core::Context, source: &dyn orbit_etl_core::Source) -> Result<()> {
    use futures::StreamExt;
    source.streams(cx).await?;
    let Ok(scan) = everything(cx, source).await else { return Ok(()) };
    let mut changes = source.splits(cx, None).await?;
    while let Some(change) = changes.next().await {
        for split in change?.added {
            let mut events = source.open(cx, &split, None, &scan).await?;
            if let Some(event) = events.next().await {
                event?;
            }
        }
    }
    Ok(())
}
