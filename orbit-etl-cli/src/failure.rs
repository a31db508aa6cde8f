//! How a command fails: what is told on standard error, and the exit code.

use std::process::ExitCode;

use orbit_etl::spec::SpecError;
use orbit_etl::{Error, ErrorKind};

use crate::load::Loaded;

/// Why the command ends otherwise than well.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

/// The exit codes of failures.
const FAILED: u8 = 1;
const BAD_SPEC: u8 = 2;
const FENCED: u8 = 3;
const CEILING: u8 = 4;

impl Failure {
    /// Something that isn't the spec's fault.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: FAILED }
    }

    /// A mistake in what the user has written.
    pub(crate) fn mistake(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: BAD_SPEC }
    }

    /// An error of a plan or a run, at its place in the spec.
    pub(crate) fn of(one: &Loaded, error: &Error) -> Self {
        // A transform's configuration is all that it has: a column that isn't there is a slip in it.
        let in_transform = || {
            let name = error.context("node");
            one.pipeline
                .nodes()
                .iter()
                .any(|node| node.role == "transform" && Some(node.name.as_str()) == name)
        };
        let code = match error.kind() {
            ErrorKind::Fenced => FENCED,
            _ if error.is_ceiling() => CEILING,
            ErrorKind::Config => BAD_SPEC,
            ErrorKind::NotFound | ErrorKind::Schema | ErrorKind::Unsupported if in_transform() => BAD_SPEC,
            _ => FAILED,
        };
        Self { message: one.spec.locate(error).to_string(), code }
    }

    /// What is told.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The same, with where it came up.
    pub(crate) fn within(mut self, place: &str) -> Self {
        self.message =
            self.message.lines().map(|line| format!("{place}: {line}")).collect::<Vec<_>>().join("\n");
        self
    }

    /// Further failures, told below this one; the first one's code stays.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.message.push('\n');
        self.message.push_str(&other.message);
        self
    }

    /// Says why, on standard error.
    pub(crate) fn tell(self) -> ExitCode {
        for line in self.message.lines() {
            eprintln!("error: {line}");
        }
        ExitCode::from(self.code)
    }
}

impl From<SpecError> for Failure {
    fn from(error: SpecError) -> Self {
        Self { message: error.to_string(), code: BAD_SPEC }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = if error.kind() == ErrorKind::Config { BAD_SPEC } else { FAILED };
        Self { message: error.report(), code }
    }
}
