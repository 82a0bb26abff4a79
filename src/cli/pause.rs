//! `outbox-relay pause` and `outbox-relay resume`: hold back an outbox, or some of its topics.

use std::collections::BTreeMap;

use serde_json::json;

use super::changing::{Leave, Tables, broken, plain};
use super::{Exit, fail, say};
use crate::config::{Config, Environment};
use crate::route;
use crate::source::{Pause, PauseChange, Pauser};

/// Options of `pause`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = PAUSE_HELP)]
pub struct Args {
    /// Which database, which tables.
    #[command(flatten)]
    pub tables: Tables,

    /// Hold back only what goes to this topic; may be repeated [default: the whole outbox]
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<String>,

    /// Why, for whoever finds it paused
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Do it; without this, it is only said what would be done
    #[arg(long)]
    yes: bool,

    /// Change nothing: say what is paused, since when, by whom and why
    #[arg(long, conflicts_with_all = ["topic", "reason", "yes"])]
    list: bool,

    /// With --list: one JSON object a line and a pause
    #[arg(long, requires = "list")]
    json: bool,
}

/// Options of `resume`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = RESUME_HELP)]
pub struct ResumeArgs {
    /// Which database, which tables.
    #[command(flatten)]
    pub tables: Tables,

    /// Let this topic go on; may be repeated [default: all that is paused of the outbox]
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<String>,

    #[command(flatten)]
    leave: Leave,
}

/// Pauses, or says what is paused.
pub async fn run(args: Args, config: Config, environment: Environment) -> Exit {
    let done = async {
        check(&args.topic)?;
        let outboxes = names(&args.tables, &config).await?;
        let mut pauser = Pauser::new(&config.database).map_err(broken)?;
        if args.list {
            let pauses = pauser.list(&outboxes).await.map_err(broken)?;
            return Ok(list(&pauses, args.json));
        }
        for outbox in &outboxes {
            let what = match args.topic.is_empty() {
                true => "the whole outbox".to_owned(),
                false => format!("the topics {}", args.topic.join(", ")),
            };
            let line = format!("{outbox}: {what} to be held back; what is in flight is finished\n");
            stop_unless_ok(say(&line))?;
        }
        let leave = Leave {
            yes: args.yes,
            note: args.reason.clone(),
        };
        leave.check()?;
        let who = leave.who(&environment);
        let changed = pauser.pause(&outboxes, &args.topic, &who).await;
        Ok(report(
            &changed.map_err(broken)?,
            "paused",
            "was paused before",
        ))
    };
    end(Box::pin(done).await)
}

/// Resumes.
pub async fn resume(args: ResumeArgs, config: Config, environment: Environment) -> Exit {
    let done = async {
        check(&args.topic)?;
        let outboxes = names(&args.tables, &config).await?;
        let mut pauser = Pauser::new(&config.database).map_err(broken)?;
        let mut pauses = pauser.list(&outboxes).await.map_err(broken)?;
        let meant = |pause: &Pause| args.topic.is_empty() || args.topic.contains(&pause.topic);
        if !args.topic.is_empty()
            && let Some(whole) = pauses.iter().find(|pause| pause.topic.is_empty())
        {
            let line = format!("{} is paused as a whole, and stays so", whole.outbox);
            super::complain(&format!("{line}: `resume` without --topic ends that\n"));
        }
        pauses.retain(meant);
        if pauses.is_empty() {
            return Ok(say("nothing of that is paused\n"));
        }
        stop_unless_ok(list(&pauses, false))?;
        args.leave.check()?;
        let who = args.leave.who(&environment);
        let changed = pauser.resume(&outboxes, &args.topic, &who).await;
        Ok(report(
            &changed.map_err(broken)?,
            "resumed",
            "nothing was paused",
        ))
    };
    end(Box::pin(done).await)
}

fn end(done: Result<Exit, Exit>) -> Exit {
    match done {
        Ok(exit) | Err(exit) => exit,
    }
}

fn stop_unless_ok(exit: Exit) -> Result<(), Exit> {
    match exit {
        Exit::Ok => Ok(()),
        exit => Err(exit),
    }
}

/// A topic that Kafka cannot have was mistyped.
fn check(topics: &[String]) -> Result<(), Exit> {
    for topic in topics {
        if let Some(why) = route::illegal(topic) {
            return Err(fail(Exit::Usage, &format!("--topic {topic}: it {why}")));
        }
    }
    Ok(())
}

async fn names(tables: &Tables, config: &Config) -> Result<Vec<String>, Exit> {
    let tables = tables.outboxes(config).await?;
    Ok(tables.iter().map(ToString::to_string).collect())
}

fn list(pauses: &[Pause], json: bool) -> Exit {
    if pauses.is_empty() && !json {
        return say("nothing is paused\n");
    }
    let line = |pause: &Pause| {
        if json {
            let object = json!({
                "outbox": pause.outbox,
                "topic": Some(&pause.topic).filter(|topic| !topic.is_empty()),
                "since": pause.since,
                "age_s": pause.age_s,
                "by": pause.by,
                "reason": pause.reason,
            });
            return format!("{object}\n");
        }
        let reason = match &pause.reason {
            Some(reason) => format!(": {}", plain(reason)),
            None => String::new(),
        };
        let (what, by) = (pause.what(), plain(&pause.by));
        format!(
            "{}: {what}, since {} by {by}{reason}\n",
            pause.outbox, pause.since
        )
    };
    let lines: String = pauses.iter().map(line).collect();
    say(&lines)
}

fn report(changed: &BTreeMap<String, PauseChange>, done: &str, before: &str) -> Exit {
    let line = |(outbox, change): (&String, &PauseChange)| match change.audit_id {
        Some(audit) => format!("{outbox}: {done} ({}, audit {audit})\n", change.changed),
        None => format!("{outbox}: {before}\n"),
    };
    let lines: String = changed.iter().map(line).collect();
    say(&lines)
}

const PAUSE_HELP: &str = "\
Examples:
  outbox-relay pause --outbox public.outbox --reason 'consumers migrate' --yes
  outbox-relay pause --topic order-events --reason 'poisoned batch' --yes
  outbox-relay pause --list

The pause is kept in the database (outbox_relay.pause): every relay heeds it at its next claim, and it
survives restarts. A paused topic holds back its own events, and those alone; a paused outbox is not
claimed at all. Nothing is lost, and no row spends an attempt.

Exit codes: 0 done; 1 nothing was done for want of --yes or of a right; 69 the database cannot be reached;
78 bad config, or not migrated.";

const RESUME_HELP: &str = "\
Examples:
  outbox-relay resume --outbox public.outbox --yes
  outbox-relay resume --topic order-events --yes --note 'fixed'

Exit codes: 0 done, or nothing was paused; 1 nothing was done for want of --yes or of a right; 69 the
database cannot be reached; 78 bad config, or not migrated.";
