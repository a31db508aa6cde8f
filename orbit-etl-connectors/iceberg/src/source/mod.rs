//! Tables as a source.

mod enumerate;
mod filter;
mod read;
#[cfg(test)]
mod tests;
mod view;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::StreamExt;
use futures::stream::BoxStream;
use orbit_etl_core::spec::Period;
use orbit_etl_core::{
    Connector, ConnectorInfo, Context, Error, FilterPushdown, Health, Position, Pushdown, Replay, Result,
    ScanRequest, Source, SourceEvent, Split, SplitChange, StreamId, StreamInfo,
};
use schemars::JsonSchema;
use serde::Deserialize;

use self::enumerate::Enumerator;
use self::read::Part;
use self::view::{Announced, At, View};
use crate::catalog::{IcebergCatalog, table_ident};
use crate::error::replaced;

/// Reads an Iceberg table.
///
/// ```
/// use orbit_etl_connector_iceberg::{IcebergCatalog, IcebergSource};
///
/// let catalog = IcebergCatalog::rest("https://catalog.example.org");
/// let as_of_the_tag = IcebergSource::new(catalog.clone(), "shop.orders").reference("end-of-2025");
/// let what_came_between = IcebergSource::new(catalog, "shop.orders").from_snapshot(3051).snapshot(3055);
/// ```
///
/// # What is read
///
/// The rows of one snapshot, the newest or the one that was asked for, without those that position and
/// equality deletes take away. When a pipeline runs again, it reads the files that were appended since.
/// A snapshot that took rows away or replaced them can't be read so, and is an error that says which;
/// one that only rewrote files is passed over. Columns that were added since are NULL where a file lacks
/// them.
///
/// One data file is one split. Its position is the number of rows read, and replay is exact: a
/// snapshot never changes. Deletion vectors (format version 3) and data files that aren't Parquet are
/// refused by name.
///
/// Filters leave files out by the bounds and partitions that manifests tell of.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IcebergSource {
    /// Where the table is looked up.
    catalog: IcebergCatalog,
    /// The table: `namespace.table`.
    table: String,
    /// The name of the stream; the table's, without its namespace, unless given.
    #[serde(default)]
    name: Option<String>,
    /// The snapshot to read; the newest unless given.
    #[serde(default)]
    snapshot: Option<i64>,
    /// Reads the snapshot that was the newest at this time: `2026-01-31T12:00:00Z`.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    timestamp: Option<DateTime<Utc>>,
    /// Reads the snapshot of this tag, or the newest of this branch.
    #[serde(default)]
    reference: Option<String>,
    /// Reads only what was appended after this snapshot.
    #[serde(default)]
    from_snapshot: Option<i64>,
    /// Goes on with new snapshots as they come, without an end.
    #[serde(default)]
    follow: bool,
    /// With `follow`: how often to look for a new snapshot; `1s` unless given.
    #[serde(default = "default_poll")]
    poll: Period,
    #[serde(skip)]
    plans: read::Plans,
    #[serde(skip)]
    announced: Announced,
}

fn default_poll() -> Period {
    Period(Duration::from_secs(1))
}

impl IcebergSource {
    /// The table's newest snapshot. The table is named `namespace.table`.
    pub fn new(catalog: IcebergCatalog, table: impl Into<String>) -> Self {
        Self {
            catalog,
            table: table.into(),
            name: None,
            snapshot: None,
            timestamp: None,
            reference: None,
            from_snapshot: None,
            follow: false,
            poll: default_poll(),
            plans: read::Plans::default(),
            announced: Announced::default(),
        }
    }

    /// The stream's name; the table's, without its namespace, by default.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Reads this snapshot.
    #[must_use]
    pub fn snapshot(mut self, id: i64) -> Self {
        self.snapshot = Some(id);
        self
    }

    /// Reads the snapshot that was the newest at this time.
    #[must_use]
    pub fn timestamp(mut self, time: DateTime<Utc>) -> Self {
        self.timestamp = Some(time);
        self
    }

    /// Reads the snapshot of a tag, or the newest of a branch.
    #[must_use]
    pub fn reference(mut self, name: impl Into<String>) -> Self {
        self.reference = Some(name.into());
        self
    }

    /// Reads only what was appended after this snapshot.
    #[must_use]
    pub fn from_snapshot(mut self, id: i64) -> Self {
        self.from_snapshot = Some(id);
        self
    }

    /// Goes on with new snapshots as they come, without an end.
    #[must_use]
    pub fn follow(mut self) -> Self {
        self.follow = true;
        self
    }

    /// With [`follow`](Self::follow): how often to look for a new snapshot; every second by default.
    #[must_use]
    pub fn poll(mut self, every: Duration) -> Self {
        self.poll = Period(every);
        self
    }

    fn at(&self) -> At {
        match (self.snapshot, self.timestamp, &self.reference) {
            (Some(id), _, _) => At::Snapshot(id),
            (None, Some(time), _) => At::Time(time),
            (None, None, Some(name)) => At::Reference(name.clone()),
            (None, None, None) => At::Newest,
        }
    }

    async fn view(&self) -> Result<View> {
        let table = self.catalog.open().await?.load(&table_ident(&self.table)?).await?;
        View::new(table, &self.at())
    }

    /// What this run was told of.
    async fn announced(&self, cx: &Context) -> Result<View> {
        if let Some(view) = self.announced.get(cx.run_id()) {
            return Ok(view);
        }
        let view = self.view().await?;
        self.announced.put(cx.run_id(), &view);
        Ok(view)
    }
}

#[async_trait]
impl Connector for IcebergSource {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("iceberg", format!("{} in a {} catalog", self.table, self.catalog))
    }

    fn validate(&self) -> Result<()> {
        let ways = [self.snapshot.is_some(), self.timestamp.is_some(), self.reference.is_some()];
        if ways.into_iter().filter(|&way| way).count() > 1 {
            return Err(Error::config("a snapshot can be named in one way only")
                .with("option", "snapshot")
                .remedy("give one of `snapshot`, `timestamp` and `reference`"));
        }
        if self.follow && matches!(self.at(), At::Snapshot(_) | At::Time(_)) {
            return Err(Error::config("a fixed snapshot can't be followed")
                .with("option", "follow")
                .remedy("leave `snapshot` and `timestamp` out; `from_snapshot` says where to begin"));
        }
        if self.poll.0.is_zero() {
            return Err(Error::config("must be more than 0").with("option", "poll"));
        }
        table_ident(&self.table)?;
        self.catalog.validate()
    }

    async fn health(&self, cx: &Context) -> Result<Health> {
        let _ = cx;
        self.validate()?;
        let start = Instant::now();
        let view = self.view().await?;
        let detail = match view.snapshot() {
            Some(snapshot) => format!("snapshot {}", snapshot.snapshot_id()),
            None => "no snapshot yet".to_owned(),
        };
        Ok(Health { latency: start.elapsed(), detail })
    }

    async fn discover(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        self.streams(cx).await
    }
}

#[async_trait]
impl Source for IcebergSource {
    async fn streams(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        self.validate()?;
        let view = self.view().await?;
        self.announced.put(cx.run_id(), &view);
        let schema = view.arrow_schema()?;
        let name = match &self.name {
            Some(name) => name,
            None => self.table.rsplit('.').next().unwrap_or(&self.table),
        };
        Ok(vec![StreamInfo::new(name, schema).with_bounded(!self.follow)])
    }

    fn replay(&self) -> Replay {
        Replay::Exact
    }

    fn pushdown(&self, wanted: &ScanRequest) -> Pushdown {
        let answer = |wish| match filter::is_usable(wish) {
            true => FilterPushdown::Inexact,
            false => FilterPushdown::Unsupported,
        };
        Pushdown { projection: true, filters: wanted.filters.iter().map(answer).collect() }
    }

    async fn splits(
        &self,
        cx: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        self.validate()?;
        let enumerator = Enumerator {
            opened: self.catalog.open().await?.clone(),
            ident: table_ident(&self.table)?,
            at: self.at(),
            schema: self.announced(cx).await?.schema().schema_id(),
            from: self.from_snapshot,
            follow: self.follow,
            poll: self.poll.0,
            plans: self.plans.clone(),
        };
        enumerator.run(cx, after).await
    }

    async fn open(
        &self,
        cx: &Context,
        split: &Split,
        after: Option<&Position>,
        scan: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
        let mut view = self.announced(cx).await?;
        let part = Part::of(split)?;
        if !part.appended && view.schema_at(part.snapshot).is_none() {
            // A snapshot that came since.
            view = self.view().await?.with_schema_of(&view);
        }
        if part.table != view.table_id() {
            return Err(replaced(&self.table));
        }
        let request = match scan.first() {
            Some(request) => request.clone(),
            None => ScanRequest::all(StreamId(0), cx.batch_rows()),
        };
        Ok(read::rows(&view, &self.plans, part, after, request).await?.boxed())
    }
}
