//! Parquet: row groups, pruning by statistics, positions by physical rows.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion_common::ScalarValue;
use datafusion_expr::Expr;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use orbit_etl_core::{Error, ErrorKind, Position, Result, SourceEvent, StreamId};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection, RowSelector};
use parquet::arrow::async_reader::{ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;
use serde::{Deserialize, Serialize};

use super::adapt::Adapt;
use super::chunks::{Chunks, broken};
use super::input::changed;
use super::list::FileEntry;
use super::open::{Opening, finished};
use super::prune::{Bounds, Known, columns, may_match};
use crate::location::Location;

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct RowPosition {
    /// Rows of the split passed, pruned ones too.
    row: u64,
}

/// The columns of a file. Texts and bytes come as views, which is how Parquet decodes fastest.
pub(crate) async fn schema(location: &Location, file: &FileEntry) -> Result<SchemaRef> {
    let mut reader = Chunks::open(location, file)?;
    let metadata = metadata(&mut reader, file, false).await?;
    let fields: Vec<_> = metadata
        .schema()
        .fields()
        .iter()
        .map(|field| match field.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 => {
                Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View))
            }
            DataType::Binary | DataType::LargeBinary => {
                Arc::new(field.as_ref().clone().with_data_type(DataType::BinaryView))
            }
            _ => Arc::clone(field),
        })
        .collect();
    Ok(Arc::new(Schema::new(fields)))
}

/// Runs of row groups of at least `size` compressed bytes: first, behind the last, bytes.
pub(crate) async fn parts(
    location: &Location,
    file: &FileEntry,
    size: u64,
) -> Result<Vec<(usize, usize, u64)>> {
    let mut reader = Chunks::open(location, file)?;
    let metadata = metadata(&mut reader, file, false).await?;
    let groups = metadata.metadata().row_groups();
    let mut parts = Vec::new();
    let (mut from, mut bytes) = (0, 0);
    for (index, group) in groups.iter().enumerate() {
        bytes += u64::try_from(group.compressed_size()).unwrap_or(0);
        if bytes >= size || index + 1 == groups.len() {
            parts.push((from, index + 1, bytes));
            (from, bytes) = (index + 1, 0);
        }
    }
    Ok(parts)
}

/// Opens the row groups of a split.
pub(crate) async fn open(opening: &Opening<'_>) -> Result<BoxStream<'static, Result<SourceEvent>>> {
    let file = &opening.payload.file;
    let mut reader = Chunks::open(&opening.location, file)?.reserving(opening.cx);
    let metadata = metadata(&mut reader, file, !opening.scan.filters.is_empty()).await?;
    let metadata = with_stream_types(&metadata, &opening.resolved.schema, file)?;
    let found: Vec<_> = metadata
        .schema()
        .fields()
        .iter()
        .map(|field| (field.name().clone(), Some(field.data_type().clone())))
        .collect();
    let adapt = Adapt::new(opening.resolved, opening.projection(), &found, file)?;

    let all = metadata.metadata().num_row_groups();
    let (from, to) = opening.payload.row_groups.unwrap_or((0, all));
    if to > all {
        return Err(changed(&file.name));
    }
    let resume = opening.position::<RowPosition>()?.map_or(0, |p| p.row);
    // A column that is a directory's hides one of the file's: its statistics say nothing.
    let hidden = |filter: &&Expr| {
        let columns = filter.column_refs();
        !columns.iter().any(|column| file.partitions.iter().any(|(name, _)| *name == column.name))
    };
    let filters: Vec<Expr> = opening.scan.filters.iter().filter(hidden).cloned().collect();
    let scan = Scan::plan(&metadata, from..to, &filters, resume)?;
    let mask = ProjectionMask::roots(metadata.parquet_schema(), adapt.read.iter().copied());
    let mut builder = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata)
        .with_projection(mask)
        .with_batch_size(opening.scan.batch_rows.max(1))
        .with_row_groups(scan.groups);
    if let Some(selection) = scan.selection {
        builder = builder.with_row_selection(selection);
    }
    let batches = builder.build().map_err(|e| failure(e, &file.name))?;
    let rows = Rows {
        batches,
        adapt,
        steps: scan.steps,
        row: 0,
        told: resume,
        stream: opening.scan.stream,
        name: file.name.clone(),
    };
    let events =
        stream::try_unfold(rows, |mut rows| async move { Ok(rows.next().await?.map(|event| (event, rows))) });
    Ok(finished(events.boxed()))
}

/// The rows of a split while they are read.
struct Rows {
    batches: ParquetRecordBatchStream<Chunks>,
    adapt: Adapt,
    /// All physical rows of the split, in runs that are read or skipped.
    steps: VecDeque<RowSelector>,
    /// The physical rows passed.
    row: u64,
    /// Those that somebody was told of.
    told: u64,
    stream: StreamId,
    name: String,
}

impl Rows {
    async fn next(&mut self) -> Result<Option<SourceEvent>> {
        let Some(batch) = self.batches.next().await else {
            self.row += self.steps.drain(..).map(|step| step.row_count as u64).sum::<u64>();
            let news = self.row > self.told;
            self.told = self.row;
            return Ok(news.then(|| SourceEvent::Progress(self.position())));
        };
        let batch = batch.map_err(|e| failure(e, &self.name))?;
        self.pass(batch.num_rows());
        self.told = self.row;
        let position = Some(self.position());
        Ok(Some(SourceEvent::Batch { stream: self.stream, batch: self.adapt.apply(&batch)?, position }))
    }

    /// Moves on over so many rows that were read, and what was skipped before them.
    fn pass(&mut self, mut rows: usize) {
        while rows > 0
            && let Some(step) = self.steps.front_mut()
        {
            let taken = if step.skip { step.row_count } else { step.row_count.min(rows) };
            self.row += taken as u64;
            rows -= if step.skip { 0 } else { taken };
            step.row_count -= taken;
            if step.row_count == 0 {
                self.steps.pop_front();
            }
        }
    }

    fn position(&self) -> Position {
        serde_json::json!({ "row": self.row }).into()
    }
}

/// What to read of a split's row groups.
struct Scan {
    groups: Vec<usize>,
    /// Over the rows of `groups`.
    selection: Option<RowSelection>,
    /// Over the rows of all row groups of the split.
    steps: VecDeque<RowSelector>,
}

impl Scan {
    fn plan(
        metadata: &ArrowReaderMetadata,
        groups: Range<usize>,
        filters: &[Expr],
        resume: u64,
    ) -> Result<Self> {
        let mut scan = Self { groups: Vec::new(), selection: None, steps: VecDeque::new() };
        let mut selection = Vec::new();
        let mut skip = usize::try_from(resume).unwrap_or(usize::MAX);
        for group in groups {
            let rows = usize::try_from(metadata.metadata().row_group(group).num_rows()).unwrap_or(0);
            let wanted = skip < rows && rows > 0 && {
                let bounds = GroupBounds { metadata, group };
                filters.iter().all(|filter| may_match(filter, &bounds))
            };
            let mut steps: Vec<RowSelector> = if !wanted {
                vec![RowSelector::skip(rows)]
            } else {
                match pages(metadata, group, rows, filters) {
                    Some(pages) => pages.into(),
                    None => vec![RowSelector::select(rows)],
                }
            };
            steps = without_first(steps, skip);
            skip = skip.saturating_sub(rows);
            if steps.iter().any(|step| !step.skip) {
                scan.groups.push(group);
                selection.extend(steps.iter().copied());
            }
            scan.steps.extend(steps);
        }
        if selection.iter().any(|step| step.skip) {
            scan.selection = Some(selection.into());
        }
        Ok(scan)
    }
}

/// The same steps with the first rows skipped.
fn without_first(steps: Vec<RowSelector>, mut first: usize) -> Vec<RowSelector> {
    let mut out = Vec::with_capacity(steps.len() + 1);
    for step in steps {
        let skipped = step.row_count.min(first);
        first -= skipped;
        if skipped > 0 {
            out.push(RowSelector::skip(skipped));
        }
        if step.row_count > skipped {
            out.push(RowSelector { row_count: step.row_count - skipped, skip: step.skip });
        }
    }
    out
}

/// The pages of a row group that may hold wanted rows, if its page index says so.
fn pages(
    metadata: &ArrowReaderMetadata,
    group: usize,
    rows: usize,
    filters: &[Expr],
) -> Option<RowSelection> {
    let mut whole: Option<RowSelection> = None;
    for filter in filters {
        let names = columns(filter);
        let [name] = names.as_slice() else { continue };
        let Some(selection) = pages_of(metadata, group, rows, filter, name) else { continue };
        whole = Some(match whole {
            Some(known) => known.intersection(&selection),
            None => selection,
        });
    }
    whole
}

fn pages_of(
    metadata: &ArrowReaderMetadata,
    group: usize,
    rows: usize,
    filter: &Expr,
    name: &str,
) -> Option<RowSelection> {
    let converter = converter(metadata, name)?;
    let leaf = converter.parquet_column_index()?;
    let file = metadata.metadata();
    let (index, offsets) = (file.column_index()?, file.offset_index()?);
    let locations = offsets.get(group)?.get(leaf)?.page_locations();
    index.get(group)?.get(leaf)?;
    let mins = converter.data_page_mins(index, offsets, [&group]).ok()?;
    let maxes = converter.data_page_maxes(index, offsets, [&group]).ok()?;
    let nulls = converter.data_page_null_counts(index, offsets, [&group]).ok()?;
    if locations.is_empty() || mins.len() != locations.len() {
        return None;
    }
    let mut steps = Vec::with_capacity(locations.len());
    for (page, location) in locations.iter().enumerate() {
        let start = usize::try_from(location.first_row_index).ok()?;
        let end = match locations.get(page + 1) {
            Some(next) => usize::try_from(next.first_row_index).ok()?,
            None => rows,
        };
        let count = end.checked_sub(start)?;
        let bounds = PageBounds { name, known: known(&mins, &maxes, &nulls, page, count) };
        steps.push(RowSelector { row_count: count, skip: !may_match(filter, &bounds) });
    }
    Some(steps.into())
}

struct GroupBounds<'a> {
    metadata: &'a ArrowReaderMetadata,
    group: usize,
}

impl Bounds for GroupBounds<'_> {
    fn known(&self, column: &str) -> Option<Known> {
        let converter = converter(self.metadata, column)?;
        let group = self.metadata.metadata().row_group(self.group);
        let statistics = group.column(converter.parquet_column_index()?).statistics()?;
        // Old files compare text as signed bytes.
        if statistics.is_min_max_deprecated() && !statistics.is_min_max_backwards_compatible() {
            return None;
        }
        let mins = converter.row_group_mins([group]).ok()?;
        let maxes = converter.row_group_maxes([group]).ok()?;
        let nulls = converter.row_group_null_counts([group]).ok()?;
        let rows = usize::try_from(group.num_rows()).ok()?;
        Some(known(&mins, &maxes, &nulls, 0, rows))
    }
}

struct PageBounds<'a> {
    name: &'a str,
    known: Known,
}

impl Bounds for PageBounds<'_> {
    fn known(&self, column: &str) -> Option<Known> {
        (column == self.name).then(|| self.known.clone())
    }
}

fn known(mins: &ArrayRef, maxes: &ArrayRef, nulls: &UInt64Array, at: usize, rows: usize) -> Known {
    let value =
        |array: &ArrayRef| ScalarValue::try_from_array(array, at).ok().filter(|value| !value.is_null());
    let nulls = (at < nulls.len() && nulls.is_valid(at)).then(|| nulls.value(at));
    Known {
        min: value(mins),
        max: value(maxes),
        nulls: nulls.map(|n| n > 0),
        all_null: nulls == Some(rows as u64),
    }
}

/// Statistics of a top-level column.
fn converter<'a>(metadata: &'a ArrowReaderMetadata, column: &str) -> Option<StatisticsConverter<'a>> {
    let converter =
        StatisticsConverter::try_new(column, metadata.schema(), metadata.parquet_schema()).ok()?;
    Some(converter.with_missing_null_counts_as_zero(false))
}

/// The file's columns, with texts and bytes in the form that the stream wants.
fn with_stream_types(
    metadata: &ArrowReaderMetadata,
    stream: &Schema,
    file: &FileEntry,
) -> Result<ArrowReaderMetadata> {
    use DataType::{Binary, BinaryView, LargeBinary, LargeUtf8, Utf8, Utf8View};
    let fields: Vec<Arc<Field>> = metadata
        .schema()
        .fields()
        .iter()
        .map(|field| {
            let wanted = stream.field_with_name(field.name()).map(Field::data_type);
            match (field.data_type(), wanted) {
                (Utf8 | LargeUtf8 | Utf8View, Ok(kind @ (Utf8 | LargeUtf8 | Utf8View)))
                | (Binary | LargeBinary | BinaryView, Ok(kind @ (Binary | LargeBinary | BinaryView))) => {
                    Arc::new(field.as_ref().clone().with_data_type(kind.clone()))
                }
                _ => Arc::clone(field),
            }
        })
        .collect();
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata.schema().metadata().clone()));
    let options = ArrowReaderOptions::new().with_schema(schema);
    ArrowReaderMetadata::try_new(Arc::clone(metadata.metadata()), options).map_err(|e| failure(e, &file.name))
}

async fn metadata(reader: &mut Chunks, file: &FileEntry, index: bool) -> Result<ArrowReaderMetadata> {
    let policy = if index { PageIndexPolicy::Optional } else { PageIndexPolicy::Skip };
    let options = ArrowReaderOptions::new().with_page_index_policy(policy);
    ArrowReaderMetadata::load_async(reader, options).await.map_err(|e| failure(e, &file.name))
}

/// Parquet's error in Orbit's words.
fn failure(error: ParquetError, name: &str) -> Error {
    match error {
        ParquetError::External(cause) => match cause.downcast::<Error>() {
            Ok(own) => *own,
            Err(cause) => {
                Error::new(ErrorKind::Unavailable, "can't read the file").with("file", name).caused_by(cause)
            }
        },
        ParquetError::NYI(what) => Error::unsupported(format!("Parquet: {what}")).with("file", name),
        // Values don't stand in these texts: they speak of structure.
        other => broken(name).caused_by(other),
    }
}
