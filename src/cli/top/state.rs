//! What `top` shows and how: the last facts, what came before them, and what the keys chose. Pure.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};

use crate::ops::facts::{Facts, Outbox, Topic};
use crate::source::{Aggregates, First};

/// Rates that are kept of an outbox, for its lines: one of each answer.
const HISTORY_MAX: usize = 240;

/// What the topics are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// Rows that wait.
    Waiting,
    /// Age of the oldest of them.
    Oldest,
    /// Events a second.
    Out,
    /// Latency, p99.
    Latency,
    /// Events so far.
    Published,
    /// The name.
    Topic,
}

impl Sort {
    /// In the order of the key that changes it.
    pub(super) const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Oldest,
        Self::Out,
        Self::Latency,
        Self::Published,
        Self::Topic,
    ];

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self);
        let next = at.map_or(0, |at| (at + 1) % Self::ALL.len());
        Self::ALL[next]
    }

    /// The larger first, but for names.
    fn compare(self, one: &Topic, other: &Topic) -> Ordering {
        match self {
            Self::Waiting => other.pending.cmp(&one.pending),
            Self::Oldest => descending(one.oldest_pending_age_s, other.oldest_pending_age_s),
            Self::Out => other.rate_out_per_s.total_cmp(&one.rate_out_per_s),
            Self::Latency => descending(one.lag.p99_s, other.lag.p99_s),
            Self::Published => other.published.cmp(&one.published),
            Self::Topic => Ordering::Equal,
        }
    }
}

/// What is not known comes last.
fn descending(one: Option<f64>, other: Option<f64>) -> Ordering {
    let value = |known: Option<f64>| known.unwrap_or(f64::NEG_INFINITY);
    value(other).total_cmp(&value(one))
}

/// A key that means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// Leave.
    Quit,
    /// Stand still, or go on.
    Pause,
    /// Sort by the next column.
    Sort,
    /// Turn the order round.
    Reverse,
    /// Show the aggregates, or not.
    Aggregates,
    /// Sort them by the other column.
    OrderAggregates,
    /// To the next outbox.
    NextOutbox,
    /// To the one before.
    PreviousOutbox,
    /// Down the list of topics.
    Down,
    /// Up the list.
    Up,
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Draw and wait.
    GoOn,
    /// The user has seen enough.
    Quit,
}

/// What is wanted of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// Of this outbox,
    pub(super) outbox: String,
    /// these aggregates.
    pub(super) first: First,
}

/// Everything there is to draw.
#[derive(Debug)]
pub(super) struct State {
    /// Where the relay answers.
    pub(super) address: String,
    /// Its last answer.
    pub(super) facts: Option<Facts>,
    /// Why there was none since.
    pub(super) silent: Option<String>,
    /// Whether it stands still.
    pub(super) paused: bool,
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    /// The first topic that is shown.
    pub(super) scrolled: usize,
    /// Whether the aggregates are shown.
    pub(super) aggregates: bool,
    pub(super) first: First,
    /// The last answer about them, or why there is none, and to what.
    waiting: Option<(Question, Result<Aggregates, String>)>,
    /// The name of the outbox that is shown: numbers shift when one goes.
    chosen: Option<String>,
    history: HashMap<String, VecDeque<(f64, f64)>>,
}

impl State {
    pub(super) fn new(address: String) -> Self {
        Self {
            address,
            facts: None,
            silent: None,
            paused: false,
            sort: Sort::Waiting,
            reversed: false,
            scrolled: 0,
            aggregates: true,
            first: First::Most,
            waiting: None,
            chosen: None,
            history: HashMap::new(),
        }
    }

    /// The relay answered, or did not.
    pub(super) fn heard(&mut self, answer: Result<Facts, String>) {
        if self.paused {
            return;
        }
        match answer {
            Ok(facts) => {
                for outbox in &facts.outboxes {
                    let rates = self.history.entry(outbox.outbox.clone()).or_default();
                    rates.push_back((outbox.rate_in_per_s.unwrap_or(0.0), outbox.rate_out_per_s));
                    if rates.len() > HISTORY_MAX {
                        rates.pop_front();
                    }
                }
                self.history
                    .retain(|name, _| facts.outboxes.iter().any(|outbox| outbox.outbox == *name));
                self.facts = Some(facts);
                self.silent = None;
            }
            Err(why) => self.silent = Some(why),
        }
    }

    /// What to ask the database now.
    pub(super) fn question(&self) -> Option<Question> {
        let outbox = self.outbox().filter(|_| self.aggregates && !self.paused)?;
        Some(Question {
            outbox: outbox.outbox.clone(),
            first: self.first,
        })
    }

    /// Whether something is known about it, be it that it cannot be known.
    pub(super) fn is_answered(&self, question: &Question) -> bool {
        (self.waiting.as_ref()).is_some_and(|(answered, _)| answered == question)
    }

    /// The database answered, or could not be asked.
    pub(super) fn waiting(&mut self, question: Question, found: Result<Aggregates, String>) {
        if !self.paused {
            self.waiting = Some((question, found));
        }
    }

    /// The aggregates of the outbox that is shown, in the order that was chosen; or why there are none.
    /// Nothing, while the database has yet to answer.
    pub(super) fn aggregates(&self) -> Option<&Result<Aggregates, String>> {
        let outbox = &self.outbox()?.outbox;
        let (question, found) = self.waiting.as_ref()?;
        (question.outbox == *outbox && question.first == self.first).then_some(found)
    }

    /// A key was pressed.
    pub(super) fn pressed(&mut self, key: Key) -> Then {
        match key {
            Key::Quit => return Then::Quit,
            Key::Pause => self.paused = !self.paused,
            Key::Sort => {
                self.sort = self.sort.next();
                self.scrolled = 0;
            }
            Key::Reverse => {
                self.reversed = !self.reversed;
                self.scrolled = 0;
            }
            Key::Aggregates => self.aggregates = !self.aggregates,
            Key::OrderAggregates => {
                self.first = match self.first {
                    First::Most => First::Oldest,
                    First::Oldest => First::Most,
                };
            }
            Key::NextOutbox => self.choose(1),
            Key::PreviousOutbox => self.choose(-1),
            Key::Down => {
                let last = self.outbox().map_or(0, |outbox| outbox.topics.len());
                self.scrolled = (self.scrolled + 1).min(last.saturating_sub(1));
            }
            Key::Up => self.scrolled = self.scrolled.saturating_sub(1),
        }
        Then::GoOn
    }

    fn choose(&mut self, step: isize) {
        let Some(facts) = &self.facts else { return };
        let many = facts.outboxes.len();
        if many > 0 {
            let next = self
                .chosen_at()
                .saturating_add_signed(many.cast_signed() + step)
                % many;
            self.chosen = facts.outboxes.get(next).map(|it| it.outbox.clone());
            self.scrolled = 0;
        }
    }

    /// Which outbox is shown, by its place.
    pub(super) fn chosen_at(&self) -> usize {
        let outboxes = self.facts.iter().flat_map(|facts| &facts.outboxes);
        let name = |outbox: &Outbox| self.chosen.as_ref() == Some(&outbox.outbox);
        outboxes.map(name).position(|chosen| chosen).unwrap_or(0)
    }

    /// The outbox that is shown.
    pub(super) fn outbox(&self) -> Option<&Outbox> {
        self.facts.as_ref()?.outboxes.get(self.chosen_at())
    }

    /// Its topics, in the order that was chosen.
    pub(super) fn topics(&self) -> Vec<&Topic> {
        let mut topics: Vec<_> = self
            .outbox()
            .map_or(&[][..], |it| &it.topics)
            .iter()
            .collect();
        topics.sort_by(|one, other| {
            let order = self.sort.compare(one, other);
            order.then_with(|| one.topic.cmp(&other.topic))
        });
        if self.reversed {
            topics.reverse();
        }
        topics
    }

    /// The rates in and out of the outbox that is shown, the oldest first.
    pub(super) fn rates(&self) -> impl DoubleEndedIterator<Item = (f64, f64)> {
        let rates = self.outbox().and_then(|it| self.history.get(&it.outbox));
        rates.into_iter().flatten().copied()
    }
}
