//! Alerts by rules over a run's metrics.
//!
//! ```yaml
//! alerts:
//!   to:
//!     ops: {type: slack, url: '${SLACK_URL}'}
//!     pager: {type: pagerduty, key: '${PAGERDUTY_KEY}'}
//!   rules:
//!     - when: lag > 5m for 2m
//!     - {name: bad rows, when: rejected_share > 1%, severity: warning, to: [ops]}
//!     - {when: failure, severity: critical}
//! ```
//!
//! A rule goes out once when its [`Condition`] has held as long as it says, and once more when it no longer
//! holds; a failure is over when a later run of this process ends well. Levels (lag, memory, buffers) are over
//! with their run. Notices to one target keep their order; of a target that doesn't answer, the newest beyond
//! 64 are dropped.

#[cfg(feature = "smtp")]
mod mail;
mod rule;
mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{SecondsFormat, Utc};
use futures::FutureExt;
use futures::future::BoxFuture;
use orbit_etl_core::observe::{Ending, Observer, Progress, RunView};
use orbit_etl_core::spec::Period;
use orbit_etl_core::{Error, Result, ResultExt};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

#[cfg(feature = "smtp")]
pub use mail::{Mail, Tls};
pub use rule::{Condition, ConditionError};
pub use target::{Address, PagerDuty, Target, Webhook};

use self::rule::{Turn, Watch, What};
use crate::http;

/// How many notices wait for a target.
const QUEUE: usize = 64;
const SHORTEST: Duration = Duration::from_millis(10);

/// Sends alerts. See the [module](self).
///
/// ```
/// use orbit_etl_observe::alerts::{Alerts, Rule, Target};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let alerts = Alerts::new()
///     .to("ops", Target::slack(std::env::var("SLACK_URL").unwrap_or_default()))
///     .rule(Rule::new("lag > 5m for 2m".parse()?))
///     .rule(Rule::new("failure".parse()?));
/// # let _ = alerts; // Pipeline::builder("orders").observer(alerts)
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Alerts {
    /// What is watched.
    rules: Vec<Rule>,
    /// Where alerts go, by name.
    to: BTreeMap<String, Target>,
    /// How often the rules are looked at; every second unless given.
    #[serde(default = "default_every")]
    every: Period,
    /// The failures that were told and are not over, by pipeline and rule.
    #[serde(skip)]
    failed: Arc<Mutex<BTreeSet<(String, String)>>>,
}

/// One rule.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The condition.
    when: Condition,
    /// What it is called; its condition unless given.
    #[serde(default)]
    name: Option<String>,
    /// How bad it is; `error` unless given.
    #[serde(default)]
    severity: Severity,
    /// The names of the targets that are told; all unless given.
    #[serde(default)]
    to: Vec<String>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Worth a look.
    Warning,
    /// Something is wrong.
    #[default]
    Error,
    /// Somebody must get up.
    Critical,
}

impl Severity {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

fn default_every() -> Period {
    Period(Duration::from_secs(1))
}

impl Default for Alerts {
    fn default() -> Self {
        Self::new()
    }
}

impl Alerts {
    /// Without rules and targets.
    pub fn new() -> Self {
        Self { rules: Vec::new(), to: BTreeMap::new(), every: default_every(), failed: Arc::default() }
    }

    /// Adds a target.
    #[must_use]
    pub fn to(mut self, name: impl Into<String>, target: Target) -> Self {
        self.to.insert(name.into(), target);
        self
    }

    /// Adds a rule.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// How often the rules are looked at; every second unless given.
    #[must_use]
    pub fn every(mut self, every: Duration) -> Self {
        self.every = Period(every);
        self
    }
}

impl Rule {
    /// A rule that tells all targets of an error.
    pub fn new(when: Condition) -> Self {
        Self { when, name: None, severity: Severity::default(), to: Vec::new() }
    }

    /// What it is called; its condition unless given.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How bad it is.
    #[must_use]
    pub fn with_severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    /// The targets that are told.
    #[must_use]
    pub fn to(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.to = names.into_iter().map(Into::into).collect();
        self
    }

    fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.when.to_string())
    }
}

/// One alert as it goes out.
#[derive(Debug, Clone)]
struct Notice {
    pipeline: String,
    run_id: String,
    rule: String,
    condition: String,
    severity: Severity,
    firing: bool,
    value: Option<f64>,
    message: String,
    at: String,
}

impl Notice {
    /// For checking templates.
    fn sample() -> Self {
        Self {
            pipeline: "orders".into(),
            run_id: "0199".into(),
            rule: "late".into(),
            condition: "lag > 5m".into(),
            severity: Severity::Critical,
            firing: true,
            value: Some(361.0),
            message: "lag > 5m".into(),
            at: "2026-01-01T00:00:00Z".into(),
        }
    }

    fn title(&self) -> String {
        let status = if self.firing { self.severity.as_str() } else { "resolved" };
        format!("[{status}] {}: {}", self.pipeline, self.rule)
    }

    fn to_json(&self) -> Value {
        json!({
            "pipeline": self.pipeline,
            "run_id": self.run_id,
            "rule": self.rule,
            "condition": self.condition,
            "severity": self.severity.as_str(),
            "status": if self.firing { "firing" } else { "resolved" },
            "value": self.value,
            "message": self.message,
            "at": self.at,
        })
    }
}

impl Observer for Alerts {
    fn validate(&self) -> Result<()> {
        for (name, target) in &self.to {
            target.validate().map_err(|error| {
                let inner = error.context("option").unwrap_or_default().to_owned();
                let option = format!("to.{name}.{inner}");
                Error::config(error.message().to_owned()).with("option", option.trim_end_matches('.'))
            })?;
        }
        if self.to.is_empty() {
            return Err(Error::config("names nobody who is told").with("option", "to"));
        }
        let mut names = BTreeSet::new();
        for rule in &self.rules {
            if let Some(unknown) = rule.to.iter().find(|name| !self.to.contains_key(*name)) {
                let known: Vec<_> = self.to.keys().map(String::as_str).collect();
                return Err(Error::config("a rule tells a target that isn't there")
                    .with("option", "rules")
                    .with("target", unknown)
                    .remedy(format!("the targets are: {}", known.join(", "))));
            }
            if !names.insert(rule.name()) {
                return Err(Error::config("two rules have the same name")
                    .with("option", "rules")
                    .with("rule", rule.name())
                    .remedy("give one of them another `name`"));
            }
        }
        Ok(())
    }

    fn watch(&self, run: RunView) -> BoxFuture<'static, ()> {
        let alerts = self.clone();
        async move {
            match Posts::open(&alerts) {
                Ok(posts) => watch(&alerts, run, posts).await,
                Err(error) => tracing::warn!(error = %error.report(), "no alerts are sent"),
            }
        }
        .boxed()
    }
}

/// A task and a queue for each target.
struct Posts {
    queues: BTreeMap<String, mpsc::Sender<Notice>>,
    tasks: JoinSet<()>,
}

impl Posts {
    fn open(alerts: &Alerts) -> Result<Self> {
        let client = http::client()?;
        let mut posts = Self { queues: BTreeMap::new(), tasks: JoinSet::new() };
        for (name, target) in &alerts.to {
            let (queue, mut notices) = mpsc::channel::<Notice>(QUEUE);
            posts.queues.insert(name.clone(), queue);
            let (name, target, client) = (name.clone(), target.clone(), client.clone());
            posts.tasks.spawn(async move {
                while let Some(notice) = notices.recv().await {
                    if let Err(error) = target.send(&client, &notice).await.with("target", &name) {
                        tracing::warn!(rule = notice.rule, error = %error.report(), "an alert is lost");
                    }
                }
            });
        }
        Ok(posts)
    }

    /// Never waits.
    fn send(&self, rule: &Rule, notice: &Notice) {
        let told = |name: &String| rule.to.is_empty() || rule.to.contains(name);
        for (name, queue) in self.queues.iter().filter(|(name, _)| told(name)) {
            if queue.try_send(notice.clone()).is_err() {
                tracing::warn!(rule = notice.rule, target = name, "an alert is lost: too many wait");
            }
        }
    }

    async fn close(mut self) {
        self.queues.clear();
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn watch(alerts: &Alerts, run: RunView, posts: Posts) {
    let mut watches: Vec<Watch> = alerts.rules.iter().map(|_| Watch::default()).collect();
    let mut clock = tokio::time::interval(alerts.every.0.max(SHORTEST));
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ended = pin!(run.end());
    let ending = loop {
        tokio::select! {
            biased;
            ending = &mut ended => break ending,
            _ = clock.tick() => {
                let look = run.progress.borrow().clone();
                look_at_all(alerts, &mut watches, &run, &look, &posts);
            }
        }
    };
    let mut look = run.progress.borrow().clone();
    if let Some(report) = ending.as_deref().and_then(|e| e.report.as_ref()) {
        look.committed = report.nodes.iter().map(|n| (n.name.clone(), n.counts)).collect();
        look.epochs = report.epochs;
    }
    // A run that has ended lags behind nothing and holds nothing.
    look.vitals.lag = Duration::ZERO;
    look.vitals.memory = 0;
    look.vitals.nodes.iter_mut().for_each(|node| node.buffered = 0);
    look_at_all(alerts, &mut watches, &run, &look, &posts);
    tell_failure(alerts, &run, ending.as_deref(), &posts);
    posts.close().await;
}

fn look_at_all(alerts: &Alerts, watches: &mut [Watch], run: &RunView, look: &Progress, posts: &Posts) {
    let now = Instant::now();
    for (rule, watch) in alerts.rules.iter().zip(watches) {
        let What::Level(level) = &rule.when.what else { continue };
        let (firing, value) = match watch.look(level, look, &run.nodes, now) {
            Some(Turn::Fires(value)) => (true, value),
            Some(Turn::Resolves(value)) => (false, value),
            None => continue,
        };
        let holds = if firing { "holds" } else { "holds no more" };
        let message = format!("`{}` {holds}: {}", rule.when, shown(level.metric, value));
        posts.send(rule, &notice(run, rule, firing, Some(value), message));
    }
}

/// A failure is over when a run has ended well.
fn tell_failure(alerts: &Alerts, run: &RunView, ending: Option<&Ending>, posts: &Posts) {
    let outcome = ending.map_or("failed", |ending| ending.outcome);
    for rule in alerts.rules.iter().filter(|rule| rule.when.what == What::Failure) {
        let key = (run.pipeline.clone(), rule.name());
        let mut failed = alerts.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            "failed" | "fenced" => {
                failed.insert(key);
                let message = ending.and_then(|e| e.message.clone());
                let message = message.unwrap_or_else(|| "the run's own task panicked".to_owned());
                posts.send(rule, &notice(run, rule, true, None, message));
            }
            "completed" | "stopped" if failed.remove(&key) => {
                posts.send(rule, &notice(run, rule, false, None, format!("a run has {outcome}")));
            }
            _ => {}
        }
    }
}

fn notice(run: &RunView, rule: &Rule, firing: bool, value: Option<f64>, message: String) -> Notice {
    Notice {
        pipeline: run.pipeline.clone(),
        run_id: run.run_id.clone(),
        rule: rule.name(),
        condition: rule.when.to_string(),
        severity: rule.severity,
        firing,
        value,
        message,
        at: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
    }
}

/// A value with its unit.
fn shown(metric: &str, value: f64) -> String {
    let base = metric.trim_end_matches("_total");
    let name = metric.trim_start_matches("orbit_etl_");
    if base.ends_with("_seconds") {
        format!("{name} is {value:.1} s")
    } else if metric.ends_with("_share") {
        format!("{name} is {:.2} %", value * 100.0)
    } else {
        format!("{name} is {value}")
    }
}
