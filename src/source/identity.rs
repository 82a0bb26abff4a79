//! Whose events these are: a copy of a database must not publish them a second time by accident.
//!
//! With each outbox is kept which database it was first served in, and to which Kafka cluster. A
//! database is known by its server's system identifier, made once by `initdb`, and by its own oid.
//! A dump that is restored, a database made from a template, and an upgrade by `pg_upgrade` have
//! another of one of the two. A standby that was promoted has the same of both, and goes on; so has
//! every copy of the disk, and there the Kafka cluster tells, or nothing does (docs/operating.md).
//!
//! The database is compared at the start and on every new connection of a worker: an address can
//! lead elsewhere tomorrow. The cluster is compared by the sink, for every producer.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _, SqlSafeStr as _};

use super::audit;
use super::error::Error;
use super::inspect::Inspector;
use super::layout::{literal, names, quote_table};
use super::parked::Who;
use super::polling::Polling;
use super::session::{Session, answer, committed, fixed, options};
use super::sql::{Timeouts, begin};
use super::tables::layout_kept;
use crate::config::{Config, Database};

/// A database, as far as it can be told from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Made by `initdb`; `None` where the role may not ask.
    pub system_identifier: Option<String>,
    /// The database's own number on its server.
    pub oid: i64,
    /// Its name, for people.
    pub name: String,
    /// Where `database.url` says it is, for people.
    pub host: String,
}

/// Where an outbox was first served, or adopted since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The database; `None` if no relay served the outbox yet.
    pub database: Option<Identity>,
    /// The Kafka cluster its events went to.
    pub cluster: Option<String>,
}

/// What [`Inspector::identify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identified {
    /// The database is the one that was kept, or the first. What is worth a line.
    Same(Vec<String>),
    /// It is a copy: what to do.
    Copy(String),
}

impl Identity {
    /// Why `self`, which is here, is not `kept`. What is not known on both sides tells nothing.
    fn differs(&self, kept: &Self) -> Option<&'static str> {
        match (&self.system_identifier, &kept.system_identifier) {
            (Some(ours), Some(theirs)) if ours != theirs => Some(
                "it is on another server: restored from a dump, copied, or upgraded by pg_upgrade",
            ),
            _ if self.oid != kept.oid => {
                Some("it is another database of the server: restored or cloned beside the first")
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            system_identifier,
            oid,
            name,
            host,
        } = self;
        let system = system_identifier.as_deref().unwrap_or("unknown");
        write!(f, "{name} (oid {oid}) of the system {system} at {host}")
    }
}

impl Inspector {
    /// Compares this database with the one the outbox was first served in; keeps it if it is the
    /// first. From then on every worker of `polling` compares it again when it connects.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub async fn identify(&mut self, polling: &Polling) -> Result<Identified, Error> {
        let found = self.find_identity(polling).await;
        self.session.discard();
        found
    }

    async fn find_identity(&mut self, polling: &Polling) -> Result<Identified, Error> {
        let limit = self.session.answer_timeout();
        let outbox = self.outbox.table.to_string();
        let host = host(&self.database)?;
        let connection = self.session.connect().await?;
        let ours = ours(connection, limit, host).await?;
        let keep = format!(
            "update outbox_relay.outbox
                set system_identifier = coalesce(system_identifier, {system}),
                    database_oid = coalesce(database_oid, {oid}),
                    database_name = coalesce(database_name, {name}),
                    database_host = coalesce(database_host, {host}),
                    identified_at = coalesce(identified_at, now())
              where name = {outbox}
                and (database_oid is null
                     or system_identifier is null and database_oid = {oid} and {system} is not null)",
            system = sql_text(ours.system_identifier.as_deref()),
            oid = ours.oid,
            name = literal(&ours.name),
            host = literal(&ours.host),
            outbox = literal(&outbox),
        );
        // an update that finds nothing locks nothing, and writes nothing
        committed(connection, limit, "keep the database's identity", &keep).await?;
        let kept = kept(connection, limit, &outbox).await?;
        let Some(first) = kept.database else {
            return Ok(Identified::Same(Vec::new()));
        };
        if let Some(why) = ours.differs(&first) {
            return Ok(Identified::Copy(format!(
                "{outbox} was first served in the database {first}, and this is {ours}: {why}. A copy \
                 would publish again what the original publishes. If this database is to publish from \
                 now on, say so: outbox-relay adopt --yes. If it is a copy for another purpose, leave \
                 it: what is pending in it belongs to the original"
            )));
        }
        let mut lines = Vec::new();
        if ours.system_identifier.is_none() {
            lines.push(
                "this role may not execute pg_control_system(), so a copy of this database on another \
                 server is known by the database's oid and by the Kafka cluster alone"
                    .to_owned(),
            );
        }
        if ours.host != first.host {
            lines.push(format!(
                "{outbox} was first served at {}, and this relay reaches it at {}: a failover and another \
                 name do that, and so does a copy of the disk, which nothing else in the database tells \
                 from the original. If both run, stop one; `outbox-relay adopt --yes` keeps the new \
                 address",
                first.host, ours.host
            ));
        }
        polling.identified_by(same(&outbox, ours.system_identifier.is_some()));
        Ok(Identified::Same(lines))
    }

    /// Keeps `cluster` as the one that events of the outbox go to, if it is the first.
    ///
    /// # Errors
    /// Postgres could not be asked, or the outbox goes to another cluster: what to do.
    pub async fn keep_cluster(&mut self, cluster: &str) -> Result<(), Error> {
        let limit = self.session.answer_timeout();
        let outbox = self.outbox.table.to_string();
        let connection = self.session.connect().await?;
        let keep = format!(
            "update outbox_relay.outbox set kafka_cluster_id = {} where name = {} and kafka_cluster_id is null",
            literal(cluster),
            literal(&outbox)
        );
        committed(connection, limit, "keep the Kafka cluster", &keep).await?;
        let kept = kept(connection, limit, &outbox).await?;
        self.session.discard();
        match kept.cluster {
            Some(first) if first != cluster => Err(Error::Changed(format!(
                "{outbox} is published to the Kafka cluster {first}, and the brokers of this config are \
                 those of the cluster {cluster}. If events are to go there from now on, say so: \
                 outbox-relay adopt --yes. If this database is a copy, leave it: what is pending in it \
                 belongs to the original"
            ))),
            _ => Ok(()),
        }
    }
}

/// What a worker asks on a new connection: whether it leads to the database that was kept.
fn same(outbox: &str, may_ask_system: bool) -> String {
    let system = match may_ask_system {
        true => {
            "and coalesce(o.system_identifier = (select c.system_identifier::text
                                                   from pg_catalog.pg_control_system() c), true)"
        }
        false => "",
    };
    format!(
        "select coalesce(o.database_oid = d.oid::int8, true) {system}
           from outbox_relay.outbox o, pg_catalog.pg_database d
          where o.name = {} and d.datname = current_database()",
        literal(outbox)
    )
}

/// Where `database.url` leads, as it is written: a name, not what it resolves to.
fn host(database: &Database) -> Result<String, Error> {
    let options = options(database)?;
    let host = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => options.get_host().to_owned(),
    };
    Ok(format!("{host}:{}", options.get_port()))
}

async fn ours(
    connection: &mut PgConnection,
    limit: Duration,
    host: String,
) -> Result<Identity, Error> {
    const DOING: &str = "tell which database it is";
    let read = |error| Error::statement(DOING, error);
    let ask = "select d.oid::int8, d.datname::text,
                      has_function_privilege('pg_catalog.pg_control_system()', 'execute')
                 from pg_catalog.pg_database d where d.datname = current_database()";
    let row = answer(
        limit,
        DOING,
        sqlx::raw_sql(fixed(ask)).fetch_one(&mut *connection),
    )
    .await?;
    let system_identifier = match row.try_get(2).map_err(read)? {
        true => {
            let ask = "select system_identifier::text from pg_catalog.pg_control_system()";
            let row = answer(
                limit,
                DOING,
                sqlx::raw_sql(fixed(ask)).fetch_one(connection),
            )
            .await?;
            Some(row.try_get(0).map_err(read)?)
        }
        false => None,
    };
    Ok(Identity {
        system_identifier,
        oid: row.try_get(0).map_err(read)?,
        name: row.try_get(1).map_err(read)?,
        host,
    })
}

async fn kept(connection: &mut PgConnection, limit: Duration, outbox: &str) -> Result<Kept, Error> {
    const DOING: &str = "read where the outbox was served";
    let ask = format!(
        "select database_oid, system_identifier, coalesce(database_name, '?'),
                coalesce(database_host, '?'), kafka_cluster_id
           from outbox_relay.outbox where name = {}",
        literal(outbox)
    );
    let row = sqlx::raw_sql(fixed(&ask)).fetch_optional(connection);
    let Some(row) = answer(limit, DOING, row).await? else {
        return Err(Error::Changed(format!(
            "{outbox} is not known here: `outbox-relay migrate` makes it ready"
        )));
    };
    let read = || -> Result<Kept, sqlx::Error> {
        let oid: Option<i64> = row.try_get(0)?;
        let (system_identifier, name, host) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        Ok(Kept {
            database: oid.map(|oid| Identity {
                system_identifier,
                oid,
                name,
                host,
            }),
            cluster: row.try_get(4)?,
        })
    };
    read().map_err(|error| Error::statement(DOING, error))
}

fn sql_text(text: Option<&str>) -> String {
    text.map_or_else(|| "null::text".to_owned(), literal)
}

/// What an adoption of one outbox would change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// The table.
    pub outbox: String,
    /// Where it was served.
    pub kept: Kept,
    /// Where it would be.
    pub ours: Identity,
    /// Rows that relays would publish then.
    pub pending: i64,
}

/// Adopts outboxes of a database.
#[derive(Debug)]
pub struct Adopter {
    session: Session,
    database: Database,
}

impl Adopter {
    /// Of the database of `config`; connects when it is first asked.
    ///
    /// # Errors
    /// The database URL is none.
    pub fn new(config: &Config) -> Result<Self, Error> {
        Ok(Self {
            session: Session::new(&config.database)?,
            database: config.database.clone(),
        })
    }

    /// What an adoption of `outbox` would change.
    ///
    /// # Errors
    /// Postgres could not be asked, or there is no such outbox.
    pub async fn look(&mut self, table: &crate::config::TableName) -> Result<Adoption, Error> {
        const DOING: &str = "count what is pending";
        let limit = self.session.answer_timeout();
        let host = host(&self.database)?;
        let connection = self.session.connect().await?;
        let outbox = table.to_string();
        let kept = kept(connection, limit, &outbox).await?;
        let ours = ours(connection, limit, host).await?;
        let layout = layout_kept(connection, limit, &outbox).await?;
        let pending = format!(
            "select count(*) from {} where {}",
            quote_table(table),
            names(&layout, "").unpublished
        );
        let pending = sqlx::raw_sql(fixed(&pending)).fetch_one(connection);
        let pending = answer(limit, DOING, pending).await?.try_get(0);
        let pending = pending.map_err(|error| Error::statement(DOING, error))?;
        Ok(Adoption {
            outbox,
            kept,
            ours,
            pending,
        })
    }

    /// Keeps `adoption`'s database, and `cluster`, from now on; `None`: the first that a relay
    /// publishes to. The number of the entry in the audit.
    ///
    /// # Errors
    /// Postgres could not be asked, or refused: nothing was changed.
    pub async fn adopt(
        &mut self,
        adoption: &Adoption,
        cluster: Option<&str>,
        who: &Who,
    ) -> Result<i64, Error> {
        let limit = self.session.answer_timeout();
        let open = begin(
            Timeouts {
                statement_ms: self.database.statement_timeout.as_millis(),
                idle_ms: 30_000,
                tcp_ms: 30_000,
            },
            "set local lock_timeout = 5000;",
        );
        let connection = self
            .session
            .begin(&AssertSqlSafe(open).into_sql_str())
            .await?;
        let Adoption { outbox, ours, .. } = adoption;
        let change = sqlx::query(
            "update outbox_relay.outbox
                set system_identifier = $2, database_oid = $3, database_name = $4,
                    database_host = $5, kafka_cluster_id = $6, identified_at = clock_timestamp()
              where name = $1",
        )
        .bind(outbox)
        .bind(&ours.system_identifier)
        .bind(ours.oid)
        .bind(&ours.name)
        .bind(&ours.host)
        .bind(cluster)
        .execute(&mut *connection);
        answer(limit, "adopt the outbox", change).await?;
        let told = |identity: &Identity| identity.to_string();
        let filter = serde_json::json!({
            "from": adoption.kept.database.as_ref().map(told), "from_cluster": adoption.kept.cluster,
            "to": ours.to_string(), "to_cluster": cluster,
        });
        let entry = audit::Entry {
            outbox,
            command: "adopt",
            filter: &filter,
            rows: adoption.pending,
        };
        let id = audit::write(connection, limit, &entry, who).await?;
        self.session.end("commit").await?;
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(system: Option<&str>, oid: i64, host: &str) -> Identity {
        Identity {
            system_identifier: system.map(str::to_owned),
            oid,
            name: "app".to_owned(),
            host: host.to_owned(),
        }
    }

    #[test]
    fn a_failover_is_no_copy_and_a_restored_dump_or_a_clone_is() {
        let first = identity(Some("7"), 5, "a:5432");
        let copies = [
            (identity(Some("7"), 5, "b:5432"), None),
            (identity(None, 5, "a:5432"), None),
            (identity(Some("8"), 5, "a:5432"), Some("another server")),
            (identity(Some("7"), 6, "a:5432"), Some("another database")),
            (identity(None, 6, "a:5432"), Some("another database")),
        ];
        for (ours, wanted) in copies {
            let why = ours.differs(&first);
            match wanted {
                None => assert_eq!(why, None, "{ours}"),
                Some(part) => assert!(why.is_some_and(|why| why.contains(part)), "{ours}: {why:?}"),
            }
        }
        let unknown = identity(None, 5, "a:5432");
        assert_eq!(
            first.differs(&unknown),
            None,
            "what is not known tells nothing"
        );
    }
}
