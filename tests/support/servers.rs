//! A real Postgres and a real Kafka, from wherever they can be had.
//!
//! In this order: the URLs in `OUTBOX_TEST_DATABASE_URL` and `OUTBOX_TEST_KAFKA_BROKERS`;
//! containers, when a Docker daemon answers; else, or when an image cannot be had, servers of our
//! own without Docker. `OUTBOX_TEST_BACKEND=docker|local` leaves only that way.
//!
//! One of each serves a whole run. A test that stops, kills or pauses a server starts its own.

use std::env;
use std::io::Write;
use std::net::TcpListener;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};

use super::janitor::PREFIX;
use super::kafka::Kafka;
use super::{docker, janitor, local};

/// What the tests run against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    Kafka,
}

/// Where a server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Docker,
    Local,
}

/// A server that a test may stop, kill and pause. Its port outlives all of that.
pub(crate) struct Server {
    kind: Kind,
    port: u16,
    host: Host,
}

enum Host {
    Container(Box<docker::Container>),
    Process(Box<local::Process>),
}

/// The servers that all tests of a run share.
pub(crate) struct Shared {
    /// Of a database that exists; tests make their own beside it.
    pub(crate) database_url: String,
    pub(crate) brokers: String,
    /// Not ours to stop; kept because a container is removed when it is dropped.
    _servers: Vec<Server>,
}

/// The servers of this run, started by whoever asks first, or why there are none.
pub(crate) async fn shared() -> Result<&'static Shared, &'static str> {
    static SHARED: OnceCell<Result<Shared, String>> = OnceCell::const_new();
    let shared = SHARED.get_or_init(async || {
        janitor().await;
        let (postgres, kafka) = tokio::join!(
            find(Kind::Postgres, "OUTBOX_TEST_DATABASE_URL"),
            find(Kind::Kafka, "OUTBOX_TEST_KAFKA_BROKERS"),
        );
        let ((database_url, postgres), (brokers, kafka)) = (postgres?, kafka?);
        Ok(Shared {
            database_url,
            brokers,
            _servers: postgres.into_iter().chain(kafka).collect(),
        })
    });
    shared.await.as_ref().map_err(String::as_str)
}

/// A server for one test alone, or why it cannot be had.
pub(crate) async fn own(kind: Kind) -> Result<Server, String> {
    janitor().await;
    launch(kind).await.map(|(server, _)| server)
}

/// Sees to it that nothing of this run outlives it.
pub(crate) async fn janitor() {
    static STARTED: OnceCell<()> = OnceCell::const_new();
    STARTED.get_or_init(janitor::start).await;
}

/// Where `kind` answers: at the address that `variable` gives, or a server started for this run.
async fn find(kind: Kind, variable: &str) -> Result<(String, Option<Server>), String> {
    if let Some(address) = given(variable) {
        say(&format!("{kind:?}: {variable}"));
        sweep(kind, &address).await?;
        return Ok((address, None));
    }
    let began = Instant::now();
    let (server, what) = launch(kind).await?;
    say(&format!(
        "{kind:?}: {what}, ready after {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    Ok((server.address(), Some(server)))
}

/// Removes what killed runs have left on a server that outlives them.
async fn sweep(kind: Kind, address: &str) -> Result<(), String> {
    let left = |name: &str| name.strip_prefix(PREFIX).is_some_and(janitor::abandoned);
    match kind {
        Kind::Postgres => {
            let told = |error: sqlx::Error| format!("{kind:?}: {error}");
            let mut connection = PgConnection::connect(address).await.map_err(told)?;
            let all = sqlx::query_scalar::<_, String>("select datname from pg_database");
            let all = all.fetch_all(&mut connection).await.map_err(told)?;
            for name in all.iter().filter(|name| left(name)) {
                let drop = format!("drop database if exists \"{name}\" with (force)");
                let dropped = sqlx::raw_sql(AssertSqlSafe(drop));
                dropped.execute(&mut connection).await.map_err(told)?;
            }
            let all = sqlx::query_scalar::<_, String>("select rolname from pg_roles");
            let all = all.fetch_all(&mut connection).await.map_err(told)?;
            let of_tests = |name: &&String| name.strip_suffix("-runner").is_some_and(left);
            for name in all.iter().filter(of_tests) {
                let drop = format!("drop role if exists \"{name}\"");
                let dropped = sqlx::raw_sql(AssertSqlSafe(drop));
                dropped.execute(&mut connection).await.map_err(told)?;
            }
        }
        Kind::Kafka => {
            let brokers = address.to_owned();
            let kafka = Kafka { brokers };
            let topics = kafka.topics(left).await;
            let topics: Vec<_> = topics.iter().map(String::as_str).collect();
            kafka.delete_topics(&topics).await;
        }
    }
    Ok(())
}

/// Starts a server in the first way that works, and says which one it was.
async fn launch(kind: Kind) -> Result<(Server, String), String> {
    static IMPOSSIBLE: Mutex<Vec<(Kind, Way)>> = Mutex::new(Vec::new());
    let mut refused = Vec::new();
    for way in ways().await {
        if IMPOSSIBLE.lock().unwrap().contains(&(kind, way)) {
            refused.push(format!("{way:?}: not to be had before"));
            continue;
        }
        let launched = match way {
            Way::Docker => docker::launch(kind, free_port()).await.map(|(host, what)| {
                let port = host.port;
                (
                    Server {
                        kind,
                        port,
                        host: Host::Container(Box::new(host)),
                    },
                    what,
                )
            }),
            Way::Local => {
                local::launch(kind, [free_port(), free_port()])
                    .await
                    .map(|(host, what)| {
                        let port = host.port;
                        (
                            Server {
                                kind,
                                port,
                                host: Host::Process(Box::new(host)),
                            },
                            what,
                        )
                    })
            }
        };
        match launched {
            Ok((server, what)) => {
                server.wait_ready().await?;
                return Ok((server, what));
            }
            Err(why) => {
                say(&format!("{kind:?} not to be had ({way:?}): {why}"));
                refused.push(format!("{way:?}: {why}"));
                // An image that cannot be had now cannot be had for the next test either.
                IMPOSSIBLE.lock().unwrap().push((kind, way));
            }
        }
    }
    if refused.is_empty() {
        refused.push("no Docker daemon answers".to_owned());
    }
    Err(format!("no {kind:?}: {}", refused.join("; ")))
}

async fn ways() -> Vec<Way> {
    match given("OUTBOX_TEST_BACKEND").as_deref() {
        Some("docker") => vec![Way::Docker],
        Some("local") => vec![Way::Local],
        Some(other) => panic!("OUTBOX_TEST_BACKEND={other}: it is docker or local"),
        None if janitor::docker().await.is_some() => vec![Way::Docker, Way::Local],
        None => vec![Way::Local],
    }
}

/// A variable of the environment that is set to something.
pub(crate) fn given(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|value| !value.is_empty())
}

/// Lets `command` inherit no variable whose name begins with one of `prefixes`.
pub(crate) fn forget(command: &mut Command, prefixes: &[&str]) {
    for (variable, _) in env::vars() {
        if prefixes.iter().any(|prefix| variable.starts_with(prefix)) {
            command.env_remove(variable);
        }
    }
}

/// Tells whoever started the tests, past libtest, which hides what passing tests print.
pub(crate) fn say(line: &str) {
    writeln!(std::io::stderr(), "[servers] {line}").ok();
}

/// A port that nobody listens on. It lies below the ports that systems give to outgoing
/// connections, so that none of those has it when a server comes back to it.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 1000).unwrap_or_default() * 10;
    loop {
        let port = 20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Server {
    /// Starts a process that a test has set up by itself, and waits until it answers.
    pub(crate) async fn started(process: local::Process) -> Result<Self, String> {
        process.start();
        let server = Self {
            kind: process.kind(),
            port: process.port,
            host: Host::Process(Box::new(process)),
        };
        server.wait_ready().await?;
        Ok(server)
    }

    /// Whether its process has not ended.
    pub(crate) async fn is_running(&self) -> bool {
        match &self.host {
            Host::Container(container) => container.is_running().await,
            Host::Process(process) => process.is_running(),
        }
    }

    /// Its process, unless it runs in a container.
    #[allow(dead_code, reason = "for the benchmarks")]
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.host {
            Host::Container(_) => None,
            Host::Process(process) => process.pid(),
        }
    }

    /// Where it listens on the loopback.
    #[allow(dead_code, reason = "for the benchmarks")]
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A database URL, or a list of brokers.
    pub(crate) fn address(&self) -> String {
        match self.kind {
            Kind::Postgres => {
                format!(
                    "postgres://postgres:postgres@127.0.0.1:{}/postgres",
                    self.port
                )
            }
            Kind::Kafka => format!("127.0.0.1:{}", self.port),
        }
    }

    /// Shuts the server down as an operator would, and waits until it is gone. Postgres does not
    /// wait for its clients.
    pub(crate) async fn stop(&self) {
        match &self.host {
            Host::Container(container) => container.stop().await,
            Host::Process(process) => process.stop().await,
        }
    }

    /// Ends the server without a word, as a crash does.
    pub(crate) async fn kill(&self) {
        match &self.host {
            Host::Container(container) => container.kill().await,
            Host::Process(process) => process.kill().await,
        }
    }

    /// Starts a stopped or killed server again, and waits until it answers.
    pub(crate) async fn start(&self) {
        match &self.host {
            Host::Container(container) => container.start().await,
            Host::Process(process) => process.start(),
        }
        self.wait_ready().await.unwrap();
    }

    /// Freezes the server: its connections stay open and nothing answers.
    pub(crate) async fn pause(&self) {
        match &self.host {
            Host::Container(container) => container.pause().await,
            Host::Process(process) => process.pause(),
        }
    }

    /// Lets a paused server go on.
    pub(crate) async fn unpause(&self) {
        match &self.host {
            Host::Container(container) => container.unpause().await,
            Host::Process(process) => process.unpause(),
        }
    }

    /// Removes the server and everything it kept.
    pub(crate) async fn remove(self) {
        match self.host {
            Host::Container(container) => container.remove().await,
            Host::Process(process) => process.remove().await,
        }
    }

    /// Waits until clients are served.
    async fn wait_ready(&self) -> Result<(), String> {
        const LIMIT: Duration = Duration::from_secs(90);
        let began = Instant::now();
        loop {
            let answers = match self.kind {
                Kind::Postgres => postgres_answers(&self.address()).await,
                Kind::Kafka => kafka_answers(&self.address()).await,
            };
            let Err(why) = answers else { return Ok(()) };
            let running = self.is_running().await;
            if !running || began.elapsed() > LIMIT {
                let log = match &self.host {
                    Host::Container(container) => container.log().await,
                    Host::Process(process) => process.log(),
                };
                return Err(format!("{:?} does not answer: {why}\n{log}", self.kind));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn postgres_answers(url: &str) -> Result<(), String> {
    let connect = timeout(Duration::from_secs(3), PgConnection::connect(url)).await;
    let mut connection = connect
        .map_err(|_| "no connection within 3 s".to_owned())?
        .map_err(|error| error.to_string())?;
    connection.ping().await.map_err(|error| error.to_string())
}

/// Kafka serves when it lists a broker and every partition has a leader: a broker that is back
/// but still fenced by the controller does neither.
async fn kafka_answers(brokers: &str) -> Result<(), String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("reconnect.backoff.ms", "20")
        .set("reconnect.backoff.max.ms", "100")
        .create()
        .map_err(|error| error.to_string())?;
    let asked = tokio::task::spawn_blocking(move || {
        let all = consumer.fetch_metadata(None, Duration::from_secs(2));
        let all = all.map_err(|error| error.to_string())?;
        let mut partitions = all.topics().iter().flat_map(|topic| topic.partitions());
        if all.brokers().is_empty() {
            Err("no broker is registered".to_owned())
        } else if partitions.any(|partition| partition.leader() < 0) {
            Err("a partition has no leader".to_owned())
        } else {
            Ok(())
        }
    });
    asked.await.map_err(|error| error.to_string())?
}
