//! The splits that a lane has open: who has something to say, how far each has come, and what they say
//! of event time together.
//!
//! A lane may hold thousands of splits of which few speak at a time. So nothing that happens with an
//! event looks at all of them: a split is polled when it was woken, and what the lane must know of all
//! is kept up to date as it changes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures::StreamExt;
use futures::stream::BoxStream;
use futures::task::AtomicWaker;
use tracing::Span;

use super::narrow::Met;
use super::splits::SplitProgress;
use crate::error::Result;
use crate::event::{Position, SourceEvent, SplitId, StreamId};
use crate::source::Split;

/// What a split yields.
pub(crate) type Events = BoxStream<'static, Result<SourceEvent>>;

/// The open splits of one lane.
#[derive(Default)]
pub(crate) struct OpenSplits {
    /// A split keeps its slot as long as it is open.
    slots: Vec<Option<OpenSplit>>,
    free: Vec<usize>,
    opened: u64,
    /// Who is to be polled, in turn.
    ready: VecDeque<Turn>,
    /// Who is to be polled after the barrier.
    held: Vec<Turn>,
    woken: Arc<Woken>,
    count: usize,
    bounded: usize,
    /// How many stand inside a unit that must not be cut.
    inside: usize,
    /// The watermarks of those that are not idle, and how many have each.
    lows: BTreeMap<i64, usize>,
    /// How often it was looked for idle ones.
    looks: u64,
    /// Those that have moved since the last barrier, and how far those had come that are closed since.
    touched: Vec<Turn>,
    left: Vec<SplitProgress>,
}

/// One of them.
pub(crate) struct OpenSplit {
    pub(crate) split: Split,
    events: Events,
    span: Span,
    flag: Arc<Flag>,
    waker: Waker,
    /// The last position met.
    position: Option<Position>,
    /// Whether that position is where the split stands: not inside a unit that must not be cut.
    whole: bool,
    revoked: bool,
    touched: bool,
    /// By stream, those that have one.
    watermarks: BTreeMap<StreamId, i64>,
    /// The lowest of them.
    low: i64,
    /// The look before the last event.
    heard: u64,
    idle: bool,
    /// How the rows of each stream come.
    met: Vec<Option<Met>>,
}

/// A slot, and which of the splits that it has held is meant.
type Turn = (usize, u64);

/// Tells the lane that one split has something to say.
struct Flag {
    turn: Turn,
    /// It stands in one of the queues, and need not be put there again.
    queued: AtomicBool,
    woken: Arc<Woken>,
}

/// Who was woken since the lane looked last.
#[derive(Default)]
struct Woken {
    any: AtomicBool,
    turns: Mutex<Vec<Turn>>,
    lane: AtomicWaker,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.woken.turns.lock().unwrap_or_else(PoisonError::into_inner).push(self.turn);
            self.woken.any.store(true, Ordering::Release);
            self.woken.lane.wake();
        }
    }
}

impl OpenSplits {
    /// What is logged while a split is opened or read says which.
    pub(crate) fn span(split: &Split) -> Span {
        tracing::info_span!("split", split = %split.id)
    }

    /// Adds a split that stands at `position`.
    pub(crate) fn open(&mut self, split: Split, position: Option<Position>, events: Events, span: Span) {
        let slot = self.free.pop().unwrap_or(self.slots.len());
        self.opened += 1;
        let turn = (slot, self.opened);
        let flag = Arc::new(Flag { turn, queued: AtomicBool::new(true), woken: Arc::clone(&self.woken) });
        self.ready.push_back(turn);
        self.count += 1;
        self.bounded += usize::from(split.bounded);
        let open = OpenSplit {
            span,
            split,
            events,
            waker: Waker::from(Arc::clone(&flag)),
            flag,
            position,
            whole: true,
            revoked: false,
            touched: false,
            watermarks: BTreeMap::new(),
            low: i64::MIN,
            heard: self.looks,
            idle: false,
            met: Vec::new(),
        };
        self.add_low(open.low);
        if slot == self.slots.len() {
            self.slots.push(Some(open));
        } else {
            self.slots[slot] = Some(open);
        }
    }

    /// The next event of a split that was woken, in turn, with the split's slot. Before a barrier only
    /// those go on that stand inside a unit; the others wait for [`go_on`](Self::go_on).
    pub(crate) fn poll_next(
        &mut self,
        closing: bool,
        cx: &mut Context<'_>,
    ) -> Poll<(usize, Option<Result<SourceEvent>>)> {
        if self.woken.any.load(Ordering::Acquire) && self.woken.any.swap(false, Ordering::AcqRel) {
            let mut turns = self.woken.turns.lock().unwrap_or_else(PoisonError::into_inner);
            self.ready.extend(turns.drain(..));
        }
        // Those that wake themselves while they are polled must not keep the lane from its other work.
        for _ in 0..self.ready.len() {
            let Some(turn) = self.ready.pop_front() else { break };
            let Some(open) = at(&mut self.slots, turn) else { continue };
            if closing && open.whole {
                self.held.push(turn);
                continue;
            }
            // Not a store: what the stream looks at must not be looked at before.
            open.flag.queued.swap(false, Ordering::AcqRel);
            let _within = open.span.enter();
            if let Poll::Ready(event) = open.events.poll_next_unpin(&mut Context::from_waker(&open.waker)) {
                // There may be more, which nobody is woken for.
                if !open.flag.queued.swap(true, Ordering::AcqRel) {
                    self.ready.push_back(turn);
                }
                return Poll::Ready((turn.0, event));
            }
        }
        self.woken.lane.register(cx.waker());
        if self.woken.any.load(Ordering::Acquire) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// The barrier has passed.
    pub(crate) fn go_on(&mut self) {
        self.ready.extend(self.held.drain(..));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn has_bounded(&self) -> bool {
        self.bounded > 0
    }

    /// Whether an epoch may end here.
    pub(crate) fn may_be_cut(&self) -> bool {
        self.inside == 0
    }

    /// The split in a slot, which has just spoken.
    pub(crate) fn heard(&mut self, slot: usize) -> Option<&mut OpenSplit> {
        let open = self.slots.get_mut(slot)?.as_mut()?;
        open.heard = self.looks;
        if std::mem::take(&mut open.idle) {
            *self.lows.entry(open.low).or_default() += 1;
        }
        Some(open)
    }

    /// What came before `position` was read, or something inside a unit if it is `None`.
    pub(crate) fn moved(&mut self, slot: usize, position: Option<Position>) {
        let Some(open) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        if open.whole != position.is_some() {
            open.whole = position.is_some();
            self.inside = if open.whole { self.inside - 1 } else { self.inside + 1 };
        }
        if position.is_some() {
            open.position = position;
            if !std::mem::replace(&mut open.touched, true) {
                self.touched.push(open.flag.turn);
            }
        }
    }

    pub(crate) fn watermark(&mut self, slot: usize, stream: StreamId, micros: i64) {
        let Some(open) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        let known = open.watermarks.entry(stream).or_insert(micros);
        *known = micros.max(*known);
        let low = open.watermarks.values().min().copied().unwrap_or(i64::MIN);
        let before = std::mem::replace(&mut open.low, low);
        if !open.idle && before != low {
            self.remove_low(before);
            self.add_low(low);
        }
    }

    /// The split has ended.
    pub(crate) fn finished(&mut self, slot: usize) -> Option<Split> {
        self.close(slot, true)
    }

    /// The splits are no longer this lane's. Those that stand inside a unit stay open to its end.
    /// Returns those that are closed.
    pub(crate) fn revoke(&mut self, ids: &[SplitId]) -> Vec<Split> {
        if ids.is_empty() {
            return Vec::new();
        }
        let ids: BTreeSet<&SplitId> = ids.iter().collect();
        for open in self.slots.iter_mut().flatten() {
            open.revoked |= ids.contains(&open.split.id);
        }
        (0..self.slots.len()).filter_map(|slot| self.let_go(slot)).collect()
    }

    /// Closes a split that is revoked and stands between two units.
    pub(crate) fn let_go(&mut self, slot: usize) -> Option<Split> {
        let open = self.slots.get(slot)?.as_ref()?;
        if open.revoked && open.whole { self.close(slot, false) } else { None }
    }

    /// Takes the splits that have been silent for so many looks as idle.
    pub(crate) fn look_for_idle(&mut self, most: u64) {
        self.looks += 1;
        for slot in 0..self.slots.len() {
            if let Some(open) = &mut self.slots[slot]
                && !open.idle
                && self.looks - open.heard > most
            {
                open.idle = true;
                let low = open.low;
                self.remove_low(low);
            }
        }
    }

    /// The lowest watermark of the splits that are not idle; `None` if all are.
    pub(crate) fn lowest(&self) -> Option<i64> {
        self.lows.first_key_value().map(|(low, _)| *low)
    }

    /// How far the splits have come that have moved since this was asked last.
    pub(crate) fn progress(&mut self) -> Vec<SplitProgress> {
        let mut progress = std::mem::take(&mut self.left);
        for turn in std::mem::take(&mut self.touched) {
            let Some(open) = at(&mut self.slots, turn) else { continue };
            open.touched = false;
            progress.push(SplitProgress {
                id: open.split.id.clone(),
                position: open.position.clone(),
                finished: false,
                parked: false,
            });
        }
        progress
    }

    /// A stream's rows come otherwise from now on.
    pub(crate) fn forget_met(&mut self, stream: StreamId) {
        for open in self.slots.iter_mut().flatten() {
            if let Some(met) = open.met.get_mut(stream.0) {
                *met = None;
            }
        }
    }

    fn close(&mut self, slot: usize, finished: bool) -> Option<Split> {
        let closed = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        self.count -= 1;
        self.bounded -= usize::from(closed.split.bounded);
        self.inside -= usize::from(!closed.whole);
        if !closed.idle {
            self.remove_low(closed.low);
        }
        let OpenSplit { split, position, .. } = closed;
        self.left.push(SplitProgress { id: split.id.clone(), position, finished, parked: !finished });
        Some(split)
    }

    fn add_low(&mut self, low: i64) {
        *self.lows.entry(low).or_default() += 1;
    }

    fn remove_low(&mut self, low: i64) {
        if let Some(count) = self.lows.get_mut(&low) {
            *count -= 1;
            if *count == 0 {
                self.lows.remove(&low);
            }
        }
    }
}

impl OpenSplit {
    /// What is remembered of how the rows of a stream come.
    pub(crate) fn met(&mut self, stream: StreamId) -> &mut Option<Met> {
        if self.met.len() <= stream.0 {
            self.met.resize_with(stream.0 + 1, || None);
        }
        &mut self.met[stream.0]
    }
}

fn at(slots: &mut [Option<OpenSplit>], turn: Turn) -> Option<&mut OpenSplit> {
    slots.get_mut(turn.0)?.as_mut().filter(|open| open.flag.turn == turn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::channel::mpsc::{UnboundedSender, unbounded};
    use futures::{FutureExt, stream};
    use serde_json::json;
    use std::future::poll_fn;

    fn split(name: &str) -> Split {
        Split { bounded: false, ..Split::new(name, json!(null)) }
    }

    fn at(row: u64) -> Position {
        Position(json!({ "row": row }))
    }

    fn fed() -> (UnboundedSender<u64>, Events) {
        let (feed, from) = unbounded();
        (feed, from.map(|row| Ok(SourceEvent::Progress(at(row)))).boxed())
    }

    fn next(open: &mut OpenSplits, closing: bool) -> Option<usize> {
        poll_fn(|cx| open.poll_next(closing, cx)).now_or_never().map(|(slot, _)| slot)
    }

    #[test]
    fn splits_that_always_have_something_to_say_take_turns() {
        let mut open = OpenSplits::default();
        for i in 0..3 {
            let events = stream::repeat_with(|| Ok(SourceEvent::Progress(at(0)))).boxed();
            open.open(split(&i.to_string()), None, events, Span::none());
        }
        let (feed, events) = fed();
        open.open(split("quiet"), None, events, Span::none());
        let turns: Vec<_> = (0..6).map(|_| next(&mut open, false).unwrap()).collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
        feed.unbounded_send(1).unwrap();
        let turns: Vec<_> = (0..4).map(|_| next(&mut open, false).unwrap()).collect();
        assert_eq!(turns, [0, 1, 2, 3]);
    }

    #[test]
    fn before_a_barrier_only_units_go_on_and_after_it_nobody_is_forgotten() {
        let mut open = OpenSplits::default();
        let feeds: Vec<_> = (0..3)
            .map(|i| {
                let (feed, events) = fed();
                open.open(split(&i.to_string()), None, events, Span::none());
                feed
            })
            .collect();
        assert_eq!(next(&mut open, false), None);
        feeds.iter().for_each(|feed| feed.unbounded_send(1).unwrap());
        assert_eq!(next(&mut open, false), Some(0));
        open.moved(0, None);
        assert!(!open.may_be_cut());
        assert_eq!(next(&mut open, true), None, "1 and 2 wait, and 0 has no more yet");
        feeds[0].unbounded_send(2).unwrap();
        assert_eq!(next(&mut open, true), Some(0));
        open.moved(0, Some(at(2)));
        assert!(open.may_be_cut());
        feeds[0].unbounded_send(3).unwrap();
        assert_eq!(next(&mut open, true), None);
        open.go_on();
        let mut turns: Vec<_> = (0..3).map(|_| next(&mut open, false).unwrap()).collect();
        turns.sort_unstable();
        assert_eq!(turns, [0, 1, 2]);
        assert_eq!(next(&mut open, false), None);
    }

    #[test]
    fn a_revoked_split_leaves_between_two_units_and_says_where_it_stands() {
        let mut open = OpenSplits::default();
        for name in ["a", "b"] {
            open.open(split(name), Some(at(5)), fed().1, Span::none());
        }
        open.moved(0, None);
        let ids = [SplitId::new("a"), SplitId::new("b"), SplitId::new("c")];
        let closed: Vec<_> = open.revoke(&ids).into_iter().map(|s| s.id.to_string()).collect();
        assert_eq!(closed, ["b"]);
        assert!(open.let_go(0).is_none());
        open.moved(0, Some(at(7)));
        assert_eq!(open.let_go(0).unwrap().id, SplitId::new("a"));
        assert!(open.is_empty() && open.may_be_cut());
        assert_eq!(open.lowest(), None);
        let progress = open.progress();
        let stands: Vec<_> = progress.iter().map(|p| (p.id.as_str(), p.position.clone(), p.parked)).collect();
        assert_eq!(stands, [("b", Some(at(5)), true), ("a", Some(at(7)), true)]);
        assert!(open.progress().is_empty());
        // The slots are used again, and what was said of their old splits is not said of the new ones.
        open.open(split("c"), None, fed().1, Span::none());
        assert!(open.progress().is_empty());
    }

    #[test]
    fn the_lowest_watermark_is_that_of_splits_that_speak() {
        let mut open = OpenSplits::default();
        for name in ["a", "b"] {
            open.open(split(name), None, fed().1, Span::none());
        }
        assert_eq!(open.lowest(), Some(i64::MIN));
        open.watermark(0, StreamId(0), 10);
        open.watermark(0, StreamId(1), 7);
        open.watermark(1, StreamId(0), 20);
        assert_eq!(open.lowest(), Some(7));
        open.watermark(0, StreamId(1), 15);
        assert_eq!(open.lowest(), Some(10));
        for _ in 0..4 {
            open.look_for_idle(4);
            open.heard(1);
        }
        assert_eq!(open.lowest(), Some(10), "four looks later, b is not yet silent for four whole times");
        open.look_for_idle(4);
        assert_eq!(open.lowest(), Some(20));
        open.heard(0);
        assert_eq!(open.lowest(), Some(10));
        open.finished(0);
        assert_eq!(open.lowest(), Some(20));
    }
}
