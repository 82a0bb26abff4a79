//! Which librdkafka settings an operator may set under `[kafka.properties]`. Pure; config asks.
//!
//! The list names what is allowed: a setting nobody has judged is refused. Some that people are
//! likely to try are refused with the reason, so that they know where to turn.

/// Whether the librdkafka setting `name` may be set.
///
/// # Errors
/// Why it may not, as half a sentence that follows the name: "`acks` …".
pub fn check(name: &str) -> Result<(), String> {
    if ALLOWED.contains(&name) {
        return Ok(());
    }
    let refused = REFUSED.iter().find(|(pattern, _)| matches(pattern, name));
    match refused {
        Some((_, why)) => Err((*why).to_owned()),
        None => Err(nearest(name)),
    }
}

/// `pattern` is a whole name, or the start of one where it ends in `*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

fn nearest(name: &str) -> String {
    let close = ALLOWED
        .iter()
        .map(|allowed| (strsim::damerau_levenshtein(allowed, name), allowed))
        .min()
        .filter(|(distance, _)| *distance <= 3);
    match close {
        Some((_, allowed)) => {
            format!("is not a setting the relay passes on; is `{allowed}` meant?")
        }
        None => "is not among the settings the relay passes on to librdkafka".to_owned(),
    }
}

/// Reach, identity, encryption, and speed: none of these can lose, repeat or reorder a record.
#[rustfmt::skip]
const ALLOWED: &[&str] = &[
    // who we are and whom we reach
    "client.id", "client.rack", "client.dns.lookup", "broker.address.family", "broker.address.ttl",
    "allow.auto.create.topics",
    // connections
    "connections.max.idle.ms", "log.connection.close", "reconnect.backoff.ms",
    "reconnect.backoff.max.ms", "socket.connection.setup.timeout.ms", "socket.keepalive.enable",
    "socket.nagle.disable", "socket.receive.buffer.bytes", "socket.send.buffer.bytes",
    "socket.timeout.ms", "request.timeout.ms", "retry.backoff.ms", "retry.backoff.max.ms",
    "metadata.max.age.ms", "topic.metadata.refresh.interval.ms",
    // batching and compression
    "batch.num.messages", "compression.codec", "compression.level", "compression.type", "linger.ms",
    "queue.buffering.max.ms",
    // encryption
    "security.protocol", "ssl.ca.location", "ssl.ca.pem", "ssl.certificate.location",
    "ssl.certificate.pem", "ssl.cipher.suites", "ssl.crl.location", "ssl.curves.list",
    "ssl.endpoint.identification.algorithm", "enable.ssl.certificate.verification",
    "ssl.key.location", "ssl.key.password", "ssl.key.pem", "ssl.keystore.location",
    "ssl.keystore.password", "ssl.sigalgs.list",
    // authentication
    "sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.password",
    // the relay's own name
    "sasl.oauthbearer.token",
];

const CODE: &str = "would let the config file run code in the relay";
const ORDER: &str = "is fixed by the relay: order and acknowledgement rest on it";
const DEADLINE: &str =
    "is fixed by the relay, which keeps the deadline itself: set `relay.publish_timeout`";
const RETRIES: &str =
    "is fixed by the relay: Kafka's passing faults are retried for as long as they last";
const REPORTS: &str = "is fixed by the relay, which needs every delivery report";
const BOUNDS: &str = "follows from `relay.claim_rows_max` and `relay.claim_bytes_max`: set those";

const TOKEN: &str = "is not passed on: name a file with a token by `sasl.oauthbearer.token_file`, and let somebody renew it";

/// Refused by name, each with the reason; a `*` at the end stands for any rest.
const REFUSED: &[(&str, &str)] = &[
    ("plugin.library.paths", CODE),
    ("sasl.kerberos.kinit.cmd", CODE),
    ("ssl.engine.*", CODE),
    ("ssl_engine_*", CODE),
    ("ssl.providers", CODE),
    ("interceptors", CODE),
    ("opaque", CODE),
    ("acks", ORDER),
    ("request.required.acks", ORDER),
    ("enable.idempotence", ORDER),
    ("enable.gapless.guarantee", ORDER),
    ("max.in.flight*", ORDER),
    (
        "partitioner*",
        "is fixed by the relay: one key belongs in the partition the Java client would choose",
    ),
    (
        "sticky.partitioning.linger.ms",
        "has no effect: every record has a key",
    ),
    ("msg_order_cmp", ORDER),
    ("queuing.strategy", ORDER),
    (
        "transactional.id",
        "would turn on transactions, which the relay does not use",
    ),
    (
        "transaction.timeout.ms",
        "belongs to transactions, which the relay does not use",
    ),
    ("message.timeout.ms", DEADLINE),
    ("delivery.timeout.ms", DEADLINE),
    ("retries", RETRIES),
    ("message.send.max.retries", RETRIES),
    (
        "topic.metadata.propagation.max.ms",
        "is fixed by the relay, which pauses an unknown topic itself",
    ),
    ("delivery.report.only.error", REPORTS),
    ("dr_cb", REPORTS),
    ("dr_msg_cb", REPORTS),
    ("produce.offset.report", REPORTS),
    ("queue.buffering.max.messages", BOUNDS),
    ("queue.buffering.max.kbytes", BOUNDS),
    ("queue.buffering.backpressure.threshold", BOUNDS),
    (
        "batch.size",
        "is fixed by the relay, which keeps it within the smallest topic limit",
    ),
    ("message.copy.max.bytes", BOUNDS),
    (
        "message.max.bytes",
        "has a key of its own: set `kafka.message_bytes_max`",
    ),
    (
        "max.request.size",
        "has a key of its own: set `kafka.message_bytes_max`",
    ),
    (
        "bootstrap.servers",
        "has a key of its own: set `kafka.brokers`",
    ),
    (
        "metadata.broker.list",
        "has a key of its own: set `kafka.brokers`",
    ),
    (
        "test.mock.*",
        "would replace the real brokers by pretended ones: events would be lost",
    ),
    (
        "api.version.*",
        "is fixed by the relay: records with headers need the brokers' own answer",
    ),
    (
        "broker.version.fallback",
        "is fixed by the relay: records with headers need the brokers' own answer",
    ),
    (
        "statistics.interval.ms",
        "is off: the relay has metrics of its own",
    ),
    (
        "enable.metrics.push",
        "is off: the relay tells nobody about itself unasked",
    ),
    (
        "debug",
        "can print what is in the records: set `RUST_LOG` instead",
    ),
    ("log_level", "is set by the relay: use `RUST_LOG`"),
    ("log.*", "is set by the relay: use `RUST_LOG`"),
    ("enable.random.seed", "is fixed by the relay"),
    (
        "sasl.kerberos.*",
        "needs GSSAPI, which the relay is built without",
    ),
    ("sasl.oauthbearer.*", TOKEN),
    ("enable.sasl.oauthbearer.*", TOKEN),
    ("group.*", "belongs to consumers"),
    ("auto.*", "belongs to consumers"),
    ("fetch.*", "belongs to consumers"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_code_breaks_a_promise_or_fakes_a_broker_is_refused() {
        for (name, word) in [
            ("plugin.library.paths", "code"),
            ("sasl.kerberos.kinit.cmd", "code"),
            ("ssl.engine.location", "code"),
            ("ssl.engine.id", "code"),
            ("acks", "order"),
            ("request.required.acks", "order"),
            ("enable.idempotence", "order"),
            ("max.in.flight", "order"),
            ("max.in.flight.requests.per.connection", "order"),
            ("enable.gapless.guarantee", "order"),
            ("partitioner", "partition"),
            ("message.timeout.ms", "relay.publish_timeout"),
            ("delivery.timeout.ms", "relay.publish_timeout"),
            ("retries", "retried"),
            ("message.send.max.retries", "retried"),
            ("delivery.report.only.error", "report"),
            ("dr_msg_cb", "report"),
            ("transactional.id", "transactions"),
            ("test.mock.num.brokers", "pretended"),
            ("test.mock.broker.rtt", "pretended"),
            ("bootstrap.servers", "kafka.brokers"),
            ("metadata.broker.list", "kafka.brokers"),
            ("message.max.bytes", "kafka.message_bytes_max"),
            ("queue.buffering.max.kbytes", "relay.claim_bytes_max"),
        ] {
            let why = check(name).unwrap_err();
            assert!(why.contains(word), "{name}: {why}");
        }
    }

    #[test]
    fn a_name_nobody_judged_is_refused_and_a_slip_is_helped() {
        assert!(check("some.future.setting").is_err());
        assert!(check("").is_err());
        assert!(check("ACKS").is_err());
        let why = check("sasl.pasword").unwrap_err();
        assert!(why.contains("`sasl.password`"), "{why}");
    }

    #[test]
    fn reach_identity_encryption_and_speed_are_the_operators() {
        for name in ["sasl.password", "ssl.ca.location", "linger.ms", "client.id"] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn nothing_is_both_allowed_and_refused() {
        for name in ALLOWED {
            let refused = REFUSED.iter().find(|(pattern, _)| matches(pattern, name));
            // each the exception to a pattern
            let exceptions = ["log.connection.close", "sasl.oauthbearer.token"];
            assert!(refused.is_none() || exceptions.contains(name), "{name}");
        }
    }
}
