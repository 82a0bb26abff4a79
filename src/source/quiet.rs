//! Knowing that nothing is new without a look at the table: an outbox at rest costs one short question a
//! poll, and not a transaction. Rest begins between two rows that are some milliseconds apart: there the question
//! may be asked more often than the table could be looked at.
//!
//! **When it is known.** The last number that was drawn was read; then nobody was left who writes to the
//! table; then a look at all lanes found none with work. An insert takes its lock on the table before it draws
//! its number and gives it up after its commit can be seen (see `settled`), so whatever comes has drawn
//! another number. While the sequence says the same, there is nothing to claim.
//!
//! **What the sequence does not tell of**: parked rows that somebody decided about, rows that were put back
//! by hand, what another relay has in hand, and gives back or leaves when it dies. So all lanes are looked at every [`SURE_MIN`] all the
//! same, whatever the sequence says, and every [`SURE_MAX`] where no row has come for long.
//!
//! **Drawback chosen.** Those are found that much later, while nothing else moves. Order and loss do not rest
//! on any of this: it decides only when to look. A role that may not read the sequence looks at every poll.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Row as _;
use tokio::time::Instant;

use super::Error;
use super::lanes::Offer;
use super::polling::PollingSource;
use super::session::{Last, answer};

/// How long no row must have come: where they come faster, the question would only stand before the claim.
const REST: Duration = Duration::from_millis(5);
/// Part of the time that the question for writers may take where it is asked between rows: `pg_locks` is read for it,
/// which takes 0.1 ms, and 0.7 beside 300 sessions with seven locks each (`pgbench` on a table of its own).
const LOOKS_PART: u32 = 20;
/// How long it counts what a look at all lanes found: a tenth of the time since the last row, between these.
const SURE_MIN: Duration = Duration::from_millis(500);
const SURE_MAX: Duration = Duration::from_secs(1);

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    known: Option<Last>,
    look: Option<Look>,
}

/// The last look for whether somebody writes.
#[derive(Debug)]
struct Look {
    at: Instant,
    /// Until when what is known counts, and when to look the next time.
    until: Instant,
    /// Whether nobody wrote.
    nobody: bool,
    /// How long it took.
    took: Duration,
}

impl Quiet {
    /// Whether to look `now`, which the caller does then: nothing is known until it has [found](Self::found)
    /// something. No row has come since `rested`.
    fn looks(&mut self, now: Instant, rested: Duration) -> bool {
        let due = self.look.as_ref().is_none_or(|look| {
            // rows have come since, and may come again. Where somebody writes for long, that is not asked after each
            let since = now.duration_since(look.at);
            let anew = look.nobody && since > rested && since >= look.took * LOOKS_PART;
            look.until <= now || anew
        });
        if due {
            let sure = (rested / 10).clamp(SURE_MIN, SURE_MAX);
            self.known = None;
            self.look = Some(Look {
                at: now,
                until: now + sure,
                nobody: false,
                took: Duration::ZERO,
            });
        }
        due
    }

    /// Nobody writes who drew a number up to `last`, and whether `nothing` is there to claim. `None`: who knows.
    pub(super) fn found(&mut self, last: Option<Last>, nothing: bool) {
        self.known = last.filter(|_| nothing);
        if let (Some(_), Some(look)) = (last, &mut self.look) {
            look.nobody = true;
        }
    }

    /// The last look took so long.
    fn took(&mut self, took: Duration) {
        if let Some(look) = &mut self.look {
            look.took = took;
        }
    }

    /// Something may be there that the sequence does not tell of.
    pub(super) fn woken(&mut self) {
        self.known = None;
    }

    /// What the sequence says as long as nothing is new, if that is known `now`.
    fn known(&self, now: Instant) -> Option<Last> {
        self.known
            .filter(|_| self.look.as_ref().is_some_and(|look| now < look.until))
    }
}

impl PollingSource {
    /// Whether the lanes of `offer` need no look: all are at rest, and no number was drawn since.
    pub(super) async fn nothing_new(&mut self, offer: &Offer) -> Result<bool, Error> {
        let now = Instant::now();
        let known = self.polling.memory(|memory| memory.quiet.known(now));
        let rests = self.rested(offer, now).is_some() && self.session.is_connected();
        let Some(known) = known.filter(|_| rests) else {
            return Ok(false);
        };
        let polling = Arc::clone(&self.polling);
        let limit = self.session.silence_timeout();
        let last = sqlx::raw_sql(polling.statements.last_number.clone())
            .fetch_one(self.session.connection()?);
        let last = answer(limit, "read the last number", last).await?;
        let read = || -> Result<_, sqlx::Error> { Ok((last.try_get(0)?, last.try_get(1)?)) };
        let last = read().map_err(|error| Error::statement("read the last number", error))?;
        Ok(last == (known.0, Some(known.1)))
    }

    /// How long nobody has written to the outbox, if `offer` is all its lanes and that is a while.
    fn rested(&self, offer: &Offer, now: Instant) -> Option<Duration> {
        let all = offer.sweep && offer.lanes.len() == usize::from(self.polling.lanes_count);
        let rested = self.polling.memory(|memory| memory.lanes.rested(now));
        (all && !self.polling.until_empty && rested >= REST).then_some(rested)
    }

    /// The last number, if nobody writes any more who may have drawn one up to it: in the transaction that was
    /// begun, before it looks at the lanes of `offer`.
    pub(super) async fn last_at_rest(&mut self, offer: &Offer) -> Result<Option<Last>, Error> {
        let now = Instant::now();
        let looks = |rested| {
            self.polling
                .memory(|memory| memory.quiet.looks(now, rested))
        };
        if !self.rested(offer, now).is_some_and(looks) {
            return Ok(None);
        }
        let polling = Arc::clone(&self.polling);
        let (drawn, lockers) = (&polling.statements.drawn, &polling.statements.lockers);
        let told = self.session.last_and_writers(drawn, lockers).await?;
        polling.memory(|memory| memory.quiet.took(now.elapsed()));
        Ok(told.and_then(|(last, writers)| writers.is_empty().then_some(last)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_counts_for_a_while() {
        let now = Instant::now();
        let mut quiet = Quiet::default();
        assert!(quiet.looks(now, REST));
        assert_eq!(quiet.known(now), None, "not yet");
        quiet.found(Some((Some(7), 1)), true);
        assert_eq!(quiet.known(now + SURE_MIN / 2), Some((Some(7), 1)));
        assert!(!quiet.looks(now + SURE_MIN / 2, REST + SURE_MIN / 2));
        assert_eq!(quiet.known(now + SURE_MIN), None);
        assert!(quiet.looks(now + SURE_MIN, REST + SURE_MIN));
        // somebody writes: that is not asked at every poll
        quiet.found(None, true);
        assert!(!quiet.looks(
            now + SURE_MIN + SURE_MIN / 2,
            REST + SURE_MIN + SURE_MIN / 2
        ));
        assert_eq!(quiet.known(now + SURE_MIN + SURE_MIN / 2), None);
    }

    #[test]
    fn it_is_asked_anew_after_rows_unless_somebody_wrote_for_long() {
        let now = Instant::now();
        let later = now + Duration::from_millis(20);
        for nobody in [true, false] {
            let mut quiet = Quiet::default();
            assert!(quiet.looks(now, REST));
            quiet.found(Some((Some(7), 1)).filter(|_| nobody), true);
            quiet.found(None, false);
            let none_since = later - now + REST;
            assert!(!quiet.looks(later, none_since), "{nobody}");
            assert_eq!(quiet.looks(later, REST), nobody);
        }
    }

    #[test]
    fn it_is_not_asked_anew_for_more_than_a_part_of_the_time() {
        let (now, took) = (Instant::now(), Duration::from_millis(1));
        let mut quiet = Quiet::default();
        assert!(quiet.looks(now, REST));
        quiet.found(Some((Some(7), 1)), true);
        quiet.took(took);
        let again = now + took * LOOKS_PART;
        assert!(!quiet.looks(again - took, REST));
        assert!(quiet.looks(again, REST));
    }

    #[test]
    fn who_is_woken_looks() {
        let now = Instant::now();
        let mut quiet = Quiet::default();
        quiet.looks(now, REST);
        quiet.found(Some((Some(7), 1)), true);
        quiet.woken();
        assert_eq!(quiet.known(now), None);
    }

    #[test]
    fn it_counts_longer_where_no_row_has_come_for_long() {
        let now = Instant::now();
        for (rested, sure_ms) in [(0, 500), (7, 700), (3_600, 1_000)] {
            let mut quiet = Quiet::default();
            quiet.looks(now, Duration::from_secs(rested));
            quiet.found(Some((Some(7), 1)), true);
            let sure = Duration::from_millis(sure_ms);
            let just_before = now + sure - Duration::from_millis(1);
            assert!(quiet.known(just_before).is_some(), "{rested} s");
            assert_eq!(quiet.known(now + sure), None, "{rested} s");
        }
    }

    #[test]
    fn a_look_that_found_work_is_the_end_of_what_was_known() {
        let now = Instant::now();
        let mut quiet = Quiet::default();
        quiet.looks(now, REST);
        quiet.found(Some((Some(7), 1)), true);
        quiet.found(None, true);
        assert_eq!(quiet.known(now), None);
    }
}
