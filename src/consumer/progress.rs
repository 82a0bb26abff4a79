//! Read your writes: a service hands out a token of what it wrote, and a reader of a projection waits, briefly,
//! until the projection has it.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::Consumer;

/// The pause after the first look; each later one is twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(2);

/// The longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// What a service tells of a write, so that a reader can ask whether a projection has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// The event itself, as `outbox_relay.emit` returns it: passed once this very event has been acted on. Its mark
    /// must still be there (see [`Consumer::forget`]).
    Event(Uuid),
    /// The place in its outbox: passed once that event *or a later one of its aggregate* has been acted on. It
    /// costs a reader no more than one row for each aggregate, and stays true for ever; where rows may overtake a
    /// parked one (`on_rejected = "dead_letter"`) a later one does not prove that this one has arrived.
    Seq {
        /// Where the event is published.
        topic: String,
        /// The aggregate.
        key: String,
        /// The row's `seq`, from `insert … returning seq`.
        seq: i64,
    },
}

/// How waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The projection has it: what is read from now on, in the same database, shows it.
    Passed,
    /// Not within the budget. Answer with what there is and say so, ask the service that owns the data, or fail.
    TimedOut,
}

impl Consumer {
    /// Whether this projection has passed a write. Read what it shows *after* this said yes.
    ///
    /// # Errors
    /// The database's own.
    pub async fn passed(
        &self,
        connection: &mut PgConnection,
        token: &Token,
    ) -> Result<bool, sqlx::Error> {
        match token {
            Token::Event(event_id) => {
                sqlx::query_scalar(
                    "select exists (select from processed_events where consumer = $1 and event_id = $2)",
                )
                .bind(self.name)
                .bind(event_id)
                .fetch_one(connection)
                .await
            }
            Token::Seq { topic, key, seq } => {
                sqlx::query_scalar(
                    "select exists (
                       select from consumer_progress
                        where consumer = $1 and topic = $2 and key = $3 and seq >= $4)",
                )
                .bind(self.name)
                .bind(topic)
                .bind(key)
                .bind(seq)
                .fetch_one(connection)
                .await
            }
        }
    }

    /// Waits until this projection has passed a write, for `budget` at most. It looks at once, and again after
    /// pauses of 2 to 50 ms; a connection of the pool is held while it looks, not while it waits.
    ///
    /// # Errors
    /// The database's own, and a pool that has no connection in time.
    pub async fn wait_for(
        &self,
        pool: &PgPool,
        token: &Token,
        budget: Duration,
    ) -> Result<Waited, sqlx::Error> {
        let deadline = Instant::now() + budget;
        let mut pause = PAUSE_FIRST;
        loop {
            let mut connection = pool.acquire().await?;
            if self.passed(&mut connection, token).await? {
                return Ok(Waited::Passed);
            }
            drop(connection);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Waited::TimedOut);
            }
            sleep(pause.min(left)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}
