//! What a signal does to a run, and a second run to the first.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::desk::{Desk, Going};

/// A table that is followed without an end.
fn desk() -> Desk {
    let desk = Desk::new();
    desk.write("a.csv", "id\n1\n2\n3\n");
    desk.write(
        "fill.yaml",
        "
name: fill
source: {type: files, path: '${FROM:-a.csv}', schema: {id: int64}}
sink: {type: delta, path: table}
checkpoint: {path: state}
",
    );
    desk.write(
        "follow.yaml",
        "
name: follow
source: {type: delta, path: table, follow: true, poll: 10ms}
sink: {type: files, path: out, format: csv}
checkpoint: {path: state, every: 20ms}
",
    );
    desk.orbit(&["run", "fill.yaml"]).coded(0);
    desk
}

fn follow(desk: &Desk, rows: usize) -> Going {
    desk.start(&["run", "follow.yaml", "--report", "json"])
        .until("the rows are out", || desk.lines("out").len() == rows)
}

/// The run that wrote the newest entry of the log.
fn newest_run(desk: &Desk) -> String {
    let entries = std::fs::read_dir(desk.path("state/follow")).unwrap().map(|entry| entry.unwrap().path());
    let newest = entries.filter(|path| path.extension().is_some_and(|e| e == "json")).max().unwrap();
    // It may have been collected since.
    let text = std::fs::read_to_string(newest).unwrap_or_default();
    let run = text.split("\"run\":\"").nth(1).unwrap_or_default();
    run.split('"').next().unwrap_or_default().to_owned()
}

#[test]
fn a_signal_commits_what_was_read_and_the_next_run_goes_on_there() {
    let desk = desk();
    let mut first = follow(&desk, 3);
    first.signal("-INT");
    let report = first.end().json(0);
    assert_eq!((&report["status"], &report["rows_written"]), (&json!("stopped"), &json!(3)));

    desk.write("b.csv", "id\n4\n5\n");
    desk.orbit(&["run", "fill.yaml", "--set", "source.path=b.csv"]).coded(0);
    let mut second = follow(&desk, 5);
    second.signal("-TERM");
    let report = second.end().json(0);
    assert_eq!((&report["rows_written"], &report["total"]["rows_written"]), (&json!(2), &json!(5)));
    assert_eq!(desk.lines("out"), ["1", "2", "3", "4", "5"]);
}

/// A store that takes connections and never answers, so that nothing can be committed.
#[test]
fn a_second_signal_stops_at_once() {
    let desk = desk();
    let store = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let sink = format!(
        "sink={{type: files, path: 's3://b/x', format: csv, storage: {{endpoint: 'http://{}', allow_http: 'true', \
         access_key_id: a, secret_access_key: b, region: r}}}}",
        store.local_addr().unwrap()
    );
    let mut run = desk.start(&["run", "fill.yaml", "--set", &sink, "--set", "name=hangs"]);
    let held = store.accept().unwrap();
    run.signal("-INT");
    run.line_with("a second signal stops at once");
    run.signal("-INT");
    let done = run.end();
    done.coded(1);
    assert!(done.err.contains("the run was told to stop"), "{}", done.err);
    drop(held);
}

#[test]
fn a_newer_run_takes_over_and_the_older_one_says_so() {
    let desk = desk();
    let older = follow(&desk, 3);
    let claimed = newest_run(&desk);
    let newer = desk
        .start(&["run", "follow.yaml", "--report", "json"])
        .until("it has claimed", || newest_run(&desk) != claimed);
    // The older one notices with its next epoch.
    desk.write("b.csv", "id\n4\n");
    desk.orbit(&["run", "fill.yaml", "--set", "source.path=b.csv"]).coded(0);
    let done = older.end();
    let report = done.json(3);
    assert_eq!((&report["status"], &report["error"]["kind"]), (&json!("failed"), &json!("fenced")));
    assert!(done.err.contains("a newer run of this pipeline has taken over"), "{}", done.err);
    let mut newer = newer.until("the new row is out", || desk.lines("out").len() == 4);
    newer.signal("-TERM");
    assert_eq!(newer.end().json(0)["rows_written"], 1);
}

fn get(address: &str, path: &str) -> String {
    let mut server = TcpStream::connect(address).unwrap();
    write!(server, "GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    server.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_run_is_watched_from_outside() {
    let desk = desk();
    let mut run = desk.start(&["--log-format", "json", "run", "follow.yaml", "--metrics", "127.0.0.1:0"]);
    let line = run.line_with("metrics are served");
    let log: serde_json::Value = serde_json::from_str(&line).unwrap();
    let address = log["address"].as_str().unwrap().to_owned();
    let written = "orbit_etl_rows_out_total{pipeline=\"follow\",node=\"sink\",role=\"sink\"} 3\n";
    let mut run = run.until("the rows are counted", || get(&address, "/metrics").contains(written));
    let text = get(&address, "/metrics");
    for metric in orbit_etl::observe::METRICS {
        // Some come only with event time, or with the end of a run.
        let later = ["orbit_etl_watermark_delay_seconds", "orbit_etl_runs_total"].contains(&metric.name);
        let has = text.lines().any(|line| line.starts_with(metric.name));
        assert!(has != later, "{} in\n{text}", metric.name);
        assert!(later || text.contains(&format!("# HELP {} {}\n", metric.name, metric.help)), "{text}");
    }
    assert!(text.contains("orbit_etl_epoch_seconds_bucket{pipeline=\"follow\",le=\"+Inf\"} "), "{text}");
    assert!(get(&address, "/metrics").contains("orbit_etl_running{pipeline=\"follow\"} 1\n"));
    assert!(get(&address, "/healthz").starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(get(&address, "/readyz").ends_with("ready\n"));
    assert!(get(&address, "/nothing").starts_with("HTTP/1.1 404 "));
    run.signal("-TERM");
    run.end().coded(0);
}

#[test]
fn log_lines_say_what_they_are_about() {
    let desk = desk();
    let copy = "{name: copy, source: {type: files, path: a.csv, schema: {id: int64}}, \
                sink: {type: files, path: copy, format: csv}, checkpoint: {in_memory: true}}";
    desk.write("copy.yaml", copy);
    let done = desk.orbit(&["--log-format", "json", "--log-level", "debug", "run", "copy.yaml"]);
    done.coded(0);
    let lines: Vec<serde_json::Value> =
        done.err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let spans = |message: &str| {
        let line =
            lines.iter().find(|line| line["message"] == message).unwrap_or_else(|| panic!("{}", done.err));
        line["spans"].as_array().unwrap().clone()
    };
    let committed = spans("the epoch is committed");
    assert_eq!((&committed[0]["name"], &committed[0]["pipeline"]), (&json!("run"), &json!("copy")));
    assert!(committed[1]["name"] == "epoch" && committed[1]["epoch"].is_u64(), "{committed:?}");
    let opened = spans("the split is opened");
    let named: Vec<_> = opened.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(named, ["run", "node", "split"]);
    assert!(opened[1]["node"].is_string() && opened[2]["split"].is_string(), "{opened:?}");
}

#[test]
fn a_schedule_waits_and_a_signal_ends_it() {
    let desk = desk();
    let done = desk.orbit(&["run", "fill.yaml", "--schedule"]);
    done.coded(2);
    assert!(
        done.err.contains("fill: has neither a `schedule` nor `triggers` nor an `after`"),
        "{}",
        done.err
    );
    let args = ["run", "fill.yaml", "--schedule", "--set", "schedule=0 0 29 2 *", "--report", "json"];
    let mut run = desk.start(&args);
    let line = run.line_with("the next run is due");
    assert!(line.contains("-02-29T00:00:00"), "{line}");
    run.signal("-TERM");
    assert_eq!(run.end().coded(0), "");
}

/// In epochs of a few milliseconds; the first run takes its time, so that it doesn't end before it is told to.
const LOAD: &str = "
name: load
source: {type: generate, rows: 400000, split_rows: 4000, columns: {id: {type: sequence}}}
sink: {type: files, path: out, format: csv}
checkpoint: {path: state, every: 10ms}
parallelism: 2
batch_rows: 200
";

const SLOWLY: &str = "source.rate_limit={rows: 20000}";

#[test]
fn a_load_that_is_interrupted_and_run_again_has_each_row_once() {
    for signals in [["-INT"].as_slice(), &["-INT", "-INT"], &["-KILL"]] {
        let desk = Desk::new();
        desk.write("load.yaml", LOAD);
        let mut run = desk
            .start(&["run", "load.yaml", "--report", "json", "--set", SLOWLY])
            .until("the first rows are out", || !desk.lines("out").is_empty());
        for signal in signals {
            run.signal(signal);
        }
        let done = run.end();
        if signals == ["-INT"] {
            assert_eq!(done.json(0)["status"], "stopped");
        }
        let before = desk.lines("out").len();
        assert!(before < 400_000, "{signals:?}: it was through before it was interrupted");
        let report = desk.orbit(&["run", "load.yaml", "--report", "json"]).json(0);
        assert_eq!(report["status"], "completed");
        assert_eq!(report["total"]["rows_written"], 400_000, "{signals:?}");
        let mut ids: Vec<u64> = desk.lines("out").iter().map(|line| line.parse().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(ids.len(), 400_000, "{signals:?}");
        assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1), "{signals:?}");
    }
}
