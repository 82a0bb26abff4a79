//! What the dead-letter topic of an outbox has yet to take: parked rows without a date of it.
//!
//! One relay at a time sees to it, by an advisory lock that its transaction holds while it publishes.
//! No row is locked for that time and no snapshot is held, so neither a claim nor an operator waits
//! for the topic; a relay that dies frees the lock and leaves the rows as they were.

use uuid::Uuid;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _, SqlSafeStr as _, SqlStr};

use super::decode;
use super::error::Error;
use super::layout::literal;
use super::session::{Session, answer};
use super::sql::{Timeouts, begin};
use crate::config::{Database, Outbox, Relay};
use crate::dead_letter::Letter;
use crate::record::{Encoding, Record};

/// Most letters at once.
const ROWS_MAX: i64 = 100;

/// The letters of one outbox.
#[derive(Debug)]
pub struct DeadLetters {
    session: Session,
    open: SqlStr,
    waiting: SqlStr,
    claim: SqlStr,
    taken: SqlStr,
    bytes_max: usize,
    encoding: Encoding,
}

impl DeadLetters {
    /// Of `outbox`; connects when it is first asked.
    ///
    /// # Errors
    /// The database URL is none.
    pub fn new(database: &Database, relay: &Relay, outbox: &Outbox) -> Result<Self, Error> {
        let name = literal(&outbox.table.to_string());
        let sql = |text: String| AssertSqlSafe(text).into_sql_str();
        let idle_ms = relay.publish_timeout.as_millis() + 15_000;
        let timeouts = Timeouts {
            statement_ms: database.statement_timeout.as_millis(),
            idle_ms,
            tcp_ms: idle_ms,
        };
        let due = format!(
            "p.outbox = {name} and p.dead_lettered_at is null and p.state in ('blocked', 'dead')"
        );
        Ok(Self {
            session: Session::new(database)?,
            open: sql(begin(
                timeouts,
                "set local enable_seqscan = off; set local enable_sort = off;",
            )),
            // Plan: one probe of `parked_letters`.
            waiting: sql(format!(
                "select exists (select from outbox_relay.parked p where {due})"
            )),
            // Plan: index scan of `parked_letters`, no sort. A relay that has not the lock gets none.
            claim: sql(format!(
                "select p.parked_id, p.state, p.reason_class, p.reason, p.seq, p.event_id,
                        p.aggregate_type, coalesce(p.aggregate_id, ''), p.event_type,
                        to_char(p.parked_at, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
                        p.topic, p.headers,
                        case when p.record_differs then p.record_value else p.value end, p.outbox,
                        case when p.record_differs then p.record_key end
                   from outbox_relay.parked p
                  where {due}
                    and (select pg_try_advisory_xact_lock(
                                  hashtext('outbox_relay dead letters'), hashtext({name})))
                  order by p.parked_id limit {ROWS_MAX}"
            )),
            taken: sql(
                "update outbox_relay.parked p set dead_lettered_at = clock_timestamp()
                  where p.parked_id in (select q.parked_id from outbox_relay.parked q
                                         where q.parked_id = any ($1)
                                         order by q.parked_id for update)"
                    .to_owned(),
            ),
            bytes_max: relay.claim_bytes_max,
            encoding: outbox.encoding.clone(),
        })
    }

    /// Whether there are any.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn are_waiting(&mut self) -> Result<bool, Error> {
        let limit = self.session.answer_timeout();
        let connection = self.session.begin(&self.open).await?;
        let waiting = sqlx::query_scalar::<_, bool>(self.waiting.clone()).fetch_one(connection);
        let waiting = answer(limit, "look for dead letters", waiting).await?;
        self.session.end("rollback").await?;
        Ok(waiting)
    }

    /// Some letters, oldest first; none if another relay is at it. To be followed by
    /// [`DeadLetters::taken`], without much delay: a transaction is open.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn claim(&mut self) -> Result<Vec<Letter>, Error> {
        let limit = self.session.answer_timeout();
        let connection = self.session.begin(&self.open).await?;
        let rows = sqlx::query(self.claim.clone()).fetch_all(connection);
        let rows = answer(limit, "read dead letters", rows).await?;
        let (mut letters, mut bytes) = (Vec::new(), 0);
        for row in &rows {
            let letter = letter(row, &self.encoding)
                .map_err(|error| Error::statement("read dead letters", error))?;
            bytes += letter.record.size_bytes();
            if letters.is_empty() || bytes <= self.bytes_max {
                letters.push(letter);
            }
        }
        Ok(letters)
    }

    /// The topic has taken these rows; ends what [`DeadLetters::claim`] began.
    ///
    /// # Errors
    /// Postgres could not be asked: they will be published again.
    pub async fn taken(&mut self, parked_ids: &[i64]) -> Result<(), Error> {
        let limit = self.session.answer_timeout();
        if !parked_ids.is_empty() {
            let taken = sqlx::query(self.taken.clone()).bind(parked_ids);
            let taken = taken.execute(self.session.connection()?);
            answer(limit, "date dead letters", taken).await?;
        }
        self.session.end("commit").await
    }

    /// Lets go of the connection, and of what is open on it.
    pub fn discard(&mut self) {
        self.session.discard();
    }
}

fn letter(row: &PgRow, encoding: &Encoding) -> Result<Letter, sqlx::Error> {
    let key: String = row.try_get(7)?;
    let headers: Option<String> = row.try_get(11)?;
    let key = match row.try_get::<Option<Vec<u8>>, _>(14)? {
        Some(key) => key,
        None if headers.is_none() => encoding.key(&key).into_owned().into_bytes(),
        None => key.into_bytes(),
    };
    let headers = match headers {
        Some(json) => decode::headers_from_json(&json)
            .map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        // it never became a record: the headers that every record has
        None => {
            let id: Uuid = row.try_get(5)?;
            let event_type: String = row.try_get(8)?;
            let (aggregate_type, seq): (String, i64) = (row.try_get(6)?, row.try_get(4)?);
            encoding
                .standard(id, seq, &aggregate_type, &event_type)
                .into()
        }
    };
    Ok(Letter {
        parked_id: row.try_get(0)?,
        outbox: row.try_get(13)?,
        state: row.try_get(1)?,
        reason_class: row.try_get(2)?,
        reason: row.try_get(3)?,
        seq: row.try_get(4)?,
        aggregate_type: row.try_get(6)?,
        parked_at: row.try_get(9)?,
        topic: row.try_get(10)?,
        record: Record {
            topic: "".into(),
            key: key.into(),
            value: row.try_get::<Option<Vec<u8>>, _>(12)?.map(Into::into),
            headers,
        },
    })
}
