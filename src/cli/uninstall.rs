//! `outbox-relay uninstall`: undoes `migrate`.

use std::time::Duration;

use super::changing::{Leave, Tables, broken};
use super::{Exit, fail, say};
use crate::config::{Config, Environment, TableName};
use crate::source::{Drops, Installed, Pauser, Uninstaller};

/// Options of `uninstall`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// Which database, which tables.
    #[command(flatten)]
    pub tables: Tables,

    /// Every outbox of the database, and then the schema outbox_relay itself, the audit with it
    #[arg(long, conflicts_with = "outbox")]
    all: bool,

    /// Delete the parked rows as well, which nobody can publish any more then
    #[arg(long)]
    drop_parked: bool,

    /// Drop the column seq from the service's table
    #[arg(long)]
    drop_seq: bool,

    /// Drop the history of published rows as well, where on_published = "archive" made one
    #[arg(long)]
    drop_history: bool,

    /// Do it although relays are connected
    #[arg(long)]
    even_if_served: bool,

    #[command(flatten)]
    leave: Leave,
}

/// Says what would go, and takes it away with leave.
pub async fn run(args: Args, config: Config, environment: Environment) -> Exit {
    match Box::pin(uninstall(&args, &config, &environment)).await {
        Ok(exit) | Err(exit) => exit,
    }
}

async fn uninstall(args: &Args, config: &Config, environment: &Environment) -> Result<Exit, Exit> {
    let tables = match args.all {
        true => everything(config).await?,
        false => args.tables.outboxes(config).await?,
    };
    let drops = Drops {
        seq: args.drop_seq,
        history: args.drop_history,
    };
    let mut uninstaller = Uninstaller::new(&config.database).map_err(broken)?;
    let mut plans = Vec::new();
    for table in tables {
        let installed = uninstaller.look(&table).await.map_err(broken)?;
        let said = say(&announce(&table, &installed, drops));
        if said != Exit::Ok {
            return Ok(said);
        }
        plans.push((table, installed));
    }
    if args.all {
        let said = say("then the schema outbox_relay goes, with the audit in it\n");
        if said != Exit::Ok {
            return Ok(said);
        }
        let dependents = uninstaller.dependents().await.map_err(broken)?;
        if !dependents.is_empty() {
            let line = format!(
                "something outside of the schema outbox_relay needs it: {}. Nothing was changed",
                dependents.join(", ")
            );
            return Err(fail(Exit::Failed, &line));
        }
    }
    let parked: i64 = plans.iter().map(|(_, installed)| installed.parked).sum();
    if parked > 0 && !args.drop_parked {
        let line = format!(
            "{parked} rows are parked: retry them, or `parked export` them and give --drop-parked. Nothing \
             was changed"
        );
        return Err(fail(Exit::Failed, &line));
    }
    let kept = |(_, installed): &&(TableName, Installed)| installed.archived;
    if let (true, false, Some((_, installed))) =
        (args.all, args.drop_history, plans.iter().find(kept))
    {
        let line = format!(
            "the history {} has rows, and would go with the schema: move it to another one by `alter table … \
             set schema …`, with its partitions, or give --drop-history. Nothing was changed",
            installed.history.as_deref().unwrap_or_default()
        );
        return Err(fail(Exit::Failed, &line));
    }
    let relays = relays(&mut uninstaller).await?;
    if relays > 0 && !args.even_if_served {
        let line = format!(
            "relays have {relays} connections to this database: stop them first, or give --even-if-served \
             if they serve other outboxes. Nothing was changed"
        );
        return Err(fail(Exit::Failed, &line));
    }
    args.leave.check()?;
    let who = args.leave.who(environment);
    for (table, installed) in &plans {
        let removed = uninstaller.remove(table, installed, drops, &who).await;
        let audit = removed.map_err(broken)?;
        let said = say(&format!("{table}: uninstalled (audit {audit})\n"));
        if said != Exit::Ok {
            return Ok(said);
        }
    }
    if !args.all {
        return Ok(Exit::Ok);
    }
    uninstaller.drop_schema().await.map_err(broken)?;
    Ok(say("the schema outbox_relay is gone\n"))
}

/// Connections of relays. One that is being closed, by this very command maybe, is there for a moment.
async fn relays(uninstaller: &mut Uninstaller) -> Result<i64, Exit> {
    const LOOKS: u32 = 10;
    let mut looks = 0;
    loop {
        let relays = uninstaller.relays().await.map_err(broken)?;
        looks += 1;
        if relays == 0 || looks >= LOOKS {
            return Ok(relays);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn everything(config: &Config) -> Result<Vec<TableName>, Exit> {
    let mut pauser = Pauser::new(&config.database).map_err(broken)?;
    let names = pauser.outboxes().await.map_err(broken)?;
    Ok(names
        .iter()
        .map(|name| TableName::of_catalogue(name))
        .collect())
}

fn announce(table: &TableName, installed: &Installed, drops: Drops) -> String {
    let mut text = format!("{table}, to be taken away:\n");
    let mut line = |what: String| text.push_str(&format!("  {what}\n"));
    if installed.trigger {
        line("the trigger outbox_relay_notify".to_owned());
    }
    for index in &installed.indexes {
        line(format!("the index {index}"));
    }
    line(format!("{} lanes, and what is paused", installed.lanes));
    line("where it was served: its database and Kafka cluster, its routing".to_owned());
    if installed.parked > 0 {
        line(format!("{} parked rows", installed.parked));
    }
    if let Some(emit) = &installed.emit {
        line(format!(
            "the functions {emit} and {emit}_batch: whoever writes by them fails from then on"
        ));
    }
    match &installed.history {
        Some(history) if drops.history => line(format!("the history {history}, with all its rows")),
        Some(history) => text.push_str(&format!(
            "  the history {history} stays; --drop-history drops it\n"
        )),
        None => {}
    }
    match (installed.seq, drops.seq) {
        (true, true) => text.push_str("  the column seq, with its sequence\n"),
        (true, false) => text.push_str("  the column seq stays; --drop-seq drops it\n"),
        (false, _) => {}
    }
    if installed.table {
        text.push_str(&format!(
            "the table stays, with all its rows; {} of them are not published\n",
            installed.pending
        ));
    }
    text
}

const HELP: &str = "\
Examples:
  outbox-relay uninstall --outbox public.outbox                 # says what would go
  outbox-relay uninstall --outbox public.outbox --yes
  outbox-relay uninstall --all --drop-seq --yes

Undoes `migrate`. The service's table and its rows always stay. Stop the relays first; rows that are parked
are refused unless --drop-parked says otherwise, a history with rows stays unless --drop-history does. Writers that
insert may go on, those that call outbox_relay.emit not: what drops an index, a trigger or a
column waits for its lock for five seconds at most, and changes nothing if it does not get it. `migrate`
makes all of it again; numbers in seq that stayed are kept.

Exit codes: 0 done; 1 nothing was done, for want of --yes or of a right, or because relays run or rows are
parked; 69 the database cannot be reached or is locked; 78 bad config, or not migrated.";
