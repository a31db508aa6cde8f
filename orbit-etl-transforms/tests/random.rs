//! Streaming queries give what DataFusion gives, over random rows in random batches.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int32Array, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use datafusion::prelude::SessionContext;
use orbit_etl_transforms::Sql;
use proptest::prelude::*;

use crate::given::{batch, streamed};

const QUERIES: &[&str] = &[
    "SELECT * FROM input",
    "SELECT i, s FROM input WHERE i > 0",
    "SELECT f, i + 1 AS n FROM input WHERE NOT b OR s IS NULL",
    "SELECT s || '-' || CAST(i AS VARCHAR) AS t, upper(s) AS u FROM input WHERE length(s) < 3",
    "SELECT CASE WHEN i % 2 = 0 THEN 'even' WHEN i IS NULL THEN NULL ELSE 'odd' END AS p FROM input",
    "SELECT coalesce(i, 0) AS i, nullif(s, 'a') AS s FROM input WHERE i BETWEEN -5 AND 5 AND b",
    "SELECT try_cast(s AS INT) AS n FROM input WHERE s IN ('a', 'ab', '7') OR i <> 3",
    "SELECT x + x AS y FROM (SELECT i * 2 AS x, b FROM input WHERE f IS NOT NULL) AS q WHERE b",
    "SELECT f / 0 AS inf, abs(i) AS a FROM input WHERE 10 / nullif(i, 0) > 1",
];

type Row = (Option<i32>, Option<f64>, Option<bool>, Option<String>);

fn row() -> impl Strategy<Value = Row> {
    (
        proptest::option::of(-20..20_i32),
        proptest::option::of(-2.0..2.0_f64),
        proptest::option::of(any::<bool>()),
        proptest::option::of("[ab7]{0,3}"),
    )
}

fn table(rows: &[Row]) -> RecordBatch {
    batch(vec![
        ("i", Arc::new(rows.iter().map(|r| r.0).collect::<Int32Array>()) as ArrayRef),
        ("f", Arc::new(rows.iter().map(|r| r.1).collect::<Float64Array>()) as ArrayRef),
        ("b", Arc::new(rows.iter().map(|r| r.2).collect::<BooleanArray>()) as ArrayRef),
        ("s", Arc::new(rows.iter().map(|r| r.3.clone()).collect::<StringArray>()) as ArrayRef),
    ])
}

async fn agree(batches: Vec<RecordBatch>) {
    let all = concat_batches(&batches[0].schema(), &batches).unwrap();
    for query in QUERIES {
        let plain = SessionContext::new();
        plain.register_batch("input", all.clone()).unwrap();
        let expected = plain.sql(query).await.unwrap().collect().await.unwrap();
        let out = streamed(&Sql::new(*query), &batches).await;
        assert!(out.rejects.is_empty(), "{query}: {}", out.rejects[0].message);
        let got: Vec<RecordBatch> = out.batches.into_iter().map(|(_, b)| b).collect();
        assert_eq!(lines(&got), lines(&expected), "{query}");
        let out_rows: usize = got.iter().map(RecordBatch::num_rows).sum();
        assert_eq!(out_rows as u64 + out.filtered, all.num_rows() as u64, "{query}");
    }
}

/// The rows as text; the head isn't printed for no batch at all.
fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let shown: Vec<RecordBatch> = batches.iter().filter(|b| b.num_rows() > 0).cloned().collect();
    if shown.is_empty() {
        return Vec::new();
    }
    crate::given::shown(&shown)
        .lines()
        .filter(|l| l.starts_with('|'))
        .map(|l| l.split('|').map(str::trim).collect::<Vec<_>>().join("|"))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streaming_agrees_with_plain_datafusion(
        batches in proptest::collection::vec(proptest::collection::vec(row(), 1..12), 1..4),
    ) {
        let batches = batches.iter().map(|rows| table(rows)).collect();
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(agree(batches));
    }
}
