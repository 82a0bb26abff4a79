//! The metrics: each is defined once, in `ALL`, and docs/metrics.md is made from that. What they
//! say is made from the facts, so it is what `/status` says.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use prometheus::TextEncoder;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as HistogramValue, LabelPair, Metric, MetricFamily,
    MetricType,
};

use super::facts::{Facts, Outbox, State};
use super::{Counted, Histogram, Poll, as_f64, unix_s};
use crate::relay::Snapshot;

/// What there is to say about a metric.
struct Definition {
    name: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    /// How to bring several relays together: `sum`, `max` or `min`.
    over: &'static str,
    help: &'static str,
}

macro_rules! metrics {
    ($($kind:ident $over:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        const ALL: &[Definition] = &[$(Definition {
            name: concat!("outbox_relay_", $name),
            kind: MetricType::$kind,
            labels: &[$($label),*],
            over: stringify!($over),
            help: $help,
        }),+];
    };
}

metrics! {
    GAUGE max "build_info" ["version", "features"]
        "1, labelled with the version that runs.";
    GAUGE max "start_timestamp_seconds" []
        "When the relay started, in Unix seconds. If it changes often the relay is being restarted: read the last lines of its log.";
    GAUGE min "live" []
        "1 while every loop makes progress, as /livez says. At 0 a worker is stuck: look at /status, then restart the relay; nothing is lost by it.";
    GAUGE min "kafka_up" []
        "1 while Kafka takes records or nothing speaks against it. At 0 rows wait in the outbox and nothing is lost: look at the brokers; /status says what they answered.";
    GAUGE max "kafka_away_seconds" []
        "How long Kafka has been taking no records; 0 while it does.";
    GAUGE max "topic_paused" ["topic", "reason"]
        "1 for each topic that takes nothing now, or only in part. Its events wait, all others flow. reason says why, /status what to do.";
    GAUGE min "database_up" ["outbox"]
        "1 while the outbox can be read and settled. At 0 look at Postgres; /status says what it answered. The relay goes on trying.";
    GAUGE max "database_away_seconds" ["outbox"]
        "How long the outbox could not be read or settled; 0 while it can.";
    GAUGE max "clock_offset_seconds" ["outbox"]
        "The database's clock less the relay's. Lags and ages are corrected by it; if it is large, mend the clocks for the sake of whoever compares logs.";
    GAUGE min "sample_age_seconds" ["outbox"]
        "Age of the table-wide values below. If it grows the database does not answer the sampler, and only the ages stay true.";
    GAUGE max "state" ["outbox", "state"]
        "1 for the state the outbox is in, 0 for the others: starting, waiting, serving, trouble, paused, stopping.";
    GAUGE max "backlog_events" ["outbox"]
        "Rows that wait in the table: the same from every relay, so take max, not sum. If it grows, compare the rates in and out, then look at kafka_up and topic_paused.";
    GAUGE max "backlog_is_estimate" ["outbox"]
        "1 where the backlog is beyond 10,000 rows and estimated, 0 where it was counted.";
    GAUGE max "oldest_pending_age_seconds" ["outbox"]
        "Seconds since the oldest waiting row was inserted, 0 when none waits. It goes on rising while the database hangs. The one to alert on. Take max, not sum.";
    COUNTER max "events_written_total" ["outbox"]
        "Rows that services inserted, as far as the database counts them (numbers drawn from the sequence of seq, or inserts of its statistics). The same from every relay: rate it, then take max.";
    GAUGE max "parked_rows" ["outbox", "state", "reason"]
        "Rows in outbox_relay.parked; beyond 10,000 of a state at least so many. Take max, not sum. See `outbox-relay parked list`.";
    GAUGE max "blocked_keys" ["outbox"]
        "Aggregates that wait behind a refused row, until somebody retries or skips it: `outbox-relay parked list --state blocked`. Take max, not sum.";
    GAUGE max "oldest_blocked_age_seconds" ["outbox"]
        "How long the aggregate that has waited longest has been blocked, 0 when none is.";
    GAUGE max "freshness_budget_seconds" ["outbox", "topic"]
        "How old the oldest waiting event may be, as configured; topic is empty for the outbox as a whole.";
    GAUGE max "staleness_seconds" ["outbox", "topic"]
        "How old the oldest waiting event is; above its budget consumers see the past. The same labels as the budget.";
    GAUGE max "lanes" ["outbox"]
        "Lanes in force: how many batches of the outbox can be in hand at once, over all relays.";
    GAUGE sum "lanes_held" ["outbox"]
        "Lanes this relay holds at the moment of the scrape. 0 on all relays while a backlog waits: nobody works on it.";
    COUNTER sum "lanes_taken_total" ["outbox"]
        "Times this relay took a lane.";
    GAUGE sum "workers" ["outbox"]
        "Workers of this relay.";
    GAUGE sum "workers_stuck" ["outbox"]
        "Workers that have been at one step for longer than it can take. Not 0: /livez fails.";
    COUNTER sum "events_published_total" ["outbox", "topic"]
        "Rows marked, deleted or archived after Kafka acknowledged them.";
    COUNTER sum "events_late_total" ["outbox", "topic"]
        "Published rows that were older than their freshness budget. Its share of events_published_total is what burns the budget.";
    COUNTER sum "publish_attempts_total" ["outbox"]
        "Rows given to Kafka, repeats included. Much more than events_published_total: something is published again and again.";
    COUNTER sum "publish_errors_total" ["outbox", "class"]
        "Attempts that did not end with the row published. unfinished: no acknowledgement in time; topic: the topic takes nothing; suspect: refused together with others, to be tried alone; else the class of the refusal, as in outbox_relay.parked.";
    HISTOGRAM sum "publish_duration_seconds" ["outbox"]
        "From the first record of a batch given to Kafka to its last acknowledgement.";
    HISTOGRAM sum "event_lag_seconds" ["outbox", "topic"]
        "From the row's created_at to published. A default of now() is the start of the writer's transaction, so long transactions look like lag.";
    GAUGE max "last_publish_timestamp_seconds" ["outbox"]
        "When this relay last published a row, in Unix seconds; 0 before the first.";
    COUNTER sum "rows_parked_total" ["outbox", "reason"]
        "Rows that were refused and parked. See `outbox-relay parked list`.";
    COUNTER sum "contract_violations_total" ["outbox", "event_type", "outcome"]
        "Rows that were not as their contract says: parked, or published with a warning. By event type, beyond 50 of them as other.";
    GAUGE max "contracts_info" ["outbox", "digest"]
        "1, labelled with what tells one set of contracts from another. Relays of one outbox with different digests hold its rows to different contracts: bring the folders together.";
    COUNTER sum "rows_behind_total" ["outbox"]
        "Rows that were moved behind a parked row of their aggregate.";
    COUNTER sum "rows_purged_total" ["outbox"]
        "Marked rows that the retention deleted.";
    COUNTER sum "polls_total" ["outbox", "result"]
        "Claims: full (as many rows as were asked for), partial, empty, or error. Mostly full: there is a backlog.";
    HISTOGRAM sum "poll_batch_events" ["outbox"]
        "Rows in a batch.";
    HISTOGRAM sum "db_query_duration_seconds" ["outbox", "op"]
        "What the database takes for claim, settle, sample and upkeep. If claim grows, look for a transaction that holds back vacuum.";
}

/// What a scrape gets.
pub(crate) fn render(snapshot: &Snapshot) -> String {
    let mut page = Page::default();
    page.process(&snapshot.facts);
    for (outbox, counted) in snapshot.facts.outboxes.iter().zip(&snapshot.counted) {
        page.table(outbox);
        page.relay(outbox, counted);
    }
    page.print()
}

/// Samples, by the metric they are of.
#[derive(Default)]
struct Page(BTreeMap<&'static str, Vec<Metric>>);

impl Page {
    fn process(&mut self, facts: &Facts) {
        let features = facts.build.features.join(",");
        let build = [facts.build.version.as_str(), features.as_str()];
        self.gauge("build_info", &build, 1.0);
        let started = humantime::parse_rfc3339(&facts.started_at).map_or(0.0, unix_s);
        self.gauge("start_timestamp_seconds", &[], started);
        self.gauge("live", &[], truth(facts.live));
        self.gauge("kafka_up", &[], truth(facts.kafka.reachable));
        let away_s = facts.kafka.away_s.unwrap_or(0.0);
        self.gauge("kafka_away_seconds", &[], away_s);
        // as many as topics are counted apart: their names come from rows
        for paused in facts.kafka.topics_paused.iter().take(super::TOPICS_MAX) {
            self.gauge("topic_paused", &[&paused.topic, &paused.reason], 1.0);
        }
    }

    /// What is the same from every relay of the table.
    fn table(&mut self, outbox: &Outbox) {
        let name = outbox.outbox.as_str();
        let database = &outbox.database;
        self.gauge("database_up", &[name], truth(database.reachable));
        let away_s = database.away_s.unwrap_or(0.0);
        self.gauge("database_away_seconds", &[name], away_s);
        self.known("clock_offset_seconds", name, database.clock_offset_s);
        self.known("sample_age_seconds", name, database.sample_age_s);
        for state in State::ALL {
            let is = truth(outbox.state == state);
            self.gauge("state", &[name, state.name()], is);
        }
        self.known("backlog_events", name, outbox.backlog.events.map(as_f64));
        if outbox.backlog.events.is_some() {
            let estimate = truth(!outbox.backlog.exact);
            self.gauge("backlog_is_estimate", &[name], estimate);
        }
        self.known(
            "oldest_pending_age_seconds",
            name,
            outbox.oldest_pending_age_s,
        );
        for parked in &outbox.parked_rows.rows {
            let reason = parked.reason.as_deref().unwrap_or("");
            let rows = as_f64(parked.rows);
            self.gauge("parked_rows", &[name, &parked.state, reason], rows);
        }
        let parked = &outbox.parked_rows;
        self.known("blocked_keys", name, parked.blocked_keys.map(as_f64));
        if parked.blocked_keys.is_some() {
            let age = parked.oldest_blocked_age_s.unwrap_or(0.0);
            self.gauge("oldest_blocked_age_seconds", &[name], age);
        }
        for freshness in &outbox.freshness {
            let labels = [name, freshness.topic.as_deref().unwrap_or("")];
            self.gauge("freshness_budget_seconds", &labels, freshness.budget_s);
            if let Some(staleness) = freshness.staleness_s {
                self.gauge("staleness_seconds", &labels, staleness);
            }
        }
        self.known("lanes", name, outbox.lanes.map(f64::from));
    }

    /// What this relay does and did.
    fn relay(&mut self, outbox: &Outbox, counted: &Counted) {
        let name = outbox.outbox.as_str();
        self.gauge("lanes_held", &[name], f64::from(outbox.lanes_held));
        self.counter("lanes_taken_total", &[name], counted.lanes_taken);
        let count = |many: usize| as_f64(u64::try_from(many).unwrap_or(u64::MAX));
        self.gauge("workers", &[name], count(outbox.workers.count));
        self.gauge("workers_stuck", &[name], count(outbox.workers.stuck));
        if let Some(written) = outbox.written {
            self.counter("events_written_total", &[name], written);
        }
        for (topic, of_topic) in &counted.topics {
            let labels = [name, topic.as_str()];
            self.counter("events_published_total", &labels, of_topic.published);
            self.counter("events_late_total", &labels, of_topic.late);
            self.histogram("event_lag_seconds", &labels, &of_topic.lag);
        }
        self.counter("publish_attempts_total", &[name], counted.attempts);
        for (class, errors) in &counted.errors {
            self.counter("publish_errors_total", &[name, class], *errors);
        }
        self.histogram("publish_duration_seconds", &[name], &counted.publish);
        let last = counted.last_publish.map_or(0.0, unix_s);
        self.gauge("last_publish_timestamp_seconds", &[name], last);
        for (reason, parked) in &counted.parked {
            self.counter("rows_parked_total", &[name, reason], *parked);
        }
        for ((event_type, outcome), rows) in &counted.violations {
            self.counter(
                "contract_violations_total",
                &[name, event_type, outcome],
                *rows,
            );
        }
        if let Some(contracts) = &outbox.contracts {
            self.gauge("contracts_info", &[name, &contracts.digest], 1.0);
        }
        self.counter("rows_behind_total", &[name], counted.behind);
        self.counter("rows_purged_total", &[name], counted.purged);
        for poll in Poll::ALL {
            let polls = counted.polls.get(&poll).copied().unwrap_or(0);
            self.counter("polls_total", &[name, poll.name()], polls);
        }
        self.histogram("poll_batch_events", &[name], &counted.batch);
        for (op, queries) in &counted.queries {
            self.histogram("db_query_duration_seconds", &[name, op], queries);
        }
    }

    /// A gauge of an outbox, where its value is known.
    fn known(&mut self, name: &str, outbox: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.gauge(name, &[outbox], value);
        }
    }

    fn gauge(&mut self, name: &str, labels: &[&str], value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        self.add(name, labels, |metric| metric.set_gauge(gauge));
    }

    fn counter(&mut self, name: &str, labels: &[&str], value: u64) {
        let mut counter = Counter::default();
        counter.set_value(as_f64(value));
        self.add(name, labels, |metric| metric.set_counter(counter));
    }

    fn histogram(&mut self, name: &str, labels: &[&str], value: &Histogram) {
        let bucket = |(bound, count): (f64, u64)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        };
        let mut histogram = HistogramValue::default();
        histogram.set_bucket(value.cumulative().map(bucket).collect());
        histogram.set_sample_count(value.count());
        histogram.set_sample_sum(value.sum());
        self.add(name, labels, |metric| metric.set_histogram(histogram));
    }

    /// Adds a sample of the metric `name`, which must be defined with as many labels.
    fn add(&mut self, name: &str, values: &[&str], set: impl FnOnce(&mut Metric)) {
        let named = |it: &&Definition| it.name.strip_prefix("outbox_relay_") == Some(name);
        let Some(definition) = ALL.iter().find(named) else {
            debug_assert!(false, "no metric is called {name}");
            return;
        };
        debug_assert_eq!(definition.labels.len(), values.len(), "{name}");
        let label = |(name, value): (&&str, &&str)| {
            let mut label = LabelPair::default();
            label.set_name((*name).to_owned());
            label.set_value((*value).to_owned());
            label
        };
        let mut metric = Metric::default();
        metric.set_label(definition.labels.iter().zip(values).map(label).collect());
        set(&mut metric);
        self.0.entry(definition.name).or_default().push(metric);
    }

    fn print(mut self) -> String {
        let mut families = Vec::new();
        for definition in ALL {
            let Some(samples) = self.0.remove(definition.name) else {
                continue;
            };
            let mut family = MetricFamily::default();
            family.set_name(definition.name.to_owned());
            family.set_help(definition.help.to_owned());
            family.set_field_type(definition.kind);
            family.set_metric(samples);
            families.push(family);
        }
        let text = TextEncoder::new().encode_to_string(&families);
        // it refuses families without samples alone
        text.unwrap_or_else(|error| format!("# {error}\n"))
    }
}

fn truth(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// docs/metrics.md.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(INTRODUCTION);
    for definition in ALL {
        let labels: Vec<String> = definition.labels.iter().map(|l| format!("`{l}`")).collect();
        let kind = format!("{:?}", definition.kind).to_lowercase();
        // Writing to a string cannot fail.
        let labels = match labels.join(", ") {
            none if none.is_empty() => none,
            labels => format!(" {labels}"),
        };
        writeln!(
            text,
            "| `{}` | {kind} |{labels} | {} | {} |",
            definition.name, definition.over, definition.help
        )
        .unwrap_or_default();
    }
    text
}

const INTRODUCTION: &str = r#"# Metrics

`GET /metrics` on `[http] listen`, in the Prometheus text format. Every name begins with `outbox_relay_`; times are
seconds, points in time are Unix seconds.

**Two kinds.** What a relay *did* is its own: add it up over relays (`sum`). What a *table* holds is the same from every
relay that serves it, however many there are: take `max by (outbox)`, never `sum`. The column "over relays" says which.

**Bounded labels.** `outbox` is a table of the config. `topic` is a topic name; beyond 50 topics of an outbox the rest
is `other`, and likewise `event_type`. `reason`, `class`, `state`, `op`, `outcome` and `result` come from the lists below. No key, event id or payload is
ever a label.

**Cost.** A scrape asks the database nothing. The table-wide values are sampled by one task for each outbox, on one
connection of its own, every `relay.sample_interval`: the first row of each lane, and a count of at most 10,000 rows;
beyond that the backlog is an estimate. Ages are computed at scrape time, so they go on rising while the database
hangs.

| metric | type | labels | over relays | help |
|---|---|---|---|---|
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_what_the_relay_exports() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let written = std::fs::read_to_string(path).unwrap();
        let wanted = reference();
        if written != wanted {
            let put = std::env::temp_dir().join("metrics.md");
            std::fs::write(&put, &wanted).unwrap();
            panic!(
                "docs/metrics.md is not what the code says; {} is",
                put.display()
            );
        }
    }

    #[test]
    fn names_and_units_are_as_prometheus_wants_them() {
        for definition in ALL {
            let name = definition.name;
            let counts = definition.kind == MetricType::COUNTER;
            assert_eq!(name.ends_with("_total"), counts, "{name}");
            for unit in ["_ms", "_us", "_kb", "_count", "_sum", "_bucket"] {
                assert!(!name.ends_with(unit), "{name}");
            }
            assert!(definition.help.ends_with('.'), "{name}: a sentence");
            assert!(["sum", "max", "min"].contains(&definition.over), "{name}");
            // what does not add up says so where people read it
            let table_wide = definition.help.contains("same from every relay")
                || definition.help.contains("ake max, not sum");
            assert!(!table_wide || definition.over == "max", "{name}");
            for key in ["key", "id", "event_id", "aggregate_id"] {
                assert!(!definition.labels.contains(&key), "{name}");
            }
        }
        let mut names: Vec<_> = ALL.iter().map(|definition| definition.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
