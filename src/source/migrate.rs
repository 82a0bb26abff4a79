//! What the relay needs in the database, and how a table that is in use gets it.
//!
//! Every step may run twice. What locks the service's table or touches its rows is *announced*, with
//! the number of rows, and done only with leave; the rest is done at once. The printed form is the
//! same SQL.
//!
//! **`seq` on a table with rows.** `add column … identity` would rewrite the table under its
//! exclusive lock and number old rows by their place on disk: with space used again, every aggregate
//! came out inverted. So the column is added empty, gets a sequence for what is inserted from then
//! on, and the rows that are still to be published are numbered in the order they were created,
//! from below: zero and less, so that no number is needed in advance and nothing is locked for long.
//! Published rows keep no number and are not touched.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use super::archive_sql;
use super::ddl::Ddl;
use super::emit_sql;
use super::error::Error;
use super::grants;
use super::layout::{index_name, literal, names, quote_table};
use super::migrations::{MIGRATIONS, migrator};
use super::partitions::relations;
use super::session::{Session, answer};
use crate::config::{Config, Database, OnPublished, Outbox};
use crate::route::Router;

/// The name of the bookkeeping table. The service may own the usual one.
const BOOKKEEPING: &str = "outbox_relay.migrations";

/// How long a change waits for the lock on the service's table before it lets the writers through
/// and tries again.
const LOCK_TIMEOUT: &str = "2s";
/// How often it tries.
const LOCK_ATTEMPTS: u32 = 30;

/// Brings the database of one config to what `run` needs.
#[derive(Debug)]
pub struct Migration<'a> {
    database: &'a Database,
    outboxes: &'a [Outbox],
}

/// What a migration came to for one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Migrated {
    /// Everything is there.
    Done,
    /// The table is not there yet.
    NoTable,
    /// It is no table that can be served, and why.
    Refused(String),
    /// What is still to do locks the table or touches its rows: one line each.
    WantsLeave(Vec<String>),
}

/// One thing to do to a table.
pub(super) struct Step {
    /// What it does, for the log.
    pub(super) title: String,
    /// Whether, and why, it wants leave.
    pub(super) leave: Option<String>,
    /// Whether nobody waits while it waits for a lock, so that it may wait as long as it takes. One
    /// that is stopped half-way leaves an index that is not valid behind.
    pub(super) concurrent: bool,
    pub(super) sql: String,
}

impl<'a> Migration<'a> {
    /// For the tables that `config` names.
    #[must_use]
    pub fn new(config: &'a Config) -> Self {
        Self {
            database: &config.database,
            outboxes: &config.outboxes,
        }
    }

    /// Everything as plain SQL, for tools that run migrations themselves. Connects to nothing, so
    /// it cannot know what is there: each statement asks first.
    #[must_use]
    pub fn print(outboxes: &[Outbox]) -> String {
        let mut sql = String::from(
            "-- What outbox-relay needs, as printed by `outbox-relay migrate --print`. It may run \
             twice.\n-- Not in one transaction: `create index concurrently` refuses to.\n",
        );
        for (_, _, statements) in MIGRATIONS {
            sql.push('\n');
            sql.push_str(statements);
        }
        for outbox in outboxes {
            let ddl = Ddl::of(outbox, outbox.lanes);
            sql.push_str(&format!("\n-- {}\n", outbox.table));
            let mut statements = vec![
                ddl.seq(),
                ddl.number(),
                ddl.index_of_partitioned(),
                ddl.index(),
                ddl.lanes(),
                ddl.routing(),
                ddl.emit(),
            ];
            if outbox.on_published == OnPublished::Archive {
                statements.push(ddl.history());
            }
            if outbox.notify {
                statements.push(ddl.notify());
            }
            for statement in statements {
                sql.push('\n');
                sql.push_str(&statement);
                sql.push('\n');
            }
        }
        sql
    }

    /// The roles `owner`, which migrates, and `runner`, which relays, and their rights, as plain SQL; and
    /// those of a service's `writer`, to write events by the functions for it.
    #[must_use]
    pub fn print_grants(
        outboxes: &[Outbox],
        owner: &str,
        runner: &str,
        writer: Option<&str>,
    ) -> String {
        grants::print(outboxes, owner, runner, writer)
    }

    /// Applies what is missing. With `leave`, also what locks a table or touches its rows; each of
    /// those is announced through `say` first, as is everything that is done.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn apply(
        &self,
        leave: bool,
        mut say: impl FnMut(&str),
    ) -> Result<Vec<(String, Migrated)>, Error> {
        let mut session = Session::new(self.database)?;
        let limit = session.answer_timeout();
        let connection = session.connect().await?;
        // the connection is its own, as the lock below presumes too
        let path = sqlx::raw_sql("set search_path = pg_catalog, pg_temp").execute(&mut *connection);
        answer(limit, "fix the search path", path).await?;
        if !schema_is_there(connection, limit).await? {
            say("making the schema outbox_relay");
        }
        if !is_up_to_date(connection, limit).await? {
            let mut migrator = migrator();
            migrator.dangerous_set_table_name(BOOKKEEPING);
            migrator.create_schema("outbox_relay");
            // a newer relay may have been here
            migrator.set_ignore_missing(true);
            let migrated = migrator.run_direct(None, &mut *connection, false).await;
            migrated.map_err(|error| Error::Migration(sqlx::Error::from(error).into()))?;
        }
        lock(connection, limit).await?;
        let mut all = Vec::new();
        for outbox in self.outboxes {
            let mut table = TableMigration {
                connection: &mut *connection,
                outbox,
                limit,
            };
            all.push((
                outbox.table.to_string(),
                table.apply(leave, &mut say).await?,
            ));
        }
        Ok(all)
    }
}

async fn schema_is_there(
    connection: &mut PgConnection,
    limit: std::time::Duration,
) -> Result<bool, Error> {
    let there =
        "select exists (select from pg_catalog.pg_namespace where nspname = 'outbox_relay')";
    answer(
        limit,
        "look for the schema",
        sqlx::query_scalar(there).fetch_one(connection),
    )
    .await
}

/// Asks whether every migration of this build is recorded. Not the newest alone: one with a lower number may
/// have come later.
pub(super) fn recorded() -> String {
    let versions = MIGRATIONS.iter().map(|(number, ..)| number.to_string());
    format!(
        "select '{{{}}}'::int8[] <@ array(select version from {BOOKKEEPING} where success)",
        versions.collect::<Vec<_>>().join(",")
    )
}

/// Whether every migration of this build is recorded. Then nothing is asked that a role without
/// the right to create schemas could not do: `create schema if not exists` wants it even where the
/// schema exists.
async fn is_up_to_date(
    connection: &mut PgConnection,
    limit: std::time::Duration,
) -> Result<bool, Error> {
    let there = "select exists (select from pg_catalog.pg_class c
                   join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                  where n.nspname = 'outbox_relay' and c.relname = 'migrations')
                and has_schema_privilege(n.oid, 'usage')
                and has_table_privilege('outbox_relay.migrations', 'select')
           from pg_catalog.pg_namespace n where n.nspname = 'outbox_relay'";
    let there = sqlx::query_scalar::<_, bool>(there).fetch_optional(&mut *connection);
    if answer(limit, "look for the migrations", there).await? != Some(true) {
        return Ok(false);
    }
    let recorded = sqlx::query_scalar(AssertSqlSafe(recorded())).fetch_one(connection);
    answer(limit, "read the migrations", recorded).await
}

/// Waits until no other relay migrates tables of this database: two would take each other's index
/// that is being built for one that was left invalid. Held until the connection ends. Asked for again
/// and again, because waiting in the server would hold a snapshot that `create index concurrently`
/// waits for.
async fn lock(connection: &mut PgConnection, limit: std::time::Duration) -> Result<(), Error> {
    loop {
        let locked = "select pg_try_advisory_lock(hashtext('outbox_relay'), hashtext('migrate'))";
        let locked = sqlx::query_scalar::<_, bool>(locked).fetch_one(&mut *connection);
        if answer(limit, "wait for another migration", locked).await? {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
}

pub(super) struct TableMigration<'a> {
    pub(super) connection: &'a mut PgConnection,
    pub(super) outbox: &'a Outbox,
    pub(super) limit: std::time::Duration,
}

impl TableMigration<'_> {
    async fn apply(&mut self, leave: bool, say: &mut impl FnMut(&str)) -> Result<Migrated, Error> {
        let partitioned = match self.kind().await? {
            Kind::Table => false,
            Kind::Partitioned => true,
            Kind::Nothing => return Ok(Migrated::NoTable),
            Kind::Other => {
                return Ok(Migrated::Refused(
                    "views, foreign tables and partitions that are some, a partition by itself, and tables \
                     that others inherit from cannot be served"
                        .to_owned(),
                ));
            }
        };
        let mut wanted = Vec::new();
        // each look comes after the step before it: numbering needs the column
        for find in [
            Find::Seq,
            Find::Number,
            Find::Index,
            Find::Lanes,
            Find::Routing,
            Find::Emit,
            Find::History,
            Find::Notify,
        ] {
            if partitioned && matches!(find, Find::Index) {
                self.index_partitions(say).await?;
                continue;
            }
            let Some(step) = self.find(find).await? else {
                continue;
            };
            match &step.leave {
                Some(why) if !leave => {
                    wanted.push(why.clone());
                    if matches!(find, Find::Seq) {
                        // nothing below can be done without the column
                        break;
                    }
                }
                why => {
                    say(why.as_deref().unwrap_or(&step.title));
                    self.run(&step).await?;
                }
            }
        }
        Ok(if wanted.is_empty() {
            Migrated::Done
        } else {
            Migrated::WantsLeave(wanted)
        })
    }

    async fn find(&mut self, find: Find) -> Result<Option<Step>, Error> {
        match find {
            Find::Seq => self.find_seq().await,
            Find::Number => self.find_unnumbered().await,
            Find::Index => self.find_index().await,
            Find::Lanes => self.find_lanes().await,
            Find::Routing => self.find_routing().await,
            Find::Emit => self.find_emit().await,
            Find::History => self.find_history().await,
            Find::Notify => self.find_notify().await,
        }
    }

    async fn find_seq(&mut self) -> Result<Option<Step>, Error> {
        let (name, table) = (&self.outbox.table, quote_table(&self.outbox.table));
        if self.truth(has_seq(self.outbox)).await? {
            return Ok(None);
        }
        let rows = match self.number(estimated_rows(self.outbox)).await? {
            // never analysed, or small enough to count
            ..1_000_000 => self.number(format!("select count(*) from {table}")).await?,
            rows => rows,
        };
        let empty = self
            .truth(format!("select not exists (select from {table})"))
            .await?;
        let leave = (!empty).then(|| {
            format!(
                "{name}: adds the column seq, under an exclusive lock for some milliseconds (it waits \
                 {LOCK_TIMEOUT} for the lock at most, then lets the writers pass and tries again). \
                 The table has about {rows} rows; none is rewritten"
            )
        });
        let sql = Ddl::of(self.outbox, self.outbox.lanes).seq();
        Ok(Some(Step {
            title: format!("{name}: adding the column seq"),
            leave,
            concurrent: false,
            sql,
        }))
    }

    async fn find_unnumbered(&mut self) -> Result<Option<Step>, Error> {
        let (name, table) = (&self.outbox.table, quote_table(&self.outbox.table));
        let layout = &self.outbox.layout;
        let row = names(layout, "");
        let pending = format!("{} and seq is null", row.unpublished);
        let rows = self
            .number(format!("select count(*) from {table} where {pending}"))
            .await?;
        if rows == 0 {
            return Ok(None);
        }
        let ties = match &layout.created_at {
            None => 0,
            Some(_) => {
                self.number(format!(
                    "select coalesce(sum(n), 0)::int8 from (select count(*) as n from {table}
                      where {pending} group by {key}, {created_at} having count(*) > 1) t",
                    key = row.key,
                    created_at = row.created_at,
                ))
                .await?
            }
        };
        let mut leave = match &layout.created_at {
            Some(created_at) => format!(
                "{name}: numbers its {rows} rows that are not published, in the order of {created_at}, {}; \
                 published rows are left alone",
                layout.id
            ),
            None => format!(
                "{name}: numbers its {rows} rows, in the order of the transactions that inserted them: the \
                 table has no time that tells it. After a restore from a dump that is the order of the dump"
            ),
        };
        if ties > 0 {
            leave.push_str(&format!(
                ". {ties} of them share their time with another row of their aggregate: nothing in \
                 the table tells their order, so the id decides"
            ));
        }
        let sql = Ddl::of(self.outbox, self.outbox.lanes).number();
        Ok(Some(Step {
            title: leave.clone(),
            leave: Some(leave),
            concurrent: false,
            sql,
        }))
    }

    async fn find_lanes(&mut self) -> Result<Option<Step>, Error> {
        let name = &self.outbox.table;
        let outbox = literal(&name.to_string());
        let lanes = format!("select count(*) from outbox_relay.lane where outbox = {outbox}");
        let (there, lanes) = (self.number(lanes).await?, self.outbox.lanes);
        if there > 0 {
            if there != i64::from(lanes) {
                tracing::warn!(
                    "{name}: has {there} lanes, and keeps them, though its config says {lanes}. To \
                     change their number, run `delete from outbox_relay.lane where outbox = {outbox}`, \
                     which waits for the batches in hand and stops new ones, then migrate again, and \
                     drop the index {} afterwards",
                    index_name(name, u16::try_from(there).unwrap_or(0))
                );
            }
            return Ok(None);
        }
        let sql = Ddl::of(self.outbox, lanes).lanes();
        Ok(Some(Step {
            title: format!("{name}: making {lanes} lanes"),
            leave: None,
            concurrent: false,
            sql,
        }))
    }

    async fn find_routing(&mut self) -> Result<Option<Step>, Error> {
        let name = &self.outbox.table;
        let outbox = literal(&name.to_string());
        let ours = Router::of(self.outbox).fingerprint(&self.outbox.layout);
        let routing = format!("select routing from outbox_relay.outbox where name = {outbox}");
        let routing = sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(routing))
            .fetch_optional(&mut *self.connection);
        let theirs = answer(self.limit, "read the routing", routing)
            .await?
            .flatten();
        let leave = match theirs {
            Some(theirs) if theirs == ours => return Ok(None),
            Some(theirs) => Some(format!(
                "{name}: changes its routing from `{theirs}` to `{ours}`; relays with the old one \
                 stop serving it"
            )),
            None => None,
        };
        let sql = Ddl::of(self.outbox, self.outbox.lanes).routing();
        Ok(Some(Step {
            title: format!("{name}: keeping its routing, `{ours}`"),
            leave,
            concurrent: false,
            sql,
        }))
    }

    async fn find_emit(&mut self) -> Result<Option<Step>, Error> {
        if !self.truth(emit_sql::is_wanted(self.outbox)).await? {
            return Ok(None);
        }
        let name = &self.outbox.table;
        Ok(Some(Step {
            title: format!("{name}: making the functions that write to it"),
            leave: None,
            concurrent: false,
            sql: Ddl::of(self.outbox, self.outbox.lanes).emit(),
        }))
    }

    async fn find_history(&mut self) -> Result<Option<Step>, Error> {
        let name = &self.outbox.table;
        let there = archive_sql::is_made(name, &self.outbox.layout);
        if self.outbox.on_published != OnPublished::Archive || self.truth(there).await? {
            return Ok(None);
        }
        let history = archive_sql::history(name);
        Ok(Some(Step {
            title: format!("{name}: making its history {history}"),
            leave: None,
            concurrent: false,
            sql: Ddl::of(self.outbox, self.outbox.lanes).history(),
        }))
    }

    async fn find_notify(&mut self) -> Result<Option<Step>, Error> {
        let (name, table) = (&self.outbox.table, quote_table(&self.outbox.table));
        let there = format!(
            "select exists (select from pg_catalog.pg_trigger
              where tgrelid = {}::regclass and tgname = 'outbox_relay_notify')",
            literal(&table)
        );
        if !self.outbox.notify || self.truth(there).await? {
            return Ok(None);
        }
        let empty = self
            .truth(format!("select not exists (select from {table})"))
            .await?;
        let leave = (!empty).then(|| {
            format!(
                "{name}: adds the trigger outbox_relay_notify, under a lock that makes writers wait \
                 some milliseconds"
            )
        });
        let sql = Ddl::of(self.outbox, self.outbox.lanes).notify();
        Ok(Some(Step {
            title: format!("{name}: adding the trigger outbox_relay_notify"),
            leave,
            concurrent: false,
            sql,
        }))
    }

    /// The database's number of lanes, or the config's where there are none yet.
    pub(super) async fn lanes_in_force(&mut self) -> Result<u16, Error> {
        let outbox = literal(&self.outbox.table.to_string());
        let lanes = format!("select count(*) from outbox_relay.lane where outbox = {outbox}");
        match u16::try_from(self.number(lanes).await?) {
            Ok(0) | Err(_) => Ok(self.outbox.lanes),
            Ok(lanes) => Ok(lanes),
        }
    }

    /// What there is by the table's name: nothing, a table that can be served, or something else.
    async fn kind(&mut self) -> Result<Kind, Error> {
        let name = &self.outbox.table;
        let kind = format!(
            "select case when c.relkind not in ('r', 'p') or c.relispartition then 2
                         when c.relkind = 'r'
                              and exists (select from pg_catalog.pg_inherits where inhparent = c.oid) then 2
                         when exists (select from pg_partition_tree(c.oid::regclass) p
                                        join pg_catalog.pg_class l on l.oid = p.relid and l.relkind = 'f') then 2
                         when c.relkind = 'p' then 3
                         else 1 end::int8
               from pg_catalog.pg_class c
               join pg_catalog.pg_namespace n on n.oid = c.relnamespace
              where n.nspname = {} and c.relname = {}
              union all select 0 limit 1",
            literal(&name.schema),
            literal(&name.table)
        );
        Ok(match self.number(kind).await? {
            0 => Kind::Nothing,
            1 => Kind::Table,
            3 => Kind::Partitioned,
            _ => Kind::Other,
        })
    }

    /// Runs a step. One that does not get its lock lets the writers pass and tries again.
    pub(super) async fn run(&mut self, step: &Step) -> Result<(), Error> {
        let mut attempts = 0;
        loop {
            // no time-out of ours: an index of a large table takes its time
            let patience = if step.concurrent { "0" } else { LOCK_TIMEOUT };
            let set = format!("set lock_timeout = '{patience}'");
            let run = async {
                sqlx::raw_sql(AssertSqlSafe(set))
                    .execute(&mut *self.connection)
                    .await?;
                let ran = sqlx::raw_sql(AssertSqlSafe(step.sql.clone()));
                let ran = ran.execute(&mut *self.connection).await;
                sqlx::raw_sql("reset lock_timeout")
                    .execute(&mut *self.connection)
                    .await?;
                ran
            };
            match run.await {
                Ok(_) => return Ok(()),
                Err(error) => {
                    let error = Error::statement("change the schema", error);
                    attempts += 1;
                    // lock_not_available; deadlock_detected and serialization_failure, with a
                    // worker that marks rows meanwhile
                    let passing = matches!(error.code(), Some("55P03" | "40P01" | "40001"));
                    if !passing || attempts >= LOCK_ATTEMPTS {
                        return Err(error);
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                }
            }
        }
    }

    pub(super) async fn truth(&mut self, sql: String) -> Result<bool, Error> {
        let row = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *self.connection);
        answer(self.limit, "look at the table", row).await
    }

    pub(super) async fn number(&mut self, sql: String) -> Result<i64, Error> {
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut *self.connection);
        let row = answer(std::time::Duration::from_secs(600), "count rows", row).await?;
        row.try_get(0)
            .map_err(|error| Error::statement("count rows", error))
    }
}

enum Kind {
    Nothing,
    Table,
    Partitioned,
    Other,
}

#[derive(Clone, Copy)]
enum Find {
    Seq,
    Number,
    Index,
    Lanes,
    Routing,
    Emit,
    History,
    Notify,
}

fn has_seq(outbox: &Outbox) -> String {
    format!(
        "select exists (select from pg_catalog.pg_attribute
          where attrelid = {}::regclass and attname = 'seq' and not attisdropped)",
        literal(&quote_table(&outbox.table))
    )
}

fn estimated_rows(outbox: &Outbox) -> String {
    format!(
        "select coalesce(sum(greatest(c.reltuples, 0)) filter (where c.relkind = 'r'), 0)::int8
           from pg_catalog.pg_class c where c.oid in {}",
        relations(&quote_table(&outbox.table))
    )
}
