//! `outbox-relay adopt`: says that this database, and this Kafka, are the right ones from now on.

use super::args::ConfigArgs;
use super::changing::{self, Leave, broken};
use super::{Exit, fail, say};
use crate::config::{Config, Environment};
use crate::source::{Adopter, Adoption};

/// Options of `adopt`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// Which database, which tables, which Kafka.
    #[command(flatten)]
    pub config: ConfigArgs,

    #[command(flatten)]
    leave: Leave,
}

/// Says what would be adopted, and does it with leave.
pub async fn run(args: Args, config: Config, environment: Environment) -> Exit {
    match Box::pin(adopt(&args, &config, &environment)).await {
        Ok(exit) | Err(exit) => exit,
    }
}

async fn adopt(args: &Args, config: &Config, environment: &Environment) -> Result<Exit, Exit> {
    let mut adopter = Adopter::new(config).map_err(broken)?;
    let mut adoptions = Vec::new();
    for outbox in &config.outboxes {
        adoptions.push(adopter.look(&outbox.table).await.map_err(broken)?);
    }
    let cluster = cluster(config).await?;
    let announced: String = adoptions
        .iter()
        .map(|adoption| announce(adoption, cluster.as_deref()))
        .collect();
    let said = say(&announced);
    if said != Exit::Ok {
        return Ok(said);
    }
    args.leave.check()?;
    let who = args.leave.who(environment);
    for adoption in &adoptions {
        let adopted = adopter.adopt(adoption, cluster.as_deref(), &who).await;
        let audit = adopted.map_err(broken)?;
        let line = format!(
            "{}: adopted; relays that run must be restarted (audit {audit})\n",
            adoption.outbox
        );
        let said = say(&line);
        if said != Exit::Ok {
            return Ok(said);
        }
    }
    Ok(Exit::Ok)
}

/// The cluster of the config's brokers; none, if it has no brokers.
async fn cluster(config: &Config) -> Result<Option<String>, Exit> {
    if config.kafka.brokers.is_empty() {
        return Ok(None);
    }
    match changing::cluster(config).await {
        Some(cluster) => Ok(Some(cluster)),
        None => Err(fail(
            Exit::Unavailable,
            "Kafka could not be asked which cluster it is, so nothing was changed: look at its brokers, or \
             run `adopt` without brokers: then the first cluster that a relay reaches is taken",
        )),
    }
}

fn announce(adoption: &Adoption, cluster: Option<&str>) -> String {
    let Adoption {
        outbox,
        kept,
        ours,
        pending,
    } = adoption;
    let nowhere = || "nowhere yet".to_owned();
    let first = kept
        .database
        .as_ref()
        .map_or_else(nowhere, ToString::to_string);
    let from = kept.cluster.clone().unwrap_or_else(nowhere);
    let to = cluster.unwrap_or("whichever a relay reaches first");
    format!(
        "{outbox}:\n  served in     {first}\n  from now on   {ours}\n  published to  {from}\n  from now on   \
         {to}\n  {pending} rows are pending, and relays will publish them there\n"
    )
}

const HELP: &str = "\
Examples:
  outbox-relay adopt --config relay.toml          # says what it would do
  outbox-relay adopt --config relay.toml --yes --note 'restored from the backup of Friday'

A relay keeps with each outbox which database it was first served in, and to which Kafka cluster, and
refuses to serve a copy. `adopt` says that this is no copy, or one that is to publish from now on. What is
pending in a copy was pending in the original too: it is published twice if both publish it.

Exit codes: 0 done; 1 nothing was done for want of --yes or of a right; 69 Postgres or Kafka cannot be
reached; 78 bad config, or not migrated.";
