//! The specs under `examples/specs/`.

use std::fs;
use std::path::Path;

use crate::desk::Desk;

/// The examples, copied: they write beside themselves.
fn desk() -> Desk {
    let desk = Desk::new();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/specs"), &desk.path(""));
    desk
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { fs::copy(&path, target).map(drop).unwrap() }
    }
}

#[test]
fn every_example_is_right() {
    let desk = desk();
    let done = desk.orbit(&["validate", "."]);
    let told = done.coded(0);
    assert!(!told.contains("unchecked") && told.contains("orders: "), "{told}");
    // The table of the second one is made by the first.
    desk.orbit(&["validate", "nightly/load.yaml"]).coded(0);
}

#[test]
fn a_graph_with_a_join_two_sinks_and_dead_letters_runs() {
    let desk = desk();
    let report = desk.orbit(&["run", "orders.yaml", "--report", "json"]).json(0);
    assert_eq!(
        (report["rows_read"].as_u64(), report["rows_written"].as_u64(), report["rows_rejected"].as_u64()),
        (Some(7), Some(3), Some(1))
    );
    assert_eq!(desk.lines("lake/quiet"), ["3,Edsger"]);
}

#[test]
fn files_become_a_delta_table_once() {
    let desk = desk();
    let report = desk.orbit(&["run", "delta.yaml", "--report", "json"]).json(0);
    let loaded = report["rows_written"].as_u64().unwrap();
    assert!(loaded > 0 && desk.path("lake/orders/_delta_log").is_dir(), "{report}");
    assert_eq!(report["delivery"]["sink"], "exactly_once");
    let again = desk.orbit(&["run", "delta.yaml", "--report", "json"]).json(0);
    assert_eq!(
        (again["rows_written"].as_u64(), again["total"]["rows_written"].as_u64()),
        (Some(0), Some(loaded))
    );
}

#[test]
fn a_scheduled_load_reads_what_is_new_and_its_letters_are_sent_again() {
    let desk = desk();
    let run = || desk.orbit(&["run", "incremental.yaml", "--report", "json"]).json(0);
    let first = run();
    assert_eq!((first["rows_written"].as_u64(), first["rows_rejected"].as_u64()), (Some(2), Some(1)));
    desk.write("data/orders-3.csv", "id,customer,price,ordered\n5,1,500,2026-11-03\n");
    let second = run();
    assert_eq!((second["rows_read"].as_u64(), second["rows_written"].as_u64()), (Some(1), Some(1)));
    let again = desk.orbit(&["dead-letters", "replay", "incremental.yaml", "--report", "json"]).json(0);
    assert_eq!((again["rows_read"].as_u64(), again["rows_rejected"].as_u64()), (Some(1), Some(1)));
    // The clock has it.
    let mut scheduled = desk.start(&["run", "incremental.yaml", "--schedule"]);
    let line = scheduled.line_with("the next run is due");
    assert!(line.contains(":30:00"), "{line}");
    scheduled.signal("-TERM");
    scheduled.end().coded(0);
}

/// `ORBIT_BLESS=1 cargo test` writes it anew.
#[test]
fn the_reference_in_the_documentation_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference.md");
    let desk = Desk::new();
    let current = desk.orbit(&["schema", "--format", "markdown"]);
    let current = current.coded(0);
    if std::env::var_os("ORBIT_BLESS").is_some() {
        fs::write(&path, current).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap();
    assert!(committed == current, "docs/reference.md is old: run this test with ORBIT_BLESS=1");
}

#[test]
fn a_folder_runs_in_the_order_of_its_dependencies() {
    let desk = desk();
    desk.orbit(&["run", "nightly"]).coded(0);
    let shops = desk.lines("nightly/lake/summary");
    let names: Vec<_> = shops.iter().map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!(names, ["Berlin", "Hamburg", "Köln"]);
    let sales: u64 = shops.iter().map(|line| line.split(',').nth(1).unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(sales, 1000);
    desk.orbit(&["run", "nightly"]).coded(0);
    assert_eq!(desk.lines("nightly/lake/summary"), shops);
}

#[test]
fn the_tests_of_the_examples_pass() {
    let desk = desk();
    assert!(desk.orbit(&["test", "tests/orders.yaml"]).coded(0).ends_with("1 passed, 0 failed\n"));
}
