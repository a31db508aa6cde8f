//! The streaming operator: batch by batch, failing rows rejected.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use orbit_etl_core::pipeline::Output;
use orbit_etl_core::{
    Context, Error, ErrorKind, Operator, Origin, Payload, Reject, Result, StreamInfo, batch::compact,
};

use super::Sql;
use super::program::Program;

/// After so many parts of a failing batch, other tasks get their turn.
const PARTS_AT_A_TIME: usize = 64;

/// So many rows of the first batch are unnested at once; how many later depends on what they give.
const FIRST_ROWS: usize = 64;

/// One lane of a streaming query.
#[derive(Debug)]
pub(super) struct RowWise {
    sql: Sql,
    cx: Context,
    input: StreamInfo,
    program: Arc<Program>,
    /// The schema of the last batch, and where the program's columns stand in it.
    seen: SchemaRef,
    positions: Vec<usize>,
    /// How many rows are handled at once: all of a batch, unless a row may give several.
    at_once: usize,
    /// What the rows in work have made, until it is handed on.
    held: MemoryReservation,
}

impl RowWise {
    pub(super) fn new(sql: Sql, cx: Context, inputs: &[StreamInfo], program: Arc<Program>) -> Result<Self> {
        let [input] = inputs else {
            return Err(Error::internal("a streaming query has one input"));
        };
        let seen = Arc::clone(&input.schema);
        let positions = positions(&program.columns, &seen, &[])?;
        let at_once = if program.expands() { FIRST_ROWS } else { usize::MAX };
        let held = MemoryConsumer::new("rows that a query unnests").register(cx.memory());
        Ok(Self { sql, cx, input: input.clone(), program, seen, positions, at_once, held })
    }

    /// Finds the program's columns again if the batch has another schema than the last one.
    fn look_at(&mut self, batch: &RecordBatch) -> Result<()> {
        if !Arc::ptr_eq(batch.schema_ref(), &self.seen) {
            self.positions = positions(&self.program.columns, batch.schema_ref(), &self.positions)?;
            self.seen = batch.schema();
        }
        Ok(())
    }

    /// Handles some rows of a batch. `false`, and nothing done, if they must be fewer.
    async fn part(&mut self, part: &RecordBatch, out: &mut Output<'_>) -> Result<bool> {
        let mut made = Vec::new();
        let ran = self.program.run(part, &self.positions, &mut made, &self.held);
        let done = match ran {
            Ok(()) => self.hand_on(part.num_rows(), made, out).await.map(|()| true),
            Err(failure) if self.program.blames_a_row(&failure) => {
                drop(made);
                self.held.free();
                self.bisect(part, out).await.map(|()| true)
            }
            Err(failure) => {
                if self.program.expands() && part.num_rows() > 1 && self.program.lacks_memory(&failure) {
                    Ok(false)
                } else {
                    Err(self.program.error(&failure))
                }
            }
        };
        self.held.free();
        done
    }

    /// Hands on what `rows` rows gave.
    async fn hand_on(&mut self, rows: usize, made: Vec<RecordBatch>, out: &mut Output<'_>) -> Result<()> {
        let total: usize = made.iter().map(RecordBatch::num_rows).sum();
        if self.program.expands() {
            // As many rows next time as may give a batch, but not many more than this time.
            let wanted = rows.saturating_mul(self.cx.batch_rows()) / total.max(1);
            self.at_once = wanted.clamp(1, rows.saturating_mul(4));
        } else if total < rows {
            out.filtered((rows - total) as u64);
        }
        for batch in made {
            out.emit(0, batch).await?;
        }
        Ok(())
    }

    /// Handles rows of which some fail: halves them until the good parts pass and the bad ones are
    /// single rows. The good rows go on together, in their order.
    async fn bisect(&mut self, batch: &RecordBatch, out: &mut Output<'_>) -> Result<()> {
        let mut open = vec![(0, batch.num_rows())];
        let mut good = Vec::new();
        let mut passed = 0;
        let mut parts = 0;
        let mut rejects = Vec::new();
        while let Some((start, rows)) = open.pop() {
            let part = batch.slice(start, rows);
            let (before, held) = (good.len(), self.held.size());
            match self.program.run(&part, &self.positions, &mut good, &self.held) {
                Ok(()) => passed += rows,
                Err(failure)
                    if !(self.program.blames_a_row(&failure)
                        || rows > 1 && self.program.lacks_memory(&failure)) =>
                {
                    return Err(self.program.error(&failure));
                }
                Err(failure) => {
                    // What a failing part has made before it failed is made again by its halves.
                    good.truncate(before);
                    self.held.shrink(self.held.size() - held);
                    if rows == 1 {
                        rejects.push(self.reject(self.program.complaint(&failure), part)?);
                    } else {
                        let half = rows / 2;
                        open.push((start + half, rows - half));
                        open.push((start, half));
                    }
                }
            }
            parts += 1;
            if parts % PARTS_AT_A_TIME == 0 {
                tokio::task::yield_now().await;
            }
        }
        for reject in rejects {
            out.reject(reject).await?;
        }
        if good.is_empty() {
            if !self.program.expands() {
                out.filtered(passed as u64);
            }
            return Ok(());
        }
        let good = concat_batches(&self.program.schema, &good)
            .map_err(|_| Error::internal("the parts of a batch can't be put together again"))?;
        let most = self.cx.batch_rows();
        let made = if self.program.expands() {
            let starts = (0..good.num_rows()).step_by(most);
            starts.map(|start| good.slice(start, most.min(good.num_rows() - start))).collect()
        } else {
            vec![good]
        };
        self.hand_on(passed, made, out).await
    }

    fn reject(&self, message: String, row: RecordBatch) -> Result<Reject> {
        let mut reject = Reject::new(ErrorKind::Data, message, Payload::Rows(compact(row)?));
        reject.origin = Origin { stream: Some(self.input.name.clone()), ..Origin::default() };
        Ok(reject)
    }
}

#[async_trait]
impl Operator for RowWise {
    async fn process(&mut self, _input: usize, batch: RecordBatch, out: &mut Output<'_>) -> Result<()> {
        let rows = batch.num_rows();
        if rows == 0 {
            return Ok(());
        }
        self.look_at(&batch)?;
        let mut start = 0;
        while start < rows {
            let part = match self.at_once.min(rows - start) {
                whole if whole == rows => batch.clone(),
                some => batch.slice(start, some),
            };
            if self.part(&part, out).await? {
                start += part.num_rows();
            } else {
                self.at_once = part.num_rows() / 2;
            }
        }
        Ok(())
    }

    /// Follows as long as the result keeps its schema.
    async fn schema_changed(&mut self, _input: usize, to: &SchemaRef, _out: &mut Output<'_>) -> Result<()> {
        let input = StreamInfo { schema: Arc::clone(to), ..self.input.clone() };
        let inputs = [input];
        let planned = self.sql.planned(&self.cx, &inputs).await.map_err(|e| {
            Error::schema("the query can't follow a schema that changed during the run").caused_by(e)
        })?;
        let program = match planned.program() {
            Some(program) if program.schema == self.program.schema => Arc::clone(program),
            _ => {
                return Err(Error::schema(
                    "a schema that changed during the run would change the query's result",
                )
                .with("input", &self.input.name)
                .remedy("name the columns in the query instead of `*`, or start the pipeline again"));
            }
        };
        let [input] = inputs;
        *self = Self::new(self.sql.shared(), self.cx.clone(), &[input], program)?;
        Ok(())
    }
}

/// Where the wanted columns stand; tries `before` first.
fn positions(wanted: &Schema, schema: &Schema, before: &[usize]) -> Result<Vec<usize>> {
    let find = |(i, field): (usize, &Arc<arrow::datatypes::Field>)| {
        let at = before
            .get(i)
            .copied()
            .filter(|at| schema.fields().get(*at).map(|f| f.name()) == Some(field.name()));
        let at = match at.or_else(|| schema.index_of(field.name()).ok()) {
            Some(at) => at,
            None => return Err(mismatch("a batch lacks a column that the query reads", field.name())),
        };
        if schema.field(at).data_type() == field.data_type() {
            Ok(at)
        } else {
            Err(mismatch("a column of a batch has another type than its stream announced", field.name()))
        }
    };
    wanted.fields().iter().enumerate().map(find).collect()
}

fn mismatch(message: &str, column: &str) -> Error {
    Error::schema(message).with("column", column)
}
