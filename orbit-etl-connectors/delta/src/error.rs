//! How foreign errors become Orbit's: the right kind, the table, a remedy, and no cell value.

use std::error::Error as StdError;
use std::fmt::Display;

use deltalake::DeltaTableError;
use deltalake::kernel::transaction::TransactionError;
use orbit_etl_core::{Error, ErrorKind};

/// The longest text of a cause that an error carries on.
const LONGEST_CAUSE: usize = 500;

/// An error of the file system.
pub(crate) fn from_io(error: std::io::Error, doing: &str, file: impl Display) -> Error {
    use std::io::ErrorKind as Io;
    let (kind, remedy) = match error.kind() {
        Io::NotFound => (ErrorKind::NotFound, Some("check the path")),
        Io::PermissionDenied | Io::ReadOnlyFilesystem => {
            (ErrorKind::Auth, Some("give the process the right to use it"))
        }
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => {
            (ErrorKind::Resources, Some("make room and run again"))
        }
        Io::OutOfMemory => (ErrorKind::Resources, None),
        Io::TimedOut => (ErrorKind::Timeout, None),
        Io::NotADirectory | Io::IsADirectory | Io::InvalidFilename => {
            (ErrorKind::Config, Some("check the path"))
        }
        _ => (ErrorKind::Unavailable, None),
    };
    let mut out = Error::new(kind, format!("can't {doing}")).with("file", file);
    if let Some(remedy) = remedy {
        out = out.remedy(remedy);
    }
    out.caused_by(error)
}

/// An error of an object store.
pub(crate) fn from_store(error: &object_store::Error, doing: &str, file: impl Display) -> Error {
    let text = error.to_string();
    let kind = store_kind(error, &text);
    with_remedy(Error::new(kind, format!("can't {doing}")).with("file", file)).caused_by(Cause(plain(&text)))
}

/// An error of the Delta library.
pub(crate) fn from_delta(error: &DeltaTableError, doing: &str, table: impl Display) -> Error {
    use DeltaTableError as Delta;
    let text = chain(error);
    let new = |kind, message: &str| Error::new(kind, message.to_owned()).with("table", &table);
    match error {
        Delta::NotATable(_) => return missing(table),
        Delta::InvalidVersion(version) => {
            return new(ErrorKind::NotFound, "the table has no such version").with("version", version);
        }
        Delta::Transaction { source } => return from_transaction(source, doing, table),
        Delta::ChangeDataNotEnabled { version } | Delta::ChangeDataNotRecorded { version, .. } => {
            return new(ErrorKind::Unsupported, "the table has recorded no changes for this version")
                .with("version", version)
                .remedy("set the table's property delta.enableChangeDataFeed, and read later versions");
        }
        Delta::UnsupportedColumnMapping { .. } => {
            return new(ErrorKind::Unsupported, "the table uses column mapping, which isn't supported here")
                .with("feature", "columnMapping");
        }
        Delta::KernelError(_) if text.contains(UNSUPPORTED) => {
            let error = new(ErrorKind::Unsupported, "the table uses a feature that isn't supported here");
            let error = match text.split('\'').nth(1) {
                Some(feature) => error.with("features", feature),
                None => error,
            };
            return error
                .remedy("read it with the engine that owns it, or drop the feature from the table")
                .caused_by(Cause(plain(&text)));
        }
        Delta::SchemaMismatch { .. } => {
            return new(ErrorKind::Schema, "the rows don't fit the table's schema");
        }
        _ => {}
    }
    if text.contains("No files in log segment") || text.contains("No table version found") {
        return missing(table);
    }
    if text.contains("Resources exhausted") {
        return with_remedy(new(ErrorKind::Resources, "the memory limit leaves no room for the operation"))
            .caused_by(Cause(plain(&text)));
    }
    let kind =
        find_store_error(error).map(|store| store_kind(store, &text)).unwrap_or_else(|| {
            match status(&text) {
                Some(code) => of_status(code),
                None if text.contains("error sending request") => ErrorKind::Unavailable,
                None => ErrorKind::Data,
            }
        });
    with_remedy(Error::new(kind, format!("can't {doing}")).with("table", table))
        .caused_by(Cause(plain(&text)))
}

/// An error of a commit.
pub(crate) fn from_transaction(error: &TransactionError, doing: &str, table: impl Display) -> Error {
    match error {
        TransactionError::UnsupportedTableFeatures(features) => {
            let mut names: Vec<String> = features.iter().map(ToString::to_string).collect();
            names.sort();
            Error::unsupported("the table uses features that aren't supported here")
                .with("table", table)
                .with("features", names.join(", "))
                .remedy("write it with the engine that owns it, or drop the features from the table")
        }
        TransactionError::DeltaTableAppendOnly => Error::config("the table only takes appended rows")
            .with("table", table)
            .remedy("use `mode: append`, or unset the table's property delta.appendOnly"),
        TransactionError::ObjectStore { source } => from_store(source, doing, table),
        TransactionError::CommitConflict(_) | TransactionError::MaxCommitAttempts(_) => {
            Error::new(ErrorKind::Conflict, "other writers changed the table at the same time")
                .with("table", table)
                .caused_by(Cause(plain(&error.to_string())))
        }
        other => {
            Error::data(format!("can't {doing}")).with("table", table).caused_by(Cause(plain(&chain(other))))
        }
    }
}

/// An error of DataFusion, which reads for us.
pub(crate) fn from_datafusion(
    error: &deltalake::datafusion::error::DataFusionError,
    doing: &str,
    table: impl Display,
) -> Error {
    use deltalake::datafusion::error::DataFusionError as DataFusion;
    let text = chain(error);
    let kind = match error.find_root() {
        DataFusion::ResourcesExhausted(_) => ErrorKind::Resources,
        root => find_store_error(root).map_or(ErrorKind::Data, |store| store_kind(store, &text)),
    };
    with_remedy(Error::new(kind, format!("can't {doing}")).with("table", table))
        .caused_by(Cause(plain(&text)))
}

/// There is no table.
pub(crate) fn missing(table: impl Display) -> Error {
    Error::not_found("there is no Delta table").with("table", table).remedy("check the path")
}

fn store_kind(error: &object_store::Error, text: &str) -> ErrorKind {
    use object_store::Error as Store;
    match error {
        Store::NotFound { .. } => ErrorKind::NotFound,
        Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => ErrorKind::Auth,
        Store::InvalidPath { .. } | Store::UnknownConfigurationKey { .. } => ErrorKind::Config,
        Store::NotSupported { .. } | Store::NotImplemented { .. } => ErrorKind::Unsupported,
        Store::AlreadyExists { .. } | Store::Precondition { .. } => ErrorKind::Conflict,
        _ => status(text).map_or(ErrorKind::Unavailable, of_status),
    }
}

fn of_status(code: u16) -> ErrorKind {
    match code {
        401 | 403 => ErrorKind::Auth,
        404 => ErrorKind::NotFound,
        429 => ErrorKind::RateLimited,
        _ => ErrorKind::Unavailable,
    }
}

fn with_remedy(error: Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => error.remedy("check the path"),
        ErrorKind::Auth => error.remedy("check the credentials in `storage` or in the environment"),
        ErrorKind::Unavailable => {
            error.remedy("check that the server runs and can be reached under this address")
        }
        ErrorKind::Resources => error.remedy("raise the pipeline's memory limit, or use fewer lanes"),
        _ => error,
    }
}

fn find_store_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a object_store::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(store) = error.downcast_ref::<object_store::Error>() {
            return Some(store);
        }
        next = error.source();
    }
    None
}

/// The texts of an error and its causes, each once.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    text
}

/// What a library said, without what may be secret in it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Cause(String);

/// How the library says what it can't do.
const UNSUPPORTED: &str = "Unsupported: ";

const STATUS: &str = "status code: ";

fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once(STATUS)?;
    rest.get(..3)?.parse().ok()
}

/// The text without a server's answer, which may quote the request, and with bare URLs.
fn plain(text: &str) -> String {
    let text = match text.split_once(STATUS) {
        Some((before, rest)) => {
            let reason = rest.split_once(": ").map_or(rest, |(reason, _)| reason);
            format!("{before}{STATUS}{reason}")
        }
        None => text.to_owned(),
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        out.push_str(before);
        let end = url.find(|c: char| c.is_whitespace() || "\"'()<>".contains(c)).unwrap_or(url.len());
        let (url, after) = url.split_at(end);
        let authority = url.find(['/', '?', '#']).unwrap_or(url.len());
        let host = url[..authority].rfind('@').map_or(0, |at| at + 1);
        out.push_str(url[host..].split(['?', '#']).next().unwrap_or_default());
        rest = after;
    }
    out.push_str(rest);
    if let Some((end, _)) = out.char_indices().nth(LONGEST_CAUSE) {
        out.truncate(end);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_hold_no_secrets() {
        let text = "Generic S3 error: GET http://me:hush@host:1/b/k?sig=hush - status code: 403 Forbidden: \
                    <Error><StringToSign>hush</StringToSign></Error>";
        let said = plain(text);
        assert!(!said.contains("hush"), "{said}");
        assert!(said.ends_with("status code: 403 Forbidden"), "{said}");
        assert_eq!(status(text), Some(403));
    }

    #[test]
    fn a_missing_table_is_not_found() {
        let error = from_delta(&DeltaTableError::NotATable("x".into()), "open the table", "t");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
