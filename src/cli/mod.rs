//! The command line: one file per command. A command says what it needs of the config, then runs and
//! ends with one of the [exit codes](Exit).

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, Config, Environment, Log, Purpose};

pub mod args;

pub mod check;

pub mod completions;

pub mod man;

pub mod run;

pub mod migrate;

pub mod config_file;

pub mod contract;

pub mod parked;

pub mod status;

pub mod tail;

pub mod changing;

pub mod adopt;

pub mod pause;

pub mod inspect;

pub mod replay;

pub mod purge;

pub mod uninstall;

#[cfg(feature = "top")]
pub mod top;

#[cfg(feature = "demo")]
pub mod demo;

/// How a command ended. The numbers are those of `sysexits.h` where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well. Also after SIGTERM and SIGINT.
    Ok = 0,
    /// A check or the demo's verdict came out badly.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 64,
    /// Something a one-shot command depends on cannot be had, Postgres or Kafka.
    Unavailable = 69,
    /// A fault of the relay itself.
    Bug = 70,
    /// `--until-empty` left rows behind: parked, blocked, paused or locked by others.
    LeftBehind = 75,
    /// The config is wrong, or the table is not as it says.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 64,
            Exit::Unavailable => 69,
            Exit::Bug => 70,
            Exit::LeftBehind => 75,
            Exit::Config => 78,
        })
    }
}

const EXIT_CODES: &str = "\
Exit codes:
  0   all is well, also after SIGTERM and SIGINT
  1   a check or the demo's verdict came out badly
  64  the command line makes no sense
  69  Postgres or Kafka cannot be reached (commands that do one thing and end)
  70  a bug
  75  --until-empty left rows behind and says how many
  78  the config is wrong";

/// What the examples begin with, in a build that has the demo.
const DEMO: &str = if cfg!(feature = "demo") {
    "  outbox-relay demo\n"
} else {
    ""
};

const EXAMPLES: &str = "\
  outbox-relay config init > relay.toml
  outbox-relay migrate --config relay.toml
  outbox-relay run --config relay.toml
  DATABASE_URL=postgres://… KAFKA_BROKERS=localhost:9092 outbox-relay run --table public.outbox

Every key of the config file can also be a variable, such as OUTBOX_RELAY__RELAY__WORKERS; options are
stronger than variables, variables than the file. RUST_LOG sets what is logged.
";

/// Publishes the rows of a Postgres outbox table to Kafka: in order per aggregate, none lost.
#[derive(Debug, Parser)]
#[command(
    name = "outbox-relay",
    version,
    about,
    after_help = EXIT_CODES,
    after_long_help = format!("Examples:\n{DEMO}{EXAMPLES}\n{EXIT_CODES}"),
    arg_required_else_help = true,
    disable_help_subcommand = true,
    propagate_version = true
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Publish committed rows until told to stop
    Run(run::Args),
    /// Make the database ready: the relay's own tables, and what an outbox table needs for order
    Migrate(migrate::Args),
    /// Say what is in the way of a relay, or will be, and what mends it
    Check(check::Args),
    /// Print what a shell needs to complete the command line
    Completions(completions::Args),
    /// Print the manual page
    Man(man::Args),
    /// Look at rows that could not be published, and retry or skip them
    Parked(parked::Args),
    /// How each outbox is, on one screen
    Status(status::Args),
    /// Show events as they are in Kafka, the last ones and those that follow
    Tail(tail::Args),
    /// Say where one event is: pending, in flight, published, parked
    Inspect(inspect::Args),
    /// Publish rows again that are marked as published
    Replay(replay::Args),
    /// Hold back an outbox, or what goes to some of its topics
    Pause(pause::Args),
    /// Let what is paused go on
    Resume(pause::ResumeArgs),
    /// Delete rows that were published long ago
    Purge(purge::Args),
    /// Undo `migrate`; the service's table and its rows stay
    Uninstall(uninstall::Args),
    /// Say that a database which looks like a copy is the one to publish from
    Adopt(adopt::Args),
    /// Watch a relay at work, on this terminal
    #[cfg(feature = "top")]
    Top(top::Args),
    /// Write, show or check a config file
    Config(config_file::Args),
    /// Compare contracts of events, and hold samples against them
    Contract(contract::Args),
    /// Watch it work: a toy service, a relay, a consumer and a verdict. Needs no set-up
    #[cfg(feature = "demo")]
    Demo(demo::Args),
}

/// A command and the config it asked for.
#[derive(Debug)]
pub enum Task {
    /// See [`run`].
    Run(run::Args, Config, Environment),
    /// See [`migrate`].
    Migrate(migrate::Args, Config),
    /// See [`check`].
    Check(check::Args, Config),
    /// See [`completions`].
    Completions(completions::Args),
    /// See [`man`].
    Man(man::Args),
    /// See [`parked`].
    Parked(parked::Args, Config, Environment),
    /// See [`status`].
    Status(status::Args, Config),
    /// See [`tail`].
    Tail(tail::Args, Config),
    /// See [`inspect`].
    Inspect(inspect::Args, Config),
    /// See [`replay`].
    Replay(replay::Args, Config, Environment),
    /// See [`pause`].
    Pause(pause::Args, Config, Environment),
    /// See [`pause`].
    Resume(pause::ResumeArgs, Config, Environment),
    /// See [`purge`].
    Purge(purge::Args, Config, Environment),
    /// See [`uninstall`].
    Uninstall(uninstall::Args, Config, Environment),
    /// See [`adopt`].
    Adopt(adopt::Args, Config, Environment),
    /// See [`config_file`]. It reads settings of its own, which may be wrong or missing.
    Config(config_file::Args, Environment),
    /// See [`contract`].
    Contract(contract::Args),
    /// See [`top`].
    #[cfg(feature = "top")]
    Top(top::Args, Config),
    /// See [`demo`].
    #[cfg(feature = "demo")]
    Demo(demo::Args, Log),
}

/// Reads the command line.
///
/// # Errors
/// How to end: the line was a question (`--help`) and is answered, or makes no sense and the user is
/// told.
pub fn parse(line: impl IntoIterator<Item = OsString>) -> Result<Command, Exit> {
    let line: Vec<OsString> = line.into_iter().collect();
    match CommandLine::try_parse_from(&line) {
        Ok(parsed) => Ok(parsed.command),
        Err(error) if error.use_stderr() => {
            complain(&without_urls(&error.to_string(), &line));
            Err(Exit::Usage)
        }
        Err(answer) => Err(say(&answer.to_string())),
    }
}

impl Command {
    /// Reads the config the command needs.
    ///
    /// # Errors
    /// [`Exit::Config`]; the user is told what is wrong with it.
    pub fn configure(self, environment: &Environment) -> Result<Task, Exit> {
        Ok(match self {
            Self::Run(args) => {
                let config = load(&args.config, environment, Purpose::Run)?;
                Task::Run(args, config, environment.clone())
            }
            Self::Migrate(args) => {
                let config = load(&args.config, environment, args.purpose())?;
                Task::Migrate(args, config)
            }
            Self::Check(args) => {
                let config = load(&args.config, environment, Purpose::Run)?;
                Task::Check(args, config)
            }
            Self::Completions(args) => Task::Completions(args),
            Self::Man(args) => Task::Man(args),
            Self::Parked(args) => {
                let config = load(&args.config_args(), environment, Purpose::Parked)?;
                Task::Parked(args, config, environment.clone())
            }
            Self::Status(args) => {
                let config = load(&args.config_args(), environment, Purpose::Parked)?;
                Task::Status(args, config)
            }
            Self::Tail(args) => {
                let config = load(&args.config, environment, Purpose::Run)?;
                Task::Tail(args, config)
            }
            Self::Inspect(args) => {
                let config = load(&args.config, environment, Purpose::Migrate)?;
                Task::Inspect(args, config)
            }
            Self::Replay(args) => {
                let config = load(&args.config, environment, Purpose::Run)?;
                Task::Replay(args, config, environment.clone())
            }
            Self::Pause(args) => {
                let config = load(&args.tables.config_args(), environment, Purpose::Parked)?;
                Task::Pause(args, config, environment.clone())
            }
            Self::Resume(args) => {
                let config = load(&args.tables.config_args(), environment, Purpose::Parked)?;
                Task::Resume(args, config, environment.clone())
            }
            Self::Purge(args) => {
                let config = load(&args.tables.config_args(), environment, Purpose::Parked)?;
                Task::Purge(args, config, environment.clone())
            }
            Self::Uninstall(args) => {
                let config = load(&args.tables.config_args(), environment, Purpose::Parked)?;
                Task::Uninstall(args, config, environment.clone())
            }
            Self::Adopt(args) => {
                let config = load(&args.config, environment, Purpose::Migrate)?;
                Task::Adopt(args, config, environment.clone())
            }
            Self::Config(args) => Task::Config(args, environment.clone()),
            Self::Contract(args) => Task::Contract(args),
            #[cfg(feature = "top")]
            Self::Top(args) => {
                let config = load(&args.config_args(), environment, Purpose::Watch)?;
                Task::Top(args, config)
            }
            #[cfg(feature = "demo")]
            Self::Demo(args) => Task::Demo(args, Log::of_demo(environment)),
        })
    }
}

impl Task {
    /// How to log, where there is something to log.
    #[must_use]
    pub fn log(&self) -> Option<&Log> {
        match self {
            Self::Run(_, config, _)
            | Self::Migrate(_, config)
            | Self::Check(_, config)
            | Self::Parked(_, config, _)
            | Self::Status(_, config)
            | Self::Tail(_, config)
            | Self::Inspect(_, config)
            | Self::Replay(_, config, _)
            | Self::Pause(_, config, _)
            | Self::Resume(_, config, _)
            | Self::Purge(_, config, _)
            | Self::Uninstall(_, config, _)
            | Self::Adopt(_, config, _) => Some(&config.log),
            Self::Completions(_) | Self::Man(_) | Self::Config(..) | Self::Contract(_) => None,
            #[cfg(feature = "top")]
            Self::Top(..) => None,
            #[cfg(feature = "demo")]
            Self::Demo(_, log) => Some(log),
        }
    }

    /// Does it.
    pub async fn run(self) -> Exit {
        match self {
            Self::Run(args, config, environment) => {
                Box::pin(run::run(args, config, environment)).await
            }
            Self::Migrate(args, config) => Box::pin(migrate::run(args, config)).await,
            Self::Check(args, config) => Box::pin(check::run(args, config)).await,
            Self::Completions(args) => completions::run(&args),
            Self::Man(args) => man::run(&args),
            Self::Parked(args, config, environment) => {
                Box::pin(parked::run(args, config, environment)).await
            }
            Self::Status(args, config) => Box::pin(status::run(args, config)).await,
            Self::Tail(args, config) => Box::pin(tail::run(args, config)).await,
            Self::Inspect(args, config) => Box::pin(inspect::run(args, config)).await,
            Self::Replay(args, config, environment) => {
                Box::pin(replay::run(args, config, environment)).await
            }
            Self::Pause(args, config, environment) => {
                Box::pin(pause::run(args, config, environment)).await
            }
            Self::Resume(args, config, environment) => {
                Box::pin(pause::resume(args, config, environment)).await
            }
            Self::Purge(args, config, environment) => {
                Box::pin(purge::run(args, config, environment)).await
            }
            Self::Uninstall(args, config, environment) => {
                Box::pin(uninstall::run(args, config, environment)).await
            }
            Self::Adopt(args, config, environment) => {
                Box::pin(adopt::run(args, config, environment)).await
            }
            Self::Config(args, environment) => config_file::run(&args, &environment),
            Self::Contract(args) => contract::run(&args),
            #[cfg(feature = "top")]
            Self::Top(args, config) => Box::pin(top::run(args, config)).await,
            #[cfg(feature = "demo")]
            Self::Demo(args, _) => Box::pin(demo::run(args)).await,
        }
    }
}

fn load(
    args: &args::ConfigArgs,
    environment: &Environment,
    purpose: Purpose,
) -> Result<Config, Exit> {
    args.settings(environment).config(purpose).map_err(wrong)
}

/// Tells why the program ends, and how it ends.
#[must_use]
pub fn fail(exit: Exit, why: &str) -> Exit {
    complain(&format!("{why}\n"));
    exit
}

/// Tells what is wrong with the config.
fn wrong(error: config::Error) -> Exit {
    complain(&format!("{error}\n"));
    Exit::Config
}

/// Prints `text` to standard output. A reader that has gone away has seen enough.
fn say(text: &str) -> Exit {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Exit::Ok,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(error) => {
            complain(&format!("cannot write to standard output: {error}\n"));
            Exit::Unavailable
        }
    }
}

/// Prints `text` to standard error, for people: before there are logs, or beside them.
fn complain(text: &str) {
    // Where even this fails nobody is left to tell.
    io::stderr().write_all(text.as_bytes()).unwrap_or_default();
}

/// `text` without the URLs of `line`: clap repeats what it does not understand, and a database URL in
/// the wrong place has a password.
fn without_urls(text: &str, line: &[OsString]) -> String {
    let mut text = text.to_owned();
    for word in line.iter().filter_map(|word| word.to_str()) {
        if let Some((before, _)) = word.split_once("://") {
            let value = before
                .rfind('=')
                .map_or(word, |equals| word.split_at(equals + 1).1);
            text = text.replace(value, "[redacted]");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_url_in_the_wrong_place_is_not_repeated() {
        for word in [
            "postgres://u:canary@h/db",
            "--databse-url=postgres://u:canary@h/db",
        ] {
            let line = ["outbox-relay", "run", word].map(OsString::from);
            let error = CommandLine::try_parse_from(&line).unwrap_err().to_string();
            assert!(!without_urls(&error, &line).contains("canary"), "{error}");
        }
    }

    #[test]
    fn a_password_on_the_command_line_is_refused_and_not_repeated() {
        for command in ["run", "status", "top", "demo", "pause", "parked list"] {
            for url in [
                "postgres://u:canary@h/db",
                "postgres://h/db?password=canary",
            ] {
                let mut line = vec![OsString::from("outbox-relay")];
                line.extend(command.split(' ').map(OsString::from));
                line.push(format!("--database-url={url}").into());
                let error = CommandLine::try_parse_from(&line).unwrap_err().to_string();
                let said = without_urls(&error, &line);
                assert!(said.contains("PGPASSWORD"), "{command}: {said}");
                assert!(!said.contains("canary"), "{command}: {said}");
            }
        }
        let line = ["x", "run", "--database-url", "postgres://u@h/db"].map(OsString::from);
        assert!(parse(line).is_ok());
    }

    #[test]
    fn every_exit_code_is_in_the_help() {
        for exit in [
            Exit::Ok,
            Exit::Failed,
            Exit::Usage,
            Exit::Unavailable,
            Exit::Bug,
            Exit::LeftBehind,
            Exit::Config,
        ] {
            let code = format!("\n  {:<3}", exit as u8);
            assert!(EXIT_CODES.contains(&code), "{exit:?}");
            assert_eq!(
                format!("{:?}", ExitCode::from(exit)),
                format!("{:?}", ExitCode::from(exit as u8))
            );
        }
    }
}
