//! `outbox-relay demo`: a toy service, a relay, a consumer and a verdict.

use std::num::NonZeroU32;
use std::time::Duration;

use super::Exit;
use crate::config::Secret;
use crate::demo;
use crate::relay::chain;

/// Options of `demo`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// How long the toy service writes orders, such as 30s
    #[arg(
        long = "for",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = humantime::parse_duration
    )]
    pub duration: Duration,

    /// Events a second, committed and rolled back ones together
    #[arg(long, value_name = "N", default_value = "50")]
    pub rate: NonZeroU32,

    /// Run two relays and kill one again and again, in the middle of its work
    #[arg(long)]
    pub chaos: bool,

    /// Print nothing but the verdict, as one JSON object
    #[arg(long)]
    pub json: bool,

    /// A Postgres to use; else one is found on this machine, or downloaded
    #[arg(long, value_name = "URL", value_parser = super::args::without_password)]
    pub database_url: Option<Secret>,

    /// A Kafka to use; else a stand-in that librdkafka brings, good for the demo only
    #[arg(long, value_name = "LIST")]
    pub brokers: Option<String>,
}

/// Plays it.
pub async fn run(args: Args) -> Exit {
    let Args {
        duration,
        rate,
        chaos,
        json,
        database_url,
        brokers,
    } = args;
    let options = demo::Options {
        for_: duration,
        rate: rate.get(),
        chaos,
        json,
        database_url: database_url.map(|url| url.expose().to_owned()),
        brokers,
    };
    match demo::run(options).await {
        Ok(verdict) if verdict.kept() => Exit::Ok,
        Ok(_) => Exit::Failed,
        Err(error) => super::fail(Exit::Unavailable, &chain(&error)),
    }
}

const HELP: &str = "\
Examples:
  outbox-relay demo
  outbox-relay demo --for 60s --rate 200 --chaos
  outbox-relay demo --json --brokers localhost:9092

Exit codes: 0 nothing was lost, nothing that was rolled back arrived and no order was violated;
1 otherwise; 69 there is no Postgres to be had.";
