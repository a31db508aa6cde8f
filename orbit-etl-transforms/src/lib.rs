//! Transforms for [Orbit ETL](orbit_etl_core): what stands between sources and sinks.
//!
//! | feature | transform | what it does |
//! |---|---|---|
//! | `sql` (default) | [`Sql`] | one SQL query over one input or several, planned by DataFusion |
//!
//! Every transform is a plain configuration that implements
//! [`Transform`](orbit_etl_core::Transform); it can be made in code or read from a pipeline's spec.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

#[cfg(feature = "sql")]
pub mod sql;

#[cfg(feature = "sql")]
pub use sql::Sql;

use orbit_etl_core::Registry;

/// Registers every transform that this build has, and names the feature of those that it lacks.
pub fn register_enabled(registry: &mut Registry) {
    #[cfg(feature = "sql")]
    registry.add_transform::<Sql>("sql");
    #[cfg(not(feature = "sql"))]
    registry.add_absent("sql", "sql");
}
