//! A sample connector: a directory of logs with one `key=value key="quoted value"` line per row.
//!
//! NULL is a key that is left out. Columns are 64-bit integers and texts.

mod line;
mod sink;
mod source;

use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use orbit_etl_core::{Connector, ConnectorInfo, Context, Error, ErrorKind, Health, Result};

/// The configuration: a directory, and the columns of its rows.
#[derive(Debug, Clone)]
pub struct KeyValueLog {
    directory: PathBuf,
    schema: SchemaRef,
}

impl KeyValueLog {
    /// Rows of this schema in this directory. Touches nothing.
    pub fn new(directory: impl Into<PathBuf>, schema: SchemaRef) -> Self {
        Self { directory: directory.into(), schema }
    }
}

#[async_trait]
impl Connector for KeyValueLog {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("key_value_log", format!("logs in {}", self.directory.display()))
    }

    fn validate(&self) -> Result<()> {
        for field in self.schema.fields() {
            if !matches!(field.data_type(), DataType::Int64 | DataType::Utf8) {
                return Err(Error::config("a column is neither a 64-bit integer nor text")
                    .with("column", field.name())
                    .remedy("cast it"));
            }
            if field.name().is_empty() || field.name().contains(['=', ' ', '"', '\n']) {
                return Err(Error::config("a column's name can't be a key").with("column", field.name()));
            }
        }
        Ok(())
    }

    async fn health(&self, _cx: &Context) -> Result<Health> {
        std::fs::read_dir(&self.directory).map_err(|e| failed("can't list", &self.directory, e))?;
        Ok(Health { latency: Duration::ZERO, detail: self.info().summary })
    }
}

/// An I/O error in Orbit's terms.
fn failed(what: &str, path: &Path, error: std::io::Error) -> Error {
    use std::io::ErrorKind as Io;
    let kind = match error.kind() {
        Io::NotFound => ErrorKind::NotFound,
        Io::PermissionDenied => ErrorKind::Auth,
        Io::StorageFull => ErrorKind::Resources,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, what).with("file", path.display()).caused_by(error)
}
