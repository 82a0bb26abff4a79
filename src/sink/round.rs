//! One publish: its attempts, what became of each so far, and so which may still go. It keeps the
//! order within a publish: nothing of a key goes after one of that key was not delivered, nothing of
//! a topic after a fault of that topic, nothing of a partition once it is held.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::Attempt;
use super::topics::{Held, Standing, Topics};
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
    /// Topics whose pause is over, and which this publish tries.
    trying: HashSet<&'a str>,
    /// Partitions that take nothing, by topic.
    held: HashMap<&'a str, Held>,
    /// Those that were found out by this publish.
    silent: HashSet<(&'a str, i32)>,
    /// Those that this publish took on to try.
    taken: Vec<(&'a str, i32)>,
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
    /// One for each held partition that is to be tried.
    pub(super) trials: Vec<usize>,
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
            trying: HashSet::new(),
            held: HashMap::new(),
            silent: HashSet::new(),
            taken: Vec::new(),
            delivered: false,
            trouble: None,
        }
    }

    /// Takes on to try the topics and partitions of this round whose time has come, and says which
    /// topics to ask Kafka about.
    pub(super) fn take_tries(&mut self, topics: &Topics) -> Vec<String> {
        let now = Instant::now();
        self.trying = (self.topics.iter().copied())
            .filter(|topic| topics.take_try(topic, now))
            .collect();
        let mut ask: HashSet<&str> = self.trying.clone();
        if topics.holds_any() {
            let held = self.topics.iter().map(|topic| (*topic, topics.held(topic)));
            self.held = held.filter(|(_, held)| !held.held.is_empty()).collect();
            for attempt in self.attempts {
                let topic = &*attempt.record.topic;
                let Some(held) = self.held.get_mut(topic) else {
                    continue;
                };
                let partition = held.partition(&attempt.record.key);
                if held.held.contains(&partition)
                    && topics.take_partition_try(topic, partition, now)
                {
                    held.to_try.insert(partition);
                    self.taken.push((topic, partition));
                    ask.insert(topic);
                }
            }
        }
        let unknown = |topic: &&&str| topics.standing(topic, now) == Standing::Unknown;
        ask.extend(self.topics.iter().filter(unknown));
        ask.into_iter().map(str::to_owned).collect()
    }

    /// Brings what is held up to date with what Kafka said since [`Self::take_tries`].
    fn hold_again(&mut self, topics: &Topics) {
        if !topics.holds_any() {
            self.held.clear();
            return;
        }
        for topic in &self.topics {
            let mut held = topics.held(topic);
            if held.held.is_empty() {
                self.held.remove(topic);
                continue;
            }
            if let Some(before) = self.held.remove(topic) {
                let mine = |partition: &i32| topics.is_tried(topic, *partition);
                held.to_try = before.to_try.into_iter().filter(mine).collect();
            }
            self.held.insert(topic, held);
        }
    }

    /// Sorts the attempts, in order: rejected for what they are, paused with their topic or their
    /// partition, left for another time, or to be sent.
    pub(super) fn screen(&mut self, topics: &Topics) -> Plan {
        let now = Instant::now();
        self.hold_again(topics);
        let about = |topic: &&'a str| {
            (
                *topic,
                (topics.standing(topic, now), topics.limit_bytes(topic)),
            )
        };
        let known: HashMap<&str, (Standing, usize)> = self.topics.iter().map(about).collect();
        let mut plan = Plan::default();
        let mut unproven: HashMap<&str, usize> = HashMap::new();
        let mut last = ("", (Standing::Unknown, 0));
        for (i, attempt) in self.attempts.iter().enumerate() {
            let record = attempt.record;
            let topic = &*record.topic;
            if topic != last.0 {
                last = (topic, known[topic]);
            }
            let (mut standing, limit_bytes) = last.1;
            if standing == Standing::Paused && self.trying.contains(topic) {
                standing = topics.standing_tried(topic);
            }
            let place = self.place(i);
            if place == Place::Held {
                self.wait(i);
            } else if standing == Standing::Paused && place != Place::Try {
                self.enter(i, Outcome::Paused);
            } else if !self.may_go(i) || standing == Standing::Unknown {
                continue;
            } else if let Some(reason) = unfit(attempt, limit_bytes) {
                self.enter(i, Outcome::Rejected(reason));
            } else if place == Place::Try {
                // the others of this partition wait for what becomes of it
                plan.trials.push(i);
                self.tried(i);
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

    /// Whether the partition of attempt `i` takes records, as far as is known.
    fn place(&self, i: usize) -> Place {
        if self.held.is_empty() {
            return Place::Free;
        }
        let record = self.attempts[i].record;
        let Some(held) = self.held.get(&*record.topic) else {
            return Place::Free;
        };
        let partition = held.partition(&record.key);
        match (
            held.held.contains(&partition),
            held.to_try.contains(&partition),
        ) {
            (false, _) => Place::Free,
            (true, false) => Place::Held,
            (true, true) => Place::Try,
        }
    }

    /// Attempt `i` waits for its partition, and nothing else does for its sake.
    pub(super) fn wait(&mut self, i: usize) {
        self.outcomes[i] = Some(Outcome::Paused);
    }

    pub(super) fn is_silent(&self, i: usize) -> bool {
        let record = self.attempts[i].record;
        let silent = |(topic, partition): &(&str, i32)| {
            let held = self.held.get(topic);
            *topic == record.topic && held.is_some_and(|it| it.partition(&record.key) == *partition)
        };
        !self.silent.is_empty() && self.silent.iter().any(silent)
    }

    /// The partition of attempt `i` has its trial: it is held for the others.
    fn tried(&mut self, i: usize) {
        let record = self.attempts[i].record;
        if let Some(held) = self.held.get_mut(&*record.topic) {
            let partition = held.partition(&record.key);
            held.to_try.remove(&partition);
        }
    }

    /// These partitions took nothing: no more of this round is sent to them.
    pub(super) fn silence(&mut self, partitions: HashSet<(&'a str, i32)>, topics: &Topics) {
        for (topic, partition) in partitions {
            self.held.insert(topic, topics.held(topic));
            self.silent.insert((topic, partition));
        }
    }

    /// Whether nothing that happened so far holds attempt `i` back.
    pub(super) fn may_go(&self, i: usize) -> bool {
        let record = self.attempts[i].record;
        let stopped_at = self.stopped.get(&*record.key);
        stopped_at.is_none_or(|&at| i < at)
            && (self.faulty.is_empty() || !self.faulty.contains(&*record.topic))
            && !self.is_silent(i)
    }

    /// Attempt `i` has this outcome.
    pub(super) fn enter(&mut self, i: usize, outcome: Outcome) {
        let record = self.attempts[i].record;
        match outcome {
            Outcome::Delivered { .. } => self.delivered = true,
            Outcome::Paused => {
                self.faulty.insert(&record.topic);
            }
            _ => self.stop(i),
        }
        self.outcomes[i] = Some(outcome);
    }

    /// The attempts at `indices` are not sent by this publish: nothing of their keys that comes after them is.
    pub(super) fn leave(&mut self, indices: &[usize]) {
        indices.iter().for_each(|&i| self.stop(i));
    }

    /// Nothing of the key of attempt `i` that comes after it may go.
    fn stop(&mut self, i: usize) {
        let at = self.stopped.entry(&self.attempts[i].record.key);
        let at = at.or_insert(i);
        *at = i.min(*at);
    }

    /// How long the records of `trials`, one for each held partition, may take.
    pub(super) fn patience(&self, trials: &[usize], topics: &Topics) -> Option<Duration> {
        let patience = |&i: &usize| {
            let record = self.attempts[i].record;
            let partition = topics.partition(&record.topic, &record.key)?;
            topics.partition_patience(&record.topic, partition)
        };
        let all: Option<Vec<Duration>> = trials.iter().map(patience).collect();
        all?.into_iter().max()
    }

    /// The outcomes, complete. Tries that came to nothing are given back. What was not answered waits
    /// for its topic if that is paused, for its partition if that is held, else for the next publish.
    pub(super) fn finish(mut self, topics: &Topics) -> Vec<Outcome> {
        let now = Instant::now();
        let outcomes = std::mem::take(&mut self.outcomes);
        topics.give_back(&self.trying, &self.taken, now);
        let topic = |i: usize| &*self.attempts[i].record.topic;
        let silent = |i: usize| match topics.standing(topic(i), now) {
            _ if self.stopped.contains_key(&*self.attempts[i].record.key) => Outcome::Unfinished,
            Standing::Paused => Outcome::Paused,
            _ if self.place(i) != Place::Free => Outcome::Paused,
            _ => Outcome::Unfinished,
        };
        (outcomes.into_iter().enumerate())
            .map(|(i, outcome)| outcome.unwrap_or_else(|| silent(i)))
            .collect()
    }
}

/// What is known of a record's partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Free,
    Held,
    /// Held, and this publish is to try it.
    Try,
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
    let nul = record.headers.sizes().any(|(name, _)| name.contains('\0'));
    nul.then(|| Reason::new("bad_header", "a header's name holds a NUL"))
}
