//! `KafkaSink`: one worker's way into Kafka. A batch goes in, every report is waited for, the
//! outcomes come out; nothing is in the producer between two batches.
//!
//! **States** of the producer: *none* → *ready* (made at the first need) → *busy* (a group of
//! records is in it) → *ready* again when each of them was acknowledged, else *over*: purged,
//! dropped, and none again.
//!
//! **Invariants**
//! - One worker, one producer, one batch: a purge can never touch another batch's records, and what
//!   follows a withdrawn record is withdrawn with it.
//! - Records of a key are enqueued in order, and none after one of that key was rejected, suspected
//!   or left unfinished in the same publish; none of a topic after a fault of that topic.
//! - The first record for a partition goes alone: a broker that does not know the producer would let
//!   in what follows a refused one (see `opened`).
//! - An acknowledgement counts only with a real offset (see `outcome`). Silence is unfinished.
//! - A producer that reported any failure takes no further record. Its successor starts with a
//!   producer id of its own; whatever the old one still has on the wire can only repeat what the
//!   new one sends again, so first occurrences still ascend.
//!
//! **Failures**: a refusal, a fatal error, a topic's fault, and the deadline all end the generation.
//! Within one publish the groups that remain go on with a new one, if the deadline allows.
//!
//! **Silence**: librdkafka keeps trying a topic below its minimum of in-sync replicas, or a
//! partition that cannot be reached, and reports nothing. So when a group ends for want of answers
//! the cluster is asked, by a new connection: if it answers, the partitions that left records
//! unanswered are held, and the lanes need not stand behind their rows. If it does not, it is an
//! outage.
//!
//! **Drawbacks chosen**: a producer per worker costs its threads and connections; a failure costs
//! the records in flight beside it a repeat; and a batch costs one round trip per partition (see
//! `settings`). Sharing one producer would save all three and lose the first invariant.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};

use super::generation::{Generation, Report, ask_limits};
use super::opened::Split;
use super::outcome::{self, Fault};
use super::rotated::Files;
use super::round::Round;
use super::secured;
use super::sending::{Ended, GiveUp, collect, enqueue};
use super::settings;
use super::token::{self, Token};
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

/// Publishes one worker's batches to Kafka.
pub struct KafkaSink {
    kafka: config::Kafka,
    relay: config::Relay,
    topics: Arc<Topics>,
    generation: Option<Generation>,
    /// Questions about size limits that are not answered yet.
    limits: JoinSet<()>,
    /// Whether the cluster took the last records it was given, or answered the last probe.
    ready: bool,
    probes: Backoff,
    /// What a producer is made of and may change on disk.
    files: Files,
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
            generation: None,
            limits: JoinSet::new(),
            ready: false,
            probes: Backoff::new(PROBE_PAUSE_MIN, pause_max),
            files: Files::of(kafka),
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
        let generation = self.generation().await.ok()?;
        let cluster_id = generation.cluster_id().await;
        self.generation = Some(generation);
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

    /// Takes the producer out, made anew if there is none or it is sized for other topics.
    async fn generation(&mut self) -> Result<Generation, String> {
        let sizes = self.topics.sizes();
        let renewed = self.files.changed().await;
        if renewed && let Some(generation) = self.renewed().await {
            return Ok(generation);
        }
        if let Some(generation) = self.generation.take() {
            if generation.sizes() == sizes && !generation.may_have_moved() {
                return Ok(generation);
            }
            debug!(
                ?sizes,
                "the producer is made anew: a topic has another size limit, or it was cut off"
            );
            end(generation);
        }
        let settings = settings::producer(&self.kafka, &self.relay, sizes);
        let made = Generation::make(settings, sizes, Token::of(&self.kafka)).await;
        made.map_err(|error| {
            let why = format!("a producer cannot be made: {}", outcome::in_words(&error));
            error!("{why}");
            why
        })
    }

    /// A producer of the files as they are now, in the place of the one there is. Without one there is
    /// nothing to replace, and one that cannot be made leaves it: half of the files may be written.
    async fn renewed(&mut self) -> Option<Generation> {
        let old = self.generation.take()?;
        let sizes = self.topics.sizes();
        let settings = settings::producer(&self.kafka, &self.relay, sizes);
        match Generation::make(settings, sizes, Token::of(&self.kafka)).await {
            Ok(generation) => {
                info!("certificates or passwords changed on disk: a new producer takes them");
                end(old);
                Some(generation)
            }
            Err(error) => {
                warn!(
                    why = outcome::in_words(&error),
                    "certificates or passwords changed on disk, and no producer can be made of them: the \
                     old one goes on until they change again"
                );
                self.generation = Some(old);
                None
            }
        }
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
        let generation = self.generation().await?;
        match generation.ask(names).await {
            Ok(answers) => {
                self.generation = Some(generation);
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
        loop {
            left.retain(|&i| round.may_go(i));
            if left.is_empty() || give_up.over() {
                return;
            }
            let Some(generation) = give_up.unless(self.generation()).await else {
                return;
            };
            let mut generation = match generation {
                Ok(generation) => generation,
                Err(why) => {
                    round.trouble = Some(why);
                    return;
                }
            };
            match give_up.unless(self.stranger(&mut generation)).await {
                Some(None) => {}
                Some(Some(why)) => {
                    round.trouble = Some(why);
                    return end(generation);
                }
                None => return end(generation),
            }
            let attempts = round.attempts;
            let partitions = |topic: &str| self.topics.partitions(topic);
            let now = Instant::now();
            let split = generation.opened.split(attempts, &left, partitions, now);
            let wave = match makes(Mistake::FiveInFlight) {
                true => Split {
                    now: std::mem::take(&mut left),
                    ..Split::default()
                },
                false => split,
            };
            if !self
                .send_wave(round, generation, &wave, patience, give_up)
                .await
            {
                return;
            }
            left = wave.later;
        }
    }

    /// Sends what is to go now of `wave` by `generation`, and waits for it. Whether all of it was
    /// acknowledged; the generation is over if not.
    async fn send_wave<F: Future<Output = ()>>(
        &mut self,
        round: &mut Round<'_>,
        mut generation: Generation,
        wave: &Split<'_>,
        patience: Option<Duration>,
        give_up: &mut GiveUp<'_, F>,
    ) -> bool {
        let group = &wave.now;
        let begun = Instant::now();
        generation.open(group.len());
        let refused = enqueue(&generation, round.attempts, group, give_up).await;
        let ended = collect(&generation, patience, give_up).await;
        failpoint("sink_acked");
        let mut reports = generation.take();
        if let Some((slot, code)) = refused {
            reports[slot] = Report::Failed(code);
        }
        if ended == Ended::Clean && refused.is_none() && !generation.fatal() {
            self.judge(round, group, &reports, false);
            generation.opened.took(&wave.opening, Instant::now());
            self.generation = Some(generation);
            return true;
        }
        let telling = SILENCE_MIN.min(self.relay.publish_timeout / 2);
        let late = ended == Ended::Late;
        let (long, cut_off) = (begun.elapsed() >= telling, generation.was_cut_off());
        let complaint = generation.complaint();
        end(generation);
        let answers = late && long && !cut_off && self.cluster_answers().await;
        self.judge(round, group, &reports, answers);
        if late && (long || cut_off) && !answers && round.trouble.is_none() {
            let why = complaint.unwrap_or_else(|| "it does not acknowledge records in time".into());
            round.trouble = Some(self.explained(why).await);
        }
        false
    }

    /// Asks the cluster, by a producer that never had an answer: an older one would remember.
    async fn cluster_answers(&mut self) -> bool {
        let Ok(generation) = self.generation().await else {
            return false;
        };
        let answers = generation.cluster_answers().await;
        self.generation = Some(generation);
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
                Outcome::Delivered { partition, .. } => {
                    let partitions = taking.entry(topic(i)).or_default();
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
            let mut generation = match self.generation().await {
                Ok(generation) => generation,
                Err(why) => {
                    self.topics.away(&why, Instant::now());
                    continue;
                }
            };
            let answers = generation.cluster_answers().await;
            let stranger = match answers {
                true => self.stranger(&mut generation).await,
                false => None,
            };
            if let Some(why) = stranger {
                self.topics.away(&why, Instant::now());
                end(generation);
                continue;
            }
            if answers {
                self.topics.answers();
                self.ready = true;
            } else {
                let why = generation.complaint();
                let why = why.unwrap_or_else(|| "it does not answer".to_owned());
                let why = self.explained(why).await;
                self.topics.away(&why, Instant::now());
            }
            self.generation = Some(generation);
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

    async fn close(mut self) {
        let retired = self.generation.take().and_then(Generation::retire);
        if let Some(retired) = retired
            && tokio::time::timeout(CLOSE_TIMEOUT, retired).await.is_err()
        {
            debug!("the last producer takes its time to close: it is left behind");
        }
    }
}

impl Drop for KafkaSink {
    fn drop(&mut self) {
        if let Some(generation) = self.generation.take() {
            end(generation);
        }
    }
}

/// Lets `generation` go without waiting for it.
fn end(generation: Generation) {
    drop(generation.retire());
}
