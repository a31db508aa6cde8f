//! TPC-H lineitem through files, Delta tables and Iceberg tables, against plain DataFusion, the
//! `deltalake` crate and the peers that Python brings along.
//!
//! `cargo bench --bench tpch -- [CASE…] [--rounds N] [--scale S] [--peers PYTHON]`. Every run is a process
//! of its own, two threads each; contestants alternate within a round. Printed are the medians, their ratio
//! to the first contestant's, and the highest resident memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Instant;

use datafusion::common::config::TableParquetOptions;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{CsvReadOptions, ParquetReadOptions, SessionConfig, SessionContext, col};
use deltalake::delta_datafusion::DeltaSessionConfig;
use deltalake::delta_datafusion::planner::DeltaPlanner;
use orbit_etl::connectors::delta::DeltaSink;
use orbit_etl::connectors::files::Compression;
use orbit_etl::prelude::*;
use parquet::basic::{Compression as ParquetCompression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use tpchgen::csv::LineItemCsv;
use tpchgen::generators::LineItemGenerator;
use url::Url;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const THREADS: usize = 2;
/// With a column of text that hardly repeats, and without; then tables.
const CASES: [&str; 6] = [
    "csv_to_parquet",
    "parquet_to_parquet",
    "parquet_to_parquet_numbers",
    "csv_to_delta",
    "csv_to_iceberg",
    "delta_merge",
];
/// How many changes are merged: four of five rows are there, the others are new.
const CHANGES: usize = 100_000;
const KEYS: [&str; 2] = ["l_orderkey", "l_linenumber"];

fn query(case: &str) -> String {
    let text = if case == "parquet_to_parquet" { ", l_comment" } else { "" };
    format!(
        "SELECT l_orderkey, l_partkey, l_quantity, l_extendedprice * (1 - l_discount) AS revenue, l_shipdate{text} \
         FROM input WHERE l_quantity > 25 AND l_discount < 0.08"
    )
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let ended = match std::env::var("ORBIT_BENCH_RUN") {
        Ok(run) => child(&run),
        Err(_) => contest(&arguments),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asks for.
struct Asked {
    cases: Vec<&'static str>,
    rounds: usize,
    scale: f64,
    python: Option<String>,
}

fn asked(arguments: &[String]) -> Result<Asked, Failure> {
    let mut asked = Asked { cases: Vec::new(), rounds: 5, scale: 1.0, python: None };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--rounds" => asked.rounds = value()?.parse()?,
            "--scale" => asked.scale = value()?.parse()?,
            "--peers" => asked.python = Some(value()?.clone()),
            other => match CASES.iter().find(|case| **case == other) {
                Some(case) => asked.cases.push(case),
                None => {
                    return Err(format!("there is no case {other}; there are {}", CASES.join(", ")).into());
                }
            },
        }
    }
    if asked.cases.is_empty() {
        asked.cases = CASES.to_vec();
    }
    Ok(asked)
}

fn contest(arguments: &[String]) -> Result<(), Failure> {
    let Asked { cases, rounds, scale, python } = asked(arguments)?;
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench").join(format!("sf{scale}"));
    let csv = home.join("lineitem.csv");
    generate(&csv, scale)?;
    for case in cases {
        let contestants = contestants(case, python.is_some());
        let input = match case {
            "csv_to_parquet" | "csv_to_delta" | "csv_to_iceberg" => csv.clone(),
            "delta_merge" => home.join("changes"),
            _ => home.join("parquet"),
        };
        if !input.exists() {
            prepare(case, &home, &csv)?;
        }
        let mut seconds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut peak: BTreeMap<&str, u64> = BTreeMap::new();
        for _ in 0..rounds {
            for who in &contestants {
                let output = home.join("out");
                if case == "delta_merge" {
                    copy(&home.join("delta"), &output)?;
                }
                let (took, memory) = run(who, case, &input, &output, python.as_deref())?;
                fs::remove_dir_all(&output)?;
                seconds.entry(who).or_default().push(took);
                let highest = peak.entry(who).or_default();
                *highest = memory.max(*highest);
            }
        }
        println!("{case}, scale factor {scale}, {rounds} rounds");
        let base = median(&seconds[contestants[0]]);
        for who in &contestants {
            let all = &seconds[who];
            let fastest = all.iter().copied().fold(f64::INFINITY, f64::min);
            let slowest = all.iter().copied().fold(0.0, f64::max);
            println!(
                "  {who:10} {:6.2} s ({fastest:.2} to {slowest:.2})  {:.2}x  {:5} MiB",
                median(all),
                median(all) / base,
                peak[who] >> 20,
            );
        }
    }
    Ok(())
}

/// Who takes part; the first is whom the others are measured by.
fn contestants(case: &str, peers: bool) -> Vec<&'static str> {
    let (own, foreign): (&[&str], &[&str]) = match case {
        // Our own way into Parquet files.
        "csv_to_delta" => (&["files", "orbit"], &["polars"]),
        "csv_to_iceberg" => (&["files", "orbit"], &[]),
        "delta_merge" => (&["deltalake", "orbit"], &[]),
        _ => (&["datafusion", "orbit"], &["duckdb", "polars"]),
    };
    own.iter().chain(foreign.iter().filter(|_| peers)).copied().collect()
}

/// Makes what the later cases read.
fn prepare(case: &str, home: &Path, csv: &Path) -> Result<(), Failure> {
    if !home.join("parquet").exists() {
        run("orbit", "csv_to_parquet", csv, &home.join("parquet"), None)?;
    }
    if case == "delta_merge" {
        if !home.join("delta").exists() {
            run("orbit", "csv_to_delta", csv, &home.join("delta"), None)?;
        }
        run("datafusion", "changes", &home.join("parquet"), &home.join("changes"), None)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            File::open(target)?.sync_all()?;
        }
    }
    Ok(())
}

/// Runs one contestant and returns its seconds and its highest resident bytes, as it tells them.
fn run(
    who: &str,
    case: &str,
    input: &Path,
    output: &Path,
    python: Option<&str>,
) -> Result<(f64, u64), Failure> {
    let mut command = match (who, python) {
        ("duckdb" | "polars", Some(python)) => {
            let mut command = Command::new(python);
            command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers.py")).arg(who).arg(case);
            command.arg(input).arg(output);
            command
        }
        _ => {
            let mut command = Command::new(std::env::current_exe()?);
            let [input, output] = [input, output].map(|p| p.display().to_string());
            command.env("ORBIT_BENCH_RUN", [who, case, &input, &output].join("\n"));
            command
        }
    };
    let done = command.output()?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let figures: Option<(f64, u64)> = said.lines().last().and_then(|line| {
        let (seconds, bytes) = line.split_once(' ')?;
        Some((seconds.parse().ok()?, bytes.parse().ok()?))
    });
    let failed = || format!("{who} failed at {case}: {said}{}", String::from_utf8_lossy(&done.stderr)).into();
    figures.filter(|_| done.status.success()).ok_or_else(failed)
}

fn child(run: &str) -> Result<(), Failure> {
    let words: Vec<&str> = run.split('\n').collect();
    let [who, case, input, output] = words[..] else { return Err("a run has four words".into()) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let began = Instant::now();
    match who {
        "orbit" => runtime.block_on(orbit(case, input, output))?,
        "files" => runtime.block_on(orbit("csv_to_parquet", input, output))?,
        "deltalake" => runtime.block_on(merge(input, output))?,
        _ => runtime.block_on(datafusion(case, input, output))?,
    }
    println!("{:.6} {}", began.elapsed().as_secs_f64(), peak_memory()?);
    Ok(())
}

async fn orbit(case: &str, input: &str, output: &str) -> Result<(), Failure> {
    let source = if case.starts_with("csv") { FilesSource::csv(input) } else { FilesSource::parquet(input) };
    let mut builder = Pipeline::builder("bench").source("in", source);
    if case.starts_with("parquet") {
        builder = builder.transform("sql", Sql::new(query(case)));
    }
    let builder = match case {
        "csv_to_delta" => builder.sink("out", DeltaSink::append(output)),
        "csv_to_iceberg" => {
            builder.sink("out", IcebergSink::append(IcebergCatalog::memory(output), "tpch.lineitem"))
        }
        // Another sink has made the table, so this one has another name.
        "delta_merge" => builder.sink("merge", DeltaSink::merge(output, KEYS)),
        _ => {
            let sink = FilesSink::parquet(output).compression(Compression::Zstd).compression_level(3);
            builder.sink("out", sink)
        }
    };
    let pipeline = builder.parallelism(THREADS).checkpoint_in_memory().build();
    pipeline.map_err(|e| e.report())?.run().await.map_err(|e| e.report())?;
    Ok(())
}

async fn datafusion(case: &str, input: &str, output: &str) -> Result<(), Failure> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(THREADS));
    let rows = if case == "csv_to_parquet" {
        context.read_csv(input, CsvReadOptions::new()).await?
    } else if case == "changes" {
        context.register_parquet("input", input, ParquetReadOptions::default()).await?;
        context.sql(&changes(&context).await?).await?
    } else {
        context.register_parquet("input", input, ParquetReadOptions::default()).await?;
        context.sql(&query(case)).await?
    };
    let mut options = TableParquetOptions::default();
    options.global.compression = Some("zstd(3)".into());
    rows.write_parquet(&format!("{output}/"), DataFrameWriteOptions::new(), Some(options)).await?;
    // What we sync it must sync too.
    for file in fs::read_dir(output)? {
        File::open(file?.path())?.sync_all()?;
    }
    Ok(())
}

/// Rows from all over the table, every fifth with a key that is new.
async fn changes(context: &SessionContext) -> Result<String, Failure> {
    let rows = context.table("input").await?.count().await?;
    let every = (rows / CHANGES).max(1);
    Ok(format!(
        "SELECT CASE WHEN n % 5 = 0 THEN l_orderkey + 1000000000 ELSE l_orderkey END AS l_orderkey, \
         * EXCEPT (l_orderkey, l_comment, n), concat('changed ', l_comment) AS l_comment FROM \
         (SELECT *, row_number() OVER (ORDER BY l_orderkey, l_linenumber) - 1 AS n FROM input) \
         WHERE n % {every} = 0 LIMIT {CHANGES}"
    ))
}

/// The library's own merge, with its own session.
async fn merge(input: &str, output: &str) -> Result<(), Failure> {
    let table = Url::from_directory_path(output).map_err(|()| "the table's folder isn't a path")?;
    let table = deltalake::open_table(table).await?;
    let config: SessionConfig = DeltaSessionConfig::default().into();
    let context = SessionContext::new_with_config(config.with_target_partitions(THREADS));
    let changes = context.read_parquet(format!("{input}/"), ParquetReadOptions::default()).await?;
    let columns: Vec<String> = changes.schema().fields().iter().map(|field| field.name().clone()).collect();
    let zstd = ParquetCompression::ZSTD(ZstdLevel::try_new(3)?);
    table
        .merge(changes, KEYS.map(|key| format!("target.{key} = source.{key}")).join(" AND "))
        .with_source_alias("source")
        .with_target_alias("target")
        .with_writer_properties(WriterProperties::builder().set_compression(zstd).build())
        .with_session_state(Arc::new(
            SessionStateBuilder::new_from_existing(context.state())
                .with_query_planner(DeltaPlanner::new())
                .build(),
        ))
        .when_matched_update(|update| {
            columns.iter().fold(update, |update, c| update.update(c.as_str(), col(format!("source.{c}"))))
        })?
        .when_not_matched_insert(|insert| {
            columns.iter().fold(insert, |insert, c| insert.set(c.as_str(), col(format!("source.{c}"))))
        })?
        .await?;
    Ok(())
}

fn generate(csv: &Path, scale: f64) -> Result<(), Failure> {
    if csv.exists() {
        return Ok(());
    }
    fs::create_dir_all(csv.parent().unwrap_or(Path::new(".")))?;
    let half: PathBuf = csv.with_extension("half");
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&half)?);
    writeln!(file, "{}", LineItemCsv::header())?;
    for row in LineItemGenerator::new(scale, 1, 1).iter() {
        writeln!(file, "{}", LineItemCsv::new(row))?;
    }
    file.flush()?;
    fs::rename(half, csv)?;
    Ok(())
}

/// The highest resident set of this process so far.
fn peak_memory() -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? << 10)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
