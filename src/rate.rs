//! A limit on rows per second: how long to wait before the next batch. Pure; the time comes in as a
//! parameter, counted from any fixed moment.
//!
//! What was published moves the moment on at which the next batch is due. Nobody waits in the middle
//! of a batch, whose transaction is open: the limit holds over some seconds, not within one. A time of
//! rest is worth `CREDIT` of rows at most.

use std::time::Duration;

/// How much of a rest counts later.
const CREDIT: Duration = Duration::from_secs(1);

/// The account of one limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    rows_per_second_max: Option<u32>,
    /// When all that was published is paid for.
    due: Duration,
}

impl Rate {
    /// No more than `rows_per_second_max`, from `now` on; `None`, or 0, is no limit.
    #[must_use]
    pub fn new(rows_per_second_max: Option<u32>, now: Duration) -> Self {
        Self {
            rows_per_second_max: rows_per_second_max.filter(|rows| *rows > 0),
            due: now,
        }
    }

    /// The limit.
    #[must_use]
    pub fn rows_per_second_max(&self) -> Option<u32> {
        self.rows_per_second_max
    }

    /// How long until the next batch may begin.
    #[must_use]
    pub fn wait(&self, now: Duration) -> Duration {
        match self.rows_per_second_max {
            Some(_) => self.due.saturating_sub(now),
            None => Duration::ZERO,
        }
    }

    /// `rows` were published.
    pub fn spend(&mut self, rows: u64, now: Duration) {
        if let Some(max) = self.rows_per_second_max {
            let cost = Duration::from_nanos(rows.saturating_mul(1_000_000_000 / u64::from(max)));
            self.due = self.due.max(now.saturating_sub(CREDIT)) + cost;
        }
    }

    /// Most rows that one of `workers` workers should claim at once, so that a batch of each is worth
    /// half a second; never 0.
    #[must_use]
    pub fn claim_rows_max(&self, workers: usize) -> Option<u32> {
        let workers = u32::try_from(workers.max(1)).unwrap_or(u32::MAX);
        let each = |max: u32| (max / workers.saturating_mul(2).max(1)).max(1);
        self.rows_per_second_max.map(each)
    }

    /// How long a backlog of `rows` takes at the limit, if there is one.
    #[must_use]
    pub fn time_left(&self, rows: u64) -> Option<Duration> {
        let max = self.rows_per_second_max?;
        Some(Duration::from_secs(rows / u64::from(max)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_batch_is_waited_for_as_long_as_its_rows_take() {
        let mut rate = Rate::new(Some(100), SECOND);
        assert_eq!(rate.wait(SECOND), Duration::ZERO);
        rate.spend(200, 10 * SECOND);
        // a second of the rest before it counts
        assert_eq!(rate.wait(10 * SECOND), SECOND);
        assert_eq!(rate.wait(11 * SECOND), Duration::ZERO);
        rate.spend(100, 11 * SECOND);
        assert_eq!(rate.wait(11 * SECOND), SECOND);
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        for none in [None, Some(0)] {
            let mut rate = Rate::new(none, SECOND);
            rate.spend(u64::MAX, SECOND);
            assert_eq!(rate.wait(SECOND), Duration::ZERO);
            assert_eq!((rate.claim_rows_max(4), rate.time_left(9)), (None, None));
        }
    }

    #[test]
    fn claims_and_the_time_left_follow_the_limit() {
        let rate = Rate::new(Some(1000), SECOND);
        assert_eq!(rate.claim_rows_max(4), Some(125));
        assert_eq!(Rate::new(Some(1), SECOND).claim_rows_max(64), Some(1));
        assert_eq!(rate.time_left(90_000), Some(90 * SECOND));
    }

    proptest! {
        #[test]
        fn over_time_no_more_is_published_than_the_limit_and_its_credit(
            max in 1_u32..100_000, batches in proptest::collection::vec((1_u64..5_000, 0_u64..3_000), 1..60)
        ) {
            let (mut rate, mut now, mut rows) = (Rate::new(Some(max), 5 * SECOND), 5 * SECOND, 0_u64);
            let began = now;
            let mut last = 0;
            for (batch, pause_ms) in batches {
                now += rate.wait(now) + Duration::from_millis(pause_ms);
                rate.spend(batch, now);
                (rows, last) = (rows + batch, batch);
            }
            // the last batch was let go before it was paid for
            let paid = u128::from(rows - last) * 1_000_000_000 / u128::from(max);
            let rounding = u128::from(rows) * 1_000;
            prop_assert!(paid <= (now - began + CREDIT).as_nanos() + rounding);
        }
    }
}
