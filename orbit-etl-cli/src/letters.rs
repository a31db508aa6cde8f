//! `dead-letters`: the rows that could not go on.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, sort_to_indices, take_record_batch};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use orbit_etl::ErrorKind;
use orbit_etl::host::FnSink;
use orbit_etl::spec::Spec;

use crate::args::{FileArgs, LettersCommand, TableFormat};
use crate::failure::Failure;
use crate::load::Loaded;
use crate::preview::table;
use crate::{load, out};

/// The columns of the list.
const LISTED: [&str; 6] = ["time", "node", "kind", "rows", "place", "message"];

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
    }
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
