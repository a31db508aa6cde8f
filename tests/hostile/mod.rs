//! Loads that would take all the memory of the machine if nothing bounded them, each in a process of
//! its own, whose highest resident memory is held to a limit and printed.

use std::process::Command;

mod floods;
mod shapes;

const CASE: &str = "ORBIT_HOSTILE_CASE";
/// A child that takes longer hangs.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(240);
const MIB: usize = 1 << 20;

/// The child's side: runs the case that it is named; as a test of its own it does nothing.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    std::thread::spawn(|| {
        std::thread::sleep(PATIENCE);
        eprintln!("the child hangs");
        std::process::abort();
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        match case.as_str() {
            "row" => shapes::a_row_of_a_hundred_megabytes().await,
            "row_without_room" => shapes::a_row_without_room().await,
            "columns" => shapes::ten_thousand_columns().await,
            "partitions" => shapes::ten_thousand_partitions_in_one_batch().await,
            "files" => shapes::ten_thousand_files().await,
            "join" => shapes::a_join_on_one_key().await,
            "stalled" => floods::a_sink_that_stalls().await,
            "rejects" => floods::nothing_but_rejects().await,
            other => panic!("no case is called {other}"),
        }
    });
}

/// Runs a case, which must pass its own assertions, below so many MiB of resident memory.
#[track_caller]
fn alone(case: &str, limit: u64) {
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["hostile::child", "--exact", "--nocapture", "--test-threads=1"])
        .env(CASE, case)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{case}: {}: {text}", ended.status);
    let peak = text.lines().find_map(|line| line.strip_prefix("peak ")).unwrap().parse::<u64>().unwrap();
    println!("{case}: {peak} MiB of at most {limit}");
    assert!(peak <= limit, "{case} took {peak} MiB, more than {limit}");
}

/// Says how much memory this process ever had, in MiB; the last act of a case.
fn tell_peak() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap();
    eprintln!("peak {}", kib >> 10);
}

#[test]
fn a_row_of_a_hundred_megabytes() {
    alone("row", 900);
}

#[test]
fn a_row_of_a_hundred_megabytes_without_room() {
    alone("row_without_room", 400);
}

#[test]
fn ten_thousand_columns() {
    alone("columns", 600);
}

#[test]
fn ten_thousand_partitions_in_one_batch() {
    alone("partitions", 600);
}

#[test]
fn ten_thousand_files() {
    alone("files", 300);
}

#[test]
fn a_join_on_one_key() {
    alone("join", 400);
}

#[test]
fn a_sink_that_stalls() {
    alone("stalled", 200);
}

#[test]
fn nothing_but_rejects() {
    alone("rejects", 300);
}
