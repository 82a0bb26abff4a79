//! How far the rows at a lane's head all wait for topics that cannot be written, so that claims need
//! not read them again and again: a million of them would be read by every claim.
//!
//! **Why a place may be passed.** A row below it must not turn up later, or the rows of its aggregate
//! behind it would be claimed first. A writer draws its number under the lock of its insert on the
//! table. So: take the last number of the lane as the bound, *then* read who holds such a lock; when
//! all of those are gone, every row up to the bound that there will ever be can be seen. Only then are
//! the rows up to the bound looked at, and those of other kinds are where the passing ends, locked or
//! not.
//!
//! **Drawbacks chosen.** While some transaction that wrote to the table stays open, nothing more is
//! passed, which is only slower. Rows below the place that somebody opens again, or numbers anew, by
//! hand are found when the topics can be written, or the places are forgotten: after five minutes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Row as _;
use tokio::time::Instant;

use super::Error;
use super::claiming::columns;
use super::polling::PollingSource;
use super::session::{Writer, answer, may_write_still};
use crate::route::{Kind, Waiting};

/// How often it is seen whether the places can be moved on.
const STEP_PAUSE: Duration = Duration::from_millis(500);
/// And while they can: what was published since lies between, dead, and every claim reads over it.
const STEP_SOON: Duration = Duration::from_millis(100);
/// Rows of a lane that one step looks at.
const STEP_ROWS: i64 = 20_000;
/// How long a kind may flow again, to try its topic, before the places found without it are dropped.
const UNFIT_MAX: Duration = Duration::from_secs(30);
/// How long places are kept at the most.
const KEPT_MAX: Duration = Duration::from_secs(300);

/// Where the claims of each lane may begin.
#[derive(Debug)]
pub(super) struct Passing {
    /// All rows up to the places are of these.
    kinds: HashSet<Kind>,
    /// By lane.
    places: Vec<i64>,
    /// By lane, and whoever may still bring rows below.
    bounds: Option<(Vec<i64>, Vec<Writer>)>,
    step_at: Instant,
    since: Instant,
    fit_at: Instant,
}

impl Passing {
    pub(super) fn new(lanes: u16, now: Instant) -> Self {
        Self {
            kinds: HashSet::new(),
            places: vec![i64::MIN; usize::from(lanes)],
            bounds: None,
            step_at: now,
            since: now,
            fit_at: now,
        }
    }

    /// The last row of each lane that a claim need not look at.
    pub(super) fn places(&self, waiting: &Waiting) -> Vec<i64> {
        match self.kinds.is_subset(&waiting.kinds) {
            true => self.places.clone(),
            false => vec![i64::MIN; self.places.len()],
        }
    }

    /// Whether it is time for the next step, which the caller makes then.
    fn is_due(&mut self, waiting: &Waiting, now: Instant) -> bool {
        if waiting.kinds.is_empty() || now < self.step_at {
            return false;
        }
        self.step_at = now + STEP_PAUSE;
        let fits = self.kinds.is_subset(&waiting.kinds);
        if fits {
            self.fit_at = now;
        }
        if now > self.fit_at + UNFIT_MAX || now > self.since + KEPT_MAX {
            let lanes = u16::try_from(self.places.len()).unwrap_or(u16::MAX);
            *self = Self::new(lanes, now);
            self.step_at = now + STEP_PAUSE;
            return true;
        }
        fits
    }
}

impl PollingSource {
    /// Moves the places on, if it is time.
    pub(super) async fn pass_waiting(&mut self, waiting: &Waiting) -> Result<(), Error> {
        let polling = Arc::clone(&self.polling);
        if !polling.memory(|memory| memory.passing.is_due(waiting, Instant::now())) {
            return Ok(());
        }
        let limit = self.session.answer_timeout();
        self.session.begin(&polling.statements.open).await?;
        let bounds = polling.memory(|memory| memory.passing.bounds.clone());
        let now = self.session.writers(&polling.statements.lockers).await?;
        if let Some((bounds, writers)) = bounds
            && !may_write_still(&writers, &now)
        {
            let places = polling.memory(|memory| memory.passing.places.clone());
            let lanes: Vec<i32> = (0..).take(places.len()).collect();
            let [aggregate_types, event_types, topics] = columns(&waiting.kinds);
            let passed = sqlx::query(polling.statements.passed.clone())
                .bind(&lanes)
                .bind(&places)
                .bind(&bounds)
                .bind(aggregate_types)
                .bind(event_types)
                .bind(topics)
                .bind(STEP_ROWS)
                .fetch_all(self.session.connection()?);
            let passed = answer(limit, "look at rows that wait", passed).await?;
            polling.memory(|memory| {
                let passing = &mut memory.passing;
                // found under these kinds; what was found before, under some of them
                if !passing.kinds.is_subset(&waiting.kinds) || passing.places != places {
                    return Ok(());
                }
                for row in &passed {
                    let read = || Ok((row.try_get::<i32, _>(0)?, row.try_get::<i64, _>(1)?));
                    let (lane, place) = read()
                        .map_err(|error| Error::statement("read how far rows wait", error))?;
                    if let Some(at) = usize::try_from(lane)
                        .ok()
                        .and_then(|i| passing.places.get_mut(i))
                    {
                        *at = place;
                    }
                }
                if passing.places != places {
                    passing.step_at = Instant::now() + STEP_SOON;
                }
                passing.kinds.clone_from(&waiting.kinds);
                passing.bounds = None;
                Ok(())
            })?;
        }
        if polling.memory(|memory| memory.passing.bounds.is_none()) {
            // the bounds first, then who may still bring rows below them
            let lanes = polling.memory(|memory| memory.passing.places.len());
            let last = sqlx::query_scalar::<_, i64>(polling.statements.last.clone())
                .bind(i32::try_from(lanes).unwrap_or(i32::MAX))
                .fetch_all(self.session.connection()?);
            let bounds = answer(limit, "ask for the last rows", last).await?;
            let writers = self.session.writers(&polling.statements.lockers).await?;
            polling.memory(|memory| memory.passing.bounds = Some((bounds, writers)));
        }
        self.session.end("commit").await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(kinds: &[&str]) -> Waiting {
        let kind = |name: &&str| Kind {
            aggregate_type: (*name).to_owned(),
            event_type: String::new(),
            topic: None,
        };
        Waiting {
            topics: HashSet::new(),
            keys: HashSet::new(),
            kinds: kinds.iter().map(kind).collect(),
        }
    }

    #[test]
    fn places_count_only_while_all_their_kinds_wait() {
        let now = Instant::now();
        let mut passing = Passing::new(2, now);
        passing.kinds = waiting(&["a"]).kinds;
        passing.places = vec![7, 8];
        assert_eq!(passing.places(&waiting(&["a"])), [7, 8]);
        assert_eq!(passing.places(&waiting(&["a", "b"])), [7, 8]);
        assert_eq!(passing.places(&waiting(&["b"])), [i64::MIN; 2]);
        assert_eq!(passing.places(&waiting(&[])), [i64::MIN; 2]);
    }

    #[test]
    fn places_outlast_a_try_of_their_topic_and_not_its_recovery() {
        let start = Instant::now();
        let mut passing = Passing::new(1, start);
        passing.kinds = waiting(&["a", "b"]).kinds;
        passing.places = vec![7];
        let later = start + Duration::from_secs(5);
        assert!(!passing.is_due(&waiting(&["b"]), later), "a is tried");
        assert_eq!(passing.places, [7]);
        assert!(passing.is_due(&waiting(&["a", "b"]), later + STEP_PAUSE));
        let long = later + UNFIT_MAX + STEP_PAUSE * 3;
        assert!(passing.is_due(&waiting(&["b"]), long));
        assert_eq!(passing.places, [i64::MIN], "a flows again");
    }

    #[test]
    fn places_are_forgotten_now_and_then() {
        let start = Instant::now();
        let mut passing = Passing::new(1, start);
        passing.kinds = waiting(&["a"]).kinds;
        passing.places = vec![7];
        assert!(passing.is_due(&waiting(&["a"]), start + KEPT_MAX));
        assert_eq!(passing.places, [7]);
        assert!(passing.is_due(&waiting(&["a"]), start + KEPT_MAX + STEP_PAUSE));
        assert_eq!(passing.places, [i64::MIN]);
    }
}
