//! Queries that see their whole inputs.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use futures::stream::StreamExt;
use orbit_etl_core::model::Role;
use orbit_etl_core::pipeline::Collected;
use orbit_etl_core::{ContextBuilder, Error, ErrorKind, Started, StreamInfo, Transform};
use orbit_etl_transforms::Sql;
use orbit_etl_transforms::sql::Joins;

use crate::given::{batch, blocked, cx, cx_with, rows, shown, stream};

fn orders() -> RecordBatch {
    batch(vec![
        ("id", Arc::new(Int64Array::from(vec![1, 2, 3, 4])) as ArrayRef),
        ("customer", Arc::new(Int64Array::from(vec![Some(10), Some(20), Some(10), None])) as ArrayRef),
    ])
}

fn customers() -> RecordBatch {
    batch(vec![
        ("id", Arc::new(Int64Array::from(vec![10, 20, 30])) as ArrayRef),
        ("name", Arc::new(StringArray::from(vec!["ann", "bob", "cy"])) as ArrayRef),
    ])
}

/// Batches of 1,000 rows with scattered keys and a text that fills memory.
fn many(total: i64) -> Vec<RecordBatch> {
    let make = |from: i64| {
        let keys = (from..from + 1_000).map(|i| (i * 7_919) % total);
        let texts = (from..from + 1_000).map(|i| format!("{:0>100}", i * 31));
        batch(vec![
            ("k", Arc::new(Int64Array::from_iter_values(keys)) as ArrayRef),
            ("t", Arc::new(StringArray::from_iter_values(texts)) as ArrayRef),
        ])
    };
    (0..total / 1_000).map(|i| make(i * 1_000)).collect()
}

async fn both(query: &str) -> String {
    let inputs = vec![
        (stream("orders", &orders()), vec![orders().slice(0, 2), orders().slice(2, 2)]),
        (stream("customers", &customers()), vec![customers()]),
    ];
    shown(&blocked(&Sql::new(query), &cx(), inputs).await.unwrap())
}

#[tokio::test]
async fn joins() {
    let out =
        both("SELECT o.id, c.name FROM orders o LEFT JOIN customers c ON o.customer = c.id ORDER BY o.id")
            .await;
    let expected = "+----+------+\n| id | name |\n+----+------+\n| 1  | ann  |\n| 2  | bob  |\n| 3  | ann  |\n| 4  |      |\n+----+------+";
    assert_eq!(out, expected);
}

#[tokio::test]
async fn aggregates_and_windows() {
    let out = both(
        "SELECT c.name, count(o.id) AS n, rank() OVER (ORDER BY count(o.id) DESC) AS r \
         FROM customers c LEFT JOIN orders o ON o.customer = c.id GROUP BY c.name ORDER BY r",
    )
    .await;
    let expected = "+------+---+---+\n| name | n | r |\n+------+---+---+\n| ann  | 2 | 1 |\n| bob  | 1 | 2 |\n| cy   | 0 | 3 |\n+------+---+---+";
    assert_eq!(out, expected);
}

#[tokio::test]
async fn unions_limits_and_unnest() {
    let out = both("SELECT id FROM orders UNION ALL SELECT id FROM customers ORDER BY id DESC LIMIT 2").await;
    assert_eq!(out, "+----+\n| id |\n+----+\n| 30 |\n| 20 |\n+----+");
    let rows = orders();
    let sql = Sql::new("SELECT unnest(make_array(id, -id)) AS u FROM input ORDER BY u");
    let out = blocked(&sql, &cx(), vec![(stream("src", &rows), vec![rows.clone()])]).await.unwrap();
    assert_eq!(crate::given::rows(&out), 8);
}

#[tokio::test]
async fn empty_inputs_give_an_empty_result_or_a_zero() {
    let rows = orders();
    let none = || vec![(stream("src", &rows), vec![])];
    let out = blocked(&Sql::new("SELECT count(*) AS n FROM input"), &cx(), none()).await.unwrap();
    assert_eq!(out[0].column(0).as_primitive::<Int64Type>().value(0), 0);
    let out = blocked(&Sql::new("SELECT id FROM input ORDER BY id"), &cx(), none()).await.unwrap();
    assert_eq!(crate::given::rows(&out), 0);
}

#[tokio::test]
async fn an_input_can_be_read_more_than_once() {
    let rows = orders();
    let sql = Sql::new(
        "SELECT l.id, r.id AS other, (SELECT count(*) FROM input) AS n FROM input l JOIN src r \
         ON l.customer = r.customer AND l.id < r.id",
    );
    let parts = vec![rows.slice(0, 1), rows.slice(1, 3)];
    let out = blocked(&sql, &cx(), vec![(stream("src", &rows), parts)]).await.unwrap();
    assert_eq!(
        shown(&out),
        "+----+-------+---+\n| id | other | n |\n+----+-------+---+\n| 1  | 3     | 4 |\n+----+-------+---+"
    );
}

#[tokio::test]
async fn an_input_that_is_read_twice_is_spilled() {
    let parts = many(100_000);
    let info = stream("src", &parts[0]);
    let sql = Sql::new(
        "SELECT count(*) AS n, sum(k) AS s FROM (SELECT k FROM input UNION ALL SELECT k FROM input WHERE t > '0') AS u",
    );
    let cx = cx_with(12 << 20, 2, 8_192);
    let out = blocked(&sql, &cx, vec![(info, parts)]).await.unwrap();
    assert_eq!(out[0].column(0).as_primitive::<Int64Type>().value(0), 200_000);
    assert_eq!(out[0].column(1).as_primitive::<Int64Type>().value(0), 2 * (99_999 * 100_000 / 2));
    assert_eq!(cx.memory().reserved(), 0, "all memory is given back");
    assert_eq!(files_under(cx.spill_dir()), 0, "spilled files are gone");
}

#[tokio::test]
async fn recursion_reads_an_input_again_and_again() {
    let edges = batch(vec![
        ("a", Arc::new(Int64Array::from(vec![1, 2, 3, 9])) as ArrayRef),
        ("b", Arc::new(Int64Array::from(vec![2, 3, 4, 9])) as ArrayRef),
    ]);
    let sql = Sql::new(
        "WITH RECURSIVE reach AS (SELECT 1 AS n, 0 AS depth UNION ALL \
         SELECT e.b AS n, r.depth + 1 AS depth FROM reach r JOIN edges e ON e.a = r.n WHERE r.depth < 10) \
         SELECT n FROM reach ORDER BY n",
    );
    let out = blocked(&sql, &cx(), vec![(stream("edges", &edges), vec![edges.clone()])]).await.unwrap();
    assert_eq!(out[0].column(0).as_primitive::<Int64Type>().values(), &[1, 2, 3, 4]);
}

#[tokio::test]
async fn sorting_spills_where_memory_is_small() {
    let parts = many(200_000);
    let info = stream("src", &parts[0]);
    let cx = cx_with(20 << 20, 2, 8_192);
    let out =
        blocked(&Sql::new("SELECT k, t FROM input ORDER BY k"), &cx, vec![(info, parts)]).await.unwrap();
    assert_eq!(rows(&out), 200_000);
    let keys = out.iter().flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec());
    assert!(keys.eq(0..200_000), "sorted, and every row is there once");
    assert!(out.iter().all(|b| b.num_rows() <= 8_192));
    assert_eq!(cx.memory().reserved(), 0);
    assert_eq!(files_under(cx.spill_dir()), 0);
}

#[tokio::test]
async fn grouping_spills_where_memory_is_small() {
    let parts = many(100_000);
    let info = stream("src", &parts[0]);
    let sql = Sql::new("SELECT t, count(*) AS n FROM input GROUP BY t");
    let out = blocked(&sql, &cx_with(12 << 20, 2, 8_192), vec![(info, parts)]).await.unwrap();
    assert_eq!(rows(&out), 100_000);
}

const JOIN: &str = "SELECT count(*) AS n FROM l JOIN r ON l.k = r.k WHERE l.t < r.t || 'x'";

fn sides() -> Vec<(StreamInfo, Vec<RecordBatch>)> {
    let parts = many(100_000);
    vec![(stream("l", &parts[0]), parts.clone()), (stream("r", &parts[0]), parts)]
}

#[tokio::test]
async fn a_hash_join_that_does_not_fit_says_what_to_do() {
    let cx = cx_with(10 << 20, 2, 1_024);
    let error = blocked(&Sql::new(JOIN), &cx, sides()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Resources);
    assert!(error.to_string().contains("memory limit"), "{error}");
    assert!(error.to_string().contains("sort_merge"), "{error}");
    assert!(error.context("operator").unwrap().contains("HashJoin"), "{error}");
    assert!(error.to_string().contains("limit of 11 MiB"), "{error}");
}

#[tokio::test]
async fn a_join_may_sort_and_merge_in_little_memory() {
    for lanes in [1, 2, 4] {
        let cx = cx_with(10 << 20, lanes, 1_024);
        let out = blocked(&Sql::new(JOIN).with_joins(Joins::SortMerge), &cx, sides()).await.unwrap();
        assert_eq!(out[0].column(0).as_primitive::<Int64Type>().value(0), 100_000, "{lanes}");
        assert_eq!(cx.memory().reserved(), 0);
        assert_eq!(files_under(cx.spill_dir()), 0);
    }
}

#[tokio::test]
async fn a_merging_join_that_does_not_fit_says_what_it_needs() {
    let cx = cx_with(1 << 20, 2, 1_024);
    let error = blocked(&Sql::new(JOIN).with_joins(Joins::SortMerge), &cx, sides()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Resources);
    assert!(error.to_string().contains(" MiB"), "{error}");
}

#[tokio::test]
async fn an_expression_that_fails_is_a_data_error_without_the_value() {
    let rows = batch(vec![("t", Arc::new(StringArray::from(vec!["1", "secret"])) as ArrayRef)]);
    let sql = Sql::new("SELECT sum(CAST(t AS BIGINT)) AS s FROM input");
    let error = blocked(&sql, &cx(), vec![(stream("src", &rows), vec![rows.clone()])]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(!error.report().contains("secret"), "{}", error.report());
    assert!(error.to_string().contains("try_cast"), "{error}");
}

#[tokio::test]
async fn an_inputs_error_comes_out_as_it_went_in() {
    let rows = orders();
    for query in [
        "SELECT id FROM input ORDER BY id",
        "SELECT l.id FROM input l JOIN input r ON l.id = r.id",
        "SELECT customer, count(*) AS n FROM input GROUP BY customer",
    ] {
        let infos = [stream("src", &rows)];
        let Started::Blocking(operator) = Sql::new(query).start(&cx(), &infos).await.unwrap() else {
            panic!("streaming");
        };
        let failing = futures::stream::iter(vec![
            Ok(rows.clone()),
            Err(Error::unavailable("the server went away").with("host", "db1")),
        ]);
        let mut out = Collected::default();
        let error = operator.run(vec![failing.boxed()], &mut out.output()).await.unwrap_err();
        assert_eq!((error.kind(), error.context("host")), (ErrorKind::Unavailable, Some("db1")), "{query}");
        assert!(error.is_retryable());
    }
}

#[tokio::test]
async fn stops_when_the_run_does() {
    let rows = orders();
    let token = cx().cancellation().clone();
    let cx = ContextBuilder::new("test").cancellation(token.clone()).build().unwrap();
    let infos = [stream("src", &rows)];
    let sql = Sql::new("SELECT id FROM input ORDER BY id");
    let Started::Blocking(operator) = sql.start(&cx, &infos).await.unwrap() else { panic!("streaming") };
    let mut out = Collected::default();
    let mut out = out.output();
    let mut running = operator.run(vec![futures::stream::pending().boxed()], &mut out);
    assert!(futures::poll!(&mut running).is_pending());
    token.cancel();
    assert_eq!(running.await.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[tokio::test]
async fn a_limit_leaves_the_rest_unread() {
    let rows = orders();
    let infos = [stream("src", &rows)];
    let sql = Sql::new("SELECT id FROM input LIMIT 2");
    let Started::Blocking(operator) = sql.start(&cx(), &infos).await.unwrap() else { panic!("streaming") };
    let batch = rows.clone();
    let endless = futures::stream::repeat_with(move || Ok(batch.clone())).boxed();
    let mut out = Collected::default();
    operator.run(vec![endless], &mut out.output()).await.unwrap();
    assert_eq!(out.batches.iter().map(|(_, b)| b.num_rows()).sum::<usize>(), 2);
}

#[tokio::test]
async fn roles_and_types_pass_through_joins_and_sorts() {
    let plain = customers();
    let fields: Vec<_> = plain.schema().fields().iter().map(|f| Role::Id.mark(f.as_ref().clone())).collect();
    let schema = Arc::new(arrow::datatypes::Schema::new(fields));
    let marked = RecordBatch::try_new(schema, plain.columns().to_vec()).unwrap();
    let inputs = vec![
        (stream("orders", &orders()), vec![orders()]),
        (StreamInfo::new("customers", marked.schema()), vec![marked]),
    ];
    let sql =
        Sql::new("SELECT c.id, o.id AS o FROM customers c JOIN orders o ON o.customer = c.id ORDER BY 2");
    let out = blocked(&sql, &cx(), inputs).await.unwrap();
    assert_eq!(Role::Id.find(&out[0].schema()), Some(0));
    assert_eq!(out[0].num_rows(), 3);
}

fn files_under(dir: &std::path::Path) -> usize {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|e| {
            let path = e.unwrap().path();
            if path.is_dir() { files_under(&path) } else { 1 }
        })
        .sum()
}
