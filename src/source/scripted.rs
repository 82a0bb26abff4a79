//! An outbox in memory and the source that claims from it, for tests. It keeps to what Postgres
//! keeps to, lanes locked by open claims above all, and it fails when it is told to, also in the way
//! that leaves nobody sure whether the commit took place.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Batch, Error, Judged, Next, Source};
use crate::event::Event;
use crate::route::{Kind, Waiting};
use crate::settle::{Policy, Verdict};

/// How long a claim passes over what waits before the worker must ask the sink again.
const WAITING_LOOK: Duration = Duration::from_millis(100);
/// How often a worker looks that nobody woke.
const POLL: Duration = Duration::from_millis(20);
/// How long a lane rests after a claim that left some of its rows pending.
const REST: Duration = Duration::from_millis(10);

/// What the source is about to do.
#[derive(Debug)]
pub enum Step<'a> {
    /// Claim rows.
    Claim,
    /// Settle a batch.
    Settle(&'a Judged<'a>),
}

/// What becomes of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fate {
    /// How long it takes: half of it before it holds, half of it after.
    pub pause: Duration,
    /// How it fails, if it does.
    pub fault: Option<Fault>,
}

/// A failure. The worker cannot tell one from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing of the step holds.
    Undone,
    /// The step holds, and the word of it is lost. A claim is gone with its connection.
    Unheard,
}

/// Decides what becomes of each step, in the order in which they are made.
pub type Script = Box<dyn FnMut(Step<'_>) -> Fate + Send>;

/// Where a row is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a transaction of its writer's: nobody sees it.
    Uncommitted,
    /// In the outbox.
    Pending,
    /// Published, as far as the relay says.
    Done,
    /// Parked, and its aggregate waits.
    Parked,
    /// Parked, and its aggregate went on.
    Dead,
    /// Parked, behind another.
    Behind,
}

/// What happened to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// It was made, of these rows.
    Claimed(u64, Vec<i64>),
    /// It was settled, and each of its rows with it.
    Settled(u64, Vec<(i64, Verdict)>),
    /// It was given back without a word.
    Dropped(u64),
    /// The worker did what it must not.
    Broken(String),
}

/// An outbox and the hold a test has on it: clones share everything.
#[derive(Debug, Clone)]
pub struct ScriptedOutbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    lanes: u64,
    rows: BTreeMap<i64, (Event, Place)>,
    seq: i64,
    claims: u64,
    /// Lanes that an open claim has locked.
    locked: HashSet<u64>,
    resting: HashMap<u64, Instant>,
    history: Vec<Entry>,
    script: Option<Script>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("rows", &self.rows)
            .field("locked", &self.locked)
            .finish_non_exhaustive()
    }
}

impl ScriptedOutbox {
    /// An empty outbox with so many lanes.
    #[must_use]
    pub fn new(lanes: u64) -> Self {
        let state = State {
            lanes: lanes.max(1),
            rows: BTreeMap::new(),
            seq: 0,
            claims: 0,
            locked: HashSet::new(),
            resting: HashMap::new(),
            history: Vec::new(),
            script: None,
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: Notify::new(),
            }),
        }
    }

    /// What becomes of each step from now on; `None`: each succeeds at once.
    pub fn set_script(&self, script: Option<Script>) {
        self.shared.state().script = script;
    }

    /// A writer inserts an event, in a transaction that is still open: it gets its `seq` now.
    pub fn insert(&self, mut event: Event) -> i64 {
        let mut state = self.shared.state();
        state.seq += 1;
        let seq = state.seq;
        event.seq = seq;
        state.rows.insert(seq, (event, Place::Uncommitted));
        seq
    }

    /// The writer commits.
    pub fn commit(&self, seqs: &[i64]) {
        let mut state = self.shared.state();
        for seq in seqs {
            if let Some((_, place)) = state.rows.get_mut(seq) {
                *place = Place::Pending;
            }
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// The writer rolls back.
    pub fn roll_back(&self, seqs: &[i64]) {
        self.shared
            .state()
            .rows
            .retain(|seq, _| !seqs.contains(seq));
    }

    /// Every row there is, in `seq` order.
    #[must_use]
    pub fn rows(&self) -> Vec<(Event, Place)> {
        self.shared.state().rows.values().cloned().collect()
    }

    /// What happened to the claims, in order.
    #[must_use]
    pub fn history(&self) -> Vec<Entry> {
        self.shared.state().history.clone()
    }

    /// How many lanes are locked by open claims.
    #[must_use]
    pub fn locked(&self) -> usize {
        self.shared.state().locked.len()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, step: Step<'_>) -> Fate {
        // out of the lock: a script may look at the outbox
        let script = self.state().script.take();
        let Some(mut script) = script else {
            return Fate::default();
        };
        let fate = script(step);
        self.state().script.get_or_insert(script);
        fate
    }
}

impl State {
    /// Sums of letters do for the few aggregates of a test.
    fn lane_of(&self, key: &str) -> u64 {
        key.bytes().map(u64::from).sum::<u64>() % self.lanes
    }

    fn pending<'a>(&'a self, waiting: &'a Waiting) -> impl Iterator<Item = &'a Event> {
        let pending = |(event, place): &'a (Event, Place)| {
            let waits =
                waiting.kinds.contains(&Kind::of(event)) || waiting.keys.contains(event.key());
            (*place == Place::Pending && !waits).then_some(event)
        };
        self.rows.values().filter_map(pending)
    }

    /// Lanes with pending rows that nobody has and that do not rest, the oldest row's first.
    fn free(&self, waiting: &Waiting) -> Vec<u64> {
        let now = Instant::now();
        let mut free = Vec::new();
        for event in self.pending(waiting) {
            let lane = self.lane_of(event.key());
            let rests = self.resting.get(&lane).is_some_and(|until| *until > now);
            if !rests && !self.locked.contains(&lane) && !free.contains(&lane) {
                free.push(lane);
            }
        }
        free
    }

    /// Aggregates that wait behind a parked row.
    fn held(&self) -> HashSet<String> {
        let holds = |place: &Place| matches!(place, Place::Parked | Place::Behind);
        let rows = self.rows.values().filter(|(_, place)| holds(place));
        rows.map(|(event, _)| event.key().to_owned()).collect()
    }

    /// Gives rows their verdicts; what a worker must never ask for is noted.
    fn settle(&mut self, seqs: &[i64], judged: &Judged<'_>) -> Vec<(i64, Verdict)> {
        let same = judged.events.iter().map(|event| event.seq);
        if !same.eq(seqs.iter().copied()) || judged.verdicts.len() != seqs.len() {
            let text = "a batch was not settled as it was claimed".to_owned();
            self.history.push(Entry::Broken(text));
        }
        let mut held = self.held();
        for (event, verdict) in judged.events.iter().zip(judged.verdicts) {
            let is_held = held.contains(event.key());
            let place = match verdict {
                Verdict::Release => continue,
                Verdict::Done => Place::Done,
                Verdict::Park(_, Policy::Block) => Place::Parked,
                Verdict::Park(_, Policy::DeadLetter) => Place::Dead,
                Verdict::Behind => Place::Behind,
            };
            if is_held != (place == Place::Behind) {
                let text = format!(
                    "row {} is {place:?}, and its aggregate {}",
                    event.seq,
                    if is_held { "waits" } else { "does not wait" }
                );
                self.history.push(Entry::Broken(text));
            }
            if place == Place::Parked {
                held.insert(event.key().to_owned());
            }
            match self.rows.get_mut(&event.seq) {
                Some((_, at)) if *at == Place::Pending => *at = place,
                other => {
                    let text = format!("row {} is {other:?}, and {verdict:?}", event.seq);
                    self.history.push(Entry::Broken(text));
                }
            }
        }
        let pairs = seqs.iter().copied().zip(judged.verdicts.iter().cloned());
        pairs.collect()
    }
}

/// One worker's hand on the outbox.
#[derive(Debug)]
pub struct ScriptedSource {
    outbox: ScriptedOutbox,
    rows_max: usize,
    lanes_max: usize,
    until_empty: bool,
}

impl ScriptedSource {
    /// A worker that claims so many rows of so many lanes at once. `until_empty`: whether it ends
    /// when nothing is pending.
    #[must_use]
    pub fn new(
        outbox: &ScriptedOutbox,
        rows_max: usize,
        lanes_max: usize,
        until_empty: bool,
    ) -> Self {
        Self {
            outbox: outbox.clone(),
            rows_max,
            lanes_max,
            until_empty,
        }
    }

    fn claim(&self, waiting: &Waiting) -> Option<Batch<Claim>> {
        let mut state = self.outbox.shared.state();
        let mut lanes = state.free(waiting);
        lanes.truncate(self.lanes_max);
        let rows = |lane: &u64| {
            let of_lane = |event: &&Event| state.lane_of(event.key()) == *lane;
            let rows = state.pending(waiting).filter(of_lane).cloned();
            rows.take(self.rows_max).collect::<Vec<_>>()
        };
        let events: Vec<Event> = lanes.iter().flat_map(rows).collect();
        if events.is_empty() {
            return None;
        }
        let seqs: Vec<i64> = events.iter().map(|event| event.seq).collect();
        state.claims += 1;
        let id = state.claims;
        state.locked.extend(&lanes);
        state.history.push(Entry::Claimed(id, seqs.clone()));
        let held = state.held();
        drop(state);
        Some(Batch {
            events,
            held,
            receipt: Claim {
                shared: Arc::clone(&self.outbox.shared),
                id,
                lanes,
                seqs,
                open: true,
            },
        })
    }
}

/// An open claim: what a transaction is to Postgres. Dropping it gives the rows back.
#[derive(Debug)]
pub struct Claim {
    shared: Arc<Shared>,
    id: u64,
    lanes: Vec<u64>,
    seqs: Vec<i64>,
    open: bool,
}

impl Claim {
    fn settle(mut self, judged: &Judged<'_>) {
        let mut state = self.shared.state();
        let settled = state.settle(&self.seqs, judged);
        let pending = |seq| matches!(state.rows.get(seq), Some((_, Place::Pending)));
        if self.seqs.iter().any(pending) {
            let until = Instant::now() + REST;
            let rest = self.lanes.iter().map(|lane| (*lane, until));
            state.resting.extend(rest);
        }
        state.history.push(Entry::Settled(self.id, settled));
        drop(state);
        self.open = false;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        for lane in &self.lanes {
            state.locked.remove(lane);
        }
        if self.open {
            state.history.push(Entry::Dropped(self.id));
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }
}

fn failure(doing: &'static str) -> Error {
    Error::Silence {
        doing,
        after: Duration::ZERO,
    }
}

impl Source for ScriptedSource {
    type Receipt = Claim;

    async fn next(
        &mut self,
        waiting: &Waiting,
        stop: &CancellationToken,
    ) -> Result<Next<Claim>, Error> {
        let asked = Instant::now();
        let outbox = self.outbox.clone();
        loop {
            if stop.is_cancelled() {
                return Ok(Next::Stopped);
            }
            if !waiting.topics.is_empty() && asked.elapsed() > WAITING_LOOK {
                return Ok(Next::Idle);
            }
            let changed = outbox.shared.changed.notified();
            let (work, empty) = {
                let state = outbox.shared.state();
                let none = Waiting::default();
                let empty = state.pending(&none).next().is_none();
                (!state.free(waiting).is_empty(), empty)
            };
            if work {
                let fate = outbox.shared.ask(Step::Claim);
                sleep(fate.pause / 2).await;
                let batch = match fate.fault {
                    Some(Fault::Undone) => return Err(failure("claim")),
                    _ => self.claim(waiting),
                };
                sleep(fate.pause / 2).await;
                if fate.fault.is_some() {
                    return Err(failure("claim"));
                }
                // else somebody else was quicker
                if let Some(batch) = batch {
                    return Ok(Next::Batch(batch));
                }
                continue;
            }
            if self.until_empty && empty {
                return Ok(Next::Empty);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = changed => {}
                () = sleep(POLL) => {}
            }
        }
    }

    async fn settle(&mut self, receipt: Claim, judged: &Judged<'_>) -> Result<(), Error> {
        let fate = self.outbox.shared.ask(Step::Settle(judged));
        sleep(fate.pause / 2).await;
        if fate.fault == Some(Fault::Undone) {
            return Err(failure("settle"));
        }
        receipt.settle(judged);
        sleep(fate.pause / 2).await;
        match fate.fault {
            Some(_) => Err(failure("settle")),
            None => Ok(()),
        }
    }
}
