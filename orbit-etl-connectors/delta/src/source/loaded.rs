//! Versions of a table that were loaded for a run.

use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use deltalake::datafusion::execution::context::SessionContext;
use deltalake::delta_datafusion::DeltaSessionContext;
use deltalake::{DeltaResult, DeltaTable};
use orbit_etl_core::{Context, Result};

use crate::error::from_delta;
use crate::table::{At, Place};
use crate::types::arrow_schema;

/// How many versions are kept.
const KEPT: usize = 4;

/// One version of a table, and a session that can read it.
pub(crate) struct Loaded {
    table: DeltaTable,
    session: SessionContext,
    schema: SchemaRef,
}

impl Loaded {
    pub(crate) fn table(&self) -> &DeltaTable {
        &self.table
    }

    pub(crate) fn session(&self) -> &SessionContext {
        &self.session
    }

    /// The columns as they are read.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The table's own id.
    pub(crate) fn id(&self) -> DeltaResult<String> {
        Ok(self.table.snapshot()?.metadata().id().to_owned())
    }
}

/// Loading a version takes its whole log, opening a split must not. What was loaded for another run is
/// never used: the table may be another one by now.
#[derive(Clone, Default)]
pub(crate) struct Cache(Arc<Mutex<Vec<Entry>>>);

type Key = (String, At);
type Entry = (Key, Arc<Loaded>);

impl Cache {
    pub(crate) async fn at(&self, cx: &Context, place: &Place, at: At) -> Result<Arc<Loaded>> {
        let key = (cx.run_id().to_owned(), at);
        if let Some(found) = self.find(&key) {
            return Ok(found);
        }
        let loaded = Arc::new(load(place, at).await?);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|((run, _), _)| *run == key.0);
        // The newest version is what it was when the run began, and so are the stream's columns.
        let versions = kept.iter().filter(|((_, at), _)| matches!(at, At::Version(_))).count();
        if versions >= KEPT
            && let Some(oldest) = kept.iter().position(|((_, at), _)| matches!(at, At::Version(_)))
        {
            kept.remove(oldest);
        }
        kept.push((key, Arc::clone(&loaded)));
        Ok(loaded)
    }

    fn find(&self, key: &Key) -> Option<Arc<Loaded>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(known, _)| known == key).map(|(_, loaded)| Arc::clone(loaded))
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cache")
    }
}

async fn load(place: &Place, at: At) -> Result<Loaded> {
    let table = place.load(at).await?;
    let fail = |e| from_delta(&e, "read the table", place);
    let state = table.snapshot().map_err(fail)?;
    let columns = arrow_schema(state.schema().as_ref())?;
    let schema = as_read(&columns);
    let session = DeltaSessionContext::new().into_inner();
    table.update_datafusion_session(&session.state()).map_err(fail)?;
    Ok(Loaded { table, session, schema })
}

/// Texts and bytes as views, which decode fastest.
fn as_read(schema: &Schema) -> SchemaRef {
    let fields: Fields = schema
        .fields()
        .iter()
        .map(|field| {
            let data_type = match field.data_type() {
                DataType::Utf8 => DataType::Utf8View,
                DataType::Binary => DataType::BinaryView,
                other => other.clone(),
            };
            Field::new(field.name(), data_type, field.is_nullable()).with_metadata(field.metadata().clone())
        })
        .collect();
    Arc::new(Schema::new(fields))
}
