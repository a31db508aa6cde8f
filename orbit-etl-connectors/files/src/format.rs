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
