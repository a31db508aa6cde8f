//! `lag > 5m for 2m`: what is watched, and when it is too much.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use orbit_etl_core::observe::{METRICS, Metric, MetricKind, NodeCounts, Progress};
use orbit_etl_core::pipeline::NodeInfo;
use orbit_etl_core::spec::{ByteSize, Period};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer};

/// What must hold, and for how long, before an alert goes out.
///
/// `failure`, or `METRIC [of NODE] [per second] OP VALUE [for PERIOD]`. `METRIC` is one of the
/// [metrics](orbit_etl_core::observe::METRICS) with or without `orbit_etl_` and the unit at its end: `lag`,
/// `rows_rejected`, `memory`. Of a histogram the last value counts, of a counter this run's count. Without a
/// node, rows and bytes are added up over all nodes, and of a level the highest counts. `OP` is `>`, `>=`, `<`
/// or `<=`; `VALUE` a number, a share (`1%`), a time (`5m`) or a size (`1GiB`), as the metric's unit is.
///
/// ```
/// use orbit_etl_observe::alerts::Condition;
///
/// for fine in ["failure", "lag > 5m for 2m", "rejected_share > 1%", "rows_out of lake per second < 10 for 1h"] {
///     assert_eq!(fine.parse::<Condition>().unwrap().to_string(), fine);
/// }
/// assert!("lag > 5 apples".parse::<Condition>().is_err());
/// assert!("leg > 5m".parse::<Condition>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    text: String,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    Failure,
    Level(Level),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Level {
    pub(super) metric: &'static str,
    pub(super) node: Option<String>,
    per_second: bool,
    op: Op,
    pub(super) value: f64,
    pub(super) lasting: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    Above,
    AtLeast,
    Below,
    AtMost,
}

/// Why a text is no [`Condition`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionError(String);

impl fmt::Display for ConditionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConditionError {}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Condition {
    type Err = ConditionError;

    fn from_str(text: &str) -> Result<Self, ConditionError> {
        let fail = |why: String| Err(ConditionError(why));
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if text == "failure" {
            return Ok(Self { text, what: What::Failure });
        }
        let ops = [(">=", Op::AtLeast), ("<=", Op::AtMost), (">", Op::Above), ("<", Op::Below)];
        let Some((left, op, right)) = ops.iter().find_map(|(sign, op)| {
            let (left, right) = text.split_once(sign)?;
            Some((left.trim(), *op, right.trim()))
        }) else {
            return fail("expected `failure` or a comparison like `lag > 5m for 2m`".into());
        };
        let (left, per_second) = match left.strip_suffix(" per second") {
            Some(left) => (left, true),
            None => (left, false),
        };
        let (name, node) = match left.split_once(" of ") {
            Some((name, node)) => (name.trim(), Some(node.trim().to_owned())),
            None => (left, None),
        };
        let Some(metric) = METRICS.iter().find(|m| m.name == name || short(m) == name || plain(m) == name)
        else {
            let known: Vec<_> = METRICS.iter().filter(|m| m.name != RUNS).map(short).collect();
            return fail(format!("there is no metric {name:?}; there are {}", known.join(", ")));
        };
        if metric.name == RUNS {
            return fail("runs aren't compared with a number: use `failure`".into());
        }
        if node.is_some() && !metric.labels.contains(&"node") {
            return fail(format!("{name} is the pipeline's, not a node's"));
        }
        if per_second && metric.kind != MetricKind::Counter {
            return fail(format!("{name} is a level, which has no rate"));
        }
        let (value, lasting) = match right.split_once(" for ") {
            Some((value, lasting)) => match lasting.parse::<Period>() {
                Ok(lasting) => (value.trim(), lasting.0),
                Err(error) => return fail(format!("{lasting:?}: {error}")),
            },
            None => (right, Duration::ZERO),
        };
        let unit = metric.name.trim_end_matches("_total");
        let value = match value.parse::<f64>() {
            Ok(number) if number.is_finite() => number,
            _ => match value.strip_suffix('%').map(|share| share.trim().parse::<f64>()) {
                Some(Ok(share)) if share.is_finite() => share / 100.0,
                _ if unit.ends_with("_seconds") => match value.parse::<Period>() {
                    Ok(time) => time.0.as_secs_f64(),
                    Err(error) => return fail(format!("{value:?}: {error}")),
                },
                #[allow(clippy::cast_precision_loss)] // As a level is.
                _ if unit.ends_with("_bytes") => match value.parse::<ByteSize>() {
                    Ok(size) => size.0 as f64,
                    Err(error) => return fail(format!("{value:?}: {error}")),
                },
                _ => return fail(format!("{value:?} is no number")),
            },
        };
        let level = Level { metric: metric.name, node, per_second, op, value, lasting };
        Ok(Self { text, what: What::Level(level) })
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Condition {
    fn schema_name() -> Cow<'static, str> {
        "AlertCondition".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "`failure`, or METRIC [of NODE] [per second] OP VALUE [for PERIOD]: `lag > 5m for 2m`."
        })
    }
}

const RUNS: &str = "orbit_etl_runs_total";

/// `lag` of `orbit_etl_lag_seconds`.
fn short(metric: &Metric) -> &'static str {
    let name = plain(metric);
    // A run's and an epoch's seconds are named by them.
    match name {
        "run_seconds" | "epoch_seconds" | "commit_seconds" => name,
        _ => name.trim_end_matches("_total").trim_end_matches("_seconds").trim_end_matches("_bytes"),
    }
}

fn plain(metric: &Metric) -> &'static str {
    metric.name.trim_start_matches("orbit_etl_")
}

impl Level {
    fn holds(&self, value: f64) -> bool {
        match self.op {
            Op::Above => value > self.value,
            Op::AtLeast => value >= self.value,
            Op::Below => value < self.value,
            Op::AtMost => value <= self.value,
        }
    }
}

/// One rule over one run.
#[derive(Debug, Default)]
pub(super) struct Watch {
    since: Option<Instant>,
    firing: bool,
    before: Option<(Instant, f64)>,
}

/// What has become of a rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Turn {
    Fires(f64),
    Resolves(f64),
}

impl Watch {
    /// Looks at the run as it is at `now`.
    pub(super) fn look(
        &mut self,
        level: &Level,
        look: &Progress,
        nodes: &[NodeInfo],
        now: Instant,
    ) -> Option<Turn> {
        let mut value = value(level, look, nodes)?;
        if level.per_second {
            let (before, last) = self.before.replace((now, value))?;
            let seconds = now.saturating_duration_since(before).as_secs_f64();
            // A restart begins anew with what is live.
            value = if seconds > 0.0 { (value - last).max(0.0) / seconds } else { return None };
        }
        if !level.holds(value) {
            self.since = None;
            return std::mem::take(&mut self.firing).then_some(Turn::Resolves(value));
        }
        let since = *self.since.get_or_insert(now);
        if self.firing || now.saturating_duration_since(since) < level.lasting {
            return None;
        }
        self.firing = true;
        Some(Turn::Fires(value))
    }
}

/// The metric's value in this run; `None` where there is none (no event time, no such node).
#[allow(clippy::cast_precision_loss)] // Nobody compares 2^53 rows to the row.
pub(super) fn value(level: &Level, look: &Progress, nodes: &[NodeInfo]) -> Option<f64> {
    let wanted = |name: &str| level.node.as_deref().is_none_or(|node| node == name);
    let committed = |figure: fn(&NodeCounts) -> u64| {
        let rows: u64 = look.committed.iter().filter(|(name, _)| wanted(name)).map(|(_, c)| figure(c)).sum();
        Some(rows as f64)
    };
    let vitals = &look.vitals;
    let of_nodes = vitals.nodes.iter().filter(|seen| wanted(&seen.name));
    match level.metric.trim_start_matches("orbit_etl_") {
        "rows_in_total" => committed(|c| c.rows_in),
        "rows_out_total" => committed(|c| c.rows_out),
        "rows_rejected_total" => committed(|c| c.rejected),
        "rows_filtered_total" => committed(|c| c.filtered),
        "bytes_total" => committed(|c| c.bytes),
        "rows_processed_total" => {
            let live = look.nodes.iter().filter(|(name, _)| wanted(name)).map(|(_, c)| c.rows_in);
            Some(live.sum::<u64>() as f64)
        }
        "batches_total" => Some(of_nodes.map(|seen| seen.batches).sum::<u64>() as f64),
        "buffer_bytes" => of_nodes.map(|seen| seen.buffered).max().map(|bytes| bytes as f64),
        "watermark_delay_seconds" => {
            let latest = of_nodes.filter_map(|seen| seen.watermark_delay).max()?;
            Some(latest.as_secs_f64())
        }
        "epochs_total" => Some(look.epochs as f64),
        "restarts_total" => Some(f64::from(vitals.restarts)),
        "retries_total" => Some(vitals.retries as f64),
        "epoch_seconds" => (look.epochs > 0).then_some(vitals.last_epoch.as_secs_f64()),
        "commit_seconds" => (look.epochs > 0).then_some(vitals.last_commit.as_secs_f64()),
        "lag_seconds" => Some(vitals.lag.as_secs_f64()),
        "memory_bytes" => Some(vitals.memory as f64),
        "rejected_share" => {
            let sources = nodes.iter().filter(|n| n.role == "source").map(|n| n.name.as_str());
            Some(look.rejected_share(sources))
        }
        "running" => Some(1.0),
        "run_seconds" => Some(look.elapsed.as_secs_f64()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orbit_etl_core::observe::NodeVitals;

    fn level(text: &str) -> Level {
        match text.parse::<Condition>().unwrap().what {
            What::Level(level) => level,
            What::Failure => panic!("a level"),
        }
    }

    fn late(seconds: u64) -> Progress {
        let mut look = Progress::default();
        look.vitals.lag = Duration::from_secs(seconds);
        look
    }

    #[test]
    fn every_metric_has_a_value_and_a_short_name() {
        let mut look = Progress { epochs: 1, ..Progress::default() };
        look.vitals.nodes =
            vec![NodeVitals { watermark_delay: Some(Duration::ZERO), ..NodeVitals::default() }];
        for metric in METRICS.iter().filter(|m| m.name != RUNS) {
            for name in [metric.name, plain(metric), short(metric)] {
                let level = level(&format!("{name} >= 0"));
                assert_eq!(level.metric, metric.name, "{name}");
                assert!(value(&level, &look, &[]).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn an_alert_waits_as_long_as_it_says_and_goes_out_once() {
        let level = level("lag > 5m for 2m");
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Watch::default();
        assert_eq!(watch.look(&level, &late(301), &[], at(0)), None);
        assert_eq!(watch.look(&level, &late(400), &[], at(119)), None);
        assert_eq!(watch.look(&level, &late(421), &[], at(120)), Some(Turn::Fires(421.0)));
        assert_eq!(watch.look(&level, &late(500), &[], at(200)), None);
        assert_eq!(watch.look(&level, &late(300), &[], at(201)), Some(Turn::Resolves(300.0)));
        assert_eq!(watch.look(&level, &late(400), &[], at(300)), None, "it begins anew");
        assert_eq!(watch.look(&level, &late(1), &[], at(310)), None, "nobody was told");
        assert_eq!(watch.look(&level, &late(400), &[], at(311)), None);
        assert_eq!(watch.look(&level, &late(400), &[], at(430)), None, "119 seconds in a row");
    }

    #[test]
    fn rates_are_those_between_two_looks_at_one_node() {
        let level = level("rows_out of lake per second < 10");
        let start = Instant::now();
        let rows = |lake, other| {
            let counts = |rows_out| NodeCounts { rows_out, ..NodeCounts::default() };
            Progress {
                committed: [("lake".to_owned(), counts(lake)), ("other".to_owned(), counts(other))].into(),
                ..Progress::default()
            }
        };
        let mut watch = Watch::default();
        assert_eq!(watch.look(&level, &rows(0, 0), &[], start), None);
        assert_eq!(watch.look(&level, &rows(100, 0), &[], start + Duration::from_secs(10)), None);
        let turn = watch.look(&level, &rows(150, 1_000), &[], start + Duration::from_secs(20));
        assert_eq!(turn, Some(Turn::Fires(5.0)));
    }

    #[test]
    fn mistakes_say_what_is_wrong() {
        for (text, part) in [
            ("lag", "expected `failure` or a comparison"),
            ("leg > 5m", "there is no metric \"leg\"; there are rows_in, "),
            ("lag > 5 apples", "apples"),
            ("lag > 5m for ever", "ever"),
            ("lag of sink > 5m", "the pipeline's"),
            ("lag per second > 5m", "no rate"),
            ("runs > 1", "use `failure`"),
            ("rejected_share > much", "\"much\" is no number"),
            ("rejected_share > inf", "\"inf\" is no number"),
        ] {
            let error = text.parse::<Condition>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(level("memory > 1.5GiB").value, 1.5 * f64::from(1 << 30));
        assert_eq!(level("rejected_share>=2.5%").value, 0.025);
        assert_eq!(level("commit_seconds > 500ms").value, 0.5);
    }
}
