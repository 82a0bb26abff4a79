//! `outbox-relay inspect`: where one event is.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::args::ConfigArgs;
use super::changing::{broken, plain};
use super::{Exit, fail, say};
use crate::config::{Config, Outbox};
use crate::route::Router;
use crate::sink::{Found, Search, search};
use crate::source::{BEFORE_MAX, Lookup, OutboxRow, Whereabouts};

/// Options of `inspect`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// The event's id
    #[arg(value_name = "EVENT_ID")]
    id: Uuid,

    /// Which database, which tables, which Kafka.
    #[command(flatten)]
    pub config: ConfigArgs,

    /// As a JSON object
    #[arg(long)]
    json: bool,

    /// Do not look into Kafka for an event that is published
    #[arg(long)]
    no_kafka: bool,

    /// Most records of its partition to read
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    records: u64,
}

/// How long before it was marked a record may have been made: a batch's time, and clocks that differ.
const EARLIER_MS: i64 = 15 * 60 * 1000;
/// The longest look into Kafka.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(30);

/// Looks for the event in every outbox of the config.
pub async fn run(args: Args, config: Config) -> Exit {
    match Box::pin(inspect(&args, &config)).await {
        Ok(exit) | Err(exit) => exit,
    }
}

async fn inspect(args: &Args, config: &Config) -> Result<Exit, Exit> {
    let mut lookup = Lookup::new(&config.database).map_err(broken)?;
    for outbox in &config.outboxes {
        let found = lookup.find(outbox, args.id).await.map_err(broken)?;
        if found.row.is_none() && found.parked.is_none() && found.audit.is_empty() {
            continue;
        }
        let encoding = lookup.encoding(outbox).await.map_err(broken)?;
        let known = outbox.written_by(&encoding);
        let told = tell(args, config, &known, &found).await;
        return Ok(match args.json {
            true => say(&format!("{told}\n")),
            false => say(&lines(&told)),
        });
    }
    let deleted = "; rows that are published are deleted under on_published = \"delete\", or purged, or \
                   older than a history's retention: then only the topic has it";
    if args.json {
        let told = json!({ "event_id": args.id.to_string(), "state": "unknown" });
        say(&format!("{told}\n"));
    }
    let line = format!("{}: in no outbox, and not parked{deleted}", args.id);
    Ok(fail(Exit::Failed, &line))
}

async fn tell(args: &Args, config: &Config, outbox: &Outbox, found: &Whereabouts) -> Value {
    let mut told = json!({
        "event_id": args.id.to_string(),
        "outbox": outbox.table.to_string(),
        "state": state(found),
    });
    if let Some(row) = &found.row {
        let topic = Router::of(outbox).topic(&row.event);
        let topic = topic.map(std::borrow::Cow::into_owned);
        told["seq"] = row.event.seq.into();
        told["aggregate_type"] = (&*row.event.aggregate_type).into();
        told["aggregate_id"] = row.event.aggregate_id.as_deref().into();
        told["event_type"] = (&*row.event.event_type).into();
        told["topic"] = topic.clone().ok().into();
        match &row.published_at {
            None => pending(&mut told, row, found, topic.as_deref().ok()),
            Some(at) => {
                told["published_at"] = at.as_str().into();
                told["history"] = row.history.clone().into();
                if let (Ok(topic), false) = (topic, args.no_kafka) {
                    told["kafka"] = in_kafka(args, config, outbox, row, topic).await;
                }
            }
        }
    }
    if let Some(parked) = &found.parked {
        told["parked"] = json!({
            "parked_id": parked.parked_id,
            "state": parked.state,
            "reason_class": parked.reason_class,
            "reason": parked.reason,
            "parked_at": parked.parked_at,
            "before": parked.before,
            "topic": parked.topic,
        });
    }
    let entry = |(id, command, at, by): &(i64, String, String, String)| json!({ "audit_id": id, "command": command, "at": at, "by": by });
    told["audit"] = found.audit.iter().map(entry).collect();
    told
}

fn state(found: &Whereabouts) -> &'static str {
    match (&found.row, &found.parked) {
        (Some(row), _) if row.published_at.is_some() => "published",
        (Some(row), _) => match &row.locked_by {
            Some(locker) if locker.is_relay() => "in_flight",
            _ => "pending",
        },
        (None, Some(_)) => "parked",
        (None, None) => "gone",
    }
}

fn pending(told: &mut Value, row: &OutboxRow, found: &Whereabouts, topic: Option<&str>) {
    told["lane"] = row.lane.into();
    told["before"] = row.before.into();
    told["before_is_at_least"] = (row.before >= BEFORE_MAX).into();
    if let Some(locker) = &row.locked_by {
        told["locked_by"] = json!({
            "pid": locker.pid,
            "application": locker.application,
            "role": locker.role,
            "transaction_s": locker.seconds,
        });
    }
    let holds = |paused: &&String| paused.is_empty() || topic == Some(paused.as_str());
    if let Some(paused) = found.paused.iter().find(holds) {
        told["paused"] = match paused.as_str() {
            "" => "outbox".into(),
            _ => "topic".into(),
        };
    }
}

async fn in_kafka(
    args: &Args,
    config: &Config,
    outbox: &Outbox,
    row: &OutboxRow,
    topic: String,
) -> Value {
    if config.kafka.brokers.is_empty() {
        return json!({ "looked": false, "why": "the config has no brokers" });
    }
    let wanted = Search {
        topic,
        key: outbox
            .encoding
            .key(row.event.key())
            .into_owned()
            .into_bytes(),
        id_header: outbox.encoding.id_header().to_owned(),
        event_id: outbox.encoding.id_text(args.id),
        from_ms: row
            .published_ms
            .unwrap_or(0)
            .saturating_sub(EARLIER_MS)
            .max(0),
        records_max: args.records,
        timeout: SEARCH_TIMEOUT,
    };
    match search(&config.kafka, wanted).await {
        Ok(Found::At {
            partition,
            offset,
            replayed,
        }) => {
            json!({ "found": true, "partition": partition, "offset": offset, "replayed": replayed })
        }
        Ok(Found::Nowhere {
            partition,
            records,
            to_the_end,
        }) => json!({
            "found": false, "partition": partition, "records_read": records, "to_the_end": to_the_end,
            "why": match to_the_end {
                true => "it is not there any more: the topic's retention or compaction took it, its number of \
                         partitions or the routing changed, or another relay's clock is far off",
                false => "more records came since than were read: raise --records",
            },
        }),
        Err(why) => json!({ "looked": false, "why": why }),
    }
}

/// A line for each fact that there is.
fn lines(told: &Value) -> String {
    let mut text = String::new();
    let empty = serde_json::Map::new();
    for (name, value) in told.as_object().unwrap_or(&empty) {
        let shown = match value {
            Value::Null | Value::Bool(false) => continue,
            Value::Array(entries) if entries.is_empty() => continue,
            Value::String(text) => plain(text),
            Value::Object(parts) => {
                let part = |(name, value): (&String, &Value)| match value {
                    Value::Null => None,
                    Value::String(text) => Some(format!("{name} {}", plain(text))),
                    other => Some(format!("{name} {other}")),
                };
                parts.iter().filter_map(part).collect::<Vec<_>>().join(", ")
            }
            other => plain(&other.to_string()),
        };
        text.push_str(&format!("{name:<15} {shown}\n"));
    }
    text
}

const HELP: &str = "\
Examples:
  outbox-relay inspect 0c0e0f5e-… --config relay.toml
  outbox-relay inspect 0c0e0f5e-… --config relay.toml --json | jq .kafka

States: pending (its lane, how many rows of its aggregate are before it, who has it locked, whether it is
paused), in_flight (a relay has it in hand), published (when it was marked, its history if it was moved to one, and where Kafka has it), parked
(why, and what is before it), gone (only the audit knows it). Payloads are never shown.

Kafka is read from some time before the row was marked, in the one partition its key belongs to.

Exit codes: 0 found; 1 in no outbox of the config, and not parked; 64 no id of an event; 69 the database
cannot be reached; 78 bad config, or not migrated.";
