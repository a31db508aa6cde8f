//! Which splits there are: the files that are new, cut into parts where that is safe.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use orbit_etl_core::{Context, Error, Position, Result, Split, SplitChange};

use super::csv::read_head;
use super::dialect::Cutter;
use super::infer::{csv_names, dialect};
use super::input::{Input, changed, is_changed, open_local};
use super::list::{self, FileEntry};
use super::open::Payload;
use super::seen::{Known, Seen};
use super::{Changed, FilesSource, Resolved, parquet};
use crate::error::from_io;
use crate::format::{Compression, Format};
use crate::location::Location;

/// Splits that are told of at once where that costs little.
const MANY: usize = 1_000;
const CHUNK: usize = 1 << 20;

/// How often a file is looked at anew that changes while its parts are searched.
const MOST_TRIES: usize = 3;

/// The splits that were not told of before `after`.
pub(crate) async fn splits(
    source: &FilesSource,
    cx: &Context,
    after: Option<&Position>,
) -> Result<BoxStream<'static, Result<SplitChange>>> {
    let mut seen = Seen::from_position(after)?;
    let resolved = source.resolved(cx).await?;
    let location = source.location()?;
    let format = resolved.format;
    let listed = list::list(&location, source.known_format(), source.partitions).await?;
    let mut files = VecDeque::new();
    for file in listed {
        let part = seen.is_partly_told(&file);
        match seen.know(&file) {
            // The rest of a file comes before every other: only one can be partly told.
            Known::Same if part => files.push_front(file),
            Known::Same => {}
            Known::Changed if source.changed == Changed::Error => return Err(changed(&file.name)),
            Known::Changed | Known::Never => {
                if part {
                    // Its other content is read from the start.
                    seen.part = None;
                }
                files.push_back(file);
            }
        }
    }
    if !files.front().is_some_and(|file| seen.is_partly_told(file)) {
        // The file is gone.
        match seen.part.take() {
            Some((name, byte)) if source.changed == Changed::Error => {
                return Err(Error::not_found("a file that was read in part is gone")
                    .with("file", name)
                    .with("byte", byte)
                    .remedy("put it back; or set `changed: reload`, which goes on without the rest of it"));
            }
            _ => {}
        }
    }
    let cutter =
        Enumerator { source: source.clone(), resolved, location, format, files, seen, told: 0, cursor: None };
    Ok(stream::try_unfold(cutter, |mut cutter| async move {
        Ok(cutter.next().await?.map(|change| (change, cutter)))
    })
    .boxed())
}

struct Enumerator {
    source: FilesSource,
    resolved: std::sync::Arc<Resolved>,
    location: Location,
    format: Format,
    files: VecDeque<FileEntry>,
    seen: Seen,
    told: usize,
    cursor: Option<Cursor>,
}

/// What to do with a file.
enum Plan {
    Whole,
    /// Text that is cut by following it.
    Cut(u64),
    RowGroups(u64),
}

impl Enumerator {
    async fn next(&mut self) -> Result<Option<SplitChange>> {
        let mut added = Vec::new();
        loop {
            // The positions list all files, so changes get fewer as they get longer.
            let enough = self.told / 4;
            let slow = self.cursor.is_some()
                || self.files.front().is_some_and(|f| !matches!(self.plan(f), Plan::Whole));
            let limit = if slow { enough.clamp(1, MANY) } else { enough.max(MANY) };
            let done = self.cursor.is_none() && self.files.is_empty();
            if added.len() >= limit || (done && !added.is_empty()) {
                self.told += added.len();
                return Ok(Some(SplitChange {
                    added,
                    revoked: Vec::new(),
                    position: self.seen.to_position()?,
                }));
            }
            if done {
                return Ok(None);
            }
            if let Some(cursor) = self.cursor.take() {
                added.push(self.cut(cursor).await?);
            } else if let Some(file) = self.files.pop_front() {
                self.begin(file, &mut added).await?;
            }
        }
    }

    fn plan(&self, file: &FileEntry) -> Plan {
        if self.seen.is_partly_told(file) {
            // Whatever the configuration says now: the beginning isn't told of again.
            return Plan::Cut(self.source.split_size.unwrap_or(u64::MAX));
        }
        let Some(size) = self.source.split_size.filter(|size| file.size > size + size / 2) else {
            return Plan::Whole;
        };
        match self.format {
            Format::Parquet => Plan::RowGroups(size),
            format
                if format.is_text()
                    && self.location.local.is_some()
                    && self.source.compression_of(format, &file.name) == Compression::None =>
            {
                Plan::Cut(size)
            }
            _ => Plan::Whole,
        }
    }

    async fn begin(&mut self, mut file: FileEntry, added: &mut Vec<Split>) -> Result<()> {
        for _ in 0..MOST_TRIES {
            match self.try_begin(file.clone(), added).await {
                Err(e) if self.source.changed == Changed::Reload && is_changed(&e) => {
                    file = list::again(&self.location, &file).await?;
                    self.seen.part = None;
                }
                begun => return begun,
            }
        }
        Err(changed(&file.name))
    }

    async fn try_begin(&mut self, file: FileEntry, added: &mut Vec<Split>) -> Result<()> {
        self.seen.add(&file);
        match self.plan(&file) {
            Plan::Whole => {
                let bytes = file.size;
                added.push(split(Payload { file, bytes: None, header: None, row_groups: None }, "", bytes)?);
            }
            Plan::RowGroups(size) => {
                for (from, to, bytes) in parquet::parts(&self.location, &file, size).await? {
                    let payload = Payload {
                        file: file.clone(),
                        bytes: None,
                        header: None,
                        row_groups: Some((from, to)),
                    };
                    added.push(split(payload, &format!("#groups {from}-{to}"), bytes)?);
                }
            }
            Plan::Cut(size) => {
                let (header, start) = match self.format {
                    Format::Csv => {
                        let mut input =
                            Input::open(&self.location, &file, Compression::None, 0, None).await?;
                        let head =
                            read_head(&mut input, &self.source.csv, &file, self.source.max_record).await?;
                        (Some(csv_names(&self.source, &self.resolved, head.names, &file)), head.byte)
                    }
                    _ => (None, 0),
                };
                let from = match &self.seen.part {
                    Some((key, byte)) if *key == file.key => *byte,
                    _ => start,
                };
                self.seen.part = Some((file.key.clone(), from));
                let cutter = Cutter::new(dialect(&self.source, self.format));
                let opened = open_local(&file)?;
                self.cursor = Some(Cursor {
                    file,
                    opened,
                    cutter,
                    jumps: header.is_none(),
                    header,
                    from,
                    read: from,
                    size,
                });
            }
        }
        Ok(())
    }

    async fn cut(&mut self, cursor: Cursor) -> Result<Split> {
        let from = cursor.from;
        let (cursor, to) = tokio::task::spawn_blocking(move || cursor.advance())
            .await
            .map_err(|e| Error::internal("the search for split points died").caused_by(e))??;
        let payload = Payload {
            file: cursor.file.clone(),
            bytes: Some((from, to)),
            // Text without a header of its own is opened like any other.
            header: cursor.header.clone(),
            row_groups: None,
        };
        if to < cursor.file.size {
            self.seen.part = Some((cursor.file.key.clone(), to));
            self.cursor = Some(cursor);
        } else {
            self.seen.part = None;
        }
        split(payload, &format!("#bytes {from}-{to}"), to - from)
    }
}

/// A text file on the local disk while its split points are searched.
struct Cursor {
    file: FileEntry,
    opened: File,
    cutter: Cutter,
    header: Option<Vec<String>>,
    /// Whether the cutter needs nothing from the bytes before a split point.
    jumps: bool,
    /// Where the next split begins.
    from: u64,
    /// Up to where the cutter has followed the file.
    read: u64,
    size: u64,
}

impl Cursor {
    /// Finds the end of the next split.
    fn advance(mut self) -> Result<(Self, u64)> {
        let end = self.file.size;
        if end.saturating_sub(self.from) <= self.size.saturating_add(self.size / 2) {
            return Ok((self, end));
        }
        let target = self.from + self.size;
        if self.jumps {
            self.read = target - 1;
        }
        let name = self.file.name.clone();
        let fail = |e| from_io(e, "read the file", &name);
        self.opened.seek(SeekFrom::Start(self.read)).map_err(fail)?;
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = self.opened.read(&mut chunk).map_err(fail)?;
            if read == 0 {
                return Ok((self, end));
            }
            let wanted = usize::try_from(target.saturating_sub(self.read)).unwrap_or(usize::MAX);
            if let Some(at) = self.cutter.find(&chunk[..read], wanted) {
                self.read += at as u64;
                self.from = self.read;
                let at = self.from.min(end);
                return Ok((self, at));
            }
            self.read += read as u64;
        }
    }
}

fn split(payload: Payload, part: &str, bytes: u64) -> Result<Split> {
    let id = format!("{}#{}{part}", payload.file.name, payload.file.fingerprint());
    let payload = serde_json::to_value(payload)
        .map_err(|e| Error::internal("a split can't be written").caused_by(e))?;
    let mut split = Split::new(id, payload);
    split.bytes = Some(bytes);
    Ok(split)
}
