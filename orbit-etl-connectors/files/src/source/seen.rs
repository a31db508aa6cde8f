//! Which files an enumerator has told of, in little room.
//!
//! A position lists every file that was ever told of, so that none is read twice, whenever it
//! appears. Of each it holds 120 bits of hashes in 20 characters: a million files are 20 MB, which the
//! engine keeps as one blob beside its log. That two of a million files have one name's hash is less
//! likely than one in eight thousand million, and even then both must have one version's hash for a file
//! to be left out.

use std::collections::BTreeMap;

use orbit_etl_core::{Error, Position, Result};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::list::FileEntry;

const NAME: usize = 9;
const VERSION: usize = 6;
/// Characters of one file in a position, of six bits each.
const WIDTH: usize = (NAME + VERSION) * 8 / 6;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The enumerator's own position.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    files: BTreeMap<[u8; NAME], [u8; VERSION]>,
    /// A file of which only the beginning has been told of: up to this byte.
    pub(crate) part: Option<(String, u64)>,
}

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Never,
    /// In this version.
    Same,
    /// In another version.
    Changed,
}

/// A position as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// How many files.
    count: usize,
    /// Their hashes, one behind the other.
    files: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    part: Option<(String, u64)>,
}

impl Seen {
    pub(crate) fn from_position(position: Option<&Position>) -> Result<Self> {
        let Some(Position(value)) = position else { return Ok(Self::default()) };
        let unreadable = || {
            Error::config("the list of files seen can't be read")
                .remedy("it belongs to another version; start over with a new state directory")
        };
        let written = Written::deserialize(value).map_err(|e| unreadable().caused_by(e))?;
        let files = decode(written.files.as_bytes()).filter(|files| files.len() == written.count);
        Ok(Self { files: files.ok_or_else(unreadable)?, part: written.part })
    }

    pub(crate) fn to_position(&self) -> Result<Position> {
        let written =
            Written { count: self.files.len(), files: encode(&self.files), part: self.part.clone() };
        serde_json::to_value(written)
            .map(Position)
            .map_err(|e| Error::internal("the list of files seen can't be written").caused_by(e))
    }

    pub(crate) fn know(&self, file: &FileEntry) -> Known {
        match self.files.get(&name(file)) {
            None => Known::Never,
            Some(known) if *known == version(file) => Known::Same,
            Some(_) => Known::Changed,
        }
    }

    pub(crate) fn add(&mut self, file: &FileEntry) {
        self.files.insert(name(file), version(file));
    }

    /// Whether only the beginning of a file was told of.
    pub(crate) fn is_partly_told(&self, file: &FileEntry) -> bool {
        self.part.as_ref().is_some_and(|(key, _)| *key == file.key)
    }
}

fn name(file: &FileEntry) -> [u8; NAME] {
    first(file.key.as_bytes())
}

fn version(file: &FileEntry) -> [u8; VERSION] {
    first(file.fingerprint().as_bytes())
}

/// The first bytes of a hash.
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let hash = xxh3_128(bytes).to_be_bytes();
    std::array::from_fn(|i| hash[i])
}

fn encode(files: &BTreeMap<[u8; NAME], [u8; VERSION]>) -> String {
    let mut text = String::with_capacity(files.len() * WIDTH);
    for (name, version) in files {
        let bytes = name.iter().chain(version);
        let bits = bytes.fold(0_u128, |bits, byte| (bits << 8) | u128::from(*byte));
        for place in (0..WIDTH).rev() {
            text.push(char::from(ALPHABET[(bits >> (place * 6)) as usize & 63]));
        }
    }
    text
}

fn decode(text: &[u8]) -> Option<BTreeMap<[u8; NAME], [u8; VERSION]>> {
    let mut places = [None; 256];
    for (place, character) in (0_u128..).zip(ALPHABET) {
        places[usize::from(*character)] = Some(place);
    }
    let files = text.chunks(WIDTH).map(|file| {
        let bits = file.iter().try_fold(0_u128, |bits, c| Some((bits << 6) | places[usize::from(*c)]?))?;
        let bytes = bits.to_be_bytes();
        let bytes = &bytes[bytes.len() - NAME - VERSION..];
        Some((bytes[..NAME].try_into().ok()?, bytes[NAME..].try_into().ok()?))
    });
    if text.len().is_multiple_of(WIDTH) { files.collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(key: usize, size: u64) -> FileEntry {
        let key = format!("/data/lake/year=2024/month={}/part-{key:09}.csv", key % 12);
        FileEntry {
            name: key.clone(),
            key,
            size,
            stamp: "1700000000.000000001".into(),
            partitions: Vec::new(),
        }
    }

    #[test]
    fn files_are_known_again_after_json() {
        let mut seen = Seen { part: Some(("/data/x.csv".into(), 17)), ..Seen::default() };
        (0..1_000).for_each(|n| seen.add(&file(n, 5)));
        let position = serde_json::to_string(&seen.to_position().unwrap()).unwrap();
        assert!(position.len() < 1_000 * 20 + 100, "{} bytes", position.len());
        let seen = Seen::from_position(Some(&serde_json::from_str(&position).unwrap())).unwrap();
        assert!((0..1_000).all(|n| seen.know(&file(n, 5)) == Known::Same));
        assert!((0..1_000).all(|n| seen.know(&file(n, 6)) == Known::Changed));
        assert!((1_000..9_000).all(|n| seen.know(&file(n, 5)) == Known::Never));
        assert_eq!(seen.part, Some(("/data/x.csv".into(), 17)));
    }

    #[test]
    fn a_list_that_is_cut_or_foreign_is_refused() {
        let mut seen = Seen::default();
        seen.add(&file(1, 5));
        let Position(whole) = seen.to_position().unwrap();
        for (key, value) in [
            ("files", "".into()),
            ("files", "short".into()),
            ("files", "?".repeat(20).into()),
            ("count", 2.into()),
            ("colour", "red".into()),
        ] {
            let mut position = whole.clone();
            position[key] = value;
            let error = Seen::from_position(Some(&Position(position))).unwrap_err();
            assert_eq!(error.kind(), orbit_etl_core::ErrorKind::Config, "{key}");
        }
    }
}
