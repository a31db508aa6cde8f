//! What a table knows of the pipelines that write to it.

use std::collections::HashMap;

use iceberg::spec::TableMetadata;
use orbit_etl_core::{Epoch, Lineage};

/// How the sink's own properties begin.
pub(super) const PREFIX: &str = "orbit.";

/// What stands in a table under one sink's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) lineage: String,
    pub(super) claim: u64,
    pub(super) epoch: Epoch,
}

impl Record {
    /// The epoch is the highest of the property, which outlives expired snapshots, and the snapshots,
    /// which outlive a property that somebody took away.
    pub(super) fn read(table: &TableMetadata, sink: &str) -> Option<Self> {
        let property = |what: &str| table.properties().get(&key(sink, what));
        let number = |what: &str| property(what).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let lineage = property("lineage")?.clone();
        let of_snapshots = table.snapshots().filter_map(|snapshot| {
            let said = &snapshot.summary().additional_properties;
            let ours = said.get("orbit.lineage") == Some(&lineage)
                && said.get("orbit.sink").is_some_and(|name| name == sink);
            if ours { said.get("orbit.epoch")?.parse::<u64>().ok() } else { None }
        });
        let epoch = of_snapshots.max().unwrap_or(0).max(number("epoch"));
        Some(Self { lineage, claim: number("claim"), epoch })
    }
}

/// The name of a property.
pub(super) fn key(sink: &str, what: &str) -> String {
    format!("{PREFIX}{sink}.{what}")
}

/// What a snapshot says of the epoch that made it.
pub(super) fn summary(lineage: &Lineage, epoch: Epoch) -> HashMap<String, String> {
    HashMap::from([
        ("orbit.lineage".to_owned(), lineage.id.clone()),
        ("orbit.sink".to_owned(), lineage.sink.clone()),
        ("orbit.epoch".to_owned(), epoch.to_string()),
        ("orbit.claim".to_owned(), lineage.claim.to_string()),
    ])
}
