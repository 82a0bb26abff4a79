//! What the operator is told of one outbox: a line for each change of state, and a heartbeat.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::event::Event;
use crate::outcome::Reason;
use crate::settle::Policy;

/// How often a trouble that lasts is said again.
const REMINDER: Duration = Duration::from_secs(60);
/// How many parked rows of a minute get a line of their own.
const PARKED_LINES_MAX: u64 = 20;

/// Counts and state of one outbox in this process.
#[derive(Debug)]
pub struct Status {
    outbox: String,
    published: AtomicU64,
    parked: AtomicU64,
    behind: AtomicU64,
    trouble: Mutex<Trouble>,
    parked_lines: Mutex<(Option<Instant>, u64)>,
}

#[derive(Debug, Default)]
struct Trouble {
    since: Option<Instant>,
    said_at: Option<Instant>,
    text: String,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Rows marked or deleted after Kafka had them.
    pub published: u64,
    /// Rows that were refused and parked.
    pub parked: u64,
    /// Rows that were moved behind a parked one.
    pub behind: u64,
}

impl Status {
    /// For `outbox`, as its table is called.
    #[must_use]
    pub fn new(outbox: String) -> Self {
        Self {
            outbox,
            published: AtomicU64::new(0),
            parked: AtomicU64::new(0),
            behind: AtomicU64::new(0),
            trouble: Mutex::default(),
            parked_lines: Mutex::default(),
        }
    }

    /// The table.
    #[must_use]
    pub fn outbox(&self) -> &str {
        &self.outbox
    }

    /// A batch was settled: so many rows published, parked, and moved behind a parked one.
    pub fn settled(&self, published: u64, parked: u64, behind: u64) {
        self.published.fetch_add(published, Ordering::Relaxed);
        self.parked.fetch_add(parked, Ordering::Relaxed);
        self.behind.fetch_add(behind, Ordering::Relaxed);
    }

    /// Counts since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            published: self.published.load(Ordering::Relaxed),
            parked: self.parked.load(Ordering::Relaxed),
            behind: self.behind.load(Ordering::Relaxed),
        }
    }

    /// A row was parked. The first of a minute get a line each, the others are counted.
    pub fn parked(&self, event: &Event, reason: &Reason, policy: Policy) {
        let mut lines = self
            .parked_lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if lines
            .0
            .is_none_or(|since| now.saturating_duration_since(since) > REMINDER)
        {
            *lines = (Some(now), 0);
        }
        lines.1 += 1;
        if lines.1 > PARKED_LINES_MAX {
            return;
        }
        let rest = match policy {
            Policy::Block => "its aggregate waits until the row is retried or skipped",
            Policy::DeadLetter => "its aggregate goes on",
        };
        tracing::warn!(
            outbox = self.outbox,
            seq = event.seq,
            event_id = %event.id,
            aggregate_type = event.aggregate_type,
            event_type = event.event_type,
            class = reason.class,
            reason = reason.text,
            "a row cannot be published and was parked in outbox_relay.parked; {rest}"
        );
    }

    /// Something is wrong that will be tried again: said when it begins, when it changes, and once
    /// a minute. Any number of workers may say it.
    pub fn trouble(&self, error: &dyn std::error::Error) {
        let text = chain(error);
        let now = Instant::now();
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *trouble.since.get_or_insert(now);
        let said = trouble
            .said_at
            .is_some_and(|at| now.saturating_duration_since(at) < REMINDER);
        if said && trouble.text == text {
            return;
        }
        let lasted = now.saturating_duration_since(since);
        // another worker's view of the same trouble, at the same moment
        if said
            && now
                .saturating_duration_since(trouble.said_at.unwrap_or(now))
                .as_secs()
                < 5
        {
            return;
        }
        tracing::error!(
            outbox = self.outbox,
            lasted_s = lasted.as_secs(),
            error = text,
            "the outbox cannot be read or settled; trying again, nothing is lost"
        );
        trouble.said_at = Some(now);
        trouble.text = text;
    }

    /// All is well again.
    pub fn well(&self) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(since) = trouble.since.take() else {
            return;
        };
        *trouble = Trouble::default();
        tracing::info!(
            outbox = self.outbox,
            lasted_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the outbox is served again"
        );
    }
}

/// An error with all its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
