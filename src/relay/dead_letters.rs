//! Beside the flow: publishes parked rows to the dead-letter topic, from the table they are parked in.
//!
//! The flow never waits for it: rows are parked and their aggregates go on or wait as they would without
//! it, whatever becomes of the topic. It has a producer, a view of the topics and a connection of its
//! own, so that a dead-letter topic which is missing or cannot be written pauses nothing else. What
//! it has published and not yet dated when it dies is published again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::config::{Config, Outbox};
use crate::dead_letter::Letter;
use crate::ops::controls::Controls;
use crate::ops::random;
use crate::outcome::Outcome;
use crate::record::Record;
use crate::sink::{Attempt, Held, KafkaSink, Sink, Topics};
use crate::source::{DeadLetters, Error};

/// How long between two looks for letters.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Publishes the letters of `outbox` to `topic`, until `stop`.
pub(super) async fn publish(
    config: Arc<Config>,
    outbox: Outbox,
    target: Target,
    stop: CancellationToken,
) {
    let Ok(mut writer) = Writer::new(&config, &outbox, target) else {
        return;
    };
    let first = Duration::from_secs(1);
    let mut backoff = Backoff::new(first, Duration::from_secs(30));
    while !stop.is_cancelled() {
        let pause = match writer.publish_some(&stop).await {
            Ok(0) => LOOK_PAUSE,
            Ok(_) => {
                backoff.reset();
                Duration::ZERO
            }
            Err(error) => {
                writer.letters.discard();
                tracing::warn!(
                    outbox = writer.outbox,
                    error = super::chain(&error),
                    "the dead letters cannot be read or dated; trying again"
                );
                backoff.next(random())
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    writer.sink.close().await;
}

/// Publishes what letters there are, for the end of a run that does not wait: as far as the topic takes
/// them, and for as long as a batch may take.
pub(super) async fn flush(config: &Arc<Config>, outbox: &Outbox, target: Target) {
    let Ok(mut writer) = Writer::new(config, outbox, target) else {
        return;
    };
    let stop = CancellationToken::new();
    let late = async {
        tokio::time::sleep(config.relay.publish_timeout).await;
        stop.cancel();
        std::future::pending::<()>().await;
    };
    let all = async { while matches!(writer.publish_some(&stop).await, Ok(1..)) {} };
    tokio::select! {
        () = all => {}
        () = late => {}
    }
    writer.sink.close().await;
}

/// Where letters go.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) topic: String,
    /// The id of the only cluster that may be written to.
    pub(super) cluster: String,
    pub(super) controls: Arc<Controls>,
}

struct Writer {
    config: Arc<Config>,
    outbox: String,
    topic: String,
    letters: DeadLetters,
    sink: Held<KafkaSink>,
    /// Rows that were refused together with others, to be tried alone.
    suspects: HashSet<i64>,
    /// Rows the topic does not take whole.
    stubs: HashSet<i64>,
}

impl Writer {
    fn new(config: &Arc<Config>, outbox: &Outbox, target: Target) -> Result<Self, Error> {
        let Target {
            topic,
            cluster,
            controls,
        } = target;
        let topics = Arc::new(Topics::new(&config.kafka, &config.relay));
        let sink = KafkaSink::new(&config.kafka, &config.relay, topics).only_to(Some(cluster));
        Ok(Self {
            config: Arc::clone(config),
            outbox: outbox.table.to_string(),
            topic,
            letters: DeadLetters::new(&config.database, &config.relay, outbox)?,
            sink: Held::new(sink, controls),
            suspects: HashSet::new(),
            stubs: HashSet::new(),
        })
    }

    /// Publishes some letters; says of how many something was learned: the topic took them, or wants
    /// them otherwise. Ends soon after `stop`: what is in flight then is withdrawn, and published
    /// again by whoever comes next.
    async fn publish_some(&mut self, stop: &CancellationToken) -> Result<usize, Error> {
        if !self.letters.are_waiting().await? {
            return Ok(0);
        }
        // before the transaction, so that an outage leaves none open
        tokio::select! {
            () = stop.cancelled() => return Ok(0),
            () = self.sink.ready() => {}
        }
        let letters = self.letters.claim().await?;
        let records: Vec<Record<'_>> = letters
            .iter()
            .map(|letter| match self.stubs.contains(&letter.parked_id) {
                true => letter.stub(&self.topic),
                false => letter.record(&self.topic),
            })
            .collect();
        let attempts: Vec<Attempt<'_>> = letters
            .iter()
            .zip(&records)
            .map(|(letter, record)| Attempt {
                record,
                alone: self.suspects.contains(&letter.parked_id),
            })
            .collect();
        let outcomes = match attempts.is_empty() {
            true => Vec::new(),
            false => {
                let give_up = async {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(self.config.relay.publish_timeout) => {}
                    }
                };
                self.sink.publish(&attempts, give_up).await
            }
        };
        drop(attempts);
        drop(records);
        let (taken, otherwise) = self.judge(&letters, &outcomes);
        self.letters.taken(&taken).await?;
        Ok(taken.len() + otherwise)
    }

    /// The rows that need no other attempt, and how many are to be tried in another way.
    fn judge(&mut self, letters: &[Letter], outcomes: &[Outcome]) -> (Vec<i64>, usize) {
        let (mut taken, mut otherwise) = (Vec::new(), 0);
        for (letter, outcome) in letters.iter().zip(outcomes) {
            let id = letter.parked_id;
            match outcome {
                Outcome::Delivered { .. } => taken.push(id),
                Outcome::Suspect => otherwise += usize::from(self.suspects.insert(id)),
                Outcome::Rejected(_) if self.stubs.insert(id) => otherwise += 1,
                Outcome::Rejected(reason) => {
                    tracing::error!(
                        outbox = self.outbox,
                        topic = self.topic,
                        parked_id = id,
                        class = reason.class,
                        reason = reason.text,
                        "the dead-letter topic refuses a row even without its value: it stays parked, \
                         and is not tried again"
                    );
                    taken.push(id);
                }
                Outcome::Paused | Outcome::Unfinished | Outcome::Held => {}
            }
        }
        for id in &taken {
            self.suspects.remove(id);
            self.stubs.remove(id);
        }
        (taken, otherwise)
    }
}
