//! The servers of a run, and a database and a topic for each case.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::debian::{self, Cluster};
use crate::support::kafka::Kafka;
use crate::support::local::{self, KAFKA_VERSION};
use crate::support::proxy::{Link, Proxy};
use crate::support::servers::{Kind, Server, free_port};

/// Room to keep a backlog in memory, and no checkpoint in the middle of it. What is committed is on the
/// disk, unlike in the tests.
const POSTGRES: &[&str] = &["fsync=on", "shared_buffers=512MB", "max_wal_size=8GB"];
const STATEMENTS: &[&str] = &[
    "shared_preload_libraries=pg_stat_statements",
    "pg_stat_statements.track=top",
    "pg_stat_statements.track_utility=on",
];
/// Of every topic.
pub(crate) const PARTITIONS: i32 = 8;

/// See the module's description.
pub(crate) struct Stand {
    pub(crate) postgres: Server,
    pub(crate) kafka: Server,
    pub(crate) postgres_link: Proxy,
    pub(crate) kafka_link: Proxy,
    /// Whether `pg_stat_statements` counts.
    pub(crate) counts_statements: bool,
    /// How many of the dearest of them are told.
    pub(crate) dearest: u16,
    /// Its listener beyond the proxy.
    linked_brokers: String,
    runs: u32,
    facts: Value,
}

/// What one case has for itself.
pub(crate) struct Place {
    pub(crate) database: String,
    /// Of the table's rows; their topic is [`Place::topic`].
    pub(crate) aggregate_type: String,
    pub(crate) topic: String,
    /// As the relay logs in: another role than the suite's, whose statements are not counted.
    pub(crate) url: String,
    pub(crate) brokers: String,
    pub(crate) kafka: Kafka,
    own_url: String,
    pub(crate) connection: PgConnection,
}

impl Stand {
    pub(crate) async fn start(logical: bool) -> Result<Self, String> {
        let level = if logical {
            "wal_level=logical"
        } else {
            "wal_level=replica"
        };
        let mut settings = vec![level];
        settings.extend(POSTGRES);
        let debian = debian::programs().is_ok();
        let postgres = if debian {
            settings.extend(STATEMENTS);
            Cluster::primary(&settings).await?.server
        } else {
            let process = local::postgres_with(free_port(), &settings).await?;
            Server::started(process).await?
        };
        let (port, linked, controller) = (free_port(), free_port(), free_port());
        let kafka_link = Proxy::to(linked).await;
        let settings = kafka_settings(port, linked, kafka_link.port(), controller);
        let process = local::kafka_with(port, &settings).await?;
        let kafka = Server::started(process).await?;
        let postgres_link = Proxy::to(postgres.port()).await;
        let mut stand = Self {
            linked_brokers: format!("127.0.0.1:{}", kafka_link.port()),
            postgres,
            kafka,
            postgres_link,
            kafka_link,
            counts_statements: debian,
            dearest: 0,
            runs: 0,
            facts: Value::Null,
        };
        let mut admin = connect(&stand.postgres.address()).await?;
        execute(&mut admin, "create role relay superuser login").await?;
        let version: String = sqlx::query_scalar("show server_version")
            .fetch_one(&mut admin)
            .await
            .map_err(|error| error.to_string())?;
        stand.facts = facts(&version, logical);
        Ok(stand)
    }

    /// What the figures depend on beside the relay.
    pub(crate) fn facts(&self) -> &Value {
        &self.facts
    }

    /// Makes what is beyond `link`'s proxy late, and says what that is.
    pub(crate) fn delay(&self, link: Option<(Kind, Duration)>) -> Option<Kind> {
        let (kind, delay) = link?;
        let proxy = match kind {
            Kind::Postgres => &self.postgres_link,
            Kind::Kafka => &self.kafka_link,
        };
        proxy.set_both(Link::late(delay));
        Some(kind)
    }

    /// Nothing is late any more.
    pub(crate) fn heal(&self) {
        self.postgres_link.heal();
        self.kafka_link.heal();
    }

    /// A new database, and a topic with [`PARTITIONS`]. `link` is what lies beyond a proxy.
    pub(crate) async fn place(&mut self, link: Option<Kind>) -> Result<Place, String> {
        self.runs += 1;
        let database = format!("bench_{}", self.runs);
        let mut admin = connect(&self.postgres.address()).await?;
        execute(&mut admin, &format!("create database {database}")).await?;
        let own_url = format!(
            "postgres://postgres@127.0.0.1:{}/{database}",
            self.postgres.port()
        );
        let port = match link {
            Some(Kind::Postgres) => self.postgres_link.port(),
            _ => self.postgres.port(),
        };
        let brokers = match link {
            Some(Kind::Kafka) => self.linked_brokers.clone(),
            _ => self.kafka.address(),
        };
        let aggregate_type = format!("Bench{}", self.runs);
        let topic = format!("bench{}-events", self.runs);
        let kafka = Kafka {
            brokers: self.kafka.address(),
        };
        kafka.create_topic(&topic, PARTITIONS, &[]).await;
        let mut connection = connect(&own_url).await?;
        if self.counts_statements {
            execute(&mut connection, "create extension pg_stat_statements").await?;
        }
        Ok(Place {
            url: format!("postgres://relay@127.0.0.1:{port}/{database}"),
            connection,
            own_url,
            database,
            aggregate_type,
            topic,
            brokers,
            kafka,
        })
    }

    /// Gives back what a case had: the disk is not for all of them at once.
    pub(crate) async fn leave(&self, place: Place) -> Result<(), String> {
        place.kafka.delete_topics(&[&place.topic]).await;
        place.connection.close().await.ok();
        let mut admin = connect(&self.postgres.address()).await?;
        let drop = format!("drop database {} with (force)", place.database);
        execute(&mut admin, &drop).await
    }

    pub(crate) async fn remove(self) {
        self.kafka.remove().await;
        self.postgres.remove().await;
    }
}

impl Place {
    pub(crate) async fn execute(&mut self, sql: &str) -> Result<(), String> {
        execute(&mut self.connection, sql).await
    }

    /// Another connection of the suite's.
    pub(crate) async fn connect(&self) -> Result<PgConnection, String> {
        connect(&self.own_url).await
    }
}

pub(crate) async fn connect(url: &str) -> Result<PgConnection, String> {
    let connected = PgConnection::connect(url).await;
    connected.map_err(|error| error.to_string())
}

pub(crate) async fn execute(connection: &mut PgConnection, sql: &str) -> Result<(), String> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
    let done = done.execute(connection).await;
    done.map(drop).map_err(|error| format!("{error} in {sql}"))
}

/// A broker and its controller in one process, with one listener that clients find directly and one
/// that they find by way of a proxy. Its time-outs are its own: a test's are too short for a broker that
/// stands still for a while.
fn kafka_settings(
    port: u16,
    linked: u16,
    proxy: u16,
    controller: u16,
) -> Vec<(&'static str, String)> {
    let kept = |(name, _): &(&'static str, String)| !name.starts_with("broker.");
    let mut settings: Vec<_> = local::kafka_settings(port, port, controller)
        .into_iter()
        .filter(kept)
        .collect();
    for (name, value) in &mut settings {
        match *name {
            "listeners" => value.push_str(&format!(",LINKED://127.0.0.1:{linked}")),
            "advertised.listeners" => value.push_str(&format!(",LINKED://127.0.0.1:{proxy}")),
            "listener.security.protocol.map" => value.push_str(",LINKED:PLAINTEXT"),
            _ => {}
        }
    }
    settings.push(("inter.broker.listener.name", "PLAINTEXT".to_owned()));
    settings
}

fn facts(postgres: &str, logical: bool) -> Value {
    let read = |path: &str| fs::read_to_string(Path::new(path)).unwrap_or_default();
    let after = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value.map(|(_, value)| value.trim().to_owned())
    };
    json!({
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "processor": after(&read("/proc/cpuinfo"), "model name"),
        "memory": after(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "postgres": postgres,
        "wal_level": if logical { "logical" } else { "replica" },
        "kafka": KAFKA_VERSION,
    })
}
