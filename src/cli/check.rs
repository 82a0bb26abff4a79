//! `outbox-relay check`: what is in the way of a relay, each with what mends it.

use std::time::Duration;

use super::args::ConfigArgs;
use super::{Exit, say};
use crate::check::{self, Level, Names, Options, worst};
use crate::config::Config;
use crate::route;

/// Options of `check`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// What to check.
    #[command(flatten)]
    pub config: ConfigArgs,

    /// One JSON object a line
    #[arg(long)]
    json: bool,

    /// End with exit code 1 for a warning too
    #[arg(long)]
    deny_warnings: bool,

    /// Only what is not as it must be
    #[arg(long, short)]
    quiet: bool,

    /// Another topic to look at, beside those that rows are seen to go to
    #[arg(long, value_name = "TOPIC", value_parser = topic)]
    topic: Vec<String>,

    /// Name transactions that are open for longer
    #[arg(long, value_name = "DURATION", default_value = "1min", value_parser = humantime::parse_duration)]
    transaction_age: Duration,
}

fn topic(text: &str) -> Result<String, String> {
    match route::illegal(text) {
        None => Ok(text.to_owned()),
        Some(why) => Err(format!("a topic of this name cannot be: it {why}")),
    }
}

/// Checks.
pub async fn run(args: Args, config: Config) -> Exit {
    let names = Names {
        options: args.config.to_repeat(),
        file: args.config.file_to_repeat(),
    };
    let options = Options {
        topics: args.topic.clone(),
        transaction_age_max: args.transaction_age,
    };
    let (mut levels, mut said) = (Vec::new(), Exit::Ok);
    let each = |line: check::Line| {
        levels.push(line.level);
        let text = match args.json {
            true => line.json(&names).to_string(),
            false => super::parked::plain(&line.text(&names)),
        };
        if said == Exit::Ok && !(args.quiet && line.level <= Level::Ok) {
            said = say(&format!("{text}\n"));
        }
    };
    Box::pin(check::run(&config, &options, each)).await;
    if said != Exit::Ok {
        return said;
    }
    match worst(levels) {
        Level::Fail => Exit::Failed,
        Level::Warn if args.deny_warnings => Exit::Failed,
        _ => Exit::Ok,
    }
}

const HELP: &str = "\
Examples:
  outbox-relay check --config relay.toml
  outbox-relay check --config relay.toml --quiet --deny-warnings
  outbox-relay check --config relay.toml --json | jq -r 'select(.fix_kind == \"sql\").fix'

A line says ok, warn (it works, and will hurt one day), fail (rows are not published, or not as promised)
or skip (it could not be looked at; no judgement). It ends with what mends it. Nothing is written, to
Postgres or to Kafka. Run it as the role and with the config of the relay.

Exit codes: 0 no line says fail, 1 one does, or says warn under --deny-warnings, 78 bad config.";
