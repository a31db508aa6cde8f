//! `state`: shown, set back, reset, saved and brought back.

use serde_json::json;

use crate::desk::Desk;

fn desk() -> Desk {
    let desk = Desk::new();
    desk.write("in/a.csv", "id\n1\n2\n3\n").write(
        "copy.yaml",
        "
name: copy
source: {type: files, path: in, format: csv, schema: {id: int64}}
sink: {type: files, path: out, format: csv}
checkpoint: {path: state}
",
    );
    desk
}

#[test]
fn before_the_first_run_there_is_none_and_looking_makes_none() {
    let desk = desk();
    for args in [["state", "show", "copy.yaml"], ["state", "reset", "copy.yaml"]] {
        let done = desk.orbit(&args);
        done.coded(1);
        assert!(done.err.contains("has no state"), "{}", done.err);
    }
    desk.orbit(&["state", "export", "copy.yaml", "backup"]).coded(1);
    desk.orbit(&["state", "import", "copy.yaml", "backup"]).coded(1);
    assert!(!desk.path("state").exists() && !desk.path("backup").exists());
}

#[test]
fn a_reset_lets_the_next_run_read_everything_again() {
    let desk = desk();
    desk.orbit(&["run", "copy.yaml"]).coded(0);
    let state = desk.orbit(&["state", "show", "copy.yaml", "--format", "json"]).json(0);
    assert_eq!((&state["generation"], &state["complete"]), (&json!(1), &json!(true)));
    assert_eq!(state["totals"]["sink"]["rows_out"], 3);
    assert!(
        desk.orbit(&["state", "show", "copy.yaml"])
            .coded(0)
            .contains("source source, ended: looks for splits after")
    );
    assert_eq!(
        desk.orbit(&["state", "reset", "copy.yaml"]).coded(0),
        "copy: the next run reads everything, as generation 2\n"
    );
    assert_eq!(desk.orbit(&["run", "copy.yaml", "--report", "json"]).json(0)["rows_written"], 3);
    assert_eq!(desk.lines("out"), ["1", "1", "2", "2", "3", "3"]);
    assert_eq!(desk.orbit(&["run", "copy.yaml", "--report", "json"]).json(0)["rows_written"], 0);
}

#[test]
fn a_reset_leaves_an_overwritten_table_until_the_next_run_is_through() {
    let desk = desk();
    let overwrite = ["--set", "sink.mode=overwrite"];
    let with = |args: &[&'static str]| [args, &overwrite].concat();
    desk.orbit(&with(&["run", "copy.yaml"])).coded(0);
    desk.orbit(&with(&["state", "reset", "copy.yaml"])).coded(0);
    assert_eq!(desk.lines("out"), ["1", "2", "3"]);
    desk.write("in/b.csv", "id\n4\n");
    desk.orbit(&with(&["run", "copy.yaml"])).coded(0);
    assert_eq!(desk.lines("out"), ["1", "2", "3", "4"]);
}

#[test]
fn a_position_is_checked_by_the_source_before_it_is_set() {
    let desk = desk();
    desk.orbit(&["run", "copy.yaml"]).coded(0);
    let before = desk.orbit(&["state", "show", "copy.yaml"]).coded(0).to_owned();
    let set = |more: &[&str]| desk.orbit(&[&["state", "set", "copy.yaml"], more].concat());
    set(&["--source", "source", "--position", "not JSON"]).coded(2);
    let done = set(&["--source", "nobody", "--position", "1"]);
    done.coded(2);
    assert!(done.err.contains("there is no source of that name"), "{}", done.err);
    let done = set(&["--source", "source", "--position", "{\"no\": \"such\"}"]);
    assert_ne!(done.code, 0, "{done:?}");
    let done = set(&["--source", "source", "--split", "in/zzz.csv", "--position", "{}"]);
    done.coded(1);
    assert!(done.err.contains("the state knows no such split"), "{}", done.err);
    assert_eq!(desk.orbit(&["state", "show", "copy.yaml"]).coded(0), before);

    // Setting what is there already changes nothing of what the next run reads.
    let state = desk.orbit(&["state", "show", "copy.yaml", "--format", "json"]).json(0);
    let position = state["sources"]["source"]["enumerator"].to_string();
    set(&["--source", "source", "--position", &position]).coded(0);
    desk.write("in/b.csv", "id\n4\n");
    assert_eq!(desk.orbit(&["run", "copy.yaml", "--report", "json"]).json(0)["rows_written"], 1);
    assert_eq!(desk.lines("out"), ["1", "2", "3", "4"]);
}

#[test]
fn a_saved_state_is_gone_on_from() {
    let desk = desk();
    desk.orbit(&["run", "copy.yaml"]).coded(0);
    desk.orbit(&["state", "export", "copy.yaml", "backup"]).coded(0);
    let done = desk.orbit(&["state", "import", "copy.yaml", "backup"]);
    done.coded(1);
    assert!(done.err.contains("there is a state already"), "{}", done.err);
    std::fs::remove_dir_all(desk.path("state")).unwrap();
    let other = ["--set", "name=other"];
    let done = desk.orbit(&[&["state", "import", "copy.yaml", "backup"][..], &other].concat());
    done.coded(2);
    assert!(done.err.contains("is the state of the pipeline copy"), "{}", done.err);
    desk.orbit(&["state", "import", "copy.yaml", "backup"]).coded(0);
    desk.write("in/b.csv", "id\n4\n");
    assert_eq!(desk.orbit(&["run", "copy.yaml", "--report", "json"]).json(0)["rows_written"], 1);
    assert_eq!(desk.lines("out"), ["1", "2", "3", "4"]);
}
