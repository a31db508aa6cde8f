//! Reading files.

mod any_text;
mod exact;
pub(super) mod formats;
mod long;
mod paths;
mod rejects;
mod schemas;
mod splits;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::util::pretty::pretty_format_batches;
use futures::{StreamExt as _, TryStreamExt as _};
use orbit_etl_connector_files::FilesSource;
use orbit_etl_core::{
    Context, Payload, Position, Reject, Result, ScanRequest, Source, SourceEvent, Split, StreamId,
};

/// All that one reading yields.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) batches: Vec<RecordBatch>,
    pub(super) rejects: Vec<Reject>,
    /// Positions, and how many rows and rejects came before each.
    pub(super) positions: Vec<(Position, usize, usize)>,
}

impl Read {
    pub(super) fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    pub(super) fn all(&self, schema: &SchemaRef) -> RecordBatch {
        concat_batches(schema, &self.batches).unwrap()
    }

    pub(super) fn table(&self) -> String {
        pretty_format_batches(&self.batches).unwrap().to_string()
    }

    /// The payloads of the rejects as text.
    pub(super) fn raw(&self) -> Vec<String> {
        self.rejects
            .iter()
            .map(|reject| match &reject.payload {
                Payload::Raw(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                Payload::Rows(_) => panic!("a source rejects raw bytes"),
            })
            .collect()
    }
}

pub(super) fn context() -> Context {
    Context::standalone("in").unwrap()
}

pub(super) async fn schema(source: &FilesSource) -> Result<SchemaRef> {
    Ok(source.streams(&context()).await?.remove(0).schema)
}

pub(super) async fn splits(
    source: &FilesSource,
    after: Option<&Position>,
) -> Result<(Vec<Split>, Option<Position>)> {
    let changes: Vec<_> = source.splits(&context(), after).await?.try_collect().await?;
    let position = changes.last().map(|c| c.position.clone());
    Ok((changes.into_iter().flat_map(|c| c.added).collect(), position))
}

pub(super) async fn read_split(
    source: &FilesSource,
    cx: &Context,
    split: &Split,
    after: Option<&Position>,
    scan: &ScanRequest,
) -> Result<Read> {
    let mut events = source.open(cx, split, after, std::slice::from_ref(scan)).await?;
    let mut read = Read::default();
    let mut finished = false;
    while let Some(event) = events.next().await {
        assert!(!finished, "nothing comes after the end");
        let position = match event? {
            SourceEvent::Batch { batch, position, .. } => {
                read.batches.push(batch);
                position
            }
            SourceEvent::Rejects { rejects, position } => {
                read.rejects.extend(rejects);
                position
            }
            SourceEvent::Progress(position) => Some(position),
            SourceEvent::Finished => {
                finished = true;
                None
            }
            other => panic!("{other:?}"),
        };
        if let Some(position) = position {
            let so_far = (read.rows(), read.rejects.len());
            read.positions.push((position, so_far.0, so_far.1));
        }
    }
    assert!(finished, "a split ends with its end");
    Ok(read)
}

pub(super) async fn read_with(source: &FilesSource, scan: &ScanRequest) -> Result<Read> {
    let cx = context();
    let mut all = Read::default();
    source.streams(&cx).await?;
    for split in splits(source, None).await?.0 {
        let read = read_split(source, &cx, &split, None, scan).await?;
        all.batches.extend(read.batches);
        all.rejects.extend(read.rejects);
    }
    Ok(all)
}

pub(super) async fn read(source: &FilesSource) -> Result<Read> {
    read_with(source, &ScanRequest::all(StreamId(0), 1_000)).await
}

/// Opening each split after each of its positions yields what came after it.
pub(super) async fn assert_exact(source: &FilesSource, batch_rows: usize) {
    let cx = context();
    let schema = source.streams(&cx).await.unwrap().remove(0).schema;
    let scan = ScanRequest::all(StreamId(0), batch_rows);
    for split in splits(source, None).await.unwrap().0 {
        let whole = read_split(source, &cx, &split, None, &scan).await.unwrap();
        let rows = whole.all(&schema);
        assert!(whole.rows() == 0 || !whole.positions.is_empty());
        for (position, before, rejected) in &whole.positions {
            // A position survives its way through JSON.
            let position: Position = serde_json::from_str(&serde_json::to_string(position).unwrap()).unwrap();
            let rest = read_split(source, &cx, &split, Some(&position), &scan).await.unwrap();
            assert_eq!(rest.all(&schema), rows.slice(*before, rows.num_rows() - before), "{position}");
            let places = |rejects: &[Reject]| {
                rejects.iter().map(|r| r.origin.place.clone().unwrap()).collect::<Vec<_>>()
            };
            assert_eq!(places(&rest.rejects), places(&whole.rejects[*rejected..]), "{position}");
        }
    }
}
