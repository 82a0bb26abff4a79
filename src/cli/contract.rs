//! `outbox-relay contract`: compares contracts, and holds sample events against them. Connects to nothing,
//! and needs no config: it is for the pipeline of the service that writes the events.

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::{Exit, complain, fail, say};
use crate::contract::compare::{Change, Judgement, compare};
use crate::contract::{Contracts, Expected, Fault, Files, Rules};

/// What to do with contracts.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Tell which changes from OLD to NEW break consumers: exit code 0 if none does, else 1
    #[command(after_long_help = CHECK_HELP)]
    Check {
        /// The folder, or the file, as it was published
        old: PathBuf,
        /// As it is to be published
        new: PathBuf,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        /// Let pass what can be proven neither breaking nor compatible
        #[arg(long)]
        allow_unknown: bool,
    },
    /// Read a folder of contracts, and hold events against them: exit code 0 if all fit, else 1
    #[command(after_long_help = VALIDATE_HELP)]
    Validate {
        /// The folder of contracts
        folder: PathBuf,
        /// Files of events, one JSON object a line; `-` is standard input. None: the folder alone is read
        events: Vec<PathBuf>,
        /// Let an event fit any version, as contract_version = "any" does
        #[arg(long)]
        any_version: bool,
    },
}

/// Does it.
#[must_use]
pub fn run(args: &Args) -> Exit {
    match &args.action {
        Action::Check {
            old,
            new,
            json,
            allow_unknown,
        } => check(old, new, *json, *allow_unknown),
        Action::Validate {
            folder,
            events,
            any_version,
        } => validate(folder, events, *any_version),
    }
}

fn wrong(path: &Path, faults: &[Fault]) -> Exit {
    for fault in faults {
        complain(&format!("{}: {fault}\n", path.display()));
    }
    Exit::Config
}

fn check(old: &Path, new: &Path, json: bool, allow_unknown: bool) -> Exit {
    let read = |path: &Path| match Files::read(path) {
        Ok(files) if files.is_empty() => Err(fail(
            Exit::Config,
            &format!(
                "{}: there is no contract, such as OrderPaid.v1.json",
                path.display()
            ),
        )),
        Ok(files) => Ok(files),
        Err(faults) => Err(wrong(path, &faults)),
    };
    let (old_files, new_files) = match (read(old), read(new)) {
        (Ok(old), Ok(new)) => (old, new),
        (Err(exit), _) | (_, Err(exit)) => return exit,
    };
    let changes = match compare(&old_files, &new_files) {
        Ok(changes) => changes,
        Err(faults) => {
            for fault in &faults {
                complain(&format!("{fault}\n"));
            }
            return Exit::Config;
        }
    };
    let worst = changes.iter().map(|change| change.judgement).max();
    let worst = worst.unwrap_or(Judgement::Compatible);
    let mut text: String = changes.iter().map(|change| line(change, json)).collect();
    if !json {
        text.push_str(&summary(&changes, worst, allow_unknown));
    }
    match (say(&text), worst) {
        (Exit::Ok, Judgement::Breaking) => Exit::Failed,
        (Exit::Ok, Judgement::Unknown) if !allow_unknown => Exit::Failed,
        (said, _) => said,
    }
}

fn line(change: &Change, json: bool) -> String {
    let Change {
        event_type,
        version,
        place,
        what,
        judgement,
    } = change;
    match json {
        true => {
            let line = json!({
                "judgement": judgement.name(),
                "event_type": event_type,
                "version": version,
                "place": place,
                "what": what,
            });
            format!("{line}\n")
        }
        false => {
            let place = if place.is_empty() { "" } else { " " }.to_owned() + place;
            let line = format!(
                "{:<11}  {event_type} v{version}{place}: {what}",
                judgement.name()
            );
            format!("{}\n", super::parked::plain(&line))
        }
    }
}

fn summary(changes: &[Change], worst: Judgement, allow_unknown: bool) -> String {
    let many = |judgement| {
        changes
            .iter()
            .filter(|it| it.judgement == judgement)
            .count()
    };
    let next = match worst {
        Judgement::Compatible => "consumers notice nothing",
        Judgement::Unknown if allow_unknown => "what cannot be told is let pass",
        Judgement::Unknown => {
            "make it a new version, or look yourself and say --allow-unknown: what cannot be told counts as \
             breaking"
        }
        Judgement::Breaking => "make it a new version beside the old one, and tell the consumers",
    };
    format!(
        "{} breaking, {} that cannot be told, {} compatible: {next}\n",
        many(Judgement::Breaking),
        many(Judgement::Unknown),
        many(Judgement::Compatible),
    )
}

/// An event as `select row_to_json(o) from outbox o` prints it; what else is there is passed over.
#[derive(Deserialize)]
struct Sample<'a> {
    event_type: String,
    #[serde(default)]
    event_version: Option<String>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

fn validate(folder: &Path, events: &[PathBuf], any_version: bool) -> Exit {
    let rules = Rules {
        expected: match any_version {
            true => Expected::Any,
            false => Expected::Newest,
        },
        header: "event_version".to_owned(),
        ..Rules::default()
    };
    let contracts = Files::read(folder).and_then(|files| Contracts::compile(&files, rules));
    let contracts = match contracts {
        Ok(contracts) => contracts,
        Err(faults) => return wrong(folder, &faults),
    };
    let (types, versions) = contracts.count();
    let mut seen = Seen::default();
    for path in events {
        let reader: Box<dyn BufRead> = match path.as_os_str() == "-" {
            true => Box::new(BufReader::new(io::stdin())),
            false => match std::fs::File::open(path) {
                Ok(file) => Box::new(BufReader::new(file)),
                Err(error) => {
                    let why = format!("{}: cannot be read: {error}", path.display());
                    return fail(Exit::Usage, &why);
                }
            },
        };
        for (number, read) in (1_usize..).zip(reader.lines()) {
            let place = format!("{}:{number}", path.display());
            match read {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => seen.hold(&contracts, &place, &text),
                Err(error) => {
                    return fail(Exit::Usage, &format!("{place}: cannot be read: {error}"));
                }
            }
        }
    }
    let Seen {
        fit,
        without,
        wrong,
    } = seen;
    let said = say(&format!(
        "{types} event types in {versions} versions; {fit} events fit, {wrong} do not, {without} have no \
         contract\n"
    ));
    match wrong {
        0 => said,
        _ => Exit::Failed,
    }
}

#[derive(Default)]
struct Seen {
    fit: usize,
    without: usize,
    wrong: usize,
}

impl Seen {
    fn hold(&mut self, contracts: &Contracts, place: &str, text: &str) {
        let sample: Sample<'_> = match serde_json::from_str(text) {
            Ok(sample) => sample,
            Err(_) => {
                self.wrong += 1;
                return complain(&format!(
                    "{place}: this is no object with event_type and payload\n"
                ));
            }
        };
        let payload = sample.payload.map_or("null", RawValue::get);
        if payload == "null" {
            // a tombstone
            self.fit += 1;
            return;
        }
        let version = sample.event_version.as_deref();
        match contracts.judge(&sample.event_type, version, payload.as_bytes()) {
            Ok(Some(_)) => self.fit += 1,
            Ok(None) => self.without += 1,
            Err(reason) => {
                self.wrong += 1;
                let line = format!("{place}: {}: {}", sample.event_type, reason.text);
                complain(&format!("{}\n", super::parked::plain(&line)));
            }
        }
    }
}

const CHECK_HELP: &str = "\
Examples:
  git worktree add /tmp/published origin/main
  outbox-relay contract check /tmp/published/contracts contracts
  outbox-relay contract check old/OrderPaid.v1.json new/OrderPaid.v1.json --json

A change is breaking when it allows an event that was not allowed before: a consumer built for the old
contract would meet what it does not know. Contracts that only get narrower are compatible, and so is a new
version beside the old ones. What cannot be proven either way counts as breaking, unless --allow-unknown.
docs/contracts.md has a table of changes.

Exit codes: 0 compatible, 1 breaking, 64 usage, 78 a contract cannot be read.";

const VALIDATE_HELP: &str = "\
Examples:
  outbox-relay contract validate contracts
  outbox-relay contract validate contracts samples.jsonl
  psql -Atc 'select row_to_json(o) from outbox o' | outbox-relay contract validate contracts -

A line is an object with event_type, payload and, if the row names one, event_version.

Exit codes: 0 all events fit, 1 some do not, 64 usage, 78 a contract cannot be read.";
