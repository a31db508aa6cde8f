//! `run`: exit codes, the report, what is written.

use serde_json::json;

use crate::desk::Desk;

const COPY: &str = "
name: copy
source: {type: files, path: in.csv, schema: {id: int64, price: float64}}
transforms: [{type: sql, query: SELECT id FROM input WHERE price > 1}]
sink: {type: files, path: out, format: csv}
checkpoint: {path: state}
";

fn desk() -> Desk {
    let desk = Desk::new();
    desk.write("in.csv", "id,price\n1,0.5\n2,1.5\n3,2.5\n").write("copy.yaml", COPY);
    desk
}

#[test]
fn a_run_reports_its_figures_and_the_next_one_has_nothing_to_do() {
    let desk = desk();
    let report = desk.orbit(&["run", "copy.yaml", "--report", "json"]).json(0);
    assert_eq!(report["status"], "completed");
    assert_eq!(report["pipeline"], "copy");
    let figures = |key: &str| report[key].as_u64().unwrap();
    assert_eq!(figures("rows_read"), figures("rows_written") + figures("rows_filtered"));
    assert_eq!((figures("rows_written"), figures("rows_rejected")), (2, 0));
    assert!(figures("epochs") >= 1 && report["duration_s"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(report["delivery"], json!({ "sink": "exactly_once" }));
    assert_eq!(report["nodes"]["sink"]["rows_out"], 2);
    assert_eq!(report["nodes"]["source"]["role"], "source");
    assert_eq!(report["total"]["rows_written"], 2);
    assert_eq!(desk.lines("out"), ["2", "3"]);

    let again = desk.orbit(&["run", "copy.yaml", "--report", "json"]).json(0);
    assert_eq!((&again["rows_read"], &again["rows_written"]), (&json!(0), &json!(0)));
    assert_eq!(again["total"]["rows_written"], 2);
    assert_eq!(desk.lines("out"), ["2", "3"]);
    assert!(!desk.path(".orbit").exists());
}

#[test]
fn the_report_for_people_is_a_table() {
    let desk = desk();
    let done = desk.orbit(&["run", "copy.yaml"]);
    let out = done.coded(0);
    assert!(out.starts_with("copy completed in ") && out.contains("exactly once"), "{out}");
}

#[test]
fn values_come_from_the_command_line_and_from_a_file() {
    let desk = desk();
    desk.write("copy.yaml", &COPY.replace("out,", "'${OUT}',"));
    desk.write("vars.env", "# where to\n\nOUT=a=b\n");
    desk.orbit(&[
        "run",
        "copy.yaml",
        "--env-file",
        "vars.env",
        "--set",
        "transforms[0].query=SELECT * FROM input",
    ])
    .coded(0);
    assert_eq!(desk.lines("a=b"), ["1,0.5", "2,1.5", "3,2.5"]);
    let done = desk.orbit(&["run", "copy.yaml"]);
    done.coded(2);
    assert!(done.err.contains("copy.yaml:5:27: sink.path") && done.err.contains("OUT"), "{}", done.err);
    desk.write("vars.env", "OUT out\n");
    let done = desk.orbit(&["run", "copy.yaml", "--env-file", "vars.env"]);
    done.coded(2);
    assert_eq!(done.err, "error: vars.env:1: not a NAME=VALUE; a name is made of letters, digits and `_`\n");
}

#[test]
fn mistakes_in_all_specs_are_told_before_anything_runs() {
    let desk = desk();
    desk.write("bad.yaml", "name: bad\nsource: {type: fiels, path: x}\nsink: {type: files, path: out2}\n");
    let done = desk.orbit(&["run", "copy.yaml", "bad.yaml", "gone.yaml"]);
    done.coded(2);
    assert_eq!(
        done.err.lines().collect::<Vec<_>>(),
        [
            "error: bad.yaml:2:16: source.type: there is no source of type \"fiels\"; did you mean \"files\"?",
            "error: bad.yaml:3:1: sink: the key \"format\" is missing",
            "error: gone.yaml: the file can't be read: it isn't there",
        ]
    );
    assert!(!desk.path("out").exists() && !desk.path("state").exists());
}

#[test]
fn what_only_planning_finds_is_told_at_its_place() {
    let desk = desk();
    desk.write("copy.yaml", &COPY.replace("price > 1", "prise > 1"));
    let done = desk.orbit(&["run", "copy.yaml", "--report", "json"]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(
        done.err.contains("error: copy.yaml:4:14: transforms[0]: ") && done.err.contains("prise"),
        "{done:#?}"
    );
    let report = done.json(2);
    assert_eq!((&report["status"], &report["rows_read"]), (&json!("failed"), &json!(0)));
    assert!(report["error"]["message"].as_str().unwrap().contains("prise"), "{report}");
}

#[test]
fn a_malformed_record_fails_the_run_and_a_passed_ceiling_has_a_code_of_its_own() {
    let desk = desk();
    desk.write("in.csv", "id,price\n1,1.5\nx,2\ny,3\n4,5\n");
    let done = desk.orbit(&["run", "copy.yaml"]);
    done.coded(1);
    assert!(done.err.contains("in.csv") && done.err.contains("line 3"), "{}", done.err);
    for ceiling in ["max_rows: 1", "max_share: 0.25"] {
        desk.write("copy.yaml", &format!("{COPY}on_error: {{action: skip, {ceiling}}}\n"));
        let done = desk.orbit(&["run", "copy.yaml", "--report", "json"]);
        assert_eq!(done.json(4)["status"], "failed");
        assert!(done.err.contains("ceiling: "), "{}", done.err);
    }
    desk.write("copy.yaml", &format!("{COPY}on_error: {{action: skip, max_rows: 2}}\n"));
    let report = desk.orbit(&["run", "copy.yaml", "--report", "json"]).json(0);
    assert_eq!((&report["rows_read"], &report["rows_rejected"]), (&json!(4), &json!(2)));
    assert_eq!(desk.lines("out"), ["1", "4"]);
}

#[test]
fn a_folder_runs_as_the_graph_of_its_dependencies() {
    let desk = Desk::new();
    let copy = |name: &str, from: &str, after: &str| {
        format!(
            "name: {name}\nsource: {{type: files, path: {from}, format: csv}}\n\
             sink: {{type: files, path: {name}, format: csv}}\ncheckpoint: {{path: state}}\nafter: [{after}]\n"
        )
    };
    desk.write("in.csv", "id\n1\n2\n");
    desk.write("jobs/a.yaml", &copy("a", "../jobs/b", "b"));
    desk.write("jobs/b.yaml", &copy("b", "../in.csv", ""));
    desk.write("jobs/c.yaml", &copy("c", "../jobs/a", "a"));
    desk.write("jobs/notes.txt", "no spec\n");
    let done = desk.orbit(&["run", "jobs", "--report", "json"]);
    let order: Vec<String> = done
        .coded(0)
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["pipeline"].to_string())
        .collect();
    assert_eq!(order, ["\"b\"", "\"a\"", "\"c\""]);
    assert_eq!(desk.lines("jobs/c"), ["1", "2"]);

    desk.write("jobs/b.yaml", &copy("b", "../gone.csv", ""));
    let done = desk.orbit(&["run", "jobs", "--report", "json"]);
    let told: Vec<serde_json::Value> =
        done.coded(1).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let status: Vec<_> =
        told.iter().map(|r| (r["pipeline"].as_str().unwrap(), r["status"].as_str().unwrap())).collect();
    assert_eq!(status, [("b", "failed"), ("a", "skipped"), ("c", "skipped")]);
    assert!(done.err.contains("a: not run, as b did not succeed"), "{}", done.err);

    desk.write("jobs/b.yaml", &copy("b", "../in.csv", "c"));
    let done = desk.orbit(&["run", "jobs"]);
    done.coded(2);
    assert!(done.err.contains("wait for one another by `after`: a, b, c"), "{}", done.err);
}

#[test]
fn logs_are_json_where_that_is_asked_for() {
    let desk = desk();
    let done = desk.orbit(&["--log-format", "json", "run", "copy.yaml"]);
    done.coded(0);
    let first: serde_json::Value = serde_json::from_str(done.err.lines().next().unwrap()).unwrap();
    assert_eq!((&first["message"], &first["pipeline"]), (&json!("starting"), &json!("copy")));
}

#[test]
fn dead_letters_are_listed_and_shown() {
    let desk = desk();
    desk.write("in.csv", "id,price\n1,1.5\nx,2\n3,3\ny,4\n");
    let letters = |args: &[&str]| desk.orbit(&[&["dead-letters"], args].concat());
    let done = letters(&["list", "copy.yaml"]);
    done.coded(2);
    assert!(done.err.contains("copy: keeps no dead letters"), "{}", done.err);
    desk.write(
        "copy.yaml",
        &format!("{COPY}on_error: {{action: dead_letter, sink: {{type: files, path: bad, format: json}}}}\n"),
    );
    assert_eq!(letters(&["list", "copy.yaml"]).coded(0), "no rows\n");
    assert_eq!(desk.orbit(&["run", "copy.yaml", "--report", "json"]).json(0)["rows_rejected"], 2);
    let list = letters(&["list", "copy.yaml", "--format", "json"]);
    let list: Vec<serde_json::Value> =
        list.coded(0).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(list.len(), 2);
    assert!(list.iter().all(|l| l["node"] == "source" && l["kind"] == "data"), "{list:?}");
    let both: Vec<String> = ["1", "2"]
        .iter()
        .map(|n| letters(&["show", "copy.yaml", "--number", n]).coded(0).to_owned())
        .collect();
    assert!(both.iter().any(|l| l.contains("text      x,2")), "{both:?}");
    letters(&["show", "copy.yaml", "--number", "3"]).coded(2);
    assert!(letters(&["list", "copy.yaml", "--limit", "1"]).coded(0).ends_with("1 more\n"));
}
