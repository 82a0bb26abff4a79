//! The statement that makes an outbox table, for whoever has none yet.

use crate::config::{Layout, LayoutKind, TableName};
use crate::source::{placed_columns, quote_if_need_be, quote_table};

/// The statement that makes a table as the documents have it.
pub(super) fn create(table: &TableName, layout: &Layout) -> String {
    let table = quote_table(table);
    let columns = match layout.kind {
        LayoutKind::Classic => {
            "aggregate_id uuid not null, aggregate_type text not null, event_type text not null, \
             payload jsonb not null"
                .to_owned()
        }
        LayoutKind::Debezium => {
            "aggregatetype varchar(255) not null, aggregateid varchar(255) not null, \
             type varchar(255) not null, payload jsonb"
                .to_owned()
        }
        LayoutKind::Native | LayoutKind::Custom => {
            let mut columns = format!(
                "{} text, {} text not null, {} text not null, {} jsonb",
                quote_if_need_be(&layout.aggregate_id),
                quote_if_need_be(&layout.aggregate_type),
                quote_if_need_be(&layout.event_type),
                quote_if_need_be(&layout.payload),
            );
            for (name, of_type) in [(&layout.headers, "jsonb"), (&layout.topic, "text")] {
                if let Some(name) = name {
                    columns.push_str(&format!(", {} {of_type}", quote_if_need_be(name)));
                }
            }
            columns
        }
    };
    let mut sql = format!(
        "create table {table} ({} uuid primary key default gen_random_uuid(), {columns}",
        quote_if_need_be(&layout.id)
    );
    if let Some(name) = &layout.created_at {
        let name = quote_if_need_be(name);
        sql.push_str(&format!(", {name} timestamptz not null default now()"));
    }
    if let Some(name) = &layout.published_at {
        sql.push_str(&format!(", {} timestamptz", quote_if_need_be(name)));
    }
    for name in placed_columns(layout) {
        sql.push_str(&format!(", {} text", quote_if_need_be(&name)));
    }
    sql.push_str(");");
    sql
}
