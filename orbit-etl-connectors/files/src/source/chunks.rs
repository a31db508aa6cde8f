//! The parts of one Parquet file that are asked for, read piece by piece and within the memory limit.
//!
//! A row group is decoded from its columns' chunks, all of which are there at once. They are reserved
//! in the run's memory pool before they are read, and stay so until the next row group comes. From a
//! disk they are read in pieces, and others go on in between; from a store in requests of
//! [`PIECE`] bytes at most, [`PIECES_AT_ONCE`] of them at a time, over gaps of up to [`GAP`].

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use datafusion_execution::memory_pool::{MemoryConsumer, MemoryReservation};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use orbit_etl_core::{Context, Error, Result};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::input::{self, Object, check_local, open_local};
use super::list::FileEntry;
use crate::error::from_io;
use crate::location::Location;

/// What is read from a disk before others get their turn, and what is asked of a store at a time.
const PIECE: u64 = 8 << 20;
/// Requests that are under way at the same time.
const PIECES_AT_ONCE: usize = 6;
/// Gaps up to this size are read along when parts of an object are fetched.
const GAP: u64 = 1 << 20;

/// One file, by ranges.
pub(crate) struct Chunks {
    place: Place,
    file: FileEntry,
    memory: Option<MemoryReservation>,
}

enum Place {
    Local(File),
    Remote(Object),
}

/// Ranges that are read together, with what lies between them.
struct Run {
    whole: Range<u64>,
    /// Which of the wanted ranges these are.
    members: Vec<usize>,
}

impl Run {
    fn single((member, whole): (usize, Range<u64>)) -> Self {
        Self { whole, members: vec![member] }
    }
}

impl Chunks {
    pub(crate) fn open(location: &Location, file: &FileEntry) -> Result<Self> {
        let place = match location.local {
            Some(_) => Place::Local(open_local(file)?),
            None => Place::Remote(Object::new(location, file)?),
        };
        Ok(Self { place, file: file.clone(), memory: None })
    }

    /// Reserves what is read in the run's memory pool.
    #[must_use]
    pub(crate) fn reserving(mut self, cx: &Context) -> Self {
        let consumer = MemoryConsumer::new(format!("{} (row group)", cx.node()));
        self.memory = Some(consumer.register(cx.memory()));
        self
    }

    async fn read(&mut self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if ranges.iter().any(|range| range.end > self.file.size) {
            return Err(broken(&self.file.name));
        }
        let runs: Vec<Run> = match self.place {
            // A buffer each: what outlives its row group, such as a dictionary, keeps little alive.
            Place::Local(_) => ranges.iter().cloned().enumerate().map(Run::single).collect(),
            Place::Remote(_) => runs(ranges, GAP),
        };
        self.reserve(runs.iter().map(|run| length(&run.whole)).sum())?;
        let mut out = vec![Bytes::new(); ranges.len()];
        for run in runs {
            let bytes = match &mut self.place {
                Place::Local(file) => read_local(file, &self.file, &run.whole).await?,
                Place::Remote(object) => fetch(object, &self.file.name, &run.whole).await?,
            };
            for member in run.members {
                let range = &ranges[member];
                let from = length(&(run.whole.start..range.start));
                out[member] = bytes.slice(from..from + length(range));
            }
        }
        Ok(out)
    }

    fn reserve(&self, bytes: usize) -> Result<()> {
        let Some(memory) = &self.memory else { return Ok(()) };
        memory.try_resize(bytes).map_err(|refusal| {
            Error::resources("the memory limit leaves no room for a row group")
                .with("file", &self.file.name)
                .with("bytes", bytes)
                .remedy(
                    "raise the pipeline's memory limit, read fewer columns, use fewer lanes, \
                     or write smaller row groups",
                )
                .caused_by(refusal)
        })
    }
}

/// The error for a file that can't be understood.
pub(crate) fn broken(name: &str) -> Error {
    Error::data("the file is not Parquet, or broken, or cut short")
        .with("file", name)
        .remedy("write it again, or leave it out by a glob")
}

fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX)
}

/// Ranges joined where at most `gap` bytes lie between them.
fn runs(ranges: &[Range<u64>], gap: u64) -> Vec<Run> {
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by_key(|&i| ranges[i].start);
    let mut runs: Vec<Run> = Vec::new();
    for i in order {
        let range = &ranges[i];
        match runs.last_mut() {
            Some(run) if range.start <= run.whole.end.saturating_add(gap) => {
                run.whole.end = run.whole.end.max(range.end);
                run.members.push(i);
            }
            _ => runs.push(Run::single((i, range.clone()))),
        }
    }
    runs
}

fn pieces(whole: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = whole.end;
    let mut next = whole.start;
    std::iter::from_fn(move || {
        let piece = next..next.saturating_add(PIECE).min(end);
        next = piece.end;
        (piece.start < piece.end).then_some(piece)
    })
}

async fn read_local(file: &mut File, entry: &FileEntry, whole: &Range<u64>) -> Result<Bytes> {
    let fail = |e: io::Error| from_io(e, "read the file", &entry.name);
    let mut bytes = Vec::with_capacity(length(whole));
    file.seek(SeekFrom::Start(whole.start)).map_err(fail)?;
    for (n, piece) in pieces(whole).enumerate() {
        if n > 0 {
            tokio::task::yield_now().await;
        }
        let wanted = piece.end - piece.start;
        let read = file.by_ref().take(wanted).read_to_end(&mut bytes).map_err(fail)?;
        check_local(file, entry)?;
        if read as u64 != wanted {
            return Err(broken(&entry.name));
        }
    }
    Ok(bytes.into())
}

async fn fetch(object: &Object, name: &str, whole: &Range<u64>) -> Result<Bytes> {
    let mut arriving = stream::iter(pieces(whole))
        .map(|piece| async move { object.range(piece).await })
        .buffered(PIECES_AT_ONCE);
    let failure = |e| match e {
        object_store::Error::NotSupported { .. } => {
            Error::unsupported("the web server gives no parts of files, and Parquet is read in parts")
                .with("file", name)
                .remedy("copy the file to a disk or an object store first")
        }
        e => input::failure(e, name),
    };
    if length(whole) as u64 <= PIECE {
        return Ok(arriving.next().await.transpose().map_err(failure)?.unwrap_or_default());
    }
    let mut bytes = Vec::with_capacity(length(whole));
    while let Some(piece) = arriving.try_next().await.map_err(failure)? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.into())
}

impl AsyncFileReader for Chunks {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move { Ok(self.read(&[range]).await.map_err(external)?.pop().unwrap_or_default()) }.boxed()
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move { self.read(&ranges).await.map_err(external) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        async move {
            let size = self.file.size;
            let reader = ParquetMetaDataReader::new().with_arrow_reader_options(options);
            Ok(Arc::new(reader.load_and_finish(self, size).await?))
        }
        .boxed()
    }
}

fn external(error: Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_ranges_are_one_run() {
        let ranges = [90..100, 0..10, 12..20, 15..18, 60..60];
        let found = runs(&ranges, 5);
        let wholes: Vec<_> = found.iter().map(|run| run.whole.clone()).collect();
        assert_eq!(wholes, [0..20, 60..60, 90..100]);
        assert_eq!(found[0].members, [1, 2, 3]);
    }

    #[test]
    fn pieces_are_of_bounded_size() {
        assert_eq!(pieces(&(3..3)).count(), 0);
        let cut: Vec<_> = pieces(&(1..2 * PIECE)).collect();
        assert_eq!(cut, [1..PIECE + 1, PIECE + 1..2 * PIECE]);
    }
}
