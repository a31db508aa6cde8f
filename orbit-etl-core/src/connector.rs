//! What sources and sinks have in common: a name, a state of health, streams to offer.

use std::fmt::Debug;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::spec::without_credentials;

/// The part that every source and sink shares.
///
/// A connector value is a *configuration*: making one touches neither network nor disk, and one
/// value may serve several runs at once. All effects begin with the methods that take a
/// [`Context`].
#[async_trait]
pub trait Connector: Debug + Send + Sync + 'static {
    /// The connector's type tag and a description of this configuration. Pure.
    fn info(&self) -> ConnectorInfo;

    /// Checks the configuration without touching anything outside the process.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) with the key and the remedy.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Asks the other side whether it could be used now, in bounded time and without effect.
    ///
    /// # Errors
    /// The error that a run would stop with: unreachable, not allowed, not there.
    async fn health(&self, cx: &Context) -> Result<Health>;

    /// The streams that could be read (or the tables that could be written) here.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where the other side can't tell.
    async fn discover(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        let _ = cx;
        Err(Error::unsupported(format!("{} can't list its streams", self.info().type_tag)))
    }

    /// Called once before a run uses the connector. Does nothing unless overridden.
    ///
    /// # Errors
    /// As [`Connector::health`].
    async fn connect(&self, cx: &Context) -> Result<()> {
        let _ = cx;
        Ok(())
    }

    /// Called once after the run, however it ended. Does nothing unless overridden.
    ///
    /// # Errors
    /// They are logged; the run's outcome is decided already.
    async fn disconnect(&self, cx: &Context) -> Result<()> {
        let _ = cx;
        Ok(())
    }
}

/// What a connector says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectorInfo {
    /// The `type` under which the registry knows it: `files`, `postgres`.
    pub type_tag: String,
    /// One line for people, without secrets: `csv data/orders-*.csv`.
    pub summary: String,
    /// Whether it is known that nothing goes over a network.
    pub local: bool,
    /// The path or URL, without credentials, if that is what names the place.
    pub location: Option<String>,
}

impl ConnectorInfo {
    /// From both parts; not known to be local.
    pub fn new(type_tag: impl Into<String>, summary: impl Into<String>) -> Self {
        Self { type_tag: type_tag.into(), summary: summary.into(), local: false, location: None }
    }

    /// The same at this place; local if the path is one of this machine: no URL, or one of `file://`.
    #[must_use]
    pub fn with_path(self, path: &str) -> Self {
        let remote = path.split_once("://").is_some_and(|(scheme, _)| !scheme.eq_ignore_ascii_case("file"));
        Self { location: Some(without_credentials(path)), ..self }.with_local(!remote)
    }

    /// The same, local or not.
    #[must_use]
    pub fn with_local(mut self, local: bool) -> Self {
        self.local = local;
        self
    }
}

/// The answer of a health check that passed.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// How long the other side took to answer.
    pub latency: Duration,
    /// What it said of itself: a version, a count of files.
    pub detail: String,
}

/// One stream: rows of one schema under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// Unique within its node; a table, a topic, a file set.
    pub name: String,
    /// The columns. Column roles (`orbit.role`) stand in the fields' metadata.
    pub schema: SchemaRef,
    /// The columns that identify a row, if any.
    pub keys: Vec<String>,
    /// Whether the stream ends.
    pub bounded: bool,
}

impl StreamInfo {
    /// A bounded stream without keys.
    pub fn new(name: impl Into<String>, schema: SchemaRef) -> Self {
        Self { name: name.into(), schema, keys: Vec::new(), bounded: true }
    }

    /// The same stream with these key columns.
    #[must_use]
    pub fn with_keys(mut self, keys: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.keys = keys.into_iter().map(Into::into).collect();
        self
    }

    /// The same stream, ending or not.
    #[must_use]
    pub fn with_bounded(mut self, bounded: bool) -> Self {
        self.bounded = bounded;
        self
    }
}
