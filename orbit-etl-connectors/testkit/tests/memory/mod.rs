//! The memory connector in each of its modes.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{RecordBatch, new_null_array};
use orbit_etl_core::memory::{MemorySink, MemorySource, MemoryTable};
use orbit_etl_core::{CommitMode, Publication, Replay, Sink, Source, StreamInfo};
use orbit_etl_testkit::{Abilities, Check, Fixture, Harness, async_trait, conformance};

pub(crate) struct Memory {
    pub(crate) mode: CommitMode,
    pub(crate) publication: Publication,
    pub(crate) replay: Replay,
    pub(crate) fed: bool,
}

impl Memory {
    pub(crate) fn new(mode: CommitMode) -> Self {
        Self { mode, publication: Publication::EachEpoch, replay: Replay::Exact, fed: false }
    }
}

pub(crate) struct Table {
    pub(crate) table: MemoryTable,
    sink: MemorySink,
    replay: Replay,
    fed: bool,
}

#[async_trait]
impl Harness for Memory {
    async fn fresh(&self) -> Check<Box<dyn Fixture>> {
        let table = MemoryTable::new();
        let sink = MemorySink::new(&table).with_mode(self.mode).with_publication(self.publication);
        Ok(Box::new(Table { table, sink, replay: self.replay, fed: self.fed }))
    }

    fn abilities(&self) -> Abilities {
        Abilities { idle: Duration::from_millis(20), ..Abilities::default() }
    }
}

#[async_trait]
impl Fixture for Table {
    fn sink(&self) -> Option<Arc<dyn Sink>> {
        Some(Arc::new(self.sink.clone()))
    }

    async fn source(&self, streams: &[StreamInfo]) -> Check<Option<Arc<dyn Source>>> {
        let part = |s: &StreamInfo| (s.clone(), self.widened(s));
        let parts: Vec<_> = streams.iter().map(part).collect();
        if self.fed {
            let (source, feed) = MemorySource::unbounded(streams.to_vec());
            feed.add_split("p0");
            for batch in parts.into_iter().flat_map(|(_, batches)| batches) {
                feed.push("p0", batch)?;
            }
            return Ok(Some(Arc::new(source)));
        }
        Ok(Some(Arc::new(MemorySource::of(parts).with_splits(2).with_replay(self.replay))))
    }

    async fn staged(&self) -> Check<Option<usize>> {
        Ok(Some(self.table.staged_count()))
    }
}

impl Table {
    /// The visible rows, with NULL in columns that came later.
    fn widened(&self, stream: &StreamInfo) -> Vec<RecordBatch> {
        let widen = |batch: RecordBatch| {
            let column = |f: &Arc<arrow::datatypes::Field>| match batch.column_by_name(f.name()) {
                Some(column) => column.clone(),
                None => new_null_array(f.data_type(), batch.num_rows()),
            };
            let columns = stream.schema.fields().iter().map(column).collect();
            RecordBatch::try_new(stream.schema.clone(), columns).unwrap()
        };
        self.table.batches(&stream.name).into_iter().map(widen).collect()
    }
}

conformance!(staged, Memory::new(CommitMode::Staged));
conformance!(atomic, Memory::new(CommitMode::Atomic));
conformance!(immediate, Memory::new(CommitMode::Immediate));
conformance!(at_end, Memory { publication: Publication::AtEnd, ..Memory::new(CommitMode::Staged) });
conformance!(whole_splits, Memory { replay: Replay::WholeSplit, ..Memory::new(CommitMode::Staged) });
conformance!(unbounded, Memory { fed: true, ..Memory::new(CommitMode::Staged) });
