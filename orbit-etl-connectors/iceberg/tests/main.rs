//! The Iceberg connector from outside.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod conformance;
#[cfg(feature = "sql")]
mod peers;
mod sink;

use orbit_etl_connector_iceberg::{IcebergCatalog, IcebergSource};
use orbit_etl_core::{Context, Source};

/// The data files of a table's newest snapshot; none if there is no table.
async fn named_files(catalog: &IcebergCatalog, table: &str) -> Vec<String> {
    use futures::StreamExt;

    let cx = Context::standalone("out").unwrap();
    let source = IcebergSource::new(catalog.clone(), table);
    let Ok(mut changes) = source.splits(&cx, None).await else { return Vec::new() };
    let mut files = Vec::new();
    while let Some(change) = changes.next().await {
        let splits = change.unwrap().added;
        files.extend(splits.iter().map(|split| split.payload["path"].as_str().unwrap().to_owned()));
    }
    files
}
