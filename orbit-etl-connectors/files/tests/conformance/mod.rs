//! The conformance suite, on each format in local directories and on Parquet in object stores.

#[cfg(any(feature = "s3", feature = "azure"))]
mod stores;
mod types;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use orbit_etl_connector_files::{FilesSink, FilesSource, Format, Mode};
use orbit_etl_core::{Sink, Source, StreamInfo};
use orbit_etl_testkit::{
    Abilities, Breakage, Broken, Check, Comes, Fixture, Harness, async_trait, conformance,
};
use tempfile::TempDir;

struct Files {
    format: Format,
    mode: Mode,
}

impl Files {
    fn appended(format: Format) -> Self {
        Self { format, mode: Mode::Append }
    }
}

struct Directory {
    root: TempDir,
    format: Format,
    mode: Mode,
}

#[async_trait]
impl Harness for Files {
    async fn fresh(&self) -> Check<Box<dyn Fixture>> {
        Ok(Box::new(Directory { root: TempDir::new().unwrap(), format: self.format, mode: self.mode }))
    }

    fn abilities(&self) -> Abilities {
        abilities(self.format)
    }
}

fn abilities(format: Format) -> Abilities {
    let all = Abilities { types: types::of(format), ..Abilities::default() };
    match format {
        // An empty field is NULL. Years of other than four digits aren't read.
        Format::Csv => Abilities { empty_text: false, years: Some((1, 9999)), ..all },
        // JSON has neither NaN nor infinities.
        Format::Json => Abilities { non_finite: false, years: Some((1, 9999)), ..all },
        // Seconds are written as milliseconds, which can't count further.
        Format::Avro => Abilities { years: Some((-290_000_000, 290_000_000)), ..all },
        _ => all,
    }
}

#[async_trait]
impl Fixture for Directory {
    fn sink(&self) -> Option<Arc<dyn Sink>> {
        let path = format!("{}/{{stream}}", self.root.path().display());
        Some(Arc::new(FilesSink::new(path, self.format).mode(self.mode)))
    }

    async fn source(&self, streams: &[StreamInfo]) -> Check<Option<Arc<dyn Source>>> {
        let path = format!("{}/{}", self.root.path().display(), streams[0].name);
        Ok(Some(Arc::new(source(path, self.format, &streams[0]))))
    }

    async fn staged(&self) -> Check<Option<usize>> {
        Ok(Some(files_below(&self.root.path().join("_orbit/staged"))))
    }

    async fn broken(&self, what: Breakage) -> Check<Option<Broken>> {
        let nowhere = self.root.path().join("nowhere");
        let source = FilesSource::new(nowhere.to_str().unwrap()).format(self.format);
        Ok((what == Breakage::Missing).then(|| Broken::Source(Arc::new(source))))
    }
}

/// A source of the stream's folder. Text files don't say their types, so they are given.
fn source(path: String, format: Format, stream: &StreamInfo) -> FilesSource {
    let source = FilesSource::new(path).format(format).name(&stream.name);
    if !format.is_text() {
        return source;
    }
    let back = |data_type: &DataType| match types::of(format)(data_type) {
        Comes::As(to) => to,
        _ => data_type.clone(),
    };
    let fields = stream.schema.fields().iter();
    let fields: Vec<_> = fields.map(|f| f.as_ref().clone().with_data_type(back(f.data_type()))).collect();
    source.schema(Arc::new(Schema::new(fields)))
}

fn files_below(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files_below(&path) } else { 1 }).sum()
}

conformance!(parquet, Files::appended(Format::Parquet));
conformance!(parquet_overwritten, Files { format: Format::Parquet, mode: Mode::Overwrite });
conformance!(arrow_ipc, Files::appended(Format::Arrow));
conformance!(json, Files::appended(Format::Json));
conformance!(csv, Files::appended(Format::Csv));
conformance!(avro, Files::appended(Format::Avro));
