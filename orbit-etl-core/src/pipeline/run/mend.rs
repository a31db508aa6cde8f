//! Changes of a pipeline's state between runs. They begin as a run does: claimed, so that a run that goes
//! on is fenced, and with everything published that is pending.

use std::time::Duration;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::attempt::close;
use super::recover::{Recovered, open_sinks, recover};
use crate::checkpoint::State;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::event::{Position, SplitId, StreamId};
use crate::pipeline::builder::Definition;
use crate::pipeline::options::Again;
use crate::pipeline::plan::{Plan, Role};
use crate::sink::Publication;
use crate::source::{ScanRequest, Source, Split};

/// How long a source may take to say whether it can go on at a position.
const LONGEST: Duration = Duration::from_secs(30);

/// What is changed.
#[derive(Debug)]
pub(crate) enum Mend<'a> {
    /// The next run reads everything, as a new generation.
    Reset,
    /// The next run reads on elsewhere: of a split, or in the listing of splits.
    Position { source: &'a str, split: Option<SplitId>, position: Position },
}

/// Changes the state, and tells what it is now.
pub(crate) async fn mend(definition: &Definition, what: &Mend<'_>) -> Result<State> {
    let cx = definition.context(CancellationToken::new(), &crate::observe::Retries::default())?;
    let mended = match definition.connect(&cx).await {
        Ok(()) => mend_connected(definition, &cx, what).await,
        Err(error) => Err(error),
    };
    definition.disconnect(&cx).await;
    mended.with("pipeline", &definition.name)
}

async fn mend_connected(definition: &Definition, cx: &Context, what: &Mend<'_>) -> Result<State> {
    let plan = definition.plan(cx).await?;
    if let Some(keeper) = plan.keeper {
        return Err(Error::unsupported("the checkpoints are kept in the target, and can't be changed here")
            .with("node", &plan.nodes[keeper].name));
    }
    let Some(head) = definition.peek().await? else {
        return Err(Error::not_found("the pipeline has no state yet").remedy("run it first"));
    };
    if let Mend::Position { source, split, position } = what {
        check_position(&plan, cx, &head.state, source, split.as_ref(), position).await?;
    }
    let mut sessions = open_sinks(&plan, cx).await?;
    let mended = async {
        // As after a restart: a generation that is complete isn't followed by another one.
        let completed = head.state.complete.then_some(head.state.epoch);
        let recovered = recover(&plan, &definition.log()?, cx, &mut sessions, completed).await?;
        let Recovered { mut claim, mut state, epoch, .. } = recovered;
        state.epoch = epoch;
        match what {
            Mend::Reset => begin_again(&plan, &mut state),
            Mend::Position { source, split, position } => {
                set_position(&plan, &mut state, source, split.as_ref(), position)?;
            }
        }
        let record = claim.encode(&state).await?;
        claim.append(&record).await?;
        Ok(state)
    }
    .await;
    close(&plan, sessions).await;
    mended
}

fn begin_again(plan: &Plan, state: &mut State) {
    state.generation += 1;
    state.complete = false;
    state.sources.clear();
    state.operators.clear();
    // What was to replace a table once the old generation was complete.
    state.pending.retain(|pending| {
        !plan.sinks().any(|(_, node)| {
            node.name == pending.sink
                && matches!(node.role, Role::Sink { publication: Publication::AtEnd, .. })
        })
    });
}

fn set_position(
    plan: &Plan,
    state: &mut State,
    source: &str,
    split: Option<&SplitId>,
    position: &Position,
) -> Result<()> {
    if state.complete && plan.again == Again::Full {
        return Err(Error::config("the next run reads everything again, whatever the position is")
            .with("node", source)
            .remedy("nothing was changed"));
    }
    let known = state.sources.get_mut(source).ok_or_else(|| no_source(source))?;
    match split {
        None => known.enumerator = Some(position.clone()),
        Some(split) => {
            let found = known.splits.iter_mut().find(|s| s.split.id == *split);
            found.ok_or_else(|| no_split(source, split))?.position = Some(position.clone());
        }
    }
    known.ended = false;
    state.complete = false;
    Ok(())
}

/// The source itself must be able to go on there.
async fn check_position(
    plan: &Plan,
    cx: &Context,
    state: &State,
    name: &str,
    split: Option<&SplitId>,
    position: &Position,
) -> Result<()> {
    let Some((source, streams)) = plan.sources().find_map(|(_, node)| match &node.role {
        Role::Source { source, .. } if node.name == name => Some((source, node.outputs.len())),
        _ => None,
    }) else {
        return Err(Error::config("there is no source of that name").with("node", name));
    };
    let known = state.sources.get(name).ok_or_else(|| no_source(name))?;
    let split = match split {
        Some(id) => {
            let found = known.splits.iter().find(|s| s.split.id == *id);
            Some(&found.ok_or_else(|| no_split(name, id))?.split)
        }
        None => None,
    };
    let cx = cx.for_node(name);
    let asked = tokio::time::timeout(LONGEST, ask(&**source, &cx, streams, split, position)).await;
    let answer = asked.unwrap_or_else(|_| {
        // It waits for something new, so it has taken the position.
        Ok(())
    });
    answer.with("node", name).with("position", position)
}

async fn ask(
    source: &dyn Source,
    cx: &Context,
    streams: usize,
    split: Option<&Split>,
    position: &Position,
) -> Result<()> {
    match split {
        Some(split) => {
            let scan: Vec<_> = (0..streams).map(|i| ScanRequest::all(StreamId(i), cx.batch_rows())).collect();
            let mut events = source.open(cx, split, Some(position), &scan).await?;
            events.next().await.transpose().map(drop)
        }
        None => source.splits(cx, Some(position)).await?.next().await.transpose().map(drop),
    }
}

fn no_source(name: &str) -> Error {
    Error::not_found("the state knows nothing of this source").with("node", name)
}

fn no_split(name: &str, split: &SplitId) -> Error {
    Error::new(ErrorKind::NotFound, "the state knows no such split: those that were read are forgotten")
        .with("node", name)
        .with("split", split)
        .remedy("the state tells the splits that are open")
}
