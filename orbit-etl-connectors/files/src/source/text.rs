//! Reading text record by record: whole batches at a time, and each malformed record a reject of
//! its own.

use arrow::array::RecordBatch;
use bytes::Bytes;
use datafusion_execution::memory_pool::{MemoryConsumer, MemoryReservation};
use memchr::memchr_iter;
use orbit_etl_core::{
    Context, Error, ErrorKind, Origin, Payload, Position, Reject, Result, SourceEvent, SplitId, StreamId,
};
use serde::{Deserialize, Serialize};

use super::adapt::Adapt;
use super::dialect::Cutter;
use super::input::Input;
use super::list::FileEntry;

/// More bytes than this in one batch make batches shorter.
pub(crate) const BATCH_BYTES: usize = 8 << 20;
/// Text beyond this, which only long records make, is reserved with the rows made of it.
const FREE_BYTES: usize = 2 * BATCH_BYTES;
/// No record may be longer, whatever `max_record` says: offsets in batches have 31 bits.
const LONGEST: usize = 1 << 30;
/// What is kept of a record that is too long.
const KEPT: usize = 64 << 10;
/// Line feeds are counted in no more than this before a split.
const COUNTED: u64 = 1 << 30;

/// A byte order mark, which is no part of the text.
pub(crate) const BOM: &[u8] = b"\xef\xbb\xbf";

/// A format of records in text.
///
/// All calls get the text from the first record on that wasn't taken yet, with more at its end each
/// time, and all offsets count from its start.
pub(crate) trait Records: Send {
    /// Goes on looking for the ends of records; whether there is enough to be taken. At the end of
    /// the file there always is.
    fn scan(&mut self, text: &[u8], want: &Want) -> bool;
    /// How many records were found, and where the one begins that wasn't found whole.
    fn found(&self) -> (usize, usize);
    /// Takes the records that were found.
    fn take(&mut self, text: &[u8]) -> Result<Taken>;
    /// Forgets what was found.
    fn clear(&mut self);
    /// Finds the end of a record from its start.
    fn cutter(&self) -> Cutter;
}

/// What to look for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want {
    /// The most records of a batch.
    pub(crate) rows: usize,
    /// Longer ones are malformed.
    pub(crate) max_record: usize,
    /// Nothing comes behind the text.
    pub(crate) eof: bool,
}

impl Want {
    pub(crate) fn too_long(&self) -> String {
        format!(
            "the record is longer than {} bytes, of which {} are kept; look for a quote that is never \
             closed, or raise `max_record`",
            self.max_record,
            KEPT.min(self.max_record)
        )
    }
}

/// Records that were taken.
#[derive(Debug)]
pub(crate) struct Taken {
    /// The good ones.
    pub(crate) batch: Option<RecordBatch>,
    /// Good and bad.
    pub(crate) records: usize,
    /// The byte behind the last.
    pub(crate) end: usize,
    /// In their order.
    pub(crate) bad: Vec<Bad>,
}

/// A malformed record.
#[derive(Debug)]
pub(crate) struct Bad {
    /// Good and bad records before it.
    pub(crate) before: usize,
    pub(crate) start: usize,
    /// The end without the line break.
    pub(crate) end: usize,
    pub(crate) message: String,
}

/// How far a text split has been read.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct TextPosition {
    /// Records passed, malformed ones too.
    pub(crate) row: u64,
    /// The byte after them, in the file, or in what is inside a compressed one.
    pub(crate) byte: u64,
    /// Line feeds passed since the split's start.
    pub(crate) line: u64,
}

impl TextPosition {
    fn to_position(self) -> Position {
        serde_json::json!({ "row": self.row, "byte": self.byte, "line": self.line }).into()
    }
}

/// Where a text reader stands and what it says of it.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) file: FileEntry,
    pub(crate) split: SplitId,
    pub(crate) stream: StreamId,
    pub(crate) stream_name: String,
    /// Where the split starts in the file.
    pub(crate) start: u64,
}

/// Text that was opened, and how much of it is here.
pub(crate) struct Text {
    pub(crate) input: Input,
    /// What was read already, beginning at `at`.
    pub(crate) buffer: Vec<u8>,
    pub(crate) at: TextPosition,
}

/// How much to take at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) rows: usize,
    pub(crate) max_record: usize,
}

/// Reads one split of a text file.
pub(crate) struct TextReader<R> {
    records: R,
    adapt: Adapt,
    input: Input,
    place: Place,
    buffer: Vec<u8>,
    /// The first byte of the buffer that hasn't gone out.
    begin: usize,
    eof: bool,
    at: TextPosition,
    limits: Limits,
    lines: Lines,
    pending: Option<SourceEvent>,
    /// Looks for the end of a record that was rejected because it is too long.
    long: Option<Cutter>,
    memory: Option<MemoryReservation>,
}

/// How the lines before a split are counted, which is done when somebody asks.
#[derive(Debug, Clone, Copy)]
enum Lines {
    Uncounted,
    Before(u64),
    /// Too many bytes stand before the split.
    TooMany,
}

impl<R: Records> TextReader<R> {
    pub(crate) fn new(records: R, adapt: Adapt, text: Text, place: Place, limits: Limits) -> Result<Self> {
        Ok(Self {
            records,
            adapt,
            input: text.input,
            place,
            buffer: text.buffer,
            begin: 0,
            eof: false,
            at: text.at,
            limits: Limits { max_record: limits.max_record.min(LONGEST), ..limits },
            lines: Lines::Uncounted,
            pending: None,
            long: None,
            memory: None,
        })
    }

    /// Reserves long records in the run's memory pool.
    #[must_use]
    pub(crate) fn reserving(mut self, cx: &Context) -> Self {
        self.memory = Some(MemoryConsumer::new(format!("{} (records)", cx.node())).register(cx.memory()));
        self
    }

    /// The next event; `None` at the end of the split.
    pub(crate) async fn next(&mut self) -> Result<Option<SourceEvent>> {
        if let Some(event) = self.pending.take() {
            return Ok(Some(event));
        }
        if let Some(cutter) = self.long.take() {
            return self.pass_long(cutter).await.map(Some);
        }
        if self.at.byte == 0 {
            self.pass_mark().await?;
        }
        loop {
            let text = &self.buffer[self.begin..];
            let want = Want { rows: self.limits.rows, max_record: self.limits.max_record, eof: self.eof };
            let enough = self.records.scan(text, &want);
            let (records, next) = self.records.found();
            let unfinished = text.len() - next;
            if records > 0 && (enough || text.len() > BATCH_BYTES) {
                return self.take().await;
            }
            if records == 0 && enough {
                return Ok(None);
            }
            if unfinished > self.limits.max_record {
                if records > 0 {
                    return self.take().await;
                }
                return self.reject_long(next, &want).await.map(Some);
            }
            // A long record is looked at again each time, so ever more of it is read before.
            let goal = text.len() + unfinished.min(self.limits.max_record - unfinished);
            self.fill().await?;
            while !self.eof && self.buffer.len() < goal {
                self.fill().await?;
            }
        }
    }

    /// A byte order mark is no part of the first record.
    async fn pass_mark(&mut self) -> Result<()> {
        while !self.eof && self.buffer.len() < BOM.len() {
            self.fill().await?;
        }
        if self.buffer.starts_with(BOM) {
            self.pass(BOM.len(), 0);
        }
        Ok(())
    }

    /// Everything up to `end` has gone out, with so many records.
    fn pass(&mut self, end: usize, rows: usize) {
        self.at.row += rows as u64;
        self.at.line += memchr_iter(b'\n', &self.buffer[self.begin..end]).count() as u64;
        self.at.byte += (end - self.begin) as u64;
        self.begin = end;
    }

    async fn fill(&mut self) -> Result<()> {
        if self.begin > 0 {
            self.buffer.drain(..self.begin);
            self.begin = 0;
            self.buffer.shrink_to(FREE_BYTES);
        }
        self.eof = !self.input.fill(&mut self.buffer).await?;
        self.reserve()
    }

    fn reserve(&self) -> Result<()> {
        let Some(memory) = &self.memory else { return Ok(()) };
        let held = if self.buffer.len() > FREE_BYTES { 2 * self.buffer.capacity() } else { 0 };
        memory.try_resize(held).map_err(|refusal| {
            Error::resources("the memory limit leaves no room for a long record")
                .with("file", &self.place.file.name)
                .with("byte", self.at.byte)
                .with("bytes", self.buffer.len())
                .remedy("raise the pipeline's memory limit, lower `max_record`, or use fewer lanes")
                .caused_by(refusal)
        })
    }

    /// Sends out what was found.
    async fn take(&mut self) -> Result<Option<SourceEvent>> {
        let origin = self.begin;
        let taken = self.records.take(&self.buffer[origin..])?;
        let mut rejects = Vec::with_capacity(taken.bad.len());
        let mut passed = 0;
        for bad in taken.bad {
            self.pass(origin + bad.start, bad.before - passed);
            passed = bad.before;
            rejects.push(self.reject(bad.message, bad.end - bad.start).await?);
        }
        self.pass(origin + taken.end, taken.records - passed);
        let position = Some(self.at.to_position());
        let rejects = (!rejects.is_empty()).then_some(rejects);
        Ok(Some(match (taken.batch, rejects) {
            (Some(batch), None) => self.batch(&batch, position)?,
            (Some(batch), Some(rejects)) => {
                self.pending = Some(SourceEvent::Rejects { rejects, position });
                self.batch(&batch, None)?
            }
            (None, rejects) => SourceEvent::Rejects { rejects: rejects.unwrap_or_default(), position },
        }))
    }

    fn batch(&self, batch: &RecordBatch, position: Option<Position>) -> Result<SourceEvent> {
        Ok(SourceEvent::Batch { stream: self.place.stream, batch: self.adapt.apply(batch)?, position })
    }

    /// Rejects a record that is too long to be held. Its end is looked for only after the reject has
    /// gone out, since it may be far away and the run may stop at it.
    async fn reject_long(&mut self, start: usize, want: &Want) -> Result<SourceEvent> {
        self.pass(self.begin + start, 0);
        let reject = self.reject(want.too_long(), self.buffer.len() - self.begin).await?;
        self.records.clear();
        self.long = Some(self.records.cutter());
        Ok(SourceEvent::Rejects { rejects: vec![reject], position: None })
    }

    /// Goes on behind a record that was too long.
    ///
    /// Its end is where the format says: the line feed for JSON, the line break outside of quotes for
    /// CSV, as the split points are found. A quote that is never closed takes the rest of the split.
    async fn pass_long(&mut self, mut cutter: Cutter) -> Result<SourceEvent> {
        loop {
            let end = cutter.find(&self.buffer[self.begin..], 0);
            self.pass(end.map_or(self.buffer.len(), |end| self.begin + end), 0);
            if end.is_some() || self.eof {
                break;
            }
            self.fill().await?;
            tokio::task::yield_now().await;
        }
        self.at.row += 1;
        Ok(SourceEvent::Progress(self.at.to_position()))
    }

    /// A reject of so many bytes from here on.
    async fn reject(&mut self, message: String, length: usize) -> Result<Reject> {
        let kept = if length > self.limits.max_record { KEPT.min(self.limits.max_record) } else { length };
        let record = Bytes::copy_from_slice(&self.buffer[self.begin..self.begin + kept]);
        let line = self.line().await?;
        Ok(Reject {
            kind: ErrorKind::Data,
            message,
            payload: Payload::Raw(record),
            rows: 1,
            origin: Origin {
                stream: Some(self.place.stream_name.clone()),
                split: Some(self.place.split.clone()),
                place: Some(format!("{}, byte {}, {line}", self.place.file.name, self.at.byte)),
                position: Some(self.at.to_position()),
            },
        })
    }

    /// Which line this is. Splits that don't begin at the file's start are on local disks, where the
    /// lines before are counted once, as long as that isn't more work than the split itself by far.
    async fn line(&mut self) -> Result<String> {
        if let Lines::Uncounted = self.lines {
            self.lines = match self.place.start {
                0 => Lines::Before(0),
                start if start > COUNTED => Lines::TooMany,
                start => lines_before(&self.place.file, start).await.map_or(Lines::TooMany, Lines::Before),
            };
        }
        let here = self.at.line + 1;
        Ok(match self.lines {
            Lines::Before(lines) => format!("line {}", lines + here),
            _ => format!("line {here} from byte {} on", self.place.start),
        })
    }
}

/// Counts line feeds, a piece at a time. A file that can't be read any more has no such count.
async fn lines_before(file: &FileEntry, end: u64) -> Option<u64> {
    use std::io::Read as _;
    let mut rest = std::fs::File::open(&file.key).ok()?.take(end);
    let mut chunk = vec![0; 1 << 20];
    let mut lines = 0;
    loop {
        match rest.read(&mut chunk) {
            Ok(0) => return Some(lines),
            Ok(read) => lines += memchr_iter(b'\n', &chunk[..read]).count() as u64,
            Err(_) => return None,
        }
        tokio::task::yield_now().await;
    }
}
