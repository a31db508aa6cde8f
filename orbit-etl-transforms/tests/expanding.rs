//! Queries in which a row gives any number of rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{Int64Type, Schema};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::prelude::SessionContext;
use orbit_etl_core::model::Role;
use orbit_etl_core::pipeline::Collected;
use orbit_etl_core::{Context, ContextBuilder, ErrorKind, Payload, Started, StreamInfo, Transform};
use orbit_etl_transforms::Sql;

use crate::given::{batch, cx, cx_with, shown, stream, streamed, streamed_over};

fn list(rows: Vec<Option<Vec<Option<i64>>>>) -> ArrayRef {
    Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(rows))
}

fn table() -> RecordBatch {
    batch(vec![
        ("id", Arc::new(Int64Array::from(vec![1, 2, 3, 4])) as ArrayRef),
        ("l", list(vec![Some(vec![Some(10), None, Some(30)]), None, Some(vec![]), Some(vec![Some(40)])])),
        ("m", list(vec![Some(vec![Some(7)]), Some(vec![Some(8), Some(9)]), None, None])),
        ("t", Arc::new(StringArray::from(vec!["1,2", "x", "", "5"])) as ArrayRef),
    ])
}

const QUERIES: &[&str] = &[
    "SELECT id, unnest(l) AS e FROM input",
    "SELECT id, unnest(l) AS e, unnest(m) AS f FROM input",
    "SELECT unnest(l) + id AS e FROM input WHERE id <> 4",
    "SELECT e, count FROM (SELECT unnest(l) AS e, id AS count FROM input) AS q WHERE e > 10",
    "SELECT id, unnest(string_to_array(t, ',')) AS p FROM input",
    "SELECT id, unnest(make_array(make_array(id, 0), make_array(id))) AS inner_list FROM input",
    "SELECT unnest(u) AS v FROM (SELECT unnest(make_array(l, m)) AS u FROM input) AS q",
    "SELECT id, unnest(struct(id, t)) FROM input",
];

#[tokio::test]
async fn agree_with_plain_datafusion_batch_by_batch() {
    let all = table();
    for query in QUERIES {
        let plain = SessionContext::new();
        plain.register_batch("input", all.clone()).unwrap();
        let expected = plain.sql(query).await.unwrap().collect().await.unwrap();
        let out = streamed(&Sql::new(*query), &[all.slice(0, 1), all.slice(1, 2), all.slice(3, 1)]).await;
        assert!(out.rejects.is_empty(), "{query}: {}", out.rejects[0].message);
        let got: Vec<RecordBatch> = out.batches.into_iter().map(|(_, b)| b).collect();
        let values = |all: &[RecordBatch]| {
            let text = shown(&[concat_batches(&all[0].schema(), all).unwrap()]);
            text.lines().skip(3).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(values(&got), values(&expected), "{query}");
        assert!(!Sql::new(*query).maps_rows(), "{query}");
    }
}

#[test]
fn only_queries_without_unnest_map_rows() {
    for (query, maps) in [
        ("SELECT a FROM input", true),
        ("SELECT 'unnest' AS unnest FROM input", true),
        ("SELECT UNNEST(a) FROM input", false),
        ("SELECT a FROM input, UNNEST(input.l) AS t(a)", false),
    ] {
        assert_eq!(Sql::new(query).maps_rows(), maps, "{query}");
    }
}

#[tokio::test]
async fn an_endless_input_may_be_unnested() {
    let endless = StreamInfo::new("src", table().schema()).with_bounded(false).with_keys(["id"]);
    let sql = Sql::new("SELECT id, unnest(l) AS e FROM input");
    let outputs = sql.outputs(&cx(), std::slice::from_ref(&endless)).await.unwrap();
    assert!(outputs[0].keys.is_empty(), "a key is no key of what its row gives");
    let out = streamed_over(&sql, &[endless], &[table()]).await;
    assert_eq!(out.batches.iter().map(|(_, b)| b.num_rows()).sum::<usize>(), 4);
}

#[tokio::test]
async fn roles_pass() {
    let plain = table();
    let mut fields: Vec<_> = plain.schema().fields().iter().map(|f| f.as_ref().clone()).collect();
    fields[0] = Role::Id.mark(fields[0].clone());
    let marked = RecordBatch::try_new(Arc::new(Schema::new(fields)), plain.columns().to_vec()).unwrap();
    let out = streamed(&Sql::new("SELECT id, unnest(l) AS e FROM input"), &[marked]).await;
    assert_eq!(Role::Id.find(&out.batches[0].1.schema()), Some(0));
}

#[tokio::test]
async fn rows_that_fail_are_rejected_with_all_that_they_give() {
    let rows = table();
    for (query, place) in [
        ("SELECT id, CAST(unnest(string_to_array(t, ',')) AS BIGINT) AS n FROM input", "`n`"),
        ("SELECT id, unnest(make_array(CAST(split_part(t, ',', 1) AS BIGINT))) AS n FROM input", "CAST"),
    ] {
        let out = streamed(&Sql::new(query), std::slice::from_ref(&rows)).await;
        let failed: Vec<i64> = out
            .rejects
            .iter()
            .map(|r| match &r.payload {
                Payload::Rows(row) => {
                    assert_eq!(row.num_rows(), 1);
                    assert_eq!(row.schema(), rows.schema(), "the row as it came");
                    row.column(0).as_primitive::<Int64Type>().value(0)
                }
                _ => panic!("not a row"),
            })
            .collect();
        assert!(failed.contains(&2) && !failed.contains(&1) && !failed.contains(&4), "{query}: {failed:?}");
        assert!(out.rejects[0].message.contains(place), "{}", out.rejects[0].message);
        assert!(out.batches.iter().map(|(_, b)| b.num_rows()).sum::<usize>() >= 2, "{query}");
    }
}

fn long(rows: usize, each: i64) -> RecordBatch {
    let lists = (0..rows).map(|_| Some((0..each).map(Some).collect::<Vec<_>>()));
    let text = "x".repeat(100);
    batch(vec![
        ("t", Arc::new(StringArray::from_iter_values((0..rows).map(|_| &text))) as ArrayRef),
        ("l", list(lists.collect())),
    ])
}

async fn expanded(cx: &Context, rows: &RecordBatch) -> orbit_etl_core::Result<Collected> {
    let sql = Sql::new("SELECT t, unnest(l) AS e FROM input");
    let Started::Streaming(mut operator) = sql.start(cx, &[stream("src", rows)]).await.unwrap() else {
        panic!("blocking")
    };
    let mut collected = Collected::default();
    operator.process(0, rows.clone(), &mut collected.output()).await.map(|()| collected)
}

#[tokio::test]
async fn the_rows_of_a_batch_come_in_batches_within_the_memory_limit() {
    // 800 MB of text if it were one batch.
    let rows = long(2_000, 1_000);
    let pool = Arc::new(GreedyMemoryPool::new(4 << 20));
    let cx = ContextBuilder::new("test").memory(pool.clone()).batch_rows(1_000).build().unwrap();
    let sql = Sql::new("SELECT t, unnest(l) AS e FROM input");
    let Started::Streaming(mut operator) = sql.start(&cx, &[stream("src", &rows)]).await.unwrap() else {
        panic!("blocking")
    };
    let mut seen = 0;
    for start in (0..2_000).step_by(100) {
        let mut collected = Collected::default();
        operator.process(0, rows.slice(start, 100), &mut collected.output()).await.unwrap();
        assert!(collected.batches.iter().all(|(_, b)| b.num_rows() <= 1_000));
        seen += collected.batches.iter().map(|(_, b)| b.num_rows()).sum::<usize>();
    }
    assert_eq!(seen, 2_000_000);
    assert_eq!(cx.memory().reserved(), 0);
}

#[tokio::test]
async fn one_row_that_gives_more_than_memory_holds_is_an_error() {
    let error = expanded(&cx_with(1 << 20, 1, 1_000), &long(1, 100_000)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Resources);
    assert!(error.to_string().contains("memory limit"), "{error}");
}
