//! How foreign errors become Orbit's: the right kind, the table, a remedy, and no cell value.

use std::error::Error as StdError;
use std::fmt::Display;

use iceberg::ErrorKind as Iceberg;
use orbit_etl_core::{Error, ErrorKind};

/// The longest text of a cause that an error carries on.
const LONGEST_CAUSE: usize = 500;

/// An error of a catalog, of metadata or of a data file.
pub(crate) fn from_iceberg(error: &iceberg::Error, doing: &str, table: impl Display) -> Error {
    let text = chain(error);
    let kind = match error.kind() {
        Iceberg::TableNotFound | Iceberg::NamespaceNotFound => ErrorKind::NotFound,
        Iceberg::FeatureUnsupported => ErrorKind::Unsupported,
        Iceberg::CatalogCommitConflicts
        | Iceberg::PreconditionFailed
        | Iceberg::TableAlreadyExists
        | Iceberg::NamespaceAlreadyExists => ErrorKind::Conflict,
        // The crate puts failures of files and of servers under these two.
        _ => kind_of_cause(error, &text).unwrap_or(match error.kind() {
            Iceberg::DataInvalid => ErrorKind::Data,
            _ => ErrorKind::Unavailable,
        }),
    };
    let error = Error::new(kind, format!("can't {doing}")).with("table", table);
    let error = match kind {
        ErrorKind::NotFound => error.remedy("check the table's name, and that its files are there"),
        ErrorKind::Auth => error.remedy("check the credentials of the catalog and of `storage`"),
        ErrorKind::Unavailable => {
            error.remedy("check that the server runs and can be reached under this address")
        }
        _ => error,
    };
    error.caused_by(Cause(plain(&text)))
}

/// What the crate says, for an error that is told in our own words.
pub(crate) fn cause(error: &iceberg::Error) -> impl std::error::Error + Send + Sync + 'static {
    Cause(plain(&chain(error)))
}

/// A table that isn't there, or isn't the one that it was.
pub(crate) fn replaced(table: impl Display) -> Error {
    Error::new(ErrorKind::Conflict, "the table was dropped and made anew, or another one has its name")
        .retryable(false)
        .with("table", table)
        .remedy("restore the table, or run the pipeline with a new state directory")
}

fn kind_of_cause(error: &(dyn StdError + 'static), text: &str) -> Option<ErrorKind> {
    use std::io::ErrorKind as Io;
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(store) = error.downcast_ref::<object_store::Error>() {
            return Some(of_store(store, text));
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(match io.kind() {
                Io::NotFound => ErrorKind::NotFound,
                Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Auth,
                Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::Resources,
                _ => ErrorKind::Unavailable,
            });
        }
        next = error.source();
    }
    if let Some(code) = status(text) {
        return Some(of_status(code));
    }
    text.contains("error sending request").then_some(ErrorKind::Unavailable)
}

fn of_store(error: &object_store::Error, text: &str) -> ErrorKind {
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
        400 | 405 | 406 | 422 => ErrorKind::Config,
        409 => ErrorKind::Conflict,
        429 => ErrorKind::RateLimited,
        _ => ErrorKind::Unavailable,
    }
}

/// The number of an HTTP status that the text tells of.
fn status(text: &str) -> Option<u16> {
    ["status code: ", "status: "].iter().find_map(|mark| {
        let (_, rest) = text.split_once(mark)?;
        rest.get(..3)?.parse().ok()
    })
}

/// The texts of an error and its causes, each once. The first one's context, which quotes answers of
/// servers, comes down to the status.
fn chain(error: &iceberg::Error) -> String {
    let shown = error.to_string();
    let mut text = error.message().to_owned();
    if let Some(code) = status(&shown) {
        text.push_str(&format!(" (status: {code})"));
    }
    let mut next = error.source();
    while let Some(cause) = next {
        let more = match cause.downcast_ref::<iceberg::Error>() {
            Some(inner) => inner.message().to_owned(),
            None => cause.to_string(),
        };
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

/// The text with bare URLs, and not too long.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
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
        let refused = iceberg::Error::new(Iceberg::Unexpected, "Received response")
            .with_context("status", "401 Unauthorized")
            .with_context("json", "hush");
        let told = from_iceberg(&refused, "load the table", "a.b");
        assert_eq!(told.kind(), ErrorKind::Auth);
        assert!(!told.report().contains("hush"), "{}", told.report());
        assert!(!plain("GET http://me:hush@host:1/b?sig=hush").contains("hush"));
    }

    #[test]
    fn the_cause_decides_the_kind() {
        let gone =
            object_store::Error::NotFound { path: "x".into(), source: Box::new(std::io::Error::other("x")) };
        let error = iceberg::Error::new(Iceberg::Unexpected, "can't read").with_source(gone);
        let outer = iceberg::Error::new(Iceberg::Unexpected, "task").with_source(error);
        assert_eq!(from_iceberg(&outer, "read", "t").kind(), ErrorKind::NotFound);
        let refused = iceberg::Error::new(Iceberg::FeatureUnsupported, "no");
        assert_eq!(from_iceberg(&refused, "read", "t").kind(), ErrorKind::Unsupported);
    }
}
