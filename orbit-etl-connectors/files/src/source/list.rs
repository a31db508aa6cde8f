//! Which files there are, and what their paths say.

use std::collections::HashSet;
use std::fs;
use std::path::{Path as FsPath, PathBuf};

use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStoreExt as _};
use orbit_etl_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::error::{from_io, from_store};
use crate::format::Format;
use crate::location::Location;

/// How deep directories are searched; a link that leads back up ends here.
const MAX_DEPTH: usize = 64;
/// What stands in a path for a NULL in a partition column.
const HIVE_NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// What a stamp begins with that holds an ETag.
const ETAG: &str = "etag ";
/// What an ETag begins with that stands for versions which are merely as good as one another.
const WEAK: &str = "W/";

/// One file as it was listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    /// The absolute path, or the store's key.
    pub(crate) key: String,
    /// Path or URL for people.
    pub(crate) name: String,
    pub(crate) size: u64,
    /// The store's ETag, or else the time of the last change: another one means another content.
    pub(crate) stamp: String,
    /// Columns and values from `column=value` directories, decoded; `None` is NULL.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) partitions: Vec<(String, Option<String>)>,
}

impl FileEntry {
    /// Which version of the file this is.
    pub(crate) fn fingerprint(&self) -> String {
        format!("{} {}", self.size, self.stamp)
    }

    /// The ETag to ask for, if that is what the stamp holds. A weak one never matches.
    pub(crate) fn etag(&self) -> Option<String> {
        let tag = self.stamp.strip_prefix(ETAG)?;
        (!tag.starts_with(WEAK)).then(|| tag.to_string())
    }

    /// Whether an answer of the store is about what was listed, as far as it says so.
    pub(crate) fn is_version(&self, meta: &ObjectMeta) -> bool {
        // Some stores quote tags in answers, but not in listings.
        let plain = |tag: &str| tag.strip_prefix(WEAK).unwrap_or(tag).trim_matches('"').to_owned();
        let same = match (self.stamp.strip_prefix(ETAG), &meta.e_tag) {
            (Some(known), Some(found)) => plain(known) == plain(found),
            (Some(_), None) => true,
            // Listings have fractions of a second, headers don't.
            (None, _) => chrono::DateTime::parse_from_rfc3339(&self.stamp)
                .is_ok_and(|known| known.timestamp() == meta.last_modified.timestamp()),
        };
        same && meta.size == self.size
    }

    fn remote(location: &Location, meta: ObjectMeta, hive: bool) -> Self {
        let stamp = match &meta.e_tag {
            Some(tag) => format!("{ETAG}{tag}"),
            None => meta.last_modified.to_rfc3339(),
        };
        let below = meta.location.as_ref().strip_prefix(location.prefix.as_ref()).unwrap_or_default();
        let partitions = if hive { partitions(below) } else { Vec::new() };
        Self {
            name: location.name(&meta.location),
            key: meta.location.to_string(),
            size: meta.size,
            stamp,
            partitions,
        }
    }
}

/// The files of a location, in the order of their names. Names that begin with `_` or `.` are left
/// out below a directory or a glob; in a directory, only files whose names say `format` (or any
/// known format) count.
pub(crate) async fn list(location: &Location, format: Option<Format>, hive: bool) -> Result<Vec<FileEntry>> {
    let mut files = match &location.local {
        Some(_) => {
            let place = location.clone();
            tokio::task::spawn_blocking(move || local(&place, format, hive))
                .await
                .map_err(|e| Error::internal("the listing died").caused_by(e))??
        }
        None => remote(location, format, hive).await?,
    };
    if files.is_empty() {
        let (message, remedy) = match (&location.pattern, format) {
            (Some(_), _) => ("no file matches the glob".to_string(), "check the pattern"),
            (None, Some(format)) => (
                format!("the directory has no {format} files"),
                "files in directories are told by their ending; use a glob for others",
            ),
            (None, None) => {
                ("the directory has no files of a known format".to_string(), "name the format, or use a glob")
            }
        };
        return Err(Error::not_found(message).with("path", location).remedy(remedy));
    }
    files.sort_by(|a, b| a.key.cmp(&b.key));
    let first = &files[0];
    let names = |f: &FileEntry| f.partitions.iter().map(|(k, _)| k.clone()).collect::<Vec<_>>();
    if let Some(other) = files.iter().find(|f| names(f) != names(first)) {
        return Err(Error::schema("files have different partition columns")
            .with("file", &other.name)
            .with("other file", &first.name)
            .remedy("read them as two sources, or set `partitions: false`"));
    }
    Ok(files)
}

/// The same file as it is now.
pub(crate) async fn again(location: &Location, file: &FileEntry) -> Result<FileEntry> {
    let (size, stamp) = match &location.local {
        Some(_) => {
            let metadata = fs::metadata(&file.key).map_err(|e| from_io(e, "find the file", &file.name))?;
            (metadata.len(), local_stamp(&metadata))
        }
        None => {
            let found = head(location, &store_path(file)?).await;
            let meta = found.map_err(|e| from_store(e, "find the file", &file.name))?;
            let now = FileEntry::remote(location, meta, false);
            (now.size, now.stamp)
        }
    };
    Ok(FileEntry { size, stamp, ..file.clone() })
}

/// What a store says of an object.
async fn head(location: &Location, path: &Path) -> object_store::Result<ObjectMeta> {
    let refused = match location.store.head(path).await {
        Err(refused) if !location.lists => refused,
        answer => return answer,
    };
    // Some web servers, and all links signed for reading, allow nothing but reading.
    let first = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
    location.store.get_opts(path, first).await.map(|answer| answer.meta).map_err(|_| refused)
}

/// Size and time of change of a local file.
pub(crate) fn local_stamp(metadata: &fs::Metadata) -> String {
    let modified = metadata.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    modified.map_or_else(|| "unknown".into(), |t| format!("{}.{:09}", t.as_secs(), t.subsec_nanos()))
}

fn local(location: &Location, format: Option<Format>, hive: bool) -> Result<Vec<FileEntry>> {
    let Some(base) = &location.local else { return Ok(Vec::new()) };
    let metadata = match fs::metadata(base) {
        Ok(metadata) => metadata,
        // The part of a glob before its first wildcard.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && location.pattern.is_some() => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(from_io(e, "find the file", location)),
    };
    let mut files = Vec::new();
    if metadata.is_file() {
        fs::File::open(base).map_err(|e| from_io(e, "open the file", location))?;
        files.push(local_entry(base, base, &metadata, false)?);
        return Ok(files);
    }
    let mut open = vec![(base.clone(), 0)];
    let mut visited = HashSet::new();
    while let Some((directory, depth)) = open.pop() {
        let fail = |e| from_io(e, "list the directory", directory.display());
        // A link may lead back, or two links to one place.
        if !visited.insert(fs::canonicalize(&directory).map_err(fail)?) {
            continue;
        }
        for entry in fs::read_dir(&directory).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            let path = entry.path();
            if hidden(&name.to_string_lossy()) {
                continue;
            }
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                // Gone since it was listed, or a link to nowhere.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(from_io(e, "find the file", path.display())),
            };
            if metadata.is_dir() {
                if depth >= MAX_DEPTH {
                    return Err(Error::unsupported("the directories are nested too deeply")
                        .with("directory", path.display())
                        .with("levels", MAX_DEPTH)
                        .remedy("name a directory further down"));
                }
                open.push((path, depth + 1));
            } else if metadata.is_file() && wanted(location, &path.to_string_lossy(), format) {
                files.push(local_entry(base, &path, &metadata, hive)?);
            }
        }
    }
    Ok(files)
}

fn local_entry(base: &FsPath, path: &FsPath, metadata: &fs::Metadata, hive: bool) -> Result<FileEntry> {
    let text = path.to_str().ok_or_else(|| {
        Error::unsupported("a file's name is not UTF-8")
            .with("file", path.display())
            .remedy("rename it, or leave it out by a glob")
    })?;
    let below: PathBuf = path.strip_prefix(base).map(Into::into).unwrap_or_default();
    Ok(FileEntry {
        key: text.to_string(),
        name: text.to_string(),
        size: metadata.len(),
        stamp: local_stamp(metadata),
        partitions: if hive { partitions(&below.to_string_lossy()) } else { Vec::new() },
    })
}

async fn remote(location: &Location, format: Option<Format>, hive: bool) -> Result<Vec<FileEntry>> {
    let store = &location.store;
    if location.pattern.is_none() && !location.directory {
        match head(location, &location.prefix).await {
            Ok(meta) => return Ok(vec![FileEntry::remote(location, meta, false)]),
            Err(object_store::Error::NotFound { .. }) if location.lists => {}
            Err(e) => return Err(from_store(e, "find the file", location)),
        }
    }
    if !location.lists {
        return Err(Error::config("a web server can't list directories")
            .with("path", location)
            .remedy("name one file"));
    }
    let prefix = (!location.prefix.as_ref().is_empty()).then_some(&location.prefix);
    let mut found = store.list(prefix);
    let mut files = Vec::new();
    let mut any = false;
    while let Some(meta) = found.try_next().await.map_err(|e| from_store(e, "list the files", location))? {
        any = true;
        let below = meta.location.as_ref().strip_prefix(location.prefix.as_ref()).unwrap_or_default();
        if !below.split('/').any(hidden) && wanted(location, meta.location.as_ref(), format) {
            files.push(FileEntry::remote(location, meta, hive));
        }
    }
    if !any && location.pattern.is_none() {
        return Err(Error::not_found("there is nothing of that name")
            .with("path", location)
            .remedy("check the path"));
    }
    Ok(files)
}

fn wanted(location: &Location, path: &str, format: Option<Format>) -> bool {
    match &location.pattern {
        Some(pattern) => pattern.is_match(path),
        None => match (Format::from_path(path), format) {
            (Some((found, _)), Some(format)) => found == format,
            (found, None) => found.is_some(),
            (None, Some(_)) => false,
        },
    }
}

fn hidden(name: &str) -> bool {
    name.starts_with(['_', '.'])
}

/// The `column=value` directories of a path below the location.
fn partitions(below: &str) -> Vec<(String, Option<String>)> {
    let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let mut directories: Vec<_> = below.split('/').collect();
    directories.pop();
    directories
        .into_iter()
        .filter_map(|part| part.split_once('='))
        .map(|(column, value)| (decode(column), (value != HIVE_NULL).then(|| decode(value))))
        .collect()
}

/// The path of an entry in its store.
pub(crate) fn store_path(file: &FileEntry) -> Result<Path> {
    Path::parse(&file.key).map_err(|e| from_store(e.into(), "read the file", &file.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_name_columns() {
        assert_eq!(
            partitions("/a=1/plain/b%20c=x%2Fy/d=__HIVE_DEFAULT_PARTITION__/e=f.csv"),
            [("a".into(), Some("1".into())), ("b c".into(), Some("x/y".into())), ("d".into(), None)]
        );
    }
}
