//! Types that know how to be configured and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use async_trait::async_trait;
use futures::stream::BoxStream;
use orbit_etl_core::spec::{PathText, Secret, bytes};
use orbit_etl_core::{
    CommitMode, Connector, ConnectorInfo, Context, Error, Health, Position, Registry, Replay, Result,
    ScanRequest, Sink, SinkSession, Source, SourceEvent, Split, SplitChange, Started, StreamInfo, Transform,
};
use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

/// What the tests' specs can name, and `kafka`, whose feature is off.
pub(crate) fn registry() -> Registry {
    let mut registry = Registry::new();
    registry
        .add_source::<Files>("files")
        .add_source::<Database>("database")
        .add_transform::<Sql>("sql")
        .add_sink::<Files>("files")
        .add_sink::<Database>("database")
        .add_source_with("custom", |config| match config["fail"].as_str() {
            Some(text) => Err(Error::config(format!("can't work with {text}")).with("option", "fail")),
            None => Ok(Arc::new(Files::default())),
        })
        .add_absent("kafka", "kafka");
    registry
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Files {
    #[schemars(with = "PathText")]
    path: String,
    format: Format,
    #[serde(default)]
    partition_by: Vec<String>,
    #[serde(default)]
    csv: Csv,
    #[serde(default, with = "bytes")]
    #[schemars(with = "Option<orbit_etl_core::spec::ByteSize>")]
    split_size: Option<u64>,
    #[serde(default)]
    sample_rows: Option<u32>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Csv,
    Json,
    Parquet,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Csv {
    delimiter: Option<char>,
    header: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Database {
    #[schemars(with = "Secret")]
    url: SecretString,
    table: String,
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Secret>")]
    options: BTreeMap<String, SecretString>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sql {
    query: String,
}

fn nothing<T>() -> Result<T> {
    Err(Error::unsupported("this type is only configured"))
}

fn stream() -> StreamInfo {
    StreamInfo::new("rows", Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)])))
}

#[async_trait]
impl Connector for Files {
    fn info(&self) -> ConnectorInfo {
        let size = self.split_size.map_or(String::new(), |size| format!(" in {size}"));
        let rows = self.sample_rows.map_or(String::new(), |rows| format!(" by {rows}"));
        let header = self.csv.header.map_or(String::new(), |header| format!(" header {header}"));
        ConnectorInfo::new(
            "files",
            format!("{:?} {}{size}{rows}{header}{}", self.format, self.path, self.partition_by.join("/")),
        )
    }

    fn validate(&self) -> Result<()> {
        match self.csv.delimiter {
            Some('"') => Err(Error::config("a quote can't be the delimiter")
                .with("option", "csv.delimiter")
                .remedy("take another character")),
            _ => Ok(()),
        }
    }

    async fn health(&self, _: &Context) -> Result<Health> {
        nothing()
    }
}

#[async_trait]
impl Connector for Database {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("database", self.table.clone())
    }

    fn validate(&self) -> Result<()> {
        let url = self.url.expose_secret();
        match url.contains("://") && self.options.len() < 10 {
            true => Ok(()),
            // Says more than it should.
            false => Err(Error::config(format!("can't read the URL {url}")).with("option", "url")),
        }
    }

    async fn health(&self, _: &Context) -> Result<Health> {
        nothing()
    }
}

macro_rules! source {
    ($type:ty) => {
        #[async_trait]
        impl Source for $type {
            async fn streams(&self, _: &Context) -> Result<Vec<StreamInfo>> {
                Ok(vec![stream()])
            }

            fn replay(&self) -> Replay {
                Replay::Exact
            }

            async fn splits(
                &self,
                _: &Context,
                _: Option<&Position>,
            ) -> Result<BoxStream<'static, Result<SplitChange>>> {
                nothing()
            }

            async fn open(
                &self,
                _: &Context,
                _: &Split,
                _: Option<&Position>,
                _: &[ScanRequest],
            ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
                nothing()
            }
        }
    };
}

source!(Files);
source!(Database);

#[async_trait]
impl Sink for Files {
    fn commit_mode(&self) -> CommitMode {
        CommitMode::Staged
    }

    async fn open(&self, _: &Context, _: &[StreamInfo]) -> Result<Box<dyn SinkSession>> {
        nothing()
    }
}

#[async_trait]
impl Sink for Database {
    fn commit_mode(&self) -> CommitMode {
        CommitMode::Atomic
    }

    async fn open(&self, _: &Context, _: &[StreamInfo]) -> Result<Box<dyn SinkSession>> {
        nothing()
    }
}

#[async_trait]
impl Transform for Sql {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("sql", self.query.clone())
    }

    async fn outputs(&self, _: &Context, inputs: &[StreamInfo]) -> Result<Vec<StreamInfo>> {
        match self.query.contains("nowhere") {
            true => Err(Error::schema("there is no table \"nowhere\"").remedy("name an input")),
            false => Ok(inputs.iter().take(1).cloned().collect()),
        }
    }

    async fn start(&self, _: &Context, _: &[StreamInfo]) -> Result<Started> {
        nothing()
    }
}
