//! A shop of four services, each with a database of its own and a relay, that agree by events alone:
//! `cargo run --release --example shop -- --chaos`. README.md beside this has the picture.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

mod books;
mod chance;
mod checker;
mod customers;
mod events;
mod inbox;
mod inventory;
mod mistakes;
mod orders;
mod outbox;
mod payments;
mod place;
mod processes;
mod projector;
mod run;
mod settings;
mod stream;
mod web;

use place::{Place, Relay};
use settings::Settings;

/// Why something did not work.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A shop of four services that agree by events alone, and a checker that kills them.
#[derive(Debug, Parser)]
#[command(name = "shop", args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    run: run::Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One service: takes orders, confirms and cancels them
    Orders(Settings),
    /// One service: reserves stock, sells and releases it
    Inventory(Settings),
    /// One service: takes money, or refuses
    Payments(Settings),
    /// The read model, and whoever asks it
    Projector(Settings),
    /// Make the databases, roles, tables and topics of a shop whose processes somebody else starts
    Prepare(Prepare),
    /// Order something in such a shop, and check its books
    Visit(run::Visit),
    /// outbox-relay itself, as it is built into this program
    #[command(disable_help_flag = true)]
    Relay {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct Prepare {
    #[command(flatten)]
    place: Place,

    /// The relay's program; without it, the relay that is built into this one
    #[arg(long)]
    relay: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(why) => return failed(&why.into()),
    };
    let ended = match command_line.command {
        Some(Command::Relay { arguments }) => return relay(&runtime, arguments),
        Some(command) => {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .init();
            runtime.block_on(Box::pin(one(command)))
        }
        None => runtime.block_on(Box::pin(run::run(command_line.run))),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => failed(&why),
    }
}

/// One process of the shop. The services run until they are told to stop; stopping one is as good as killing it.
async fn one(command: Command) -> Result<bool, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let running = async {
        match command {
            Command::Orders(settings) => orders::run(settings.heard()).await?,
            Command::Inventory(settings) => inventory::run(settings.heard()).await?,
            Command::Payments(settings) => payments::run(settings.heard()).await?,
            Command::Projector(settings) => projector::run(settings.heard()).await?,
            Command::Prepare(Prepare { place, relay }) => {
                let directory = tempfile::tempdir()?;
                let relay = Relay::new(relay, directory.path().to_owned(), &place.prefix)?;
                place.make_databases(&relay).await?;
                place.make_topics().await?;
            }
            Command::Visit(visit) => return run::visit(visit).await,
            Command::Relay { .. } => {}
        }
        Ok(true)
    };
    tokio::select! {
        ended = running => ended,
        _ = terminate.recv() => Ok(true),
    }
}

/// `outbox-relay` with these arguments.
fn relay(runtime: &tokio::runtime::Runtime, arguments: Vec<OsString>) -> ExitCode {
    use outbox_relay::{cli, config::Environment, ops::log};

    let line = std::iter::once("outbox-relay".into()).chain(arguments);
    let ended = cli::parse(line).and_then(|command| {
        let task = command.configure(&Environment::of_process())?;
        if let Some(config) = task.log() {
            log::start(config).map_err(|why| cli::fail(cli::Exit::Config, &why))?;
        }
        Ok(runtime.block_on(Box::pin(task.run())))
    });
    ended.unwrap_or_else(|exit| exit).into()
}

/// Prints a line of the story; on standard error, where standard output has another use. A reader that went away is
/// no reason to stop.
pub(crate) fn say(aside: bool, line: &str) {
    if aside {
        writeln!(std::io::stderr().lock(), "{line}").ok();
    } else {
        writeln!(std::io::stdout().lock(), "{line}").ok();
    }
}

fn failed(why: &Failure) -> ExitCode {
    say(true, &format!("shop: {why}"));
    ExitCode::FAILURE
}
