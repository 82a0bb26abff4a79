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
//! a limit that makes them cheaper than the third. **Invariant**: an answer as long as its limit is not used,
//! since there may be more; it is only remembered for a while that there are as many.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::Error;
use super::decode::ClaimedRow;
use super::polling::PollingSource;
use super::session::answer;

/// For so many aggregates of a batch one that waits may be read.
const FRONTS_SHARE: usize = 16;
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
        let fronts = keys / FRONTS_SHARE;
        match fronts {
            // so few that nothing else is cheaper
            0 => Way::Each,
            _ if keys > self.rows_min => Way::Rows(keys),
            _ if fronts > self.fronts_min => Way::Fronts(fronts),
            _ => Way::Each,
        }
    }

    /// That way was given as many answers as it wanted.
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

impl PollingSource {
    /// Which of the claimed aggregates wait behind a parked row.
    pub(super) async fn held_keys(
        &mut self,
        rows: &[ClaimedRow],
    ) -> Result<HashSet<String>, Error> {
        if !rows.iter().any(|row| row.holding) {
            return Ok(HashSet::new());
        }
        let keys: HashSet<&str> = rows.iter().map(|row| row.event.key()).collect();
        let now = Instant::now();
        loop {
            let way = self
                .polling
                .memory(|memory| memory.holding.way(keys.len(), now));
            let statements = &self.polling.statements;
            let (sql, limit) = match way {
                Way::Rows(limit) => (statements.parked_keys.clone(), limit),
                Way::Fronts(limit) => (statements.fronts.clone(), limit),
                Way::Each => (statements.held.clone(), usize::MAX),
            };
            let question = sqlx::query_scalar::<_, String>(sql);
            let question = match way {
                Way::Each => question.bind(keys.iter().copied().collect::<Vec<_>>()),
                _ => question.bind(i64::try_from(limit).unwrap_or(i64::MAX)),
            };
            let answer_timeout = self.session.answer_timeout();
            let waiting = question.fetch_all(self.session.connection()?);
            let waiting = answer(answer_timeout, "ask which aggregates wait", waiting).await?;
            if waiting.len() < limit {
                let of_batch = waiting
                    .into_iter()
                    .filter(|key| keys.contains(key.as_str()));
                return Ok(of_batch.collect());
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
    fn what_was_too_much_is_tried_again() {
        let now = Instant::now();
        let mut holding = Holding::new(now);
        holding.too_many(Way::Rows(100), now);
        holding.too_many(Way::Fronts(6), now + SECOND);
        assert_eq!(holding.way(100, now + REMEMBERED - SECOND), Way::Each);
        assert_eq!(holding.way(100, now + REMEMBERED), Way::Rows(100));
    }
}
