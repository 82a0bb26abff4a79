//! What a relay did for one outbox, counted. The loop tells once a batch, so it costs next to
//! nothing a row; whoever scrapes reads a copy.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::histogram::{Histogram, ROWS, SECONDS};

/// Topics that are counted apart; those of the rest together, as [`OTHER`]. They come from rows.
pub(crate) const TOPICS_MAX: usize = 50;
pub(crate) const OTHER: &str = "other";

/// How far back rates and quantiles look, and in what steps.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
pub(crate) const WINDOW_STEP: Duration = Duration::from_secs(5);

/// How a claim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Poll {
    /// As many rows as were asked for, of some lane.
    Full,
    Partial,
    Empty,
    Error,
}

impl Poll {
    pub(crate) const ALL: [Self; 4] = [Self::Full, Self::Partial, Self::Empty, Self::Error];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::Empty => "empty",
            Self::Error => "error",
        }
    }
}

/// Counts since the start.
#[derive(Debug, Clone)]
pub(crate) struct Counted {
    pub(crate) published: u64,
    pub(crate) late: u64,
    pub(crate) behind: u64,
    pub(crate) purged: u64,
    pub(crate) attempts: u64,
    pub(crate) lanes_taken: u64,
    /// By the class of the reason.
    pub(crate) parked: BTreeMap<&'static str, u64>,
    /// Rows that violated their contracts, by event type and what became of them.
    pub(crate) violations: BTreeMap<(String, &'static str), u64>,
    /// By class.
    pub(crate) errors: BTreeMap<&'static str, u64>,
    pub(crate) polls: BTreeMap<Poll, u64>,
    pub(crate) topics: BTreeMap<String, TopicCounted>,
    pub(crate) lag: Histogram,
    pub(crate) publish: Histogram,
    pub(crate) batch: Histogram,
    /// By what was asked.
    pub(crate) queries: BTreeMap<&'static str, Histogram>,
    pub(crate) last_publish: Option<SystemTime>,
}

/// Counts of one topic since the start.
#[derive(Debug, Clone)]
pub(crate) struct TopicCounted {
    pub(crate) published: u64,
    pub(crate) late: u64,
    pub(crate) lag: Histogram,
}

impl Default for TopicCounted {
    fn default() -> Self {
        Self {
            published: 0,
            late: 0,
            lag: Histogram::new(SECONDS),
        }
    }
}

impl Default for Counted {
    fn default() -> Self {
        Self {
            published: 0,
            late: 0,
            behind: 0,
            purged: 0,
            attempts: 0,
            lanes_taken: 0,
            parked: BTreeMap::new(),
            violations: BTreeMap::new(),
            errors: BTreeMap::new(),
            polls: BTreeMap::new(),
            topics: BTreeMap::new(),
            lag: Histogram::new(SECONDS),
            publish: Histogram::new(SECONDS),
            batch: Histogram::new(ROWS),
            queries: BTreeMap::new(),
            last_publish: None,
        }
    }
}

impl Counted {
    /// The counts of `topic`, or those of the rest where there are too many.
    pub(crate) fn topic(&mut self, topic: &str) -> &mut TopicCounted {
        let known = self.topics.contains_key(topic) || self.topics.len() < TOPICS_MAX;
        let name = if known { topic } else { OTHER };
        // not `entry`: a name is copied once, not once a batch
        if !self.topics.contains_key(name) {
            self.topics.insert(name.to_owned(), TopicCounted::default());
        }
        self.topics.get_mut(name).expect("it is there by now")
    }

    /// A row violated its contract, and this became of it. Event types come from rows, as topics do.
    pub(crate) fn violated(&mut self, event_type: &str, outcome: &'static str) {
        let known = self.violations.keys().any(|(known, _)| known == event_type)
            || self.violations.len() < TOPICS_MAX;
        let name = if known { event_type } else { OTHER };
        *self
            .violations
            .entry((name.to_owned(), outcome))
            .or_default() += 1;
    }

    /// How many rows were parked, whatever for.
    pub(crate) fn parked(&self) -> u64 {
        self.parked.values().sum()
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    counted: Mutex<Counted>,
    window: Mutex<VecDeque<(Instant, Counted)>>,
}

impl Tally {
    pub(crate) fn count<T>(&self, act: impl FnOnce(&mut Counted) -> T) -> T {
        act(&mut self.counted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A claim ended so, after `took`, with so many rows.
    pub(crate) fn polled(&self, poll: Poll, rows: usize, took: Duration) {
        self.count(|counted| {
            *counted.polls.entry(poll).or_default() += 1;
            if rows > 0 {
                let rows = u64::try_from(rows).unwrap_or(u64::MAX);
                counted.batch.observe(super::histogram::as_f64(rows));
            }
        });
        self.asked("claim", took);
    }

    /// The database took so long for `op`.
    pub(crate) fn asked(&self, op: &'static str, took: Duration) {
        self.count(|counted| {
            let queries = counted.queries.entry(op);
            let histogram = queries.or_insert_with(|| Histogram::new(SECONDS));
            histogram.observe(took.as_secs_f64());
        });
    }

    /// Remembers the counts as they are: the window begins with the oldest that is remembered.
    pub(crate) fn step(&self, now: Instant) {
        let counted = self.count(|counted| counted.clone());
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.push_back((now, counted));
        while window
            .get(1)
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW)
        {
            window.pop_front();
        }
    }

    /// The counts now, those at the window's begin, and how long ago that was.
    pub(crate) fn window(&self, now: Instant) -> (Counted, Counted, Duration) {
        let counted = self.count(|counted| counted.clone());
        let window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        match window.front() {
            Some((at, then)) => {
                let length = now.saturating_duration_since(*at);
                (counted, then.clone(), length)
            }
            None => (counted.clone(), counted, Duration::ZERO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_beyond_the_bound_are_counted_together() {
        let mut counted = Counted::default();
        for n in 0..TOPICS_MAX + 25 {
            counted.topic(&format!("topic-{n}")).published += 1;
        }
        counted.topic("topic-0").published += 1;
        assert_eq!(counted.topics.len(), TOPICS_MAX + 1);
        assert_eq!(counted.topics[OTHER].published, 25);
        assert_eq!(counted.topics["topic-0"].published, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_forgets_what_is_older_than_a_minute() {
        let tally = Tally::default();
        let start = Instant::now();
        tally.step(start);
        tally.count(|counted| counted.published = 1_000);
        for step in 1..=20 {
            tally.step(start + WINDOW_STEP * step);
            tally.count(|counted| counted.published += 10);
        }
        let (now, then, length) = tally.window(start + WINDOW_STEP * 20);
        assert_eq!(length, WINDOW);
        assert_eq!(now.published - then.published, 130);
    }
}
