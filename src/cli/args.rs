//! The options that are stronger than the config file.

use std::path::PathBuf;

use super::{Exit, fail};
use crate::check::shell;
use crate::config::{Environment, Flags, Secret, Settings, TableName, has_password};

/// Where the config is, and what of it to override.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Config")]
pub struct ConfigArgs {
    /// The config file; `outbox-relay config init` prints one to start from
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The database. Prefer DATABASE_URL
    ///
    /// Everyone on this machine can see the command line, so a URL with a password in it is refused: put it
    /// into the variable DATABASE_URL, or into a file that `url_file` in the config names. Where none of these
    /// names a database, PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE count. [env: DATABASE_URL]
    #[arg(long, value_name = "URL", value_parser = without_password)]
    pub database_url: Option<Secret>,

    /// Kafka brokers, with commas between [env: KAFKA_BROKERS]
    #[arg(long, value_name = "LIST")]
    pub brokers: Option<String>,

    /// The outbox table [env: OUTBOX_RELAY__OUTBOX__TABLE]
    #[arg(long, value_name = "SCHEMA.TABLE")]
    pub table: Option<String>,

    /// Which columns the table has [default: classic] [env: OUTBOX_RELAY__OUTBOX__LAYOUT]
    #[arg(long, value_name = "LAYOUT", value_parser = ["classic", "native"])]
    pub layout: Option<String>,

    /// What becomes of a published row [default: mark] [env: OUTBOX_RELAY__OUTBOX__ON_PUBLISHED]
    #[arg(long, value_name = "ACTION", value_parser = ["mark", "delete", "archive"])]
    pub on_published: Option<String>,
}

impl ConfigArgs {
    /// For a command that only asks where the database is.
    #[must_use]
    pub fn of_database(config: Option<&PathBuf>, database_url: Option<&Secret>) -> Self {
        Self {
            config: config.cloned(),
            database_url: database_url.cloned(),
            brokers: None,
            table: None,
            layout: None,
            on_published: None,
        }
    }

    /// Everything that was written, here, in the file and in `environment`.
    #[must_use]
    pub fn settings(&self, environment: &Environment) -> Settings {
        let flags = Flags {
            database_url: self.database_url.clone(),
            brokers: self.brokers.clone(),
            table: self.table.clone(),
            layout: self.layout.clone(),
            on_published: self.on_published.clone(),
        };
        Settings::gather(self.config.as_deref(), environment, &flags)
    }
}

impl ConfigArgs {
    /// The options as they were given, with a space before each, for a command that is to be pasted. Not
    /// the database URL, which may have a password: a variable can be set beside.
    #[must_use]
    pub fn to_repeat(&self) -> String {
        let given = [
            ("--brokers", &self.brokers),
            ("--table", &self.table),
            ("--layout", &self.layout),
            ("--on-published", &self.on_published),
        ];
        let given = given
            .into_iter()
            .filter_map(|(name, value)| Some(format!(" {name} {}", shell(value.as_deref()?))));
        std::iter::once(self.file_to_repeat())
            .chain(given)
            .collect()
    }

    /// As [`Self::to_repeat`], the file alone.
    #[must_use]
    pub fn file_to_repeat(&self) -> String {
        let file = self.config.as_ref();
        file.map_or_else(String::new, |file| {
            format!(" --config {}", shell(&file.to_string_lossy()))
        })
    }
}

/// The tables that `--outbox` names.
///
/// # Errors
/// One of them is no name; the user is told.
pub(super) fn outboxes(names: &[String]) -> Result<Vec<TableName>, Exit> {
    let parse = |name: &String| {
        let wrong = |why| fail(Exit::Usage, &format!("--outbox {name}: {why}"));
        TableName::parse(name).map_err(wrong)
    };
    names.iter().map(parse).collect()
}

/// A database URL of the command line.
///
/// # Errors
/// It has a password: `ps` shows it to everyone on the machine, and the shell keeps it. Not a word of the URL.
pub(super) fn without_password(url: &str) -> Result<Secret, String> {
    if has_password(url) {
        return Err(
            "a password on the command line can be seen by everyone on this machine (`ps`): put the URL \
             into the variable DATABASE_URL or into a file that `url_file` in the config names, or leave \
             the password out and put it into PGPASSWORD"
                .to_owned(),
        );
    }
    Ok(Secret::new(url))
}
