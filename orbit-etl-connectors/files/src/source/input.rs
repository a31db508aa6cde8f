//! The bytes of one file in order, from a disk or a store, decompressed, a chunk at a time.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectStore};
use orbit_etl_core::{Error, ErrorKind, Result};
use tokio_util::task::AbortOnDropHandle;

use super::list::{FileEntry, local_stamp, store_path};
use crate::error::{from_io, from_store, says_changed};
use crate::format::Compression;
use crate::location::Location;

const LOCAL_CHUNK: u64 = 1 << 20;
const REMOTE_CHUNK: u64 = 4 << 20;

/// A file that is read from front to back.
pub(crate) struct Input {
    raw: Raw,
    inflate: Option<Inflate>,
    name: String,
}

impl Input {
    /// Opens a file at byte `from`, up to byte `to`. Of a compressed file these are bytes of what
    /// is inside, and everything before `from` is decompressed and dropped.
    pub(crate) async fn open(
        location: &Location,
        file: &FileEntry,
        compression: Compression,
        from: u64,
        to: Option<u64>,
    ) -> Result<Self> {
        let inflate = Inflate::new(compression).map_err(|e| from_io(e, "decompress the file", &file.name))?;
        let (start, end) = if inflate.is_some() { (0, file.size) } else { (from, to.unwrap_or(file.size)) };
        let raw = Raw::open(location, file, start, end).await?;
        let mut input = Self { raw, inflate, name: file.name.clone() };
        if input.inflate.is_some() {
            input.skip(from).await?;
        }
        Ok(input)
    }

    /// Text that is here already.
    pub(crate) fn of(text: Bytes, name: &str) -> Self {
        let left = text.len() as u64;
        let body = futures::stream::iter([Ok(text)]).boxed();
        Self { raw: Raw::Whole { body, skip: 0, left }, inflate: None, name: name.to_owned() }
    }

    /// Appends the next chunk; `false` at the end.
    pub(crate) async fn fill(&mut self, into: &mut Vec<u8>) -> Result<bool> {
        let Some(inflate) = &mut self.inflate else { return self.raw.fill(into, &self.name).await };
        loop {
            let before = into.len();
            match inflate.read(into) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if into.len() > before {
                        return Ok(true);
                    }
                    let mut chunk = Vec::new();
                    let more = self.raw.fill(&mut chunk, &self.name).await?;
                    inflate.feed().push(chunk.into(), !more);
                }
                Err(e) => {
                    return Err(Error::data("the compressed data is broken or cut short")
                        .with("file", &self.name)
                        .remedy(
                            "check that the file is complete and that its compression is what its name says",
                        )
                        .caused_by(e));
                }
            }
        }
    }

    async fn skip(&mut self, mut bytes: u64) -> Result<()> {
        // `fill` cuts where it likes, so what goes beyond is kept for the next call.
        let mut dropped = Vec::new();
        while bytes > 0 {
            dropped.clear();
            if !self.fill(&mut dropped).await? {
                return Err(changed(&self.name));
            }
            let length = dropped.len() as u64;
            if length > bytes {
                let rest = usize::try_from(bytes).map_or(Bytes::new(), |n| Bytes::from(dropped.split_off(n)));
                if let Some(inflate) = &mut self.inflate {
                    inflate.kept = rest;
                }
                return Ok(());
            }
            bytes -= length;
            // Nobody is handed anything for a long time, and others want to go on.
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

enum Raw {
    Local {
        file: File,
        entry: FileEntry,
        left: u64,
    },
    Ranges(Ranges),
    /// A web server that gives no parts: one answer, read as it comes.
    Whole {
        body: BoxStream<'static, object_store::Result<Bytes>>,
        skip: u64,
        left: u64,
    },
}

impl Raw {
    async fn open(location: &Location, file: &FileEntry, start: u64, end: u64) -> Result<Self> {
        let left = end.saturating_sub(start);
        if location.local.is_some() {
            let mut opened = open_local(file)?;
            if start > 0 {
                opened.seek(SeekFrom::Start(start)).map_err(|e| from_io(e, "read the file", &file.name))?;
            }
            return Ok(Self::Local { file: opened, entry: file.clone(), left });
        }
        let object = Object::new(location, file)?;
        Ok(Self::Ranges(Ranges { object, start, next: start, end, answered: false, ahead: None }))
    }

    async fn fill(&mut self, into: &mut Vec<u8>, name: &str) -> Result<bool> {
        loop {
            match self {
                Self::Local { file, entry, left } => {
                    let wanted = LOCAL_CHUNK.min(*left);
                    into.reserve(usize::try_from(wanted).unwrap_or(0));
                    let read =
                        file.by_ref()
                            .take(wanted)
                            .read_to_end(into)
                            .map_err(|e| from_io(e, "read the file", name))? as u64;
                    if read < wanted {
                        return Err(changed(name));
                    }
                    // What was written over while it was read is neither the old file nor the new.
                    check_local(file, entry)?;
                    *left -= read;
                    return Ok(read > 0);
                }
                Self::Ranges(ranges) => match ranges.next().await {
                    None => return Ok(false),
                    Some(Ok(bytes)) => {
                        into.extend_from_slice(&bytes);
                        return Ok(true);
                    }
                    Some(Err(object_store::Error::NotSupported { .. })) if ranges.object.is_web => {
                        let body = ranges.object.whole().await.map_err(|e| failure(e, name))?;
                        *self = Self::Whole { body, skip: ranges.start, left: ranges.end - ranges.start };
                    }
                    Some(Err(e)) => return Err(failure(e, name)),
                },
                Self::Whole { left: 0, .. } => return Ok(false),
                Self::Whole { body, skip, left } => match body.next().await {
                    None => return Err(changed(name)),
                    Some(Err(e)) => {
                        return Err(failure(e, name).remedy(
                            "the server gives no parts, so all comes in one answer: \
                             try again, raise `timeout` in `storage`, or copy the file first",
                        ));
                    }
                    Some(Ok(mut bytes)) => {
                        let dropped = (*skip).min(bytes.len() as u64);
                        *skip -= dropped;
                        bytes.advance(usize::try_from(dropped).unwrap_or(0));
                        bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                        if !bytes.is_empty() {
                            *left -= bytes.len() as u64;
                            into.extend_from_slice(&bytes);
                            return Ok(true);
                        }
                    }
                },
            }
        }
    }
}

/// The error for a file that is not what was listed.
pub(crate) fn changed(name: &str) -> Error {
    Error::new(ErrorKind::Conflict, "the file changed after it was listed")
        .with("file", name)
        .remedy("let files alone once they can be seen, or set `changed: reload` to read them again")
        .retryable(false)
}

/// Whether an error is [`changed`].
pub(crate) fn is_changed(error: &Error) -> bool {
    error.message() == changed("").message()
}

/// A store's error while one of its objects is read.
pub(crate) fn failure(error: object_store::Error, name: &str) -> Error {
    if says_changed(&error) { changed(name) } else { from_store(error, "read the file", name) }
}

/// Opens a local file if it is still the one that was listed.
pub(crate) fn open_local(file: &FileEntry) -> Result<File> {
    let opened = File::open(&file.key).map_err(|e| from_io(e, "open the file", &file.name))?;
    check_local(&opened, file)?;
    Ok(opened)
}

/// Fails if an open file is not the one that was listed any more.
pub(crate) fn check_local(opened: &File, file: &FileEntry) -> Result<()> {
    let metadata = opened.metadata().map_err(|e| from_io(e, "read the file", &file.name))?;
    if local_stamp(&metadata) != file.stamp || metadata.len() != file.size {
        return Err(changed(&file.name));
    }
    Ok(())
}

/// One object of a store, in the version that was listed.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    store: Arc<dyn ObjectStore>,
    path: Path,
    entry: Arc<FileEntry>,
    /// Of a web server, which may not know of ranges.
    is_web: bool,
}

impl Object {
    pub(crate) fn new(location: &Location, file: &FileEntry) -> Result<Self> {
        Ok(Self {
            store: Arc::clone(&location.store),
            path: store_path(file)?,
            entry: Arc::new(file.clone()),
            is_web: !location.lists,
        })
    }

    /// A part of it. `Precondition` if it is another version by now.
    pub(crate) async fn range(&self, range: Range<u64>) -> object_store::Result<Bytes> {
        let length = range.end - range.start;
        let bytes = self.get(Some(GetRange::Bounded(range))).await?.bytes().await?;
        // A server or a proxy that closes too early: the store doesn't look.
        if bytes.len() as u64 != length {
            return Err(object_store::Error::Generic {
                store: "object",
                source: format!("the answer has {} bytes of {length}", bytes.len()).into(),
            });
        }
        Ok(bytes)
    }

    async fn whole(&self) -> object_store::Result<BoxStream<'static, object_store::Result<Bytes>>> {
        Ok(self.get(None).await?.into_stream())
    }

    async fn get(&self, range: Option<GetRange>) -> object_store::Result<GetResult> {
        let options = GetOptions { if_match: self.entry.etag(), range, ..GetOptions::default() };
        let answer = self.store.get_opts(&self.path, options).await?;
        // Not every server heeds the condition, or has tags.
        if !self.entry.is_version(&answer.meta) {
            return Err(object_store::Error::Precondition {
                path: self.path.to_string(),
                source: "the object is another version".into(),
            });
        }
        Ok(answer)
    }
}

/// Ranges of one object, the next one fetched while the last is worked on.
struct Ranges {
    object: Object,
    /// The first byte that hasn't been handed out.
    start: u64,
    /// The first one that hasn't been asked for.
    next: u64,
    end: u64,
    answered: bool,
    ahead: Option<AbortOnDropHandle<object_store::Result<Bytes>>>,
}

impl Ranges {
    async fn next(&mut self) -> Option<object_store::Result<Bytes>> {
        let current = match self.ahead.take() {
            Some(task) => task,
            None => self.fetch()?,
        };
        // The first answer shows whether there are ranges at all.
        if self.answered || !self.object.is_web {
            self.ahead = self.fetch();
        }
        let answer = match current.await {
            Ok(answer) => answer,
            Err(source) => Err(object_store::Error::JoinError { source }),
        };
        self.answered = true;
        Some(answer.inspect(|bytes| self.start += bytes.len() as u64))
    }

    fn fetch(&mut self) -> Option<AbortOnDropHandle<object_store::Result<Bytes>>> {
        if self.next >= self.end {
            return None;
        }
        let range = self.next..(self.next + REMOTE_CHUNK).min(self.end);
        self.next = range.end;
        let object = self.object.clone();
        Some(AbortOnDropHandle::new(tokio::spawn(async move { object.range(range).await })))
    }
}

/// A decompressor that is fed with chunks.
struct Inflate {
    decoder: Decoder,
    kept: Bytes,
}

enum Decoder {
    Gzip(Box<flate2::bufread::MultiGzDecoder<Feed>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Feed>>),
    Bzip2(Box<bzip2::bufread::MultiBzDecoder<Feed>>),
}

impl Inflate {
    fn new(compression: Compression) -> io::Result<Option<Self>> {
        let feed = Feed::default();
        let decoder = match compression {
            Compression::Gzip => Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(feed))),
            Compression::Zstd => Decoder::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(feed)?)),
            Compression::Bzip2 => Decoder::Bzip2(Box::new(bzip2::bufread::MultiBzDecoder::new(feed))),
            Compression::None | Compression::Snappy | Compression::Lz4 => return Ok(None),
        };
        Ok(Some(Self { decoder, kept: Bytes::new() }))
    }

    fn feed(&mut self) -> &mut Feed {
        match &mut self.decoder {
            Decoder::Gzip(decoder) => decoder.get_mut(),
            Decoder::Zstd(decoder) => decoder.get_mut(),
            Decoder::Bzip2(decoder) => decoder.get_mut(),
        }
    }

    /// Appends up to a chunk. `WouldBlock`: what came was appended, and the feed is empty.
    fn read(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        if !self.kept.is_empty() {
            into.extend_from_slice(&self.kept);
            return Ok(std::mem::take(&mut self.kept).len());
        }
        // An empty file holds nothing, though no decompressor would say so.
        if self.feed().is_void() {
            return Ok(0);
        }
        match &mut self.decoder {
            Decoder::Gzip(decoder) => decoder.by_ref().take(LOCAL_CHUNK).read_to_end(into),
            Decoder::Zstd(decoder) => decoder.by_ref().take(LOCAL_CHUNK).read_to_end(into),
            Decoder::Bzip2(decoder) => decoder.by_ref().take(LOCAL_CHUNK).read_to_end(into),
        }
    }
}

/// What a decompressor reads from: says `WouldBlock` when it has to be fed first.
#[derive(Default)]
struct Feed {
    chunks: VecDeque<Bytes>,
    end: bool,
    seen: bool,
}

impl Feed {
    fn push(&mut self, chunk: Bytes, end: bool) {
        self.seen |= !chunk.is_empty();
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
        self.end |= end;
    }

    fn is_void(&self) -> bool {
        self.end && !self.seen
    }
}

impl Read for Feed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(into.len());
        into[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.chunks.front() {
            Some(chunk) => Ok(chunk),
            None if self.end => Ok(&[]),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn consume(&mut self, amount: usize) {
        if let Some(chunk) = self.chunks.front_mut() {
            chunk.advance(amount);
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;
    use crate::source::list::list;
    use object_store::ObjectStoreExt as _;

    async fn rest(mut input: Input) -> Vec<u8> {
        let mut bytes = Vec::new();
        while input.fill(&mut bytes).await.unwrap() {}
        bytes
    }

    #[tokio::test]
    async fn objects_are_read_by_ranges_and_noticed_when_they_change() {
        let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
        let plain: Vec<u8> = (0..2_500_000_u32).flat_map(|i| (i / 3).to_le_bytes()).collect();
        let packed = zstd::encode_all(plain.as_slice(), 1).unwrap();
        for (key, bytes) in [("d/k=1/a.csv", plain.clone()), ("d/k=2/b.csv", packed), ("d/_x.csv", vec![1])] {
            store.put(&Path::from(key), bytes.into()).await.unwrap();
        }
        let location = Location::in_store(Arc::clone(&store), None, "d/**/*.csv").unwrap();
        let files = list(&location, Some(Format::Csv), true).await.unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(files[1].partitions, [("k".to_string(), Some("2".to_string()))]);

        for from in [0, 7, 5_000_001] {
            let at = usize::try_from(from).unwrap();
            for (file, compression) in [(&files[0], Compression::None), (&files[1], Compression::Zstd)] {
                let input = Input::open(&location, file, compression, from, None).await.unwrap();
                assert!(rest(input).await == plain[at..], "{compression} from {from}");
            }
        }
        let part = Input::open(&location, &files[0], Compression::None, 3, Some(9)).await.unwrap();
        assert_eq!(rest(part).await, plain[3..9]);

        store.put(&Path::from("d/k=1/a.csv"), vec![0; 100].into()).await.unwrap();
        let mut input = Input::open(&location, &files[0], Compression::None, 0, None).await.unwrap();
        let error = input.fill(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(!error.is_retryable());
    }

    #[tokio::test]
    async fn a_long_skip_lets_others_go_on() {
        const LENGTH: usize = 64 << 20;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv.zst");
        std::fs::write(&path, zstd::encode_all(vec![b'x'; LENGTH].as_slice(), 1).unwrap()).unwrap();
        let location = Location::parse(path.to_str().unwrap(), &Default::default()).unwrap();
        let file = list(&location, Some(Format::Csv), false).await.unwrap().remove(0);

        let turns = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = Arc::clone(&turns);
        let other = tokio::spawn(async move {
            loop {
                counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        let from = LENGTH as u64 - 5;
        let input = Input::open(&location, &file, Compression::Zstd, from, None).await.unwrap();
        let turns = turns.load(std::sync::atomic::Ordering::Relaxed);
        other.abort();
        assert!(turns > 30, "others had {turns} turns");
        assert_eq!(rest(input).await, b"xxxxx");
    }
}
