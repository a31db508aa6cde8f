//! The conformance suite of Orbit ETL's connectors.
//!
//! A connector's tests implement [`Harness`], which makes a [`Fixture`] with a target of its own
//! for every test, and hand it to [`conformance!`]:
//!
//! ```
//! use orbit_etl_core::memory::{MemorySink, MemorySource, MemoryTable};
//! use orbit_etl_core::{Sink, Source, StreamInfo};
//! use orbit_etl_testkit::{Check, Fixture, Harness, async_trait, conformance};
//! use std::sync::Arc;
//!
//! struct Memory;
//! struct Table(MemoryTable);
//!
//! #[async_trait]
//! impl Harness for Memory {
//!     async fn fresh(&self) -> Check<Box<dyn Fixture>> {
//!         Ok(Box::new(Table(MemoryTable::new())))
//!     }
//! }
//!
//! #[async_trait]
//! impl Fixture for Table {
//!     fn sink(&self) -> Option<Arc<dyn Sink>> {
//!         Some(Arc::new(MemorySink::new(&self.0)))
//!     }
//!     async fn source(&self, streams: &[StreamInfo]) -> Check<Option<Arc<dyn Source>>> {
//!         let part = |s: &StreamInfo| (s.clone(), self.0.batches(&s.name));
//!         Ok(Some(Arc::new(MemorySource::of(streams.iter().map(part).collect()))))
//!     }
//! }
//!
//! conformance!(memory, Memory);
//! ```
//!
//! What the connector can't do is declared in [`Abilities`] and printed as `skipped: …`; run the
//! tests with `--nocapture` to see it. Every contract is also an ordinary function in
//! [`contracts`], for a connector that wants only some of them.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod compare;
pub mod contracts;
pub mod data;
mod drive;
mod harness;
mod random;
mod report;
mod service;

pub use async_trait::async_trait;
pub use compare::{assert_batches_eq, diff};
pub use drive::{Reading, Run, context, read, read_split, splits, write_rows};
pub use harness::{Abilities, Breakage, Broken, Check, Comes, Fixture, Harness, Stop};
pub use random::batches;
pub use report::run;
pub use service::service;
