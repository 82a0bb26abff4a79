//! One publish: its attempts, what became of each so far, and so which may still go. It keeps the
//! order within a publish: nothing of a key goes after one of that key was not delivered, nothing of
//! a topic after a fault of that topic.

use std::collections::{HashMap, HashSet};

use tokio::time::Instant;

use super::Attempt;
use super::topics::{Standing, Topics};
use crate::outcome::{Outcome, Reason};

/// One publish: its attempts and what became of them so far.
pub(super) struct Round<'a> {
    pub(super) attempts: &'a [Attempt<'a>],
    /// `None`: not answered; unfinished, when the round ends.
    pub(super) outcomes: Vec<Option<Outcome>>,
    /// The distinct topics.
    pub(super) topics: HashSet<&'a str>,
    /// Keys of which a record was not delivered, and the first such: no later one may be sent.
    stopped: HashMap<&'a [u8], usize>,
    /// Topics that showed a fault.
    faulty: HashSet<&'a str>,
    pub(super) delivered: bool,
    /// What is wrong with the cluster, if anything.
    pub(super) trouble: Option<String>,
}

/// What is to be sent: indices of attempts, each list in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// In topics that took a record before.
    pub(super) proven: Vec<usize>,
    /// In topics that did not, a list for each.
    pub(super) unproven: Vec<Vec<usize>>,
}

impl<'a> Round<'a> {
    /// Nothing was sent yet.
    pub(super) fn new(attempts: &'a [Attempt<'a>]) -> Self {
        let mut topics = HashSet::new();
        let mut last = "";
        for attempt in attempts {
            if attempt.record.topic != last {
                last = &attempt.record.topic;
                topics.insert(last);
            }
        }
        Self {
            attempts,
            outcomes: vec![None; attempts.len()],
            topics,
            stopped: HashMap::new(),
            faulty: HashSet::new(),
            delivered: false,
            trouble: None,
        }
    }

    /// Sorts the attempts, in order: rejected for what they are, paused with their topic, left for
    /// another time, or to be sent.
    pub(super) fn screen(&mut self, topics: &Topics) -> Plan {
        let now = Instant::now();
        let about = |topic: &&'a str| {
            (
                *topic,
                (topics.standing(topic, now), topics.limit_bytes(topic)),
            )
        };
        let known: HashMap<&str, (Standing, usize)> = self.topics.iter().map(about).collect();
        let mut plan = Plan::default();
        let mut unproven: HashMap<&str, usize> = HashMap::new();
        for (i, attempt) in self.attempts.iter().enumerate() {
            let record = attempt.record;
            let topic = &*record.topic;
            let (standing, limit_bytes) = known[topic];
            if standing == Standing::Paused {
                self.enter(i, Outcome::Paused);
            } else if !self.may_go(i) || standing == Standing::Unknown {
                continue;
            } else if let Some(reason) = unfit(attempt, limit_bytes) {
                self.enter(i, Outcome::Rejected(reason));
            } else if standing == Standing::Proven {
                plan.proven.push(i);
            } else {
                let place = *unproven.entry(topic).or_insert_with(|| {
                    plan.unproven.push(Vec::new());
                    plan.unproven.len() - 1
                });
                plan.unproven[place].push(i);
            }
        }
        plan
    }

    /// Whether nothing that happened so far holds attempt `i` back.
    pub(super) fn may_go(&self, i: usize) -> bool {
        let record = self.attempts[i].record;
        let stopped_at = self.stopped.get(&*record.key);
        stopped_at.is_none_or(|&at| i < at)
            && (self.faulty.is_empty() || !self.faulty.contains(&*record.topic))
    }

    /// Attempt `i` has this outcome.
    pub(super) fn enter(&mut self, i: usize, outcome: Outcome) {
        let record = self.attempts[i].record;
        match outcome {
            Outcome::Delivered { .. } => self.delivered = true,
            Outcome::Paused => {
                self.faulty.insert(&record.topic);
            }
            _ => {
                let at = self.stopped.entry(&record.key).or_insert(i);
                *at = i.min(*at);
            }
        }
        self.outcomes[i] = Some(outcome);
    }

    /// The outcomes, complete. What was not answered waits for its topic if that is paused, else
    /// for the next publish.
    pub(super) fn finish(self, topics: &Topics) -> Vec<Outcome> {
        let now = Instant::now();
        let topic = |i: usize| &*self.attempts[i].record.topic;
        let silent = |i: usize| match topics.standing(topic(i), now) {
            _ if self.stopped.contains_key(&*self.attempts[i].record.key) => Outcome::Unfinished,
            Standing::Paused => Outcome::Paused,
            _ => Outcome::Unfinished,
        };
        let outcomes = self.outcomes.iter().cloned().enumerate();
        outcomes
            .map(|(i, outcome)| outcome.unwrap_or_else(|| silent(i)))
            .collect()
    }
}

/// Why the record of `attempt` cannot be sent at all, if so.
fn unfit(attempt: &Attempt<'_>, limit_bytes: usize) -> Option<Reason> {
    let record = attempt.record;
    let size_bytes = record.size_bytes();
    if size_bytes > limit_bytes {
        let topic = &record.topic;
        return Some(Reason::new(
            "too_large",
            format!(
                "the record takes {size_bytes} bytes uncompressed, topic `{topic}` allows {limit_bytes}"
            ),
        ));
    }
    // librdkafka takes header names as C strings; the encoder keeps NULs out, parked rows may
    // have been edited by hand
    let nul = record
        .headers
        .iter()
        .any(|header| header.name.contains('\0'));
    nul.then(|| Reason::new("bad_header", "a header's name holds a NUL"))
}
