//! Knowing that nothing is new without a look at the table: an outbox at rest costs one short question a
//! poll, and not a transaction.
//!
//! **When it is known.** The last number that was drawn was read; then nobody was left who writes to the
//! table; then a look at all lanes found none with work. An insert takes its lock on the table before it draws
//! its number and gives it up after its commit can be seen (see `settled`), so whatever comes has drawn
//! another number. While the sequence says the same, there is nothing to claim.
//!
//! **What the sequence does not tell of**: parked rows that somebody decided about, rows that were put back
//! by hand, what another relay had in hand when it died. So all lanes are looked at every [`SURE`] all the
//! same, whatever the sequence says.
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

/// How long no row must have come: while rows trickle, the question would only stand before the claim.
const REST: Duration = Duration::from_millis(250);
/// How long it counts what a look at all lanes found.
const SURE: Duration = Duration::from_millis(500);

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    known: Option<Last>,
    /// Until when that counts, and when to look the next time whether somebody writes still.
    until: Option<Instant>,
}

impl Quiet {
    /// Whether to look `now`, which the caller does then: nothing is known until it has [found](Self::found)
    /// something.
    fn looks(&mut self, now: Instant) -> bool {
        let due = self.until.is_none_or(|until| until <= now);
        if due {
            (self.known, self.until) = (None, Some(now + SURE));
        }
        due
    }

    /// No lane has work, and nobody writes who drew a number up to `last`; `None`: who knows.
    pub(super) fn found(&mut self, last: Option<Last>) {
        self.known = last;
    }

    /// What the sequence says as long as nothing is new, if that is known `now`.
    fn known(&self, now: Instant) -> Option<Last> {
        self.known
            .filter(|_| self.until.is_some_and(|until| now < until))
    }
}

impl PollingSource {
    /// Whether the lanes of `offer` need no look: all are at rest, and no number was drawn since.
    pub(super) async fn nothing_new(&mut self, offer: &Offer) -> Result<bool, Error> {
        let now = Instant::now();
        let known = self.polling.memory(|memory| memory.quiet.known(now));
        let (Some(known), true) = (known, self.rests(offer, now) && self.session.is_connected())
        else {
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

    /// Whether `offer` is all lanes of an outbox that nobody has written to for a while.
    fn rests(&self, offer: &Offer, now: Instant) -> bool {
        let all = offer.sweep && offer.lanes.len() == usize::from(self.polling.lanes_count);
        let rests = |rested: Duration| rested >= REST;
        all && !self.polling.until_empty
            && (self.polling).memory(|memory| rests(memory.lanes.rested(now)))
    }

    /// The last number, if nobody writes any more who may have drawn one up to it: in the transaction that was
    /// begun, before it looks at the lanes of `offer`.
    pub(super) async fn last_at_rest(&mut self, offer: &Offer) -> Result<Option<Last>, Error> {
        let now = Instant::now();
        if !self.rests(offer, now) || !self.polling.memory(|memory| memory.quiet.looks(now)) {
            return Ok(None);
        }
        let polling = Arc::clone(&self.polling);
        let (drawn, lockers) = (&polling.statements.drawn, &polling.statements.lockers);
        let told = self.session.last_and_writers(drawn, lockers).await?;
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
        assert!(quiet.looks(now));
        assert_eq!(quiet.known(now), None, "not yet");
        quiet.found(Some((Some(7), 1)));
        assert_eq!(quiet.known(now + SURE / 2), Some((Some(7), 1)));
        assert!(!quiet.looks(now + SURE / 2));
        assert_eq!(quiet.known(now + SURE), None);
        assert!(quiet.looks(now + SURE));
        // somebody writes: that is not asked at every poll
        quiet.found(None);
        assert!(!quiet.looks(now + SURE + SURE / 2));
        assert_eq!(quiet.known(now + SURE + SURE / 2), None);
    }

    #[test]
    fn a_look_that_found_work_is_the_end_of_what_was_known() {
        let now = Instant::now();
        let mut quiet = Quiet::default();
        quiet.looks(now);
        quiet.found(Some((Some(7), 1)));
        quiet.found(None);
        assert_eq!(quiet.known(now), None);
    }
}
