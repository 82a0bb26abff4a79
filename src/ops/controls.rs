//! What somebody outside wants of an outbox that is being served: what is paused, and how fast it may
//! go. Set by whoever hears of it, heeded by the claims and the sink.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::contract::Contracts;
use crate::rate::Rate;

/// What is paused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paused {
    /// The outbox as a whole.
    pub whole: bool,
    /// Some of its topics.
    pub topics: HashSet<String>,
}

impl Paused {
    /// From the topics of the rows in `outbox_relay.pause`: an empty one is the whole outbox.
    #[must_use]
    pub fn of(topics: impl IntoIterator<Item = String>) -> Self {
        let mut paused = Self::default();
        for topic in topics {
            match topic.as_str() {
                "" => paused.whole = true,
                _ => _ = paused.topics.insert(topic),
            }
        }
        paused
    }

    /// Whether nothing may be published to `topic`.
    #[must_use]
    pub fn holds(&self, topic: &str) -> bool {
        self.whole || self.topics.contains(topic)
    }
}

/// See the module's description. One for each outbox that is served.
#[derive(Debug)]
pub struct Controls {
    paused: Mutex<Arc<Paused>>,
    /// Told when what is paused changes.
    pub changed: Notify,
    contracts: Mutex<Option<Arc<Contracts>>>,
    rate: Mutex<Rate>,
    rate_changed: Notify,
    began: Instant,
    /// When a worker last began to wait for the rate.
    held_back_at: Mutex<Option<Instant>>,
    /// Workers that wait for the rate.
    waiting: AtomicUsize,
}

/// A worker that waits for the rate, until this is dropped.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Controls {
    /// Nothing is paused; no more rows a second than this.
    #[must_use]
    pub fn new(rows_per_second_max: Option<u32>) -> Self {
        Self {
            paused: Mutex::default(),
            changed: Notify::new(),
            contracts: Mutex::default(),
            rate: Mutex::new(Rate::new(rows_per_second_max, Duration::ZERO)),
            rate_changed: Notify::new(),
            began: Instant::now(),
            held_back_at: Mutex::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// What is paused now.
    #[must_use]
    pub fn paused(&self) -> Arc<Paused> {
        Arc::clone(&locked(&self.paused))
    }

    /// This is paused from now on, and nothing else.
    pub fn pause(&self, paused: Paused) {
        let mut now = locked(&self.paused);
        if **now != paused {
            *now = Arc::new(paused);
            drop(now);
            self.changed.notify_one();
        }
    }

    /// What payloads must be like now.
    #[must_use]
    pub fn contracts(&self) -> Option<Arc<Contracts>> {
        locked(&self.contracts).clone()
    }

    /// Payloads must be like this from the next batch on.
    pub fn agree(&self, contracts: Option<Arc<Contracts>>) {
        *locked(&self.contracts) = contracts;
    }

    /// The limit in force, and what follows from it.
    #[must_use]
    pub fn rate(&self) -> Rate {
        *locked(&self.rate)
    }

    /// Sets another limit, or none. Whoever waits for the old one looks again.
    pub fn limit(&self, rows_per_second_max: Option<u32>) {
        *locked(&self.rate) = Rate::new(rows_per_second_max, self.began.elapsed());
        self.rate_changed.notify_waiters();
    }

    /// So many rows were published.
    pub fn spent(&self, rows: u64) {
        if rows > 0 {
            locked(&self.rate).spend(rows, self.began.elapsed());
        }
    }

    /// Waits until the limit lets the next batch begin. May be dropped at any time.
    pub async fn turn(&self) {
        loop {
            let changed = self.rate_changed.notified();
            let wait = self.rate().wait(self.began.elapsed());
            if wait.is_zero() {
                return;
            }
            *locked(&self.held_back_at) = Some(Instant::now());
            let _waits = Waits::new(&self.waiting);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = changed => {}
            }
        }
    }

    /// Whether the limit makes a worker wait, or one began to wait within the last `recent`.
    #[must_use]
    pub fn is_held_back(&self, recent: Duration) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
            || locked(&self.held_back_at).is_some_and(|at| at.elapsed() <= recent)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
