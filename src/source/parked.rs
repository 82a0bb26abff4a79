//! What operators ask of parked rows, and do to them.
//!
//! A change locks the lanes of the rows it touches, as a relay does that publishes them: while it is
//! made, no relay is in the middle of those rows, and when a relay next looks, all of it is there. It
//! is one transaction, its audit included, and it waits for a lane only for a short time at once: a
//! lane that a relay holds comes free when its batch ends.
//!
//! `retry` puts rows back in the line of their aggregate, in `seq` order, and lets the first of the line
//! be published if nothing that is blocked stands before it; the relay does the rest. `skip` makes them
//! dead rows with a date, which nothing waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres, Row as _, SqlSafeStr, SqlStr};
use uuid::Uuid;

use super::error::Error;
use super::session::{Session, answer};
use super::sql::{Timeouts, begin, of_key, promote};
use crate::config::Database;

/// How long a change waits for one lock, before it lets go of all it has and tries again.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it tries.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Which parked rows. An empty list means any.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Filter {
    /// Tables, `schema.table` as the catalogue names them.
    pub outboxes: Vec<String>,
    /// Aggregate ids.
    pub keys: Vec<String>,
    /// Event types.
    pub event_types: Vec<String>,
    /// Classes of reasons, such as `too_large`.
    pub reasons: Vec<String>,
    /// States, as [`Row::state`] has them.
    pub states: Vec<String>,
    /// Ids of parked rows.
    pub ids: Vec<i64>,
    /// Parked longer ago than this many seconds.
    pub older_than_s: Option<f64>,
    /// Parked since this many seconds.
    pub newer_than_s: Option<f64>,
}

/// The state as it is shown: a dead row that somebody gave up is skipped.
const STATE: &str =
    "case when p.state = 'dead' and p.skipped_at is not null then 'skipped' else p.state end";

/// The filter as a condition on `p`, its arguments being $1 to $8.
fn matches() -> String {
    format!(
        "(cardinality($1::text[]) = 0 or p.outbox = any ($1))
         and (cardinality($2::text[]) = 0 or coalesce(p.aggregate_id, '') = any ($2))
         and (cardinality($3::text[]) = 0 or p.event_type = any ($3))
         and (cardinality($4::text[]) = 0 or p.reason_class = any ($4))
         and (cardinality($5::text[]) = 0 or {STATE} = any ($5))
         and (cardinality($6::int8[]) = 0 or p.parked_id = any ($6))
         and ($7::float8 is null or p.parked_at < clock_timestamp() - make_interval(secs => $7))
         and ($8::float8 is null or p.parked_at > clock_timestamp() - make_interval(secs => $8))"
    )
}

/// The lanes in force of each outbox.
const LANES: &str =
    "(select l.outbox, count(*)::int4 as lanes from outbox_relay.lane l group by 1)";

type Statement<'q> = Query<'q, Postgres, PgArguments>;

impl Filter {
    fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        statement
            .bind(&self.outboxes)
            .bind(&self.keys)
            .bind(&self.event_types)
            .bind(&self.reasons)
            .bind(&self.states)
            .bind(&self.ids)
            .bind(self.older_than_s)
            .bind(self.newer_than_s)
    }
}

/// One parked row.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its id among the parked rows.
    pub parked_id: i64,
    /// The table it came from.
    pub outbox: String,
    /// `blocked`, `behind`, `dead`, `skipped`, `retry` or `skip`.
    pub state: String,
    /// Why it was refused, in one word; `None` for one that only waits.
    pub reason_class: Option<String>,
    /// Why, in a sentence.
    pub reason: Option<String>,
    /// How often it was refused.
    pub attempts: i32,
    /// When, in UTC (RFC 3339).
    pub parked_at: String,
    /// How long ago, by the database's clock.
    pub age: Duration,
    /// Its place in the outbox.
    pub seq: i64,
    /// The event's id.
    pub event_id: Uuid,
    /// The kind of aggregate.
    pub aggregate_type: String,
    /// Which aggregate.
    pub aggregate_id: Option<String>,
    /// What happened.
    pub event_type: String,
    /// The row's own headers, as JSON text.
    pub row_headers: Option<String>,
    /// The row's own topic.
    pub row_topic: Option<String>,
    /// When the service wrote it, in UTC.
    pub created_at: Option<String>,
    /// Where it would have been sent; `None`: it never got that far.
    pub topic: Option<String>,
    /// The headers it would have been sent with, as JSON: a list of pairs of name and value.
    pub headers: Option<String>,
    /// Bytes of the value; `None` is a tombstone.
    pub value_bytes: Option<i32>,
    /// The value, where it was asked for.
    pub value: Option<Vec<u8>>,
    /// When the dead-letter topic took it, in UTC.
    pub dead_lettered_at: Option<String>,
    /// When somebody gave it up, in UTC.
    pub skipped_at: Option<String>,
}

/// How many rows are parked, alike in this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// The table.
    pub outbox: String,
    /// As [`Row::state`].
    pub state: String,
    /// As [`Row::reason_class`].
    pub reason_class: Option<String>,
    /// The rows.
    pub rows: i64,
}

/// What to do to parked rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Publish them again.
    Retry,
    /// Give them up.
    Skip,
}

impl Command {
    /// As the audit has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Skip => "skip",
        }
    }
}

/// Who does it, beside the database's role; `None` where it cannot be told.
#[derive(Debug, Clone, Default)]
pub struct Who {
    /// The user, as the operating system knows it.
    pub os_user: Option<String>,
    /// The machine.
    pub host: Option<String>,
    /// A word on why.
    pub note: Option<String>,
}

/// What a change touches in one outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// The table.
    pub outbox: String,
    /// The rows.
    pub rows: i64,
    /// Aggregates they belong to.
    pub keys: i64,
    /// Rows that wait behind a row of those aggregates.
    pub behind: i64,
}

/// What a change did in one outbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// The rows it touched.
    pub parked_ids: Vec<i64>,
    /// Their aggregates.
    pub keys: BTreeSet<String>,
    /// Of those, the ones that wait no more, or whose first row will be published.
    pub going_on: BTreeSet<String>,
    /// The entry in the audit.
    pub audit_id: i64,
}

/// The parked rows of a database.
#[derive(Debug)]
pub struct ParkedRows {
    session: Session,
    open: SqlStr,
}

impl ParkedRows {
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
        // as the relay's own transactions, and no wait for a lock without end
        let lock_ms = LOCK_TIMEOUT.as_millis();
        let settings = format!("set local lock_timeout = {lock_ms}; set local row_security = off;");
        let open = begin(timeouts, &settings);
        Ok(Self {
            session: Session::new(database)?,
            open: AssertSqlSafe(open).into_sql_str(),
        })
    }

    /// How many rows match, by table, state and reason.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn counts(&mut self, filter: &Filter) -> Result<Vec<Count>, Error> {
        let matches = matches();
        let sql = format!(
            "select p.outbox, {STATE}, p.reason_class, count(*)
               from outbox_relay.parked p where {matches}
              group by 1, 2, 3 order by 1, 2, 3"
        );
        let read = |row: &PgRow| {
            Ok(Count {
                outbox: row.try_get(0)?,
                state: row.try_get(1)?,
                reason_class: row.try_get(2)?,
                rows: row.try_get(3)?,
            })
        };
        self.ask("count the parked rows", sql, filter, |q| q, read)
            .await
    }

    /// The first `rows_max` rows after the id `after`, by id; their values only if `whole`.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn page(
        &mut self,
        filter: &Filter,
        after: i64,
        rows_max: i64,
        whole: bool,
    ) -> Result<Vec<Row>, Error> {
        let utc = |column: &str| {
            format!("to_char({column} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
        };
        let matches = matches();
        let sql = format!(
            "select p.parked_id, p.outbox, {STATE}, p.reason_class, p.reason, p.attempts, {parked_at},
                    extract(epoch from clock_timestamp() - p.parked_at)::float8, p.seq, p.event_id,
                    p.aggregate_type, p.aggregate_id, p.event_type, p.row_headers, p.row_topic,
                    {created_at}, p.topic, p.headers, octet_length({value}),
                    case when $11 then {value} end, {dead_lettered_at}, {skipped_at}
               from outbox_relay.parked p
              where {matches} and p.parked_id > $9
              order by p.parked_id limit $10",
            value = "(case when p.record_differs then p.record_value else p.value end)",
            parked_at = utc("p.parked_at"),
            created_at = utc("p.created_at"),
            dead_lettered_at = utc("p.dead_lettered_at"),
            skipped_at = utc("p.skipped_at"),
        );
        let read = |row: &PgRow| {
            Ok(Row {
                parked_id: row.try_get(0)?,
                outbox: row.try_get(1)?,
                state: row.try_get(2)?,
                reason_class: row.try_get(3)?,
                reason: row.try_get(4)?,
                attempts: row.try_get(5)?,
                parked_at: row.try_get(6)?,
                age: Duration::try_from_secs_f64(row.try_get(7)?).unwrap_or_default(),
                seq: row.try_get(8)?,
                event_id: row.try_get(9)?,
                aggregate_type: row.try_get(10)?,
                aggregate_id: row.try_get(11)?,
                event_type: row.try_get(12)?,
                row_headers: row.try_get(13)?,
                row_topic: row.try_get(14)?,
                created_at: row.try_get(15)?,
                topic: row.try_get(16)?,
                headers: row.try_get(17)?,
                value_bytes: row.try_get(18)?,
                value: row.try_get(19)?,
                dead_lettered_at: row.try_get(20)?,
                skipped_at: row.try_get(21)?,
            })
        };
        self.ask(
            "read the parked rows",
            sql,
            filter,
            |query| query.bind(after).bind(rows_max).bind(whole),
            read,
        )
        .await
    }

    /// What a change of the rows that match would touch, by table.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn touched(&mut self, filter: &Filter) -> Result<Vec<Touched>, Error> {
        let matches = matches();
        let of_key = of_key("b", "k.key");
        let sql = format!(
            "with chosen as materialized (
               select p.parked_id, p.outbox, coalesce(p.aggregate_id, '') as key
                 from outbox_relay.parked p where {matches}),
             keys as (select distinct c.outbox, c.key from chosen c),
             behind as (
               select k.outbox, count(*) as rows
                 from keys k join outbox_relay.parked b
                   on b.outbox = k.outbox and {of_key}
                where b.state = 'behind' and b.parked_id not in (select parked_id from chosen)
                group by 1)
             select c.outbox, count(*), count(distinct c.key), coalesce(max(b.rows), 0)
               from chosen c left join behind b on b.outbox = c.outbox
              group by 1 order by 1"
        );
        let read = |row: &PgRow| {
            Ok(Touched {
                outbox: row.try_get(0)?,
                rows: row.try_get(1)?,
                keys: row.try_get(2)?,
                behind: row.try_get(3)?,
            })
        };
        self.ask("count what would be touched", sql, filter, |q| q, read)
            .await
    }

    /// Does `command` to the rows that match, and leaves an entry in the audit for each table.
    /// `say` is told when it has to wait.
    ///
    /// # Errors
    /// Postgres could not be asked or refused, or some lane was never free: nothing was changed.
    pub async fn change(
        &mut self,
        command: Command,
        filter: &Filter,
        who: &Who,
        mut say: impl FnMut(&str),
    ) -> Result<BTreeMap<String, Changed>, Error> {
        let mut attempts = 0;
        loop {
            let error = match self.change_once(command, filter, who).await {
                Ok(changed) => return Ok(changed),
                Err(error) => error,
            };
            self.session.discard();
            attempts += 1;
            // lock_not_available, deadlock_detected, serialization_failure
            let passing = matches!(error.code(), Some("55P03" | "40P01" | "40001"));
            if !passing || attempts >= LOCK_ATTEMPTS {
                return Err(error);
            }
            say(
                "a relay, or somebody else, has a lane of these rows: nothing was changed yet, trying again",
            );
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    }

    async fn change_once(
        &mut self,
        command: Command,
        filter: &Filter,
        who: &Who,
    ) -> Result<BTreeMap<String, Changed>, Error> {
        let (limit, matches) = (self.session.answer_timeout(), matches());
        let connection = self.session.begin(&self.open).await?;
        // every change locks in this order, and a relay waits for no lane: no deadlock
        let lock = format!(
            "select l.outbox, l.lane from outbox_relay.lane l
              where (l.outbox, l.lane) in (
                    select p.outbox, p.hash & (n.lanes - 1)
                      from outbox_relay.parked p join {LANES} n on n.outbox = p.outbox
                     where {matches})
              order by l.outbox, l.lane for update of l"
        );
        let lock = filter.bind(sqlx::query(AssertSqlSafe(lock)));
        let locked = answer(limit, "lock the lanes", lock.fetch_all(&mut *connection)).await?;
        let read = |row: &PgRow| Ok((row.try_get(0)?, row.try_get(1)?));
        let locked: Vec<(String, i32)> = all(&locked, read, "lock the lanes")?;
        let (outboxes, lanes): (Vec<String>, Vec<i32>) = locked.into_iter().unzip();

        // a second statement, whose snapshot has all that the lanes' last holders committed; rows of
        // other lanes that match by now are left alone
        let choose = format!(
            "select p.parked_id, p.outbox, coalesce(p.aggregate_id, ''), p.state
               from outbox_relay.parked p join {LANES} n on n.outbox = p.outbox
              where {matches}
                and (p.outbox, p.hash & (n.lanes - 1)) in
                    (select * from unnest($9::text[], $10::int4[]))
              order by p.parked_id for update of p"
        );
        let choose = filter.bind(sqlx::query(AssertSqlSafe(choose)));
        let choose = choose.bind(&outboxes).bind(&lanes);
        let chosen = answer(limit, "lock the rows", choose.fetch_all(&mut *connection)).await?;
        let read = |row: &PgRow| {
            Ok((
                row.try_get(0)?,
                row.try_get(1)?,
                row.try_get(2)?,
                row.try_get(3)?,
            ))
        };
        let chosen: Vec<(i64, String, String, String)> = all(&chosen, read, "lock the rows")?;

        let mut changed: BTreeMap<String, Changed> = BTreeMap::new();
        let mut blocked: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (id, outbox, key, state) in chosen {
            if state == "blocked" || command == Command::Retry {
                let keys = blocked.entry(outbox.clone()).or_default();
                keys.insert(key.clone());
            }
            let entry = changed.entry(outbox).or_default();
            entry.parked_ids.push(id);
            entry.keys.insert(key);
        }
        for (outbox, entry) in &mut changed {
            let change = match command {
                // in line again: what is first in it is told so below
                Command::Retry => {
                    "update outbox_relay.parked set state = 'behind', skipped_at = null
                      where parked_id = any ($1)"
                }
                Command::Skip => {
                    "update outbox_relay.parked set state = 'dead', skipped_at = clock_timestamp()
                      where parked_id = any ($1)"
                }
            };
            let change = sqlx::query(change).bind(&entry.parked_ids);
            answer(limit, "change the rows", change.execute(&mut *connection)).await?;

            let keys: Vec<&str> = entry.keys.iter().map(String::as_str).collect();
            let promote = sqlx::query(AssertSqlSafe(promote("$1", "$2")));
            let promote = promote.bind(outbox).bind(&keys);
            answer(
                limit,
                "let the rows behind go on",
                promote.execute(&mut *connection),
            )
            .await?;

            let keys: Vec<&str> = match blocked.get(outbox) {
                Some(keys) => keys.iter().map(String::as_str).collect(),
                None => Vec::new(),
            };
            let of_key = of_key("b", "k.key");
            let going_on = format!(
                "select k.key from unnest($2::text[]) as k (key)
                 where not exists (select from outbox_relay.parked b
                                    where b.outbox = $1 and b.state = 'blocked'
                                      and {of_key})"
            );
            let going_on = sqlx::query_scalar::<_, String>(AssertSqlSafe(going_on))
                .bind(outbox)
                .bind(&keys)
                .fetch_all(&mut *connection);
            entry.going_on = (answer(limit, "ask which aggregates go on", going_on).await?)
                .into_iter()
                .collect();

            let json = serde_json::to_string(filter).unwrap_or_else(|_| "{}".to_owned());
            let audit = "insert into outbox_relay.audit
                   (outbox, command, os_user, host, note, filter, rows, parked_ids)
                 values ($1, $2, $3, $4, $5, $6::jsonb, cardinality($7::int8[]), $7)
                 returning audit_id";
            let audit = sqlx::query_scalar::<_, i64>(audit)
                .bind(outbox)
                .bind(command.name())
                .bind(&who.os_user)
                .bind(&who.host)
                .bind(&who.note)
                .bind(json)
                .bind(&entry.parked_ids)
                .fetch_one(&mut *connection);
            entry.audit_id = answer(limit, "write the audit", audit).await?;
        }
        self.session.end("commit").await?;
        Ok(changed)
    }

    /// The rows of one question, in a transaction of its own.
    async fn ask<T>(
        &mut self,
        doing: &'static str,
        sql: String,
        filter: &Filter,
        more: impl for<'q> FnOnce(Statement<'q>) -> Statement<'q>,
        read: impl Fn(&PgRow) -> Result<T, sqlx::Error>,
    ) -> Result<Vec<T>, Error> {
        let limit = self.session.answer_timeout();
        let connection = self.session.begin(&self.open).await?;
        let query = more(filter.bind(sqlx::query(AssertSqlSafe(sql))));
        let rows = answer(limit, doing, query.fetch_all(connection)).await?;
        self.session.end("rollback").await?;
        all(&rows, read, doing)
    }
}

fn all<T>(
    rows: &[PgRow],
    read: impl Fn(&PgRow) -> Result<T, sqlx::Error>,
    doing: &'static str,
) -> Result<Vec<T>, Error> {
    let all: Result<_, sqlx::Error> = rows.iter().map(read).collect();
    all.map_err(|error| Error::statement(doing, error))
}
