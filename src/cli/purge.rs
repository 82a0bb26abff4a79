//! `outbox-relay purge`: deletes rows that were published long ago.

use std::time::Duration;

use super::changing::{Leave, Tables, broken};
use super::{Exit, say};
use crate::config::{Config, Environment};
use crate::source::Uninstaller;

/// Options of `purge`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// Which database, which tables.
    #[command(flatten)]
    pub tables: Tables,

    /// Rows that were marked as published longer ago than this, such as 7days
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Duration,

    #[command(flatten)]
    leave: Leave,
}

/// Says how many rows would go, and deletes them with leave.
pub async fn run(args: Args, config: Config, environment: Environment) -> Exit {
    let done = async {
        let tables = args.tables.outboxes(&config).await?;
        let mut uninstaller = Uninstaller::new(&config.database).map_err(broken)?;
        let age = humantime::format_duration(args.older_than);
        let mut all = 0;
        for table in &tables {
            let rows = uninstaller.marked(table, args.older_than).await;
            let rows = rows.map_err(broken)?;
            all += rows;
            let said = say(&format!(
                "{table}: {rows} rows were published longer than {age} ago\n"
            ));
            if said != Exit::Ok {
                return Ok(said);
            }
        }
        if all == 0 {
            return Ok(Exit::Ok);
        }
        args.leave.check()?;
        let who = args.leave.who(&environment);
        for table in &tables {
            let purged = uninstaller.purge(table, args.older_than, &who).await;
            let (rows, audit) = purged.map_err(broken)?;
            let said = say(&format!(
                "{table}: {rows} rows were deleted (audit {audit})\n"
            ));
            if said != Exit::Ok {
                return Ok(said);
            }
        }
        Ok(Exit::Ok)
    };
    match Box::pin(done).await {
        Ok(exit) | Err(exit) => exit,
    }
}

const HELP: &str = "\
Examples:
  outbox-relay purge --older-than 7days --config relay.toml          # says how many
  outbox-relay purge --older-than 7days --yes --config relay.toml

Only rows that are marked as published go, some thousand in a transaction; pending and parked rows are not
touched. Relays and writers may go on. `retention` in the config does the same by itself. Deleted rows
cannot be replayed.

Exit codes: 0 done, or there are none; 1 nothing was done for want of --yes or of a right; 69 the database
cannot be reached; 78 bad config, or not migrated.";
