//! Rows that were published and are kept, marked or in a history, to publish them again.
//!
//! What is chosen is kept as places and ids, so that no transaction stays open while it is published
//! at leisure; a row that was purged meanwhile, or whose place has another row by then, is left out.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Row as _, SqlStr};
use uuid::Uuid;

use super::archive_sql;
use super::audit;
use super::decode::{self, text, text_or_null};
use super::error::Error;
use super::layout::{Names, literal, names, quote_table};
use super::parked::Who;
use super::polling::Polling;
use super::session::{Session, answer};
use crate::config::{Database, OnPublished, Outbox};
use crate::event::Event;

/// Which rows. An empty list means any.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chosen {
    /// Marked since so many seconds.
    pub since_s: Option<f64>,
    /// Aggregate ids.
    pub keys: Vec<String>,
    /// Event types.
    pub event_types: Vec<String>,
    /// Ids of events.
    pub ids: Vec<Uuid>,
    /// Of those rows, in their order, this one and what follows it.
    pub from: Option<Uuid>,
}

/// A row that was chosen, as far as routing needs it.
#[derive(Debug, Clone)]
pub struct Marked {
    table: Oid,
    place: String,
    /// The event, without payload and headers.
    pub event: Event,
}

/// Reads the marked rows of one outbox.
#[derive(Debug)]
pub struct Replayer {
    session: Session,
    open: SqlStr,
    outbox: Outbox,
}

impl Replayer {
    /// Of `outbox`, which `polling` describes.
    ///
    /// # Errors
    /// The database URL is none.
    pub fn new(
        database: &Database,
        outbox: &Outbox,
        polling: &Arc<Polling>,
    ) -> Result<Self, Error> {
        Ok(Self {
            session: Session::new(database)?,
            // under the very pins of the relay: they decide the bytes
            open: polling.statements().open.clone(),
            outbox: outbox.clone(),
        })
    }

    /// What stands behind `from`: the rows that were published, as `t`. With a history also those that are
    /// still in the table, marked, from before there was one.
    fn published(&self) -> String {
        let (name, layout) = (&self.outbox.table, &self.outbox.layout);
        match self.outbox.on_published {
            OnPublished::Archive => archive_sql::published(name, layout),
            OnPublished::Mark | OnPublished::Delete => format!("{} t", quote_table(name)),
        }
    }

    /// What those are called there. A history has a time of publishing of its own.
    fn names(&self) -> Names {
        let mut names = names(&self.outbox.layout, "t.");
        if self.outbox.on_published == OnPublished::Archive {
            names.published_at = "t.published_at".to_owned();
        }
        names
    }

    /// The rows of `chosen`, in outbox order, `rows_max` of them and one more at most. Published rows
    /// from before `migrate` have no number: they come first, in the order they were created.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn choose(&mut self, chosen: &Chosen, rows_max: i64) -> Result<Vec<Marked>, Error> {
        const DOING: &str = "choose the rows to replay";
        let limit = self.session.answer_timeout();
        let (published, row) = (self.published(), self.names());
        let Names {
            id,
            key,
            aggregate_type,
            event_type,
            own_topic,
            created_at,
            published_at,
            ..
        } = &row;
        // no index serves this, as none is wanted for marked rows: the table is read once; of a history the
        // partitions that `since` asks for
        let sql = format!(
            "select t.ctid::text, coalesce(t.seq, 0), {id}, {aggregate_type}, {key}, {event_type}, {own_topic},
                    t.tableoid
               from {published}
              where {published_at} is not null
                and ($1::float8 is null
                     or {published_at} >= statement_timestamp() - make_interval(secs => $1))
                and (cardinality($2::text[]) = 0 or {key} = any ($2))
                and (cardinality($3::text[]) = 0 or {event_type} = any ($3))
                and (cardinality($4::uuid[]) = 0 or {id} = any ($4))
              order by t.seq nulls first, {created_at}, {id}
              limit $5"
        );
        let connection = self.session.begin(&self.open).await?;
        // the pins forbid what this needs: it is no statement of a batch
        let unpin = sqlx::raw_sql("set local enable_seqscan = on; set local enable_sort = on");
        answer(limit, DOING, unpin.execute(&mut *connection)).await?;
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(chosen.since_s)
            .bind(&chosen.keys)
            .bind(&chosen.event_types)
            .bind(&chosen.ids)
            .bind(rows_max.saturating_add(1))
            .fetch_all(connection);
        let rows = answer(limit, DOING, rows).await?;
        self.session.end("rollback").await?;
        let read = |row: &sqlx::postgres::PgRow| -> Result<Marked, sqlx::Error> {
            Ok(Marked {
                table: row.try_get(7)?,
                place: row.try_get(0)?,
                event: Event {
                    seq: row.try_get(1)?,
                    id: row.try_get(2)?,
                    aggregate_type: text(row, 3)?,
                    aggregate_id: text_or_null(row, 4)?,
                    event_type: text(row, 5)?,
                    payload: None,
                    headers: None,
                    topic: text_or_null(row, 6)?,
                    parked: None,
                    created_at_us: None,
                },
            })
        };
        let read: Result<_, sqlx::Error> = rows.iter().map(read).collect();
        read.map_err(|error| Error::statement(DOING, error))
    }

    /// The events of `rows`, whole and in that order; without those that are gone.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn read(&mut self, rows: &[Marked]) -> Result<Vec<Event>, Error> {
        const DOING: &str = "read the rows to replay";
        let limit = self.session.answer_timeout();
        let table = quote_table(&self.outbox.table);
        let published = self.published();
        let row = self.names();
        let places: Vec<&str> = rows.iter().map(|row| row.place.as_str()).collect();
        let ids: Vec<Uuid> = rows.iter().map(|row| row.event.id).collect();
        let connection = self.session.begin(&self.open).await?;
        let is_bytea = format!(
            "select exists (select from pg_catalog.pg_attribute
              where attrelid = {}::regclass and attname = {} and atttypid = 'bytea'::regtype)",
            literal(&table),
            literal(&self.outbox.layout.payload)
        );
        let is_bytea = sqlx::query_scalar(AssertSqlSafe(is_bytea)).fetch_one(&mut *connection);
        let is_bytea = answer(limit, DOING, is_bytea).await?;
        // the columns of a claim
        let sql = format!(
            "select 0, coalesce(t.seq, 0), t.tableoid, t.ctid, {event}, false
               from {published}
              where t.ctid = any ($1::text[]::tid[]) and {id} = any ($2)
                and {published_at} is not null",
            event = row.event(is_bytea),
            id = row.id,
            published_at = row.published_at,
        );
        let found = sqlx::query(AssertSqlSafe(sql))
            .bind(places)
            .bind(&ids)
            .fetch_all(connection);
        let found = answer(limit, DOING, found).await?;
        self.session.end("rollback").await?;
        let name = self.outbox.table.to_string();
        // not by the id: that of a partitioned table is unique with what it is partitioned by
        let mut buffer = decode::Buffer::default();
        let mut events: HashMap<(u32, String), Event> = HashMap::new();
        for row in &found {
            let (row, event) = decode::claimed(row, &mut buffer, &name)?;
            events.insert((row.place.table, row.place.tid()), event);
        }
        let event_of = |row: &Marked| {
            let event = events.remove(&(row.table.0, row.place.clone()))?;
            (event.id == row.event.id).then_some(event)
        };
        Ok(rows.iter().filter_map(event_of).collect())
    }

    /// Says in the audit that `rows` rows of `chosen` are published again; its entry's number.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn audit(
        &mut self,
        command: &str,
        chosen: &Chosen,
        rows: usize,
        who: &Who,
    ) -> Result<i64, Error> {
        let limit = self.session.answer_timeout();
        let ids: Vec<String> = chosen.ids.iter().map(Uuid::to_string).collect();
        let filter = serde_json::json!({
            "since_s": chosen.since_s, "keys": chosen.keys, "event_types": chosen.event_types, "ids": ids,
            "from": chosen.from.map(|id| id.to_string()),
        });
        let outbox = self.outbox.table.to_string();
        let connection = self.session.begin(&self.open).await?;
        let entry = audit::Entry {
            outbox: &outbox,
            command,
            filter: &filter,
            rows: i64::try_from(rows).unwrap_or(i64::MAX),
        };
        let id = audit::write(connection, limit, &entry, who).await?;
        self.session.end("commit").await?;
        Ok(id)
    }
}
