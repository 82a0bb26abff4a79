//! Which aggregates have the most rows that wait: a bounded look for a person at a terminal.
//!
//! Aggregate ids are told nowhere else while they wait, neither over HTTP nor in metrics or logs. Here they
//! are for whoever may read the table anyway. As `sampling`, this reads the first rows of each lane only
//! and takes no locks.
//!
//! **Drawback chosen**: with more rows than are looked at, an aggregate whose rows all stand further back
//! is not seen, and of those that are seen only the oldest rows count.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _, SqlSafeStr as _, SqlStr};

use super::error::Error;
use super::layout::{literal, names, quote_table};
use super::sampling::{ROWS_MAX, age};
use super::session::{Session, answer};
use super::sql::{PINS, Timeouts, begin, drawn, lane_of, lanes_by_place};
use super::tables::known_tables;
use crate::config::{Database, Layout, TableName};

/// Aggregates that are told at most.
pub const AGGREGATES_MAX: u32 = 100;
/// Characters of an aggregate id that are told; ids may be of any length.
const ID_CHARS_MAX: u32 = 200;
/// The longest a look may take, and a connection: nobody waits for a terminal's sake.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Server and client call it this: no relay serves on it, and `status` counts those by their name.
const APPLICATION: &str = "outbox-relay top";

/// What the aggregates are ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum First {
    /// Those with the most rows.
    #[default]
    Most,
    /// Those with the oldest row.
    Oldest,
}

/// What a look found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aggregates {
    /// The first [`AGGREGATES_MAX`], in the order that was asked for.
    pub aggregates: Vec<AggregateWaiting>,
    /// How many there are among the rows that were looked at.
    pub aggregates_seen: u64,
    /// How many rows were looked at.
    pub rows_seen: u64,
    /// Whether those are all that wait.
    pub exact: bool,
}

/// An aggregate whose rows wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AggregateWaiting {
    /// Its id, the first 200 characters of it; empty where rows have none.
    pub aggregate_id: String,
    /// The type of its rows; `None`: they are of several.
    pub aggregate_type: Option<String>,
    /// How many of its rows were seen.
    pub rows: u64,
    /// How long ago the oldest of them was inserted.
    pub oldest_age: Duration,
}

/// Looks at the outboxes of a database, one at a time, on a connection of its own.
#[derive(Debug)]
pub struct AggregateReader {
    database: Database,
    session: Session,
    /// The outbox of the last look, its lanes, and what is rendered for it.
    known: Option<(String, u16, Sql)>,
}

#[derive(Debug, Clone)]
pub(super) struct Sql {
    open: SqlStr,
    lanes: SqlStr,
    pub(super) aggregates: SqlStr,
}

impl Sql {
    pub(super) fn render(
        name: &TableName,
        layout: &Layout,
        lanes: u16,
        statement_ms: u128,
    ) -> Self {
        let timeouts = Timeouts {
            statement_ms,
            idle_ms: 30_000,
            tcp_ms: 30_000,
        };
        let rows = quote_table(name);
        let outbox = literal(&name.to_string());
        let row = names(layout, "t.");
        let lane = lane_of(&row, lanes);
        let sql = |text: String| AssertSqlSafe(text).into_sql_str();
        Self {
            // the claim's own pins, for the same reasons: never a sort of the backlog
            open: sql(begin(
                timeouts,
                &format!("set transaction read only; {PINS}"),
            )),

            // How many lanes there are now: the index has another expression for another number. Plan: index
            // only scan of the lanes. No locks.
            lanes: sql(format!(
                "select count(*) from outbox_relay.lane where outbox = {outbox}"
            )),

            // The aggregates of the first $1 rows of each lane: how many rows, of which types, the oldest; and
            // of all of them how many rows, how many aggregates, and whether a lane has as many as were asked
            // for. The first $3 of them, those with the oldest row first if $2.
            // Plan: one index scan a lane, numbered and hashed as it comes; what is sorted are the aggregates
            // of at most $1 rows a lane. No locks: a row that is being published waits still.
            aggregates: sql(format!(
                "with {drawn}
                 select left(x.key, {ID_CHARS_MAX}), min(x.kind), max(x.kind), count(*),
                        extract(epoch from min(x.created_at))::float8,
                        (sum(count(*)) over ())::int8, count(*) over (), bool_or(max(x.place) >= $1) over (),
                        (extract(epoch from clock_timestamp()) * 1000000)::int8
                   from {lanes}
                  cross join lateral
                        (select coalesce({key}, '') as key, {kind} as kind,
                                {created_at} as created_at, row_number() over (order by t.seq) as place
                           from {rows} t
                          where {unpublished} and t.seq is not null and {lane} = l.lane
                            and t.seq > l.place
                          order by t.seq
                          limit $1) x
                  group by x.key
                  order by case when $2 then min(x.created_at) end, count(*) desc, 1
                  limit $3",
                drawn = drawn(&rows),
                lanes = lanes_by_place(&outbox),
                key = row.key,
                kind = row.aggregate_type,
                created_at = row.created_at,
                unpublished = row.unpublished,
            )),
        }
    }
}

impl AggregateReader {
    /// Of `database`; connects when it first looks.
    ///
    /// # Errors
    /// The database URL is none.
    pub fn new(database: &Database) -> Result<Self, Error> {
        let database = Database {
            connect_timeout: database.connect_timeout.min(LOOK_MAX),
            statement_timeout: database.statement_timeout.min(LOOK_MAX),
            ..database.clone()
        };
        Ok(Self {
            session: Session::new(&database)?.called(APPLICATION),
            database,
            known: None,
        })
    }

    /// Looks at `outbox`, `schema.table` as the catalogue has it.
    ///
    /// # Errors
    /// Postgres could not be asked, or has no such outbox. The next look connects anew.
    pub async fn look(&mut self, outbox: &str, first: First) -> Result<Aggregates, Error> {
        let looked = self.read(outbox, first).await;
        if looked.is_err() {
            self.session.discard();
            self.known = None;
        }
        looked
    }

    async fn read(&mut self, outbox: &str, first: First) -> Result<Aggregates, Error> {
        let (lanes, sql) = match &self.known {
            Some((name, lanes, sql)) if name == outbox => (*lanes, sql.clone()),
            _ => self.find(outbox).await?,
        };
        let limit = self.session.answer_timeout();
        let connection = self.session.begin(&sql.open).await?;
        let doing = "count the lanes";
        let now = sqlx::query_scalar::<_, i64>(sql.lanes).fetch_one(&mut *connection);
        let now = answer(limit, doing, now).await?;
        if now != i64::from(lanes) {
            return Err(Error::Lanes {
                outbox: outbox.to_owned(),
                ours: lanes,
                theirs: now,
            });
        }
        let doing = "look for the aggregates that wait";
        let lane_rows_max = (ROWS_MAX / u32::from(lanes)).max(1);
        let rows = sqlx::query(sql.aggregates)
            .bind(i64::from(lane_rows_max))
            .bind(first == First::Oldest)
            .bind(i64::from(AGGREGATES_MAX))
            .fetch_all(&mut *connection);
        let rows = answer(limit, doing, rows).await?;
        self.session.end("rollback").await?;
        read(&rows).map_err(|error| Error::statement(doing, error))
    }

    /// What there is to know of `outbox` before it can be looked at.
    async fn find(&mut self, outbox: &str) -> Result<(u16, Sql), Error> {
        let known = known_tables(&self.database, &[outbox.to_owned()].into()).await?;
        let known = known.tables.into_iter().next();
        let missing = |why: &str| Error::Changed(format!("{outbox} {why}"));
        let Some(known) = known else {
            return Err(missing(
                "is no outbox of this database: is it the one that the relay serves?",
            ));
        };
        let Some(table) = known.table else {
            return Err(missing("does not exist in this database"));
        };
        if known.lanes == 0 {
            return Err(missing("has no lanes: run `outbox-relay migrate`"));
        }
        let statement_ms = self.database.statement_timeout.as_millis();
        let sql = Sql::render(&table, &known.layout, known.lanes, statement_ms);
        self.known = Some((outbox.to_owned(), known.lanes, sql.clone()));
        Ok((known.lanes, sql))
    }
}

fn read(rows: &[PgRow]) -> Result<Aggregates, sqlx::Error> {
    let count = |row: &PgRow, index| {
        let count = row.try_get::<i64, usize>(index)?;
        Ok::<_, sqlx::Error>(u64::try_from(count).unwrap_or(0))
    };
    let Some(any) = rows.first() else {
        return Ok(Aggregates {
            exact: true,
            ..Aggregates::default()
        });
    };
    let full: bool = any.try_get(7)?;
    let mut waiting = Aggregates {
        aggregates: Vec::with_capacity(rows.len()),
        rows_seen: count(any, 5)?,
        aggregates_seen: count(any, 6)?,
        exact: !full,
    };
    for row in rows {
        let (least, greatest): (Option<String>, Option<String>) =
            (row.try_get(1)?, row.try_get(2)?);
        waiting.aggregates.push(AggregateWaiting {
            aggregate_id: row.try_get(0)?,
            aggregate_type: least.filter(|least| Some(least) == greatest.as_ref()),
            rows: count(row, 3)?,
            oldest_age: age(row.try_get(4)?, row.try_get(8)?),
        });
    }
    Ok(waiting)
}
