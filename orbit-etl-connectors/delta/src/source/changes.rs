//! A table's change data feed as change rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use deltalake::datafusion::physical_plan::execute_stream;
use deltalake::delta_datafusion::DeltaSessionContext;
use futures::{Stream, StreamExt};
use orbit_etl_core::model::Role;
use orbit_etl_core::{Error, Position, Result, ScanRequest, SourceEvent, Split};
use serde_json::json;

use super::read::adapt;
use crate::error::{from_datafusion, from_delta};
use crate::table::{At, Place};

const KIND: &str = "_change_type";
const ORDER: &str = "_commit_order";
const VERSION: &str = "_commit_version";
const TIME: &str = "_commit_timestamp";

/// A table's columns and those of a change.
pub(crate) fn schema(table: &SchemaRef) -> Result<SchemaRef> {
    let mut fields: Vec<_> = table.fields().iter().cloned().collect();
    if let Some(taken) = fields.iter().find(|f| [KIND, ORDER, VERSION, TIME].contains(&f.name().as_str())) {
        return Err(Error::schema("a column of the table has the name of a change's own")
            .with("column", taken.name())
            .remedy("rename the column, or read the table without its changes"));
    }
    fields.push(Arc::new(Role::Op.mark(Field::new(KIND, DataType::Utf8, false))));
    fields.push(Arc::new(Role::Order.mark(Field::new(ORDER, DataType::Int64, false))));
    fields.push(Arc::new(Field::new(VERSION, DataType::Int64, true)));
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    fields.push(Arc::new(Field::new(TIME, time, true)));
    Ok(Arc::new(Schema::new(fields)))
}

/// The changes of one version.
pub(crate) fn split(table: &str, version: u64) -> Split {
    Split::new(format!("changes@{version}"), json!({"table": table, "version": version}))
}

/// The version of such a split.
pub(crate) fn version_of(split: &Split) -> Result<u64> {
    let version = split.payload.get("version").and_then(serde_json::Value::as_u64);
    version.ok_or_else(|| Error::internal("the split isn't one of this source"))
}

/// The changes of one version. Their order within it is the library's and may differ the next time, so
/// no position comes before the end.
pub(crate) async fn read(
    place: &Place,
    version: u64,
    wanted: SchemaRef,
    request: &ScanRequest,
) -> Result<impl Stream<Item = Result<SourceEvent>> + use<>> {
    let table = place.load(At::Version(version)).await?;
    let session = DeltaSessionContext::new().into_inner();
    let fail = |e| from_delta(&e, "read the table's changes", place).with("version", version);
    table.update_datafusion_session(&session.state()).map_err(fail)?;
    let feed = table.scan_cdf().with_starting_version(version).with_ending_version(version);
    let plan = feed.build(&session.state(), None).await.map_err(fail)?;
    let failed = {
        let place = place.clone();
        move |e| from_datafusion(&e, "read the table's changes", &place).with("version", version)
    };
    let batches = execute_stream(plan, session.task_ctx()).map_err(&failed)?;
    let stream = request.stream;
    let events = batches.filter_map(move |batch| {
        let event = batch.map_err(&failed).and_then(|batch| changes(&batch, &wanted));
        futures::future::ready(match event {
            Ok(batch) if batch.num_rows() == 0 => None,
            Ok(batch) => Some(Ok(SourceEvent::Batch { stream, batch, position: None })),
            Err(error) => Some(Err(error)),
        })
    });
    let end = [Ok(SourceEvent::Progress(Position(json!({"done": true})))), Ok(SourceEvent::Finished)];
    Ok(events.chain(futures::stream::iter(end)))
}

/// Rows of the feed as change rows. The row before an update is left out: the one after it says what is.
fn changes(batch: &RecordBatch, wanted: &SchemaRef) -> Result<RecordBatch> {
    let broken = |what: &str| Error::data(format!("the change feed lacks {what}"));
    let kinds = batch.column_by_name(KIND).ok_or_else(|| broken("its kinds"))?;
    let kinds = cast(kinds, &DataType::Utf8).map_err(|_| broken("its kinds"))?;
    let kinds = kinds.as_string::<i32>();
    let kept: BooleanArray = kinds.iter().map(|kind| Some(kind != Some("update_preimage"))).collect();
    let ops = kinds.iter().map(|kind| match kind {
        Some("update_postimage" | "update_preimage") => Ok("update"),
        Some("insert") => Ok("insert"),
        Some("delete") => Ok("delete"),
        _ => Err(broken("a kind that is known")),
    });
    let ops: StringArray = ops.collect::<Result<Vec<_>>>()?.into();
    let versions = batch.column_by_name(VERSION).ok_or_else(|| broken("its versions"))?;
    let versions = cast(versions, &DataType::Int64).map_err(|_| broken("its versions"))?;
    // What a version takes away goes before what it brings.
    let order: Int64Array = versions
        .as_primitive::<Int64Type>()
        .iter()
        .zip(kinds)
        .map(|(version, kind)| version.map(|v| v * 2 + i64::from(kind != Some("delete"))))
        .collect();
    let mut columns: Vec<(String, ArrayRef)> = Vec::with_capacity(batch.num_columns() + 1);
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if field.name() != KIND && field.name() != VERSION {
            columns.push((field.name().clone(), Arc::clone(column)));
        }
    }
    columns.push((KIND.to_owned(), Arc::new(ops)));
    columns.push((ORDER.to_owned(), Arc::new(order)));
    columns.push((VERSION.to_owned(), versions));
    let all = RecordBatch::try_from_iter(columns).map_err(|_| broken("some columns"))?;
    let all = filter_record_batch(&all, &kept).map_err(|_| broken("some columns"))?;
    adapt(&all, wanted)
}
