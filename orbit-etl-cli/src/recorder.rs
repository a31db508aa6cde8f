//! Keeps what the `metrics` facade is told, and writes it as Prometheus reads it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::atomics::AtomicU64;
use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, SharedString, Unit};
use std::sync::atomic::Ordering::Relaxed;

/// Upper bounds of the histograms' buckets, in seconds.
const BOUNDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// A recorder of the facade. A cheap clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recorder {
    known: Arc<Mutex<Known>>,
}

/// The series of each metric, by its labels as they are written.
#[derive(Debug, Default)]
struct Known {
    help: BTreeMap<String, String>,
    counters: BTreeMap<String, BTreeMap<String, Arc<AtomicU64>>>,
    gauges: BTreeMap<String, BTreeMap<String, Arc<AtomicU64>>>,
    spreads: BTreeMap<String, BTreeMap<String, Arc<Spread>>>,
}

/// One histogram.
#[derive(Debug, Default)]
struct Spread(Mutex<Spreading>);

#[derive(Debug, Clone, Copy, Default)]
struct Spreading {
    /// Values up to each bound that are above the one before.
    within: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl HistogramFn for Spread {
    fn record(&self, value: f64) {
        let mut spread = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = BOUNDS.iter().position(|bound| value <= *bound) {
            spread.within[bucket] += 1;
        }
        spread.count += 1;
        spread.sum += value;
    }
}

impl Recorder {
    /// In the text format of Prometheus.
    pub(crate) fn render(&self) -> String {
        let known = self.known();
        let mut text = String::new();
        let head = |text: &mut String, name: &str, kind: &str| {
            if let Some(help) = known.help.get(name) {
                let _ = writeln!(text, "# HELP {name} {help}");
            }
            let _ = writeln!(text, "# TYPE {name} {kind}");
        };
        for (name, series) in &known.counters {
            head(&mut text, name, "counter");
            for (labels, value) in series {
                let _ = writeln!(text, "{name}{{{labels}}} {}", value.load(Relaxed));
            }
        }
        for (name, series) in &known.gauges {
            head(&mut text, name, "gauge");
            for (labels, value) in series {
                let _ = writeln!(text, "{name}{{{labels}}} {}", f64::from_bits(value.load(Relaxed)));
            }
        }
        for (name, series) in &known.spreads {
            head(&mut text, name, "histogram");
            for (labels, spread) in series {
                let spread = *spread.0.lock().unwrap_or_else(PoisonError::into_inner);
                let mut below = 0;
                for (bound, within) in BOUNDS.iter().zip(spread.within) {
                    below += within;
                    let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
                }
                let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", spread.count);
                let _ = writeln!(text, "{name}_sum{{{labels}}} {}", spread.sum);
                let _ = writeln!(text, "{name}_count{{{labels}}} {}", spread.count);
            }
        }
        text
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self, name: &KeyName, help: &SharedString) {
        self.known().help.insert(name.as_str().to_owned(), help.to_string());
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, &help);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, &help);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, &help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let mut known = self.known();
        let series = known.counters.entry(key.name().to_owned()).or_default();
        Counter::from_arc(Arc::clone(series.entry(labels(key)).or_default()))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let mut known = self.known();
        let series = known.gauges.entry(key.name().to_owned()).or_default();
        Gauge::from_arc(Arc::clone(series.entry(labels(key)).or_default()))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let mut known = self.known();
        let series = known.spreads.entry(key.name().to_owned()).or_default();
        Histogram::from_arc(Arc::clone(series.entry(labels(key)).or_default()))
    }
}

/// As they stand between the braces.
fn labels(key: &Key) -> String {
    let mut text = String::new();
    for label in key.labels() {
        let value = label.value().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{}=\"{value}\"", label.key());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_written_as_prometheus_reads_them() {
        let recorder = Recorder::default();
        metrics::with_local_recorder(&recorder, || {
            metrics::describe_counter!("rows_total", "Rows.");
            metrics::counter!("rows_total", "node" => "a\"b").increment(2);
            metrics::counter!("rows_total", "node" => "a\"b").increment(3);
            metrics::gauge!("lag_seconds", "pipeline" => "p").set(1.5);
            for seconds in [0.02, 0.02, 400.0] {
                metrics::histogram!("epoch_seconds", "pipeline" => "p").record(seconds);
            }
        });
        let text = recorder.render();
        for line in [
            "# HELP rows_total Rows.",
            "# TYPE rows_total counter",
            "rows_total{node=\"a\\\"b\"} 5",
            "lag_seconds{pipeline=\"p\"} 1.5",
            "epoch_seconds_bucket{pipeline=\"p\",le=\"0.01\"} 0",
            "epoch_seconds_bucket{pipeline=\"p\",le=\"0.025\"} 2",
            "epoch_seconds_bucket{pipeline=\"p\",le=\"300\"} 2",
            "epoch_seconds_bucket{pipeline=\"p\",le=\"+Inf\"} 3",
            "epoch_seconds_sum{pipeline=\"p\"} 400.04",
            "epoch_seconds_count{pipeline=\"p\"} 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
