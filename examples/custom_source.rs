//! A source of one's own, in some sixty lines: prime numbers, found range by range.
//!
//! `cargo run --example custom_source`

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use futures::stream::{self, BoxStream, StreamExt};
use orbit_etl::prelude::*;
use orbit_etl::{
    Connector, ConnectorInfo, Context, Error, Health, Position, Replay, Result, ScanRequest, Source,
    SourceEvent, Split, SplitChange, StreamId, StreamInfo,
};
use serde_json::json;

/// Every prime below a limit. Lanes search ranges of their own at the same time.
#[derive(Debug)]
struct Primes {
    below: u64,
    range: u64,
}

#[async_trait::async_trait]
impl Connector for Primes {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("primes", format!("below {}", self.below))
    }

    async fn health(&self, _: &Context) -> Result<Health> {
        Ok(Health::default())
    }
}

#[async_trait::async_trait]
impl Source for Primes {
    async fn streams(&self, _: &Context) -> Result<Vec<StreamInfo>> {
        Ok(vec![StreamInfo::new("primes", schema())])
    }

    /// A split that is opened after a position goes on with the very next number.
    fn replay(&self) -> Replay {
        Replay::Exact
    }

    async fn splits(
        &self,
        _: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        // The position of the enumerator: below which number every range was told of.
        let told = after.and_then(|p| p.0.as_u64()).unwrap_or(0);
        let starts = (0..self.below).step_by(usize::try_from(self.range).unwrap_or(1));
        let splits = starts.filter(|start| *start >= told).map(|start| {
            let end = (start + self.range).min(self.below);
            Split::new(format!("{start}-{end}"), json!({"start": start, "end": end}))
        });
        let change = SplitChange {
            added: splits.collect(),
            revoked: Vec::new(),
            position: json!(self.below.max(told)).into(),
        };
        Ok(stream::iter([Ok(change)]).boxed())
    }

    async fn open(
        &self,
        cx: &Context,
        split: &Split,
        after: Option<&Position>,
        _: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
        let (Some(start), Some(end)) = (split.payload["start"].as_u64(), split.payload["end"].as_u64())
        else {
            return Err(Error::internal("the split is not one of this source"));
        };
        // The position of a split: the first number that was not looked at.
        let start = after.and_then(|p| p.0.as_u64()).unwrap_or(start);
        let batches: Vec<u64> = (start..end).step_by(cx.batch_rows()).chain([end]).collect();
        let events = batches.into_iter().scan(start, |from, to| {
            let event = search(*from..to);
            *from = to;
            Some(event)
        });
        Ok(stream::iter(events).chain(stream::iter([Ok(SourceEvent::Finished)])).boxed())
    }
}

fn search(numbers: Range<u64>) -> Result<SourceEvent> {
    let position = Some(json!(numbers.end).into());
    let is_prime = |n: &u64| *n > 1 && (2..).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
    let primes = UInt64Array::from_iter_values(numbers.filter(is_prime));
    let batch = RecordBatch::try_new(schema(), vec![Arc::new(primes)])
        .map_err(|e| Error::internal("can't build a batch").caused_by(e))?;
    Ok(SourceEvent::Batch { stream: StreamId(0), batch, position })
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("prime", DataType::UInt64, false)]))
}

#[tokio::main]
async fn main() -> Result<()> {
    let table = MemoryTable::new();
    let pipeline = Pipeline::builder("primes")
        .source("numbers", Primes { below: 100_000, range: 10_000 })
        .sink("table", MemorySink::new(&table))
        .checkpoint_in_memory()
        .build()?;
    println!("{}", pipeline.explain().await?);
    println!("{}", pipeline.run().await?);
    println!("{} primes below 100,000", table.rows());
    Ok(())
}
