//! `outbox-relay completions`: what a shell needs to complete the command line.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{CommandLine, Exit, say};

/// Options of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// For which shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints them.
#[must_use]
pub fn run(args: &Args) -> Exit {
    let mut script = Vec::new();
    let mut command = CommandLine::command();
    clap_complete::generate(args.shell, &mut command, "outbox-relay", &mut script);
    say(&String::from_utf8_lossy(&script))
}

const HELP: &str = "\
Examples:
  outbox-relay completions bash > /etc/bash_completion.d/outbox-relay
  outbox-relay completions zsh > \"${fpath[1]}/_outbox-relay\"
  outbox-relay completions fish > ~/.config/fish/completions/outbox-relay.fish";
