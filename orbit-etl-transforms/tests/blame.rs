//! Whose fault an error is: a row's, which is rejected, or the environment's, which ends the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use datafusion::common::cast::as_int64_array;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use orbit_etl_core::pipeline::Collected;
use orbit_etl_core::{Error, ErrorKind, Result, Started, Transform};
use orbit_etl_transforms::Sql;

use crate::given::{batch, blocked, cx, only, stream, streamed};

fn numbers() -> RecordBatch {
    batch(vec![("id", Arc::new(Int64Array::from_iter_values(1..=8)) as ArrayRef)])
}

/// A function that fails with this error for a batch which holds a 4.
fn failing(error: fn() -> DataFusionError) -> ScalarUDF {
    counted(error, Arc::default())
}

fn counted(error: fn() -> DataFusionError, calls: Arc<AtomicUsize>) -> ScalarUDF {
    let run = move |args: &[ColumnarValue]| {
        calls.fetch_add(1, Ordering::Relaxed);
        let values = ColumnarValue::values_to_arrays(args)?;
        if as_int64_array(&values[0])?.iter().flatten().any(|v| v == 4) {
            return Err(error());
        }
        Ok(ColumnarValue::Array(Arc::clone(&values[0])))
    };
    create_udf("lookup", vec![DataType::Int64], DataType::Int64, Volatility::Volatile, Arc::new(run))
}

/// What one batch gives.
async fn tried(sql: &Sql, rows: &RecordBatch) -> (Result<()>, Collected) {
    let Started::Streaming(mut operator) = sql.start(&cx(), &[stream("src", rows)]).await.unwrap() else {
        panic!("blocking")
    };
    let mut collected = Collected::default();
    let result = operator.process(0, rows.clone(), &mut collected.output()).await;
    (result, collected)
}

const ENVIRONMENT: [(fn() -> DataFusionError, ErrorKind); 9] = [
    (|| DataFusionError::External("secret words".into()), ErrorKind::Unavailable),
    (|| DataFusionError::External(Box::new(std::io::Error::other("secret words"))), ErrorKind::Unavailable),
    (
        || DataFusionError::External(Box::new(std::io::Error::from(std::io::ErrorKind::TimedOut))),
        ErrorKind::Timeout,
    ),
    (|| DataFusionError::IoError(std::io::Error::other("secret words")), ErrorKind::Unavailable),
    (|| ArrowError::ExternalError("secret words".into()).into(), ErrorKind::Unavailable),
    (|| DataFusionError::ResourcesExhausted("no room".into()), ErrorKind::Resources),
    (|| DataFusionError::Internal("secret words".into()), ErrorKind::Internal),
    (|| DataFusionError::Ffi("secret words".into()), ErrorKind::Unavailable),
    (
        || DataFusionError::External(Box::new(Error::new(ErrorKind::Auth, "the token has expired"))),
        ErrorKind::Auth,
    ),
];

#[tokio::test]
async fn a_function_that_is_down_fails_the_run_and_rejects_nothing() {
    for (error, kind) in ENVIRONMENT {
        let calls = Arc::new(AtomicUsize::new(0));
        let sql = Sql::new("SELECT lookup(id) AS l FROM input").with_udf(counted(error, Arc::clone(&calls)));
        let (result, collected) = tried(&sql, &numbers()).await;
        let failed = result.unwrap_err();
        assert_eq!(failed.kind(), kind, "{failed}");
        assert!(failed.to_string().contains("lookup"), "{failed}");
        assert!(!failed.report().contains("secret"), "{}", failed.report());
        assert_eq!((collected.rejects.len(), collected.batches.len()), (0, 0));
        assert_eq!(calls.load(Ordering::Relaxed), 1, "the batch isn't tried in parts");
    }
}

#[tokio::test]
async fn the_environments_errors_have_a_remedy() {
    for (error, _) in &ENVIRONMENT[..4] {
        let sql = Sql::new("SELECT lookup(id) AS l FROM input").with_udf(failing(*error));
        let failed = tried(&sql, &numbers()).await.0.unwrap_err();
        assert!(failed.to_string().contains("; "), "{failed}");
        assert!(failed.is_retryable(), "{failed}");
    }
}

#[tokio::test]
async fn an_error_of_orbit_comes_out_with_its_words_and_its_kind() {
    let refused = || {
        let error = Error::unavailable("the price service is down").with("host", "prices").retryable(false);
        DataFusionError::External(Box::new(error))
    };
    let sql = Sql::new("SELECT lookup(id) AS l FROM input").with_udf(failing(refused));
    let failed = tried(&sql, &numbers()).await.0.unwrap_err();
    assert_eq!((failed.kind(), failed.is_retryable()), (ErrorKind::Unavailable, false));
    assert!(failed.to_string().contains("the price service is down"), "{failed}");
    assert!(failed.to_string().contains("prices"), "{failed}");
}

#[tokio::test]
async fn a_function_that_refuses_a_value_rejects_its_row() {
    let words: [fn() -> DataFusionError; 5] = [
        || DataFusionError::Execution("the value 4 is a secret".into()),
        || ArrowError::ComputeError("the value 4 is a secret".into()).into(),
        || DataFusionError::External(Box::new(Error::data("no such price"))),
        || DataFusionError::Context("in".into(), Box::new(DataFusionError::Execution("secret".into()))),
        || DataFusionError::External(Box::new(ArrowError::DivideByZero)),
    ];
    for error in words {
        let sql = Sql::new("SELECT lookup(id) AS l FROM input").with_udf(failing(error));
        let out = streamed(&sql, &[numbers()]).await;
        assert_eq!(out.rejects.len(), 1);
        assert_eq!(out.rejects[0].kind, ErrorKind::Data);
        assert!(!out.rejects[0].message.contains("secret"), "{}", out.rejects[0].message);
        assert_eq!(only(&out).num_rows(), 7);
    }
}

#[tokio::test]
async fn a_function_that_panics_fails_the_run() {
    let panics = || panic!("secret words");
    let sql = Sql::new("SELECT lookup(id) AS l FROM input").with_udf(failing(panics));
    let (result, collected) = tried(&sql, &numbers()).await;
    let failed = result.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Internal);
    assert!(failed.to_string().contains("panic") && failed.to_string().contains("lookup"), "{failed}");
    assert!(!failed.report().contains("secret"), "{}", failed.report());
    assert!(collected.rejects.is_empty());
}

#[tokio::test]
async fn a_bad_pattern_of_a_row_is_the_rows_fault() {
    // A built-in function that puts its parser's error into `External`.
    let rows = batch(vec![("p", Arc::new(StringArray::from(vec!["a", "[", "b"])) as ArrayRef)]);
    let query = "SELECT regexp_replace('abc', p, 'x') AS r FROM input";
    for sql in [Sql::new(query), Sql::new(query).with_udf(failing(|| panic!("never called")))] {
        let out = streamed(&sql, std::slice::from_ref(&rows)).await;
        assert_eq!(out.rejects.len(), 1);
        assert_eq!(only(&out).num_rows(), 2);
    }
}

#[tokio::test]
async fn blocking_queries_tell_the_same_apart() {
    let query = "SELECT sum(lookup(id)) AS s FROM input";
    let inputs = || vec![(stream("src", &numbers()), vec![numbers()])];
    for (error, kind) in ENVIRONMENT {
        // A plan that spills has I/O of its own.
        let kind = if matches!(error(), DataFusionError::IoError(_)) { ErrorKind::Resources } else { kind };
        let sql = Sql::new(query).with_udf(failing(error));
        let failed = blocked(&sql, &cx(), inputs()).await.unwrap_err();
        assert_eq!(failed.kind(), kind, "{failed}");
        assert!(!failed.report().contains("secret"), "{}", failed.report());
    }
    let sql = Sql::new(query).with_udf(failing(|| DataFusionError::Execution("secret".into())));
    assert_eq!(blocked(&sql, &cx(), inputs()).await.unwrap_err().kind(), ErrorKind::Data);
    let sql = Sql::new(query).with_udf(failing(|| panic!("secret words")));
    let failed = blocked(&sql, &cx(), inputs()).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Internal, "{failed}");
}
