//! A state as the body of an entry: JSON of bounded size, with large parts left out into blobs.
//!
//! A state is cut into pieces: a source's position, runs of its splits, key groups, runs of what is
//! pending. Runs end where a hash of an item's name says so, thus an item that comes or goes changes
//! one piece and leaves the others as they were. A piece that the checkpoint before had in a blob,
//! with the same bytes, is named again and not written. Of the others the largest become blobs until
//! the rest is small.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::entry::{VERSION, Versioned, check_version};
use super::state::{NodeCounts, Pending, SinkMark, SourceState, SplitState, State, present};
use crate::error::{Error, Result};
use crate::event::Position;
use crate::transform::OperatorState;

/// The size that a body never exceeds.
pub(super) const BODY_LIMIT: usize = 512 << 10;

/// How much of a state is written again with every checkpoint rather than kept in blobs.
const INLINE_LIMIT: usize = 128 << 10;

/// A piece below this isn't worth a blob.
const BLOB_MIN: usize = 1 << 10;

/// Below this an operator's key groups are kept together.
const GROUPS_TOGETHER: usize = 64 << 10;

/// About so many runs a long list is cut into.
const RUNS: usize = 64;

/// Runs have at least about so many items.
const RUN_MIN: usize = 128;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body<'a> {
    version: u32,
    lineage: Cow<'a, str>,
    generation: u64,
    complete: bool,
    epoch: u64,
    checkpoint_in: Option<Cow<'a, str>>,
    sinks: Cow<'a, BTreeMap<String, SinkMark>>,
    sources: BTreeMap<Cow<'a, str>, Source<'a>>,
    operators: BTreeMap<Cow<'a, str>, Operator<'a>>,
    pending: Vec<Part<Cow<'a, [Pending]>>>,
    totals: Cow<'a, BTreeMap<String, NodeCounts>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source<'a> {
    ended: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enumerator: Option<Part<Enumerator<'a>>>,
    splits: Vec<Part<Cow<'a, [SplitState]>>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Enumerator<'a> {
    #[serde(deserialize_with = "present_ref")]
    position: Option<Cow<'a, Position>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Operator<'a> {
    Together(Part<Groups<'a>>),
    Groups(BTreeMap<u16, Part<Hex<'a>>>),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Groups<'a>(BTreeMap<u16, Hex<'a>>);

/// Bytes as JSON.
#[derive(Debug)]
struct Hex<'a>(Cow<'a, [u8]>);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part<T> {
    Inline(T),
    Blob(BlobRef),
}

/// Names a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BlobRef {
    pub(super) name: String,
    pub(super) bytes: u64,
}

/// A name says which claim wrote the blob and what is in it. `serial` counts the checkpoints that
/// the claim has encoded, so no name is used twice, whatever the epoch and the content.
pub(super) fn blob_name(claim: u64, epoch: u64, serial: u64, hash: u128) -> String {
    format!("{claim}-{epoch}-{serial}-{hash:032x}")
}

/// The claim that wrote the blob of that name; `None` if it is no blob's name.
pub(super) fn blob_claim(name: &str) -> Option<u64> {
    let mut fields = name.split('-');
    let claim = fields.next()?.parse().ok()?;
    let (_epoch, _serial): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let hash = fields.next()?;
    (hash.len() == 32 && u128::from_str_radix(hash, 16).is_ok() && fields.next().is_none()).then_some(claim)
}

fn blob_hash(name: &str) -> Option<u128> {
    u128::from_str_radix(name.rsplit('-').next()?, 16).ok()
}

/// The result of [`encode`].
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) json: Bytes,
    /// Blobs that have to be durable before the JSON is.
    pub(super) new: Vec<(BlobRef, Bytes)>,
    /// Every blob that the JSON names.
    pub(super) blobs: BTreeSet<BlobName>,
}

/// A blob's name, in sets.
pub(super) type BlobName = String;

/// Encodes a state. `known` are the blobs that the checkpoint before names, and `name` names a new
/// one after the hash of its content.
///
/// # Errors
/// The state is too large even so.
pub(super) fn encode(
    state: &State,
    known: &BTreeSet<BlobName>,
    name: impl Fn(u128) -> BlobName,
) -> Result<Encoded> {
    let mut pieces = Pieces::default();
    for piece in cut(state) {
        pieces.push(&piece)?;
    }
    let known: HashMap<u128, &BlobName> = known.iter().filter_map(|n| Some((blob_hash(n)?, n))).collect();
    let (places, new) = pieces.place(&known, name);
    let blobs: BTreeSet<BlobName> = places.iter().flatten().map(|b| b.name.clone()).collect();
    let json = assemble(state, places.into_iter())?;
    if json.len() > BODY_LIMIT {
        return Err(Error::resources("the checkpoint is too large, even with its large parts left out")
            .with("bytes", json.len())
            .with("limit", BODY_LIMIT)
            .remedy("use fewer nodes in one pipeline, or split the pipeline"));
    }
    Ok(Encoded { json: json.into(), new, blobs })
}

/// One piece of a state, borrowed.
enum Piece<'a> {
    Enumerator(&'a Position),
    Splits(&'a [SplitState]),
    Together(&'a OperatorState),
    Group(&'a [u8]),
    Pending(&'a [Pending]),
}

/// The pieces of a state, in the order in which [`assemble`] asks for their places.
fn cut(state: &State) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    for source in state.sources.values() {
        pieces.extend(source.enumerator.as_ref().map(Piece::Enumerator));
        pieces.extend(split_runs(source).into_iter().map(|run| Piece::Splits(&source.splits[run])));
    }
    for operator in state.operators.values() {
        if kept_together(operator) {
            pieces.push(Piece::Together(operator));
        } else {
            pieces.extend(operator.groups.values().map(|bytes| Piece::Group(bytes)));
        }
    }
    pieces.extend(pending_runs(state).into_iter().map(|run| Piece::Pending(&state.pending[run])));
    pieces
}

/// The body, given where each piece is: in a blob or, if `None`, inline.
fn assemble(state: &State, mut places: impl Iterator<Item = Option<BlobRef>>) -> Result<Vec<u8>> {
    let mut next = || places.next().flatten();
    let mut sources = BTreeMap::new();
    for (node, source) in &state.sources {
        let enumerator = source
            .enumerator
            .as_ref()
            .map(|p| part(next(), || Enumerator { position: Some(Cow::Borrowed(p)) }));
        let splits = runs(split_runs(source), &source.splits, &mut next);
        sources.insert(Cow::Borrowed(node.as_str()), Source { ended: source.ended, enumerator, splits });
    }
    let mut operators = BTreeMap::new();
    for (node, operator) in &state.operators {
        let encoded = if kept_together(operator) {
            Operator::Together(part(next(), || hex_groups(operator)))
        } else {
            let groups = operator.groups.iter();
            Operator::Groups(
                groups.map(|(g, bytes)| (*g, part(next(), || Hex(Cow::Borrowed(bytes))))).collect(),
            )
        };
        operators.insert(Cow::Borrowed(node.as_str()), encoded);
    }
    let body = Body {
        version: VERSION,
        lineage: Cow::Borrowed(&state.lineage),
        generation: state.generation,
        complete: state.complete,
        epoch: state.epoch,
        checkpoint_in: state.checkpoint_in.as_deref().map(Cow::Borrowed),
        sinks: Cow::Borrowed(&state.sinks),
        sources,
        operators,
        pending: runs(pending_runs(state), &state.pending, &mut next),
        totals: Cow::Borrowed(&state.totals),
    };
    json(&body)
}

fn part<T>(place: Option<BlobRef>, inline: impl FnOnce() -> T) -> Part<T> {
    place.map_or_else(|| Part::Inline(inline()), Part::Blob)
}

/// Neighbouring runs that stay inline are written as one.
fn runs<'a, T: Clone>(
    runs: Vec<Range<usize>>,
    items: &'a [T],
    next: &mut impl FnMut() -> Option<BlobRef>,
) -> Vec<Part<Cow<'a, [T]>>> {
    let mut parts = Vec::new();
    let mut inline = 0..0;
    for run in runs {
        match next() {
            None if inline.is_empty() => inline = run,
            None => inline.end = run.end,
            Some(blob) => {
                if !inline.is_empty() {
                    parts.push(Part::Inline(Cow::Borrowed(&items[inline])));
                }
                inline = 0..0;
                parts.push(Part::Blob(blob));
            }
        }
    }
    if !inline.is_empty() {
        parts.push(Part::Inline(Cow::Borrowed(&items[inline])));
    }
    parts
}

fn kept_together(operator: &OperatorState) -> bool {
    operator.groups.values().map(Vec::len).sum::<usize>() <= GROUPS_TOGETHER
}

fn hex_groups(operator: &OperatorState) -> Groups<'_> {
    Groups(operator.groups.iter().map(|(g, bytes)| (*g, Hex(Cow::Borrowed(bytes)))).collect())
}

fn split_runs(source: &SourceState) -> Vec<Range<usize>> {
    cut_runs(&source.splits, |split| xxh3_64(split.split.id.as_str().as_bytes()))
}

fn pending_runs(state: &State) -> Vec<Range<usize>> {
    cut_runs(&state.pending, |p| xxh3_64(format!("{}/{}/{}", p.sink, p.epoch, p.claim).as_bytes()))
}

/// Cuts after each item whose hash ends in enough zero bits. Twice as many items need one bit more:
/// then every other cut is gone and the rest are where they were.
fn cut_runs<T>(items: &[T], hash: impl Fn(&T) -> u64) -> Vec<Range<usize>> {
    let mask = (items.len() / RUNS).max(RUN_MIN).next_power_of_two() as u64 - 1;
    let mut runs = Vec::new();
    let mut start = 0;
    for (i, item) in items.iter().enumerate() {
        if hash(item) & mask == 0 {
            runs.push(start..i + 1);
            start = i + 1;
        }
    }
    if start < items.len() {
        runs.push(start..items.len());
    }
    runs
}

/// The pieces as bytes.
#[derive(Default)]
struct Pieces {
    bytes: Vec<Vec<u8>>,
    /// How large each is within the body.
    inline: Vec<usize>,
}

impl Pieces {
    fn push(&mut self, piece: &Piece<'_>) -> Result<()> {
        let (bytes, inline) = match piece {
            Piece::Enumerator(position) => {
                let bytes = json(&Enumerator { position: Some(Cow::Borrowed(position)) })?;
                let inline = bytes.len();
                (bytes, inline)
            }
            Piece::Splits(run) => same(json(run)?),
            Piece::Pending(run) => same(json(run)?),
            Piece::Together(operator) => same(json(&hex_groups(operator))?),
            Piece::Group(bytes) => (bytes.to_vec(), bytes.len() * 2),
        };
        self.bytes.push(bytes);
        self.inline.push(inline);
        Ok(())
    }

    /// Decides which pieces are blobs, old or new.
    fn place(
        self,
        known: &HashMap<u128, &BlobName>,
        name: impl Fn(u128) -> BlobName,
    ) -> (Vec<Option<BlobRef>>, Vec<(BlobRef, Bytes)>) {
        let hashes: Vec<u128> = self.bytes.iter().map(|bytes| xxh3_128(bytes)).collect();
        let mut places: Vec<Option<BlobRef>> = hashes
            .iter()
            .zip(&self.bytes)
            .map(|(hash, bytes)| {
                let name = (*known.get(hash)?).clone();
                Some(BlobRef { name, bytes: bytes.len() as u64 })
            })
            .collect();
        let mut rest: Vec<usize> = (0..places.len()).filter(|i| places[*i].is_none()).collect();
        rest.sort_by_key(|i| std::cmp::Reverse(self.inline[*i]));
        let mut left: usize = rest.iter().map(|i| self.inline[*i]).sum();
        let mut new = BTreeMap::new();
        for i in rest {
            if left <= INLINE_LIMIT || self.inline[i] < BLOB_MIN {
                break;
            }
            left -= self.inline[i];
            let blob = BlobRef { name: name(hashes[i]), bytes: self.bytes[i].len() as u64 };
            places[i] = Some(blob.clone());
            new.insert(blob.name.clone(), (blob, i));
        }
        let mut bytes = self.bytes;
        let new = new.into_values().map(|(blob, i)| (blob, std::mem::take(&mut bytes[i]).into())).collect();
        (places, new)
    }
}

fn same(bytes: Vec<u8>) -> (Vec<u8>, usize) {
    let inline = bytes.len();
    (bytes, inline)
}

fn json(value: &(impl Serialize + ?Sized)) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::internal("a state can't be written as JSON").caused_by(e))
}

impl Body<'static> {
    /// Reads a body.
    ///
    /// # Errors
    /// Another version, or not of this form.
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        let versioned: Versioned = serde_json::from_slice(json).map_err(|e| malformed(&e))?;
        check_version(versioned.version)?;
        serde_json::from_slice(json).map_err(|e| malformed(&e))
    }

    /// Minted with the pipeline's first entry.
    pub(super) fn lineage(&self) -> &str {
        &self.lineage
    }

    /// The blobs that it names.
    pub(super) fn blobs(&self) -> Vec<&BlobRef> {
        let mut blobs = Vec::new();
        for source in self.sources.values() {
            blobs.extend(source.enumerator.as_ref().and_then(Part::blob));
            blobs.extend(source.splits.iter().filter_map(Part::blob));
        }
        for operator in self.operators.values() {
            match operator {
                Operator::Together(part) => blobs.extend(part.blob()),
                Operator::Groups(groups) => blobs.extend(groups.values().filter_map(Part::blob)),
            }
        }
        blobs.extend(self.pending.iter().filter_map(Part::blob));
        blobs
    }

    /// Their names.
    pub(super) fn blob_names(&self) -> BTreeSet<BlobName> {
        self.blobs().into_iter().map(|b| b.name.clone()).collect()
    }

    /// The state, given the content of every blob.
    ///
    /// # Errors
    /// A blob is missing or has another content than it had.
    pub(super) fn into_state(self, blobs: &HashMap<BlobName, Bytes>) -> Result<State> {
        let mut sources = BTreeMap::new();
        for (node, source) in self.sources {
            let enumerator = match source.enumerator {
                Some(part) => part.resolve(blobs)?.position.map(Cow::into_owned),
                None => None,
            };
            let splits = joined(source.splits, blobs)?;
            sources.insert(node.into_owned(), SourceState { enumerator, splits, ended: source.ended });
        }
        let mut operators = BTreeMap::new();
        for (node, operator) in self.operators {
            let groups = match operator {
                Operator::Together(part) => {
                    part.resolve(blobs)?.0.into_iter().map(|(g, hex)| (g, hex.0.into_owned())).collect()
                }
                Operator::Groups(groups) => {
                    let bytes = |part| match part {
                        Part::Inline(Hex(bytes)) => Ok(bytes.into_owned()),
                        Part::Blob(blob) => content(&blob, blobs).map(|b| b.to_vec()),
                    };
                    groups.into_iter().map(|(g, part)| Ok((g, bytes(part)?))).collect::<Result<_>>()?
                }
            };
            operators.insert(node.into_owned(), OperatorState { groups });
        }
        Ok(State {
            lineage: self.lineage.into_owned(),
            generation: self.generation,
            complete: self.complete,
            epoch: self.epoch,
            sources,
            operators,
            pending: joined(self.pending, blobs)?,
            totals: self.totals.into_owned(),
            checkpoint_in: self.checkpoint_in.map(Cow::into_owned),
            sinks: self.sinks.into_owned(),
        })
    }
}

impl<T> Part<T> {
    fn blob(&self) -> Option<&BlobRef> {
        match self {
            Self::Inline(_) => None,
            Self::Blob(blob) => Some(blob),
        }
    }
}

impl<T: for<'de> Deserialize<'de>> Part<T> {
    fn resolve(self, blobs: &HashMap<BlobName, Bytes>) -> Result<T> {
        match self {
            Self::Inline(value) => Ok(value),
            Self::Blob(blob) => serde_json::from_slice(&content(&blob, blobs)?)
                .map_err(|e| malformed(&e).with("blob", blob.name)),
        }
    }
}

fn joined<T: Clone + for<'de> Deserialize<'de>>(
    parts: Vec<Part<Cow<'static, [T]>>>,
    blobs: &HashMap<BlobName, Bytes>,
) -> Result<Vec<T>> {
    let mut items = Vec::new();
    for part in parts {
        items.append(&mut part.resolve(blobs)?.into_owned());
    }
    Ok(items)
}

fn content(blob: &BlobRef, blobs: &HashMap<BlobName, Bytes>) -> Result<Bytes> {
    let damaged = |what: &str| {
        Error::data(format!("a part of the checkpoint {what}")).with("blob", &blob.name).remedy(
            "restore the file from a backup; or begin a new state directory, which reads the sources from \
             the start",
        )
    };
    let bytes = blobs.get(&blob.name).ok_or_else(|| damaged("is missing"))?;
    if blob_hash(&blob.name) == Some(xxh3_128(bytes)) {
        Ok(bytes.clone())
    } else {
        Err(damaged("is damaged"))
    }
}

/// The position of the error, without what stands there.
fn malformed(error: &serde_json::Error) -> Error {
    Error::data("the checkpoint isn't of the form that this build of Orbit writes")
        .with("line", error.line())
        .with("column", error.column())
        .remedy("run the pipeline with the Orbit release that wrote it")
}

fn present_ref<'de, 'a, D: Deserializer<'de>>(from: D) -> Result<Option<Cow<'a, Position>>, D::Error> {
    Ok(present(from)?.map(Cow::Owned))
}

impl Serialize for Hex<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
        let text: String = self.0.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect();
        to.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Hex<'_> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <Cow<'de, str>>::deserialize(from)?;
        let nibble = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let bytes: Option<Vec<u8>> =
            pairs.iter().map(|[high, low]| Some(nibble(*high)? << 4 | nibble(*low)?)).collect();
        match bytes {
            Some(bytes) if rest.is_empty() => Ok(Self(Cow::Owned(bytes))),
            _ => Err(serde::de::Error::custom("bytes in hexadecimal were expected")),
        }
    }
}
