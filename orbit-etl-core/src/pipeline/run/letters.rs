//! The task that writes dead letters.

use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Result};
use crate::event::StreamId;
use crate::fault::{Rejected, failpoint};
use crate::sink::{Epoch, Prepared, SinkWriter};

/// How many letters make a batch.
const BATCH: usize = 1_024;

/// What the coordinator asks of the task: to close the epoch, with these rejects of commits too.
#[derive(Debug)]
pub(crate) struct Close {
    pub(crate) epoch: Epoch,
    pub(crate) also: Vec<Rejected>,
    pub(crate) done: oneshot::Sender<(Prepared, u64)>,
}

/// Writes rejects of the open epoch as they come; those of the next one wait in their queue.
pub(crate) struct Letters {
    pub(crate) writer: Box<dyn SinkWriter>,
    /// For even and odd epochs.
    pub(crate) queues: [mpsc::UnboundedReceiver<Rejected>; 2],
    pub(crate) close: mpsc::Receiver<Close>,
    pub(crate) epoch: Epoch,
    /// How often the rows of this run have been tried, this time included.
    pub(crate) attempt: i32,
}

impl Letters {
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut rows = 0;
        let mut waiting = Vec::new();
        loop {
            let queue = &mut self.queues[(self.epoch % 2) as usize];
            tokio::select! {
                biased;
                received = queue.recv_many(&mut waiting, BATCH) => {
                    if received == 0 {
                        return Ok(());
                    }
                    rows += write(&mut self.writer, &mut waiting, self.attempt).await?;
                }
                close = self.close.recv() => {
                    let Some(Close { epoch, also, done }) = close else { return Ok(()) };
                    // Every task that could reject in this epoch has passed its barrier.
                    while let Ok(rejected) = queue.try_recv() {
                        waiting.push(rejected);
                        if waiting.len() == BATCH {
                            rows += write(&mut self.writer, &mut waiting, self.attempt).await?;
                        }
                    }
                    for rejected in also {
                        waiting.push(rejected);
                        if waiting.len() == BATCH {
                            rows += write(&mut self.writer, &mut waiting, self.attempt).await?;
                        }
                    }
                    rows += write(&mut self.writer, &mut waiting, self.attempt).await?;
                    failpoint("before_letters");
                    let prepared = self.writer.prepare(epoch).await?;
                    failpoint("after_letters");
                    self.epoch = epoch + 1;
                    done.send((prepared, std::mem::take(&mut rows))).map_err(|_| Error::cancelled())?;
                }
            }
        }
    }
}

/// Writes what waits and gives its credit back.
async fn write(writer: &mut Box<dyn SinkWriter>, waiting: &mut Vec<Rejected>, attempt: i32) -> Result<u64> {
    if waiting.is_empty() {
        return Ok(0);
    }
    let batch = Rejected::to_batch(waiting, attempt)?;
    let rows = waiting.len() as u64;
    writer.write(StreamId(0), batch).await?;
    waiting.clear();
    Ok(rows)
}
