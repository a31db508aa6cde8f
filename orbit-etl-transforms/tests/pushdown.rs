//! What a query asks its sources for.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use datafusion::logical_expr::{Expr, col, lit};
use orbit_etl_core::pipeline::Collected;
use orbit_etl_core::{ScanRequest, Started, StreamInfo, Transform};
use orbit_etl_transforms::Sql;

use crate::given::{batch, blocked, cx, rows, stream};

fn wide() -> RecordBatch {
    let numbers = |k: i64| Arc::new(Int64Array::from_iter_values((0..10).map(|i| i * k))) as ArrayRef;
    let text = Arc::new(StringArray::from_iter_values((0..10).map(|i| format!("t{i}")))) as ArrayRef;
    batch(vec![("t", text), ("a", numbers(1)), ("b", numbers(2)), ("c", numbers(3))])
}

async fn wish(query: &str) -> ScanRequest {
    Sql::new(query).scan(&cx(), &[stream("src", &wide())], 0).await.unwrap()
}

fn names(request: &ScanRequest) -> Vec<&str> {
    request.projection.as_ref().unwrap().iter().map(String::as_str).collect()
}

#[tokio::test]
async fn columns_and_conditions_are_wished_for() {
    let request = wish("SELECT c FROM input WHERE a > 5 AND t = 'x'").await;
    assert_eq!(names(&request), ["t", "a", "c"]);
    assert_eq!(request.filters, [col("a").gt(lit(5_i64)), col("t").eq(lit("x"))]);
    assert_eq!(request.batch_rows, cx().batch_rows());

    let request = wish("SELECT * FROM input AS i WHERE i.b IS NOT NULL").await;
    assert_eq!(request.projection, None);
    assert_eq!(request.filters, [col("b").is_not_null()]);
}

#[tokio::test]
async fn conditions_pass_renamed_columns() {
    let request = wish("SELECT x FROM (SELECT a AS x, b, c FROM input) AS s WHERE x < 3").await;
    assert_eq!(request.filters, [col("a").lt(lit(3_i64))]);
}

#[tokio::test]
async fn chance_is_not_pushed_down() {
    assert!(wish("SELECT a FROM input WHERE random() < 0.5").await.filters.is_empty());
}

#[tokio::test]
async fn a_column_that_is_only_named_stays_so_that_the_query_can_be_understood() {
    // b isn't needed, but without it the inner query wouldn't make sense.
    let request = wish("SELECT a FROM (SELECT a, b FROM input) AS s").await;
    assert_eq!(names(&request), ["a", "b"]);
    // A star means whatever is there.
    let request = wish("SELECT a FROM (SELECT * FROM input) AS s").await;
    assert_eq!(names(&request), ["a"]);
}

#[tokio::test]
async fn rows_alone_need_one_cheap_column() {
    assert_eq!(names(&wish("SELECT count(*) AS n FROM input").await), ["a"]);
}

#[tokio::test]
async fn several_scans_need_what_any_of_them_needs() {
    let request = wish("SELECT a FROM input WHERE a < 2 UNION ALL SELECT b FROM input WHERE b > 8").await;
    assert_eq!(names(&request), ["a", "b"]);
    assert_eq!(request.filters, [col("a").lt(lit(2_i64)).or(col("b").gt(lit(8_i64)))]);
    let request = wish("SELECT a FROM input WHERE a < 2 UNION ALL SELECT b FROM input").await;
    assert_eq!(request.filters, Vec::<Expr>::new());
}

#[tokio::test]
async fn each_input_gets_its_own_wish() {
    let inputs = [stream("l", &wide()), stream("r", &wide())];
    let sql = Sql::new("SELECT l.b, r.c FROM l JOIN r ON l.a = r.a WHERE l.b > 3 AND r.t = 'x'");
    let left = sql.scan(&cx(), &inputs, 0).await.unwrap();
    let right = sql.scan(&cx(), &inputs, 1).await.unwrap();
    assert_eq!((names(&left), names(&right)), (vec!["a", "b"], vec!["t", "a", "c"]));
    assert!(left.filters.contains(&col("b").gt(lit(3_i64))), "{:?}", left.filters);
    assert!(right.filters.contains(&col("t").eq(lit("x"))), "{:?}", right.filters);
    assert_eq!(right.stream.0, 1);
}

/// Every query gives the same over the narrowed input as over the whole one.
#[tokio::test]
async fn queries_start_over_what_they_wished_for() {
    let whole = stream("src", &wide());
    for query in [
        "SELECT c FROM input WHERE a > 5 AND t <> 'x'",
        "SELECT a FROM (SELECT a, b FROM input) AS s",
        "SELECT a FROM (SELECT * FROM input) AS s",
        "SELECT 1 AS one FROM input",
        "SELECT count(b) AS n FROM input",
        "SELECT count(*) AS n FROM input WHERE t > 't3'",
        "SELECT l.a FROM (SELECT a, t FROM input) AS l NATURAL JOIN (SELECT t, c FROM input) AS r",
    ] {
        let sql = Sql::new(query);
        let request = sql.scan(&cx(), std::slice::from_ref(&whole), 0).await.unwrap();
        let kept: Vec<usize> = match &request.projection {
            Some(names) => names.iter().map(|n| whole.schema.index_of(n).unwrap()).collect(),
            None => (0..4).collect(),
        };
        let narrowed = wide().project(&kept).unwrap();
        let info = StreamInfo { schema: narrowed.schema(), ..whole.clone() };
        let (all, some) = (run(&sql, &whole, &wide()).await, run(&sql, &info, &narrowed).await);
        assert_eq!(all, some, "{query}");
    }
}

async fn run(sql: &Sql, input: &StreamInfo, batch: &RecordBatch) -> (usize, Vec<String>) {
    let inputs = [input.clone()];
    let out = match sql.start(&cx(), &inputs).await.unwrap() {
        Started::Streaming(mut operator) => {
            let mut collected = Collected::default();
            operator.process(0, batch.clone(), &mut collected.output()).await.unwrap();
            collected.batches.into_iter().map(|(_, b)| b).collect()
        }
        Started::Blocking(_) => {
            blocked(sql, &cx(), vec![(input.clone(), vec![batch.clone()])]).await.unwrap()
        }
    };
    let mut lines: Vec<String> = crate::given::shown(&out).lines().map(str::to_owned).collect();
    lines.sort();
    (rows(&out), lines)
}
