//! What a table demands of its rows: columns that are never NULL, and constraints.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{cast, is_null, not, prep_null_mask_filter};
use arrow::datatypes::SchemaRef;
use deltalake::datafusion::common::DFSchema;
use deltalake::datafusion::physical_expr::PhysicalExpr;
use deltalake::delta_datafusion::DeltaSessionContext;
use orbit_etl_core::{Error, Result};
use xxhash_rust::xxh3::xxh3_64;

/// A table's demands on the rows of one stream.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// The table's columns, of which the stream may lack some.
    columns: Option<SchemaRef>,
    /// Positions in the stream's rows, and names.
    not_null: Vec<(usize, String)>,
    constraints: Vec<(String, Arc<dyn PhysicalExpr>)>,
    /// What rows must satisfy that take the place of others.
    replaced: Option<Arc<dyn PhysicalExpr>>,
}

impl Checks {
    /// The demands of a table with these columns and constraints (names and SQL) on rows of `rows`.
    ///
    /// # Errors
    /// `Schema` if a column that is never NULL is missing, `Unsupported` for a constraint that can't be
    /// evaluated here.
    pub(crate) fn new(
        rows: &SchemaRef,
        table: &SchemaRef,
        constraints: &[(String, String)],
        replaced: Option<&str>,
    ) -> Result<Self> {
        let mut not_null = Vec::new();
        for field in table.fields().iter().filter(|field| !field.is_nullable()) {
            let at = rows.index_of(field.name()).map_err(|_| {
                Error::schema("a column that must not be NULL is missing from the rows")
                    .with("column", field.name())
                    .remedy("add the column before the sink")
            })?;
            not_null.push((at, field.name().clone()));
        }
        if constraints.is_empty() && replaced.is_none() {
            return Ok(Self { not_null, ..Self::default() });
        }
        let session = DeltaSessionContext::new().into_inner();
        let compile = |sql: &str| {
            let columns = DFSchema::try_from(table.as_ref().clone())?;
            let expr = session.parse_sql_expr(sql, &columns)?;
            session.create_physical_expr(expr, &columns)
        };
        let constraints = constraints
            .iter()
            .map(|(name, sql)| {
                let compiled = compile(sql).map_err(|_| {
                    Error::unsupported("a constraint of the table can't be evaluated here")
                        .with("constraint", name)
                        .remedy("drop the constraint, or write the table with the engine that made it")
                })?;
                Ok((name.clone(), compiled))
            })
            .collect::<Result<_>>()?;
        let replaced = replaced.map(|sql| {
            compile(sql).map_err(|e| {
                Error::config("`replace_where` can't be evaluated over the table's columns")
                    .with("replace_where", sql)
                    .remedy("write an SQL condition over the table's columns")
                    .caused_by(e)
            })
        });
        Ok(Self { columns: Some(Arc::clone(table)), not_null, constraints, replaced: replaced.transpose()? })
    }

    /// For each demand that some rows fail: why, and which rows.
    pub(crate) fn failing(&self, rows: &RecordBatch) -> Result<Vec<(Error, BooleanArray)>> {
        let internal = |e| Error::internal("rows can't be checked").caused_by(e);
        let mut failing = Vec::new();
        for (at, name) in &self.not_null {
            let column = rows.column(*at);
            if column.null_count() > 0 {
                let error = Error::data("the table's column must not be NULL").with("column", name);
                failing.push((error, is_null(column).map_err(internal)?));
            }
        }
        let Some(columns) = &self.columns else { return Ok(failing) };
        let all = columns.fields().iter().map(|field| match rows.schema_ref().index_of(field.name()) {
            Ok(at) => cast(rows.column(at), field.data_type()),
            Err(_) => Ok(new_null_array(field.data_type(), rows.num_rows())),
        });
        let all = all.collect::<Result<Vec<_>, _>>().map_err(internal)?;
        let fields: Vec<_> =
            columns.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
        let columns = Arc::new(arrow::datatypes::Schema::new(fields));
        let all = RecordBatch::try_new(columns, all).map_err(internal)?;
        let demands = self.constraints.iter().map(|(name, expr)| (Some(name), expr));
        for (name, expr) in demands.chain(self.replaced.iter().map(|expr| (None, expr))) {
            let why = || match name {
                Some(name) => {
                    Error::data("the row breaks a constraint of the table").with("constraint", name)
                }
                None => Error::data("the row isn't one of those that `replace_where` replaces"),
            };
            let value = expr.evaluate(&all).and_then(|value| value.into_array(rows.num_rows()));
            // Not the cause: it may quote a value.
            let value = value.map_err(|_| why())?;
            let Some(value) = value.as_boolean_opt() else {
                return Err(match name {
                    Some(name) => Error::unsupported("a constraint of the table is not a condition")
                        .with("constraint", name),
                    None => Error::config("`replace_where` is not a condition"),
                });
            };
            // What isn't true fails, NULL too.
            let holds = match value.null_count() {
                0 => value.clone(),
                _ => prep_null_mask_filter(value),
            };
            if holds.true_count() < rows.num_rows() {
                failing.push((why(), not(&holds).map_err(internal)?));
            }
        }
        Ok(failing)
    }
}

/// A mark that differs as soon as the demands do.
pub(crate) fn mark(table: &SchemaRef, constraints: &[(String, String)]) -> String {
    let not_null: Vec<&str> =
        table.fields().iter().filter(|f| !f.is_nullable()).map(|f| f.name().as_str()).collect();
    if not_null.is_empty() && constraints.is_empty() {
        return String::new();
    }
    format!("{:016x}", xxh3_64(format!("{not_null:?}{constraints:?}").as_bytes()))
}
