#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use serde_json::json;

use super::{MemoryFeed, MemorySink, MemorySource, MemoryTable};
use crate::{
    CheckpointRecord, CommitMode, Committable, Context, Discard, Error, ErrorKind, LaneId, Lineage, Position,
    Publication, Replay, ScanRequest, Sink, SinkSession, Source, SourceEvent, Split, SplitChange, StreamId,
    StreamInfo,
};

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
    ]))
}

fn batch(ids: impl IntoIterator<Item = i64>) -> RecordBatch {
    let ids = Int64Array::from_iter_values(ids);
    let names = StringArray::from_iter_values(ids.values().iter().map(|i| format!("n{i}")));
    RecordBatch::try_new(schema(), vec![Arc::new(ids), Arc::new(names)]).unwrap()
}

fn ids(batches: &[RecordBatch]) -> Vec<i64> {
    use arrow::array::AsArray;
    batches.iter().flat_map(|b| b["id"].as_primitive::<Int64Type>().values().to_vec()).collect()
}

fn cx() -> Context {
    Context::standalone("test").unwrap()
}

fn info() -> StreamInfo {
    StreamInfo::new("rows", schema()).with_keys(["id"])
}

async fn changes(source: &MemorySource, after: Option<Position>) -> Vec<SplitChange> {
    source.splits(&cx(), after.as_ref()).await.unwrap().try_collect().await.unwrap()
}

async fn read(source: &MemorySource, split: &Split, after: Option<&Position>) -> Vec<SourceEvent> {
    let scan = [ScanRequest::all(StreamId(0), 3)];
    let events = source.open(&cx(), split, after, &scan).await.unwrap();
    events.try_collect().await.unwrap()
}

fn rows_of(events: &[SourceEvent]) -> Vec<i64> {
    let batches: Vec<_> = events.iter().filter_map(|e| batch_of(e).map(|(b, _)| b)).collect();
    ids(&batches)
}

fn batch_of(event: &SourceEvent) -> Option<(RecordBatch, Option<Position>)> {
    match event {
        SourceEvent::Batch { batch, position, .. } => Some((batch.clone(), position.clone())),
        _ => None,
    }
}

fn feeding() -> (MemorySource, MemoryFeed, Split) {
    let (source, feed) = MemorySource::unbounded(vec![info()]);
    feed.add_split("p0");
    let split = Split { bounded: false, ..Split::new("p0", json!({ "split": "p0" })) };
    (source, feed, split)
}

#[tokio::test]
async fn every_position_gives_exactly_the_rest() {
    let source = MemorySource::new(schema(), vec![batch(0..7), batch(7..8), batch(8..8), batch(8..20)]);
    let split = changes(&source, None).await[0].added[0].clone();
    let events = read(&source, &split, None).await;
    assert_eq!(rows_of(&events), (0..20).collect::<Vec<_>>());
    let mut seen = 0;
    for (batch, position) in events.iter().filter_map(batch_of) {
        assert!(batch.num_rows() <= 3);
        seen += i64::try_from(batch.num_rows()).unwrap();
        let rest = read(&source, &split, position.as_ref()).await;
        assert_eq!(rows_of(&rest), (seen..20).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn batches_are_dealt_out_to_splits_that_keep_their_names() {
    let source = MemorySource::new(schema(), (0..5).map(|i| batch([i])).collect()).with_splits(2);
    let told = changes(&source, None).await;
    let splits = &told[0].added;
    assert_eq!(splits.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["rows/0", "rows/1"]);
    assert_eq!(rows_of(&read(&source, &splits[0], None).await), [0, 2, 4]);
    assert_eq!(rows_of(&read(&source, &splits[1], None).await), [1, 3]);
    assert_eq!(changes(&source, Some(told[0].position.clone())).await, []);
}

#[tokio::test]
async fn a_split_that_replays_whole_has_its_position_at_the_end() {
    let source = MemorySource::new(schema(), vec![batch(0..9)]).with_replay(Replay::WholeSplit);
    let split = changes(&source, None).await[0].added[0].clone();
    let events = read(&source, &split, None).await;
    assert!(events.iter().filter_map(batch_of).all(|(_, position)| position.is_none()));
    let SourceEvent::Progress(end) = &events[events.len() - 2] else { panic!("{events:?}") };
    assert!(matches!(
        read(&source, &split, Some(end)).await[..],
        [SourceEvent::Progress(_), SourceEvent::Finished]
    ));
    let inside = Position(json!({ "row": 3 }));
    let error = source.open(&cx(), &split, Some(&inside), &[]).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[tokio::test]
async fn without_replay_every_row_comes_once() {
    let source = MemorySource::new(schema(), vec![batch(0..9)]).with_replay(Replay::None);
    let split = changes(&source, None).await[0].added[0].clone();
    let scan = [ScanRequest::all(StreamId(0), 3)];
    let mut events = source.open(&cx(), &split, None, &scan).await.unwrap();
    events.next().await.unwrap().unwrap();
    drop(events);
    assert_eq!(rows_of(&read(&source, &split, None).await), [3, 4, 5, 6, 7, 8]);
}

#[tokio::test]
async fn a_fed_split_waits_is_revoked_and_comes_back() {
    let (source, feed, split) = feeding();
    feed.push("p0", batch(0..2)).unwrap();
    let scan = [ScanRequest::all(StreamId(0), 100)];
    let mut events = source.open(&cx(), &split, None, &scan).await.unwrap();
    let (rows, position) = batch_of(&events.next().await.unwrap().unwrap()).unwrap();
    assert_eq!(ids(&[rows]), [0, 1]);
    assert!(events.next().now_or_never().is_none());
    feed.revoke("p0").unwrap();
    feed.push("p0", batch(2..4)).unwrap();
    assert!(events.next().now_or_never().is_none());
    feed.add_split("p0");
    assert!(events.next().now_or_never().is_none(), "the old reader goes on");
    feed.finish();
    assert_eq!(rows_of(&read(&source, &split, position.as_ref()).await), [2, 3]);
    let told = changes(&source, None).await;
    let told: Vec<_> = told.iter().map(|c| (c.added.len(), c.revoked.len())).collect();
    assert_eq!(told, [(1, 0), (0, 1), (1, 0)]);
}

#[tokio::test]
async fn a_unit_has_one_position_and_is_not_cut() {
    let (source, feed, split) = feeding();
    feed.push_unit("p0", vec![(StreamId(0), batch(0..5)), (StreamId(0), batch(5..10))]).unwrap();
    feed.fail("p0", Error::unavailable("gone")).unwrap();
    feed.skip("p0", 4).unwrap();
    feed.finish();
    let scan = [ScanRequest::all(StreamId(0), 3)];
    let mut events = source.open(&cx(), &split, None, &scan).await.unwrap();
    assert_eq!(batch_of(&events.next().await.unwrap().unwrap()).unwrap().1, None);
    let position = batch_of(&events.next().await.unwrap().unwrap()).unwrap().1;
    assert_eq!(position, Some(Position(json!({ "row": 10 }))));
    assert_eq!(events.next().await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(events.next().await.is_none());
    let rest = read(&source, &split, position.as_ref()).await;
    let SourceEvent::Progress(end) = &rest[0] else { panic!("{rest:?}") };
    assert_eq!(*end, Position(json!({ "row": 14 })));
}

#[tokio::test]
async fn a_resumed_split_tells_of_the_schema_that_holds_there() {
    let (source, feed, split) = feeding();
    feed.push("p0", batch(0..2)).unwrap();
    let narrow = Arc::new(schema().project(&[0]).unwrap());
    feed.schema("p0", StreamId(0), narrow.clone()).unwrap();
    assert_eq!(feed.push("p0", batch(2..4)).unwrap_err().kind(), ErrorKind::Schema);
    feed.push("p0", batch(2..4).project(&[0]).unwrap()).unwrap();
    feed.finish();
    for row in [2, 3] {
        let rest = read(&source, &split, Some(&Position(json!({ "row": row })))).await;
        assert!(matches!(&rest[0], SourceEvent::Schema { schema, .. } if *schema == narrow), "{rest:?}");
        assert_eq!(rows_of(&rest), (row..4).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn released_rows_are_gone() {
    let source = MemorySource::new(schema(), vec![batch(0..9)]).releasing();
    let split = changes(&source, None).await[0].added[0].clone();
    let upto = [(split.id.clone(), Position(json!({ "row": 6 })))];
    source.acknowledge(&cx(), &upto).await.unwrap();
    assert_eq!(source.acknowledged()[&split.id], upto[0].1);
    assert_eq!(source.open(&cx(), &split, None, &[]).await.err().unwrap().kind(), ErrorKind::NotFound);
    assert_eq!(rows_of(&read(&source, &split, Some(&upto[0].1)).await), [6, 7, 8]);
}

fn lineage(claim: u64) -> Lineage {
    Lineage { id: "l".into(), sink: "out".into(), generation: 1, claim, run: format!("r{claim}") }
}

fn checkpoint(epoch: u64) -> CheckpointRecord {
    CheckpointRecord { epoch, generation: 1, last: false, json: Bytes::from_static(b"{}") }
}

async fn claimed(sink: &MemorySink, claim: u64) -> Box<dyn SinkSession> {
    let mut session = sink.open(&cx(), &[info()]).await.unwrap();
    session.claim(&lineage(claim)).await.unwrap();
    session
}

async fn stage(session: &mut dyn SinkSession, epoch: u64, rows: RecordBatch) -> Vec<Committable> {
    let mut writer = session.writer(LaneId(0)).await.unwrap();
    writer.write(StreamId(0), rows).await.unwrap();
    writer.prepare(epoch).await.unwrap().committables
}

#[tokio::test]
async fn staged_rows_outlive_their_session_and_are_published_once() {
    let table = MemoryTable::new();
    let sink = MemorySink::new(&table);
    let mut first = claimed(&sink, 1).await;
    let staged = stage(&mut *first, 1, batch(0..3)).await;
    let lost = stage(&mut *first, 2, batch(3..6)).await;
    assert_eq!((lost.len(), table.rows(), table.staged_count()), (1, 0, 2));
    let mut second = claimed(&sink, 2).await;
    assert_eq!(first.commit(1, &checkpoint(1), staged.clone()).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(first.claim(&lineage(1)).await.unwrap_err().kind(), ErrorKind::Fenced);
    second.commit(1, &checkpoint(1), staged.clone()).await.unwrap();
    second.commit(1, &checkpoint(1), staged.clone()).await.unwrap();
    assert_eq!((ids(&table.batches("rows")), table.epoch("out")), (vec![0, 1, 2], 1));
    second.discard(Discard::Older { claim: 2, keep: lost.clone() }).await.unwrap();
    assert_eq!(table.staged_count(), 1);
    second.discard(Discard::Older { claim: 2, keep: Vec::new() }).await.unwrap();
    assert_eq!(table.staged_count(), 0);
    assert_eq!(second.commit(2, &checkpoint(2), lost).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_atomic_epoch_goes_with_its_session_or_stays_with_its_checkpoint() {
    let table = MemoryTable::new();
    let sink = MemorySink::new(&table).with_mode(CommitMode::Atomic);
    let mut first = claimed(&sink, 1).await;
    stage(&mut *first, 1, batch(0..3)).await;
    drop(first);
    let mut second = claimed(&sink, 2).await;
    stage(&mut *second, 1, batch(3..6)).await;
    assert_eq!(table.rows(), 0);
    second.commit(1, &checkpoint(1), Vec::new()).await.unwrap();
    assert_eq!(ids(&table.batches("rows")), [3, 4, 5]);
    stage(&mut *second, 2, batch(6..9)).await;
    let mut third = sink.open(&cx(), &[info()]).await.unwrap();
    let found = third.claim(&lineage(3)).await.unwrap().unwrap();
    assert_eq!((found.epoch, found.checkpoint), (1, Some(checkpoint(1))));
    let late = second.commit(2, &checkpoint(2), Vec::new()).await.unwrap_err();
    assert_eq!((late.kind(), table.rows()), (ErrorKind::Fenced, 3));
}

#[tokio::test]
async fn rejects_of_a_commit_come_back_with_it() {
    for mode in [CommitMode::Staged, CommitMode::Atomic] {
        let table = MemoryTable::new();
        let odd = |b: &RecordBatch, row: usize| ids(&[b.slice(row, 1)])[0] % 2 == 1;
        let sink = MemorySink::new(&table)
            .with_mode(mode)
            .reject_at_commit_if(move |b, row| odd(b, row).then(|| "odd".into()));
        let mut session = claimed(&sink, 1).await;
        let staged = stage(&mut *session, 1, batch(0..4)).await;
        for _ in 0..2 {
            let rejects = session.commit(1, &checkpoint(1), staged.clone()).await.unwrap();
            assert_eq!(rejects.len(), 2);
        }
        assert_eq!(ids(&table.batches("rows")), [0, 2]);
        let found = session.claim(&lineage(2)).await.unwrap().unwrap();
        assert_eq!(found.rejects.len(), if mode == CommitMode::Atomic { 2 } else { 0 });
    }
}

#[tokio::test]
async fn another_lineage_takes_nothing() {
    let table = MemoryTable::new();
    let sink = MemorySink::new(&table);
    let mut mine = claimed(&sink, 1).await;
    let mut other = sink.open(&cx(), &[info()]).await.unwrap();
    let found = other.claim(&Lineage { id: "other".into(), ..lineage(9) }).await.unwrap().unwrap();
    assert_eq!(found.lineage, "l");
    let staged = stage(&mut *mine, 1, batch(0..1)).await;
    mine.commit(1, &checkpoint(1), staged).await.unwrap();
    assert_eq!(table.rows(), 1);
}

#[tokio::test]
async fn a_generation_replaces_the_rows_at_its_end_alone() {
    let table = MemoryTable::new();
    let mut old = claimed(&MemorySink::new(&table), 1).await;
    let staged = stage(&mut *old, 1, batch(0..3)).await;
    old.commit(1, &checkpoint(1), staged).await.unwrap();
    let sink = MemorySink::new(&table).with_publication(Publication::AtEnd);
    let mut session = claimed(&sink, 2).await;
    let mut staged = stage(&mut *session, 2, batch(10..12)).await;
    staged.extend(stage(&mut *session, 3, batch(12..14)).await);
    assert_eq!(ids(&table.batches("rows")), [0, 1, 2]);
    session.commit(3, &checkpoint(3), staged).await.unwrap();
    assert_eq!(ids(&table.batches("rows")), [10, 11, 12, 13]);
}

#[tokio::test]
async fn an_upsert_keeps_the_last_row_of_each_key() {
    let table = MemoryTable::new();
    let sink = MemorySink::new(&table).with_mode(CommitMode::Immediate).upserting();
    let mut session = claimed(&sink, 1).await;
    let mut writer = session.writer(LaneId(0)).await.unwrap();
    writer.write(StreamId(0), batch([1, 2, 3])).await.unwrap();
    writer.write(StreamId(0), batch([3, 4, 3])).await.unwrap();
    let mut got = ids(&table.batches("rows"));
    got.sort_unstable();
    assert_eq!(got, [1, 2, 3, 4]);
    claimed(&sink, 2).await;
    assert_eq!(writer.write(StreamId(0), batch([5])).await.unwrap_err().kind(), ErrorKind::Fenced);
}
