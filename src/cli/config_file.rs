//! `outbox-relay config`: writes, shows and checks config files. Connects to nothing.

use std::path::{Path, PathBuf};

use super::args::ConfigArgs;
use super::{Exit, complain, fail, say, wrong};
use crate::config::{self, Environment, Purpose};

/// What to do with a config.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print a file to start from: every key, with a comment
    Init,
    /// Print the config in force and where each value is from; secrets are replaced
    Print(ConfigArgs),
    /// Check the config without running: exit code 0 or 78
    Check(ConfigArgs),
    /// Print a config made of a Debezium connector's; what could not be carried over goes to stderr
    #[command(after_long_help = IMPORT_HELP)]
    ImportDebezium {
        /// The connector's JSON as Kafka Connect has it, or Debezium Server's application.properties
        file: PathBuf,
    },
    /// Print the reference of all keys, in Markdown
    #[command(hide = true)]
    Reference,
}

/// Does it.
#[must_use]
pub fn run(args: &Args, environment: &Environment) -> Exit {
    match &args.action {
        Action::Init => say(&config::starter()),
        Action::ImportDebezium { file } => import(file),
        Action::Reference => say(&config::reference()),
        Action::Print(args) => {
            let settings = args.settings(environment);
            match settings.config(Purpose::Show) {
                Ok(_) => say(&settings.print()),
                Err(error) => wrong(error),
            }
        }
        Action::Check(args) => match args.settings(environment).config(Purpose::Run) {
            Ok(config) => {
                let tables: Vec<String> = config
                    .outboxes
                    .iter()
                    .map(|outbox| outbox.table.quoted())
                    .collect();
                say(&format!(
                    "the config is right; it serves {}\n",
                    tables.join(", ")
                ))
            }
            Err(error) => wrong(error),
        },
    }
}

fn import(file: &Path) -> Exit {
    let imported = std::fs::read_to_string(file)
        .map_err(|error| format!("it cannot be read: {error}"))
        .and_then(|text| config::import_debezium(&text));
    match imported {
        Ok(imported) => {
            for left in &imported.left {
                complain(&format!("not carried over: {left}\n"));
            }
            say(&imported.toml)
        }
        Err(why) => fail(
            Exit::Config,
            &format!(
                "{}: {why}. Name a connector's JSON, or Debezium Server's application.properties",
                file.display()
            ),
        ),
    }
}

const IMPORT_HELP: &str = "\
Examples:
  outbox-relay config import-debezium connector.json > relay.toml
  outbox-relay config import-debezium application.properties > relay.toml
  outbox-relay config check --config relay.toml

Passwords are not printed: name a file by database.password_file, or set PGPASSWORD.
docs/debezium.md has the steps of a cutover.

Exit codes: 0 printed, whatever could not be carried over; 78 it is no configuration of an outbox.";
