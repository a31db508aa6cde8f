//! The streaming operator: one batch in, at most one batch out, failing rows rejected.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use orbit_etl_core::pipeline::Output;
use orbit_etl_core::{
    Context, Error, ErrorKind, Operator, Origin, Payload, Reject, Result, StreamInfo, batch::compact,
};

use super::Sql;
use super::plan::Planned;
use super::program::Program;

/// After so many parts of a failing batch, other tasks get their turn.
const PARTS_AT_A_TIME: usize = 64;

/// One lane of a streaming query.
#[derive(Debug)]
pub(super) struct RowWise {
    sql: Sql,
    cx: Context,
    input: StreamInfo,
    program: Program,
    /// The schema of the last batch, and where the program's columns stand in it.
    seen: SchemaRef,
    positions: Vec<usize>,
}

impl RowWise {
    pub(super) fn new(sql: Sql, cx: Context, inputs: &[StreamInfo], program: Program) -> Result<Self> {
        let [input] = inputs else {
            return Err(Error::internal("a streaming query has one input"));
        };
        let seen = Arc::clone(&input.schema);
        let positions = positions(&program.columns, &seen, &[])?;
        Ok(Self { sql, cx, input: input.clone(), program, seen, positions })
    }

    /// Finds the program's columns again if the batch has another schema than the last one.
    fn look_at(&mut self, batch: &RecordBatch) -> Result<()> {
        if !Arc::ptr_eq(batch.schema_ref(), &self.seen) {
            self.positions = positions(&self.program.columns, batch.schema_ref(), &self.positions)?;
            self.seen = batch.schema();
        }
        Ok(())
    }

    /// Handles a batch with failing rows: halves it until the good parts pass and the bad ones are
    /// single rows. The good rows go on together, in their order.
    async fn bisect(&self, batch: &RecordBatch, out: &mut Output<'_>) -> Result<()> {
        let mut open = vec![(0, batch.num_rows())];
        let mut good = Vec::new();
        let mut passed = 0;
        let mut parts = 0;
        let mut rejects = Vec::new();
        while let Some((start, rows)) = open.pop() {
            let part = batch.slice(start, rows);
            match self.program.run(&part, &self.positions) {
                Ok(result) => {
                    passed += rows;
                    good.extend(result);
                }
                Err(failure) if !Program::blames_a_row(&failure) => return Err(self.program.error(&failure)),
                Err(failure) if rows == 1 => {
                    rejects.push(self.reject(self.program.complaint(&failure), part)?);
                }
                Err(_) => {
                    let half = rows / 2;
                    open.push((start + half, rows - half));
                    open.push((start, half));
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
        let good = concat_batches(&self.program.schema, &good)
            .map_err(|_| Error::internal("the parts of a batch can't be put together again"))?;
        out.filtered((passed - good.num_rows()) as u64);
        out.emit(0, good).await
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
        match self.program.run(&batch, &self.positions) {
            Ok(Some(result)) => {
                let left = rows - result.num_rows();
                if left > 0 {
                    out.filtered(left as u64);
                }
                out.emit(0, result).await
            }
            Ok(None) => {
                out.filtered(rows as u64);
                Ok(())
            }
            Err(failure) if Program::blames_a_row(&failure) => self.bisect(&batch, out).await,
            Err(failure) => Err(self.program.error(&failure)),
        }
    }

    /// Follows as long as the result keeps its schema.
    async fn schema_changed(&mut self, _input: usize, to: &SchemaRef, _out: &mut Output<'_>) -> Result<()> {
        let input = StreamInfo { schema: Arc::clone(to), ..self.input.clone() };
        let inputs = [input];
        let planned = Planned::new(&self.sql, &self.cx, &inputs).await.map_err(|e| {
            Error::schema("the query can't follow a schema that changed during the run").caused_by(e)
        })?;
        let program = match planned.program()? {
            Some(program) if program.schema == self.program.schema => program,
            _ => {
                return Err(Error::schema(
                    "a schema that changed during the run would change the query's result",
                )
                .with("input", &self.input.name)
                .remedy("name the columns in the query instead of `*`, or start the pipeline again"));
            }
        };
        let [input] = inputs;
        *self = Self::new(self.sql.clone(), self.cx.clone(), &[input], program)?;
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
