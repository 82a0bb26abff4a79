//! Which columns an outbox table has, and what each is to the relay.

use crate::config::{Layout, LayoutKind, TableName};

/// A column the relay needs, and the types it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    /// Names as `format_type` prints them, any of which will do; none: any type.
    pub(super) types: &'static [&'static str],
    /// Whether a row without it could not even be routed.
    pub(super) not_null: bool,
}

const TEXT: &[&str] = &["text", "character varying"];
const PAYLOAD: &[&str] = &["jsonb", "json", "text", "character varying", "bytea"];
const TIME: &[&str] = &["timestamp with time zone", "timestamp without time zone"];
const KEY: &[&str] = &["text", "character varying", "uuid", "bigint", "integer"];

/// The columns of `layout`, each once, without `seq`, which is the relay's own.
pub(super) fn columns(layout: &Layout) -> Vec<Column> {
    // the first type is the one to add a column with
    let key = match layout.kind {
        LayoutKind::Classic => &["uuid", "text", "character varying", "bigint", "integer"],
        _ => KEY,
    };
    let of = |name: &String, types, not_null| Column {
        name: name.clone(),
        types,
        not_null,
    };
    let needed = [
        (&layout.id, &["uuid"] as &'static [_], true),
        (&layout.aggregate_id, key, false),
        (&layout.aggregate_type, TEXT, true),
        (&layout.event_type, TEXT, true),
        (&layout.payload, PAYLOAD, false),
    ];
    let mut all: Vec<Column> = (needed.into_iter())
        .map(|(name, types, not_null)| of(name, types, not_null))
        .collect();
    let optional = [
        (&layout.headers, &["jsonb", "json"] as &'static [_]),
        (&layout.topic, TEXT),
        (&layout.created_at, TIME),
        (&layout.published_at, TIME),
    ];
    let optional = (optional.into_iter()).filter_map(|(name, types)| Some((name.as_ref()?, types)));
    all.extend(optional.map(|(name, types)| of(name, types, false)));
    let placed = layout.placed.iter().map(|placed| &placed.column);
    for name in placed.chain(&layout.routing) {
        if !all.iter().any(|column| column.name == *name) {
            all.push(of(name, &[], false));
        }
    }
    all
}

/// The names of those that `layout` has only to send them as headers or to route by them.
pub(crate) fn placed_columns(layout: &Layout) -> impl Iterator<Item = String> {
    let of_any_type = columns(layout).into_iter().filter(|it| it.types.is_empty());
    of_any_type.map(|column| column.name)
}

/// What the statements call the columns of a row.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub(super) id: String,
    /// The aggregate's id, as text.
    pub(super) key: String,
    /// The aggregate's type, as text.
    pub(super) aggregate_type: String,
    /// The event's type, as text.
    pub(super) event_type: String,
    /// In the type it has.
    pub(super) payload: String,
    /// Further headers as the text that `Encoding` reads, or null.
    pub(super) own_headers: String,
    /// The row's own topic and what else it is routed by, as the text that `Router` reads, or null.
    pub(super) own_topic: String,
    /// A time, or null where there is none.
    pub(super) created_at: String,
    /// A time, or null where there is none.
    pub(super) published_at: String,
    /// That the row waits still: where there is nothing to mark, each row that is there.
    pub(super) unpublished: String,
}

impl Names {
    /// The payload as it travels: bytes as they are, anything else as Postgres prints it.
    pub(super) fn printed(&self, payload_is_bytea: bool) -> String {
        match payload_is_bytea {
            true => self.payload.clone(),
            false => format!("{}::text", self.payload),
        }
    }

    /// What an event is made of, in the order that `decode::claimed` reads it behind the row's place.
    pub(super) fn event(&self, payload_is_bytea: bool) -> String {
        let Self {
            id,
            key,
            aggregate_type,
            event_type,
            own_headers,
            own_topic,
            created_at,
            ..
        } = self;
        let payload = self.printed(payload_is_bytea);
        format!(
            "{id}, {aggregate_type}, {key}, {event_type}, {payload}, {own_headers}, {own_topic}, {created_at}"
        )
    }
}

/// The columns of a row of `layout` that SQL calls `row`: `"t."`, or nothing.
pub(super) fn names(layout: &Layout, row: &str) -> Names {
    let of = |name: &str| format!("{row}{}", quote_if_need_be(name));
    let optional = |name: &Option<String>| name.as_deref().map(of);
    let time = |name: Option<String>| name.unwrap_or_else(|| "null::timestamptz".to_owned());
    let published_at = optional(&layout.published_at);
    let own = |name: &Option<String>, or: &str| {
        optional(name).map_or_else(|| or.to_owned(), |name| format!("{name}::text"))
    };
    let own_headers = if layout.placed.is_empty() {
        own(&layout.headers, "null::text")
    } else {
        let placed = layout.placed.iter().map(|placed| {
            let column = of(&placed.column);
            let value = match placed.is_time {
                true => format!(
                    "to_char({column}::timestamptz at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
                ),
                false => format!("{column}::text"),
            };
            format!("{}::text, {value}", literal(&placed.header))
        });
        format!(
            "json_build_array({}, json_build_object({}))::text",
            optional(&layout.headers).unwrap_or_else(|| "null".to_owned()),
            placed.collect::<Vec<_>>().join(", ")
        )
    };
    let own_topic = if layout.routing.is_empty() {
        own(&layout.topic, "null::text")
    } else {
        let columns = layout
            .routing
            .iter()
            .map(|name| format!("{}::text", of(name)));
        let all: Vec<String> = std::iter::once(own(&layout.topic, "null::text"))
            .chain(columns)
            .collect();
        format!("json_build_array({})::text", all.join(", "))
    };
    Names {
        id: of(&layout.id),
        key: format!("{}::text", of(&layout.aggregate_id)),
        aggregate_type: format!("{}::text", of(&layout.aggregate_type)),
        event_type: format!("{}::text", of(&layout.event_type)),
        payload: of(&layout.payload),
        own_headers,
        own_topic,
        created_at: time(optional(&layout.created_at)),
        unpublished: (published_at.as_ref())
            .map_or_else(|| "true".to_owned(), |name| format!("{name} is null")),
        published_at: time(published_at),
    }
}

/// The name as it is written in SQL behind a row's: as it is, where Postgres would not take it otherwise.
pub(crate) fn quote_if_need_be(name: &str) -> String {
    // what follows has been written so since before it could be anything else
    const KNOWN: [&str; 10] = [
        "id",
        "aggregate_id",
        "aggregate_type",
        "event_type",
        "payload",
        "headers",
        "topic",
        "created_at",
        "published_at",
        "seq",
    ];
    match KNOWN.contains(&name) {
        true => name.to_owned(),
        false => quote(name),
    }
}

/// The name as it is written in SQL: quoted, whatever it holds.
pub(crate) fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// `"schema"."table"`.
pub(crate) fn quote_table(table: &TableName) -> String {
    format!("{}.{}", quote(&table.schema), quote(&table.table))
}

/// The text as an SQL literal.
pub(crate) fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// The index that serves the claim. Its name carries the number of lanes, which its expression
/// depends on.
pub(super) fn index_name(table: &TableName, lanes: u16) -> String {
    own_name(table, &format!("_outbox_relay_{lanes}"))
}

/// The name of something of ours beside the table: its own and a suffix. A long one is cut, and told
/// apart by a hash, to fit Postgres' 63 bytes.
pub(super) fn own_name(table: &TableName, suffix: &str) -> String {
    let name = &table.table;
    if name.len() + suffix.len() <= 63 {
        return format!("{name}{suffix}");
    }
    format!("{}{suffix}", cut_name(name, 39, true))
}

/// `name` in `bytes_max` bytes; one that is longer, or that is to be `hashed`, is told apart by a hash.
pub(super) fn cut_name(name: &str, bytes_max: usize, hashed: bool) -> String {
    const HASH: usize = "_01234567".len();
    if name.len() <= bytes_max && !hashed {
        return name.to_owned();
    }
    let mut head: String = name.chars().take(bytes_max - HASH).collect();
    while head.len() > bytes_max - HASH {
        head.pop();
    }
    // FNV-1a: a stable, well-known hash is all that is wanted
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{head}_{:08x}", hash & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_cut_to_what_postgres_keeps() {
        let name = |table: &str| TableName {
            schema: "public".into(),
            table: table.into(),
        };
        assert_eq!(quote_table(&name("out\"box")), "\"public\".\"out\"\"box\"");
        assert_eq!(index_name(&name("outbox"), 16), "outbox_outbox_relay_16");
        let (a, b) = ("x".repeat(62) + "a", "x".repeat(62) + "b");
        let (a, b) = (index_name(&name(&a), 1024), index_name(&name(&b), 1024));
        assert_ne!(a, b);
        assert!(a.len() <= 63 && b.len() <= 63);
        assert!(index_name(&name(&"ä".repeat(31)), 16).len() <= 63);
        assert_eq!(literal("o'b\\x"), "E'o''b\\\\x'");
        assert_eq!(literal("o'b"), "'o''b'");
    }
}
