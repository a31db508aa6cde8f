//! `dead-letters`: the rows that could not go on.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{AsArray, RecordBatch, UInt32Array};
use arrow::compute::{cast, concat_batches, sort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Int32Type};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use orbit_etl::ErrorKind;
use orbit_etl::host::FnSink;
use orbit_etl::spec::Spec;

use crate::args::{FileArgs, LettersCommand, ReplayArgs, ReportFormat, TableFormat};
use crate::failure::Failure;
use crate::load::Loaded;
use crate::metrics::Metrics;
use crate::preview::table;
use crate::progress::Screen;
use crate::run::{Ended, run_one, tell};
use crate::signals::Signals;
use crate::{load, out};

/// The columns of the list.
const LISTED: [&str; 7] = ["time", "node", "kind", "rows", "attempt", "place", "message"];

pub(crate) async fn letters(command: LettersCommand) -> Result<(), Failure> {
    match command {
        LettersCommand::List { file, limit, format } => {
            let letters = read(&file).await?;
            let shown = limit.min(letters.as_ref().map_or(0, RecordBatch::num_rows));
            let Some(letters) = letters else { return out::print(&table(&[], format)?) };
            let columns: Vec<usize> =
                LISTED.iter().filter_map(|name| letters.schema().index_of(name).ok()).collect();
            let listed = letters.project(&columns).map_err(unreadable)?.slice(0, shown);
            let mut text = table(&[listed], format)?;
            if format == TableFormat::Table && shown < letters.num_rows() {
                let _ = writeln!(text, "{} more", letters.num_rows() - shown);
            }
            out::print(&text)
        }
        LettersCommand::Show { file, number } => {
            let letters = read(&file).await?;
            let count = letters.as_ref().map_or(0, RecordBatch::num_rows);
            let Some(letters) = letters.filter(|_| (1..=count).contains(&number)) else {
                return Err(Failure::mistake(format!(
                    "there are {count} dead letters, and no number {number}"
                )));
            };
            let mut text = String::new();
            let options = FormatOptions::default();
            for (field, column) in letters.schema().fields().iter().zip(letters.columns()) {
                if column.is_valid(number - 1) {
                    let value = ArrayFormatter::try_new(column, &options).map_err(unreadable)?;
                    let _ = writeln!(text, "{:<9} {}", field.name(), value.value(number - 1));
                }
            }
            out::print(&text)
        }
        LettersCommand::Replay(args) => replay(args).await,
    }
}

/// Sends letters again, those of each node and number of attempts as a pipeline of their own.
async fn replay(args: ReplayArgs) -> Result<(), Failure> {
    let letters = read(&args.file).await?;
    let wanted = |node: &str, attempt: i32| {
        args.node.as_deref().is_none_or(|only| only == node)
            && args.max_attempts.is_none_or(|most| attempt < most)
    };
    let mut groups = match &letters {
        Some(letters) => groups(letters)?,
        None => BTreeSet::new(),
    };
    groups.retain(|(attempt, node)| wanted(node, *attempt));
    if groups.is_empty() {
        return match args.report {
            ReportFormat::Text => out::print("no letters to send again\n"),
            ReportFormat::Json => Ok(()),
        };
    }
    let registry = load::registry();
    let one = load::one(&args.file.file, &args.file.spec, &registry)?;
    let mut parts = Vec::new();
    for (attempt, node) in groups {
        let part = one.spec.resend_dead_letters(&registry, &node, attempt).await?;
        parts.push((node, part.ok_or_else(|| no_sink(&one.spec))?));
    }
    let signals = Signals::listen()?;
    let screen = Screen::new(Metrics::default());
    let mut failure: Option<Failure> = None;
    for (node, pipeline) in parts {
        if signals.drain.is_cancelled() {
            break;
        }
        let part = Loaded { spec: one.spec.clone(), pipeline };
        let ended = run_one(&part, &signals, &screen).await;
        match (args.report, &ended) {
            (ReportFormat::Text, Ended::Well(report)) => {
                let nodes = || report.nodes.iter();
                let letters: u64 = nodes().filter(|n| n.role == "source").map(|n| n.counts.rows_in).sum();
                let rejected: u64 = nodes().map(|n| n.counts.rejected).sum();
                out::print(&format!(
                    "{node}: {letters} rows sent again, {} written, {rejected} rejected again\n",
                    report.rows_written()
                ))?;
            }
            _ => tell(part.pipeline.name(), &ended, args.report)?,
        }
        if let Ended::Badly(other, _) = ended {
            failure = Some(match failure {
                Some(failure) => failure.and(other),
                None => other,
            });
        }
    }
    failure.map_or(Ok(()), Err)
}

/// The attempts and nodes of the letters that are there.
fn groups(letters: &RecordBatch) -> Result<BTreeSet<(i32, String)>, Failure> {
    let column = |name: &str, kind: &DataType| match letters.column_by_name(name) {
        Some(column) => cast(column, kind).map_err(unreadable),
        None => Err(Failure::failed("what lies there are no dead letters")),
    };
    let (nodes, attempts) = (column("node", &DataType::Utf8)?, column("attempt", &DataType::Int32)?);
    let (nodes, attempts) = (nodes.as_string::<i32>(), attempts.as_primitive::<Int32Type>());
    Ok(attempts.iter().zip(nodes).filter_map(|(a, n)| Some((a?, n?.to_owned()))).collect())
}

/// All dead letters, the oldest first; `None` if there are none.
async fn read(file: &FileArgs) -> Result<Option<RecordBatch>, Failure> {
    let registry = load::registry();
    let one = load::one(&file.file, &file.spec, &registry)?;
    let rows: Arc<Mutex<Vec<RecordBatch>>> = Arc::default();
    let into = Arc::clone(&rows);
    let sink = FnSink::new(move |_, batch| {
        into.lock().unwrap_or_else(PoisonError::into_inner).push(batch);
        std::future::ready(Ok(()))
    });
    let Some(reader) = one.spec.read_dead_letters(&registry, sink)? else { return Err(no_sink(&one.spec)) };
    match reader.run().await {
        Ok(_) => {}
        // Nothing was ever rejected.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::of(&Loaded { spec: one.spec, pipeline: reader }, &error)),
    }
    let batches = std::mem::take(&mut *rows.lock().unwrap_or_else(PoisonError::into_inner));
    let Some(first) = batches.first() else { return Ok(None) };
    let all = concat_batches(&first.schema(), &batches).map_err(unreadable)?;
    let order: UInt32Array = match all.column_by_name("time") {
        Some(time) => sort_to_indices(time, None, None).map_err(unreadable)?,
        None => return Err(Failure::failed("what lies there are no dead letters")),
    };
    take_record_batch(&all, &order).map(Some).map_err(unreadable)
}

fn no_sink(spec: &Spec) -> Failure {
    let name = spec.name().unwrap_or_default();
    Failure::mistake(format!("{name}: keeps no dead letters; `on_error` with `action: dead_letter` does"))
}

fn unreadable(error: ArrowError) -> Failure {
    Failure::failed(format!("the dead letters can't be shown: {error}"))
}
