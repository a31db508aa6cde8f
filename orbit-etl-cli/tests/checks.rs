//! What looks at a spec without running it.

use serde_json::json;

use crate::desk::Desk;

const JOIN: &str = "
name: join
sources:
  orders: {type: files, path: orders.csv}
  names: {type: files, path: names.json}
transforms:
  large: {type: sql, inputs: orders, query: SELECT * FROM input WHERE price > 1}
  named: {type: sql, inputs: [large, names], query: 'SELECT id, name FROM large JOIN names USING (id)'}
sinks:
  lake: {type: files, inputs: named, path: lake, format: parquet}
  rest: {type: files, inputs: names, path: rest, format: json}
";

fn desk() -> Desk {
    let desk = Desk::new();
    desk.write("orders.csv", "id,price\n1,0.5\n2,1.5\n3,2.5\n");
    desk.write("names.json", "{\"id\": 2, \"name\": \"b\"}\n{\"id\": 3, \"name\": \"c\"}\n")
        .write("join.yaml", JOIN);
    desk
}

#[test]
fn validate_samples_local_files_and_leaves_everything_else_alone() {
    let desk = desk();
    assert_eq!(desk.orbit(&["validate", "join.yaml"]).coded(0), "join: 6 nodes, no mistake found\n");
    desk.write("join.yaml", &JOIN.replace("SELECT id, name", "SELECT id, nmae"));
    let done = desk.orbit(&["validate", "join.yaml"]);
    done.coded(2);
    assert!(
        done.err.starts_with("error: join.yaml:8:3: transforms.named") && done.err.contains("nmae"),
        "{}",
        done.err
    );
    // Nothing listens there, and nobody asks.
    desk.write(
        "join.yaml",
        &JOIN.replace(
            "path: orders.csv",
            "path: 's3://nowhere/orders.csv', storage: {endpoint: 'http://127.0.0.1:1'}",
        ),
    );
    assert_eq!(
        desk.orbit(&["validate", "join.yaml"]).coded(0),
        "join: orders (csv s3://nowhere/orders.csv): unchecked, as it isn't on this machine; --connect asks it\n\
         join: 6 nodes, no mistake found in what is written; columns and types were not checked\n"
    );
    assert!(!desk.path("lake").exists() && !desk.path(".orbit").exists());
}

#[test]
fn validate_connects_where_that_is_asked_for() {
    let desk = desk();
    let done = desk.orbit(&["validate", "join.yaml", "--connect"]);
    assert!(done.coded(0).contains("join: orders: reached in "), "{}", done.out);
    std::fs::remove_file(desk.path("names.json")).unwrap();
    let done = desk.orbit(&["validate", "join.yaml", "--connect"]);
    done.coded(1);
    assert!(done.err.starts_with("error: join.yaml:5:3: sources.names"), "{}", done.err);
}

#[test]
fn explain_tells_what_each_sink_is_promised() {
    let desk = desk();
    let done = desk.orbit(&["explain", "join.yaml"]);
    let out = done.coded(0);
    assert!(out.contains("sink lake") && out.contains("delivery: exactly once"), "{out}");
    assert!(out.contains("commits: once, at the end: named needs its whole input"), "{out}");
}

#[test]
fn a_graph_has_every_node_and_every_edge() {
    let desk = desk();
    let mermaid = desk.orbit(&["graph", "join.yaml"]);
    let mermaid = mermaid.coded(0);
    assert!(mermaid.starts_with("flowchart LR\n"), "{mermaid}");
    for line in [
        "n_orders([\"orders<br/>files csv orders.csv\"])",
        "n_large --> n_named",
        "n_names --> n_rest",
        "n_named --> n_lake",
    ] {
        assert!(mermaid.contains(line), "{line} in\n{mermaid}");
    }
    let dot = desk.orbit(&["graph", "join.yaml", "--format", "dot"]);
    assert!(dot.coded(0).contains("\"large\" -> \"named\";"), "{}", dot.out);
    let svg = desk.orbit(&["graph", "join.yaml", "--format", "svg"]);
    let svg = svg.coded(0);
    assert_eq!((svg.matches("<rect").count(), svg.matches("<path").count()), (6, 5), "{svg}");
}

#[test]
fn preview_shows_rows_of_any_node_and_writes_nothing() {
    let desk = desk();
    let rows = |node: &str, limit: &str| {
        let done =
            desk.orbit(&["preview", "join.yaml", "--node", node, "--limit", limit, "--format", "json"]);
        done.coded(0).to_owned()
    };
    assert_eq!(rows("orders", "1"), "{\"id\":1,\"price\":0.5}\n");
    assert_eq!(rows("large", "20"), "{\"id\":2,\"price\":1.5}\n{\"id\":3,\"price\":2.5}\n");
    let mut named: Vec<_> = rows("lake", "20").lines().map(str::to_owned).collect();
    named.sort();
    assert_eq!(named, ["{\"id\":2,\"name\":\"b\"}", "{\"id\":3,\"name\":\"c\"}"]);
    assert_eq!(rows("lake", "0"), "");
    assert!(!desk.path("lake").exists() && !desk.path("rest").exists() && !desk.path(".orbit").exists());
    let done = desk.orbit(&["preview", "join.yaml", "--node", "nobody"]);
    done.coded(2);
    assert_eq!(
        done.err,
        "error: there is no node nobody; the nodes are: orders, names, large, named, lake, rest\n"
    );
}

#[test]
fn discover_prints_streams_with_their_columns() {
    let desk = desk();
    let done = desk.orbit(&["discover", "files", "path=orders.csv", "sample_rows=2"]);
    assert_eq!(done.coded(0), "files\n  id     Int64\n  price  Float64\n");
    let streams =
        desk.orbit(&["discover", "files", "path=names.json", "name=people", "--format", "json"]).json(0);
    assert_eq!(streams[0]["name"], "people");
    assert_eq!(streams[0]["columns"][1], json!({ "name": "name", "type": "Utf8", "nullable": true }));
    let done = desk.orbit(&["discover", "files", "paht=orders.csv"]);
    done.coded(2);
    assert!(done.err.contains("did you mean \"path\"?"), "{}", done.err);
}

#[test]
fn a_new_spec_is_right_but_for_what_is_to_be_filled_in() {
    let desk = desk();
    desk.orbit(&["init", "new.yaml", "--sink", "delta", "--name", "fresh"]).coded(0);
    let text = std::fs::read_to_string(desk.path("new.yaml")).unwrap();
    assert!(text.contains("name: fresh\n") && text.contains("  type: delta\n  path: <path>"), "{text}");
    desk.write("new.yaml", &text.replacen("<path>", "orders.csv", 1).replacen("<path>", "lake", 1));
    desk.orbit(&["validate", "new.yaml"]).coded(0);
    // Nothing of the user's is overwritten.
    desk.orbit(&["init", "new.yaml"]).coded(1);
    let done = desk.orbit(&["init", "--sink", "iceberg"]);
    let text = done.coded(0);
    assert!(
        text.contains("  catalog: {type: rest, uri: <uri>}") && text.contains("  table: <table>"),
        "{text}"
    );
    let done = desk.orbit(&["init", "--source", "postgrse"]);
    done.coded(2);
    assert!(done.err.contains("there is no source of type postgrse"), "{}", done.err);
}

#[test]
fn what_there_is_can_be_listed() {
    let desk = desk();
    let types = desk.orbit(&["connectors", "--format", "json"]).json(0);
    assert_eq!(types["transforms"], json!(["sql"]));
    for connector in ["delta", "iceberg"] {
        assert!(types["sources"].as_array().unwrap().contains(&json!(connector)), "{types}");
    }
    let schema = desk.orbit(&["schema"]).json(0);
    assert!(schema["$defs"]["Sink.files"].is_object());
    assert!(desk.orbit(&["completions", "bash"]).coded(0).contains("complete -F"));
    assert!(desk.orbit(&["man", "run"]).coded(0).contains("Exit codes"));
    assert!(desk.orbit(&["--help"]).coded(0).contains("validate"));
    desk.orbit(&["nonsense"]).coded(2);
}
