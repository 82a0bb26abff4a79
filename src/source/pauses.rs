//! What is paused: read by relays, changed by operators. The claims read it too, in the statement that
//! takes lanes; this is for who, since when and why.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _, SqlSafeStr as _, SqlStr};

use super::audit;
use super::error::Error;
use super::inspect::Inspector;
use super::layout::{literal, quote_table};
use super::parked::Who;
use super::session::{Session, answer, fixed};
use super::sql::{Timeouts, begin};
use crate::config::Database;

/// One row of `outbox_relay.pause`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// The table.
    pub outbox: String,
    /// The topic; empty: the whole outbox.
    pub topic: String,
    /// Since when, in UTC (RFC 3339).
    pub since: String,
    /// For how long, in seconds, by the database's clock.
    pub age_s: i64,
    /// Who: user and host as their environment named them, else the database's role.
    pub by: String,
    /// Why, if they said.
    pub reason: Option<String>,
}

impl Pause {
    /// `the whole outbox`, or `the topic x`.
    #[must_use]
    pub fn what(&self) -> String {
        match self.topic.as_str() {
            "" => "the whole outbox".to_owned(),
            topic => format!("the topic {topic}"),
        }
    }

    /// Who paused it, and why.
    #[must_use]
    pub fn told(&self) -> String {
        let why = self.reason.as_deref().map(|why| format!(": {why}"));
        format!("paused by {}{}", self.by, why.unwrap_or_default())
    }

    /// For how long, when it was read.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.age_s).unwrap_or(0))
    }
}

/// The rows of `outboxes`, or of all; a few at most. As text, because whoever asks has no transaction: a
/// pooler may give each message of a prepared statement to another server process.
fn select(outboxes: &[String]) -> String {
    let names: Vec<String> = outboxes.iter().map(|name| literal(name)).collect();
    let of = match names.is_empty() {
        true => String::new(),
        false => format!("where p.outbox in ({})", names.join(", ")),
    };
    format!(
        "select p.outbox, p.topic,
                to_char(p.paused_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
                extract(epoch from clock_timestamp() - p.paused_at)::int8,
                coalesce(p.os_user || coalesce('@' || p.host, ''), p.role), p.reason
           from outbox_relay.pause p {of}
          order by p.outbox, p.topic"
    )
}

fn read(row: &PgRow) -> Result<Pause, sqlx::Error> {
    Ok(Pause {
        outbox: row.try_get(0)?,
        topic: row.try_get(1)?,
        since: row.try_get(2)?,
        age_s: row.try_get(3)?,
        by: row.try_get(4)?,
        reason: row.try_get(5)?,
    })
}

async fn list(session: &mut Session, outboxes: &[String]) -> Result<Vec<Pause>, Error> {
    const DOING: &str = "read what is paused";
    let limit = session.answer_timeout();
    let connection = session.connect().await?;
    let rows = sqlx::raw_sql(fixed(&select(outboxes))).fetch_all(connection);
    let rows = answer(limit, DOING, rows).await?;
    let read: Result<_, sqlx::Error> = rows.iter().map(read).collect();
    read.map_err(|error| Error::statement(DOING, error))
}

impl Inspector {
    /// What is paused of the outbox.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn pauses(&mut self) -> Result<Vec<Pause>, Error> {
        let outbox = [self.outbox.table.to_string()];
        let pauses = list(&mut self.session, &outbox).await;
        self.session.discard();
        pauses
    }
}

impl Inspector {
    /// How many rows are pending, as far as `max`: that many more are not read.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn backlog(&mut self, max: i64) -> Result<u64, Error> {
        const DOING: &str = "count what is pending";
        let limit = self.session.answer_timeout();
        let count = format!(
            "select count(*) from (select from {} where published_at is null and seq is not null limit {max}) t",
            quote_table(&self.outbox.table)
        );
        let connection = self.session.connect().await?;
        let row = sqlx::raw_sql(fixed(&count)).fetch_one(connection);
        let row = answer(limit, DOING, row).await;
        self.session.discard();
        let rows = row?.try_get::<i64, _>(0);
        let rows = rows.map_err(|error| Error::statement(DOING, error))?;
        Ok(u64::try_from(rows).unwrap_or(0))
    }
}

/// Pauses and resumes.
#[derive(Debug)]
pub struct Pauser {
    session: Session,
    open: SqlStr,
}

/// What a pause or its end came to in one outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PauseChange {
    /// Pauses that are there now and were not, or are not there any more.
    pub changed: i64,
    /// The entry in the audit; none if nothing changed.
    pub audit_id: Option<i64>,
}

impl Pauser {
    /// Of `database`; connects when it is first asked.
    ///
    /// # Errors
    /// The database URL is none.
    pub fn new(database: &Database) -> Result<Self, Error> {
        let timeouts = Timeouts {
            statement_ms: database.statement_timeout.as_millis(),
            idle_ms: 30_000,
            tcp_ms: 30_000,
        };
        let open = begin(timeouts, "set local lock_timeout = 5000;");
        Ok(Self {
            session: Session::new(database)?,
            open: AssertSqlSafe(open).into_sql_str(),
        })
    }

    /// The outboxes that relays know in this database.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn outboxes(&mut self) -> Result<Vec<String>, Error> {
        const DOING: &str = "ask which outboxes there are";
        let limit = self.session.answer_timeout();
        let connection = self.session.connect().await?;
        let names = sqlx::raw_sql(fixed("select name from outbox_relay.outbox order by name"));
        let names = answer(limit, DOING, names.fetch_all(connection)).await?;
        let names: Result<_, sqlx::Error> = names.iter().map(|row| row.try_get(0)).collect();
        names.map_err(|error| Error::statement(DOING, error))
    }

    /// What is paused of `outboxes`, or of all if there are none.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn list(&mut self, outboxes: &[String]) -> Result<Vec<Pause>, Error> {
        list(&mut self.session, outboxes).await
    }

    /// Pauses `topics` of each of `outboxes`; no topic means the whole outbox.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused: nothing was changed.
    pub async fn pause(
        &mut self,
        outboxes: &[String],
        topics: &[String],
        who: &Who,
    ) -> Result<BTreeMap<String, PauseChange>, Error> {
        let insert = "insert into outbox_relay.pause (outbox, topic, os_user, host, reason)
             select $1, t.topic, $3, $4, $5 from unnest($2::text[]) as t (topic)
             on conflict do nothing";
        self.change("pause", insert, outboxes, topics, who).await
    }

    /// Ends those pauses; no topic means all of the outbox's.
    ///
    /// # Errors
    /// As [`Pauser::pause`].
    pub async fn resume(
        &mut self,
        outboxes: &[String],
        topics: &[String],
        who: &Who,
    ) -> Result<BTreeMap<String, PauseChange>, Error> {
        let delete = "delete from outbox_relay.pause
              where outbox = $1 and (cardinality($2::text[]) = 0 or topic = any ($2))";
        self.change("resume", delete, outboxes, topics, who).await
    }

    async fn change(
        &mut self,
        command: &'static str,
        sql: &'static str,
        outboxes: &[String],
        topics: &[String],
        who: &Who,
    ) -> Result<BTreeMap<String, PauseChange>, Error> {
        let limit = self.session.answer_timeout();
        let connection = self.session.begin(&self.open).await?;
        let whole = [String::new()];
        let mut all = BTreeMap::new();
        for outbox in outboxes {
            let change = match command {
                "pause" => {
                    let topics = if topics.is_empty() {
                        &whole[..]
                    } else {
                        topics
                    };
                    sqlx::query(sql)
                        .bind(outbox)
                        .bind(topics)
                        .bind(&who.os_user)
                        .bind(&who.host)
                        .bind(&who.note)
                }
                _ => sqlx::query(sql).bind(outbox).bind(topics),
            };
            let changed = answer(limit, command, change.execute(&mut *connection)).await?;
            let changed = i64::try_from(changed.rows_affected()).unwrap_or(i64::MAX);
            let filter = serde_json::json!({ "topics": topics });
            let entry = audit::Entry {
                outbox,
                command,
                filter: &filter,
                rows: changed,
            };
            let audit_id = match changed {
                0 => None,
                _ => Some(audit::write(connection, limit, &entry, who).await?),
            };
            all.insert(outbox.clone(), PauseChange { changed, audit_id });
        }
        self.session.end("commit").await?;
        Ok(all)
    }
}
