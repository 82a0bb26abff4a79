//! `check`: what is in the way of a relay, or will be, each with what mends it.
//!
//! `source/checkup.rs` and `sink/checkup.rs` gather facts; [`postgres`] and [`kafka`] turn them into
//! [`Line`]s and touch nothing. Here one follows the other. A question that fails is a line of its own and
//! ends nothing but what rests on its answer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

mod line;
pub use line::{Level, Line, Names, shell, worst};

mod table;

mod contracts;

pub mod postgres;

pub mod writers;

pub mod kafka;

use crate::certificate::Trouble;
use crate::config::{Config, Outbox};
use crate::finding::Fix;
use crate::relay::chain;
use crate::route::{Kind, Router};
use crate::sink::checkup::examine;
use crate::source::{Checkup, Error, Inspected, Pooler, Server};

/// What to look at, beside what the config names.
#[derive(Debug, Clone)]
pub struct Options {
    /// Topics beside those that rows are seen to go to.
    pub topics: Vec<String>,
    /// How long a transaction may last before it is named.
    pub transaction_age_max: Duration,
}

/// Topics that are looked at: each takes a question or two.
const TOPICS_MAX: usize = 100;

/// Checks everything that `config` names; `say` gets each line as soon as it is known.
pub async fn run(config: &Config, options: &Options, mut say: impl FnMut(Line)) {
    let mut wanted = Wanted::of(config, options);
    database(config, options, &mut wanted, &mut say).await;
    let left_out = wanted.largest.len().saturating_sub(TOPICS_MAX);
    let topics: Vec<String> = wanted.largest.keys().take(TOPICS_MAX).cloned().collect();
    let cluster = examine(&config.kafka, topics).await;
    let judge = kafka::Judge {
        kafka: &config.kafka,
        largest: &wanted.largest,
    };
    for line in judge.lines(&cluster) {
        say(line);
    }
    if left_out > 0 {
        let why = format!("{left_out} more topics were not looked at; name them with --topic");
        say(Line::skip("topic", why));
    }
    if wanted.largest.is_empty() {
        let why = "no row tells yet to which topics rows will go; name some with --topic";
        say(Line::skip("topic", why));
    }
}

/// The topics to look at, and the bytes of the largest record that is on its way to each.
struct Wanted {
    largest: BTreeMap<String, u64>,
}

impl Wanted {
    fn of(config: &Config, options: &Options) -> Self {
        let constant = (config.outboxes.iter()).filter_map(|outbox| outbox.topic.constant());
        let dead = (config.outboxes.iter()).filter_map(|it| it.dead_letter_topic.as_deref());
        let named = options.topics.iter().map(String::as_str);
        let all: BTreeSet<&str> = constant.chain(dead).chain(named).collect();
        let largest = all.into_iter().map(|topic| (topic.to_owned(), 0)).collect();
        Self { largest }
    }

    /// A row of `kind` was seen, of `bytes`. The reason, if no topic can have it.
    fn see(&mut self, outbox: &Outbox, kind: &Kind, bytes: u64) -> Option<String> {
        match Router::of(outbox).topic_of(kind) {
            Ok(topic) => {
                let largest = self.largest.entry(topic.into_owned()).or_default();
                *largest = bytes.max(*largest);
                None
            }
            Err(reason) => Some(
                reason
                    .text
                    .trim_start_matches("the row's topic ")
                    .to_owned(),
            ),
        }
    }
}

async fn database(
    config: &Config,
    options: &Options,
    wanted: &mut Wanted,
    say: &mut impl FnMut(Line),
) {
    let looked = async {
        let mut checkup = Checkup::new(&config.database)?;
        let server = checkup.server().await?;
        Ok::<_, Error>((checkup, server))
    };
    let (mut checkup, server) = match looked.await {
        Ok(looked) => looked,
        Err(error) => {
            say(match &error {
                Error::Unsafe(Trouble { what, next_step }) => {
                    let why = format!("no safe connection: {what}");
                    Line::fail("tls", why).words(next_step)
                }
                error => postgres::unreachable(&chain(error), error.code()),
            });
            say(Line::skip(
                "table",
                "everything else of Postgres: it cannot be asked",
            ));
            return;
        }
    };
    for line in postgres::server(&server, config) {
        say(line);
    }
    if server.is_standby {
        return say(Line::skip(
            "table",
            "everything else of Postgres: it is a standby",
        ));
    }
    let holders = checkup.holders().await;
    match &holders {
        Ok(holders) => {
            let max = options.transaction_age_max;
            postgres::holders(holders, &server, max).for_each(&mut *say);
        }
        Err(error) => say(failed("horizon", error)),
    }
    for outbox in &config.outboxes {
        table(&mut checkup, &server, config, outbox, wanted, say).await;
    }
}

async fn table(
    checkup: &mut Checkup,
    server: &Server,
    config: &Config,
    outbox: &Outbox,
    wanted: &mut Wanted,
    say: &mut impl FnMut(Line),
) {
    let name = outbox.table.to_string();
    let mut say = |line: Line| say(line.about(&name));
    let inspected = match checkup.inspect(outbox).await {
        Ok(inspected) => inspected,
        Err(error) => return say(failed("table", &error)),
    };
    for line in postgres::inspected(outbox, &inspected) {
        say(line);
    }
    let schema = inspected.is_well("schema") && inspected.is_well("grants");
    if schema {
        match checkup.migrated().await {
            Ok(known) => say(postgres::migrated(known)),
            Err(error) => say(failed("migrations", &error)),
        }
    }
    if !inspected.exists {
        return;
    }
    if schema && inspected.is_well("columns") {
        match checkup.emits(outbox).await {
            Ok(known) => say(emits(known)),
            Err(error) => say(failed("emit", &error)),
        }
    }
    match checkup.counts(&outbox.table, schema).await {
        Ok(counts) => {
            for line in postgres::counts(outbox, &counts, server) {
                say(line);
            }
        }
        Err(error) => say(failed("autovacuum", &error)),
    }
    match checkup.rivals(&outbox.table).await {
        Ok(rivals) => {
            for line in postgres::rivals(&rivals) {
                say(line);
            }
        }
        Err(error) => say(failed("rivals", &error)),
    }
    if !(schema && inspected.is_well("lanes")) {
        return say(Line::skip(
            "claim",
            "the claim and the rows: what they rest on is not well",
        ));
    }
    writers(checkup, server, config, outbox, &inspected, &mut say).await;
    rows(checkup, config, outbox, &inspected, wanted, &mut say).await;
}

/// How the service writes, and what it writes to, if that has partitions.
async fn writers(
    checkup: &mut Checkup,
    server: &Server,
    config: &Config,
    outbox: &Outbox,
    inspected: &Inspected,
    say: &mut impl FnMut(Line),
) {
    if inspected.partitioned {
        match checkup.partitions(&outbox.table).await {
            Ok(found) => {
                for line in writers::partitions(&found, config.relay.workers) {
                    say(line);
                }
            }
            Err(error) => say(failed("partitions", &error)),
        }
    }
    let looked = async {
        let open = checkup.open_writers(&outbox.table, writers::LATE_S).await?;
        let (lanes, late_s) = (inspected.lanes, writers::LATE_S);
        Ok::<_, Error>((open, checkup.written(outbox, lanes, late_s).await?))
    };
    match looked.await {
        Ok((open, written)) => {
            for line in writers::late(&open, &written, server) {
                say(line);
            }
            say(writers::order(&written));
        }
        Err(error) => say(failed("late", &error)),
    }
}

/// Whether the functions that services write by are as the table is.
fn emits(known: Option<bool>) -> Line {
    match known {
        Some(true) => Line::ok("emit", "the functions that write to it are as the table is"),
        Some(false) => Line::warn(
            "emit",
            "the functions that write to it (outbox_relay.emit) were not made for the table as it is now: a \
             call may fail, and with it the service's transaction",
        )
        .fix(Fix::Relay("migrate".to_owned())),
        None => Line::skip(
            "emit",
            "this role may not read which functions write to it (select on outbox_relay.emitter)",
        ),
    }
}

/// What takes a table that is as it must be: the claim's plan, and the rows.
async fn rows(
    checkup: &mut Checkup,
    config: &Config,
    outbox: &Outbox,
    inspected: &Inspected,
    wanted: &mut Wanted,
    say: &mut impl FnMut(Line),
) {
    match checkup.claim_plan(config, outbox, inspected).await {
        Ok((plan, index, of_partitions)) => {
            say(postgres::claim(outbox, &plan, &index, &of_partitions));
        }
        Err(error) => say(failed("claim", &error)),
    }
    if let Some(contracts) = &outbox.contracts {
        match checkup.pending(outbox, inspected).await {
            Ok(rows) => say(self::contracts::contracts(outbox, contracts, &rows)),
            Err(error) => say(failed("contracts", &error)),
        }
    }
    match checkup.parked(&outbox.table).await {
        Ok(parked) => say(postgres::parked(outbox, &parked)),
        Err(error) => say(failed("parked", &error)),
    }
    let looked = async {
        let kinds = checkup.kinds(outbox, inspected).await?;
        Ok::<_, Error>((kinds, checkup.largest(outbox, inspected).await?))
    };
    let (kinds, largest) = match looked.await {
        Ok(looked) => looked,
        Err(error) => return say(failed("routing", &error)),
    };
    let kinds = kinds.into_iter().map(|kind| (kind, 0));
    let largest = largest.into_iter().map(|row| {
        let bytes = u64::try_from(row.bytes).unwrap_or(0);
        (row.kind, bytes)
    });
    let (mut refused, mut own) = (BTreeSet::new(), BTreeSet::new());
    for (kind, bytes) in kinds.chain(largest) {
        own.extend(kind.topic.clone());
        if let Some(why) = wanted.see(outbox, &kind, bytes) {
            refused.insert(why);
        }
    }
    for why in refused {
        say(postgres::illegal_topic(&why));
    }
    say(postgres::own_topics(outbox, &own));
}

/// A question that could not be answered.
fn failed(item: &'static str, error: &Error) -> Line {
    let rights = error.code() == Some("42501");
    match rights {
        true => Line::skip(item, format!("this role may not look: {}", chain(error))),
        false => Line::fail(item, chain(error)),
    }
}

/// Whether each of the relay's connections is a server process of its own.
fn is_direct(server: &Server) -> bool {
    server.pooler == Pooler::None
}
