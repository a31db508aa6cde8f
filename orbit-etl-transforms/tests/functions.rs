//! Functions of the host, of every kind, in streaming and in blocking queries.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type};
use datafusion::common::cast::as_int64_array;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{PartitionEvaluatorArgs, WindowUDFFieldArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, ColumnarValue, PartitionEvaluator, ScalarUDF, Signature, Volatility,
    WindowUDF, WindowUDFImpl, create_udaf, create_udf,
};
use orbit_etl_core::{ErrorKind, Transform};
use orbit_etl_transforms::Sql;

use crate::given::{batch, blocked, cx, only, stream, streamed};

fn numbers() -> RecordBatch {
    batch(vec![
        ("k", Arc::new(Int64Array::from(vec![1, 1, 2, 2])) as ArrayRef),
        ("n", Arc::new(Int64Array::from(vec![Some(2), Some(8), Some(3), None])) as ArrayRef),
    ])
}

fn twice() -> ScalarUDF {
    let run = |args: &[ColumnarValue]| {
        let values = ColumnarValue::values_to_arrays(args)?;
        let doubled: Int64Array = as_int64_array(&values[0])?.iter().map(|v| v.map(|v| v * 2)).collect();
        Ok(ColumnarValue::Array(Arc::new(doubled)))
    };
    create_udf("twice", vec![DataType::Int64], DataType::Int64, Volatility::Immutable, Arc::new(run))
}

fn answer() -> ScalarUDF {
    let run = |_: &[ColumnarValue]| Ok(ColumnarValue::Scalar(ScalarValue::Int64(Some(42))));
    create_udf("answer", vec![], DataType::Int64, Volatility::Immutable, Arc::new(run))
}

/// The geometric mean.
#[derive(Debug, Default)]
struct GeoMean {
    product: f64,
    count: i64,
}

impl Accumulator for GeoMean {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in as_int64_array(&values[0])?.iter().flatten() {
            #[allow(clippy::cast_precision_loss)]
            let value = value as f64;
            self.product = if self.count == 0 { value } else { self.product * value };
            self.count += 1;
        }
        Ok(())
    }

    #[allow(clippy::cast_precision_loss)]
    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64((self.count > 0).then(|| self.product.powf(1.0 / self.count as f64))))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::Float64(Some(self.product)), ScalarValue::Int64(Some(self.count))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (products, counts) = (states[0].as_primitive::<Float64Type>(), as_int64_array(&states[1])?);
        for (product, count) in products.iter().flatten().zip(counts.iter().flatten()) {
            if count > 0 {
                self.product = if self.count == 0 { product } else { self.product * product };
                self.count += count;
            }
        }
        Ok(())
    }
}

fn geo_mean() -> AggregateUDF {
    create_udaf(
        "geo_mean",
        vec![DataType::Int64],
        Arc::new(DataType::Float64),
        Volatility::Immutable,
        Arc::new(|_| Ok(Box::<GeoMean>::default())),
        Arc::new(vec![DataType::Float64, DataType::Int64]),
    )
}

/// How many rows from the end of its partition a row stands.
#[derive(Debug, PartialEq, Eq, Hash)]
struct FromEnd(Signature);

impl WindowUDFImpl for FromEnd {
    fn name(&self) -> &str {
        "from_end"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn partition_evaluator(&self, _args: PartitionEvaluatorArgs) -> Result<Box<dyn PartitionEvaluator>> {
        Ok(Box::new(FromEndRows))
    }

    fn field(&self, args: WindowUDFFieldArgs) -> Result<FieldRef> {
        Ok(Arc::new(Field::new(args.name(), DataType::Int64, false)))
    }
}

#[derive(Debug)]
struct FromEndRows;

impl PartitionEvaluator for FromEndRows {
    #[allow(clippy::cast_possible_wrap)]
    fn evaluate_all(&mut self, _values: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
        Ok(Arc::new(Int64Array::from_iter_values((0..rows as i64).rev())))
    }
}

fn from_end() -> WindowUDF {
    WindowUDF::new_from_impl(FromEnd(Signature::nullary(Volatility::Immutable)))
}

async fn whole(sql: Sql) -> RecordBatch {
    let inputs = vec![(stream("src", &numbers()), vec![numbers().slice(0, 1), numbers().slice(1, 3)])];
    let out = blocked(&sql, &cx(), inputs).await.unwrap();
    arrow::compute::concat_batches(&out[0].schema(), &out).unwrap()
}

#[tokio::test]
async fn scalar_functions_stream_and_block() {
    let sql = Sql::new("SELECT twice(n) AS t, answer() AS a FROM input WHERE twice(k) < 4")
        .with_udf(twice())
        .with_udf(answer());
    let out = streamed(&sql, &[numbers()]).await;
    assert_eq!(only(&out).column(0).as_primitive::<Int64Type>().values(), &[4, 16]);
    assert_eq!(only(&out).column(1).as_primitive::<Int64Type>().values(), &[42, 42]);

    let sql =
        Sql::new("SELECT sum(twice(n)) + answer() AS s FROM input").with_udf(twice()).with_udf(answer());
    assert_eq!(whole(sql).await.column(0).as_primitive::<Int64Type>().values(), &[68]);
}

#[tokio::test]
async fn aggregate_functions_group_and_slide() {
    let sql = Sql::new("SELECT k, geo_mean(n) AS g FROM input GROUP BY k ORDER BY k").with_udaf(geo_mean());
    assert_eq!(whole(sql).await.column(1).as_primitive::<Float64Type>().values(), &[4.0, 3.0]);
    let sql = Sql::new("SELECT geo_mean(n) OVER (PARTITION BY k) AS g FROM input ORDER BY k, n")
        .with_udaf(geo_mean());
    assert_eq!(whole(sql).await.column(0).as_primitive::<Float64Type>().values(), &[4.0, 4.0, 3.0, 3.0]);
}

#[tokio::test]
async fn window_functions_see_their_partitions() {
    let sql = Sql::new("SELECT from_end() OVER (PARTITION BY k ORDER BY n) AS f FROM input ORDER BY k, f")
        .with_udwf(from_end());
    assert_eq!(whole(sql).await.column(0).as_primitive::<Int64Type>().values(), &[0, 1, 0, 1]);
}

#[tokio::test]
async fn aggregates_and_windows_are_refused_over_an_endless_input() {
    let endless = [stream("src", &numbers()).with_bounded(false)];
    for query in ["SELECT geo_mean(n) AS g FROM input", "SELECT from_end() OVER () AS f FROM input"] {
        let sql = Sql::new(query).with_udaf(geo_mean()).with_udwf(from_end());
        let error = sql.outputs(&cx(), &endless).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{query}");
    }
}

#[tokio::test]
async fn a_function_without_a_table_can_be_selected_from() {
    // DataFusion's own table functions may be joined to an input.
    let sql = Sql::new("SELECT n, value FROM input JOIN generate_series(2, 3) ON n = value ORDER BY n");
    assert_eq!(whole(sql).await.column(1).as_primitive::<Int64Type>().values(), &[2, 3]);
}
