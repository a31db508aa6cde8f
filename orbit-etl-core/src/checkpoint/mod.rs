//! What a pipeline remembers between epochs and runs.
//!
//! A [`Log`] is a directory of numbered entries in an object store. A run takes it over with a
//! [`Claim`], whose number is the fencing token of the run, and appends one checkpoint per epoch.
//! Large parts of a [`State`] are kept beside the entries as blobs, and only those that changed are
//! written again. [`DurableLocal`] is the store on local disks: what it has put survives a power
//! failure.
//!
//! What a reader of the log relies on:
//!
//! * Entries are created only if absent, so a number is written once. The newest entry is never
//!   deleted.
//! * After it has created an entry, a run lists the log. An entry above its own means that a newer
//!   run has taken over: the run is fenced, even if the number was free because it had been
//!   collected.
//! * A blob is durable before an entry names it. Its name carries the claim that wrote it and is
//!   never used twice, so a late deletion can't hit a newer blob.

mod body;
mod claim;
mod collect;
mod durable;
mod entry;
mod log;
mod state;
mod store;

pub use claim::Claim;
pub use durable::{DurableLocal, create_dir_durable, rename_durable, sync_dir, sync_file};
pub use log::{Head, Log};
pub use state::{MarkedColumn, NodeCounts, Pending, SinkMark, SourceState, SplitState, State};
pub use store::is_undecided;
