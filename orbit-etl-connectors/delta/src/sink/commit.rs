//! What a commit changes in a table.

use std::collections::HashMap;

use deltalake::kernel::{Action, MetadataExt, StructType};
use deltalake::protocol::{DeltaOperation, SaveMode};
use orbit_etl_core::{Epoch, Error, ErrorKind, Lineage, Result};
use serde_json::{Value, json};

use super::head::Head;
use super::plan::widen;
use super::shape::Shape;
use super::staged::{INFO, Staged};
use super::{Mode, SchemaMode};
use crate::error::from_delta;
use crate::table::{At, Place};

/// Whether files that were staged for a table still fit it as it stands at its head.
pub(crate) fn check(shape: &Shape, place: &Place, files: &[Staged]) -> Result<()> {
    let checks = shape.checks();
    let mut partitions = shape.partition_columns().to_vec();
    partitions.sort();
    for file in files {
        if file.table != shape.metadata.id() {
            return Err(changed("the table was replaced by another one after rows were staged", place)
                .remedy("load again into the new table with a new state directory"));
        }
        if file.checks != checks {
            return Err(changed("the table's constraints were changed after rows were staged", place)
                .remedy("undo the change, let the pipeline commit, and make it again while the pipeline is stopped"));
        }
        if file.how.is_add() && !file.partition.keys().eq(&partitions) {
            return Err(changed("the table was partitioned anew after rows were staged", place)
                .remedy("load again into a new table with a new state directory"));
        }
    }
    Ok(())
}

/// The table with the columns that the files bring along; `None` if it has them all.
pub(crate) fn wider(
    shape: &Shape,
    place: &Place,
    files: &[Staged],
    mode: SchemaMode,
) -> Result<Option<Action>> {
    let mut columns = shape.columns.clone();
    let mut any = false;
    for brought in files.iter().filter_map(|file| file.columns.as_deref()) {
        let brought: StructType = serde_json::from_str(brought)
            .map_err(|e| Error::internal("a committable's columns can't be read").caused_by(e))?;
        let (wide, added) = widen(&columns, &brought, mode)?;
        any |= added;
        columns = wide;
    }
    if !any {
        return Ok(None);
    }
    let metadata = shape.metadata.clone().with_schema(&columns).map_err(|e| {
        Error::schema("columns can't be added to the table").with("table", place).caused_by(e.to_string())
    })?;
    Ok(Some(Action::Metadata(metadata)))
}

/// The actions that add one epoch's files to one table, as it stands at its head.
pub(crate) async fn actions(
    head: &Head,
    place: &Place,
    files: &[Staged],
    mode: Mode,
    schema_mode: SchemaMode,
) -> Result<Vec<Action>> {
    let mut actions = Vec::with_capacity(files.len() + 1);
    actions.extend(wider(&head.shape, place, files, schema_mode)?);
    if mode == Mode::Overwrite {
        let table = place.load(At::Version(head.version)).await?;
        let state = table.snapshot().map_err(|e| from_delta(&e, "list the table's files", place))?;
        actions.extend(state.log_data().iter().map(|file| Action::Remove(file.remove_action(true))));
    }
    actions.extend(files.iter().map(|file| Action::Add(file.to_add())));
    Ok(actions)
}

/// How the log describes such a commit.
pub(crate) fn operation(mode: Mode, shape: &Shape) -> DeltaOperation {
    let partitions = shape.partition_columns();
    DeltaOperation::Write {
        mode: match mode {
            Mode::Append | Mode::Merge => SaveMode::Append,
            Mode::Overwrite => SaveMode::Overwrite,
        },
        partition_by: (!partitions.is_empty()).then(|| partitions.to_vec()),
        predicate: None,
    }
}

/// What the log says beside: who has committed what.
pub(crate) fn info(
    lineage: &Lineage,
    epoch: Option<Epoch>,
    actions: &[Action],
    files: &[Staged],
) -> HashMap<String, Value> {
    let blind = actions.iter().all(|action| matches!(action, Action::Add(_)));
    let text = |number: u64| Value::from(number.to_string());
    let mut info = HashMap::from([
        (
            INFO.to_owned(),
            json!({
                "lineage": lineage.id, "sink": lineage.sink, "run": lineage.run,
                "claim": lineage.claim, "epoch": epoch,
            }),
        ),
        ("isBlindAppend".to_owned(), Value::Bool(blind)),
    ]);
    if !files.is_empty() {
        let metrics = json!({
            "numFiles": text(files.len() as u64),
            "numOutputRows": text(files.iter().map(|file| file.rows).sum()),
            "numOutputBytes": text(files.iter().map(|file| file.bytes).sum()),
        });
        info.insert("operationMetrics".to_owned(), metrics);
    }
    info
}

fn changed(message: &str, place: &Place) -> Error {
    Error::new(ErrorKind::Conflict, message).retryable(false).with("table", place)
}
