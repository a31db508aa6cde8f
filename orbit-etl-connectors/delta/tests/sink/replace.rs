//! A part of a table replaced by all that a pipeline reads.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use orbit_etl_connector_delta::{DeltaSink, Mode};
use orbit_etl_core::{Connector, ErrorKind, Publication, Sink};
use tempfile::TempDir;

use super::{Run, batch, ids, lineage, path, table, visible};

fn parted(rows: &[(i64, Option<&str>)]) -> RecordBatch {
    batch(vec![
        ("id", Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.0)))),
        ("part", Arc::new(rows.iter().map(|r| r.1).collect::<StringArray>())),
    ])
}

/// A table in files that a condition on `id` cuts through.
async fn filled(root: &TempDir, partitioned: bool) {
    let mut sink = DeltaSink::append(path(root));
    if partitioned {
        sink = sink.partition_by(["part"]);
    }
    let mut run = Run::start(&sink, parted(&[]).schema(), 1).await;
    run.epoch(1, &parted(&[(1, Some("a")), (2, Some("b/c")), (3, None)])).await;
    run.epoch(2, &parted(&[(11, Some("a")), (12, Some("b/c")), (13, None)])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_satisfies_the_condition_is_replaced_in_one_version() {
    for partitioned in [false, true] {
        let root = TempDir::new().unwrap();
        filled(&root, partitioned).await;
        let sink = DeltaSink::replace_where(path(&root), "id > 2 AND id < 13");
        assert_eq!(sink.publication(), Publication::AtEnd);
        let mut run = Run::start(&sink, parted(&[]).schema(), 2).await;
        let (mut staged, rejects) = run.prepare(3, &parted(&[(3, Some("new")), (20, Some("out"))])).await;
        assert_eq!((rejects.len(), rejects[0].rows, rejects[0].kind), (1, 1, ErrorKind::Data));
        staged.extend(run.prepare(4, &parted(&[(4, Some("a"))])).await.0);
        assert_eq!(visible(&root).await, [1, 2, 3, 11, 12, 13]);
        let before = table(&root).await.version().unwrap();
        run.commit(4, staged.clone()).await.unwrap();
        assert_eq!(visible(&root).await, [1, 2, 3, 4, 13]);
        assert_eq!(table(&root).await.version().unwrap(), before + 1);
        // Once more does nothing, although somebody has put a row there.
        table(&root).await.write(vec![parted(&[(5, Some("a"))])]).await.unwrap();
        run.commit(4, staged).await.unwrap();
        assert_eq!(visible(&root).await, [1, 2, 3, 4, 5, 13]);
        // No rows take the place of all of them.
        run.commit(5, Vec::new()).await.unwrap();
        assert_eq!(visible(&root).await, [1, 2, 13]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_replaced_and_null_is_not_in_it() {
    let root = TempDir::new().unwrap();
    filled(&root, true).await;
    let sink = DeltaSink::replace_where(path(&root), "part = 'b/c'");
    let mut run = Run::start(&sink, parted(&[]).schema(), 2).await;
    let (staged, rejects) = run.prepare(3, &parted(&[(7, Some("b/c")), (8, None)])).await;
    assert_eq!(rejects[0].rows, 1);
    // Without a column of the table.
    run.commit(3, staged).await.unwrap();
    assert_eq!(visible(&root).await, [1, 3, 7, 11, 13]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_that_says_nothing_of_the_table_is_refused() {
    let root = TempDir::new().unwrap();
    for wrong in ["nowhere = 1", "id +", "id + 1"] {
        let sink = DeltaSink::replace_where(path(&root), wrong);
        let refused = match Run::try_start(&sink, ids(0..1).schema(), lineage(1)).await {
            Err(refused) => refused,
            // What is no condition is found out with the first rows.
            Ok(mut run) => run.writer.write(orbit_etl_core::StreamId(0), ids(0..1)).await.unwrap_err(),
        };
        assert_eq!(refused.kind(), ErrorKind::Config, "{wrong}");
    }
    let mixed: [DeltaSink; 2] = [
        DeltaSink::append(path(&root)).keys(["id"]),
        DeltaSink::new(path(&root), Mode::Overwrite).keys(["id"]),
    ];
    assert!(mixed.iter().all(|sink| sink.validate().unwrap_err().kind() == ErrorKind::Config));
}
