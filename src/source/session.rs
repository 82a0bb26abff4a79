//! One connection, and at most one transaction on it.
//!
//! The driver's own transactions are not used: cancelling their begin can hand an open transaction
//! back (sqlx issues 4385 and 4393), and a simple query that begins and sets everything is one round
//! trip. The rule here is simpler: whatever goes wrong or is dropped half-way, the connection is
//! closed, and Postgres rolls back.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row as _, SqlSafeStr as _, SqlStr};
use tokio::time::Instant;

use super::error::{Cause, Error};
use super::secured::{refused, secured};
use crate::config::{Database, Secret};

/// A transaction that writes to the table, by its virtual id, and whether it is a prepared one.
pub(super) type Writer = (String, bool);

/// A sequence's last number, `None` before its first, and its file: one that is restarted has another.
pub(super) type Last = (Option<i64>, i64);

/// Where names without a schema are looked for, whatever the role's or the database's own setting: nothing
/// that somebody else can make is called by mistake. For one transaction: behind a pooler the session is
/// everybody's.
pub(super) const SEARCH_PATH: &str = "set local search_path = pg_catalog, pg_temp";

/// Whether any of those who wrote `then` may do so `now`. A prepared transaction may be any of them: servers
/// older than 14.1 give it a new name.
pub(super) fn may_write_still(then: &[Writer], now: &[Writer]) -> bool {
    let is = |(name, _): &Writer| now.iter().any(|(it, prepared)| *prepared || it == name);
    then.iter().any(is)
}

/// How much longer than the server's own statement time-out the relay waits for an answer.
const GRACE: Duration = Duration::from_secs(5);

/// See the module's description.
#[derive(Debug)]
pub(super) struct Session {
    /// As they were at the start.
    options: PgConnectOptions,
    database: Database,
    name: Option<String>,
    connect_timeout: Duration,
    answer_timeout: Duration,
    keeps_statements: bool,
    connection: Option<PgConnection>,
    in_transaction: bool,
    /// The server process that the last transaction was on, and since when it is known.
    process: Option<(i32, Instant)>,
}

impl Session {
    /// A session that connects when it is first used.
    ///
    /// # Errors
    /// The URL is no Postgres URL. The message does not repeat it.
    pub(super) fn new(database: &Database) -> Result<Self, Error> {
        Ok(Self {
            options: parsed(&database.url, database.prepared_statements)?,
            database: database.clone(),
            name: None,
            connect_timeout: database.connect_timeout,
            answer_timeout: database.statement_timeout + GRACE,
            keeps_statements: database.prepared_statements,
            connection: None,
            in_transaction: false,
            process: None,
        })
    }

    /// Gives it another name in `pg_stat_activity` than that of the relays.
    pub(super) fn called(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Connects if need be and begins a transaction by `open`. One that was left open, by a batch
    /// that was dropped, goes first, with its connection.
    pub(super) async fn begin(&mut self, open: &SqlStr) -> Result<&mut PgConnection, Error> {
        if self.in_transaction {
            self.discard();
        }
        self.connect().await?;
        self.in_transaction = true;
        let doing = "begin a transaction";
        let limit = self.silence_timeout();
        let open = match self.keeps_statements {
            true => open.clone(),
            // The driver names every statement, also where it is to keep none, and never lets go of
            // it. Behind a pooler those of other clients would be met: in one transaction all are ours.
            false => AssertSqlSafe(format!("{} deallocate all;", open.as_str())).into_sql_str(),
        };
        let begun = sqlx::raw_sql(open).fetch_optional(self.connection()?);
        let begun = answer(limit, doing, begun).await?;
        if let Some(process) = begun.and_then(|row| row.try_get::<i32, _>(0).ok())
            && self.process.is_none_or(|(known, _)| known != process)
        {
            self.process = Some((process, Instant::now()));
        }
        self.connection()
    }

    /// Since when the server process of the transaction has been known, if it told which it is: it has
    /// not crashed since then. Behind a pooler each transaction may have another.
    pub(super) fn process_since(&self) -> Option<Instant> {
        self.process.map(|(_, since)| since)
    }

    /// The transactions that `lockers` names.
    pub(super) async fn writers(&mut self, lockers: &SqlStr) -> Result<Vec<Writer>, Error> {
        let limit = self.answer_timeout();
        let writers = sqlx::query_as(lockers.clone()).fetch_all(self.connection()?);
        answer(limit, "ask who writes to the table", writers).await
    }

    /// What `drawn` says is the last number of the outbox's sequence, and then who writes to its table: an
    /// insert takes its lock on the table before it draws its number, so every number up to that one is
    /// one of those, or is committed or gone. `None` where the role may not read the sequence.
    pub(super) async fn last_and_writers(
        &mut self,
        drawn: &SqlStr,
        lockers: &SqlStr,
    ) -> Result<Option<(Last, Vec<Writer>)>, Error> {
        let limit = self.answer_timeout();
        let last = sqlx::query_as::<_, (Option<i64>, Option<i64>)>(drawn.clone())
            .fetch_one(self.connection()?);
        let (seq, Some(file)) = answer(limit, "read the last number", last).await? else {
            return Ok(None);
        };
        // not before the number: a writer that came between them would be missed
        Ok(Some(((seq, file), self.writers(lockers).await?)))
    }

    /// Ends the transaction.
    pub(super) async fn end(&mut self, statement: &'static str) -> Result<(), Error> {
        let limit = self.answer_timeout;
        let ended = sqlx::raw_sql(statement).execute(self.connection()?);
        answer(limit, statement, ended).await?;
        self.in_transaction = false;
        Ok(())
    }

    /// Ends the transaction by statements of the caller's, of which the last does.
    pub(super) async fn end_by(&mut self, statements: String) -> Result<(), Error> {
        let limit = self.answer_timeout;
        let ended = sqlx::raw_sql(AssertSqlSafe(statements)).execute(self.connection()?);
        answer(limit, "say what is settled, and commit", ended).await?;
        self.in_transaction = false;
        Ok(())
    }

    /// Connects if need be.
    pub(super) async fn connect(&mut self) -> Result<&mut PgConnection, Error> {
        if self.connection.is_none() {
            let mut options = renewed(self.options.clone(), &self.database);
            if let Some(name) = &self.name {
                options = options.application_name(name);
            }
            let connecting = PgConnection::connect_with(&options);
            let connection = match tokio::time::timeout(self.connect_timeout, connecting).await {
                Ok(connection) => connection.map_err(|error| refused(&options, error))?,
                Err(_) => {
                    let after = self.connect_timeout;
                    return Err(Error::Silence {
                        doing: "let the relay connect",
                        after,
                    });
                }
            };
            self.connection = Some(connection);
            self.in_transaction = false;
            self.process = None;
        }
        self.connection()
    }

    /// The connection, which [`Session::begin`] or [`Session::connect`] has made.
    pub(super) fn connection(&mut self) -> Result<&mut PgConnection, Error> {
        let lost = || Error::Connect(Cause::new("the connection was given up"));
        self.connection.as_mut().ok_or_else(lost)
    }

    /// Whether there is a connection.
    pub(super) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// How long to wait for an answer.
    pub(super) fn answer_timeout(&self) -> Duration {
        self.answer_timeout
    }

    /// How long to wait for an answer to what waits for no lock: silence is the network's or the server's.
    pub(super) fn silence_timeout(&self) -> Duration {
        self.connect_timeout.min(self.answer_timeout)
    }

    /// Closes the connection without a word, and with it its transaction and its locks.
    pub(super) fn discard(&mut self) {
        self.connection = None;
        self.in_transaction = false;
    }
}

/// How every connection of the relay is made.
///
/// # Errors
/// The URL is no Postgres URL. The message does not repeat it.
pub(super) fn options(database: &Database) -> Result<PgConnectOptions, Error> {
    let options = parsed(&database.url, database.prepared_statements)?;
    Ok(renewed(options, database))
}

/// `options` with the secrets as their files have them now: one that is changed there is in force for the
/// next connection, and none has to be ended for it.
fn renewed(mut options: PgConnectOptions, database: &Database) -> PgConnectOptions {
    if let Some(newer) = reread(database.url_file.as_deref())
        && newer != database.url
        && let Ok(newer) = parsed(&newer, database.prepared_statements)
        // another address is another database, for all workers at once or for none: after a restart
        && address(&newer) == address(&options)
    {
        options = newer;
    }
    if let Some(password) = &database.password {
        let newer = reread(database.password_file.as_deref());
        options = options.password(newer.as_ref().unwrap_or(password).expose());
    }
    options
}

fn parsed(url: &Secret, keeps_statements: bool) -> Result<PgConnectOptions, Error> {
    let options = url.expose().trim().parse::<PgConnectOptions>();
    let options = options
        .map_err(|_| Error::Connect(Cause::new("the database URL is not a Postgres URL")))?
        .application_name("outbox-relay")
        // poolers refuse start-up parameters they do not know; the transactions set their own
        .extra_float_digits(None)
        .statement_cache_capacity(if keeps_statements { 100 } else { 0 })
        .disable_statement_logging();
    Ok(secured(options, url.expose()))
}

/// What the file holds now. Where it is gone, what was read at the start is as good as it ever was.
fn reread(file: Option<&Path>) -> Option<Secret> {
    file.and_then(|file| Secret::of_file(file).ok())
}

/// What decides which database it is, and how safe the way there.
fn address(options: &PgConnectOptions) -> String {
    let (host, port) = (options.get_host(), options.get_port());
    let (socket, database) = (options.get_socket(), options.get_database());
    let mode = options.get_ssl_mode();
    format!("{host:?} {port} {socket:?} {database:?} {mode:?}")
}

/// The result of a statement for `doing`, if it comes within `limit`.
pub(super) async fn answer<T>(
    limit: Duration,
    doing: &'static str,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, statement).await {
        Ok(result) => result.map_err(|error| Error::statement(doing, error)),
        Err(_) => Err(Error::Silence {
            doing,
            after: limit,
        }),
    }
}

/// `sql` under the fixed search path: one simple query, which is a transaction of its own.
pub(super) fn fixed(sql: &str) -> SqlStr {
    AssertSqlSafe(format!("{SEARCH_PATH}; {sql}")).into_sql_str()
}

/// Runs a change that two relays may make at once, in a transaction that minds it under no default:
/// a serializable one would refuse the second.
pub(super) async fn committed(
    connection: &mut PgConnection,
    limit: Duration,
    doing: &'static str,
    change: &str,
) -> Result<(), Error> {
    let change =
        format!("begin isolation level read committed read write; {SEARCH_PATH}; {change}; commit");
    let change = sqlx::raw_sql(AssertSqlSafe(change)).execute(connection);
    answer(limit, doing, change).await.map(drop)
}
