//! The file formats, the compressions that each allows, and how a file's name tells them.

use std::fmt;

use orbit_etl_core::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How rows stand in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// Text, one row a line, columns cut by a delimiter.
    Csv,
    /// JSON lines: one object a line.
    ///
    /// A line is malformed if it is not one JSON object by the letter of RFC 8259, if it has a column
    /// twice, or if a column can't take its value; the others are read exactly. Numbers are taken as
    /// [`CsvOptions`] says, where `1.0` and `1e3` are whole also in inferred columns, and texts like CSV
    /// fields where the schema was given; in an inferred column that is not text, they are malformed. A whole number in a column of times, dates or spans of time counts the column's units,
    /// since 1970 or midnight. Numbers and booleans in a text column stay as they are written. A
    /// byte order mark before the first line is skipped.
    #[serde(alias = "ndjson", alias = "jsonl")]
    Json,
    /// Apache Parquet.
    Parquet,
    /// Avro object container files.
    Avro,
    /// Arrow IPC files (also known as Feather 2).
    #[serde(alias = "ipc", alias = "feather")]
    Arrow,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 5] = [Self::Csv, Self::Json, Self::Parquet, Self::Avro, Self::Arrow];

    /// The name in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Parquet => "parquet",
            Self::Avro => "avro",
            Self::Arrow => "arrow",
        }
    }

    /// How names of such files end, without the dot: `csv.gz`, `parquet`. Only text formats, which
    /// are compressed as a whole, show their compression.
    pub fn extension(self, compression: Compression) -> String {
        match compression.suffix() {
            Some(suffix) if self.is_text() => format!("{}.{suffix}", self.as_str()),
            _ => self.as_str().to_owned(),
        }
    }

    /// What a file's name says, if it says anything: `a/b.csv.gz` is gzipped CSV. For formats that
    /// compress inside the file the compression is [`Compression::None`].
    pub fn from_path(path: &str) -> Option<(Self, Compression)> {
        let name = path.rsplit(['/', '\\']).next().unwrap_or(path).to_ascii_lowercase();
        let (stem, last) = name.rsplit_once('.')?;
        let whole = Compression::ALL.into_iter().find(|c| c.suffix() == Some(last));
        let (format, compression) = match whole {
            Some(compression) => (stem.rsplit_once('.').map_or(stem, |(_, f)| f), compression),
            None => (last, Compression::None),
        };
        let format = match format {
            "csv" | "tsv" | "tbl" => Self::Csv,
            "json" | "jsonl" | "ndjson" => Self::Json,
            "parquet" | "pq" => Self::Parquet,
            "avro" => Self::Avro,
            "arrow" | "ipc" | "feather" => Self::Arrow,
            _ => return None,
        };
        (compression == Compression::None || format.is_text()).then_some((format, compression))
    }

    /// Whether files are text, which is compressed as a whole.
    pub fn is_text(self) -> bool {
        matches!(self, Self::Csv | Self::Json)
    }

    /// The compressions that files of this format can have.
    pub fn compressions(self) -> &'static [Compression] {
        use Compression::{Bzip2, Gzip, Lz4, None, Snappy, Zstd};
        match self {
            Self::Csv | Self::Json => &[None, Gzip, Zstd, Bzip2],
            Self::Parquet => &[None, Gzip, Zstd, Snappy, Lz4],
            Self::Avro => &[None, Gzip, Zstd, Bzip2, Snappy],
            Self::Arrow => &[None, Zstd, Lz4],
        }
    }

    /// The compression that is written unless another one is asked for.
    pub fn default_compression(self) -> Compression {
        match self {
            Self::Csv | Self::Json | Self::Arrow => Compression::None,
            Self::Parquet | Self::Avro => Compression::Zstd,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How bytes are made fewer: of a whole text file, or of the blocks inside another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip; inside Avro files its core, deflate.
    Gzip,
    /// Zstandard.
    Zstd,
    /// bzip2.
    Bzip2,
    /// Snappy; Parquet and Avro only.
    Snappy,
    /// LZ4; Parquet and Arrow only.
    Lz4,
}

impl Compression {
    /// Every compression.
    pub const ALL: [Self; 6] = [Self::None, Self::Gzip, Self::Zstd, Self::Bzip2, Self::Snappy, Self::Lz4];

    /// The name in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
        }
    }

    /// How names of files end that are compressed as a whole, without the dot.
    pub fn suffix(self) -> Option<&'static str> {
        match self {
            Self::Gzip => Some("gz"),
            Self::Zstd => Some("zst"),
            Self::Bzip2 => Some("bz2"),
            Self::None | Self::Snappy | Self::Lz4 => None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How CSV is written and read.
///
/// # Which records are read
///
/// A record ends at a line feed, a carriage return or both, outside of quotes; blank lines are none.
/// Quotes count at the start of a field alone. A record is malformed, and rejected as a whole, if its
/// number of fields isn't that of the header, if a quote isn't closed, if anything but a delimiter or
/// the end follows a closing quote, if it is not UTF-8, if it is longer than `max_record`, or if a
/// column that is read can't take its field.
///
/// # Which values a column takes
///
/// None is ever altered. A field that the column's type doesn't hold exactly is malformed.
///
/// | Type | Where the type was given | Where it was inferred |
/// |---|---|---|
/// | `Boolean` | `true` and `false` in any case | the same |
/// | integers | every way to write such a number: `7`, `007`, `+7`, `7.0`, `7e0`, also between spaces | digits alone, without zeros in front: `7`, `-7` |
/// | decimals | the same; behind the last digit of the scale there may be zeros only | the same as integers |
/// | floating point | the nearest value, but no number beyond the type's range, and none that would become zero; `NaN`, `inf` | JSON's way to write numbers, and only those that come back when the value is written in as few digits as it needs: `0.1` and `0.30000000000000004`, but not `9007199254740993`; `NaN`, `inf` |
/// | `Date32` | `2024-12-31`, also `20241231`, `2024-1-5`, `+12024-01-05`, and midnights without a zone | `2024-12-31` |
/// | `Date64` | dates and timestamps without a zone, to the millisecond | |
/// | times | `12:30:15.5`, also `12:30` and `6:00 pm` | |
/// | timestamps | `2024-12-31T12:30:15.5` with `T` or a space, dates alone, times without colons | the same, but with colons |
/// | timestamps with a zone | the same with `Z`, an offset, or a zone's name | with `Z` or an offset |
/// | texts | everything; of a dictionary, as many different ones in a batch as its keys can tell apart | everything |
/// | `Null` | nothing but NULL | |
///
/// A timestamp with a zone is no value of a column without one, nor the other way round. Digits of a
/// second beyond the column's unit must be zeros, and leap seconds belong to no type. A later value of
/// an inferred column that would have made it text, had it been in the sample, is malformed; its
/// reject says that giving the type in `schema` would help.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CsvOptions {
    /// Between two columns. One ASCII character.
    pub delimiter: char,
    /// Around values that contain a delimiter, a quote or a line break. One ASCII character.
    pub quote: char,
    /// Before a quote inside quotes. `None`: quotes are doubled.
    pub escape: Option<char>,
    /// Whether the first line has the columns' names.
    pub header: bool,
    /// How NULL is written. By default nothing stands between the delimiters, and an empty string
    /// looks the same; name a text that occurs nowhere else (`\N`) to tell them apart.
    pub null: String,
}

impl Default for CsvOptions {
    fn default() -> Self {
        Self { delimiter: ',', quote: '"', escape: None, header: true, null: String::new() }
    }
}

impl CsvOptions {
    /// Checks that the characters can be used together.
    ///
    /// # Errors
    /// [`Config`](orbit_etl_core::ErrorKind::Config) with the key.
    pub fn validate(&self) -> Result<()> {
        let characters =
            [("delimiter", Some(self.delimiter)), ("quote", Some(self.quote)), ("escape", self.escape)];
        for (key, character) in characters {
            if character.is_some_and(|c| !c.is_ascii() || matches!(c, '\n' | '\r' | '\0')) {
                return Err(Error::config("a CSV option must be one ASCII character and no line break")
                    .with("option", format!("csv.{key}")));
            }
        }
        if self.delimiter == self.quote || self.escape == Some(self.delimiter) {
            return Err(Error::config("the CSV delimiter is also the quote or the escape character")
                .with("option", "csv.delimiter"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_format_and_compression() {
        use Compression as C;
        use Format as F;
        for (path, expected) in [
            ("a/b.csv", Some((F::Csv, C::None))),
            ("b.CSV.gz", Some((F::Csv, C::Gzip))),
            ("x.y.jsonl.zst", Some((F::Json, C::Zstd))),
            ("s3://bucket/b.parquet", Some((F::Parquet, C::None))),
            ("b.parquet.gz", None),
            ("a.csv/b", None),
            ("csv", None),
            ("b.feather", Some((F::Arrow, C::None))),
        ] {
            assert_eq!(Format::from_path(path), expected, "{path}");
        }
    }

    #[test]
    fn what_an_extension_says_is_read_back() {
        for format in Format::ALL {
            for &compression in format.compressions() {
                let name = format!("f.{}", format.extension(compression));
                let shown = if format.is_text() { compression } else { Compression::None };
                assert_eq!(Format::from_path(&name), Some((format, shown)));
            }
            assert!(format.compressions().contains(&format.default_compression()));
        }
    }

    #[test]
    fn csv_characters_are_checked() {
        assert!(CsvOptions::default().validate().is_ok());
        for bad in [
            CsvOptions { delimiter: '→', ..CsvOptions::default() },
            CsvOptions { quote: ',', ..CsvOptions::default() },
            CsvOptions { escape: Some('\n'), ..CsvOptions::default() },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
