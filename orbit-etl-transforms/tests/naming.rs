//! Names of tables and columns.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use orbit_etl_core::{Error, ErrorKind, StreamInfo, Transform};
use orbit_etl_transforms::Sql;

use crate::given::{batch, cx, only, stream, streamed};

fn one(names: &[&str]) -> RecordBatch {
    batch(names.iter().map(|n| (*n, Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef)).collect())
}

async fn names(query: &str, inputs: &[StreamInfo]) -> Result<Vec<String>, Error> {
    let outputs = Sql::new(query).outputs(&cx(), inputs).await?;
    Ok(outputs[0].schema.fields().iter().map(|f| f.name().clone()).collect())
}

#[tokio::test]
async fn a_single_input_has_two_names() {
    let rows = one(&["a"]);
    for query in ["SELECT a FROM input", "SELECT src.a FROM src", "SELECT a FROM INPUT AS i WHERE I.a > 0"] {
        let out = streamed(&Sql::new(query), std::slice::from_ref(&rows)).await;
        assert_eq!(only(&out).num_rows(), 2, "{query}");
    }
}

#[tokio::test]
async fn case_is_kept_and_forgiven_where_it_is_clear() {
    let inputs = [stream("src", &one(&["orderId", "l_orderkey", "x", "X", "two words"]))];
    for (query, expected) in [
        ("SELECT orderId FROM input", "orderId"),
        ("SELECT \"orderId\" FROM input", "orderId"),
        ("SELECT ORDERID FROM input WHERE orderid > 0", "orderId"),
        ("SELECT L_ORDERKEY FROM input", "l_orderkey"),
        ("SELECT x FROM input", "x"),
        ("SELECT X FROM input", "X"),
        ("SELECT src.ORDERID FROM src", "orderId"),
        ("SELECT orderId AS Total FROM input", "Total"),
        ("SELECT TOTAL FROM (SELECT x AS Total FROM input) AS t", "Total"),
        ("SELECT \"two words\" FROM input", "two words"),
    ] {
        assert_eq!(names(query, &inputs).await.unwrap(), [expected], "{query}");
    }
    let quoted = names("SELECT \"ORDERID\" FROM input", &inputs).await.unwrap_err();
    assert_eq!(quoted.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn several_inputs_go_by_their_names() {
    let orders = stream("cdc.orders", &one(&["id", "customer"]));
    let odd = stream("2024 customers", &one(&["id"]));
    let inputs = [orders, odd];
    for query in [
        "SELECT o.id, c.id AS c FROM cdc.orders AS o JOIN \"2024 customers\" AS c ON o.customer = c.id",
        "SELECT cdc.orders.id, c.id AS c FROM cdc.orders, \"2024 customers\" AS c",
        "SELECT \"cdc.orders\".id, c.id AS c FROM \"cdc.orders\", \"2024 customers\" AS c",
    ] {
        assert_eq!(names(query, &inputs).await.unwrap(), ["id", "c"], "{query}");
    }
    let error = names("SELECT * FROM input", &inputs).await.unwrap_err();
    assert_eq!(error.context("tables"), Some("cdc.orders, 2024 customers"));
}

#[tokio::test]
async fn an_unknown_table_lists_the_known_ones() {
    let error = names("SELECT * FROM nowhere", &[stream("src", &one(&["a"]))]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.context("table"), Some("nowhere"));
    assert_eq!(error.context("tables"), Some("src, input"));
    let error = names("SELECT * FROM a.b.c", &[stream("src", &one(&["a"]))]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_unknown_column_lists_the_known_ones() {
    let inputs = [stream("src", &one(&["a", "b"]))];
    for query in ["SELECT zz FROM input", "SELECT a FROM input WHERE zz > 1", "SELECT input.zz FROM input"] {
        let error = names(query, &inputs).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(error.context("column").unwrap().contains("zz"), "{error}");
        assert_eq!(error.context("columns"), Some("a, b"), "{query}: {error}");
    }
}

#[tokio::test]
async fn columns_of_the_same_name_are_refused() {
    let inputs = [stream("l", &one(&["id"])), stream("r", &one(&["id"]))];
    let error = names("SELECT l.id, r.id FROM l JOIN r ON l.id = r.id", &inputs).await.unwrap_err();
    assert_eq!((error.kind(), error.context("column")), (ErrorKind::Config, Some("id")));
    let error = names("SELECT id FROM l JOIN r ON l.id = r.id", &inputs).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("more than one"), "{error}");
}

#[tokio::test]
async fn inputs_of_the_same_name_are_refused() {
    let inputs = [stream("l", &one(&["id"])), stream("l", &one(&["id"]))];
    assert_eq!(names("SELECT id FROM l", &inputs).await.unwrap_err().kind(), ErrorKind::Config);
}
