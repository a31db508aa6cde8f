//! What a signal does to a run, and a second run to the first.

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
