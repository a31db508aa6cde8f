//! What is accepted and announced before a row flows.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use orbit_etl_core::{Distribution, ErrorKind, StreamInfo, Transform};
use orbit_etl_transforms::Sql;
use orbit_etl_transforms::sql::Joins;

use crate::given::{batch, cx, stream};

fn rows() -> RecordBatch {
    batch(vec![
        ("a", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef),
        ("b", Arc::new(StringArray::from(vec!["x", "y"])) as ArrayRef),
    ])
}

fn input() -> StreamInfo {
    stream("src", &rows())
}

#[test]
fn the_config_has_one_key_and_refuses_others() {
    let sql: Sql = serde_json::from_str(r#"{"query": "SELECT a FROM input"}"#).unwrap();
    assert_eq!(sql.query(), "SELECT a FROM input");
    assert_eq!(serde_json::to_string(&sql).unwrap(), r#"{"query":"SELECT a FROM input"}"#);
    assert!(serde_json::from_str::<Sql>(r#"{"query": "SELECT 1", "querry": 1}"#).is_err());
    assert!(serde_json::from_str::<Sql>("{}").is_err());
    let merge: Sql = serde_json::from_str(r#"{"query": "SELECT 1", "joins": "sort_merge"}"#).unwrap();
    assert_eq!(serde_json::to_value(&merge).unwrap()["joins"], "sort_merge");
    assert_eq!(
        serde_json::to_string(&Sql::new("x").with_joins(Joins::SortMerge)).unwrap(),
        r#"{"query":"x","joins":"sort_merge"}"#
    );
}

#[test]
fn info_is_one_line() {
    let info = Sql::new("SELECT a\n  FROM input").info();
    assert_eq!((info.type_tag.as_str(), info.summary.as_str()), ("sql", "SELECT a FROM input"));
    assert!(Sql::new("é".repeat(500)).info().summary.chars().count() < 130);
    assert_eq!(Sql::new("SELECT 1").distribution(), Distribution::Any);
}

#[tokio::test]
async fn the_output_has_the_nodes_name_and_keeps_keys() {
    let keyed = input().with_keys(["a", "b"]);
    for (query, keys) in [
        ("SELECT b AS bb, a FROM input WHERE a > 1", vec!["a", "bb"]),
        ("SELECT * FROM (SELECT * FROM input) AS t", vec!["a", "b"]),
        ("SELECT a FROM input", vec![]),
        ("SELECT a + 1 AS a, b FROM input", vec![]),
        ("SELECT DISTINCT a, b FROM input", vec![]),
    ] {
        let outputs = Sql::new(query).outputs(&cx(), std::slice::from_ref(&keyed)).await.unwrap();
        assert_eq!(outputs.len(), 1);
        assert_eq!(outputs[0].name, "node");
        assert_eq!(outputs[0].keys, keys, "{query}");
        assert!(outputs[0].bounded);
    }
}

#[tokio::test]
async fn only_queries_are_accepted() {
    for query in [
        "INSERT INTO input VALUES (1, 'x')",
        "CREATE TABLE t AS SELECT * FROM input",
        "SELECT * INTO t FROM input",
        "DROP TABLE input",
        "DELETE FROM input",
        "COPY input TO '/tmp/x.csv'",
        "COPY (SELECT * FROM input) TO '/tmp/x.parquet'",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "SET datafusion.execution.batch_size = 1",
        "EXPLAIN SELECT * FROM input",
        "SHOW TABLES",
    ] {
        let error = Sql::new(query).outputs(&cx(), &[input()]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{query}: {error}");
    }
    for query in ["SELECT * FROM '/etc/passwd'", "SELECT * FROM information_schema.tables"] {
        let error = Sql::new(query).outputs(&cx(), &[input()]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{query}: {error}");
    }
}

#[tokio::test]
async fn bad_queries_are_config_errors_that_say_what_is_wrong() {
    for (query, word) in [
        ("SELEC a FROM input", "SELEC"),
        ("SELECT a, FROM WHERE b (", "parsed"),
        ("", "SQL"),
        ("SELECT a FROM input; SELECT b FROM input", ""),
        ("SELECT nosuch(a) FROM input", "nosuch"),
        ("SELECT b + DATE '2020-01-01' FROM input WHERE a", ""),
        ("SELECT sum(a), b FROM input", "b"),
    ] {
        let error = Sql::new(query).outputs(&cx(), &[input()]).await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Config | ErrorKind::Unsupported | ErrorKind::NotFound),
            "{query}: {error}"
        );
        assert!(error.to_string().contains(word), "{query}: {error}");
    }
}

#[tokio::test]
async fn an_input_that_is_not_read_is_a_mistake() {
    let error = Sql::new("SELECT 1 AS one").outputs(&cx(), &[input()]).await.unwrap_err();
    assert_eq!((error.kind(), error.context("input")), (ErrorKind::Config, Some("src")));
    let other = stream("other", &rows());
    let error = Sql::new("SELECT * FROM src").outputs(&cx(), &[input(), other]).await.unwrap_err();
    assert_eq!(error.context("input"), Some("other"));
}

#[tokio::test]
async fn what_needs_the_whole_input_blocks_and_is_refused_over_an_endless_one() {
    for query in [
        "SELECT count(*) AS n FROM input",
        "SELECT b, max(a) AS m FROM input GROUP BY b",
        "SELECT DISTINCT b FROM input",
        "SELECT a FROM input ORDER BY a",
        "SELECT a FROM input LIMIT 1",
        "SELECT a FROM (SELECT a FROM input LIMIT 1) AS t WHERE a > 1",
        "SELECT a, row_number() OVER (ORDER BY a) AS r FROM input",
        "SELECT a FROM input UNION ALL SELECT a + 1 FROM input",
        "SELECT l.a FROM input l JOIN src r ON l.a = r.a",
        "SELECT a FROM input WHERE a IN (SELECT a + 1 FROM input)",
        "SELECT a, (SELECT max(a) FROM input) AS m FROM input",
    ] {
        let sql = Sql::new(query);
        assert!(sql.blocking(&cx(), &[input()]).await.unwrap(), "{query}");
        sql.outputs(&cx(), &[input()]).await.unwrap();
        let endless = [input().with_bounded(false)];
        let error = sql.outputs(&cx(), &endless).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{query}");
        assert!(error.to_string().contains("window"), "{error}");
        assert!(sql.start(&cx(), &endless).await.is_err());
    }
}

#[tokio::test]
async fn an_error_says_where_it_stands_and_which_name_is_near() {
    let inputs = [StreamInfo::new("orders", rows().schema())];
    for (query, place, near) in [
        ("SELECT a\nFROM orders\nWHERE a >> > 1", "line 3, column 12", None),
        ("SELECT 'open FROM orders", "line 1, column 8", None),
        ("SELECT a,\n  aa FROM orders", "line 2, column 3", Some("`a`")),
        ("SELECT a FROM orders\nWHERE orders.bb = 'secret'", "line 2, column 7", Some("`b`")),
        ("SELECT a\n FROM ordres", "line 2, column 7", Some("`orders`")),
        ("SELECT uper(b) AS u FROM orders", "line 1, column 8", Some("`upper`")),
    ] {
        let error = Sql::new(query).outputs(&cx(), &inputs).await.unwrap_err();
        assert_eq!(error.context("at"), Some(place), "{query}: {error}");
        match near {
            Some(name) => assert!(error.to_string().contains(&format!("did you mean {name}?")), "{error}"),
            None => assert!(!error.to_string().contains("did you mean"), "{error}"),
        }
        assert!(!error.report().contains("secret"), "{}", error.report());
    }
    let error = Sql::new("SELECT elephant FROM orders").outputs(&cx(), &inputs).await.unwrap_err();
    assert!(!error.to_string().contains("did you mean"), "nothing is near: {error}");
}

#[tokio::test]
async fn only_an_order_that_was_asked_for_and_reaches_the_result_counts() {
    let two = [StreamInfo::new("l", rows().schema()), StreamInfo::new("r", rows().schema())];
    let join = "SELECT l.a, r.b FROM l JOIN r ON l.a = r.a";
    for (query, joins, ordered) in [
        (join.to_owned(), Joins::Hash, false),
        // Sorted as the join works, but nobody asked for it.
        (join.to_owned(), Joins::SortMerge, false),
        (format!("{join} ORDER BY l.a"), Joins::Hash, true),
        (format!("{join} ORDER BY r.b DESC LIMIT 10"), Joins::Hash, true),
        // By a column that doesn't come out.
        ("SELECT l.a FROM l JOIN r ON l.a = r.a ORDER BY r.b".to_owned(), Joins::Hash, true),
        ("(SELECT l.a FROM l, r ORDER BY r.b)".to_owned(), Joins::Hash, true),
        // The order of a subquery binds nobody.
        ("SELECT a + 1 AS c FROM (SELECT l.a FROM l, r ORDER BY l.a)".to_owned(), Joins::Hash, false),
        ("SELECT l.a, count(r.b) AS n FROM l, r GROUP BY l.a".to_owned(), Joins::Hash, false),
        ("SELECT l.a, sum(r.a) OVER (ORDER BY l.a) AS s FROM l, r".to_owned(), Joins::Hash, false),
        ("SELECT l.a FROM l, r LIMIT 10".to_owned(), Joins::Hash, false),
        ("SELECT a FROM l UNION ALL SELECT a FROM r".to_owned(), Joins::Hash, false),
    ] {
        let sql = Sql::new(query.as_str()).with_joins(joins);
        assert_eq!(sql.ordered(&cx(), &two).await.unwrap(), ordered, "{query}");
    }
}
