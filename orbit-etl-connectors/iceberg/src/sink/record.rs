//! What a table knows of the pipelines that write to it.
//!
//! Every commit of a sink makes a snapshot, one without rows too, and sets the table's properties with
//! it. A catalog takes it only if the branch still ends with the snapshot that the commit was built
//! on. So what was compared there still holds when the commit is done, and a run that has been
//! overtaken can't commit any more.
//!
//! | property of the table | in the snapshot's summary | |
//! |---|---|---|
//! | `orbit.<sink>.lineage` | `orbit.lineage`, `orbit.sink` | whose sink of this name may write here |
//! | `orbit.<sink>.claim` | `orbit.claim` | the newest claim's number |
//! | `orbit.<sink>.epoch` | `orbit.epoch` | the last epoch committed |
//! | `orbit.<sink>.swept` | | nothing is left of claims below this |

use std::collections::HashMap;

use iceberg::spec::TableMetadata;
use orbit_etl_core::{Epoch, Lineage};

/// How the sink's own properties begin.
pub(super) const PREFIX: &str = "orbit.";

/// What stands in a table under one sink's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) lineage: String,
    pub(super) claim: u64,
    pub(super) epoch: Epoch,
    pub(super) swept: u64,
}

impl Record {
    /// Properties outlive expired snapshots; snapshots outlive properties that somebody took away. The
    /// higher number counts.
    pub(super) fn read(table: &TableMetadata, sink: &str) -> Option<Self> {
        let property = |what: &str| table.properties().get(&key(sink, what));
        let number = |what: &str| property(what).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let mut record = Self {
            lineage: property("lineage")?.clone(),
            claim: number("claim"),
            epoch: number("epoch"),
            swept: number("swept"),
        };
        for snapshot in table.snapshots() {
            let said = &snapshot.summary().additional_properties;
            let says = |key: &str, value: &str| said.get(key).is_some_and(|said| said == value);
            if says("orbit.lineage", &record.lineage) && says("orbit.sink", sink) {
                let number = |key: &str| said.get(key).and_then(|text| text.parse().ok()).unwrap_or(0);
                record.claim = record.claim.max(number("orbit.claim"));
                record.epoch = record.epoch.max(number("orbit.epoch"));
            }
        }
        Some(record)
    }
}

/// The name of a property.
pub(super) fn key(sink: &str, what: &str) -> String {
    format!("{PREFIX}{sink}.{what}")
}

/// What a snapshot says of the claim, or the epoch, that made it.
pub(super) fn summary(lineage: &Lineage, epoch: Option<Epoch>) -> HashMap<String, String> {
    let mut said = HashMap::from([
        ("orbit.lineage".to_owned(), lineage.id.clone()),
        ("orbit.sink".to_owned(), lineage.sink.clone()),
        ("orbit.claim".to_owned(), lineage.claim.to_string()),
        ("orbit.run".to_owned(), lineage.run.clone()),
    ]);
    if let Some(epoch) = epoch {
        said.insert("orbit.epoch".to_owned(), epoch.to_string());
    }
    said
}
