//! `outbox-relay config`: writes, shows and checks config files. Connects to nothing.

use super::args::ConfigArgs;
use super::{Exit, say, wrong};
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
    /// Print the reference of all keys, in Markdown
    #[command(hide = true)]
    Reference,
}

/// Does it.
#[must_use]
pub fn run(args: &Args, environment: &Environment) -> Exit {
    match &args.action {
        Action::Init => say(&config::starter()),
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
