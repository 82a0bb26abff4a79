//! A bounded look at an outbox table, for whoever watches it: how many rows wait, how old the oldest
//! is, what is parked. It takes no locks, and it reads the first rows of each lane only, so it costs
//! the same whatever waits.
//!
//! **Drawback chosen**: a backlog beyond the bound is an estimate. The numbers that wait in a lane,
//! from the last row looked at to the lane's last, hold rows as densely as those that were looked
//! at: right for a backlog that grew while nothing was published, too much or too little where other
//! topics' rows were taken out of it.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _, SqlSafeStr as _, SqlStr};
use tokio::time::Instant;

use super::error::Error;
use super::layout::{Names, literal, names, quote_table};
use super::partitions::relations;
use super::session::{Session, answer};
use super::sql::{PINS, Timeouts, begin, drawn, lane_of, lanes_by_place};
use crate::config::{Database, Layout, TableName};
use crate::ops::{as_f64, unix_us};
use crate::route::Kind;

/// Rows that are looked at, all lanes together, and parked rows of one state that are counted.
pub const ROWS_MAX: u32 = 10_000;

/// What a look found.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// When the database was asked: the ages are of then.
    pub at: Instant,
    /// Rows that wait.
    pub pending: u64,
    /// Whether they were counted.
    pub exact: bool,
    /// How long ago the oldest of them was inserted, by the database's clock.
    pub oldest_age: Option<Duration>,
    /// What the rows that were looked at are; all of those that wait, if `exact`.
    pub kinds: Vec<KindWaiting>,
    /// Parked rows, by state and reason.
    pub parked: Vec<ParkedAlike>,
    /// Whether those were counted; else there are at least as many.
    pub parked_exact: bool,
    /// Rows that services inserted, as far as the database counts them.
    pub written: Option<i64>,
    /// The database's clock less this machine's.
    pub clock_offset_us: i64,
}

/// Rows of one kind that wait.
#[derive(Debug, Clone, PartialEq)]
pub struct KindWaiting {
    /// What decides their topic.
    pub kind: Kind,
    /// How many were seen.
    pub rows: u64,
    /// How long ago the oldest of them was inserted.
    pub oldest_age: Duration,
}

/// Parked rows alike in state and reason.
#[derive(Debug, Clone, PartialEq)]
pub struct ParkedAlike {
    /// As `parked list` has it.
    pub state: String,
    /// The class of the reason.
    pub reason: Option<String>,
    /// How many.
    pub rows: u64,
    /// Aggregates they belong to.
    pub keys: u64,
    /// How long ago the first of them was parked.
    pub oldest_age: Duration,
}

/// Looks at one table, on a connection of its own.
#[derive(Debug)]
pub struct Sampler {
    session: Session,
    lanes: u16,
    sql: Sql,
}

#[derive(Debug, Clone)]
pub(super) struct Sql {
    open: SqlStr,
    clock: SqlStr,
    pub(super) heads: SqlStr,
    pub(super) ends: SqlStr,
    parked: SqlStr,
}

impl Sql {
    pub(super) fn render(
        name: &TableName,
        layout: &Layout,
        lanes: u16,
        statement_ms: u128,
    ) -> Self {
        let rows = quote_table(name);
        let outbox = literal(&name.to_string());
        let row = names(layout, "t.");
        let lane = lane_of(&row, lanes);
        let pending = format!("{} and t.seq is not null", row.unpublished);
        let Names {
            aggregate_type,
            event_type,
            own_topic,
            created_at,
            ..
        } = &row;
        let drawn = drawn(&rows);
        let lanes = lanes_by_place(&outbox);
        let sql = |text: String| AssertSqlSafe(text).into_sql_str();
        let timeouts = Timeouts {
            statement_ms,
            idle_ms: 30_000,
            tcp_ms: 30_000,
        };
        let parked = |state: &str, shown: &str| {
            format!(
                "select {shown} as state, x.reason_class, count(*), count(distinct x.key),
                        extract(epoch from clock_timestamp() - min(x.parked_at))::float8
                   from (select p.reason_class, coalesce(p.aggregate_id, '') as key, p.parked_at
                           from outbox_relay.parked p
                          where p.outbox = {outbox} and {state}
                          limit $1) x
                  group by 2"
            )
        };
        let states = [
            ("p.state = 'blocked'", "'blocked'"),
            ("p.state = 'behind'", "'behind'"),
            (
                "p.state in ('retry', 'skip') and p.state = 'retry'",
                "'retry'",
            ),
            (
                "p.state in ('retry', 'skip') and p.state = 'skip'",
                "'skip'",
            ),
            ("p.state = 'dead' and p.skipped_at is null", "'dead'"),
            ("p.state = 'dead' and p.skipped_at is not null", "'skipped'"),
        ];
        let parked: Vec<String> = states
            .iter()
            .map(|(state, shown)| parked(state, shown))
            .collect();
        Self {
            // the claim's own pins, for the same reasons
            open: sql(begin(timeouts, PINS)),

            // The database's clock, and how many numbers were drawn from the sequence of `seq`; where
            // that may not be read, the inserts of the statistics, which are seconds behind.
            clock: sql(format!(
                "select (extract(epoch from clock_timestamp()) * 1000000)::int8,
                        coalesce((select coalesce(pg_sequence_last_value(s.seqrelid), 0)
                                    from pg_catalog.pg_sequence s
                                   where s.seqrelid = pg_get_serial_sequence({table}, 'seq')::regclass
                                     and has_sequence_privilege(s.seqrelid, 'usage, select')),
                                 (select sum(pg_stat_get_tuples_inserted(r.oid))::int8 from {relations} r))",
                table = literal(&rows),
                relations = relations(&rows),
            )),

            // The first $1 rows of each lane, by lane and kind: how many, their first and last
            // number, the oldest. Plan: one index scan a lane, hashed as it comes. No locks: a row
            // that is being published waits still.
            heads: sql(format!(
                "with {drawn}
                 select x.lane, x.aggregate_type, x.event_type, x.topic, count(*),
                        min(x.seq), max(x.seq), extract(epoch from min(x.created_at))::float8
                   from {lanes}
                  cross join lateral
                        (select l.lane, {aggregate_type} as aggregate_type,
                                {event_type} as event_type, {own_topic} as topic, t.seq,
                                {created_at} as created_at
                           from {rows} t
                          where {pending} and {lane} = l.lane and t.seq > l.place
                          order by t.seq
                          limit $1) x
                  group by 1, 2, 3, 4"
            )),

            // The last waiting number of each lane. Plan: one probe a lane.
            ends: sql(format!(
                "with {drawn}
                 select l.lane, (select t.seq from {rows} t
                                  where {pending} and {lane} = l.lane and t.seq > l.place
                                  order by t.seq desc limit 1)
                   from {lanes}"
            )),

            // The first $1 parked rows of each state, by reason. Plan: an index scan for each, of the
            // index that has this state.
            parked: sql(parked.join("\nunion all\n")),
        }
    }
}

/// The rows of one lane that were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    rows: u64,
    first: i64,
    last: i64,
}

impl Sampler {
    /// Of `table`, which has `lanes` lanes. Connects when it first looks.
    ///
    /// # Errors
    /// The database URL is none.
    pub fn new(
        database: &Database,
        table: &TableName,
        layout: &Layout,
        lanes: u16,
    ) -> Result<Self, Error> {
        let statement_ms = database.statement_timeout.as_millis();
        Ok(Self {
            session: Session::new(database)?,
            lanes,
            sql: Sql::render(table, layout, lanes, statement_ms),
        })
    }

    /// Looks.
    ///
    /// # Errors
    /// Postgres could not be asked. The next look connects anew.
    pub async fn sample(&mut self) -> Result<Sample, Error> {
        let sampled = self.look().await;
        if sampled.is_err() {
            self.session.discard();
        }
        sampled
    }

    async fn look(&mut self) -> Result<Sample, Error> {
        let limit = self.session.answer_timeout();
        let lane_rows_max = (ROWS_MAX / u32::from(self.lanes)).max(1);
        let connection = self.session.begin(&self.sql.open).await?;

        let doing = "read the clock";
        let (at, asked_us) = (Instant::now(), unix_us());
        let clock = sqlx::query_as::<_, (i64, Option<i64>)>(self.sql.clock.clone());
        let (now_us, written) = answer(limit, doing, clock.fetch_one(&mut *connection)).await?;
        let mut sample = Sample {
            at,
            pending: 0,
            exact: true,
            oldest_age: None,
            kinds: Vec::new(),
            parked: Vec::new(),
            parked_exact: true,
            written,
            clock_offset_us: now_us - i64::midpoint(asked_us, unix_us()),
        };

        let doing = "look at the first rows of each lane";
        let heads = sqlx::query(self.sql.heads.clone()).bind(i64::from(lane_rows_max));
        let heads = answer(limit, doing, heads.fetch_all(&mut *connection)).await?;
        let lanes = read_heads(&heads, now_us, &mut sample)
            .map_err(|error| Error::statement(doing, error))?;
        sample.pending = lanes.values().map(|head| head.rows).sum();
        let full = |head: &&Head| head.rows >= u64::from(lane_rows_max);
        sample.exact = !lanes.values().any(|head| full(&head));
        if !sample.exact {
            let doing = "look at the last row of each lane";
            let ends = sqlx::query_as::<_, (i32, Option<i64>)>(self.sql.ends.clone());
            let ends = answer(limit, doing, ends.fetch_all(&mut *connection)).await?;
            for (lane, end) in ends {
                let head = lanes.get(&lane).filter(full);
                if let (Some(head), Some(end)) = (head, end) {
                    sample.pending += beyond(*head, end);
                }
            }
        }

        let doing = "count the parked rows";
        let parked = sqlx::query(self.sql.parked.clone()).bind(i64::from(ROWS_MAX) + 1);
        let parked = answer(limit, doing, parked.fetch_all(&mut *connection)).await?;
        sample.parked = (parked.iter().map(read_parked).collect::<Result<_, _>>())
            .map_err(|error| Error::statement(doing, error))?;
        let mut states: HashMap<&str, u64> = HashMap::new();
        for alike in &sample.parked {
            *states.entry(&alike.state).or_default() += alike.rows;
        }
        sample.parked_exact = states.values().all(|rows| *rows <= u64::from(ROWS_MAX));
        self.session.end("rollback").await?;
        Ok(sample)
    }
}

/// How many rows are likely to wait behind the head of a lane, whose last number is `end`.
fn beyond(head: Head, end: i64) -> u64 {
    let span = |from: i64, to: i64| u64::try_from(to.saturating_sub(from)).unwrap_or(0);
    let density = as_f64(head.rows) / as_f64(span(head.first, head.last) + 1);
    let rows = density * as_f64(span(head.last, end));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate of what is not negative; a cast of too much is the most there is"
    )]
    let rows = rows.round() as u64;
    rows
}

/// Sums up the heads by lane, and by kind into `sample`.
fn read_heads(
    rows: &[PgRow],
    now_us: i64,
    sample: &mut Sample,
) -> Result<HashMap<i32, Head>, sqlx::Error> {
    let mut lanes: HashMap<i32, Head> = HashMap::new();
    let mut kinds: HashMap<Kind, (u64, Duration)> = HashMap::new();
    for row in rows {
        let kind = Kind {
            aggregate_type: row.try_get(1)?,
            event_type: row.try_get(2)?,
            topic: row.try_get(3)?,
        };
        let count = u64::try_from(row.try_get::<i64, _>(4)?).unwrap_or(0);
        let (first, last) = (row.try_get(5)?, row.try_get(6)?);
        let age = age(row.try_get(7)?, now_us);
        let head = lanes.entry(row.try_get(0)?).or_insert(Head {
            rows: 0,
            first,
            last,
        });
        head.rows += count;
        head.first = head.first.min(first);
        head.last = head.last.max(last);
        let known = kinds.entry(kind).or_default();
        known.0 += count;
        known.1 = known.1.max(age);
    }
    sample.oldest_age = kinds.values().map(|(_, age)| *age).max();
    let waiting = |(kind, (rows, oldest_age))| KindWaiting {
        kind,
        rows,
        oldest_age,
    };
    sample.kinds = kinds.into_iter().map(waiting).collect();
    Ok(lanes)
}

/// How long ago `created_s` was. A row without a time, or with one to come, has just been inserted.
pub(super) fn age(created_s: Option<f64>, now_us: i64) -> Duration {
    let now_s = Duration::from_micros(u64::try_from(now_us).unwrap_or(0)).as_secs_f64();
    let age = created_s.map_or(0.0, |created| now_s - created);
    Duration::try_from_secs_f64(age).unwrap_or_default()
}

fn read_parked(row: &PgRow) -> Result<ParkedAlike, sqlx::Error> {
    let count =
        |index| Ok::<_, sqlx::Error>(u64::try_from(row.try_get::<i64, _>(index)?).unwrap_or(0));
    Ok(ParkedAlike {
        state: row.try_get(0)?,
        reason: row.try_get(1)?,
        rows: count(2)?,
        keys: count(3)?,
        oldest_age: Duration::try_from_secs_f64(row.try_get(4)?).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beyond_the_head_of_a_lane_is_estimated_from_its_density() {
        let head = |rows, first, last| Head { rows, first, last };
        // every sixteenth number is this lane's
        let lane = head(625, 16, 625 * 16);
        let rows = beyond(lane, 100_000 * 16);
        assert!((98_000..=101_000).contains(&rows), "{rows}");
        assert_eq!(beyond(head(10, 1, 10), 10), 0);
        assert_eq!(beyond(head(10, 1, 10), 60), 50);
        assert_eq!(beyond(head(10, 1, 10), 5), 0, "it was published meanwhile");
        assert!(beyond(head(1, i64::MIN, i64::MAX), i64::MAX) == 0);
    }

    #[test]
    fn a_row_without_a_sensible_time_is_new() {
        let now_us = 1_000_000_000;
        assert_eq!(age(None, now_us), Duration::ZERO);
        assert_eq!(age(Some(2_000.0), now_us), Duration::ZERO);
        assert_eq!(age(Some(f64::INFINITY), now_us), Duration::ZERO);
        assert_eq!(age(Some(f64::NEG_INFINITY), now_us), Duration::ZERO);
        assert_eq!(age(Some(999.0), now_us), Duration::from_secs(1));
    }
}
