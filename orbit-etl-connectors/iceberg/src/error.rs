//! How errors of the `iceberg` crate become Orbit's.

use iceberg::ErrorKind as Iceberg;
use orbit_etl_core::{Error, ErrorKind};

/// An error of a catalog, of metadata or of a data file.
pub(crate) fn from_iceberg(error: iceberg::Error, doing: &str, table: impl std::fmt::Display) -> Error {
    let (kind, remedy) = match error.kind() {
        Iceberg::TableNotFound => (ErrorKind::NotFound, Some("check the table's name and the catalog")),
        Iceberg::NamespaceNotFound => (ErrorKind::NotFound, Some("check the namespace and the catalog")),
        Iceberg::FeatureUnsupported => (ErrorKind::Unsupported, None),
        Iceberg::CatalogCommitConflicts => (ErrorKind::Conflict, None),
        Iceberg::PreconditionFailed | Iceberg::TableAlreadyExists | Iceberg::NamespaceAlreadyExists => {
            (ErrorKind::Conflict, None)
        }
        Iceberg::DataInvalid => (ErrorKind::Data, None),
        _ => (ErrorKind::Unavailable, Some("check that the catalog runs and can be reached")),
    };
    let mut out = Error::new(kind, format!("can't {doing}")).with("table", table);
    if let Some(remedy) = remedy {
        out = out.remedy(remedy);
    }
    out.caused_by(error)
}
