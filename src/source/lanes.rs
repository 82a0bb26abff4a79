//! Which lanes a worker tries next: the memory one process has of one outbox's lanes. Pure; the
//! clock comes in as a parameter.
//!
//! Whether a lane is free is for the database to say, by a row lock. This only saves asking:
//! finding a lane that has work costs as much as a claim, so what the last claim found is
//! remembered.
//!
//! **Two ways to claim.** A *sweep* asks for every lane nobody in this process holds and takes those
//! that have work: one batch serves them all, which is what keeps latency low. A lane whose claim
//! came back full has a *backlog*; while any has, each worker takes one such lane at a time, so that
//! workers run side by side. Only one worker sweeps at a time, the others wait for a backlog.
//!
//! **Pauses.** After an empty sweep the pause is a tenth of the time since the last row, between the
//! two poll intervals: short while rows trickle, long when nobody writes. It is half as long where the last
//! number told as much (see `quiet`), which costs one round trip. No pause after rows.
//!
//! **Failures.** A lane whose batch failed waits out a backoff of its own and is tried with a single
//! row then. The size of claims adapts to the size of rows, from below.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

/// What a worker does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Try these lanes.
    Claim(Offer),
    /// Nothing to try before then, unless somebody wakes it.
    Wait(Instant),
}

/// Lanes one worker may try. They count as held until [`Lanes::taken`] or [`Lanes::released`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// In order of preference.
    pub(super) lanes: Vec<i32>,
    /// How many of them to take at most; a sweep takes all that have work.
    pub(super) take_max: i64,
    /// Whether only lanes that have work are wanted.
    pub(super) sweep: bool,
}

/// What a claim brought from one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claimed {
    pub(super) lane: i32,
    /// Rows asked for.
    pub(super) asked: i32,
    /// Rows that came, before any was put aside.
    pub(super) came: i32,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    limits: Limits,
    /// Rows in one claim, all its lanes together.
    claim_rows: u32,
    sweeping: bool,
    sweep_at: Instant,
    swept_at: Instant,
    /// When the worker that watches for the next sweep wakes; the others sleep longer.
    watched_at: Option<Instant>,
    last_row_at: Instant,
    /// Ticks at every claim, to find the lane served longest ago.
    claims: u64,
}

/// The limits of the config that matter here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) workers: usize,
    pub(super) claim_rows_max: u32,
    pub(super) claim_bytes_max: usize,
    pub(super) pause_min: Duration,
    pub(super) pause_max: Duration,
    pub(super) backoff_max: Duration,
    /// Attempts after which a failing lane is left alone; `None` goes on for ever.
    pub(super) attempts_max: Option<u32>,
}

#[derive(Debug)]
struct Lane {
    held: bool,
    backlog: bool,
    served: u64,
    not_before: Option<Instant>,
    backoff: Backoff,
}

/// The first claim of a process; later ones grow to what the rows' size allows.
const CLAIM_ROWS_FIRST: u32 = 64;
/// How long a lane that somebody else holds is left alone.
const TAKEN_PAUSE: Duration = Duration::from_millis(2);

impl Lanes {
    pub(super) fn new(lanes: u16, limits: Limits, now: Instant) -> Self {
        let lane = || Lane {
            held: false,
            backlog: false,
            served: 0,
            not_before: None,
            backoff: Backoff::new(Duration::from_millis(100), limits.backoff_max),
        };
        Self {
            lanes: (0..lanes).map(|_| lane()).collect(),
            limits,
            claim_rows: CLAIM_ROWS_FIRST.min(limits.claim_rows_max),
            sweeping: false,
            sweep_at: now,
            swept_at: now,
            watched_at: None,
            last_row_at: now,
            claims: 0,
        }
    }

    /// What the worker that asks should do now.
    pub(super) fn turn(&mut self, now: Instant) -> Turn {
        // lanes without a backlog must not starve beside those that always have one
        let overdue = now >= self.swept_at + self.limits.pause_max;
        if overdue && let Some(offer) = self.sweep(now, |lane| !lane.backlog) {
            return Turn::Claim(offer);
        }
        let mut backlog: Vec<i32> = self.indices(|lane| lane.free(now) && lane.backlog);
        if !backlog.is_empty() {
            backlog.sort_by_key(|lane| self.lane(*lane).served);
            // a few more than wanted: another relay may hold the first
            backlog.truncate(backlog.len().div_ceil(self.limits.workers));
            return Turn::Claim(self.offer(backlog, 1, false));
        }
        if now >= self.sweep_at
            && let Some(offer) = self.sweep(now, |_| true)
        {
            return Turn::Claim(offer);
        }
        let max = self.limits.attempts_max.unwrap_or(u32::MAX);
        let next = self
            .lanes
            .iter()
            .filter(|lane| !lane.held && lane.backlog && lane.backoff.failures() < max);
        let next = next.filter_map(|lane| lane.not_before).min();
        // the one who sweeps decides when the next sweep is
        let sweep_at = if self.sweeping {
            now + self.limits.pause_max
        } else {
            self.sweep_at.max(now + self.limits.pause_min)
        };
        let sweep_at = self.watch(sweep_at);
        Turn::Wait(next.map_or(sweep_at, |next| next.min(sweep_at)))
    }

    /// When the worker that asks should wake for the sweep at `sweep_at`: then, if it is the first to
    /// ask, and otherwise some time after the first should have.
    fn watch(&mut self, sweep_at: Instant) -> Instant {
        if !self.sweeping && self.watched_at != Some(sweep_at) {
            self.watched_at = Some(sweep_at);
            return sweep_at;
        }
        sweep_at + self.limits.pause_max * 10
    }

    /// An offer of every free lane that is `wanted`, unless somebody sweeps or there is none.
    fn sweep(&mut self, now: Instant, wanted: impl Fn(&Lane) -> bool) -> Option<Offer> {
        if self.sweeping {
            return None;
        }
        let free = self.indices(|lane| lane.free(now) && wanted(lane));
        if free.is_empty() {
            return None;
        }
        self.sweeping = true;
        self.swept_at = now;
        let take_max = i64::try_from(free.len()).unwrap_or(i64::MAX);
        Some(self.offer(free, take_max, true))
    }

    /// Of the lanes of `offer` the worker got `got`; the others are somebody else's or have no work.
    pub(super) fn taken(&mut self, offer: &Offer, got: &[i32], now: Instant) {
        for &lane in offer.lanes.iter().filter(|lane| !got.contains(lane)) {
            let sweep = offer.sweep;
            let lane = self.lane_mut(lane);
            lane.held = false;
            if sweep {
                // nothing there, so nothing that could fail again
                lane.backlog = false;
                lane.not_before = None;
                lane.backoff.reset();
            } else if lane.free(now) {
                lane.not_before = Some(now + TAKEN_PAUSE);
            }
        }
        self.swept(offer.sweep && got.is_empty(), false, now);
    }

    /// None of the lanes of `offer` was asked: no number was drawn since the last sweep, which found nothing.
    pub(super) fn nothing_new(&mut self, offer: &Offer, now: Instant) {
        self.taken(offer, &[], now);
        self.sweep_at = now + self.pause(now, 20);
    }

    /// The outbox is paused: nothing of `offer` is claimed, and nothing is known of what is there.
    pub(super) fn paused(&mut self, offer: &Offer, now: Instant) {
        for &lane in &offer.lanes {
            let lane = self.lane_mut(lane);
            lane.held = false;
            lane.backlog = false;
        }
        self.swept(offer.sweep, false, now);
    }

    /// The pauses between polls, from now on.
    pub(super) fn poll_every(&mut self, pause_min: Duration, pause_max: Duration) {
        (self.limits.pause_min, self.limits.pause_max) = (pause_min, pause_max);
    }

    /// How many rows to ask of each of `lanes` lanes, `lane` being one of them.
    pub(super) fn rows_of(&self, lane: i32, lanes: usize) -> i32 {
        if self.lane(lane).backoff.failures() > 0 {
            return 1;
        }
        let lanes = u32::try_from(lanes).unwrap_or(u32::MAX).max(1);
        i32::try_from((self.claim_rows / lanes).max(1)).unwrap_or(i32::MAX)
    }

    /// What a claim brought from each lane, and how many rows of how many bytes in all were `kept`.
    pub(super) fn claimed(
        &mut self,
        claimed: &[Claimed],
        kept: (usize, usize),
        sweep: bool,
        now: Instant,
    ) {
        let (rows, bytes) = kept;
        self.claims += 1;
        let claims = self.claims;
        for c in claimed {
            let lane = self.lane_mut(c.lane);
            lane.served = claims;
            lane.backlog = c.came >= c.asked;
            if c.came == 0 {
                lane.backoff.reset();
            }
        }
        if let Some(mean) = bytes.checked_div(rows) {
            let fitting =
                u32::try_from(self.limits.claim_bytes_max / mean.max(1)).unwrap_or(u32::MAX);
            let doubled = self.claim_rows.saturating_mul(2);
            self.claim_rows = fitting.min(doubled).clamp(1, self.limits.claim_rows_max);
        }
        if rows > 0 {
            self.last_row_at = now;
        }
        self.swept(sweep, rows > 0, now);
    }

    /// The batch with rows of `lanes` is settled; `failed` if it must be tried again.
    pub(super) fn settled(&mut self, lanes: &[i32], failed: bool, random: u32, now: Instant) {
        for &lane in lanes {
            let lane = self.lane_mut(lane);
            lane.held = false;
            if failed {
                lane.not_before = Some(now + lane.backoff.next(random));
            } else {
                lane.not_before = None;
                lane.backoff.reset();
            }
        }
        self.sweep_at = self.sweep_at.min(now);
    }

    /// The worker that held `lanes` lost them, or had nothing to settle; `sweep` if it was sweeping.
    pub(super) fn released(&mut self, lanes: &[i32], sweep: bool, now: Instant) {
        for &lane in lanes {
            self.lane_mut(lane).held = false;
        }
        self.swept(sweep, false, now);
    }

    /// Somebody heard of new rows: sweep now.
    pub(super) fn woken(&mut self, now: Instant) {
        self.last_row_at = now;
        self.sweep_at = self.sweep_at.min(now);
    }

    /// How long no row has come.
    pub(super) fn rested(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_row_at)
    }

    /// Whether there is a lane with a backlog that a waiting worker could take.
    pub(super) fn has_backlog(&self) -> bool {
        self.lanes.iter().any(|lane| lane.backlog && !lane.held)
    }

    /// Whether nobody in this process holds a lane and none is to be tried again.
    pub(super) fn at_rest(&self) -> bool {
        let tired = |lane: &Lane| {
            self.limits
                .attempts_max
                .is_some_and(|max| lane.backoff.failures() >= max)
        };
        self.lanes.iter().all(|lane| {
            !lane.held && (tired(lane) || (!lane.backlog && lane.backoff.failures() == 0))
        })
    }

    /// A sweep, if it was one, is over, with or without rows.
    pub(super) fn swept(&mut self, sweep: bool, rows: bool, now: Instant) {
        if !sweep {
            return;
        }
        self.sweeping = false;
        if rows {
            self.last_row_at = now;
            self.sweep_at = now;
        } else {
            self.sweep_at = now + self.pause(now, 10);
        }
    }

    /// One of so many parts of the time since the last row, between the two poll intervals.
    fn pause(&self, now: Instant, parts: u32) -> Duration {
        (self.rested(now) / parts).clamp(self.limits.pause_min, self.limits.pause_max)
    }

    fn offer(&mut self, lanes: Vec<i32>, take_max: i64, sweep: bool) -> Offer {
        for &lane in &lanes {
            self.lane_mut(lane).held = true;
        }
        Offer {
            lanes,
            take_max,
            sweep,
        }
    }

    /// Whether every lane that is not at rest has failed too often to be tried again.
    pub(super) fn given_up(&self) -> bool {
        let max = self.limits.attempts_max.unwrap_or(u32::MAX);
        self.lanes
            .iter()
            .all(|lane| !lane.held && lane.backoff.failures() >= max)
    }

    fn indices(&self, wanted: impl Fn(&Lane) -> bool) -> Vec<i32> {
        let max = self.limits.attempts_max.unwrap_or(u32::MAX);
        (0_i32..)
            .zip(&self.lanes)
            .filter(|(_, lane)| wanted(lane) && lane.backoff.failures() < max)
            .map(|(index, _)| index)
            .collect()
    }

    fn lane(&self, lane: i32) -> &Lane {
        &self.lanes[usize::try_from(lane).expect("lanes are not negative")]
    }

    fn lane_mut(&mut self, lane: i32) -> &mut Lane {
        &mut self.lanes[usize::try_from(lane).expect("lanes are not negative")]
    }
}

impl Lane {
    fn free(&self, now: Instant) -> bool {
        !self.held && self.not_before.is_none_or(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn limits() -> Limits {
        Limits {
            workers: 2,
            claim_rows_max: 1_000,
            claim_bytes_max: 100_000,
            pause_min: 2 * MS,
            pause_max: 100 * MS,
            backoff_max: 1_000 * MS,
            attempts_max: None,
        }
    }

    fn claim(turn: Turn) -> Offer {
        match turn {
            Turn::Claim(offer) => offer,
            Turn::Wait(_) => panic!("expected lanes to claim"),
        }
    }

    fn wait(turn: Turn) -> Instant {
        match turn {
            Turn::Wait(until) => until,
            Turn::Claim(offer) => panic!("expected to wait, got {offer:?}"),
        }
    }

    /// A sweep that took the lanes `got` and found `came` of `asked` rows in each.
    fn sweep(lanes: &mut Lanes, got: &[i32], asked: i32, came: i32, now: Instant) {
        let offer = claim(lanes.turn(now));
        assert!(offer.sweep);
        lanes.taken(&offer, got, now);
        let claimed: Vec<_> = got
            .iter()
            .map(|&lane| Claimed { lane, asked, came })
            .collect();
        let rows = got.len() * usize::try_from(came).unwrap();
        lanes.claimed(&claimed, (rows, rows * 10), true, now);
    }

    #[test]
    fn one_worker_sweeps_and_the_other_waits() {
        let now = Instant::now();
        let mut lanes = Lanes::new(4, limits(), now);
        let offer = claim(lanes.turn(now));
        assert_eq!(
            (offer.lanes.as_slice(), offer.take_max, offer.sweep),
            (&[0, 1, 2, 3][..], 4, true)
        );
        assert!(wait(lanes.turn(now)) > now);
    }

    #[test]
    fn one_worker_watches_and_the_others_sleep_longer() {
        let now = Instant::now();
        let mut lanes = Lanes::new(4, limits(), now);
        let offer = claim(lanes.turn(now));
        lanes.taken(&offer, &[], now);
        let first = wait(lanes.turn(now));
        assert!(first <= now + 2 * MS);
        assert!(wait(lanes.turn(now)) > first + 500 * MS);
        // the watcher comes back, sweeps and watches again
        let offer = claim(lanes.turn(first));
        lanes.taken(&offer, &[], first);
        assert!(wait(lanes.turn(first)) <= first + 100 * MS);
    }

    #[test]
    fn pauses_grow_with_the_quiet_and_end_with_a_row() {
        let start = Instant::now();
        let mut lanes = Lanes::new(4, limits(), start);
        let mut pause_at = |quiet: u32| {
            let now = start + quiet * MS;
            lanes.woken(start);
            lanes.sweep_at = now;
            let offer = claim(lanes.turn(now));
            lanes.taken(&offer, &[], now);
            wait(lanes.turn(now)) - now
        };
        assert_eq!(
            [pause_at(0), pause_at(50), pause_at(600), pause_at(5_000)],
            [2 * MS, 5 * MS, 60 * MS, 100 * MS]
        );
        // the last number says that there is nothing new
        lanes.woken(start);
        let quiet = start + 600 * MS;
        lanes.sweep_at = quiet;
        let offer = claim(lanes.turn(quiet));
        lanes.nothing_new(&offer, quiet);
        assert_eq!(wait(lanes.turn(quiet)) - quiet, 30 * MS);
        let now = start + 6_000 * MS;
        lanes.woken(now);
        sweep(&mut lanes, &[1], 10, 3, now);
        assert_eq!(
            claim(lanes.turn(now)).lanes,
            [0, 2, 3],
            "at once again after rows"
        );
    }

    #[test]
    fn under_a_backlog_each_worker_takes_a_lane_of_its_own_the_longest_unserved_first() {
        let now = Instant::now();
        let mut lanes = Lanes::new(4, limits(), now);
        sweep(&mut lanes, &[0, 1, 2, 3], 10, 10, now);
        lanes.settled(&[0, 1, 2, 3], false, 0, now);
        let first = claim(lanes.turn(now));
        let second = claim(lanes.turn(now));
        assert_eq!(
            (first.lanes.len(), first.take_max, first.sweep),
            (2, 1, false)
        );
        assert_eq!(second.lanes.len(), 1);
        lanes.taken(&first, &first.lanes[..1], now);
        lanes.claimed(
            &[Claimed {
                lane: first.lanes[0],
                asked: 5,
                came: 5,
            }],
            (5, 50),
            false,
            now,
        );
        lanes.settled(&first.lanes[..1], false, 0, now);
        let third = claim(lanes.turn(now + 10 * MS));
        assert_eq!(third.lanes[0], first.lanes[1], "not the one just served");
    }

    #[test]
    fn a_lane_that_always_has_a_backlog_does_not_starve_the_others() {
        let now = Instant::now();
        let mut lanes = Lanes::new(4, limits(), now);
        sweep(&mut lanes, &[0], 10, 10, now);
        lanes.settled(&[0], false, 0, now);
        assert!(!claim(lanes.turn(now)).sweep);
        let later = claim(lanes.turn(now + 100 * MS));
        assert_eq!(
            (later.lanes.as_slice(), later.sweep),
            (&[1, 2, 3][..], true)
        );
    }

    #[test]
    fn a_lane_somebody_else_holds_is_tried_again_a_little_later() {
        let now = Instant::now();
        let mut lanes = Lanes::new(1, limits(), now);
        sweep(&mut lanes, &[0], 10, 10, now);
        lanes.settled(&[0], false, 0, now);
        let offer = claim(lanes.turn(now));
        lanes.taken(&offer, &[], now);
        assert!(wait(lanes.turn(now)) <= now + TAKEN_PAUSE);
        assert!(!claim(lanes.turn(now + TAKEN_PAUSE)).sweep);
    }

    #[test]
    fn a_failed_lane_waits_and_then_tries_a_single_row() {
        let now = Instant::now();
        let mut lanes = Lanes::new(2, limits(), now);
        sweep(&mut lanes, &[0, 1], 10, 3, now);
        lanes.settled(&[0], true, 0, now);
        lanes.settled(&[1], false, 0, now);
        assert_eq!(claim(lanes.turn(now)).lanes, [1], "the failed one waits");
        assert_eq!((lanes.rows_of(0, 1), lanes.rows_of(1, 1) > 1), (1, true));
        lanes.settled(&[0], false, 0, now);
        assert!(
            lanes.rows_of(0, 1) > 1,
            "after a success it is like any other"
        );
    }

    #[test]
    fn claims_grow_from_below_and_shrink_to_what_the_bytes_allow() {
        let now = Instant::now();
        let mut lanes = Lanes::new(1, limits(), now);
        let mut claimed = |rows: usize, bytes: usize| {
            lanes.claimed(&[], (rows, bytes), false, now);
            lanes.rows_of(0, 1)
        };
        let first = i32::try_from(CLAIM_ROWS_FIRST).unwrap();
        assert_eq!(
            [claimed(64, 640), claimed(128, 1280)],
            [first * 2, first * 4]
        );
        assert_eq!(claimed(10, 500_000), 2, "two rows of 50 kB fit 100 kB");
        assert_eq!(claimed(1, 500_000), 1, "never none");
        assert_eq!(claimed(1, 10), 2, "and back again, doubling");
    }

    #[test]
    fn everything_is_at_rest_only_when_nothing_is_held_failed_or_full() {
        let now = Instant::now();
        let mut lanes = Lanes::new(
            2,
            Limits {
                attempts_max: Some(2),
                ..limits()
            },
            now,
        );
        assert!(lanes.at_rest());
        sweep(&mut lanes, &[0], 10, 10, now);
        assert!(!lanes.at_rest(), "held");
        lanes.settled(&[0], false, 0, now);
        assert!(!lanes.at_rest(), "full");
        let offer = claim(lanes.turn(now));
        lanes.taken(&offer, &[0], now);
        lanes.claimed(
            &[Claimed {
                lane: 0,
                asked: 5,
                came: 1,
            }],
            (1, 10),
            false,
            now,
        );
        lanes.settled(&[0], true, 0, now);
        assert!(!lanes.at_rest(), "failed once");
        lanes.settled(&[0], true, 0, now);
        assert!(lanes.at_rest(), "failed often enough to be left alone");
    }
}
