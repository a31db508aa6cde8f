//! One error for the whole engine: what kind, where, whether a second try can help, and what to do.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// A result with Orbit's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The piece of the place that errors about too many rejected rows have: how many were allowed.
pub(crate) const CEILING: &str = "ceiling";

type Source = Box<dyn StdError + Send + Sync + 'static>;

/// What went wrong, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The configuration can't work as written.
    Config,
    /// The request is understood, but this connector, transform or version can't do it.
    Unsupported,
    /// A file, table, topic or column isn't there.
    NotFound,
    /// Credentials are missing, wrong or lack a right.
    Auth,
    /// Schemas don't fit each other, or can't be read.
    Schema,
    /// A value or a record is malformed.
    Data,
    /// Somebody else changed the same thing at the same time.
    Conflict,
    /// No answer in time.
    Timeout,
    /// The other side is down, unreachable or overloaded.
    Unavailable,
    /// The other side asked to slow down.
    RateLimited,
    /// Memory, disk or another bounded resource is used up.
    Resources,
    /// The run was told to stop.
    Cancelled,
    /// A newer run of the same pipeline has taken over.
    Fenced,
    /// A bug in Orbit or in a connector.
    Internal,
}

impl ErrorKind {
    /// The kind as it stands in dead letters, logs and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Unsupported => "unsupported",
            Self::NotFound => "not_found",
            Self::Auth => "auth",
            Self::Schema => "schema",
            Self::Data => "data",
            Self::Conflict => "conflict",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::RateLimited => "rate_limited",
            Self::Resources => "resources",
            Self::Cancelled => "cancelled",
            Self::Fenced => "fenced",
            Self::Internal => "internal",
        }
    }

    /// The kind that [`as_str`](Self::as_str) has told.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let all = [
            Self::Config,
            Self::Unsupported,
            Self::NotFound,
            Self::Auth,
            Self::Schema,
            Self::Data,
            Self::Conflict,
            Self::Timeout,
            Self::Unavailable,
            Self::RateLimited,
            Self::Resources,
            Self::Cancelled,
            Self::Fenced,
            Self::Internal,
        ];
        all.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Whether errors of this kind usually pass by themselves; the default of
    /// [`Error::is_retryable`].
    fn usually_passes(self) -> bool {
        matches!(self, Self::Conflict | Self::Timeout | Self::Unavailable | Self::RateLimited)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The error of every public function of the engine.
///
/// It never carries a cell value or a secret: connectors say *where* a bad value stands, not what
/// it is. `Display` prints the message, the context and the remedy; [`Error::report`] adds the
/// chain of sources.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Inner>);

#[derive(Debug, thiserror::Error)]
struct Inner {
    kind: ErrorKind,
    retryable: bool,
    message: String,
    context: Vec<(&'static str, String)>,
    remedy: Option<String>,
    retry_after: Option<Duration>,
    taken: Option<usize>,
    #[source]
    source: Option<Source>,
}

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if !self.context.is_empty() {
            f.write_str(" (")?;
            for (i, (key, value)) in self.context.iter().enumerate() {
                let comma = if i == 0 { "" } else { ", " };
                write!(f, "{comma}{key}: {value}")?;
            }
            f.write_str(")")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

impl Error {
    /// An error of `kind`; retryable if errors of that kind usually pass by themselves.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            retryable: kind.usually_passes(),
            message: message.into(),
            context: Vec::new(),
            remedy: None,
            retry_after: None,
            taken: None,
            source: None,
        }))
    }

    /// [`ErrorKind::Config`].
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// [`ErrorKind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// [`ErrorKind::Schema`].
    pub fn schema(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Schema, message)
    }

    /// [`ErrorKind::Data`].
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, message)
    }

    /// [`ErrorKind::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// [`ErrorKind::Resources`].
    pub fn resources(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Resources, message)
    }

    /// [`ErrorKind::Fenced`].
    pub fn fenced(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Fenced, message)
    }

    /// [`ErrorKind::Cancelled`].
    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "the run was told to stop")
    }

    /// [`ErrorKind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Adds one named piece of the place: `node`, `file`, `line`, `column`, `split` …
    /// The innermost caller is listed first; a key that is already there keeps its value.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        if !self.0.context.iter().any(|(k, _)| *k == key) {
            self.0.context.push((key, value.to_string()));
        }
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// Keeps the cause; its text must be free of cell values and secrets.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Overrides whether the same request may succeed when sent again.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// The other side asked not to be called again before this has passed (`Retry-After`).
    #[must_use]
    pub fn retry_after(mut self, pause: Duration) -> Self {
        self.0.retry_after = Some(pause);
        self
    }

    /// Of a [`SinkWriter`](crate::SinkWriter): the writer is whole and may be called again. Of the batch it
    /// has taken the first `rows` rows and nothing of the others. Of a call that takes no batch, 0 says that
    /// it did nothing. Without this, a writer that failed is never called again.
    #[must_use]
    pub fn taken(mut self, rows: usize) -> Self {
        self.0.taken = Some(rows);
        self
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same request may succeed when sent again; decided where the error was made.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// How long the other side asked to be left alone.
    pub fn pause_asked(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// How many rows of the batch a writer has taken, if it can go on after the error.
    pub fn rows_taken(&self) -> Option<usize> {
        self.0.taken
    }

    /// Whether the run stopped because more rows were rejected than
    /// [`OnError`](crate::OnError) allows.
    pub fn is_ceiling(&self) -> bool {
        self.context(CEILING).is_some()
    }

    /// The message alone, without place, remedy and cause.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// One piece of the place.
    pub fn context(&self, key: &str) -> Option<&str> {
        self.0.context.iter().find(|(k, _)| *k == key).map(|(_, v)| v.as_str())
    }

    /// Every piece of the place.
    pub(crate) fn contexts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.context.iter().map(|(key, value)| (*key, value.as_str()))
    }

    /// What to do about it.
    pub(crate) fn remedy_text(&self) -> Option<&str> {
        self.0.remedy.as_deref()
    }

    /// The whole story in one line: message, place, remedy and every cause.
    pub fn report(&self) -> String {
        let mut text = format!("{}: {self}", self.kind());
        let mut cause = StdError::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// Adds context to the error of a result in passing.
pub trait ResultExt<T> {
    /// [`Error::with`] on the error, if there is one.
    fn with(self, key: &'static str, value: impl fmt::Display) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn with(self, key: &'static str, value: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.with(key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_has_place_and_remedy_and_report_has_the_cause() {
        let cause = std::io::Error::other("disk on fire");
        let error = Error::resources("can't write")
            .with("file", "a.csv")
            .with("file", "ignored")
            .with("node", "out")
            .remedy("free some space")
            .caused_by(cause);
        assert_eq!(error.to_string(), "can't write (file: a.csv, node: out); free some space");
        assert_eq!(
            error.report(),
            "resources: can't write (file: a.csv, node: out); free some space: disk on fire"
        );
        assert_eq!(error.context("file"), Some("a.csv"));
        assert!(!error.is_retryable());
        assert!(Error::unavailable("down").is_retryable());
    }
}
