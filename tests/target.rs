//! What stands in a target, read without the engine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use crate::job::{Input, Job, Row};

/// Every file below a folder, as paths below it; nothing if the folder isn't there.
pub(crate) fn files(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    found
}

/// The published files with their bytes, and the manifests: all that a reader goes by.
pub(crate) fn published(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let is_public = |path: &PathBuf| !path.starts_with("_orbit") || path.starts_with("_orbit/manifests");
    let files = files(root).into_iter().filter(is_public);
    files.map(|path| (path.clone(), fs::read(root.join(path)).unwrap())).collect()
}

/// Checks that the lake and the dead letters hold just what the input has, each row once.
pub(crate) fn check(job: &Job, input: &Input) -> Result<(), String> {
    let (rows, malformed) = (lake_rows(job)?, dead_letters(job)?);
    same("rows", &rows, &input.rows)?;
    same("dead letters", &malformed, &input.malformed)
}

/// Checks that nothing is staged any more.
pub(crate) fn check_clean(job: &Job) -> Result<(), String> {
    if job.delta.is_some() {
        let left = Table::read(&job.lake())?.left_behind(&job.lake());
        if !left.is_empty() {
            return Err(format!("the table doesn't name {left:?}"));
        }
    }
    for root in [job.lake(), job.rejected()] {
        let staged = files(&root.join("_orbit/staged"));
        if !staged.is_empty() {
            return Err(format!("left behind in {}: {staged:?}", root.display()));
        }
    }
    Ok(())
}

fn same<T: Ord + Clone + std::fmt::Debug>(what: &str, found: &[T], expected: &[T]) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let (found_set, expected_set): (BTreeSet<_>, BTreeSet<_>) =
        (found.iter().collect(), expected.iter().collect());
    let lost: Vec<_> = expected_set.difference(&found_set).take(3).collect();
    let strange: Vec<_> = found_set.difference(&expected_set).take(3).collect();
    let doubled: Vec<_> = found.windows(2).filter(|w| w[0] == w[1]).map(|w| &w[0]).take(3).collect();
    Err(format!(
        "{what}: {} found, {} expected; lost {lost:?}, strange {strange:?}, doubled {doubled:?}",
        found.len(),
        expected.len()
    ))
}

/// Checks that the files that count by the manifests hold just what the input has, whatever else lies
/// there: what a reader sees who wants all or nothing, also in the middle of a commit.
pub(crate) fn check_by_manifests(job: &Job, input: &Input) -> Result<(), String> {
    let mut manifests = manifests(&job.lake())?;
    let generation = |manifest: &Value| manifest["generation"].as_u64().unwrap_or_default();
    let overwriting = manifests.iter().filter(|manifest| manifest["mode"] == "overwrite");
    let since = overwriting.map(generation).max().unwrap_or_default();
    manifests.retain(|manifest| generation(manifest) >= since);
    same("rows", &rows_of(&job.lake(), manifests.iter().flat_map(named))?, &input.rows)
}

fn lake_rows(job: &Job) -> Result<Vec<Row>, String> {
    let root = job.lake();
    if job.delta.is_some() {
        return rows_of(&root, Table::read(&root)?.files);
    }
    rows_of(&root, listed(&root)?)
}

fn rows_of(root: &Path, files: impl IntoIterator<Item = PathBuf>) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for path in files {
        let file = File::open(root.join(&path)).map_err(|e| format!("{}: {e}", path.display()))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file)
            .and_then(ParquetRecordBatchReaderBuilder::build)
            .map_err(|e| format!("{}: {e}", path.display()))?;
        let folder =
            path.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
        for batch in reader {
            let batch = batch.map_err(|e| format!("{}: {e}", path.display()))?;
            collect(&batch, folder.strip_prefix("region="), &mut rows);
        }
    }
    rows.sort();
    Ok(rows)
}

fn collect(batch: &RecordBatch, region: Option<&str>, rows: &mut Vec<Row>) {
    let ids = batch.column_by_name("id").unwrap().as_primitive::<Int64Type>();
    // Some writers have them as views.
    let text = |name: &str| batch.column_by_name(name).map(|c| cast(c, &DataType::Utf8).unwrap());
    let (notes, regions) = (text("note").unwrap(), text("region"));
    let notes = notes.as_string::<i32>();
    for row in 0..batch.num_rows() {
        let region = match region {
            Some(region) => region,
            None => regions.as_ref().unwrap().as_string::<i32>().value(row),
        };
        rows.push((ids.value(row), region.to_owned(), notes.value(row).to_owned()));
    }
}

/// A Delta table as its log tells it.
struct Table {
    /// What the newest version has.
    files: BTreeSet<PathBuf>,
    /// What some version has or had.
    ever: BTreeSet<PathBuf>,
}

impl Table {
    /// Reads the log. No epoch may stand there twice.
    fn read(root: &Path) -> Result<Self, String> {
        let (mut table, mut last) = (Self { files: BTreeSet::new(), ever: BTreeSet::new() }, 0);
        let log = root.join("_delta_log");
        let entries = files(&log).into_iter().filter(|path| path.extension().is_some_and(|e| e == "json"));
        for entry in entries {
            let text = fs::read_to_string(log.join(&entry)).map_err(|e| e.to_string())?;
            for line in text.lines() {
                let action: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
                let path = |kind: &str| action[kind]["path"].as_str().map(PathBuf::from);
                if let Some(path) = path("add") {
                    table.ever.insert(path.clone());
                    table.files.insert(path);
                }
                if let Some(path) = path("remove")
                    && !table.files.remove(&path)
                {
                    return Err(format!("{} was removed, but is not there", path.display()));
                }
                let is_epoch = action["txn"]["appId"].as_str().is_some_and(|id| id.ends_with("/epoch"));
                if let Some(epoch) = action["txn"]["version"].as_u64().filter(|_| is_epoch) {
                    if epoch <= last {
                        return Err(format!("epoch {epoch} was committed after epoch {last}"));
                    }
                    last = epoch;
                }
            }
        }
        Ok(table)
    }

    /// Files of the sink's that no version has ever named.
    fn left_behind(&self, root: &Path) -> Vec<PathBuf> {
        let own = |path: &PathBuf| path.starts_with("part-orbit") || path.starts_with("_orbit");
        files(root).into_iter().filter(|path| own(path) && !self.ever.contains(path)).collect()
    }
}

fn dead_letters(job: &Job) -> Result<Vec<String>, String> {
    let root = job.rejected();
    let mut texts = Vec::new();
    for path in listed(&root)? {
        let text = fs::read_to_string(root.join(&path)).map_err(|e| format!("{}: {e}", path.display()))?;
        for line in text.lines() {
            let letter: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
            if letter["node"] != "files" || letter["kind"] != "data" {
                return Err(format!("a dead letter has no origin: {line}"));
            }
            texts.push(letter["text"].as_str().unwrap_or_default().trim_end().to_owned());
        }
    }
    texts.sort();
    Ok(texts)
}

/// The published files, which must be those that the manifests name, each once.
fn listed(root: &Path) -> Result<Vec<PathBuf>, String> {
    let published: Vec<_> = files(root).into_iter().filter(|path| !path.starts_with("_orbit")).collect();
    let mut named: Vec<_> = manifests(root)?.iter().flat_map(named).collect();
    named.sort();
    if published == named {
        Ok(published)
    } else {
        Err(format!("the directory holds {published:?}, the manifests name {named:?}"))
    }
}

fn manifests(root: &Path) -> Result<Vec<Value>, String> {
    let paths = files(root).into_iter().filter(|path| path.starts_with("_orbit/manifests"));
    let read = paths.map(|path| {
        let manifest = fs::read(root.join(path)).map_err(|e| e.to_string())?;
        serde_json::from_slice(&manifest).map_err(|e| e.to_string())
    });
    read.collect()
}

fn named(manifest: &Value) -> Vec<PathBuf> {
    let files = manifest["files"].as_array().into_iter().flatten();
    files.map(|file| PathBuf::from(file["path"].as_str().unwrap_or_default())).collect()
}
