//! A connector's configuration as it is written: what it says, and what of that means nothing here.

use std::collections::BTreeMap;

/// Settings by the names that Kafka Connect has for them.
pub(super) type Written = BTreeMap<String, String>;

/// Reads the JSON of Kafka Connect.
///
/// # Errors
/// It is none.
pub(super) fn connect(text: &str) -> Result<Written, String> {
    let root: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
    let config = root
        .get("config")
        .filter(|it| it.is_object())
        .unwrap_or(&root);
    let settings = config.as_object().ok_or("it is no JSON object")?;
    let plain = |(name, value): (&String, &serde_json::Value)| match value {
        serde_json::Value::String(text) => Some((name.clone(), text.clone())),
        serde_json::Value::Null => None,
        other => Some((name.clone(), other.to_string())),
    };
    Ok(settings.iter().filter_map(plain).collect())
}

/// As `java.util.Properties` reads them, with the names that Kafka Connect has for the same.
pub(super) fn server(text: &str) -> Written {
    let mut written = Written::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let mut line = line.trim_start().to_owned();
        if line.is_empty() || line.starts_with(['#', '!']) {
            continue;
        }
        while line.len() - line.trim_end_matches('\\').len() == 1 {
            line.pop();
            line.push_str(lines.next().unwrap_or_default().trim_start());
        }
        let (name, value) = match line.split_once(['=', ':']) {
            Some((name, value)) => (name.trim().to_owned(), value.trim().to_owned()),
            None => (line.trim().to_owned(), String::new()),
        };
        // an escaped `$`, which Quarkus would otherwise read as a reference
        let value = value.replace("$${", "${").replace("\\\\", "\\");
        let name = ["debezium.source.", "debezium."]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))
            .unwrap_or(&name);
        let name = match name.strip_prefix("sink.kafka.producer.") {
            Some(property) => format!("producer.override.{property}"),
            None => name.to_owned(),
        };
        written.insert(name, value);
    }
    written
}

/// Takes the settings whose names begin with `prefix` out of `written`, by what stands behind it.
pub(super) fn take_under(written: &mut Written, prefix: &str) -> Written {
    let (under, rest) = std::mem::take(written)
        .into_iter()
        .partition::<Written, _>(|(name, _)| name.starts_with(prefix));
    *written = rest;
    let behind =
        |(name, value): (String, String)| Some((name.strip_prefix(prefix)?.to_owned(), value));
    under.into_iter().filter_map(behind).collect()
}

/// Settings that mean nothing to a relay, by how they begin, and why.
pub(super) const NEEDLESS: [(&str, &str); 22] = [
    (
        "slot.",
        "the relay reads the table, not the log: no slot is kept. Drop it after the cutover",
    ),
    (
        "publication.",
        "the relay needs no publication. Drop it after the cutover",
    ),
    ("plugin.name", "the relay reads the table, not the log"),
    (
        "snapshot.",
        "there is no snapshot: each row that waits is published",
    ),
    ("heartbeat.", "there is no slot to move on"),
    ("offset.", "the rows themselves say what is left to publish"),
    ("tombstones.on.delete", "deletes are not seen"),
    (
        "topic.prefix",
        "it names no topic that the router writes to",
    ),
    (
        "database.server.name",
        "it names no topic that the router writes to",
    ),
    (
        "poll.interval.ms",
        "see relay.poll_interval_min and relay.poll_interval_max",
    ),
    ("max.batch.size", "see relay.claim_rows_max"),
    (
        "max.queue.size",
        "see relay.claim_rows_max and relay.claim_bytes_max",
    ),
    (
        "tasks.max",
        "see relay.workers; and any number of relays may run",
    ),
    ("name", "the relay is known by its tables"),
    ("sink.type", "the relay writes to Kafka"),
    (
        "provide.transaction.metadata",
        "there are no topics of metadata",
    ),
    (
        "decimal.handling.mode",
        "columns that travel as headers are as Postgres prints them",
    ),
    (
        "time.precision.mode",
        "columns that travel as headers are as Postgres prints them",
    ),
    (
        "extended.headers.enabled",
        "the headers `__debezium.context.…` are not sent",
    ),
    (
        "errors.",
        "what cannot be published is parked: see outbox.on_rejected",
    ),
    ("quarkus.", "see the sections [http] and [log]"),
    ("schema", "the relay registers no schemas"),
];
