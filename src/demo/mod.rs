//! `outbox-relay demo`: a toy order service, the relay, a consumer and a verdict, with no set-up.
//!
//! ```text
//!  service ──one transaction──▶ orders + outbox ──▶ relay ──▶ order-events ──▶ consumer
//!     │                          (real Postgres)  (own process)   (Kafka)         │
//!     └── ledger ─────────────────────▶ verdict ◀──────────────────── arrivals ───┘
//! ```
//!
//! Postgres is real: the user's, or a temporary server. Kafka is the user's, or librdkafka's mock
//! cluster, which shows the flow but proves nothing about a broker: it does not check sequences.
//! Nothing the demo starts or makes outlives it, unless the demo itself is killed with SIGKILL.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use sqlx::PgPool;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

mod books;
mod consumer;
mod dice;
mod kafka;
pub mod postgres;
mod relays;
mod screen;
pub mod servers;
mod service;
mod verdict;

pub use verdict::Verdict;

use books::Books;
use consumer::Consumer;
use kafka::{Kafka, PARTITIONS};
use postgres::Postgres;
use relays::Relays;
use screen::{Screen, Style};
use service::Service;

/// How long the relay may take to prepare the table.
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the last events may take to arrive after the writers have stopped.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(15);

/// Lines a person can follow, in a second.
const LINES_PER_SECOND: u32 = 60;

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long the service writes.
    pub for_: Duration,
    /// Events a second, committed and rolled back ones together.
    pub rate: u32,
    /// Two relays, killed with SIGKILL again and again.
    pub chaos: bool,
    /// Print the verdict as one JSON object on standard output and nothing else there.
    pub json: bool,
    /// A server on which the demo makes (and drops) a database of its own; `None` or empty starts
    /// a temporary server.
    pub database_url: Option<String>,
    /// Brokers on which the demo makes (and drops) a topic of its own; `None` or empty starts the
    /// stand-in.
    pub brokers: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            for_: Duration::from_secs(10),
            rate: 50,
            chaos: false,
            json: false,
            database_url: None,
            brokers: None,
        }
    }
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no Postgres to show anything on.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// The service's own transactions fail, so there is nothing to judge.
    #[error("the demo's service cannot use its database: {0}")]
    Service(#[from] sqlx::Error),
    /// The brokers cannot be used.
    #[error("Kafka: {0}\ncheck the brokers, or leave them out: the demo then starts a stand-in")]
    Kafka(#[from] KafkaError),
    /// A relay did not do its part.
    #[error("{what}{log}")]
    Relay {
        /// What happened.
        what: String,
        /// The end of the relays' logs.
        log: String,
    },
    /// A file or a process of the demo's own.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The user wants out.
    #[error("interrupted")]
    Interrupted,
}

/// Everything that has to be taken down again, whatever happens.
#[derive(Default)]
struct Stage {
    postgres: Option<Postgres>,
    kafka: Option<Kafka>,
    relays: Option<Relays>,
}

/// Plays the demo and prints it, the verdict included. SIGINT or SIGTERM ends the writing early,
/// a second one the demo; both leave nothing behind.
///
/// # Errors
/// If something failed that leaves nothing to judge.
pub async fn run(options: Options) -> Result<Verdict, Error> {
    let screen = Screen::new(options.json);
    let enough = CancellationToken::new();
    let mut stage = Stage::default();
    let played = {
        let mut signals = Signals::new()?;
        let interrupted = async {
            signals.recv().await;
            enough.cancel();
            signals.recv().await;
        };
        tokio::select! {
            biased;
            () = interrupted => Err(Error::Interrupted),
            played = Box::pin(play(&options, screen, &mut stage, &enough)) => played,
        }
    };
    stage.clear(screen).await;
    let verdict = played?;
    if options.json {
        let object = serde_json::to_string(&verdict).map_err(io::Error::from)?;
        screen.object(&object);
    }
    Ok(verdict)
}

async fn play(
    options: &Options,
    screen: Screen,
    stage: &mut Stage,
    enough: &CancellationToken,
) -> Result<Verdict, Error> {
    let start_up = prepare(options, screen, stage);
    let prepared = enough.run_until_cancelled(Box::pin(start_up)).await;
    let (mut service, consumer, books) = prepared.ok_or(Error::Interrupted)??;
    let relays = stage.relays.as_mut().ok_or(Error::Interrupted)?;

    let over = CancellationToken::new();
    let written = async {
        enough.run_until_cancelled(sleep(options.for_)).await;
        over.cancel();
    };
    let kills = tokio::select! {
        (kills, ()) = async { tokio::join!(work(relays, options, &books, screen, &over), written) } => kills?,
        error = service.failed() => return Err(error.into()),
    };
    service.stop().await?;
    screen.line("");
    if kills > 0 {
        screen.step(&format!("relays killed and started again {kills} times"));
    }
    screen.step("the service has stopped; waiting for the last events");
    tokio::select! {
        () = all_arrived(&books) => {}
        ended = relays.ended() => return Err(failure(relays, ended?)),
    }
    let complaints = relays.stop().await;
    consumer.finish().await?;
    let verdict = books.verdict();
    for complaint in &complaints {
        screen.step(complaint);
    }
    if !verdict.kept() || !complaints.is_empty() {
        screen.line(&relays.log_tail());
    }
    summary(screen, &verdict);
    Ok(verdict)
}

/// Starts everything, the writers last.
async fn prepare(
    options: &Options,
    screen: Screen,
    stage: &mut Stage,
) -> Result<(Service, Consumer, Arc<Books>), Error> {
    screen.line(&screen.style(Style::Bold, "outbox-relay demo"));
    let postgres = match given(options.database_url.as_deref()) {
        Some(url) => Postgres::at(url)?,
        None => Postgres::start(screen).await?,
    };
    let postgres = stage.postgres.insert(postgres);
    if let Err(refused) = postgres.create_database().await {
        // Nothing is there to take down, and trying would only bury the reason.
        stage.postgres = None;
        return Err(refused.into());
    }
    screen.step(&format!("PostgreSQL: {}", postgres.place()));

    let kafka = match given(options.brokers.as_deref()) {
        Some(brokers) => Kafka::at(brokers),
        None => Kafka::mock().await?,
    };
    let kafka = stage.kafka.insert(kafka);
    if let Err(refused) = kafka.create_topic().await {
        stage.kafka = None;
        return Err(refused.into());
    }
    announce(screen, kafka, given(options.brokers.as_deref()).is_none());

    let database = postgres.options()?;
    let pool = service::create_tables(&database).await?;
    let relays = stage
        .relays
        .insert(Relays::new(&postgres.url, &kafka.brokers)?);
    relays.start()?;
    tokio::select! {
        ready = migrated(&pool) => ready?,
        ended = relays.ended() => return Err(failure(relays, ended?)),
    }
    pool.close().await;
    if options.chaos {
        relays.start()?;
        screen.step("relays: two, killed (SIGKILL) at moments they do not choose");
    } else {
        screen.step("relay: `outbox-relay run --table public.outbox --migrate`");
    }

    let books = Arc::new(Books::new());
    let print_every = options.rate.div_ceil(LINES_PER_SECOND).max(1);
    let consumer = Consumer::start(kafka, &books, screen, print_every.into())?;
    screen.step(&format!(
        "service: {} events/s for {:?}, one transaction in ten rolled back",
        options.rate, options.for_
    ));
    if print_every > 1 {
        screen.step(&format!("printing one event in {print_every}"));
    }
    screen.event(|| {
        let head =
            "\ntime (UTC)    topic/partition   order     event          lag, commit to consumer";
        screen.style(Style::Dim, head)
    });
    let service = Service::start(&database, &books, &kafka.aggregate_type, options.rate).await?;
    Ok((service, consumer, books))
}

/// Chaos among the relays, or a watch over them, until the writing is over.
async fn work(
    relays: &mut Relays,
    options: &Options,
    books: &Books,
    screen: Screen,
    over: &CancellationToken,
) -> Result<u32, Error> {
    if options.chaos {
        let kills = relays.chaos(books, screen, over).await;
        return kills.map_err(|error| failure(relays, error.to_string()));
    }
    match over.run_until_cancelled(relays.ended()).await {
        Some(ended) => Err(failure(relays, ended?)),
        None => Ok(0),
    }
}

fn failure(relays: &Relays, what: String) -> Error {
    Error::Relay {
        what,
        log: relays.log_tail(),
    }
}

/// Waits until the relay has given the table what order needs.
async fn migrated(pool: &PgPool) -> Result<(), Error> {
    let deadline = Instant::now() + MIGRATE_TIMEOUT;
    let ready = "select count(*) from pg_attribute
                 where attrelid = 'public.outbox'::regclass and attname = 'seq'";
    while sqlx::query_scalar::<_, i64>(ready).fetch_one(pool).await? == 0 {
        if Instant::now() > deadline {
            return Err(Error::Relay {
                what: format!("the relay has not migrated the table within {MIGRATE_TIMEOUT:?}"),
                log: String::new(),
            });
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Waits for the last committed event, but not for ever: then it counts as lost.
async fn all_arrived(books: &Books) {
    let deadline = Instant::now() + ARRIVAL_TIMEOUT;
    while books.missing() > 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(20)).await;
    }
}

fn given(option: Option<&str>) -> Option<&str> {
    option.filter(|value| !value.is_empty())
}

fn announce(screen: Screen, kafka: &Kafka, mock: bool) {
    let Kafka { brokers, topic, .. } = kafka;
    if mock {
        screen.step(&format!(
            "Kafka: librdkafka's mock cluster at {brokers}, a stand-in inside this process: \
             not a real broker; the tests use a real one"
        ));
    } else {
        screen.step(&format!(
            "Kafka: {brokers}, topic {topic} with {PARTITIONS} partitions, deleted at the end"
        ));
    }
    screen.step(&format!(
        "join in: kcat -C -b {brokers} -t {topic} -f '%p %k %s\\n'"
    ));
}

fn summary(screen: Screen, verdict: &Verdict) {
    let heading = if verdict.kept() {
        screen.style(
            Style::Green,
            "kept: every committed event arrived, in order; nothing rolled back did",
        )
    } else {
        screen.style(Style::Red, "BROKEN")
    };
    screen.line(&format!(
        "\n{} {heading}\n",
        screen.style(Style::Bold, "verdict")
    ));
    let rows = [
        (
            "written",
            verdict.written,
            "events of committed transactions",
        ),
        (
            "rolled back",
            verdict.rolled_back,
            "events of rolled back ones",
        ),
        (
            "delivered",
            verdict.delivered,
            "committed events that arrived",
        ),
        (
            "duplicates",
            verdict.duplicates,
            "arrived again, as a killed relay's batch may",
        ),
        (
            "order violations",
            verdict.order_violations,
            "not next in their order",
        ),
        ("lost", verdict.lost, "committed, never arrived"),
        ("phantom", verdict.phantom, "arrived, never committed"),
    ];
    for (name, count, meaning) in rows {
        let meaning = screen.style(Style::Dim, meaning);
        screen.line(&format!("  {name:16} {count:>8}   {meaning}"));
    }
    if let (Some(p50), Some(p99)) = (verdict.p50_ms, verdict.p99_ms) {
        screen.line(&format!(
            "  {:16} {p50:>8.1}   ms at p50; {p99:.1} ms at p99",
            "commit→consumer"
        ));
    }
    // Set by `cargo run`: then the program is not on the PATH yet.
    let program = if std::env::var_os("CARGO").is_some() {
        "cargo run --release --"
    } else {
        "outbox-relay"
    };
    screen.event(|| {
        format!(
            "\n{}\n  {program} demo --chaos                kill relays while they work\n  \
             {program} demo --rate 1000 --for 30s  more of it\n  \
             {program} config init                 a configuration to start from\n  \
             {program} migrate --print             the SQL for your own table\n  \
             {program} run --help                  beside your own service",
            screen.style(Style::Bold, "next")
        )
    });
}

impl Stage {
    /// Takes down what was set up, in the order in which one uses the other.
    async fn clear(self, screen: Screen) {
        if let Some(mut relays) = self.relays {
            // All have stopped, unless the demo was cut short.
            relays.kill().await;
        }
        if let Some(kafka) = self.kafka
            && let Err(error) = kafka.stop().await
        {
            screen.step(&format!("Kafka: the topic could not be deleted: {error}"));
        }
        if let Some(postgres) = self.postgres
            && let Err(error) = postgres.stop().await
        {
            screen.step(&format!("PostgreSQL: cleaning up failed: {error}"));
        }
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
