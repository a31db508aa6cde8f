//! The load that the tests crash, double and starve: CSV files into Parquet.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use orbit_etl::connectors::delta::{DeltaSink, Mode as DeltaMode};
use orbit_etl::connectors::files::Mode;
use orbit_etl::connectors::iceberg::PartitionBy;
use orbit_etl::prelude::*;
use serde_json::{Value, json};

use crate::paced::{Pace, Paced};

const FILES: u32 = 3;
const ROWS_PER_FILE: u32 = 420;
const REGIONS: [&str; 3] = ["north", "south", "east"];

/// `id`, `region`, `note`.
pub(crate) type Row = (i64, String, String);

/// One way to load the files below a home directory.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Holds `input`, which may be shared.
    pub(crate) input: PathBuf,
    /// Gets `lake`, `rejected` and `state`.
    pub(crate) home: PathBuf,
    pub(crate) partitioned: bool,
    /// Whether the input has malformed lines, which become dead letters.
    pub(crate) rejects: bool,
    /// Whether each load takes the place of the one before.
    pub(crate) overwrite: bool,
    /// Whether the lake is an Iceberg table.
    pub(crate) iceberg: bool,
    /// A folder in an object store that is the lake, instead of the one on the disk.
    pub(crate) lake_url: Option<String>,
    /// Whether, and how, the lake is a Delta table.
    pub(crate) delta: Option<DeltaMode>,
}

/// What the input holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Input {
    pub(crate) rows: Vec<Row>,
    pub(crate) malformed: Vec<String>,
}

pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("region", DataType::Utf8, true),
        Field::new("note", DataType::Utf8, true),
    ]))
}

/// Writes the input: quoted line breaks everywhere, so that a wrong cut of a file is found out.
pub(crate) fn write_input(folder: &Path, malformed: bool) -> Input {
    let mut input = Input::default();
    fs::create_dir_all(folder).unwrap();
    for file in 0..FILES {
        let mut text = "id,region,note\n".to_owned();
        for row in 0..ROWS_PER_FILE {
            let id = file * 10_000 + row;
            let region = REGIONS[(row % 3) as usize];
            let note = match row % 5 {
                0 => format!("one,\n{id},{region},\"quoted\""),
                _ => format!("note {id}"),
            };
            writeln!(text, "{id},{region},\"{}\"", note.replace('"', "\"\"")).unwrap();
            input.rows.push((i64::from(id), region.to_owned(), note));
            if malformed && row % 70 == 30 {
                let line = match row % 3 {
                    0 => format!("{id}"),
                    1 => format!("no number {id},north,a note"),
                    _ => format!("{id},south,a note,and one field more"),
                };
                writeln!(text, "{line}").unwrap();
                input.malformed.push(line);
            }
        }
        fs::write(folder.join(format!("part-{file}.csv")), text).unwrap();
    }
    input.rows.sort();
    input.malformed.sort();
    input
}

impl Job {
    pub(crate) fn new(input: &Path, home: &Path) -> Self {
        Self {
            input: input.to_owned(),
            home: home.to_owned(),
            partitioned: false,
            rejects: false,
            overwrite: false,
            iceberg: false,
            lake_url: None,
            delta: None,
        }
    }

    pub(crate) fn lake(&self) -> PathBuf {
        self.home.join("lake")
    }

    pub(crate) fn rejected(&self) -> PathBuf {
        self.home.join("rejected")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.home.join("state")
    }

    pub(crate) fn source(&self) -> FilesSource {
        FilesSource::csv(format!("{}/*.csv", self.input.display())).schema(schema()).split_size(4_096)
    }

    /// A pipeline with small batches and an epoch as often as can be.
    pub(crate) fn pipeline(&self, pace: &Pace) -> Pipeline {
        let on_error = if self.rejects {
            OnError::dead_letter(FilesSink::json(self.rejected().display().to_string()))
        } else {
            OnError::fail()
        };
        let builder = Pipeline::builder("load").source("files", Paced::new(self.source(), pace));
        let builder = match (self.delta, self.iceberg) {
            (Some(mode), _) => builder.sink("lake", self.delta_sink(mode)),
            (None, true) => builder.sink("lake", self.iceberg_sink()),
            (None, false) => builder.sink("lake", self.files_sink()),
        };
        builder
            .on_error(on_error)
            .delivery(Delivery::ExactlyOnce)
            .parallelism(2)
            // A merge takes so long that there are many epochs anyway.
            .batch_rows(if self.delta == Some(DeltaMode::Merge) { 128 } else { 64 })
            .edge_bytes(4_096)
            .checkpoint(self.state(), Duration::from_millis(4))
            .build()
            .unwrap()
    }

    fn files_sink(&self) -> FilesSink {
        let folder = self.lake_url.clone().unwrap_or_else(|| self.lake().display().to_string());
        let mut lake = FilesSink::parquet(folder);
        if self.partitioned {
            lake = lake.partition_by(["region"]);
        }
        if self.overwrite {
            lake = lake.mode(Mode::Overwrite);
        }
        lake
    }

    fn delta_sink(&self, mode: DeltaMode) -> DeltaSink {
        let mut lake = DeltaSink::new(self.lake().display().to_string(), mode);
        if self.partitioned {
            lake = lake.partition_by(["region"]);
        }
        if mode == DeltaMode::Merge {
            lake = lake.keys(["id"]);
        }
        lake
    }

    /// The catalog of the lake that is an Iceberg table, opened anew.
    pub(crate) fn catalog(&self) -> IcebergCatalog {
        let uri = format!("sqlite://{}", self.home.join("catalog.db").display());
        IcebergCatalog::sql(uri).warehouse(self.lake().display().to_string())
    }

    fn iceberg_sink(&self) -> IcebergSink {
        let sink = IcebergSink::append(self.catalog(), "load.rows");
        match self.partitioned {
            true => sink.partition_by([PartitionBy::new("region", "identity")]),
            false => sink,
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "input": self.input,
            "home": self.home,
            "partitioned": self.partitioned,
            "rejects": self.rejects,
            "overwrite": self.overwrite,
            "iceberg": self.iceberg,
            "lake_url": self.lake_url,
            "delta": self.delta,
        })
    }

    pub(crate) fn from_json(json: &Value) -> Self {
        let path = |key: &str| PathBuf::from(json[key].as_str().unwrap());
        Self {
            input: path("input"),
            home: path("home"),
            partitioned: json["partitioned"].as_bool().unwrap(),
            rejects: json["rejects"].as_bool().unwrap(),
            overwrite: json["overwrite"].as_bool().unwrap(),
            iceberg: json["iceberg"].as_bool().unwrap(),
            lake_url: json["lake_url"].as_str().map(str::to_owned),
            delta: serde_json::from_value(json["delta"].clone()).unwrap(),
        }
    }
}
