//! The functions that a service may write events by, instead of an insert. What they are made of is in
//! migrations/0009_emit.sql; here is what is asked for.
//!
//! **A function for each outbox**, rather than one that is told the table: whoever may call it may write to
//! that outbox and to no other, and its statement is a fixed one, planned once a session.

use serde_json::{Map, Value};

use super::layout::{cut_name, literal, quote_table};
use crate::config::{Outbox, TableName};

/// The name of the functions of an outbox that is not the first of its database: `emit_schema_table`. What
/// could be read as another table's, or as its `…_batch`, has a hash at its end.
fn name(table: &TableName) -> String {
    // `_batch` is appended, in 63 bytes altogether
    const BYTES_MAX: usize = 56;
    let name = format!("emit_{}_{}", table.schema, table.table);
    let doubtful = table.schema.contains('_') || name.ends_with("_batch");
    cut_name(&name, BYTES_MAX, doubtful)
}

/// What the table calls each of an event's columns, as SQL.
fn names(outbox: &Outbox) -> String {
    let layout = &outbox.layout;
    let needed = [
        ("id", &layout.id),
        ("aggregate_id", &layout.aggregate_id),
        ("aggregate_type", &layout.aggregate_type),
        ("event_type", &layout.event_type),
        ("payload", &layout.payload),
    ];
    let optional = [
        ("headers", &layout.headers),
        ("topic", &layout.topic),
        ("created_at", &layout.created_at),
    ];
    let optional = (optional.into_iter()).filter_map(|(role, name)| Some((role, name.as_ref()?)));
    let all: Map<String, Value> = (needed.into_iter().chain(optional))
        .map(|(role, name)| (role.to_owned(), Value::from(name.as_str())))
        .collect();
    literal(&Value::Object(all).to_string())
}

/// Makes the functions, or makes them anew. Locks nothing of the table's.
pub(super) fn make(outbox: &Outbox) -> String {
    format!(
        "select outbox_relay.make_emitter({key}, {table}::regclass, {names}::jsonb, {name});",
        key = literal(&outbox.table.to_string()),
        table = literal(&quote_table(&outbox.table)),
        names = names(outbox),
        name = literal(&name(&outbox.table)),
    )
}

/// Whether there could be functions and are none, or the table was changed since they were made.
pub(super) fn is_wanted(outbox: &Outbox) -> String {
    format!(
        "select coalesce(m.wanted is distinct from (
                  select e.made_for from outbox_relay.emitter e where e.outbox = {key})
                and m.wanted is not null, false)
           from (select outbox_relay.emitter_of({table}::regclass, {names}::jsonb) as wanted) m",
        key = literal(&outbox.table.to_string()),
        table = literal(&quote_table(&outbox.table)),
        names = names(outbox),
    )
}

/// Whether the present role may read which functions there are. Plan: the catalogue.
pub(super) const READABLE: &str = "select coalesce((select has_table_privilege(c.oid, 'select')
                        from pg_catalog.pg_class c
                        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                       where n.nspname = 'outbox_relay' and c.relname = 'emitter'), false)";

/// The name of the functions of `table`, as a value in SQL; null where there are none.
pub(super) fn made(table: &TableName) -> String {
    format!(
        "(select 'outbox_relay.' || e.name from outbox_relay.emitter e where e.outbox = {})",
        literal(&table.to_string())
    )
}

/// Takes the functions of `table` away.
pub(super) fn drop(table: &TableName) -> String {
    format!(
        "select outbox_relay.drop_emitter({});\n",
        literal(&table.to_string())
    )
}

/// Lets `writer` call them.
pub(super) fn allow(table: &TableName, writer: &str) -> String {
    format!(
        "select outbox_relay.allow_emit({}, {});\n",
        literal(&table.to_string()),
        literal(writer)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tables_share_a_name() {
        let named = |schema: &str, table: &str| {
            name(&TableName {
                schema: schema.into(),
                table: table.into(),
            })
        };
        assert_eq!(named("public", "outbox"), "emit_public_outbox");
        assert_ne!(named("a", "b_c"), named("a_b", "c"));
        assert_ne!(named("a", "b_batch"), format!("{}_batch", named("a", "b")));
        let long = named("s", &"x".repeat(63));
        assert!(format!("{long}_batch").len() <= 63, "{long}");
        assert_ne!(long, named("s", &format!("{}y", "x".repeat(62))));
    }
}
