//! What goes on beside the flow so that it can be seen: samples of the table, the window of the rates,
//! the heartbeat.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::known::Known;
use super::status::{Counts, Status};
use crate::backoff::Backoff;
use crate::config::{Config, Outbox};
use crate::ops::facts::State;
use crate::ops::{Reminders, Step, WINDOW_STEP, random};
use crate::sink::{KafkaSink, Sink as _, Topics};
use crate::source::{Polling, Sampler};

/// Samples the table of `outbox` now and then, until `stop`.
pub(super) async fn sample(
    config: Arc<Config>,
    outbox: Outbox,
    polling: Arc<Polling>,
    status: Arc<Status>,
    stop: CancellationToken,
) {
    let (lanes, _) = polling.lanes();
    let Ok(mut sampler) = Sampler::new(&config.database, &outbox.table, &outbox.layout, lanes)
    else {
        return;
    };
    let interval = config.relay.sample_interval;
    let mut backoff = Backoff::new(interval, interval.max(config.relay.retry_backoff_max));
    let progress = status.loops.begin("sampler");
    loop {
        progress.at(Step::Tending);
        let began = Instant::now();
        let sampled = tokio::select! {
            () = stop.cancelled() => return,
            sampled = sampler.sample() => sampled,
        };
        let pause = match sampled {
            Ok(sample) => {
                status.tally.asked("sample", began.elapsed());
                status.sampled(sample);
                backoff.reset();
                interval
            }
            Err(error) => {
                status.not_sampled(&error);
                backoff.next(random())
            }
        };
        progress.at(Step::Resting);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Remembers the counts, for rates, and says now and then what was done; for as long as it is polled.
pub(super) async fn heartbeat(known: Arc<Known>, pause: Option<Duration>) {
    let mut hearts: Vec<Heart> = known.outboxes().iter().map(|_| Heart::new(pause)).collect();
    loop {
        let now = Instant::now();
        for status in known.outboxes() {
            status.tally.step(now);
        }
        if pause.is_some() {
            beat(&known, &mut hearts, now);
        }
        tokio::time::sleep(pause.map_or(WINDOW_STEP, |pause| pause.min(WINDOW_STEP))).await;
    }
}

fn beat(known: &Known, hearts: &mut [Heart], now: Instant) {
    let mut facts = None;
    for (index, (status, heart)) in known.outboxes().iter().zip(hearts).enumerate() {
        let counts = status.counts();
        if !heart.beats(counts, now) {
            continue;
        }
        let facts = facts.get_or_insert_with(|| known.facts());
        let Some(outbox) = facts.outboxes.get(index) else {
            continue;
        };
        // what is wrong has reminders of its own
        if outbox.state != State::Trouble {
            let before = std::mem::replace(&mut heart.said, counts);
            tracing::info!(
                outbox = status.outbox(),
                state = outbox.state.name(),
                published = counts.published - before.published,
                parked = counts.parked - before.parked,
                behind = counts.behind - before.behind,
                backlog = outbox.backlog.events,
                oldest_pending_age_s = outbox.oldest_pending_age_s.map(f64::round),
                "since the last of these lines"
            );
        }
    }
}

/// When an outbox is spoken of.
#[derive(Debug)]
struct Heart {
    pause: Duration,
    reminders: Reminders,
    said: Counts,
}

impl Heart {
    fn new(pause: Option<Duration>) -> Self {
        let pause = pause.unwrap_or(Duration::MAX);
        Self {
            pause,
            reminders: Reminders::every(pause, Instant::now()),
            said: Counts {
                published: 0,
                parked: 0,
                behind: 0,
            },
        }
    }

    /// Whether to speak now: at every pause while something is done, else ever more seldom.
    fn beats(&mut self, counts: Counts, now: Instant) -> bool {
        if !self.reminders.due(now) {
            let quiet = counts == self.said;
            if !quiet && self.reminders.silent_for(now) >= self.pause {
                self.reminders = Reminders::every(self.pause, now);
                return true;
            }
            return false;
        }
        if counts != self.said {
            self.reminders = Reminders::every(self.pause, now);
        }
        true
    }
}

/// How often Kafka is asked while nothing else does.
const KAFKA_PAUSE: Duration = Duration::from_secs(10);

/// Asks Kafka now and then whether it is there, while nothing else does, from a second on: what is told of it
/// would be a guess.
pub(super) fn ask_kafka(
    config: &Arc<Config>,
    topics: &Arc<Topics>,
) -> impl Future<Output = ()> + Send + use<> {
    let (config, topics) = (Arc::clone(config), Arc::clone(topics));
    async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        loop {
            let mut sink = KafkaSink::new(&config.kafka, &config.relay, Arc::clone(&topics));
            sink.ready().await;
            sink.close().await;
            tokio::time::sleep(KAFKA_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_heart_beats_while_rows_flow_and_grows_slow_in_the_quiet() {
        let start = Instant::now();
        let mut heart = Heart::new(Some(MINUTE));
        let mut beats = |published: u64, from: u32, to: u32| {
            let counts = |second: u32| Counts {
                published: published * u64::from(second),
                parked: 0,
                behind: 0,
            };
            let mut beats = 0;
            for second in (from..to).step_by(5) {
                let now = start + Duration::from_secs(u64::from(second));
                if heart.beats(counts(second), now) {
                    heart.said = counts(second);
                    beats += 1;
                }
            }
            beats
        };
        let flowing = beats(100, 0, 3_600);
        assert!((58..=60).contains(&flowing), "{flowing}");
        let quiet = beats(0, 3_600, 7_200);
        assert!((2..=7).contains(&quiet), "{quiet}");
        let again = beats(100, 7_200, 7_500);
        assert!((4..=5).contains(&again), "at once again: {again}");
    }
}
