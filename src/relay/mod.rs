//! The relay: looks at each outbox until it can be served, runs its workers, and stops them.

mod dead_letters;
mod drain;
mod known;
mod lane;
mod outbox;
mod replay;
mod status;
mod watch;
mod watching;

#[cfg(test)]
mod simulated;

use std::sync::Arc;

use tokio::task::JoinSet;

pub use drain::Drain;
pub use known::Known;
pub(crate) use known::{Snapshot, parked};
pub use lane::{End, Lane};
pub use outbox::Ended;
pub use replay::{Replay, Replayed};
pub use status::{Counts, Status, chain};

use crate::config::Config;
use crate::ops::http;
use crate::sink::Topics;
use crate::source::Left;

/// How long a relay runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Until it is asked to stop.
    Stopped,
    /// Until nothing is left that can be published.
    Empty,
}

/// What to do before an outbox is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepare {
    /// Nothing: it must have been migrated.
    Nothing,
    /// Apply the migrations, but for those that want leave.
    Migrate,
}

/// How one outbox ended, and what was done for it.
#[derive(Debug)]
pub struct Served {
    /// The table.
    pub outbox: String,
    /// Why it ended.
    pub ended: Ended,
    /// Since the start.
    pub counts: Counts,
    /// What it still holds; only asked when running until empty.
    pub left: Option<Left>,
}

/// Serves every outbox of `config` until `drain` begins or nothing is left. If one cannot be served
/// as it is configured, the others are stopped, gently. Of a config that comes by `news` it puts in force
/// what can be changed while it runs: the limits on the rate, and the pauses between polls.
pub async fn run(
    config: &Arc<Config>,
    until: Until,
    prepare: Prepare,
    drain: &Drain,
    news: &tokio::sync::watch::Receiver<Arc<Config>>,
) -> Vec<Served> {
    let topics = Arc::new(Topics::new(&config.kafka, &config.relay));
    let statuses = config
        .outboxes
        .iter()
        .map(|outbox| Arc::new(Status::of(outbox)));
    let statuses: Vec<_> = statuses.collect();
    let known = Arc::new(Known::new(config, &topics, statuses.clone(), drain));
    let mut beside = JoinSet::new();
    beside.spawn(watch::heartbeat(Arc::clone(&known), config.log.heartbeat));
    if let Some(listen) = config.http.listen.clone() {
        beside.spawn(http::serve(listen, Arc::clone(&known)));
    }
    let mut outboxes = JoinSet::new();
    for (outbox, status) in config.outboxes.iter().zip(statuses) {
        let serving = outbox::Serving {
            config: Arc::clone(config),
            outbox: outbox.clone(),
            topics: Arc::clone(&topics),
            until,
            prepare,
            drain: drain.clone(),
            news: news.clone(),
            controls: Arc::clone(&status.controls),
            status,
        };
        outboxes.spawn(serving.run());
    }
    let mut all = Vec::new();
    while let Some(served) = outboxes.join_next().await {
        match served {
            Ok(served) => {
                if matches!(served.ended, Ended::Wrong(_)) {
                    drain.stop();
                }
                all.push(served);
            }
            // a bug: let it be seen as one, after nothing was lost by it
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
    beside.shutdown().await;
    all
}
