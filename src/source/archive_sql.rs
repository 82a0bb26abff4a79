//! The statements about histories: where rows go with `on_published = "archive"`.
//!
//! **One partitioned table for each outbox**, not one for all: the retention of each drops whole
//! partitions of its own, and the columns have the very types of the service's table. A payload is then
//! copied as it is stored, neither printed nor parsed, and a replay prints the bytes that were published.
//!
//! **No index on the partition that rows go to.** Measured inside Postgres 15 with fsync off, a checkpoint
//! before each run, 200,000 rows with payloads of 200 bytes, 2,000 a transaction: a row costs 448 WAL bytes
//! to delete, 819 to move, 955 to mark. An index on the random `id` adds 91 to the move, one on `seq` 67,
//! where all of it fits into memory; beyond that more is to be expected, which was not measured. Rates were
//! too unsteady to be quoted: the index on `id` was slower in both runs. What is looked up by id reads the
//! youngest partitions, and goes by an index in those that take no more rows, where `index_history` makes
//! one in a single pass.

use std::time::Duration;

use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

use super::layout::{columns, cut_name, literal, names, quote, quote_if_need_be, quote_table};
use crate::config::{Layout, Outbox, TableName};

/// The name of the history of `table`, in the schema outbox_relay: `history_schema_table`. A schema with an
/// underscore would be told apart from no other split, so a hash is added then.
pub(super) fn history_name(table: &TableName) -> String {
    // partitions append `_p20260101_0000`, in 63 bytes altogether
    const BYTES_MAX: usize = 48;
    let name = format!("history_{}_{}", table.schema, table.table);
    cut_name(&name, BYTES_MAX, table.schema.contains('_'))
}

/// The same, with its schema, as SQL has it: quoted if need be.
pub(super) fn history(table: &TableName) -> String {
    let name = history_name(table);
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    match name.chars().all(plain) {
        true => format!("outbox_relay.{name}"),
        false => format!("outbox_relay.{}", quote(&name)),
    }
}

/// What is moved: the columns of the layout and `seq`. `published_at` is the history's own.
pub(super) fn moved_columns(layout: &Layout) -> impl Iterator<Item = String> {
    let own = columns(layout).into_iter().map(|column| column.name);
    let published_at = (layout.published_at.clone()).unwrap_or_else(|| "published_at".to_owned());
    std::iter::once("seq".to_owned()).chain(own.filter(move |name| *name != published_at))
}

/// The same, as SQL has them.
fn moved_quoted(layout: &Layout) -> Vec<String> {
    let names = moved_columns(layout);
    names.map(|name| quote_if_need_be(&name)).collect()
}

/// The same, as the text of an array.
fn moved_array(layout: &Layout) -> String {
    let quoted = |name: String| format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
    let names: Vec<String> = moved_columns(layout).map(quoted).collect();
    literal(&format!("{{{}}}", names.join(",")))
}

/// Moves the rows of `name` that are `these`, a condition on `t`, to its history. In one statement: no row
/// can be in both, or in neither. One time for all of them, so that they go to one partition.
/// Plan: tid scan for the delete, then an insert of what it returns.
///
/// The `case` is never taken, and gone from the plan. It lets a column that has changed its type in one of
/// the two be an error (42804), where the insert alone would make jsonb of json, and other bytes.
pub(super) fn finish(name: &TableName, layout: &Layout, these: &str) -> String {
    let columns = moved_quoted(layout);
    let own: Vec<String> = columns.iter().map(|column| format!("t.{column}")).collect();
    let history = history(name);
    let strict = |column: &String| {
        format!("case when false then (null::{history}).{column} else g.{column} end")
    };
    let strict: Vec<String> = columns.iter().map(strict).collect();
    format!(
        "with gone as (
           delete from {rows} t where {these}
           returning {own})
         insert into {history} ({columns}, published_at)
         select {strict}, statement_timestamp() from gone g",
        rows = quote_table(name),
        own = own.join(", "),
        strict = strict.join(", "),
        columns = columns.join(", "),
    )
}

/// Copies the parked rows $1, which were published after all, to the history of `name`; how many.
pub(super) fn parked(name: &TableName) -> String {
    format!(
        "select outbox_relay.archive_parked({}, $1::int8[])",
        literal(&history_name(name))
    )
}

/// Makes the history of `outbox` where it is not there, and partitions for the next days.
pub(super) fn make(outbox: &Outbox) -> String {
    let name = &outbox.table;
    let columns = moved_array(&outbox.layout);
    format!(
        "select outbox_relay.make_history({key}, {table}::regclass, {history}, {columns});
select outbox_relay.tend_history({key}, {step}, null);",
        key = literal(&name.to_string()),
        table = literal(&quote_table(name)),
        history = literal(&history_name(name)),
        step = outbox.archive_partition.as_secs_f64(),
    )
}

/// Tends the history of the outbox $1, whose partitions are $2 seconds long and go after $3 more.
pub(super) const TEND: &str = "select t.made, t.dropped, t.deleted, t.strays, t.waits, t.indexable
   from outbox_relay.tend_history($1, $2, $3) t";

/// Makes the index on id of the partition $2 of the history of the outbox $1, if it takes no more rows.
/// Locks that partition against writes.
pub(super) const INDEX: &str = "select outbox_relay.index_history($1, $2)";

/// Lets this transaction's statements take as long as `limit`.
pub(super) fn patience(limit: Duration) -> SqlStr {
    let text = format!("set local statement_timeout = {}", limit.as_millis());
    AssertSqlSafe(text).into_sql_str()
}

/// The rows of `name` that were published, as `t`, to stand behind `from`: those of its history, and those
/// that are marked in the table itself. Plan: an append over partitions; by place a tid scan of each.
pub(super) fn published(name: &TableName, layout: &Layout) -> String {
    let columns = moved_quoted(layout).join(", ");
    let history = history(name);
    let archived = format!("select tableoid, ctid, {columns}, published_at from {history}");
    if layout.published_at.is_none() {
        return format!("({archived}) t");
    }
    let published_at = names(layout, "").published_at;
    format!(
        "({archived}
           union all
          select tableoid, ctid, {columns}, {published_at} from {rows} where {published_at} is not null) t",
        rows = quote_table(name),
    )
}

/// The event $1 in the history of `name`, as the lookup reads a row of the table: no lane, nobody has it
/// locked. Plan: an append over the partitions, by the index on id where there is one.
pub(super) fn find(name: &TableName, layout: &Layout, published_at: &str) -> String {
    let row = names(layout, "t.");
    format!(
        "select t.seq, {aggregate_type}, {key}, {event_type}, {own_topic},
                {published_at}, (extract(epoch from t.published_at) * 1000)::int8,
                null::int8, 0::int8, null::int4, ''::text, ''::text, 0::int8
           from {history} t where {id} = $1
          order by t.published_at desc limit 1",
        history = history(name),
        aggregate_type = row.aggregate_type,
        key = row.key,
        event_type = row.event_type,
        own_topic = row.own_topic,
        id = row.id,
    )
}

/// Whether `name` has a history, and the role may read it.
pub(super) fn readable(name: &TableName) -> String {
    format!(
        "select coalesce(has_schema_privilege('outbox_relay', 'usage')
                         and has_table_privilege(to_regclass({history}), 'select'), false)",
        history = literal(&history(name)),
    )
}

/// The history of `name`, if there is one, as a value in a `select`.
pub(super) fn made(name: &TableName) -> String {
    format!("to_regclass({})::text", literal(&history(name)))
}

/// What `migrate` would still have to make: whether there is a history that rows of every time can go to,
/// and the columns of it that are missing. From the catalogue alone: the role may have no rights yet.
pub(super) fn missing(name: &TableName, layout: &Layout) -> String {
    format!(
        "select exists (select from pg_catalog.pg_partitioned_table p
                         where p.partrelid = {oid} and p.partdefid <> 0),
                array(select c.name from unnest({columns}::text[]) as c (name)
                       where not exists (select from pg_catalog.pg_attribute a
                              where a.attrelid = {oid} and a.attname = c.name and not a.attisdropped))",
        columns = moved_array(layout),
        oid = oid(name),
    )
}

/// The oid of the history of `name`, or null. Not by `to_regclass`, which needs rights in the schema.
fn oid(name: &TableName) -> String {
    format!(
        "(select h.oid from pg_catalog.pg_class h join pg_catalog.pg_namespace n on n.oid = h.relnamespace
           where n.nspname = 'outbox_relay' and h.relname = {})",
        literal(&history_name(name))
    )
}

/// The same in one word: whether nothing is missing.
pub(super) fn is_made(name: &TableName, layout: &Layout) -> String {
    format!(
        "select x.there and x.missing = '{{}}' from ({}) x (there, missing)",
        missing(name, layout)
    )
}

/// Columns that are of other types in the history of `name` than in the table: name, type here, type there.
/// Text may have been narrower, and whole numbers.
pub(super) fn other_types(name: &TableName, layout: &Layout) -> String {
    format!(
        "select o.attname::text, w.type, format_type(h.atttypid, null)
           from pg_catalog.pg_attribute o
           join pg_catalog.pg_attribute h
             on h.attrelid = {oid} and h.attname = o.attname and not h.attisdropped
          cross join lateral
                (select case format_type(o.atttypid, null)
                          when 'character varying' then 'text' when 'integer' then 'bigint'
                          else format_type(o.atttypid, null) end as type) w
          where o.attrelid = {table}::regclass and o.attname = any ({columns}) and not o.attisdropped
            and w.type <> format_type(h.atttypid, null)
          order by 1",
        oid = oid(name),
        table = literal(&quote_table(name)),
        columns = moved_array(layout),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LayoutKind;

    #[test]
    fn a_history_is_named_after_its_table_and_after_no_other() {
        let name = |schema: &str, table: &str| {
            history_name(&TableName {
                schema: schema.into(),
                table: table.into(),
            })
        };
        assert_eq!(name("public", "outbox"), "history_public_outbox");
        assert_ne!(name("a_b", "c"), name("a", "b_c"));
        assert_ne!(name("a_b", "c"), name("a_b", "d"));
        let (a, b) = ("x".repeat(62) + "a", "x".repeat(62) + "b");
        assert_ne!(name("public", &a), name("public", &b));
        assert!(name("public", &a).len() <= 48 && name(&"ä".repeat(31), &a).len() <= 48);
    }

    #[test]
    fn what_is_moved_is_the_layout_and_its_number() {
        let columns: Vec<_> = moved_columns(&Layout::of(LayoutKind::Native)).collect();
        let has = |name: &str| columns.iter().any(|column| column == name);
        assert!(has("seq") && has("headers"));
        assert!(!has("published_at"), "{columns:?}");
    }
}
