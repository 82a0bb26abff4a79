//! What is known of a whole process, put together as `/status` tells it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Drain;
use super::status::{Sampled, Status, by_topic, lock};
use super::watching::RATE_LOOK;
use crate::config::{Config, Freshness};
use crate::ops::controls::Controls;
use crate::ops::facts::{
    self, Backlog, Build, Database, Facts, Parked, ParkedRows, Quantiles, State, Topic,
    TopicPaused, Workers,
};
use crate::ops::{
    Counted, Histogram, TOPICS_MAX, TopicCounted, as_f64, recent_errors, text_ago, text_now,
    time_text,
};
use crate::sink::Topics;
use crate::source::{ROWS_MAX, Sample};

/// What is known of a process, and of each of its outboxes.
#[derive(Debug)]
pub struct Known {
    config: Arc<Config>,
    topics: Arc<Topics>,
    outboxes: Vec<Arc<Status>>,
    drain: Drain,
    started_at: SystemTime,
    started: Instant,
}

/// The facts, and the counts behind them, one for each outbox: taken at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) facts: Facts,
    pub(crate) counted: Vec<Counted>,
}

/// A time that goes by since a sample said how long something had lasted.
fn since(sampled: Instant, lasted: Duration) -> f64 {
    (lasted + sampled.elapsed()).as_secs_f64()
}

impl Known {
    pub(super) fn new(
        config: &Arc<Config>,
        topics: &Arc<Topics>,
        outboxes: Vec<Arc<Status>>,
        drain: &Drain,
    ) -> Self {
        Self {
            config: Arc::clone(config),
            topics: Arc::clone(topics),
            outboxes,
            drain: drain.clone(),
            started_at: SystemTime::now(),
            started: Instant::now(),
        }
    }

    pub(super) fn outboxes(&self) -> &[Arc<Status>] {
        &self.outboxes
    }

    /// Why `/livez` fails; empty if it does not.
    pub(crate) fn stuck(&self) -> Vec<String> {
        let mut why = Vec::new();
        for status in &self.outboxes {
            for loop_ in status.loops.standing(self.config.http.stuck_after) {
                if loop_.stuck {
                    why.push(format!(
                        "{}: its {} has been {} for {} s",
                        status.outbox(),
                        loop_.of,
                        loop_.step.name().replace('_', " "),
                        loop_.lasted.as_secs()
                    ));
                }
            }
        }
        why
    }

    /// Everything that is known now.
    #[must_use]
    pub fn facts(&self) -> Facts {
        self.snapshot().facts
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        let mut kafka = self.topics.known();
        (kafka.topics_paused).extend(self.outboxes.iter().flat_map(|it| paused_by_somebody(it)));
        let (outboxes, counted): (Vec<_>, Vec<_>) =
            (self.outboxes.iter().map(|status| self.outbox(status, now))).unzip();
        let stuck = self.stuck();
        let mut why = stuck.clone();
        if self.config.http.strict_readiness {
            why.extend(not_ready(&kafka, &outboxes));
        }
        let mut errors = recent_errors();
        for error in &mut errors {
            let current = outboxes.iter().filter_map(|outbox| match outbox.state {
                State::Trouble | State::Waiting => outbox.state_text.as_ref(),
                _ => None,
            });
            let whys = (outboxes.iter()).filter_map(|outbox| outbox.database.why.as_ref());
            let mut current = current.chain(whys).chain(&kafka.why);
            error.lasts = current.any(|text| error.text.contains(text.as_str()));
        }
        let facts = Facts {
            at: text_now(),
            build: build(),
            started_at: time_text(self.started_at),
            uptime_s: now.saturating_duration_since(self.started).as_secs_f64(),
            live: stuck.is_empty(),
            ready: why.is_empty(),
            why,
            kafka,
            outboxes,
            errors,
        };
        Snapshot { facts, counted }
    }

    fn outbox(&self, status: &Status, now: Instant) -> (facts::Outbox, Counted) {
        let (counted, then, window) = status.tally.window(now);
        let window_s = window.as_secs_f64();
        let per_s = |rows: u64| match window_s > 0.0 {
            true => as_f64(rows) / window_s,
            false => 0.0,
        };
        let base = lock(&status.base);
        let (mut state, mut state_since, mut text) = (base.state, base.since, base.text.clone());
        let serving_since = base.serving_since.map(time_text);
        drop(base);
        let mut database = Database {
            reachable: true,
            ..Database::default()
        };
        let mut away: Option<(Instant, String)> = None;
        let trouble = lock(&status.trouble);
        if let Some(began) = trouble.since {
            let told = trouble.looked.as_ref().unwrap_or(&trouble.text);
            (state, state_since, text) = (State::Trouble, began, Some(told.clone()));
            away = Some((began, trouble.text.clone()));
        }
        drop(trouble);
        let (read_at, pauses) = lock(&status.pauses).clone();
        if let Some(pause) = pauses.iter().find(|pause| pause.topic.is_empty())
            && state == State::Serving
        {
            let began = read_at.checked_sub(pause.age());
            (state, text) = (State::Paused, Some(pause.told()));
            state_since = began.unwrap_or(read_at);
        }
        if self.drain.stopping().is_cancelled() {
            state = State::Stopping;
        }
        let sampled = lock(&status.sampled);
        if let Some((began, why)) = &sampled.away
            && away.as_ref().is_none_or(|(first, _)| began < first)
        {
            away = Some((*began, why.clone()));
        }
        if let Some((began, why)) = &away {
            let lasted = now.saturating_duration_since(*began);
            database.reachable = false;
            database.away_since = Some(text_ago(lasted));
            database.away_s = Some(lasted.as_secs_f64());
            database.why = Some(why.clone());
        }
        let sample = sampled.last.as_ref();
        if let Some(sample) = sample {
            let age = now.saturating_duration_since(sample.at);
            database.sampled_at = Some(text_ago(age));
            database.sample_age_s = Some(age.as_secs_f64());
            database.clock_offset_s = Some(status.clock_offset_s());
        }
        let blind = away.is_some();
        let oldest_pending_age_s = oldest(sample, blind);
        let topics = topics(status, &counted, &then, window_s, sample, blind);
        let polling = lock(&status.polling)
            .as_ref()
            .map(|polling| polling.lanes());
        let (lanes, lanes_held) = polling.unzip();
        let outbox = facts::Outbox {
            outbox: status.outbox().to_owned(),
            state,
            state_since: text_ago(now.saturating_duration_since(state_since)),
            state_text: text,
            serving_since,
            on_published: status.on_published.to_owned(),
            published: counted.published,
            parked: counted.parked(),
            behind: counted.behind,
            late: counted.late,
            last_published_at: counted.last_publish.map(time_text),
            rate_out_per_s: per_s(counted.published.saturating_sub(then.published)),
            rate_in_per_s: rate_in(&sampled),
            written: sample
                .and_then(|sample| sample.written)
                .and_then(|written| u64::try_from(written).ok()),
            window_s,
            lag: quantiles(&counted.lag.since(&then.lag)),
            publish: quantiles(&counted.publish.since(&then.publish)),
            workers: self.workers(status),
            lanes,
            lanes_held: lanes_held.unwrap_or(0),
            database,
            backlog: Backlog {
                events: sample.map(|sample| sample.pending),
                exact: sample.is_none_or(|sample| sample.exact),
                counted_max: u64::from(ROWS_MAX),
            },
            oldest_pending_age_s,
            freshness: freshness(&status.freshness(), &counted, oldest_pending_age_s, &topics),
            topics,
            parked_rows: parked(sample),
            drained_in_s: drained_in(&sampled),
            rows_per_second_max: status.controls.rate().rows_per_second_max(),
            limited_for_s: limited_for(&status.controls, sample),
            contracts: status.controls.contracts().map(|contracts| {
                let (event_types, versions) = contracts.count();
                facts::Contracts {
                    event_types,
                    versions,
                    digest: contracts.digest().to_owned(),
                }
            }),
        };
        (outbox, counted)
    }

    fn workers(&self, status: &Status) -> Workers {
        let mut workers = Workers {
            count: usize::try_from(status.workers.load(Ordering::Relaxed)).unwrap_or(0),
            ..Workers::default()
        };
        for loop_ in status.loops.standing(self.config.http.stuck_after) {
            workers.stuck += usize::from(loop_.stuck);
            if loop_.of == "worker" {
                *workers
                    .doing
                    .entry(loop_.step.name().to_owned())
                    .or_default() += 1;
            }
        }
        workers
    }
}

/// Which program this is.
fn build() -> Build {
    let features = [
        ("demo", cfg!(feature = "demo")),
        ("failpoints", cfg!(feature = "failpoints")),
        ("otlp", cfg!(feature = "otlp")),
        ("top", cfg!(feature = "top")),
    ];
    let features = features.iter().filter(|(_, has)| *has);
    Build {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: features.map(|(name, _)| (*name).to_owned()).collect(),
    }
}

/// The topics of an outbox that somebody paused.
fn paused_by_somebody(status: &Status) -> Vec<TopicPaused> {
    let (read_at, pauses) = lock(&status.pauses).clone();
    let of_topics = pauses.iter().filter(|pause| !pause.topic.is_empty());
    of_topics
        .map(|pause| {
            let lasted = pause.age() + read_at.elapsed();
            TopicPaused {
                topic: pause.topic.clone(),
                reason: "operator".to_owned(),
                text: pause.told(),
                next_step: format!(
                    "`outbox-relay resume --outbox {} --topic {} --yes` lets it go on",
                    pause.outbox, pause.topic
                ),
                since: pause.since.clone(),
                lasted_s: lasted.as_secs_f64(),
                partitions: Vec::new(),
                outbox: Some(pause.outbox.clone()),
            }
        })
        .collect()
}

/// What a strict readiness minds.
fn not_ready(kafka: &facts::Kafka, outboxes: &[facts::Outbox]) -> Vec<String> {
    let mut why = Vec::new();
    if !kafka.reachable {
        let text = kafka.why.as_deref().unwrap_or("no reason known");
        why.push(format!("Kafka takes no records: {text}"));
    }
    for outbox in outboxes {
        let name = &outbox.outbox;
        if !outbox.database.reachable {
            let text = outbox.database.why.as_deref().unwrap_or("no reason known");
            why.push(format!("{name}: the database cannot be asked: {text}"));
        } else if !matches!(outbox.state, State::Serving | State::Paused) {
            why.push(format!("{name}: {}", outbox.state.name()));
        }
    }
    why
}

/// How old the oldest waiting row is. While the table cannot be asked it may have rows that nobody has
/// seen: then it is as old as it can be.
fn oldest(sample: Option<&Sample>, blind: bool) -> Option<f64> {
    let sample = sample?;
    Some(match sample.oldest_age {
        Some(age) => since(sample.at, age),
        None if blind => since(sample.at, Duration::ZERO),
        None => 0.0,
    })
}

fn quantiles(window: &Histogram) -> Quantiles {
    Quantiles {
        count: window.count(),
        p50_s: window.quantile(0.5),
        p90_s: window.quantile(0.9),
        p99_s: window.quantile(0.99),
        max_s: window.quantile(1.0),
    }
}

/// Rows a second that are inserted.
fn rate_in(sampled: &Sampled) -> Option<f64> {
    let (first_at, first, _) = sampled.history.front()?;
    let (last_at, last, _) = sampled.history.back()?;
    let rows = u64::try_from(last.as_ref()?.checked_sub((*first)?)?).ok()?;
    let lasted_s = last_at.saturating_duration_since(*first_at).as_secs_f64();
    (lasted_s > 0.0).then(|| as_f64(rows) / lasted_s)
}

/// When nothing will wait any more, if it goes on so.
fn drained_in(sampled: &Sampled) -> Option<f64> {
    let (first_at, _, first) = sampled.history.front()?;
    let (last_at, _, last) = sampled.history.back()?;
    let lasted_s = last_at.saturating_duration_since(*first_at).as_secs_f64();
    let shrunk = as_f64(first.checked_sub(*last)?);
    (*last > 0 && shrunk > 0.0).then(|| as_f64(*last) * lasted_s / shrunk)
}

/// How long what waits takes at the limit on the rate, while that is what it waits for.
fn limited_for(controls: &Controls, sample: Option<&Sample>) -> Option<f64> {
    let pending = sample?.pending;
    let held_back = pending > 0 && controls.is_held_back(RATE_LOOK);
    let left = controls.rate().time_left(pending).filter(|_| held_back);
    left.map(|left| left.as_secs_f64())
}

/// The topics that were published to, and those that rows wait for.
fn topics(
    status: &Status,
    counted: &Counted,
    then: &Counted,
    window_s: f64,
    sample: Option<&Sample>,
    blind: bool,
) -> Vec<Topic> {
    let exact = sample.is_some_and(|sample| sample.exact);
    let mut waiting: HashMap<String, (u64, Duration)> = match (&status.router, sample) {
        (Some(router), Some(sample)) => by_topic(router, sample),
        _ => HashMap::new(),
    };
    let mut all: BTreeMap<&str, Option<&TopicCounted>> = BTreeMap::new();
    all.extend(
        counted
            .topics
            .iter()
            .map(|(topic, counted)| (topic.as_str(), Some(counted))),
    );
    let mut new: Vec<String> = waiting.keys().cloned().collect();
    let by_topic = status.freshness().by_topic;
    // a topic with a budget is watched before its first event
    new.extend(by_topic.keys().cloned());
    new.sort_by_key(|topic| std::cmp::Reverse(waiting.get(topic).map(|(rows, _)| *rows)));
    for topic in &new {
        if all.len() < TOPICS_MAX || by_topic.contains_key(topic) {
            all.entry(topic).or_insert(None);
        }
    }
    let nothing = TopicCounted::default();
    let topic = |(topic, counted): (&str, Option<&TopicCounted>)| {
        let counted = counted.unwrap_or(&nothing);
        let before = then.topics.get(topic).unwrap_or(&nothing);
        let lag = counted.lag.since(&before.lag);
        let published = counted.published.saturating_sub(before.published);
        let known = waiting.remove(topic);
        Topic {
            topic: topic.to_owned(),
            published: counted.published,
            rate_out_per_s: match window_s > 0.0 {
                true => as_f64(published) / window_s,
                false => 0.0,
            },
            lag: quantiles(&lag),
            pending: known.map_or(0, |(rows, _)| rows),
            pending_exact: exact,
            oldest_pending_age_s: match (sample, known) {
                (Some(sample), Some((_, age))) => Some(since(sample.at, age)),
                (Some(sample), None) if blind => Some(since(sample.at, Duration::ZERO)),
                (Some(_), None) if exact => Some(0.0),
                // Further back than was looked: rows of it are as late as the last that came through.
                (Some(_), None) => lag.quantile(1.0),
                (None, _) => None,
            },
        }
    };
    let mut topics: Vec<Topic> = all.into_iter().map(topic).collect();
    topics.sort_by(|a, b| (b.pending, &a.topic).cmp(&(a.pending, &b.topic)));
    topics
}

fn freshness(
    budgets: &Freshness,
    counted: &Counted,
    oldest_s: Option<f64>,
    topics: &[Topic],
) -> Vec<facts::Freshness> {
    let budget = |topic: Option<&str>, budget: Duration, staleness_s: Option<f64>, late| {
        let budget_s = budget.as_secs_f64();
        facts::Freshness {
            topic: topic.map(str::to_owned),
            budget_s,
            staleness_s,
            kept: staleness_s.map(|staleness| staleness <= budget_s),
            late,
        }
    };
    let usual = budgets
        .usual
        .map(|usual| budget(None, usual, oldest_s, counted.late));
    let of_topic = |(name, length): (&String, &Duration)| {
        let known = topics.iter().find(|topic| topic.topic == *name);
        let late = counted.topics.get(name).map_or(0, |topic| topic.late);
        let staleness_s = known.and_then(|topic| topic.oldest_pending_age_s);
        budget(Some(name), *length, staleness_s, late)
    };
    let by_topic = budgets.by_topic.iter().map(of_topic);
    usual.into_iter().chain(by_topic).collect()
}

/// The parked rows of a sample, as they are told.
pub(crate) fn parked(sample: Option<&Sample>) -> Parked {
    let Some(sample) = sample else {
        return Parked::default();
    };
    let blocked = sample
        .parked
        .iter()
        .filter(|alike| alike.state == "blocked");
    let oldest = blocked.clone().map(|alike| alike.oldest_age).max();
    let mut rows: Vec<ParkedRows> = (sample.parked.iter())
        .map(|alike| ParkedRows {
            state: alike.state.clone(),
            reason: alike.reason.clone(),
            rows: alike.rows,
        })
        .collect();
    rows.sort_by(|a, b| (b.rows, &a.state, &a.reason).cmp(&(a.rows, &b.state, &b.reason)));
    Parked {
        exact: sample.parked_exact,
        rows,
        blocked_keys: Some(blocked.map(|alike| alike.keys).sum()),
        oldest_blocked_age_s: oldest.map(|age| since(sample.at, age)),
    }
}
