//! `outbox-relay migrate`: makes the database ready.

use super::args::ConfigArgs;
use super::{Exit, complain};
use crate::config::{Config, Purpose};
use crate::relay;
use crate::source::{Migrated, Migration};

/// Options of `migrate`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// Which database, and which tables.
    #[command(flatten)]
    pub config: ConfigArgs,

    /// Print the statements as plain SQL and connect to nothing
    ///
    /// For Flyway, Liquibase, Alembic and their like.
    #[arg(long)]
    pub print: bool,

    /// Print two roles and their rights instead: one that migrates, one that relays
    #[arg(long, requires = "print")]
    pub grants: bool,

    /// The role that migrates, for --grants
    #[arg(
        long,
        requires = "grants",
        value_name = "ROLE",
        default_value = "outbox_relay_owner"
    )]
    pub owner: String,

    /// The role that relays, for --grants
    #[arg(
        long,
        requires = "grants",
        value_name = "ROLE",
        default_value = "outbox_relay_runner"
    )]
    pub runner: String,

    /// The role of a service that writes events by the function emit, for --grants
    ///
    /// It gets to call that, and no right on the table. The service's own role, which exists.
    #[arg(long, requires = "grants", value_name = "ROLE")]
    pub writer: Option<String>,

    /// Agree to what takes a lock or touches rows
    ///
    /// Without it such a step is announced with the number of rows, and not taken.
    #[arg(long)]
    pub yes: bool,
}

impl Args {
    /// What the config is wanted for.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        if self.print {
            Purpose::Print
        } else {
            Purpose::Migrate
        }
    }
}

/// Applies what is missing, or prints it.
pub async fn run(args: Args, config: Config) -> Exit {
    if args.grants {
        let writer = args.writer.as_deref();
        let grants = Migration::print_grants(&config.outboxes, &args.owner, &args.runner, writer);
        return super::say(&grants);
    }
    if args.print {
        return super::say(&Migration::print(&config.outboxes));
    }
    let mut lines = Vec::new();
    let applied = {
        let say = |line: &str| {
            lines.push(line.to_owned());
            tracing::info!("{line}");
        };
        Migration::new(&config).apply(args.yes, say).await
    };
    let applied = match applied {
        Ok(applied) => applied,
        Err(error) if error.is_unreachable() => {
            return super::fail(Exit::Unavailable, &relay::chain(&error));
        }
        Err(error) => {
            let hint = match error.code() {
                Some("42501") => {
                    "\nRun `migrate` as the owner of the table and with the right to create a schema, or hand `migrate --print` to whoever has them."
                }
                _ => "",
            };
            return super::fail(Exit::Failed, &format!("{}{hint}", relay::chain(&error)));
        }
    };
    let mut exit = Exit::Ok;
    for (table, migrated) in applied {
        match migrated {
            Migrated::Done => _ = super::say(&format!("{table}: ready\n")),
            Migrated::Refused(why) => {
                exit = super::fail(Exit::Config, &format!("{table}: {why}"));
            }
            Migrated::NoTable => {
                exit = super::fail(
                    Exit::Failed,
                    &format!(
                        "{table}: there is no such table. The service's own migrations create it; run `migrate` after them"
                    ),
                );
            }
            Migrated::WantsLeave(steps) => {
                for step in steps {
                    complain(&format!("{step}\n"));
                }
                exit = super::fail(
                    Exit::Failed,
                    &format!("{table}: nothing of this was done; `--yes` agrees to it"),
                );
            }
        }
    }
    exit
}

const HELP: &str = "\
Examples:
  outbox-relay migrate --config relay.toml
  DATABASE_URL=postgres://… outbox-relay migrate --table public.outbox --yes
  outbox-relay migrate --table public.outbox --print > V42__outbox_relay.sql
  outbox-relay migrate --table public.outbox --print --grants > roles.sql
  outbox-relay migrate --table public.outbox --print --grants --writer shop > roles.sql

Safe to repeat, and safe on a table with rows and live writers.

Exit codes: 0 all is in place, 1 a step wants --yes, 69 the database cannot be reached, 78 bad config.";
