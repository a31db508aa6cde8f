//! What keeps a table fast and small.

use std::num::NonZeroU64;
use std::time::{Duration, SystemTime};

use chrono::TimeDelta;
use deltalake::operations::optimize::OptimizeType;
use deltalake::operations::vacuum::VacuumMode;
use orbit_etl_core::{Error, ErrorKind, Result};
use secrecy::SecretString;

use crate::error::from_delta;
use crate::pending;
use crate::table::{At, Place, Storage};

/// Looks after a Delta table: compacts its files, sorts them, removes those that no version needs.
///
/// Pipelines may write at the same time. Compaction changes no rows, and sources that follow the table
/// skip it.
///
/// ```no_run
/// # async fn run() -> orbit_etl_core::Result<()> {
/// use orbit_etl_connector_delta::DeltaMaintenance;
/// use std::time::Duration;
///
/// let table = DeltaMaintenance::new("lake/orders");
/// table.optimize().await?;
/// table.vacuum(Duration::from_secs(7 * 24 * 3_600)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct DeltaMaintenance {
    path: String,
    target_file_size: Option<NonZeroU64>,
    storage: Storage,
}

/// What became of a table's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rewritten {
    /// Files that were written.
    pub added: u64,
    /// Files whose rows are in these now.
    pub removed: u64,
}

impl DeltaMaintenance {
    /// Of the table in this folder: a path or a URL.
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), target_file_size: None, storage: Storage::new() }
    }

    /// About how many bytes a file is to have; what the table's properties say by default.
    #[must_use]
    pub fn target_file_size(mut self, bytes: u64) -> Self {
        self.target_file_size = NonZeroU64::new(bytes);
        self
    }

    /// An option of the object store. What isn't given is taken from the environment.
    #[must_use]
    pub fn storage_option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.storage.insert(key.into(), SecretString::from(value.into()));
        self
    }

    /// Makes large files of small ones.
    ///
    /// # Errors
    /// `NotFound` without a table, `Conflict` if others changed the same files.
    pub async fn optimize(&self) -> Result<Rewritten> {
        self.rewrite(OptimizeType::Compact).await
    }

    /// Writes the rows anew so that those with similar values in these columns stand together, and
    /// filters on any of them can leave files out.
    ///
    /// # Errors
    /// As [`optimize`](Self::optimize); `Config` without columns.
    pub async fn z_order(&self, columns: impl IntoIterator<Item = impl Into<String>>) -> Result<Rewritten> {
        let columns: Vec<String> = columns.into_iter().map(Into::into).collect();
        if columns.is_empty() {
            return Err(Error::config("there is no column to sort by").remedy("name at least one"));
        }
        self.rewrite(OptimizeType::ZOrder(columns)).await
    }

    async fn rewrite(&self, kind: OptimizeType) -> Result<Rewritten> {
        let place = Place::parse(&self.path, &self.storage)?;
        let table = place.load(At::Newest).await?;
        let mut rewrite = table.optimize().with_type(kind);
        if let Some(size) = self.target_file_size {
            rewrite = rewrite.with_target_size(size);
        }
        let (_, done) = rewrite.await.map_err(|e| from_delta(&e, "rewrite the table's files", &place))?;
        Ok(Rewritten { added: done.num_files_added, removed: done.num_files_removed })
    }

    /// Removes the files that were replaced or deleted longer ago than this, and says how many. Versions
    /// that old can't be read any more.
    ///
    /// Files that no version has ever named stay: a pipeline may be about to commit them. If one of
    /// Orbit's pipelines has waited with that for longer than `retention`, this is refused, since another
    /// tool's vacuum with such a retention would remove its rows.
    ///
    /// # Errors
    /// `NotFound` without a table. `Config` if `retention` is shorter than the table's property
    /// `delta.deletedFileRetentionDuration` (a week by default) allows: somebody may be reading. `Conflict`
    /// if it is shorter than the oldest epoch that waits to be committed is old.
    pub async fn vacuum(&self, retention: Duration) -> Result<usize> {
        let place = Place::parse(&self.path, &self.storage)?;
        let table = place.load(At::Newest).await?;
        let state = table.snapshot().map_err(|e| from_delta(&e, "read the table", &place))?;
        let least = state.table_config().deleted_file_retention_duration.unwrap_or(WEEK);
        if retention < least {
            return Err(Error::config("the retention is shorter than the table's")
                .with("table", &place)
                .with("seconds", least.as_secs())
                .remedy("keep files longer, or set delta.deletedFileRetentionDuration"));
        }
        let until = SystemTime::now().checked_sub(retention).unwrap_or(SystemTime::UNIX_EPOCH);
        if let Some((file, since)) = pending::oldest(&place, &table, until).await? {
            let message = "an epoch is pending that is older than the retention";
            return Err(Error::new(ErrorKind::Conflict, message)
                .retryable(false)
                .with("table", &place)
                .with("file", file)
                .with("since", since.to_rfc3339())
                .remedy(
                    "run the pipeline, which commits it, or keep files longer; if the pipeline is no more, remove the file",
                ));
        }
        let retention = TimeDelta::from_std(retention)
            .map_err(|e| Error::config("the retention is too long").caused_by(e))?;
        let (_, done) = table
            .vacuum()
            .with_mode(VacuumMode::Lite)
            .with_retention_period(retention)
            // Checked above, with an error that says what to do.
            .with_enforce_retention_duration(false)
            .await
            .map_err(|e| from_delta(&e, "remove old files", &place))?;
        Ok(done.files_deleted.len())
    }
}

const WEEK: Duration = Duration::from_secs(7 * 24 * 3_600);
