//! Avro object container files, block by block: blocks that can't be decoded are rejected alone.

use std::collections::VecDeque;
use std::io::Read as _;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_avro::reader::ReaderBuilder;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use memchr::memmem;
use orbit_etl_core::{Error, ErrorKind, Origin, Payload, Position, Reject, Result, SourceEvent};
use serde::{Deserialize, Serialize};

use super::adapt::Adapt;
use super::input::Input;
use super::list::FileEntry;
use super::open::{Opening, finished};
use super::text::Place;
use crate::format::Compression;
use crate::location::Location;

const MAGIC: &[u8] = b"Obj\x01";
const SYNC: usize = 16;
/// Blocks are decoded together up to this size.
const GROUP_BYTES: usize = 4 << 20;

/// So many rows may be in a block, or as many as `max_record` has bytes. A row takes a byte, unless all its columns are
/// always NULL, so none has more than it has bytes; a head that says otherwise is broken.
const MOST_ROWS: u64 = 1 << 26;

/// How far a file has been read: `row` rows, of which `from` stand before the block at `byte`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct BlockPosition {
    row: u64,
    byte: u64,
    from: u64,
}

impl BlockPosition {
    fn to_position(self) -> Position {
        serde_json::json!({ "row": self.row, "byte": self.byte, "from": self.from }).into()
    }
}

/// The columns of a file.
pub(crate) async fn schema(location: &Location, file: &FileEntry, max_record: usize) -> Result<SchemaRef> {
    let mut input = Input::open(location, file, Compression::None, 0, None).await?;
    let (header, _) = read_header(&mut input, file, max_record).await?;
    header_schema(&header, file)
}

/// Opens a file.
pub(crate) async fn open(
    opening: &Opening<'_>,
    place: Place,
) -> Result<BoxStream<'static, Result<SourceEvent>>> {
    let file = &opening.payload.file;
    let max_record = opening.source.max_record;
    let mut input = Input::open(&opening.location, file, Compression::None, 0, None).await?;
    let (header, mut buffer) = read_header(&mut input, file, max_record).await?;
    let start = header.len() as u64;
    let at = opening.position::<BlockPosition>()?.unwrap_or(BlockPosition { row: 0, byte: start, from: 0 });
    if at.byte != start {
        input = Input::open(&opening.location, file, Compression::None, at.byte, None).await?;
        buffer = Vec::new();
    }
    let schema = header_schema(&header, file)?;
    let found: Vec<_> =
        schema.fields().iter().map(|f| (f.name().clone(), Some(f.data_type().clone()))).collect();
    let adapt = Adapt::new(opening.resolved, opening.projection(), &found, file)?;
    let blocks = Blocks {
        input,
        sync: header[header.len() - SYNC..].to_vec(),
        header,
        buffer,
        begin: 0,
        eof: false,
        row: at.from,
        byte: at.byte,
        skip: at.row - at.from,
        rows: opening.scan.batch_rows.max(1),
        max_record,
        adapt,
        place,
        ready: VecDeque::new(),
    };
    let events = stream::try_unfold(blocks, |mut blocks| async move {
        Ok(blocks.next().await?.map(|event| (event, blocks)))
    });
    Ok(finished(events.boxed()))
}

/// A file that is read block by block.
struct Blocks {
    input: Input,
    header: Vec<u8>,
    sync: Vec<u8>,
    buffer: Vec<u8>,
    /// The first byte of the buffer that belongs to the next group of blocks.
    begin: usize,
    eof: bool,
    /// Rows and bytes before that.
    row: u64,
    byte: u64,
    /// Rows that went out before.
    skip: u64,
    rows: usize,
    max_record: usize,
    adapt: Adapt,
    place: Place,
    ready: VecDeque<SourceEvent>,
}

/// One block within the buffer.
#[derive(Debug, Clone, Copy)]
struct Block {
    start: usize,
    end: usize,
    rows: u64,
    broken: Option<&'static str>,
}

impl Blocks {
    async fn next(&mut self) -> Result<Option<SourceEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let blocks = self.group().await?;
            if blocks.is_empty() {
                return Ok(None);
            }
            self.events(&blocks)?;
        }
    }

    /// The next blocks, as many as make a batch.
    async fn group(&mut self) -> Result<Vec<Block>> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut rows = 0;
        loop {
            let from = blocks.last().map_or(self.begin, |b| b.end);
            let enough = rows >= self.rows as u64 || from - self.begin >= GROUP_BYTES;
            if enough || (self.eof && from == self.buffer.len()) {
                return Ok(blocks);
            }
            if let Some(block) = self.cut(from) {
                rows += block.rows;
                blocks.push(block);
                continue;
            }
            let moved = self.begin;
            self.buffer.drain(..moved);
            self.begin = 0;
            for block in &mut blocks {
                block.start -= moved;
                block.end -= moved;
            }
            if self.buffer.len() > self.max_record.saturating_add(GROUP_BYTES) {
                return Err(Error::data("an Avro block is longer than `max_record`, or broken")
                    .with("file", &self.place.file.name)
                    .with("byte", self.byte)
                    .remedy("raise `max_record`"));
            }
            self.eof = !self.input.fill(&mut self.buffer).await?;
        }
    }

    /// The block at `start`; `None` if more bytes are needed.
    fn cut(&self, start: usize) -> Option<Block> {
        let rest = &self.buffer[start..];
        let limit = self.max_record as u64;
        let head = long(rest, 0).and_then(|(rows, at)| long(rest, at).map(|(size, at)| (rows, size, at)));
        let sane = |n: i64| u64::try_from(n).ok();
        match head {
            None if !self.eof && rest.len() < 20 => None,
            Some((rows, size, at))
                if sane(rows).is_some_and(|n| n <= limit.max(MOST_ROWS))
                    && sane(size).is_some_and(|n| n <= limit) =>
            {
                let rows = sane(rows)?;
                let end = at + usize::try_from(size).ok()?;
                match rest.get(end..end + SYNC) {
                    Some(sync) if sync == self.sync => {
                        Some(Block { start, end: start + end + SYNC, rows, broken: None })
                    }
                    None if !self.eof => None,
                    None => self.broken(start, "the block is cut short"),
                    Some(_) => self.broken(start, "the block doesn't end with the file's marker"),
                }
            }
            _ => self.broken(start, "the block's head can't be read"),
        }
    }

    /// Everything up to the file's next marker.
    fn broken(&self, start: usize, why: &'static str) -> Option<Block> {
        let end = match memmem::find(&self.buffer[start..], &self.sync) {
            Some(at) => start + at + SYNC,
            None if self.eof => self.buffer.len(),
            None => return None,
        };
        Some(Block { start, end, rows: 1, broken: Some(why) })
    }

    fn events(&mut self, blocks: &[Block]) -> Result<()> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        self.halve(blocks, &mut good, &mut bad);
        let start = BlockPosition { row: self.row, byte: self.byte, from: self.row };
        let rows: u64 = blocks.iter().map(|b| b.rows).sum();
        let end = blocks.last().map_or(self.begin, |b| b.end);
        self.row += rows;
        self.byte += (end - self.begin) as u64;
        let after = BlockPosition { row: self.row, byte: self.byte, from: self.row };

        let mut rejects = Vec::with_capacity(bad.len());
        let mut before = start.row;
        let mut next = blocks.iter();
        for (block, why) in bad {
            before += next.by_ref().take_while(|b| b.start != block.start).map(|b| b.rows).sum::<u64>();
            let byte = start.byte + (block.start - self.begin) as u64;
            let position = BlockPosition { row: before, byte, from: before };
            rejects.push(self.reject(block, why, position));
            before += block.rows;
        }
        self.begin = end;

        let mut row = start.row;
        let last = good.len().saturating_sub(1);
        for (index, batch) in good.iter().enumerate() {
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(batch.num_rows());
            self.skip -= skipped as u64;
            row += batch.num_rows() as u64;
            if skipped == batch.num_rows() {
                continue;
            }
            let position = match (rejects.is_empty(), index == last) {
                (false, _) => None,
                (true, true) => Some(after.to_position()),
                (true, false) => Some(BlockPosition { row, ..start }.to_position()),
            };
            let batch = self.adapt.apply(&batch.slice(skipped, batch.num_rows() - skipped))?;
            self.ready.push_back(SourceEvent::Batch { stream: self.place.stream, batch, position });
        }
        if !rejects.is_empty() {
            self.ready.push_back(SourceEvent::Rejects { rejects, position: Some(after.to_position()) });
        }
        Ok(())
    }

    /// Decodes blocks together if that works, else each half.
    fn halve(&self, blocks: &[Block], good: &mut Vec<RecordBatch>, bad: &mut Vec<(Block, &'static str)>) {
        let (Some(head), Some(tail)) = (blocks.first(), blocks.last()) else { return };
        let whole = blocks.iter().all(|b| b.broken.is_none());
        if whole && let Some(batches) = self.decode(head.start, tail.end, blocks.iter().map(|b| b.rows).sum())
        {
            good.extend(batches);
            return;
        }
        if let [block] = blocks {
            bad.push((*block, block.broken.unwrap_or("the block can't be decoded")));
            return;
        }
        let (left, right) = blocks.split_at(blocks.len() / 2);
        self.halve(left, good, bad);
        self.halve(right, good, bad);
    }

    fn decode(&self, start: usize, end: usize, rows: u64) -> Option<Vec<RecordBatch>> {
        let file = self.header.as_slice().chain(&self.buffer[start..end]);
        let reader = ReaderBuilder::new()
            .with_batch_size(self.rows)
            .with_projection(self.adapt.read.clone())
            .build(file)
            .ok()?;
        let batches = reader.collect::<Result<Vec<_>, _>>().ok()?;
        let found: usize = batches.iter().map(RecordBatch::num_rows).sum();
        (found as u64 == rows).then_some(batches)
    }

    fn reject(&self, block: Block, why: &str, position: BlockPosition) -> Reject {
        Reject {
            kind: ErrorKind::Data,
            message: why.to_string(),
            payload: Payload::Raw(Bytes::copy_from_slice(&self.buffer[block.start..block.end])),
            rows: block.rows.max(1),
            origin: Origin {
                stream: Some(self.place.stream_name.clone()),
                split: Some(self.place.split.clone()),
                place: Some(format!("{}, byte {}", self.place.file.name, position.byte)),
                position: Some(position.to_position()),
            },
        }
    }
}

/// The header, and what was read beyond it.
async fn read_header(input: &mut Input, file: &FileEntry, max_record: usize) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut buffer = Vec::new();
    let mut eof = false;
    loop {
        if let Some(end) = header_end(&buffer) {
            let rest = buffer.split_off(end);
            return Ok((buffer, rest));
        }
        let foreign = !buffer.is_empty() && !MAGIC.starts_with(&buffer[..buffer.len().min(4)]);
        if eof || foreign || buffer.len() > max_record {
            return Err(Error::data("the file is not Avro, or its header is broken or cut short")
                .with("file", &file.name)
                .remedy("write it again, or leave it out by a glob"));
        }
        eof = !input.fill(&mut buffer).await?;
    }
}

fn header_end(bytes: &[u8]) -> Option<usize> {
    let mut at = MAGIC.len();
    bytes.get(..at).filter(|magic| *magic == MAGIC)?;
    loop {
        let (mut pairs, next) = long(bytes, at)?;
        at = next;
        if pairs == 0 {
            return (bytes.len() >= at + SYNC).then_some(at + SYNC);
        }
        if pairs < 0 {
            // A negative count is followed by the size in bytes.
            pairs = pairs.checked_neg()?;
            at = long(bytes, at)?.1;
        }
        for _ in 0..pairs.checked_mul(2)? {
            let (length, next) = long(bytes, at)?;
            at = next.checked_add(usize::try_from(length).ok()?)?;
            if at > bytes.len() {
                return None;
            }
        }
    }
}

/// A zig-zag number, and where it ends.
fn long(bytes: &[u8], mut at: usize) -> Option<(i64, usize)> {
    let (mut value, mut shift) = (0_u64, 0);
    loop {
        let byte = *bytes.get(at)?;
        at += 1;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(((value >> 1).cast_signed() ^ -((value & 1).cast_signed()), at));
        }
        shift += 7;
        if shift > 63 {
            return Some((-1, at));
        }
    }
}

fn header_schema(header: &[u8], file: &FileEntry) -> Result<SchemaRef> {
    let mut bytes = header;
    let reader = ReaderBuilder::new().build(&mut bytes).map_err(|e| {
        Error::schema("the Avro schema can't be read")
            .with("file", &file.name)
            .remedy("check the file with another tool")
            .caused_by(e)
    })?;
    Ok(reader.schema())
}
