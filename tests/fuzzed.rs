//! What a fuzzer is let loose on: the text of a config file, and the columns of a row. `cargo test` gives
//! each a few thousand inputs without a fuzzer's guidance; `just fuzz` goes on for as long as one likes
//! (the crate in `fuzz/` is made of these same functions).

use std::borrow::Cow;

use outbox_relay::config::{Config, Environment, Flags, Purpose, Settings};
use outbox_relay::event::Event;
use outbox_relay::record::Encoding;
use outbox_relay::route::{Router, Template};
use uuid::Uuid;

/// Is in what must not be told.
const CANARY: &str = "canary-4711";

/// No text of a config file makes the relay panic, and what it refuses it says something about.
pub(crate) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let nothing: [(&str, &str); 0] = [];
    let settings = Settings::of_text(text, &Environment::of(nothing), &Flags::default());
    for purpose in [
        Purpose::Run,
        Purpose::Migrate,
        Purpose::Print,
        Purpose::Show,
    ] {
        match settings.config(purpose) {
            Ok(config) => meant(&config),
            Err(refusal) => assert!(!refusal.to_string().trim().is_empty()),
        }
    }
    // `config print` shows what was written, right or wrong
    drop(settings.print());
}

/// A config that was taken makes sense.
fn meant(config: &Config) {
    for outbox in &config.outboxes {
        assert!(!outbox.table.quoted().is_empty());
        assert!(outbox.lanes.is_power_of_two());
    }
    let shown = format!("{config:?}");
    assert!(!shown.contains(CANARY), "a secret shows: {shown}");
}

/// The columns of a row, put one behind the other with 0xff between, which no UTF-8 text has: topic
/// template, aggregate type, aggregate id, event type, headers, own topic, payload. One that is absent, or
/// only NUL, which no text of Postgres holds, is null.
///
/// A row is routed and encoded as its columns say, or refused for a reason that tells none of its data.
pub(crate) fn row(data: &[u8]) {
    let mut columns = data.split(|byte| *byte == 0xff);
    let mut next = || columns.next().filter(|column| *column != b"\0");
    let texts: [Option<&str>; 6] = std::array::from_fn(|_| {
        next().map(|bytes| {
            std::str::from_utf8(bytes)
                .unwrap_or("not text")
                .trim_matches('\0')
        })
    });
    let [
        template,
        aggregate_type,
        aggregate_id,
        event_type,
        headers,
        topic,
    ] = texts;
    let Ok(template) = Template::parse(template.unwrap_or("${aggregate_type:lower}-events")) else {
        return;
    };
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    let event = Event {
        seq: 1,
        id: Uuid::from_u128(4711),
        aggregate_type: text(aggregate_type).into(),
        aggregate_id: aggregate_id.map(|id| format!("{id}{CANARY}").into()),
        event_type: text(event_type).into(),
        payload: next().map(|bytes| [bytes, CANARY.as_bytes()].concat().into()),
        headers: headers.map(Into::into),
        topic: topic.map(Into::into),
        created_at_us: None,
        parked: None,
    };
    let router = Router::new(template);
    let topic = match router.topic(&event) {
        Ok(topic) => topic,
        Err(reason) => return tells_nothing(&reason.text),
    };
    // org.apache.kafka.common.internals.Topic.validate
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    assert!(
        topic.chars().all(legal) && (1..=249).contains(&topic.len()),
        "{topic:?}"
    );
    assert!(!matches!(&*topic, "." | ".."));
    let usual = Encoding::default();
    let record = match usual.record(&event, Cow::Borrowed(&topic)) {
        Ok(record) => record,
        Err(reason) => return tells_nothing(&reason.text),
    };
    assert_eq!(*record.key, *event.key().as_bytes());
    assert_eq!(
        record.value.as_deref(),
        event.payload.as_deref(),
        "a payload is not touched"
    );
    let id = event.id.to_string();
    let header = |name: &str| record.headers.iter().filter(|h| h.name == name).count();
    assert_eq!((header("event_id"), header("event_type")), (1, 1));
    let first = record.headers.iter().next().and_then(|it| it.value);
    assert_eq!(first.as_deref(), Some(id.as_bytes()));
    for header in record.headers.iter() {
        assert!(
            !header.name.is_empty() && !header.name.contains('\0'),
            "librdkafka takes C strings"
        );
    }
    let again = usual
        .record(&event, Cow::Borrowed(&topic))
        .expect("as before");
    assert_eq!(record, again, "every copy is the same");
    let parked = outbox_relay::source::through_parking(&record.headers);
    assert_eq!(
        parked.ok().as_ref(),
        Some(&record.headers),
        "as it was, after parking"
    );
}

/// A reason goes to the log, where no payload or key may be seen.
fn tells_nothing(reason: &str) {
    assert!(!reason.is_empty());
    assert!(
        !reason.contains(CANARY),
        "{reason:?} tells what the row holds"
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{config, row};

    /// Bytes of the kinds that rows are made of.
    fn column() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            "[a-zA-Z0-9._-]{0,12}".prop_map(String::into_bytes),
            "\\$\\{(aggregate_type|event_type)?(:lower|:upper)?\\}?[a-z.-]{0,5}"
                .prop_map(String::into_bytes),
            "\\{(\"([a-z_]{0,10}|canary-4711)\": ?(null|1|true|\"canary-4711\"|\"[a-zé\\\\n]{0,6}\"|\\[\\]|\\{\\}),? ?){0,4}\\}"
                .prop_map(String::into_bytes),
            any::<String>().prop_map(String::into_bytes),
            any::<Vec<u8>>(),
            Just(vec![0]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn any_row_is_encoded_or_refused(columns in proptest::collection::vec(column(), 0..9)) {
            row(&columns.join(&0xff));
        }

        #[test]
        fn any_text_is_a_config_or_refused(text in prop_oneof![
            any::<String>(),
            "(\\[(database|kafka|relay|\\[outbox\\])\\]\n|[a-z_]{1,12} = (\"[a-z${}:./ ]{0,9}\"|-?[0-9]{1,20}|true|\\[\\]|\\{\\})\n){0,6}",
        ]) {
            config(text.as_bytes());
        }
    }

    /// What the fuzzer begins with, and what it once found.
    #[test]
    fn the_corpus_holds() {
        for (target, of) in [("config", config as fn(&[u8])), ("row", row)] {
            let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("fuzz/seeds")
                .join(target);
            let mut seen = 0;
            for entry in std::fs::read_dir(corpus).unwrap() {
                of(&std::fs::read(entry.unwrap().path()).unwrap());
                seen += 1;
            }
            assert!(seen > 0, "{target} has seeds");
        }
    }
}
