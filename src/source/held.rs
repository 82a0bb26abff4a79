//! Which aggregates of a batch wait behind a parked row: their rows are parked as well, in their order.
//!
//! It is asked under the lanes' lock, in each batch as long as any row of the outbox is parked. What that costs
//! depends on what is parked, so there are three ways, and the cheapest that will do is taken:
//!
//! | way | costs | for |
//! |---|---|---|
//! | `parked_keys` | 1 us a parked row | few rows |
//! | `fronts` | 8 us an aggregate that waits | many rows, of few aggregates |
//! | `held` | 3 us an aggregate of the batch | many of both |
//!
//! (by `\timing` of psql, 400 parked rows of as many aggregates, a batch of 2,000.) The first two are asked with
//! a limit that makes them cheaper than the third.
//!
//! **Invariant**: an answer is used only where it tells of every aggregate that waits. One as long as its limit
//! may not; it is only remembered for a while that there are as many. And of aggregates that share a hash and
//! the first [`HEAD_CHARS`] characters `fronts` tells of one.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::Error;
use super::decode::ClaimedRow;
use super::polling::PollingSource;
use super::session::answer;
use crate::event::Event;

/// For so many aggregates of a batch one that waits may be read.
const FRONTS_SHARE: usize = 16;
/// At most so many parked rows are read, however long the ids are that they bring.
const ROWS_MAX: usize = 4_000;
/// How much of an id the index of the parked rows has.
const HEAD_CHARS: usize = 500;
/// How long it is remembered that there are too many: what is parked may be taken away.
const REMEMBERED: Duration = Duration::from_secs(5);

/// What is known of the parked rows.
#[derive(Debug)]
pub(super) struct Holding {
    /// At least so many hold an aggregate back.
    rows_min: usize,
    /// And at least so many aggregates wait.
    fronts_min: usize,
    until: Instant,
}

/// One way to ask, and at most how many answers are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Rows(usize),
    Fronts(usize),
    Each,
}

impl Holding {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            rows_min: 0,
            fronts_min: 0,
            until: now,
        }
    }

    /// How to ask for a batch of `keys` aggregates.
    fn way(&mut self, keys: usize, now: Instant) -> Way {
        if now >= self.until {
            *self = Self::new(now);
        }
        let (rows, fronts) = (keys.min(ROWS_MAX), keys / FRONTS_SHARE);
        match fronts {
            // so few that nothing else is cheaper
            0 => Way::Each,
            _ if rows > self.rows_min => Way::Rows(rows),
            _ if fronts > self.fronts_min => Way::Fronts(fronts),
            _ => Way::Each,
        }
    }

    /// The answer to that question does not tell of all.
    fn too_many(&mut self, way: Way, now: Instant) {
        if now >= self.until {
            self.until = now + REMEMBERED;
        }
        match way {
            Way::Rows(rows) => self.rows_min = self.rows_min.max(rows),
            Way::Fronts(fronts) => self.fronts_min = self.fronts_min.max(fronts),
            Way::Each => {}
        }
    }
}

impl Way {
    fn limit(self) -> usize {
        match self {
            Self::Rows(limit) | Self::Fronts(limit) => limit,
            Self::Each => usize::MAX,
        }
    }

    /// Whether these are all aggregates that wait.
    fn tells_all(self, waiting: &[String]) -> bool {
        let long = |key: &String| key.chars().nth(HEAD_CHARS - 1).is_some();
        waiting.len() < self.limit()
            && !(matches!(self, Self::Fronts(_)) && waiting.iter().any(long))
    }
}

impl PollingSource {
    /// Which of the claimed aggregates wait behind a parked row.
    pub(super) async fn held_keys(
        &mut self,
        rows: &[ClaimedRow],
        events: &[Event],
    ) -> Result<HashSet<String>, Error> {
        if !rows.iter().any(|row| row.holding) {
            return Ok(HashSet::new());
        }
        let keys: HashSet<&str> = events.iter().map(Event::key).collect();
        let now = Instant::now();
        loop {
            let way = self
                .polling
                .memory(|memory| memory.holding.way(keys.len(), now));
            let statements = &self.polling.statements;
            let question = match way {
                Way::Rows(_) => statements.parked_keys.clone(),
                Way::Fronts(_) => statements.fronts.clone(),
                Way::Each => statements.held.clone(),
            };
            let question = sqlx::query_scalar::<_, String>(question);
            let question = match way {
                Way::Each => question.bind(keys.iter().copied().collect::<Vec<_>>()),
                _ => question.bind(i64::try_from(way.limit()).unwrap_or(i64::MAX)),
            };
            let limit = self.session.answer_timeout();
            let waiting = question.fetch_all(self.session.connection()?);
            let mut waiting = answer(limit, "ask which aggregates wait", waiting).await?;
            if way.tells_all(&waiting) {
                waiting.retain(|key| keys.contains(key.as_str()));
                return Ok(waiting.into_iter().collect());
            }
            self.polling
                .memory(|memory| memory.holding.too_many(way, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_cheapest_way_that_will_do_is_taken() {
        let now = Instant::now();
        let mut holding = Holding::new(now);
        assert_eq!(
            holding.way(15, now),
            Way::Each,
            "so few are asked for at once"
        );
        assert_eq!(holding.way(2_000, now), Way::Rows(2_000));
        holding.too_many(Way::Rows(2_000), now);
        assert_eq!(holding.way(2_000, now), Way::Fronts(125));
        assert_eq!(
            holding.way(2_001, now),
            Way::Rows(2_001),
            "they may be 2,000"
        );
        holding.too_many(Way::Fronts(125), now);
        assert_eq!(holding.way(2_000, now), Way::Each);
        // a smaller batch wants fewer answers, and that there are more than those is known
        assert_eq!(holding.way(100, now), Way::Each);
    }

    #[test]
    fn an_answer_that_may_leave_one_out_is_not_used() {
        let of = |chars: usize| vec!["ä".repeat(chars)];
        assert!(Way::Rows(2).tells_all(&of(500)) && Way::Each.tells_all(&of(500)));
        assert!(!Way::Rows(1).tells_all(&of(1)), "there may be more");
        assert!(Way::Fronts(2).tells_all(&of(499)));
        assert!(
            !Way::Fronts(2).tells_all(&of(500)),
            "another may begin like it"
        );
        assert!(!Way::Fronts(1).tells_all(&of(1)));
    }

    #[test]
    fn no_more_rows_are_read_than_fit() {
        let now = Instant::now();
        assert_eq!(Holding::new(now).way(1_000_000, now), Way::Rows(ROWS_MAX));
    }

    #[test]
    fn what_was_too_much_is_tried_again() {
        let now = Instant::now();
        let mut holding = Holding::new(now);
        holding.too_many(Way::Rows(100), now);
        holding.too_many(Way::Fronts(6), now + SECOND);
        assert_eq!(holding.way(100, now + REMEMBERED - SECOND), Way::Each);
        assert_eq!(holding.way(100, now + REMEMBERED), Way::Rows(100));
    }
}
