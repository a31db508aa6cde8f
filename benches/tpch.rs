//! TPC-H lineitem through files, against plain DataFusion and the peers that Python brings along.
//!
//! `cargo bench --bench tpch -- [CASE…] [--rounds N] [--scale S] [--peers PYTHON]`. Every run is a process of its own, two threads each; contestants alternate within
//! a round. Printed are the medians, their ratio to DataFusion's, and the highest resident memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use datafusion::common::config::TableParquetOptions;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::{CsvReadOptions, ParquetReadOptions, SessionConfig, SessionContext};
use orbit_etl::connectors::files::Compression;
use orbit_etl::prelude::*;
use tpchgen::csv::LineItemCsv;
use tpchgen::generators::LineItemGenerator;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const THREADS: usize = 2;
/// With a column of text that hardly repeats, and without.
const CASES: [&str; 3] = ["csv_to_parquet", "parquet_to_parquet", "parquet_to_parquet_numbers"];

/// The contestant that writes an Iceberg table, in the first case.
const ICEBERG: &str = "iceberg";

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
    let mut contestants = vec!["datafusion", "orbit"];
    if cfg!(feature = "iceberg") {
        contestants.push(ICEBERG);
    }
    if python.is_some() {
        contestants.extend(["duckdb", "polars"]);
    }
    for case in cases {
        if case != "csv_to_parquet" && !home.join("parquet").exists() {
            run("orbit", "csv_to_parquet", &csv, &home.join("parquet"), None)?;
        }
        let input = if case == "csv_to_parquet" { csv.clone() } else { home.join("parquet") };
        let mut seconds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut peak: BTreeMap<&str, u64> = BTreeMap::new();
        for _ in 0..rounds {
            for who in &contestants {
                if *who == ICEBERG && case != "csv_to_parquet" {
                    continue;
                }
                let output = home.join("out");
                let (took, memory) = run(who, case, &input, &output, python.as_deref())?;
                fs::remove_dir_all(&output)?;
                seconds.entry(who).or_default().push(took);
                let highest = peak.entry(who).or_default();
                *highest = memory.max(*highest);
            }
        }
        println!("{case}, scale factor {scale}, {rounds} rounds");
        let base = median(&seconds["datafusion"]);
        for who in &contestants {
            let Some(all) = seconds.get(who) else { continue };
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
        ICEBERG => runtime.block_on(iceberg(input, output))?,
        _ => runtime.block_on(datafusion(case, input, output))?,
    }
    println!("{:.6} {}", began.elapsed().as_secs_f64(), peak_memory()?);
    Ok(())
}

async fn orbit(case: &str, input: &str, output: &str) -> Result<(), Failure> {
    let source = if case == "csv_to_parquet" { FilesSource::csv(input) } else { FilesSource::parquet(input) };
    let mut builder = Pipeline::builder("bench").source("in", source);
    if case != "csv_to_parquet" {
        builder = builder.transform("sql", Sql::new(query(case)));
    }
    let sink = FilesSink::parquet(output).compression(Compression::Zstd).compression_level(3);
    let pipeline = builder.sink("out", sink).parallelism(THREADS).checkpoint_in_memory().build();
    pipeline.map_err(|e| e.report())?.run().await.map_err(|e| e.report())?;
    Ok(())
}

/// The same rows into an Iceberg table.
#[cfg(feature = "iceberg")]
async fn iceberg(input: &str, output: &str) -> Result<(), Failure> {
    let builder = Pipeline::builder("bench").source("in", FilesSource::csv(input));
    let sink = IcebergSink::append(IcebergCatalog::memory(output), "tpch.lineitem");
    let pipeline = builder.sink("out", sink).parallelism(THREADS).checkpoint_in_memory().build();
    pipeline.map_err(|e| e.report())?.run().await.map_err(|e| e.report())?;
    Ok(())
}

#[cfg(not(feature = "iceberg"))]
async fn iceberg(_input: &str, _output: &str) -> Result<(), Failure> {
    Err("the feature `iceberg` is off".into())
}

async fn datafusion(case: &str, input: &str, output: &str) -> Result<(), Failure> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(THREADS));
    let rows = if case == "csv_to_parquet" {
        context.read_csv(input, CsvReadOptions::new()).await?
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
