//! How foreign errors become Orbit's: the right kind, the file, a remedy, and no cell value.

use std::fmt::Display;

use orbit_etl_core::{Error, ErrorKind};

/// The longest text of a store's answer that an error carries on.
const LONGEST_CAUSE: usize = 500;

/// An error of the file system.
pub(crate) fn from_io(error: std::io::Error, doing: &str, file: impl Display) -> Error {
    use std::io::ErrorKind as Io;
    let (kind, remedy) = match error.kind() {
        _ if lacks_handles(&error) => (
            ErrorKind::Resources,
            Some("raise the limit of open files (`ulimit -n`), or lower `max_open_files` or the parallelism"),
        ),
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

/// Whether the process, or the machine, has too many files open. The standard library has no name
/// for it.
fn lacks_handles(error: &std::io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    cfg!(unix) && matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

/// An error of an object store.
pub(crate) fn from_store(error: object_store::Error, doing: &str, file: impl Display) -> Error {
    use object_store::Error as Store;
    let text = error.to_string();
    let kind = match &error {
        Store::NotFound { .. } => ErrorKind::NotFound,
        Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => ErrorKind::Auth,
        Store::InvalidPath { .. } | Store::UnknownConfigurationKey { .. } => ErrorKind::Config,
        Store::NotSupported { .. } | Store::NotImplemented { .. } => ErrorKind::Unsupported,
        Store::AlreadyExists { .. } | Store::Precondition { .. } => ErrorKind::Conflict,
        // Listings and uploads don't tell refusals from failures.
        _ => match status(&text) {
            Some(401 | 403) => ErrorKind::Auth,
            Some(404) => ErrorKind::NotFound,
            Some(429) => ErrorKind::RateLimited,
            Some(_) => ErrorKind::Unavailable,
            // The last place where credentials are looked for on a cloud's own machines.
            None if text.contains("//169.254.169.254") || text.contains("//metadata.google.internal") => {
                ErrorKind::Auth
            }
            None => ErrorKind::Unavailable,
        },
    };
    let remedy = match kind {
        ErrorKind::NotFound => Some("check the path"),
        ErrorKind::Auth => Some("check the credentials in `storage` or in the environment"),
        ErrorKind::Unavailable => Some("check that the server runs and can be reached under this address"),
        ErrorKind::RateLimited => {
            Some("use fewer lanes, or raise `max_retries` and `retry_timeout` in `storage`")
        }
        _ => None,
    };
    let mut out = Error::new(kind, format!("can't {doing}")).with("file", file);
    if let Some(remedy) = remedy {
        out = out.remedy(remedy);
    }
    out.caused_by(Cause(plain(&text)))
}

/// Whether a store says that an object is not what was asked for any more: another tag, or too
/// short for the range.
pub(crate) fn says_changed(error: &object_store::Error) -> bool {
    match error {
        object_store::Error::Precondition { .. } => true,
        object_store::Error::Generic { .. } => status(&error.to_string()) == Some(416),
        _ => false,
    }
}

/// What a store's client said, without what may be secret in it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Cause(String);

const STATUS: &str = "status code: ";

/// The status of the answer that a text tells of.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once(STATUS)?;
    rest.get(..3)?.parse().ok()
}

/// The text without the answer's body, which may quote the request, and with bare URLs.
fn plain(text: &str) -> String {
    let mut out = match text.split_once(STATUS) {
        Some((before, rest)) => {
            let (reason, body) = rest.split_once(": ").unwrap_or((rest, ""));
            let code = body.split_once("<Code>").and_then(|(_, code)| code.split_once("</Code>"));
            let code = code.map(|(code, _)| format!(" ({code})")).unwrap_or_default();
            format!("{}{STATUS}{reason}{code}", bare(before))
        }
        None => bare(text.split_once("error response: ").map_or(text, |(before, _)| before)),
    };
    if let Some((end, _)) = out.char_indices().nth(LONGEST_CAUSE) {
        out.truncate(end);
    }
    out
}

/// The text with its URLs' user names, passwords and query strings left out.
fn bare(text: &str) -> String {
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
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn too_many_open_files_are_a_lack_of_resources() {
        for code in [23, 24] {
            let error = from_io(std::io::Error::from_raw_os_error(code), "make a staged file", "x");
            assert_eq!(error.kind(), ErrorKind::Resources);
            assert!(error.to_string().contains("ulimit"), "{error}");
        }
    }

    #[test]
    fn causes_hold_no_secrets() {
        let text = "Generic S3 error: Error performing GET http://me:hush@host:1/b/k?sig=hush&x=1 in 3ms - \
                    Server returned non-2xx status code: 403 Forbidden: <Error><Code>SignatureDoesNotMatch\
                    </Code><StringToSign>hush</StringToSign></Error>";
        let said = plain(text);
        assert!(!said.contains("hush"), "{said}");
        assert!(said.contains("GET http://host:1/b/k in 3ms"), "{said}");
        assert!(said.ends_with("403 Forbidden (SignatureDoesNotMatch)"), "{said}");
        assert_eq!(status(text), Some(403));
        assert_eq!(plain("a://b?c"), "a://b");
    }
}
