//! The audit: one entry for each command and outbox, in the transaction that did it.

use std::time::Duration;

use sqlx::postgres::PgConnection;

use super::error::Error;
use super::parked::Who;
use super::session::answer;

/// What somebody did.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) outbox: &'a str,
    pub(super) command: &'a str,
    /// What was asked for.
    pub(super) filter: &'a serde_json::Value,
    pub(super) rows: i64,
}

/// Writes an entry; its number.
pub(super) async fn write(
    connection: &mut PgConnection,
    limit: Duration,
    entry: &Entry<'_>,
    who: &Who,
) -> Result<i64, Error> {
    let sql = "insert into outbox_relay.audit
                      (outbox, command, os_user, host, note, filter, rows, parked_ids)
               values ($1, $2, $3, $4, $5, $6::jsonb, $7, '{}')
               returning audit_id";
    let written = sqlx::query_scalar::<_, i64>(sql)
        .bind(entry.outbox)
        .bind(entry.command)
        .bind(&who.os_user)
        .bind(&who.host)
        .bind(&who.note)
        .bind(entry.filter.to_string())
        .bind(entry.rows)
        .fetch_one(connection);
    answer(limit, "write the audit", written).await
}
