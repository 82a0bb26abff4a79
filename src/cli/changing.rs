//! What the commands that act have in common: which outboxes, leave, who, and what to say when the
//! database refuses.

use std::path::PathBuf;
use std::sync::Arc;

use super::args::{self, ConfigArgs, without_password};
use super::{Exit, fail};
use crate::config::{Config, Environment, Secret, TableName};
use crate::relay::chain;
use crate::sink::{KafkaSink, Sink as _, Topics};
use crate::source::parked::Who;
use crate::source::{Error, Pauser};

/// Which outboxes, for commands that need only the database.
#[derive(Debug, Clone, clap::Args)]
pub struct Tables {
    /// The config file; only its database is needed, and its tables if none are named
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The database. Prefer DATABASE_URL, since everyone on this machine can see the command line
    #[arg(long, value_name = "URL", value_parser = without_password)]
    database_url: Option<Secret>,

    /// This outbox [default: those of the config, else the only one the database has]
    #[arg(long, value_name = "SCHEMA.TABLE")]
    outbox: Vec<String>,
}

/// Leave for a change, and a word on it.
#[derive(Debug, Clone, clap::Args)]
pub struct Leave {
    /// Do it; without this, it is only said what would be done
    #[arg(long)]
    pub yes: bool,

    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
}

impl Tables {
    /// Where the database is said to be.
    #[must_use]
    pub fn config_args(&self) -> ConfigArgs {
        ConfigArgs::of_database(self.config.as_ref(), self.database_url.as_ref())
    }

    /// The outboxes that are meant, each of which the database knows.
    ///
    /// # Errors
    /// How to end; the user is told.
    pub async fn outboxes(&self, config: &Config) -> Result<Vec<TableName>, Exit> {
        let mut tables = args::outboxes(&self.outbox)?;
        if tables.is_empty() {
            tables = config.outboxes.iter().map(|it| it.table.clone()).collect();
        }
        let mut pauser = Pauser::new(&config.database).map_err(broken)?;
        let known = pauser.outboxes().await.map_err(broken)?;
        let names = |known: &[String]| match known {
            [] => {
                "there is none in this database: `outbox-relay migrate` makes one ready".to_owned()
            }
            known => format!("there are: {}", known.join(", ")),
        };
        if tables.is_empty() {
            return match known.as_slice() {
                [only] => Ok(vec![TableName::of_catalogue(only)]),
                _ => Err(fail(
                    Exit::Usage,
                    &format!("say which outbox is meant, by --outbox; {}", names(&known)),
                )),
            };
        }
        for table in &tables {
            if !known.contains(&table.to_string()) {
                let line = format!("no relay knows the outbox {table} here; {}", names(&known));
                return Err(fail(Exit::Config, &line));
            }
        }
        Ok(tables)
    }
}

impl Leave {
    /// Who does it, and why.
    #[must_use]
    pub fn who(&self, environment: &Environment) -> Who {
        let (os_user, host) = environment.user_and_host();
        Who {
            os_user,
            host,
            note: self.note.clone(),
        }
    }

    /// Whether leave was given; the user is told how if not.
    ///
    /// # Errors
    /// [`Exit::Failed`], without leave.
    pub fn check(&self) -> Result<(), Exit> {
        match self.yes {
            true => Ok(()),
            false => Err(fail(Exit::Failed, "nothing was changed; `--yes` does it")),
        }
    }
}

/// Tells what went wrong, and what to do about it.
pub fn broken(error: Error) -> Exit {
    let (exit, hint) = match error.code() {
        _ if error.is_unreachable() => (Exit::Unavailable, ""),
        _ if matches!(error, Error::Changed(_)) => (Exit::Config, ""),
        Some("55P03" | "40P01" | "40001") => (
            Exit::Unavailable,
            "\nSomebody else holds a lock on it, so nothing was changed: try again, or look in pg_locks.",
        ),
        Some("42P01" | "3F000" | "42703" | "42883") => (
            Exit::Config,
            "\nThe schema outbox_relay or the table is not there, or of an older version: `outbox-relay \
             migrate` makes it what it must be.",
        ),
        Some("42501") => (
            Exit::Failed,
            "\nThe role may not do that. docs/operating.md has the grants for each command.",
        ),
        Some("57014") => (
            Exit::Failed,
            "\nThere is more to do than fits database.statement_timeout: raise that, or ask for less.",
        ),
        _ => (Exit::Failed, ""),
    };
    fail(exit, &format!("{}{hint}", chain(&error)))
}

/// Text that cannot steer a terminal.
pub fn plain(text: &str) -> String {
    let plain = |c: char| match c.is_control() {
        true => c.escape_default().collect::<Vec<_>>(),
        false => vec![c],
    };
    text.chars().flat_map(plain).collect()
}

/// The id of the cluster that the config's brokers are of; none if it could not be had within
/// `relay.publish_timeout`.
pub(super) async fn cluster(config: &Config) -> Option<String> {
    let topics = Arc::new(Topics::new(&config.kafka, &config.relay));
    let mut sink = KafkaSink::new(&config.kafka, &config.relay, topics);
    let asked = async {
        sink.ready().await;
        sink.cluster_id().await
    };
    let asked = tokio::time::timeout(config.relay.publish_timeout, asked).await;
    asked.ok().flatten()
}
