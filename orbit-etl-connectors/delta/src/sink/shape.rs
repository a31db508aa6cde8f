//! What a sink must know of a table: its columns, its properties, what it demands of rows.

use arrow::datatypes::SchemaRef;
use deltalake::DeltaTable;
use deltalake::kernel::transaction::PROTOCOL;
use deltalake::kernel::{Metadata, StructType, StructTypeExt};
use orbit_etl_core::{Error, Result};

use super::check;
use crate::error::{from_delta, from_transaction};
use crate::types::arrow_schema;

/// Leaf columns with bounds in the log, unless the table says otherwise.
const BOUNDED_COLUMNS: usize = 32;
/// Commits between two checkpoints of the log, unless the table says otherwise.
const CHECKPOINT_INTERVAL: u64 = 100;

/// After how long a table forgets the application transactions that say which epochs it has. Those that
/// carry no time, as ours, some writers forget at once.
pub(crate) const TRANSACTION_RETENTION: &str = "delta.setTransactionRetentionDuration";

/// A table that can be written to, as it is or as it will be made.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) metadata: Metadata,
    pub(crate) columns: StructType,
    pub(crate) arrow: SchemaRef,
    pub(crate) constraints: Vec<(String, String)>,
}

impl Shape {
    /// # Errors
    /// `Unsupported` naming the feature that stands in the way.
    pub(crate) fn of(table: &DeltaTable, name: &dyn std::fmt::Display) -> Result<Self> {
        let state = table.snapshot().map_err(|e| from_delta(&e, "read the table", name))?;
        let snapshot = state.snapshot();
        PROTOCOL.can_write_to(snapshot).map_err(|e| from_transaction(&e, "write to the table", name))?;
        Self::new(snapshot.metadata().clone(), snapshot.schema().as_ref().clone())
            .map_err(|e| e.with("table", name))
    }

    /// From the parts of a table's metadata.
    pub(crate) fn new(metadata: Metadata, columns: StructType) -> Result<Self> {
        let refuse = |feature: &str| {
            Err(Error::unsupported("the table uses features that aren't supported here")
                .with("features", feature)
                .remedy("write it with the engine that owns it, or drop the features from the table"))
        };
        let broken = |e: deltalake::kernel::Error| {
            Error::data("the table's schema can't be read").caused_by(e.to_string())
        };
        let property = |key: &str| metadata.configuration().get(key).map(String::as_str);
        if property("delta.columnMapping.mode").is_some_and(|mode| mode != "none") {
            return refuse("columnMapping");
        }
        if !columns.get_generated_columns().map_err(broken)?.is_empty() {
            return refuse("generatedColumns");
        }
        let mut constraints: Vec<(String, String)> = metadata
            .configuration()
            .iter()
            .filter_map(|(key, sql)| Some((key.strip_prefix("delta.constraints.")?.to_owned(), sql.clone())))
            .collect();
        for invariant in columns.get_invariants().map_err(broken)? {
            constraints.push((invariant.field_name, invariant.invariant_sql));
        }
        constraints.sort();
        let arrow = arrow_schema(&columns)?;
        Ok(Self { metadata, columns, arrow, constraints })
    }

    pub(crate) fn partition_columns(&self) -> &[String] {
        self.metadata.partition_columns()
    }

    /// Differs as soon as rows must be checked anew.
    pub(crate) fn checks(&self) -> String {
        check::mark(&self.arrow, &self.constraints)
    }

    pub(crate) fn is_append_only(&self) -> bool {
        self.property("delta.appendOnly").is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    pub(crate) fn transaction_retention(&self) -> Option<&str> {
        self.property(TRANSACTION_RETENTION)
    }

    pub(crate) fn bounded_columns(&self) -> usize {
        match self.property("delta.dataSkippingNumIndexedCols").and_then(|n| n.parse::<i64>().ok()) {
            Some(columns) => usize::try_from(columns).unwrap_or(usize::MAX),
            None => BOUNDED_COLUMNS,
        }
    }

    pub(crate) fn checkpoint_interval(&self) -> u64 {
        let set = self.property("delta.checkpointInterval").and_then(|n| n.parse().ok());
        set.filter(|&interval| interval > 0).unwrap_or(CHECKPOINT_INTERVAL)
    }

    /// Whether old entries of the log are to be removed with a checkpoint.
    pub(crate) fn cleans_log(&self) -> bool {
        self.property("delta.enableExpiredLogCleanup").is_none_or(|v| v.eq_ignore_ascii_case("true"))
    }

    fn property(&self, key: &str) -> Option<&str> {
        self.metadata.configuration().get(key).map(String::as_str)
    }
}
