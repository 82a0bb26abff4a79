//! `just bench [WORKLOAD…]`: what the relay does on this machine, as figures.
//!
//! Starts a PostgreSQL and a one-node Kafka of its own on loopback, without Docker, whose proxy for
//! published ports takes a share of the processor; runs workloads on them; prints a table, and appends
//! every row to a history. Ratios within one run are the result: single figures of a machine that
//! others use as well are not.
//!
//! What is measured is a release build of the relay, `cargo build --release`, or the builds that
//! `OUTBOX_BENCH_RELAY` names. Never the one cargo makes beside this program: with it come the tests'
//! failpoints and traces. This program itself is to be as optimised, for what it does without a relay is what the
//! relay is measured against.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark that cannot go on ends, and it talks to whoever started it"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "figures far from the limits, to be read by people"
)]
#![allow(missing_docs, reason = "nobody links with a benchmark")]

mod bare;
mod catalog;
mod ceiling;
mod debezium;
mod drain;
mod load;
mod meter;
mod relays;
mod report;
mod stand;
mod steady;
#[allow(dead_code, unused_imports, reason = "the tests use the rest of it")]
#[path = "../../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;

use clap::Parser;

use catalog::{Case, Sample};
use relays::Build;
use report::{Report, Row};
use stand::Stand;
use support::janitor;

/// Measures the relay on servers of its own.
#[derive(Debug, Parser)]
#[command(name = "just bench")]
struct Arguments {
    /// Workloads, or single cases of one: `drain`, `drain/mark`, `bad/pinned`. None: a selection of ten
    /// minutes. `all`: every one but `debezium`, which needs a download.
    workloads: Vec<String>,
    /// Rows that a drain begins with. Cases with large rows take a part of them.
    #[arg(long, default_value_t = 300_000)]
    rows: u64,
    /// How long events arrive in `steady`; `idle` looks twice as long.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Runs of each case, in turns with the others; what is reported is the one with the middle rate, and
    /// the geometric mean of the ratios in each turn.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Also tells so many of the relay's statements that Postgres executed the longest, for each run.
    #[arg(long, default_value_t = 0)]
    dearest: u16,
    /// Prints the rows as JSON, one a line, instead of the table.
    #[arg(long)]
    json: bool,
    /// Prints the table as Markdown, as docs/performance.md has it.
    #[arg(long)]
    markdown: bool,
    /// Names the cases and ends.
    #[arg(long)]
    list: bool,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How much of everything.
#[derive(Debug, Clone, Copy)]
struct Size {
    rows: u64,
    seconds: u64,
}

fn main() -> ExitCode {
    if janitor::life() {
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    let cases = match catalog::select(&arguments.workloads) {
        Ok(cases) => cases,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(64);
        }
    };
    if arguments.list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    match runtime.block_on(Box::pin(run(&arguments, &cases))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(69)
        }
    }
}

async fn run(arguments: &Arguments, cases: &[Case]) -> Result<(), String> {
    let builds = Build::given()?;
    let size = Size {
        rows: arguments.rows,
        seconds: arguments.seconds,
    };
    support::servers::janitor().await;
    let mut report = Report::default();
    // Debezium reads the write-ahead log, and its servers write more of it: they are others.
    for logical in [false, true] {
        let cases: Vec<_> = cases
            .iter()
            .filter(|case| case.wants_logical() == logical)
            .collect();
        if cases.is_empty() {
            continue;
        }
        let mut stand = Stand::start(logical).await?;
        report.stands(&stand, &builds, arguments);
        warm_up(&mut stand, &builds[0]).await?;
        stand.dearest = arguments.dearest;
        // In turns: what changes on the machine meanwhile changes for all cases and builds.
        for _ in 0..arguments.repeat.max(1) {
            for case in &cases {
                for build in case.builds(&builds) {
                    let row = measure(&mut stand, case, build, size).await?;
                    eprintln!("{}", row.line());
                    report.add(row);
                }
            }
        }
        stand.remove().await;
    }
    report.finish();
    report.keep()?;
    match (arguments.json, arguments.markdown) {
        (true, _) => println!("{}", report.json()),
        (_, true) => println!("{}", report.markdown()),
        _ => println!("{}", report.table()),
    }
    Ok(())
}

/// A broker that has just begun is slow, since Java has yet to compile itself: an event cost it 8 to 9 us of its
/// processors in the first drains of 400,000, and about 2.5 from the fifth on, twice alike.
async fn warm_up(stand: &mut Stand, build: &Build) -> Result<(), String> {
    const DRAINS: usize = 5;
    let drain = Case::drain("warm-up", None, catalog::Drain::default());
    let size = Size {
        rows: 400_000,
        seconds: 1,
    };
    for _ in 0..DRAINS {
        let row = measure(stand, &drain, build, size).await?;
        let used_us = row.kafka_us.unwrap_or(0.0);
        eprintln!("warming up: Kafka {used_us:.2} us an event");
    }
    // small requests take other ways through it
    for case in catalog::select(&["direct/500x1".to_owned()])? {
        let size = Size {
            rows: 1,
            seconds: 10,
        };
        let row = measure(stand, &case, build, size).await?;
        let used_us = row.kafka_us.unwrap_or(0.0);
        eprintln!("warming up: Kafka {used_us:.0} us an event by itself");
    }
    Ok(())
}

async fn measure(stand: &mut Stand, case: &Case, build: &Build, size: Size) -> Result<Row, String> {
    let mut row = Row::new(case, build);
    let measured = match &case.sample {
        Sample::Drain(drain) => drain::run(stand, drain, build, size, &mut row).await,
        Sample::Steady(steady) => steady::run(stand, steady, build, size, &mut row).await,
        Sample::Direct(steady) => steady::direct(stand, steady, build, size, &mut row).await,
        Sample::Bare(steady) => bare::run(stand, steady, build, size, &mut row).await,
        Sample::BareIdle => bare::idle(stand, build, size, &mut row).await,
        Sample::Idle => steady::idle(stand, build, size, &mut row).await,
        Sample::Postgres(postgres) => {
            ceiling::postgres(stand, *postgres, build, size, &mut row).await
        }
        Sample::Kafka(kafka) => ceiling::kafka(stand, *kafka, size, &mut row).await,
        Sample::Debezium(debezium) => debezium::run(stand, *debezium, build, size, &mut row).await,
    };
    measured.map_err(|why| format!("{}: {why}", case.name))?;
    Ok(row)
}
