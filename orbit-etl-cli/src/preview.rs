//! `preview`: the first rows that come out of a node.

use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::json::LineDelimitedWriter;
use arrow::util::pretty::pretty_format_batches;
use orbit_etl::ErrorKind;
use orbit_etl::host::FnSink;
use tokio_util::sync::CancellationToken;

use crate::args::{PreviewArgs, TableFormat};
use crate::failure::Failure;
use crate::{load, out};

/// Runs the part of the pipeline that leads to the node, and stops it when enough rows have come. Nothing
/// is written, and the pipeline's state is neither used nor changed.
pub(crate) async fn preview(args: PreviewArgs) -> Result<(), Failure> {
    let one = load::one(&args.file.file, &args.file.spec, &load::registry())?;
    let nodes = one.pipeline.nodes();
    if !nodes.iter().any(|node| node.name == args.node) {
        let names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
        return Err(Failure::mistake(format!(
            "there is no node {}; the nodes are: {}",
            args.node,
            names.join(", ")
        )));
    }
    let enough = CancellationToken::new();
    let rows: Arc<Mutex<Rows>> = Arc::new(Mutex::new(Rows { left: args.limit, batches: Vec::new() }));
    let sink = {
        let (enough, rows) = (enough.clone(), Arc::clone(&rows));
        FnSink::new(move |_, batch: RecordBatch| {
            if rows.lock().unwrap_or_else(PoisonError::into_inner).take(&batch) {
                enough.cancel();
            }
            std::future::ready(Ok(()))
        })
    };
    let part = one.pipeline.tap(&args.node, sink)?;
    if args.limit > 0 {
        let running = part.start();
        let abort = running.abort_token();
        let mut ended = running.into_future();
        let result = tokio::select! {
            result = &mut ended => result,
            () = enough.cancelled() => {
                abort.cancel();
                ended.await
            }
        };
        match result {
            Err(error) if error.kind() == ErrorKind::Cancelled && enough.is_cancelled() => {}
            result => {
                result.map_err(|e| Failure::of(&one, &e))?;
            }
        }
    }
    let batches = std::mem::take(&mut rows.lock().unwrap_or_else(PoisonError::into_inner).batches);
    out::print(&table(&batches, args.format)?)
}

struct Rows {
    left: usize,
    batches: Vec<RecordBatch>,
}

impl Rows {
    /// Whether these were the last that are wanted.
    fn take(&mut self, batch: &RecordBatch) -> bool {
        let rows = batch.num_rows().min(self.left);
        if rows > 0 {
            self.batches.push(batch.slice(0, rows));
            self.left -= rows;
        }
        self.left == 0
    }
}

/// Rows as text. Batches may differ in their columns, and then stand below one another.
pub(crate) fn table(batches: &[RecordBatch], format: TableFormat) -> Result<String, Failure> {
    let fail = |error| Failure::failed(format!("the rows can't be shown: {error}"));
    match format {
        TableFormat::Table if batches.is_empty() => Ok("no rows\n".into()),
        TableFormat::Table => {
            let mut text = String::new();
            for part in batches.chunk_by(|a, b| a.schema() == b.schema()) {
                text.push_str(&pretty_format_batches(part).map_err(fail)?.to_string());
                text.push('\n');
            }
            Ok(text)
        }
        TableFormat::Json => {
            let mut writer = LineDelimitedWriter::new(Vec::new());
            for batch in batches {
                writer.write(batch).map_err(fail)?;
            }
            writer.finish().map_err(fail)?;
            Ok(String::from_utf8_lossy(&writer.into_inner()).into_owned())
        }
    }
}
