//! `outbox-relay man`: the manual page, in roff.

use clap::CommandFactory as _;

use super::{CommandLine, Exit, fail, say};

/// Options of `man`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// The page of this command, such as `run`; else the one of all of them
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
}

/// Prints it.
#[must_use]
pub fn run(args: &Args) -> Exit {
    let mut all = CommandLine::command();
    all.build();
    let command = match &args.command {
        None => all,
        Some(name) => match all.find_subcommand(name) {
            Some(command) => command.clone(),
            None => {
                let known: Vec<&str> = (all.get_subcommands())
                    .map(|command| command.get_name())
                    .collect();
                let line = format!(
                    "there is no command `{name}`; there are {}",
                    known.join(", ")
                );
                return fail(Exit::Usage, &line);
            }
        },
    };
    let mut page = Vec::new();
    match clap_mangen::Man::new(command).render(&mut page) {
        Ok(()) => say(&String::from_utf8_lossy(&page)),
        Err(error) => fail(Exit::Bug, &format!("the page cannot be written: {error}")),
    }
}

const HELP: &str = "\
Examples:
  outbox-relay man | man -l -
  outbox-relay man check > /usr/local/share/man/man1/outbox-relay-check.1";
