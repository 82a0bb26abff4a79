//! Whether the relay's own schema is there, and whole.

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::error::Error;
use super::inspect::Look;
use crate::finding::Finding;

impl Look<'_> {
    /// Whether the relay's own tables are there, and what each later version brought: tables, or a column.
    /// Plan: the catalogue alone, which any role may read.
    pub(super) async fn schema(&mut self) -> Result<(), Error> {
        let doing = "look for the relay's tables";
        let rows = self
            .rows(
                doing,
                "select count(*) filter (where c.relname in ('outbox', 'lane', 'parked')) = 3,
                        count(*) filter (where c.relname in ('audit', 'parked_holding_key', 'pause', 'history')) = 4
                        and count(*) filter (where c.relname = 'lane' and exists (
                              select from pg_catalog.pg_attribute a
                               where a.attrelid = c.oid and a.attname = 'settled_seq'
                                 and not a.attisdropped)) = 1
                        and count(*) filter (where c.relname = 'parked' and exists (
                              select from pg_catalog.pg_attribute a
                               where a.attrelid = c.oid and a.attname = 'record_differs'
                                 and not a.attisdropped)) = 1
                   from pg_catalog.pg_class c
                   join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                  where n.nspname = 'outbox_relay'"
                    .to_owned(),
            )
            .await?;
        let read = |row: &PgRow| Ok((row.try_get(0)?, row.try_get(1)?));
        let found: Option<(bool, bool)> =
            (rows.first().map(read).transpose()).map_err(|error| Error::statement(doing, error))?;
        match found {
            Some((true, true)) => {}
            Some((true, false)) => self.wrong.push(Finding::migrate(
                "the relay's own schema outbox_relay is of an older version: `outbox-relay migrate` \
                 adds what is missing",
            )),
            _ => self.wrong.push(Finding::migrate(
                "the relay's own schema outbox_relay is not there: `outbox-relay migrate` makes it",
            )),
        }
        Ok(())
    }
}
