//! More than is taken, without an end in sight.

use std::fs;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use futures::stream;
use orbit_etl::prelude::*;
use tokio_util::sync::CancellationToken;

use super::{MIB, tell_peak};

/// The source would give a gigabyte a second; the sink takes one batch and no more until nothing moves,
/// then the run is told to stop.
pub(super) async fn a_sink_that_stalls() {
    const ROWS: usize = 65_536;
    const MOST: usize = 8 * MIB;
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
    let given = Arc::new(AtomicUsize::new(0));
    let (of, counter) = (Arc::clone(&schema), Arc::clone(&given));
    let endless = stream::iter((0_i64..).map(move |batch| {
        counter.fetch_add(1, Ordering::SeqCst);
        let first = batch * ROWS as i64;
        let ids = Int64Array::from_iter_values(first..first + ROWS as i64);
        Ok(RecordBatch::try_new(Arc::clone(&of), vec![Arc::new(ids)]).unwrap())
    }));
    let (stop, open) = (CancellationToken::new(), Arc::new(tokio::sync::Semaphore::new(1)));
    let taken = Arc::new(AtomicUsize::new(0));
    let (gate, counter) = (Arc::clone(&open), Arc::clone(&taken));
    let sink = FnSink::new(move |_, batch: RecordBatch| {
        let (gate, counter) = (Arc::clone(&gate), Arc::clone(&counter));
        async move {
            gate.acquire().await.unwrap().forget();
            counter.fetch_add(batch.num_rows(), Ordering::SeqCst);
            Ok(())
        }
    });
    let pipeline = Pipeline::builder("stalled")
        .source("endless", StreamSource::unbounded(schema, endless))
        .sink("out", sink)
        .checkpoint_in_memory()
        .edge_bytes(MOST)
        .memory_limit(64 * MIB)
        .parallelism(1)
        .stop_on(stop.clone())
        .build()
        .unwrap();
    let run = pipeline.start();
    let mut before = usize::MAX;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = given.load(Ordering::SeqCst);
        if now == before {
            break;
        }
        before = now;
    }
    // One in the sink's hands, one waiting for room in the edge.
    let held = (before - 2) * ROWS * size_of::<i64>();
    assert!(held <= 2 * MOST, "{held} bytes lie between source and sink");
    stop.cancel();
    open.add_permits(tokio::sync::Semaphore::MAX_PERMITS / 2);
    let report = run.await.unwrap();
    assert_eq!(report.rows_written(), taken.load(Ordering::SeqCst) as u64);
    assert_eq!(report.rows_read(), report.rows_written(), "a drain loses nothing");
    tell_peak();
}

/// Hundreds of thousands of malformed lines, and a good one at the very end.
pub(super) async fn nothing_but_rejects() {
    const LINES: usize = 300_000;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("bad.csv");
    let mut file = std::io::BufWriter::new(fs::File::create(&path).unwrap());
    writeln!(file, "id,text").unwrap();
    for line in 0..LINES {
        writeln!(file, "no number {line},{line:0200}").unwrap();
    }
    writeln!(file, "1,good").unwrap();
    file.flush().unwrap();
    let schema =
        Schema::new(vec![Field::new("id", DataType::Int64, true), Field::new("text", DataType::Utf8, true)]);
    let rejected = home.path().join("rejected");
    let report = Pipeline::builder("rejects")
        .source("files", FilesSource::csv(path.display().to_string()).schema(Arc::new(schema)))
        .sink("lake", FilesSink::parquet(home.path().join("lake").display().to_string()))
        .on_error(OnError::dead_letter(FilesSink::json(rejected.display().to_string())))
        .checkpoint(home.path().join("state"), Duration::from_secs(1))
        .memory_limit(64 * MIB)
        .parallelism(2)
        .build()
        .unwrap()
        .run()
        .await
        .unwrap();
    assert_eq!((report.rows_written(), report.rows_rejected()), (1, LINES as u64), "{report}");
    let letters = crate::target::files(&rejected).into_iter().filter(|path| !path.starts_with("_orbit"));
    let lines: usize =
        letters.map(|path| fs::read_to_string(rejected.join(path)).unwrap().lines().count()).sum();
    assert_eq!(lines, LINES);
    tell_peak();
}
