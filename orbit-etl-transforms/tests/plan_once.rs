//! A query is planned once for the inputs that it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use orbit_etl_core::pipeline::Collected;
use orbit_etl_core::{Context, Started, StreamInfo, Transform};
use orbit_etl_transforms::Sql;

use crate::given::{batch, blocked, cx, stream};

/// Gives back what it gets, and counts how often the optimizer looks at it.
#[derive(Debug)]
struct Seen {
    looks: Arc<AtomicUsize>,
    signature: Signature,
}

impl PartialEq for Seen {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.looks, &other.looks)
    }
}

impl Eq for Seen {}

impl std::hash::Hash for Seen {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        "seen".hash(state);
    }
}

impl ScalarUDFImpl for Seen {
    fn name(&self) -> &str {
        "seen"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn simplify(&self, args: Vec<Expr>, _info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        Ok(ExprSimplifyResult::Original(args))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(args.args.remove(0))
    }
}

fn counted(query: &str) -> (Sql, Arc<AtomicUsize>) {
    let looks = Arc::new(AtomicUsize::new(0));
    let signature = Signature::exact(vec![DataType::Int64], Volatility::Immutable);
    let function = ScalarUDF::new_from_impl(Seen { looks: Arc::clone(&looks), signature });
    (Sql::new(query).with_udf(function), looks)
}

fn rows() -> RecordBatch {
    batch(vec![
        ("a", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef),
        ("b", Arc::new(Int64Array::from(vec![3, 4])) as ArrayRef),
    ])
}

async fn asked(sql: &Sql, cx: &Context, inputs: &[StreamInfo]) {
    sql.outputs(cx, inputs).await.unwrap();
    sql.blocking(cx, inputs).await.unwrap();
    sql.scan(cx, inputs, 0).await.unwrap();
    for _lane in 0..3 {
        sql.start(cx, inputs).await.unwrap();
    }
}

#[tokio::test]
async fn all_questions_are_answered_from_one_plan() {
    let inputs = [stream("src", &rows())];
    for query in ["SELECT seen(a) AS s, b FROM input", "SELECT sum(seen(a)) AS s, b FROM input GROUP BY b"] {
        let (sql, looks) = counted(query);
        sql.outputs(&cx(), &inputs).await.unwrap();
        let once = looks.load(Ordering::Relaxed);
        assert!(once > 0);
        asked(&sql, &cx(), &inputs).await;
        assert_eq!(looks.load(Ordering::Relaxed), once, "{query}");
    }
    let (sql, looks) = counted("SELECT sum(seen(a)) AS s, b FROM input GROUP BY b");
    sql.outputs(&cx(), &inputs).await.unwrap();
    let once = looks.load(Ordering::Relaxed);
    let parts = vec![(inputs[0].clone(), vec![rows()])];
    assert_eq!(crate::given::rows(&blocked(&sql, &cx(), parts).await.unwrap()), 2);
    assert_eq!(looks.load(Ordering::Relaxed), once, "running needs no other plan");
}

#[tokio::test]
async fn the_narrowed_inputs_are_planned_once_more() {
    let (sql, looks) = counted("SELECT seen(a) AS s FROM input");
    let inputs = [stream("src", &rows())];
    sql.outputs(&cx(), &inputs).await.unwrap();
    let once = looks.load(Ordering::Relaxed);
    let wish = sql.scan(&cx(), &inputs, 0).await.unwrap();
    assert_eq!(wish.projection.unwrap(), ["a"]);
    let narrowed = [stream("src", &rows().project(&[0]).unwrap())];
    asked(&sql, &cx(), &narrowed).await;
    assert_eq!(looks.load(Ordering::Relaxed), 2 * once);
}

#[tokio::test]
async fn another_schema_or_name_is_another_plan() {
    let (sql, looks) = counted("SELECT seen(a) AS s, * FROM input");
    let wide = [stream("src", &rows())];
    assert_eq!(sql.outputs(&cx(), &wide).await.unwrap()[0].schema.fields().len(), 3);
    let narrow = [stream("src", &rows().project(&[0]).unwrap())];
    assert_eq!(sql.outputs(&cx(), &narrow).await.unwrap()[0].schema.fields().len(), 2);
    let before = looks.load(Ordering::Relaxed);
    sql.outputs(&cx(), &wide).await.unwrap();
    assert_eq!(looks.load(Ordering::Relaxed), before, "the first is still known");
    sql.outputs(&cx(), &[stream("other", &rows())]).await.unwrap();
    assert!(looks.load(Ordering::Relaxed) > before);
}

#[tokio::test]
async fn pipelines_share_nothing() {
    let (sql, looks) = counted("SELECT seen(a) AS s, b FROM input");
    let inputs = [stream("src", &rows())];
    sql.outputs(&cx(), &inputs).await.unwrap();
    let once = looks.load(Ordering::Relaxed);
    sql.clone().outputs(&cx(), &inputs).await.unwrap();
    assert_eq!(looks.load(Ordering::Relaxed), 2 * once, "a clone plans for itself");
}

#[tokio::test]
async fn keys_are_those_of_the_inputs_in_question() {
    let sql = Sql::new("SELECT a, b FROM input");
    let keyed = |key: &str| [stream("src", &rows()).with_keys([key])];
    for key in ["a", "b"] {
        assert_eq!(sql.outputs(&cx(), &keyed(key)).await.unwrap()[0].keys, [key]);
    }
}

async fn time_of(sql: &Sql, cx: &Context) -> RecordBatch {
    let inputs = [stream("src", &rows())];
    let Started::Streaming(mut lane) = sql.start(cx, &inputs).await.unwrap() else { panic!("blocking") };
    let mut collected = Collected::default();
    lane.process(0, rows(), &mut collected.output()).await.unwrap();
    collected.batches.remove(0).1
}

#[tokio::test]
async fn each_run_has_its_own_time_even_beside_another() {
    let sql = Sql::new("SELECT now() AS t FROM input");
    let (one, two) = (cx(), cx());
    let first = time_of(&sql, &one).await;
    let second = time_of(&sql, &two).await;
    assert_ne!(first, second);
    assert_eq!(time_of(&sql, &one).await, first, "the other run's lane doesn't move it");
    assert_eq!(time_of(&sql, &two).await, second);
}

#[tokio::test]
async fn many_schemas_are_forgotten_again() {
    let (sql, looks) = counted("SELECT seen(a) AS s FROM input");
    for i in 0..100 {
        sql.outputs(&cx(), &[stream(&format!("s{i}"), &rows())]).await.unwrap();
    }
    let before = looks.load(Ordering::Relaxed);
    sql.outputs(&cx(), &[stream("s0", &rows())]).await.unwrap();
    assert!(looks.load(Ordering::Relaxed) > before);
}
