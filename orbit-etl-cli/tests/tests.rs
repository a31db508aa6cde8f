//! `test` and `generate`.

use crate::desk::Desk;

fn desk() -> Desk {
    let desk = Desk::new();
    desk.write(
        "join.yaml",
        "
name: join
sources:
  orders: {type: files, path: 's3://nowhere/${BUCKET}/orders.csv', format: csv}
  names: {type: delta, path: nowhere}
transforms:
  large: {type: sql, inputs: orders, query: SELECT * FROM input WHERE price > 1}
  named: {type: sql, inputs: [large, names], query: 'SELECT id, name FROM large JOIN names USING (id) ORDER BY id'}
sinks:
  lake: {type: files, inputs: named, path: lake, format: parquet}
",
    );
    desk.write("names.csv", "id,name\n2,b\n3,c\n");
    desk
}

const TESTS: &str = "
pipeline: ../join.yaml
variables: {BUCKET: b}
tests:
  - name: small orders are left out
    inputs:
      orders: {rows: [{id: 1, price: 0.5}, {id: 2, price: 1.5}, {id: 3, price: 2}]}
      names: {file: ../names.csv}
    expect:
      large: {rows: [{id: 3, price: 2.0}, {id: 2, price: 1.5}]}
      lake: {rows: [{id: 2, name: b}, {id: 3, name: c}], ordered: true}
  - name: nothing comes of nothing
    inputs:
      orders: {rows: [], schema: {id: int64, price: float64}}
      names: {file: ../names.csv}
    expect:
      named: {rows: []}
";

#[test]
fn a_pipeline_is_tested_without_its_sources_and_sinks() {
    let desk = desk();
    desk.write("tests/join.yaml", TESTS);
    let done = desk.orbit(&["test", "tests/join.yaml"]);
    assert_eq!(
        done.coded(0),
        "ok      small orders are left out\nok      nothing comes of nothing\n2 passed, 0 failed\n"
    );
    assert!(!desk.path("lake").exists());
}

#[test]
fn what_differs_is_shown() {
    let desk = desk();
    desk.write("tests/join.yaml", &TESTS.replace("{id: 3, name: c}]", "{id: 3, name: d}]"));
    let done = desk.orbit(&["test", "tests/join.yaml"]);
    assert_eq!(
        done.coded(1).lines().take(4).collect::<Vec<_>>(),
        [
            "FAILED  small orders are left out",
            "        lake: 2 rows expected, 2 found:",
            "        - {\"id\":3,\"name\":\"d\"}",
            "        + {\"id\":3,\"name\":\"c\"}",
        ]
    );
    assert!(done.err.contains("one test failed"), "{}", done.err);
}

#[test]
fn mistakes_in_a_test_are_told_at_their_place() {
    let desk = desk();
    for (was, is, told) in [
        (
            "expect:\n      named",
            "expct:\n      named",
            "tests/join.yaml:16:5: tests[1].expct: unknown key; did you mean \"expect\"?",
        ),
        ("      orders: {rows: [],", "      order: {rows: [],", "no source order"),
        (
            "      names: {file: ../names.csv}\n    expect:\n      named",
            "    expect:\n      named",
            "the source names has no rows",
        ),
        ("      named: {rows", "      nobody: {rows", "there is no node of that name"),
    ] {
        assert!(TESTS.contains(was), "{was}");
        desk.write("tests/join.yaml", &TESTS.replace(was, is));
        let done = desk.orbit(&["test", "tests/join.yaml"]);
        done.coded(2);
        assert!(done.err.contains(told), "{told} in {}", done.err);
    }
}

#[test]
fn made_up_rows_are_the_same_for_the_same_seed() {
    let desk = desk();
    let generate = |folder: &str, seed: &str| {
        desk.orbit(&[
            "generate",
            folder,
            "--rows",
            "50",
            "--seed",
            seed,
            "--column",
            "id=sequence",
            "--column",
            "city={type: choice, values: [Bonn, Ulm], nulls: 0.2}",
        ])
    };
    assert_eq!(generate("a", "1").coded(0), "a: 50 rows\n");
    generate("b", "1").coded(0);
    generate("c", "2").coded(0);
    assert_eq!(desk.lines("a").len(), 50);
    assert_eq!(desk.lines("a"), desk.lines("b"));
    assert_ne!(desk.lines("a"), desk.lines("c"));
    generate("a", "1").coded(1);
    let done = desk.orbit(&["generate", "d", "--column", "id=sequense"]);
    done.coded(2);
    assert!(done.err.starts_with("error: --column id.type: expected one of sequence, "), "{}", done.err);
    let done = desk.orbit(&["generate", "d", "--column", "id=sequence", "--format", "xls"]);
    done.coded(2);
    assert!(done.err.starts_with("error: --format: expected one of csv, "), "{}", done.err);
}
