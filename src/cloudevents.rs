//! Event + plain record → the same as a CloudEvent 1.0, by the Kafka protocol binding 1.0.2
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md>). Pure.
//!
//! *Binary*: the value stays the payload, the attributes are headers. *Structured*: the value is an envelope of
//! JSON, in which a payload of JSON stands as the text that Postgres printed, never written anew. An event
//! without data has no value in either mode: only so is it a tombstone, and the binding knows such as binary
//! ones alone.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;

use crate::config::Layout;
use crate::connect::Column;
use crate::event::Event;
use crate::outcome::Reason;
use crate::record::{Header, Record};
use crate::route::Case;

/// The class of [`Reason`] of a row that cannot be one.
pub const NOT_A_CLOUDEVENT: &str = "not_a_cloudevent";
/// What the names of the attributes' headers begin with.
const PREFIX: &str = "ce_";
/// The header with the media type.
const CONTENT_TYPE: &str = "content-type";
/// Of an envelope.
const STRUCTURED: &str = "application/cloudevents+json; charset=UTF-8";
/// The header that the claim places the row's time in.
pub(crate) const TIME: &str = "ce_time";
/// The headers of a row that become attributes, by the distributed tracing extension.
const TRACING: [&str; 2] = ["traceparent", "tracestate"];

/// Where the attributes stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In headers.
    Binary,
    /// In an envelope of JSON, which is the value.
    Structured,
}

impl Mode {
    /// Those that a config can name.
    pub(crate) const NAMED: [(&'static str, Self); 2] =
        [("binary", Self::Binary), ("structured", Self::Structured)];
}

/// What a payload is, by its column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Payload {
    /// json or jsonb: Postgres holds that it is JSON.
    #[default]
    Json,
    /// Any text.
    Text,
    /// bytea.
    Bytes,
}

impl Payload {
    /// Of a table of `layout` that has `columns`.
    #[must_use]
    pub fn of(layout: &Layout, columns: &[Column]) -> Self {
        let known = columns.iter().find(|column| column.name == layout.payload);
        match known.map(|column| column.type_name.as_str()) {
            None | Some("json" | "jsonb") => Self::Json,
            Some("bytea") => Self::Bytes,
            Some(_) => Self::Text,
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Text => "text/plain",
            Self::Bytes => "application/octet-stream",
        }
    }
}

/// How rows become CloudEvents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudEvents {
    /// Where the attributes stand.
    pub mode: Mode,
    /// The attribute `source`.
    pub source: Words,
    /// The attribute `type`.
    pub event_type: Words,
    /// The attribute `datacontenttype`, where it is not what the payload's column says.
    pub media_type: Option<String>,
    /// What the payload is.
    pub payload: Payload,
}

impl CloudEvents {
    /// Whether the header `name` is one that only the relay sets.
    #[must_use]
    pub fn reserves(name: &str) -> bool {
        let begins = name.get(..PREFIX.len());
        begins.is_some_and(|begin| begin.eq_ignore_ascii_case(PREFIX))
            || name.eq_ignore_ascii_case(CONTENT_TYPE)
    }

    /// All of it that a config says, in one line: two relays that agree say the same.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mode = Mode::NAMED.iter().find(|(_, it)| *it == self.mode);
        let media_type = self.media_type.as_deref().unwrap_or("by type");
        format!(
            "{} source={} type={} datacontenttype={media_type}",
            mode.map_or("", |(name, _)| name),
            self.source.text,
            self.event_type.text,
        )
    }

    /// `record`, which is plain, as a CloudEvent. The relay's own headers, `ours` of them, stay in front.
    ///
    /// # Errors
    /// The reason to park the row: it has no type, say, or its payload is not what the config calls it.
    pub fn encode<'a>(
        &'a self,
        mut record: Record<'a>,
        event: &'a Event,
        ours: usize,
    ) -> Result<Record<'a>, Reason> {
        let headers = record.headers.to_mut();
        let time = headers.iter().position(|header| header.name == TIME);
        let time = time.map(|at| headers.remove(at));
        let is_tombstone = record.value.is_none();
        let attributes = self.attributes(headers, is_tombstone, event, time)?;
        let structured = match (&record.value, self.mode) {
            (Some(payload), Mode::Structured) => Some(self.envelope(&attributes, payload)?),
            _ => None,
        };
        let mut added = Vec::with_capacity(attributes.len() + 1);
        if let Some(envelope) = structured {
            record.value = Some(envelope.into());
            added.push(Header {
                name: CONTENT_TYPE.into(),
                value: Some(STRUCTURED.as_bytes().into()),
            });
        } else {
            for Attribute { name, value } in attributes {
                let name = match name {
                    "datacontenttype" => CONTENT_TYPE.into(),
                    name => format!("{PREFIX}{name}").into(),
                };
                let value = match value {
                    Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                    Cow::Owned(text) => Cow::Owned(text.into_bytes()),
                };
                added.push(Header {
                    name,
                    value: Some(value),
                });
            }
        }
        record.headers.to_mut().splice(ours..ours, added);
        Ok(record)
    }

    /// Each attribute, in the order they travel.
    fn attributes<'a>(
        &'a self,
        headers: &[Header<'a>],
        is_tombstone: bool,
        event: &'a Event,
        time: Option<Header<'a>>,
    ) -> Result<Vec<Attribute<'a>>, Reason> {
        let mut all = Vec::with_capacity(10);
        let mut push = |name, value: Cow<'a, str>| match illegal(&value) {
            Some(why) => Err(Reason::new(
                NOT_A_CLOUDEVENT,
                format!("the attribute {name} of the CloudEvent {why}"),
            )),
            None => {
                all.push(Attribute { name, value });
                Ok(())
            }
        };
        push("specversion", "1.0".into())?;
        push("id", event.id.hyphenated().to_string().into())?;
        push("source", self.source.of(event))?;
        push("type", self.event_type.of(event))?;
        // an attribute cannot be empty, and neither of these is needed
        if !event.key().is_empty() {
            push("subject", event.key().into())?;
        }
        if let Some(time) = time
            .and_then(|time| text(time.value?))
            .filter(|it| is_time(it))
        {
            push("time", time)?;
        }
        if !is_tombstone {
            let media_type = self.media_type.as_deref();
            let media_type = media_type.unwrap_or_else(|| self.payload.media_type());
            push("datacontenttype", media_type.into())?;
        }
        if !event.key().is_empty() {
            push("partitionkey", event.key().into())?;
        }
        for name in TRACING {
            let header = headers.iter().find(|header| header.name == name);
            let value = header.and_then(|header| text(header.value.clone()?));
            // none of our making: one that is no attribute travels as a header alone
            if let Some(value) = value.filter(|value| illegal(value).is_none()) {
                push(name, value)?;
            }
        }
        Ok(all)
    }

    /// The envelope of `payload`.
    fn envelope(&self, attributes: &[Attribute<'_>], payload: &[u8]) -> Result<Vec<u8>, Reason> {
        let mut out = Vec::with_capacity(payload.len() + 512);
        let quote = |out: &mut Vec<u8>, text: &str| {
            serde_json::to_writer(&mut *out, text).map_err(|_| not_json("is no text"))
        };
        out.push(b'{');
        for Attribute { name, value } in attributes {
            quote(&mut out, name)?;
            out.push(b':');
            quote(&mut out, value)?;
            out.push(b',');
        }
        let media_type = self.media_type.as_deref();
        let is_json = media_type.map_or(self.payload == Payload::Json, is_json);
        if self.payload == Payload::Bytes {
            out.extend_from_slice(b"\"data_base64\":\"");
            out.extend_from_slice(STANDARD.encode(payload).as_bytes());
            out.push(b'"');
        } else {
            out.extend_from_slice(b"\"data\":");
            if is_json {
                if self.payload == Payload::Text {
                    serde_json::from_slice::<&RawValue>(payload).map_err(|_| {
                        not_json("is no JSON, which its datacontenttype says that it is")
                    })?;
                }
                out.extend_from_slice(payload);
            } else {
                let text = str::from_utf8(payload).map_err(|_| not_json("is no text"))?;
                quote(&mut out, text)?;
            }
        }
        out.push(b'}');
        Ok(out)
    }
}

struct Attribute<'a> {
    name: &'static str,
    value: Cow<'a, str>,
}

fn not_json(why: &str) -> Reason {
    Reason::new(NOT_A_CLOUDEVENT, format!("the row's payload {why}"))
}

fn text(value: Cow<'_, [u8]>) -> Option<Cow<'_, str>> {
    match value {
        Cow::Borrowed(bytes) => str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}

/// Why a string cannot be the value of an attribute: the rule of the specification's type String, and that
/// none may be empty.
fn illegal(value: &str) -> Option<&'static str> {
    let noncharacter = |c: char| {
        let c = u32::from(c);
        (0xfdd0..=0xfdef).contains(&c) || c & 0xfffe == 0xfffe
    };
    if value.is_empty() {
        Some("would be empty")
    } else if value.chars().any(|c| c.is_control() || noncharacter(c)) {
        Some("would have a control character, or one that is none at all")
    } else {
        None
    }
}

/// Whether the claim printed a time as RFC 3339 has them: not an infinite one, nor one before the year 1 or
/// after 9999.
fn is_time(text: &str) -> bool {
    text.len() == "2024-01-02T03:04:05.000006Z".len()
        && text.starts_with(|c: char| c.is_ascii_digit())
}

/// Whether data of this media type is JSON: as the JSON event format has it.
fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or(media_type).trim();
    let Some((_, subtype)) = essence.split_once('/') else {
        return false;
    };
    let subtype = subtype.to_ascii_lowercase();
    subtype == "json" || subtype.ends_with("+json")
}

/// Text with places to fill: `/shop/${aggregate_type:lower}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    text: String,
    /// Each field with the text before it.
    parts: Vec<(String, Field)>,
    rest: String,
    is_reference: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    AggregateType(Case),
    EventType(Case),
}

impl Words {
    /// Reads `text`.
    ///
    /// # Errors
    /// One sentence on what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("${") {
            let (name, case, after) = Case::of_field(after)?;
            let field = match name {
                "aggregate_type" => Field::AggregateType(case),
                "event_type" => Field::EventType(case),
                _ => return Err("there are ${aggregate_type} and ${event_type}".to_owned()),
            };
            parts.push((before.to_owned(), field));
            rest = after;
        }
        if parts.is_empty() && illegal(rest).is_some() {
            return Err("it is empty, or has a control character".to_owned());
        }
        Ok(Self {
            text: text.to_owned(),
            parts,
            rest: rest.to_owned(),
            is_reference: false,
        })
    }

    /// Reads `text` as a reference to a resource: what is filled in is percent-encoded, and the rest has to be
    /// what a URI takes.
    ///
    /// # Errors
    /// As of [`Self::parse`].
    pub fn parse_reference(text: &str) -> Result<Self, String> {
        let mut words = Self::parse(text)?;
        let parts = words.parts.iter().map(|(before, _)| before);
        let bad = |c: &char| !c.is_ascii_graphic() || "\"<>\\^`{|}".contains(*c);
        let bad = parts
            .chain([&words.rest])
            .find_map(|it| it.chars().find(bad));
        if let Some(c) = bad {
            return Err(format!(
                "it has the character {c:?}, and a URI has none such"
            ));
        }
        words.is_reference = true;
        Ok(words)
    }

    /// Filled from `event`.
    fn of<'a>(&'a self, event: &'a Event) -> Cow<'a, str> {
        if self.parts.is_empty() {
            return self.rest.as_str().into();
        }
        let mut filled = String::new();
        for (before, field) in &self.parts {
            filled.push_str(before);
            let (text, case) = match field {
                Field::AggregateType(case) => (&event.aggregate_type, case),
                Field::EventType(case) => (&event.event_type, case),
            };
            let text = case.write(text);
            match self.is_reference {
                true => push_encoded(&mut filled, &text),
                false => filled.push_str(&text),
            }
        }
        filled.push_str(&self.rest);
        filled.into()
    }
}

/// Percent-encodes all but what RFC 3986 calls unreserved.
fn push_encoded(out: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Encoding, Style};
    use proptest::prelude::*;
    use uuid::Uuid;

    fn events(mode: Mode) -> CloudEvents {
        CloudEvents {
            mode,
            source: Words::parse_reference("/shop/${aggregate_type:lower}").unwrap(),
            event_type: Words::parse("com.shop.${event_type}").unwrap(),
            media_type: None,
            payload: Payload::Json,
        }
    }

    fn encoding(events: CloudEvents) -> Encoding {
        Encoding {
            style: Style::CloudEvents(Box::new(events)),
            ..Encoding::default()
        }
    }

    fn event() -> Event {
        Event {
            seq: 7,
            id: Uuid::from_u128(0x0102_0304),
            aggregate_type: "Order Line".into(),
            aggregate_id: Some("o-1".into()),
            event_type: "Filled".into(),
            payload: Some(b"{\"n\": 1.50}"[..].into()),
            // as the claim has them: the row's own, and what is placed
            headers: Some(
                r#"[{"traceparent": "00-1", "t": "x"}, {"ce_time": "2024-01-02T03:04:05.000006Z"}]"#
                    .into(),
            ),
            topic: None,
            created_at_us: None,
            parked: None,
        }
    }

    fn headers(record: &Record<'_>) -> Vec<String> {
        let utf8 = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let shown = |header: Header<'_>| {
            let value = header
                .value
                .as_deref()
                .map_or_else(|| "null".to_owned(), utf8);
            format!("{}={value}", header.name)
        };
        record.headers.iter().map(shown).collect()
    }

    const ID: &str = "00000000-0000-0000-0000-000001020304";

    #[test]
    fn a_binary_one_has_its_attributes_behind_the_relays_own_headers_and_the_payload_untouched() {
        let (encoding, event) = (encoding(events(Mode::Binary)), event());
        let record = encoding.record(&event, "t".into()).unwrap();
        assert_eq!(record.value.as_deref(), event.payload.as_deref());
        assert_eq!(
            headers(&record),
            [
                &format!("event_id={ID}"),
                "event_type=Filled",
                "ce_specversion=1.0",
                &format!("ce_id={ID}"),
                "ce_source=/shop/order%20line",
                "ce_type=com.shop.Filled",
                "ce_subject=o-1",
                "ce_time=2024-01-02T03:04:05.000006Z",
                "content-type=application/json",
                "ce_partitionkey=o-1",
                "ce_traceparent=00-1",
                "traceparent=00-1",
                "t=x",
            ]
        );
    }

    #[test]
    fn a_structured_one_is_an_envelope_around_the_very_text() {
        let (encoding, event) = (encoding(events(Mode::Structured)), event());
        let record = encoding.record(&event, "t".into()).unwrap();
        let value = String::from_utf8(record.value.clone().unwrap().into_owned()).unwrap();
        assert_eq!(
            value,
            format!(
                "{{\"specversion\":\"1.0\",\"id\":\"{ID}\",\"source\":\"/shop/order%20line\",\
                 \"type\":\"com.shop.Filled\",\"subject\":\"o-1\",\"time\":\"2024-01-02T03:04:05.000006Z\",\
                 \"datacontenttype\":\"application/json\",\"partitionkey\":\"o-1\",\
                 \"traceparent\":\"00-1\",\"data\":{{\"n\": 1.50}}}}"
            )
        );
        assert_eq!(
            headers(&record)[2..],
            [
                "content-type=application/cloudevents+json; charset=UTF-8",
                "traceparent=00-1",
                "t=x"
            ]
        );
    }

    #[test]
    fn one_without_data_is_a_tombstone_in_either_mode() {
        let mut event = event();
        event.payload = None;
        let both = [Mode::Binary, Mode::Structured].map(|mode| {
            let encoding = encoding(events(mode));
            let record = encoding.record(&event, "t".into()).unwrap();
            assert_eq!(record.value, None);
            headers(&record)
        });
        assert_eq!(both[0], both[1]);
        assert!(
            !both[0]
                .iter()
                .any(|header| header.starts_with("content-type"))
        );
        assert!(both[0].contains(&"ce_specversion=1.0".to_owned()));
    }

    #[test]
    fn data_is_what_its_column_and_its_media_type_say() {
        let data = |payload, media_type: Option<&str>, bytes: &[u8]| {
            let mut events = events(Mode::Structured);
            events.payload = payload;
            events.media_type = media_type.map(str::to_owned);
            let mut event = event();
            event.payload = Some(bytes.to_vec().into());
            let encoding = encoding(events);
            let record = encoding.record(&event, "t".into()).map_err(|it| it.class)?;
            let value = String::from_utf8(record.value.unwrap().into_owned()).unwrap();
            // behind the last attribute
            let (_, data) = value.split_once("\"00-1\",\"data").unwrap();
            Ok(data.strip_suffix('}').unwrap().to_owned())
        };
        let ok = |text: &str| Ok::<_, &str>(text.to_owned());
        assert_eq!(data(Payload::Text, None, b"a \"b\""), ok(r#"":"a \"b\"""#));
        for json in [
            "application/json",
            "text/json; charset=utf-8",
            "Application/X+JSON",
        ] {
            assert_eq!(
                data(Payload::Text, Some(json), b" [1.50] "),
                ok("\": [1.50] ")
            );
            assert_eq!(
                data(Payload::Text, Some(json), b"[1"),
                Err(NOT_A_CLOUDEVENT)
            );
            assert_eq!(data(Payload::Text, Some(json), b""), Err(NOT_A_CLOUDEVENT));
        }
        assert_eq!(
            data(Payload::Json, Some("application/xml"), b"1"),
            ok("\":\"1\"")
        );
        assert_eq!(
            data(Payload::Bytes, Some("application/json"), b"\xff"),
            ok("_base64\":\"/w==\"")
        );
    }

    #[test]
    fn what_can_be_no_attribute_parks_the_row_or_is_left_out() {
        let encoding = encoding(events(Mode::Binary));
        let of = |change: &dyn Fn(&mut Event)| {
            let mut event = event();
            change(&mut event);
            let record = encoding.record(&event, "t".into());
            record.map(|record| headers(&record)).map_err(|it| it.class)
        };
        assert_eq!(
            of(&|it| it.event_type = "a\u{7}".into()),
            Err(NOT_A_CLOUDEVENT)
        );
        assert_eq!(
            of(&|it| it.aggregate_id = Some("\u{ffff}".into())),
            Err(NOT_A_CLOUDEVENT)
        );
        let begins =
            |headers: &[String], begin: &str| headers.iter().any(|it| it.starts_with(begin));
        let empty = of(&|it| it.aggregate_id = Some("".into())).unwrap();
        assert!(!begins(&empty, "ce_subject") && !begins(&empty, "ce_partitionkey"));
        for time in [
            "infinity",
            "",
            "0044-03-15T00:00:00.000000Z BC",
            "-infinity",
        ] {
            let headers = format!("[null, {{\"ce_time\": \"{time}\"}}]");
            let without = of(&|it| it.headers = Some(headers.as_str().into())).unwrap();
            assert!(!begins(&without, "ce_time"), "{time}");
        }
        let without = of(&|it| it.headers = Some(r#"[null, {"ce_time": null}]"#.into())).unwrap();
        assert!(!begins(&without, "ce_time"));
        let odd = of(&|it| it.headers = Some(r#"{"traceparent": "a\nb"}"#.into())).unwrap();
        assert!(begins(&odd, "traceparent") && !begins(&odd, "ce_traceparent"));
        for name in ["ce_id", "CE_x", "Content-Type", "ce_time"] {
            let headers = format!("{{\"{name}\": \"forged\"}}");
            assert_eq!(
                of(&|it| it.headers = Some(headers.as_str().into())),
                Err("bad_header"),
                "{name}"
            );
        }
        // an event's type that is empty leaves nothing of a template without words of its own
        let mut bare = events(Mode::Structured);
        bare.event_type = Words::parse("${event_type}").unwrap();
        let mut untyped = event();
        untyped.event_type = "".into();
        let encoding = super::tests::encoding(bare);
        let reason = encoding.record(&untyped, "t".into()).unwrap_err();
        assert_eq!(
            reason.text,
            "the attribute type of the CloudEvent would be empty"
        );
    }

    #[test]
    fn words_that_are_none_are_refused() {
        for (text, why) in [
            ("", "empty"),
            ("a ${b}", "there are"),
            ("${event_type", "closing"),
            ("${event_type:title}", "neither"),
        ] {
            let error = Words::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(Words::parse_reference("/a b").is_err());
        assert!(Words::parse_reference("urn:é").is_err());
        assert!(Words::parse_reference("https://shop.example/${event_type}?x=%20#y").is_ok());
    }

    proptest! {
        #[test]
        fn an_envelope_is_json_with_the_payload_as_it_stood(
            key in any::<String>(),
            payload in "(\"[a-z é\\u{1F600}]{0,9}\"|[1-9][0-9]{0,30}\\.[0-9]{1,9}|\\[ *\\]|\\{\"a\": +null\\})",
        ) {
            let encoding = encoding(events(Mode::Structured));
            let event = Event {
                aggregate_id: Some(key.as_str().into()),
                payload: Some(payload.clone().into_bytes().into()),
                ..event()
            };
            match encoding.record(&event, "t".into()) {
                Err(reason) => prop_assert_eq!(reason.class, NOT_A_CLOUDEVENT),
                Ok(record) => {
                    let value = String::from_utf8(record.value.unwrap().into_owned()).unwrap();
                    let end = format!(",\"data\":{payload}}}");
                    prop_assert!(value.ends_with(&end));
                    let read: serde_json::Value = serde_json::from_str(&value).unwrap();
                    prop_assert_eq!(read["id"].as_str(), Some(ID));
                    prop_assert_eq!(read.get("subject").and_then(|it| it.as_str()).unwrap_or_default(), key);
                }
            }
        }
    }
}
