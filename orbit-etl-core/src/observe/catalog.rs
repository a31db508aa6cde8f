//! The metrics that a run has: their names, units and labels.

/// What kind of figure a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution of values.
    Histogram,
}

/// What a metric counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricUnit {
    /// Things: rows, batches, epochs.
    Count,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// A share between 0 and 1, or a truth value.
    Ratio,
}

/// One metric of the `metrics` facade.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name; `_total`, `_bytes` and `_seconds` as Prometheus has them.
    pub name: &'static str,
    /// What kind of figure it is.
    pub kind: MetricKind,
    /// What it counts.
    pub unit: MetricUnit,
    /// The labels that each of its series has.
    pub labels: &'static [&'static str],
    /// What it means, in a sentence.
    pub help: &'static str,
}

const NODE: &[&str] = &["pipeline", "node", "role"];
const PIPELINE: &[&str] = &["pipeline"];

pub(crate) const ROWS_IN: &str = "orbit_etl_rows_in_total";
pub(crate) const ROWS_OUT: &str = "orbit_etl_rows_out_total";
pub(crate) const REJECTED: &str = "orbit_etl_rows_rejected_total";
pub(crate) const FILTERED: &str = "orbit_etl_rows_filtered_total";
pub(crate) const BYTES: &str = "orbit_etl_bytes_total";
pub(crate) const BATCHES: &str = "orbit_etl_batches_total";
pub(crate) const PROCESSED: &str = "orbit_etl_rows_processed_total";
pub(crate) const EDGE: &str = "orbit_etl_buffer_bytes";
pub(crate) const WATERMARK: &str = "orbit_etl_watermark_delay_seconds";
pub(crate) const EPOCHS: &str = "orbit_etl_epochs_total";
pub(crate) const RESTARTS: &str = "orbit_etl_restarts_total";
pub(crate) const RETRIES: &str = "orbit_etl_retries_total";
pub(crate) const RUNS: &str = "orbit_etl_runs_total";
pub(crate) const EPOCH_SECONDS: &str = "orbit_etl_epoch_seconds";
pub(crate) const COMMIT_SECONDS: &str = "orbit_etl_commit_seconds";
pub(crate) const LAG: &str = "orbit_etl_lag_seconds";
pub(crate) const MEMORY: &str = "orbit_etl_memory_bytes";
pub(crate) const SHARE: &str = "orbit_etl_rejected_share";
pub(crate) const RUNNING: &str = "orbit_etl_running";
pub(crate) const RUN_SECONDS: &str = "orbit_etl_run_seconds";

const fn metric(
    name: &'static str,
    kind: MetricKind,
    unit: MetricUnit,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, unit, labels, help }
}

/// Every metric that a run tells. `docs/metrics.md` lists the same.
pub const METRICS: &[Metric] = {
    use MetricKind::{Counter, Gauge, Histogram};
    use MetricUnit::{Bytes, Count, Ratio, Seconds};
    &[
        metric(
            ROWS_IN,
            Counter,
            Count,
            NODE,
            "Rows that came in, of committed epochs; at a source, rows read, rejects included.",
        ),
        metric(
            ROWS_OUT,
            Counter,
            Count,
            NODE,
            "Rows that went out, of committed epochs; at a sink, rows written.",
        ),
        metric(REJECTED, Counter, Count, NODE, "Rows that could not go on, of committed epochs."),
        metric(FILTERED, Counter, Count, NODE, "Rows that were left out on purpose, of committed epochs."),
        metric(BYTES, Counter, Bytes, NODE, "Bytes that went out, of committed epochs."),
        metric(
            PROCESSED,
            Counter,
            Count,
            NODE,
            "Rows that came in as they come, those too that a restart throws away and reads again.",
        ),
        metric(BATCHES, Counter, Count, NODE, "Batches that came in as they come, as with rows processed."),
        metric(EDGE, Gauge, Bytes, NODE, "Bytes of rows that are under way to the node."),
        metric(
            WATERMARK,
            Gauge,
            Seconds,
            NODE,
            "How far the source's event time is behind the clock; absent where there are no watermarks.",
        ),
        metric(EPOCHS, Counter, Count, PIPELINE, "Epochs that were committed."),
        metric(RESTARTS, Counter, Count, PIPELINE, "Restarts of runs after an error that may pass."),
        metric(RETRIES, Counter, Count, PIPELINE, "Requests that were sent again."),
        metric(
            RUNS,
            Counter,
            Count,
            &["pipeline", "outcome"],
            "Runs that have ended: completed, stopped, cancelled, fenced or failed.",
        ),
        metric(
            EPOCH_SECONDS,
            Histogram,
            Seconds,
            PIPELINE,
            "From the epoch's barrier to the end of its commit.",
        ),
        metric(
            COMMIT_SECONDS,
            Histogram,
            Seconds,
            PIPELINE,
            "From the request that writes the checkpoint to the last sink's commit.",
        ),
        metric(
            LAG,
            Gauge,
            Seconds,
            PIPELINE,
            "How long ago the last barrier was sent behind which nothing was left to commit.",
        ),
        metric(MEMORY, Gauge, Bytes, PIPELINE, "Bytes that are reserved of the memory limit."),
        metric(SHARE, Gauge, Ratio, PIPELINE, "The share of the rows read by this run that were rejected."),
        metric(RUNNING, Gauge, Ratio, PIPELINE, "1 while the pipeline runs."),
        metric(RUN_SECONDS, Gauge, Seconds, PIPELINE, "How long the run has been going on."),
    ]
};

/// Tells the installed recorder of the `metrics` facade what each metric means. A host calls it once,
/// after it has installed one.
pub fn describe_metrics() {
    for metric in METRICS {
        let unit = match metric.unit {
            MetricUnit::Count | MetricUnit::Ratio => metrics::Unit::Count,
            MetricUnit::Bytes => metrics::Unit::Bytes,
            MetricUnit::Seconds => metrics::Unit::Seconds,
        };
        match metric.kind {
            MetricKind::Counter => metrics::describe_counter!(metric.name, unit, metric.help),
            MetricKind::Gauge => metrics::describe_gauge!(metric.name, unit, metric.help),
            MetricKind::Histogram => metrics::describe_histogram!(metric.name, unit, metric.help),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fmt::Write as _;
    use std::path::PathBuf;

    fn docs(file: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file)
    }

    fn table() -> String {
        let mut table = String::from("| metric | kind | unit | labels | meaning |\n|---|---|---|---|---|\n");
        for m in METRICS {
            let (kind, unit) = (format!("{:?}", m.kind), format!("{:?}", m.unit));
            let (kind, unit, labels) = (kind.to_lowercase(), unit.to_lowercase(), m.labels.join(", "));
            let _ = writeln!(table, "| `{}` | {kind} | {unit} | {labels} | {} |", m.name, m.help);
        }
        table
    }

    /// Every word in a text that looks like one of our metrics.
    fn named(text: &str) -> BTreeSet<String> {
        text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .filter(|word| word.starts_with("orbit_etl_"))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn names_say_kind_and_unit_and_are_unique() {
        let names: BTreeSet<_> = METRICS.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), METRICS.len());
        for m in METRICS {
            assert_eq!(m.kind == MetricKind::Counter, m.name.ends_with("_total"), "{}", m.name);
            let base = m.name.trim_end_matches("_total");
            assert_eq!(m.unit == MetricUnit::Bytes, base.ends_with("_bytes"), "{}", m.name);
            assert_eq!(m.unit == MetricUnit::Seconds, base.ends_with("_seconds"), "{}", m.name);
            assert_eq!(m.labels[0], "pipeline");
        }
    }

    #[test]
    fn the_page_lists_every_metric() {
        let path = docs("metrics.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let start = page.find("| metric | kind |").expect("the table");
        let end = page[start..].find("\n\n").map_or(page.len(), |at| start + at + 1);
        if std::env::var_os("ORBIT_BLESS").is_some() {
            std::fs::write(&path, format!("{}{}{}", &page[..start], table(), &page[end..])).unwrap();
            return;
        }
        assert!(page[start..end] == table(), "docs/metrics.md is old: run this test with ORBIT_BLESS=1");
    }

    #[test]
    fn no_page_and_no_panel_names_a_metric_that_is_not_there() {
        let is = |name: &str, histogram: bool| {
            METRICS.iter().any(|m| m.name == name && (m.kind == MetricKind::Histogram) == histogram)
        };
        for file in ["metrics.md", "command.md", "observability.md", "grafana.json"] {
            let text = std::fs::read_to_string(docs(file)).unwrap();
            for name in named(&text) {
                let part = ["_bucket", "_sum", "_count"]
                    .iter()
                    .any(|suffix| name.strip_suffix(suffix).is_some_and(|base| is(base, true)));
                assert!(
                    part || is(&name, false) || (file != "grafana.json" && is(&name, true)),
                    "{file}: {name}"
                );
            }
        }
        let dashboard: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(docs("grafana.json")).unwrap()).unwrap();
        let mut asked = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{panel}");
            for query in targets.iter().map(|t| t["expr"].as_str().unwrap()) {
                let names = named(query);
                assert!(!names.is_empty(), "{query} asks for none of our metrics");
                assert_eq!(
                    query.matches("pipeline=~\"$pipeline\"").count(),
                    query.matches("orbit_etl_").count(),
                    "{query} is not of the chosen pipelines"
                );
                asked.extend(names);
            }
        }
        let left: Vec<_> =
            METRICS.iter().map(|m| m.name).filter(|m| !asked.iter().any(|a| a.starts_with(m))).collect();
        assert!(left.is_empty(), "the dashboard shows nothing of {left:?}");
    }
}
