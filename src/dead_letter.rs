//! Parked row → record of the dead-letter topic. Pure.
//!
//! The record is the event's own, key, value and headers, with the reason behind its headers, so that
//! whatever reads the events can read their dead letters. One that the topic does not take is cut
//! down to what tells where the row is: the parked row is the truth, the letter only points to it.

use crate::record::{Header, Record};

/// What the names of the relay's own headers begin with.
const PREFIX: &str = "outbox_relay_";

/// A parked row, as far as its letter tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Its id among the parked rows.
    pub parked_id: i64,
    /// The table it came from.
    pub outbox: String,
    /// `blocked` or `dead`.
    pub state: String,
    /// Why, in one word.
    pub reason_class: Option<String>,
    /// Why, in a sentence; it holds no payload.
    pub reason: Option<String>,
    /// Its place in the outbox.
    pub seq: i64,
    /// The kind of aggregate.
    pub aggregate_type: String,
    /// When it was parked, in UTC.
    pub parked_at: String,
    /// Where it should have gone; `None`: no legal topic was found.
    pub topic: Option<String>,
    /// The event as it would have been sent, to no topic in particular.
    pub record: Record<'static>,
}

impl Letter {
    /// The record for the topic `topic`.
    #[must_use]
    pub fn record<'a>(&'a self, topic: &'a str) -> Record<'a> {
        let mut record = self.record.by_ref();
        record.topic = topic.into();
        // a row parked by an older version may have such of its own
        let headers = record.headers.to_mut();
        headers.retain(|header| !header.name.starts_with(PREFIX));
        headers.extend(self.headers());
        record
    }

    /// The record without its value and the event's own headers but the first two, its id and type.
    #[must_use]
    pub fn stub<'a>(&'a self, topic: &'a str) -> Record<'a> {
        let mut record = self.record(topic);
        let headers = record.headers.to_mut();
        headers.retain(|header| is_ours(&header.name) || header.name.starts_with("event_"));
        let bytes = self.record.value.as_ref().map_or(0, |value| value.len());
        headers.push(header("value_omitted_bytes", bytes.to_string()));
        // not null: that would be a tombstone
        record.value = Some(Vec::new().into());
        record
    }

    fn headers(&self) -> Vec<Header<'static>> {
        let some = |name, value: &Option<String>| value.clone().map(|value| header(name, value));
        let told = [
            Some(header("outbox", self.outbox.clone())),
            Some(header("parked_id", self.parked_id.to_string())),
            Some(header("seq", self.seq.to_string())),
            Some(header("state", self.state.clone())),
            some("reason_class", &self.reason_class),
            some("reason", &self.reason),
            Some(header("aggregate_type", self.aggregate_type.clone())),
            some("topic", &self.topic),
            Some(header("parked_at", self.parked_at.clone())),
        ];
        told.into_iter().flatten().collect()
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

fn header(name: &str, value: String) -> Header<'static> {
    Header {
        name: format!("{PREFIX}{name}").into(),
        value: Some(value.into_bytes().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> Letter {
        let own = |name: &str, value: &str| Header {
            name: name.to_owned().into(),
            value: Some(value.as_bytes().to_vec().into()),
        };
        Letter {
            parked_id: 7,
            outbox: "public.outbox".into(),
            state: "dead".into(),
            reason_class: Some("too_large".into()),
            reason: Some("for the test".into()),
            seq: 42,
            aggregate_type: "Order".into(),
            parked_at: "2026-01-02T03:04:05.000000Z".into(),
            topic: Some("order-events".into()),
            record: Record {
                topic: "order-events".into(),
                key: b"o-1".to_vec().into(),
                value: Some(b"payload".to_vec().into()),
                headers: vec![
                    own("event_id", "1"),
                    own("trace", "t"),
                    own("outbox_relay_seq", "9"),
                    own("event_type", "OrderPaid"),
                ]
                .into(),
            },
        }
    }

    fn text(record: &Record<'_>) -> Vec<String> {
        let utf8 = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let shown = |h: Header<'_>| {
            format!(
                "{}={}",
                h.name,
                h.value.as_deref().map_or_else(String::new, utf8)
            )
        };
        record.headers.iter().map(shown).collect()
    }

    #[test]
    fn a_letter_is_the_event_and_why_it_was_parked() {
        let letter = letter();
        let record = letter.record("dead");
        assert_eq!((&*record.topic, &*record.key), ("dead", &b"o-1"[..]));
        assert_eq!(record.value.as_deref(), Some(&b"payload"[..]));
        assert_eq!(
            text(&record),
            [
                "event_id=1",
                "trace=t",
                "event_type=OrderPaid",
                "outbox_relay_outbox=public.outbox",
                "outbox_relay_parked_id=7",
                "outbox_relay_seq=42",
                "outbox_relay_state=dead",
                "outbox_relay_reason_class=too_large",
                "outbox_relay_reason=for the test",
                "outbox_relay_aggregate_type=Order",
                "outbox_relay_topic=order-events",
                "outbox_relay_parked_at=2026-01-02T03:04:05.000000Z",
            ]
        );
    }

    #[test]
    fn a_stub_tells_what_it_leaves_out_and_is_no_tombstone() {
        let mut letter = letter();
        letter.record.value = Some(vec![0; 1_000].into());
        let stub = letter.stub("dead");
        assert_eq!(stub.value.as_deref(), Some(&b""[..]));
        assert_eq!(&*stub.key, b"o-1");
        let headers = text(&stub);
        assert!(!headers.contains(&"trace=t".to_owned()));
        assert!(headers.contains(&"event_type=OrderPaid".to_owned()));
        assert!(headers.contains(&"outbox_relay_value_omitted_bytes=1000".to_owned()));
        assert!(stub.size_bytes() < letter.record("dead").size_bytes());
    }
}
