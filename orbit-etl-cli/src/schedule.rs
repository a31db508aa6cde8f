//! `run --schedule`: pipelines that run again and again, by the clock or after one another.

use chrono::{DateTime, Utc};
use orbit_etl::spec::{Missed, Schedule};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::args::ReportFormat;
use crate::failure::Failure;
use crate::load::Loaded;
use crate::progress::Screen;
use crate::run::{Ended, run_one, tell};
use crate::signals::Signals;

/// The longest nap, so that a clock that was put forward is noticed.
const NAP: std::time::Duration = std::time::Duration::from_secs(30);

/// Runs until a signal comes. A pipeline never overlaps with itself; one that fails is tried again when
/// it is due next.
pub(crate) async fn run(
    loaded: Vec<Loaded>,
    signals: &Signals,
    screen: &Screen,
    format: ReportFormat,
) -> Result<(), Failure> {
    let names: Vec<String> = loaded.iter().map(|one| one.pipeline.name().to_owned()).collect();
    // How often each has succeeded.
    let successes: Vec<watch::Sender<u64>> = names.iter().map(|_| watch::Sender::new(0)).collect();
    for (one, name) in loaded.iter().zip(&names) {
        if one.spec.schedule().is_none() && !one.spec.after().iter().any(|before| names.contains(before)) {
            return Err(Failure::mistake(format!(
                "{name}: has neither a `schedule` nor an `after` among these specs, so it would never run"
            )));
        }
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
        let (success, signals, screen) = (successes[i].clone(), signals.clone(), screen.clone());
        tasks.spawn(async move {
            let mut times = Times::new(&one, before, Utc::now());
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
}

impl Times {
    fn new(one: &Loaded, before: Vec<watch::Receiver<u64>>, now: DateTime<Utc>) -> Self {
        Self { schedule: one.spec.schedule().cloned(), last: now, before }
    }

    /// Waits for the next run; `false` if there will be none.
    async fn wait(&mut self, one: &Loaded, signals: &Signals) -> bool {
        if let Some(schedule) = &self.schedule {
            let Some(due) = next(schedule, self.last, Utc::now()) else { return false };
            tracing::info!(pipeline = one.pipeline.name(), at = %due.to_rfc3339(), "the next run is due");
            while let Ok(left) = (due - Utc::now()).to_std() {
                tokio::select! {
                    () = tokio::time::sleep(left.min(NAP)) => {}
                    () = signals.drain.cancelled() => return false,
                }
            }
            self.last = due;
        }
        // Each of them once more since the last run, or at all.
        for before in &mut self.before {
            tokio::select! {
                changed = before.changed() => if changed.is_err() { return false },
                () = signals.drain.cancelled() => return false,
            }
        }
        !signals.drain.is_cancelled()
    }
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
}
