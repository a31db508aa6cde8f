//! Every mistake that people make, with the exact words in which they are told.
//!
//! The table is `mistakes.txt`: a title, the file as it was written (and those that it includes),
//! and what is said. `ORBIT_BLESS=1 cargo test` writes what is said now.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use orbit_etl_core::spec::{Loader, SpecError};

use super::types::registry;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/spec/mistakes.txt");

struct Case {
    title: String,
    /// Names and contents; the first one is the spec.
    files: Vec<(String, String)>,
    told: String,
}

#[test]
fn every_mistake_is_told_in_these_words() {
    let cases = read(&std::fs::read_to_string(TABLE).unwrap());
    let titles: BTreeSet<_> = cases.iter().map(|c| &c.title).collect();
    assert_eq!(titles.len(), cases.len(), "two cases have one title");
    let mut now = String::new();
    let mut wrong = Vec::new();
    for case in &cases {
        let told = tell(case);
        if told != case.told {
            wrong.push(format!("{}:\n  expected {}\n  told     {told}", case.title, case.told));
        }
        let _ = writeln!(now, "=== {}", case.title);
        for (name, text) in &case.files {
            let _ = write!(now, "+++ {name}\n{text}");
        }
        let _ = write!(now, "---\n{told}\n\n");
    }
    if std::env::var_os("ORBIT_BLESS").is_some() {
        std::fs::write(TABLE, now).unwrap();
    } else {
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

fn read(table: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for block in table.split("=== ").skip(1) {
        let (files, told) = block.split_once("\n---\n").unwrap();
        let (title, files) = files.split_once("\n+++ ").unwrap();
        let files = files
            .split("\n+++ ")
            .map(|file| {
                let (name, text) = file.split_once('\n').unwrap();
                (name.to_owned(), format!("{text}\n"))
            })
            .collect();
        cases.push(Case { title: title.to_owned(), files, told: told.trim_end().to_owned() });
    }
    cases
}

/// What is said of the files, without the name of the directory they lie in.
fn tell(case: &Case) -> String {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in &case.files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let told = match build(&dir.path().join(&case.files[0].0)) {
        Ok(()) => "nothing".to_owned(),
        Err(error) => error.to_string(),
    };
    told.replace(&format!("{}/", dir.path().display()), "")
}

fn build(path: &Path) -> Result<(), SpecError> {
    let variables = |name: &str| match name {
        "PASSWORD" => Some("hunter2".to_owned()),
        "LANES" => Some("many".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    };
    Loader::new().variables(variables).load(path)?.build(&registry()).map(drop)
}
