//! SQL over one input or several.
//!
//! [`Sql`] is one `SELECT` query (with joins, subqueries, common table expressions and whatever
//! else [DataFusion's dialect](https://datafusion.apache.org/user-guide/sql/) has).
//!
//! **Tables.** A single input is the table `input`, and has its own name as well. Several inputs
//! go by the names of their nodes or streams: `orders`, `cdc.orders`. A name that isn't a plain
//! word stands in double quotes: `"2024 orders"`.
//!
//! **Case.** Names count as they are written; quoted or not, they are not folded to lower case.
//! An unquoted name that no column, table or alias has exactly is taken for the one that differs
//! from it in case alone, if there is just one (but not in `USING` and `EXCEPT`). A new name (`AS total`) comes out as it is written.
//!
//! **Streaming or blocking.** A query that maps, filters and unnests (`SELECT unnest(list)`) the rows
//! of one input one by one runs batch by batch. Everything else (joins, aggregates, windows,
//! `DISTINCT`, `ORDER BY`, `LIMIT`, `UNION`, `FROM … UNNEST`, subqueries in conditions) needs its whole inputs: it runs as one plan which
//! spills to disk beyond the memory limit, and is refused over an input that never ends.
//!
//! **Rows that fail** (a bad `CAST`, a division by zero, an overflow, a value that a
//! [function of the host](Sql::with_udf) refuses) are rejected one by one in a streaming query, with
//! all that they would have given, while the rest of their batch goes on. A blocking query stops at
//! the first. What is not a row's fault (memory, a function that can't do its work, a panic) ends the
//! run and rejects nothing. A query that fails on every row still looks like bad rows: the pipeline's
//! `max_share` of tolerated rejects is what stops it.
//!
//! **Types** are kept as they come; a column that is passed through keeps its metadata, and with
//! it its role. Text that the query makes is `Utf8`. Two columns of the result can't have the same
//! name.
//!
//! **Time and chance.** `now()` is the same in all lanes of a run; `random()` is drawn anew for
//! each row.

mod blocking;
mod columns;
mod error;
mod feed;
mod input;
mod names;
mod plan;
mod plans;
mod pool;
mod program;
mod rowwise;
mod scan;
mod unnest;

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF, WindowUDF};
use orbit_etl_core::{
    ColumnLineage, ConnectorInfo, Context, Error, Result, ScanRequest, Started, StreamInfo, Transform,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::blocking::Whole;
use self::plan::Planned;
use self::plans::Plans;
use self::rowwise::RowWise;

/// The longest query that is shown whole.
const SHOWN: usize = 120;

/// One SQL query as a transform. See the [module](self) for what it can do.
///
/// ```
/// use orbit_etl_transforms::Sql;
///
/// let cheap = Sql::new("SELECT id, price * 1.19 AS gross FROM input WHERE price < 100");
/// # let _ = cheap;
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sql {
    /// The query. A single input is the table `input`; several go by their nodes' names.
    query: String,
    /// How tables are joined.
    #[serde(default, skip_serializing_if = "Joins::is_hash")]
    joins: Joins,
    #[serde(skip)]
    functions: Functions,
    #[serde(skip)]
    plans: Plans,
}

/// How tables are joined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Joins {
    /// Through a hash table of the left side, which must fit into memory. The fastest.
    #[default]
    Hash,
    /// By sorting both sides, which spills to disk. Each lane (two at least) sorts a part of each side,
    /// and needs room there for about ten batches of it: 5 MiB in all were enough for two lanes over
    /// batches of 1,024 rows of 100 bytes. All rows of one key may need more. An error of too little
    /// memory says which limit would have let it go on.
    SortMerge,
}

impl Joins {
    // The signature that serde wants.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_hash(&self) -> bool {
        *self == Self::Hash
    }
}

/// What the host adds to SQL.
#[derive(Debug, Clone, Default)]
struct Functions {
    scalar: Vec<Arc<ScalarUDF>>,
    aggregate: Vec<Arc<AggregateUDF>>,
    window: Vec<Arc<WindowUDF>>,
}

impl Functions {
    /// Whether there are any.
    fn any(&self) -> bool {
        !(self.scalar.is_empty() && self.aggregate.is_empty() && self.window.is_empty())
    }

    /// The names of those that a streaming query can call.
    fn scalar_names(&self) -> HashSet<String> {
        self.scalar.iter().map(|f| f.name().to_owned()).collect()
    }
}

impl Sql {
    /// A transform that runs this query.
    pub fn new(query: impl Into<String>) -> Self {
        Self {
            query: query.into(),
            joins: Joins::default(),
            functions: Functions::default(),
            plans: Plans::default(),
        }
    }

    /// Joins tables this way.
    #[must_use]
    pub fn with_joins(mut self, joins: Joins) -> Self {
        self.joins = joins;
        self
    }

    /// Adds a function from values to a value. A name with capital letters must be quoted in the
    /// query.
    ///
    /// Its errors say whose fault they are. A row's fault is [`DataFusionError::Execution`], Arrow's
    /// errors of values (cast, parse, compute, overflow, division by zero), and an
    /// [`Error`] of kind [`Data`](orbit_etl_core::ErrorKind::Data) in
    /// [`DataFusionError::External`]: the function is called again with parts of the batch until the
    /// row is found, and the row is rejected. So it should fail for the same rows each time, and have
    /// no effect elsewhere.
    ///
    /// The environment's fault, which ends the run and rejects nothing, is everything else: any other
    /// error in `External`, `IoError`, `ResourcesExhausted`, `Internal`, `ObjectStore`, `Ffi` (whose
    /// text could be of either kind), and a panic. An [`Error`] in `External` is reported with its own
    /// words and kind, and retried if it says so; the words of other errors are not shown, as they may
    /// hold a value of the row.
    ///
    /// ```
    /// use datafusion::error::DataFusionError;
    /// use orbit_etl_core::Error;
    ///
    /// fn refuse_the_row() -> DataFusionError {
    ///     DataFusionError::Execution("not a known currency".into())
    /// }
    ///
    /// fn fail_the_run() -> DataFusionError {
    ///     DataFusionError::External(Box::new(Error::unavailable("the rates can't be reached")))
    /// }
    /// # let _ = (refuse_the_row(), fail_the_run());
    /// ```
    ///
    /// [`DataFusionError::Execution`]: datafusion::error::DataFusionError::Execution
    /// [`DataFusionError::External`]: datafusion::error::DataFusionError::External
    #[must_use]
    pub fn with_udf(mut self, function: ScalarUDF) -> Self {
        self.functions.scalar.push(Arc::new(function));
        self
    }

    /// Adds an aggregate function. Any error of it ends the run; see [`with_udf`](Self::with_udf) for
    /// what is told of it.
    #[must_use]
    pub fn with_udaf(mut self, function: AggregateUDF) -> Self {
        self.functions.aggregate.push(Arc::new(function));
        self
    }

    /// Adds a window function. Any error of it ends the run; see [`with_udf`](Self::with_udf) for
    /// what is told of it.
    #[must_use]
    pub fn with_udwf(mut self, function: WindowUDF) -> Self {
        self.functions.window.push(Arc::new(function));
        self
    }

    /// The query as it was given.
    pub fn query(&self) -> &str {
        &self.query
    }

    /// The plan over these inputs, made once.
    async fn planned(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Arc<Planned>> {
        self.plans.get(self, cx, inputs).await
    }

    /// The same transform for its own operators, with what it has planned.
    fn shared(&self) -> Self {
        Self { plans: self.plans.shared(), ..self.clone() }
    }

    /// The query in one line, cut where it is long.
    fn summary(&self) -> String {
        let line = self.query.split_whitespace().collect::<Vec<_>>().join(" ");
        match line.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line,
        }
    }
}

#[async_trait]
impl Transform for Sql {
    fn info(&self) -> ConnectorInfo {
        ConnectorInfo::new("sql", self.summary())
    }

    /// A query that streams filters and maps, unless it unnests.
    fn maps_rows(&self) -> bool {
        !names::unnests(&self.query)
    }

    async fn outputs(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Vec<StreamInfo>> {
        let planned = self.planned(cx, inputs).await?;
        let bounded = inputs.iter().all(|i| i.bounded);
        if planned.program().is_none() && !bounded {
            return Err(endless(inputs));
        }
        let output = StreamInfo::new(cx.node(), Arc::clone(&planned.schema));
        Ok(vec![output.with_keys(planned.keys(inputs)).with_bounded(bounded)])
    }

    async fn blocking(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<bool> {
        Ok(self.planned(cx, inputs).await?.program().is_none())
    }

    /// A query with an `ORDER BY` that reaches its result.
    async fn ordered(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<bool> {
        Ok(self.planned(cx, inputs).await?.ordered)
    }

    async fn scan(&self, cx: &Context, inputs: &[StreamInfo], input: usize) -> Result<ScanRequest> {
        scan::wish(self, cx, inputs, input).await
    }

    async fn columns(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Option<ColumnLineage>> {
        Ok(columns::lineage(&*self.planned(cx, inputs).await?))
    }

    async fn start(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Started> {
        let planned = self.planned(cx, inputs).await?;
        if let Some(program) = planned.program() {
            let operator = RowWise::new(self.shared(), cx.clone(), inputs, Arc::clone(program))?;
            return Ok(Started::Streaming(Box::new(operator)));
        }
        if inputs.iter().any(|i| !i.bounded) {
            return Err(endless(inputs));
        }
        Ok(Started::Blocking(Box::new(Whole::new(self.shared(), cx.clone(), inputs.to_vec()))))
    }
}

fn endless(inputs: &[StreamInfo]) -> Error {
    let which = inputs.iter().filter(|i| !i.bounded).map(|i| i.name.clone());
    Error::unsupported("the query must see its whole input, and that never ends")
        .with("input", error::list(which))
        .remedy(
            "keep to projections and conditions on one input, or read a bounded source; aggregates and joins \
             of an endless stream need windows over its event time",
        )
}
