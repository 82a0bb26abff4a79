//! Publishing marked rows again: in outbox order, at a bounded rate, each with a header that says so. No
//! row is changed, so relays that run beside it notice nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::config::{Config, Outbox};
use crate::event::Event;
use crate::ops::controls::Controls;
use crate::ops::random;
use crate::outcome::{Outcome, Reason};
use crate::route::Router;
use crate::sink::{Attempt, Held, KafkaSink, Sink, Topics};
use crate::source::{Error, Marked, Replayer};

/// Rows that are in memory at once.
const PAGE_ROWS: usize = 500;
/// How long Kafka may take nothing before it is given up: somebody is waiting for the end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a replay needs.
#[derive(Debug)]
pub struct Replay<'a> {
    /// All of the config.
    pub config: &'a Arc<Config>,
    /// The outbox.
    pub outbox: &'a Outbox,
    /// The id of the only cluster to publish to.
    pub cluster: String,
    /// How fast, and what is paused.
    pub controls: Arc<Controls>,
    /// For the header, in RFC 3339.
    pub at: String,
}

/// What a replay came to.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Rows that Kafka took again.
    pub published: usize,
    /// Rows that were purged before they were read.
    pub gone: usize,
    /// Rows that were refused, and why.
    pub refused: Vec<(Uuid, Reason)>,
    /// Whether all was tried; else it was stopped, or Kafka took nothing.
    pub complete: bool,
    /// The first row, in their order, that Kafka may not have taken; `None` once all were tried.
    pub next: Option<Uuid>,
}

impl Replay<'_> {
    /// Publishes `rows` again, until `stop`.
    ///
    /// # Errors
    /// Postgres could not be asked. What was published by then is in `replayed`.
    pub async fn run(
        &self,
        replayer: &mut Replayer,
        rows: &[Marked],
        stop: &CancellationToken,
        replayed: &mut Replayed,
    ) -> Result<(), Error> {
        let topics = Arc::new(Topics::new(&self.config.kafka, &self.config.relay));
        let sink = KafkaSink::new(&self.config.kafka, &self.config.relay, topics);
        let sink = sink.only_to(Some(self.cluster.clone()));
        let mut sink = Held::new(sink, Arc::clone(&self.controls));
        let page_rows = self.controls.rate().claim_rows_max(1);
        let page_rows = page_rows.map_or(PAGE_ROWS, |rows| usize::try_from(rows).unwrap_or(1));
        let mut done = true;
        for page in rows.chunks(page_rows.min(PAGE_ROWS)) {
            // whatever ends it from here on
            replayed.next = page.first().map(|row| row.event.id);
            let events = replayer.read(page).await?;
            replayed.gone += page.len() - events.len();
            if !self.page(&mut sink, &events, stop, replayed).await {
                done = false;
                break;
            }
        }
        replayed.complete = done;
        if done {
            replayed.next = None;
        }
        sink.close().await;
        Ok(())
    }

    /// Publishes one page; whether all of it was dealt with.
    async fn page(
        &self,
        sink: &mut impl Sink,
        events: &[Event],
        stop: &CancellationToken,
        replayed: &mut Replayed,
    ) -> bool {
        let router = Router::of(self.outbox);
        let mut records = Vec::with_capacity(events.len());
        for event in events {
            let record = router
                .topic(event)
                .and_then(|topic| self.outbox.encoding.record(event, topic));
            let record = record.map(|record| match &self.outbox.contracts {
                Some(contracts) => contracts.label_again(event, record),
                None => record,
            });
            match record {
                Ok(record) => records.push((event.id, record.replayed(&self.at))),
                Err(reason) => replayed.refused.push((event.id, reason)),
            }
        }
        let mut suspects = HashSet::new();
        let mut backoff = Backoff::new(
            Duration::from_millis(100),
            self.config.relay.retry_backoff_max,
        );
        let mut moved_at = Instant::now();
        while let Some((first, _)) = records.first() {
            replayed.next = Some(*first);
            tokio::select! {
                biased;
                () = stop.cancelled() => return false,
                () = self.controls.turn() => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return false,
                () = sink.ready() => {}
                () = tokio::time::sleep(PATIENCE) => return false,
            }
            let attempt = |(id, record)| Attempt {
                record,
                alone: suspects.contains(id),
            };
            let attempts: Vec<Attempt<'_>> = records.iter().map(|(i, r)| attempt((i, r))).collect();
            let give_up = tokio::time::sleep(self.config.relay.publish_timeout);
            let outcomes = sink.publish(&attempts, give_up).await;
            drop(attempts);
            let (before, mut published) = (records.len(), 0);
            let mut outcomes = outcomes.into_iter();
            let mut moved = false;
            records.retain(|(id, _)| match outcomes.next() {
                Some(Outcome::Delivered { .. }) => {
                    published += 1;
                    false
                }
                Some(Outcome::Rejected(reason)) => {
                    replayed.refused.push((*id, reason));
                    false
                }
                Some(Outcome::Suspect) => {
                    moved |= suspects.insert(*id);
                    true
                }
                _ => true,
            });
            replayed.published += published;
            self.controls
                .spent(u64::try_from(published).unwrap_or(u64::MAX));
            if records.len() < before || moved {
                backoff.reset();
                moved_at = Instant::now();
            } else if moved_at.elapsed() > PATIENCE {
                replayed.next = records.first().map(|(id, _)| *id);
                return false;
            } else {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(backoff.next(random())) => {}
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags, Purpose, Settings};
    use crate::sink::scripted::{Reply, ScriptedSink};

    fn config() -> Arc<Config> {
        let text = "[database]\nurl = \"postgres://h/d\"\n[kafka]\nbrokers = \"h:9092\"\n\
                    [[outbox]]\ntable = \"outbox\"\n";
        let settings = Settings::of_text(text, &Environment::default(), &Flags::default());
        Arc::new(settings.config(Purpose::Run).unwrap())
    }

    fn event(seq: i64, key: &str) -> Event {
        Event {
            seq,
            id: Uuid::from_u128(u128::try_from(seq).unwrap()),
            aggregate_type: "Order".into(),
            aggregate_id: Some(key.into()),
            event_type: "OrderPaid".into(),
            payload: Some(b"{}"[..].into()),
            headers: None,
            topic: None,
            created_at_us: None,
            parked: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_in_the_middle_of_a_page_names_the_first_row_that_is_left() {
        let config = config();
        let replay = Replay {
            config: &config,
            outbox: &config.outboxes[0],
            cluster: String::new(),
            controls: Arc::new(Controls::new(None)),
            at: "2026-11-21T17:00:00Z".to_owned(),
        };
        let events = [(1, "a"), (2, "b"), (3, "a"), (4, "b"), (5, "c")];
        let events = events.map(|(seq, key)| event(seq, key));
        let mut sink = ScriptedSink::new();
        let refused = Reply::Refuse(Outcome::Unfinished);
        sink.on_event(&events[1].id.to_string(), vec![refused; 10_000]);
        let (stop, mut replayed) = (CancellationToken::new(), Replayed::default());
        let stopping = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            stop.cancel();
            Instant::now()
        };
        let mut copy = sink.clone();
        let page = async {
            let done = replay.page(&mut copy, &events, &stop, &mut replayed).await;
            (done, Instant::now())
        };
        let ((done, ended_at), stopped_at) = tokio::join!(page, stopping);
        assert!(!done && ended_at == stopped_at, "it ends at once");
        assert_eq!(replayed.next, Some(events[1].id));
        assert_eq!(replayed.published, 3);

        // from there on each key goes on in order, and nothing was left out
        sink.heal();
        let (stop, mut replayed) = (CancellationToken::new(), Replayed::default());
        let left = &events[1..];
        assert!(replay.page(&mut sink, left, &stop, &mut replayed).await);
        let written: Vec<u128> = (sink.written_ids().iter())
            .map(|id| id.parse::<Uuid>().unwrap().as_u128())
            .collect();
        assert_eq!(written, [1, 3, 5, 2, 3, 4, 5]);
    }
}
