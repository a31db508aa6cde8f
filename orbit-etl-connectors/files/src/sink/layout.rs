//! Names: of the published files, of the staged ones, and of the manifests.
//!
//! ```text
//! <root>/[<stream>/]k=v/<sink>-<lineage>-<claim>-<number>.parquet     published
//! <root>/_orbit/staged/<sink>/<lineage>/<claim>-<number>.part         staged (disks)
//! <root>/_orbit/staged/<sink>/<lineage>/<claim>-<number>.upload       upload in progress (stores)
//! <root>/_orbit/manifests/<sink>/<lineage>/<epoch>.manifest           published, epoch by epoch
//! <root>/_orbit/claims/<sink>/<lineage>/<claim>                       the newest claim, empty
//! ```

use orbit_etl_core::{Epoch, Error, Lineage, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The folder that holds what isn't rows. Readers skip names that begin with `_`.
pub(crate) const PRIVATE: &str = "_orbit";

/// The value of a hive partition column that is NULL.
pub(crate) const NULL_PARTITION: &str = "__HIVE_DEFAULT_PARTITION__";

const STREAM: &str = "{stream}";

/// Not `json`: a search for `**/*.json` would take manifests for rows.
const MANIFEST: &str = "manifest";

/// The longest name that file systems take.
pub(crate) const LONGEST_NAME: usize = 255;

/// Everything but letters, digits and what is harmless in names everywhere.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// A path cut into the root, which holds the manifests, and the part below it that differs from
/// stream to stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    /// The target's root as a path or URL.
    pub(crate) root: String,
    below: Option<String>,
}

impl Template {
    pub(crate) fn new(path: &str) -> Self {
        match path.find(STREAM) {
            None => Self { root: path.to_owned(), below: None },
            Some(at) => {
                let cut = path[..at].rfind('/').map_or(0, |slash| slash + 1);
                let root = if cut == 0 { "." } else { &path[..cut] };
                let below = path[cut..].trim_end_matches('/').to_owned();
                Self { root: root.to_owned(), below: Some(below) }
            }
        }
    }

    /// Whether each stream has a folder of its own.
    pub(crate) fn by_stream(&self) -> bool {
        self.below.is_some()
    }

    /// The folder of a stream below the root: empty or ending with a slash.
    pub(crate) fn folder(&self, stream: &str) -> String {
        self.below.as_ref().map_or_else(String::new, |below| {
            let mut folder = below.replace(STREAM, &segment(stream));
            folder.push('/');
            folder
        })
    }
}

/// The names that belong to one lineage's use of one sink.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    sink: String,
    short: String,
    own: String,
    claim: u64,
}

impl Names {
    pub(crate) fn new(lineage: &Lineage) -> Self {
        let sink = segment(&lineage.sink);
        let plain: String = lineage.id.chars().filter(char::is_ascii_alphanumeric).collect();
        // The end of a UUID v7 is its random part.
        let short = plain[plain.len().saturating_sub(12)..].to_owned();
        let own = format!("{sink}/{}", segment(&lineage.id));
        Self { sink, short, own, claim: lineage.claim }
    }

    /// The name of a file to publish. Never used again: claim numbers aren't either.
    pub(crate) fn file(&self, number: u64, extension: &str) -> String {
        format!("{}-{}-{:06}-{number:06}.{extension}", self.sink, self.short, self.claim)
    }

    pub(crate) fn staged_folder(&self) -> String {
        format!("{PRIVATE}/staged/{}", self.own)
    }

    pub(crate) fn staged(&self, number: u64, extension: &str) -> String {
        format!("{}/{:012}-{number:06}.{extension}", self.staged_folder(), self.claim)
    }

    pub(crate) fn manifests(&self) -> String {
        format!("{PRIVATE}/manifests/{}", self.own)
    }

    pub(crate) fn manifest(&self, epoch: Epoch) -> String {
        format!("{}/{epoch:012}.{MANIFEST}", self.manifests())
    }

    pub(crate) fn claims(&self) -> String {
        format!("{PRIVATE}/claims/{}", self.own)
    }

    /// The file that stands for this claim. All is in the name, so that it needs no room on a disk
    /// that is full of what the claimant is about to discard.
    pub(crate) fn claim(&self) -> String {
        format!("{}/{:012}", self.claims(), self.claim)
    }
}

/// All manifests of a target.
pub(crate) fn all_manifests() -> String {
    format!("{PRIVATE}/manifests")
}

/// What a manifest's path below the root says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ManifestName {
    pub(crate) sink: String,
    pub(crate) lineage: String,
    pub(crate) epoch: Epoch,
}

impl ManifestName {
    /// `None` for other files.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let mut parts = path.strip_prefix(PRIVATE)?.strip_prefix("/manifests/")?.split('/');
        let (sink, lineage, name) = (parts.next()?, parts.next()?, parts.next()?);
        let epoch = name.strip_suffix(MANIFEST)?.strip_suffix('.')?.parse().ok()?;
        parts.next().is_none().then(|| Self { sink: plain(sink), lineage: plain(lineage), epoch })
    }
}

/// The claim number in the path of a staged file or a claim.
pub(crate) fn claim_of(path: &str) -> Option<u64> {
    path.rsplit('/').next()?.split('-').next()?.parse().ok()
}

/// One `column=value` folder.
///
/// # Errors
/// `Data` if the name gets longer than file systems allow.
pub(crate) fn partition_folder(column: &str, value: Option<&str>) -> Result<String> {
    let value = match value {
        None => NULL_PARTITION.to_owned(),
        // The text itself is not NULL: readers compare before they decode.
        Some(NULL_PARTITION) => format!("%5F{}", &NULL_PARTITION[1..]),
        Some(value) => utf8_percent_encode(value, RESERVED).to_string(),
    };
    let folder = format!("{}={value}", utf8_percent_encode(column, RESERVED));
    if folder.len() > LONGEST_NAME {
        return Err(Error::data("a value of a partition column is too long for a folder's name")
            .with("column", column)
            .remedy("partition by a shorter column"));
    }
    Ok(folder)
}

/// Any text as one name that no reader takes for a hidden file.
fn segment(text: &str) -> String {
    let encoded = utf8_percent_encode(text, RESERVED).to_string();
    match encoded.as_bytes().first() {
        Some(b'_') => format!("%5F{}", &encoded[1..]),
        Some(b'.') => format!("%2E{}", &encoded[1..]),
        Some(_) => encoded,
        None => "%00".to_owned(),
    }
}

fn plain(segment: &str) -> String {
    if segment == "%00" {
        return String::new();
    }
    percent_encoding::percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(id: &str, sink: &str) -> Lineage {
        Lineage { id: id.into(), sink: sink.into(), generation: 1, claim: 7, run: "run".into() }
    }

    #[test]
    fn a_template_is_cut_before_the_stream() {
        let plain = Template::new("out/dir");
        assert_eq!((plain.root.as_str(), plain.folder("x").as_str()), ("out/dir", ""));
        let by_stream = Template::new("s3://b/raw/v1-{stream}/all/");
        assert_eq!(by_stream.root, "s3://b/raw/");
        assert_eq!(by_stream.folder("a/b"), "v1-a%2Fb/all/");
        assert_eq!(Template::new("{stream}").root, ".");
        assert_eq!(Template::new("/{stream}").root, "/");
    }

    #[test]
    fn a_manifest_name_is_read_back() {
        for (id, sink) in [("0192-ab", "out"), ("a/b ü", "_x"), ("l", ".."), ("", "")] {
            let names = Names::new(&lineage(id, sink));
            let parsed = ManifestName::parse(&names.manifest(12));
            assert_eq!(parsed, Some(ManifestName { sink: sink.into(), lineage: id.into(), epoch: 12 }));
            assert_eq!(ManifestName::parse(&names.claim()), None);
            assert_eq!(claim_of(&names.claim()), Some(7));
            assert_eq!(claim_of(&names.staged(3, "part")), Some(7));
        }
    }

    #[test]
    fn names_are_not_hidden_and_not_folders() {
        for sink in ["_a", ".a", "a/b", "..", ""] {
            let name = Names::new(&lineage("id", sink)).file(1, "csv");
            assert!(!name.starts_with(['_', '.']) && !name.contains('/'), "{name}");
        }
    }

    #[test]
    fn partition_folders_tell_null_from_text() {
        assert_eq!(partition_folder("k", None).unwrap(), "k=__HIVE_DEFAULT_PARTITION__");
        assert_eq!(partition_folder("k", Some(NULL_PARTITION)).unwrap(), "k=%5F_HIVE_DEFAULT_PARTITION__");
        assert_eq!(partition_folder("k", Some("")).unwrap(), "k=");
        assert_eq!(partition_folder("a b", Some("x/ü=%")).unwrap(), "a%20b=x%2F%C3%BC%3D%25");
        assert!(partition_folder("k", Some(&"x".repeat(300))).is_err());
    }
}
