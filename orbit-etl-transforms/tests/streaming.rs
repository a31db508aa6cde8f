//! Queries that map rows one by one.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray,
    StringViewArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use orbit_etl_core::model::{ROLE, Role};
use orbit_etl_core::pipeline::Collected;
use orbit_etl_core::{ErrorKind, Payload, Started, StreamInfo, Transform};
use orbit_etl_transforms::Sql;

use crate::given::{batch, cx, only, shown, stream, streamed, streamed_over};

fn numbers() -> RecordBatch {
    batch(vec![
        ("id", Arc::new(Int64Array::from(vec![Some(1), Some(2), None, Some(4)])) as ArrayRef),
        ("name", Arc::new(StringArray::from(vec![Some("a"), None, Some("c"), Some("d")])) as ArrayRef),
    ])
}

#[tokio::test]
async fn projects_and_filters() {
    let sql = Sql::new("SELECT name, id * 10 AS tenfold FROM input WHERE id > 1");
    let out = streamed(&sql, &[numbers()]).await;
    assert_eq!(
        shown(&[only(&out).clone()]),
        "+------+---------+\n| name | tenfold |\n+------+---------+\n|      | 20      |\n| d    | 40      |\n+------+---------+"
    );
    assert_eq!(out.filtered, 2);
    assert!(out.rejects.is_empty());
}

#[tokio::test]
async fn passes_everything_or_nothing() {
    let out = streamed(&Sql::new("SELECT * FROM input"), &[numbers(), numbers()]).await;
    assert_eq!(out.batches.len(), 2);
    assert_eq!(out.batches[1].1, numbers());
    assert_eq!(out.filtered, 0);

    for none in ["SELECT * FROM input WHERE id > 100", "SELECT id FROM input WHERE false"] {
        let out = streamed(&Sql::new(none), &[numbers(), numbers()]).await;
        assert!(out.batches.is_empty());
        assert_eq!(out.filtered, 8, "{none}");
    }
}

#[tokio::test]
async fn goes_through_subqueries_and_common_table_expressions() {
    let sql = Sql::new(
        "WITH big AS (SELECT id, upper(name) AS n FROM input WHERE id >= 2) \
         SELECT b.n, b.id + 1 AS next FROM (SELECT * FROM big) AS b WHERE b.id < 4 OR b.n = 'D'",
    );
    let out = streamed(&sql, &[numbers()]).await;
    assert_eq!(only(&out).num_rows(), 2);
    assert_eq!(out.filtered, 2);
}

#[tokio::test]
async fn constants_need_no_column() {
    let out = streamed(&Sql::new("SELECT 1 AS one, 'x' AS x FROM input"), &[numbers()]).await;
    let made = only(&out);
    assert_eq!(made.num_rows(), 4);
    assert_eq!(made.schema().field(1).data_type(), &DataType::Utf8);
}

#[tokio::test]
async fn an_empty_batch_gives_nothing() {
    let out = streamed(&Sql::new("SELECT id FROM input WHERE id > 1"), &[numbers().slice(0, 0)]).await;
    assert!(out.batches.is_empty());
    assert_eq!(out.filtered, 0);
}

#[tokio::test]
async fn types_nullability_and_roles_are_kept() {
    let decimals = Decimal128Array::from(vec![Some(123_456), None]).with_precision_and_scale(20, 4).unwrap();
    let times = TimestampMicrosecondArray::from(vec![1, 2]).with_timezone("Europe/Berlin");
    let fields = vec![
        Role::Id.mark(Field::new("id", DataType::Int32, false)),
        Field::new("amount", decimals.data_type().clone(), true),
        Role::Time.mark(Field::new("at", times.data_type().clone(), false)),
        Field::new("note", DataType::Utf8View, true),
    ];
    let rows = RecordBatch::try_new(
        Arc::new(Schema::new(fields)),
        vec![
            Arc::new(Int32Array::from(vec![1, 2])),
            Arc::new(decimals),
            Arc::new(times),
            Arc::new(StringViewArray::from(vec![Some("a text that is longer than twelve bytes"), None])),
        ],
    )
    .unwrap();
    let out = streamed(
        &Sql::new("SELECT at AS seen, id, note, amount, amount * 2 AS double FROM input WHERE id = 1"),
        std::slice::from_ref(&rows),
    )
    .await;
    let made = only(&out);
    let schema = made.schema();
    assert_eq!(schema.field(0).data_type(), rows.schema().field(2).data_type());
    assert_eq!(schema.field(0).metadata().get(ROLE).map(String::as_str), Some("time"));
    assert_eq!(Role::Id.find(&schema), Some(1));
    assert!(!schema.field(1).is_nullable());
    assert_eq!(schema.field(2).data_type(), &DataType::Utf8View);
    assert_eq!(schema.field(3).data_type(), &DataType::Decimal128(20, 4));
    assert_eq!(made.column(3).to_data(), rows.column(1).slice(0, 1).to_data());
    assert!(matches!(schema.field(4).data_type(), DataType::Decimal128(_, 4)));
}

#[tokio::test]
async fn casts_to_text_give_plain_text() {
    let out = streamed(&Sql::new("SELECT CAST(id AS VARCHAR) AS t FROM input"), &[numbers()]).await;
    assert_eq!(only(&out).schema().field(0).data_type(), &DataType::Utf8);
}

fn texts() -> RecordBatch {
    let text = |i: usize| if i % 10 == 3 { format!("secret{i}") } else { i.to_string() };
    batch(vec![
        ("n", Arc::new(Int64Array::from_iter_values(0..100)) as ArrayRef),
        ("text", Arc::new(StringArray::from_iter_values((0..100).map(text))) as ArrayRef),
    ])
}

#[tokio::test]
async fn rows_that_fail_are_rejected_one_by_one() {
    let sql = Sql::new("SELECT n, CAST(text AS BIGINT) AS number FROM input WHERE n % 2 = 1");
    let rows = texts();
    let out = streamed(&sql, std::slice::from_ref(&rows)).await;
    // 3, 13, 23 … are odd: the condition lets them through, the cast doesn't.
    assert_eq!(out.rejects.len(), 10);
    let good = only(&out);
    assert_eq!(good.num_rows() as u64 + out.rejects.len() as u64 + out.filtered, 100);
    let expected: Vec<i64> = (0..100).filter(|i| i % 2 == 1 && i % 10 != 3).collect();
    assert_eq!(good.column(1).as_primitive::<Int64Type>().values(), &expected[..], "in their order");
    for (i, reject) in out.rejects.iter().enumerate() {
        assert_eq!(reject.kind, ErrorKind::Data);
        assert_eq!(reject.rows, 1);
        assert_eq!(reject.origin.stream.as_deref(), Some("src"));
        assert!(!reject.message.contains("secret"), "{}", reject.message);
        assert!(reject.message.contains("`number`") && reject.message.contains("CAST"), "{}", reject.message);
        let Payload::Rows(row) = &reject.payload else { panic!("not a row") };
        assert_eq!(*row, rows.slice(10 * i + 3, 1));
    }
}

#[tokio::test]
async fn a_condition_that_fails_rejects_too() {
    let out = streamed(&Sql::new("SELECT n FROM input WHERE 100 / (n - 7) > 0"), &[texts()]).await;
    assert_eq!(out.rejects.len(), 1);
    let message = &out.rejects[0].message;
    assert!(message.contains("condition") && message.contains("division by zero"), "{message}");
    assert_eq!(only(&out).num_rows() as u64 + 1 + out.filtered, 100);
}

#[tokio::test]
async fn every_row_may_fail() {
    let out = streamed(&Sql::new("SELECT n / 0 AS x FROM input"), &[texts()]).await;
    assert!(out.batches.is_empty());
    assert_eq!((out.rejects.len(), out.filtered), (100, 0));
}

#[tokio::test]
async fn overflow_is_rejected() {
    let rows = batch(vec![("n", Arc::new(Int64Array::from(vec![1, i64::MAX, 3])) as ArrayRef)]);
    let out = streamed(&Sql::new("SELECT CAST(n AS INT) AS small FROM input"), &[rows]).await;
    assert_eq!(out.rejects.len(), 1);
    assert_eq!(only(&out).num_rows(), 2);
    assert!(!out.rejects[0].message.contains("9223372036854775807"));
}

#[tokio::test]
async fn a_reject_that_is_not_tolerated_would_keep_a_single_row_alive() {
    let wide = "x".repeat(1_000);
    let rows = batch(vec![(
        "t",
        Arc::new(StringArray::from_iter_values((0..1_000).map(|i| if i == 500 { "1" } else { &wide })))
            as ArrayRef,
    )]);
    let out = streamed(&Sql::new("SELECT CAST(t AS INT) AS i FROM input"), &[rows]).await;
    assert_eq!(out.rejects.len(), 999);
    let Payload::Rows(row) = &out.rejects[0].payload else { panic!("not a row") };
    assert!(orbit_etl_core::batch::retained_bytes(row) < 8_192);
}

#[tokio::test]
async fn columns_are_found_by_name() {
    let announced = numbers();
    let other = batch(vec![
        ("more", Arc::new(Int64Array::from(vec![7])) as ArrayRef),
        ("name", Arc::new(StringArray::from(vec!["z"])) as ArrayRef),
        ("id", Arc::new(Int64Array::from(vec![9])) as ArrayRef),
    ]);
    let sql = Sql::new("SELECT id, name FROM input WHERE id > 1");
    let out = streamed_over(&sql, &[stream("src", &announced)], &[announced.clone(), other, announced]).await;
    assert_eq!(
        shown(&[out.batches[1].1.clone()]),
        shown(&[batch(vec![
            ("id", Arc::new(Int64Array::from(vec![9])) as ArrayRef),
            ("name", Arc::new(StringArray::from(vec!["z"])) as ArrayRef),
        ])])
    );
    assert_eq!(out.batches.len(), 3);
}

#[tokio::test]
async fn a_batch_of_another_type_is_an_error() {
    let sql = Sql::new("SELECT id FROM input");
    let Started::Streaming(mut operator) = sql.start(&cx(), &[stream("src", &numbers())]).await.unwrap()
    else {
        panic!("blocking");
    };
    let wrong = batch(vec![("id", Arc::new(StringArray::from(vec!["1"])) as ArrayRef)]);
    let mut collected = Collected::default();
    let error = operator.process(0, wrong, &mut collected.output()).await.unwrap_err();
    assert_eq!((error.kind(), error.context("column")), (ErrorKind::Schema, Some("id")));
}

#[tokio::test]
async fn follows_a_schema_that_leaves_the_result_as_it_is() {
    let wider = batch(vec![
        ("new", Arc::new(Int64Array::from(vec![7])) as ArrayRef),
        ("id", Arc::new(Int64Array::from(vec![9])) as ArrayRef),
        ("name", Arc::new(StringArray::from(vec!["z"])) as ArrayRef),
    ]);
    for (query, follows) in [("SELECT id FROM input WHERE id > 1", true), ("SELECT * FROM input", false)] {
        let sql = Sql::new(query);
        let Started::Streaming(mut operator) = sql.start(&cx(), &[stream("src", &numbers())]).await.unwrap()
        else {
            panic!("blocking");
        };
        let mut collected = Collected::default();
        operator.process(0, numbers(), &mut collected.output()).await.unwrap();
        let changed = operator.schema_changed(0, &wider.schema(), &mut collected.output()).await;
        if follows {
            changed.unwrap();
            operator.process(0, wider.clone(), &mut collected.output()).await.unwrap();
            assert_eq!(collected.batches[1].1.num_rows(), 1);
        } else {
            assert_eq!(changed.unwrap_err().kind(), ErrorKind::Schema);
        }
    }
}

#[tokio::test]
async fn endless_inputs_may_stream() {
    let endless = StreamInfo::new("src", numbers().schema()).with_bounded(false);
    let sql = Sql::new("SELECT id FROM input WHERE id > 1");
    let outputs = sql.outputs(&cx(), std::slice::from_ref(&endless)).await.unwrap();
    assert!(!outputs[0].bounded);
    let out = streamed_over(&sql, &[endless], &[numbers()]).await;
    assert_eq!(only(&out).num_rows(), 2);
}

#[tokio::test]
async fn now_is_the_same_in_all_lanes() {
    let sql = Sql::new("SELECT now() AS t FROM input");
    let cx = cx();
    let inputs = [stream("src", &numbers())];
    let mut collected = Collected::default();
    for _ in 0..2 {
        let Started::Streaming(mut lane) = sql.start(&cx, &inputs).await.unwrap() else { panic!("blocking") };
        lane.process(0, numbers(), &mut collected.output()).await.unwrap();
    }
    assert_eq!(collected.batches[0], collected.batches[1]);
}
