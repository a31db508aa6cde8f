//! Reading text record by record: whole batches at full speed, and record by record around a
//! malformed one, so that it alone is rejected.

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::error::ArrowError;
use bytes::Bytes;
use memchr::memchr_iter;
use orbit_etl_core::{
    Error, ErrorKind, Origin, Payload, Position, Reject, Result, SourceEvent, SplitId, StreamId,
};
use serde::{Deserialize, Serialize};

use super::adapt::Adapt;
use super::dialect::Cut;
use super::input::Input;
use super::list::FileEntry;

/// More bytes than this in one batch make batches shorter.
const BATCH_BYTES: usize = 64 << 20;

/// A format of records in text, decoded by arrow.
pub(crate) trait Records: Send {
    /// Forgets everything and expects up to `rows` records.
    fn begin(&mut self, rows: usize) -> Result<()>;
    /// Takes bytes up to the end of the last expected record.
    fn decode(&mut self, bytes: &[u8]) -> Result<usize, ArrowError>;
    /// Whether all expected records are there.
    fn full(&self) -> bool;
    /// No more bytes will come.
    fn end(&mut self) -> Result<(), ArrowError>;
    fn flush(&mut self) -> Result<Option<RecordBatch>, ArrowError>;
    /// Finds the record that begins at or after `at`.
    fn cut(&self, bytes: &[u8], at: usize, eof: bool) -> Option<Cut>;
    /// Whether `rows` records are really what these bytes hold, cut by the rules of `cut`.
    fn agrees(&self, bytes: &[u8], rows: usize, eof: bool) -> bool;
    /// What is wrong with a record that can't be decoded.
    fn reason(&mut self, record: &[u8], cut: &Cut) -> String;
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
    /// The first one that the decoder hasn't had.
    fed: usize,
    eof: bool,
    at: TextPosition,
    rows: usize,
    max_record: usize,
    /// The number of the split's first line; found out when it is first needed.
    first_line: Option<u64>,
    pending: Option<SourceEvent>,
}

impl<R: Records> TextReader<R> {
    pub(crate) fn new(
        mut records: R,
        adapt: Adapt,
        text: Text,
        place: Place,
        limits: Limits,
    ) -> Result<Self> {
        records.begin(limits.rows)?;
        Ok(Self {
            records,
            adapt,
            input: text.input,
            place,
            buffer: text.buffer,
            begin: 0,
            fed: 0,
            eof: false,
            at: text.at,
            rows: limits.rows,
            max_record: limits.max_record,
            first_line: None,
            pending: None,
        })
    }

    /// The next event; `None` at the end of the split.
    pub(crate) async fn next(&mut self) -> Result<Option<SourceEvent>> {
        if let Some(event) = self.pending.take() {
            return Ok(Some(event));
        }
        loop {
            if self.fed < self.buffer.len() {
                match self.records.decode(&self.buffer[self.fed..]) {
                    Ok(read) => self.fed += read,
                    Err(_) => return self.one_by_one().await,
                }
            }
            let done = self.eof && self.fed == self.buffer.len();
            if self.records.full() || done {
                if done && !self.records.full() && self.records.end().is_err() {
                    return self.one_by_one().await;
                }
                let Ok(batch) = self.records.flush() else { return self.one_by_one().await };
                let Some(batch) = batch else {
                    debug_assert!(done, "a full decoder has rows");
                    return Ok(None);
                };
                if !self.records.agrees(&self.buffer[self.begin..self.fed], batch.num_rows(), done) {
                    return self.one_by_one().await;
                }
                self.pass(self.fed, batch.num_rows() as u64);
                let position = Some(self.at.to_position());
                return Ok(Some(self.batch(&batch, position)?));
            }
            if self.fed < self.buffer.len() {
                // Nothing was taken though there is room: only a confused decoder does so.
                return self.one_by_one().await;
            }
            self.fill().await?;
        }
    }

    /// Everything up to `end` has gone out, with so many records.
    fn pass(&mut self, end: usize, rows: u64) {
        self.at.row += rows;
        self.at.line += memchr_iter(b'\n', &self.buffer[self.begin..end]).count() as u64;
        self.at.byte += (end - self.begin) as u64;
        self.begin = end;
        self.fed = end;
    }

    fn batch(&self, batch: &RecordBatch, position: Option<Position>) -> Result<SourceEvent> {
        Ok(SourceEvent::Batch { stream: self.place.stream, batch: self.adapt.apply(batch)?, position })
    }

    async fn fill(&mut self) -> Result<()> {
        if self.begin > 0 {
            self.buffer.drain(..self.begin);
            self.fed -= self.begin;
            self.begin = 0;
        }
        if self.buffer.len() > BATCH_BYTES && self.rows > 1 {
            self.rows = (self.rows / 8).max(1);
            self.records.begin(self.rows)?;
            self.fed = 0;
            return Ok(());
        }
        if self.buffer.len() > self.max_record.max(BATCH_BYTES) {
            return Err(Error::data(format!("a record is longer than {} bytes", self.max_record))
                .with("file", &self.place.file.name)
                .with("byte", self.at.byte)
                .remedy("look for a quote that is never closed, or raise `max_record`"));
        }
        self.eof = !self.input.fill(&mut self.buffer).await?;
        Ok(())
    }

    /// Cuts the records of the coming batch apart and rejects those that can't be decoded.
    async fn one_by_one(&mut self) -> Result<Option<SourceEvent>> {
        let mut cuts: Vec<Cut> = Vec::new();
        self.fed = self.begin;
        loop {
            let from = cuts.last().map_or(self.begin, |c| c.next);
            match self.records.cut(&self.buffer, from, self.eof) {
                Some(cut) => cuts.push(cut),
                None if self.eof => break,
                None => {
                    let moved = self.begin;
                    let enough = !cuts.is_empty() && self.buffer.len() - moved > BATCH_BYTES;
                    if enough {
                        break;
                    }
                    self.fed = self.buffer.len();
                    let rows = std::mem::replace(&mut self.rows, 1);
                    let filled = self.fill().await;
                    self.rows = rows;
                    filled?;
                    for cut in &mut cuts {
                        cut.start -= moved;
                        cut.end -= moved;
                        cut.next -= moved;
                    }
                }
            }
            if cuts.len() == self.rows {
                break;
            }
        }
        let mut good = Vec::new();
        let mut bad = Vec::new();
        self.halve(&cuts, 0, &mut good, &mut bad)?;
        self.records.begin(self.rows)?;

        let mut rejects = Vec::with_capacity(bad.len());
        let mut passed = 0;
        for index in bad {
            let cut = cuts[index];
            self.pass(cut.start, (index - passed) as u64);
            passed = index;
            let record = Bytes::copy_from_slice(&self.buffer[cut.start..cut.end]);
            let message = self.records.reason(&record, &cut);
            rejects.push(self.reject(message, record));
        }
        let end = cuts.last().map_or(self.buffer.len(), |c| c.next);
        self.pass(end, (cuts.len() - passed) as u64);

        let position = Some(self.at.to_position());
        let batch = match good.len() {
            0 => None,
            1 => good.pop(),
            _ => Some(
                concat_batches(&good[0].schema(), &good)
                    .map_err(|e| Error::internal("can't join batches").caused_by(e))?,
            ),
        };
        Ok(match (batch, rejects.is_empty()) {
            (None, true) => None,
            (None, false) => Some(SourceEvent::Rejects { rejects, position }),
            (Some(batch), true) => Some(self.batch(&batch, position)?),
            (Some(batch), false) => {
                self.pending = Some(SourceEvent::Rejects { rejects, position });
                Some(self.batch(&batch, None)?)
            }
        })
    }

    /// Decodes records together if that works, else each half; `first` is the index of the first.
    fn halve(
        &mut self,
        cuts: &[Cut],
        first: usize,
        good: &mut Vec<RecordBatch>,
        bad: &mut Vec<usize>,
    ) -> Result<()> {
        let (Some(head), Some(tail)) = (cuts.first(), cuts.last()) else { return Ok(()) };
        if cuts.iter().all(|c| c.closed) {
            self.records.begin(cuts.len())?;
            if let Ok(Some(batch)) = decode_all(&mut self.records, &self.buffer[head.start..tail.end])
                && batch.num_rows() == cuts.len()
            {
                good.push(batch);
                return Ok(());
            }
        }
        if cuts.len() == 1 {
            bad.push(first);
            return Ok(());
        }
        let (left, right) = cuts.split_at(cuts.len() / 2);
        self.halve(left, first, good, bad)?;
        self.halve(right, first + left.len(), good, bad)
    }

    fn reject(&mut self, message: String, record: Bytes) -> Reject {
        let line = self.first_line() + self.at.line;
        let place = format!("{}, byte {}, line {line}", self.place.file.name, self.at.byte);
        Reject {
            kind: ErrorKind::Data,
            message,
            payload: Payload::Raw(record),
            rows: 1,
            origin: Origin {
                stream: Some(self.place.stream_name.clone()),
                split: Some(self.place.split.clone()),
                place: Some(place),
                position: Some(self.at.to_position()),
            },
        }
    }

    /// Splits that don't begin at the file's start are on local disks, where the lines before are
    /// counted when somebody asks.
    fn first_line(&mut self) -> u64 {
        if let Some(line) = self.first_line {
            return line;
        }
        let before = if self.place.start == 0 { 0 } else { lines_before(&self.place.file, self.place.start) };
        *self.first_line.insert(before + 1)
    }
}

fn decode_all<R: Records>(records: &mut R, bytes: &[u8]) -> Result<Option<RecordBatch>, ArrowError> {
    let mut fed = 0;
    while fed < bytes.len() && !records.full() {
        match records.decode(&bytes[fed..])? {
            0 => break,
            read => fed += read,
        }
    }
    if !records.full() {
        records.end()?;
    }
    if !bytes[fed..].trim_ascii().is_empty() {
        return Ok(None);
    }
    records.flush()
}

fn lines_before(file: &FileEntry, end: u64) -> u64 {
    use std::io::Read as _;
    let Ok(opened) = std::fs::File::open(&file.key) else { return 0 };
    let mut rest = opened.take(end);
    let mut chunk = vec![0; 1 << 20];
    let mut lines = 0;
    while let Ok(read @ 1..) = rest.read(&mut chunk) {
        lines += memchr_iter(b'\n', &chunk[..read]).count() as u64;
    }
    lines
}
