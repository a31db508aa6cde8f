//! The source.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::Schema;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use orbit_etl_core::{
    Connector, ConnectorInfo, Context, Error, FilterPushdown, Health, Position, Pushdown, Replay, Result,
    ScanRequest, Source, SourceEvent, Split, SplitChange, StreamId, StreamInfo,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::column::Columns;

/// How many splits are told of at once.
const TOLD_AT_ONCE: u64 = 1_000;

/// Makes rows up.
///
/// ```
/// use orbit_etl_connector_generate::{Column, Columns, GenerateSource};
///
/// let columns = Columns::new([
///     ("id", Column::Sequence { start: 1, step: 1 }),
///     ("city", Column::Choice { values: vec!["Bonn".into(), "Ulm".into()], nulls: 0.1 }),
/// ]);
/// let orders = GenerateSource::new(1_000, columns).seed(7);
/// ```
///
/// Replay is exact. A pipeline that runs again makes the rows that are new since: none, unless `rows`
/// was raised.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerateSource {
    /// How many rows.
    rows: u64,
    /// The columns: `{id: {type: sequence}, city: {type: choice, values: [Bonn, Ulm]}}`.
    columns: Columns,
    /// The same seed gives the same rows; 0 unless given.
    #[serde(default)]
    seed: u64,
    /// The name of the stream; `rows` unless given.
    #[serde(default = "stream_name")]
    name: String,
    /// How many rows are read in one piece; 1,000,000 unless given.
    #[serde(default = "split_rows")]
    split_rows: u64,
}

fn stream_name() -> String {
    "rows".into()
}

fn split_rows() -> u64 {
    1_000_000
}

/// What a split is: its rows.
#[derive(Debug, Serialize, Deserialize)]
struct Part {
    from: u64,
    to: u64,
}

/// Both of the enumerator and of a split: the next row.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct At {
    row: u64,
}

impl GenerateSource {
    /// So many rows of these columns.
    pub fn new(rows: u64, columns: Columns) -> Self {
        Self { rows, columns, seed: 0, name: stream_name(), split_rows: split_rows() }
    }

    /// Other rows than those of seed 0.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The stream's name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How many rows are read in one piece.
    #[must_use]
    pub fn split_rows(mut self, rows: u64) -> Self {
        self.split_rows = rows;
        self
    }

    fn batch(&self, rows: Range<u64>, columns: &[usize]) -> Result<RecordBatch> {
        let schema = self.columns.schema();
        let fields: Vec<_> = columns.iter().map(|i| Arc::clone(&schema.fields()[*i])).collect();
        let count = usize::try_from(rows.end - rows.start).unwrap_or(usize::MAX);
        let arrays = columns
            .iter()
            .map(|i| self.columns.values(*i, self.seed, rows.clone()))
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)
            .map_err(|e| Error::internal("generated rows don't fit together").caused_by(e))
    }
}

fn row_of(position: Option<&Position>) -> Result<Option<u64>> {
    let Some(position) = position else { return Ok(None) };
    serde_json::from_value::<At>(position.0.clone()).map(|at| Some(at.row)).map_err(|e| {
        Error::config("this is no position of generated rows").with("position", position).caused_by(e)
    })
}

#[async_trait]
impl Connector for GenerateSource {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("generate", format!("generate {} rows of seed {}", self.rows, self.seed))
            .with_local(true)
    }

    fn validate(&self) -> Result<()> {
        if self.split_rows == 0 {
            return Err(Error::config("must be at least 1").with("option", "split_rows"));
        }
        self.columns.validate()
    }

    async fn health(&self, _: &Context) -> Result<Health> {
        self.validate()?;
        Ok(Health::default())
    }

    async fn discover(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        self.streams(cx).await
    }
}

#[async_trait]
impl Source for GenerateSource {
    async fn streams(&self, _: &Context) -> Result<Vec<StreamInfo>> {
        self.validate()?;
        Ok(vec![StreamInfo::new(&self.name, self.columns.schema())])
    }

    fn replay(&self) -> Replay {
        Replay::Exact
    }

    fn pushdown(&self, wanted: &ScanRequest) -> Pushdown {
        Pushdown { projection: true, filters: vec![FilterPushdown::Unsupported; wanted.filters.len()] }
    }

    async fn splits(
        &self,
        _: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        self.validate()?;
        let (rows, size) = (self.rows, self.split_rows);
        let first = row_of(after)?.unwrap_or(0);
        let changes = stream::unfold(first, move |from| async move {
            (from < rows).then(|| {
                let to = from.saturating_add(size.saturating_mul(TOLD_AT_ONCE)).min(rows);
                let step = usize::try_from(size).unwrap_or(usize::MAX);
                let added = (from..to).step_by(step).map(|from| {
                    let to = from.saturating_add(size).min(rows);
                    Split::new(format!("{from}-{to}"), json!(Part { from, to }))
                });
                let position = json!(At { row: to }).into();
                (Ok(SplitChange { added: added.collect(), revoked: Vec::new(), position }), to)
            })
        });
        Ok(changes.boxed())
    }

    async fn open(
        &self,
        cx: &Context,
        split: &Split,
        after: Option<&Position>,
        scan: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
        let part: Part = serde_json::from_value(split.payload.clone()).map_err(|e| {
            Error::config("this is no split of generated rows").with("split", &split.id).caused_by(e)
        })?;
        let first = row_of(after)?.unwrap_or(part.from);
        if !(part.from..=part.to).contains(&first) {
            return Err(Error::config("the position lies outside of the split").with("split", &split.id));
        }
        let schema = self.columns.schema();
        let request = scan.first();
        let columns: Vec<usize> = match request.and_then(|request| request.projection.as_ref()) {
            None => (0..schema.fields().len()).collect(),
            Some(names) => names
                .iter()
                .map(|name| {
                    schema
                        .index_of(name)
                        .map_err(|_| Error::not_found("there is no such column").with("column", name))
                })
                .collect::<Result<_>>()?,
        };
        let batch_rows = request.map_or_else(|| cx.batch_rows(), |request| request.batch_rows).max(1) as u64;
        let source = self.clone();
        let events = stream::unfold(Some(first), move |next| {
            let (source, columns) = (source.clone(), columns.clone());
            async move {
                let from = next?;
                if from >= part.to {
                    return Some((Ok(SourceEvent::Finished), None));
                }
                let to = (from + batch_rows).min(part.to);
                match source.batch(from..to, &columns) {
                    Ok(batch) => {
                        let position = Some(json!(At { row: to }).into());
                        Some((Ok(SourceEvent::Batch { stream: StreamId(0), batch, position }), Some(to)))
                    }
                    Err(error) => Some((Err(error), None)),
                }
            }
        });
        Ok(events.boxed())
    }
}
