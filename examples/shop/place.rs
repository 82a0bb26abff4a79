//! Where the shop is: a database and two roles for each service, on one server or on as many, and three topics.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use outbox_relay::consumer;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::Failure;

/// Enough that the orders spread.
pub(crate) const PARTITIONS: i32 = 4;

/// The kinds of aggregates, which the topics are named by.
pub(crate) const KINDS: [&str; 3] = ["order", "stock", "payment"];

/// How long a server may take until it answers.
const SERVER_TIMEOUT: Duration = Duration::from_secs(60);

/// The services, what they keep, and whether they write events, for which they have an outbox and a relay.
pub(crate) const SERVICES: [(&str, &str, bool); 4] = [
    ("orders", include_str!("orders.sql"), true),
    ("inventory", include_str!("inventory.sql"), true),
    ("payments", include_str!("payments.sql"), true),
    ("projector", include_str!("summary.sql"), false),
];

/// A shop's place.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Place {
    /// A superuser of the server that the shop's databases and roles are made on
    #[arg(long = "admin-url", env = "SHOP_ADMIN_URL", hide_env_values = true)]
    pub(crate) admin_url: String,

    /// host:port of Kafka's brokers
    #[arg(long, env = "KAFKA_BROKERS")]
    pub(crate) brokers: String,

    /// What the names of databases, roles, topics and groups begin with: letters, digits and `_`
    #[arg(long, env = "SHOP_PREFIX", default_value = "")]
    pub(crate) prefix: String,

    /// The password of the shop's roles
    #[arg(long, env = "SHOP_PASSWORD", hide_env_values = true)]
    pub(crate) password: String,
}

impl Place {
    /// The database of a service, for the role that the service runs as, and owns it.
    pub(crate) fn url(&self, service: &str) -> String {
        let role = format!("{}{service}", self.prefix);
        url_as(&self.admin_url, &role, &self.password, &role)
    }

    /// The same, for the role that its relay runs as: it reads, locks and settles rows of the outbox, and no more.
    pub(crate) fn relay_url(&self, service: &str) -> String {
        let database = format!("{}{service}", self.prefix);
        let role = format!("{database}_relay");
        url_as(&self.admin_url, &role, &self.password, &database)
    }

    fn topics(&self) -> Vec<String> {
        let topic = |kind| format!("{}{kind}-events", self.prefix);
        KINDS.into_iter().map(topic).collect()
    }

    /// Makes the databases, with what the services and their relays need, by the program `relay`.
    pub(crate) async fn make_databases(&self, relay: &Relay) -> Result<(), Failure> {
        let mut admin = answering(&self.admin_url).await?;
        for (service, tables, writes) in SERVICES {
            let role = format!("{}{service}", self.prefix);
            let password = self.password.replace('\'', "''");
            for sql in [
                format!("create role \"{role}\" login password '{password}'"),
                format!("create role \"{role}_relay\" login password '{password}'"),
                format!("create database \"{role}\" owner \"{role}\""),
                format!("revoke all on database \"{role}\" from public"),
                format!("grant connect on database \"{role}\" to \"{role}_relay\""),
            ] {
                execute(&mut admin, sql).await?;
            }
            let mut owner = PgConnection::connect(&self.url(service)).await?;
            consumer::create_tables(&mut owner).await?;
            execute(&mut owner, include_str!("inbox.sql").to_owned()).await?;
            execute(&mut owner, tables.to_owned()).await?;
            if writes {
                execute(&mut owner, include_str!("outbox.sql").to_owned()).await?;
                self.make_relayable(relay, service).await?;
            }
            owner.close().await?;
        }
        admin.close().await?;
        Ok(())
    }

    /// What an operator does once for each outbox: `migrate`, as its owner, and the grants it prints.
    async fn make_relayable(&self, relay: &Relay, service: &str) -> Result<(), Failure> {
        let (owner, migrate) = (format!("{}{service}", self.prefix), ["migrate", "--yes"]);
        relay.ran(&migrate, &self.url(service)).await?;
        let runner = format!("{owner}_relay");
        let print = [
            "migrate", "--print", "--grants", "--owner", &owner, "--runner", &runner,
        ];
        let grants = relay.ran(&print, &self.url(service)).await?;
        let database = with_database(&self.admin_url, &owner);
        let mut admin = PgConnection::connect(&database).await?;
        execute(&mut admin, grants).await?;
        admin.close().await?;
        Ok(())
    }

    /// Drops the databases and roles.
    pub(crate) async fn drop_databases(&self) -> Result<(), Failure> {
        let mut admin = PgConnection::connect(&self.admin_url).await?;
        for (service, ..) in SERVICES {
            let role = format!("{}{service}", self.prefix);
            for sql in [
                format!("drop database if exists \"{role}\" with (force)"),
                format!("drop role if exists \"{role}_relay\""),
                format!("drop role if exists \"{role}\""),
            ] {
                execute(&mut admin, sql).await?;
            }
        }
        admin.close().await?;
        Ok(())
    }

    /// Makes the topics, those that are there excepted.
    pub(crate) async fn make_topics(&self) -> Result<(), Failure> {
        let topics = self.topics();
        let topics: Vec<_> = topics
            .iter()
            .map(|topic| NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(-1)))
            .collect();
        let admin = self.kafka_admin()?;
        let deadline = Instant::now() + SERVER_TIMEOUT;
        let made = loop {
            match admin.create_topics(&topics, &patience()).await {
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_not_up_yet) => sleep(Duration::from_millis(500)).await,
                Ok(made) => break made,
            }
        };
        for result in made {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(format!("topic {topic}: {code}").into()),
            }
        }
        Ok(())
    }

    /// Deletes the topics.
    pub(crate) async fn delete_topics(&self) -> Result<(), Failure> {
        let topics = self.topics();
        let topics: Vec<_> = topics.iter().map(String::as_str).collect();
        self.kafka_admin()?
            .delete_topics(&topics, &patience())
            .await?;
        Ok(())
    }

    fn kafka_admin(&self) -> Result<AdminClient<DefaultClientContext>, Failure> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        Ok(config.create()?)
    }
}

/// The program that relays, and what its processes are told.
pub(crate) struct Relay {
    /// The program and its first arguments.
    program: Vec<PathBuf>,
    /// A directory without settings of the user's, for its file.
    directory: PathBuf,
    topic: String,
}

impl Relay {
    /// `program`, or else the relay that is built into this one.
    pub(crate) fn new(
        program: Option<PathBuf>,
        directory: PathBuf,
        topic_prefix: &str,
    ) -> Result<Self, Failure> {
        std::fs::write(directory.join("relay.toml"), include_str!("relay.toml"))?;
        let program =
            match program {
                // it is started in another directory
                Some(program) => vec![program.canonicalize().map_err(|error| {
                    format!("the relay's program {}: {error}", program.display())
                })?],
                None => vec![std::env::current_exe()?, "relay".into()],
            };
        Ok(Self {
            program,
            directory,
            topic: format!("{topic_prefix}${{aggregate_type:lower}}-events"),
        })
    }

    /// A command of the relay's for the outbox in this database, not yet started.
    pub(crate) fn command(&self, arguments: &[&str], database_url: &str) -> Command {
        let (program, first) = self.program.split_first().expect("a relay is a program");
        let mut command = Command::new(program);
        for (name, _value) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"OUTBOX_RELAY__") {
                command.env_remove(name);
            }
        }
        command
            .args(first)
            .args(arguments)
            .args(["--config", "relay.toml"])
            .current_dir(&self.directory)
            .env("DATABASE_URL", database_url)
            .env("OUTBOX_RELAY__OUTBOX__TOPIC", &self.topic)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end. Returns what it printed.
    async fn ran(&self, arguments: &[&str], database_url: &str) -> Result<String, Failure> {
        let ran = self.command(arguments, database_url).output().await?;
        if ran.status.success() {
            return Ok(String::from_utf8(ran.stdout)?);
        }
        let said = String::from_utf8_lossy(&ran.stderr);
        Err(format!("outbox-relay {arguments:?}: {}: {said}", ran.status).into())
    }
}

fn patience() -> AdminOptions {
    let timeout = Some(Duration::from_secs(15));
    AdminOptions::new()
        .request_timeout(timeout)
        .operation_timeout(timeout)
}

/// A connection, once the server answers.
async fn answering(url: &str) -> Result<PgConnection, Failure> {
    let deadline = Instant::now() + SERVER_TIMEOUT;
    loop {
        match PgConnection::connect(url).await {
            Ok(connection) => return Ok(connection),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_not_up_yet) => sleep(Duration::from_millis(500)).await,
        }
    }
}

async fn execute(connection: &mut PgConnection, sql: String) -> Result<(), Failure> {
    // put together of this program's own words, and of the prefix and password it was given
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(connection)
        .await?;
    Ok(())
}

/// `url` for another user and another database. Its host and its parameters stay.
fn url_as(url: &str, user: &str, password: &str, database: &str) -> String {
    let other = with_database(url, database);
    let (scheme, rest) = other.split_once("://").unwrap_or(("postgres", &other));
    let host = rest.split_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{user}:{password}@{host}")
}

/// `url` for another database.
fn with_database(url: &str, database: &str) -> String {
    let (base, query) = match url.split_once('?') {
        Some((base, query)) => (base, format!("?{query}")),
        None => (url, String::new()),
    };
    let (scheme, rest) = base.split_once("://").unwrap_or(("postgres", base));
    let server = rest.split('/').next().unwrap_or_default();
    format!("{scheme}://{server}/{database}{query}")
}
