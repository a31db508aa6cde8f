//! Records that were rejected, read once more.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema};
use orbit_etl_core::{Context, Error, Payload, Reject, Result, SourceEvent, SplitId, StreamId};

use super::adapt::Adapt;
use super::csv::{CsvRecords, read_head};
use super::infer::csv_names;
use super::input::Input;
use super::json::JsonRecords;
use super::list::{FileEntry, list};
use super::text::{Limits, Place, Records, Text, TextPosition, TextReader};
use super::{Extra, FilesSource, Resolved};
use crate::format::Format;

/// Where the text of a record begins, so that nothing at its start is taken for a byte order mark.
const BEHIND_MARK: TextPosition = TextPosition { row: 0, byte: 1, line: 0 };

/// Reads each record as if it stood in its file: by the file's header, and with its partitions. What is
/// still malformed is rejected again, from the place where it first stood.
pub(crate) async fn decode(
    source: &FilesSource,
    cx: &Context,
    resolved: &Resolved,
    records: Vec<Reject>,
) -> Result<Vec<SourceEvent>> {
    if !matches!(resolved.format, Format::Csv | Format::Json) {
        return Err(Error::unsupported(format!("records of {} files can't be read again", resolved.format))
            .remedy("mend the file and load it anew"));
    }
    let location = source.location()?;
    let listed = list(&location, Some(resolved.format), source.partitions).await?;
    let mut heads: HashMap<String, Head> = HashMap::new();
    let mut batches = Vec::new();
    let mut rejects = Vec::new();
    for record in records {
        let place = record.origin.place.clone().unwrap_or_default();
        let Some(file) =
            listed.iter().filter(|file| stands_in(&place, &file.name)).max_by_key(|f| f.name.len())
        else {
            return Err(Error::not_found("the file from which a rejected record came is gone")
                .with("place", place)
                .remedy("put it back until the record is sent again: its header and its folder say what the record means"));
        };
        if !heads.contains_key(&file.name) {
            let head = Head::read(source, resolved, &location, file).await?;
            heads.insert(file.name.clone(), head);
        }
        let Payload::Raw(text) = &record.payload else {
            return Err(Error::internal("a record of a file is kept as a row").with("place", place));
        };
        let input = Input::of(text.clone(), &file.name);
        let text = Text { input, buffer: Vec::new(), at: BEHIND_MARK };
        let limits = Limits { rows: cx.batch_rows().max(1), max_record: source.max_record };
        let place = Place {
            file: file.clone(),
            split: SplitId::new("again"),
            stream: StreamId(0),
            stream_name: source.stream_name().to_owned(),
            start: 0,
        };
        let reader = Reading { text, place, limits };
        let events = match heads.get(&file.name) {
            Some(Head { names: Some(names), adapt }) => {
                let fields: Vec<_> = names
                    .iter()
                    .map(|name| match resolved.schema.field_with_name(name) {
                        Ok(field) => field.clone(),
                        Err(_) => Field::new(name, DataType::Utf8, true),
                    })
                    .collect();
                let schema = Arc::new(Schema::new(fields));
                let inferred = source.schema.is_none();
                let records =
                    CsvRecords::new(&source.csv, source.keep_empty, &schema, &adapt.read, inferred)?;
                reader.events(records, adapt.clone()).await?
            }
            Some(Head { names: None, adapt }) => {
                let fields: Vec<_> =
                    adapt.read.iter().map(|i| Arc::clone(&resolved.schema.fields()[*i])).collect();
                let strict = resolved.extra == Extra::Error;
                let records =
                    JsonRecords::new(Arc::new(Schema::new(fields)), strict, source.schema.is_none())?;
                reader.events(records, adapt.clone()).await?
            }
            None => Vec::new(),
        };
        for event in events {
            match event {
                SourceEvent::Batch { batch, .. } => batches.push(batch),
                SourceEvent::Rejects { rejects: still, .. } => rejects
                    .extend(still.into_iter().map(|still| Reject { origin: record.origin.clone(), ..still })),
                _ => {}
            }
        }
    }
    let mut events = Vec::new();
    if let Some(first) = batches.first() {
        let batch = concat_batches(&first.schema(), &batches)
            .map_err(|e| Error::internal("rows of one stream differ").caused_by(e))?;
        events.push(SourceEvent::Batch { stream: StreamId(0), batch, position: None });
    }
    if !rejects.is_empty() {
        events.push(SourceEvent::Rejects { rejects, position: None });
    }
    Ok(events)
}

/// Whether a place (`FILE, byte 1, line 2`) is in this file.
fn stands_in(place: &str, file: &str) -> bool {
    place.strip_prefix(file).is_some_and(|rest| rest.is_empty() || rest.starts_with(", byte "))
}

/// What a file says of its records.
struct Head {
    /// The columns of CSV.
    names: Option<Vec<String>>,
    adapt: Adapt,
}

impl Head {
    async fn read(
        source: &FilesSource,
        resolved: &Resolved,
        location: &crate::location::Location,
        file: &FileEntry,
    ) -> Result<Self> {
        if resolved.format == Format::Json {
            let columns: Vec<_> = resolved.schema.fields().iter().map(|f| (f.name().clone(), None)).collect();
            let adapt = Adapt::new(resolved, None, &columns, file)?;
            let adapt =
                if resolved.extra == Extra::Error { adapt.reading_all(&columns, file) } else { adapt };
            return Ok(Self { names: None, adapt });
        }
        let compression = source.compression_of(Format::Csv, &file.name);
        let mut input = Input::open(location, file, compression, 0, None).await?;
        let head = read_head(&mut input, &source.csv, file, source.max_record).await?;
        let names = csv_names(source, resolved, head.names, file);
        let columns: Vec<_> = names.iter().map(|name| (name.clone(), None)).collect();
        let adapt = Adapt::new(resolved, None, &columns, file)?;
        Ok(Self { names: Some(names), adapt })
    }
}

/// One record that is being read.
struct Reading {
    text: Text,
    place: Place,
    limits: Limits,
}

impl Reading {
    async fn events<R: Records>(self, records: R, adapt: Adapt) -> Result<Vec<SourceEvent>> {
        let mut reader = TextReader::new(records, adapt, self.text, self.place, self.limits)?;
        let mut events = Vec::new();
        while let Some(event) = reader.next().await? {
            events.push(event);
        }
        Ok(events)
    }
}
