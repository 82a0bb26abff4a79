//! The headers of a record. Those that the relay gives to every event are told from the event when somebody asks for
//! them: a batch has thousands of records in hand, and the list and the text of each record's own were two
//! allocations of 160 bytes, as much as many a payload.

use std::borrow::Cow;
use std::fmt;

use uuid::Uuid;
use uuid::fmt::Hyphenated;

use crate::event::Event;

/// One header of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header<'a> {
    /// Not empty, and without a NUL: librdkafka takes header names as C strings.
    pub name: Cow<'a, str>,
    /// `None` is a header with a null value.
    pub value: Option<Cow<'a, [u8]>>,
}

impl Header<'_> {
    /// The same header, borrowed.
    #[must_use]
    pub fn by_ref(&self) -> Header<'_> {
        Header {
            name: (&*self.name).into(),
            value: self.value.as_deref().map(Cow::Borrowed),
        }
    }
}

/// What the relay itself can say of an event in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standard {
    /// The writer's id of the event, in hyphenated lower case.
    EventId,
    /// What happened.
    EventType,
    /// The kind of aggregate.
    AggregateType,
    /// The event's place in the outbox, in decimal.
    Seq,
}

impl Standard {
    /// What the header says of the event with these.
    #[must_use]
    pub fn of<'a>(
        self,
        id: Uuid,
        seq: i64,
        aggregate_type: &'a str,
        event_type: &'a str,
    ) -> Cow<'a, [u8]> {
        match self {
            Self::EventId => id.hyphenated().to_string().into_bytes().into(),
            Self::EventType => event_type.as_bytes().into(),
            Self::AggregateType => aggregate_type.as_bytes().into(),
            Self::Seq => seq.to_string().into_bytes().into(),
        }
    }

    fn of_event(self, event: &Event) -> Cow<'_, [u8]> {
        self.of(
            event.id,
            event.seq,
            &event.aggregate_type,
            &event.event_type,
        )
    }

    /// Bytes of what it says of `event`.
    fn bytes(self, event: &Event) -> usize {
        match self {
            Self::EventId => Hyphenated::LENGTH,
            Self::EventType | Self::AggregateType | Self::Seq => self.of_event(event).len(),
        }
    }
}

/// The headers of a record, in the order they are sent: the relay's own of its event, then the rest.
#[derive(Clone, Default)]
pub struct Headers<'a> {
    named: &'a [(Standard, String)],
    /// What the relay's own are told from; none has no such.
    event: Option<&'a Event>,
    rest: Vec<Header<'a>>,
}

impl<'a> Headers<'a> {
    /// The relay's own of `event`, by their names, and behind them the `rest`.
    #[must_use]
    pub fn of(named: &'a [(Standard, String)], event: &'a Event, rest: Vec<Header<'a>>) -> Self {
        let event = Some(event);
        Self { named, event, rest }
    }

    /// The relay's own: what each says, its name, and the event.
    fn ours(&self) -> impl Iterator<Item = (Standard, &'a str, &'a Event)> {
        let named = self.named;
        let of_event = move |event| {
            named
                .iter()
                .map(move |(what, name)| (*what, &**name, event))
        };
        self.event.into_iter().flat_map(of_event)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ours().count() + self.rest.len()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = Header<'_>> {
        let ours = self.ours().map(|(what, name, event)| Header {
            name: name.into(),
            value: Some(what.of_event(event)),
        });
        ours.chain(self.rest.iter().map(Header::by_ref))
    }

    /// The first that is called `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Header<'_>> {
        self.iter().find(|header| header.name == name)
    }

    /// The name of each, and the bytes of its value.
    pub fn sizes(&self) -> impl Iterator<Item = (&str, usize)> {
        let ours = self
            .ours()
            .map(|(what, name, event)| (name, what.bytes(event)));
        let rest = (self.rest.iter()).map(|header| {
            (
                &*header.name,
                header.value.as_ref().map_or(0, |it| it.len()),
            )
        });
        ours.chain(rest)
    }

    /// Adds each, by its name and its value, to `all`. Unlike [`Self::iter`] it allocates nothing for an event's id.
    pub fn fold<T>(&self, all: T, mut add: impl FnMut(T, &str, Option<&[u8]>) -> T) -> T {
        let mut id = [0; Hyphenated::LENGTH];
        let all = (self.ours()).fold(all, |all, (what, name, event)| match what {
            Standard::EventId => {
                let id = event.id.hyphenated().encode_lower(&mut id);
                add(all, name, Some(id.as_bytes()))
            }
            _ => add(all, name, Some(&what.of_event(event))),
        });
        let rest = self.rest.iter();
        rest.fold(all, |all, header| {
            add(all, &header.name, header.value.as_deref())
        })
    }

    /// All of them as a list, to be changed.
    pub fn to_mut(&mut self) -> &mut Vec<Header<'a>> {
        if self.event.is_some() {
            let rest = std::mem::take(&mut self.rest);
            let ours = self.ours().map(|(what, name, event)| Header {
                name: name.into(),
                value: Some(what.of_event(event)),
            });
            *self = ours.chain(rest).collect();
        }
        &mut self.rest
    }
}

impl<'a> From<Vec<Header<'a>>> for Headers<'a> {
    fn from(rest: Vec<Header<'a>>) -> Self {
        Self {
            named: &[],
            event: None,
            rest,
        }
    }
}

impl<'a> FromIterator<Header<'a>> for Headers<'a> {
    fn from_iter<T: IntoIterator<Item = Header<'a>>>(headers: T) -> Self {
        Vec::from_iter(headers).into()
    }
}

impl PartialEq for Headers<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Headers<'_> {}

impl fmt::Debug for Headers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(seq: i64, id: u128, text: &str) -> Event {
        Event {
            seq,
            id: Uuid::from_u128(id),
            aggregate_type: format!("a {text}").into(),
            aggregate_id: None,
            event_type: text.into(),
            payload: None,
            headers: None,
            topic: None,
            created_at_us: None,
            parked: None,
        }
    }

    fn all() -> Vec<(Standard, String)> {
        [
            (Standard::Seq, "seq"),
            (Standard::EventId, "id"),
            (Standard::AggregateType, "aggregate"),
            (Standard::EventType, "type"),
        ]
        .map(|(what, name)| (what, name.to_owned()))
        .into()
    }

    fn header(name: &'static str, value: Option<&'static [u8]>) -> Header<'static> {
        Header {
            name: name.into(),
            value: value.map(Cow::Borrowed),
        }
    }

    proptest! {
        #[test]
        fn every_way_to_read_them_tells_the_same(seq in any::<i64>(), id in any::<u128>(), text in any::<String>()) {
            let (named, event) = (all(), event(seq, id, &text));
            let rest = vec![header("none", None), header("own", Some(b"x"))];
            let mut headers = Headers::of(&named, &event, rest);
            let listed: Vec<(String, Option<Vec<u8>>)> = headers
                .iter()
                .map(|it| (it.name.into_owned(), it.value.map(Cow::into_owned)))
                .collect();
            let wanted = [
                ("seq", Some(seq.to_string())),
                ("id", Some(event.id.to_string())),
                ("aggregate", Some(format!("a {text}"))),
                ("type", Some(text.clone())),
                ("none", None),
                ("own", Some("x".to_owned())),
            ];
            let wanted = wanted.map(|(name, value)| (name.to_owned(), value.map(String::into_bytes)));
            prop_assert_eq!(&listed, &wanted);
            prop_assert_eq!(headers.count(), 6);
            let folded = headers.fold(Vec::new(), |mut all, name, value| {
                all.push((name.to_owned(), value.map(<[u8]>::to_vec)));
                all
            });
            prop_assert_eq!(&folded, &listed);
            let sizes: Vec<_> = headers.sizes().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
            let bytes = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len);
            let wanted: Vec<_> = listed.iter().map(|(name, value)| (name.clone(), bytes(value))).collect();
            prop_assert_eq!(sizes, wanted);
            prop_assert_eq!(headers.find("own"), Some(header("own", Some(b"x"))));
            let before = headers.clone();
            prop_assert_eq!(headers.to_mut().len(), 6);
            prop_assert_eq!(&headers, &before);
            headers.to_mut().push(header("more", None));
            prop_assert_eq!(headers.count(), 7);
            prop_assert_ne!(&headers, &before);
        }
    }
}
