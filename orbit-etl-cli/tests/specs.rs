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
