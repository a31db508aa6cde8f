//! Who watches pipelines of [Orbit ETL](orbit_etl_core), as [`Observer`](orbit_etl_core::observe::Observer)s.
//!
//! | feature | key of a spec | what it does |
//! |---|---|---|
//! | `openlineage` | `lineage` | [`OpenLineage`] events to a file or over HTTP |
//! | `alerts` | `alerts` | [`Alerts`] by rules over metrics, to webhooks, Slack, Teams and PagerDuty |
//! | `smtp` | `alerts` | alerts by mail too |
//!
//! Nothing here holds a run back or fails it. What can't be delivered is tried again for a while, and then
//! logged without the secrets of the target.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

#[cfg(feature = "alerts")]
pub mod alerts;
#[cfg(any(feature = "alerts", feature = "openlineage"))]
mod http;
#[cfg(feature = "openlineage")]
pub mod openlineage;

#[cfg(feature = "alerts")]
pub use alerts::Alerts;
#[cfg(feature = "openlineage")]
pub use openlineage::OpenLineage;

use orbit_etl_core::Registry;

/// Registers every observer that this build has, and names the feature of those that it lacks.
pub fn register_enabled(registry: &mut Registry) {
    #[cfg(feature = "openlineage")]
    registry.add_observer::<OpenLineage>("lineage");
    #[cfg(not(feature = "openlineage"))]
    registry.add_absent("lineage", "openlineage");
    #[cfg(feature = "alerts")]
    registry.add_observer::<Alerts>("alerts");
    #[cfg(not(feature = "alerts"))]
    registry.add_absent("alerts", "alerts");
}
