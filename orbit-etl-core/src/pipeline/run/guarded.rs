//! A sink's writer behind its node's guards: writes that fail in passing are repeated as far as the sink
//! says what it took, refused rows are found by halving, and a fallback takes what the sink can't.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::batch::estimated_bytes;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::event::{Payload, Reject, StreamId};
use crate::fault::{Guard, Load, Tries};
use crate::observe::NodeCounts;
use crate::planted::{Bug, planted};
use crate::sink::{Epoch, Prepared, SinkWriter};

/// One lane of a sink.
pub(crate) struct GuardedWriter {
    pub(crate) writer: Box<dyn SinkWriter>,
    pub(crate) guard: Arc<Guard>,
    /// Whether rows may be rejected, so that it is worth looking for those that are refused.
    pub(crate) bisects: bool,
    pub(crate) fallback: Option<Fallback>,
    /// Whether the sink has rows of the open epoch.
    pub(crate) dirty: bool,
}

/// The lane of the sink that takes over.
pub(crate) struct Fallback {
    pub(crate) node: usize,
    pub(crate) name: String,
    pub(crate) writer: Box<dyn SinkWriter>,
    pub(crate) counts: NodeCounts,
}

/// What became of the rows that the sink didn't take.
#[derive(Debug, Default)]
pub(crate) struct Left {
    pub(crate) rejects: Vec<Reject>,
    pub(crate) fell_back: u64,
}

/// The fallback's part of an epoch.
#[derive(Debug)]
pub(crate) struct Aside {
    pub(crate) node: usize,
    pub(crate) prepared: Prepared,
    pub(crate) counts: NodeCounts,
}

impl GuardedWriter {
    pub(crate) async fn write(&mut self, stream: StreamId, batch: RecordBatch) -> Result<Left> {
        let mut left = Left::default();
        let rows = batch.num_rows();
        let row_bytes = if self.guard.is_idle() { 0 } else { estimated_bytes(&batch) / rows.max(1) };
        let at_once = self.guard.rows_at_once(row_bytes as u64);
        if rows <= at_once {
            self.write_part(stream, batch, row_bytes, &mut left).await?;
            return Ok(left);
        }
        let mut next = 0;
        while next < rows {
            let part = batch.slice(next, at_once.min(rows - next));
            next += part.num_rows();
            self.write_part(stream, part, row_bytes, &mut left).await?;
        }
        Ok(left)
    }

    pub(crate) async fn schema_changed(&mut self, stream: StreamId, schema: &SchemaRef) -> Result<()> {
        self.writer.schema_changed(stream, schema).await?;
        match &mut self.fallback {
            Some(fallback) => {
                fallback.writer.schema_changed(stream, schema).await.with("node", &fallback.name)
            }
            None => Ok(()),
        }
    }

    pub(crate) async fn prepare(&mut self, epoch: Epoch) -> Result<(Prepared, Option<Aside>)> {
        let prepared = self.prepare_sink(epoch).await?;
        self.dirty = false;
        let Some(fallback) = &mut self.fallback else { return Ok((prepared, None)) };
        let aside = fallback.writer.prepare(epoch).await.with("node", &fallback.name)?;
        let mut counts = std::mem::take(&mut fallback.counts);
        if aside.bytes > 0 {
            counts.bytes = aside.bytes;
        }
        Ok((prepared, Some(Aside { node: fallback.node, prepared: aside, counts })))
    }

    async fn prepare_sink(&mut self, epoch: Epoch) -> Result<Prepared> {
        // It has nothing to prepare, and would fail.
        if self.fallback.is_some() && !self.dirty && self.guard.is_open() {
            return Ok(Prepared::default());
        }
        let mut tries = Tries::default();
        loop {
            match self.guard.finish(self.writer.prepare(epoch)).await {
                Err(error) if error.rows_taken() == Some(0) => match self.guard.again(&mut tries, &error) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(self.given_up(error)),
                },
                ended => return ended.map_err(|error| self.given_up(error)),
            }
        }
    }

    /// Parts are written in the order of their rows.
    async fn write_part(
        &mut self,
        stream: StreamId,
        batch: RecordBatch,
        row_bytes: usize,
        left: &mut Left,
    ) -> Result<()> {
        let mut parts = vec![batch];
        let mut tries = Tries::default();
        while let Some(part) = parts.pop() {
            if self.fallback.is_some() && self.guard.is_open() {
                self.fall_back(stream, part, left).await?;
                continue;
            }
            let rows = part.num_rows();
            let load = Load { rows: rows as u64, bytes: (rows * row_bytes) as u64 };
            let Err(error) = self.guard.call(load, self.writer.write(stream, part.clone())).await else {
                self.dirty = true;
                tries.forget();
                continue;
            };
            // A writer that doesn't say what it took is in no state to go on.
            let told = error.rows_taken().or(planted(Bug::UnknownWriteRepeated).then_some(0));
            let Some(mut taken) = told.filter(|taken| *taken <= rows) else {
                return Err(self.given_up(error));
            };
            if taken > 0 {
                self.dirty = true;
                tries.forget();
            }
            if planted(Bug::TakenRowsRepeated) {
                taken = 0;
            }
            let rest = part.slice(taken, rows - taken);
            match rest.num_rows() {
                0 => {}
                _ if error.is_retryable() => {
                    self.later(stream, rest, error, &mut tries, &mut parts, left).await?
                }
                1 if self.refuses(&error) => left.rejects.push(rejected(&error, rest)),
                _ if self.refuses(&error) => {
                    self.guard.bisected();
                    halve(&rest, &mut parts);
                }
                _ => return Err(error),
            }
        }
        Ok(())
    }

    /// The epoch fails with it. When its rows come again they go to the fallback, if there is one.
    fn given_up(&self, error: Error) -> Error {
        if self.fallback.is_some() && error.is_retryable() {
            self.guard.trip();
        }
        error
    }

    fn refuses(&self, error: &Error) -> bool {
        self.bisects && error.kind() == ErrorKind::Data
    }

    /// After a failure that passes: once more, or by the fallback.
    async fn later(
        &mut self,
        stream: StreamId,
        rest: RecordBatch,
        error: Error,
        tries: &mut Tries,
        parts: &mut Vec<RecordBatch>,
        left: &mut Left,
    ) -> Result<()> {
        let has_fallback = self.fallback.is_some();
        if has_fallback && self.guard.is_open() {
            return self.fall_back(stream, rest, left).await;
        }
        match self.guard.again(tries, &error) {
            Some(pause) => {
                tracing::debug!(error = %error.report(), rows = rest.num_rows(), "written again in {pause:?}");
                tokio::time::sleep(pause).await;
                parts.push(rest);
                Ok(())
            }
            None if has_fallback => {
                tries.forget();
                self.fall_back(stream, rest, left).await
            }
            None => Err(error),
        }
    }

    /// What the fallback refuses too is rejected; what it fails at fails the epoch.
    async fn fall_back(&mut self, stream: StreamId, rows: RecordBatch, left: &mut Left) -> Result<()> {
        let bisects = self.bisects;
        let Some(fallback) = &mut self.fallback else {
            return Err(Error::internal("rows fall back, but there is no fallback"));
        };
        let mut parts = vec![rows];
        while let Some(part) = parts.pop() {
            let rows = part.num_rows();
            let ended = fallback.writer.write(stream, part.clone()).await;
            let (taken, refused) = match ended {
                Ok(()) => (rows, None),
                Err(error) => match error.rows_taken().filter(|taken| *taken <= rows) {
                    Some(taken) if bisects && error.kind() == ErrorKind::Data => (taken, Some(error)),
                    _ => return Err(error.with("node", &fallback.name)),
                },
            };
            let (count, bytes) = (taken as u64, estimated_bytes(&part.slice(0, taken)) as u64);
            fallback.counts += NodeCounts { rows_in: count, rows_out: count, bytes, ..NodeCounts::default() };
            left.fell_back += count;
            self.guard.fell_back(count);
            let rest = part.slice(taken, rows - taken);
            match (refused, rest.num_rows()) {
                (Some(error), 1) => left.rejects.push(rejected(&error, rest)),
                (Some(_), more) if more > 1 => halve(&rest, &mut parts),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The first half is next.
fn halve(rows: &RecordBatch, parts: &mut Vec<RecordBatch>) {
    let half = rows.num_rows() / 2;
    parts.push(rows.slice(half, rows.num_rows() - half));
    parts.push(rows.slice(0, half));
}

fn rejected(error: &Error, row: RecordBatch) -> Reject {
    let mut reject = Reject::new(error.kind(), error.message(), Payload::Rows(row));
    reject.origin.place = error.context("place").map(str::to_owned);
    reject
}
