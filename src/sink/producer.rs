//! `KafkaSink`: one worker's way into Kafka. A batch goes in, every report is waited for, the
//! outcomes come out; nothing is in its producers between two batches.
//!
//! **States** of a producer: *none* → *ready* (made at the first need) → *busy* (its part of a group of
//! records is in it) → *ready* again when each of them was acknowledged, else *over*: purged,
//! dropped, and none again.
//!
//! **Invariants**
//! - One worker, one batch, and its own producers, each with a share of the partitions (see `producers`): a
//!   purge can never touch another batch's records, and what follows a withdrawn record of its partition is
//!   withdrawn with it.
//! - Records of a key in a topic are enqueued in order, and none of a key after one of it is known to be rejected,
//!   suspected or left unfinished in the same publish; none of a topic after its fault is known. What goes at once
//!   to several topics may be in one of them before it is refused by another: order is that of a key in a topic.
//! - The first record for a partition goes alone: a broker that does not know the producer would let
//!   in what follows a refused one (see `opened`).
//! - An acknowledgement counts only with a real offset (see `outcome`). Silence is unfinished.
//! - A producer that reported any failure takes no further record. Its successor starts with a
//!   producer id of its own; whatever the old one still has on the wire can only repeat what the
//!   new one sends again, so first occurrences still ascend.
//!
//! **Failures**: a refusal, a fatal error, a topic's fault, and the deadline all end the generation, and
//! those beside it that have not answered soon after. Within one publish the groups that remain go on with
//! new ones, if the deadline allows.
//!
//! **Silence**: librdkafka keeps trying a topic below its minimum of in-sync replicas, or a
//! partition that cannot be reached, and reports nothing. So when a group ends for want of answers
//! the cluster is asked, by a new connection: if it answers, the partitions that left records
//! unanswered are held, and the lanes need not stand behind their rows. If it does not, it is an
//! outage.
//!
//! **Drawbacks chosen**: producers of each worker's own cost their threads and connections; a failure costs
//! the records in flight beside it a repeat; and a batch costs one round trip per partition of a producer
//! (see `settings`). Sharing one producer would save all three and lose the first invariant.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::generation::{Generation, Report, ask_limits};
use super::outcome::{self, Fault};
use super::producers::{FIRST, Producers, Shares, end};
use super::round::Round;
use super::secured;
use super::sending::{Ended, GiveUp, Part, collect};
use super::settings;
use super::token;
use super::topics::{PROBE_TIMEOUT, Topics};
use super::{Attempt, Sink};
use crate::backoff::Backoff;
use crate::config;
use crate::ops::{Mistake, failpoint, makes, random};
use crate::outcome::Outcome;

/// Shortest pause between two probes of a cluster that is away.
const PROBE_PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest one: Kafka is found again within seconds of its return, however long it was away.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(2);
/// A group that was out for less than this says nothing by its silence; nor one for less than half
/// of the publish deadline, where that is shorter.
const SILENCE_MIN: Duration = Duration::from_secs(1);
/// How long a large record waits to hear whether its topic takes it, and between two looks.
const LIMITS_TIMEOUT: Duration = Duration::from_secs(5);
const LIMITS_PAUSE: Duration = Duration::from_millis(10);
/// How long what was found out about a complaint counts.
const EXPLAIN_EVERY: Duration = Duration::from_secs(10);
/// How long the end of the last producer is waited for.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What goes at once, by several producers, and what waits for it to be acknowledged.
#[derive(Default)]
struct Wave<'a> {
    parts: Vec<Part<'a>>,
    later: Vec<usize>,
}

/// What a wave lacks to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    /// One beside the first, which cannot be made now.
    Producer,
    /// Brokers of the right cluster, a way to them, or the time to find out.
    Cluster,
}

/// Publishes one worker's batches to Kafka.
pub struct KafkaSink {
    kafka: config::Kafka,
    relay: config::Relay,
    topics: Arc<Topics>,
    producers: Producers,
    /// Questions about size limits that are not answered yet.
    limits: JoinSet<()>,
    /// Whether the cluster took the last records it was given, or answered the last probe.
    ready: bool,
    probes: Backoff,
    /// The last complaint that was looked into, when, and what came of it.
    explained: Option<(String, Instant, String)>,
    /// The only cluster to publish to; `None`: any.
    cluster: Option<String>,
}

impl KafkaSink {
    /// A sink that connects when it is first needed. `topics` is shared by the workers of a process.
    #[must_use]
    pub fn new(kafka: &config::Kafka, relay: &config::Relay, topics: Arc<Topics>) -> Self {
        let pause_max = relay.retry_backoff_max.min(PROBE_PAUSE_MAX);
        Self {
            kafka: kafka.clone(),
            relay: relay.clone(),
            topics,
            producers: Producers::new(kafka, relay),
            limits: JoinSet::new(),
            ready: false,
            probes: Backoff::new(PROBE_PAUSE_MIN, pause_max),
            explained: None,
            cluster: None,
        }
    }

    /// Publishes to the cluster of this id and to no other: brokers of another one count as away.
    #[must_use]
    pub fn only_to(mut self, cluster: Option<String>) -> Self {
        self.cluster = cluster;
        self
    }

    /// The id of the cluster, if it answers.
    pub async fn cluster_id(&mut self) -> Option<String> {
        let generation = self.producer(FIRST).await.ok()?;
        let cluster_id = generation.cluster_id().await;
        self.producers.put(FIRST, generation);
        cluster_id
    }

    /// Why `generation` may not be given records: it is connected to another cluster than it should
    /// be, or to none yet. Asked once for each producer, before its first record.
    async fn stranger(&self, generation: &mut Generation) -> Option<String> {
        let unknown = |_: &&String| !generation.is_identified();
        let ours = self.cluster.as_ref().filter(unknown)?;
        match generation.cluster_id().await {
            Some(theirs) if theirs == *ours => {
                generation.identify();
                None
            }
            Some(theirs) => Some(format!(
                "these are brokers of the Kafka cluster {theirs}, and the outbox is published to the \
                 cluster {ours}: see `outbox-relay adopt`"
            )),
            None => Some("it does not say which cluster it is".to_owned()),
        }
    }

    #[cfg(test)]
    pub(super) fn topics(&self) -> &Topics {
        &self.topics
    }

    /// How many producers there are now.
    #[cfg(test)]
    pub(super) fn made(&self) -> usize {
        self.producers.made()
    }

    /// Takes out the producer of `share`, made anew if there is none or it is sized for other topics.
    async fn producer(&mut self, share: usize) -> Result<Generation, String> {
        self.producers.take(share, self.topics.sizes()).await
    }

    /// `complaint` with the cause behind it. The same one is not looked into over and over.
    async fn explained(&mut self, complaint: String) -> String {
        if let Some((said, at, explained)) = &self.explained
            && *said == complaint
            && at.elapsed() < EXPLAIN_EVERY
        {
            return explained.clone();
        }
        let explained = secured::explained(&self.kafka, complaint.clone()).await;
        self.explained = Some((complaint, Instant::now(), explained.clone()));
        explained
    }

    /// Asks Kafka about `names`. What it says goes into the shared facts.
    async fn look_up(&mut self, names: Vec<String>) -> Result<(), String> {
        let generation = self.producer(FIRST).await?;
        match generation.ask(names).await {
            Ok(answers) => {
                self.producers.put(FIRST, generation);
                let now = Instant::now();
                let mut found = Vec::new();
                for (topic, answer) in answers {
                    match answer {
                        Ok(read) => {
                            self.topics.read(&topic, &read, now);
                            found.push(topic);
                        }
                        Err(fault) => self.topics.pause(&topic, fault, now),
                    }
                }
                self.topics.answers();
                self.ask_limits(found);
                Ok(())
            }
            Err(error) => {
                let why = generation.complaint();
                end(generation);
                let why = why.unwrap_or_else(|| outcome::in_words(&error));
                Err(self.explained(why).await)
            }
        }
    }

    /// Asks for the size limits of `topics`, and waits for no answer: some brokers give none.
    fn ask_limits(&mut self, topics: Vec<String>) {
        while self.limits.try_join_next().is_some() {}
        // rdkafka's client for such questions asks nobody for a token
        if topics.is_empty() || token::is_wanted(&self.kafka) {
            return;
        }
        let (settings, facts) = (settings::connection(&self.kafka), Arc::clone(&self.topics));
        facts.asked_limits(&topics, Instant::now());
        self.limits.spawn(async move {
            let limits = ask_limits(settings, topics.clone()).await;
            for topic in topics {
                facts.limit(&topic, limits.of(&topic));
            }
        });
    }

    /// Where a record of `round` exceeds the size limit of its topic, asks for that again, and waits
    /// a little for the answer, to its own question or another worker's: somebody may have raised
    /// it, and whoever then retries a row that was parked for its size is to be heard at once.
    async fn weigh<F: Future<Output = ()>>(
        &mut self,
        round: &Round<'_>,
        give_up: &mut GiveUp<'_, F>,
    ) {
        let limit = |topic: &&'_ str| self.topics.limit_bytes(topic);
        let least = round.topics.iter().map(limit).min().unwrap_or(0);
        let large: HashSet<&str> = (round.attempts.iter().map(|attempt| attempt.record))
            .filter(|record| {
                let size_bytes = record.size_bytes();
                size_bytes > least && size_bytes > self.topics.limit_bytes(&record.topic)
            })
            .map(|record| &*record.topic)
            .collect();
        if large.is_empty() {
            return;
        }
        let now = Instant::now();
        let ask = |topic: &&&str| self.topics.take_limit_question(topic, now);
        let ask = large.iter().filter(ask).map(ToString::to_string).collect();
        self.ask_limits(ask);
        let until = now + LIMITS_TIMEOUT;
        for topic in large {
            while self.topics.awaits_limit(topic) && Instant::now() < until {
                if give_up.unless(sleep(LIMITS_PAUSE)).await.is_none() {
                    return;
                }
            }
        }
    }

    /// Brings the facts about the topics of `round` up to date where they must be known.
    async fn learn<F: Future<Output = ()>>(
        &mut self,
        round: &mut Round<'_>,
        give_up: &mut GiveUp<'_, F>,
    ) {
        let mut names = round.take_tries(&self.topics);
        if names.is_empty() {
            names = self.topics.take_stale(Instant::now());
        }
        if names.is_empty() {
            return;
        }
        let looked_up = give_up.unless(self.look_up(names)).await;
        match looked_up {
            Some(Ok(())) => {}
            Some(Err(why)) => round.trouble = Some(why),
            None => {
                round.trouble =
                    Some("it does not answer questions about topics in time".to_owned());
            }
        }
    }

    /// Sends `list`, indices in ascending order, in groups: one for each attempt that must be
    /// alone, one for whatever lies between.
    async fn send_list<F: Future<Output = ()>>(
        &mut self,
        round: &mut Round<'_>,
        list: &[usize],
        give_up: &mut GiveUp<'_, F>,
    ) {
        let mut rest = list;
        while let Some(&first) = rest.first() {
            let attempts = round.attempts;
            let alone = attempts[first].alone;
            let length = if alone {
                1
            } else {
                let next_alone = rest.iter().position(|&i| attempts[i].alone);
                next_alone.unwrap_or(rest.len())
            };
            let (group, after) = rest.split_at(length);
            rest = after;
            self.send_group(round, group, None, give_up).await;
        }
    }

    /// Sends `lists`, each of a topic of its own, that did not take a record yet: one record first,
    /// and the rest if that was delivered. Topics that nothing speaks against come first, then
    /// those that wait the longest. Doubtful ones are tried for a short time, all of them together.
    async fn send_unproven<F: Future<Output = ()>>(
        &mut self,
        round: &mut Round<'_>,
        lists: Vec<Vec<usize>>,
        give_up: &mut GiveUp<'_, F>,
    ) {
        let attempts = round.attempts;
        let trial = |list: Vec<usize>| (self.topics.trial(&attempts[list[0]].record.topic), list);
        let mut trials: Vec<_> = lists.into_iter().map(trial).collect();
        trials.sort_by_key(|(trial, _)| trial.doubted_at);
        let mut doubting_since = None;
        for (trial, list) in trials {
            if trial.doubted_at.is_some() {
                let since: &mut Instant = doubting_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= PROBE_TIMEOUT {
                    // another publish tries it: the lanes of this one have waited enough
                    list.iter().for_each(|&i| round.enter(i, Outcome::Paused));
                    continue;
                }
            }
            let (probe, rest) = list.split_at(1);
            self.send_group(round, probe, trial.timeout, give_up).await;
            // A probe that is suspect, rejected or unfinished proved nothing, good or bad: the rest
            // waits for the next publish, as it does when the topic is paused.
            if matches!(round.outcomes[probe[0]], Some(Outcome::Delivered { .. })) {
                self.send_list(round, rest, give_up).await;
            }
        }
    }

    /// Sends the attempts of `group` that nothing holds back, waits for their reports, for
    /// `patience` at most if that is given, and enters the outcomes. Partitions that do not know the
    /// producer yet take one record before the others (see `opened`).
    async fn send_group<F: Future<Output = ()>>(
        &mut self,
        round: &mut Round<'_>,
        group: &[usize],
        patience: Option<Duration>,
        give_up: &mut GiveUp<'_, F>,
    ) {
        let mut left = group.to_vec();
        let mut count = self.producers.shares();
        loop {
            left.retain(|&i| round.may_go(i));
            if left.is_empty() || give_up.over() {
                return round.leave(&left);
            }
            let mut wave = Wave::default();
            let lists = self.shares(round, &left, count).into_iter().enumerate();
            let mut without = None;
            for (share, list) in lists.filter(|(_, list)| !list.is_empty()) {
                without = self.add(round, &mut wave, share, list, give_up).await.err();
                if without.is_some() {
                    break;
                }
            }
            match without {
                None => {}
                Some(Without::Producer) => {
                    // while files are half written none can be made, and the first may be there
                    self.put_back(wave.parts);
                    count = 1;
                    continue;
                }
                Some(Without::Cluster) => {
                    self.put_back(wave.parts);
                    return round.leave(&left);
                }
            }
            let Wave { parts, mut later } = wave;
            if !self.send_wave(round, parts, patience, give_up).await {
                return round.leave(&later);
            }
            later.sort_unstable();
            left = later;
        }
    }

    /// The attempts at `indices`, by which of `count` producers they go to.
    fn shares(&self, round: &Round<'_>, indices: &[usize], count: usize) -> Vec<Vec<usize>> {
        let record = |i: usize| round.attempts[i].record;
        let partitions = |topic: &str| self.topics.partitions(topic);
        Shares::new(count).of_all(indices, record, partitions)
    }

    /// Adds to `wave` what of `indices` may go now to the producer of `share`, and that producer.
    async fn add<'a, F: Future<Output = ()>>(
        &mut self,
        round: &mut Round<'a>,
        wave: &mut Wave<'a>,
        share: usize,
        indices: Vec<usize>,
        give_up: &mut GiveUp<'_, F>,
    ) -> Result<(), Without> {
        let producer = give_up.unless(self.producer(share)).await;
        let mut generation = match producer.ok_or(Without::Cluster)? {
            Ok(generation) => generation,
            Err(_) if share != FIRST => return Err(Without::Producer),
            Err(why) => {
                round.trouble = Some(why);
                return Err(Without::Cluster);
            }
        };
        let stranger = give_up.unless(self.stranger(&mut generation)).await;
        if stranger != Some(None) {
            end(generation);
            if let Some(why) = stranger.flatten() {
                round.trouble = Some(why);
            }
            return Err(Without::Cluster);
        }
        if makes(Mistake::FiveInFlight) {
            let part = Part::new(share, generation, indices, HashSet::new());
            wave.parts.push(part);
            return Ok(());
        }
        let partitions = |topic: &str| self.topics.partitions(topic);
        let now = Instant::now();
        let split = (generation.opened).split(round.attempts, &indices, partitions, now);
        wave.later.extend(split.later);
        wave.parts
            .push(Part::new(share, generation, split.now, split.opening));
        Ok(())
    }

    /// Nothing of `parts` was sent.
    fn put_back(&mut self, parts: Vec<Part<'_>>) {
        for part in parts {
            self.producers.put(part.share, part.generation);
        }
    }

    /// Sends `parts`, each by its producer, and waits for all of it. Whether all of it was acknowledged; the
    /// producers of those that were not are over.
    async fn send_wave<F: Future<Output = ()>>(
        &mut self,
        round: &mut Round<'_>,
        mut parts: Vec<Part<'_>>,
        patience: Option<Duration>,
        give_up: &mut GiveUp<'_, F>,
    ) -> bool {
        let begun = Instant::now();
        for part in &mut parts {
            part.enqueue(round.attempts, give_up).await;
        }
        let ended = collect(&mut parts, patience, give_up).await;
        failpoint("sink_acked");
        let (mut group, mut reports) = (Vec::new(), Vec::new());
        let (mut lost, mut cut_off, mut complaint) = (None, false, None);
        for mut part in parts {
            let (reported, is_clean) = part.reports();
            reports.extend(reported);
            group.append(&mut part.group);
            let mut generation = part.generation;
            if is_clean {
                generation.opened.took(&part.opening, Instant::now());
                self.producers.put(part.share, generation);
            } else {
                lost = Some(part.share);
                cut_off |= generation.was_cut_off();
                complaint = complaint.or_else(|| generation.complaint());
                end(generation);
            }
        }
        let Some(lost) = lost else {
            self.judge(round, &group, &reports, false);
            return true;
        };
        let telling = SILENCE_MIN.min(self.relay.publish_timeout / 2);
        let (late, long) = (ended == Ended::Late, begun.elapsed() >= telling);
        let answers = late && long && !cut_off && self.cluster_answers(lost).await;
        self.judge(round, &group, &reports, answers);
        if late && (long || cut_off) && !answers && round.trouble.is_none() {
            let why = complaint.unwrap_or_else(|| "it does not acknowledge records in time".into());
            round.trouble = Some(self.explained(why).await);
        }
        false
    }

    /// Asks the cluster, by a producer that never had an answer: an older one would remember. `share` has
    /// none now.
    async fn cluster_answers(&mut self, share: usize) -> bool {
        let Ok(generation) = self.producer(share).await else {
            return false;
        };
        let answers = generation.cluster_answers(self.topics.any()).await;
        self.producers.put(share, generation);
        answers
    }

    /// Turns a group's reports into outcomes, and into what is known of its topics. `answers` tells
    /// that the group was given up on, and that the cluster answers nevertheless.
    fn judge(&self, round: &mut Round<'_>, group: &[usize], reports: &[Report], answers: bool) {
        let alone = group.len() == 1;
        let attempts = round.attempts;
        let topic = |i: usize| &*attempts[i].record.topic;
        // partitions matter only where some take nothing
        let detailed = answers || self.topics.holds_any();
        let mut taking: HashMap<&str, HashSet<i32>> = HashMap::new();
        let mut unanswered: HashSet<&str> = HashSet::new();
        // of the last record: those of a topic mostly come together
        let mut taken = "";
        let mut outcomes = Vec::with_capacity(group.len());
        for (&i, &report) in group.iter().zip(reports) {
            let outcome = match report {
                Report::Silent => Outcome::Unfinished,
                Report::Acked(partition, offset) => {
                    outcome::of_report(Ok((partition, offset)), alone)
                }
                Report::Failed(code) => {
                    match Fault::of(code) {
                        Fault::Topic(fault) => self.topics.pause(topic(i), fault, Instant::now()),
                        Fault::Cluster => round.trouble = Some(code.to_string()),
                        Fault::Record(_) | Fault::Producer => {}
                    }
                    outcome::of_report(Err(code), alone)
                }
            };
            match outcome {
                Outcome::Delivered { partition, .. } if detailed || taken != topic(i) => {
                    taken = topic(i);
                    let partitions = taking.entry(taken).or_default();
                    if detailed {
                        partitions.insert(partition);
                    }
                }
                Outcome::Unfinished => _ = unanswered.insert(topic(i)),
                _ => {}
            }
            outcomes.push(outcome);
        }
        for (topic, partitions) in &taking {
            self.topics.took(topic, partitions);
        }
        let mut silent: HashSet<(&str, i32)> = HashSet::new();
        if answers {
            for (&i, outcome) in group.iter().zip(&outcomes) {
                let partition = self.topics.partition(topic(i), &attempts[i].record.key);
                if let (Outcome::Unfinished, Some(partition)) = (outcome, partition) {
                    silent.insert((topic(i), partition));
                }
            }
            let now = Instant::now();
            for (topic, partition) in &silent {
                self.topics.hold(topic, *partition, now);
            }
        } else {
            unanswered.iter().for_each(|topic| self.topics.doubt(topic));
        }
        // a partition that took some and left others is slow, or went away meanwhile: who knows
        silent.retain(|(topic, partition)| {
            let took = taking.get(topic);
            !took.is_some_and(|took| took.contains(partition))
        });
        round.silence(silent, &self.topics);
        for (&i, outcome) in group.iter().zip(outcomes) {
            if outcome == Outcome::Unfinished && round.is_silent(i) {
                round.wait(i);
            } else {
                round.enter(i, outcome);
            }
        }
    }

    /// What the round says about the cluster.
    fn conclude(&mut self, round: &Round<'_>) {
        if round.delivered {
            self.topics.takes();
            self.probes.reset();
        } else if let Some(why) = &round.trouble {
            self.topics.away(why, Instant::now());
            self.ready = false;
            // who asks whether it is back must not remember an answer
            self.producers.end_all();
        }
    }
}

impl Sink for KafkaSink {
    async fn ready(&mut self) {
        while !self.ready {
            // The first probe is at once. What follows it waits, even after an answer, until a
            // record was taken: a cluster may answer and still take nothing.
            let pause = self.probes.next(random());
            if self.probes.failures() > 1 {
                sleep(pause).await;
            }
            let mut generation = match self.producer(FIRST).await {
                Ok(generation) => generation,
                Err(why) => {
                    self.topics.away(&why, Instant::now());
                    continue;
                }
            };
            let answers = generation.cluster_answers(self.topics.any()).await;
            if answers {
                if let Some(why) = self.stranger(&mut generation).await {
                    self.topics.away(&why, Instant::now());
                    end(generation);
                    continue;
                }
                self.topics.answers();
                self.ready = true;
            } else {
                let why = generation.complaint();
                let why = why.unwrap_or_else(|| "it does not answer".to_owned());
                let why = self.explained(why).await;
                self.topics.away(&why, Instant::now());
                if generation.is_unanswered() {
                    end(generation);
                    continue;
                }
            }
            self.producers.put(FIRST, generation);
        }
    }

    fn paused(&self) -> HashSet<String> {
        self.topics.paused()
    }

    fn keeps_waiting(&self, topic: &str, key: &str) -> bool {
        let now = Instant::now();
        self.topics.keeps_waiting(topic, key.as_bytes(), now)
    }

    async fn publish(
        &mut self,
        attempts: &[Attempt<'_>],
        give_up: impl Future<Output = ()> + Send,
    ) -> Vec<Outcome> {
        let mut give_up = pin!(give_up);
        let mut give_up = GiveUp::new(give_up.as_mut());
        let mut round = Round::new(attempts);
        self.learn(&mut round, &mut give_up).await;
        self.weigh(&round, &mut give_up).await;
        let plan = round.screen(&self.topics);
        self.send_list(&mut round, &plan.proven, &mut give_up).await;
        self.send_unproven(&mut round, plan.unproven, &mut give_up)
            .await;
        let patience = round.patience(&plan.trials, &self.topics);
        self.send_group(&mut round, &plan.trials, patience, &mut give_up)
            .await;
        self.conclude(&round);
        round.finish(&self.topics)
    }

    async fn close(self) {
        let closed = tokio::time::timeout(CLOSE_TIMEOUT, self.producers.close());
        if closed.await.is_err() {
            debug!("the last producers take their time to close: they are left behind");
        }
    }
}
