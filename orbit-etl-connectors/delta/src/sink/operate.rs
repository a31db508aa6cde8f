//! Operations that run in a commit, over files that were staged for them.
//!
//! Each writes the version after the one that it read, with the epoch's transaction, or nothing: the
//! library is told to try once. What it has read is thus what the epoch and the claim were compared with.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use deltalake::datafusion::common::{Column, ScalarValue, TableReference};
use deltalake::datafusion::error::DataFusionError;
use deltalake::datafusion::execution::SessionStateBuilder;
use deltalake::datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use deltalake::datafusion::execution::memory_pool::{FairSpillPool, MemoryConsumer, MemoryLimit, MemoryPool};
use deltalake::datafusion::execution::runtime_env::RuntimeEnvBuilder;
use deltalake::datafusion::logical_expr::{Expr, lit};
use deltalake::datafusion::prelude::{DataFrame, ParquetReadOptions, SessionContext, cast, ident};
use deltalake::delta_datafusion::DeltaSessionContext;
use deltalake::kernel::Transaction;
use deltalake::kernel::transaction::{CommitProperties, TransactionError};
use deltalake::operations::write::WriteBuilder;
use deltalake::protocol::SaveMode;
use deltalake::{DeltaTable, DeltaTableError};
use orbit_etl_core::{Context, Error, ErrorKind, Result};
use parquet::file::properties::WriterProperties;
use serde_json::Value;
use url::Url;

use super::change::{DELETE, ORDER, SEQUENCE};
use super::head::Head;
use super::reading::Reading;
use super::staged::{How, Staged};
use crate::error::{from_datafusion, from_delta};
use crate::table::{At, Place};

/// Where a session finds the staged files.
const STAGED: &str = "orbit-staged://table/";
/// How many rows go together where memory is short, and what each sort keeps to merge what it spilled.
const SPILLING_ROWS: usize = 512;
const SPILLING_BYTES: usize = 1 << 20;
/// How often, and for how long each time, to wait for memory that is on its way back.
const RELEASES: usize = 100;
const RELEASE: Duration = Duration::from_millis(20);
/// What an operation may take of a memory without a limit.
const UNLIMITED: usize = 1 << 30;
const SOURCE: &str = "source";
const TARGET: &str = "target";
/// A change's rank among those of its key.
const RANK: &str = "__orbit_rank";

/// What an operation needs to know beside the files.
pub(crate) struct Operation<'a> {
    pub(crate) cx: &'a Context,
    pub(crate) place: &'a Place,
    pub(crate) writing: &'a WriterProperties,
    pub(crate) info: HashMap<String, Value>,
    pub(crate) txns: Vec<Transaction>,
}

/// What became of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operated {
    /// It is the next version.
    Done,
    /// It changes nothing, so there is no version of it.
    Nothing,
    /// Somebody else has written the next version.
    Lost,
}

impl Operation<'_> {
    /// Runs over the table at its head.
    pub(crate) async fn run(&self, head: &Head, how: &How, files: &[Staged]) -> Result<Operated> {
        let before = self.cx.memory().reserved();
        // Hash joins are quick but can't spill.
        match self.attempt(head, how, files, true).await {
            Err(error) if error.kind() == ErrorKind::Resources => {
                tracing::info!(table = %self.place, "the operation takes much memory; it sorts and spills now");
                // What has failed lets go of its memory in tasks of its own.
                for _ in 0..RELEASES {
                    if self.cx.memory().reserved() <= before {
                        break;
                    }
                    tokio::time::sleep(RELEASE).await;
                }
                self.attempt(head, how, files, false).await
            }
            ended => ended,
        }
    }

    async fn attempt(&self, head: &Head, how: &How, files: &[Staged], hash: bool) -> Result<Operated> {
        let table = self.place.load(At::Version(head.version)).await?;
        // Sorts share alike what is free; the pipeline's pool would let the first take all.
        let share = MemoryConsumer::new(format!("{} (operation)", self.cx.node())).register(self.cx.memory());
        let pool: Arc<dyn MemoryPool> = if hash {
            Arc::clone(self.cx.memory())
        } else {
            let free = match self.cx.memory().memory_limit() {
                MemoryLimit::Finite(limit) => limit.saturating_sub(self.cx.memory().reserved()) / 4 * 3,
                _ => UNLIMITED,
            };
            share.try_resize(free).map_err(|e| from_datafusion(&e, "set up an operation", self.place))?;
            Arc::new(FairSpillPool::new(free))
        };
        let session = self.session(hash, pool)?;
        let rows = self.rows(&session, files).await?;
        let doing = "write to the table";
        let fail = |e: DataFusionError| from_datafusion(&e, doing, self.place);
        let ended = match how {
            How::Merge { keys, ordered } => {
                let rows = match rows {
                    Some(rows) => last_of_each(&session, rows, keys, *ordered).await.map_err(fail)?,
                    None => return Ok(Operated::Nothing),
                };
                self.merge(&session, table, rows, keys).await
            }
            How::Replace { predicate } => {
                let rows = filled(&session, rows, head).map_err(fail)?;
                self.replace(&session, table, rows, predicate).await
            }
            How::Add => return Err(Error::internal("files that are added need no operation")),
        };
        match ended {
            Ok(version) if version == Some(head.version) => Ok(Operated::Nothing),
            Ok(_) => Ok(Operated::Done),
            Err(DeltaTableError::Transaction {
                source: TransactionError::MaxCommitAttempts(_) | TransactionError::VersionAlreadyExists(_),
            }) => Ok(Operated::Lost),
            Err(error) => Err(from_delta(&error, doing, self.place)),
        }
    }

    /// A session with the pipeline's memory, which spills to the run's directory.
    fn session(&self, hash: bool, pool: Arc<dyn MemoryPool>) -> Result<SessionContext> {
        let spill = DiskManagerMode::Directories(vec![self.cx.spill_dir().to_path_buf()]);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(pool)
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(spill))
            .build_arc()
            .map_err(|e| from_datafusion(&e, "set up an operation", self.place))?;
        let staged = Url::parse(STAGED)
            .map_err(|e| Error::internal("the staged files have no address").caused_by(e))?;
        runtime.register_object_store(&staged, Arc::new(Reading(self.place.store())));
        let state = DeltaSessionContext::with_runtime_env(runtime).state();
        let mut config = state.config().clone().with_target_partitions(self.cx.parallelism());
        if !hash {
            // Each partition of each sort keeps a part of the memory. With one, joins are hashed anyway.
            config = config
                .with_target_partitions(2)
                .with_batch_size(SPILLING_ROWS)
                .with_sort_spill_reservation_bytes(SPILLING_BYTES)
                // Views keep all the buffers alive that they point into.
                .set_bool("datafusion.execution.parquet.schema_force_view_types", false)
                .set_bool("datafusion.optimizer.prefer_hash_join", false);
        }
        Ok(SessionContext::new_with_state(
            SessionStateBuilder::new_from_existing(state).with_config(config).build(),
        ))
    }

    /// The staged rows; `None` without files.
    async fn rows(&self, session: &SessionContext, files: &[Staged]) -> Result<Option<DataFrame>> {
        if files.is_empty() {
            return Ok(None);
        }
        let paths: Vec<String> = files.iter().map(|file| format!("{STAGED}{}", file.path)).collect();
        let rows = session.read_parquet(paths, ParquetReadOptions::default()).await;
        rows.map(Some).map_err(|e| from_datafusion(&e, "read staged rows", self.place))
    }

    async fn merge(
        &self,
        session: &SessionContext,
        table: DeltaTable,
        changes: DataFrame,
        keys: &[String],
    ) -> Result<Option<u64>, DeltaTableError> {
        let of = |table: &str, name: &str| {
            Expr::Column(Column::new(Some(TableReference::bare(table.to_owned())), name))
        };
        let same = keys.iter().map(|key| of(TARGET, key).eq(of(SOURCE, key))).reduce(Expr::and);
        let same = same.ok_or_else(|| DeltaTableError::generic("a merge without keys"))?;
        let hidden = [DELETE, ORDER, SEQUENCE];
        let columns: Vec<String> = changes.schema().fields().iter().map(|f| f.name().clone()).collect();
        let columns: Vec<String> =
            columns.into_iter().filter(|name| !hidden.contains(&name.as_str())).collect();
        let target = |name: &String| Column::new(Some(TableReference::bare(TARGET)), name);
        let (table, _) = table
            .merge(changes, same)
            .with_source_alias(SOURCE)
            .with_target_alias(TARGET)
            .with_streaming(true)
            .with_session_state(Arc::new(session.state()))
            .with_writer_properties(self.writing.clone())
            .with_commit_properties(self.commit())
            .when_matched_delete(|delete| delete.predicate(of(SOURCE, DELETE)))?
            .when_matched_update(|update| {
                columns.iter().fold(update, |update, name| update.update(target(name), of(SOURCE, name)))
            })?
            .when_not_matched_insert(|insert| {
                let insert = insert.predicate(Expr::Not(Box::new(of(SOURCE, DELETE))));
                columns.iter().fold(insert, |insert, name| insert.set(target(name), of(SOURCE, name)))
            })?
            .await?;
        Ok(table.version())
    }

    async fn replace(
        &self,
        session: &SessionContext,
        table: DeltaTable,
        rows: DataFrame,
        predicate: &str,
    ) -> Result<Option<u64>, DeltaTableError> {
        let snapshot = table.snapshot()?.snapshot().clone();
        let table = WriteBuilder::new(table.log_store(), Some(snapshot))
            .with_input_plan(rows.into_unoptimized_plan())
            .with_session_state(Arc::new(session.state()))
            .with_save_mode(SaveMode::Overwrite)
            .with_replace_where(predicate)
            .with_writer_properties(self.writing.clone())
            .with_commit_properties(self.commit())
            .await?;
        Ok(table.version())
    }

    fn commit(&self) -> CommitProperties {
        CommitProperties::default()
            .with_metadata(self.info.clone())
            .with_application_transactions(self.txns.clone())
            .with_max_retries(0)
            // The head does it, if it is time.
            .with_create_checkpoint(false)
            .with_cleanup_expired_logs(Some(false))
    }
}

/// The last change of each key.
async fn last_of_each(
    session: &SessionContext,
    changes: DataFrame,
    keys: &[String],
    ordered: bool,
) -> Result<DataFrame, DataFusionError> {
    let kept: Vec<String> = changes
        .schema()
        .fields()
        .iter()
        .map(|field| quoted(field.name()))
        .filter(|name| *name != quoted(ORDER) && *name != quoted(SEQUENCE))
        .collect();
    let keys: Vec<String> = keys.iter().map(|key| quoted(key)).collect();
    let order = if ordered { format!("{} DESC NULLS LAST, ", quoted(ORDER)) } else { String::new() };
    let (kept, keys, rank, sequence) = (kept.join(", "), keys.join(", "), quoted(RANK), quoted(SEQUENCE));
    session.register_table("staged", changes.into_view())?;
    session
        .sql(&format!(
            "SELECT {kept} FROM (SELECT *, row_number() OVER (PARTITION BY {keys} ORDER BY {order}{sequence} DESC \
             ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) \
             AS {rank} FROM staged) WHERE {rank} = 1"
        ))
        .await
}

/// Rows with all the table's columns, those that they lack as NULL.
fn filled(
    session: &SessionContext,
    rows: Option<DataFrame>,
    head: &Head,
) -> Result<DataFrame, DataFusionError> {
    let there: Vec<String> = match &rows {
        Some(rows) => rows.schema().fields().iter().map(|field| field.name().clone()).collect(),
        None => Vec::new(),
    };
    let columns: Vec<Expr> = head
        .shape
        .arrow
        .fields()
        .iter()
        .map(|field| match there.contains(field.name()) {
            true => ident(field.name()),
            false => cast(lit(ScalarValue::Null), field.data_type().clone()).alias(field.name()),
        })
        .collect();
    match rows {
        Some(rows) => rows.select(columns),
        None => session.read_empty()?.select(columns)?.filter(lit(false)),
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
