//! What a run reads, found out once for all its splits.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::SchemaRef;

use super::{Extra, Missing};
use crate::format::Format;

/// Runs whose schemas one source remembers at a time.
const REMEMBERED_RUNS: usize = 8;

/// What a run reads.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) format: Format,
    /// The stream's columns, those of partitions last.
    pub(crate) schema: SchemaRef,
    /// The file, or the option, that the schema comes from.
    pub(crate) reference: String,
    pub(crate) missing: Missing,
    pub(crate) extra: Extra,
}

/// What the latest runs read: every split of a run is opened with one schema.
#[derive(Debug, Clone, Default)]
pub(super) struct Runs(Arc<Mutex<VecDeque<Run>>>);

/// A run's id, and what it reads.
type Run = (String, Arc<Resolved>);

impl Runs {
    pub(super) fn get(&self, run: &str) -> Option<Arc<Resolved>> {
        let runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        runs.iter().find(|(id, _)| id == run).map(|(_, resolved)| Arc::clone(resolved))
    }

    /// Keeps it, unless another call was faster: then that one's holds for both.
    pub(super) fn keep(&self, run: &str, resolved: Arc<Resolved>) -> Arc<Resolved> {
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, first)) = runs.iter().find(|(id, _)| id == run) {
            return Arc::clone(first);
        }
        if runs.len() == REMEMBERED_RUNS {
            runs.pop_front();
        }
        runs.push_back((run.to_string(), Arc::clone(&resolved)));
        resolved
    }

    pub(super) fn forget(&self, run: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(id, _)| id != run);
    }
}
