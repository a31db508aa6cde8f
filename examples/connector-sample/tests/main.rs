//! The conformance suite on the sample connector.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use connector_sample::KeyValueLog;
use orbit_etl_core::{Sink, Source, StreamInfo};
use orbit_etl_testkit::{
    Abilities, Breakage, Broken, Check, Comes, Fixture, Harness, async_trait, conformance,
};
use tempfile::TempDir;

struct Logs;

struct Directory(TempDir);

#[async_trait]
impl Harness for Logs {
    async fn fresh(&self) -> Check<Box<dyn Fixture>> {
        Ok(Box::new(Directory(TempDir::new().unwrap())))
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            types: |t| match t {
                DataType::Int64 | DataType::Utf8 => Comes::Same,
                _ => Comes::Never("logs hold integers and texts"),
            },
            several_streams: false,
            ..Abilities::default()
        }
    }
}

#[async_trait]
impl Fixture for Directory {
    fn sink(&self) -> Option<Arc<dyn Sink>> {
        Some(Arc::new(KeyValueLog::new(self.0.path(), Arc::new(Schema::empty()))))
    }

    async fn source(&self, streams: &[StreamInfo]) -> Check<Option<Arc<dyn Source>>> {
        Ok(Some(Arc::new(KeyValueLog::new(self.0.path(), streams[0].schema.clone()))))
    }

    async fn staged(&self) -> Check<Option<usize>> {
        let names = std::fs::read_dir(self.0.path()).unwrap();
        let staged =
            names.filter(|n| n.as_ref().unwrap().file_name().to_string_lossy().starts_with("staged"));
        Ok(Some(staged.count()))
    }

    async fn broken(&self, what: Breakage) -> Check<Option<Broken>> {
        let nowhere = KeyValueLog::new(self.0.path().join("nowhere"), Arc::new(Schema::empty()));
        Ok((what == Breakage::Missing).then(|| Broken::Source(Arc::new(nowhere))))
    }
}

conformance!(key_value_logs, Logs);
