//! Config: what operators meant. `file` and `environment` hold what they wrote, `keys` every key there
//! is; nothing half-valid leaves this room.
//!
//! A value comes from the strongest source that has it: the command line, then
//! `OUTBOX_RELAY__SECTION__KEY`, then variables that other programs know (`DATABASE_URL`), then the
//! file, then the default. Secrets are hidden from the moment they are read, and no error says what
//! was written, only where.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::contract::Contracts;
use crate::record::Encoding;
use crate::route::{Allowed, Template};
use crate::settle::Policies;

mod connector;

mod contracts;

mod debezium;
pub use debezium::{Imported, import_debezium};

mod changes;
pub use changes::Change;

mod file;

mod environment;
pub use environment::{Collector, Environment};

mod keys;

mod layout;
pub use layout::{Layout, LayoutKind, Placed};

mod written;

mod wire;

mod settings;
pub use settings::{Flags, Purpose, Settings};

mod problem;
pub use problem::Error;

mod show;
pub use show::{reference, starter};

mod database_url;
pub use database_url::{has_password, parameter};

mod table_name;

mod suggest;

mod secret;
pub use secret::Secret;

#[cfg(test)]
mod tests;

/// Everything `run` and `migrate` need to know, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the outbox is.
    pub database: Database,
    /// Where its events go.
    pub kafka: Kafka,
    /// The tables to serve, each on its own; never empty.
    pub outboxes: Vec<Outbox>,
    /// How much at once, and how long.
    pub relay: Relay,
    /// Where the relay tells how it is.
    pub http: Http,
    /// How to log.
    pub log: Log,
}

/// The Postgres side.
#[derive(Debug, Clone)]
pub struct Database {
    /// A `postgres://` URL, password included.
    pub url: Secret,
    /// The file it was read from: read anew for each connection.
    pub url_file: Option<PathBuf>,
    /// The password, where it is not in the URL.
    pub password: Option<Secret>,
    /// The file that was read from: read anew for each connection.
    pub password_file: Option<PathBuf>,
    /// The longest a new connection may take.
    pub connect_timeout: Duration,
    /// The longest a statement may run. The server stops it then; a little later the relay gives
    /// the connection up.
    pub statement_timeout: Duration,
    /// False behind a pooler that hands each transaction to any of its server connections.
    pub prepared_statements: bool,
}

/// The Kafka side.
#[derive(Debug, Clone)]
pub struct Kafka {
    /// `host:port`, several with commas between.
    pub brokers: String,
    /// The largest record, uncompressed, where the topic's own limit cannot be read.
    pub message_bytes_max: usize,
    /// librdkafka settings by their own names; only allowed ones get here.
    pub properties: BTreeMap<String, Secret>,
    /// The files that hold the values of some of them: read anew for each client.
    pub files: BTreeMap<String, PathBuf>,
}

/// One outbox table.
#[derive(Debug, Clone)]
pub struct Outbox {
    /// The table, as the catalogue names it.
    pub table: TableName,
    /// Which columns it has.
    pub layout: Layout,
    /// What becomes of a published row.
    pub on_published: OnPublished,
    /// Which topic a row goes to.
    pub topic: Template,
    /// What is made of a row beside its topic.
    pub encoding: Encoding,
    /// The topics that rows may go to.
    pub topics_allowed: Allowed,
    /// What becomes of the rest of an aggregate when one of its rows cannot be published, by the
    /// row's event type.
    pub on_rejected: Policies,
    /// What payloads must be like; `None` asks nothing of them.
    pub contracts: Option<Arc<Contracts>>,
    /// The topic that rejected rows are also published to.
    pub dead_letter_topic: Option<String>,
    /// How many lanes `migrate` makes: a power of two. The database holds the number in force.
    pub lanes: u16,
    /// How long marked rows, or those of the history, are kept; `None` keeps them for ever.
    pub retention: Option<Duration>,
    /// How much time a partition of the history covers.
    pub archive_partition: Duration,
    /// How long rows that were given up, or let pass as dead letters, stay parked; `None` keeps them
    /// for ever. What an aggregate waits for has no such limit.
    pub parked_retention: Option<Duration>,
    /// Most rows a second, for each relay; `None` is no limit.
    pub rows_per_second_max: Option<u32>,
    /// Whether inserts wake the relay by NOTIFY. Polling goes on all the same.
    pub notify: bool,
    /// Whether a batch is published only after all that the claim saw is on the database's disk.
    pub flush_before_publish: bool,
    /// How old the oldest waiting event may be.
    pub freshness: Freshness,
}

impl Outbox {
    /// The same, with an encoding that knows the table's columns.
    #[must_use]
    pub fn written_by(&self, encoding: &Encoding) -> Self {
        Self {
            encoding: encoding.clone(),
            ..self.clone()
        }
    }
}

/// How old the oldest waiting event may be, before consumers see too much of the past.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freshness {
    /// Of the outbox as a whole, and of topics without a budget of their own.
    pub usual: Option<Duration>,
    /// Of some topics.
    pub by_topic: BTreeMap<String, Duration>,
}

impl Freshness {
    /// The budget that events of `topic` have.
    #[must_use]
    pub fn of(&self, topic: &str) -> Option<Duration> {
        self.by_topic.get(topic).copied().or(self.usual)
    }
}

/// `schema.table`, each part as the catalogue has it: not folded, not quoted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table in it.
    pub table: String,
}

/// What becomes of a row that Kafka has acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnPublished {
    /// Set `published_at`.
    #[default]
    Mark,
    /// Delete the row.
    Delete,
    /// Move the row to a history, which is partitioned by time.
    Archive,
}

/// Limits. Each bounds something by name; none depends on the backlog.
#[derive(Debug, Clone)]
pub struct Relay {
    /// Batches in hand at once for one outbox, each with a connection and producers of its own.
    pub workers: usize,
    /// Producers of each worker at most, each for some of the partitions.
    pub producers: usize,
    /// Most rows in one batch.
    pub claim_rows_max: u32,
    /// Most bytes of rows in one batch, unless a single row is larger.
    pub claim_bytes_max: usize,
    /// Shortest pause after an empty poll.
    pub poll_interval_min: Duration,
    /// Longest pause after an empty poll.
    pub poll_interval_max: Duration,
    /// How long a batch may wait for Kafka with its transaction open.
    pub publish_timeout: Duration,
    /// Longest pause before the next attempt at something that failed.
    pub retry_backoff_max: Duration,
    /// How long what is in flight may take to finish after the first stop signal.
    pub drain_timeout: Duration,
    /// How often the table is sampled for the metrics.
    pub sample_interval: Duration,
    /// How often the upkeep comes round.
    pub sweep_interval: Duration,
}

/// Where the relay tells how it is.
#[derive(Debug, Clone)]
pub struct Http {
    /// `host:port`; `None` is off.
    pub listen: Option<String>,
    /// Whether `/readyz` also asks for Kafka and the database.
    pub strict_readiness: bool,
    /// How long a worker may be at one step before `/livez` fails.
    pub stuck_after: Duration,
}

/// How to log.
#[derive(Debug, Clone)]
pub struct Log {
    /// Lines for people or for machines.
    pub format: LogFormat,
    /// A filter as `RUST_LOG` takes it.
    pub filter: String,
    /// How often to say what was done; `None` is never.
    pub heartbeat: Option<Duration>,
}

impl Log {
    /// How the demo logs, which has no config file: only what is wrong, unless RUST_LOG says more.
    #[must_use]
    pub fn of_demo(environment: &Environment) -> Self {
        let filter = environment
            .get("RUST_LOG")
            .map_or("warn", |filter| filter.expose());
        Self {
            format: LogFormat::Auto,
            filter: filter.to_owned(),
            heartbeat: None,
        }
    }
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

impl TableName {
    /// The table that the relay's own tables call `name`: as it is printed, neither quoted nor folded.
    #[must_use]
    pub fn of_catalogue(name: &str) -> Self {
        let (schema, table) = name.split_once('.').unwrap_or(("public", name));
        Self {
            schema: schema.to_owned(),
            table: table.to_owned(),
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}
