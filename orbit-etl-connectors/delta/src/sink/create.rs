//! A table that isn't there yet.

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::Schema;
use deltalake::TableProperty;
use deltalake::kernel::{Action, Metadata, Protocol, StructType, contains_timestampntz, new_metadata};
use deltalake::protocol::{DeltaOperation, SaveMode};
use orbit_etl_core::{Error, Result};
use serde_json::{Value, json};

use super::shape::Shape;
use crate::table::Place;
use crate::types::table_schema;

const CONSTRAINT: &str = "delta.constraints.";

/// Properties that need more from every writer than this sink does.
const REFUSED: [&str; 5] = [
    "delta.columnMapping.mode",
    "delta.enableInCommitTimestamps",
    "delta.enableRowTracking",
    "delta.minReaderVersion",
    "delta.minWriterVersion",
];

/// The first version of a table.
#[derive(Debug)]
pub(crate) struct NewTable {
    metadata: Metadata,
    protocol: Protocol,
    columns: StructType,
}

impl NewTable {
    /// For rows of `stream`.
    ///
    /// # Errors
    /// `Schema` or `Config`: Delta doesn't have such columns, partitions or properties.
    pub(crate) fn new(
        stream: &Schema,
        partition_by: &[String],
        properties: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let columns = table_schema(stream)?;
        for key in properties.keys().filter(|key| key.starts_with("delta.")) {
            let known = key.starts_with(CONSTRAINT) || key.parse::<TableProperty>().is_ok();
            if !known || REFUSED.contains(&key.as_str()) {
                let message = if known { "can't be set here" } else { "is not known" };
                return Err(Error::config(format!("the table property {message}"))
                    .with("property", key)
                    .remedy("leave it out of `properties`, or make the table with another engine"));
            }
        }
        let internal = |e: String| Error::internal("a new table can't be described").caused_by(e);
        let protocol = serde_json::from_value(protocol(&columns, properties));
        Ok(Self {
            protocol: protocol.map_err(|e| internal(e.to_string()))?,
            metadata: new_metadata(&columns, partition_by, properties)
                .map_err(|e| internal(e.to_string()))?,
            columns,
        })
    }

    /// What it will be like.
    pub(crate) fn shape(&self) -> Result<Shape> {
        Shape::new(self.metadata.clone(), self.columns.clone())
    }

    pub(crate) fn into_actions(self, place: &Place) -> (Vec<Action>, DeltaOperation) {
        let operation = DeltaOperation::Create {
            mode: SaveMode::ErrorIfExists,
            location: place.log_store().root_url().clone(),
            protocol: self.protocol.clone(),
            metadata: self.metadata.clone(),
        };
        (vec![Action::Protocol(self.protocol), Action::Metadata(self.metadata)], operation)
    }
}

/// The least that readers and writers of such a table must be able to do. Numbered versions are used as
/// long as they say enough: more clients know them than know features by name.
fn protocol(columns: &StructType, properties: &BTreeMap<String, String>) -> Value {
    let is_on = |key: &str| properties.get(key).is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let constraints = properties.keys().any(|key| key.starts_with(CONSTRAINT));
    let changes = is_on("delta.enableChangeDataFeed");
    let mut readers = BTreeSet::new();
    if contains_timestampntz(columns.fields()) {
        readers.insert("timestampNtz");
    }
    if is_on("delta.enableDeletionVectors") {
        readers.insert("deletionVectors");
    }
    if readers.is_empty() {
        let writer = if changes {
            4
        } else if constraints {
            3
        } else {
            2
        };
        return json!({"minReaderVersion": 1, "minWriterVersion": writer});
    }
    let mut writers = readers.clone();
    writers.extend(["appendOnly", "invariants"]);
    if constraints {
        writers.insert("checkConstraints");
    }
    if changes {
        writers.insert("changeDataFeed");
    }
    json!({"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": readers, "writerFeatures": writers})
}
