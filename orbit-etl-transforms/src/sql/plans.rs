//! What one transform has planned already: the engine asks the same questions of the same inputs
//! many times, before a run and in each lane of it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arrow::datatypes::SchemaRef;
use orbit_etl_core::{Context, Result, StreamInfo};

use super::Sql;
use super::plan::Planned;

/// The most plans that are kept. Inputs come whole and narrowed, and change rarely.
const MOST_PLANS: usize = 8;

/// The most runs whose times are kept.
const MOST_RUNS: usize = 16;

/// The plans of one transform. They hold nothing that a run changes. A clone has none: two
/// pipelines never meet here.
#[derive(Default)]
pub(super) struct Plans(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// The newest at the end.
    plans: VecDeque<(Key, Arc<Planned>)>,
    /// When each run asked for the first time.
    times: VecDeque<(String, SystemTime)>,
}

/// All that a plan depends on, beside the transform itself.
#[derive(PartialEq)]
struct Key {
    inputs: Vec<(String, SchemaRef)>,
    batch_rows: usize,
    /// The run, if the time of the run stands in the plan.
    run: Option<String>,
}

impl Plans {
    /// The same plans, for an operator of this transform.
    pub(super) fn shared(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// The time that `now()` gives in a run, the same in all lanes.
    pub(super) fn time(&self, cx: &Context) -> SystemTime {
        let mut known = self.known();
        if let Some((_, time)) = known.times.iter().find(|(run, _)| run == cx.run_id()) {
            return *time;
        }
        let now = SystemTime::now();
        if known.times.len() == MOST_RUNS {
            known.times.pop_front();
        }
        known.times.push_back((cx.run_id().to_owned(), now));
        now
    }

    /// The plan over these inputs.
    pub(super) async fn get(&self, sql: &Sql, cx: &Context, inputs: &[StreamInfo]) -> Result<Arc<Planned>> {
        let mut key = Key {
            inputs: inputs.iter().map(|i| (i.name.clone(), Arc::clone(&i.schema))).collect(),
            batch_rows: cx.batch_rows(),
            run: None,
        };
        if let Some(planned) = self.known().find(&key, cx) {
            return Ok(planned);
        }
        let planned = Arc::new(Planned::new(sql, cx, inputs).await?);
        key.run = planned.timed().then(|| cx.run_id().to_owned());
        self.known().keep(key, Arc::clone(&planned));
        Ok(planned)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn find(&mut self, key: &Key, cx: &Context) -> Option<Arc<Planned>> {
        let at = self.plans.iter().position(|(known, _)| {
            known.inputs == key.inputs
                && known.batch_rows == key.batch_rows
                && known.run.as_deref().is_none_or(|run| run == cx.run_id())
        })?;
        let found = self.plans.remove(at)?;
        let planned = Arc::clone(&found.1);
        self.plans.push_back(found);
        Some(planned)
    }

    fn keep(&mut self, key: Key, planned: Arc<Planned>) {
        self.plans.retain(|(known, _)| *known != key);
        if self.plans.len() == MOST_PLANS {
            self.plans.pop_front();
        }
        self.plans.push_back((key, planned));
    }
}

impl Clone for Plans {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for Plans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plans").field("plans", &self.known().plans.len()).finish_non_exhaustive()
    }
}
