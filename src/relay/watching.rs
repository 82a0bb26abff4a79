//! Beside the flow: hears what somebody wants of an outbox while it is served, and tells what came of
//! it. Pauses are heeded by every claim; this says who made them, and hears of those that no claim meets
//! because nothing is pending. A config that was read anew is put in force as far as it can be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Status;
use crate::config::{Config, Outbox};
use crate::ops::controls::{Controls, Paused};
use crate::source::{Inspector, Pause, Polling};

/// How often somebody looks for pauses where no claim meets one.
const LOOK_PAUSE: Duration = Duration::from_secs(10);
/// How often the limit on the rate is looked at, and how often a drain under it is told.
pub(super) const RATE_LOOK: Duration = Duration::from_secs(5);
const REMINDER: Duration = Duration::from_secs(60);
/// Rows that are counted at most, to tell how long a drain takes.
const COUNT_MAX: i64 = 5_000_000;

/// See the module's description.
pub(super) struct Watching {
    pub(super) config: Arc<Config>,
    pub(super) outbox: Outbox,
    pub(super) controls: Arc<Controls>,
    pub(super) status: Arc<Status>,
    pub(super) polling: Arc<Polling>,
    pub(super) news: watch::Receiver<Arc<Config>>,
}

impl Watching {
    /// Watches until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut told = BTreeMap::new();
        let (mut look_at, mut rate_at) = (Instant::now(), Instant::now() + RATE_LOOK);
        self.obey();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.controls.changed.notified() => look_at = Instant::now(),
                () = tokio::time::sleep_until(look_at) => {
                    self.look(&mut told).await;
                    look_at = Instant::now() + LOOK_PAUSE;
                }
                () = tokio::time::sleep_until(rate_at) => {
                    rate_at = Instant::now() + match self.tell_rate().await {
                        true => REMINDER,
                        false => RATE_LOOK,
                    };
                }
                Ok(()) = self.news.changed() => self.obey(),
            }
        }
    }

    /// Puts in force what can be changed while it runs.
    fn obey(&mut self) {
        let config = Arc::clone(&self.news.borrow_and_update());
        let ours = config
            .outboxes
            .iter()
            .find(|it| it.table == self.outbox.table);
        if let Some(outbox) = ours {
            if self.controls.rate().rows_per_second_max() != outbox.rows_per_second_max {
                self.controls.limit(outbox.rows_per_second_max);
            }
            self.status.set_freshness(outbox.freshness.clone());
            self.controls.agree(outbox.contracts.clone());
        }
        let relay = &config.relay;
        self.polling
            .poll_every(relay.poll_interval_min, relay.poll_interval_max);
    }

    async fn look(&self, told: &mut BTreeMap<String, Pause>) {
        let Ok(mut inspector) = Inspector::new(&self.config, &self.outbox, false) else {
            return;
        };
        // what cannot be asked now is the workers' trouble too, and they tell it
        let Ok(pauses) = inspector.pauses().await else {
            return;
        };
        self.controls
            .pause(Paused::of(pauses.iter().map(|pause| pause.topic.clone())));
        self.status.set_pauses(pauses.clone());
        let now: BTreeMap<String, Pause> = pauses
            .into_iter()
            .map(|pause| (pause.topic.clone(), pause))
            .collect();
        for (topic, pause) in &now {
            let known = told.get(topic);
            if known.is_none_or(|known| known.since != pause.since) {
                tracing::warn!(
                    outbox = pause.outbox,
                    topic,
                    by = pause.by,
                    since = pause.since,
                    reason = pause.reason.as_deref().unwrap_or_default(),
                    "{} is paused: its rows wait and spend no attempts, until `outbox-relay resume`",
                    pause.what()
                );
            }
        }
        for (topic, pause) in told.iter() {
            if !now.contains_key(topic) {
                tracing::info!(outbox = pause.outbox, topic, "{} is resumed", pause.what());
            }
        }
        *told = now;
    }

    /// Says how long a drain under the limit will take; whether there was something to say.
    async fn tell_rate(&self) -> bool {
        let rate = self.controls.rate();
        if !self.controls.is_held_back(RATE_LOOK) {
            return false;
        }
        let Ok(mut inspector) = Inspector::new(&self.config, &self.outbox, false) else {
            return false;
        };
        let Ok(rows) = inspector.backlog(COUNT_MAX).await else {
            return false;
        };
        let Some(left) = rate.time_left(rows) else {
            return false;
        };
        tracing::info!(
            outbox = %self.outbox.table,
            rows_per_second_max = rate.rows_per_second_max(),
            rows,
            time_left = %humantime::format_duration(left),
            "the backlog is drained no faster than outbox.rows_per_second_max"
        );
        true
    }
}
