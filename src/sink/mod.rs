//! Kafka: the only room with rdkafka. Everything else sees records, outcomes and this trait.

use std::collections::HashSet;
use std::future::Future;

use crate::outcome::Outcome;
use crate::record::Record;

pub mod properties;

mod secured;
pub use secured::weaknesses;

mod settings;
pub use settings::check;

mod topics;
pub use topics::Topics;

mod known;

mod polled;

pub mod checkup;

pub mod reader;

mod producers;

mod producer;
pub use producer::KafkaSink;

mod generation;

mod held;
pub use held::Held;

mod opened;

mod rotated;

mod round;

mod search;
pub use search::{Found, Search, search};

mod sending;

mod token;

mod outcome;

#[cfg(any(test, feature = "failpoints"))]
#[doc(hidden)]
pub mod scripted;

/// Where records go. Kafka implements it, and a scripted one for tests.
///
/// One sink serves one worker, which publishes one batch after another: no two batches are ever in
/// a producer at once.
pub trait Sink: Send {
    /// Waits until the sink can probably be written to: at once while all is well, else until a
    /// probe succeeds. May be dropped at any time. Called before a claim, so that an outage leaves
    /// no transaction open.
    fn ready(&mut self) -> impl Future<Output = ()> + Send;

    /// The topics that are paused now: their rows need not be claimed.
    fn paused(&self) -> HashSet<String>;

    /// Whether a record of this key in `topic` would only wait now, for its topic or for its
    /// partition: it need not be claimed.
    fn keeps_waiting(&self, topic: &str, key: &str) -> bool;

    /// Publishes `attempts` in order and says what became of each: one outcome per attempt, in the
    /// same order. Not to be dropped before it returns.
    ///
    /// When `give_up` completes, whatever is not acknowledged is withdrawn and comes back as
    /// [`Outcome::Unfinished`] soon after.
    fn publish(
        &mut self,
        attempts: &[Attempt<'_>],
        give_up: impl Future<Output = ()> + Send,
    ) -> impl Future<Output = Vec<Outcome>> + Send;

    /// Lets go of the connections. What is in flight was withdrawn by [`Sink::publish`].
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// One record to publish.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The record.
    pub record: &'a Record<'a>,
    /// Send it by itself, after everything before it was answered and before anything after it is
    /// sent: a refusal is then its own.
    pub alone: bool,
}

#[cfg(test)]
mod fenced;

#[cfg(test)]
mod mocked;

#[cfg(test)]
mod several;

#[cfg(test)]
mod testing {
    use std::time::Duration;

    use crate::config;

    pub(super) fn kafka(brokers: &str) -> config::Kafka {
        config::Kafka {
            brokers: brokers.to_owned(),
            message_bytes_max: 1_000_000,
            properties: std::collections::BTreeMap::new(),
            files: std::collections::BTreeMap::new(),
        }
    }

    pub(super) fn relay() -> config::Relay {
        config::Relay {
            workers: 1,
            producers: 2,
            claim_rows_max: 2000,
            claim_bytes_max: 8 << 20,
            poll_interval_min: Duration::from_millis(1),
            poll_interval_max: Duration::from_millis(100),
            publish_timeout: Duration::from_secs(10),
            retry_backoff_max: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(10),
            sample_interval: Duration::from_secs(2),
            sweep_interval: Duration::from_secs(60),
        }
    }
}
