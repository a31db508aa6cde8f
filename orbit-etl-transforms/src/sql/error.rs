//! DataFusion's errors as Orbit's. Their texts quote cell values, so that no text of an error that
//! a row can cause is ever passed on.

use std::error::Error as StdError;
use std::sync::Arc;

use arrow::error::ArrowError;
use datafusion::common::utils::datafusion_strsim::levenshtein;
use datafusion::common::{SchemaError, Span};
use datafusion::error::DataFusionError;
use orbit_etl_core::{Error, ErrorKind, StreamInfo};

use super::pool::Refused;

/// The most names that an error lists.
const MOST_NAMES: usize = 60;

const MORE_MEMORY: &str = "raise the pipeline's memory limit, lower its parallelism or the rows of a batch, \
                           or join with `joins: sort_merge`, which spills";

/// Where in the query.
const AT: &str = "at";

/// An error of parsing or planning: its text holds nothing but the query's own words and the names
/// and types of columns.
pub(super) fn planning(error: &DataFusionError, inputs: &[StreamInfo]) -> Error {
    let made = match error.find_root() {
        DataFusionError::SchemaError(schema, _) => schema_error(schema, inputs),
        DataFusionError::SQL(parser, _) => parsing(&parser.to_string()),
        DataFusionError::NotImplemented(text) => {
            Error::unsupported(format!("the query can't be planned: {}", strip(text)))
        }
        DataFusionError::Plan(text) if text.starts_with("Invalid function") => unknown_function(text),
        other => Error::config(format!("the query can't be planned: {}", plain(other))),
    };
    located(made, error.diagnostic().and_then(|d| d.span))
}

/// The parser's words, with the place taken out of them.
fn parsing(text: &str) -> Error {
    let text = strip(text);
    let place = text.rfind(" at Line: ").and_then(|start| {
        let (line, column) = text[start + " at Line: ".len()..].split_once(", Column: ")?;
        Some((start, line.parse::<u64>().ok()?, column.trim_end_matches('.').parse::<u64>().ok()?))
    });
    match place {
        Some((start, line, column)) => {
            Error::config(format!("the query can't be parsed: {}", &text[..start])).with(AT, at(line, column))
        }
        None => Error::config(format!("the query can't be parsed: {text}")),
    }
}

fn unknown_function(text: &str) -> Error {
    let text = strip(text);
    let register = "register a function of the host with `Sql::with_udf`, `with_udaf` or `with_udwf`";
    let mut quoted = text.split('\'').skip(1).step_by(2);
    let name = quoted.next().unwrap_or_default();
    let remedy = match nearest(name, quoted) {
        Some(near) => format!("did you mean `{near}`? Otherwise {register}"),
        None => register.to_owned(),
    };
    Error::config("the query calls a function that isn't there").with("function", name).remedy(remedy)
}

fn schema_error(error: &SchemaError, inputs: &[StreamInfo]) -> Error {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let known: Vec<String> = if valid_fields.is_empty() {
                let columns = inputs.iter().flat_map(|i| i.schema.fields().iter());
                columns.map(|f| f.name().clone()).collect()
            } else {
                valid_fields.iter().map(|c| c.name.clone()).collect()
            };
            let remedy = match nearest(&field.name, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "correct the name; letters count as written where a name is in double quotes".into(),
            };
            let error = Error::not_found("the query names a column that isn't there")
                .with("column", field.quoted_flat_name())
                .with("columns", list(known))
                .remedy(remedy);
            located(error, field.spans().first())
        }
        SchemaError::AmbiguousReference { field } => {
            let error = Error::config("the query names a column that more than one of its tables has")
                .with("column", field.quoted_flat_name())
                .remedy("put the table's name before it: table.column");
            located(error, field.spans().first())
        }
        SchemaError::DuplicateQualifiedField { name, .. }
        | SchemaError::DuplicateUnqualifiedField { name } => twice(name),
    }
}

/// A table that is no input. `place` is the line and the column of its name.
pub(super) fn unknown_table(
    named: &str,
    place: Option<(u64, u64)>,
    known: impl Iterator<Item = String>,
) -> Error {
    let known: Vec<String> = known.collect();
    let add = "a table is an input of this node, by its name; add it to the node's inputs";
    let remedy = match nearest(named, known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`? Otherwise: {add}"),
        None => add.to_owned(),
    };
    let error = Error::not_found("the query names a table that isn't there")
        .with("table", named)
        .with("tables", list(known))
        .remedy(remedy);
    match place {
        Some((line, column)) => error.with(AT, at(line, column)),
        None => error,
    }
}

fn located(error: Error, span: Option<Span>) -> Error {
    match span {
        Some(span) if span.start.line > 0 => error.with(AT, at(span.start.line, span.start.column)),
        _ => error,
    }
}

fn at(line: u64, column: u64) -> String {
    format!("line {line}, column {column}")
}

/// The known name that a wrong one was probably meant to be.
fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wrong = wrong.to_lowercase();
    let away = |name: &str| levenshtein(&wrong, &name.to_lowercase());
    let (away, name) = known.map(|name| (away(name), name)).min_by_key(|(away, _)| *away)?;
    (away <= (wrong.chars().count() / 3).max(1)).then_some(name)
}

/// Two columns of one name.
pub(super) fn twice(name: &str) -> Error {
    Error::config("two columns of the query's result have the same name")
        .with("column", name)
        .remedy("give one of them another name with AS")
}

/// Names for an error, not too many of them.
pub(super) fn list(names: impl IntoIterator<Item = String>) -> String {
    let mut names: Vec<String> = names.into_iter().collect();
    names.dedup();
    let more = names.len().saturating_sub(MOST_NAMES);
    names.truncate(MOST_NAMES);
    let mut text = names.join(", ");
    if more > 0 {
        text.push_str(&format!(", and {more} more"));
    }
    text
}

/// What can be behind an error of a running query.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suspects {
    /// A function of the host was called.
    pub(super) host: bool,
    /// Data was spilled to disk.
    pub(super) disk: bool,
}

/// What a function of ours died of.
#[derive(Debug, thiserror::Error)]
#[error("an expression panicked")]
pub(super) struct Panicked;

/// An error of a running query, without its text where a row may have caused it.
pub(super) fn running(error: &DataFusionError, suspects: Suspects) -> Error {
    match cause(error, suspects) {
        Cause::Row(why) => Error::data(format!("an expression of the query failed on a row: {why}")).remedy(
            "use try_cast or a condition that keeps such rows out, or convert the column in an sql node of \
             its own before this one: there each failing row is rejected by itself",
        ),
        Cause::Memory(text) => {
            Error::resources("the query needs more memory than the pipeline's limit leaves it")
                .remedy(MORE_MEMORY)
                .caused_by(text)
        }
        Cause::Disk(error) => Error::resources("data of the query can't be spilled or read back")
            .remedy("make room in the spill directory, or name another one")
            .caused_by(error),
        Cause::Environment(error) => *error,
        Cause::Lacking(text) => Error::unsupported(format!("the query can't be run: {text}"))
            .remedy("cast to another type, or write it in another way"),
        Cause::Other(text) => Error::internal(format!("the query can't be run: {text}")),
    }
}

/// Adds to an error of lacking memory who lacked it, and which limit would have done.
pub(super) fn short_of(error: Error, refused: Refused) -> Error {
    let mib = refused.enough.div_ceil(1 << 20);
    error.with("operator", refused.who).remedy(format!(
        "this step would have passed with a memory limit of {mib} MiB, a later one may want more: {MORE_MEMORY}"
    ))
}

/// Why an expression failed on one row, or `None` if the rows are not to blame.
pub(super) fn blame(error: &DataFusionError, suspects: Suspects) -> Option<&'static str> {
    match cause(error, suspects) {
        Cause::Row(why) => Some(why),
        _ => None,
    }
}

/// Whether the memory pool said no.
pub(super) fn lacks_memory(error: &DataFusionError, suspects: Suspects) -> bool {
    matches!(cause(error, suspects), Cause::Memory(_))
}

enum Cause {
    /// A value in a row. The text is ours.
    Row(&'static str),
    /// The memory pool said no.
    Memory(String),
    /// Spilling failed.
    Disk(std::io::Error),
    /// Something outside that a function needs.
    Environment(Box<Error>),
    /// Nobody has written that yet.
    Lacking(&'static str),
    /// Neither the rows nor the resources.
    Other(&'static str),
}

fn cause(error: &DataFusionError, suspects: Suspects) -> Cause {
    match error {
        DataFusionError::ArrowError(arrow, _) => arrow_cause(arrow, suspects),
        DataFusionError::Execution(_) => Cause::Row("a value doesn't fit"),
        DataFusionError::ResourcesExhausted(text) => Cause::Memory(strip(text)),
        DataFusionError::IoError(e) => io_cause(e, suspects),
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => cause(inner, suspects),
        DataFusionError::Shared(inner) => cause(inner, suspects),
        DataFusionError::Collection(all) => match all.first() {
            Some(first) => cause(first, suspects),
            None => Cause::Other("no reason given"),
        },
        DataFusionError::External(inner) => foreign(inner.as_ref(), suspects),
        // Whatever it was on the other side, a text is all that is left of it.
        DataFusionError::Ffi(_) => down(ErrorKind::Unavailable),
        DataFusionError::ObjectStore(_) => down(ErrorKind::Unavailable),
        DataFusionError::ExecutionJoin(_) => Cause::Other("one of its tasks died"),
        DataFusionError::NotImplemented(_) => {
            Cause::Lacking("DataFusion doesn't implement this for these types")
        }
        _ => Cause::Other("DataFusion met an error of its own"),
    }
}

fn arrow_cause(error: &ArrowError, suspects: Suspects) -> Cause {
    match error {
        ArrowError::DivideByZero => Cause::Row("division by zero"),
        ArrowError::ArithmeticOverflow(_) | ArrowError::OffsetOverflowError(_) => Cause::Row("overflow"),
        ArrowError::CastError(_) | ArrowError::ParseError(_) => {
            Cause::Row("a value can't be converted to the wanted type")
        }
        ArrowError::ComputeError(_) | ArrowError::InvalidArgumentError(_) => {
            Cause::Row("a value doesn't fit")
        }
        ArrowError::JsonError(_) | ArrowError::CsvError(_) | ArrowError::AvroError(_) => {
            Cause::Row("a value can't be read")
        }
        ArrowError::DictionaryKeyOverflowError | ArrowError::RunEndIndexOverflowError => {
            Cause::Row("overflow")
        }
        ArrowError::ExternalError(inner) => foreign(inner.as_ref(), suspects),
        ArrowError::IoError(_, e) => io_cause(e, suspects),
        ArrowError::MemoryError(_) => Cause::Memory("arrow ran out of memory".into()),
        ArrowError::NotYetImplemented(_) => Cause::Lacking("Arrow doesn't implement this for these types"),
        _ => Cause::Other("Arrow met an error of its own"),
    }
}

/// Errors that came out of a function, or ours and DataFusion's in a wrapping.
fn foreign(error: &(dyn StdError + Send + Sync + 'static), suspects: Suspects) -> Cause {
    if let Some(inner) = error.downcast_ref::<DataFusionError>() {
        cause(inner, suspects)
    } else if let Some(inner) = error.downcast_ref::<Arc<DataFusionError>>() {
        cause(inner, suspects)
    } else if let Some(inner) = error.downcast_ref::<ArrowError>() {
        arrow_cause(inner, suspects)
    } else if let Some(said) = error.downcast_ref::<Error>() {
        if said.kind() == ErrorKind::Data {
            return Cause::Row("a function refuses a value");
        }
        let error = Error::new(said.kind(), format!("a function of the query failed: {said}"));
        Cause::Environment(Box::new(error.retryable(said.is_retryable())))
    } else if error.is::<Panicked>() {
        Cause::Other("an expression panicked; its message is on standard error")
    } else if let Some(io) = error.downcast_ref::<std::io::Error>() {
        io_cause(io, Suspects { disk: false, ..suspects })
    } else if suspects.host {
        down(ErrorKind::Unavailable)
    } else {
        // DataFusion's functions put the errors of their parsers there.
        Cause::Row("a function failed")
    }
}

fn io_cause(error: &std::io::Error, suspects: Suspects) -> Cause {
    if suspects.disk {
        return Cause::Disk(same(error));
    }
    match error.kind() {
        std::io::ErrorKind::TimedOut => down(ErrorKind::Timeout),
        _ => down(ErrorKind::Unavailable),
    }
}

fn down(kind: ErrorKind) -> Cause {
    let error = Error::new(kind, "a function of the query can't do its work, whatever the row").remedy(
        "see to what the function needs; one that means a row's value returns an Execution error, and one \
         whose error should be shown in its own words wraps an orbit_etl_core::Error",
    );
    Cause::Environment(Box::new(error))
}

fn same(error: &std::io::Error) -> std::io::Error {
    match error.raw_os_error() {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => std::io::Error::from(error.kind()),
    }
}

fn plain(error: &DataFusionError) -> String {
    strip(&error.message())
}

/// Without a backtrace and in one line.
fn strip(text: &str) -> String {
    let text = text.split(DataFusionError::BACK_TRACE_SEP).next().unwrap_or(text);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
