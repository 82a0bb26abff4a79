//! The settings of a producer: what is fixed and why, what is sized, what operators add.

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use super::{outcome, token};
use crate::config::{self, Secret};
use crate::ops::{Mistake, makes};

/// What no operator may change (see `properties`), each with its reason.
const FIXED: &[(&str, &str)] = &[
    // An acknowledged record is on every in-sync replica.
    ("acks", "all"),
    // Retries neither repeat nor reorder what is in the log.
    ("enable.idempotence", "true"),
    // After a refusal nothing later is sent, but for one request that is made already: `opened` sees
    // to that. Each of these two alone lets more successors pass: without the first librdkafka
    // renumbers and goes on, without the second the next requests are already on their way. Drawback:
    // librdkafka puts one partition into a request, so a batch costs one round trip per partition and broker;
    // several producers and workers run side by side instead (see `producers`).
    ("enable.gapless.guarantee", "true"),
    ("max.in.flight.requests.per.connection", "1"),
    // One key, one partition: the one the Java client chooses.
    ("partitioner", "murmur2_random"),
    // For ever: the relay owns the deadline. A message librdkafka gives up on leaves a gap.
    ("message.timeout.ms", "0"),
    // The relay asks for a topic before it writes; one that vanishes later is told soon.
    ("topic.metadata.propagation.max.ms", "3000"),
    // Nobody polls for them, and they pile up.
    ("statistics.interval.ms", "0"),
    // Brokers may ask for telemetry; the relay tells nobody about itself unasked.
    ("enable.metrics.push", "false"),
];

/// What operators may change under `[kafka.properties]`.
const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "outbox-relay"),
    // What is enqueued while a request is in flight is gathered anyway, and there is only ever one. To
    // linger before the first cost a drain 7 % and a steady 500 events a second a third of their latency
    // (`just bench steady`).
    ("linger.ms", "0"),
    ("compression.type", "lz4"),
    // Topics are made by whoever knows their partition count: order rests on it.
    ("allow.auto.create.topics", "false"),
    // Kafka is found again within a second of its return.
    ("reconnect.backoff.ms", "100"),
    ("reconnect.backoff.max.ms", "1000"),
    ("socket.connection.setup.timeout.ms", "5000"),
    ("socket.timeout.ms", "10000"),
    ("socket.keepalive.enable", "true"),
    ("socket.nagle.disable", "true"),
    // Idle connections are closed by brokers as a matter of course.
    ("log.connection.close", "false"),
];

/// A record batch is never larger than this, whatever the topics allow.
const BATCH_BYTES_MAX: usize = 1_000_000;
/// Kafka's own default of `max.message.bytes`. Starting no lower saves a rebuild when the first
/// topic is looked at.
const RECORD_BYTES_DEFAULT: usize = 1_048_588;

/// What a producer is sized by: a change wants a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Most bytes in one record batch: within the smallest limit of the known topics, so that a
    /// batch of records that each fit is never refused for its size.
    batch_bytes: usize,
    /// Most bytes in one record: the largest limit of the known topics.
    record_bytes: usize,
}

impl Sizes {
    /// Sizes for topics whose limits are `limits`, in bytes.
    pub(super) fn of(limits: impl Iterator<Item = usize>) -> Self {
        let start = Self {
            batch_bytes: BATCH_BYTES_MAX,
            record_bytes: RECORD_BYTES_DEFAULT,
        };
        limits.fold(start, |sizes, limit| Self {
            batch_bytes: sizes.batch_bytes.min(limit.max(1)),
            record_bytes: sizes.record_bytes.max(limit),
        })
    }
}

/// How to reach the cluster, and as whom.
pub(super) fn connection(kafka: &config::Kafka) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings.set_log_level(RDKafkaLogLevel::Info);
    for (name, value) in DEFAULTS {
        settings.set(*name, *value);
    }
    for (name, value) in &kafka.properties {
        // an alias of a default must not meet it: librdkafka takes whichever comes last
        let alias_of = match name.as_str() {
            "queue.buffering.max.ms" => Some("linger.ms"),
            "compression.codec" => Some("compression.type"),
            _ => None,
        };
        if let Some(default) = alias_of {
            settings.remove(default);
        }
        // the relay's own, see `token`
        if name == token::PROPERTY {
            continue;
        }
        // what is in a file now is what the broker expects now
        let newer = (kafka.files.get(name)).and_then(|file| Secret::of_file(file).ok());
        settings.set(name, newer.as_ref().unwrap_or(value).expose());
    }
    settings.set("bootstrap.servers", &kafka.brokers);
    settings.set("enable.metrics.push", "false");
    settings
}

/// A producer's settings. Its memory is bounded by one batch: it never holds two.
pub(super) fn producer(kafka: &config::Kafka, relay: &config::Relay, sizes: Sizes) -> ClientConfig {
    const KBYTES_MAX: usize = 2_097_151;
    // librdkafka's own upper limit
    const MESSAGE_BYTES_MAX: usize = 1_000_000_000;
    // A retried row travels beside the claimed ones; a full queue is waited for, so this is no cap.
    const SPARE_ROWS: u32 = 1000;
    let rows = relay
        .claim_rows_max
        .saturating_add(SPARE_ROWS)
        .min(10_000_000);
    let bytes = relay.claim_bytes_max.saturating_add(sizes.record_bytes);
    let kbytes = (bytes / 1024 + 1).min(KBYTES_MAX);
    let mut settings = connection(kafka);
    for (name, value) in FIXED {
        settings.set(*name, *value);
    }
    if makes(Mistake::DefaultPartitioner) {
        settings.set("partitioner", "consistent_random");
    }
    if makes(Mistake::FiveInFlight) {
        settings.set("max.in.flight.requests.per.connection", "5");
    }
    settings
        .set("queue.buffering.max.messages", rows.to_string())
        .set("queue.buffering.max.kbytes", kbytes.to_string())
        .set("batch.size", sizes.batch_bytes.to_string())
        .set(
            "message.max.bytes",
            sizes
                .record_bytes
                .clamp(1000, MESSAGE_BYTES_MAX)
                .to_string(),
        );
    settings
}

/// Whether librdkafka accepts the values in `kafka`, without connecting.
///
/// # Errors
/// Which setting it does not accept, without the value.
pub fn check(kafka: &config::Kafka, relay: &config::Relay) -> Result<(), String> {
    let settings = producer(
        kafka,
        relay,
        Sizes::of([kafka.message_bytes_max].into_iter()),
    );
    if token::is_wanted(kafka) && !kafka.properties.contains_key(token::PROPERTY) {
        return Err(
            "sasl.mechanisms is OAUTHBEARER: name a file with a token by \
                    sasl.oauthbearer.token_file"
                .to_owned(),
        );
    }
    match settings.create_native_config() {
        Ok(_) => Ok(()),
        Err(error) => Err(outcome::in_words(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::testing;

    #[test]
    fn no_property_weakens_what_is_fixed() {
        let mut kafka = testing::kafka("127.0.0.1:1");
        for (name, _) in FIXED {
            kafka
                .properties
                .insert((*name).to_owned(), Secret::new("1"));
        }
        let settings = producer(&kafka, &testing::relay(), Sizes::of([].into_iter()));
        for (name, value) in FIXED {
            assert_eq!(settings.get(name), Some(*value), "{name}");
            assert!(
                super::super::properties::check(name).is_err(),
                "{name} is refused by name too"
            );
        }
        for (name, _) in DEFAULTS {
            assert_eq!(super::super::properties::check(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn batches_stay_within_the_smallest_topic_and_memory_within_a_batch() {
        let kafka = testing::kafka("127.0.0.1:1");
        let relay = testing::relay();
        let get = |limits: &[usize], name: &str| -> usize {
            let settings = producer(&kafka, &relay, Sizes::of(limits.iter().copied()));
            settings.get(name).unwrap().parse().unwrap()
        };
        assert_eq!(get(&[], "batch.size"), 1_000_000);
        assert_eq!(get(&[5_000_000, 10_000], "batch.size"), 10_000);
        assert_eq!(get(&[5_000_000, 10_000], "message.max.bytes"), 5_000_000);
        assert_eq!(get(&[10], "message.max.bytes"), RECORD_BYTES_DEFAULT);
        let kbytes = get(&[5_000_000], "queue.buffering.max.kbytes");
        assert!(kbytes * 1024 > 5_000_000 + relay.claim_bytes_max);
        assert!(kbytes * 1024 < 6_000_000 + relay.claim_bytes_max);
    }

    #[test]
    fn librdkafka_knows_every_setting_we_allow_or_set() {
        let kafka = testing::kafka("127.0.0.1:1");
        assert_eq!(check(&kafka, &testing::relay()), Ok(()));
        let mut kafka = kafka;
        kafka
            .properties
            .insert("linger.ms".into(), Secret::new("soon"));
        let why = check(&kafka, &testing::relay()).unwrap_err();
        assert!(why.contains("linger.ms") && !why.contains("soon"), "{why}");
    }
}
