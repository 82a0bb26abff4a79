//! A small kit for consumers that keep what they make of events in Postgres: act once, notice what came late or
//! is missing, and let a reader wait until a projection has what was just written.
//!
//! It is a pattern before it is a crate: two tables ([`TABLES`]) and a handful of statements, which
//! docs/consuming.md has for every other language. Feature `consumer`; off by default, for the relay itself
//! needs none of it.
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool) -> Result<(), sqlx::Error> {
//! use outbox_relay::consumer::{Arrival, Consumer, Seen};
//!
//! const INVOICING: Consumer = Consumer::new("invoicing");
//! # let arrival = Arrival { event_id: uuid::Uuid::nil(), topic: "order-events", key: "42", seq: 7 };
//! let mut transaction = pool.begin().await?;
//! match INVOICING.take(&mut transaction, &arrival).await? {
//!     Seen::New => { /* the effect, in this transaction */ }
//!     Seen::Late => { /* the effect too, if it still makes sense; a state that moved on stays */ }
//!     Seen::Repeat => {}
//! }
//! transaction.commit().await?;
//! // and now the offset, never before
//! # Ok(())
//! # }
//! ```
//!
//! What each number can tell:
//!
//! | | a repeat | one that came late | a gap |
//! |---|---|---|---|
//! | header `event_id`, kept as a mark | yes, exactly | no | no |
//! | header `seq` | "not newer than what I have" | the same: it takes the mark to tell which | no: the numbers of one aggregate have gaps by nature, the sequence is its whole outbox's |
//! | a version of the aggregate's own, which its service writes | yes | as a gap before it | yes |
//!
//! So the mark decides whether to act ([`Consumer::fresh`]), `seq` whether the event is news
//! ([`Consumer::take`]) and whether a projection has passed a write ([`Consumer::wait_for`]), and gaps are found
//! where the service counts ([`step`]).

mod progress;
mod version;

pub use progress::{Token, Waited};
pub use version::{Step, step};

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

/// The statements that make the tables of the kit in the first schema of the search path, those that are there
/// already excepted: for the migrations of the service, or for [`create_tables`].
pub const TABLES: &str = include_str!("tables.sql");

/// Makes the tables of the kit, where they are not there yet.
///
/// # Errors
/// The database's own; this role may not make tables, for instance.
pub async fn create_tables(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(TABLES).execute(connection).await?;
    Ok(())
}

/// Somebody who acts on events, by a name that its marks and its progress are kept under. Another name starts
/// anew: a read model that is built again takes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consumer {
    name: &'static str,
}

/// What is known of a record from its topic, its key and two of its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival<'a> {
    /// The header `event_id`.
    pub event_id: Uuid,
    /// The topic it was read from: one outbox writes to it, or its `seq` means nothing.
    pub topic: &'a str,
    /// The record's key: the aggregate.
    pub key: &'a str,
    /// The header `seq`.
    pub seq: i64,
}

/// What an arrival is to a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The first copy, and newer than all that this consumer had of the aggregate.
    New,
    /// The first copy, and older than something it had. With `on_rejected = "block"`, the default, and writers who
    /// take turns at an aggregate, there is none; a parked row that others were let pass, and is retried, is one.
    /// So are the events of a database that was restored to an earlier time, whose sequence counts again.
    Late,
    /// It was acted on before.
    Repeat,
}

impl Consumer {
    /// Names a consumer.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name }
    }

    /// Its name, as it is in the tables.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Marks an event as acted on, in the transaction of the act: true if it was not before, and the caller is to
    /// act. Who asks while another transaction has the same event in hand waits for that to end.
    ///
    /// # Errors
    /// The database's own.
    pub async fn fresh(
        &self,
        transaction: &mut PgConnection,
        event_id: Uuid,
    ) -> Result<bool, sqlx::Error> {
        let marked = sqlx::query(
            "insert into processed_events (consumer, event_id) values ($1, $2) on conflict do nothing",
        )
        .bind(self.name)
        .bind(event_id)
        .execute(transaction)
        .await?;
        Ok(marked.rows_affected() == 1)
    }

    /// As [`Consumer::fresh`], and notes how far the aggregate is, by `seq`. One statement: a primary key's row in
    /// each of the two tables.
    ///
    /// # Errors
    /// The database's own.
    pub async fn take(
        &self,
        transaction: &mut PgConnection,
        arrival: &Arrival<'_>,
    ) -> Result<Seen, sqlx::Error> {
        let (fresh, moved): (bool, bool) = sqlx::query_as(
            "with fresh as (
               insert into processed_events (consumer, event_id) values ($1, $2)
               on conflict do nothing
               returning event_id
             ), moved as (
               insert into consumer_progress as p (consumer, topic, key, seq)
               select $1, $3, $4, $5 from fresh
               on conflict (consumer, topic, key) do update set seq = excluded.seq where p.seq < excluded.seq
               returning seq
             )
             select exists (select from fresh), exists (select from moved)",
        )
        .bind(self.name)
        .bind(arrival.event_id)
        .bind(arrival.topic)
        .bind(arrival.key)
        .bind(arrival.seq)
        .fetch_one(transaction)
        .await?;
        Ok(match (fresh, moved) {
            (true, true) => Seen::New,
            (true, false) => Seen::Late,
            (false, _) => Seen::Repeat,
        })
    }

    /// Deletes marks older than `age`, `limit` of them at most: call it until it returns less. An event that comes
    /// again after its mark has gone is acted on again, so `age` is more than the retention of the topic, and more
    /// than anybody replays.
    ///
    /// # Errors
    /// The database's own.
    pub async fn forget(
        &self,
        connection: &mut PgConnection,
        age: Duration,
        limit: u32,
    ) -> Result<u64, sqlx::Error> {
        let forgotten = sqlx::query(
            "delete from processed_events
              where ctid = any (array(
                select ctid from processed_events
                 where consumer = $1 and processed_at < now() - make_interval(secs => $2) limit $3))",
        )
        .bind(self.name)
        .bind(age.as_secs_f64())
        .bind(i64::from(limit))
        .execute(connection)
        .await?;
        Ok(forgotten.rows_affected())
    }
}
