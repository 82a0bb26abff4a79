//! One outbox, from the first look to the last row.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lane::{End, Lane, lasting};
use super::watching::Watching;
use super::{Counts, Drain, Prepare, Served, Status, Until, dead_letters, watch};
use crate::backoff::Backoff;
use crate::config::{Config, Outbox};
use crate::ops::controls::Controls;
use crate::ops::facts::State;
use crate::ops::{Progress, Reminders, Step, random};
use crate::route::Router;
use crate::sink::{Held, KafkaSink, Sink, Topics};
use crate::source::{
    Error, Identified, Inspection, Inspector, Left, Migrated, Migration, Polling, PollingSource,
    Tended, Upkeep, listen,
};

/// How often an outbox that must wait is looked at.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// How often an outbox that is served is looked at: what somebody does to its sequence is told by then.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// How long a backend's report of what it did to the table may be under way, and some more.
const LATE_REPORTS: Duration = Duration::from_secs(15);
/// How long dead letters in flight may take to be withdrawn at the end.
const LETTERS_GRACE: Duration = Duration::from_secs(3);
/// The pause after published rows could not be marked although Postgres answered.
const UNSETTLED_PAUSE: Duration = Duration::from_secs(60);

/// Why serving an outbox ended.
#[derive(Debug)]
pub enum Ended {
    /// It was asked to.
    Stopped,
    /// Nothing is left that can be published.
    Empty,
    /// It cannot be served as it is configured: each problem with its remedy.
    Wrong(Vec<String>),
    /// Something it needs was not there, and it was not to wait.
    Unavailable(String),
}

/// What serving one outbox takes.
pub(super) struct Serving {
    pub(super) config: Arc<Config>,
    pub(super) outbox: Outbox,
    pub(super) topics: Arc<Topics>,
    pub(super) until: Until,
    pub(super) prepare: Prepare,
    pub(super) drain: Drain,
    pub(super) status: Arc<Status>,
    pub(super) controls: Arc<Controls>,
    pub(super) news: tokio::sync::watch::Receiver<Arc<Config>>,
}

impl Serving {
    pub(super) async fn run(self) -> Served {
        let ended = self.serve().await;
        let counts: Counts = self.status.counts();
        let mut left = None;
        let ended = match ended {
            Ended::Empty => match self.left().await {
                Ok(counted) => {
                    left = Some(counted);
                    Ended::Empty
                }
                Err(error) => Ended::Unavailable(super::chain(&error)),
            },
            ended => ended,
        };
        Served {
            outbox: self.outbox.table.to_string(),
            ended,
            counts,
            left,
        }
    }

    async fn serve(&self) -> Ended {
        let mut served = false;
        loop {
            let polling = match self.look(served).await {
                Ok(polling) => polling,
                Err(ended) => return ended,
            };
            tracing::info!(
                outbox = %self.outbox.table,
                workers = self.config.relay.workers,
                on_published = ?self.outbox.on_published,
                "serving the outbox"
            );
            polling.heed(&self.controls);
            self.status.serving(&polling, self.config.relay.workers);
            // not only while it works: what waits is told also while Kafka cannot say who it is
            let sampled = self.drain.stopping().child_token();
            let mut sampling = JoinSet::new();
            sampling.spawn(watch::sample(
                Arc::clone(&self.config),
                self.outbox.clone(),
                Arc::clone(&polling),
                Arc::clone(&self.status),
                sampled.clone(),
            ));
            let worked = match self.cluster(served).await {
                Ok(cluster) => self.work(&polling, cluster).await,
                Err(worked) => worked,
            };
            sampled.cancel();
            sampling.shutdown().await;
            served = true;
            match worked {
                // the table changed under the relay: look again, it will say what is wrong
                Worked::LookAgain => tokio::time::sleep(LOOK_PAUSE).await,
                Worked::Ended(ended) => return ended,
            }
        }
    }

    /// Looks until the outbox can be served. What is wrong with it ends the relay at its start; one
    /// that has `served` it waits until it is mended, as in any other outage.
    async fn look(&self, served: bool) -> Result<Arc<Polling>, Ended> {
        let stop = self.drain.stopping();
        let mut said: Option<(String, Reminders)> = None;
        let began = Instant::now();
        let progress = self.status.loops.begin("look");
        let mut beside = JoinSet::new();
        beside.spawn(watch::ask_kafka(&self.config, &self.topics));
        loop {
            progress.at(Step::Looking);
            let looked = tokio::select! {
                () = stop.cancelled() => return Err(Ended::Stopped),
                looked = self.look_once() => looked,
            };
            let line = match looked {
                Ok(Looked::Ready(polling, lines)) => {
                    self.status.well();
                    for line in lines {
                        tracing::warn!("{line}");
                    }
                    return Ok(polling);
                }
                Ok(Looked::Wrong(problems)) if served => Some(problems.join("; ")),
                Ok(Looked::Wrong(problems)) => return Err(Ended::Wrong(problems)),
                Ok(Looked::Waiting(line)) => Some(line),
                // what shows may be the past: an idle backend reports up to ten seconds late
                // (PGSTAT_IDLE_INTERVAL). A run that must not wait ends on it only after that
                Ok(Looked::Busy(_))
                    if self.until == Until::Empty && began.elapsed() < LATE_REPORTS =>
                {
                    continue;
                }
                Ok(Looked::Busy(line)) => Some(line),
                Err(error) if self.until == Until::Empty => {
                    return Err(Ended::Unavailable(super::chain(&error)));
                }
                Err(error) => {
                    self.status.trouble(&error);
                    None
                }
            };
            if let Some(line) = line {
                if self.until == Until::Empty {
                    return Err(Ended::Unavailable(line));
                }
                self.status.enter(State::Waiting, Some(line.clone()));
                let now = Instant::now();
                // how many rows a table has changes while it waits, and is no news
                let news: String = line.chars().filter(|c| !c.is_ascii_digit()).collect();
                let again = match &mut said {
                    Some((text, reminders)) if *text == news => !reminders.due(now),
                    said => {
                        *said = Some((news, Reminders::new(now)));
                        false
                    }
                };
                if !again {
                    tracing::warn!(outbox = %self.outbox.table, "{line}");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Err(Ended::Stopped),
                () = tokio::time::sleep(LOOK_PAUSE) => {}
            }
        }
    }

    async fn look_once(&self) -> Result<Looked, Error> {
        if self.prepare == Prepare::Migrate
            && let Some(line) = self.migrate().await?
        {
            return Ok(Looked::Waiting(line));
        }
        let until_empty = self.until == Until::Empty;
        let mut inspector = Inspector::new(&self.config, &self.outbox, until_empty)?;
        match inspector.look().await? {
            Inspection::Wrong(problems) => Ok(Looked::Wrong(problems)),
            Inspection::Waiting(line) => Ok(Looked::Waiting(line)),
            Inspection::Ready(polling) => {
                let lines = match inspector.identify(&polling).await? {
                    Identified::Same(lines) => lines,
                    Identified::Copy(line) => return Ok(Looked::Wrong(vec![line])),
                };
                Ok(match inspector.other_worker().await? {
                    Some(line) => Looked::Busy(line),
                    None => Looked::Ready(polling, lines),
                })
            }
        }
    }

    /// Waits for Kafka, and compares its cluster with the one that was kept with the outbox; keeps it
    /// if it is the first. The cluster to publish to, and to no other.
    async fn cluster(&self, served: bool) -> Result<String, Worked> {
        let stop = self.drain.stopping();
        let (kafka, relay) = (&self.config.kafka, &self.config.relay);
        let mut sink = KafkaSink::new(kafka, relay, Arc::clone(&self.topics));
        let patience = (self.until == Until::Empty).then_some(relay.publish_timeout);
        let cluster = loop {
            tokio::select! {
                () = stop.cancelled() => return Err(Worked::Ended(Ended::Stopped)),
                () = sink.ready() => {}
                () = lasting(patience) => return Err(Worked::Ended(sink_away())),
            }
            if let Some(cluster) = sink.cluster_id().await {
                break cluster;
            }
        };
        let kept = match Inspector::new(&self.config, &self.outbox, false) {
            Ok(mut inspector) => inspector.keep_cluster(&cluster).await,
            Err(error) => Err(error),
        };
        match kept {
            Ok(()) => Ok(cluster),
            Err(error @ Error::Changed(_)) if !served => {
                Err(Worked::Ended(Ended::Wrong(vec![super::chain(&error)])))
            }
            Err(error) => {
                self.status.trouble(&error);
                Err(Worked::LookAgain)
            }
        }
    }

    /// Applies what needs no leave. A line, if it must wait for something.
    async fn migrate(&self) -> Result<Option<String>, Error> {
        let one = Config {
            outboxes: vec![self.outbox.clone()],
            ..Config::clone(&self.config)
        };
        let say = |line: &str| tracing::info!(outbox = %self.outbox.table, "migrating: {line}");
        let migrated = Migration::new(&one).apply(false, say).await?;
        Ok(migrated.into_iter().find_map(|(table, migrated)| match migrated {
            // the look says so itself
            Migrated::Done | Migrated::NoTable | Migrated::Refused(_) => None,
            Migrated::WantsLeave(steps) => Some(format!(
                "{table} needs a migration that locks it or touches its rows, so it wants a person's \
                 leave: run `outbox-relay migrate --yes`. It would do: {}. Waiting",
                steps.join("; ")
            )),
        }))
    }

    /// Runs the workers, and what goes on beside them, until they end.
    async fn work(&self, polling: &Arc<Polling>, cluster: String) -> Worked {
        let lane = Arc::new(Lane {
            router: Router::of(&self.outbox),
            policies: self.outbox.on_rejected.clone(),
            encoding: polling.encoding().clone(),
            publish_timeout: self.config.relay.publish_timeout,
            patience: (self.until == Until::Empty).then_some(self.config.relay.publish_timeout),
            drain: self.drain.clone(),
            status: Arc::clone(&self.status),
            suspects: Mutex::new(HashSet::new()),
            controls: Arc::clone(&self.controls),
        });
        let target = |topic: &String| dead_letters::Target {
            topic: topic.clone(),
            cluster: cluster.clone(),
            controls: Arc::clone(&self.controls),
        };
        let outbox = self.outbox.written_by(polling.encoding());
        let mut workers = JoinSet::new();
        for _ in 0..self.config.relay.workers {
            workers.spawn(Worker::new(self, polling, &lane, &cluster).run());
        }
        let beside = self.drain.stopping().child_token();
        let (mut helpers, mut letters) = (JoinSet::new(), JoinSet::new());
        helpers.spawn(upkeep(
            Arc::clone(&self.config),
            self.outbox.clone(),
            Arc::clone(polling),
            Arc::clone(&self.status),
            beside.clone(),
        ));
        if let Some(topic) = &self.outbox.dead_letter_topic {
            letters.spawn(dead_letters::publish(
                Arc::clone(&self.config),
                outbox.clone(),
                target(topic),
                beside.clone(),
            ));
        }
        let watching = Watching {
            config: Arc::clone(&self.config),
            outbox: self.outbox.clone(),
            controls: Arc::clone(&self.controls),
            status: Arc::clone(&self.status),
            polling: Arc::clone(polling),
            news: self.news.clone(),
        };
        helpers.spawn(watching.run(beside.clone()));
        // Behind a transaction pooler, which is what this says, the server connection that listens is
        // handed to anybody's next transaction, and that meets the notifications in its answers.
        let pooled = !self.config.database.prepared_statements;
        if self.outbox.notify && pooled {
            tracing::warn!(
                outbox = %self.outbox.table,
                "outbox.notify is passed over: with database.prepared_statements = false there may be \
                 a pooler, and no notification gets through one; polling goes on"
            );
        } else if self.outbox.notify {
            helpers.spawn(wakeups(
                Arc::clone(&self.config),
                self.outbox.clone(),
                Arc::clone(polling),
                beside.clone(),
            ));
        }
        let mut worked = Worked::Ended(Ended::Stopped);
        while let Some(ended) = workers.join_next().await {
            match ended {
                Ok(Worked::Ended(Ended::Stopped)) => {}
                Ok(Worked::Ended(ended)) => worked = Worked::Ended(ended),
                Ok(Worked::LookAgain) => {
                    worked = Worked::LookAgain;
                    polling.leave();
                }
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
        beside.cancel();
        helpers.shutdown().await;
        // it withdraws what it has in flight
        let withdrawn = async { while letters.join_next().await.is_some() {} };
        if tokio::time::timeout(LETTERS_GRACE, withdrawn)
            .await
            .is_err()
        {
            letters.shutdown().await;
        }
        // what this run parked at its end was not seen to yet
        if let (Worked::Ended(Ended::Empty), Some(topic)) =
            (&worked, &self.outbox.dead_letter_topic)
        {
            dead_letters::flush(&self.config, &outbox, target(topic)).await;
        }
        worked
    }

    async fn left(&self) -> Result<Left, Error> {
        let mut inspector = Inspector::new(&self.config, &self.outbox, true)?;
        let polling = match inspector.look().await? {
            Inspection::Ready(polling) => polling,
            Inspection::Waiting(line) => return Err(Error::Changed(line)),
            Inspection::Wrong(problems) => return Err(Error::Changed(problems.join("; "))),
        };
        PollingSource::new(&polling, &self.config.database, &self.config.relay)?
            .left()
            .await
    }
}

enum Looked {
    /// With what is worth a line.
    Ready(Arc<Polling>, Vec<String>),
    Waiting(String),
    /// Somebody else's worker is at the table.
    Busy(String),
    Wrong(Vec<String>),
}

enum Worked {
    Ended(Ended),
    LookAgain,
}

/// One worker: a connection, a producer, the loop.
struct Worker {
    config: Arc<Config>,
    polling: Arc<Polling>,
    topics: Arc<Topics>,
    lane: Arc<Lane>,
    until: Until,
    /// The only cluster to publish to.
    cluster: String,
}

impl Worker {
    fn new(serving: &Serving, polling: &Arc<Polling>, lane: &Arc<Lane>, cluster: &str) -> Self {
        Self {
            config: Arc::clone(&serving.config),
            polling: Arc::clone(polling),
            topics: Arc::clone(&serving.topics),
            lane: Arc::clone(lane),
            until: serving.until,
            cluster: cluster.to_owned(),
        }
    }

    async fn run(self) -> Worked {
        let Config {
            kafka,
            relay,
            database,
            ..
        } = &*self.config;
        let sink = KafkaSink::new(kafka, relay, Arc::clone(&self.topics));
        let sink = sink.only_to(Some(self.cluster.clone()));
        let mut sink = Held::new(sink, Arc::clone(&self.lane.controls));
        let progress = self.lane.status.loops.begin("worker");
        let source = PollingSource::new(&self.polling, database, relay);
        let worked = match source {
            Ok(source) => {
                let mut source = source.watched(&self.lane.status.tally, &progress);
                self.serve(&mut source, &mut sink, &progress).await
            }
            Err(error) => Worked::Ended(Ended::Wrong(vec![super::chain(&error)])),
        };
        sink.close().await;
        worked
    }

    /// Serves until the end, whatever goes wrong in between.
    async fn serve(
        &self,
        source: &mut PollingSource,
        sink: &mut impl Sink,
        progress: &Progress,
    ) -> Worked {
        let stop = self.lane.drain.stopping();
        let first = Duration::from_millis(100);
        let mut backoff = Backoff::new(first, self.config.relay.retry_backoff_max);
        loop {
            let served = Instant::now();
            let error = match self.lane.serve(source, sink, progress).await {
                Ok(End::Stopped) => return Worked::Ended(Ended::Stopped),
                Ok(End::Empty) => return Worked::Ended(Ended::Empty),
                Ok(End::SinkAway) => return Worked::Ended(sink_away()),
                Err(error) => error,
            };
            self.lane.status.trouble(&error);
            if error.wants_inspection() {
                return Worked::LookAgain;
            }
            if self.until == Until::Empty && backoff.failures() >= 5 {
                return Worked::Ended(Ended::Unavailable(super::chain(&error)));
            }
            if served.elapsed() > self.config.relay.retry_backoff_max * 4 {
                backoff.reset();
            }
            let pause = match error {
                // each attempt publishes the same rows again: be slow about it
                Error::Unsettled { .. } => UNSETTLED_PAUSE,
                _ => backoff.next(random()),
            };
            progress.at(Step::BackingOff);
            tokio::select! {
                () = stop.cancelled() => return Worked::Ended(Ended::Stopped),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

fn sink_away() -> Ended {
    let line = "Kafka could not be reached: look at its brokers, or at their names";
    Ended::Unavailable(line.to_owned())
}

/// Tends the outbox now and then, until `stop`.
async fn upkeep(
    config: Arc<Config>,
    outbox: Outbox,
    polling: Arc<Polling>,
    status: Arc<Status>,
    stop: CancellationToken,
) {
    let Ok(mut upkeep) = Upkeep::new(
        &config.database,
        config.relay.sweep_interval,
        &outbox,
        &polling,
    ) else {
        return;
    };
    let progress = status.loops.begin("upkeep");
    let mut looking = LookingAgain::default();
    let (mut tend_at, mut look_at) = (
        Instant::now() + upkeep.first_pause(),
        Instant::now() + LOOK_AGAIN,
    );
    loop {
        progress.at(Step::Resting);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(look_at) => {
                progress.at(Step::Looking);
                looking.look(&config, &outbox).await;
                look_at = Instant::now() + LOOK_AGAIN;
                continue;
            }
            () = tokio::time::sleep_until(tend_at) => {}
        }
        progress.at(Step::Tending);
        let began = Instant::now();
        match upkeep.tend(&progress).await {
            Ok(Tended {
                purged,
                dropped,
                partitions,
            }) => {
                if partitions > 0 {
                    tracing::info!(
                        outbox = %outbox.table,
                        partitions,
                        "dropped partitions of the history, as retention says"
                    );
                }
                status.tally.asked("upkeep", began.elapsed());
                status.tally.count(|counted| counted.purged += purged);
                if purged > 0 {
                    tracing::info!(outbox = %outbox.table, purged, "purged published rows");
                }
                if dropped > 0 {
                    tracing::info!(
                        outbox = %outbox.table,
                        dropped,
                        "dropped parked rows that were skipped or dead for longer than \
                         parked_retention"
                    );
                }
            }
            Err(error) => tracing::warn!(
                outbox = %outbox.table,
                error = super::chain(&error),
                "the upkeep failed; it comes round again"
            ),
        }
        tend_at = Instant::now() + upkeep.pause();
    }
}

/// Says what has become wrong with a table since the start, such as a sequence that caches now: when
/// it is found, and ever more seldom.
#[derive(Default)]
struct LookingAgain {
    said: Option<(Vec<String>, Reminders)>,
}

impl LookingAgain {
    async fn look(&mut self, config: &Config, outbox: &Outbox) {
        let looked = match Inspector::new(config, outbox, false) {
            Ok(mut inspector) => inspector.look().await,
            Err(error) => Err(error),
        };
        let problems = match looked {
            Ok(Inspection::Wrong(problems)) => problems,
            Ok(_) => return self.said = None,
            // what cannot be asked now is the workers' trouble too, and they tell it
            Err(_) => return,
        };
        let now = Instant::now();
        if let Some((said, reminders)) = &mut self.said
            && *said == problems
            && !reminders.due(now)
        {
            return;
        }
        for problem in &problems {
            tracing::error!(outbox = %outbox.table, "{problem}");
        }
        if self.said.as_ref().is_none_or(|(said, _)| *said != problems) {
            self.said = Some((problems, Reminders::new(now)));
        }
    }
}

/// Listens for inserts, until `stop`.
async fn wakeups(
    config: Arc<Config>,
    outbox: Outbox,
    polling: Arc<Polling>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    while let Err(error) = listen(&config.database, &outbox.table, &polling, &stop).await {
        tracing::warn!(
            outbox = %outbox.table,
            error = super::chain(&error),
            "cannot listen for inserts; polling goes on, and listening is tried again"
        );
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff.next(random())) => {}
        }
    }
}
