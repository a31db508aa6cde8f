//! A transform of one's own, with state that survives a crash and rows that it refuses.
//!
//! `cargo run --example custom_transform`

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use arrow::util::pretty::pretty_format_batches;
use orbit_etl::prelude::*;
use orbit_etl::{
    ConnectorInfo, Context, Distribution, Error, ErrorKind, Operator, OperatorState, Output, Payload, Reject,
    Result, Started, StreamInfo, Transform,
};

/// Adds `balance`: the sum of `amount` so far. A booking without an amount is rejected.
#[derive(Debug)]
struct Balance;

#[async_trait::async_trait]
impl Transform for Balance {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("balance", "the sum so far")
    }

    async fn outputs(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Vec<StreamInfo>> {
        let [input] = inputs else {
            return Err(Error::config("a balance has exactly one input").with("inputs", inputs.len()));
        };
        match input.schema.field_with_name("amount") {
            Ok(field) if field.data_type() == &DataType::Int64 => {}
            _ => return Err(Error::schema("a balance needs a column `amount` of type int64")),
        }
        let mut fields = input.schema.fields().to_vec();
        fields.push(Arc::new(Field::new("balance", DataType::Int64, false)));
        Ok(vec![StreamInfo::new(cx.node(), Arc::new(Schema::new(fields))).with_bounded(input.bounded)])
    }

    /// A sum over all rows: one lane sees them all.
    fn distribution(&self) -> Distribution {
        Distribution::Single
    }

    /// The engine checks it: each row goes out or is rejected.
    fn maps_rows(&self) -> bool {
        true
    }

    async fn start(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Started> {
        let schema = self.outputs(cx, inputs).await?.remove(0).schema;
        Ok(Started::Streaming(Box::new(Adding { schema, sum: 0 })))
    }
}

struct Adding {
    schema: Arc<Schema>,
    sum: i64,
}

#[async_trait::async_trait]
impl Operator for Adding {
    async fn process(&mut self, _: usize, batch: RecordBatch, out: &mut Output<'_>) -> Result<()> {
        let Some(amounts) = batch.column_by_name("amount") else {
            return Err(Error::internal("the rows have lost a column").with("column", "amount"));
        };
        let amounts = amounts.as_primitive::<Int64Type>();
        // Runs of good rows go on as slices, without a copy.
        let mut start = 0;
        for row in (0..batch.num_rows()).filter(|row| amounts.is_null(*row)).chain([batch.num_rows()]) {
            self.add(batch.slice(start, row - start), amounts.slice(start, row - start), out).await?;
            if row < batch.num_rows() {
                let payload = Payload::Rows(batch.slice(row, 1));
                out.reject(Reject::new(ErrorKind::Data, "the booking has no amount", payload)).await?;
            }
            start = row + 1;
        }
        Ok(())
    }

    async fn snapshot(&mut self) -> Result<OperatorState> {
        Ok(OperatorState { groups: BTreeMap::from([(0, self.sum.to_le_bytes().to_vec())]) })
    }

    async fn restore(&mut self, state: OperatorState) -> Result<()> {
        let bytes = state.groups.get(&0).and_then(|bytes| bytes.as_slice().try_into().ok());
        self.sum = i64::from_le_bytes(bytes.ok_or_else(|| Error::config("the state is not a balance"))?);
        Ok(())
    }
}

impl Adding {
    async fn add(&mut self, rows: RecordBatch, amounts: Int64Array, out: &mut Output<'_>) -> Result<()> {
        let mut balances = Vec::with_capacity(amounts.len());
        for amount in amounts.values() {
            self.sum = self.sum.checked_add(*amount).ok_or_else(|| Error::data("the balance overflows"))?;
            balances.push(self.sum);
        }
        let mut columns = rows.columns().to_vec();
        columns.push(Arc::new(Int64Array::from(balances)));
        let batch = RecordBatch::try_new(self.schema.clone(), columns)
            .map_err(|e| Error::internal("can't build a batch").caused_by(e))?;
        out.emit(0, batch).await
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("booking", DataType::Int64, false),
        Field::new("amount", DataType::Int64, true),
    ]));
    let bookings = Int64Array::from_iter_values(1..=6);
    let amounts = Int64Array::from(vec![Some(100), Some(-30), None, Some(5), None, Some(25)]);
    let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(bookings), Arc::new(amounts)])
        .map_err(|e| Error::internal("can't build the input").caused_by(e))?;

    let (accounts, refused) = (MemoryTable::new(), MemoryTable::new());
    let pipeline = Pipeline::builder("balance")
        .source("bookings", MemorySource::new(schema, vec![batch]))
        .transform("balance", Balance)
        .sink("accounts", MemorySink::new(&accounts))
        .on_error(OnError::dead_letter(MemorySink::new(&refused)))
        .checkpoint_in_memory()
        .build()?;
    println!("{}", pipeline.run().await?);
    show(&accounts)?;
    println!("{} bookings were refused", refused.rows());
    Ok(())
}

fn show(table: &MemoryTable) -> Result<()> {
    for stream in table.streams() {
        let text = pretty_format_batches(&table.batches(&stream))
            .map_err(|e| Error::internal("can't print").caused_by(e))?;
        println!("{text}");
    }
    Ok(())
}
