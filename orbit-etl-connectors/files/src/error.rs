//! How foreign errors become Orbit's: the right kind, the file, a remedy, and no cell value.

use orbit_etl_core::{Error, ErrorKind};

/// An error of the file system.
pub(crate) fn from_io(error: std::io::Error, doing: &str, file: impl std::fmt::Display) -> Error {
    use std::io::ErrorKind as Io;
    let (kind, remedy) = match error.kind() {
        Io::NotFound => (ErrorKind::NotFound, Some("check the path")),
        Io::PermissionDenied | Io::ReadOnlyFilesystem => {
            (ErrorKind::Auth, Some("give the process the right to use it"))
        }
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => {
            (ErrorKind::Resources, Some("make room and run again"))
        }
        Io::TimedOut => (ErrorKind::Timeout, None),
        Io::AlreadyExists => (ErrorKind::Conflict, None),
        Io::OutOfMemory => (ErrorKind::Resources, None),
        Io::NotADirectory | Io::IsADirectory | Io::InvalidFilename => {
            (ErrorKind::Config, Some("check the path"))
        }
        _ => (ErrorKind::Unavailable, None),
    };
    let mut out = Error::new(kind, format!("can't {doing}")).with("file", file);
    if kind == ErrorKind::Conflict {
        out = out.retryable(false);
    }
    if let Some(remedy) = remedy {
        out = out.remedy(remedy);
    }
    out.caused_by(error)
}

/// An error of an object store.
pub(crate) fn from_store(error: object_store::Error, doing: &str, file: impl std::fmt::Display) -> Error {
    use object_store::Error as Store;
    let (kind, remedy) = match &error {
        Store::NotFound { .. } => (ErrorKind::NotFound, Some("check the path")),
        Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => {
            (ErrorKind::Auth, Some("check the credentials in `storage` or in the environment"))
        }
        Store::InvalidPath { .. } | Store::UnknownConfigurationKey { .. } => (ErrorKind::Config, None),
        Store::NotSupported { .. } | Store::NotImplemented { .. } => (ErrorKind::Unsupported, None),
        Store::AlreadyExists { .. } | Store::Precondition { .. } => (ErrorKind::Conflict, None),
        _ => (ErrorKind::Unavailable, None),
    };
    let mut out = Error::new(kind, format!("can't {doing}")).with("file", file);
    if let Some(remedy) = remedy {
        out = out.remedy(remedy);
    }
    out.caused_by(error)
}
