//! What the sinks of one process know about Kafka, shared by its workers: the topics, and whether
//! the cluster answers at all.
//!
//! **States of a topic**: unknown → *unproven* (it exists; nothing was written yet) → *proven* (a
//! record of ours was acknowledged). A topic's fault makes it *paused* until a time, from whatever
//! state; then it is looked up again, and is unproven until a record of it goes through.
//!
//! **Invariants**
//! - An unproven topic is tried with one record alone, so that a topic that may not be written takes
//!   no other topic's records down with its producer.
//! - A pause, its end, the cluster's going and its return are each logged once, by whichever worker
//!   meets them first; while the cluster is away there is at most one reminder a minute.
//!
//! A topic that takes nothing though the cluster answers is such a fault too, told by silence alone.
//! So a topic that left records unanswered is *suspected*: tried with one record again, and that
//! for a short time only, for the lanes of that batch stand still meanwhile.
//!
//! **Drawback chosen**: a topic is paused as a whole. A partition that takes nothing beside healthy
//! ones is not set aside: its rows run into the publish deadline, then their topic pauses, until a
//! record for a healthy partition goes through.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::outcome::TopicFault;
use super::settings::Sizes;
use crate::backoff::Backoff;
use crate::config;
use crate::ops::random;

/// Shortest pause of a topic that cannot be written.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// How long a record may try a topic that left others unanswered.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Of this many failed tries in a row one gets the whole publish deadline, so that a topic which is
/// only slow is found again too.
const PATIENT_EVERY: u32 = 8;
/// How old a topic's facts may grow before they are read again.
const RECHECK_AFTER: Duration = Duration::from_secs(180);
/// Shortest time between two reminders that Kafka is away.
const REMIND_AFTER: Duration = Duration::from_secs(60);

/// What the sinks of one process know about topics and the cluster.
#[derive(Debug)]
pub struct Topics {
    brokers: String,
    default_limit_bytes: usize,
    pause_max: Duration,
    facts: Mutex<HashMap<String, Facts>>,
    outage: Mutex<Option<Outage>>,
}

#[derive(Debug, Default)]
struct Facts {
    /// `None` until they were read, and after something made them doubtful.
    read_at: Option<Instant>,
    partitions: usize,
    /// `max.message.bytes`, where the relay may read it.
    limit_bytes: Option<usize>,
    /// Whether it has been asked for and the answer is to come.
    limit_asked: bool,
    proven: bool,
    /// When it left some of its records unanswered, though it took others.
    suspected_at: Option<Instant>,
    pause: Option<Pause>,
}

#[derive(Debug)]
struct Pause {
    fault: TopicFault,
    until: Instant,
    backoff: Backoff,
}

/// The cluster is away, or is back and has taken no record yet.
#[derive(Debug)]
struct Outage {
    since: Instant,
    reminded: Instant,
    answers: bool,
}

/// Whether a topic can be written now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Proven,
    Unproven,
    Paused,
    /// Ask Kafka.
    Unknown,
}

/// How a topic is tried with one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trial {
    /// Since when it waits to be tried again; `None` if nothing speaks against it.
    pub(super) doubted_at: Option<Instant>,
    /// How long the record may take, if not until the publish deadline.
    pub(super) timeout: Option<Duration>,
}

/// What Kafka says of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) partitions: usize,
}

impl Topics {
    /// Nothing known yet.
    #[must_use]
    pub fn new(kafka: &config::Kafka, relay: &config::Relay) -> Self {
        Self {
            brokers: kafka.brokers.clone(),
            default_limit_bytes: kafka.message_bytes_max,
            pause_max: relay.retry_backoff_max.max(PAUSE_MIN),
            facts: Mutex::default(),
            outage: Mutex::default(),
        }
    }

    /// The topics that are paused now.
    #[must_use]
    pub fn paused(&self) -> HashSet<String> {
        self.paused_at(Instant::now())
    }

    fn paused_at(&self, now: Instant) -> HashSet<String> {
        let facts = self.facts();
        let paused = facts.iter().filter(|(_, facts)| facts.paused(now));
        paused.map(|(topic, _)| topic.clone()).collect()
    }

    /// Whether the cluster took the last records that were given to it, or, before any, answered.
    #[must_use]
    pub fn reachable(&self) -> bool {
        self.outage().as_ref().is_none_or(|outage| outage.answers)
    }

    pub(super) fn standing(&self, topic: &str, now: Instant) -> Standing {
        match self.facts().get(topic) {
            Some(facts) if facts.paused(now) => Standing::Paused,
            Some(facts) if facts.read_at.is_none() => Standing::Unknown,
            Some(facts) if facts.proven => Standing::Proven,
            Some(_) => Standing::Unproven,
            None => Standing::Unknown,
        }
    }

    /// Most bytes of one record in `topic`.
    pub(super) fn limit_bytes(&self, topic: &str) -> usize {
        let facts = self.facts();
        let known = facts.get(topic).and_then(|facts| facts.limit_bytes);
        known.unwrap_or(self.default_limit_bytes)
    }

    /// What a producer for the known topics is sized by.
    pub(super) fn sizes(&self) -> Sizes {
        let facts = self.facts();
        let limits = facts.values().filter_map(|facts| facts.limit_bytes);
        Sizes::of(limits.chain([self.default_limit_bytes]))
    }

    /// Healthy topics whose facts have grown old. Asking marks them as read, so that one worker
    /// alone goes and looks.
    pub(super) fn take_stale(&self, now: Instant) -> Vec<String> {
        let mut facts = self.facts();
        let mut stale = Vec::new();
        for (topic, facts) in facts.iter_mut() {
            let old = |read: Instant| now.duration_since(read) >= RECHECK_AFTER;
            if facts.pause.is_none() && facts.read_at.is_some_and(old) {
                facts.read_at = Some(now);
                stale.push(topic.clone());
            }
        }
        stale
    }

    /// Kafka's answer about `topic`.
    pub(super) fn read(&self, topic: &str, read: Read, now: Instant) {
        let mut all = self.facts();
        let facts = all.entry(topic.to_owned()).or_default();
        if facts.partitions != 0 && facts.partitions != read.partitions {
            warn!(
                topic,
                before = facts.partitions,
                now = read.partitions,
                "the topic's partition count changed: events of one aggregate may now be in two \
                 partitions, and order across them is not kept"
            );
        }
        facts.read_at = Some(now);
        facts.partitions = read.partitions;
    }

    /// The size limit of `topic`, if it may be read.
    pub(super) fn limit(&self, topic: &str, limit_bytes: Option<usize>) {
        let mut all = self.facts();
        let facts = all.entry(topic.to_owned()).or_default();
        facts.limit_bytes = limit_bytes;
        facts.limit_asked = false;
    }

    /// The size limits of `topics` have been asked for.
    pub(super) fn asked_limits(&self, topics: &[String]) {
        let mut all = self.facts();
        for topic in topics {
            all.entry(topic.clone()).or_default().limit_asked = true;
        }
    }

    /// Whether the first answer about the size limit of `topic` is still to come.
    pub(super) fn awaits_limit(&self, topic: &str) -> bool {
        let all = self.facts();
        all.get(topic)
            .is_some_and(|facts| facts.limit_asked && facts.limit_bytes.is_none())
    }

    /// The limit that stands in for one that is not known.
    pub(super) fn default_limit_bytes(&self) -> usize {
        self.default_limit_bytes
    }

    /// A record of `topic` was acknowledged.
    pub(super) fn proven(&self, topic: &str) {
        let mut all = self.facts();
        let facts = all.entry(topic.to_owned()).or_default();
        facts.proven = true;
        facts.suspected_at = None;
        if facts.pause.take().is_some() {
            info!(topic, "the topic can be written again: its rows flow");
        }
    }

    /// Something went wrong with records of `topic`: look at it before writing to it again.
    pub(super) fn doubt(&self, topic: &str) {
        if let Some(facts) = self.facts().get_mut(topic) {
            facts.read_at = None;
        }
    }

    /// Some records of `topic` were not answered for, though others were and the cluster answers:
    /// try it with one before it is trusted again.
    pub(super) fn suspect(&self, topic: &str, now: Instant) {
        if let Some(facts) = self.facts().get_mut(topic) {
            facts.read_at = None;
            facts.proven = false;
            facts.suspected_at = Some(now);
        }
    }

    /// How to try `topic`, which is not proven.
    pub(super) fn trial(&self, topic: &str) -> Trial {
        let all = self.facts();
        let facts = all.get(topic);
        let pause = facts.and_then(|facts| facts.pause.as_ref());
        let doubted_at = match pause {
            Some(pause) => Some(pause.until),
            None => facts.and_then(|facts| facts.suspected_at),
        };
        let patient = pause.is_some_and(|pause| pause.backoff.failures() % PATIENT_EVERY == 0);
        Trial {
            doubted_at,
            timeout: (doubted_at.is_some() && !patient).then_some(PROBE_TIMEOUT),
        }
    }

    /// `topic` cannot be written.
    pub(super) fn pause(&self, topic: &str, fault: TopicFault, now: Instant) {
        let mut all = self.facts();
        let facts = all.entry(topic.to_owned()).or_default();
        facts.proven = false;
        facts.suspected_at = None;
        facts.read_at = None;
        let told = facts
            .pause
            .as_ref()
            .is_some_and(|pause| pause.fault == fault);
        let pause = facts.pause.get_or_insert_with(|| Pause {
            fault,
            until: now,
            backoff: Backoff::new(PAUSE_MIN, self.pause_max),
        });
        pause.fault = fault;
        // several workers may meet one fault: it is one failure
        if pause.until <= now {
            pause.until = now + pause.backoff.next(random());
        }
        drop(all);
        if !told {
            warn!(
                topic,
                next_step = self.next_step(topic, fault),
                "topic `{topic}` {fault}: its rows wait and spend no attempts, all others flow"
            );
        }
    }

    /// What the operator can do about `fault`.
    fn next_step(&self, topic: &str, fault: TopicFault) -> String {
        let brokers = &self.brokers;
        match fault {
            TopicFault::Unknown => format!(
                "create it: kafka-topics.sh --bootstrap-server {brokers} --create --topic {topic} \
                 --partitions N --replication-factor 3; if it exists: kafka-acls.sh \
                 --bootstrap-server {brokers} --add --allow-principal User:NAME --operation \
                 Describe --operation Write --topic {topic}"
            ),
            TopicFault::Denied => format!(
                "grant it: kafka-acls.sh --bootstrap-server {brokers} --add --allow-principal \
                 User:NAME --operation Write --topic {topic}"
            ),
            TopicFault::Leaderless => format!(
                "look at its replicas: kafka-topics.sh --bootstrap-server {brokers} --describe \
                 --topic {topic}"
            ),
            TopicFault::Silent => format!(
                "look at its partitions' leaders and in-sync replicas, against its \
                 min.insync.replicas: kafka-topics.sh --bootstrap-server {brokers} --describe \
                 --topic {topic}"
            ),
            TopicFault::Refuses(_) => format!(
                "look at its settings: kafka-configs.sh --bootstrap-server {brokers} --describe \
                 --all --topic {topic}"
            ),
        }
    }

    /// The cluster did not take or answer anything, for the reason `why`.
    pub(super) fn away(&self, why: &str, now: Instant) {
        let mut outage = self.outage();
        let Some(known) = outage.as_mut() else {
            *outage = Some(Outage {
                since: now,
                reminded: now,
                answers: false,
            });
            drop(outage);
            warn!(
                brokers = self.brokers,
                why,
                "Kafka does not take records: the relay waits and tries again, rows stay in the \
                 outbox, nothing is lost"
            );
            return;
        };
        known.answers = false;
        if now.duration_since(known.reminded) < REMIND_AFTER {
            return;
        }
        known.reminded = now;
        let seconds = now.duration_since(known.since).as_secs();
        drop(outage);
        warn!(
            brokers = self.brokers,
            why, seconds, "Kafka still does not take records: the relay goes on trying"
        );
    }

    /// The cluster answered a question. Whether it takes records is not known yet.
    pub(super) fn answers(&self) {
        if let Some(outage) = self.outage().as_mut() {
            outage.answers = true;
        }
    }

    /// The cluster took a record.
    pub(super) fn takes(&self) {
        let ended = self.outage().take();
        if let Some(outage) = ended {
            let seconds = outage.since.elapsed().as_secs();
            info!(seconds, "Kafka takes records again");
        }
    }

    fn facts(&self) -> MutexGuard<'_, HashMap<String, Facts>> {
        // every change is whole before anything can panic
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outage(&self) -> MutexGuard<'_, Option<Outage>> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts {
    fn paused(&self, now: Instant) -> bool {
        self.pause.as_ref().is_some_and(|pause| now < pause.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::testing;

    fn topics() -> Topics {
        Topics::new(&testing::kafka("127.0.0.1:1"), &testing::relay())
    }

    const READ: Read = Read { partitions: 4 };

    #[test]
    fn a_topic_is_looked_up_tried_and_then_trusted() {
        let topics = topics();
        let now = Instant::now();
        assert_eq!(topics.standing("t", now), Standing::Unknown);
        topics.read("t", READ, now);
        assert_eq!(topics.standing("t", now), Standing::Unproven);
        topics.limit("t", Some(10_000));
        assert_eq!(topics.limit_bytes("t"), 10_000);
        topics.proven("t");
        assert_eq!(topics.standing("t", now), Standing::Proven);
        topics.doubt("t");
        assert_eq!(topics.standing("t", now), Standing::Unknown);
    }

    #[test]
    fn a_paused_topic_is_looked_up_again_later_and_ever_later() {
        let topics = topics();
        let mut now = Instant::now();
        topics.read("t", READ, now);
        topics.proven("t");
        let mut waits = Vec::new();
        for _ in 0..6 {
            topics.pause("t", TopicFault::Denied, now);
            // a second worker meets the same fault: no second step
            topics.pause("t", TopicFault::Denied, now);
            assert_eq!(topics.standing("t", now), Standing::Paused);
            assert_eq!(topics.paused_at(now), HashSet::from(["t".to_owned()]));
            let begun = now;
            while topics.standing("t", now) == Standing::Paused {
                now += Duration::from_millis(50);
            }
            waits.push(now - begun);
            assert_eq!(
                topics.standing("t", now),
                Standing::Unknown,
                "asked before it is tried"
            );
            assert!(
                topics.paused_at(now).is_empty(),
                "its rows are claimed again"
            );
            topics.read("t", READ, now);
            assert_eq!(
                topics.standing("t", now),
                Standing::Unproven,
                "tried before it is trusted"
            );
        }
        assert!(waits[0] <= Duration::from_millis(1050), "{waits:?}");
        let max = testing::relay().retry_backoff_max;
        assert!(
            waits[5] >= max / 2 && waits[5] <= max + Duration::from_millis(50),
            "{waits:?}"
        );
        topics.proven("t");
        assert_eq!(topics.standing("t", now), Standing::Proven);
    }

    #[test]
    fn a_topic_that_left_records_unanswered_is_tried_for_a_short_time() {
        let topics = topics();
        let mut now = Instant::now();
        topics.read("t", READ, now);
        let trusted = Trial {
            doubted_at: None,
            timeout: None,
        };
        assert_eq!(topics.trial("t"), trusted, "nothing speaks against it");
        topics.proven("t");
        topics.suspect("t", now);
        topics.read("t", READ, now);
        assert_eq!(topics.standing("t", now), Standing::Unproven);
        let doubted = Trial {
            doubted_at: Some(now),
            timeout: Some(PROBE_TIMEOUT),
        };
        assert_eq!(topics.trial("t"), doubted);
        let mut patient = Vec::new();
        for failure in 1..=2 * PATIENT_EVERY {
            let before = topics.trial("t").doubted_at;
            topics.pause("t", TopicFault::Silent, now);
            now += Duration::from_secs(60);
            let trial = topics.trial("t");
            assert!(trial.doubted_at > before, "others are tried before it");
            if trial.timeout.is_none() {
                patient.push(failure);
            }
        }
        assert_eq!(patient, [PATIENT_EVERY, 2 * PATIENT_EVERY]);
        topics.proven("t");
        assert_eq!(topics.trial("t"), trusted);
    }

    #[test]
    fn old_facts_are_read_again_by_one_worker() {
        let topics = topics();
        let mut now = Instant::now();
        topics.read("t", READ, now);
        topics.proven("t");
        assert!(topics.take_stale(now).is_empty());
        now += RECHECK_AFTER;
        assert_eq!(topics.take_stale(now), ["t"]);
        assert!(topics.take_stale(now).is_empty());
        assert_eq!(
            topics.standing("t", now),
            Standing::Proven,
            "it flows meanwhile"
        );
    }

    #[test]
    fn an_answer_makes_the_cluster_reachable_again() {
        let topics = topics();
        let now = Instant::now();
        assert!(topics.reachable());
        topics.away("for the test", now);
        assert!(!topics.reachable());
        topics.answers();
        assert!(topics.reachable());
        topics.away("for the test", now);
        assert!(!topics.reachable());
        topics.takes();
        assert!(topics.reachable());
    }
}
