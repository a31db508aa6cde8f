//! A source and a sink in memory: for tests, examples and hosts that have their rows at hand.
//!
//! [`MemorySource`] holds batches, or is fed with them while it is read ([`MemoryFeed`]).
//! [`MemorySink`] writes to a [`MemoryTable`], which plays the part of the target: it outlives
//! runs and sessions, keeps staged rows apart from visible ones, and knows who owns it. Both keep
//! the whole contract in every mode, so that they can stand in for files, databases and brokers.
//!
//! ```
//! # use std::sync::Arc;
//! # use arrow::array::{Int64Array, RecordBatch};
//! # use arrow::datatypes::{DataType, Field, Schema};
//! use orbit_etl_core::memory::{MemorySink, MemorySource, MemoryTable};
//!
//! let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
//! let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(Int64Array::from(vec![1, 2, 3]))])?;
//! let source = MemorySource::new(schema, vec![batch]);
//! let table = MemoryTable::new();
//! let sink = MemorySink::new(&table);
//! # Ok::<(), arrow::error::ArrowError>(())
//! ```

mod feed;
mod log;
mod reader;
mod sink;
mod source;
mod table;
#[cfg(test)]
mod tests;

pub use feed::MemoryFeed;
pub use sink::MemorySink;
pub use source::MemorySource;
pub use table::MemoryTable;
