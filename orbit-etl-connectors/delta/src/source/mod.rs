//! Delta tables as a source.

mod changes;
mod enumerate;
mod loaded;
mod prune;
mod read;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::StreamExt;
use futures::stream::BoxStream;
use orbit_etl_core::spec::{PathText, Period, Secret};
use orbit_etl_core::{
    Connector, ConnectorInfo, Context, Error, FilterPushdown, Health, Position, Pushdown, Replay, Result,
    ScanRequest, Source, SourceEvent, Split, SplitChange, StreamInfo,
};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;

use self::enumerate::Enumerator;
use self::loaded::Cache;
use crate::error::from_delta;
use crate::table::{At, Place, Storage, redact};

/// Reads a Delta table, on a disk or in an object store.
///
/// ```
/// use orbit_etl_connector_delta::DeltaSource;
///
/// let yesterday = DeltaSource::new("lake/orders").version(7);
/// let changes = DeltaSource::new("lake/orders").changes().follow();
/// ```
///
/// # What is read
///
/// The rows of one version, the newest or the one that was asked for. When a pipeline runs again, it
/// reads the files that were added since. A version that took rows away or changed them can't be read
/// so, and is an error that says which; [`changes`](Self::changes) reads such versions.
///
/// One data file is one split. Its position is the number of rows read, and replay is exact: a version
/// never changes. Deletion vectors and column mapping are understood.
///
/// # Changes
///
/// With [`changes`](Self::changes), each version is one split of change rows, read from the table's
/// change data feed. Besides the table's columns there are `_change_type` with the role `op` (`insert`,
/// `update` or `delete`), `_commit_order` with the role `order`, `_commit_version` and
/// `_commit_timestamp`. Such a split replays only whole.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeltaSource {
    /// The table's folder: a path or a URL.
    #[schemars(with = "PathText")]
    path: String,
    /// The name of the stream; the folder's unless given.
    #[serde(default)]
    name: Option<String>,
    /// The version to read; the newest unless given.
    #[serde(default)]
    version: Option<u64>,
    /// Reads the version that was the newest at this time: `2026-01-31T12:00:00Z`.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    timestamp: Option<DateTime<Utc>>,
    /// Reads changes instead of rows; the table must record them.
    #[serde(default)]
    changes: bool,
    /// With `changes`: the first version whose changes are read; 0 unless given.
    #[serde(default)]
    from_version: Option<u64>,
    /// Goes on with new versions as they come, without an end.
    #[serde(default)]
    follow: bool,
    /// With `follow`: how often to look for a new version; `1s` unless given.
    #[serde(default = "default_poll")]
    poll: Period,
    /// Options of the object store: `region`, `endpoint`, `access_key_id` …
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Secret>")]
    storage: Storage,
    #[serde(skip)]
    cache: Cache,
}

fn default_poll() -> Period {
    Period(Duration::from_secs(1))
}

impl DeltaSource {
    /// The table in this folder: a path or a URL.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            name: None,
            version: None,
            timestamp: None,
            changes: false,
            from_version: None,
            follow: false,
            poll: default_poll(),
            storage: Storage::new(),
            cache: Cache::default(),
        }
    }

    /// The stream's name; the folder's by default.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Reads this version.
    #[must_use]
    pub fn version(mut self, version: u64) -> Self {
        self.version = Some(version);
        self
    }

    /// Reads the version that was the newest at this time.
    #[must_use]
    pub fn timestamp(mut self, time: DateTime<Utc>) -> Self {
        self.timestamp = Some(time);
        self
    }

    /// Reads changes instead of rows. The table must record them (`delta.enableChangeDataFeed`).
    #[must_use]
    pub fn changes(mut self) -> Self {
        self.changes = true;
        self
    }

    /// With [`changes`](Self::changes): the first version whose changes are read; 0 by default.
    #[must_use]
    pub fn from_version(mut self, version: u64) -> Self {
        self.from_version = Some(version);
        self
    }

    /// Goes on with new versions as they come, without an end.
    #[must_use]
    pub fn follow(mut self) -> Self {
        self.follow = true;
        self
    }

    /// With [`follow`](Self::follow): how often to look for a new version; every second by default.
    #[must_use]
    pub fn poll(mut self, every: Duration) -> Self {
        self.poll = Period(every);
        self
    }

    /// An option of the object store, such as `region`, `endpoint` or `access_key_id`. What isn't
    /// given is taken from the environment.
    #[must_use]
    pub fn storage_option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.storage.insert(key.into(), SecretString::from(value.into()));
        self
    }

    fn place(&self) -> Result<Place> {
        Place::parse(&self.path, &self.storage)
    }

    fn at(&self) -> At {
        match (self.version, self.timestamp) {
            (Some(version), _) => At::Version(version),
            (None, Some(time)) => At::Time(time),
            (None, None) => At::Newest,
        }
    }

    fn stream_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| {
            let path = redact(&self.path);
            path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
        })
    }

    async fn schema(&self, cx: &Context, place: &Place) -> Result<SchemaRef> {
        let loaded = self.cache.at(cx, place, self.at()).await?;
        if self.changes { changes::schema(loaded.schema()) } else { Ok(Arc::clone(loaded.schema())) }
    }
}

#[async_trait]
impl Connector for DeltaSource {
    fn info(&self) -> ConnectorInfo {
        let what = if self.changes { "changes of " } else { "" };
        ConnectorInfo::new("delta", format!("delta {what}{}", redact(&self.path))).with_path(&self.path)
    }

    fn validate(&self) -> Result<()> {
        if self.version.is_some() && self.timestamp.is_some() {
            return Err(Error::config("a version and a time are given")
                .with("option", "timestamp")
                .remedy("leave one of `version` and `timestamp` out"));
        }
        if self.follow && self.at() != At::Newest {
            return Err(Error::config("a fixed version can't be followed")
                .with("option", "follow")
                .remedy("leave `version` and `timestamp` out; `from_version` says where changes begin"));
        }
        if self.from_version.is_some() && !self.changes {
            return Err(Error::config("only changes can be read from a version on")
                .with("option", "from_version")
                .remedy("turn `changes` on, or use `version`"));
        }
        if Duration::from(self.poll) < Duration::from_millis(1) {
            return Err(Error::config("must be at least 1ms").with("option", "poll"));
        }
        self.place().map(drop)
    }

    async fn health(&self, cx: &Context) -> Result<Health> {
        let _ = cx;
        self.validate()?;
        let start = Instant::now();
        let table = self.place()?.load(self.at()).await?;
        let detail = format!("version {}", table.version().unwrap_or_default());
        Ok(Health { latency: start.elapsed(), detail })
    }

    async fn discover(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        self.streams(cx).await
    }
}

#[async_trait]
impl Source for DeltaSource {
    async fn streams(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        self.validate()?;
        let schema = self.schema(cx, &self.place()?).await?;
        Ok(vec![StreamInfo::new(self.stream_name(), schema).with_bounded(!self.follow)])
    }

    fn replay(&self) -> Replay {
        if self.changes { Replay::WholeSplit } else { Replay::Exact }
    }

    fn pushdown(&self, wanted: &ScanRequest) -> Pushdown {
        if self.changes {
            return Pushdown::none(wanted);
        }
        let answer = |filter| match prune::is_usable(filter) {
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
        let place = self.place()?;
        let first = match self.changes {
            true => self.from_version.unwrap_or(0),
            false => 0,
        };
        let enumerator = Enumerator {
            place,
            at: self.at(),
            changes: self.changes,
            first,
            follow: self.follow,
            poll: self.poll.into(),
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
        let place = self.place()?;
        let schema = self.schema(cx, &place).await?;
        let request = match scan.first() {
            Some(request) => request.clone(),
            None => ScanRequest::all(orbit_etl_core::StreamId(0), cx.batch_rows()),
        };
        if self.changes {
            let version = changes::version_of(split)?;
            return Ok(changes::read(&place, version, schema, &request).await?.boxed());
        }
        let part = read::Part::of(split)?;
        let loaded = self.cache.at(cx, &place, At::Version(part.version)).await?;
        let id = loaded.id().map_err(|e| from_delta(&e, "read the table", &place))?;
        if id != part.table {
            return Err(Error::new(
                orbit_etl_core::ErrorKind::Conflict,
                "the table was replaced by another one",
            )
            .retryable(false)
            .with("table", &place)
            .remedy("run the pipeline with a new state directory"));
        }
        Ok(read::rows(loaded, place, part, after, schema, request).await?.boxed())
    }
}
