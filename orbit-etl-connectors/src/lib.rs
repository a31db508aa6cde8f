//! Every connector of Orbit ETL behind one feature each.
//!
//! | feature and `type` | source | sink |
//! |---|---|---|
//! | `delta` | a version, new versions, changes; exact replay (changes: whole versions) | append, merge, overwrite (all or `replace_where`); staged |
//! | `files` | CSV, JSON lines, Parquet, Avro, Arrow IPC; exact replay | the same formats; staged |
//! | `generate` | made-up rows, the same for the same seed; exact replay | |
//! | `iceberg` | a snapshot, what was appended since; exact replay | append; staged |

#[cfg(feature = "delta")]
#[doc(inline)]
pub use orbit_etl_connector_delta as delta;
#[cfg(feature = "files")]
#[doc(inline)]
pub use orbit_etl_connector_files as files;
#[cfg(feature = "generate")]
#[doc(inline)]
pub use orbit_etl_connector_generate as generate;
#[cfg(feature = "iceberg")]
#[doc(inline)]
pub use orbit_etl_connector_iceberg as iceberg;

use orbit_etl_core::Registry;

/// Registers every connector that this build has, and names the feature of those that it lacks.
pub fn register_enabled(registry: &mut Registry) {
    #[cfg(feature = "delta")]
    registry.add_source::<delta::DeltaSource>("delta").add_sink::<delta::DeltaSink>("delta");
    #[cfg(not(feature = "delta"))]
    registry.add_absent("delta", "delta");
    #[cfg(feature = "files")]
    registry.add_source::<files::FilesSource>("files").add_sink::<files::FilesSink>("files");
    #[cfg(not(feature = "files"))]
    registry.add_absent("files", "files");
    #[cfg(feature = "generate")]
    registry.add_source::<generate::GenerateSource>("generate");
    #[cfg(not(feature = "generate"))]
    registry.add_absent("generate", "generate");
    #[cfg(feature = "iceberg")]
    registry.add_source::<iceberg::IcebergSource>("iceberg").add_sink::<iceberg::IcebergSink>("iceberg");
    #[cfg(not(feature = "iceberg"))]
    registry.add_absent("iceberg", "iceberg");
}
