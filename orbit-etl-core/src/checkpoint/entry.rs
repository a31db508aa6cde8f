//! The form of one log entry: a line of header, the body as one line of JSON, a closing line.

use object_store::path::Path;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::error::{Error, Result};

/// The version of the form of entries and bodies that this build reads and writes.
pub(super) const VERSION: u32 = 1;

/// Entries end with this.
const SUFFIX: &str = ".json";

const CLOSE: &[u8] = b"\n}\n";

/// What an entry is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// A run has taken over; the body is that of the entry before.
    Claim,
    /// An epoch has ended.
    Checkpoint,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u32,
    number: u64,
    kind: Kind,
    run: String,
    pipeline: String,
    hash: String,
}

/// Reads the version alone, whatever else there is.
#[derive(Deserialize)]
pub(super) struct Versioned {
    pub(super) version: u32,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) run: String,
    pub(super) pipeline: String,
    /// JSON in one line.
    pub(super) body: bytes::Bytes,
}

impl Entry {
    /// The entry as it is stored. The hash covers every other byte, so equal bytes are the same
    /// entry of the same run.
    pub(super) fn render(&self) -> Vec<u8> {
        let hash = format!("{:032x}", xxh3_128(&self.render_with("")));
        self.render_with(&hash)
    }

    fn render_with(&self, hash: &str) -> Vec<u8> {
        // Strings and numbers: the writer can't fail, and Value's own Display needs no Result.
        let text = |s: &str| serde_json::Value::from(s).to_string();
        let kind = match self.kind {
            Kind::Claim => "claim",
            Kind::Checkpoint => "checkpoint",
        };
        let mut bytes = format!(
            "{{\"version\":{VERSION},\"number\":{},\"kind\":\"{kind}\",\"run\":{},\"pipeline\":{},\"hash\":\"{hash}\",\"body\":\n",
            self.number,
            text(&self.run),
            text(&self.pipeline),
        )
        .into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes.extend_from_slice(CLOSE);
        bytes
    }

    /// Reads what is stored at `path` under `number`.
    ///
    /// # Errors
    /// Another version, or bytes that don't hold together: never taken for an older entry.
    pub(super) fn parse(bytes: &bytes::Bytes, number: u64, path: &Path) -> Result<Self> {
        let damaged = |what: &str| {
            Error::data(format!("the newest entry of the checkpoint log can't be read: {what}"))
                .with("entry", path)
                .remedy(
                    "restore the file from a backup; or begin a new state directory, which reads the \
                     sources from the start",
                )
        };
        let Some(line) = bytes.iter().position(|b| *b == b'\n') else {
            return Err(damaged("it has no header line"));
        };
        let mut header = bytes[..line].to_vec();
        header.truncate(header.len().saturating_sub(b",\"body\":".len()));
        header.push(b'}');
        let version: Versioned =
            serde_json::from_slice(&header).map_err(|_| damaged("its header is no JSON"))?;
        check_version(version.version).map_err(|e| e.with("entry", path))?;
        let header: Header =
            serde_json::from_slice(&header).map_err(|_| damaged("its header is incomplete"))?;
        if !bytes.ends_with(CLOSE) || bytes.len() < line + 1 + CLOSE.len() {
            return Err(damaged("its end is missing"));
        }
        let entry = Self {
            number: header.number,
            kind: header.kind,
            run: header.run,
            pipeline: header.pipeline,
            body: bytes.slice(line + 1..bytes.len() - CLOSE.len()),
        };
        if entry.render() != *bytes {
            return Err(damaged("its hash is wrong"));
        }
        if entry.number != number {
            return Err(damaged("it says another number than its name"));
        }
        Ok(entry)
    }
}

/// Refuses what another version of the engine has written.
pub(super) fn check_version(found: u32) -> Result<()> {
    if found == VERSION {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "the checkpoint has version {found}, and this build of Orbit reads version {VERSION}"
    ))
    .with("version", found)
    .remedy("run the pipeline with the Orbit release that wrote it, or a newer one"))
}

/// Where the entry of that number is stored.
pub(super) fn entry_path(prefix: &Path, number: u64) -> Path {
    prefix.clone().join(format!("{number:020}{SUFFIX}"))
}

/// The number of the entry with that file name; `None` for a file that is no entry.
pub(super) fn entry_number(filename: &str) -> Option<u64> {
    let digits = filename.strip_suffix(SUFFIX)?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}
