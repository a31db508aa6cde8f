//! Epochs that are staged and not committed, as the table's folder and its log tell.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use deltalake::DeltaTable;
use futures::TryStreamExt;
use object_store::path::Path;
use orbit_etl_core::Result;

use crate::error::{from_delta, from_store};
use crate::sink::staged::{FOLDER, INFO, WAITING, own_folder};
use crate::table::Place;

/// The oldest file before `until` that waits for its epoch's commit: its path, and since when.
///
/// A file waits if the log doesn't name it and its pipeline has committed no epoch since it was written.
/// Older ones are what a run has left that died or was fenced.
pub(crate) async fn oldest(
    place: &Place,
    table: &DeltaTable,
    until: SystemTime,
) -> Result<Option<(String, DateTime<Utc>)>> {
    let mut staged = staged(place, until.into()).await?;
    if staged.is_empty() {
        return Ok(None);
    }
    let fail = |e| from_delta(&e, "list the table's files", place);
    let state = table.snapshot().map_err(fail)?;
    let mut named: HashSet<String> =
        state.log_data().iter().map(|file| file.path().as_ref().to_owned()).collect();
    let mut tombstones = state.all_tombstones(place.log_store());
    while let Some(tombstone) = tombstones.try_next().await.map_err(fail)? {
        named.insert(tombstone.path().as_ref().to_owned());
    }
    staged.retain(|(path, _)| !named.contains(path));
    if staged.is_empty() {
        return Ok(None);
    }
    let commits = commits(place, table).await?;
    let waits = |(path, written): &(String, DateTime<Utc>)| {
        let by = path.split('/').nth(1).and_then(|own| commits.by_pipeline.get(own));
        // The log counts milliseconds.
        let after = |committed: DateTime<Utc>| written.timestamp_millis() > committed.timestamp_millis();
        by.copied().or(commits.oldest).is_none_or(after)
    };
    Ok(staged.into_iter().filter(waits).min_by_key(|(_, written)| *written))
}

/// Files that sinks of ours wrote before this time, named by the log or not.
async fn staged(place: &Place, until: DateTime<Utc>) -> Result<Vec<(String, DateTime<Utc>)>> {
    let store = place.store();
    let mut staged = Vec::new();
    for root in [FOLDER, WAITING] {
        let root = Path::from(root);
        let files = store.list(Some(&root)).try_filter_map(|file| async move {
            Ok((file.last_modified <= until).then(|| (file.location.to_string(), file.last_modified)))
        });
        let files: Vec<_> =
            files.try_collect().await.map_err(|e| from_store(&e, "list the table's folder", place))?;
        staged.extend(files);
    }
    Ok(staged)
}

/// When epochs were committed, as far back as the log goes.
#[derive(Default)]
struct Commits {
    /// The newest ones, by the name of their pipeline's folder.
    by_pipeline: HashMap<String, DateTime<Utc>>,
    /// Nobody knows what was before this.
    oldest: Option<DateTime<Utc>>,
}

async fn commits(place: &Place, table: &DeltaTable) -> Result<Commits> {
    let mut commits = Commits::default();
    let mut history = table.history(None);
    let fail = |e| from_delta(&e, "read the table's history", place);
    while let Some(info) = history.try_next().await.map_err(fail)? {
        let Some(at) = info.timestamp.and_then(DateTime::from_timestamp_millis) else { continue };
        commits.oldest = Some(commits.oldest.map_or(at, |oldest| oldest.min(at)));
        let Some(own) = info.info.get(INFO).filter(|own| own["epoch"].is_u64()) else { continue };
        let (Some(lineage), Some(sink)) = (own["lineage"].as_str(), own["sink"].as_str()) else { continue };
        let newest = commits.by_pipeline.entry(own_folder(lineage, sink)).or_insert(at);
        *newest = at.max(*newest);
    }
    Ok(commits)
}
