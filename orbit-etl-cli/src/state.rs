//! `state`: what a pipeline remembers between runs.

use std::fmt::Write as _;

use orbit_etl::Pipeline;
use orbit_etl::checkpoint::{Head, Log, State};
use serde_json::json;

use crate::args::{StateCommand, StateCopyArgs, StateSetArgs, TableFormat};
use crate::failure::Failure;
use crate::{load, out};

pub(crate) async fn state(command: StateCommand) -> Result<(), Failure> {
    match command {
        StateCommand::Show { file, format } => {
            let one = load::one(&file.file, &file.spec, &load::registry())?;
            match (one.pipeline.state().await?, format) {
                (Some(head), TableFormat::Table) => out::print(&as_text(&head)),
                (Some(head), TableFormat::Json) => out::print(&format!("{:#}\n", as_json(&head))),
                (None, _) => Err(no_state(&one.pipeline)),
            }
        }
        StateCommand::Set(args) => set(args).await,
        StateCommand::Reset { file } => {
            let one = load::one(&file.file, &file.spec, &load::registry())?;
            let state = one.pipeline.reset().await.map_err(|e| Failure::of(&one, &e))?;
            out::print(&format!(
                "{}: the next run reads everything, as generation {}\n",
                one.pipeline.name(),
                state.generation
            ))
        }
        StateCommand::Export(args) => export(args).await,
        StateCommand::Import(args) => import(args).await,
    }
}

async fn set(args: StateSetArgs) -> Result<(), Failure> {
    let one = load::one(&args.file.file, &args.file.spec, &load::registry())?;
    let changed = one.pipeline.set_position(&args.source, args.split.as_deref(), args.position);
    let state = changed.await.map_err(|e| Failure::of(&one, &e))?;
    out::print(&sources(&state))
}

async fn export(args: StateCopyArgs) -> Result<(), Failure> {
    let one = load::one(&args.file.file, &args.file.spec, &load::registry())?;
    if one.pipeline.state().await?.is_none() {
        return Err(no_state(&one.pipeline));
    }
    let copied = one.pipeline.log()?.copy_to(&place(&args)?).await?;
    out::print(&format!(
        "{}: entry {} is in {}\n",
        one.pipeline.name(),
        copied.unwrap_or_default(),
        args.place
    ))
}

async fn import(args: StateCopyArgs) -> Result<(), Failure> {
    let one = load::one(&args.file.file, &args.file.spec, &load::registry())?;
    let name = one.pipeline.name();
    // Looking for a backup makes no folder.
    let there = args.place.contains("://") || std::path::Path::new(&args.place).is_dir();
    let from = if there { Some(place(&args)?) } else { None };
    let head = match &from {
        Some(from) => from.peek().await?,
        None => None,
    };
    let (Some(from), Some(head)) = (from, head) else {
        return Err(Failure::failed(format!("{}: there is no state", args.place)));
    };
    if head.pipeline != name {
        return Err(Failure::mistake(format!(
            "{}: is the state of the pipeline {}, not of {name}",
            args.place, head.pipeline
        )));
    }
    let copied = from.copy_to(&one.pipeline.log()?).await?;
    out::print(&format!("{name}: goes on from entry {}\n", copied.unwrap_or_default()))
}

fn place(args: &StateCopyArgs) -> Result<Log, Failure> {
    let options = args.option.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    Ok(Log::open(&args.place, &options)?)
}

fn no_state(pipeline: &Pipeline) -> Failure {
    Failure::failed(format!("{}: has no state, as it has never run", pipeline.name()))
}

fn as_text(head: &Head) -> String {
    let state = &head.state;
    let complete = if state.complete { ", read to its end" } else { "" };
    let kind = if head.claim { "claim" } else { "checkpoint" };
    let mut text = format!(
        "{}: epoch {}, generation {}{complete}\n  entry {}, a {kind} of the run {}\n  lineage {}\n",
        head.pipeline, state.epoch, state.generation, head.number, head.run, state.lineage
    );
    text.push_str(&sources(state));
    for pending in &state.pending {
        let _ = writeln!(text, "  sink {}: epoch {} may have to be published", pending.sink, pending.epoch);
    }
    text
}

fn sources(state: &State) -> String {
    let mut text = String::new();
    for (name, source) in &state.sources {
        let ended = if source.ended { ", ended" } else { "" };
        let _ = match &source.enumerator {
            Some(position) => writeln!(text, "  source {name}{ended}: looks for splits after {position}"),
            None => writeln!(text, "  source {name}{ended}: looks for splits from the start"),
        };
        for split in &source.splits {
            let _ = match &split.position {
                Some(position) => writeln!(text, "    split {}: at {position}", split.split.id),
                None => writeln!(text, "    split {}: at its start", split.split.id),
            };
        }
    }
    text
}

fn as_json(head: &Head) -> serde_json::Value {
    let state = &head.state;
    json!({
        "pipeline": head.pipeline,
        "entry": head.number,
        "kind": if head.claim { "claim" } else { "checkpoint" },
        "run": head.run,
        "lineage": state.lineage,
        "generation": state.generation,
        "complete": state.complete,
        "epoch": state.epoch,
        "sources": state.sources,
        "pending": state.pending.iter().map(|p| json!({ "sink": p.sink, "epoch": p.epoch })).collect::<Vec<_>>(),
        "totals": state.totals,
    })
}
