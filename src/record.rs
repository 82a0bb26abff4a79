//! Event + topic → the bytes that travel. Pure, and the same bytes for the same row every time:
//! consumers compare copies, and a repeat must be equal to the first.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::cloudevents::{CloudEvents, Payload};
use crate::config::Layout;
use crate::connect::{Column, Connect};
use crate::event::Event;
use crate::outcome::Reason;

pub use crate::headers::{Header, Headers, Standard};

/// The header with the writer's id of the event, unless its config gives it another name.
pub const EVENT_ID: &str = "event_id";
/// The header with the event's type, by the same rule.
pub const EVENT_TYPE: &str = "event_type";
/// On a copy that somebody had published again: when, in UTC (RFC 3339).
pub const REPLAYED_AT: &str = "outbox_relay_replayed_at";

/// What the names of the relay's further headers begin with: no row may set one.
pub const RESERVED: &str = "outbox_relay_";
/// Most headers that a row may have. Each costs the relay and every consumer far more than its few bytes.
pub const HEADERS_MAX: usize = 1_000;
/// The longest name of a header. Values have the limit of the whole record.
pub const HEADER_NAME_BYTES_MAX: usize = 1_024;

/// One Kafka record, borrowed from its event, or owned where it was parked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// A legal topic name.
    pub topic: Cow<'a, str>,
    /// The aggregate id's bytes. The partition is chosen from them, as the Java client would.
    pub key: Cow<'a, [u8]>,
    /// The payload; `None` is a tombstone.
    pub value: Option<Cow<'a, [u8]>>,
    /// In the order they are sent.
    pub headers: Headers<'a>,
}

/// What is made of a row: which of its columns travel as headers, by which names, and what is a tombstone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// The relay's own headers in the order they are sent; the event's id is always one.
    pub headers: Vec<(Standard, String)>,
    /// Whether a payload of nothing but white space is a tombstone, as a null one is.
    pub tombstone_on_empty_payload: bool,
    /// In whose way it travels.
    pub style: Style,
}

/// In whose way a record travels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Style {
    /// As Postgres prints it.
    #[default]
    Plain,
    /// As Kafka Connect's JsonConverter writes it.
    Connect(Box<Connect>),
    /// As a CloudEvent.
    CloudEvents(Box<CloudEvents>),
}

impl Default for Encoding {
    fn default() -> Self {
        Self {
            headers: vec![
                (Standard::EventId, EVENT_ID.to_owned()),
                (Standard::EventType, EVENT_TYPE.to_owned()),
            ],
            tombstone_on_empty_payload: false,
            style: Style::Plain,
        }
    }
}

impl Encoding {
    /// The name of the header with the event's id.
    #[must_use]
    pub fn id_header(&self) -> &str {
        let id = self.headers.iter().find(|(it, _)| *it == Standard::EventId);
        id.map_or(EVENT_ID, |(_, name)| name)
    }

    /// The same for a table of `layout` that has `columns`.
    ///
    /// # Errors
    /// A sentence for each column that cannot travel so.
    pub fn knowing(&self, layout: &Layout, columns: &[Column]) -> Result<Self, Vec<String>> {
        let mut known = self.clone();
        match &mut known.style {
            Style::Plain => {}
            Style::Connect(connect) => {
                **connect = connect.knowing(layout, &self.headers, columns)?;
            }
            Style::CloudEvents(events) => events.payload = Payload::of(layout, columns),
        }
        Ok(known)
    }

    /// What of it decides the bytes beside the topic, where that is not the plain way: two relays of a table
    /// that agree say the same.
    #[must_use]
    pub fn fingerprint(&self) -> Option<String> {
        match &self.style {
            Style::Plain => None,
            Style::Connect(connect) => Some(format!("formats={}", connect.formats())),
            Style::CloudEvents(events) => Some(format!("cloudevents={}", events.fingerprint())),
        }
    }

    /// The key of the aggregate `id`: the partition is chosen by it.
    #[must_use]
    pub fn key<'a>(&self, id: &'a str) -> Cow<'a, str> {
        match &self.style {
            Style::Connect(connect) => connect.key(id).into(),
            Style::Plain | Style::CloudEvents(_) => id.into(),
        }
    }

    /// What the header with the event's id says.
    #[must_use]
    pub fn id_text(&self, id: Uuid) -> String {
        match &self.style {
            Style::Connect(connect) => {
                let text = connect.header(self.id_header(), &id.to_string());
                String::from_utf8_lossy(&text).into_owned()
            }
            Style::Plain | Style::CloudEvents(_) => id.to_string(),
        }
    }

    /// The relay's own headers of the event with these.
    #[must_use]
    pub fn standard(
        &self,
        id: Uuid,
        seq: i64,
        aggregate_type: &str,
        event_type: &str,
    ) -> Vec<Header<'static>> {
        let header = |(what, name): &(Standard, String)| {
            let text = what.of(id, seq, aggregate_type, event_type).into_owned();
            Header {
                name: name.clone().into(),
                value: Some(match &self.style {
                    Style::Connect(connect) => {
                        connect.header(name, &String::from_utf8_lossy(&text)).into()
                    }
                    Style::Plain | Style::CloudEvents(_) => text.into(),
                }),
            }
        };
        self.headers.iter().map(header).collect()
    }

    /// The record of `event` in `topic`.
    ///
    /// # Errors
    /// The reason to park the row: it has no aggregate id, headers Kafka cannot carry, or cannot travel in the
    /// way that is asked for.
    pub fn record<'a>(
        &'a self,
        event: &'a Event,
        topic: Cow<'a, str>,
    ) -> Result<Record<'a>, Reason> {
        let Some(key) = event.aggregate_id.as_deref() else {
            return Err(Reason::new(
                "no_aggregate_id",
                "the row's aggregate id is null: it has no key to keep its order by",
            ));
        };
        let mut own = Vec::new();
        if let Some(json) = &event.headers {
            self.row_headers(json, &mut own)?;
        }
        let payload = event.payload.as_deref();
        let value = payload.filter(|payload| {
            // what Java's `String.trim` takes away
            !self.tombstone_on_empty_payload || payload.iter().any(|byte| *byte > b' ')
        });
        let record = Record {
            topic,
            key: key.as_bytes().into(),
            value: value.map(Cow::Borrowed),
            headers: Headers::of(&self.headers, event, own),
        };
        match &self.style {
            Style::Plain => Ok(record),
            Style::Connect(connect) => {
                connect.encode(record, event, self.tombstone_on_empty_payload)
            }
            Style::CloudEvents(events) => events.encode(record, event, self.headers.len()),
        }
    }

    /// Adds what the row brings: its own object of headers, or that and the columns placed as headers, as
    /// the claim has them: `[{own} or null, {placed}]`.
    fn row_headers<'a>(&self, json: &'a str, headers: &mut Vec<Header<'a>>) -> Result<(), Reason> {
        if !json.starts_with('[') {
            return self.own_headers(json, headers);
        }
        let (own, placed): (Option<&'a RawValue>, Members<'a>) =
            serde_json::from_str(json).map_err(|_| not_an_object())?;
        self.members(placed, false, headers)?;
        match own {
            Some(own) => self.own_headers(own.get(), headers),
            None => Ok(()),
        }
    }

    /// Adds the row's own headers: a JSON object, each member one header, in the order Postgres printed
    /// them.
    fn own_headers<'a>(&self, json: &'a str, headers: &mut Vec<Header<'a>>) -> Result<(), Reason> {
        let members = serde_json::from_str(json).map_err(|_| not_an_object())?;
        self.members(members, true, headers)
    }

    fn members<'a>(
        &self,
        members: Members<'a>,
        own: bool,
        headers: &mut Vec<Header<'a>>,
    ) -> Result<(), Reason> {
        if members.0.len() > HEADERS_MAX {
            return Err(bad(format!(
                "the row has {} headers; {HEADERS_MAX} are the most",
                members.0.len()
            )));
        }
        for (name, raw) in members.0 {
            if name.is_empty() || name.contains('\0') {
                return Err(bad(
                    "a header of the row has an empty name or one with a NUL".to_owned(),
                ));
            }
            if name.len() > HEADER_NAME_BYTES_MAX {
                return Err(bad(format!(
                    "a header of the row has a name of {} bytes; {HEADER_NAME_BYTES_MAX} are the most",
                    name.len()
                )));
            }
            // the columns placed as headers were compared when the config was read
            if own && self.is_ours(&name) {
                return Err(bad(format!(
                    "the row sets the header `{name}`, and only the relay sets such"
                )));
            }
            let value = header_value(&name, raw)?;
            headers.push(Header { name, value });
        }
        Ok(())
    }

    fn is_ours(&self, name: &str) -> bool {
        let of_style = matches!(self.style, Style::CloudEvents(_)) && CloudEvents::reserves(name);
        name.starts_with(RESERVED) || of_style || self.headers.iter().any(|(_, ours)| ours == name)
    }
}

impl<'a> Record<'a> {
    /// The same record, with a header that says it was published again `at` some time.
    #[must_use]
    pub fn replayed(mut self, at: &str) -> Self {
        // a row parked by an older version may have one of its own
        let headers = self.headers.to_mut();
        headers.retain(|header| header.name != REPLAYED_AT);
        headers.push(Header {
            name: REPLAYED_AT.into(),
            value: Some(at.as_bytes().to_vec().into()),
        });
        self
    }

    /// The same record, borrowed.
    #[must_use]
    pub fn by_ref(&self) -> Record<'_> {
        Record {
            topic: (&*self.topic).into(),
            key: (&*self.key).into(),
            value: self.value.as_deref().map(Cow::Borrowed),
            headers: self.headers.iter().collect(),
        }
    }

    /// Bytes the record takes in a Kafka record batch, uncompressed and rounded up: key, value,
    /// headers, and the most that the v2 format's varints and the batch's own 61-byte header add
    /// (<https://kafka.apache.org/documentation/#recordbatch>).
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        const BATCH_HEADER: usize = 61;
        const RECORD_OVERHEAD: usize = 36;
        const HEADER_OVERHEAD: usize = 10;
        let header = |(name, bytes): (&str, usize)| HEADER_OVERHEAD + name.len() + bytes;
        BATCH_HEADER
            + RECORD_OVERHEAD
            + self.key.len()
            + self.value.as_ref().map_or(0, |value| value.len())
            + self.headers.sizes().map(header).sum::<usize>()
    }
}

/// A string travels as its text, null as a null value, anything else as its JSON text.
fn header_value<'a>(name: &str, raw: &'a RawValue) -> Result<Option<Cow<'a, [u8]>>, Reason> {
    let text = raw.get();
    Ok(match text.as_bytes().first() {
        Some(b'n') => None,
        Some(b'"') => {
            let Text(string) = serde_json::from_str(text)
                .map_err(|_| bad(format!("the row's header `{name}` is not valid text")))?;
            Some(match string {
                Cow::Borrowed(s) => s.as_bytes().into(),
                Cow::Owned(s) => s.into_bytes().into(),
            })
        }
        _ => Some(text.as_bytes().into()),
    })
}

fn bad(text: String) -> Reason {
    Reason::new("bad_header", text)
}

fn not_an_object() -> Reason {
    bad("the row's headers are not a JSON object".to_owned())
}

/// The members of a JSON object as they stand in the text: in order, values unread.
pub(crate) struct Members<'a>(pub(crate) Vec<(Cow<'a, str>, &'a RawValue)>);

/// A JSON string, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::with_capacity(map.size_hint().unwrap_or(4));
                while let Some((Text(name), value)) = map.next_entry()? {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::event::Event;
    use proptest::prelude::*;

    /// With the headers that records have by default.
    fn encode<'a>(event: &'a Event, topic: &'a str) -> Result<Record<'a>, Reason> {
        static USUAL: LazyLock<Encoding> = LazyLock::new(Encoding::default);
        USUAL.record(event, topic.into())
    }

    fn event() -> Event {
        Event {
            seq: 7,
            id: Uuid::from_u128(0x0102_0304),
            aggregate_type: "Order".into(),
            aggregate_id: Some("o-1".into()),
            event_type: "OrderCreated".into(),
            payload: Some(b"{\"n\": 1.50}"[..].into()),
            headers: None,
            topic: None,
            created_at_us: None,
            parked: None,
        }
    }

    fn text(record: &Record<'_>) -> Vec<(String, Option<String>)> {
        let utf8 = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        record
            .headers
            .iter()
            .map(|h| (h.name.to_string(), h.value.as_deref().map(utf8)))
            .collect()
    }

    #[test]
    fn the_id_and_the_type_come_first_and_the_payload_is_untouched() {
        let event = event();
        let record = encode(&event, "order-events").unwrap();
        assert_eq!(
            text(&record),
            [
                (
                    EVENT_ID.into(),
                    Some("00000000-0000-0000-0000-000001020304".into())
                ),
                (EVENT_TYPE.into(), Some("OrderCreated".into())),
            ]
        );
        assert_eq!(record.value.as_deref(), Some(&b"{\"n\": 1.50}"[..]));
        assert_eq!(&*record.key, b"o-1");
        assert_eq!(record.by_ref(), record);
    }

    #[test]
    fn a_replayed_record_differs_in_one_header_alone() {
        let mut event = event();
        event.headers = Some(r#"{"a": "1"}"#.into());
        let plain = encode(&event, "t").unwrap();
        // once more of a copy that was one already
        let mut replayed = plain.clone().replayed("long ago").replayed("today");
        let added = replayed.headers.to_mut().pop().unwrap();
        assert_eq!(
            (&*added.name, added.value.as_deref()),
            (REPLAYED_AT, Some(&b"today"[..]))
        );
        assert_eq!(replayed, plain);
    }

    #[test]
    fn headers_have_a_limit_in_number_and_in_the_length_of_a_name() {
        let encodes = |headers: String| {
            let mut event = event();
            event.headers = Some(headers.into());
            encode(&event, "t").map_err(|reason| reason.class).map(drop)
        };
        let many = |headers: usize| {
            let members: Vec<String> = (0..headers).map(|n| format!("\"{n}\": 1")).collect();
            format!("{{{}}}", members.join(","))
        };
        let long = |bytes: usize| format!("{{\"{}\": 1}}", "n".repeat(bytes));
        assert_eq!(encodes(many(HEADERS_MAX)), Ok(()));
        assert_eq!(encodes(many(HEADERS_MAX + 1)), Err("bad_header"));
        assert_eq!(encodes(long(HEADER_NAME_BYTES_MAX)), Ok(()));
        assert_eq!(encodes(long(HEADER_NAME_BYTES_MAX + 1)), Err("bad_header"));
    }

    #[test]
    fn row_headers_follow_in_their_own_order() {
        let mut event = event();
        event.headers = Some(r#"{"z": "a\u00e9\"", "b": null, "n": 1.50, "o": {"k": [1]}}"#.into());
        let record = encode(&event, "t").unwrap();
        let own = &text(&record)[2..];
        let want = [
            ("z", Some("aé\"")),
            ("b", None),
            ("n", Some("1.50")),
            ("o", Some(r#"{"k": [1]}"#)),
        ];
        let want = want.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
        assert_eq!(own, want);
    }

    #[test]
    fn what_kafka_cannot_carry_is_refused_with_its_reason() {
        for headers in [
            r"[1]",
            r#""text""#,
            r#"{"": "x"}"#,
            r#"{"a\u0000b": "x"}"#,
            r#"{"event_id": "forged"}"#,
            r#"{"event_type": "forged"}"#,
            r#"{"outbox_relay_replayed_at": "forged"}"#,
            r#"{"outbox_relay_": "forged"}"#,
        ] {
            let mut event = event();
            event.headers = Some(headers.into());
            let reason = encode(&event, "t").unwrap_err();
            assert_eq!(reason.class, "bad_header", "{headers}");
            assert!(
                !reason.text.contains("forged"),
                "values stay out of reasons"
            );
        }
        let mut event = event();
        event.aggregate_id = None;
        assert_eq!(encode(&event, "t").unwrap_err().class, "no_aggregate_id");
    }

    /// A header as a writer means it, and the JSON text that says so.
    fn member() -> impl Strategy<Value = (String, Option<String>, String)> {
        let name = prop_oneof![
            4 => any::<String>(),
            1 => Just(String::new()),
            1 => Just(EVENT_ID.to_owned()),
            1 => Just(EVENT_TYPE.to_owned()),
        ];
        let quoted = |text: &String| serde_json::to_string(text).unwrap();
        let value = prop_oneof![
            any::<String>().prop_map(move |text| (Some(text.clone()), quoted(&text))),
            Just((None, "null".to_owned())),
            "(true|false|-?[1-9][0-9]{0,400}|0\\.[0-9]{1,9}e[0-9]{3}|\\[ *\\]|\\{\"a\": \\[1\\]\\})"
                .prop_map(|raw| (Some(raw.clone()), raw)),
        ];
        (name, value).prop_map(|(name, (value, json))| (name, value, json))
    }

    proptest! {
        #[test]
        fn whatever_stands_as_headers_is_carried_or_refused(
            json in prop_oneof![any::<String>(), "[\\[\\]{}:,\"\\\\a0 nullue_-]{0,60}"]
        ) {
            let mut event = event();
            event.headers = Some(json.into());
            match encode(&event, "t") {
                Err(reason) => prop_assert_eq!(reason.class, "bad_header"),
                Ok(record) => {
                    let own = || record.headers.iter().skip(2);
                    prop_assert!(own().all(|h| !h.name.is_empty() && !h.name.contains('\0')));
                    prop_assert!(own().all(|h| h.name != EVENT_ID && h.name != EVENT_TYPE));
                }
            }
        }

        #[test]
        fn an_encoded_record_holds_what_went_in(
            members in proptest::collection::vec(member(), 0..8),
            key in any::<String>(),
            event_type in any::<String>(),
            payload in any::<Option<Vec<u8>>>(),
        ) {
            let quote = |name: &str| serde_json::to_string(name).unwrap();
            let pairs: Vec<String> =
                members.iter().map(|(name, _, json)| format!("{}: {json}", quote(name))).collect();
            let event = Event {
                aggregate_id: Some(key.as_str().into()),
                event_type: event_type.as_str().into(),
                payload: payload.clone().map(Into::into),
                headers: Some(format!(" {{{}}} ", pairs.join(" ,\n")).into()),
                ..event()
            };
            let bad = |name: &str| name.is_empty() || name.contains('\0') || name == EVENT_ID || name == EVENT_TYPE || name.starts_with(RESERVED);
            let refused = members.iter().any(|(name, ..)| bad(name));
            let encoded = encode(&event, "t");
            prop_assert_eq!(encoded.is_err(), refused);
            if let Ok(record) = encoded {
                prop_assert_eq!(&*record.key, key.as_bytes());
                prop_assert_eq!(record.value.as_deref(), payload.as_deref());
                let mut wanted = vec![
                    (EVENT_ID.to_owned(), Some(event.id.to_string())),
                    (EVENT_TYPE.to_owned(), Some(event_type)),
                ];
                wanted.extend(members.into_iter().map(|(name, value, _)| (name, value)));
                prop_assert_eq!(text(&record), wanted);
                prop_assert_eq!(&record.by_ref(), &record);
            }
        }
    }
}
