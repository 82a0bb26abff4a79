//! What is known of a relay and its outboxes, as `/status` tells it: plain data, no clock and no
//! socket. The status page, `top`, `status` and the metrics are all made from it, so they cannot
//! disagree.
//!
//! Points in time are RFC 3339 in UTC; lengths of time are seconds, in names that end in `_s`. A
//! value that is not known is null: zero always means zero. Readers ignore fields they do not know.
//! *Table-wide* facts are the same from every relay that serves the table: take one, never a sum.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything a relay knows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// When this was put together.
    pub at: String,
    /// Which program it is.
    pub build: Build,
    /// When the relay started.
    pub started_at: String,
    /// How long it has been running.
    pub uptime_s: f64,
    /// As `/livez` says: every loop makes progress.
    pub live: bool,
    /// As `/readyz` says.
    pub ready: bool,
    /// Why not, where either is false.
    pub why: Vec<String>,
    /// The Kafka side, shared by all outboxes.
    pub kafka: Kafka,
    /// Each outbox, in the order of the config.
    pub outboxes: Vec<Outbox>,
    /// What went wrong of late, newest first, at most [`ERRORS_MAX`].
    pub errors: Vec<Trouble>,
}

/// Most entries of [`Facts::errors`].
pub const ERRORS_MAX: usize = 20;

/// Which program it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Build {
    /// The version, as `--version` has it.
    pub version: String,
    /// The optional parts it was built with.
    pub features: Vec<String>,
}

/// What is known of Kafka.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kafka {
    /// The brokers of the config.
    pub brokers: String,
    /// Whether it took the last records that were given to it, or, before any, nothing speaks
    /// against it.
    pub reachable: bool,
    /// Since when it takes no records.
    pub away_since: Option<String>,
    /// How long that is.
    pub away_s: Option<f64>,
    /// Why, in librdkafka's words.
    pub why: Option<String>,
    /// The topics that cannot be written now, or only in part, or that somebody paused.
    pub topics_paused: Vec<TopicPaused>,
}

/// A topic whose events wait.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TopicPaused {
    /// Its name.
    pub topic: String,
    /// `unknown`, `denied`, `leaderless`, `silent`, `refuses`, or `operator`.
    pub reason: String,
    /// The same in words.
    pub text: String,
    /// What to do about it.
    pub next_step: String,
    /// Since when.
    pub since: String,
    /// How long that is.
    pub lasted_s: f64,
    /// The partitions that take nothing, where the others do; empty: the whole topic waits.
    pub partitions: Vec<i32>,
    /// The outbox it is paused for, where somebody paused it for one.
    pub outbox: Option<String>,
}

/// What is known of one outbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outbox {
    /// The table, `schema.table` as the catalogue names it.
    pub outbox: String,
    /// What the relay does for it.
    pub state: State,
    /// Since when.
    pub state_since: String,
    /// Why it waits, what the trouble is, or who paused it and why.
    pub state_text: Option<String>,
    /// When the relay began to serve it; null before that.
    pub serving_since: Option<String>,
    /// `mark` or `delete`.
    pub on_published: String,

    /// Rows this relay published since its start.
    pub published: u64,
    /// Rows it parked because they were refused.
    pub parked: u64,
    /// Rows it moved behind a parked one.
    pub behind: u64,
    /// Rows that were published later than their freshness budget allows.
    pub late: u64,
    /// When it last published something.
    pub last_published_at: Option<String>,
    /// Rows a second that this relay published, over the last [`Outbox::window_s`].
    pub rate_out_per_s: f64,
    /// Table-wide: rows a second that services insert, over the last window; null where the database
    /// does not tell.
    pub rate_in_per_s: Option<f64>,
    /// Table-wide: rows that services inserted so far, as far as the database counts them.
    pub written: Option<u64>,
    /// The window that rates and quantiles are of: a minute, less after a start.
    pub window_s: f64,
    /// From insert (`created_at`) to settled, over the last window.
    pub lag: Quantiles,
    /// From the first record of a batch given to Kafka to its last acknowledgement, over the last window.
    pub publish: Quantiles,

    /// Workers of this relay, and what they do.
    pub workers: Workers,
    /// Table-wide: lanes in force; null before they were read.
    pub lanes: Option<u16>,
    /// Lanes this relay holds at this moment.
    pub lanes_held: u16,

    /// Whether the table could be asked.
    pub database: Database,
    /// Table-wide: rows that wait in the table.
    pub backlog: Backlog,
    /// Table-wide: seconds since the oldest waiting row was inserted; 0 when none waits, null before
    /// the first sample. It goes on rising while the database cannot be asked.
    pub oldest_pending_age_s: Option<f64>,
    /// The topics rows go to, those with the most pending first.
    pub topics: Vec<Topic>,
    /// Table-wide: rows in `outbox_relay.parked`.
    pub parked_rows: Parked,
    /// The freshness budgets, the outbox's own first.
    pub freshness: Vec<Freshness>,
    /// Seconds until the backlog is gone, at the rates of the last window; null where it does not
    /// shrink or nothing waits.
    pub drained_in_s: Option<f64>,
    /// Most rows a second that this relay publishes; null: no limit.
    pub rows_per_second_max: Option<u32>,
    /// Seconds that the rows which wait take at that limit, if nobody else publishes them; null while the
    /// limit holds nothing back.
    pub limited_for_s: Option<f64>,
    /// What payloads must be like; null: anything goes.
    pub contracts: Option<Contracts>,
}

/// The contracts that an outbox's rows are held against.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Contracts {
    /// Event types that have one.
    pub event_types: usize,
    /// Their versions in all.
    pub versions: usize,
    /// The same of two relays whose folders hold the same.
    pub digest: String,
}

/// What a relay does for an outbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It looks at the table for the first time.
    #[default]
    Starting,
    /// The table is not there yet, or not ready, or somebody else's worker is at it.
    Waiting,
    /// It publishes what comes.
    Serving,
    /// The table cannot be read or settled; it tries again.
    Trouble,
    /// Somebody paused it.
    Paused,
    /// It finishes what is in flight.
    Stopping,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

impl State {
    /// Each that a relay can be in.
    pub const ALL: [Self; 6] = [
        Self::Starting,
        Self::Waiting,
        Self::Serving,
        Self::Trouble,
        Self::Paused,
        Self::Stopping,
    ];

    /// As the JSON has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Waiting => "waiting",
            Self::Serving => "serving",
            Self::Trouble => "trouble",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Unknown => "unknown",
        }
    }
}

/// How long things took: null where nothing was measured in the window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quantiles {
    /// How many were measured.
    pub count: u64,
    /// Half took no longer.
    pub p50_s: Option<f64>,
    /// Nine in ten took no longer.
    pub p90_s: Option<f64>,
    /// Ninety-nine in a hundred took no longer.
    pub p99_s: Option<f64>,
    /// The bound that none exceeded.
    pub max_s: Option<f64>,
}

/// The workers of one outbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Workers {
    /// How many there are.
    pub count: usize,
    /// What they do now, and how many: `claiming`, `publishing`, `settling`, `waiting_for_kafka`,
    /// `waiting_for_rows`, `backing_off`.
    pub doing: BTreeMap<String, usize>,
    /// Those that have been at one step for longer than it can take.
    pub stuck: usize,
}

/// Whether the database could be asked about an outbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Database {
    /// Whether the last question was answered.
    pub reachable: bool,
    /// Since when not.
    pub away_since: Option<String>,
    /// How long that is.
    pub away_s: Option<f64>,
    /// Why not.
    pub why: Option<String>,
    /// When the table was last sampled: the table-wide facts are of then.
    pub sampled_at: Option<String>,
    /// How old they are.
    pub sample_age_s: Option<f64>,
    /// The database's clock less the relay's.
    pub clock_offset_s: Option<f64>,
}

/// Rows that wait in an outbox table. A table is never counted whole: beyond a bound this is an
/// estimate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Backlog {
    /// How many; null before the first sample.
    pub events: Option<u64>,
    /// Whether they were counted; else it is estimated from the numbers (`seq`) that wait.
    pub exact: bool,
    /// Up to how many rows are counted.
    pub counted_max: u64,
}

/// What is known of one topic of an outbox. Beyond a number of topics the rest is `other`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Topic {
    /// Its name.
    pub topic: String,
    /// Events this relay published to it since its start.
    pub published: u64,
    /// Events a second, over the last window.
    pub rate_out_per_s: f64,
    /// From insert to settled, over the last window.
    pub lag: Quantiles,
    /// Table-wide: rows that wait for it, among the oldest of each lane that were looked at.
    pub pending: u64,
    /// Whether these are all; else there may be more of them further back.
    pub pending_exact: bool,
    /// Table-wide: seconds since the oldest of them was inserted; 0 when none waits, null where it
    /// cannot be told.
    pub oldest_pending_age_s: Option<f64>,
}

/// Rows in `outbox_relay.parked`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Parked {
    /// Whether they were counted; else there are at least as many.
    pub exact: bool,
    /// By state and reason, most first.
    pub rows: Vec<ParkedRows>,
    /// Aggregates that wait behind a refused row; null before the first sample.
    pub blocked_keys: Option<u64>,
    /// How long the first of them has been waiting; null where none does.
    pub oldest_blocked_age_s: Option<f64>,
}

/// Parked rows alike in state and reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ParkedRows {
    /// `blocked`, `behind`, `dead`, `skipped`, `retry` or `skip`, as `parked list` has it.
    pub state: String,
    /// The class of the reason, such as `too_large`; null for rows that only wait behind another.
    pub reason: Option<String>,
    /// How many.
    pub rows: u64,
}

/// A promise of freshness, and how it stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Freshness {
    /// The topic it is for; null: the outbox as a whole.
    pub topic: Option<String>,
    /// How old the oldest waiting event may be.
    pub budget_s: f64,
    /// How old it is; null where it cannot be told.
    pub staleness_s: Option<f64>,
    /// Whether that is within the budget; null where it cannot be told.
    pub kept: Option<bool>,
    /// Events that were published later than that, since the start of this relay.
    pub late: u64,
}

/// Something that went wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trouble {
    /// When it was last seen.
    pub at: String,
    /// When it was first seen.
    pub first_at: String,
    /// How often in between.
    pub times: u64,
    /// The outbox it is about; null: all of them.
    pub outbox: Option<String>,
    /// What it was. Holds no payload, key or secret.
    pub text: String,
    /// Whether it still is.
    pub lasts: bool,
}
