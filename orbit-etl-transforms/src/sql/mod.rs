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
//! **Streaming or blocking.** A query that maps and filters the rows of one input one by one runs
//! batch by batch. Everything else (joins, aggregates, windows, `DISTINCT`, `ORDER BY`, `LIMIT`,
//! `UNION`, `UNNEST`, subqueries in conditions) needs its whole inputs: it runs as one plan which
//! spills to disk beyond the memory limit, and is refused over an input that never ends.
//!
//! **Rows that fail** (a bad `CAST`, a division by zero, an overflow) are rejected one by one in a
//! streaming query, while the rest of their batch goes on. A blocking query stops at the first.
//!
//! **Types** are kept as they come; a column that is passed through keeps its metadata, and with
//! it its role. Text that the query makes is `Utf8`. Two columns of the result can't have the same
//! name.
//!
//! **Time and chance.** `now()` is the same in all lanes of a run; `random()` is drawn anew for
//! each row.

mod blocking;
mod error;
mod feed;
mod input;
mod names;
mod plan;
mod pool;
mod program;
mod rowwise;
mod scan;

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use async_trait::async_trait;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF, WindowUDF};
use orbit_etl_core::{ConnectorInfo, Context, Error, Result, ScanRequest, Started, StreamInfo, Transform};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::blocking::Whole;
use self::plan::Planned;
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
    clock: Clock,
}

/// How tables are joined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Joins {
    /// Through a hash table of the left side, which must fit into memory. The fastest.
    #[default]
    Hash,
    /// By sorting both sides, which spills to disk.
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

/// The time that `now()` gives, by run: the lanes of a run are started one after another.
#[derive(Debug, Clone, Default)]
struct Clock(Arc<Mutex<Option<(String, SystemTime)>>>);

impl Clock {
    fn of(&self, cx: &Context) -> SystemTime {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match last.as_ref() {
            Some((run, time)) if run == cx.run_id() => *time,
            _ => {
                let now = SystemTime::now();
                *last = Some((cx.run_id().to_owned(), now));
                now
            }
        }
    }
}

impl Sql {
    /// A transform that runs this query.
    pub fn new(query: impl Into<String>) -> Self {
        Self {
            query: query.into(),
            joins: Joins::default(),
            functions: Functions::default(),
            clock: Clock::default(),
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
    #[must_use]
    pub fn with_udf(mut self, function: ScalarUDF) -> Self {
        self.functions.scalar.push(Arc::new(function));
        self
    }

    /// Adds an aggregate function.
    #[must_use]
    pub fn with_udaf(mut self, function: AggregateUDF) -> Self {
        self.functions.aggregate.push(Arc::new(function));
        self
    }

    /// Adds a window function.
    #[must_use]
    pub fn with_udwf(mut self, function: WindowUDF) -> Self {
        self.functions.window.push(Arc::new(function));
        self
    }

    /// The query as it was given.
    pub fn query(&self) -> &str {
        &self.query
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

    /// A query that streams filters and maps; every other one is blocking.
    fn maps_rows(&self) -> bool {
        true
    }

    async fn outputs(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Vec<StreamInfo>> {
        let planned = Planned::new(self, cx, inputs).await?;
        let bounded = inputs.iter().all(|i| i.bounded);
        if planned.program()?.is_none() {
            if !bounded {
                return Err(endless(inputs));
            }
            // What can't be run is told now.
            planned.physical(inputs).await?;
        }
        let output = StreamInfo::new(cx.node(), Arc::clone(&planned.schema));
        Ok(vec![output.with_keys(planned.keys(inputs)).with_bounded(bounded)])
    }

    async fn blocking(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<bool> {
        let planned = Planned::new(self, cx, inputs).await?;
        Ok(planned.program()?.is_none())
    }

    async fn scan(&self, cx: &Context, inputs: &[StreamInfo], input: usize) -> Result<ScanRequest> {
        scan::wish(self, cx, inputs, input).await
    }

    async fn start(&self, cx: &Context, inputs: &[StreamInfo]) -> Result<Started> {
        let planned = Planned::new(self, cx, inputs).await?;
        if let Some(program) = planned.program()? {
            let operator = RowWise::new(self.clone(), cx.clone(), inputs, program)?;
            return Ok(Started::Streaming(Box::new(operator)));
        }
        if inputs.iter().any(|i| !i.bounded) {
            return Err(endless(inputs));
        }
        Ok(Started::Blocking(Box::new(Whole::new(self.clone(), cx.clone(), inputs.to_vec()))))
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
