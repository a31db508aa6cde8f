//! Rows that can't go on: counted, dropped, or kept in a sink of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Builder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
    UInt64Builder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::ceiling::Ceiling;
use crate::batch::{compact, row_bytes};
use crate::error::{CEILING, Error, Result};
use crate::event::{Payload, Reject};
use crate::planted::{Bug, planted};
use crate::sink::Epoch;

/// How many bytes of rejects may wait for the dead-letter sink, per epoch.
const CREDIT: usize = 8 << 20;

/// The columns of a dead letter.
///
/// | column | meaning |
/// |---|---|
/// | `time` | when it was rejected |
/// | `node` | the node that rejected it |
/// | `stream`, `split`, `place`, `position` | where it comes from, as far as that is known |
/// | `kind`, `message` | why |
/// | `rows` | how many rows it stands for |
/// | `text` | the record for people: as it was read if it is UTF-8, or the row as JSON |
/// | `payload` | the record exactly: the bytes if `text` isn't them, or the row as an Arrow IPC stream |
/// | `attempt` | 1, and one more for each time that it was replayed and rejected again |
pub fn dead_letter_schema() -> SchemaRef {
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    Arc::new(Schema::new(vec![
        Field::new("time", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
        text("node", false),
        text("stream", true),
        text("split", true),
        text("place", true),
        text("position", true),
        text("kind", false),
        text("message", false),
        Field::new("rows", DataType::UInt64, false),
        text("text", true),
        Field::new("payload", DataType::Binary, true),
        Field::new("attempt", DataType::Int32, false),
    ]))
}

/// A reject on its way to the dead letters.
#[derive(Debug)]
pub(crate) struct Rejected {
    pub(crate) node: Arc<str>,
    pub(crate) reject: Reject,
    micros: i64,
    _credit: Option<OwnedSemaphorePermit>,
}

impl Rejected {
    pub(crate) fn new(node: Arc<str>, reject: Reject) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
        Self { node, reject, micros, _credit: None }
    }

    /// The rejects as rows of [`dead_letter_schema`], after so many attempts.
    pub(crate) fn to_batch(rejects: &[Self], attempts: i32) -> Result<RecordBatch> {
        let mut time = TimestampMicrosecondBuilder::new().with_timezone("UTC");
        let mut texts: [StringBuilder; 8] = std::array::from_fn(|_| StringBuilder::new());
        let mut rows = UInt64Builder::new();
        let mut payload = BinaryBuilder::new();
        let mut attempt = Int32Builder::new();
        for Self { node, reject, micros, .. } in rejects {
            time.append_value(*micros);
            let origin = &reject.origin;
            let (text, exact) = readable(&reject.payload)?;
            let columns = [
                Some(node.to_string()),
                origin.stream.clone(),
                origin.split.as_ref().map(ToString::to_string),
                origin.place.clone(),
                origin.position.as_ref().map(ToString::to_string),
                Some(reject.kind.to_string()),
                Some(reject.message.clone()),
                text,
            ];
            for (builder, value) in texts.iter_mut().zip(columns) {
                builder.append_option(value);
            }
            rows.append_value(reject.rows);
            payload.append_option(exact);
            attempt.append_value(attempts);
        }
        let [node, stream, split, place, position, kind, message, text] = texts.map(|mut t| t.finish());
        let columns: Vec<ArrayRef> = vec![
            Arc::new(time.finish()),
            Arc::new(node),
            Arc::new(stream),
            Arc::new(split),
            Arc::new(place),
            Arc::new(position),
            Arc::new(kind),
            Arc::new(message),
            Arc::new(rows.finish()),
            Arc::new(text),
            Arc::new(payload.finish()),
            Arc::new(attempt.finish()),
        ];
        RecordBatch::try_new(dead_letter_schema(), columns)
            .map_err(|e| Error::internal("can't build dead letters").caused_by(e))
    }
}

/// The payload for people, and the exact bytes where that text isn't exact.
fn readable(payload: &Payload) -> Result<(Option<String>, Option<Vec<u8>>)> {
    match payload {
        Payload::Raw(bytes) => Ok(match std::str::from_utf8(bytes) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(bytes.to_vec())),
        }),
        Payload::Rows(batch) => {
            let failed = |e| Error::internal("can't write a rejected row as Arrow").caused_by(e);
            let mut stream = Vec::new();
            let mut writer =
                arrow::ipc::writer::StreamWriter::try_new(&mut stream, &batch.schema()).map_err(failed)?;
            writer.write(batch).and_then(|()| writer.finish()).map_err(failed)?;
            drop(writer);
            let mut json = arrow::json::LineDelimitedWriter::new(Vec::new());
            // Not every type can be written as JSON; the exact bytes are there in any case.
            let text = match json.write(batch).and_then(|()| json.finish()) {
                Ok(()) => String::from_utf8(json.into_inner()).ok().map(|t| t.trim_end().to_owned()),
                Err(_) => None,
            };
            Ok((text, Some(stream)))
        }
    }
}

/// How a run treats rejects; shared by all its tasks.
#[derive(Debug)]
pub(crate) struct DeadLetters {
    way: Way,
    max_rows: u64,
    rejected: AtomicU64,
}

#[derive(Debug)]
enum Way {
    Fail,
    Skip,
    /// One queue for even and one for odd epochs: rejects of the next epoch, which may already come
    /// from tasks past the barrier, never use up the credit of the one that is being closed.
    Keep([Queue; 2]),
}

#[derive(Debug)]
struct Queue {
    items: mpsc::UnboundedSender<Rejected>,
    credit: Arc<Semaphore>,
}

impl DeadLetters {
    pub(crate) fn fail() -> Self {
        Self { way: Way::Fail, max_rows: u64::MAX, rejected: AtomicU64::new(0) }
    }

    /// `before` is how many rows the run has rejected already.
    pub(crate) fn skip(max_rows: Option<u64>, before: u64) -> Self {
        Self { way: Way::Skip, max_rows: max_rows.unwrap_or(u64::MAX), rejected: AtomicU64::new(before) }
    }

    /// As [`skip`](Self::skip). The receivers are for even and odd epochs.
    pub(crate) fn keep(max_rows: Option<u64>, before: u64) -> (Self, [mpsc::UnboundedReceiver<Rejected>; 2]) {
        let queue = || {
            let (items, receiver) = mpsc::unbounded_channel();
            (Queue { items, credit: Arc::new(Semaphore::new(CREDIT)) }, receiver)
        };
        let ((even, from_even), (odd, from_odd)) = (queue(), queue());
        let max_rows = max_rows.unwrap_or(u64::MAX);
        let letters = Self { way: Way::Keep([even, odd]), max_rows, rejected: AtomicU64::new(before) };
        (letters, [from_even, from_odd])
    }

    /// Whether rows may be rejected at all.
    pub(crate) fn tolerates(&self) -> bool {
        !matches!(self.way, Way::Fail)
    }

    /// Counts a reject against the ceiling.
    ///
    /// # Errors
    /// Rejects aren't tolerated, or no more of them.
    pub(crate) fn count(&self, reject: &Reject) -> Result<()> {
        if matches!(self.way, Way::Fail) {
            return Err(as_error(reject));
        }
        let rows = self.rejected.fetch_add(reject.rows, Ordering::Relaxed) + reject.rows;
        if rows > self.max_rows {
            return Err(as_error(reject).with("rejected", rows).with(CEILING, self.max_rows).remedy(
                "more rows were rejected than `on_error` allows; mend the data or raise the ceiling",
            ));
        }
        Ok(())
    }
}

/// One task's way to give up rows.
#[derive(Debug, Clone)]
pub(crate) struct RejectPort {
    node: Arc<str>,
    epoch: Epoch,
    letters: Arc<DeadLetters>,
    ceiling: Option<Arc<Ceiling>>,
}

impl RejectPort {
    /// For a task of `node` whose first rows belong to `epoch`.
    pub(crate) fn new(
        node: Arc<str>,
        epoch: Epoch,
        letters: Arc<DeadLetters>,
        ceiling: Option<Arc<Ceiling>>,
    ) -> Self {
        Self { node, epoch, letters, ceiling }
    }

    pub(crate) async fn reject(&self, mut reject: Reject) -> Result<()> {
        self.letters.count(&reject)?;
        if let Some(ceiling) = &self.ceiling {
            ceiling.count(reject.rows)?;
        }
        // A row must not keep alive the batch that it is a slice of.
        if let Payload::Rows(batch) = reject.payload {
            reject.payload = Payload::Rows(compact(batch)?);
        }
        if let Way::Keep(queues) = &self.letters.way {
            let epoch = self.epoch + u64::from(planted(Bug::RejectsNotInEpoch));
            let queue = &queues[(epoch % 2) as usize];
            let cost = payload_bytes(&reject.payload).clamp(256, CREDIT);
            let credit = Arc::clone(&queue.credit)
                .acquire_many_owned(u32::try_from(cost).unwrap_or(u32::MAX))
                .await
                .map_err(|_| Error::cancelled())?;
            let mut rejected = Rejected::new(Arc::clone(&self.node), reject);
            rejected._credit = Some(credit);
            queue.items.send(rejected).map_err(|_| Error::cancelled())?;
        }
        Ok(())
    }

    /// The task has passed the barrier of this epoch.
    pub(crate) fn passed(&mut self, epoch: Epoch) {
        self.epoch = epoch + 1;
    }
}

fn payload_bytes(payload: &Payload) -> usize {
    256 + match payload {
        Payload::Raw(bytes) => bytes.len(),
        Payload::Rows(batch) => row_bytes(batch),
    }
}

fn as_error(reject: &Reject) -> Error {
    let mut error = Error::new(reject.kind, &reject.message).retryable(false);
    if let Some(place) = &reject.origin.place {
        error = error.with("place", place);
    }
    if let Some(stream) = &reject.origin.stream {
        error = error.with("stream", stream);
    }
    error.remedy("mend the data, or let `on_error` skip such rows or keep them as dead letters")
}
