//! The facts that `check` judges the database by. It asks and judges nothing; what the start checks
//! find they find here too, all of it, for nothing ends this look but the connection.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use bytestring::ByteString;
use sqlx::postgres::{PgRow, PgSslMode};
use sqlx::{AssertSqlSafe, Decode, Postgres, Row as _, Type};
use uuid::Uuid;

use super::checkup_sql as ask;
use super::emit_sql;
use super::error::Error;
use super::inspect::{Inspector, Look};
use super::layout::index_name;
use super::migrate::recorded;
use super::secured::is_local;
use super::session::{SEARCH_PATH, Session, answer, fixed, options};
use super::sql::{Statements, Table};
use crate::config::{Config, Database, Outbox, TableName};
use crate::event::Event;
use crate::finding::Finding;
use crate::route::{Kind, Router};

/// What of the server's certificate is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    /// Nothing.
    Nothing,
    /// From which authority it is.
    Authority,
    /// That, and whether it names the host.
    Full,
}

/// The server, the role and the connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// As it calls itself.
    pub version: String,
    /// Whether it only follows another server, and takes no writes.
    pub is_standby: bool,
    /// The relay's role.
    pub role: String,
    /// The database's name.
    pub database: String,
    /// Whether no limit of connections binds the role.
    pub is_superuser: bool,
    /// Whether the connection is encrypted; behind a pooler, the pooler's.
    pub tls: bool,
    /// What of the server's certificate the config insists on.
    pub verified: Verified,
    /// Whether nothing between this machine and the server could listen.
    pub is_local: bool,
    /// Connections that roles without privileges may make, all together.
    pub connections_max: i64,
    /// Those that others than relays have.
    pub connections_used: i64,
    /// The role's own limit; less than zero for none.
    pub role_limit: i64,
    /// The database's; less than zero for none.
    pub database_limit: i64,
    /// `transaction_timeout`, where the server has it; zero for none.
    pub transaction_timeout_ms: i64,
    /// `idle_session_timeout`, where the server has it; zero for none.
    pub idle_session_timeout_ms: i64,
    /// Whether autovacuum runs at all.
    pub autovacuum: bool,
    /// Whether the role is told what other roles' sessions do.
    pub sees_sessions: bool,
    /// How far the server's clock is ahead of this machine's, in seconds, and how wrong that may be.
    pub clock: (f64, f64),
    /// What stands between.
    pub pooler: Pooler,
}

/// Who answers one connection after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooler {
    /// One server process for each connection, as far as can be told.
    None,
    /// Any server process for each transaction; whether prepared statements get through is known if
    /// the relay would use them.
    Transaction {
        /// They do, or none are used.
        statements: bool,
    },
}

/// Something that keeps dead rows from being removed.
#[derive(Debug, Clone, PartialEq)]
pub struct Holder {
    /// `transaction`, `prepared` or `slot`.
    pub kind: String,
    /// The process, the transaction's name, or the slot's.
    pub name: String,
    /// For how long.
    pub age: Option<Duration>,
    /// Write-ahead log that a slot keeps, in bytes.
    pub bytes: Option<i64>,
    /// The role; of a slot, its type.
    pub who: String,
}

/// What the start checks look at, each with what they found wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspected {
    /// By name, in the order they were looked at. Those that rest on something wrong are missing.
    pub checks: Vec<(&'static str, Vec<Finding>)>,
    /// Whether the table is there.
    pub exists: bool,
    /// The lanes in force; zero if there are none.
    pub lanes: u16,
    /// Whether its payloads are bytes, not text.
    pub payload_is_bytea: bool,
    /// Whether it has partitions.
    pub partitioned: bool,
    /// A right that nothing fails without.
    pub lacking: Option<Finding>,
}

/// What the server counts and keeps of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Counts {
    /// Whether it has partitions, whose counts and settings these are, all together.
    pub partitioned: bool,
    /// The table, or the first partition, that autovacuum may not have, as SQL has it.
    pub unvacuumed: Option<String>,
    /// How many dead rows bring autovacuum.
    pub vacuum_at_rows: f64,
    /// Rows inserted, since the statistics were reset.
    pub inserted: i64,
    /// Rows updated.
    pub updated: i64,
    /// Rows deleted.
    pub deleted: i64,
    /// Dead rows.
    pub dead: i64,
    /// How long ago the table was last vacuumed, in seconds.
    pub vacuumed_s: Option<f64>,
    /// Whether it has no row.
    pub is_empty: bool,
    /// Whether a policy would hide rows from the relay.
    pub row_security: bool,
    /// Whether a relay has served it.
    pub served: bool,
}

/// The largest pending row of a kind that was met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Largest {
    /// What decides its topic.
    pub kind: Kind,
    /// Bytes of its payload, key and headers.
    pub bytes: i64,
}

/// Asks one database.
#[derive(Debug)]
pub struct Checkup {
    session: Session,
    second: Session,
    database: Database,
}

impl Checkup {
    /// For `database`.
    ///
    /// # Errors
    /// The database URL is none.
    pub fn new(database: &Database) -> Result<Self, Error> {
        Ok(Self {
            session: Session::new(database)?,
            second: Session::new(database)?,
            database: database.clone(),
        })
    }

    /// Looks at the server.
    ///
    /// # Errors
    /// It cannot be reached, or refuses.
    pub async fn server(&mut self) -> Result<Server, Error> {
        let doing = "look at the server";
        let rows = self.rows(doing, ask::SERVER.to_owned()).await?;
        let row = rows.first().ok_or_else(|| Error::Statement {
            doing,
            cause: super::Cause::new("it says nothing of this role"),
        })?;
        let options = options(&self.database)?;
        let mode = options.get_ssl_mode();
        let server = Server {
            version: get(doing, row, "version")?,
            is_standby: get(doing, row, "is_standby")?,
            role: get(doing, row, "role")?,
            database: get(doing, row, "database")?,
            is_superuser: get(doing, row, "is_superuser")?,
            tls: get(doing, row, "tls")?,
            verified: match mode {
                PgSslMode::VerifyFull => Verified::Full,
                PgSslMode::VerifyCa => Verified::Authority,
                _ => Verified::Nothing,
            },
            is_local: is_local(&options),
            connections_max: get(doing, row, "connections_max")?,
            connections_used: get(doing, row, "connections_used")?,
            role_limit: get(doing, row, "role_limit")?,
            database_limit: get(doing, row, "database_limit")?,
            transaction_timeout_ms: get::<Option<i64>>(doing, row, "transaction_timeout_ms")?
                .unwrap_or(0),
            idle_session_timeout_ms: get::<Option<i64>>(doing, row, "idle_session_timeout_ms")?
                .unwrap_or(0),
            autovacuum: get(doing, row, "autovacuum")?,
            sees_sessions: get(doing, row, "sees_sessions")?,
            clock: self.clock().await?,
            pooler: self.pooler().await?,
        };
        Ok(server)
    }

    /// How far the server's clock is ahead, and how wrong that may be: half of the quickest round trip.
    async fn clock(&mut self) -> Result<(f64, f64), Error> {
        const TRIES: usize = 5;
        let doing = "read the server's clock";
        let mut best: Option<(f64, f64)> = None;
        for _ in 0..TRIES {
            let before = now_s();
            let rows = self.plain(doing, ask::CLOCK).await?;
            let after = now_s();
            let theirs: f64 = first(doing, &rows)?;
            let (middle, half) = ((before + after) / 2.0, (after - before).abs() / 2.0);
            if best.is_none_or(|(_, known)| half < known) {
                best = Some((theirs - middle, half));
            }
        }
        Ok(best.unwrap_or_default())
    }

    /// Whether two connections are answered by one server process, each while the other is open: only a
    /// pooler that hands out transactions does that. And if so, whether a statement that was prepared
    /// is still known when another process answers.
    async fn pooler(&mut self) -> Result<Pooler, Error> {
        const TRIES: usize = 5;
        let doing = "tell whether there is a pooler";
        let mut shared = false;
        for _ in 0..TRIES {
            let ours: i64 = first(doing, &self.plain(doing, ask::PROCESS).await?)?;
            let limit = self.second.answer_timeout();
            let second = self.second.connect().await?;
            let theirs = sqlx::raw_sql(fixed(ask::PROCESS)).fetch_all(second);
            let theirs: i64 = first(doing, &answer(limit, doing, theirs).await?)?;
            shared |= ours == theirs;
        }
        if !shared {
            self.second.discard();
            return Ok(Pooler::None);
        }
        let statements = !self.database.prepared_statements || self.keeps_statements().await?;
        self.second.discard();
        self.session.discard();
        Ok(Pooler::Transaction { statements })
    }

    /// Prepares a statement on one connection, lets the other one keep the process that knows it, and
    /// runs it again.
    async fn keeps_statements(&mut self) -> Result<bool, Error> {
        const TRIES: i32 = 5;
        let doing = "run a prepared statement";
        let limit = self.session.answer_timeout();
        for n in 0..TRIES {
            let connection = self.session.connect().await?;
            let prepared = sqlx::query("select $1::int4 as outbox_relay_check").bind(n);
            let prepared = answer(limit, doing, prepared.execute(connection)).await;
            let second = self.second.connect().await?;
            let held = sqlx::raw_sql("begin").execute(&mut *second);
            answer(limit, doing, held).await?;
            let connection = self.session.connect().await?;
            let again = sqlx::query("select $1::int4 as outbox_relay_check").bind(n);
            let again = answer(limit, doing, again.execute(connection)).await;
            // nothing of it stays with the process, which will answer others
            let second = self.second.connect().await?;
            let cleaned = sqlx::raw_sql("deallocate all; rollback").execute(&mut *second);
            answer(limit, doing, cleaned).await?;
            for tried in [prepared, again] {
                match tried {
                    Ok(_) => {}
                    // invalid statement name, duplicate prepared statement
                    Err(error) if matches!(error.code(), Some("26000" | "42P05")) => {
                        return Ok(false);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(true)
    }

    /// What holds back the removal of dead rows.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn holders(&mut self) -> Result<Vec<Holder>, Error> {
        let doing = "look for what holds back vacuum";
        let rows = self.rows(doing, ask::HOLDERS.to_owned()).await?;
        let holder = |row: &PgRow| -> Result<Holder, Error> {
            let age: Option<f64> = get(doing, row, "age_s")?;
            Ok(Holder {
                kind: get(doing, row, "kind")?,
                name: get(doing, row, "name")?,
                age: age.map(|age| Duration::try_from_secs_f64(age).unwrap_or_default()),
                bytes: get(doing, row, "bytes")?,
                who: get(doing, row, "who")?,
            })
        };
        rows.iter().map(holder).collect()
    }

    /// Everything that the start checks look at.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn inspect(&mut self, outbox: &Outbox) -> Result<Inspected, Error> {
        let inspected = self.inspect_all(outbox).await;
        if inspected.is_err() {
            self.session.discard();
        }
        inspected
    }

    async fn inspect_all(&mut self, outbox: &Outbox) -> Result<Inspected, Error> {
        let limit = self.session.answer_timeout();
        let mut found = Inspected::default();
        let mut look = Look {
            connection: self.session.connect().await?,
            limit,
            outbox,
            wrong: Vec::new(),
        };
        let table = look.table().await?;
        found.exists = table.is_some();
        let mut well = table.is_some() && look.wrong.is_empty();
        found.note("table", &mut look);
        look.schema().await?;
        let schema = look.wrong.is_empty();
        found.note("schema", &mut look);
        let Some(table) = table else {
            return Ok(found);
        };
        if !well {
            return Ok(found);
        }
        found.partitioned = table.partitioned;
        found.payload_is_bytea = look.columns(table).await?;
        look.encoding(table).await?;
        well = look.wrong.is_empty();
        found.note("columns", &mut look);
        if !(well && schema) {
            return Ok(found);
        }
        look.grants().await?;
        let granted = look.wrong.is_empty();
        found.note("grants", &mut look);
        look.sequence().await?;
        found.note("sequence", &mut look);
        found.lacking = look.sequence_right().await?;
        if !granted {
            return Ok(found);
        }
        let lanes = look.lanes(table).await?;
        found.lanes = lanes;
        let laned = look.wrong.is_empty();
        found.note("lanes", &mut look);
        let routing = Router::of(outbox).fingerprint(&outbox.layout);
        look.routing_kept(&routing).await?;
        found.note("routing", &mut look);
        if laned {
            look.numbered(lanes).await?;
            look.set_back(lanes).await?;
            found.note("numbers", &mut look);
        }
        Ok(found)
    }

    /// Whether the relay's own schema is as new as this build; `None` if that cannot be told.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn migrated(&mut self) -> Result<Option<bool>, Error> {
        let doing = "read the migrations";
        let readable = ask::MIGRATIONS_READABLE.to_owned();
        if !first::<bool>(doing, &self.rows(doing, readable).await?)? {
            return Ok(None);
        }
        first(doing, &self.rows(doing, recorded()).await?).map(Some)
    }

    /// Whether the functions that write to the outbox are as its table is; `None` if that cannot be told.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn emits(&mut self, outbox: &Outbox) -> Result<Option<bool>, Error> {
        let doing = "ask for the functions that write to it";
        let readable = emit_sql::READABLE.to_owned();
        if !first::<bool>(doing, &self.rows(doing, readable).await?)? {
            return Ok(None);
        }
        let wanted = self.rows(doing, emit_sql::is_wanted(outbox)).await?;
        Ok(Some(!first::<bool>(doing, &wanted)?))
    }

    /// What the server counts and keeps of the table.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn counts(&mut self, table: &TableName, schema: bool) -> Result<Counts, Error> {
        let doing = "read the table's statistics";
        let served = match schema {
            true => first(doing, &self.rows(doing, ask::served(table)).await?)?,
            false => false,
        };
        let rows = self.rows(doing, ask::table(table)).await?;
        let row = rows.first().ok_or_else(|| gone(table))?;
        Ok(Counts {
            partitioned: get(doing, row, "partitioned")?,
            unvacuumed: get(doing, row, "unvacuumed")?,
            vacuum_at_rows: get(doing, row, "vacuum_at_rows")?,
            inserted: get(doing, row, "inserted")?,
            updated: get(doing, row, "updated")?,
            deleted: get(doing, row, "deleted")?,
            dead: get(doing, row, "dead")?,
            vacuumed_s: get(doing, row, "vacuumed_s")?,
            is_empty: get(doing, row, "is_empty")?,
            row_security: get(doing, row, "row_security")?,
            served,
        })
    }

    /// Triggers, rules and publications of the table and its partitions: kind, name, and which of them, as SQL
    /// has it.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn rivals(
        &mut self,
        table: &TableName,
    ) -> Result<Vec<(String, String, String)>, Error> {
        let doing = "look for what else is at the table";
        let rows = self.rows(doing, ask::rivals(table)).await?;
        let rival = |row: &PgRow| {
            let (kind, name) = (get(doing, row, "kind")?, get(doing, row, "name")?);
            Ok((kind, name, get(doing, row, "relation")?))
        };
        rows.iter().map(rival).collect()
    }

    /// The plan of the claim, as it is made for this table, and the index that it must go by, and
    /// those of its partitions.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn claim_plan(
        &mut self,
        config: &Config,
        outbox: &Outbox,
        inspected: &Inspected,
    ) -> Result<(String, String, Vec<String>), Error> {
        let doing = "explain the claim";
        let inspector = Inspector::new(config, outbox, false)?;
        let statements = Statements::render(
            Table {
                name: &outbox.table,
                layout: &outbox.layout,
                on_published: outbox.on_published,
                lanes: inspected.lanes,
                payload_is_bytea: inspected.payload_is_bytea,
                partitioned: inspected.partitioned,
            },
            inspector.timeouts,
        );
        // with values in their places, so that nothing is left prepared in a pooler's connection
        let claim = (statements.claim.plain.as_str())
            .replace("$1", "'{0}'")
            .replace("$2", "'{100}'")
            .replace("$3", "'{0}'");
        let limit = self.session.answer_timeout();
        let connection = self.session.begin(&statements.open).await?;
        let plan = sqlx::raw_sql(AssertSqlSafe(format!("explain (costs off) {claim}")));
        let plan = answer(limit, doing, plan.fetch_all(connection)).await;
        if plan.is_err() {
            self.session.discard();
        }
        let plan = plan?;
        self.session.end("rollback").await?;
        let line = |row: &PgRow| row.try_get::<String, _>(0);
        let lines: Result<Vec<String>, _> = plan.iter().map(line).collect();
        let lines = lines.map_err(|error| Error::statement(doing, error))?;
        let index = index_name(&outbox.table, inspected.lanes);
        let mut of_partitions = Vec::new();
        if inspected.partitioned {
            let sql = ask::leaf_indexes(&outbox.table.schema, &index);
            for row in self.rows(doing, sql).await? {
                of_partitions.push(get(doing, &row, "name")?);
            }
        }
        Ok((lines.join("\n"), index, of_partitions))
    }

    /// The kinds of rows there are, as far as a bounded look meets them.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn kinds(
        &mut self,
        outbox: &Outbox,
        inspected: &Inspected,
    ) -> Result<Vec<Kind>, Error> {
        let doing = "look at the kinds of rows";
        let recent = match inspected.partitioned {
            true => self.recent(&outbox.table, ask::RECENT_PAGES).await?,
            false => vec![ask::recent(&outbox.table)],
        };
        let sql = ask::kinds(&outbox.table, &outbox.layout, inspected.lanes, &recent);
        let rows = self.rows(doing, sql).await?;
        rows.iter().map(|row| kind(doing, row)).collect()
    }

    /// The largest pending rows, as far as a bounded look meets them.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn largest(
        &mut self,
        outbox: &Outbox,
        inspected: &Inspected,
    ) -> Result<Vec<Largest>, Error> {
        let doing = "look for large rows";
        let (lanes, bytea) = (inspected.lanes, inspected.payload_is_bytea);
        let sql = ask::largest(&outbox.table, &outbox.layout, lanes, bytea);
        let rows = self.rows(doing, sql).await?;
        let largest = |row: &PgRow| {
            Ok(Largest {
                kind: kind(doing, row)?,
                bytes: get(doing, row, "bytes")?,
            })
        };
        rows.iter().map(largest).collect()
    }

    /// Some of the pending rows, with what a contract is held against, and nothing else of them.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn pending(
        &mut self,
        outbox: &Outbox,
        inspected: &Inspected,
    ) -> Result<Vec<Event>, Error> {
        let doing = "look at pending rows";
        let (lanes, bytea) = (inspected.lanes, inspected.payload_is_bytea);
        let sql = ask::pending(&outbox.table, &outbox.layout, lanes, bytea);
        let rows = self.rows(doing, sql).await?;
        let event = |row: &PgRow| {
            let payload: Option<String> = get(doing, row, "payload")?;
            let headers: Option<String> = get(doing, row, "headers")?;
            let plain = |text: String| text.split_ascii_whitespace().collect::<String>();
            let bytes = |text| STANDARD.decode(plain(text)).ok().map(Bytes::from);
            Ok(Event {
                seq: 0,
                id: Uuid::nil(),
                aggregate_type: ByteString::new(),
                aggregate_id: Some(ByteString::new()),
                event_type: get::<String>(doing, row, "event_type")?.into(),
                payload: payload.and_then(bytes),
                headers: headers.map(ByteString::from),
                topic: None,
                created_at_us: None,
                parked: None,
            })
        };
        rows.iter().map(event).collect()
    }

    /// Parked rows by state, without those that were given up.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused.
    pub async fn parked(&mut self, table: &TableName) -> Result<BTreeMap<String, i64>, Error> {
        let doing = "count parked rows";
        let rows = self.rows(doing, ask::parked(table)).await?;
        let count = |row: &PgRow| Ok((get(doing, row, "state")?, get(doing, row, "count")?));
        rows.iter().map(count).collect()
    }

    /// The rows of one query, in a transaction that cannot write and does not last.
    pub(super) async fn rows(
        &mut self,
        doing: &'static str,
        sql: String,
    ) -> Result<Vec<PgRow>, Error> {
        let limit = self.session.answer_timeout();
        let statement_ms = self.database.statement_timeout.as_millis();
        let sql = format!(
            "begin isolation level read committed read only; \
             {SEARCH_PATH}; set local statement_timeout = {statement_ms}; {sql}; commit"
        );
        let connection = self.session.connect().await?;
        let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection);
        let rows = answer(limit, doing, rows).await;
        if rows.is_err() {
            self.session.discard();
        }
        rows
    }

    async fn plain(&mut self, doing: &'static str, sql: &'static str) -> Result<Vec<PgRow>, Error> {
        let limit = self.session.answer_timeout();
        let connection = self.session.connect().await?;
        answer(
            limit,
            doing,
            sqlx::raw_sql(fixed(sql)).fetch_all(connection),
        )
        .await
    }
}

impl Inspected {
    /// Keeps what `look` has found wrong since the last time, as the check called `name`.
    fn note(&mut self, name: &'static str, look: &mut Look<'_>) {
        self.checks.push((name, std::mem::take(&mut look.wrong)));
    }

    /// Whether this was looked at, and nothing is wrong with it.
    #[must_use]
    pub fn is_well(&self, name: &str) -> bool {
        (self.checks.iter()).any(|(known, wrong)| *known == name && wrong.is_empty())
    }
}

fn gone(table: &TableName) -> Error {
    Error::Changed(format!("{table} is gone"))
}

pub(super) fn get<'r, T>(doing: &'static str, row: &'r PgRow, column: &str) -> Result<T, Error>
where
    T: Decode<'r, Postgres> + Type<Postgres>,
{
    row.try_get(column)
        .map_err(|error| Error::statement(doing, error))
}

fn first<T>(doing: &'static str, rows: &[PgRow]) -> Result<T, Error>
where
    T: for<'r> Decode<'r, Postgres> + Type<Postgres>,
{
    let row = rows.first().ok_or(sqlx::Error::RowNotFound);
    row.and_then(|row| row.try_get(0))
        .map_err(|error| Error::statement(doing, error))
}

fn kind(doing: &'static str, row: &PgRow) -> Result<Kind, Error> {
    Ok(Kind {
        aggregate_type: get(doing, row, "aggregate_type")?,
        event_type: get(doing, row, "event_type")?,
        topic: get(doing, row, "topic")?,
    })
}

fn now_s() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0.0, |now| now.as_secs_f64())
}
