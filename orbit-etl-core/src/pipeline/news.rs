//! Whether there is anything that no run has read.

use futures::StreamExt;

use crate::checkpoint::State;
use crate::context::Context;
use crate::error::{Error, Result, ResultExt};
use crate::pipeline::graph::{Graph, Kind};
use crate::source::Source;

/// Looks until the first source has something.
pub(crate) async fn look(graph: &Graph, state: &State, cx: &Context) -> Result<bool> {
    if !state.complete {
        return Ok(true);
    }
    for node in &graph.nodes {
        let Kind::Source(source) = &node.kind else { continue };
        let cx = cx.for_node(&node.name);
        if of_source(&**source, state, &node.name, &cx).await.with("node", &node.name)? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn of_source(source: &dyn Source, state: &State, name: &str, cx: &Context) -> Result<bool> {
    if source.streams(cx).await?.iter().any(|stream| !stream.bounded) {
        return Err(Error::unsupported("a source without an end always has more to read")
            .remedy("run the pipeline without a trigger: it reads what comes as it comes"));
    }
    let Some(known) = state.sources.get(name) else { return Ok(true) };
    if !known.splits.is_empty() {
        return Ok(true);
    }
    let mut changes = source.splits(cx, known.enumerator.as_ref()).await?;
    while let Some(change) = changes.next().await {
        if !change?.added.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}
