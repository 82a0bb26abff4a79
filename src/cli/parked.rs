//! `outbox-relay parked`: looks at rows that could not be published, and decides about them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::args::{self, ConfigArgs, without_password};
use super::{Exit, fail, say};
use crate::config::{Config, Environment, Secret};
use crate::relay::chain;
use crate::source::Error;
use crate::source::parked::{Changed, Command, Count, Filter, ParkedRows, Row, Touched, Who};

/// Options of `parked`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// The config file; only its database is needed, and its tables if none are named
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    /// The database. Prefer DATABASE_URL, since everyone on this machine can see the command line
    #[arg(long, value_name = "URL", value_parser = without_password, global = true)]
    database_url: Option<Secret>,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// How many rows are parked, which and why; never their payloads
    List {
        #[command(flatten)]
        which: Which,

        /// One JSON object a line and a row, and no counts
        #[arg(long)]
        json: bool,

        /// Most rows to list [default: 100; with --json all of them]
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
    /// One row, whole
    Show {
        /// Its id, as `list` has it
        #[arg(value_name = "ID")]
        id: i64,

        /// Its payload too, which may hold personal data
        #[arg(long)]
        payload: bool,

        /// As a JSON object, the payload in base64
        #[arg(long)]
        json: bool,
    },
    /// Publish rows again, and after each what waits behind it, in order
    Retry(Change),
    /// Give rows up: a gap in their aggregates, by choice; what waits behind them goes on
    Skip(Change),
    /// Every row, whole, as a JSON object a line; payloads included, in base64
    Export {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, clap::Args)]
struct Change {
    #[command(flatten)]
    which: Which,

    /// Do it; without this, it is only said what would be done
    #[arg(long)]
    yes: bool,

    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

/// Which rows. Options that are given more than once mean any of their values.
#[derive(Debug, clap::Args)]
struct Which {
    /// Rows of this table [default: those of the config, else all]
    #[arg(long, value_name = "SCHEMA.TABLE")]
    outbox: Vec<String>,

    /// Rows of this aggregate
    #[arg(long, value_name = "AGGREGATE_ID", allow_hyphen_values = true)]
    key: Vec<String>,

    /// Rows of this event type
    #[arg(long = "type", value_name = "EVENT_TYPE")]
    event_type: Vec<String>,

    /// Rows that were refused for a reason of this class, such as too_large
    #[arg(long, value_name = "CLASS")]
    reason: Vec<String>,

    /// Rows parked longer ago than this, such as 2h
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,

    /// Rows parked since this long, such as 10min
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,

    /// Rows in this state
    #[arg(long, value_parser = ["blocked", "behind", "dead", "skipped", "retry", "skip"])]
    state: Vec<String>,

    /// The row with this id, as `list` has it
    #[arg(long, value_name = "ID")]
    id: Vec<i64>,
}

impl Args {
    /// Where the database is said to be.
    #[must_use]
    pub fn config_args(&self) -> ConfigArgs {
        ConfigArgs::of_database(self.config.as_ref(), self.database_url.as_ref())
    }
}

impl Which {
    /// The filter; without a state, it has those of `states`.
    fn filter(&self, config: &Config, states: &[&str]) -> Result<Filter, Exit> {
        let mut outboxes = args::outboxes(&self.outbox)?;
        if outboxes.is_empty() {
            outboxes = config.outboxes.iter().map(|it| it.table.clone()).collect();
        }
        let outboxes = outboxes.iter().map(ToString::to_string).collect();
        let states = match self.state.is_empty() {
            true => states.iter().map(ToString::to_string).collect(),
            false => self.state.clone(),
        };
        Ok(Filter {
            outboxes,
            keys: self.key.clone(),
            event_types: self.event_type.clone(),
            reasons: self.reason.clone(),
            states,
            ids: self.id.clone(),
            older_than_s: self.older_than.map(|age| age.as_secs_f64()),
            newer_than_s: self.newer_than.map(|age| age.as_secs_f64()),
        })
    }
}

/// Rows asked for at once: their payloads are in memory together.
const PAGE_ROWS: u32 = 200;
/// Rows that `list` shows people.
const LIST_ROWS: u32 = 100;
/// Aggregates that are named one by one.
const KEYS_SHOWN: usize = 20;

/// Looks, or decides.
pub async fn run(args: Args, config: Config, environment: Environment) -> Exit {
    let done = async {
        let mut rows = ParkedRows::new(&config.database).map_err(broken)?;
        match &args.action {
            Action::List { which, json, limit } => {
                // what only waits is counted
                let states: &[&str] = match which.id.is_empty() {
                    true => &["blocked", "dead", "skipped", "retry", "skip"],
                    false => &[],
                };
                let filter = which.filter(&config, states)?;
                match json {
                    true => stream(&mut rows, &filter, limit.unwrap_or(u32::MAX), false).await,
                    false => list(&mut rows, which, &config, &filter, *limit).await,
                }
            }
            Action::Show { id, payload, json } => show(&mut rows, *id, *payload, *json).await,
            Action::Export { which } => {
                let filter = which.filter(&config, &[])?;
                stream(&mut rows, &filter, u32::MAX, true).await
            }
            Action::Retry(change) => {
                let states = check_states(change, &["blocked", "dead", "skipped"], "retry")?;
                let filter = change.which.filter(&config, states)?;
                decide(&mut rows, Command::Retry, change, filter, &environment).await
            }
            Action::Skip(change) => {
                let states = ["blocked", "behind", "dead", "retry", "skip"];
                let states = check_states(change, &states, "skip")?;
                let filter = change.which.filter(&config, states)?;
                decide(&mut rows, Command::Skip, change, filter, &environment).await
            }
        }
    };
    match Box::pin(done).await {
        Ok(exit) | Err(exit) => exit,
    }
}

/// The states a change touches without a word about them: rows named by their ids may be in any it can
/// do something with, others must stand at the head of a line.
fn check_states<'s>(
    change: &Change,
    allowed: &'s [&'s str],
    command: &str,
) -> Result<&'s [&'s str], Exit> {
    if let Some(state) =
        (change.which.state.iter()).find(|state| !allowed.contains(&state.as_str()))
    {
        let why = match (command, state.as_str()) {
            ("retry", "behind") => "they follow by themselves, once what they wait for is gone",
            ("retry", _) => "they are to be published already, or given up",
            _ => "they were given up before",
        };
        let line = format!("rows in the state {state} cannot be told to {command}: {why}");
        return Err(fail(Exit::Usage, &line));
    }
    Ok(match change.which.id.is_empty() {
        true => &allowed[..1],
        false => allowed,
    })
}

/// Counts, then the rows one by one.
async fn list(
    rows: &mut ParkedRows,
    which: &Which,
    config: &Config,
    filter: &Filter,
    limit: Option<u32>,
) -> Result<Exit, Exit> {
    let everything = which.filter(config, &[])?;
    let counts = rows.counts(&everything).await.map_err(broken)?;
    if counts.is_empty() {
        return Ok(say("nothing is parked that matches\n"));
    }
    let mut text = summary(&counts);
    let limit = limit.unwrap_or(LIST_ROWS);
    let page = rows.page(filter, i64::MIN, i64::from(limit), false).await;
    let page = page.map_err(broken)?;
    if !page.is_empty() {
        text.push('\n');
        text.push_str(&table(&page));
    }
    let listed = |count: &&Count| filter.states.is_empty() || filter.states.contains(&count.state);
    let matching: i64 = counts.iter().filter(listed).map(|count| count.rows).sum();
    let shown = i64::try_from(page.len()).unwrap_or(i64::MAX);
    if matching > shown {
        text.push_str(&format!("… and {} more; see --limit\n", matching - shown));
    }
    Ok(say(&text))
}

/// `public.outbox: 2 blocked (too_large), 40 behind`, a line for each table.
fn summary(counts: &[Count]) -> String {
    let mut tables: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for count in counts {
        let class = match &count.reason_class {
            Some(class) if count.state != "behind" => format!(" ({class})"),
            _ => String::new(),
        };
        let line = tables.entry(&count.outbox).or_default();
        line.push(format!("{} {}{class}", count.rows, count.state));
    }
    let line = |(table, parts): (&&str, &Vec<String>)| format!("{table}: {}\n", parts.join(", "));
    tables.iter().map(line).collect()
}

/// The rows, in columns.
fn table(rows: &[Row]) -> String {
    let head = [
        "ID",
        "STATE",
        "REASON",
        "ATTEMPTS",
        "AGE",
        "OUTBOX",
        "SEQ",
        "TYPE",
        "AGGREGATE",
        "EVENT",
    ];
    let cells = |row: &Row| {
        [
            row.parked_id.to_string(),
            row.state.clone(),
            plain(row.reason_class.as_deref().unwrap_or("-")),
            row.attempts.to_string(),
            age(row.age),
            plain(&row.outbox),
            row.seq.to_string(),
            plain(&row.event_type),
            plain(row.aggregate_id.as_deref().unwrap_or("-")),
            row.event_id.to_string(),
        ]
    };
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let mut widths = [0; 10];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let padded = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        let padded: Vec<String> = padded.collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Text that cannot steer a terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c.is_control() {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}

/// To the second: more is noise.
fn age(age: Duration) -> String {
    humantime::format_duration(Duration::from_secs(age.as_secs())).to_string()
}

/// A JSON object a line, page by page: any number of rows, and few of them in memory.
async fn stream(
    rows: &mut ParkedRows,
    filter: &Filter,
    limit: u32,
    whole: bool,
) -> Result<Exit, Exit> {
    let (mut left, mut after) = (limit, i64::MIN);
    loop {
        let size = left.min(PAGE_ROWS);
        let page = rows.page(filter, after, i64::from(size), whole).await;
        let page = page.map_err(broken)?;
        let Some(last) = page.last() else {
            return Ok(Exit::Ok);
        };
        after = last.parked_id;
        let lines: String = page
            .iter()
            .map(|row| format!("{}\n", Value::Object(object(row, whole))))
            .collect();
        let said = say(&lines);
        if said != Exit::Ok {
            return Ok(said);
        }
        left -= u32::try_from(page.len()).unwrap_or(left).min(left);
        if left == 0 {
            return Ok(Exit::Ok);
        }
    }
}

/// A row as JSON; its value, headers and topic only if `whole`.
fn object(row: &Row, whole: bool) -> Map<String, Value> {
    let Value::Object(mut object) = json!({
        "parked_id": row.parked_id,
        "outbox": row.outbox,
        "state": row.state,
        "reason_class": row.reason_class,
        "reason": row.reason,
        "attempts": row.attempts,
        "parked_at": row.parked_at,
        "age_s": row.age.as_secs(),
        "seq": row.seq,
        "event_id": row.event_id.to_string(),
        "aggregate_type": row.aggregate_type,
        "aggregate_id": row.aggregate_id,
        "event_type": row.event_type,
        "created_at": row.created_at,
        "topic": row.topic,
        "value_bytes": row.value_bytes,
        "skipped_at": row.skipped_at,
        "dead_lettered_at": row.dead_lettered_at,
    }) else {
        return Map::new();
    };
    if whole {
        // pairs of name and value, in the order they are sent
        let headers = row.headers.as_deref().map(serde_json::from_str::<Value>);
        object.insert("headers".into(), headers.and_then(Result::ok).into());
        object.insert("row_headers".into(), row.row_headers.clone().into());
        object.insert("row_topic".into(), row.row_topic.clone().into());
        let value = row.value.as_deref().map(|value| STANDARD.encode(value));
        object.insert("value_base64".into(), value.into());
    }
    object
}

/// One row, a line for each of its parts.
async fn show(rows: &mut ParkedRows, id: i64, payload: bool, json: bool) -> Result<Exit, Exit> {
    let filter = Filter {
        ids: vec![id],
        ..Filter::default()
    };
    let page = rows
        .page(&filter, i64::MIN, 1, payload)
        .await
        .map_err(broken)?;
    let Some(row) = page.first() else {
        let line = format!("there is no parked row {id}: it was published since, or never was");
        return Ok(fail(Exit::Failed, &line));
    };
    let mut object = object(row, true);
    if !payload {
        object.remove("value_base64");
    }
    if json {
        return Ok(say(&format!("{}\n", Value::Object(object))));
    }
    object.remove("value_base64");
    let mut text = String::new();
    for (name, value) in &object {
        let value = match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => plain(text),
            other => plain(&other.to_string()),
        };
        text.push_str(&format!("{name:<17} {value}\n"));
    }
    if payload {
        let value = match row.value.as_deref() {
            None => "-".to_owned(),
            Some(value) => match str::from_utf8(value) {
                Ok(text) => plain(text),
                Err(_) => format!("base64 {}", STANDARD.encode(value)),
            },
        };
        text.push_str(&format!("{:<17} {value}\n", "value"));
    }
    Ok(say(&text))
}

/// Says what a change touches, and makes it with leave.
async fn decide(
    rows: &mut ParkedRows,
    command: Command,
    change: &Change,
    filter: Filter,
    environment: &Environment,
) -> Result<Exit, Exit> {
    let touched = rows.touched(&filter).await.map_err(broken)?;
    if touched.is_empty() {
        let mut line = format!(
            "no parked row matches that can be told to {}",
            command.name()
        );
        if change.which.state.is_empty() && change.which.id.is_empty() {
            line.push_str(": without --state or --id only blocked rows are meant");
        }
        return Ok(say(&format!("{line}\n")));
    }
    let announced: String = touched.iter().map(|it| announce(command, it)).collect();
    let said = say(&announced);
    if said != Exit::Ok {
        return Ok(said);
    }
    if !change.yes {
        return Ok(fail(Exit::Failed, "nothing was changed; `--yes` does it"));
    }
    let (os_user, host) = environment.user_and_host();
    let who = Who {
        os_user,
        host,
        note: change.note.clone(),
    };
    let wait = |line: &str| super::complain(&format!("{line}\n"));
    let changed = rows.change(command, &filter, &who, wait).await;
    let changed = changed.map_err(broken)?;
    if changed.is_empty() {
        return Ok(say("they are gone by now: nothing was changed\n"));
    }
    let done: String = changed
        .iter()
        .map(|(outbox, changed)| report(command, outbox, changed))
        .collect();
    Ok(say(&done))
}

fn announce(command: Command, touched: &Touched) -> String {
    let Touched {
        outbox,
        rows,
        keys,
        behind,
    } = touched;
    let what = match command {
        Command::Retry => "to publish again",
        Command::Skip => "to give up, a gap by choice",
    };
    let behind = match behind {
        0 => String::new(),
        rows => format!("; {rows} more wait behind rows of theirs"),
    };
    format!("{outbox}: {rows} rows of {keys} aggregates {what}{behind}\n")
}

fn report(command: Command, outbox: &str, changed: &Changed) -> String {
    let rows = changed.parked_ids.len();
    let mut text = match command {
        Command::Retry => {
            let mut text = format!("{outbox}: {rows} rows will be published again");
            let waiting = changed.keys.len() - changed.going_on.len();
            if waiting > 0 {
                text.push_str(&format!(
                    "; those of {waiting} aggregates wait, because a row before them is still blocked"
                ));
            }
            text
        }
        Command::Skip => {
            let mut text = format!("{outbox}: {rows} rows were given up, a gap by choice");
            let keys: Vec<String> = changed.going_on.iter().map(|key| plain(key)).collect();
            if !keys.is_empty() {
                let shown: Vec<&str> = keys.iter().take(KEYS_SHOWN).map(String::as_str).collect();
                text.push_str(&format!(
                    "; {} aggregates go on without them: {}",
                    keys.len(),
                    shown.join(", ")
                ));
                if keys.len() > KEYS_SHOWN {
                    text.push_str(&format!(" and {} more", keys.len() - KEYS_SHOWN));
                }
            }
            text
        }
    };
    text.push_str(&format!(" (audit {})\n", changed.audit_id));
    text
}

/// Tells what went wrong, and what to do about it.
fn broken(error: Error) -> Exit {
    let (exit, hint) = match error.code() {
        _ if error.is_unreachable() => (Exit::Unavailable, ""),
        Some("55P03" | "40P01" | "40001") => (
            Exit::Unavailable,
            "\nThe lanes of these rows were never free for long enough, so nothing was changed: try \
             again, or look in pg_locks for who holds rows of outbox_relay.lane or outbox_relay.parked.",
        ),
        Some("42P01" | "3F000" | "42703") => (
            Exit::Config,
            "\nThe schema outbox_relay is not there, or of an older version: `outbox-relay migrate` \
             makes it what it must be.",
        ),
        Some("42501") => (
            Exit::Failed,
            "\nTo look takes: grant usage on schema outbox_relay, and select on outbox_relay.lane, \
             outbox_relay.parked. To retry or skip also: update on outbox_relay.lane, \
             outbox_relay.parked, and select, insert on outbox_relay.audit.",
        ),
        Some("57014") => (
            Exit::Failed,
            "\nThere is more to do than fits database.statement_timeout: raise that, or narrow the \
             filter.",
        ),
        _ => (Exit::Failed, ""),
    };
    fail(exit, &format!("{}{hint}", chain(&error)))
}

const HELP: &str = "\
Examples:
  outbox-relay parked list --config relay.toml
  outbox-relay parked list --reason too_large --older-than 1h --json
  outbox-relay parked show 42 --payload
  outbox-relay parked retry --reason too_large --yes --note 'the limit was raised'
  outbox-relay parked skip --id 42 --yes
  outbox-relay parked export --state skipped > skipped.jsonl

States: blocked (its aggregate waits for it), behind (waits for a row before it), dead (its aggregate
went on), skipped (given up), retry and skip (decided; the relay has yet to do it). Without --state or
--id, `retry` and `skip` mean blocked rows. They are safe while relays run, and leave a row in
outbox_relay.audit.

Exit codes: 0 done, or nothing matched; 1 nothing was done for want of --yes, of a right or of the row;
69 the database cannot be reached, or the lanes were never free; 78 bad config, or not migrated.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_for_people_cannot_steer_a_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\né"), "a\\u{1b}[2Jb\\né");
    }

    #[test]
    fn a_summary_has_a_line_for_each_table() {
        let count = |outbox: &str, state: &str, class: Option<&str>, rows| Count {
            outbox: outbox.into(),
            state: state.into(),
            reason_class: class.map(str::to_owned),
            rows,
        };
        let counts = [
            count("public.a", "behind", None, 40),
            count("public.a", "blocked", Some("too_large"), 2),
            count("public.b", "dead", Some("bad_header"), 1),
        ];
        assert_eq!(
            summary(&counts),
            "public.a: 40 behind, 2 blocked (too_large)\npublic.b: 1 dead (bad_header)\n"
        );
    }
}
