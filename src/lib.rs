//! Orbit ETL: move and reshape data inside a Rust program, over Arrow record batches, without losing
//! or doubling a row.
//!
//! ```
//! # #[cfg(all(feature = "files", feature = "sql"))]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> orbit_etl::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # std::env::set_current_dir(dir.path()).unwrap();
//! # std::fs::create_dir("data").unwrap();
//! # std::fs::write("data/orders-1.csv", "o_orderkey,o_orderdate,o_totalprice\n1,1996-01-02,1173.5\n2,1996-12-01,46.9\n").unwrap();
//! use std::time::Duration;
//! use orbit_etl::prelude::*;
//!
//! let report = Pipeline::builder("orders")
//!     .source("orders", FilesSource::csv("data/orders-*.csv"))
//!     .transform("big", Sql::new("SELECT o_orderkey, o_orderdate FROM input WHERE o_totalprice > 1000"))
//!     .sink("lake", FilesSink::parquet("lake/orders").partition_by(["o_orderdate"]))
//!     .checkpoint(".orbit/orders", Duration::from_secs(10))
//!     .build()?
//!     .run()
//!     .await?;
//! assert_eq!((report.rows_read(), report.rows_written()), (2, 1));
//! # Ok(())
//! # }
//! # #[cfg(not(all(feature = "files", feature = "sql")))]
//! # fn main() {}
//! ```
//!
//! # Features
//!
//! | feature | what it brings | by default |
//! |---|---|---|
//! | `files` | [`connectors::files`]: CSV, JSON lines, Parquet, Avro and Arrow IPC on local disks | yes |
//! | `sql` | [`transforms::sql`]: SQL on DataFusion | yes |
//! | `delta` | [`connectors::delta`]: Delta Lake tables | |
//! | `generate` | [`connectors::generate`]: made-up rows, for tests and demonstrations | |
//! | `iceberg`, `iceberg-sql` | [`connectors::iceberg`]: Iceberg tables; catalogs in SQLite and PostgreSQL | |
//! | `s3`, `gcs`, `azure`, `http` | `s3://`, `gs://`, `az://`, `http(s)://` for files; `s3://` for `delta` and `iceberg` too | |
//! | `openlineage` | [`observers::openlineage`]: OpenLineage events of runs | |
//! | `alerts`, `smtp` | [`observers::alerts`]: alerts to webhooks, Slack, Teams and PagerDuty; by mail | |
//! | `full` | all of these | |
//! | `failpoints` | lets the environment abort the process at a named point; for crash tests alone | |

pub use orbit_etl_core::*;

/// Every connector that is built in, one module each, named as its feature and its `type`.
pub mod connectors {
    #[doc(inline)]
    pub use orbit_etl_connectors::*;
}

/// Who can watch runs.
pub mod observers {
    #[doc(inline)]
    pub use orbit_etl_observe::*;
}

/// Every transform that is built in.
pub mod transforms {
    #[doc(inline)]
    pub use orbit_etl_transforms::*;
}

/// What most pipelines need, in one `use`.
pub mod prelude {
    #[cfg(feature = "delta")]
    pub use orbit_etl_connectors::delta::{DeltaSink, DeltaSource};
    #[cfg(feature = "files")]
    pub use orbit_etl_connectors::files::{FilesSink, FilesSource};
    #[cfg(feature = "iceberg")]
    pub use orbit_etl_connectors::iceberg::{IcebergCatalog, IcebergSink, IcebergSource};
    pub use orbit_etl_core::host::{ChannelSink, FnSink, Map, StreamSource};
    pub use orbit_etl_core::memory::{MemorySink, MemorySource, MemoryTable};
    pub use orbit_etl_core::{Again, Delivery, OnError, Pipeline, Restart};
    #[cfg(feature = "sql")]
    pub use orbit_etl_transforms::sql::Sql;
}

/// Registers every connector and transform that this build has, and names the feature of those that
/// it lacks.
pub fn register_enabled(registry: &mut Registry) {
    orbit_etl_connectors::register_enabled(registry);
    orbit_etl_transforms::register_enabled(registry);
    orbit_etl_observe::register_enabled(registry);
}
