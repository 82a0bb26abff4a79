//! Which outbox tables a database has, for commands that look at them without a relay.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::error::Error;
use super::layout::literal;
use super::session::{Session, answer, fixed};
use crate::config::{Database, Layout, LayoutKind, TableName};

/// An outbox that `migrate` made ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownTable {
    /// As the relay's schema has it.
    pub outbox: String,
    /// The table, if it is there.
    pub table: Option<TableName>,
    /// Which columns it has, as far as sampling minds.
    pub layout: Layout,
    /// Its lanes; 0 if there are none.
    pub lanes: u16,
}

/// What a database has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownTables {
    /// Whether the relay's own schema is there.
    pub migrated: bool,
    /// The outboxes, by name.
    pub tables: Vec<KnownTable>,
    /// Connections of relays to this database.
    pub relay_connections: i64,
}

/// What the database has, of `wanted` tables, or of all if none is wanted.
///
/// # Errors
/// Postgres could not be asked.
pub async fn known_tables(
    database: &Database,
    wanted: &BTreeSet<String>,
) -> Result<KnownTables, Error> {
    let mut session = Session::new(database)?;
    let limit = session.answer_timeout();
    let connection = session.connect().await?;
    // Plan: the catalogue alone.
    let doing = "look for the relay's tables";
    // as simple queries: there is no transaction, and a pooler may give each message of a prepared
    // statement to another server process
    let there = sqlx::raw_sql(fixed(
        "select count(*) = 2,
                (select count(*) from pg_catalog.pg_stat_activity a
                  where a.datname = pg_catalog.current_database() and a.application_name = 'outbox-relay'
                    and a.pid <> pg_catalog.pg_backend_pid())
           from pg_catalog.pg_class c
           join pg_catalog.pg_namespace n on n.oid = c.relnamespace
          where n.nspname = 'outbox_relay' and c.relname in ('outbox', 'lane')",
    ));
    let there = answer(limit, doing, there.fetch_one(&mut *connection)).await?;
    let read = || Ok((there.try_get(0)?, there.try_get(1)?));
    let (migrated, relay_connections) =
        read().map_err(|error: sqlx::Error| Error::statement(doing, error))?;
    let mut known = KnownTables {
        migrated,
        relay_connections,
        tables: Vec::new(),
    };
    if !migrated {
        return Ok(known);
    }
    // Plan: a probe of each catalogue an outbox; they are few.
    let doing = "read the outboxes";
    let rows = sqlx::raw_sql(fixed(
        "select o.name, n.nspname::text, c.relname::text,
                (select count(*) from outbox_relay.lane l where l.outbox = o.name)::int4,
                (select count(*) from pg_catalog.pg_attribute a
                  where a.attrelid = c.oid and not a.attisdropped and a.attname in ('headers', 'topic')) = 2,
                -- not by its name: the schema may be older than that column
                to_jsonb(o) ->> 'columns'
           from outbox_relay.outbox o
           left join (pg_catalog.pg_class c
                      join pg_catalog.pg_namespace n on n.oid = c.relnamespace and c.relkind in ('r', 'p'))
             on n.nspname || '.' || c.relname = o.name
          order by 1",
    ));
    let rows = answer(limit, doing, rows.fetch_all(&mut *connection)).await?;
    let read = |row: &PgRow| -> Result<KnownTable, sqlx::Error> {
        let (schema, table): (Option<String>, Option<String>) = (row.try_get(1)?, row.try_get(2)?);
        let native: Option<bool> = row.try_get(4)?;
        let kept: Option<String> = row.try_get(5)?;
        let guessed = || match native {
            Some(true) => Layout::of(LayoutKind::Native),
            _ => Layout::default(),
        };
        Ok(KnownTable {
            outbox: row.try_get(0)?,
            table: schema
                .zip(table)
                .map(|(schema, table)| TableName { schema, table }),
            layout: kept
                .and_then(|kept| Layout::of_kept(&kept))
                .unwrap_or_else(guessed),
            lanes: u16::try_from(row.try_get::<i32, _>(3)?).unwrap_or(0),
        })
    };
    for row in &rows {
        let table = read(row).map_err(|error| Error::statement(doing, error))?;
        if wanted.is_empty() || wanted.contains(&table.outbox) {
            known.tables.push(table);
        }
    }
    Ok(known)
}

/// What the columns of the outbox `name` are called, as the database keeps it; as in the classic layout
/// where it keeps nothing.
///
/// # Errors
/// Postgres could not be asked.
pub(super) async fn layout_kept(
    connection: &mut PgConnection,
    limit: Duration,
    name: &str,
) -> Result<Layout, Error> {
    let doing = "read the outbox's columns";
    let kept = format!(
        "select to_jsonb(o) ->> 'columns' from outbox_relay.outbox o where o.name = {}",
        literal(name)
    );
    let kept = sqlx::raw_sql(fixed(&kept)).fetch_optional(connection);
    let kept = answer(limit, doing, kept).await?;
    let kept = kept.and_then(|row| row.try_get::<Option<String>, _>(0).ok().flatten());
    Ok(kept
        .and_then(|kept| Layout::of_kept(&kept))
        .unwrap_or_default())
}
