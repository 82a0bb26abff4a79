//! What operators take away: marked rows that are old, and all that `migrate` made.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Row as _, SqlSafeStr as _, SqlStr};

use super::archive_sql;
use super::audit;
use super::emit_sql;
use super::error::Error;
use super::layout::{literal, names, quote_table};
use super::parked::Who;
use super::partitions::Purge;
use super::session::{Session, answer};
use super::sql::{Timeouts, begin, purge};
use super::tables::layout_kept;
use super::upkeep::{PURGE_PAUSE, PURGE_ROWS};
use crate::config::{Database, TableName};

/// What there is of the relay's in a database, for one outbox.
#[derive(Debug, Clone, Default)]
pub struct Installed {
    /// The trigger that wakes relays.
    pub trigger: bool,
    /// Whether the service's table is there at all.
    pub table: bool,
    /// The indexes of the lanes, with their schemas, as SQL has them.
    pub indexes: Vec<String>,
    /// Whether the table has the column `seq`.
    pub seq: bool,
    /// Lanes.
    pub lanes: i64,
    /// Parked rows, those that were given up included.
    pub parked: i64,
    /// Rows that are not published: they stay, and nobody publishes them.
    pub pending: i64,
    /// The history, if there is one.
    pub history: Option<String>,
    /// Whether it has any rows.
    pub archived: bool,
    /// The function that writes to it, if there is one.
    pub emit: Option<String>,
}

/// What of it goes only if somebody says so.
#[derive(Debug, Clone, Copy, Default)]
pub struct Drops {
    /// The column `seq`.
    pub seq: bool,
    /// The history, with its rows.
    pub history: bool,
}

/// Takes away.
#[derive(Debug)]
pub struct Uninstaller {
    session: Session,
    open: SqlStr,
}

impl Uninstaller {
    /// From `database`; connects when it is first asked.
    ///
    /// # Errors
    /// The database URL is none.
    pub fn new(database: &Database) -> Result<Self, Error> {
        let timeouts = Timeouts {
            statement_ms: database.statement_timeout.as_millis(),
            idle_ms: 30_000,
            tcp_ms: 30_000,
        };
        let settings = "set local lock_timeout = 5000; set local row_security = off;";
        Ok(Self {
            session: Session::new(database)?,
            open: AssertSqlSafe(begin(timeouts, settings)).into_sql_str(),
        })
    }

    /// How many rows of `table` were marked longer than `older_than` ago.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn marked(&mut self, table: &TableName, older_than: Duration) -> Result<i64, Error> {
        let limit = self.session.answer_timeout();
        let connection = self.session.begin(&self.open).await?;
        let layout = layout_kept(connection, limit, &table.to_string()).await?;
        let count = format!(
            "select count(*) from {} where {} < clock_timestamp() - make_interval(secs => $1)",
            quote_table(table),
            names(&layout, "").published_at
        );
        let count = sqlx::query_scalar(AssertSqlSafe(count))
            .bind(older_than.as_secs_f64())
            .fetch_one(connection);
        let rows = answer(limit, "count the marked rows", count).await?;
        self.session.end("rollback").await?;
        Ok(rows)
    }

    /// Deletes those rows, some thousand at a time, each in a transaction of its own. What somebody has
    /// locked is passed over. How many rows, and the entry in the audit.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused; what was deleted by then stays deleted, and is in the
    /// audit as far as that can be written.
    pub async fn purge(
        &mut self,
        table: &TableName,
        older_than: Duration,
        who: &Who,
    ) -> Result<(i64, i64), Error> {
        let mut purged = 0;
        let done = self.purge_all(table, older_than, &mut purged).await;
        if done.is_err() {
            self.session.discard();
        }
        let limit = self.session.answer_timeout();
        let filter = serde_json::json!({ "older_than_s": older_than.as_secs_f64() });
        let entry = audit::Entry {
            outbox: &table.to_string(),
            command: "purge",
            filter: &filter,
            rows: purged,
        };
        let audited = async {
            let connection = self.session.begin(&self.open).await?;
            let id = audit::write(connection, limit, &entry, who).await?;
            self.session.end("commit").await?;
            Ok(id)
        };
        let audited = audited.await;
        done?;
        Ok((purged, audited?))
    }

    async fn purge_all(
        &mut self,
        table: &TableName,
        older_than: Duration,
        purged: &mut i64,
    ) -> Result<(), Error> {
        let limit = self.session.answer_timeout();
        let connection = self.session.begin(&self.open).await?;
        let layout = layout_kept(connection, limit, &table.to_string()).await?;
        let kind = format!(
            "select c.relkind = 'p' from pg_catalog.pg_class c where c.oid = {}::regclass",
            literal(&quote_table(table))
        );
        let kind = sqlx::query_scalar::<_, bool>(AssertSqlSafe(kind));
        let kind = kind.fetch_one(self.session.connection()?);
        let partitioned = answer(limit, "look for partitions", kind).await?;
        self.session.end("rollback").await?;
        if partitioned {
            // whatever it finds by: the pins of a relay keep it to places
            let purge = Purge::of(table, &layout);
            let (session, open) = (&mut self.session, &self.open);
            return purge.run(session, open, older_than, purged, || {}).await;
        }
        let sql = AssertSqlSafe(purge(&quote_table(table), &layout)).into_sql_str();
        let mut place = "(0,0)".to_owned();
        loop {
            let connection = self.session.begin(&self.open).await?;
            let batch = sqlx::query_as::<_, (i64, Option<String>)>(sql.clone())
                .bind(older_than.as_secs_f64())
                .bind(PURGE_ROWS)
                .bind(&place)
                .fetch_one(connection);
            let (rows, last) = answer(limit, "purge marked rows", batch).await?;
            self.session.end("commit").await?;
            *purged += rows;
            match last {
                Some(last) if rows == PURGE_ROWS => place = last,
                _ => return Ok(()),
            }
            tokio::time::sleep(PURGE_PAUSE).await;
        }
    }

    /// What there is for the outbox `table`.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn look(&mut self, table: &TableName) -> Result<Installed, Error> {
        const DOING: &str = "look for what is installed";
        let limit = self.session.answer_timeout();
        let (name, quoted) = (literal(&table.to_string()), quote_table(table));
        let regclass = format!("to_regclass({})", literal(&quoted));
        let (history, emit) = (archive_sql::made(table), emit_sql::made(table));
        let sql = format!(
            "select exists (select from pg_catalog.pg_trigger
                             where tgrelid = {regclass} and tgname = 'outbox_relay_notify'),
                    {regclass} is not null,
                    -- those of partitions go with the table's own, but for one that was not attached yet
                    array(select format('%I.%I', n.nspname, c.relname) from pg_catalog.pg_index i
                            join pg_catalog.pg_class c on c.oid = i.indexrelid
                            join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                           where i.indrelid in (select {regclass}::oid
                                                 union select p.relid::oid from pg_partition_tree({regclass}) p)
                             and c.relname ~ '_outbox_relay_[0-9]+$'
                             and pg_get_indexdef(c.oid) like '%hashtext(%'
                             and not exists (select from pg_catalog.pg_inherits h where h.inhrelid = c.oid)
                           order by 1),
                    exists (select from pg_catalog.pg_attribute
                             where attrelid = {regclass} and attname = 'seq' and not attisdropped),
                    (select count(*) from outbox_relay.lane where outbox = {name}),
                    (select count(*) from outbox_relay.parked where outbox = {name}),
                    {history},
                    {emit}"
        );
        let connection = self.session.begin(&self.open).await?;
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut *connection);
        let row = answer(limit, DOING, row).await?;
        let read = || -> Result<Installed, sqlx::Error> {
            Ok(Installed {
                trigger: row.try_get(0)?,
                table: row.try_get(1)?,
                indexes: row.try_get(2)?,
                seq: row.try_get(3)?,
                lanes: row.try_get(4)?,
                parked: row.try_get(5)?,
                pending: 0,
                history: row.try_get(6)?,
                archived: false,
                emit: row.try_get(7)?,
            })
        };
        let mut installed = read().map_err(|error| Error::statement(DOING, error))?;
        if installed.table {
            let layout = layout_kept(&mut *connection, limit, &table.to_string()).await?;
            let unpublished = names(&layout, "").unpublished;
            let pending = format!("select count(*) from {quoted} where {unpublished}");
            let pending = sqlx::query_scalar(AssertSqlSafe(pending)).fetch_one(&mut *connection);
            installed.pending = answer(limit, DOING, pending).await?;
        }
        if let Some(history) = &installed.history {
            let any = format!("select exists (select from {history})");
            let any = sqlx::query_scalar(AssertSqlSafe(any)).fetch_one(self.session.connection()?);
            installed.archived = answer(limit, DOING, any).await?;
        }
        self.session.end("rollback").await?;
        Ok(installed)
    }

    /// How many connections relays have to this database.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn relays(&mut self) -> Result<i64, Error> {
        let limit = self.session.answer_timeout();
        let connection = self.session.begin(&self.open).await?;
        let count = "select count(*) from pg_catalog.pg_stat_activity
                      where datname = current_database() and application_name = 'outbox-relay'
                        and pid <> pg_backend_pid()";
        let count = sqlx::query_scalar(count).fetch_one(connection);
        let count = answer(limit, "look for relays", count).await?;
        self.session.end("rollback").await?;
        Ok(count)
    }

    /// Takes away what is `installed` for the outbox `table`, in one transaction; its parked rows too.
    /// The outbox's own entry stays, because the audit names it. The audit's number.
    ///
    /// # Errors
    /// Postgres refused, or a lane is in hand: nothing was changed.
    pub async fn remove(
        &mut self,
        table: &TableName,
        installed: &Installed,
        drops: Drops,
        who: &Who,
    ) -> Result<i64, Error> {
        let limit = self.session.answer_timeout();
        let (name, quoted) = (literal(&table.to_string()), quote_table(table));
        // the lanes first, as a batch takes them: one in hand is waited for
        let mut sql = format!("select from outbox_relay.lane where outbox = {name} for update;\n");
        if installed.trigger {
            sql.push_str(&format!("drop trigger outbox_relay_notify on {quoted};\n"));
        }
        for index in &installed.indexes {
            sql.push_str(&format!("drop index {index};\n"));
        }
        if let (true, Some(history)) = (drops.history, &installed.history) {
            sql.push_str(&format!(
                "drop table {history};\ndelete from outbox_relay.history where outbox = {name};\n"
            ));
        }
        if installed.emit.is_some() {
            sql.push_str(&emit_sql::drop(table));
        }
        if drops.seq && installed.seq {
            sql.push_str(&format!("alter table {quoted} drop column seq;\n"));
        }
        for rows in ["parked", "pause", "lane"] {
            sql.push_str(&format!(
                "delete from outbox_relay.{rows} where outbox = {name};\n"
            ));
        }
        sql.push_str(&format!(
            "update outbox_relay.outbox
                set routing = null, adopted_at = null, system_identifier = null, database_oid = null,
                    database_name = null, database_host = null, kafka_cluster_id = null, identified_at = null
              where name = {name}"
        ));
        let connection = self.session.begin(&self.open).await?;
        let removed = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection);
        answer(limit, "take away what was installed", removed).await?;
        let filter = serde_json::json!({
            "drop_seq": drops.seq, "drop_history": drops.history, "indexes": installed.indexes,
        });
        let entry = audit::Entry {
            outbox: &table.to_string(),
            command: "uninstall",
            filter: &filter,
            rows: installed.parked,
        };
        let id = audit::write(connection, limit, &entry, who).await?;
        self.session.end("commit").await?;
        Ok(id)
    }

    /// What would be lost or broken outside of the schema if it were dropped: views on its tables, keys
    /// that refer to them, triggers of others that call its functions.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn dependents(&mut self) -> Result<Vec<String>, Error> {
        let limit = self.session.answer_timeout();
        let connection = self.session.begin(&self.open).await?;
        let sql = "with ours as (select n.oid from pg_catalog.pg_namespace n where n.nspname = 'outbox_relay')
             select distinct 'the view ' || v.oid::regclass::text
               from pg_catalog.pg_depend d
               join pg_catalog.pg_rewrite r on r.oid = d.objid and d.classid = 'pg_rewrite'::regclass
               join pg_catalog.pg_class v on v.oid = r.ev_class
               join pg_catalog.pg_class t on t.oid = d.refobjid and d.refclassid = 'pg_class'::regclass
              where t.relnamespace in (select oid from ours) and v.relnamespace not in (select oid from ours)
              union
             select 'the trigger ' || g.tgname || ' on ' || g.tgrelid::regclass::text
               from pg_catalog.pg_trigger g join pg_catalog.pg_proc p on p.oid = g.tgfoid
               join pg_catalog.pg_class t on t.oid = g.tgrelid
              where p.pronamespace in (select oid from ours) and t.relnamespace not in (select oid from ours)
                and g.tgname <> 'outbox_relay_notify'
              union
             select 'the foreign key ' || c.conname || ' on ' || c.conrelid::regclass::text
               from pg_catalog.pg_constraint c
               join pg_catalog.pg_class t on t.oid = c.conrelid
               join pg_catalog.pg_class f on f.oid = c.confrelid
              where c.contype = 'f' and f.relnamespace in (select oid from ours)
                and t.relnamespace not in (select oid from ours)
              order by 1";
        let found = sqlx::query_scalar(sql).fetch_all(connection);
        let found = answer(limit, "look for what depends on the schema", found).await?;
        self.session.end("rollback").await?;
        Ok(found)
    }

    /// Drops the schema outbox_relay, the audit with it.
    ///
    /// # Errors
    /// Postgres refused: nothing was changed.
    pub async fn drop_schema(&mut self) -> Result<(), Error> {
        let limit = self.session.answer_timeout();
        let connection = self.session.begin(&self.open).await?;
        let drop = sqlx::raw_sql("drop schema outbox_relay cascade").execute(connection);
        answer(limit, "drop the schema", drop).await?;
        self.session.end("commit").await
    }
}
