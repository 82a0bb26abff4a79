//! Which columns an outbox table has, and what each is to the relay.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// The columns of an outbox table by what they are, `seq` apart, which is the relay's own. Names as the
/// catalogue has them: not folded, not quoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// What it is called, if it is none of somebody's own.
    pub kind: LayoutKind,
    /// The event's id, a uuid.
    pub id: String,
    /// Which aggregate.
    pub aggregate_id: String,
    /// The kind of aggregate.
    pub aggregate_type: String,
    /// What happened.
    pub event_type: String,
    /// What travels as the value.
    pub payload: String,
    /// A JSON object of further headers.
    pub headers: Option<String>,
    /// A topic of the row's own.
    pub topic: Option<String>,
    /// When the row was inserted.
    pub created_at: Option<String>,
    /// When the row was published: what `mark` sets.
    pub published_at: Option<String>,
    /// Columns that travel as headers, in their order.
    pub placed: Vec<Placed>,
    /// Columns that the topic is made of, beside the aggregate's type and the event's.
    pub routing: Vec<String>,
}

/// A column that travels as a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The column.
    pub column: String,
    /// The header's name.
    pub header: String,
    /// Whether it is a time to be written as RFC 3339 in UTC, where others are as Postgres prints them.
    pub is_time: bool,
}

/// The layouts that have a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LayoutKind {
    /// `id, aggregate_id, aggregate_type, event_type, payload, created_at, published_at`.
    #[default]
    Classic,
    /// Classic, and `headers`, `topic`; the payload may be null and the aggregate id is text.
    Native,
    /// `id, aggregatetype, aggregateid, type, payload`: the default columns of Debezium's event router.
    Debezium,
    /// Columns by other names.
    Custom,
}

impl LayoutKind {
    /// Those that a config can name.
    pub(super) const NAMED: [(&'static str, Self); 3] = [
        ("classic", Self::Classic),
        ("native", Self::Native),
        ("debezium", Self::Debezium),
    ];

    fn name(self) -> &'static str {
        let named = Self::NAMED.iter().find(|(_, kind)| *kind == self);
        named.map_or("custom", |(name, _)| name)
    }
}

impl Default for Layout {
    fn default() -> Self {
        Self::of(LayoutKind::Classic)
    }
}

impl Layout {
    /// The columns that a custom layout must name, and those that it may.
    const NEEDED: [&'static str; 5] = [
        "id",
        "aggregate_id",
        "aggregate_type",
        "event_type",
        "payload",
    ];
    const OPTIONAL: [&'static str; 4] = ["headers", "topic", "created_at", "published_at"];

    /// The layout of that name. A custom one has the columns of the classic layout that must be there.
    #[must_use]
    pub fn of(kind: LayoutKind) -> Self {
        let some =
            |name: &str, kinds: &[LayoutKind]| kinds.contains(&kind).then(|| name.to_owned());
        let (classic, native) = (LayoutKind::Classic, LayoutKind::Native);
        let [id, key, aggregate_type, event_type, payload] = match kind {
            LayoutKind::Debezium => ["id", "aggregateid", "aggregatetype", "type", "payload"],
            _ => Self::NEEDED,
        }
        .map(str::to_owned);
        Self {
            kind,
            id,
            aggregate_id: key,
            aggregate_type,
            event_type,
            payload,
            headers: some("headers", &[native]),
            topic: some("topic", &[native]),
            created_at: some("created_at", &[classic, native]),
            published_at: some("published_at", &[classic, native]),
            placed: Vec::new(),
            routing: Vec::new(),
        }
    }

    /// A layout of somebody's own: what a column is, and its name.
    ///
    /// # Errors
    /// What is missing, unknown, or the name of two.
    pub(super) fn custom(columns: &BTreeMap<String, String>) -> Result<Self, String> {
        let roles = || Self::NEEDED.iter().chain(&Self::OPTIONAL).copied();
        for (role, name) in columns {
            if !roles().any(|known| known == role) {
                let hint = match super::suggest::nearest(role, roles()) {
                    Some(known) => format!("did you mean `{known}`?"),
                    None => format!("there are {}", roles().collect::<Vec<_>>().join(", ")),
                };
                return Err(format!("no column is a `{role}` to the relay; {hint}"));
            }
            if name.is_empty() || name.contains('\0') {
                return Err(format!(
                    "the name of `{role}` is empty, or none of a column"
                ));
            }
            if name == "seq" {
                return Err(format!(
                    "`{role}` cannot be seq, which the relay numbers the rows by"
                ));
            }
        }
        if let Some(missing) = Self::NEEDED
            .iter()
            .find(|role| !columns.contains_key(**role))
        {
            return Err(format!("it does not say which column is the `{missing}`"));
        }
        let mut names: Vec<&String> = columns.values().collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("the column `{}` is named twice", twice[0]));
        }
        let get = |role: &str| columns.get(role).cloned();
        let need = |role: &str| get(role).unwrap_or_default();
        Ok(Self {
            kind: LayoutKind::Custom,
            id: need("id"),
            aggregate_id: need("aggregate_id"),
            aggregate_type: need("aggregate_type"),
            event_type: need("event_type"),
            payload: need("payload"),
            headers: get("headers"),
            topic: get("topic"),
            created_at: get("created_at"),
            published_at: get("published_at"),
            placed: Vec::new(),
            routing: Vec::new(),
        })
    }

    /// Whether all of it follows from its name.
    fn is_plain(&self) -> bool {
        self.kind != LayoutKind::Custom && self.placed.is_empty() && self.routing.is_empty()
    }

    /// One word where that says all, else all of it: two relays that read a table alike say the same.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        if self.is_plain() {
            self.kind.name().to_owned()
        } else {
            self.to_json().to_string()
        }
    }

    /// As the database keeps it, for whoever looks there without a config; `None` where the columns have
    /// the names that anybody would try.
    #[must_use]
    pub fn kept(&self) -> Option<Value> {
        let known = matches!(self.kind, LayoutKind::Classic | LayoutKind::Native);
        (!known || !self.is_plain()).then(|| self.to_json())
    }

    fn to_json(&self) -> Value {
        let optional = |name: &Option<String>| name.clone().map_or(Value::Null, Value::String);
        json!({
            "kind": self.kind.name(),
            "id": self.id,
            "aggregate_id": self.aggregate_id,
            "aggregate_type": self.aggregate_type,
            "event_type": self.event_type,
            "payload": self.payload,
            "headers": optional(&self.headers),
            "topic": optional(&self.topic),
            "created_at": optional(&self.created_at),
            "published_at": optional(&self.published_at),
            "placed": (self.placed.iter())
                .map(|it| json!({"column": it.column, "header": it.header, "time": it.is_time}))
                .collect::<Vec<_>>(),
            "routing": self.routing,
        })
    }

    /// What [`Self::kept`] gave, of the database; `None` where it is nothing of ours.
    #[must_use]
    pub fn of_kept(text: &str) -> Option<Self> {
        let kept: Map<String, Value> = serde_json::from_str(text).ok()?;
        let get = |name: &str| Some(kept.get(name)?.as_str()?.to_owned());
        let kind = get("kind")?;
        let named = LayoutKind::NAMED.iter().find(|(name, _)| *name == kind);
        let placed = |it: &Value| {
            Some(Placed {
                column: it.get("column")?.as_str()?.to_owned(),
                header: it.get("header")?.as_str()?.to_owned(),
                is_time: it.get("time")?.as_bool()?,
            })
        };
        Some(Self {
            kind: named.map_or(LayoutKind::Custom, |(_, kind)| *kind),
            id: get("id")?,
            aggregate_id: get("aggregate_id")?,
            aggregate_type: get("aggregate_type")?,
            event_type: get("event_type")?,
            payload: get("payload")?,
            headers: get("headers"),
            topic: get("topic"),
            created_at: get("created_at"),
            published_at: get("published_at"),
            placed: (kept.get("placed")?.as_array()?.iter())
                .map(placed)
                .collect::<Option<_>>()?,
            routing: (kept.get("routing")?.as_array()?.iter())
                .map(|it| it.as_str().map(str::to_owned))
                .collect::<Option<_>>()?,
        })
    }
}

impl Placed {
    /// Reads `column`, `column:header` or `column:header:alias`, as Debezium's
    /// `table.fields.additional.placement` has them.
    ///
    /// # Errors
    /// One sentence on what is wrong with `text`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').map(str::trim).collect();
        let (column, header) = match parts.as_slice() {
            [column] | [column, "header"] => (*column, *column),
            [column, "header", alias] => (*column, *alias),
            [_, "envelope", ..] => {
                return Err(
                    "`envelope` would wrap the payload, and the relay passes it on as it is".into(),
                );
            }
            [_, "partition", ..] => {
                return Err(
                    "`partition` would place rows of an aggregate apart, and the relay keeps its order by \
                     the partition that the key gives"
                        .into(),
                );
            }
            _ => return Err("it is no `column`, `column:header` or `column:header:alias`".into()),
        };
        if column.is_empty() || header.is_empty() {
            return Err("a name is empty".into());
        }
        if text.contains('\0') {
            return Err("it has a NUL".into());
        }
        Ok(Self {
            column: column.to_owned(),
            header: header.to_owned(),
            is_time: false,
        })
    }
}
