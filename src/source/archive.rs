//! The histories of `on_published = "archive"`: whether one is there and fits, and what it needs as time
//! goes on. Moving rows to it is part of settling (`archive_sql`, `parking`).
//!
//! **Invariants**
//! - A row is in the table or in the history: the statement that settles deletes and inserts it at once.
//! - Settling waits for no upkeep, and fails for want of no partition. Those are made days ahead; the
//!   default one takes what comes when nobody made any, and is told. Its rows go by the retention too,
//!   some thousand at a time.
//! - A partition is dropped whole, in a transaction of its own, with half a second's patience for the lock.
//!   `detach … concurrently` would need no such lock, but works neither in a function nor beside a default
//!   partition.
//!
//! **Drawback chosen.** The functions that make and drop partitions run with the rights of whoever migrated
//! (`security definer`), for the relay's role may create nothing; it may call them for any history.

use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::archive_sql::{self, history};
use super::error::Error;
use super::inspect::Look;
use super::session::{Session, answer};
use crate::config::{OnPublished, Outbox};
use crate::finding::Finding;
use crate::ops::{Progress, Step};

/// The longest that an index of a partition may take.
const INDEX_TIMEOUT: Duration = Duration::from_secs(3600);
/// Partitions to drop in one upkeep: the rest comes with the next.
const DROPS_MAX: u32 = 100;
/// Rows of the default partition that one call deletes at most (`tend_history`).
const DELETED_MAX: i64 = 5_000;

impl Look<'_> {
    /// Whether the history is there, with the columns and types of the table, if one is wanted.
    pub(super) async fn history(&mut self) -> Result<(), Error> {
        const DOING: &str = "look for the history";
        let (name, layout) = (&self.outbox.table, &self.outbox.layout);
        if self.outbox.on_published != OnPublished::Archive {
            return Ok(());
        }
        let rows = self.rows(DOING, archive_sql::missing(name, layout)).await?;
        let read = |row: &PgRow| -> Result<(bool, Vec<String>), sqlx::Error> {
            Ok((row.try_get(0)?, row.try_get(1)?))
        };
        let found = rows.first().map(read).transpose();
        let (there, missing) =
            (found.map_err(|error| Error::statement(DOING, error))?).unwrap_or((false, Vec::new()));
        if !there {
            self.wrong.push(Finding::migrate(format!(
                "{name} has no history {}, or that has no default partition, and on_published = \"archive\" \
                 moves rows there: `outbox-relay migrate` makes it",
                history(name)
            )));
            return Ok(());
        }
        if !missing.is_empty() {
            self.wrong.push(Finding::migrate(format!(
                "the history {} lacks the columns {}, which the layout has: `outbox-relay migrate` adds them",
                history(name),
                missing.join(", ")
            )));
        }
        let types = archive_sql::other_types(name, layout);
        for row in self.rows("compare the history's columns", types).await? {
            let read = || -> Result<(String, String, String), sqlx::Error> {
                Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
            };
            let (column, ours, theirs) = read().map_err(|error| Error::statement(DOING, error))?;
            self.wrong.push(Finding::sql(
                format!(
                    "the column {column} of {name} is {ours}, and that of its history is {theirs}: what is \
                     published could not be moved as it is. Changing it rewrites the history; one that is \
                     renamed instead stays as it is, and `outbox-relay migrate` makes another"
                ),
                format!(
                    "alter table {} alter column {column} type {ours} using {column}::{ours};",
                    history(name)
                ),
            ));
        }
        Ok(())
    }
}

/// Tends the history of one outbox.
#[derive(Debug)]
pub(super) struct Historian {
    outbox: String,
    partition: Duration,
    retention: Option<Duration>,
    /// What was told and has not changed since.
    said: Option<String>,
}

/// What tending a history came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Archived {
    /// Partitions that were dropped.
    pub(super) dropped: u64,
    /// Old rows of the default partition that were deleted.
    pub(super) deleted: u64,
}

/// What one call of `tend_history` did.
struct Once {
    made: i32,
    dropped: i32,
    deleted: i64,
    strays: bool,
    waits: Option<String>,
    indexable: Option<String>,
}

impl Historian {
    /// Of `outbox`; `None` if it has no history.
    pub(super) fn of(outbox: &Outbox) -> Option<Self> {
        (outbox.on_published == OnPublished::Archive).then(|| Self {
            outbox: outbox.table.to_string(),
            partition: outbox.archive_partition,
            retention: outbox.retention,
            said: None,
        })
    }

    /// How long rows are kept.
    pub(super) fn retention(&self) -> Option<Duration> {
        self.retention
    }

    /// Makes the partitions that will be wanted, drops those that are old enough, and makes the index of
    /// one that takes no more rows.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub(super) async fn tend(
        &mut self,
        session: &mut Session,
        open: &sqlx::SqlStr,
        progress: &Progress,
    ) -> Result<Archived, Error> {
        let mut all = Archived::default();
        for _ in 0..DROPS_MAX {
            progress.at(Step::Tending);
            let once = self.once(session, open).await?;
            if once.made > 0 {
                tracing::info!(
                    outbox = self.outbox,
                    made = once.made,
                    "made partitions of the history"
                );
            }
            all.dropped += u64::try_from(once.dropped).unwrap_or(0);
            all.deleted += u64::try_from(once.deleted).unwrap_or(0);
            if once.dropped == 0 && once.deleted < DELETED_MAX {
                self.tell(once.waits, once.strays);
                if let Some(partition) = &once.indexable {
                    // it may last: no loop that is stuck
                    progress.at(Step::Resting);
                    self.index(session, open, partition).await?;
                }
                break;
            }
        }
        Ok(all)
    }

    async fn once(&self, session: &mut Session, open: &sqlx::SqlStr) -> Result<Once, Error> {
        const DOING: &str = "tend the history";
        let limit = session.answer_timeout();
        let connection = session.begin(open).await?;
        let row = sqlx::query(archive_sql::TEND)
            .bind(&self.outbox)
            .bind(self.partition.as_secs_f64())
            .bind(self.retention.map(|kept| kept.as_secs_f64()))
            .fetch_one(connection);
        let row = answer(limit, DOING, row).await?;
        session.end("commit").await?;
        let read = || -> Result<Once, sqlx::Error> {
            Ok(Once {
                made: row.try_get(0)?,
                dropped: row.try_get(1)?,
                deleted: row.try_get(2)?,
                strays: row.try_get(3)?,
                waits: row.try_get(4)?,
                indexable: row.try_get(5)?,
            })
        };
        read().map_err(|error| Error::statement(DOING, error))
    }

    async fn index(
        &self,
        session: &mut Session,
        open: &sqlx::SqlStr,
        partition: &str,
    ) -> Result<(), Error> {
        const DOING: &str = "make the index of a partition";
        let limit = session.answer_timeout();
        let connection = session.begin(open).await?;
        let patience = archive_sql::patience(INDEX_TIMEOUT);
        let patience = sqlx::raw_sql(patience).execute(&mut *connection);
        answer(limit, DOING, patience).await?;
        let made = sqlx::query_scalar::<_, bool>(archive_sql::INDEX)
            .bind(&self.outbox)
            .bind(partition)
            .fetch_one(connection);
        let made = answer(INDEX_TIMEOUT + limit, DOING, made).await?;
        session.end("commit").await?;
        if made {
            tracing::info!(
                outbox = self.outbox,
                partition,
                "made the index of a partition"
            );
        }
        Ok(())
    }

    /// Says what is not as it should be, once until it changes.
    fn tell(&mut self, waits: Option<String>, strays: bool) {
        let strays = strays.then(|| {
            "rows were published while there was no partition for them: they are in the history's default \
             partition, and go by the retention, row by row"
                .to_owned()
        });
        let text: Vec<String> = waits.into_iter().chain(strays).collect();
        let text = Some(text.join("; ")).filter(|text| !text.is_empty());
        if let (Some(text), true) = (&text, text != self.said) {
            tracing::warn!(outbox = self.outbox, "{text}");
        }
        self.said = text;
    }
}
