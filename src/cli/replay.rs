//! `outbox-relay replay`: publishes rows again that are marked, or in a history.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::args::ConfigArgs;
use super::changing::{self, Leave, broken, plain};
use super::{Exit, complain, fail, say};
use crate::config::{Config, Environment, OnPublished, Outbox, TableName};
use crate::ops::controls::{Controls, Paused};
use crate::ops::signals::StopSignals;
use crate::relay::{Replay, Replayed};
use crate::route::Router;
use crate::source::{Chosen, Identified, Inspection, Inspector, Marked, Polling, Replayer};

/// Options of `replay`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// Which database, which tables, which Kafka.
    #[command(flatten)]
    pub config: ConfigArgs,

    /// The outbox, where the config has several
    #[arg(long, value_name = "SCHEMA.TABLE")]
    outbox: Option<String>,

    /// Rows that were published since this long, such as 2h
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    since: Option<Duration>,

    /// Rows of this aggregate; may be repeated
    #[arg(long, value_name = "AGGREGATE_ID", allow_hyphen_values = true)]
    key: Vec<String>,

    /// Rows of this event type; may be repeated
    #[arg(long = "type", value_name = "EVENT_TYPE")]
    event_type: Vec<String>,

    /// The row of this event; may be repeated
    #[arg(long, value_name = "EVENT_ID")]
    id: Vec<Uuid>,

    /// Go on where a replay of the same choice ended early: with the row of this event, which it named
    #[arg(long, value_name = "EVENT_ID")]
    from: Option<Uuid>,

    /// Say what would be published, by topic, and publish nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,

    /// Rows a second at most
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,

    /// Most rows; more than that are refused as a whole
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=5_000_000))]
    limit: u32,

    #[command(flatten)]
    leave: Leave,
}

/// Says what would be published again, and does it with leave.
pub async fn run(args: Args, config: Config, environment: Environment) -> Exit {
    match Box::pin(replay(&args, &Arc::new(config), &environment)).await {
        Ok(exit) | Err(exit) => exit,
    }
}

async fn replay(
    args: &Args,
    config: &Arc<Config>,
    environment: &Environment,
) -> Result<Exit, Exit> {
    let mut chosen = Chosen {
        since_s: args.since.map(|since| since.as_secs_f64()),
        keys: args.key.clone(),
        event_types: args.event_type.clone(),
        ids: args.id.clone(),
        from: None,
    };
    if chosen == Chosen::default() {
        let line = "say which rows: --since, --key, --type or --id";
        return Err(fail(Exit::Usage, line));
    }
    chosen.from = args.from;
    let outbox = outbox(args, config)?;
    if outbox.on_published == OnPublished::Delete {
        let line = format!(
            "{} has on_published = \"delete\": rows that are published are gone, so there is nothing to \
             replay from. Consumers that need them again read their topic from an earlier offset",
            outbox.table
        );
        return Err(fail(Exit::Failed, &line));
    }
    let (mut inspector, polling, pauses) = look(config, outbox).await?;
    let mut replayer = Replayer::new(&config.database, outbox, &polling).map_err(broken)?;
    let rows = replayer.choose(&chosen, i64::from(args.limit)).await;
    let rows = rows.map_err(broken)?;
    if rows.is_empty() {
        return Ok(say(
            "no marked row matches, nor any in a history: nothing to replay\n",
        ));
    }
    if rows.len() > usize::try_from(args.limit).unwrap_or(usize::MAX) {
        let line = format!(
            "more than {} rows match: narrow the choice, or raise --limit",
            args.limit
        );
        return Err(fail(Exit::Failed, &line));
    }
    let rows = from(rows, chosen.from)?;
    let topics = by_topic(outbox, &rows);
    let said = say(&announce(outbox, &rows, &topics, args.rate));
    if said != Exit::Ok || args.dry_run {
        return Ok(said);
    }
    let paused = Paused::of(pauses);
    if let Some(topic) = topics.keys().find(|topic| paused.holds(topic)) {
        let line = format!("{}: {topic} is paused; `resume` it first", outbox.table);
        return Err(fail(Exit::Failed, &line));
    }
    args.leave.check()?;
    let cluster = cluster(config, &mut inspector).await?;
    let who = args.leave.who(environment);
    // from here on a signal is answered: the audit will say what came of it
    let mut signals = StopSignals::listen()
        .map_err(|error| fail(Exit::Bug, &format!("cannot take signals: {error}")))?;
    let audit = replayer.audit("replay", &chosen, rows.len(), &who).await;
    let audit = audit.map_err(broken)?;
    let known = outbox.written_by(polling.encoding());
    let replay = Replay {
        config,
        outbox: &known,
        cluster,
        controls: Arc::new(Controls::new(Some(args.rate))),
        at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
    };
    let mut replayed = Replayed::default();
    let stop = CancellationToken::new();
    let ran = {
        let mut running = std::pin::pin!(replay.run(&mut replayer, &rows, &stop, &mut replayed));
        tokio::select! {
            ran = &mut running => ran,
            () = signals.next() => {
                stop.cancel();
                running.await
            }
        }
    };
    let exit = report(args, outbox, &rows, &replayed, audit, stop.is_cancelled());
    if !replayed.complete {
        // what the first entry promised did not come true
        chosen.from = replayed.next;
        let short = replayer.audit("replay ended early", &chosen, replayed.published, &who);
        short.await.map_err(broken)?;
    }
    ran.map_err(broken)?;
    Ok(exit)
}

/// The one outbox that is meant.
fn outbox<'c>(args: &Args, config: &'c Config) -> Result<&'c Outbox, Exit> {
    let Some(name) = &args.outbox else {
        return match config.outboxes.as_slice() {
            [only] => Ok(only),
            _ => Err(fail(
                Exit::Usage,
                "the config has several: say which, by --outbox",
            )),
        };
    };
    let table = TableName::parse(name)
        .map_err(|why| fail(Exit::Usage, &format!("--outbox {name}: {why}")))?;
    let found = config.outboxes.iter().find(|outbox| outbox.table == table);
    found.ok_or_else(|| fail(Exit::Config, &format!("the config has no outbox {table}")))
}

/// Looks at the outbox as a relay does before it serves it; what is paused of it.
async fn look(
    config: &Config,
    outbox: &Outbox,
) -> Result<(Inspector, Arc<Polling>, Vec<String>), Exit> {
    let mut inspector = Inspector::new(config, outbox, true).map_err(broken)?;
    let polling = match inspector.look().await.map_err(broken)? {
        Inspection::Ready(polling) => polling,
        Inspection::Waiting(line) => return Err(fail(Exit::Config, &line)),
        Inspection::Wrong(problems) => return Err(fail(Exit::Config, &problems.join("\n"))),
    };
    if let Identified::Copy(line) = inspector.identify(&polling).await.map_err(broken)? {
        return Err(fail(Exit::Config, &line));
    }
    let pauses = inspector.pauses().await.map_err(broken)?;
    let topics = pauses.into_iter().map(|pause| pause.topic).collect();
    Ok((inspector, polling, topics))
}

/// The cluster of the config's brokers, which is the one that the outbox is published to.
async fn cluster(config: &Config, inspector: &mut Inspector) -> Result<String, Exit> {
    match changing::cluster(config).await {
        Some(cluster) => {
            inspector.keep_cluster(&cluster).await.map_err(broken)?;
            Ok(cluster)
        }
        None => Err(fail(
            Exit::Unavailable,
            "Kafka could not be reached, so nothing was published: look at its brokers",
        )),
    }
}

/// Rows by the topic that they go to today; what has no legal one is counted under its reason.
fn by_topic(outbox: &Outbox, rows: &[Marked]) -> BTreeMap<String, usize> {
    let router = Router::of(outbox);
    let mut topics = BTreeMap::new();
    for row in rows {
        let topic = match router.topic(&row.event) {
            Ok(topic) => topic.into_owned(),
            Err(reason) => format!("(none: {})", reason.class),
        };
        *topics.entry(topic).or_default() += 1;
    }
    topics
}

fn announce(
    outbox: &Outbox,
    rows: &[Marked],
    topics: &BTreeMap<String, usize>,
    rate: u32,
) -> String {
    let line = |(topic, rows): (&String, &usize)| format!("  {rows} to {}\n", plain(topic));
    let lines: String = topics.iter().map(line).collect();
    let seconds = rows.len() / usize::try_from(rate).unwrap_or(1).max(1);
    let takes = humantime::format_duration(Duration::from_secs(seconds as u64 + 1));
    format!(
        "{}: {} published rows to publish again, in their order, in about {takes}:\n{lines}",
        outbox.table,
        rows.len()
    )
}

fn report(
    args: &Args,
    outbox: &Outbox,
    rows: &[Marked],
    replayed: &Replayed,
    audit: i64,
    stopped: bool,
) -> Exit {
    let Replayed {
        published,
        gone,
        refused,
        complete,
        next,
    } = replayed;
    let mut line = format!(
        "{}: {published} of {} rows were published again",
        outbox.table,
        rows.len()
    );
    if *gone > 0 {
        line.push_str(&format!(", {gone} were purged meanwhile"));
    }
    line.push_str(&format!(" (audit {audit})\n"));
    let said = say(&line);
    for (id, reason) in refused.iter().take(20) {
        complain(&format!("{id} was refused: {reason}\n"));
    }
    if refused.len() > 20 {
        complain(&format!("and {} more\n", refused.len() - 20));
    }
    match (complete, refused.is_empty()) {
        (false, _) => {
            let why = match stopped {
                true => "a signal came",
                false => "Kafka took no more, or Postgres did not answer",
            };
            let go_on = next.map_or_else(String::new, |next| go_on(args, next));
            let line = format!("it ended early: {why}. Nothing is lost{go_on}");
            fail(Exit::Unavailable, &line)
        }
        (true, false) => Exit::Failed,
        (true, true) => said,
    }
}

/// How to replay what is left.
fn go_on(args: &Args, next: Uuid) -> String {
    let longer = match args.since {
        Some(_) => " and a --since that is as much longer as time has passed",
        None => "",
    };
    format!(
        ". To go on, give the same command with --from {next}{longer}; consumers may get a few rows behind \
         that one twice, in order"
    )
}

/// Those of `rows` from the one that is wanted on.
fn from(mut rows: Vec<Marked>, wanted: Option<Uuid>) -> Result<Vec<Marked>, Exit> {
    let Some(wanted) = wanted else {
        return Ok(rows);
    };
    match rows.iter().position(|row| row.event.id == wanted) {
        Some(at) => Ok(rows.split_off(at)),
        None => {
            let line = format!(
                "--from {wanted}: no row of this choice has that id. It was purged, or --since does not reach \
                 back to it any more"
            );
            Err(fail(Exit::Failed, &line))
        }
    }
}

const HELP: &str = "\
Examples:
  outbox-relay replay --since 2h --dry-run --config relay.toml
  outbox-relay replay --key 0c0e0f5e-… --yes --note 'consumer lost its table' --config relay.toml
  outbox-relay replay --id 5b1d… --id 77ac… --yes --config relay.toml

The rows are published as they are now, byte for byte what was published, with one more header:
outbox_relay_replayed_at. They come in outbox order, behind whatever their aggregates published since: a
consumer that goes by event_id passes over them, one that wants them must take an old event after a newer
one. Relays may run; no row is changed. It needs on_published = \"mark\" or \"archive\".

Exit codes: 0 done, or nothing matched; 1 nothing was done for want of --yes, or some rows were refused;
64 no choice of rows; 69 Postgres or Kafka cannot be reached, or it ended early; 78 bad config, or a table
that cannot be served.";
