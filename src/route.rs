//! Event → topic. Pure.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::config::{Layout, Outbox};
use crate::event::Event;
use crate::outcome::Reason;
use crate::rewrite::Rewrite;

/// The class of [`Reason`] of a row whose topic is none of [`Allowed`].
pub const NOT_ALLOWED: &str = "topic_not_allowed";

/// The topic of an event: the row's own, or the template filled from the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Router {
    template: Template,
    allowed: Allowed,
    /// What else decides a record's bytes, where that is said.
    encoding: Option<String>,
}

/// What the topic of a row is decided by. Two rows that are equal in this go to the same topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    /// See [`Event::aggregate_type`].
    pub aggregate_type: String,
    /// See [`Event::event_type`].
    pub event_type: String,
    /// See [`Event::topic`].
    pub topic: Option<String>,
}

impl Kind {
    /// The kind of `event`.
    #[must_use]
    pub fn of(event: &Event) -> Self {
        Self {
            aggregate_type: event.aggregate_type.to_string(),
            event_type: event.event_type.to_string(),
            topic: event.topic.as_deref().map(str::to_owned),
        }
    }
}

/// What cannot be published now, so need not be claimed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The topics that are paused.
    pub topics: HashSet<String>,
    /// The kinds of rows that go to them, as far as they have been seen.
    pub kinds: HashSet<Kind>,
    /// Aggregates whose partition takes nothing beside others of its topic, as far as they have been
    /// seen.
    pub keys: HashSet<String>,
}

/// The topics of a batch's rows. Rows of a kind share one: a batch has thousands of rows and few kinds.
#[derive(Debug)]
pub struct Routed {
    topics: Vec<Result<String, Reason>>,
    /// Of each row.
    of: Vec<usize>,
}

impl Routed {
    /// Routes `events` by `router`.
    #[must_use]
    pub fn of(router: &Router, events: &[Event]) -> Self {
        let (mut topics, mut of) = (Vec::new(), Vec::with_capacity(events.len()));
        let mut known: HashMap<(&str, &str, Option<&str>), usize> = HashMap::new();
        // rows of a kind mostly come together, and to compare is cheaper than to hash
        let mut last = None;
        for event in events {
            let kind = (
                &*event.aggregate_type,
                &*event.event_type,
                event.topic.as_deref(),
            );
            let topic = match last {
                Some((of, topic)) if of == kind => topic,
                _ => *known.entry(kind).or_insert_with(|| {
                    topics.push(router.topic(event).map(Cow::into_owned));
                    topics.len() - 1
                }),
            };
            last = Some((kind, topic));
            of.push(topic);
        }
        Self { topics, of }
    }

    /// The topic of the row at `i`.
    ///
    /// # Errors
    /// As of [`Router::topic`].
    pub fn topic(&self, i: usize) -> Result<&str, &Reason> {
        self.topics[self.of[i]].as_deref()
    }
}

impl Router {
    /// A router by `template`, to any topic.
    #[must_use]
    pub fn new(template: Template) -> Self {
        Self {
            template,
            allowed: Allowed::default(),
            encoding: None,
        }
    }

    /// The router of `outbox`.
    #[must_use]
    pub fn of(outbox: &Outbox) -> Self {
        Self {
            template: outbox.topic.clone(),
            allowed: outbox.topics_allowed.clone(),
            encoding: outbox.encoding.fingerprint(),
        }
    }

    /// The topic `event` belongs to.
    ///
    /// # Errors
    /// The reason to park the row: its topic is not a legal name, or none that rows may go to.
    pub fn topic<'a>(&self, event: &'a Event) -> Result<Cow<'a, str>, Reason> {
        self.route(
            &event.aggregate_type,
            &event.event_type,
            event.topic.as_deref(),
        )
    }

    /// The topic that rows of `kind` belong to.
    ///
    /// # Errors
    /// As of [`Self::topic`].
    pub fn topic_of<'a>(&self, kind: &'a Kind) -> Result<Cow<'a, str>, Reason> {
        self.route(
            &kind.aggregate_type,
            &kind.event_type,
            kind.topic.as_deref(),
        )
    }

    fn route<'a>(
        &self,
        aggregate_type: &str,
        event_type: &str,
        own: Option<&'a str>,
    ) -> Result<Cow<'a, str>, Reason> {
        let read;
        let (own, columns) = match own {
            // no topic begins so: it is the row's own topic and the columns that the template names
            Some(text) if text.starts_with('[') => match Routing::parse(text) {
                Some(Routing { own, columns }) => {
                    read = columns;
                    (own.map(Cow::Owned), read.as_slice())
                }
                None => (Some(Cow::Borrowed(text)), [].as_slice()),
            },
            own => (own.map(Cow::Borrowed), [].as_slice()),
        };
        let topic = match own {
            Some(own) => own,
            None => {
                let filled = self.template.fill(aggregate_type, event_type, columns);
                Cow::Owned(filled.map_err(|why| Reason::new("illegal_topic", why))?)
            }
        };
        match illegal(&topic) {
            None if self.allowed.allows(&topic) => Ok(topic),
            None => Err(Reason::new(
                NOT_ALLOWED,
                format!("the row's topic {topic} is not among topics_allowed of its outbox"),
            )),
            Some(why) => Err(Reason::new(
                "illegal_topic",
                format!("the row's topic {why}"),
            )),
        }
    }

    /// Says how rows of `layout` are routed and written, so that two relays of a table can tell that they agree.
    #[must_use]
    pub fn fingerprint(&self, layout: &Layout) -> String {
        let layout = layout.fingerprint();
        let routing = format!("layout={layout} topic={} key=aggregate_id", self.template);
        match &self.encoding {
            Some(encoding) => format!("{routing} {encoding}"),
            None => routing,
        }
    }
}

/// What a row is routed by beside its types, where the template names further columns: the claim writes
/// it as a JSON list, `["own topic or null", "column", …]`.
struct Routing {
    own: Option<String>,
    columns: Vec<Option<String>>,
}

impl Routing {
    fn parse(text: &str) -> Option<Self> {
        let mut all: Vec<Option<String>> = serde_json::from_str(text).ok()?;
        let columns = all.split_off(all.len().min(1));
        let own = all.pop()?;
        Some(Self { own, columns })
    }
}

/// Why `topic` is no legal name, if so. The rule is Kafka's own
/// (`org.apache.kafka.common.internals.Topic.validate`): 1 to 249 of `[a-zA-Z0-9._-]`, and
/// neither `.` nor `..`.
pub(crate) fn illegal(topic: &str) -> Option<String> {
    const LENGTH_MAX: usize = 249;
    if topic.is_empty() {
        Some("is empty".into())
    } else if topic == "." || topic == ".." {
        Some(format!("is `{topic}`, which Kafka keeps for itself"))
    } else if topic.len() > LENGTH_MAX {
        Some(format!(
            "has {} bytes; Kafka takes at most {LENGTH_MAX}",
            topic.len()
        ))
    } else {
        let c = topic.chars().find(|c| !legal(*c))?;
        Some(format!(
            "has the character {c:?}; Kafka takes a-z A-Z 0-9 . _ -"
        ))
    }
}

fn legal(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// The topics that rows may go to. None of them written down: any.
///
/// Whoever may insert a row chooses its topic, by its columns, among all that the relay's credentials
/// reach. This narrows that to what was meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed(Vec<TopicPattern>);

/// A topic, or with `*` for any part of it, several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPattern(String);

impl Allowed {
    /// Those that one of `patterns` fits.
    #[must_use]
    pub fn new(patterns: Vec<TopicPattern>) -> Self {
        Self(patterns)
    }

    /// Whether a row may go to `topic`.
    #[must_use]
    pub fn allows(&self, topic: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| pattern.fits(topic))
    }

    /// Whether nothing was written down.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0.is_empty()
    }
}

impl TopicPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// One sentence on what is wrong with `text`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("it is empty".into());
        }
        match text.chars().find(|c| *c != '*' && !legal(*c)) {
            Some(c) => Err(format!(
                "it has the character {c:?}; topics have a-z A-Z 0-9 . _ -, and * is any part"
            )),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// Whether `topic` is one of these.
    #[must_use]
    pub fn fits(&self, topic: &str) -> bool {
        let Some((head, rest)) = self.0.split_once('*') else {
            return self.0 == topic;
        };
        let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
        let within = topic.strip_prefix(head);
        let Some(mut within) = within.and_then(|within| within.strip_suffix(tail)) else {
            return false;
        };
        // the first place of each part leaves the most for those behind it
        for part in middle.split('*') {
            match within.split_once(part) {
                Some((_, after)) => within = after,
                None => return false,
            }
        }
        true
    }
}

/// A topic name with places to fill: `${aggregate_type:lower}-events`.
///
/// The fields are `aggregate_type`, `event_type` and any other column of the table, as they are or with
/// `:lower` or `:upper`. The aggregate's id is no field: a topic for each aggregate is not what topics are
/// for. What comes out may be rewritten by a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
    /// The columns that parts name, each once.
    columns: Vec<String>,
    rewrite: Option<Rewrite>,
    /// The topic, if it is one for all rows.
    constant: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Field, Case),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    AggregateType,
    EventType,
    /// By its place in [`Template::columns`].
    Column(usize),
}

/// How a field of a template is written: `${aggregate_type:lower}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    Kept,
    Lower,
    Upper,
}

impl Case {
    /// The field that `${…}` names in these words, and its case; and what follows it.
    ///
    /// # Errors
    /// One sentence on what is wrong.
    pub(crate) fn of_field(after: &str) -> Result<(&str, Self, &str), String> {
        let (name, after) = after
            .split_once('}')
            .ok_or_else(|| "a `${` has no closing `}`".to_owned())?;
        let (name, case) = match name.split_once(':') {
            None => (name, Self::Kept),
            Some((name, "lower")) => (name, Self::Lower),
            Some((name, "upper")) => (name, Self::Upper),
            Some((_, other)) => {
                return Err(format!("`:{other}` is neither `:lower` nor `:upper`"));
            }
        };
        Ok((name, case, after))
    }

    /// `text` in this case.
    pub(crate) fn write(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::Kept => text.into(),
            Self::Lower => text.to_lowercase().into(),
            Self::Upper => text.to_uppercase().into(),
        }
    }
}

impl Template {
    /// What a table is routed by unless its config says otherwise.
    pub const DEFAULT: &str = "${aggregate_type:lower}-events";

    /// Reads a template.
    ///
    /// # Errors
    /// One sentence on what is wrong with `text`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut parts, mut columns) = (Vec::new(), Vec::<String>::new());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, case, after) = Case::of_field(after)?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let field = match name {
                "aggregate_type" => Field::AggregateType,
                "event_type" => Field::EventType,
                "aggregate_id" => {
                    return Err(
                        "a topic for each `aggregate_id` is not what topics are for".to_owned()
                    );
                }
                _ if name.is_empty() || name.contains(['$', '{', '\0']) => {
                    return Err("a `${}` names no column".to_owned());
                }
                _ => {
                    let known = columns.iter().position(|it| it == name);
                    Field::Column(known.unwrap_or_else(|| {
                        columns.push(name.to_owned());
                        columns.len() - 1
                    }))
                }
            };
            parts.push(Part::Field(field, case));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        if parts.is_empty() {
            return Err("it is empty".into());
        }
        let mut template = Self {
            text: text.to_owned(),
            parts,
            columns,
            rewrite: None,
            constant: None,
        };
        if let Some(c) = template
            .text_parts()
            .flat_map(str::chars)
            .find(|c| !legal(*c))
        {
            return Err(format!(
                "it has the character {c:?}; Kafka takes a-z A-Z 0-9 . _ -"
            ));
        }
        template.constant = template.find_constant();
        Ok(template)
    }

    /// The same, for a table of `layout`: columns that it has a name for are called by that, and a template
    /// that needs no further column asks the table for none.
    #[must_use]
    pub fn of_layout(mut self, layout: &Layout) -> Self {
        let mut columns = Vec::new();
        for part in &mut self.parts {
            let Part::Field(field @ Field::Column(_), _) = part else {
                continue;
            };
            let Field::Column(i) = *field else { continue };
            let name = &self.columns[i];
            *field = if *name == layout.aggregate_type {
                Field::AggregateType
            } else if *name == layout.event_type {
                Field::EventType
            } else {
                let known = columns.iter().position(|it| it == name);
                Field::Column(known.unwrap_or_else(|| {
                    columns.push(name.clone());
                    columns.len() - 1
                }))
            };
        }
        self.columns = columns;
        self
    }

    /// The same, with what comes out rewritten.
    #[must_use]
    pub fn rewritten(mut self, rewrite: Rewrite) -> Self {
        self.rewrite = Some(rewrite);
        self.constant = self.find_constant();
        self
    }

    /// The columns beside the types that it names.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    fn text_parts(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(Part::text)
    }

    fn find_constant(&self) -> Option<String> {
        match (self.parts.as_slice(), &self.rewrite) {
            ([Part::Text(topic)], None) => Some(topic.clone()),
            ([Part::Text(topic)], Some(rewrite)) => Some(rewrite.apply(topic)),
            _ => None,
        }
    }

    /// The topic, if it is one for all rows.
    #[must_use]
    pub fn constant(&self) -> Option<&str> {
        self.constant.as_deref()
    }

    /// A pattern of the topics that it gives.
    #[must_use]
    pub fn pattern(&self) -> String {
        match (&self.constant, &self.rewrite) {
            (Some(topic), _) => topic.clone(),
            (None, Some(_)) => "*".to_owned(),
            (None, None) => {
                let parts = self.parts.iter();
                parts.map(|part| part.text().unwrap_or("*")).collect()
            }
        }
    }

    /// Whether a row could be routed to `topic`: each field may have filled in anything.
    #[must_use]
    pub fn may_give(&self, topic: &str) -> bool {
        TopicPattern(self.pattern()).fits(topic)
    }

    fn fill(
        &self,
        aggregate_type: &str,
        event_type: &str,
        columns: &[Option<String>],
    ) -> Result<String, String> {
        let mut topic = String::with_capacity(self.text.len() + aggregate_type.len());
        for part in &self.parts {
            match part {
                Part::Text(text) => topic.push_str(text),
                Part::Field(field, case) => {
                    let value = match *field {
                        Field::AggregateType => aggregate_type,
                        Field::EventType => event_type,
                        Field::Column(i) => match columns.get(i) {
                            Some(Some(value)) => value,
                            Some(None) => {
                                return Err(format!(
                                    "the row's column {} is null, and its topic is made of it",
                                    self.columns[i]
                                ));
                            }
                            None => {
                                return Err(format!(
                                    "the row was parked when its topic was not made of the column {}",
                                    self.columns[i]
                                ));
                            }
                        },
                    };
                    topic.push_str(&case.write(value));
                }
            }
        }
        Ok(match &self.rewrite {
            Some(rewrite) => rewrite.apply(&topic),
            None => topic,
        })
    }
}

impl Part {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Field(..) => None,
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.rewrite {
            Some(rewrite) => write!(f, " {rewrite}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn event(aggregate_type: &str, event_type: &str, topic: Option<&str>) -> Event {
        Event {
            seq: 1,
            id: Uuid::nil(),
            aggregate_type: aggregate_type.into(),
            aggregate_id: Some("a".into()),
            event_type: event_type.into(),
            payload: None,
            headers: None,
            topic: topic.map(Into::into),
            created_at_us: None,
            parked: None,
        }
    }

    fn topic(template: &str, event: &Event) -> Result<String, String> {
        let router = Router::new(Template::parse(template).unwrap());
        router
            .topic(event)
            .map(Cow::into_owned)
            .map_err(|reason| reason.text.clone())
    }

    #[test]
    fn the_default_is_the_type_in_lower_case() {
        let topic = topic(Template::DEFAULT, &event("OrderLine", "x", None));
        assert_eq!(topic.as_deref(), Ok("orderline-events"));
    }

    #[test]
    fn fields_case_and_text_are_filled_in() {
        let event = event("Order", "Created", None);
        assert_eq!(topic("all", &event).as_deref(), Ok("all"));
        assert_eq!(
            topic("${aggregate_type}.${event_type:upper}", &event).as_deref(),
            Ok("Order.CREATED")
        );
    }

    #[test]
    fn the_rows_own_topic_overrides() {
        let event = event("Order", "Created", Some("billing"));
        assert_eq!(topic(Template::DEFAULT, &event).as_deref(), Ok("billing"));
    }

    #[test]
    fn a_batch_is_routed_as_its_rows_are_one_by_one() {
        let router = Router::new(Template::parse("${aggregate_type}.${event_type}").unwrap());
        let mut events = Vec::new();
        for aggregate_type in ["Order", "Cart", "Order", "no topic"] {
            for event_type in ["Made", "Gone"] {
                for own in [None, Some("billing"), Some("")] {
                    events.push(event(aggregate_type, event_type, own));
                }
            }
        }
        let routed = Routed::of(&router, &events);
        for (i, event) in events.iter().enumerate() {
            let alone = router.topic(event);
            assert_eq!(routed.topic(i), alone.as_deref(), "{event:?}");
        }
    }

    #[test]
    fn illegal_topics_are_refused_with_what_is_wrong() {
        let long = "x".repeat(250);
        let cases = [
            ("", "is empty"),
            (".", "is `.`"),
            ("..", "is `..`"),
            ("a b", "' '"),
            ("ä", "'ä'"),
            ("a\0", "'\\0'"),
            (long.as_str(), "250 bytes"),
        ];
        for (name, why) in cases {
            let error = topic("t", &event("a", "b", Some(name))).unwrap_err();
            assert!(error.contains(why), "{name:?}: {error}");
        }
        assert!(topic("${aggregate_type}", &event("Größe", "b", None)).is_err());
        assert!(topic("t", &event("a", "b", Some(&"x".repeat(249)))).is_ok());
    }

    #[test]
    fn rows_go_to_no_topic_but_those_allowed() {
        let allowed = |patterns: &[&str]| {
            let parse = |text: &&str| TopicPattern::parse(text).unwrap();
            Allowed::new(patterns.iter().map(parse).collect())
        };
        for (patterns, topic, may) in [
            (&[][..], "anything", true),
            (&["billing"], "billing", true),
            (&["billing"], "billing2", false),
            (&["billing"], "Billing", false),
            (&["a", "billing"], "billing", true),
            (&["*-events"], "order-events", true),
            (&["*-events"], "-events", true),
            (&["*-events"], "order-events-2", false),
            (&["shop.*"], "shop.a.b", true),
            (&["shop.*"], "workshop.a", false),
            // a dot is a dot
            (&["shop.*"], "shopxa", false),
            (&["a*b*c"], "abc", true),
            (&["a*b*c"], "a-b-b-c", true),
            (&["a*b*c"], "acb", false),
            // a head and a tail do not share a letter
            (&["ab*ba"], "aba", false),
            (&["*"], "anything", true),
            (&["**"], "a", true),
            (&["*a*a*"], "a", false),
        ] {
            assert_eq!(allowed(patterns).allows(topic), may, "{patterns:?} {topic}");
        }
        for (pattern, why) in [
            ("", "empty"),
            ("a b", "' '"),
            ("[a]", "'['"),
            ("a\0", "'\\0'"),
        ] {
            let error = TopicPattern::parse(pattern).unwrap_err();
            assert!(error.contains(why), "{pattern:?}: {error}");
        }
        let router = Router {
            template: Template::parse(Template::DEFAULT).unwrap(),
            allowed: allowed(&["*-events"]),
            encoding: None,
        };
        assert!(router.topic(&event("Order", "x", None)).is_ok());
        let elsewhere = event("Order", "x", Some("__consumer_offsets"));
        let reason = router.topic(&elsewhere).unwrap_err();
        assert_eq!(reason.class, NOT_ALLOWED);
        assert!(reason.text.contains("__consumer_offsets"), "{reason}");
        // what is no topic at all is said first
        let reason = router.topic(&event("Order", "x", Some("a b"))).unwrap_err();
        assert_eq!(reason.class, "illegal_topic");
        let pattern = router.template.pattern();
        assert_eq!(pattern, "*-events");
    }

    #[test]
    fn a_template_knows_its_topics() {
        let template = |text: &str| Template::parse(text).unwrap();
        assert_eq!(template("all").constant(), Some("all"));
        assert_eq!(template(Template::DEFAULT).constant(), None);
        for (text, topic, fits) in [
            ("all", "all", true),
            ("all", "allx", false),
            (Template::DEFAULT, "order-events", true),
            (Template::DEFAULT, "order-news", false),
            ("a.${aggregate_type}.${event_type}.z", "a.b.c.z", true),
            ("a.${aggregate_type}.${event_type}.z", "a.b.z", false),
        ] {
            assert_eq!(template(text).may_give(topic), fits, "{text} {topic}");
        }
    }

    #[test]
    fn bad_templates_say_what_is_wrong() {
        let cases = [
            ("", "empty"),
            ("${aggregate_type", "closing"),
            ("${aggregate_id}", "aggregate_id"),
            ("${}", "no column"),
            ("${event_type:title}", ":title"),
            ("order events", "' '"),
        ];
        for (template, why) in cases {
            let error = Template::parse(template).unwrap_err();
            assert!(error.contains(why), "{template:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_as_a_template_or_a_topic_only_legal_topics_come_out(
            template in prop_oneof![
                any::<String>(),
                "[a${}:.é]{0,12}",
                "(\\$\\{(aggregate|event)_type(:lower|:upper)?\\}|[a-z.-]){1,4}",
            ],
            aggregate_type in prop_oneof![any::<String>(), "[a-zA-Z.İK]{0,260}"],
            event_type in any::<String>(),
            own in proptest::option::of(prop_oneof![any::<String>(), "[a-z._-]{0,260}"]),
        ) {
            let Ok(template) = Template::parse(&template) else {
                return Ok(());
            };
            let event = event(&aggregate_type, &event_type, own.as_deref());
            match Router::new(template).topic(&event) {
                Err(reason) => prop_assert_eq!(reason.class, "illegal_topic"),
                Ok(topic) => {
                    let known = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
                    prop_assert!(topic.chars().all(|c| known.contains(c)), "{}", topic);
                    prop_assert!((1..=249).contains(&topic.len()) && topic != "." && topic != "..");
                    prop_assert!(own.is_none_or(|own| own == topic));
                }
            }
        }
    }
}
