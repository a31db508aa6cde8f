//! Dead letters, sent again.

use serde_json::{Value, json};

use crate::desk::Desk;

/// The type of `id` and the ending of what is asked of `price` are filled in.
fn spec(id: &str, on_error: &str) -> String {
    format!(
        "
name: copy
source: {{type: files, path: in.csv, schema: {{id: {id}, price: float64}}}}
transforms: [{{type: sql, query: SELECT id FROM input WHERE price > 1}}]
sink: {{type: files, path: out, format: csv}}
checkpoint: {{path: state}}
on_error: {{action: dead_letter, sink: {{type: files, path: bad, format: {on_error}}}, max_share: 0.9}}
"
    )
}

/// Two records of five have an id that is no number.
fn desk(letters: &str) -> Desk {
    let desk = Desk::new();
    desk.write("in.csv", "price,id\n1.5,1\n2,x\n3,3\n0.5,007\n4,y\n");
    desk.write("copy.yaml", &spec("int64", letters));
    let report = desk.orbit(&["run", "copy.yaml", "--report", "json"]).json(0);
    assert_eq!((&report["rows_read"], &report["rows_rejected"]), (&json!(5), &json!(2)));
    desk
}

fn list(desk: &Desk) -> Vec<Value> {
    let listed = desk.orbit(&["dead-letters", "list", "copy.yaml", "--format", "json"]);
    listed.coded(0).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn letters_are_sent_again_once_when_the_spec_was_mended() {
    for letters in ["json", "csv", "parquet"] {
        let desk = desk(letters);
        desk.write("copy.yaml", &spec("text", letters));
        let done = desk.orbit(&["dead-letters", "replay", "copy.yaml"]);
        assert_eq!(done.coded(0), "source: 2 rows sent again, 2 written, 0 rejected again\n", "{letters}");
        assert_eq!(desk.lines("out"), ["1", "3", "x", "y"], "{letters}");
        // Nothing is sent twice, and the pipeline itself has nothing new.
        let report = desk.orbit(&["dead-letters", "replay", "copy.yaml", "--report", "json"]).json(0);
        assert_eq!((&report["rows_written"], &report["total"]["rows_written"]), (&json!(0), &json!(2)));
        let report = desk.orbit(&["run", "copy.yaml", "--report", "json"]).json(0);
        assert_eq!(report["rows_read"], 0);
        assert_eq!(desk.lines("out"), ["1", "3", "x", "y"], "{letters}");
    }
}

#[test]
fn what_is_rejected_again_is_a_letter_with_one_more_attempt() {
    let desk = desk("json");
    let replay = |more: &[&str]| {
        desk.orbit(&[&["dead-letters", "replay", "copy.yaml"], more].concat()).coded(0).to_owned()
    };
    assert_eq!(replay(&[]), "source: 2 rows sent again, 0 written, 2 rejected again\n");
    let attempts: Vec<_> = list(&desk).iter().map(|letter| letter["attempt"].as_i64().unwrap()).collect();
    assert_eq!(attempts, [1, 1, 2, 2]);
    assert!(list(&desk).iter().all(|l| l["place"].as_str().unwrap().contains("in.csv, byte ")));
    assert_eq!(replay(&["--node", "nobody"]), "no letters to send again\n");
    assert_eq!(replay(&["--max-attempts", "2"]), "source: 0 rows sent again, 0 written, 0 rejected again\n");
    desk.write("copy.yaml", &spec("text", "json"));
    // Those of the first attempt were sent; those of the second come now.
    assert_eq!(
        replay(&[]),
        "source: 0 rows sent again, 0 written, 0 rejected again\n\
         source: 2 rows sent again, 2 written, 0 rejected again\n"
    );
    assert_eq!(desk.lines("out"), ["1", "3", "x", "y"]);
}

#[test]
fn what_can_not_be_sent_again_is_refused_and_said() {
    let desk = desk("json");
    let text = spec("text", "json").replace("path: out,", "path: other, mode: overwrite,");
    desk.write("copy.yaml", &text);
    let done = desk.orbit(&["dead-letters", "replay", "copy.yaml"]);
    done.coded(2);
    assert!(done.err.contains("into a sink that overwrites"), "{}", done.err);
    let text = spec("text", "json")
        .replace("SELECT id FROM input WHERE price > 1", "SELECT count(*) AS n FROM input");
    desk.write("copy.yaml", &text);
    let done = desk.orbit(&["dead-letters", "replay", "copy.yaml"]);
    done.coded(2);
    assert!(done.err.contains("transforms[0]") && done.err.contains("needs other rows"), "{}", done.err);
    desk.write("copy.yaml", &spec("text", "json").replace("{path: state}", "{in_memory: true}"));
    let done = desk.orbit(&["dead-letters", "replay", "copy.yaml"]);
    done.coded(2);
    assert!(done.err.contains("`checkpoint.path`"), "{}", done.err);
    desk.write("copy.yaml", &spec("text", "json"));
    std::fs::remove_file(desk.path("in.csv")).unwrap();
    desk.write("in2.csv", "id,price\n");
    desk.write("copy.yaml", &spec("text", "json").replace("path: in.csv", "path: 'in*.csv'"));
    let done = desk.orbit(&["dead-letters", "replay", "copy.yaml"]);
    done.coded(1);
    assert!(done.err.contains("the file from which a rejected record came is gone"), "{}", done.err);
    // Nothing of it counts as sent.
    desk.write("in.csv", "price,id\n");
    desk.orbit(&["dead-letters", "replay", "copy.yaml"]).coded(0);
    assert_eq!(desk.lines("out"), ["1", "3", "x", "y"]);
}

#[test]
fn rows_that_a_transform_refused_go_to_it_again() {
    let desk = Desk::new();
    let spec = |cast: &str| {
        format!(
            "
name: parse
source: {{type: files, path: in.csv, schema: {{id: int64, price: text}}}}
transforms: [{{name: parse, type: sql, query: 'SELECT id, {cast}(price AS DOUBLE) AS price FROM input'}}]
sinks:
  one: {{type: files, inputs: parse, path: out, format: csv}}
  two: {{type: delta, inputs: parse, path: table}}
checkpoint: {{path: state}}
on_error: {{action: dead_letter, sink: {{type: files, path: bad, format: json}}}}
"
        )
    };
    desk.write("in.csv", "id,price\n1,1.5\n2,free\n3,3\n");
    desk.write("copy.yaml", &spec("CAST"));
    assert_eq!(desk.orbit(&["run", "copy.yaml", "--report", "json"]).json(0)["rows_rejected"], 1);
    desk.write("copy.yaml", &spec("TRY_CAST"));
    let done = desk.orbit(&["dead-letters", "replay", "copy.yaml"]);
    assert_eq!(done.coded(0), "parse: 1 rows sent again, 2 written, 0 rejected again\n");
    assert_eq!(desk.lines("out"), ["1,1.5", "2,", "3,3.0"]);
    let table = desk.orbit(&["discover", "delta", "path=table"]);
    table.coded(0);
    desk.write("more.csv", "id,price\n4,4\n");
    // The pipeline itself goes on as before.
    let args = ["run", "copy.yaml", "--report", "json", "--set", "source.path='*.csv'"];
    assert_eq!(desk.orbit(&args).json(0)["rows_read"], 1);
    assert_eq!(desk.lines("out"), ["1,1.5", "2,", "3,3.0", "4,4.0"]);
}
