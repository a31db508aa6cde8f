//! Dead letters as a source: the rows and records that they hold.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type, SchemaRef, UInt64Type};
use arrow::ipc::reader::StreamReader;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};

use crate::connector::{Connector, ConnectorInfo, Health, StreamInfo};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Origin, Payload, Position, Reject, SourceEvent, SplitId, StreamId};
use crate::source::{Replay, ScanRequest, Source, Split, SplitChange};

/// What an Arrow IPC stream begins with.
const ARROW: [u8; 4] = [0xff; 4];

/// Reads the letters of one node that were tried so many times. Its positions are those of the source
/// that reads the letters, so that it goes on behind those it has given out.
#[derive(Debug, Clone)]
pub(crate) struct LetterSource {
    letters: Arc<dyn Source>,
    wanted: Wanted,
    reading: Reading,
}

/// How letters become rows.
#[derive(Debug, Clone)]
pub(crate) enum Reading {
    /// They hold rows.
    Rows,
    /// They hold records that this source understands.
    Records(Arc<dyn Source>),
}

#[derive(Debug, Clone)]
struct Wanted {
    node: String,
    attempt: i32,
    /// Those of the rows.
    streams: Vec<StreamInfo>,
}

impl LetterSource {
    pub(crate) fn new(
        letters: Arc<dyn Source>,
        node: &str,
        attempt: i32,
        streams: Vec<StreamInfo>,
        reading: Reading,
    ) -> Self {
        Self { letters, wanted: Wanted { node: node.to_owned(), attempt, streams }, reading }
    }

    async fn events(&self, cx: &Context, event: SourceEvent) -> Result<Vec<SourceEvent>> {
        let (batch, position) = match event {
            SourceEvent::Batch { batch, position, .. } => (batch, position),
            SourceEvent::Rejects { .. } => {
                return Err(Error::data("a dead letter can't be read")
                    .remedy("look for a file that was changed where the dead letters lie"));
            }
            SourceEvent::Progress(position) => return Ok(vec![SourceEvent::Progress(position)]),
            SourceEvent::Finished => return Ok(vec![SourceEvent::Finished]),
            // What comes out of here has the schemas of the pipeline.
            SourceEvent::Schema { .. } | SourceEvent::Watermark { .. } => return Ok(Vec::new()),
        };
        let letters = self.wanted.take(&batch)?;
        let mut events = Vec::new();
        match &self.reading {
            _ if letters.is_empty() => {}
            Reading::Records(source) => events = source.decode(cx, letters).await?,
            Reading::Rows => {
                let mut rejects = Vec::new();
                for letter in letters {
                    match self.wanted.rows(letter) {
                        Ok((stream, batch)) => {
                            events.push(SourceEvent::Batch { stream, batch, position: None });
                        }
                        Err(reject) => rejects.push(*reject),
                    }
                }
                if !rejects.is_empty() {
                    events.push(SourceEvent::Rejects { rejects, position: None });
                }
            }
        }
        events.extend(position.map(SourceEvent::Progress));
        Ok(events)
    }
}

impl Wanted {
    /// The letters of this node and attempt, as the rejects that they were.
    fn take(&self, batch: &RecordBatch) -> Result<Vec<Reject>> {
        let texts = |name: &str| column(batch, name, &DataType::Utf8);
        let (nodes, kinds, messages) = (texts("node")?, texts("kind")?, texts("message")?);
        let [streams, splits, places, positions, records] =
            [texts("stream")?, texts("split")?, texts("place")?, texts("position")?, texts("text")?];
        let attempts = column(batch, "attempt", &DataType::Int32)?;
        let rows = column(batch, "rows", &DataType::UInt64)?;
        let payloads = payloads(batch)?;
        let text = |array: &ArrayRef, i: usize| {
            let array = array.as_string::<i32>();
            array.is_valid(i).then(|| array.value(i).to_owned())
        };
        let mut found = Vec::new();
        for (i, payload) in payloads.iter().enumerate() {
            let mine = text(&nodes, i).is_some_and(|node| node == self.node)
                && attempts.as_primitive::<Int32Type>().value(i) == self.attempt;
            if !mine {
                continue;
            }
            let payload = match payload {
                Some(bytes) => match rows_of(bytes) {
                    Some(rows) => Payload::Rows(rows),
                    None => Payload::Raw(Bytes::copy_from_slice(bytes)),
                },
                None => Payload::Raw(text(&records, i).unwrap_or_default().into()),
            };
            found.push(Reject {
                kind: text(&kinds, i).and_then(|kind| ErrorKind::named(&kind)).unwrap_or(ErrorKind::Data),
                message: text(&messages, i).unwrap_or_default(),
                payload,
                rows: rows.as_primitive::<UInt64Type>().value(i).max(1),
                origin: Origin {
                    stream: text(&streams, i),
                    split: text(&splits, i).map(SplitId::new),
                    place: text(&places, i),
                    position: text(&positions, i)
                        .and_then(|position| serde_json::from_str(&position).ok())
                        .map(Position),
                },
            });
        }
        Ok(found)
    }

    /// The rows of a letter in a stream of the pipeline; the letter again if they don't fit any more.
    fn rows(&self, letter: Reject) -> Result<(StreamId, RecordBatch), Box<Reject>> {
        let at = match self.streams.len() {
            1 => Some(0),
            _ => self.streams.iter().position(|stream| Some(&stream.name) == letter.origin.stream.as_ref()),
        };
        let fitting = match (&letter.payload, at) {
            (Payload::Rows(rows), Some(at)) => fit(rows, &self.streams[at].schema).map(|rows| (at, rows)),
            _ => None,
        };
        match fitting {
            Some((at, rows)) => Ok((StreamId(at), rows)),
            None => Err(Box::new(Reject {
                kind: ErrorKind::Schema,
                message: "the rows of this letter don't have the columns that its node reads now".into(),
                ..letter
            })),
        }
    }
}

/// The columns of the schema, by name.
fn fit(rows: &RecordBatch, schema: &SchemaRef) -> Option<RecordBatch> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| {
            let column = rows.column_by_name(field.name())?;
            let fits =
                column.data_type() == field.data_type() && (field.is_nullable() || column.null_count() == 0);
            fits.then(|| Arc::clone(column))
        })
        .collect::<Option<Vec<_>>>()?;
    RecordBatch::try_new(Arc::clone(schema), columns).ok()
}

fn rows_of(bytes: &[u8]) -> Option<RecordBatch> {
    if !bytes.starts_with(&ARROW) {
        return None;
    }
    let mut batches = StreamReader::try_new(Cursor::new(bytes), None).ok()?;
    batches.next()?.ok()
}

/// A column of the letters, whatever the place where they lie has made of its type.
fn column(batch: &RecordBatch, name: &str, kind: &DataType) -> Result<ArrayRef> {
    let Some(column) = batch.column_by_name(name) else {
        return Err(Error::schema("what lies there are no dead letters").with("column", name));
    };
    cast(column, kind)
        .map_err(|e| Error::schema("what lies there are no dead letters").with("column", name).caused_by(e))
}

/// The exact bytes; formats of text have them in hexadecimal.
fn payloads(batch: &RecordBatch) -> Result<Vec<Option<Vec<u8>>>> {
    let broken = || Error::data("the payload of a dead letter is broken");
    let Some(exact) = batch.column_by_name("payload") else {
        return Err(Error::schema("what lies there are no dead letters").with("column", "payload"));
    };
    if matches!(exact.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
        let texts = column(batch, "payload", &DataType::Utf8)?;
        let texts = texts.as_string::<i32>().iter();
        return texts.map(|text| text.map(|t| from_hex(t).ok_or_else(broken)).transpose()).collect();
    }
    let bytes = column(batch, "payload", &DataType::Binary)?;
    Ok(bytes.as_binary::<i32>().iter().map(|bytes| bytes.map(<[u8]>::to_vec)).collect())
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[async_trait]
impl Connector for LetterSource {
    fn info(&self) -> ConnectorInfo {
        let letters = self.letters.info();
        let summary = format!("dead letters of {} in {}", self.wanted.node, letters.summary);
        ConnectorInfo::new(letters.type_tag, summary).with_local(letters.local)
    }

    fn validate(&self) -> Result<()> {
        self.letters.validate()
    }

    async fn health(&self, cx: &Context) -> Result<Health> {
        self.letters.health(cx).await
    }

    async fn connect(&self, cx: &Context) -> Result<()> {
        self.letters.connect(cx).await?;
        match &self.reading {
            Reading::Records(source) => source.connect(cx).await,
            Reading::Rows => Ok(()),
        }
    }

    async fn disconnect(&self, cx: &Context) -> Result<()> {
        let letters = self.letters.disconnect(cx).await;
        match &self.reading {
            Reading::Records(source) => letters.and(source.disconnect(cx).await),
            Reading::Rows => letters,
        }
    }
}

#[async_trait]
impl Source for LetterSource {
    async fn streams(&self, cx: &Context) -> Result<Vec<StreamInfo>> {
        self.letters.streams(cx).await?;
        let streams = match &self.reading {
            Reading::Records(source) => source.streams(cx).await?,
            Reading::Rows => self.wanted.streams.clone(),
        };
        Ok(streams.into_iter().map(|stream| stream.with_bounded(true)).collect())
    }

    fn replay(&self) -> Replay {
        self.letters.replay()
    }

    async fn splits(
        &self,
        cx: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        self.letters.splits(cx, after).await
    }

    async fn open(
        &self,
        cx: &Context,
        split: &Split,
        after: Option<&Position>,
        _: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
        let all = [ScanRequest::all(StreamId(0), cx.batch_rows())];
        let events = self.letters.open(cx, split, after, &all).await?;
        let (source, cx) = (self.clone(), cx.clone());
        Ok(events
            .and_then(move |event| {
                let (source, cx) = (source.clone(), cx.clone());
                async move { source.events(&cx, event).await }
            })
            .map_ok(|events| stream::iter(events.into_iter().map(Ok)))
            .try_flatten()
            .boxed())
    }

    async fn acknowledge(&self, cx: &Context, upto: &[(SplitId, Position)]) -> Result<()> {
        self.letters.acknowledge(cx, upto).await
    }
}
