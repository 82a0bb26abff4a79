//! What an outbox needs now and then: rows that were put back where claims do not look are found; marked
//! rows that are old enough go, and partitions of its history; parked rows whose front was
//! deleted by hand go on, and parked rows that nothing waits for go when they are old enough and
//! somebody said how old that is.

use std::sync::Arc;
use std::time::Duration;

use super::archive::{Archived, Historian};
use super::error::Error;
use super::partitions::Purge;
use super::polling::Polling;
use super::session::{Session, answer};
use super::settled::begin_anew;
use super::sql::Statements;
use crate::config::{Database, OnPublished, Outbox};
use crate::ops::{Progress, Step};

/// Rows in one deletion, so that no lock is held for long and no replica falls behind.
pub(super) const PURGE_ROWS: i64 = 5_000;
/// Parked rows in one deletion: they may be large.
const DROP_ROWS: i64 = 1_000;
/// The pause between two deletions, for the same reason.
pub(super) const PURGE_PAUSE: Duration = Duration::from_millis(50);

/// Looks after one outbox, on a connection of its own while it is at it.
#[derive(Debug)]
pub struct Upkeep {
    session: Session,
    polling: Arc<Polling>,
    sweep_interval: Duration,
    retention: Option<Duration>,
    /// How marked rows are deleted where the table is partitioned.
    partitioned: Option<Purge>,
    historian: Option<Historian>,
    parked_retention: Option<Duration>,
    /// Whether a dead-letter topic must have taken a parked row before it goes.
    dead_letters: bool,
}

/// What an upkeep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tended {
    /// Marked rows that were deleted.
    pub purged: u64,
    /// Parked rows that were deleted.
    pub dropped: u64,
    /// Partitions of the history that were dropped.
    pub partitions: u64,
}

impl Upkeep {
    /// For the outbox that `polling` describes.
    ///
    /// # Errors
    /// The database URL is none.
    pub fn new(
        database: &Database,
        sweep_interval: Duration,
        outbox: &Outbox,
        polling: &Arc<Polling>,
    ) -> Result<Self, Error> {
        let marks = outbox.on_published == OnPublished::Mark;
        Ok(Self {
            session: Session::new(database)?,
            polling: Arc::clone(polling),
            sweep_interval,
            retention: outbox.retention.filter(|_| marks),
            partitioned: (polling.statements.leaf.is_some())
                .then(|| Purge::of(&outbox.table, &outbox.layout)),
            historian: Historian::of(outbox),
            parked_retention: outbox.parked_retention,
            dead_letters: outbox.dead_letter_topic.is_some(),
        })
    }

    /// How long until the first tending: a history may want partitions now.
    #[must_use]
    pub fn first_pause(&self) -> Duration {
        match &self.historian {
            Some(_) => Duration::ZERO,
            None => self.pause(),
        }
    }

    /// How long until the next tending: often enough that rows are not kept much longer
    /// than wanted, seldom enough that looking for them costs nothing (each look reads the table).
    #[must_use]
    pub fn pause(&self) -> Duration {
        const LONGEST: Duration = Duration::from_secs(600);
        const SHORTEST: Duration = Duration::from_secs(1);
        let archived = self.historian.as_ref().and_then(Historian::retention);
        let kept = [self.retention, archived, self.parked_retention];
        let kept = kept.into_iter().flatten().min();
        let often = kept.map_or(LONGEST, |kept| (kept / 20).clamp(SHORTEST, LONGEST));
        often.min(self.sweep_interval)
    }

    /// Tends the outbox once.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub(crate) async fn tend(&mut self, progress: &Progress) -> Result<Tended, Error> {
        let tended = self.tend_once(progress).await;
        self.session.discard();
        tended
    }

    async fn tend_once(&mut self, progress: &Progress) -> Result<Tended, Error> {
        let statements = self.polling.statements().clone();
        let limit = self.session.answer_timeout();
        let connection = self.session.begin(&statements.open).await?;
        let sweep = sqlx::query(statements.parked_sweep.clone()).execute(connection);
        answer(limit, "let parked rows without a front go on", sweep).await?;
        self.session.end("commit").await?;
        begin_anew(&mut self.session, &self.polling).await?;
        let purged = self.purge(&statements, progress).await?;
        let dropped = self.drop_parked(&statements, progress).await?;
        let mut archived = Archived::default();
        if let Some(historian) = &mut self.historian {
            let open = &statements.open;
            archived = historian.tend(&mut self.session, open, progress).await?;
        }
        Ok(Tended {
            purged: purged + archived.deleted,
            dropped,
            partitions: archived.dropped,
        })
    }

    async fn purge(&mut self, statements: &Statements, progress: &Progress) -> Result<u64, Error> {
        let Some(kept) = self.retention else {
            return Ok(0);
        };
        if let Some(purge) = &self.partitioned {
            let (session, open) = (&mut self.session, &statements.open);
            let (mut purged, step) = (0, || progress.at(Step::Tending));
            purge.run(session, open, kept, &mut purged, step).await?;
            return Ok(u64::try_from(purged).unwrap_or(0));
        }
        let limit = self.session.answer_timeout();
        let (mut place, mut purged) = ("(0,0)".to_owned(), 0_u64);
        loop {
            progress.at(Step::Tending);
            let connection = self.session.begin(&statements.open).await?;
            let purge = sqlx::query_as::<_, (i64, Option<String>)>(statements.purge.clone())
                .bind(kept.as_secs_f64())
                .bind(PURGE_ROWS)
                .bind(&place)
                .fetch_one(connection);
            let (rows, last) = answer(limit, "purge marked rows", purge).await?;
            self.session.end("commit").await?;
            purged += u64::try_from(rows).unwrap_or(0);
            match last {
                Some(last) if rows == PURGE_ROWS => place = last,
                _ => return Ok(purged),
            }
            tokio::time::sleep(PURGE_PAUSE).await;
        }
    }

    async fn drop_parked(
        &mut self,
        statements: &Statements,
        progress: &Progress,
    ) -> Result<u64, Error> {
        let Some(kept) = self.parked_retention else {
            return Ok(0);
        };
        let limit = self.session.answer_timeout();
        let rows_max = u64::try_from(DROP_ROWS).unwrap_or(u64::MAX);
        let mut dropped = 0_u64;
        loop {
            progress.at(Step::Tending);
            let connection = self.session.begin(&statements.open).await?;
            let drop = sqlx::query(statements.parked_drop.clone())
                .bind(kept.as_secs_f64())
                .bind(DROP_ROWS)
                .bind(self.dead_letters)
                .execute(connection);
            let rows = answer(limit, "drop old parked rows", drop).await?;
            let rows = rows.rows_affected();
            self.session.end("commit").await?;
            dropped += rows;
            if rows < rows_max {
                return Ok(dropped);
            }
            tokio::time::sleep(PURGE_PAUSE).await;
        }
    }
}
