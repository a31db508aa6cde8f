//! `run`: pipelines until their inputs end.

use std::collections::BTreeMap;

use orbit_etl::observe::RunReport;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::args::{ReportFormat, RunArgs};
use crate::failure::Failure;
use crate::load::{self, Loaded};
use crate::metrics::Metrics;
use crate::out;
use crate::progress::Screen;
use crate::report::JsonReport;
use crate::schedule;
use crate::signals::Signals;

/// How far a pipeline is, for those that come after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Succeeded,
    Failed,
}

/// How a pipeline ended.
pub(crate) enum Ended {
    Well(RunReport),
    /// Not begun, because of this one that it comes after.
    Skipped(String),
    Badly(Failure, JsonReport),
}

/// Runs them all, each behind those that it comes after.
pub(crate) async fn run(args: RunArgs) -> Result<(), Failure> {
    let registry = load::registry();
    let loaded = load::all(&args.files, &args.spec, &registry)?;
    check_order(&loaded)?;
    let signals = Signals::listen()?;
    let mut metrics = Metrics::default();
    if let Some(address) = args.metrics {
        metrics.serve(address).await?;
    }
    let screen = Screen::new(metrics);
    if args.schedule {
        return schedule::run(loaded, &signals, &screen, args.report, args.listen).await;
    }
    let names: Vec<String> = loaded.iter().map(|one| one.pipeline.name().to_owned()).collect();
    let states: Vec<watch::Sender<State>> = names.iter().map(|_| watch::Sender::new(State::Open)).collect();
    let mut tasks = JoinSet::new();
    for (i, one) in loaded.into_iter().enumerate() {
        let before: Vec<(String, watch::Receiver<State>)> = one
            .spec
            .after()
            .iter()
            .filter_map(|name| {
                let at = names.iter().position(|known| known == name)?;
                Some((name.clone(), states[at].subscribe()))
            })
            .collect();
        let (state, signals, screen) = (states[i].clone(), signals.clone(), screen.clone());
        tasks.spawn(async move {
            let ended = match wait_for(before, &signals).await {
                Some(failed) => Ended::Skipped(failed),
                None => run_one(&one, &signals, &screen).await,
            };
            state.send_replace(match &ended {
                Ended::Well(_) => State::Succeeded,
                Ended::Skipped(_) | Ended::Badly(..) => State::Failed,
            });
            (i, ended)
        });
    }
    let mut failures: BTreeMap<usize, Failure> = BTreeMap::new();
    while let Some(joined) = tasks.join_next().await {
        let (i, ended) =
            joined.map_err(|_| Failure::failed("a task panicked; its message is on standard error"))?;
        tell(&names[i], &ended, args.report)?;
        match ended {
            Ended::Well(_) => {}
            Ended::Skipped(before) => {
                let why = format!("{}: not run, as {before} did not succeed", names[i]);
                failures.insert(names.len() + i, Failure::failed(why));
            }
            Ended::Badly(failure, _) => {
                failures.insert(i, failure);
            }
        }
    }
    failures.into_values().reduce(Failure::and).map_or(Ok(()), Err)
}

/// Which of these failed first, once all have ended; a signal counts as a failure.
async fn wait_for(before: Vec<(String, watch::Receiver<State>)>, signals: &Signals) -> Option<String> {
    for (name, mut state) in before {
        let ended = tokio::select! {
            ended = state.wait_for(|state| *state != State::Open) => ended.map_or(State::Failed, |state| *state),
            () = signals.drain.cancelled() => State::Failed,
        };
        if ended != State::Succeeded {
            return Some(name);
        }
    }
    None
}

/// Runs a pipeline, drained or stopped by signals.
pub(crate) async fn run_one(one: &Loaded, signals: &Signals, screen: &Screen) -> Ended {
    tracing::info!(pipeline = one.pipeline.name(), "starting");
    let running = one.pipeline.start();
    let shown = screen.watch(&one.pipeline, &running);
    let (stop, abort) = (running.stop_token(), running.abort_token());
    let mut ended = running.into_future();
    let result = loop {
        tokio::select! {
            result = &mut ended => break result,
            () = signals.drain.cancelled(), if !stop.is_cancelled() => stop.cancel(),
            () = signals.abort.cancelled(), if !abort.is_cancelled() => abort.cancel(),
        }
    };
    // It ends with the run.
    let last = shown.await.unwrap_or_default();
    match result {
        Ok(report) => Ended::Well(report),
        Err(error) => {
            let report = JsonReport::failed(&one.pipeline, &error, &last);
            Ended::Badly(Failure::of(one, &error), report)
        }
    }
}

/// Prints the report.
pub(crate) fn tell(name: &str, ended: &Ended, format: ReportFormat) -> Result<(), Failure> {
    match (format, ended) {
        (ReportFormat::Text, Ended::Well(report)) => out::print(&report.to_string()),
        (ReportFormat::Text, _) => Ok(()),
        (ReportFormat::Json, Ended::Well(report)) => JsonReport::of(report).print(),
        (ReportFormat::Json, Ended::Badly(_, report)) => report.print(),
        (ReportFormat::Json, Ended::Skipped(_)) => JsonReport::skipped(name).print(),
    }
}

/// Names must differ, and nothing may come after itself.
fn check_order(loaded: &[Loaded]) -> Result<(), Failure> {
    let mut after: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for one in loaded {
        let names = one.spec.after().iter().map(String::as_str).collect();
        if after.insert(one.pipeline.name(), names).is_some() {
            return Err(Failure::mistake(format!("two pipelines are called {}", one.pipeline.name())));
        }
    }
    for (name, before) in &after {
        for missing in before.iter().filter(|before| !after.contains_key(*before)) {
            tracing::warn!(
                pipeline = name,
                after = missing,
                "not waited for: it isn't among the specs of this run"
            );
        }
    }
    let mut left = after;
    loop {
        let names: Vec<&str> = left.keys().copied().collect();
        left.retain(|_, before| before.iter().any(|name| names.contains(name)));
        if left.is_empty() {
            return Ok(());
        }
        if left.len() == names.len() {
            let names = names.join(", ");
            return Err(Failure::mistake(format!(
                "these pipelines wait for one another by `after`: {names}"
            )));
        }
    }
}
