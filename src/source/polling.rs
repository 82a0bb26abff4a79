//! The polling publisher: claims rows of lanes under locks, and settles them in the same
//! transaction.
//!
//! **One batch is one transaction.** Lock the lane rows; in a second statement, whose snapshot has
//! all that the lanes' last holder committed, claim the oldest pending rows of those lanes; publish;
//! settle; commit. No lease and no clock: Postgres frees the locks of whoever dies, and its time-outs
//! those of whoever freezes.
//!
//! **Invariants**
//! - An aggregate's rows are claimed by one transaction at a time, whichever relay it belongs to:
//!   all of them are in one lane, and the lane's row is locked first.
//! - Within a batch they come in `seq` order without a gap. A row that a foreign transaction has
//!   locked would make one: the claim fails on it, and those of the next two seconds pass over such rows
//!   instead and count; the rows of its aggregate behind it are put aside.
//! - Claims begin behind what `settled` knows to be settled.
//! - Aggregates that wait behind a parked row are named in the batch, read after the lock.
//!
//! **Failures.** Any error closes the connection, so the claim is gone and its rows are free. What
//! Kafka had acknowledged by then is published again: a duplicate, never a loss. A commit whose
//! answer is lost is either of the two.
//!
//! **Drawback chosen.** A connection stays in a transaction while Kafka acknowledges, at most for
//! the publish time-out. Leases would free it, at the price of clocks, of two more writes for each
//! row, and of zombies that settle what they no longer own.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::barrier::Barrier;
use super::claiming::{Filter, Rows};
use super::decode::Place;
use super::held::Holding;
use super::lanes::{Lanes, Limits, Offer, Turn};
use super::parking::{PARKED_PAUSE, Parked, parked_state};
use super::partitions::Leaves;
use super::passing::Passing;
use super::quiet::Quiet;
use super::session::Session;
use super::settled::{Closing, Parts, begin_anew};
use super::sql::Statements;
use super::taking::Taken;
use super::{Batch, Error, Judged, Next, Source};
use crate::config::Database;
use crate::ops::controls::Controls;
use crate::ops::{Mistake, Poll, Progress, Step, Tally, failpoint, is_news, makes, random};
use crate::record::Encoding;
use crate::route::Waiting;
use crate::settle::Verdict;

/// How long the claims pass over what waited when the worker asked, before it must ask again.
const WAITING_LOOK: Duration = Duration::from_millis(500);

/// How long every claim minds rows that somebody else has locked, after one was met: it asks twice then.
const CAREFUL: Duration = Duration::from_secs(2);

/// What the workers of one outbox share in this process.
#[derive(Debug)]
pub struct Polling {
    pub(super) outbox: String,
    pub(super) routing: String,
    encoding: Encoding,
    pub(super) until_empty: bool,
    /// The number of lanes that the statements were rendered for.
    pub(super) lanes_count: u16,
    pub(super) statements: Statements,
    /// Stands between claiming and publishing, where the outbox wants it.
    barrier: Option<Barrier>,
    /// Asks a new connection whether it leads to the right database.
    pub(super) identity: OnceLock<String>,
    /// What somebody outside wants.
    pub(super) controls: OnceLock<Arc<Controls>>,
    workers: usize,
    pub(super) memory: Mutex<Memory>,
    /// Told when a worker that waits may have something to do.
    pub(super) wake: Notify,
    /// Lanes whose rows workers of this process have in hand.
    in_hand: AtomicU16,
}

/// What earlier claims taught.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) lanes: Lanes,
    /// Aggregates with a row somebody else has locked, and until when they are passed over.
    pub(super) locked: HashMap<String, Instant>,
    /// How far claims need not look while topics are paused.
    pub(super) passing: Passing,
    /// What is known of the numbers that were drawn.
    pub(super) closing: Closing,
    /// What is known of an outbox at rest.
    pub(super) quiet: Quiet,
    /// Until when rows that somebody else has locked are to be expected.
    pub(super) careful_until: Instant,
    pub(super) parked_after: Instant,
    /// What is known of the parked rows.
    pub(super) holding: Holding,
    /// Whether a sweep of everything found nothing; only heeded when running until empty.
    pub(super) empty: bool,
    /// Whether the workers are to let go, because the start checks must look again.
    pub(super) leave: bool,
}

/// What [`Polling::new`] needs beside the statements.
#[derive(Debug)]
pub(super) struct Settings<'a> {
    pub(super) outbox: String,
    pub(super) routing: String,
    pub(super) until_empty: bool,
    pub(super) lanes: u16,
    pub(super) encoding: Encoding,
    pub(super) barrier: Option<Barrier>,
    pub(super) relay: &'a crate::config::Relay,
}

impl Polling {
    /// What is made of its rows, knowing its columns.
    #[must_use]
    pub fn encoding(&self) -> &Encoding {
        &self.encoding
    }

    pub(super) fn new(settings: Settings<'_>, statements: Statements) -> Self {
        let Settings {
            outbox,
            routing,
            until_empty,
            lanes,
            encoding,
            barrier,
            relay,
        } = settings;
        let limits = Limits {
            workers: relay.workers,
            claim_rows_max: relay.claim_rows_max,
            claim_bytes_max: relay.claim_bytes_max,
            pause_min: relay.poll_interval_min,
            pause_max: relay.poll_interval_max,
            backoff_max: relay.retry_backoff_max,
            attempts_max: until_empty.then_some(3),
        };
        let now = Instant::now();
        let lanes_count = lanes;
        let passing = Passing::new(lanes, now);
        let closing = Closing::new(lanes, now);
        let lanes = Lanes::new(lanes, limits, now);
        let memory = Memory {
            lanes,
            locked: HashMap::new(),
            passing,
            closing,
            quiet: Quiet::default(),
            careful_until: now,
            parked_after: now,
            holding: Holding::new(now),
            empty: false,
            leave: false,
        };
        Self {
            outbox,
            routing,
            encoding,
            until_empty,
            lanes_count,
            statements,
            barrier,
            identity: OnceLock::new(),
            controls: OnceLock::new(),
            workers: relay.workers,
            memory: Mutex::new(memory),
            wake: Notify::new(),
            in_hand: AtomicU16::new(0),
        }
    }

    /// Somebody heard of new rows: poll now.
    pub fn woken(&self) {
        self.memory(|memory| {
            memory.lanes.woken(Instant::now());
            memory.quiet.woken();
        });
        self.wake.notify_one();
    }

    /// Asks every worker to let go: the table is to be looked at again.
    pub fn leave(&self) {
        self.memory(|memory| memory.leave = true);
        self.wake.notify_waiters();
    }

    /// The number of lanes in force, and how many of them workers of this process have in hand.
    #[must_use]
    pub fn lanes(&self) -> (u16, u16) {
        (self.lanes_count, self.in_hand.load(Ordering::Relaxed))
    }

    /// From now on every new connection of a worker is asked this.
    pub(super) fn identified_by(&self, question: String) {
        self.identity.get_or_init(|| question);
    }

    /// From now on the claims heed `controls`, and tell them what is paused.
    pub fn heed(&self, controls: &Arc<Controls>) {
        self.controls.get_or_init(|| Arc::clone(controls));
    }

    /// The pauses between polls, from now on.
    pub fn poll_every(&self, pause_min: Duration, pause_max: Duration) {
        self.memory(|memory| memory.lanes.poll_every(pause_min, pause_max));
        self.wake.notify_waiters();
    }

    /// Most rows that a claim may ask of each of `lanes` lanes.
    fn rows_max(&self, lanes: usize) -> i32 {
        let rate = self.controls.get().map(|controls| controls.rate());
        let rows = rate.and_then(|rate| rate.claim_rows_max(self.workers));
        let lanes = u32::try_from(lanes.max(1)).unwrap_or(u32::MAX);
        rows.map_or(i32::MAX, |rows| {
            i32::try_from((rows / lanes).max(1)).unwrap_or(i32::MAX)
        })
    }

    pub(super) fn statements(&self) -> &Statements {
        &self.statements
    }

    pub(super) fn memory<T>(&self, act: impl FnOnce(&mut Memory) -> T) -> T {
        // a panic elsewhere leaves at worst a lane that counts as held; the process ends on it
        act(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One worker's hand on the outbox: a connection, and a batch at a time.
#[derive(Debug)]
pub struct PollingSource {
    pub(super) polling: Arc<Polling>,
    pub(super) session: Session,
    pub(super) claim_bytes_max: usize,
    /// What is known of the table's partitions, if it has any.
    pub(super) leaves: Leaves,
    /// Who counts what this worker does, and who watches that it does something.
    watched: Option<(Arc<Tally>, Arc<Progress>)>,
    /// Whether the last claim brought as many rows of some lane as were asked for.
    full: bool,
    /// How many rows the last claim brought.
    pub(super) rows_before: usize,
}

/// What was claimed, for settling it.
#[derive(Debug)]
pub struct Receipt {
    held: HeldLanes,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    /// The place of each event's row, and what was taken of each lane.
    Outbox(Vec<Place>, Option<Parts>),
    /// The parked row of each event, and its aggregate.
    Parked(Vec<(i64, String)>),
}

/// What became of a claim.
#[derive(Debug)]
enum Claim {
    /// Events to publish.
    Batch(Batch<Receipt>),
    /// There was nothing to publish after all.
    Nothing,
    /// Parked rows were dealt with; what they held back was not looked at yet.
    Settled,
    /// Somebody else has a row locked, which the next attempt minds.
    Again,
}

/// Lanes this process holds; given back when dropped, whatever happened.
#[derive(Debug)]
struct HeldLanes {
    polling: Arc<Polling>,
    lanes: Vec<i32>,
    /// Whether the sweep that took them is still going on.
    sweeping: bool,
    /// Whether a claim of them is under way. One that does not end well is not made again as it
    /// was: it may have been too large.
    claiming: bool,
    /// How many of them count as in hand.
    counted: u16,
}

impl HeldLanes {
    fn settled(mut self, failed: bool) {
        let lanes = std::mem::take(&mut self.lanes);
        let random = random();
        self.polling
            .memory(|memory| memory.lanes.settled(&lanes, failed, random, Instant::now()));
    }
}

impl HeldLanes {
    /// The worker got `lanes`.
    fn taken(&mut self, lanes: &[i32]) {
        lanes.clone_into(&mut self.lanes);
        self.counted = u16::try_from(lanes.len()).unwrap_or(0);
        self.polling
            .in_hand
            .fetch_add(self.counted, Ordering::Relaxed);
    }
}

impl Drop for HeldLanes {
    fn drop(&mut self) {
        let now = Instant::now();
        self.polling
            .in_hand
            .fetch_sub(self.counted, Ordering::Relaxed);
        self.polling.memory(|memory| {
            if self.claiming {
                memory.lanes.settled(&self.lanes, true, random(), now);
            }
            memory.lanes.released(&self.lanes, self.sweeping, now);
        });
    }
}

impl PollingSource {
    /// A worker for the outbox that `polling` describes. Connects when it first claims.
    ///
    /// # Errors
    /// The database URL is none.
    pub fn new(
        polling: &Arc<Polling>,
        database: &Database,
        relay: &crate::config::Relay,
    ) -> Result<Self, Error> {
        Ok(Self {
            polling: Arc::clone(polling),
            session: Session::new(database)?,
            claim_bytes_max: relay.claim_bytes_max,
            leaves: Leaves::new(),
            watched: None,
            full: false,
            rows_before: 0,
        })
    }

    /// This worker counts what it does into `tally`, and tells `progress` of each step.
    #[must_use]
    pub(crate) fn watched(mut self, tally: &Arc<Tally>, progress: &Arc<Progress>) -> Self {
        self.watched = Some((Arc::clone(tally), Arc::clone(progress)));
        self
    }

    fn at(&self, step: Step) {
        if let Some((_, progress)) = &self.watched {
            progress.at(step);
        }
    }

    /// Counts a claim that took as long as it is since `began`.
    fn polled(&self, claim: &Result<Claim, Error>, began: Instant) {
        let Some((tally, _)) = &self.watched else {
            return;
        };
        let (poll, rows) = match claim {
            Ok(Claim::Batch(batch)) if self.full => (Poll::Full, batch.events.len()),
            Ok(Claim::Batch(batch)) => (Poll::Partial, batch.events.len()),
            Ok(Claim::Nothing | Claim::Settled | Claim::Again) => (Poll::Empty, 0),
            Err(_) => (Poll::Error, 0),
        };
        tally.polled(poll, rows, began.elapsed());
    }

    /// Claims from the lanes of `offer`; what was claimed is past the flush barrier, if there is one.
    async fn claim_safely(&mut self, offer: Offer, waiting: &Waiting) -> Result<Claim, Error> {
        let claim = self.claim(offer, waiting).await?;
        if let (Claim::Batch(_), Some(barrier)) = (&claim, &self.polling.barrier) {
            barrier.pass().await?;
        }
        Ok(claim)
    }

    /// Claims from the lanes of `offer`.
    async fn claim(&mut self, offer: Offer, waiting: &Waiting) -> Result<Claim, Error> {
        failpoint("claim_before");
        let polling = Arc::clone(&self.polling);
        let sweeping = offer.sweep;
        let mut held = HeldLanes {
            polling: Arc::clone(&polling),
            lanes: offer.lanes.clone(),
            sweeping,
            claiming: false,
            counted: 0,
        };
        self.full = false;
        if self.nothing_new(&offer).await? {
            held.lanes.clear();
            held.sweeping = false;
            polling.memory(|memory| memory.lanes.nothing_new(&offer, Instant::now()));
            return Ok(Claim::Nothing);
        }
        let Some(taken) = self.take_lanes(&offer).await? else {
            held.lanes.clear();
            held.sweeping = false;
            polling.memory(|memory| memory.lanes.paused(&offer, Instant::now()));
            self.session.end("rollback").await?;
            return Ok(Claim::Nothing);
        };
        let Taken {
            lanes,
            settled,
            decided,
            last,
        } = taken;
        held.taken(&lanes);
        if let Some((tally, _)) = &self.watched {
            let taken = u64::try_from(lanes.len()).unwrap_or(0);
            tally.count(|counted| counted.lanes_taken += taken);
        }
        polling.memory(|memory| {
            memory.lanes.taken(&offer, &lanes, Instant::now());
            memory.quiet.found(last, lanes.is_empty());
        });
        if lanes.is_empty() {
            held.sweeping = false;
            self.session.end("rollback").await?;
            return Ok(Claim::Nothing);
        }
        if !decided.is_empty() {
            match self.claim_parked(&decided, waiting).await? {
                Parked::None => {}
                Parked::Settled => return Ok(Claim::Settled),
                Parked::Claimed(events, rows) => {
                    // (dropping the sweep's flag here: the lanes were not asked for rows)
                    polling.memory(|memory| memory.lanes.swept(sweeping, true, Instant::now()));
                    held.sweeping = false;
                    let receipt = Receipt {
                        held,
                        origin: Origin::Parked(rows),
                    };
                    return Ok(Claim::Batch(Batch {
                        events,
                        held: HashSet::new(),
                        receipt,
                    }));
                }
            }
        }

        let filter = self.filter(waiting);
        let rows_max = polling.rows_max(lanes.len());
        let asked = polling.memory(|memory| {
            lanes
                .iter()
                .map(|lane| memory.lanes.rows_of(*lane, lanes.len()).min(rows_max))
                .collect::<Vec<_>>()
        });
        self.look_what_is_closed().await?;
        let since = self.session.process_since();
        let (careful, closed) = polling.memory(|memory| {
            (
                Instant::now() < memory.careful_until,
                since.and_then(|since| memory.closing.closed(since)),
            )
        });
        let settled_of = |lane: i32| settled.get(&lane).copied();
        let place_of = |lane: i32| Filter::place(filter.as_ref(), lane, settled_of(lane));
        let places: Vec<i64> = lanes.iter().map(|lane| place_of(*lane)).collect();
        held.claiming = true;
        let claimed = self.claim_rows(&lanes, &asked, &places, filter.as_ref(), careful);
        let mut rows = match claimed.await {
            Err(error) if !careful && error.met_a_lock() => {
                held.claiming = false;
                polling.memory(|memory| memory.careful_until = Instant::now() + CAREFUL);
                self.session.end("rollback").await?;
                return Ok(Claim::Again);
            }
            claimed => claimed?,
        };
        held.claiming = false;
        let came = rows.came(&lanes, &asked);
        self.full = came.iter().any(|lane| lane.came >= lane.asked);
        polling.memory(|memory| {
            let (kept, now) = ((rows.rows.len(), rows.bytes), Instant::now());
            memory.lanes.claimed(&came, kept, sweeping, now);
            if memory.lanes.has_backlog() {
                polling.wake.notify_waiters();
            }
        });
        held.sweeping = false;
        let mut passed = HashMap::new();
        if careful && !makes(Mistake::NoLaneLock) {
            let aside = self.put_locked_aside(&mut rows, place_of, filter.as_ref());
            passed = aside.await?;
            if !passed.is_empty() {
                polling.memory(|memory| memory.careful_until = Instant::now() + CAREFUL);
            }
        }
        if makes(Mistake::SeqCursor) {
            rows.retain(|_, event| is_news(event.seq));
        }
        if rows.rows.is_empty() {
            self.session.end("rollback").await?;
            return Ok(Claim::Nothing);
        }
        let held_keys = self.held_keys(&rows.rows, &rows.events).await?;
        failpoint("claim_after");
        // what a filter passes over is not settled
        let parts = closed.filter(|_| filter.is_none()).map(|closed| {
            Parts::of(&rows.rows, closed, settled_of, |lane| {
                passed.get(&lane).copied()
            })
        });
        let Rows { rows, events, .. } = rows;
        let places = rows.iter().map(|row| row.place).collect();
        let receipt = Receipt {
            held,
            origin: Origin::Outbox(places, parts),
        };
        Ok(Claim::Batch(Batch {
            events,
            held: held_keys,
            receipt,
        }))
    }

    async fn settle_all(&mut self, receipt: &Receipt, judged: &Judged<'_>) -> Result<(), Error> {
        failpoint("settle_before");
        let mut parts = None;
        match &receipt.origin {
            Origin::Outbox(places, taken) => {
                self.settle_outbox(places, judged).await?;
                parts = taken.as_ref();
            }
            Origin::Parked(rows) => {
                let state = |verdict| match verdict {
                    &Verdict::Done => Some(("done", None)),
                    Verdict::Park(reason, policy) => Some((parked_state(*policy), Some(reason))),
                    Verdict::Behind => Some(("behind", None)),
                    Verdict::Release => None,
                };
                let settled: Vec<_> = (rows.iter().zip(judged.verdicts))
                    .filter_map(|((id, _), verdict)| state(verdict).map(|(s, r)| (*id, s, r)))
                    .collect();
                let keys: HashSet<&str> = rows.iter().map(|(_, key)| key.as_str()).collect();
                let keys: Vec<&str> = keys.into_iter().collect();
                if settled.len() < rows.len() {
                    let after = Instant::now() + PARKED_PAUSE;
                    self.polling.memory(|memory| memory.parked_after = after);
                }
                self.settle_parked(&settled, &keys).await?;
            }
        }
        failpoint("settle_before_commit");
        self.commit_settled(parts, judged.events, judged.verdicts)
            .await?;
        failpoint("settle_after_commit");
        Ok(())
    }
}

impl Source for PollingSource {
    type Receipt = Receipt;

    async fn next(
        &mut self,
        waiting: &Waiting,
        stop: &CancellationToken,
    ) -> Result<Next<Receipt>, Error> {
        let polling = Arc::clone(&self.polling);
        let asked_at = Instant::now();
        loop {
            let waits = !waiting.topics.is_empty() || !waiting.keys.is_empty();
            if waits && asked_at.elapsed() > WAITING_LOOK {
                return Ok(Next::Idle);
            }
            if stop.is_cancelled() {
                return Ok(Next::Stopped);
            }
            if let Err(error) = self.pass_waiting(waiting).await {
                self.session.discard();
                return Err(error);
            }
            let wake = polling.wake.notified();
            // the end comes first: a turn takes lanes, and who ends would never give them back
            let turn = polling.memory(|memory| {
                let empty = memory.empty || memory.lanes.given_up();
                let ended = memory.leave || (polling.until_empty && empty);
                (!ended).then(|| memory.lanes.turn(Instant::now()))
            });
            let Some(turn) = turn else {
                let leave = polling.memory(|memory| memory.leave);
                return Ok(if leave { Next::Stopped } else { Next::Empty });
            };
            match turn {
                Turn::Claim(offer) => {
                    let sweep = offer.sweep;
                    self.at(Step::Claiming);
                    let began = Instant::now();
                    let claim = self.claim_safely(offer, waiting).await;
                    self.polled(&claim, began);
                    match claim {
                        Ok(Claim::Batch(batch)) => return Ok(Next::Batch(batch)),
                        Ok(Claim::Nothing) if sweep => {
                            let empty = polling.memory(|memory| memory.lanes.at_rest());
                            // before it ends, what somebody put back is found
                            if empty && polling.until_empty {
                                match begin_anew(&mut self.session, &polling).await {
                                    Ok(0) => {}
                                    Ok(_) => continue,
                                    Err(error) => {
                                        self.session.discard();
                                        return Err(error);
                                    }
                                }
                            }
                            polling.memory(|memory| memory.empty = empty);
                            if empty && polling.until_empty {
                                polling.wake.notify_waiters();
                            }
                        }
                        Ok(Claim::Nothing | Claim::Settled | Claim::Again) => {}
                        Err(error) => {
                            self.session.discard();
                            return Err(error);
                        }
                    }
                }
                Turn::Wait(until) => {
                    self.at(Step::WaitingForRows);
                    tokio::select! {
                        () = stop.cancelled() => return Ok(Next::Stopped),
                        () = wake => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
            }
        }
    }

    async fn settle(&mut self, receipt: Receipt, judged: &Judged<'_>) -> Result<(), Error> {
        let began = Instant::now();
        let settled = self.settle_all(&receipt, judged).await;
        if let Some((tally, _)) = &self.watched {
            tally.asked("settle", began.elapsed());
        }
        match settled {
            Ok(()) => {
                receipt.held.settled(judged.failed);
                Ok(())
            }
            Err(error) => {
                self.session.discard();
                self.leaves.clear();
                receipt.held.settled(true);
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sql::{Table, Timeouts};
    use super::*;
    use crate::config::{Layout, OnPublished, Relay, Secret, TableName};

    const SECOND: Duration = Duration::from_secs(1);

    /// A worker of an outbox whose server does not exist.
    fn worker() -> (Arc<Polling>, PollingSource) {
        let name = TableName::parse("outbox").unwrap();
        let table = Table {
            name: &name,
            layout: &Layout::default(),
            on_published: OnPublished::Mark,
            lanes: 4,
            payload_is_bytea: false,
            partitioned: false,
        };
        let timeouts = Timeouts {
            statement_ms: 1,
            idle_ms: 1,
            tcp_ms: 1,
        };
        let relay = Relay {
            workers: 2,
            producers: 1,
            claim_rows_max: 100,
            claim_bytes_max: 1_000,
            poll_interval_min: SECOND,
            poll_interval_max: SECOND,
            publish_timeout: SECOND,
            retry_backoff_max: SECOND,
            drain_timeout: SECOND,
            sample_interval: Duration::from_secs(2),
            sweep_interval: Duration::from_secs(60),
        };
        let settings = Settings {
            outbox: name.to_string(),
            routing: String::new(),
            until_empty: true,
            lanes: table.lanes,
            encoding: Encoding::default(),
            barrier: None,
            relay: &relay,
        };
        let database = Database {
            url: Secret::new("postgres://127.0.0.1:9/none"),
            url_file: None,
            password: None,
            password_file: None,
            connect_timeout: SECOND,
            statement_timeout: SECOND,
            prepared_statements: true,
        };
        let polling = Arc::new(Polling::new(settings, Statements::render(table, timeouts)));
        let source = PollingSource::new(&polling, &database, &relay).unwrap();
        (polling, source)
    }

    #[tokio::test]
    async fn a_worker_that_ends_takes_no_lane_with_it() {
        let stop = CancellationToken::new();
        for empty in [true, false] {
            let (polling, mut source) = worker();
            polling.memory(|memory| memory.empty = empty);
            if !empty {
                polling.leave();
            }
            let next = source.next(&Waiting::default(), &stop).await.unwrap();
            match empty {
                true => assert!(matches!(next, Next::Empty)),
                false => assert!(matches!(next, Next::Stopped)),
            }
            // or the others would wait for those lanes for ever
            assert!(polling.memory(|memory| memory.lanes.at_rest()));
        }
    }
}
