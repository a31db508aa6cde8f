//! Arrow IPC, as a file and as a stream.

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamDecoder;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use orbit_etl_core::{Error, Result, SourceEvent, StreamId};
use serde::{Deserialize, Serialize};

use super::adapt::Adapt;
use super::input::Input;
use super::list::FileEntry;
use super::open::{Opening, finished};
use crate::format::Compression;
use crate::location::Location;

const MAGIC: &[u8] = b"ARROW1";
/// Magic and shortest padding before the messages of a file.
const FILE_HEAD: u64 = 8;
/// Longer paddings than this are not known.
const LONGEST_HEAD: u64 = 4_096;
/// The footer's length and the magic behind it.
const FILE_TAIL: u64 = 10;

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct RowPosition {
    row: u64,
}

/// The columns of a file.
pub(crate) async fn schema(location: &Location, file: &FileEntry) -> Result<SchemaRef> {
    Messages::open(location, file).await?.schema().await
}

/// Opens a file.
pub(crate) async fn open(opening: &Opening<'_>) -> Result<BoxStream<'static, Result<SourceEvent>>> {
    let file = &opening.payload.file;
    let mut messages = Messages::open(&opening.location, file).await?;
    let schema = messages.schema().await?;
    let found: Vec<_> =
        schema.fields().iter().map(|f| (f.name().clone(), Some(f.data_type().clone()))).collect();
    let rows = Rows {
        messages,
        adapt: Adapt::new(opening.resolved, opening.projection(), &found, file)?,
        skip: opening.position::<RowPosition>()?.map_or(0, |p| p.row),
        row: 0,
        rest: None,
        rows: opening.scan.batch_rows.max(1),
        stream: opening.scan.stream,
    };
    let events =
        stream::try_unfold(rows, |mut rows| async move { Ok(rows.next().await?.map(|event| (event, rows))) });
    Ok(finished(events.boxed()))
}

struct Rows {
    messages: Messages,
    adapt: Adapt,
    /// Rows that went out before.
    skip: u64,
    /// Rows passed.
    row: u64,
    /// What is left of a batch that is larger than wanted.
    rest: Option<RecordBatch>,
    rows: usize,
    stream: StreamId,
}

impl Rows {
    async fn next(&mut self) -> Result<Option<SourceEvent>> {
        loop {
            let batch = match self.rest.take() {
                Some(batch) => batch,
                None => match self.messages.next().await? {
                    Some(batch) => batch,
                    None => return Ok(None),
                },
            };
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(batch.num_rows());
            self.skip -= skipped as u64;
            self.row += skipped as u64;
            let batch = batch.slice(skipped, batch.num_rows() - skipped);
            if batch.num_rows() == 0 {
                continue;
            }
            let taken = batch.num_rows().min(self.rows);
            if taken < batch.num_rows() {
                self.rest = Some(batch.slice(taken, batch.num_rows() - taken));
            }
            self.row += taken as u64;
            let read = batch
                .slice(0, taken)
                .project(&self.adapt.read)
                .map_err(|e| Error::internal("can't pick columns").caused_by(e))?;
            let position = Some(serde_json::json!({ "row": self.row }).into());
            return Ok(Some(SourceEvent::Batch {
                stream: self.stream,
                batch: self.adapt.apply(&read)?,
                position,
            }));
        }
    }
}

/// The messages of a file or a stream: a file is a stream with a frame around it.
struct Messages {
    input: Input,
    decoder: StreamDecoder,
    buffer: Buffer,
    /// A batch that came along with the schema.
    early: Option<RecordBatch>,
    name: String,
}

impl Messages {
    async fn open(location: &Location, file: &FileEntry) -> Result<Self> {
        let mut head = Vec::new();
        let to = Some(file.size.min(LONGEST_HEAD));
        let mut input = Input::open(location, file, Compression::None, 0, to).await?;
        while input.fill(&mut head).await? {}
        let (from, to) = match head.strip_prefix(MAGIC) {
            None => (0, file.size),
            Some(after) => {
                // Writers pad to the alignment that they like; no message begins with a zero.
                let padding = after.iter().position(|b| *b != 0).ok_or_else(|| broken(&file.name))?;
                ((MAGIC.len() + padding) as u64, body_end(location, file).await?)
            }
        };
        let input = Input::open(location, file, Compression::None, from, Some(to)).await?;
        Ok(Self {
            input,
            decoder: StreamDecoder::new(),
            buffer: Buffer::from_vec(Vec::<u8>::new()),
            early: None,
            name: file.name.clone(),
        })
    }

    async fn schema(&mut self) -> Result<SchemaRef> {
        loop {
            if let Some(schema) = self.decoder.schema() {
                return Ok(schema);
            }
            match self.read().await? {
                Some(batch) => self.early = Some(batch),
                None if self.decoder.schema().is_none() => return Err(broken(&self.name)),
                None => {}
            }
        }
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        match self.early.take() {
            Some(batch) => Ok(Some(batch)),
            None => self.read().await,
        }
    }

    async fn read(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if !self.buffer.is_empty() {
                match self.decoder.decode(&mut self.buffer) {
                    Ok(Some(batch)) => return Ok(Some(batch)),
                    Ok(None) => continue,
                    Err(e) => return Err(broken(&self.name).caused_by(e)),
                }
            }
            let mut chunk = Vec::new();
            if !self.input.fill(&mut chunk).await? {
                self.decoder.finish().map_err(|e| broken(&self.name).caused_by(e))?;
                return Ok(None);
            }
            self.buffer = Buffer::from_vec(chunk);
        }
    }
}

/// Where the footer of a file begins.
async fn body_end(location: &Location, file: &FileEntry) -> Result<u64> {
    let from = file.size.checked_sub(FILE_TAIL).ok_or_else(|| broken(&file.name))?;
    let mut input = Input::open(location, file, Compression::None, from, Some(file.size)).await?;
    let mut tail = Vec::new();
    while input.fill(&mut tail).await? {}
    let length = match tail.split_first_chunk::<4>() {
        Some((length, magic)) if magic == MAGIC => u64::try_from(i32::from_le_bytes(*length)).ok(),
        _ => None,
    };
    length
        .and_then(|length| from.checked_sub(length))
        .filter(|end| *end >= FILE_HEAD)
        .ok_or_else(|| broken(&file.name))
}

fn broken(name: &str) -> Error {
    Error::data("the file is not Arrow IPC, or broken, or cut short")
        .with("file", name)
        .remedy("write it again, or leave it out by a glob")
}
