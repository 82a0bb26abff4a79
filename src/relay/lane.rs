//! The loop: ready → claim → route → publish → settle. One worker runs one, over and over.
//!
//! Waiting is apart from acting: a stop interrupts only the two waits, for the sink and for events.
//! A batch once claimed is published and settled, under a deadline of its own.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::drain::Drain;
use super::status::{Settled, Status};
use crate::event::Event;
use crate::ops::controls::Controls;
use crate::ops::{Mistake, Progress, Step, makes, traces};
use crate::outcome::{Outcome, Reason};
use crate::record::{Encoding, Record};
use crate::route::{Kind, Routed, Router, Waiting};
use crate::settle::{Policies, Policy, Row, Verdict, settle};
use crate::sink::{Attempt, Sink};
use crate::source::{Batch, Error, Judged, Next, Source};

/// What the loop goes by: the same for all workers of an outbox.
#[derive(Debug)]
pub struct Lane {
    /// Decides topics.
    pub router: Router,
    /// What a rejected row means for its aggregate, by its event type.
    pub policies: Policies,
    /// What is made of a row.
    pub encoding: Encoding,
    /// How long a batch may wait for the sink.
    pub publish_timeout: Duration,
    /// How long to wait for the sink to be ready; `None` waits for ever.
    pub patience: Option<Duration>,
    /// When to stop.
    pub drain: Drain,
    /// What the operator is told.
    pub status: Arc<Status>,
    /// Events that were refused together with others, to be tried alone.
    pub suspects: Mutex<HashSet<Uuid>>,
    /// How fast it may go.
    pub controls: Arc<Controls>,
}

/// What a batch came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relayed {
    Something,
    /// Each of its rows waits for its topic or its partition.
    Waits,
}

/// The pause after such a batch: there may be more rows like these than can be remembered.
const WAITS_PAUSE: Duration = Duration::from_millis(50);

/// Why the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was asked to.
    Stopped,
    /// There is nothing left that can be claimed.
    Empty,
    /// The sink was not ready in time.
    SinkAway,
}

impl Lane {
    /// Serves until the drain begins, or until the source says that nothing is left. `progress` is
    /// told at each step.
    ///
    /// # Errors
    /// What went wrong with the source. Nothing is lost by it: the caller may go on with the same
    /// source and sink.
    pub(crate) async fn serve<S: Source, K: Sink>(
        &self,
        source: &mut S,
        sink: &mut K,
        progress: &Progress,
    ) -> Result<End, Error> {
        let stop = self.drain.stopping();
        let mut paused = Paused::default();
        loop {
            progress.at(Step::WaitingForKafka);
            tokio::select! {
                // a stop that has come counts, whatever else is there
                biased;
                () = stop.cancelled() => return Ok(End::Stopped),
                () = self.controls.turn() => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(End::Stopped),
                () = sink.ready() => {}
                () = lasting(self.patience) => return Ok(End::SinkAway),
            }
            let waiting = paused.waiting(sink, &self.encoding);
            progress.at(Step::Claiming);
            match source.next(&waiting, stop).await? {
                Next::Batch(batch) => {
                    let relayed = self.relay(source, sink, batch, &waiting, &mut paused, progress);
                    if relayed.await? == Relayed::Waits {
                        tokio::select! {
                            () = stop.cancelled() => return Ok(End::Stopped),
                            () = tokio::time::sleep(WAITS_PAUSE) => {}
                        }
                    }
                }
                Next::Idle => {}
                Next::Empty => return Ok(End::Empty),
                Next::Stopped => return Ok(End::Stopped),
            }
        }
    }

    /// Publishes and settles one batch.
    async fn relay<S: Source, K: Sink>(
        &self,
        source: &mut S,
        sink: &mut K,
        batch: Batch<S::Receipt>,
        waiting: &Waiting,
        paused: &mut Paused,
        progress: &Progress,
    ) -> Result<Relayed, Error> {
        let Batch {
            events,
            held,
            receipt,
        } = batch;
        progress.at(Step::Publishing);
        let trace = traces::Batch::begin(self.status.outbox(), events.len());
        let routed = Routed::of(&self.router, &events);
        let contracts = self.controls.contracts();
        let mut warned = Vec::new();
        let (records, decided) =
            self.prepare(
                &events,
                &routed,
                &held,
                waiting,
                |event, record| match &contracts {
                    None => Ok(record),
                    Some(contracts) => {
                        let admitted = contracts.admit(event, record)?;
                        warned.extend(admitted.warning.map(|reason| (event.seq, reason)));
                        Ok(admitted.record)
                    }
                },
            );
        let hasty = makes(Mistake::SettleFirst);
        let outcomes = match hasty {
            true => vec![PUBLISHED; events.len()],
            false => {
                let sends = trace.sends(&records, &decided);
                let outcomes = self.publish(sink, &events, &records, &decided).await;
                sends.end(&outcomes);
                outcomes
            }
        };
        paused.remember(sink, &events, &records, &outcomes);

        let rows = (events.iter().zip(&records)).map(|(event, record)| Row {
            key: event.key(),
            topic: record.as_ref().map(|record| record.topic.as_ref()),
            policy: self.policies.of(&event.event_type),
        });
        let mut verdicts = settle(rows, &outcomes);
        if makes(Mistake::SettlePastUnfinished)
            && let Some(last) = verdicts.iter().rposition(|v| *v == Verdict::Done)
        {
            verdicts[..last].fill(Verdict::Done);
        }
        // a refusal stops the rest of its aggregate, and that is not a failure of the lane
        let refused = |o: &Outcome| matches!(o, Outcome::Rejected(_) | Outcome::Suspect);
        let failed = outcomes.contains(&Outcome::Unfinished) && !outcomes.iter().any(refused);
        let judged = Judged {
            verdicts: &verdicts,
            records: &records,
            events: &events,
            failed,
        };
        progress.at(Step::Settling);
        (trace.step("settle", source.settle(receipt, &judged))).await?;
        if hasty {
            self.publish(sink, &events, &records, &decided).await;
        }
        // not before: a database that lets rows be claimed may still refuse to settle them
        self.status.well();
        self.status.settled(&Settled {
            events: &events,
            records: &records,
            verdicts: &verdicts,
            warned: &warned,
        });
        let done = verdicts.iter().filter(|v| **v == Verdict::Done).count();
        self.controls.spent(u64::try_from(done).unwrap_or(u64::MAX));
        let waits = outcomes.iter().all(|o| *o == Outcome::Paused);
        Ok(if waits {
            Relayed::Waits
        } else {
            Relayed::Something
        })
    }

    /// The record of each event that has one, and the outcome of those that need not be published:
    /// they wait behind a parked row, cannot be routed or encoded, are not what `admit` lets through, or
    /// their topic is paused. A parked row that has its record was let through before.
    fn prepare<'a>(
        &'a self,
        events: &'a [Event],
        routed: &'a Routed,
        held: &HashSet<String>,
        waiting: &Waiting,
        mut admit: impl FnMut(&Event, Record<'a>) -> Result<Record<'a>, Reason>,
    ) -> (Vec<Option<Record<'a>>>, Vec<Option<Outcome>>) {
        let mut refused = HashSet::new();
        let prepare = |(i, event): (usize, &'a Event)| {
            let record = match &event.parked {
                Some(record) => Ok(record.by_ref()),
                None => (routed.topic(i).map_err(Reason::clone))
                    .and_then(|topic| self.encoding.record(event, topic.into()))
                    .and_then(|record| admit(event, record)),
            };
            if held.contains(event.key()) || refused.contains(event.key()) {
                return (record.ok(), Some(Outcome::Held));
            }
            match record {
                Err(reason) => {
                    if self.policies.of(&event.event_type) == Policy::Block {
                        refused.insert(event.key());
                    }
                    (None, Some(Outcome::Rejected(reason)))
                }
                Ok(record) => {
                    let paused = waiting.topics.contains(&*record.topic);
                    (Some(record), paused.then_some(Outcome::Paused))
                }
            }
        };
        events.iter().enumerate().map(prepare).unzip()
    }

    /// Publishes what is not `decided` yet; every event has its outcome then.
    async fn publish<K: Sink>(
        &self,
        sink: &mut K,
        events: &[Event],
        records: &[Option<Record<'_>>],
        decided: &[Option<Outcome>],
    ) -> Vec<Outcome> {
        let alone: Vec<bool> = self.suspects(|suspects| {
            events
                .iter()
                .map(|event| suspects.contains(&event.id))
                .collect()
        });
        let undecided = |i: &usize| decided[*i].is_none();
        let attempts: Vec<Attempt<'_>> = (0..events.len())
            .filter(undecided)
            .filter_map(|i| {
                Some(Attempt {
                    record: records[i].as_ref()?,
                    alone: alone[i],
                })
            })
            .collect();
        let give_up = async {
            tokio::select! {
                () = tokio::time::sleep(self.publish_timeout) => {}
                () = self.drain.expired() => {}
            }
        };
        let began = Instant::now();
        let mut published = match attempts.is_empty() {
            true => Vec::new(),
            false => sink.publish(&attempts, give_up).await,
        }
        .into_iter();
        let outcomes: Vec<Outcome> = decided
            .iter()
            // an attempt without an outcome would be silence
            .map(|known| {
                known
                    .clone()
                    .or_else(|| published.next())
                    .unwrap_or(Outcome::Unfinished)
            })
            .collect();
        self.status.attempted(decided, &outcomes, began.elapsed());
        self.suspects(|suspects| {
            for (event, outcome) in events.iter().zip(&outcomes) {
                match outcome {
                    Outcome::Suspect => _ = suspects.insert(event.id),
                    Outcome::Delivered { .. } | Outcome::Rejected(_) if !suspects.is_empty() => {
                        suspects.remove(&event.id);
                    }
                    _ => {}
                }
            }
        });
        outcomes
    }

    fn suspects<T>(&self, act: impl FnOnce(&mut HashSet<Uuid>) -> T) -> T {
        act(&mut self.suspects.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What every row counts as when the relay makes the mistake of settling first.
const PUBLISHED: Outcome = Outcome::Delivered {
    partition: 0,
    offset: 0,
};

/// Completes after `patience`, if there is a limit to it.
pub(super) async fn lasting(patience: Option<Duration>) {
    match patience {
        Some(patience) => tokio::time::sleep(patience).await,
        None => std::future::pending().await,
    }
}

/// The rows that were found to wait: their kinds where their topic is paused, their aggregates where
/// only a partition of it is; by topic.
#[derive(Debug, Default)]
struct Paused {
    kinds: HashMap<String, HashSet<Kind>>,
    keys: HashMap<String, HashSet<String>>,
}

/// Kinds remembered for one topic; beyond it rows are claimed and released, which is only slower.
const KINDS_MAX: usize = 1_000;
/// And aggregates. Each claim names them: this many take a part of a millisecond.
const KEYS_MAX: usize = 5_000;

impl Paused {
    /// What need not be claimed as long as `sink` would only let it wait. Forgets the rest.
    fn waiting(&mut self, sink: &impl Sink, encoding: &Encoding) -> Waiting {
        let topics = sink.paused();
        self.kinds.retain(|topic, _| topics.contains(topic));
        for (topic, keys) in &mut self.keys {
            keys.retain(|key| sink.keeps_waiting(topic, &encoding.key(key)));
        }
        self.keys.retain(|_, keys| !keys.is_empty());
        Waiting {
            kinds: self.kinds.values().flatten().cloned().collect(),
            keys: self.keys.values().flatten().cloned().collect(),
            topics,
        }
    }

    fn remember(
        &mut self,
        sink: &impl Sink,
        events: &[Event],
        records: &[Option<Record<'_>>],
        outcomes: &[Outcome],
    ) {
        if !outcomes.contains(&Outcome::Paused) {
            return;
        }
        let topics = sink.paused();
        for ((event, record), outcome) in events.iter().zip(records).zip(outcomes) {
            let (Outcome::Paused, Some(record), None) = (outcome, record, &event.parked) else {
                continue;
            };
            let topic = record.topic.to_string();
            if topics.contains(&topic) {
                let kinds = self.kinds.entry(topic).or_default();
                if kinds.len() < KINDS_MAX {
                    kinds.insert(Kind::of(event));
                }
            } else {
                let keys = self.keys.entry(topic).or_default();
                if keys.len() < KEYS_MAX {
                    keys.insert(event.key().to_owned());
                }
            }
        }
    }
}
