//! Where one event is, as far as the database knows. Reads; locks nothing, so that no relay passes the
//! row over for the look.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _, SqlSafeStr as _};
use uuid::Uuid;

use super::archive_sql;
use super::decode::{text, text_or_null};
use super::error::Error;
use super::layout::{Names, literal, names, quote_table};
use super::session::{Session, answer};
use super::sql::{Timeouts, begin, lane_of};
use crate::config::{Database, Outbox};
use crate::event::Event;

/// Rows before an event that are counted at most.
pub const BEFORE_MAX: i64 = 10_000;

/// Where an event is.
#[derive(Debug, Clone, Default)]
pub struct Whereabouts {
    /// Its row in the outbox.
    pub row: Option<OutboxRow>,
    /// Its parked row.
    pub parked: Option<ParkedPlace>,
    /// What somebody did about it, oldest first: number, command, when, who.
    pub audit: Vec<(i64, String, String, String)>,
    /// The topics of the outbox that are paused; an empty one is the outbox.
    pub paused: Vec<String>,
}

/// A row of the outbox.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    /// What routing needs of it; without its payload.
    pub event: Event,
    /// When it was marked, in UTC; `None`: it is pending.
    pub published_at: Option<String>,
    /// The same, in milliseconds since 1970.
    pub published_ms: Option<i64>,
    /// Its lane; `None` if the outbox has none.
    pub lane: Option<i64>,
    /// Pending rows of its aggregate before it, [`BEFORE_MAX`] at most.
    pub before: i64,
    /// The history that it was moved to.
    pub history: Option<String>,
    /// Who has it locked.
    pub locked_by: Option<Locker>,
}

/// Whoever has a row locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locker {
    /// Postgres' process.
    pub pid: i32,
    /// What it calls itself.
    pub application: String,
    /// Its role.
    pub role: String,
    /// For how long its transaction has been open.
    pub seconds: i64,
}

impl Locker {
    /// Whether it is a relay: then the row is in flight.
    #[must_use]
    pub fn is_relay(&self) -> bool {
        self.application == "outbox-relay"
    }
}

/// Where a parked row stands.
#[derive(Debug, Clone)]
pub struct ParkedPlace {
    /// Its id.
    pub parked_id: i64,
    /// As `parked list` has it.
    pub state: String,
    /// Why, in one word.
    pub reason_class: Option<String>,
    /// Why, in a sentence.
    pub reason: Option<String>,
    /// When, in UTC.
    pub parked_at: String,
    /// Parked rows of its aggregate before it that have to go first.
    pub before: i64,
    /// Where it would have gone.
    pub topic: Option<String>,
}

/// Looks for events in the outboxes of a database.
#[derive(Debug)]
pub struct Lookup {
    pub(super) session: Session,
    open: sqlx::SqlStr,
}

fn utc(column: &str) -> String {
    format!(
        "to_char({column}::timestamptz at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"
    )
}

impl Lookup {
    /// In `database`; connects when it is first asked.
    ///
    /// # Errors
    /// The database URL is none.
    pub fn new(database: &Database) -> Result<Self, Error> {
        let timeouts = Timeouts {
            statement_ms: database.statement_timeout.as_millis(),
            idle_ms: 30_000,
            tcp_ms: 30_000,
        };
        let open = begin(timeouts, "set local row_security = off;");
        Ok(Self {
            session: Session::new(database)?,
            open: AssertSqlSafe(open).into_sql_str(),
        })
    }

    /// Where the event `id` of `outbox` is.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn find(&mut self, outbox: &Outbox, id: Uuid) -> Result<Whereabouts, Error> {
        self.session.begin(&self.open).await?;
        let mut found = Whereabouts {
            row: self.row(outbox, id).await?,
            parked: self.parked(outbox, id).await?,
            ..Whereabouts::default()
        };
        found.audit = self.audit(outbox, id, &found).await?;
        let limit = self.session.answer_timeout();
        let paused = "select topic from outbox_relay.pause where outbox = $1 order by 1";
        let paused = sqlx::query_scalar(paused)
            .bind(outbox.table.to_string())
            .fetch_all(self.session.connection()?);
        found.paused = answer(limit, "read what is paused", paused).await?;
        self.session.end("rollback").await?;
        Ok(found)
    }

    async fn row(&mut self, outbox: &Outbox, id: Uuid) -> Result<Option<OutboxRow>, Error> {
        const DOING: &str = "look for the event's row";
        let limit = self.session.answer_timeout();
        let row = names(&outbox.layout, "t.");
        let Names {
            id: id_column,
            key,
            aggregate_type,
            event_type,
            own_topic,
            published_at,
            unpublished,
            ..
        } = &row;
        let (table, name) = (
            quote_table(&outbox.table),
            literal(&outbox.table.to_string()),
        );
        // the lane as its hash and their number give it; who locked the row is in its xmax while that
        // transaction runs
        let sql = format!(
            "select t.seq, {aggregate_type}, {key}, {event_type}, {own_topic},
                    {published_utc}, (extract(epoch from {published_at}) * 1000)::int8,
                    hashtext(coalesce({key}, ''))::int8 & (nullif(n.lanes, 0) - 1), n.lanes,
                    k.pid, coalesce(a.application_name, ''), coalesce(a.usename::text, ''),
                    coalesce(extract(epoch from clock_timestamp() - a.xact_start), 0)::int8
               from {table} t
              cross join (select count(*) as lanes from outbox_relay.lane where outbox = {name}) n
               left join pg_catalog.pg_locks k
                 on k.locktype = 'transactionid' and k.mode = 'ExclusiveLock' and k.granted
                and k.transactionid = t.xmax
               left join pg_catalog.pg_stat_activity a on a.pid = k.pid
              where {id_column} = $1",
            published_utc = utc(published_at),
        );
        let found = sqlx::query(AssertSqlSafe(sql))
            .bind(id)
            .fetch_optional(self.session.connection()?);
        let (found_row, archived) = match answer(limit, DOING, found).await? {
            Some(row) => (row, false),
            None => match self.archived(outbox, id).await? {
                Some(row) => (row, true),
                None => return Ok(None),
            },
        };
        let read = || -> Result<(OutboxRow, i64, bool), sqlx::Error> {
            let row = &found_row;
            let seq: Option<i64> = row.try_get(0)?;
            let event = Event {
                seq: seq.unwrap_or(0),
                id,
                aggregate_type: text(row, 1)?,
                aggregate_id: text_or_null(row, 2)?,
                event_type: text(row, 3)?,
                payload: None,
                headers: None,
                topic: text_or_null(row, 4)?,
                parked: None,
                created_at_us: None,
            };
            let pid: Option<i32> = row.try_get(9)?;
            let (application, role, seconds) =
                (row.try_get(10)?, row.try_get(11)?, row.try_get(12)?);
            let found = OutboxRow {
                event,
                published_at: row.try_get(5)?,
                published_ms: row.try_get(6)?,
                lane: row.try_get(7)?,
                before: 0,
                history: archived.then(|| archive_sql::history(&outbox.table)),
                locked_by: pid.map(|pid| Locker {
                    pid,
                    application,
                    role,
                    seconds,
                }),
            };
            Ok((found, row.try_get(8)?, seq.is_some()))
        };
        let (mut found, lanes, numbered) =
            read().map_err(|error| Error::statement(DOING, error))?;
        let lanes = u16::try_from(lanes).unwrap_or(0);
        if found.published_at.is_none() && numbered && lanes > 0 {
            // by the lane index
            let lane = lane_of(&row, lanes);
            let sql = format!(
                "select count(*) from (select from {table} t
                  where {unpublished} and {lane} = $1 and t.seq < $2
                    and coalesce({key}, '') = $3 limit {BEFORE_MAX}) x"
            );
            let before = sqlx::query_scalar(AssertSqlSafe(sql))
                .bind(i32::try_from(found.lane.unwrap_or(0)).unwrap_or(0))
                .bind(found.event.seq)
                .bind(found.event.key())
                .fetch_one(self.session.connection()?);
            found.before = answer(limit, "count the rows before it", before).await?;
        }
        Ok(Some(found))
    }

    /// The event's row in the history of `outbox`, if it has one, whatever its config says by now.
    async fn archived(&mut self, outbox: &Outbox, id: Uuid) -> Result<Option<PgRow>, Error> {
        const DOING: &str = "look for the event in the history";
        let limit = self.session.answer_timeout();
        let there = AssertSqlSafe(archive_sql::readable(&outbox.table));
        let there = sqlx::query_scalar::<_, bool>(there).fetch_one(self.session.connection()?);
        if !answer(limit, DOING, there).await? {
            return Ok(None);
        }
        let sql = archive_sql::find(&outbox.table, &outbox.layout, &utc("t.published_at"));
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(id)
            .fetch_optional(self.session.connection()?);
        answer(limit, DOING, row).await
    }

    async fn parked(&mut self, outbox: &Outbox, id: Uuid) -> Result<Option<ParkedPlace>, Error> {
        const DOING: &str = "look for the event among the parked rows";
        let limit = self.session.answer_timeout();
        let sql = format!(
            "select p.parked_id,
                    case when p.state = 'dead' and p.skipped_at is not null then 'skipped' else p.state end,
                    p.reason_class, p.reason, {parked_at},
                    (select count(*) from outbox_relay.parked b
                      where b.outbox = p.outbox and b.state <> 'dead'
                        and coalesce(b.aggregate_id, '') = coalesce(p.aggregate_id, '')
                        and (b.seq, b.parked_id) < (p.seq, p.parked_id)),
                    p.topic
               from outbox_relay.parked p
              where p.outbox = $1 and p.event_id = $2
              order by p.parked_id desc limit 1",
            parked_at = utc("p.parked_at"),
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(outbox.table.to_string())
            .bind(id)
            .fetch_optional(self.session.connection()?);
        let Some(row) = answer(limit, DOING, row).await? else {
            return Ok(None);
        };
        let read = || -> Result<ParkedPlace, sqlx::Error> {
            Ok(ParkedPlace {
                parked_id: row.try_get(0)?,
                state: row.try_get(1)?,
                reason_class: row.try_get(2)?,
                reason: row.try_get(3)?,
                parked_at: row.try_get(4)?,
                before: row.try_get(5)?,
                topic: row.try_get(6)?,
            })
        };
        read()
            .map(Some)
            .map_err(|error| Error::statement(DOING, error))
    }

    /// The last changes that name the event, or its parked row.
    async fn audit(
        &mut self,
        outbox: &Outbox,
        id: Uuid,
        found: &Whereabouts,
    ) -> Result<Vec<(i64, String, String, String)>, Error> {
        const DOING: &str = "read the audit";
        let limit = self.session.answer_timeout();
        let sql = format!(
            "select * from (select a.audit_id, a.command, {at},
                           coalesce(a.os_user || coalesce('@' || a.host, ''), a.role)
                      from outbox_relay.audit a
                     where a.outbox = $1 and ($2 = any (a.parked_ids) or a.filter->'ids' ? $3)
                     order by a.audit_id desc limit 20) x order by 1",
            at = utc("a.at"),
        );
        let rows = sqlx::query_as(AssertSqlSafe(sql))
            .bind(outbox.table.to_string())
            .bind(found.parked.as_ref().map(|parked| parked.parked_id))
            .bind(id.to_string())
            .fetch_all(self.session.connection()?);
        answer(limit, DOING, rows).await
    }
}
