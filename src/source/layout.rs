//! Which columns an outbox table has, and what each is to the relay.

use crate::config::{Layout, TableName};

/// A column the relay needs, and the types it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: &'static str,
    /// Names as `format_type` prints them, any of which will do.
    pub(super) types: &'static [&'static str],
    /// Whether a row without it could not even be routed.
    pub(super) not_null: bool,
}

const fn column(name: &'static str, types: &'static [&'static str]) -> Column {
    Column {
        name,
        types,
        not_null: false,
    }
}

const fn not_null(name: &'static str, types: &'static [&'static str]) -> Column {
    Column {
        name,
        types,
        not_null: true,
    }
}

const TEXT: &[&str] = &["text", "character varying"];
const PAYLOAD: &[&str] = &["jsonb", "json", "text", "character varying", "bytea"];
const TIME: &[&str] = &["timestamp with time zone", "timestamp without time zone"];

const CLASSIC: &[Column] = &[
    not_null("id", &["uuid"]),
    column(
        "aggregate_id",
        &["uuid", "text", "character varying", "bigint", "integer"],
    ),
    not_null("aggregate_type", TEXT),
    not_null("event_type", TEXT),
    column("payload", PAYLOAD),
    column("created_at", TIME),
    column("published_at", TIME),
];

const NATIVE: &[Column] = &[
    not_null("id", &["uuid"]),
    column(
        "aggregate_id",
        &["text", "character varying", "uuid", "bigint", "integer"],
    ),
    not_null("aggregate_type", TEXT),
    not_null("event_type", TEXT),
    column("payload", PAYLOAD),
    column("headers", &["jsonb", "json"]),
    column("topic", TEXT),
    column("created_at", TIME),
    column("published_at", TIME),
];

/// The columns of `layout`, without `seq`, which is the relay's own.
pub(super) const fn columns(layout: Layout) -> &'static [Column] {
    match layout {
        Layout::Classic => CLASSIC,
        Layout::Native => NATIVE,
    }
}

/// Whether rows carry headers and a topic of their own.
pub(super) const fn has_headers_and_topic(layout: Layout) -> bool {
    matches!(layout, Layout::Native)
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
