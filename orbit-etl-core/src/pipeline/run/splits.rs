//! Which splits a source has, which lane reads which, and how far each has come.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::checkpoint::{SourceState, SplitState};
use crate::event::{Position, SplitId};
use crate::signal::{Listener, Signal};
use crate::source::{Split, SplitChange};

/// The splits of one source, shared by its enumerator, its lanes and the coordinator.
///
/// What the checkpoint says of a split (`position`, `parked`, gone because finished) changes only
/// by [`Splits::acknowledged_by_lane`], which is called with what a lane had read at a barrier. So a
/// snapshot taken when the last lane has reached the barrier is consistent, however far the lanes
/// have read since.
#[derive(Debug)]
pub(crate) struct Splits {
    board: Mutex<Board>,
    changed: Signal,
}

#[derive(Debug)]
struct Board {
    known: BTreeMap<SplitId, Known>,
    enumerator: Option<Position>,
    enumerated: bool,
    /// Bounded splits that any lane may open.
    queue: VecDeque<SplitId>,
    /// Splits that name others which must be committed first.
    waiting: Vec<SplitId>,
    lanes: Vec<Lane>,
    /// Came back while they were being revoked: read on from where the next barrier finds them.
    coming_back: BTreeSet<SplitId>,
    /// Finished at the last barrier, to be reported as committed.
    finished: BTreeSet<SplitId>,
}

#[derive(Debug)]
struct Known {
    split: Split,
    position: Option<Position>,
    parked: bool,
    /// A lane is told to leave it, or has left it; where it stands is known at the next barrier.
    revoking: bool,
    /// A lane has read it to its end; it is forgotten at the next barrier.
    ended: bool,
}

#[derive(Debug, Default)]
struct Lane {
    reading: BTreeSet<SplitId>,
    to_open: Vec<SplitId>,
    to_revoke: Vec<SplitId>,
    unbounded: usize,
}

/// What a lane is to do next.
#[derive(Debug, Default)]
pub(crate) struct LaneWork {
    pub(crate) open: Vec<(Split, Option<Position>)>,
    pub(crate) revoke: Vec<SplitId>,
    /// Nothing is left and nothing can come.
    pub(crate) exhausted: bool,
    /// Everything left waits for a commit.
    pub(crate) stuck: bool,
}

/// How far a lane had come with a split at a barrier.
#[derive(Debug)]
pub(crate) struct SplitProgress {
    pub(crate) id: SplitId,
    pub(crate) position: Option<Position>,
    pub(crate) finished: bool,
    pub(crate) parked: bool,
}

impl Splits {
    pub(crate) fn new(lanes: usize, state: Option<SourceState>) -> Self {
        let state = state.unwrap_or_default();
        let mut board = Board {
            known: BTreeMap::new(),
            enumerator: state.enumerator,
            enumerated: false,
            queue: VecDeque::new(),
            waiting: Vec::new(),
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
            coming_back: BTreeSet::new(),
            finished: BTreeSet::new(),
        };
        for SplitState { split, position, parked } in state.splits {
            let id = split.id.clone();
            board.known.insert(id, Known { position, parked, ..Known::new(split) });
        }
        let ready: Vec<_> = board.known.iter().filter(|(_, k)| !k.parked).map(|(id, _)| id.clone()).collect();
        ready.into_iter().for_each(|id| board.assign(id));
        Self { board: Mutex::new(board), changed: Signal::default() }
    }

    pub(crate) fn subscribe(&self) -> Listener {
        self.changed.subscribe()
    }

    pub(crate) fn enumerator(&self) -> Option<Position> {
        self.lock().enumerator.clone()
    }

    pub(crate) fn change(&self, change: SplitChange) {
        let mut board = self.lock();
        let mut ready = Vec::new();
        for split in change.added {
            let id = split.id.clone();
            match board.known.get_mut(&id) {
                None => {
                    board.known.insert(id.clone(), Known::new(split));
                    ready.push(id);
                }
                Some(known) if known.ended => {}
                Some(known) if known.revoking => {
                    board.coming_back.insert(id);
                }
                Some(known) => {
                    if std::mem::take(&mut known.parked) {
                        ready.push(id);
                    }
                }
            }
        }
        // Only now is it known which of them wait for one another.
        ready.into_iter().for_each(|id| board.assign(id));
        for id in change.revoked {
            board.revoke(&id);
        }
        board.enumerator = Some(change.position);
        drop(board);
        self.wake();
    }

    /// No further split will come.
    pub(crate) fn enumerated(&self) {
        self.lock().enumerated = true;
        self.wake();
    }

    /// `wants_bounded` says that the lane has no bounded split open.
    pub(crate) fn work(&self, lane: usize, wants_bounded: bool) -> LaneWork {
        let mut board = self.lock();
        if wants_bounded && let Some(id) = board.queue.pop_front() {
            board.lanes[lane].to_open.push(id);
        }
        let mine = &mut board.lanes[lane];
        let to_open = std::mem::take(&mut mine.to_open);
        let revoke = std::mem::take(&mut mine.to_revoke);
        mine.reading.extend(to_open.iter().cloned());
        let open: Vec<_> = to_open
            .iter()
            .filter_map(|id| board.known.get(id))
            .map(|known| (known.split.clone(), known.position.clone()))
            .collect();
        let idle = open.is_empty() && board.queue.is_empty();
        LaneWork {
            exhausted: idle && board.enumerated && board.waiting.is_empty() && board.coming_back.is_empty(),
            stuck: board.is_stuck(),
            open,
            revoke,
        }
    }

    /// Whether only a commit can bring something to read. To be asked again when a lane's request is
    /// handled: another lane's may have been heard before.
    pub(crate) fn is_stuck(&self) -> bool {
        self.lock().is_stuck()
    }

    /// The lane reads this split no more, as it has ended or was revoked; the other lanes may now be
    /// stuck.
    pub(crate) fn closed(&self, lane: usize, split: &Split, ended: bool) {
        let mut board = self.lock();
        if let Some(known) = board.known.get_mut(&split.id) {
            known.ended = ended;
        }
        board.lanes[lane].reading.remove(&split.id);
        if !split.bounded {
            board.lanes[lane].unbounded -= 1;
        }
        let others_may_be_stuck = !board.waiting.is_empty() || !board.coming_back.is_empty();
        drop(board);
        if others_may_be_stuck {
            self.wake();
        }
    }

    /// What a lane had read at a barrier. Returns the positions to acknowledge with that epoch.
    pub(crate) fn acknowledged_by_lane(&self, progress: Vec<SplitProgress>) -> Vec<(SplitId, Position)> {
        let mut board = self.lock();
        let mut positions = Vec::new();
        let mut back = Vec::new();
        for SplitProgress { id, position, finished, parked } in progress {
            if let Some(position) = &position {
                positions.push((id.clone(), position.clone()));
            }
            if finished {
                board.known.remove(&id);
                board.coming_back.remove(&id);
                board.finished.insert(id);
                continue;
            }
            let comes_back = parked && board.coming_back.remove(&id);
            if let Some(known) = board.known.get_mut(&id) {
                if position.is_some() {
                    known.position = position;
                }
                if parked {
                    known.revoking = false;
                    known.parked = !comes_back;
                }
            }
            if comes_back {
                back.push(id);
            }
        }
        if !back.is_empty() {
            back.into_iter().for_each(|id| board.assign(id));
            drop(board);
            self.wake();
        }
        positions
    }

    pub(crate) fn snapshot(&self) -> SourceState {
        let board = self.lock();
        SourceState {
            enumerator: board.enumerator.clone(),
            splits: board
                .known
                .iter()
                .map(|(id, k)| SplitState {
                    split: k.split.clone(),
                    position: k.position.clone(),
                    // The enumerator has told of it and won't again.
                    parked: k.parked || (k.revoking && !board.coming_back.contains(id)),
                })
                .collect(),
            ended: board.enumerated && board.known.is_empty(),
        }
    }

    /// The epoch that holds the last snapshot is committed: what waited for its splits may open.
    pub(crate) fn committed(&self) {
        let mut board = self.lock();
        if std::mem::take(&mut board.finished).is_empty() || board.waiting.is_empty() {
            return;
        }
        for id in std::mem::take(&mut board.waiting) {
            board.assign(id);
        }
        drop(board);
        self.wake();
    }

    fn wake(&self) {
        self.changed.bump();
    }

    /// A panic elsewhere can't leave the board half changed: no method panics midway.
    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn new(split: Split) -> Self {
        Self { split, position: None, parked: false, revoking: false, ended: false }
    }
}

impl Board {
    fn is_stuck(&self) -> bool {
        let resting = |lane: &Lane| lane.reading.is_empty() && lane.to_open.is_empty();
        let held_back = !self.waiting.is_empty() || !self.coming_back.is_empty();
        held_back && self.queue.is_empty() && self.lanes.iter().all(resting)
    }

    fn assign(&mut self, id: SplitId) {
        let Some(known) = self.known.get(&id) else { return };
        let held_back = |other: &SplitId| self.known.contains_key(other) || self.finished.contains(other);
        if known.split.after.iter().any(held_back) {
            self.waiting.push(id);
        } else if known.split.bounded {
            self.queue.push_back(id);
        } else if let Some(lane) = self.lanes.iter_mut().min_by_key(|l| l.unbounded) {
            lane.unbounded += 1;
            lane.to_open.push(id);
        }
    }

    fn revoke(&mut self, id: &SplitId) {
        self.coming_back.remove(id);
        if self.known.get(id).is_some_and(|known| known.revoking || known.ended) {
            return;
        }
        self.queue.retain(|queued| queued != id);
        self.waiting.retain(|waiting| waiting != id);
        for lane in &mut self.lanes {
            let before = lane.to_open.len();
            lane.to_open.retain(|other| other != id);
            if before != lane.to_open.len() && self.known.get(id).is_some_and(|k| !k.split.bounded) {
                lane.unbounded -= 1;
            }
            if lane.reading.contains(id) {
                lane.to_revoke.push(id.clone());
                if let Some(known) = self.known.get_mut(id) {
                    known.revoking = true;
                }
                return;
            }
        }
        if let Some(known) = self.known.get_mut(id) {
            known.parked = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn added(name: &str) -> SplitChange {
        let split = Split::new(name, json!(null));
        SplitChange { added: vec![split], revoked: Vec::new(), position: Position(json!("told")) }
    }

    #[test]
    fn a_revocation_that_a_lane_has_not_yet_heard_of_is_in_the_checkpoint() {
        let revoked = || SplitChange {
            revoked: vec![SplitId::new("s")],
            added: Vec::new(),
            position: Position(json!(2)),
        };
        let splits = Splits::new(1, None);
        splits.change(added("s"));
        assert_eq!(splits.work(0, true).open.len(), 1);
        let read = |row: u64| SplitProgress {
            id: SplitId::new("s"),
            position: Some(Position(json!(row))),
            finished: false,
            parked: false,
        };
        splits.acknowledged_by_lane(vec![read(5)]);
        splits.change(revoked());
        let after_a_crash = Splits::new(1, Some(splits.snapshot()));
        assert!(after_a_crash.work(0, true).open.is_empty(), "nobody would take it away again");
        after_a_crash.change(added("s"));
        assert_eq!(after_a_crash.work(0, true).open[0].1, Some(Position(json!(5))));
        splits.change(added("s"));
        let given_back = Splits::new(1, Some(splits.snapshot()));
        assert_eq!(given_back.work(0, true).open.len(), 1, "nobody would give it back again");
    }

    #[test]
    fn a_split_that_has_ended_is_forgotten_with_its_epoch_and_not_before() {
        let splits = Splits::new(1, None);
        splits.change(added("s"));
        let (split, _) = splits.work(0, true).open.remove(0);
        splits.closed(0, &split, true);
        // Opened now it would be read from where the last checkpoint has it.
        let revoked = vec![SplitId::new("s")];
        splits.change(SplitChange { revoked, added: Vec::new(), position: Position(json!("told")) });
        splits.change(added("s"));
        assert!(splits.work(0, true).open.is_empty());
        let position = Some(Position(json!(10)));
        let id = SplitId::new("s");
        splits.acknowledged_by_lane(vec![SplitProgress { id, position, finished: true, parked: false }]);
        assert!(splits.snapshot().splits.is_empty());
        splits.change(added("s"));
        let (_, position) = splits.work(0, true).open.remove(0);
        assert_eq!(position, None);
    }
}
