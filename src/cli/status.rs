//! `outbox-relay status`: one screen, from the database and from the relay that runs here, if one
//! does.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::args::{ConfigArgs, without_password};
use super::changing::plain;
use super::{Exit, fail, say};
use crate::config::{Config, Secret};
use crate::ops::ask;
use crate::ops::facts::{Backlog, Facts, Freshness, Outbox, Parked};
use crate::relay::{chain, parked};
use crate::source::{Error, KnownTable, Pause, Pauser, ROWS_MAX, Sample, Sampler, known_tables};

/// Options of `status`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// The config file; only its database, its tables and http.listen are needed
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The database. Prefer DATABASE_URL, since everyone on this machine can see the command line
    #[arg(long, value_name = "URL", value_parser = without_password)]
    database_url: Option<Secret>,

    /// Where the relay listens [default: http.listen]
    #[arg(long, value_name = "HOST:PORT")]
    relay: Option<String>,

    /// As one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Where the database is said to be.
    #[must_use]
    pub fn config_args(&self) -> ConfigArgs {
        ConfigArgs::of_database(self.config.as_ref(), self.database_url.as_ref())
    }
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report {
    database: DatabaseReport,
    /// As the relay's `/status` has it; null where none answers.
    relay: Option<Facts>,
    /// Why none answers.
    relay_why: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct DatabaseReport {
    reachable: bool,
    why: Option<String>,
    /// Connections of relays to this database, from wherever.
    relay_connections: Option<i64>,
    /// Why what is paused cannot be read.
    pauses_why: Option<String>,
    outboxes: Vec<Table>,
}

/// One outbox, as the database alone tells.
#[derive(Debug, Serialize)]
struct Table {
    outbox: String,
    /// Why it cannot be looked at.
    why: Option<String>,
    lanes: u16,
    backlog: Backlog,
    oldest_pending_age_s: Option<f64>,
    parked_rows: Parked,
    /// What somebody paused; null where that cannot be read.
    paused: Option<Vec<Paused>>,
}

/// A pause, as `pause --list` has it.
#[derive(Debug, Serialize)]
struct Paused {
    /// Null: the whole outbox.
    topic: Option<String>,
    since: String,
    age_s: i64,
    by: String,
    reason: Option<String>,
    /// As people say it.
    #[serde(skip)]
    told: String,
}

impl From<&Pause> for Paused {
    fn from(pause: &Pause) -> Self {
        let lasted = length(pause.age().as_secs_f64());
        Self {
            topic: Some(pause.topic.clone()).filter(|topic| !topic.is_empty()),
            since: pause.since.clone(),
            age_s: pause.age_s,
            by: pause.by.clone(),
            reason: pause.reason.clone(),
            told: plain(&format!("{} for {lasted}, {}", pause.what(), pause.told())),
        }
    }
}

/// Prints what is known.
pub async fn run(args: Args, config: Config) -> Exit {
    let listen = args.relay.clone().or_else(|| config.http.listen.clone());
    let relay = async {
        match &listen {
            Some(listen) => ask::status(listen).await,
            None => Err("http.listen is off, so no relay can be asked".to_owned()),
        }
    };
    let (database, relay) = tokio::join!(look(&config), relay);
    let exit = match database.reachable {
        true => Exit::Ok,
        false => Exit::Unavailable,
    };
    let (relay, relay_why) = match relay {
        Ok(facts) => (Some(facts), None),
        Err(why) => (None, Some(why)),
    };
    let report = Report {
        database,
        relay,
        relay_why,
    };
    let text = match args.json {
        true => match serde_json::to_string(&report) {
            Ok(json) => format!("{json}\n"),
            Err(error) => return fail(Exit::Bug, &error.to_string()),
        },
        false => screen(&report, &config),
    };
    match say(&text) {
        Exit::Ok => exit,
        failed => failed,
    }
}

async fn look(config: &Config) -> DatabaseReport {
    let outboxes = config
        .outboxes
        .iter()
        .map(|outbox| outbox.table.to_string());
    let wanted: BTreeSet<String> = outboxes.collect();
    let known = match known_tables(&config.database, &wanted).await {
        Ok(known) => known,
        Err(error) => {
            return DatabaseReport {
                why: Some(chain(&error)),
                ..DatabaseReport::default()
            };
        }
    };
    let mut report = DatabaseReport {
        reachable: true,
        relay_connections: Some(known.relay_connections),
        ..DatabaseReport::default()
    };
    for outbox in wanted {
        if !known.tables.iter().any(|table| table.outbox == outbox) {
            let why = "not made ready yet: run `outbox-relay migrate`".to_owned();
            report.outboxes.push(Table::unknown(outbox, why));
        }
    }
    if !known.migrated && report.outboxes.is_empty() {
        report.why = Some("no outbox was made ready here: run `outbox-relay migrate`".to_owned());
    }
    // a schema of an older version has no pauses, and a role may not be allowed to read them
    let pauses = match known.migrated {
        true => match pauses(config).await {
            Ok(pauses) => Some(pauses),
            Err(error) => {
                report.pauses_why = Some(chain(&error));
                None
            }
        },
        false => None,
    };
    for table in known.tables {
        let sampled = sample(config, &table).await;
        report.outboxes.push(match sampled {
            Ok(Some(sample)) => Table::of(table, &sample),
            Ok(None) if table.lanes == 0 => {
                let why = "it has no lanes: run `outbox-relay migrate`".to_owned();
                Table::unknown(table.outbox, why)
            }
            Ok(None) => Table::unknown(table.outbox, "the table does not exist".to_owned()),
            Err(error) => Table::unknown(table.outbox, chain(&error)),
        });
    }
    for table in &mut report.outboxes {
        let of_it = |pauses: &Vec<Pause>| {
            let of_it = pauses.iter().filter(|pause| pause.outbox == table.outbox);
            of_it.map(Paused::from).collect()
        };
        table.paused = pauses.as_ref().map(of_it);
    }
    report.outboxes.sort_by(|a, b| a.outbox.cmp(&b.outbox));
    report
}

async fn pauses(config: &Config) -> Result<Vec<Pause>, Error> {
    Pauser::new(&config.database)?.list(&[]).await
}

async fn sample(config: &Config, known: &KnownTable) -> Result<Option<Sample>, Error> {
    match &known.table {
        Some(table) if known.lanes > 0 => {
            let sampler = Sampler::new(&config.database, table, &known.layout, known.lanes);
            sampler?.sample().await.map(Some)
        }
        _ => Ok(None),
    }
}

impl Table {
    fn unknown(outbox: String, why: String) -> Self {
        Self {
            outbox,
            why: Some(why),
            lanes: 0,
            backlog: Backlog::default(),
            oldest_pending_age_s: None,
            parked_rows: Parked::default(),
            paused: None,
        }
    }

    fn of(known: KnownTable, sample: &Sample) -> Self {
        Self {
            outbox: known.outbox,
            why: None,
            lanes: known.lanes,
            backlog: Backlog {
                events: Some(sample.pending),
                exact: sample.exact,
                counted_max: u64::from(ROWS_MAX),
            },
            oldest_pending_age_s: Some(sample.oldest_age.unwrap_or_default().as_secs_f64()),
            parked_rows: parked(Some(sample)),
            paused: None,
        }
    }
}

/// The report for a person.
fn screen(report: &Report, config: &Config) -> String {
    let mut text = String::new();
    if let Some(why) = &report.database.why {
        line(&mut text, &format!("database    {why}"));
    }
    if let Some(why) = &report.database.pauses_why {
        line(&mut text, &format!("pauses      not known: {why}"));
    }
    for table in &report.database.outboxes {
        let facts = report.relay.as_ref();
        let facts =
            facts.and_then(|facts| facts.outboxes.iter().find(|o| o.outbox == table.outbox));
        let budgets = config
            .outboxes
            .iter()
            .find(|o| o.table.to_string() == table.outbox);
        let budget = budgets.and_then(|outbox| outbox.freshness.usual);
        outbox(&mut text, table, facts, budget);
    }
    match (&report.relay, &report.relay_why) {
        (Some(facts), _) => relay(&mut text, facts),
        (None, Some(why)) => line(&mut text, &format!("relay       {why}")),
        (None, None) => {}
    }
    if let Some(connections) = report.database.relay_connections {
        let text_of = format!("connections {connections} of relays to this database");
        line(&mut text, &text_of);
    }
    text
}

fn outbox(text: &mut String, table: &Table, facts: Option<&Outbox>, budget: Option<Duration>) {
    line(text, &table.outbox);
    for paused in table.paused.iter().flatten() {
        line(text, &format!("  PAUSED    {}", paused.told));
    }
    if let Some(why) = &table.why {
        line(text, &format!("  {why}"));
        return;
    }
    let about = if table.backlog.exact { "" } else { "about " };
    let rows = table.backlog.events.unwrap_or(0);
    let mut waiting = match rows {
        0 => "no rows".to_owned(),
        1 => "1 row".to_owned(),
        rows => format!("{about}{rows} rows"),
    };
    let oldest_s = table.oldest_pending_age_s.unwrap_or(0.0);
    if rows > 0 {
        waiting = format!("{waiting}, the oldest {} old", length(oldest_s));
    }
    line(text, &format!("  waiting   {waiting}"));
    // the relay's own word is the fuller one, if it has any
    let from_relay = facts
        .map(|facts| facts.freshness.clone())
        .filter(|f| !f.is_empty());
    let here = budget.map(|budget| Freshness {
        budget_s: budget.as_secs_f64(),
        staleness_s: Some(oldest_s),
        kept: Some(oldest_s <= budget.as_secs_f64()),
        ..Freshness::default()
    });
    for freshness in from_relay.unwrap_or_else(|| here.into_iter().collect()) {
        let of = freshness.topic.as_deref().unwrap_or("the outbox");
        let kept = match freshness.kept {
            Some(true) => "kept",
            Some(false) => "BROKEN",
            None => "not known",
        };
        let now = freshness.staleness_s.map_or_else(|| "?".to_owned(), length);
        let budget = length(freshness.budget_s);
        line(
            text,
            &format!("  fresh     {of}: {now} of {budget}, {kept}"),
        );
    }
    if let Some(facts) = facts {
        let rate_in = facts
            .rate_in_per_s
            .map_or_else(|| "?".to_owned(), |rate| format!("{rate:.1}"));
        let (p50, p99) = (facts.lag.p50_s, facts.lag.p99_s);
        let lag = p50.zip(p99).map_or(String::new(), |(p50, p99)| {
            format!(", lag p50 {} p99 {}", length(p50), length(p99))
        });
        let out = facts.rate_out_per_s;
        line(
            text,
            &format!("  rate      in {rate_in}/s, out {out:.1}/s by this relay{lag}"),
        );
        if let (Some(max), Some(left)) = (facts.rows_per_second_max, facts.limited_for_s) {
            let left = length(left);
            let held = format!("  limited   to {max} rows/s by this relay: {left} for what waits");
            line(text, &held);
        } else if let Some(left) = facts.drained_in_s {
            line(
                text,
                &format!("  drained   in {} at this rate", length(left)),
            );
        }
        let why = facts.state_text.as_deref();
        let why = why.map_or(String::new(), |why| format!(": {why}"));
        let held = facts.lanes_held;
        let lanes = format!("{} lanes, {held} in its hand", table.lanes);
        line(
            text,
            &format!("  relay     {}{why}; {lanes}", facts.state.name()),
        );
    } else {
        line(text, &format!("  lanes     {}", table.lanes));
    }
    let at_least = if table.parked_rows.exact {
        ""
    } else {
        "at least "
    };
    for parked in &table.parked_rows.rows {
        let reason = parked.reason.as_deref();
        let reason = reason.map_or(String::new(), |reason| format!(" ({reason})"));
        let (rows, state) = (parked.rows, &parked.state);
        line(
            text,
            &format!("  parked    {at_least}{rows} {state}{reason}"),
        );
    }
    if let Some(keys) = table.parked_rows.blocked_keys.filter(|keys| *keys > 0) {
        let oldest = table
            .parked_rows
            .oldest_blocked_age_s
            .map_or(String::new(), |age| {
                format!(", the first for {}", length(age))
            });
        let next = format!(
            "outbox-relay parked list --outbox {} --state blocked",
            table.outbox
        );
        line(
            text,
            &format!("  blocked   {keys} aggregates wait{oldest}: {next}"),
        );
    }
}

fn relay(text: &mut String, facts: &Facts) {
    let live = if facts.live { "live" } else { "STUCK" };
    let ready = if facts.ready { "ready" } else { "NOT READY" };
    let up = length(facts.uptime_s);
    let version = &facts.build.version;
    line(
        text,
        &format!("relay       {version}, up {up}, {live}, {ready}"),
    );
    for why in &facts.why {
        line(text, &format!("            {why}"));
    }
    match (&facts.kafka.away_s, &facts.kafka.why) {
        (Some(away), why) => {
            let why = why.as_deref().unwrap_or("no reason known");
            line(
                text,
                &format!("kafka       AWAY for {}: {why}", length(*away)),
            );
        }
        (None, _) => line(text, &format!("kafka       {}", facts.kafka.brokers)),
    }
    for topic in &facts.kafka.topics_paused {
        let (name, why, lasted) = (&topic.topic, &topic.text, length(topic.lasted_s));
        line(
            text,
            &format!("topic       {name} waits for {lasted}: {why}"),
        );
        line(text, &format!("            {}", topic.next_step));
    }
    for error in facts.errors.iter().take(5) {
        let (at, times, what) = (&error.at, error.times, &error.text);
        line(text, &format!("said        {at} ×{times} {what}"));
    }
}

/// Seconds as people say them: `3ms`, `12s`, `2h 5m`.
fn length(seconds: f64) -> String {
    let length = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
    let rounded = match length.as_secs() {
        0 => Duration::from_millis(u64::try_from(length.as_millis()).unwrap_or(0)),
        seconds @ 1..3600 => Duration::from_secs(seconds),
        seconds => Duration::from_secs(seconds / 60 * 60),
    };
    humantime::format_duration(rounded).to_string()
}

fn line(text: &mut String, written: &str) {
    // Writing to a string cannot fail.
    writeln!(text, "{written}").unwrap_or_default();
}

const HELP: &str = "\
Examples:
  outbox-relay status --config relay.toml
  outbox-relay status --config relay.toml --json
  outbox-relay status --database-url postgres://… --relay 10.0.0.7:9464

What waits, what is parked and what is paused comes from the database; the rest from the relay that listens on
http.listen, where one answers. Without [[outbox]] in the config, every outbox of the database is shown.
A backlog beyond 10,000 rows is estimated.

Exit codes: 0 the database answered, 69 it did not, 78 bad config.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_as_people_say_them() {
        for (seconds, said) in [
            (0.0, "0s"),
            (0.0034, "3ms"),
            (12.9, "12s"),
            (3_599.0, "59m 59s"),
            (7_530.0, "2h 5m"),
            (-1.0, "0s"),
        ] {
            assert_eq!(length(seconds), said);
        }
    }
}
