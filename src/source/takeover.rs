//! Before a relay first serves a table: is somebody else's worker still at it?

use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::error::Error;
use super::inspect::Inspector;
use super::layout::{literal, names, quote_table};
use super::partitions::relations;
use super::session::{answer, committed, fixed};

impl Inspector {
    /// Whether somebody else's worker marks or deletes rows of this table. Only asked before any
    /// relay has served it: nobody but that worker would then. Takes some seconds when the table has
    /// a past. `None`: nobody does; the table is the relays' from now on.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn other_worker(&mut self) -> Result<Option<String>, Error> {
        let found = self.find_other_worker().await;
        self.session.discard();
        found
    }

    async fn find_other_worker(&mut self) -> Result<Option<String>, Error> {
        let limit = self.session.answer_timeout();
        let name = self.outbox.table.to_string();
        let connection = self.session.connect().await?;
        let adopted = format!(
            "select adopted_at is not null from outbox_relay.outbox where name = {}",
            literal(&name)
        );
        if ask(connection, limit, "read the outbox's entry", adopted).await? == Some(true) {
            return Ok(None);
        }
        let rows = quote_table(&self.outbox.table);
        // updates and deletes of the table so far. A backend reports at its transactions' ends, at
        // most once a second (PGSTAT_MIN_INTERVAL), so a worker that is at it shows within two.
        let changes = format!(
            "select sum(pg_stat_get_tuples_updated(r.oid) + pg_stat_get_tuples_deleted(r.oid))::int8
               from {} r",
            relations(&rows)
        );
        let before = changes_so_far(connection, limit, &changes).await?;
        let has_a_past = match before {
            // statistics can be lost, so marked rows count too; and a table that is too large to be read
            // within the time that a statement has may have some
            0 => {
                let marked = format!(
                    "select count(*) = {MARKED_LOOK_ROWS} or coalesce(bool_or(t.at is not null), false)
                       from (select {} as at from {} limit {MARKED_LOOK_ROWS}) t",
                    names(&self.outbox.layout, "").published_at,
                    quote_table(&self.outbox.table),
                );
                ask(connection, limit, "look for marked rows", marked).await? == Some(true)
            }
            _ => true,
        };
        if has_a_past {
            for _ in 0..OTHER_WORKER_LOOKS {
                tokio::time::sleep(OTHER_WORKER_PAUSE).await;
                if changes_so_far(connection, limit, &changes).await? != before {
                    return Ok(Some(format!(
                        "another worker is marking or deleting rows of {name}: two would publish the \
                         same rows, in no order. Stop it; this relay starts when the table has been \
                         quiet for {} s",
                        (OTHER_WORKER_PAUSE * OTHER_WORKER_LOOKS).as_secs()
                    )));
                }
            }
        }
        let adopt = format!(
            "update outbox_relay.outbox set adopted_at = now()
              where name = {} and adopted_at is null",
            literal(&name)
        );
        committed(connection, limit, "adopt the outbox", &adopt).await?;
        Ok(None)
    }
}

/// How many rows are looked at for a mark: a second or some, read from disk.
const MARKED_LOOK_ROWS: u32 = 2_000_000;
/// Ten seconds in all: a worker that polls has come round by then.
const OTHER_WORKER_LOOKS: u32 = 20;
const OTHER_WORKER_PAUSE: Duration = Duration::from_millis(500);

async fn changes_so_far(
    connection: &mut PgConnection,
    limit: Duration,
    sql: &str,
) -> Result<i64, Error> {
    let changes = ask(
        connection,
        limit,
        "read the table's statistics",
        sql.to_owned(),
    );
    Ok(changes.await?.unwrap_or(0))
}

/// The one value that a query returns, by a simple query: a pooler may give each message of a
/// prepared one to another server process.
async fn ask<T>(
    connection: &mut PgConnection,
    limit: Duration,
    doing: &'static str,
    sql: String,
) -> Result<Option<T>, Error>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    let row = sqlx::raw_sql(fixed(&sql)).fetch_one(connection);
    let row = answer(limit, doing, row).await?;
    row.try_get(0)
        .map_err(|error| Error::statement(doing, error))
}
