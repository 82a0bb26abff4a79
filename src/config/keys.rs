//! Every key there is, once. Reading, checking, suggestions, the starter file, the reference and
//! `config print` all come from these entries; the doc comment of an entry is the comment operators
//! read.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::written::{Reading, StandardHeaders, Written};
use super::{Layout, LogFormat, OnPublished, Placed, Secret, TableName, database_url};
use crate::cloudevents::CloudEvents;
use crate::connect::Formats;
use crate::contract::{self, Expected, OnMissing, OnViolation};
use crate::record::RESERVED;
use crate::rewrite::Rewrite;
use crate::route::{self, Allowed, Template};
use crate::settle::Policy;

/// A key of the file and what its value is read as.
pub(super) struct Key<T> {
    pub(super) spec: Spec,
    pub(super) read: fn(&Written) -> Reading<T>,
}

/// What there is to say about a key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spec {
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    /// What it takes, to follow "takes".
    pub(super) takes: &'static str,
    /// The value where nobody writes one, as text.
    pub(super) default: Option<&'static str>,
    /// The same with `layout = "debezium"`, where that differs: what Debezium's event router does.
    pub(super) debezium: Option<&'static str>,
    /// A value to show where there is no default.
    pub(super) example: &'static str,
    /// Variables that mean this key besides `OUTBOX_RELAY__SECTION__NAME`.
    pub(super) variables: &'static [&'static str],
    /// The option of the command line.
    pub(super) flag: Option<&'static str>,
    /// Whether the value must not be seen.
    pub(super) secret: bool,
    /// Whether the starter file sets it, rather than showing it in a comment.
    pub(super) starter: bool,
    /// What it is for. Lines as written in this file.
    pub(super) doc: &'static str,
    /// [`Key::read`], for its error alone.
    pub(super) check: fn(&Written) -> Reading<()>,
}

impl Spec {
    const fn of(section: &'static str, name: &'static str, takes: &'static str) -> Self {
        Self {
            section,
            name,
            takes,
            default: None,
            debezium: None,
            example: "",
            variables: &[],
            flag: None,
            secret: false,
            starter: false,
            doc: "",
            check: |_| Ok(()),
        }
    }

    /// `section.name`.
    pub(super) fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The variable that sets it.
    pub(super) fn variable(&self) -> String {
        format!(
            "{}{}__{}",
            super::environment::PREFIX,
            self.section.to_ascii_uppercase(),
            self.name.to_ascii_uppercase()
        )
    }
}

/// A section of the file.
pub(super) struct Section {
    pub(super) name: &'static str,
    /// Its header in TOML.
    pub(super) header: &'static str,
    pub(super) doc: &'static str,
}

/// The sections in the order of the file.
pub(super) const SECTIONS: [Section; 7] = [
    Section {
        name: "database",
        header: "[database]",
        doc: "Where the outbox is. Without a url here or in the environment, PGHOST, PGPORT, PGUSER,\n\
              PGPASSWORD and PGDATABASE count, as psql reads them.",
    },
    Section {
        name: "kafka",
        header: "[kafka]",
        doc: "Where the events go.",
    },
    Section {
        name: PROPERTIES,
        header: "[kafka.properties]",
        doc: "Settings of librdkafka by their own names, for what the relay has no key for: security above\n\
              all. Names that would break a promise of the relay or run code are refused. A name with\n\
              `_file` behind it reads the value from that file. In the environment: the name in upper\n\
              case with `_` for `.`, as in OUTBOX_RELAY__KAFKA__PROPERTIES__SASL_PASSWORD.",
    },
    Section {
        name: "outbox",
        header: "[[outbox]]",
        doc: "A table to serve. Repeat the section for more tables.",
    },
    Section {
        name: "relay",
        header: "[relay]",
        doc: "How much at once, and how long.",
    },
    Section {
        name: "http",
        header: "[http]",
        doc: "Where the relay tells how it is: /metrics, /livez, /readyz, /status, and / for people.\n\
              Read-only, without a password: keep it on loopback or inside the cluster.",
    },
    Section {
        name: "log",
        header: "[log]",
        doc: "Logs go to standard error.",
    },
];

/// The section whose keys are librdkafka's.
pub(super) const PROPERTIES: &str = "kafka.properties";

/// What the starter file shows of [`PROPERTIES`].
pub(super) const PROPERTY_EXAMPLES: [(&str, &str); 4] = [
    ("security.protocol", "SASL_SSL"),
    ("sasl.mechanisms", "SCRAM-SHA-512"),
    ("sasl.username", "relay"),
    ("sasl.password_file", "/run/secrets/kafka-password"),
];

macro_rules! keys {
    ($($(#[doc = $doc:literal])+ $id:ident: $type:ty = $read:expr, $spec:expr;)+) => {
        $(
            $(#[doc = $doc])+
            pub(super) const $id: Key<$type> = Key {
                spec: Spec {
                    doc: concat!($($doc, "\n"),+),
                    check: |written| {
                        let read: fn(&Written) -> Reading<$type> = $read;
                        read(written).map(drop)
                    },
                    ..$spec
                },
                read: $read,
            };
        )+
        /// The entries, in the order of the file.
        pub(super) const ALL: &[Spec] = &[$($id.spec),+];
    };
}

const TO_AN_HOUR: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
const TO_A_DAY: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);
const TAKES_TO_AN_HOUR: &str = "a duration from 1ms to 1h, such as \"5s\"";
const TAKES_TO_A_DAY: &str = "a duration from 1ms to 24h, such as \"30s\"";

keys! {
    /// The database, as postgres://user:password@host:5432/name. Characters of the password
    /// that mean something in a URL are written as %2F and so on. Unless the host is this machine
    /// the server's certificate and its name are verified; ?sslmode=require or disable asks for
    /// less, sslrootcert=FILE names an authority of your own, sslcert and sslkey the relay's own
    /// certificate. docs/security.md has examples.
    URL: Secret = url, Spec {
        example: "postgres://relay@localhost:5432/app",
        variables: &["DATABASE_URL"],
        flag: Some("--database-url"),
        secret: true,
        starter: true,
        ..Spec::of("database", "url", "a postgres:// URL")
    };

    /// A file that holds the url, instead of url. User and password are read anew from it for
    /// each new connection; another address wants a restart.
    URL_FILE: String = file, Spec {
        example: "/run/secrets/database-url",
        ..Spec::of("database", "url_file", "the path of a file")
    };

    /// A file that holds the password alone, instead of the url. It is stronger than one there.
    PASSWORD_FILE: String = file, Spec {
        example: "/run/secrets/database-password",
        ..Spec::of("database", "password_file", "the path of a file")
    };

    /// The longest a new connection may take.
    CONNECT_TIMEOUT: Duration = |w| w.duration(TO_AN_HOUR), Spec {
        default: Some("5s"),
        ..Spec::of("database", "connect_timeout", TAKES_TO_AN_HOUR)
    };

    /// The longest a statement may run. The server stops it then; a little later the relay
    /// gives the connection up.
    STATEMENT_TIMEOUT: Duration = |w| w.duration(TO_A_DAY), Spec {
        default: Some("30s"),
        ..Spec::of("database", "statement_timeout", TAKES_TO_A_DAY)
    };

    /// False behind a pooler that hands each transaction to any of its server connections, such
    /// as PgBouncer's transaction mode before 1.21. Notifications do not get through it either:
    /// outbox.notify is passed over then.
    PREPARED_STATEMENTS: bool = Written::boolean, Spec {
        default: Some("true"),
        ..Spec::of("database", "prepared_statements", "true or false")
    };

    /// host:port of some brokers, with commas between. The others are found from these.
    BROKERS: String = brokers, Spec {
        example: "localhost:9092",
        variables: &["KAFKA_BROKERS"],
        flag: Some("--brokers"),
        starter: true,
        ..Spec::of("kafka", "brokers", "host:port, several with commas between")
    };

    /// The largest record, uncompressed, where a topic's own max.message.bytes cannot be read.
    /// A row that makes a larger one is parked.
    MESSAGE_BYTES_MAX: usize = |w| w.bytes(1_000..=1_000_000_000), Spec {
        default: Some("1000000"),
        ..Spec::of("kafka", "message_bytes_max", "a size from 1000 to 1000000000 bytes, such as 1000000 or \"1MiB\"")
    };

    /// The table, as SQL names it: folded to lower case unless in double quotes; no schema
    /// means public. Of a partitioned table its own name, not that of a partition.
    TABLE: TableName = Written::table_name, Spec {
        example: "public.outbox",
        flag: Some("--table"),
        starter: true,
        ..Spec::of("outbox", "table", "a table, such as \"public.outbox\"")
    };

    /// Which columns the table has. classic: id, aggregate_id, aggregate_type, event_type,
    /// payload, created_at, published_at. native: those and headers, topic; its payload may be
    /// null. debezium: id, aggregatetype, aggregateid, type, payload, and on_published, topic and headers
    /// as Debezium's event router has them. Columns by other names: a table that says which column is
    /// the id, aggregate_id, aggregate_type, event_type, payload and, if there are such, headers, topic,
    /// created_at, published_at. `seq`, which keeps the order, `migrate` adds to each.
    LAYOUT: Layout = Written::layout, Spec {
        default: Some("classic"),
        flag: Some("--layout"),
        ..Spec::of(
            "outbox",
            "layout",
            "\"classic\", \"native\", \"debezium\" or a table of columns, such as { id = \"uid\", \
             aggregate_id = \"key\", aggregate_type = \"kind\", event_type = \"name\", payload = \"body\" }",
        )
    };

    /// The headers that the relay sets itself, and their names: event_id, event_type, aggregate_type,
    /// seq, which ascends within an aggregate, and created_at, as RFC 3339 in UTC. What is not here is not
    /// sent; event_id always is. A row that brings a header of such a name is parked.
    HEADERS: StandardHeaders = Written::headers, Spec {
        default: Some("{ event_id = \"event_id\", event_type = \"event_type\" }"),
        debezium: Some("{ event_id = \"id\" }"),
        ..Spec::of(
            "outbox",
            "headers",
            "a table of headers and their names, such as { event_id = \"id\", seq = \"version\" }",
        )
    };

    /// Further columns that travel as headers, as Postgres prints them: column, or column:header:alias for
    /// another name, as Debezium's table.fields.additional.placement has it. A null is a header with a
    /// null value.
    HEADERS_FROM: Vec<Placed> = Written::placed, Spec {
        default: Some("[]"),
        ..Spec::of(
            "outbox",
            "headers_from",
            "a list of columns, such as [\"tenant\", \"type:header:eventType\"]",
        )
    };

    /// Writes key, value or headers as Kafka Connect's JsonConverter does, for consumers that read what a
    /// Debezium connector wrote: { key = "json", value = "json_with_schema", headers = "json" } for instance.
    /// json: without schemas, json_with_schema: with them; json_expanded, of the value: as the event router
    /// expands a payload (docs/debezium.md). What is not here is plain, as Postgres prints it.
    FORMATS: Formats = Written::formats, Spec {
        default: Some("{}"),
        ..Spec::of(
            "outbox",
            "formats",
            "a table of key, value, headers with \"plain\", \"json\", \"json_with_schema\" or, for value, \
             \"json_expanded\" for each",
        )
    };

    /// Publishes CloudEvents 1.0, by mode: binary has the attributes as headers ce_… beside an untouched
    /// payload, structured an envelope of JSON around it. source is wanted, and type is the event's type
    /// unless it says otherwise; both take ${aggregate_type} and ${event_type}. datacontenttype is what
    /// the payload's column says: application/json, text/plain or application/octet-stream. Empty: none.
    CLOUDEVENTS: Option<CloudEvents> = Written::cloudevents, Spec {
        default: Some("{}"),
        ..Spec::of(
            "outbox",
            "cloudevents",
            "a table such as { mode = \"binary\", source = \"/shop/orders\", type = \"com.shop.${event_type}\" }",
        )
    };

    /// Whether a payload of white space alone, or of nothing, is published as a tombstone. A null one always
    /// is.
    TOMBSTONE_ON_EMPTY_PAYLOAD: bool = Written::boolean, Spec {
        default: Some("false"),
        ..Spec::of("outbox", "tombstone_on_empty_payload", "true or false")
    };

    /// What becomes of a row once Kafka has it. mark sets its published_at, delete deletes it,
    /// archive moves it to a history: a table of the relay's own, which `migrate` makes. A table
    /// without a column for published_at cannot be marked.
    ON_PUBLISHED: OnPublished = |w| w.choice(&ON_PUBLISHED_CHOICES), Spec {
        default: Some("mark"),
        debezium: Some("delete"),
        flag: Some("--on-published"),
        ..Spec::of("outbox", "on_published", "\"mark\", \"delete\" or \"archive\"")
    };

    /// The topic of a row, with ${aggregate_type}, ${event_type} and any other column filled in, as they
    /// are or with :lower or :upper. In the native layout a row's own topic overrides it.
    TOPIC: Template = Written::template, Spec {
        default: Some(Template::DEFAULT),
        debezium: Some("outbox.event.${aggregate_type}"),
        ..Spec::of("outbox", "topic", "a topic, such as \"${aggregate_type:lower}-events\"")
    };

    /// A pattern that rewrites what `topic` gives, where it fits the whole of it: route.topic.regex of
    /// Debezium, with topic = "${aggregate_type}" for what that is applied to. Java's syntax; lookaround,
    /// backreferences and possessive quantifiers are refused. Empty: none.
    TOPIC_REGEX: String = topic_regex, Spec {
        default: Some(""),
        ..Spec::of("outbox", "topic_regex", "a pattern, such as \"(?<name>.*)Aggregate\", or \"\" for none")
    };

    /// What topic_regex puts there, with $1 or ${name} for its groups.
    TOPIC_REPLACEMENT: String = |w| w.some_text().map(str::to_owned), Spec {
        default: Some(Rewrite::DEFAULT_REPLACEMENT),
        ..Spec::of("outbox", "topic_replacement", "a topic, such as \"orders.${name}\"")
    };

    /// The topics that rows may go to, as names or with * for any part, such as ["*-events", "billing"].
    /// A row for another one is parked. Empty: any topic that Kafka lets the relay write to. Set it where
    /// rows choose their own topic: whoever may insert one could reach all of those.
    TOPICS_ALLOWED: Allowed = Written::topics, Spec {
        default: Some("[]"),
        ..Spec::of("outbox", "topics_allowed", "a list of topics, such as [\"*-events\", \"billing\"]")
    };

    /// What a row that cannot be published means for its aggregate. block: its later rows wait
    /// until somebody decides. dead_letter: they go on without it.
    ON_REJECTED: Policy = |w| w.choice(&POLICIES), Spec {
        default: Some("block"),
        ..Spec::of("outbox", "on_rejected", "\"block\" or \"dead_letter\"")
    };

    /// The same for some event types, as the rows name them, such as
    /// { OrderViewed = "dead_letter" }: then only the others have on_rejected.
    ON_REJECTED_BY_EVENT_TYPE: BTreeMap<String, Policy> = |w| w.choices(&POLICIES), Spec {
        default: Some("{}"),
        ..Spec::of(
            "outbox",
            "on_rejected_by_event_type",
            "a table of event types with \"block\" or \"dead_letter\" for each, such as \
             { OrderViewed = \"dead_letter\" }",
        )
    };

    /// A folder of JSON Schemas, <event type>.v<version>.json, that payloads must fit before they are
    /// published: docs/contracts.md. Empty: none. SIGHUP reads it anew, as the keys about it.
    CONTRACTS: Option<PathBuf> = folder, Spec {
        default: Some(""),
        example: "contracts",
        ..Spec::of("outbox", "contracts", "the path of a folder, or \"\" for none")
    };

    /// Which version of its contract a row must fit that names none: the newest, or any, the newest
    /// first. A row names one in the header that version_header says.
    CONTRACT_VERSION: Expected = |w| w.choice(&EXPECTED), Spec {
        default: Some("newest"),
        ..Spec::of("outbox", "contract_version", "\"newest\" or \"any\"")
    };

    /// What becomes of a row that violates its contract. park: no consumer sees it, and on_rejected says
    /// what that means for its aggregate. warn: it is published, counted and logged.
    ON_VIOLATION: OnViolation = |w| w.choice(&ON_VIOLATION_CHOICES), Spec {
        default: Some("park"),
        ..Spec::of("outbox", "on_violation", "\"park\" or \"warn\"")
    };

    /// The same for some event types, such as { OrderViewed = "warn" }.
    ON_VIOLATION_BY_EVENT_TYPE: BTreeMap<String, OnViolation> = |w| w.choices(&ON_VIOLATION_CHOICES), Spec {
        default: Some("{}"),
        ..Spec::of(
            "outbox",
            "on_violation_by_event_type",
            "a table of event types with \"park\" or \"warn\" for each, such as { OrderViewed = \"warn\" }",
        )
    };

    /// What becomes of a row whose event type has no contract. It counts only where there are contracts.
    ON_MISSING_CONTRACT: OnMissing = |w| w.choice(&[
        ("pass", OnMissing::Pass),
        ("warn", OnMissing::Warn),
        ("park", OnMissing::Park),
    ]), Spec {
        default: Some("pass"),
        ..Spec::of("outbox", "on_missing_contract", "\"pass\", \"warn\" or \"park\"")
    };

    /// The header that says which version of its contract an event fits. Sent only where there are
    /// contracts; a row that brings one is held to the version it names.
    VERSION_HEADER: String = version_header, Spec {
        default: Some(contract::VERSION_HEADER),
        ..Spec::of("outbox", "version_header", "the name of a header")
    };

    /// A topic that rows which cannot be published are published to as well, with the reason in
    /// their headers, some time after they were parked and at least once. Empty: none.
    DEAD_LETTER_TOPIC: Option<String> = dead_letter_topic, Spec {
        default: Some(""),
        ..Spec::of("outbox", "dead_letter_topic", "a topic, such as \"orders-dead\", or \"\" for none")
    };

    /// How many lanes `migrate` makes for the table, which is how many batches of it can be in
    /// hand at once. From then on the database holds the number; `migrate` says how to change it.
    LANES: u16 = lanes, Spec {
        default: Some("16"),
        ..Spec::of("outbox", "lanes", "a power of two from 1 to 1024")
    };

    /// How long published rows are kept: marked ones are deleted then; of a history a partition
    /// goes as a whole when all of it is that old. Not with on_published = "delete".
    RETENTION: Option<Duration> = retention, Spec {
        default: Some("forever"),
        ..Spec::of("outbox", "retention", "\"forever\" or a duration, such as \"7days\"")
    };

    /// How much time a partition of the history covers. Only with on_published = "archive"; what
    /// is there already stays as it is.
    ARCHIVE_PARTITION: Duration = |w| w.duration(PARTITIONS), Spec {
        default: Some("1day"),
        ..Spec::of("outbox", "archive_partition", "a duration from 1h to 366days, such as \"1day\"")
    };

    /// How long parked rows are kept that were skipped, or let pass as dead letters. What an
    /// aggregate waits for is never dropped, nor what the dead-letter topic has yet to take.
    PARKED_RETENTION: Option<Duration> = retention, Spec {
        default: Some("forever"),
        ..Spec::of("outbox", "parked_retention", "\"forever\" or a duration, such as \"90days\"")
    };

    /// Most rows that each relay publishes of this table in a second, to drain a large backlog without
    /// flooding consumers. 0: no limit. It holds over some seconds; SIGHUP puts a new one in force.
    ROWS_PER_SECOND_MAX: Option<u32> = |w| w.whole(0..=10_000_000).map(|rows: u32| Some(rows).filter(|rows| *rows > 0)), Spec {
        default: Some("0"),
        ..Spec::of("outbox", "rows_per_second_max", "a number from 0 to 10000000")
    };

    /// Let inserts wake the relay by NOTIFY. `migrate` adds the trigger it takes; polling goes
    /// on all the same.
    NOTIFY: bool = Written::boolean, Spec {
        default: Some("false"),
        ..Spec::of("outbox", "notify", "true or false")
    };

    /// True where a service writes with synchronous_commit = off: a batch is published only after
    /// what it claimed is on the database's disk, so that no crash of Postgres takes back a row
    /// that Kafka has. Costs one flush for each batch, and one connection; a pooler needs room for
    /// it beside those of all workers.
    FLUSH_BEFORE_PUBLISH: bool = Written::boolean, Spec {
        default: Some("false"),
        ..Spec::of("outbox", "flush_before_publish", "true or false")
    };

    /// How old the oldest waiting event may be, before consumers see too much of the past. Only
    /// watched: exported, shown and counted against.
    FRESHNESS_BUDGET: Option<Duration> = |w| unless(w, "none"), Spec {
        default: Some("none"),
        ..Spec::of("outbox", "freshness_budget", "\"none\" or a duration, such as \"30s\"")
    };

    /// The same for some topics, such as { orders-events = "5s" }: then freshness_budget is for the
    /// others, and for the outbox as a whole.
    FRESHNESS_BUDGET_BY_TOPIC: BTreeMap<String, Duration> = |w| w.durations(AGES), Spec {
        default: Some("{}"),
        ..Spec::of(
            "outbox",
            "freshness_budget_by_topic",
            "a table of topics with a duration for each, such as { orders-events = \"5s\" }",
        )
    };

    /// Batches in hand at once for one table, each with a connection and producers of its own.
    WORKERS: usize = |w| w.whole(1..=64_u16).map(usize::from), Spec {
        default: Some("4"),
        ..Spec::of("relay", "workers", "a number from 1 to 64")
    };

    /// Kafka producers of each worker at most, each for some of the partitions. A producer sends one
    /// partition at a time to a broker, so that order holds: with more of them the partitions of a batch
    /// are sent side by side, which counts where brokers are far and few. Each has connections of its own.
    PRODUCERS: usize = |w| w.whole(1..=16_u16).map(usize::from), Spec {
        default: Some("2"),
        ..Spec::of("relay", "producers", "a number from 1 to 16")
    };

    /// Most rows in one batch.
    CLAIM_ROWS_MAX: u32 = |w| w.whole(1..=1_000_000), Spec {
        default: Some("2000"),
        ..Spec::of("relay", "claim_rows_max", "a number from 1 to 1000000")
    };

    /// Most bytes of rows in one batch, unless a single row is larger.
    CLAIM_BYTES_MAX: usize = |w| w.bytes(1..=1 << 30), Spec {
        default: Some("4MiB"),
        ..Spec::of("relay", "claim_bytes_max", "a size from 1 byte to 1GiB, such as 4194304 or \"4MiB\"")
    };

    /// The shortest pause after an empty poll. Pauses grow from here while the table is empty.
    POLL_INTERVAL_MIN: Duration = |w| w.duration(TO_AN_HOUR), Spec {
        default: Some("1ms"),
        ..Spec::of("relay", "poll_interval_min", "a duration from 1ms to 1h, such as \"1ms\"")
    };

    /// The longest pause after an empty poll: what an event may wait for after a quiet time.
    POLL_INTERVAL_MAX: Duration = |w| w.duration(TO_AN_HOUR), Spec {
        default: Some("100ms"),
        ..Spec::of("relay", "poll_interval_max", "a duration from 1ms to 1h, such as \"100ms\"")
    };

    /// How long a batch may wait for Kafka with its transaction open. Then what was not
    /// acknowledged is let go, and tried again later.
    PUBLISH_TIMEOUT: Duration = |w| w.duration(TO_AN_HOUR), Spec {
        default: Some("10s"),
        ..Spec::of("relay", "publish_timeout", TAKES_TO_AN_HOUR)
    };

    /// The longest pause before the next attempt at something that failed.
    RETRY_BACKOFF_MAX: Duration = |w| w.duration(TO_AN_HOUR), Spec {
        default: Some("2s"),
        ..Spec::of("relay", "retry_backoff_max", TAKES_TO_AN_HOUR)
    };

    /// How long what is in flight may take to finish after the first stop signal.
    DRAIN_TIMEOUT: Duration = |w| w.duration(Duration::ZERO..=Duration::from_secs(3600)), Spec {
        default: Some("10s"),
        ..Spec::of("relay", "drain_timeout", "a duration up to 1h, such as \"10s\"")
    };

    /// How often the table is sampled: backlog, oldest event, parked rows. A sample reads a bounded
    /// number of rows, on one more connection for each outbox.
    SAMPLE_INTERVAL: Duration = |w| w.duration(TO_AN_HOUR), Spec {
        default: Some("2s"),
        ..Spec::of("relay", "sample_interval", TAKES_TO_AN_HOUR)
    };

    /// How often the upkeep comes round. Among other things it looks over every lane from the very
    /// beginning, for rows that somebody put back where all is published: claims do not look there.
    SWEEP_INTERVAL: Duration = |w| w.duration(TO_AN_HOUR), Spec {
        default: Some("60s"),
        ..Spec::of("relay", "sweep_interval", TAKES_TO_AN_HOUR)
    };

    /// host:port to listen on; port 0 takes a free one, which the log tells. A port that is taken
    /// does not stop the relay: it warns, and tries again.
    LISTEN: Option<String> = listen, Spec {
        default: Some("127.0.0.1:9464"),
        ..Spec::of("http", "listen", "host:port, such as \"127.0.0.1:9464\", or \"off\"")
    };

    /// True where /readyz is to fail while Kafka or the database cannot be reached, or an outbox
    /// waits. Not for a sidecar: its readiness is its pod's, and would take the service down with
    /// Kafka.
    STRICT_READINESS: bool = Written::boolean, Spec {
        default: Some("false"),
        ..Spec::of("http", "strict_readiness", "true or false")
    };

    /// How long a worker may be at one step before /livez fails. Longer than anything in [database]
    /// and [relay] may take.
    STUCK_AFTER: Duration = |w| w.duration(TO_A_DAY), Spec {
        default: Some("5m"),
        ..Spec::of("http", "stuck_after", TAKES_TO_A_DAY)
    };

    /// pretty is for people, json for machines. auto: pretty on a terminal, json otherwise.
    FORMAT: LogFormat = |w| w.choice(&[
        ("auto", LogFormat::Auto),
        ("pretty", LogFormat::Pretty),
        ("json", LogFormat::Json),
    ]), Spec {
        default: Some("auto"),
        ..Spec::of("log", "format", "\"auto\", \"pretty\" or \"json\"")
    };

    /// Which lines: error, warn, info, debug, trace, or by module as RUST_LOG takes it.
    FILTER: String = filter, Spec {
        default: Some("info"),
        variables: &["RUST_LOG"],
        ..Spec::of("log", "filter", "a filter, such as \"info\" or \"warn,outbox_relay=debug\"")
    };

    /// How often to say how many rows were published and how many wait, for each outbox. While
    /// nothing comes the pauses double, up to an hour.
    HEARTBEAT: Option<Duration> = |w| unless(w, "off"), Spec {
        default: Some("1m"),
        ..Spec::of("log", "heartbeat", "\"off\" or a duration, such as \"1m\"")
    };
}

/// The entry of `section.name`.
pub(super) fn spec(section: &str, name: &str) -> Option<&'static Spec> {
    section_keys(section).find(|spec| spec.name == name)
}

/// The entries of a section.
pub(super) fn section_keys(section: &str) -> impl Iterator<Item = &'static Spec> {
    ALL.iter().filter(move |spec| spec.section == section)
}

fn url(written: &Written) -> Reading<Secret> {
    let url = written.text()?.trim();
    database_url::check(url)?;
    Ok(Secret::new(url))
}

fn file(written: &Written) -> Reading<String> {
    written.some_text().map(str::to_owned)
}

fn brokers(written: &Written) -> Reading<String> {
    let text = written.some_text()?;
    let mut brokers = Vec::new();
    for broker in text.split(',').map(str::trim) {
        if broker.is_empty() {
            return Err("one of them is empty".into());
        }
        if broker.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err("one of them has a space in it".into());
        }
        if broker.contains('@') {
            return Err(
                "one of them has an `@`; user and password are sasl.username and sasl.password of [kafka.properties]".into(),
            );
        }
        // Behind the brackets of an IPv6 address, if it has them.
        let tail = broker.rsplit(']').next().unwrap_or(broker);
        let port = tail.rsplit_once(':').map(|(_, port)| port);
        if port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err("one of them has a port that is no number up to 65535".into());
        }
        brokers.push(broker);
    }
    Ok(brokers.join(","))
}

fn lanes(written: &Written) -> Reading<u16> {
    let lanes = written.whole(1..=1024_u16)?;
    if lanes.is_power_of_two() {
        return Ok(lanes);
    }
    let above = lanes.next_power_of_two();
    Err(format!("the nearest are {} and {above}", above / 2))
}

const CENTURY: Duration = Duration::from_secs(100 * 366 * 86_400);
/// How old things may grow.
const AGES: RangeInclusive<Duration> = Duration::from_millis(1)..=CENTURY;

fn retention(written: &Written) -> Reading<Option<Duration>> {
    unless(written, "forever")
}

/// A duration, or none where `word` is written.
fn unless(written: &Written, word: &str) -> Reading<Option<Duration>> {
    if written.text().is_ok_and(|text| text.trim() == word) {
        return Ok(None);
    }
    written.duration(AGES).map(Some)
}

fn listen(written: &Written) -> Reading<Option<String>> {
    let text = written.some_text()?;
    if text == "off" {
        return Ok(None);
    }
    let host_and_port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match host_and_port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(_)) => Ok(Some(text.to_owned())),
        Some(Err(_)) => Err("the port is no number up to 65535".into()),
        None => Err("a host is wanted too: 0.0.0.0 is all of this machine".into()),
    }
}

const ON_PUBLISHED_CHOICES: [(&str, OnPublished); 3] = [
    ("mark", OnPublished::Mark),
    ("delete", OnPublished::Delete),
    ("archive", OnPublished::Archive),
];

/// How much time a partition may cover.
const PARTITIONS: RangeInclusive<Duration> =
    Duration::from_secs(3600)..=Duration::from_secs(366 * 86_400);

const POLICIES: [(&str, Policy); 2] = [
    ("block", Policy::Block),
    ("dead_letter", Policy::DeadLetter),
];

const EXPECTED: [(&str, Expected); 2] = [("newest", Expected::Newest), ("any", Expected::Any)];

const ON_VIOLATION_CHOICES: [(&str, OnViolation); 2] =
    [("park", OnViolation::Park), ("warn", OnViolation::Warn)];

fn folder(written: &Written) -> Reading<Option<PathBuf>> {
    let text = written.text()?.trim();
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

fn version_header(written: &Written) -> Reading<String> {
    let name = written.some_text()?;
    match name.contains('\0') || name.starts_with(RESERVED) {
        true => Err(format!("it does not begin with {RESERVED}")),
        false => Ok(name.to_owned()),
    }
}

fn topic_regex(written: &Written) -> Reading<String> {
    let pattern = written.text()?;
    Rewrite::check_pattern(pattern)?;
    Ok(pattern.to_owned())
}

fn dead_letter_topic(written: &Written) -> Reading<Option<String>> {
    match written.text()?.trim() {
        "" => Ok(None),
        topic => match route::illegal(topic) {
            None => Ok(Some(topic.to_owned())),
            Some(why) => Err(format!("this one {why}")),
        },
    }
}

fn filter(written: &Written) -> Reading<String> {
    let text = written.some_text()?;
    match tracing_subscriber::filter::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("it does not parse".into()),
    }
}
