//! Which columns a set of files has.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use orbit_etl_core::{Context, Error, Result, SourceEvent, SplitId, StreamId};

use super::adapt::Adapt;
use super::csv::{CsvRecords, read_head};
use super::dialect::Dialect;
use super::input::Input;
use super::list::{self, FileEntry};
use super::text::{BOM, Limits, Place, Text, TextPosition, TextReader};
use super::token::{Broken, Json, Token};
use super::{Extra, FilesSource, Missing, Resolved};
use crate::format::Format;
use crate::location::Location;
use crate::schema::{Guess, common, guess, guess_number};

/// Rows that are decoded at a time while guessing.
const GUESS_ROWS: usize = 1_000;

/// Lists the files and finds their schema.
pub(crate) async fn resolve(source: &FilesSource, _cx: &Context) -> Result<Resolved> {
    let location = source.location()?;
    let files = list::list(&location, source.known_format(), source.partitions).await?;
    let format = format_of(source, &files)?;
    let (schema, reference) = match &source.schema {
        Some(columns) => (Arc::clone(&columns.0), "schema".to_string()),
        None => found(source, &location, format, &files).await?,
    };
    Ok(Resolved {
        format,
        schema: with_partitions(&schema, &files, source.schema.is_some()),
        reference,
        missing: source.missing,
        extra: source.extra,
    })
}

/// The one format of all files.
pub(crate) fn format_of(source: &FilesSource, files: &[FileEntry]) -> Result<Format> {
    if let Some(format) = source.format {
        return Ok(format);
    }
    let mut first: Option<(Format, &FileEntry)> = None;
    for file in files {
        let Some((format, _)) = Format::from_path(&file.name) else {
            return Err(Error::config("the name doesn't tell the format")
                .with("file", &file.name)
                .remedy("name the format"));
        };
        match first {
            None => first = Some((format, file)),
            Some((known, other)) if known != format => {
                return Err(Error::config(format!("the files have different formats: {known} and {format}"))
                    .with("file", &file.name)
                    .with("other file", &other.name)
                    .remedy("name the format, or use a glob"));
            }
            Some(_) => {}
        }
    }
    first.map(|(format, _)| format).ok_or_else(|| Error::not_found("there are no files"))
}

async fn found(
    source: &FilesSource,
    location: &Location,
    format: Format,
    files: &[FileEntry],
) -> Result<(SchemaRef, String)> {
    let sample = || files.iter().filter(|f| f.size > 0 || !format.is_text()).take(source.sample_files);
    let Some(reference) = sample().next() else {
        return Err(Error::schema("all files are empty, so they have no columns")
            .with("path", location)
            .remedy("give `schema`"));
    };
    let schema = match format {
        Format::Csv | Format::Json => {
            let mut columns = Vec::new();
            for file in sample() {
                let kinds = match format {
                    Format::Csv => csv_kinds(source, location, file).await?,
                    _ => json_kinds(source, location, file).await?,
                };
                for (name, kind) in kinds {
                    let merged = merge_kind(&mut columns, name, kind);
                    merged.map_err(|e: Error| e.with("file", &file.name))?;
                }
            }
            let fields: Vec<_> = columns.into_iter().map(|(name, kind)| kind.into_field(&name)).collect();
            if fields.is_empty() {
                return Err(Error::schema("no columns were found in the files looked at")
                    .with("file", &reference.name)
                    .remedy("check the format, or give `schema`"));
            }
            Arc::new(Schema::new(fields))
        }
        Format::Parquet | Format::Avro | Format::Arrow => {
            let mut merged: Vec<(Field, &FileEntry)> = Vec::new();
            for file in sample() {
                let schema = super::open::file_schema(source, format, location, file).await?;
                merge_fields(&mut merged, &schema, file)?;
            }
            Arc::new(Schema::new(merged.into_iter().map(|(f, _)| f).collect::<Vec<_>>()))
        }
    };
    Ok((schema, reference.name.clone()))
}

fn merge_fields<'a>(
    merged: &mut Vec<(Field, &'a FileEntry)>,
    schema: &Schema,
    file: &'a FileEntry,
) -> Result<()> {
    for field in schema.fields() {
        let Some((known, other)) = merged.iter_mut().find(|(f, _)| f.name() == field.name()) else {
            merged.push((field.as_ref().clone().with_nullable(true), file));
            continue;
        };
        let Some(kind) = common(known.data_type(), field.data_type()) else {
            return Err(Error::schema(format!(
                "a column has type {} in one file and {} in another",
                known.data_type(),
                field.data_type()
            ))
            .with("file", &file.name)
            .with("other file", &other.name)
            .with("column", field.name())
            .remedy("give `schema`, or read the files as two sources"));
        };
        *known = known.clone().with_data_type(kind);
    }
    Ok(())
}

/// The files' columns without those of the partitions, then these.
fn with_partitions(schema: &SchemaRef, files: &[FileEntry], given: bool) -> SchemaRef {
    let Some(first) = files.first().filter(|f| !f.partitions.is_empty()) else { return Arc::clone(schema) };
    let is_partition = |name: &str| first.partitions.iter().any(|(column, _)| column == name);
    let mut fields: Vec<Arc<Field>> =
        schema.fields().iter().filter(|f| given || !is_partition(f.name())).cloned().collect();
    for (index, (column, _)) in first.partitions.iter().enumerate() {
        if given && schema.column_with_name(column).is_some() {
            continue;
        }
        let kind = files
            .iter()
            .filter_map(|f| f.partitions.get(index)?.1.as_deref())
            .map(guess)
            .reduce(Guess::or)
            .unwrap_or(Guess::Text);
        fields.push(Arc::new(Field::new(column, kind.data_type(), true)));
    }
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

/// What a text column seems to hold.
#[derive(Debug, Clone, PartialEq)]
enum Kind {
    /// Nothing but NULL so far.
    Null,
    Scalar(Guess),
    List(Box<Kind>),
    Struct(Vec<(String, Kind)>),
}

impl Kind {
    fn into_field(self, name: &str) -> Field {
        let kind = self.into_type();
        Field::new(name, kind, true)
    }

    fn into_type(self) -> DataType {
        match self {
            Self::Null => DataType::Utf8,
            Self::Scalar(guess) => guess.data_type(),
            Self::List(item) => DataType::List(Arc::new(Field::new_list_field(item.into_type(), true))),
            Self::Struct(fields) => {
                DataType::Struct(fields.into_iter().map(|(name, kind)| kind.into_field(&name)).collect())
            }
        }
    }

    fn merge(&mut self, other: Self, name: &str) -> Result<()> {
        match (&mut *self, other) {
            (_, Self::Null) => {}
            (Self::Null, other) => *self = other,
            (Self::Scalar(a), Self::Scalar(b)) => *a = a.or(b),
            (Self::List(a), Self::List(b)) => a.merge(*b, name)?,
            (Self::Struct(a), Self::Struct(b)) => {
                for (inner, kind) in b {
                    merge_kind(a, inner, kind)?;
                }
            }
            _ => {
                return Err(Error::schema("a key holds an object or a list here and something else there")
                    .with("column", name)
                    .remedy("give `schema`; records that don't fit are rejected then"));
            }
        }
        Ok(())
    }
}

fn merge_kind(columns: &mut Vec<(String, Kind)>, name: String, kind: Kind) -> Result<()> {
    match columns.iter_mut().find(|(known, _)| *known == name) {
        Some((_, known)) => known.merge(kind, &name),
        None => {
            columns.push((name, kind));
            Ok(())
        }
    }
}

/// Reads the first rows as text and guesses.
async fn csv_kinds(
    source: &FilesSource,
    location: &Location,
    file: &FileEntry,
) -> Result<Vec<(String, Kind)>> {
    let compression = source.compression_of(Format::Csv, &file.name);
    let mut input = Input::open(location, file, compression, 0, None).await?;
    let head = read_head(&mut input, &source.csv, file, source.max_record).await?;
    if head.names.is_empty() {
        return Ok(Vec::new());
    }
    let fields: Vec<_> = head.names.iter().map(|n| Field::new(n, DataType::Utf8, true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let text = Resolved {
        format: Format::Csv,
        schema: Arc::clone(&schema),
        reference: file.name.clone(),
        missing: Missing::Null,
        extra: Extra::Ignore,
    };
    let bare = FileEntry { partitions: Vec::new(), ..file.clone() };
    let names: Vec<_> = head.names.iter().map(|n| (n.clone(), None)).collect();
    let adapt = Adapt::new(&text, None, &names, &bare)?;
    let all: Vec<_> = (0..names.len()).collect();
    let records = CsvRecords::new(&source.csv, false, &schema, &all, false)?;
    let at = TextPosition { row: 0, byte: head.byte, line: head.lines };
    let place = Place {
        file: bare,
        split: SplitId::new("sample"),
        stream: StreamId(0),
        stream_name: String::new(),
        start: 0,
    };
    let limits = Limits { rows: GUESS_ROWS.min(source.sample_rows), max_record: source.max_record };
    let mut reader = TextReader::new(records, adapt, Text { input, buffer: head.rest, at }, place, limits)?;

    let mut guesses: Vec<Option<Guess>> = vec![None; names.len()];
    let mut rows = 0;
    while rows < source.sample_rows {
        let Some(event) = reader.next().await? else { break };
        let batch = match event {
            SourceEvent::Batch { batch, .. } => batch,
            // They count, or a file of nothing else would be read to its end.
            SourceEvent::Rejects { rejects, .. } => {
                rows += rejects.len();
                continue;
            }
            _ => continue,
        };
        if rows >= source.sample_rows {
            break;
        }
        let batch = batch.slice(0, batch.num_rows().min(source.sample_rows - rows));
        rows += batch.num_rows();
        for (known, column) in guesses.iter_mut().zip(batch.columns()) {
            for value in column.as_string::<i32>().iter().flatten() {
                *known = Some(known.map_or_else(|| guess(value), |k| k.or(guess(value))));
                if *known == Some(Guess::Text) {
                    break;
                }
            }
        }
    }
    let kinds = guesses.into_iter().map(|g| g.map_or(Kind::Null, Kind::Scalar));
    Ok(names.into_iter().map(|(name, _)| name).zip(kinds).collect())
}

/// Parses the first lines and guesses.
async fn json_kinds(
    source: &FilesSource,
    location: &Location,
    file: &FileEntry,
) -> Result<Vec<(String, Kind)>> {
    let compression = source.compression_of(Format::Json, &file.name);
    let mut input = Input::open(location, file, compression, 0, None).await?;
    let mut buffer = Vec::new();
    let (mut begin, mut rows, mut good, mut eof) = (0, 0, 0, false);
    // The rest of a line that is too long is passed by.
    let mut long = false;
    let mut columns = Vec::new();
    while rows < source.sample_rows {
        let rest = &buffer[begin..];
        let (line, next) = match memchr::memchr(b'\n', rest) {
            Some(end) => (&rest[..end], begin + end + 1),
            None if eof && rest.is_empty() => break,
            None if eof => (rest, buffer.len()),
            None => {
                long |= rest.len() > source.max_record;
                buffer.drain(..if long { buffer.len() } else { begin });
                begin = 0;
                eof = !input.fill(&mut buffer).await?;
                continue;
            }
        };
        let line = if rows == 0 { line.strip_prefix(BOM).unwrap_or(line) } else { line };
        if long || !line.trim_ascii().is_empty() {
            rows += 1;
            if !long && line.len() <= source.max_record {
                let kinds = line_kinds(line).map_err(|e| e.with("file", &file.name).with("line", rows))?;
                good += usize::from(kinds.is_some());
                for (name, kind) in kinds.unwrap_or_default() {
                    merge_kind(&mut columns, name, kind)
                        .map_err(|e| e.with("file", &file.name).with("line", rows))?;
                }
            }
            long = false;
        }
        begin = next;
    }
    if rows > 0 && good == 0 {
        return Err(Error::schema("no line is a JSON object")
            .with("file", &file.name)
            .remedy("write one object a line, without an array around them"));
    }
    Ok(columns)
}

/// The keys of a line and what they hold; `None` if the line is not a JSON object.
fn line_kinds(line: &[u8]) -> Result<Option<Vec<(String, Kind)>>> {
    let Ok(line) = std::str::from_utf8(line) else { return Ok(None) };
    let mut json = Json::new(line);
    let Ok(Token::Object) = json.value() else { return Ok(None) };
    let mut whole = json.clone();
    if whole.skip(Token::Object).and_then(|()| whole.end()).is_err() {
        return Ok(None);
    }
    match json_kind(&mut json, Token::Object)? {
        Kind::Struct(fields) => Ok(Some(fields)),
        _ => Ok(None),
    }
}

/// What a value is, in JSON that was found to be whole.
fn json_kind<'a>(json: &mut Json<'a>, token: Token<'a>) -> Result<Kind> {
    let broken = |_: Broken| Error::internal("a line was JSON once, and then not");
    Ok(match token {
        Token::Null => Kind::Null,
        Token::Boolean(_) => Kind::Scalar(Guess::Bool),
        // Texts stay texts: JSON has types of its own.
        Token::String(_) => Kind::Scalar(Guess::Text),
        Token::Number(text) => Kind::Scalar(guess_number(text).unwrap_or(Guess::Text)),
        Token::List => {
            let mut item = Kind::Null;
            let mut first = true;
            while json.item(first).map_err(broken)? {
                first = false;
                let value = json.value().map_err(broken)?;
                item.merge(json_kind(json, value)?, "list item")?;
            }
            Kind::List(Box::new(item))
        }
        Token::Object => {
            let mut fields = Vec::new();
            let mut scratch = String::new();
            let mut first = true;
            while let Some(key) = json.key(first).map_err(broken)? {
                first = false;
                let name = key.text(&mut scratch).to_string();
                let value = json.value().map_err(broken)?;
                let kind = json_kind(json, value)?;
                // A key that comes twice makes the record malformed, which the reading says.
                if !fields.iter().any(|(known, _)| *known == name) {
                    fields.push((name, kind));
                }
            }
            Kind::Struct(fields)
        }
    })
}

/// The names that stand for a CSV file's fields: the header's, or the schema's in order.
pub(crate) fn csv_names(
    source: &FilesSource,
    resolved: &Resolved,
    names: Vec<String>,
    file: &FileEntry,
) -> Vec<String> {
    if source.csv.header || source.schema.is_none() {
        return names;
    }
    let is_partition = |name: &str| file.partitions.iter().any(|(column, _)| column == name);
    resolved.schema.fields().iter().map(|f| f.name()).filter(|n| !is_partition(n)).cloned().collect()
}

/// The characters of CSV, for finding the ends of records; none for JSON lines.
pub(crate) fn dialect(source: &FilesSource, format: Format) -> Option<Dialect> {
    (format == Format::Csv).then(|| Dialect::from(&source.csv))
}
