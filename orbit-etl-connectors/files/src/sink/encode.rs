//! Rows into bytes, for every format and compression.

use std::io::{self, Write};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::csv;
use arrow::datatypes::{FieldRef, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions};
use arrow::json::writer::LineDelimited;
use arrow::json::{self, LineDelimitedWriter};
use arrow_avro::compression::CompressionCodec;
use arrow_avro::writer::format::AvroOcfFormat;
use arrow_avro::writer::{AvroWriter, WriterBuilder as AvroBuilder};
use bzip2::write::BzEncoder;
use flate2::write::GzEncoder;
use orbit_etl_core::{Error, Result};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression as ParquetCompression, GzipLevel, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::out::Out;
use super::types::{file_type, has_map, has_text, is_foreign};
use crate::error::from_io;
use crate::format::{Compression, CsvOptions, Format};

/// The level of zstd unless another one is asked for.
const ZSTD_LEVEL: i32 = 3;

/// Parquet files with more columns get no dictionaries, since the room for one, 72 KiB a column, is taken
/// before the first row comes.
const MOST_DICTIONARIES: usize = 1_000;

/// What zstd holds for each column of a Parquet file.
const ZSTD_COLUMN: usize = 24 << 10;

/// What an encoder needs to know.
#[derive(Debug, Clone)]
pub(crate) struct EncodeOptions {
    pub(crate) format: Format,
    pub(crate) compression: Compression,
    pub(crate) level: Option<i32>,
    pub(crate) csv: CsvOptions,
    pub(crate) row_group_rows: usize,
}

/// One open file of one format.
pub(crate) struct Encoder {
    kind: Kind,
    out: Out,
    /// Memory of the compressor, which can't be asked.
    base: usize,
}

enum Kind {
    Csv(Box<csv::Writer<Compressed>>),
    Json(Box<LineDelimitedWriter<Compressed>>),
    Parquet(Box<ArrowWriter<Out>>),
    Avro(AvroWriter<Out>),
    Arrow(Box<FileWriter<Out>>),
}

/// Why an encoder failed: its output, or the rows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the output failed")]
    Output(io::Error),
    #[error("the rows can't be encoded")]
    Rows(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Encoder {
    /// For rows of `schema`, which [`file_schema`] has made.
    pub(crate) fn new(options: &EncodeOptions, schema: &SchemaRef, out: Out) -> Result<Self, Fault> {
        let kind = Self::open(options, schema, &out).map_err(|rows| fault(&out, rows))?;
        let base = match (options.format.is_text(), options.compression) {
            (true, Compression::Zstd) => 4 << 20,
            (true, Compression::Bzip2) => 8 << 20,
            (true, Compression::Gzip) => 300 << 10,
            (false, Compression::Zstd) => (16 << 10) + leaves(schema) * ZSTD_COLUMN,
            _ => 16 << 10,
        };
        Ok(Self { kind, out, base })
    }

    fn open(options: &EncodeOptions, schema: &SchemaRef, out: &Out) -> Result<Kind, Cause> {
        let compression = options.compression;
        Ok(match options.format {
            Format::Csv => {
                let builder = csv::WriterBuilder::new()
                    .with_header(options.csv.header)
                    .with_delimiter(ascii(options.csv.delimiter))
                    .with_quote(ascii(options.csv.quote))
                    .with_null(options.csv.null.clone());
                Kind::Csv(Box::new(builder.build(Compressed::new(out.clone(), options)?)))
            }
            Format::Json => {
                // Left out, a NULL in a map would take its key along.
                let nulls = schema.fields().iter().any(|field| has_map(field.data_type()));
                let builder = json::WriterBuilder::new().with_explicit_nulls(nulls);
                let writer = builder.build::<_, LineDelimited>(Compressed::new(out.clone(), options)?);
                Kind::Json(Box::new(writer))
            }
            Format::Parquet => {
                let compression = match compression {
                    Compression::Gzip => ParquetCompression::GZIP(GzipLevel::default()),
                    Compression::Zstd => {
                        ParquetCompression::ZSTD(ZstdLevel::try_new(options.level.unwrap_or(ZSTD_LEVEL))?)
                    }
                    Compression::Snappy => ParquetCompression::SNAPPY,
                    Compression::Lz4 => ParquetCompression::LZ4_RAW,
                    Compression::None | Compression::Bzip2 => ParquetCompression::UNCOMPRESSED,
                };
                let properties = WriterProperties::builder()
                    .set_created_by(concat!("orbit-etl version ", env!("CARGO_PKG_VERSION")).into())
                    .set_compression(compression)
                    .set_max_row_group_row_count(Some(options.row_group_rows))
                    .set_dictionary_enabled(leaves(schema) <= MOST_DICTIONARIES)
                    .build();
                let writer = ArrowWriter::try_new(out.clone(), Arc::clone(schema), Some(properties))?;
                Kind::Parquet(Box::new(writer))
            }
            Format::Avro => {
                let codec = match compression {
                    Compression::Gzip => Some(CompressionCodec::Deflate),
                    Compression::Zstd => Some(CompressionCodec::ZStandard),
                    Compression::Bzip2 => Some(CompressionCodec::Bzip2),
                    Compression::Snappy => Some(CompressionCodec::Snappy),
                    Compression::None | Compression::Lz4 => None,
                };
                let builder = AvroBuilder::new(schema.as_ref().clone()).with_compression(codec);
                Kind::Avro(builder.build::<_, AvroOcfFormat>(out.clone())?)
            }
            Format::Arrow => {
                let compression = match compression {
                    Compression::Zstd => Some(CompressionType::ZSTD),
                    Compression::Lz4 => Some(CompressionType::LZ4_FRAME),
                    _ => None,
                };
                let options = IpcWriteOptions::default().try_with_compression(compression)?;
                let writer = FileWriter::try_new_with_options(out.clone(), schema, options)?;
                Kind::Arrow(Box::new(writer))
            }
        })
    }

    /// Takes the columns of one batch.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), Fault> {
        let is_text = matches!(self.kind, Kind::Csv(_) | Kind::Json(_));
        if is_text && !batch.columns().iter().all(|column| has_text(column)) {
            return Err(Fault::Rows("a date or a span of time is out of range".into()));
        }
        let result = match &mut self.kind {
            Kind::Csv(writer) => writer.write(batch).map_err(Cause::from),
            Kind::Json(writer) => writer.write(batch).map_err(Cause::from),
            Kind::Parquet(writer) => writer.write(batch).map_err(Cause::from),
            Kind::Avro(writer) => writer.write(batch).map_err(Cause::from),
            Kind::Arrow(writer) => writer.write(batch).map_err(Cause::from),
        };
        result.map_err(|rows| fault(&self.out, rows))
    }

    /// The size that the file would have if it ended here, about.
    pub(crate) fn size(&self) -> u64 {
        match &self.kind {
            Kind::Parquet(writer) => self.out.written() + writer.in_progress_size() as u64,
            _ => self.out.written(),
        }
    }

    /// How many bytes of memory it holds, without its output.
    pub(crate) fn held(&self) -> usize {
        match &self.kind {
            Kind::Parquet(writer) => self.base + writer.memory_size(),
            _ => self.base,
        }
    }

    /// How many bytes of memory it holds at least.
    pub(crate) fn base(&self) -> usize {
        self.base
    }

    /// Writes out what can be written before the end. Only Parquet holds rows back.
    pub(crate) fn flush(&mut self) -> Result<(), Fault> {
        match &mut self.kind {
            Kind::Parquet(writer) => writer.flush().map_err(|e| fault(&self.out, e.into())),
            _ => Ok(()),
        }
    }

    /// Ends the file.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        let ended = match self.kind {
            Kind::Csv(writer) => writer.into_inner().finish().map_err(Cause::from),
            Kind::Json(mut writer) => writer
                .finish()
                .map_err(Cause::from)
                .and_then(|()| writer.into_inner().finish().map_err(Cause::from)),
            Kind::Parquet(writer) => writer.close().map(drop).map_err(Cause::from),
            Kind::Avro(mut writer) => writer.finish().map_err(Cause::from),
            Kind::Arrow(mut writer) => writer.finish().map_err(Cause::from),
        };
        ended.map_err(|rows| fault(&self.out, rows))
    }
}

/// How many columns a schema has when nested ones are taken apart.
fn leaves(schema: &SchemaRef) -> usize {
    schema.flattened_fields().iter().filter(|field| !field.data_type().is_nested()).count()
}

/// The schema of the files that hold rows of `schema`, and whether it can be written at all.
///
/// # Errors
/// `Schema` naming the column whose type the format doesn't have.
pub(crate) fn file_schema(options: &EncodeOptions, schema: &Schema) -> Result<SchemaRef> {
    let fields: Fields = schema
        .fields()
        .iter()
        .map(|field| {
            let data_type = file_type(options.format, field.data_type());
            Arc::new(field.as_ref().clone().with_data_type(data_type))
        })
        .collect();
    for field in &fields {
        let nothing = new_null_array(field.data_type(), 1);
        if is_foreign(options.format, field.data_type()) || try_alone(options, field, &nothing).is_err() {
            return Err(Error::schema(format!("{} files can't hold this column's type", options.format))
                .with("column", field.name())
                .with("type", field.data_type())
                .remedy("leave the column out, cast it, or choose another format"));
        }
    }
    // The source's file format may have left notes for its own kind, such as an Avro schema that
    // would be taken for the one to write.
    let metadata = match options.format {
        Format::Avro => Default::default(),
        _ => schema.metadata().clone(),
    };
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
    Encoder::new(options, &schema, Out::memory()).map_err(|fault| {
        let error = Error::schema(format!("{} files can't hold this schema", options.format));
        match fault {
            Fault::Rows(cause) => error.caused_by(cause),
            Fault::Output(cause) => error.caused_by(cause),
        }
    })?;
    Ok(schema)
}

/// The columns as the file has them.
pub(crate) fn file_columns(
    format: Format,
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    rows: usize,
) -> Result<RecordBatch> {
    let cast_all = columns.into_iter().zip(schema.fields()).map(|(column, field)| {
        let (found, wanted) = (column.data_type(), field.data_type());
        if found == wanted || file_type(format, found) == *found {
            return Ok(column);
        }
        let strict = CastOptions { safe: false, ..CastOptions::default() };
        cast_with_options(&column, wanted, &strict).map_err(|_| {
            Error::schema("a column can't be cast to the type that the file has")
                .with("column", field.name())
                .with("type", found)
                .with("type in the file", wanted)
        })
    });
    let columns = cast_all.collect::<Result<Vec<_>>>()?;
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|e| Error::schema("rows don't have the columns that the stream announced").caused_by(e))
}

/// The error of the boundary. Says which column, since an encoder's own text may quote values.
pub(crate) fn describe(
    fault: Fault,
    options: &EncodeOptions,
    file: &str,
    batch: Option<&RecordBatch>,
) -> Error {
    match fault {
        Fault::Output(error) => from_io(error, "write a staged file", file),
        Fault::Rows(_) => {
            let error =
                Error::data(format!("rows can't be written as {}", options.format)).with("file", file);
            let culprit = batch.and_then(|batch| {
                let fields = batch.schema_ref().fields();
                let mut each = fields.iter().zip(batch.columns());
                each.find(|(field, column)| try_alone(options, field, column).is_err()).map(|(f, _)| f.name())
            });
            match culprit {
                Some(column) => error
                    .with("column", column)
                    .remedy("the column holds a value that the format doesn't have; cast or filter it"),
                None => error,
            }
        }
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

fn fault(out: &Out, rows: Cause) -> Fault {
    match out.failure() {
        Some(error) => Fault::Output(error),
        None => Fault::Rows(rows),
    }
}

fn try_alone(options: &EncodeOptions, field: &FieldRef, column: &ArrayRef) -> Result<(), Cause> {
    let options = EncodeOptions { compression: Compression::None, ..options.clone() };
    let field = field.as_ref().clone().with_nullable(true);
    let schema = Arc::new(Schema::new(vec![field]));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::clone(column)])?;
    let mut encoder = Encoder::new(&options, &schema, Out::memory())?;
    encoder.write(&batch)?;
    encoder.finish()?;
    Ok(())
}

/// `CsvOptions::validate` has made sure that it is ASCII.
fn ascii(character: char) -> u8 {
    u8::try_from(character).unwrap_or(b'?')
}

/// A text file's bytes on their way to the output.
enum Compressed {
    Plain(Out),
    Gzip(GzEncoder<Out>),
    Zstd(zstd::Encoder<'static, Out>),
    Bzip2(BzEncoder<Out>),
}

impl Compressed {
    fn new(out: Out, options: &EncodeOptions) -> Result<Self, ArrowError> {
        Ok(match options.compression {
            Compression::Gzip => Self::Gzip(GzEncoder::new(out, flate2::Compression::default())),
            Compression::Zstd => Self::Zstd(zstd::Encoder::new(out, options.level.unwrap_or(ZSTD_LEVEL))?),
            Compression::Bzip2 => Self::Bzip2(BzEncoder::new(out, bzip2::Compression::default())),
            Compression::None | Compression::Snappy | Compression::Lz4 => Self::Plain(out),
        })
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Gzip(encoder) => encoder.finish().map(drop),
            Self::Zstd(encoder) => encoder.finish().map(drop),
            Self::Bzip2(encoder) => encoder.finish().map(drop),
        }
    }
}

impl Write for Compressed {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(data),
            Self::Gzip(encoder) => encoder.write(data),
            Self::Zstd(encoder) => encoder.write(data),
            Self::Bzip2(encoder) => encoder.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // A flush would end a compressed block after every batch.
        Ok(())
    }
}
