//! A host's own closures, streams and channels as nodes, one line each.
//!
//! ```
//! # use std::sync::Arc;
//! # use arrow::array::{Int64Array, RecordBatch};
//! # use arrow::datatypes::{DataType, Field, Schema};
//! use orbit_etl_core::Pipeline;
//! use orbit_etl_core::host::{ChannelSink, Map, StreamSource};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> orbit_etl_core::Result<()> {
//! # let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
//! # let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(Int64Array::from(vec![1, 2, 3]))]).unwrap();
//! let stream = futures::stream::iter([Ok(batch)]);
//! let (sender, mut receiver) = tokio::sync::mpsc::channel(8);
//! let pipeline = Pipeline::builder("host")
//!     .source("in", StreamSource::new(schema, stream))
//!     .transform("first", Map::new(|batch| Ok(batch.slice(0, batch.num_rows().min(1)))))
//!     .sink("out", ChannelSink::new(sender))
//!     .checkpoint_in_memory()
//!     .build()?;
//! let (report, received) = tokio::join!(pipeline.run(), receiver.recv());
//! assert_eq!(report?.rows_read(), 3);
//! assert_eq!(received.unwrap().num_rows(), 1);
//! # Ok(())
//! # }
//! ```

mod map;
mod sinks;
mod stream;

pub use map::Map;
pub use sinks::{ChannelSink, FnSink};
pub use stream::StreamSource;
