//! What the tests stand on: real servers, relays as processes of their own, writers that keep a
//! ledger, and a checker that holds what arrived against it.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use sqlx::postgres::{PgPoolOptions, Postgres};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Pool};
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep, timeout};

pub(crate) mod certificates;
pub(crate) mod checker;
pub(crate) mod cluster;
pub(crate) mod debian;
mod docker;
pub(crate) mod guarded;
pub(crate) mod janitor;
pub(crate) mod kafka;
pub(crate) mod local;
pub(crate) mod outbox;
pub(crate) mod pgbouncer;
pub(crate) mod proxy;
pub(crate) mod relay;
pub(crate) mod secured;
pub(crate) mod servers;

pub(crate) mod writers;

use checker::Report;
use debian::Stage;
use janitor::{PREFIX, RUN_ID};
use kafka::Kafka;
use outbox::Outbox;
use relay::{Log, Setup};
use servers::{Kind, Server, given, say};
use writers::Ledger;

/// One runtime for all tests: the shared servers' handles live on it for the whole run.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime can be made")
});

/// Which servers a test must have for itself, because it stops, kills or pauses them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Own {
    pub(crate) postgres: bool,
    pub(crate) kafka: bool,
}

impl Own {
    pub(crate) const POSTGRES: Self = Self {
        postgres: true,
        kafka: false,
    };
    pub(crate) const KAFKA: Self = Self {
        postgres: false,
        kafka: true,
    };
}

/// What one test has for itself: a database, a name space for topics, a directory.
pub(crate) struct World {
    /// What the names of this test's topics begin with.
    prefix: String,
    database: String,
    pub(crate) database_url: String,
    pub(crate) pool: Pool<Postgres>,
    pub(crate) kafka: Kafka,
    pub(crate) directory: PathBuf,
    admin_url: String,
    /// Unless its server goes anyway.
    drops_database: bool,
    own_postgres: Option<Server>,
    own_kafka: Option<Server>,
    logs: Mutex<Vec<Arc<Log>>>,
    expected_errors: Mutex<Vec<String>>,
    granting: tokio::sync::Mutex<()>,
}

/// Runs a test against the servers that all tests share.
pub(crate) fn run(test: impl AsyncFnOnce(&World)) {
    run_with(Own::default(), test);
}

/// Runs a test, some of its servers its own. Without servers it is skipped, loudly, and fails
/// under `OUTBOX_TEST_REQUIRE=1`. What it made is removed, also when it fails.
pub(crate) fn run_with(own: Own, test: impl AsyncFnOnce(&World)) {
    match RUNTIME.block_on(Box::pin(World::new(own))) {
        Ok(world) => play(world, test),
        Err(why) => skip(&why),
    }
}

/// As [`run_with`], on database servers that the test sets up by itself.
pub(crate) fn run_on(
    stage: impl Future<Output = Result<Stage, String>>,
    test: impl AsyncFnOnce(&World, &Stage),
) {
    let stage = match RUNTIME.block_on(stage) {
        Ok(stage) => stage,
        Err(why) => return skip(&why),
    };
    let played = catch_unwind(AssertUnwindSafe(|| {
        let world = RUNTIME.block_on(Box::pin(World::on(&stage.url())));
        match world {
            Ok(world) => play(world, async |world| test(world, &stage).await),
            Err(why) => skip(&why),
        }
    }));
    RUNTIME.block_on(stage.remove());
    played.unwrap_or_else(|panic| resume_unwind(panic));
}

/// Says that a test has no servers; where there must be some, that fails it.
pub(crate) fn skip(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(
        given("OUTBOX_TEST_REQUIRE").is_none_or(|it| it == "0"),
        "{why}"
    );
    say(&format!("SKIPPED: {name}: {why}"));
}

fn play(world: World, test: impl AsyncFnOnce(&World)) {
    // A container that is dropped wants a runtime, in a panic above all.
    let _runtime = RUNTIME.enter();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        in_time("a test", test(&world));
        world.assert_no_unexpected_error();
    }));
    if outcome.is_err() {
        world.print_logs();
    }
    let removed = catch_unwind(AssertUnwindSafe(|| {
        in_time("the removal of what it made", world.remove());
    }));
    for result in [outcome, removed] {
        result.unwrap_or_else(|panic| resume_unwind(panic));
    }
}

impl World {
    async fn new(own: Own) -> Result<Self, String> {
        let own_postgres = match own.postgres {
            true => Some(servers::own(Kind::Postgres).await?),
            false => None,
        };
        let own_kafka = match own.kafka {
            true => Some(servers::own(Kind::Kafka).await?),
            false => None,
        };
        let admin_url = match &own_postgres {
            Some(server) => server.address(),
            None => servers::shared().await?.database_url.clone(),
        };
        Self::made(admin_url, own_postgres, own_kafka).await
    }

    /// In the database server at `url`, which somebody else removes.
    async fn on(url: &str) -> Result<Self, String> {
        let mut world = Self::made(url.to_owned(), None, None).await?;
        world.drops_database = false;
        Ok(world)
    }

    async fn made(
        admin_url: String,
        own_postgres: Option<Server>,
        own_kafka: Option<Server>,
    ) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let prefix = format!(
            "{PREFIX}{}-{}",
            *RUN_ID,
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let brokers = match &own_kafka {
            Some(server) => server.address(),
            None => servers::shared().await?.brokers.clone(),
        };
        let database = prefix.clone();
        let runner = runner(&database);
        admin(
            &admin_url,
            &format!("create role \"{runner}\" login password '{RUNNER_PASSWORD}'"),
        )
        .await;
        admin(&admin_url, &format!("create database \"{database}\"")).await;
        let database_url = with_database(&admin_url, &database);
        let pool = PgPoolOptions::new()
            .max_connections(24)
            .acquire_timeout(Duration::from_secs(60))
            .connect_lazy(&database_url)
            .map_err(|error| error.to_string())?;
        let directory = janitor::directory().join(&prefix);
        std::fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
        Ok(Self {
            prefix,
            database,
            database_url,
            pool,
            kafka: Kafka { brokers },
            directory,
            admin_url,
            drops_database: true,
            own_postgres,
            own_kafka,
            logs: Mutex::default(),
            expected_errors: Mutex::default(),
            granting: tokio::sync::Mutex::default(),
        })
    }

    /// The role that relays run as, once it was given what `migrate --print --grants` prints.
    pub(crate) fn runner(&self) -> String {
        runner(&self.database)
    }

    /// The database's URL, for the role that relays run as.
    pub(crate) fn runner_url(&self) -> String {
        self.url_as(&self.runner(), RUNNER_PASSWORD)
    }

    /// The database's URL, for another user; both as a URL has them.
    pub(crate) fn url_as(&self, user: &str, password: &str) -> String {
        let (_, rest) = self.database_url.split_once('@').expect("a user");
        format!("postgres://{user}:{password}@{rest}")
    }

    /// `url`, which leads to one of this test's databases, for the role that relays run as. A test that names
    /// another user than the tests' own means it.
    fn as_runner(&self, url: &str) -> String {
        let user = |url: &str| Some(url.split_once("://")?.1.split_once('@')?.0.to_owned());
        match (user(url), user(&self.database_url)) {
            (Some(theirs), Some(ours)) if theirs == ours => {
                let (ours, runner) = (format!("{ours}@"), self.runner());
                url.replacen(&ours, &format!("{runner}:{RUNNER_PASSWORD}@"), 1)
            }
            _ => url.to_owned(),
        }
    }

    /// Gives the relays' role its rights, by the statements that the product prints.
    async fn grant(&self, script: &str) {
        // two at once would change one row of the catalogue
        let _one = self.granting.lock().await;
        for attempt in 0.. {
            let granted = sqlx::raw_sql(AssertSqlSafe(script.to_owned()));
            match granted.execute(&self.pool).await {
                Ok(_) => return,
                // an index that is being built changes the same row
                Err(error) if attempt < 20 && error.to_string().contains("tuple concurrently") => {
                    sleep(Duration::from_millis(100)).await;
                }
                Err(error) => panic!("{error} in {script}"),
            }
        }
    }

    /// An aggregate type that no other test has. Its default topic is [`World::topic_of`] it.
    pub(crate) fn aggregate_type(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// The same, and its topic with so many partitions.
    pub(crate) async fn aggregate_with_topic(&self, name: &str, partitions: i32) -> String {
        let aggregate_type = self.aggregate_type(name);
        let topic = topic_of(&aggregate_type);
        self.kafka.create_topic(&topic, partitions, &[]).await;
        aggregate_type
    }

    /// A topic name that no other test has.
    pub(crate) fn topic(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// The Postgres server of this test alone.
    pub(crate) fn own_postgres(&self) -> &Server {
        self.own_postgres
            .as_ref()
            .expect("the test asked for a Postgres of its own")
    }

    /// The Kafka broker of this test alone.
    pub(crate) fn own_kafka(&self) -> &Server {
        self.own_kafka
            .as_ref()
            .expect("the test asked for a Kafka of its own")
    }

    /// A file of this test's own.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The name of this test's database.
    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    /// A relay for `outboxes`, not yet started.
    pub(crate) fn relay(&self, outboxes: &[&Outbox]) -> Setup<'_> {
        Setup::new(self, outboxes)
    }

    /// Runs statements in the test's database.
    pub(crate) async fn execute(&self, sql: &str) {
        let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&self.pool)
            .await;
        done.unwrap_or_else(|error| panic!("{error} in {sql}"));
    }

    /// The one number that a query returns.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        let one = query.fetch_one(&self.pool).await;
        one.unwrap_or_else(|error| panic!("{error} in {sql}"))
    }

    /// Holds the topics of a ledger against it.
    pub(crate) async fn check(&self, ledger: &Ledger) -> Report {
        self.check_in(&self.kafka, ledger).await
    }

    /// Holds what the relays have settled so far against Kafka: each event that was committed and is
    /// neither pending nor parked must be readable there, at any moment.
    pub(crate) async fn assert_settled_is_readable(&self, outbox: &Outbox, topic: &str) {
        let table = &outbox.table;
        let settled = format!(
            "select id from {table}_journal j
              where not exists (select from {table} o where o.id = j.id and o.published_at is null)
                and not exists (select from outbox_relay.parked p where p.event_id = j.id)"
        );
        // first what is settled, then what is there: the other way round proves nothing
        let settled = sqlx::query_scalar::<_, uuid::Uuid>(AssertSqlSafe(settled))
            .fetch_all(&self.pool)
            .await;
        let settled = settled.expect("the journal can be read");
        let there = checker::ids(&self.kafka.read_all(topic).await);
        let missing: Vec<_> = settled.iter().filter(|id| !there.contains(id)).collect();
        assert!(
            missing.is_empty(),
            "{} of {} settled events are not in Kafka: {missing:?}",
            missing.len(),
            settled.len()
        );
    }

    /// As [`World::check`], in other brokers than the test's.
    pub(crate) async fn check_in(&self, kafka: &Kafka, ledger: &Ledger) -> Report {
        let events = ledger.resolved(&self.pool).await;
        let mut topics: Vec<_> = events.iter().map(|event| &event.topic).collect();
        topics.sort();
        topics.dedup();
        let (mut records, mut partitions) = (Vec::new(), std::collections::HashMap::new());
        for topic in topics {
            records.extend(kafka.read_all(topic).await);
            partitions.insert(topic.clone(), kafka.partitions(topic).await);
        }
        checker::verify(&events, &records, &partitions)
    }

    /// Lets relays log errors that contain `part`: any other fails the test.
    pub(crate) fn expect_errors(&self, part: &str) {
        self.expected_errors.lock().unwrap().push(part.to_owned());
    }

    fn keep_log(&self, log: Arc<Log>) {
        self.logs.lock().unwrap().push(log);
    }

    fn logs(&self) -> Vec<Arc<Log>> {
        self.logs.lock().unwrap().clone()
    }

    /// Every line that a relay of this test has logged.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        self.logs().iter().flat_map(|log| log.lines()).collect()
    }

    fn assert_no_unexpected_error(&self) {
        // Copies: a lock that is held while an assertion fails is of no more use.
        let expected = self.expected_errors.lock().unwrap().clone();
        for log in self.logs() {
            for line in log.lines() {
                let error = line.contains("\"level\":\"ERROR\"") || line.contains("panicked at");
                let known = expected.iter().any(|part| line.contains(part.as_str()));
                assert!(!error || known, "a relay logged an error: {line}");
            }
        }
    }

    /// The end of each relay's log, for whoever looks into a failure.
    #[allow(clippy::print_stderr, reason = "libtest shows it with the failed test")]
    fn print_logs(&self) {
        for log in self.logs() {
            eprintln!("--- {}", log.name());
            let lines = log.lines();
            for line in lines
                .get(lines.len().saturating_sub(30)..)
                .unwrap_or_default()
            {
                eprintln!("{line}");
            }
        }
    }

    async fn remove(self) {
        std::fs::remove_dir_all(&self.directory).ok();
        self.pool.close().await;
        match self.own_postgres {
            Some(server) => server.remove().await,
            None if !self.drops_database => {}
            None => {
                let drop = format!("drop database if exists \"{}\" with (force)", self.database);
                admin(&self.admin_url, &drop).await;
                let drop = format!("drop role if exists \"{}\"", runner(&self.database));
                admin(&self.admin_url, &drop).await;
            }
        }
        match self.own_kafka {
            Some(server) => server.remove().await,
            None => {
                let own = format!("{}-", self.prefix);
                let topics = self
                    .kafka
                    .topics(move |topic| topic.starts_with(&own))
                    .await;
                let topics: Vec<_> = topics.iter().map(String::as_str).collect();
                self.kafka.delete_topics(&topics).await;
            }
        }
    }
}

/// The topic that the relay's default template gives an aggregate type.
pub(crate) fn topic_of(aggregate_type: &str) -> String {
    format!("{}-events", aggregate_type.to_lowercase())
}

const RUNNER_PASSWORD: &str = "relays-own";

/// Roles belong to the whole server: the name is one test's own.
fn runner(database: &str) -> String {
    format!("{database}-runner")
}

/// Runs one statement outside of the tests' databases.
async fn admin(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.expect("Postgres answers");
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&mut connection)
        .await;
    done.unwrap_or_else(|error| panic!("{error} in {sql}"));
    connection
        .close()
        .await
        .expect("a connection can be closed");
}

/// `url` with another database at its end.
fn with_database(url: &str, database: &str) -> String {
    let (address, options) = url
        .split_once('?')
        .map_or((url, None), |(a, o)| (a, Some(o)));
    let server = match address.match_indices('/').nth(2) {
        Some((at, _)) => address.split_at(at).0,
        None => address,
    };
    let options = options
        .map(|options| format!("?{options}"))
        .unwrap_or_default();
    format!("{server}/{database}{options}")
}

#[test]
fn a_database_replaces_the_one_in_a_url() {
    let with = |url| with_database(url, "x");
    assert_eq!(with("postgres://u:p@h:1/d"), "postgres://u:p@h:1/x");
    assert_eq!(with("postgres://h"), "postgres://h/x");
    assert_eq!(
        with("postgres://h/d?sslmode=disable"),
        "postgres://h/x?sslmode=disable"
    );
}

/// Runs what needs no servers.
pub(crate) fn block_on(test: impl Future<Output = ()>) {
    RUNTIME.block_on(test);
}

/// Runs `what` to its end, which comes in time or not at all.
fn in_time<T>(what: &str, running: impl Future<Output = T>) -> T {
    let running = Box::pin(running);
    RUNTIME
        .block_on(async { timeout(longest(), running).await })
        .unwrap_or_else(|_| panic!("{what} does not end"))
}

/// After which a test hangs, rather than being slow: it fails and says what it waited in.
fn longest() -> Duration {
    Duration::from_secs(short_or_long(600, 6 * 3600))
}

/// Whether the long form of a test is wanted (`just soak`): the short one runs with all others.
pub(crate) fn soak() -> bool {
    given("OUTBOX_TEST_SOAK").is_some_and(|it| it != "0")
}

/// `short`, or `long` in the long form of a test.
pub(crate) fn short_or_long<T>(short: T, long: T) -> T {
    if soak() { long } else { short }
}

/// What this run's schedules of faults are made from: `OUTBOX_TEST_SEED`, to replay one, or a number
/// that no other run has. Every run prints it.
pub(crate) fn seed() -> u64 {
    static SEED: LazyLock<u64> = LazyLock::new(|| {
        let seed = match given("OUTBOX_TEST_SEED") {
            Some(seed) => seed.parse().expect("OUTBOX_TEST_SEED is a number"),
            None => {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                let nanoseconds = now.map_or(0, |now| u64::from(now.subsec_nanos()));
                Rng::new(nanoseconds ^ u64::from(std::process::id()) << 32).next() >> 32
            }
        };
        say(&format!(
            "OUTBOX_TEST_SEED={seed} makes these schedules again"
        ));
        seed
    });
    *SEED
}

/// Waits until `condition` holds, looking often. `what` says what never came.
pub(crate) async fn eventually<F>(limit: Duration, what: &str, mut condition: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Numbers that look random and are the same in every run (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The numbers of this run for the test called `name`: other tests have others, whatever runs
    /// beside them or before.
    pub(crate) fn of_run(name: &str) -> Self {
        let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self(name.bytes().fold(seed(), fold))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True in `percent` of a hundred.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A time between two others, to the millisecond.
    pub(crate) fn between(&mut self, least_ms: u64, most_ms: u64) -> Duration {
        Duration::from_millis(least_ms + self.below(most_ms - least_ms + 1))
    }
}
