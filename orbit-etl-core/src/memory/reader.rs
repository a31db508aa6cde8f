//! One open split of a memory source.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use futures::stream::{self, BoxStream, StreamExt};
use tokio_util::sync::CancellationToken;

use super::log::{Shared, State, Unit, What, row_position};
use crate::error::{Error, Result};
use crate::event::{SourceEvent, StreamId};
use crate::signal::Listener;
use crate::source::{Replay, ScanRequest};

pub(super) struct Reader {
    shared: Arc<Shared>,
    changed: Listener,
    cancel: CancellationToken,
    replay: Replay,
    scan: Vec<ScanRequest>,
    split: usize,
    revocations: u64,
    /// The entry to be read next, and how many of its rows are done.
    entry: usize,
    offset: usize,
    ready: VecDeque<SourceEvent>,
    done: bool,
}

enum Step {
    Event(Result<SourceEvent>),
    /// There was nothing to tell; look at the next entry.
    Again,
    /// There is nothing yet.
    Wait,
}

impl Reader {
    /// A reader that stands after `rows` rows.
    pub(super) fn new(
        shared: &Arc<Shared>,
        cancel: CancellationToken,
        replay: Replay,
        scan: &[ScanRequest],
        split: usize,
        rows: u64,
    ) -> Result<Self> {
        let changed = shared.subscribe();
        let state = shared.lock();
        let mut reader = Self {
            shared: Arc::clone(shared),
            changed,
            cancel,
            replay,
            scan: scan.to_vec(),
            split,
            revocations: state.splits[split].revocations,
            entry: 0,
            offset: 0,
            ready: VecDeque::new(),
            done: false,
        };
        reader.advance(&state, rows)?;
        drop(state);
        Ok(reader)
    }

    pub(super) fn into_stream(self) -> BoxStream<'static, Result<SourceEvent>> {
        stream::unfold(self, |mut reader| async move {
            let event = reader.next().await?;
            reader.done |= event.is_err();
            Some((event, reader))
        })
        .boxed()
    }

    /// Goes to the position, and tells of the schemas that hold there.
    fn advance(&mut self, state: &State, rows: u64) -> Result<()> {
        let log = &state.splits[self.split];
        let mut schemas = BTreeMap::new();
        while let Some(entry) = log.entries.get(self.entry)
            && entry.before < rows
        {
            if entry.before + entry.what.rows() > rows {
                if entry.unit != Unit::Free {
                    return Err(Error::config("the position lies inside a unit that must not be cut")
                        .with("split", &log.split.id)
                        .with("row", rows));
                }
                self.offset = usize::try_from(rows - entry.before).unwrap_or(usize::MAX);
                break;
            }
            if let What::Schema { stream, schema } = &entry.what {
                schemas.insert(*stream, schema.clone());
            }
            self.entry += 1;
        }
        for (stream, schema) in schemas {
            let schema = narrow(&schema, self.projection(stream))?;
            self.ready.push_back(SourceEvent::Schema { stream, schema });
        }
        Ok(())
    }

    async fn next(&mut self) -> Option<Result<SourceEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.done {
                return None;
            }
            match self.step() {
                Step::Event(event) => return Some(event),
                Step::Again => continue,
                Step::Wait => {}
            }
            tokio::select! {
                biased;
                () = self.changed.changed() => {}
                () = self.cancel.cancelled() => return Some(Err(Error::cancelled())),
            }
        }
    }

    /// The next event, unless there is none yet.
    fn step(&mut self) -> Step {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let log = &mut state.splits[self.split];
        if log.revocations != self.revocations {
            return Step::Wait;
        }
        let Some(entry) = log.entries.get_mut(self.entry) else {
            if !log.ended {
                return Step::Wait;
            }
            self.done = true;
            if self.replay != Replay::WholeSplit {
                return Step::Event(Ok(SourceEvent::Finished));
            }
            self.ready.push_back(SourceEvent::Finished);
            return Step::Event(Ok(SourceEvent::Progress(row_position(log.rows))));
        };
        let mut after = entry.before + entry.what.rows();
        let uncut = self.replay == Replay::WholeSplit || entry.unit == Unit::Inside;
        let event = match &mut entry.what {
            What::Batch { stream, batch } => {
                let left = batch.num_rows() - self.offset;
                let limit = self.scan.get(stream.0).map_or(usize::MAX, |s| s.batch_rows.max(1));
                let rows = if entry.unit == Unit::Free { left.min(limit) } else { left };
                let piece =
                    if rows == batch.num_rows() { batch.clone() } else { batch.slice(self.offset, rows) };
                let piece = project(piece, projection(&self.scan, *stream));
                if rows < left {
                    self.offset += rows;
                    after = entry.before + self.offset as u64;
                } else {
                    self.offset = 0;
                    self.entry += 1;
                }
                let position = (!uncut).then(|| row_position(after));
                piece.map(|batch| SourceEvent::Batch { stream: *stream, batch, position })
            }
            What::Failure(error) => {
                self.entry += 1;
                match error.take() {
                    Some(error) => Err(error),
                    None => return Step::Again,
                }
            }
            other => {
                self.entry += 1;
                self.offset = 0;
                let position = (!uncut).then(|| row_position(after));
                match other {
                    What::Reject(reject) => {
                        Ok(SourceEvent::Rejects { rejects: vec![reject.clone()], position })
                    }
                    What::Schema { stream, schema } => narrow(schema, projection(&self.scan, *stream))
                        .map(|schema| SourceEvent::Schema { stream: *stream, schema }),
                    What::Watermark { stream, micros } => {
                        Ok(SourceEvent::Watermark { stream: *stream, micros: *micros })
                    }
                    _ => match position {
                        Some(position) => Ok(SourceEvent::Progress(position)),
                        None => return Step::Again,
                    },
                }
            }
        };
        log.taken = log.taken.max(after);
        Step::Event(event)
    }

    fn projection(&self, stream: StreamId) -> Option<&[String]> {
        projection(&self.scan, stream)
    }
}

fn projection(scan: &[ScanRequest], stream: StreamId) -> Option<&[String]> {
    scan.get(stream.0).and_then(|s| s.projection.as_deref())
}

fn project(batch: RecordBatch, columns: Option<&[String]>) -> Result<RecordBatch> {
    let Some(columns) = columns else { return Ok(batch) };
    let indices = indices(batch.schema_ref(), columns)?;
    batch.project(&indices).map_err(|e| Error::internal("can't project a batch").caused_by(e))
}

fn narrow(schema: &SchemaRef, columns: Option<&[String]>) -> Result<SchemaRef> {
    let Some(columns) = columns else { return Ok(schema.clone()) };
    let narrowed = schema.project(&indices(schema, columns)?);
    narrowed.map(Arc::new).map_err(|e| Error::internal("can't project a schema").caused_by(e))
}

fn indices(schema: &Schema, columns: &[String]) -> Result<Vec<usize>> {
    let find = |name: &String| {
        schema
            .index_of(name)
            .map_err(|_| Error::schema("a wanted column isn't in the stream").with("column", name))
    };
    columns.iter().map(find).collect()
}
