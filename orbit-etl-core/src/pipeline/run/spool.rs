//! An edge that never pushes back: what memory can't hold goes to a file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion_execution::memory_pool::{MemoryConsumer, MemoryReservation};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::Notify;

use crate::batch::{compact, retained_bytes};
use crate::context::Context;
use crate::error::{Error, Result};

/// How much of the pool a spool takes at most: what it feeds needs the rest.
const IN_MEMORY: usize = 16 << 20;

/// A queue of batches of any length. Memory is bounded, by the pool and by a limit of its own: what is
/// above goes to a file in the run's spill directory.
#[derive(Debug)]
pub(crate) struct Spool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    cx: Context,
    queue: Mutex<Queue>,
    news: Notify,
}

#[derive(Debug)]
struct Queue {
    slots: VecDeque<Slot>,
    memory: MemoryReservation,
    file: Option<File>,
    written: u64,
    ended: bool,
}

#[derive(Debug)]
enum Slot {
    Memory(RecordBatch, usize),
    File { at: u64, bytes: u64 },
}

/// The end that takes batches; dropping it ends the queue.
#[derive(Debug)]
pub(crate) struct SpoolWriter(Arc<Shared>);

/// The end that gives them back in order.
#[derive(Debug)]
pub(crate) struct SpoolReader(Arc<Shared>);

impl Spool {
    pub(crate) fn new(cx: &Context) -> Self {
        let memory = MemoryConsumer::new(format!("spool of {}", cx.node())).register(cx.memory());
        let queue = Queue { slots: VecDeque::new(), memory, file: None, written: 0, ended: false };
        let shared = Shared { cx: cx.clone(), queue: Mutex::new(queue), news: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn split(self) -> (SpoolWriter, SpoolReader) {
        (SpoolWriter(Arc::clone(&self.shared)), SpoolReader(self.shared))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::resources("can't spill rows to disk")
            .with("directory", self.cx.spill_dir().display())
            .remedy("make room there, or raise the memory limit")
            .caused_by(error)
    }
}

impl SpoolWriter {
    pub(crate) fn push(&self, batch: RecordBatch) -> Result<()> {
        let batch = compact(batch)?;
        let bytes = retained_bytes(&batch);
        let mut queue = self.0.lock();
        let fits = queue.memory.size() + bytes <= IN_MEMORY;
        let slot = if fits && queue.memory.try_grow(bytes).is_ok() {
            Slot::Memory(batch, bytes)
        } else {
            queue.spill(&batch, &self.0)?
        };
        queue.slots.push_back(slot);
        drop(queue);
        self.0.news.notify_one();
        Ok(())
    }
}

impl Drop for SpoolWriter {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.news.notify_one();
    }
}

impl SpoolReader {
    pub(crate) fn into_stream(self) -> BoxStream<'static, Result<RecordBatch>> {
        stream::try_unfold(
            self,
            |reader| async move { Ok(reader.next().await?.map(|batch| (batch, reader))) },
        )
        .boxed()
    }

    async fn next(&self) -> Result<Option<RecordBatch>> {
        loop {
            {
                let mut queue = self.0.lock();
                match queue.slots.pop_front() {
                    Some(Slot::Memory(batch, bytes)) => {
                        queue.memory.shrink(bytes);
                        return Ok(Some(batch));
                    }
                    Some(Slot::File { at, bytes }) => return queue.load(at, bytes, &self.0).map(Some),
                    None if queue.ended => return Ok(None),
                    None => {}
                }
            }
            self.0.news.notified().await;
        }
    }
}

impl Queue {
    fn spill(&mut self, batch: &RecordBatch, shared: &Shared) -> Result<Slot> {
        let mut encoded = Vec::new();
        let mut writer =
            StreamWriter::try_new(&mut encoded, batch.schema_ref()).map_err(|e| shared.failed(e))?;
        writer.write(batch).and_then(|()| writer.finish()).map_err(|e| shared.failed(e))?;
        drop(writer);
        if self.file.is_none() {
            let file = tempfile::tempfile_in(shared.cx.spill_dir()).map_err(|e| shared.failed(e))?;
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else { return Err(Error::internal("no spool file")) };
        let at = self.written;
        file.seek(SeekFrom::Start(at))
            .and_then(|_| file.write_all(&encoded))
            .map_err(|e| shared.failed(e))?;
        self.written += encoded.len() as u64;
        Ok(Slot::File { at, bytes: encoded.len() as u64 })
    }

    fn load(&mut self, at: u64, bytes: u64, shared: &Shared) -> Result<RecordBatch> {
        let Some(file) = &mut self.file else { return Err(Error::internal("no spool file")) };
        file.seek(SeekFrom::Start(at)).map_err(|e| shared.failed(e))?;
        let mut reader =
            StreamReader::try_new(BufReader::new(file.take(bytes)), None).map_err(|e| shared.failed(e))?;
        let batch = reader.next().ok_or_else(|| Error::internal("a spooled batch is gone"))?;
        batch.map_err(|e| shared.failed(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::ContextBuilder;
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion_execution::memory_pool::GreedyMemoryPool;

    #[tokio::test]
    async fn what_memory_refuses_comes_back_from_disk_in_order() {
        let pool = Arc::new(GreedyMemoryPool::new(100_000));
        let cx = ContextBuilder::new("t").memory(pool.clone()).build().unwrap();
        let (writer, reader) = Spool::new(&cx).split();
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let batch = |i: i64| {
            let column = Int64Array::from_iter_values(i * 1_000..(i + 1) * 1_000);
            RecordBatch::try_new(schema.clone(), vec![Arc::new(column)]).unwrap()
        };
        for i in 0..100 {
            writer.push(batch(i)).unwrap();
        }
        drop(writer);
        let back: Vec<_> = reader.into_stream().map(Result::unwrap).collect().await;
        assert_eq!(back, (0..100).map(batch).collect::<Vec<_>>());
        use datafusion_execution::memory_pool::MemoryPool;
        assert_eq!(pool.reserved(), 0);
    }
}
