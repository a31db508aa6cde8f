//! `run --schedule`: pipelines that run again and again, by the clock, after one another, for new files or
//! when they are called.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use orbit_etl::spec::{Missed, NewFiles, Schedule};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::args::ReportFormat;
use crate::calls::Calls;
use crate::failure::Failure;
use crate::load::Loaded;
use crate::progress::Screen;
use crate::run::{Ended, run_one, tell};
use crate::signals::Signals;

/// The longest nap, so that a clock that was put forward is noticed.
const NAP: Duration = Duration::from_secs(30);

/// Runs until a signal comes. A pipeline never overlaps with itself; one that fails is tried again when
/// it is due next.
pub(crate) async fn run(
    loaded: Vec<Loaded>,
    signals: &Signals,
    screen: &Screen,
    format: ReportFormat,
    listen: Option<SocketAddr>,
) -> Result<(), Failure> {
    let names: Vec<String> = loaded.iter().map(|one| one.pipeline.name().to_owned()).collect();
    // How often each has succeeded.
    let successes: Vec<watch::Sender<u64>> = names.iter().map(|_| watch::Sender::new(0)).collect();
    let mut calls = Calls::default();
    for (one, name) in loaded.iter().zip(&names) {
        let triggers = one.spec.triggers();
        if let Some(on_call) = triggers.and_then(|t| t.http.clone()) {
            if listen.is_none() {
                return Err(Failure::mistake(format!(
                    "{name}: is run by calls; say where they come in, with --listen 127.0.0.1:9185"
                )));
            }
            calls.expect(name, on_call);
        }
        let triggered = triggers.is_some_and(|t| t.http.is_some() || t.new_files.is_some());
        let follows = one.spec.after().iter().any(|before| names.contains(before));
        if one.spec.schedule().is_none() && !triggered && !follows {
            return Err(Failure::mistake(format!(
                "{name}: has neither a `schedule` nor `triggers` nor an `after` among these specs, so it would \
                 never run"
            )));
        }
    }
    if let Some(address) = listen {
        calls.serve(address, signals.drain.clone()).await?;
    }
    let mut tasks = JoinSet::new();
    for (i, one) in loaded.into_iter().enumerate() {
        let before: Vec<watch::Receiver<u64>> = one
            .spec
            .after()
            .iter()
            .filter_map(|name| names.iter().position(|known| known == name))
            .map(|at| successes[at].subscribe())
            .collect();
        let called = calls.of(&names[i]);
        let (success, signals, screen) = (successes[i].clone(), signals.clone(), screen.clone());
        tasks.spawn(async move {
            let mut times = Times::new(&one, before, called).await;
            while times.wait(&one, &signals).await {
                let ended = run_one(&one, &signals, &screen).await;
                tell(one.pipeline.name(), &ended, format)?;
                match ended {
                    Ended::Well(_) => success.send_modify(|count| *count += 1),
                    Ended::Badly(failure, _) => {
                        tracing::error!(pipeline = one.pipeline.name(), "{}", failure.message());
                    }
                    Ended::Skipped(_) => {}
                }
            }
            Ok::<(), Failure>(())
        });
    }
    while let Some(joined) = tasks.join_next().await {
        joined.map_err(|_| Failure::failed("a task panicked; its message is on standard error"))??;
    }
    Ok(())
}

/// When a pipeline is to run.
struct Times {
    schedule: Option<Schedule>,
    /// The time of the last run, or of the start.
    last: DateTime<Utc>,
    before: Vec<watch::Receiver<u64>>,
    look_every: Option<Duration>,
    /// Whether the sources have been looked at since the start.
    looked: bool,
    called: Option<Arc<Notify>>,
}

impl Times {
    async fn new(one: &Loaded, before: Vec<watch::Receiver<u64>>, called: Option<Arc<Notify>>) -> Self {
        let schedule = one.spec.schedule().cloned();
        let mut last = Utc::now();
        if schedule.as_ref().is_some_and(|schedule| schedule.missed == Missed::RunOnce)
            && let Some(earlier) = last_run(one).await
        {
            last = earlier;
        }
        let look_every = one.spec.triggers().and_then(|t| t.new_files.as_ref()).map(NewFiles::every);
        Self { schedule, last, before, look_every, looked: false, called }
    }

    /// Waits for the next run; `false` if there will be none.
    async fn wait(&mut self, one: &Loaded, signals: &Signals) -> bool {
        let by_clock = clock(self.schedule.as_ref(), &mut self.last, &mut self.before, one);
        let by_files = files(self.look_every, &mut self.looked, one);
        let by_call = async {
            match &self.called {
                Some(called) => called.notified().await,
                None => std::future::pending().await,
            }
        };
        let again = tokio::select! {
            biased;
            () = signals.drain.cancelled() => false,
            () = by_call => true,
            again = by_clock => again,
            () = by_files => true,
        };
        again && !signals.drain.is_cancelled()
    }
}

/// Waits for the schedule, then for those that come before; `false` if there is nothing to wait for.
async fn clock(
    schedule: Option<&Schedule>,
    last: &mut DateTime<Utc>,
    before: &mut [watch::Receiver<u64>],
    one: &Loaded,
) -> bool {
    if schedule.is_none() && before.is_empty() {
        return std::future::pending().await;
    }
    if let Some(schedule) = schedule {
        let Some(due) = next(schedule, *last, Utc::now()) else { return false };
        tracing::info!(pipeline = one.pipeline.name(), at = %due.to_rfc3339(), "the next run is due");
        while let Ok(left) = (due - Utc::now()).to_std() {
            tokio::time::sleep(left.min(NAP)).await;
        }
        *last = due;
    }
    // Each of them once more since the last run, or at all.
    for before in before {
        if before.changed().await.is_err() {
            return false;
        }
    }
    true
}

/// Waits until a source has something new: looks at once when the process begins, then ever so often.
async fn files(every: Option<Duration>, looked: &mut bool, one: &Loaded) {
    let Some(every) = every else { return std::future::pending().await };
    loop {
        if std::mem::replace(looked, true) {
            tokio::time::sleep(every).await;
        }
        match one.pipeline.has_news().await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                let failure = Failure::of(one, &error);
                tracing::error!(pipeline = one.pipeline.name(), "{}", failure.message());
            }
        }
    }
}

/// When the last run began, by the time in its id.
async fn last_run(one: &Loaded) -> Option<DateTime<Utc>> {
    begun(&one.pipeline.state().await.ok()??.run)
}

fn begun(run: &str) -> Option<DateTime<Utc>> {
    let (seconds, nanos) = uuid::Uuid::parse_str(run).ok()?.get_timestamp()?.to_unix();
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
}

/// The next time to run. A time that passed while a run was going on is left out, or made up for by one
/// run at once.
fn next(schedule: &Schedule, last: DateTime<Utc>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let due = schedule.next_after(last)?;
    match schedule.missed {
        Missed::Skip if due <= now => schedule.next_after(now),
        Missed::RunOnce if due <= now => Some(now),
        _ => Some(due),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_times_are_left_out_or_made_up_for_once() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let mut schedule = Schedule::new("0 * * * *".parse().unwrap());
        let (last, now) = (at("2026-01-01T01:00:00Z"), at("2026-01-01T04:30:00Z"));
        assert_eq!(next(&schedule, last, now), Some(at("2026-01-01T05:00:00Z")));
        assert_eq!(next(&schedule, at("2026-01-01T04:00:00Z"), now), Some(at("2026-01-01T05:00:00Z")));
        schedule.missed = Missed::RunOnce;
        assert_eq!(next(&schedule, last, now), Some(now));
        assert_eq!(next(&schedule, now, now), Some(at("2026-01-01T05:00:00Z")));
    }

    #[test]
    fn the_id_of_a_run_tells_when_it_began() {
        let time = begun("01938e40-8c00-7000-8000-000000000000").unwrap();
        assert_eq!(time.date_naive().to_string(), "2024-12-03");
        assert_eq!(begun("another"), None);
    }
}
