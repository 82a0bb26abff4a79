//! What the sinks of one process know about Kafka, shared by its workers: the topics, and whether
//! the cluster answers at all.
//!
//! **States of a topic**: unknown → *unproven* (it exists; nothing was written yet) → *proven* (a
//! record of ours was acknowledged). A topic's fault makes it *paused* until a time, from whatever
//! state; then it is looked up again, and is unproven until a record of it goes through. A partition
//! that takes nothing, beside others or alone, is *held* until a time; then one record tries it.
//!
//! **Invariants**
//! - An unproven topic is tried with one record alone, so that a topic that may not be written takes
//!   no other topic's records down with its producer.
//! - When a pause or a hold is over, one publish of the process tries, and for the others it goes on
//!   meanwhile.
//! - A pause, its end, the cluster's going and its return are each logged once, by whichever worker
//!   meets them first; while the cluster is away there are reminders, ever more seldom.
//!
//! What is told by silence alone, a broker that cannot be reached or too few replicas in sync, is the
//! partition's: its records went unanswered though the cluster answers. It is tried with one record
//! again, and that for a short time only, for the lanes of that batch stand still meanwhile. A
//! partition without a leader is known for that by asking, and not tried at all. A topic all of whose
//! partitions are held is paused.
//!
//! **Drawback chosen**: the silence of a partition is found by a batch that runs into the publish
//! deadline. To give up sooner would repeat records whenever a leader moves.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::generation::Limit;
use super::outcome::TopicFault;
use super::settings::Sizes;
use crate::backoff::Backoff;
use crate::config;
use crate::ops::{Reminders, random};
use crate::partition;

/// Shortest pause of a topic that cannot be written.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// How long a record may try a topic that left others unanswered.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Of this many failed tries in a row one gets the whole publish deadline, so that a topic which is
/// only slow is found again too.
const PATIENT_EVERY: u32 = 8;
/// Shortest time between two questions about a size limit that a record exceeds.
const LIMIT_RECHECK_AFTER: Duration = Duration::from_secs(1);
/// How old a topic's facts may grow before they are read again.
const RECHECK_AFTER: Duration = Duration::from_secs(180);

/// What the sinks of one process know about topics and the cluster.
#[derive(Debug)]
pub struct Topics {
    pub(super) brokers: String,
    default_limit_bytes: usize,
    pause_max: Duration,
    /// Longer than a publish lasts: so long is a try another's to make.
    try_max: Duration,
    facts: Mutex<HashMap<String, Facts>>,
    outage: Mutex<Option<Outage>>,
}

#[derive(Debug, Default)]
pub(super) struct Facts {
    /// `None` until they were read, and after something made them doubtful.
    read_at: Option<Instant>,
    partitions: usize,
    /// `max.message.bytes`, where the relay may read it.
    limit_bytes: Option<usize>,
    /// Whether the relay was refused it.
    limit_denied: bool,
    /// Whether it has been asked for and the answer is to come.
    limit_asked: bool,
    limit_asked_at: Option<Instant>,
    proven: bool,
    pub(super) pause: Option<Pause>,
    pub(super) holds: BTreeMap<i32, Hold>,
}

#[derive(Debug)]
pub(super) struct Pause {
    pub(super) fault: TopicFault,
    pub(super) since: Instant,
    pub(super) until: Instant,
    /// Somebody tries the topic, until then at most.
    tried: bool,
    backoff: Backoff,
}

/// A partition takes nothing.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) since: Instant,
    /// Kafka says that nobody leads it.
    leaderless: bool,
    pub(super) until: Instant,
    /// Somebody tries it, until then at most.
    tried: bool,
    backoff: Backoff,
}

/// The cluster is away, or is back and has taken no record yet.
#[derive(Debug)]
pub(super) struct Outage {
    pub(super) since: Instant,
    reminders: Reminders,
    pub(super) answers: bool,
    /// In librdkafka's words.
    pub(super) why: String,
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) partitions: usize,
    /// Those that nobody leads.
    pub(super) leaderless: Vec<i32>,
}

/// Which partitions of a topic take nothing now, for one publish.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) partitions: i32,
    pub(super) held: HashSet<i32>,
    /// Those of them that this publish is to try with one record.
    pub(super) to_try: HashSet<i32>,
}

impl Topics {
    /// Nothing known yet.
    #[must_use]
    pub fn new(kafka: &config::Kafka, relay: &config::Relay) -> Self {
        Self {
            brokers: kafka.brokers.clone(),
            default_limit_bytes: kafka.message_bytes_max,
            pause_max: relay.retry_backoff_max.max(PAUSE_MIN),
            try_max: relay.publish_timeout + PROBE_TIMEOUT,
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

    /// A topic to ask the cluster about, if any was ever found.
    pub(super) fn any(&self) -> Option<String> {
        let facts = self.facts();
        let found = facts.iter().find(|(_, facts)| facts.partitions > 0);
        found.map(|(topic, _)| topic.clone())
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

    /// Whether a publish that has records of `topic` is to try it: its pause is over, and nobody
    /// else tries it.
    pub(super) fn take_try(&self, topic: &str, now: Instant) -> bool {
        let mut all = self.facts();
        let pause = all.get_mut(topic).and_then(|facts| facts.pause.as_mut());
        match pause {
            Some(pause) if pause.until <= now => {
                pause.until = now + self.try_max;
                pause.tried = true;
                true
            }
            _ => false,
        }
    }

    /// Whether a publish that has a record of this partition is to try it.
    pub(super) fn take_partition_try(&self, topic: &str, partition: i32, now: Instant) -> bool {
        let mut all = self.facts();
        let facts = all.get_mut(topic).filter(|facts| {
            let pause = facts.pause.as_ref();
            pause.is_none_or(|pause| pause.until <= now)
        });
        match facts.and_then(|facts| facts.holds.get_mut(&partition)) {
            Some(hold) if hold.until <= now => {
                hold.until = now + self.try_max;
                hold.tried = true;
                true
            }
            _ => false,
        }
    }

    /// Whether somebody who took on to try this partition still may.
    pub(super) fn is_tried(&self, topic: &str, partition: i32) -> bool {
        let all = self.facts();
        let hold = all.get(topic).and_then(|it| it.holds.get(&partition));
        hold.is_some_and(|hold| hold.tried)
    }

    /// These were taken on to be tried, and whoever did so is done: where nothing came of it,
    /// somebody else may try.
    pub(super) fn give_back(
        &self,
        topics: &HashSet<&str>,
        partitions: &[(&str, i32)],
        now: Instant,
    ) {
        if topics.is_empty() && partitions.is_empty() {
            return;
        }
        let mut all = self.facts();
        for topic in topics {
            let pause = all.get_mut(*topic).and_then(|it| it.pause.as_mut());
            if let Some(pause) = pause.filter(|pause| pause.tried) {
                (pause.tried, pause.until) = (false, now);
            }
        }
        for (topic, partition) in partitions {
            let holds = all.get_mut(*topic).map(|it| &mut it.holds);
            let hold = holds.and_then(|holds| holds.get_mut(partition));
            if let Some(hold) = hold.filter(|hold| hold.tried) {
                (hold.tried, hold.until) = (false, now);
            }
        }
    }

    /// As [`Self::standing`], for who tries the topic although it is paused for the others.
    pub(super) fn standing_tried(&self, topic: &str) -> Standing {
        let all = self.facts();
        let facts = all.get(topic).filter(|facts| facts.read_at.is_some());
        let fault = |facts: &Facts| facts.pause.as_ref().is_some_and(|pause| !pause.tried);
        match facts {
            None => Standing::Unknown,
            Some(facts) if fault(facts) => Standing::Paused,
            Some(_) => Standing::Unproven,
        }
    }

    /// Whether any partition of any topic is held.
    pub(super) fn holds_any(&self) -> bool {
        self.facts().values().any(|facts| !facts.holds.is_empty())
    }

    /// The partitions of `topic` that are held; none are to be tried.
    pub(super) fn held(&self, topic: &str) -> Held {
        let all = self.facts();
        let Some(facts) = all.get(topic).filter(|facts| !facts.holds.is_empty()) else {
            return Held::default();
        };
        Held {
            partitions: facts.count(),
            held: facts.holds.keys().copied().collect(),
            to_try: HashSet::new(),
        }
    }

    /// The partition that a record of this key goes to, if the topic was looked up.
    pub(super) fn partition(&self, topic: &str, key: &[u8]) -> Option<i32> {
        let partitions = self.partitions(topic);
        (partitions > 0).then(|| partition::of_key(key, partitions))
    }

    /// How many partitions `topic` has; 0 if it was not looked up.
    pub(super) fn partitions(&self, topic: &str) -> i32 {
        self.facts().get(topic).map_or(0, Facts::count)
    }

    /// Whether records of this key must wait for their topic or their partition, and nobody is to
    /// try it yet.
    pub(super) fn keeps_waiting(&self, topic: &str, key: &[u8], now: Instant) -> bool {
        let all = self.facts();
        all.get(topic).is_some_and(|facts| {
            let partition = partition::of_key(key, facts.count());
            let hold = facts.holds.get(&partition);
            facts.paused(now) || hold.is_some_and(|hold| now < hold.until)
        })
    }

    /// A partition of `topic` left records unanswered, though the cluster answers.
    pub(super) fn hold(&self, topic: &str, partition: i32, now: Instant) {
        let mut all = self.facts();
        let facts = all.entry(topic.to_owned()).or_default();
        // who leads it is asked before it is tried again
        facts.read_at = None;
        let told = !facts.holds.is_empty();
        let hold = facts.holds.entry(partition);
        hold.or_insert_with(|| Hold::new(now, self.pause_max))
            .step(now);
        drop(all);
        if !told {
            self.tell_held(
                topic,
                partition,
                "takes no records though the cluster answers",
            );
        }
    }

    fn tell_held(&self, topic: &str, partition: i32, why: &str) {
        warn!(
            topic,
            partition,
            next_step = self.next_step(topic, TopicFault::Silent),
            "a partition of topic `{topic}` {why}: its rows wait and spend no attempts, all others \
             flow"
        );
    }

    /// Kafka's answer about `topic`.
    pub(super) fn read(&self, topic: &str, read: &Read, now: Instant) {
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
        let count = facts.count();
        let before = facts.holds.len();
        facts.holds.retain(|partition, _| *partition < count);
        for (partition, hold) in &mut facts.holds {
            if hold.leaderless && !read.leaderless.contains(partition) {
                hold.leaderless = false;
                if !hold.tried {
                    hold.until = now;
                }
            }
        }
        for partition in &read.leaderless {
            let hold = facts.holds.entry(*partition);
            let hold = hold.or_insert_with(|| Hold::new(now, self.pause_max));
            hold.leaderless = true;
            hold.step(now);
        }
        if before == 0
            && let Some(partition) = facts.holds.keys().next().copied()
        {
            drop(all);
            self.tell_held(topic, partition, "has no leader");
        }
    }

    /// The size limit of `topic`, if it may be read; that it may not be is said once.
    pub(super) fn limit(&self, topic: &str, limit: Limit) {
        let mut all = self.facts();
        let facts = all.entry(topic.to_owned()).or_default();
        facts.limit_asked = false;
        let denied = limit == Limit::Denied;
        let news = denied && !facts.limit_denied;
        match limit {
            // a question without an answer changes nothing
            Limit::Untold => return,
            Limit::Denied => {}
            Limit::Bytes(bytes) => facts.limit_bytes = Some(bytes),
        }
        facts.limit_denied = denied;
        drop(all);
        if news {
            let brokers = &self.brokers;
            warn!(
                topic,
                limit_bytes = self.limit_bytes(topic),
                next_step = format!(
                    "grant it: kafka-acls.sh --bootstrap-server {brokers} --add --allow-principal \
                     User:NAME --operation DescribeConfigs --topic {topic}; or set \
                     kafka.message_bytes_max to what the topic takes"
                ),
                "the relay may not read the settings of the topic: kafka.message_bytes_max counts as \
                 its size limit, and nothing else depends on them"
            );
        }
    }

    /// Whether to ask for the size limit of `topic` again, because a record exceeds it: somebody may
    /// have raised it. Whoever is told so asks.
    pub(super) fn take_limit_question(&self, topic: &str, now: Instant) -> bool {
        let mut all = self.facts();
        let facts = all.entry(topic.to_owned()).or_default();
        let recent = |at: Instant| now.duration_since(at) < LIMIT_RECHECK_AFTER;
        if facts.read_at.is_none() || facts.limit_asked_at.is_some_and(recent) {
            return false;
        }
        facts.limit_asked_at = Some(now);
        true
    }

    /// The size limits of `topics` have been asked for.
    pub(super) fn asked_limits(&self, topics: &[String], now: Instant) {
        let mut all = self.facts();
        for topic in topics {
            let facts = all.entry(topic.clone()).or_default();
            facts.limit_asked = true;
            facts.limit_asked_at = Some(now);
        }
    }

    /// Whether an answer about the size limit of `topic` is still to come.
    pub(super) fn awaits_limit(&self, topic: &str) -> bool {
        let all = self.facts();
        all.get(topic).is_some_and(|facts| facts.limit_asked)
    }

    /// Records of `topic` were acknowledged, in these partitions.
    pub(super) fn took(&self, topic: &str, partitions: &HashSet<i32>) {
        let mut all = self.facts();
        let facts = all.entry(topic.to_owned()).or_default();
        facts.proven = true;
        let held = !facts.holds.is_empty();
        if held {
            facts
                .holds
                .retain(|partition, _| !partitions.contains(partition));
        }
        let paused = facts.pause.take().is_some();
        if paused || (held && facts.holds.is_empty()) {
            drop(all);
            info!(topic, "the topic can be written again: its rows flow");
        }
    }

    /// Something went wrong with records of `topic`: look at it before writing to it again.
    pub(super) fn doubt(&self, topic: &str) {
        if let Some(facts) = self.facts().get_mut(topic) {
            facts.read_at = None;
        }
    }

    /// How to try `topic`, which is not proven.
    pub(super) fn trial(&self, topic: &str) -> Trial {
        let all = self.facts();
        let facts = all.get(topic);
        let pause = facts.and_then(|facts| facts.pause.as_ref());
        let hold = facts.and_then(|facts| facts.holds.values().map(|hold| hold.until).max());
        let doubted_at = pause.map(|pause| pause.until).or(hold);
        let patient = pause.is_some_and(|pause| pause.backoff.failures() % PATIENT_EVERY == 0);
        Trial {
            doubted_at,
            timeout: (doubted_at.is_some() && !patient).then_some(PROBE_TIMEOUT),
        }
    }

    /// How long a record may try this partition of `topic`, which is held.
    pub(super) fn partition_patience(&self, topic: &str, partition: i32) -> Option<Duration> {
        let all = self.facts();
        let hold = all.get(topic).and_then(|it| it.holds.get(&partition));
        let patient = hold.is_some_and(|hold| hold.backoff.failures() % PATIENT_EVERY == 0);
        (!patient).then_some(PROBE_TIMEOUT)
    }

    /// `topic` cannot be written.
    pub(super) fn pause(&self, topic: &str, fault: TopicFault, now: Instant) {
        let mut all = self.facts();
        let facts = all.entry(topic.to_owned()).or_default();
        facts.proven = false;
        facts.read_at = None;
        let told = facts
            .pause
            .as_ref()
            .is_some_and(|pause| pause.fault == fault);
        let pause = facts.pause.get_or_insert_with(|| Pause {
            fault,
            since: now,
            until: now,
            tried: false,
            backoff: Backoff::new(PAUSE_MIN, self.pause_max),
        });
        pause.fault = fault;
        // several workers may meet one fault: it is one failure
        if pause.tried || pause.until <= now {
            pause.tried = false;
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
    pub(super) fn next_step(&self, topic: &str, fault: TopicFault) -> String {
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
                reminders: Reminders::new(now),
                answers: false,
                why: why.to_owned(),
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
        why.clone_into(&mut known.why);
        if !known.reminders.due(now) {
            return;
        }
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

    pub(super) fn facts(&self) -> MutexGuard<'_, HashMap<String, Facts>> {
        // every change is whole before anything can panic
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn outage(&self) -> MutexGuard<'_, Option<Outage>> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Where a record of this key goes.
    pub(super) fn partition(&self, key: &[u8]) -> i32 {
        partition::of_key(key, self.partitions)
    }
}

impl Facts {
    /// The topic's own pause, or all of its partitions are held.
    fn paused(&self, now: Instant) -> bool {
        let paused = self.pause.as_ref().is_some_and(|pause| now < pause.until);
        let all_held = self.partitions > 0 && self.holds.len() >= self.partitions;
        paused || (all_held && self.holds.values().all(|hold| now < hold.until))
    }

    fn count(&self) -> i32 {
        i32::try_from(self.partitions).unwrap_or(i32::MAX)
    }
}

impl Hold {
    /// Over at once, until it is stepped.
    fn new(now: Instant, pause_max: Duration) -> Self {
        Self {
            since: now,
            leaderless: false,
            until: now,
            tried: false,
            backoff: Backoff::new(PAUSE_MIN, pause_max),
        }
    }

    /// It took nothing again. Several workers may find that: it is one failure.
    fn step(&mut self, now: Instant) {
        if self.tried || self.until <= now {
            self.tried = false;
            self.until = now + self.backoff.next(random());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::testing;

    fn topics() -> Topics {
        Topics::new(&testing::kafka("127.0.0.1:1"), &testing::relay())
    }

    const READ: &Read = &Read {
        partitions: 4,
        leaderless: Vec::new(),
    };

    fn took(topics: &Topics, partitions: impl IntoIterator<Item = i32>) {
        topics.took("t", &partitions.into_iter().collect());
    }

    #[test]
    fn a_topic_is_looked_up_tried_and_then_trusted() {
        let topics = topics();
        let now = Instant::now();
        assert_eq!(topics.standing("t", now), Standing::Unknown);
        topics.read("t", READ, now);
        assert_eq!(topics.standing("t", now), Standing::Unproven);
        topics.limit("t", Limit::Bytes(10_000));
        assert_eq!(topics.limit_bytes("t"), 10_000);
        took(&topics, [0]);
        assert_eq!(topics.standing("t", now), Standing::Proven);
        topics.doubt("t");
        assert_eq!(topics.standing("t", now), Standing::Unknown);
    }

    #[test]
    fn a_paused_topic_is_looked_up_again_later_and_ever_later() {
        let topics = topics();
        let mut now = Instant::now();
        topics.read("t", READ, now);
        took(&topics, [0]);
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
        took(&topics, [0]);
        assert_eq!(topics.standing("t", now), Standing::Proven);
    }

    #[test]
    fn a_partition_that_left_records_unanswered_is_held_and_tried_for_a_short_time() {
        let topics = topics();
        let mut now = Instant::now();
        topics.read("t", READ, now);
        took(&topics, 0..4);
        topics.hold("t", 2, now);
        topics.read("t", READ, now);
        assert_eq!(
            topics.standing("t", now),
            Standing::Proven,
            "the others flow"
        );
        assert_eq!(topics.held("t").held, HashSet::from([2]));
        let mut patient = Vec::new();
        for failure in 1..=2 * PATIENT_EVERY {
            assert!(!topics.take_partition_try("t", 2, now), "not yet");
            now += Duration::from_secs(60);
            assert!(topics.take_partition_try("t", 2, now));
            assert!(!topics.take_partition_try("t", 2, now), "one tries it");
            if topics.partition_patience("t", 2).is_none() {
                patient.push(failure);
            }
            topics.hold("t", 2, now);
            // a second worker's batch met the same silence: no second step
            topics.hold("t", 2, now);
        }
        assert_eq!(patient, [PATIENT_EVERY, 2 * PATIENT_EVERY]);
        took(&topics, [2]);
        assert_eq!(topics.held("t"), Held::default());
    }

    #[test]
    fn a_partition_without_a_leader_is_held_until_it_has_one() {
        let topics = topics();
        let now = Instant::now();
        let read = Read {
            partitions: 2,
            leaderless: vec![1],
        };
        topics.read("t", &read, now);
        assert_eq!(topics.held("t").held, HashSet::from([1]));
        assert!(!topics.take_partition_try("t", 1, now));
        let led = Read {
            leaderless: Vec::new(),
            ..read
        };
        topics.read("t", &led, now);
        assert!(topics.take_partition_try("t", 1, now), "at once");
    }

    #[test]
    fn a_topic_all_of_whose_partitions_are_held_is_paused() {
        let topics = topics();
        let now = Instant::now();
        topics.read("t", READ, now);
        for partition in 0..4 {
            assert!(topics.paused_at(now).is_empty());
            topics.hold("t", partition, now);
        }
        assert_eq!(topics.paused_at(now), HashSet::from(["t".to_owned()]));
        assert!(topics.keeps_waiting("t", b"k", now));
        took(&topics, [3]);
        assert!(topics.paused_at(now).is_empty());
    }

    #[test]
    fn one_worker_tries_a_topic_whose_pause_is_over() {
        let topics = topics();
        let mut now = Instant::now();
        topics.pause("t", TopicFault::Denied, now);
        assert!(!topics.take_try("t", now));
        now += Duration::from_secs(60);
        assert!(topics.take_try("t", now));
        assert!(!topics.take_try("t", now));
        assert_eq!(topics.paused_at(now), HashSet::from(["t".to_owned()]));
        // who took it never came back
        now += topics.try_max;
        assert!(topics.take_try("t", now));
        took(&topics, [0]);
        assert!(topics.paused_at(now).is_empty());
    }

    #[test]
    fn a_limit_that_a_record_exceeds_is_asked_for_again_now_and_then() {
        let topics = topics();
        let mut now = Instant::now();
        assert!(!topics.take_limit_question("t", now), "not looked up yet");
        topics.read("t", READ, now);
        assert!(topics.take_limit_question("t", now));
        assert!(!topics.take_limit_question("t", now));
        now += LIMIT_RECHECK_AFTER;
        assert!(topics.take_limit_question("t", now));
    }

    #[test]
    fn old_facts_are_read_again_by_one_worker() {
        let topics = topics();
        let mut now = Instant::now();
        topics.read("t", READ, now);
        took(&topics, [0]);
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
