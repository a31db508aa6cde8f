//! DataFusion's errors as Orbit's. Their texts quote cell values, so that no text of an error that
//! a row can cause is ever passed on.

use std::error::Error as StdError;
use std::sync::Arc;

use arrow::error::ArrowError;
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use orbit_etl_core::{Error, StreamInfo};

/// The most names that an error lists.
const MOST_NAMES: usize = 60;

/// An error of parsing or planning: its text holds nothing but the query's own words and the names
/// and types of columns.
pub(super) fn planning(error: &DataFusionError, inputs: &[StreamInfo]) -> Error {
    match error.find_root() {
        DataFusionError::SchemaError(schema, _) => schema_error(schema, inputs),
        DataFusionError::SQL(parser, _) => {
            Error::config(format!("the query can't be parsed: {}", strip(&parser.to_string())))
        }
        DataFusionError::NotImplemented(text) => {
            Error::unsupported(format!("the query can't be planned: {}", strip(text)))
        }
        DataFusionError::Plan(text) if text.starts_with("Invalid function") => {
            Error::config(format!("the query can't be planned: {}", strip(text)))
                .remedy("register a function of the host with `Sql::with_udf`, `with_udaf` or `with_udwf`")
        }
        other => Error::config(format!("the query can't be planned: {}", plain(other))),
    }
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
            Error::not_found("the query names a column that isn't there")
                .with("column", field.quoted_flat_name())
                .with("columns", list(known))
                .remedy("correct the name; letters count as written where a name is in double quotes")
        }
        SchemaError::AmbiguousReference { field } => {
            Error::config("the query names a column that more than one of its tables has")
                .with("column", field.quoted_flat_name())
                .remedy("put the table's name before it: table.column")
        }
        SchemaError::DuplicateQualifiedField { name, .. }
        | SchemaError::DuplicateUnqualifiedField { name } => twice(name),
    }
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

/// An error of a running query, without its text where a row may have caused it.
pub(super) fn running(error: &DataFusionError) -> Error {
    match cause(error) {
        Cause::Row(why) => Error::data(format!("an expression of the query failed on a row: {why}")).remedy(
            "use try_cast or a condition that keeps such rows out, or convert the column in an sql node of \
             its own before this one: there each failing row is rejected by itself",
        ),
        Cause::Memory(text) => Error::resources(
            "the query needs more memory than the pipeline's limit leaves it",
        )
        .remedy(
            "raise the pipeline's memory limit, lower its parallelism or the rows of a batch, or join \
                     with `joins: sort_merge`, which spills",
        )
        .caused_by(text),
        Cause::Disk(error) => Error::resources("data of the query can't be spilled or read back")
            .remedy("make room in the spill directory, or name another one")
            .caused_by(error),
        Cause::Other(text) => Error::internal(format!("the query can't be run: {text}")),
    }
}

/// Why an expression failed on one row, or `None` if the rows are not to blame.
pub(super) fn blame(error: &DataFusionError) -> Option<&'static str> {
    match cause(error) {
        Cause::Row(why) => Some(why),
        _ => None,
    }
}

enum Cause {
    /// A value in a row. The text is ours.
    Row(&'static str),
    /// The memory pool said no.
    Memory(String),
    /// Spilling failed.
    Disk(std::io::Error),
    /// Neither the rows nor the resources.
    Other(&'static str),
}

fn cause(error: &DataFusionError) -> Cause {
    match error {
        DataFusionError::ArrowError(arrow, _) => arrow_cause(arrow),
        DataFusionError::Execution(_) | DataFusionError::Ffi(_) => Cause::Row("a value doesn't fit"),
        DataFusionError::ResourcesExhausted(text) => Cause::Memory(strip(text)),
        DataFusionError::IoError(e) => Cause::Disk(same(e)),
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => cause(inner),
        DataFusionError::Shared(inner) => cause(inner),
        DataFusionError::Collection(all) => match all.first() {
            Some(first) => cause(first),
            None => Cause::Other("no reason given"),
        },
        DataFusionError::External(inner) => foreign(inner.as_ref()),
        DataFusionError::ExecutionJoin(_) => Cause::Other("one of its tasks died"),
        DataFusionError::NotImplemented(_) => {
            Cause::Other("DataFusion doesn't implement this for these types")
        }
        _ => Cause::Other("DataFusion met an error of its own"),
    }
}

fn arrow_cause(error: &ArrowError) -> Cause {
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
        ArrowError::ExternalError(inner) => foreign(inner.as_ref()),
        ArrowError::IoError(_, e) => Cause::Disk(same(e)),
        ArrowError::MemoryError(_) => Cause::Memory("arrow ran out of memory".into()),
        ArrowError::NotYetImplemented(_) => Cause::Other("Arrow doesn't implement this for these types"),
        _ => Cause::Other("Arrow met an error of its own"),
    }
}

/// Errors that came out of a host's function, or ours and DataFusion's in a wrapping.
fn foreign(error: &(dyn StdError + Send + Sync + 'static)) -> Cause {
    if let Some(inner) = error.downcast_ref::<DataFusionError>() {
        cause(inner)
    } else if let Some(inner) = error.downcast_ref::<Arc<DataFusionError>>() {
        cause(inner)
    } else if let Some(inner) = error.downcast_ref::<ArrowError>() {
        arrow_cause(inner)
    } else {
        Cause::Row("a function failed")
    }
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
