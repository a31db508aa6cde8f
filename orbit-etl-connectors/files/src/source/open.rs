//! From a split to its events.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use orbit_etl_core::{
    Context, Error, ErrorKind, Position, Result, ScanRequest, SourceEvent, Split, SplitId, StreamId,
};
use serde::{Deserialize, Serialize};

use super::adapt::Adapt;
use super::csv::{CsvRecords, read_head};
use super::infer::csv_names;
use super::input::{Input, is_changed};
use super::json::JsonRecords;
use super::list::FileEntry;
use super::text::{Limits, Place, Records, Text, TextPosition, TextReader};
use super::{Changed, Extra, FilesSource, Resolved, avro, ipc, parquet, prune};
use crate::format::Format;
use crate::location::Location;

/// All that is needed to open a split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Payload {
    pub(crate) file: FileEntry,
    /// Text: the bytes from the first record to the end of the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<(u64, u64)>,
    /// CSV: the columns of the header that stands outside these bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) header: Option<Vec<String>>,
    /// Parquet: the first row group and the one behind the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) row_groups: Option<(usize, usize)>,
}

/// A split that is being opened.
pub(crate) struct Opening<'a> {
    pub(crate) source: &'a FilesSource,
    pub(crate) cx: &'a Context,
    pub(crate) resolved: &'a Resolved,
    pub(crate) location: Location,
    pub(crate) payload: Payload,
    pub(crate) split: SplitId,
    pub(crate) after: Option<&'a Position>,
    pub(crate) scan: ScanRequest,
}

impl Opening<'_> {
    pub(crate) fn projection(&self) -> Option<&[String]> {
        self.scan.projection.as_deref()
    }

    /// The position, in the form of this format.
    pub(crate) fn position<T: serde::de::DeserializeOwned>(&self) -> Result<Option<T>> {
        let Some(Position(value)) = self.after else { return Ok(None) };
        serde_json::from_value(value.clone()).map(Some).map_err(|e| {
            Error::config("the position can't be read")
                .with("split", &self.split)
                .remedy("it belongs to another format or version; start over with a new state directory")
                .caused_by(e)
        })
    }
}

/// Opens one split.
pub(crate) async fn open(
    source: &FilesSource,
    cx: &Context,
    resolved: &Resolved,
    split: &Split,
    after: Option<&Position>,
    scan: Option<&ScanRequest>,
) -> Result<BoxStream<'static, Result<SourceEvent>>> {
    let payload: Payload = serde_json::from_value(split.payload.clone())
        .map_err(|e| Error::internal("a split can't be read").with("split", &split.id).caused_by(e))?;
    let scan = scan.cloned().unwrap_or_else(|| ScanRequest::all(StreamId(0), cx.batch_rows()));
    let constants = Adapt::constants(resolved, &payload.file)?;
    if !scan.filters.iter().all(|f| prune::may_match(f, &prune::Constants(&constants))) {
        return Ok(stream::iter([Ok(SourceEvent::Finished)]).boxed());
    }
    let name = payload.file.name.clone();
    let opening = Opening {
        source,
        cx,
        resolved,
        location: source.location()?,
        payload,
        split: split.id.clone(),
        after,
        scan,
    };
    let opened = match resolved.format {
        Format::Csv => csv(&opening).await,
        Format::Json => json(&opening).await,
        Format::Parquet => parquet::open(&opening).await,
        Format::Avro => avro::open(&opening, place(&opening)).await,
        Format::Arrow => ipc::open(&opening).await,
    };
    match opened {
        Ok(events) if source.changed == Changed::Reload => Ok(until_changed(events)),
        // The whole file comes again under another stamp, or never.
        Err(e) if source.changed == Changed::Reload && (is_changed(&e) || is_gone(&e)) => {
            tracing::warn!(file = name, "the rest of a file is left out, as it is not what was listed");
            Ok(stream::iter([Ok(SourceEvent::Finished)]).boxed())
        }
        Err(e) if is_gone(&e) => Err(e.with("file", name).remedy(
            "put the file back; or set `changed: reload`, which goes on without what wasn't read of it",
        )),
        opened => opened.map_err(|e| e.with("file", name)),
    }
}

/// The events up to where the file turns out to be another one: that one is a split of its own as
/// soon as the files are listed again.
fn until_changed(events: BoxStream<'static, Result<SourceEvent>>) -> BoxStream<'static, Result<SourceEvent>> {
    stream::unfold(Some(events), |events| async move {
        let mut events = events?;
        match events.next().await? {
            Err(e) if is_changed(&e) || is_gone(&e) => Some((Ok(SourceEvent::Finished), None)),
            event => Some((event, Some(events))),
        }
    })
    .boxed()
}

/// Whether the file of a split isn't there any more.
fn is_gone(error: &Error) -> bool {
    error.kind() == ErrorKind::NotFound
}

/// The columns of a file that describes itself.
pub(crate) async fn file_schema(
    source: &FilesSource,
    format: Format,
    location: &Location,
    file: &FileEntry,
) -> Result<SchemaRef> {
    match format {
        Format::Parquet => parquet::schema(location, file).await,
        Format::Avro => avro::schema(location, file, source.max_record).await,
        Format::Arrow => ipc::schema(location, file).await,
        Format::Csv | Format::Json => Err(Error::internal("text has no schema of its own")),
    }
}

async fn csv(opening: &Opening<'_>) -> Result<BoxStream<'static, Result<SourceEvent>>> {
    let Opening { source, resolved, payload, location, .. } = opening;
    let file = &payload.file;
    let compression = source.compression_of(Format::Csv, &file.name);
    let after = opening.position::<TextPosition>()?;
    let (names, text) = match (&payload.header, payload.bytes) {
        (Some(names), Some((from, to))) => {
            let at = after.unwrap_or(TextPosition { byte: from, ..TextPosition::default() });
            let input = Input::open(location, file, compression, at.byte, Some(to)).await?;
            (names.clone(), Text { input, buffer: Vec::new(), at })
        }
        _ => {
            let mut input = Input::open(location, file, compression, 0, None).await?;
            let head = read_head(&mut input, &source.csv, file, source.max_record).await?;
            let names = csv_names(source, resolved, head.names, file);
            match after {
                None => {
                    let at = TextPosition { row: 0, byte: head.byte, line: head.lines };
                    (names, Text { input, buffer: head.rest, at })
                }
                Some(at) => {
                    let input = Input::open(location, file, compression, at.byte, None).await?;
                    (names, Text { input, buffer: Vec::new(), at })
                }
            }
        }
    };
    if names.is_empty() {
        return Ok(stream::iter([Ok(SourceEvent::Finished)]).boxed());
    }
    let columns: Vec<_> = names.iter().map(|n| (n.clone(), None)).collect();
    let adapt = Adapt::new(resolved, opening.projection(), &columns, file)?;
    let fields: Vec<_> = names
        .iter()
        .map(|name| match resolved.schema.field_with_name(name) {
            Ok(field) => field.clone(),
            Err(_) => Field::new(name, DataType::Utf8, true),
        })
        .collect();
    let schema = Arc::new(Schema::new(fields));
    let inferred = source.schema.is_none();
    let records = CsvRecords::new(&source.csv, source.keep_empty, &schema, &adapt.read, inferred)?;
    text_events(opening, records, adapt, text)
}

async fn json(opening: &Opening<'_>) -> Result<BoxStream<'static, Result<SourceEvent>>> {
    let Opening { source, resolved, payload, location, .. } = opening;
    let file = &payload.file;
    let compression = source.compression_of(Format::Json, &file.name);
    let (from, to) = payload.bytes.map_or((0, None), |(from, to)| (from, Some(to)));
    let at = opening.position()?.unwrap_or(TextPosition { byte: from, ..TextPosition::default() });
    let input = Input::open(location, file, compression, at.byte, to).await?;

    let columns: Vec<_> = resolved.schema.fields().iter().map(|f| (f.name().clone(), None)).collect();
    let adapt = Adapt::new(resolved, opening.projection(), &columns, file)?;
    // A strict decoder has to know every column, also those that nobody asked for.
    let strict = resolved.extra == Extra::Error;
    let adapt = if strict { adapt.reading_all(&columns, file) } else { adapt };
    let fields: Vec<_> = adapt.read.iter().map(|i| Arc::clone(&resolved.schema.fields()[*i])).collect();
    let records = JsonRecords::new(Arc::new(Schema::new(fields)), strict, source.schema.is_none())?;
    text_events(opening, records, adapt, Text { input, buffer: Vec::new(), at })
}

fn text_events<R: Records + 'static>(
    opening: &Opening<'_>,
    records: R,
    adapt: Adapt,
    text: Text,
) -> Result<BoxStream<'static, Result<SourceEvent>>> {
    let limits = Limits { rows: opening.scan.batch_rows.max(1), max_record: opening.source.max_record };
    let reader = TextReader::new(records, adapt, text, place(opening), limits)?.reserving(opening.cx);
    let events = stream::try_unfold(reader, |mut reader| async move {
        Ok(reader.next().await?.map(|event| (event, reader)))
    });
    Ok(finished(events.boxed()))
}

fn place(opening: &Opening<'_>) -> Place {
    Place {
        file: opening.payload.file.clone(),
        split: opening.split.clone(),
        stream: opening.scan.stream,
        stream_name: opening.source.stream_name().to_string(),
        start: opening.payload.bytes.map_or(0, |(from, _)| from),
    }
}

/// The events of a reader, then the end.
pub(crate) fn finished(
    events: BoxStream<'static, Result<SourceEvent>>,
) -> BoxStream<'static, Result<SourceEvent>> {
    events
        .map(|event| event.map(Some))
        .chain(stream::iter([Ok(None)]))
        .map_ok(|event| event.unwrap_or(SourceEvent::Finished))
        .boxed()
}
