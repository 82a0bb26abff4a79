//! The relay under test: a process of its own, told by a config file, watched by its log.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::outbox::Outbox;
use super::{World, eventually, janitor};

/// A relay's config and environment. The defaults are the product's own, but for quicker retries.
pub(crate) struct Setup<'a> {
    world: &'a World,
    outboxes: Vec<Outbox>,
    /// Section → key → value as TOML.
    settings: BTreeMap<&'static str, BTreeMap<String, String>>,
    environment: Vec<(String, String)>,
    failpoints: Vec<String>,
    program: PathBuf,
}

impl<'a> Setup<'a> {
    pub(crate) fn new(world: &'a World, outboxes: &[&Outbox]) -> Self {
        let setup = Self {
            world,
            outboxes: outboxes.iter().map(|outbox| (*outbox).clone()).collect(),
            settings: BTreeMap::new(),
            environment: Vec::new(),
            failpoints: Vec::new(),
            program: PathBuf::from(env!("CARGO_BIN_EXE_outbox-relay")),
        };
        setup
            .set("database", "url", &format!("\"{}\"", world.database_url))
            .set("kafka", "brokers", &format!("\"{}\"", world.kafka.brokers))
            // many run at once on one machine
            .set("http", "listen", "\"off\"")
    }

    /// Sets a key of the config file; `value` is TOML, quotes included.
    pub(crate) fn set(mut self, section: &'static str, key: &str, value: &str) -> Self {
        let section = self.settings.entry(section).or_default();
        section.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Takes a key of the config file out again.
    pub(crate) fn without(mut self, section: &'static str, key: &str) -> Self {
        self.settings.entry(section).or_default().remove(key);
        self
    }

    /// Sets how many batches one outbox has in hand at once.
    pub(crate) fn workers(self, workers: usize) -> Self {
        self.set("relay", "workers", &workers.to_string())
    }

    /// Sets a variable of the relay's environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Arms a failpoint: `action` in the words of the crate `fail`; `return` kills the relay.
    pub(crate) fn failpoint(mut self, name: &str, action: &str) -> Self {
        self.failpoints.push(format!("{name}={action}"));
        self
    }

    /// Runs another build of the relay.
    pub(crate) fn program(mut self, program: PathBuf) -> Self {
        self.program = program;
        self
    }

    /// Prepares the tables, as an operator would before the first start.
    pub(crate) async fn migrate(&self) {
        let mut relay = self.spawn(&["migrate", "--yes"]);
        let status = relay.wait_exit(Duration::from_secs(30)).await;
        assert!(
            status.success(),
            "migrate: {status}\n{}",
            relay.log.lines().join("\n")
        );
        self.grant().await;
    }

    /// Gives the relays' role what it needs, as the product prints it.
    pub(crate) async fn grant(&self) {
        let file = self.write_config("grants", false);
        let printed = Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
            .args(["migrate", "--print", "--grants", "--runner"])
            .arg(self.world.runner())
            .arg("--config")
            .arg(&file)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .output()
            .expect("the program starts");
        let script = String::from_utf8(printed.stdout).expect("SQL is text");
        let (_, runners) = script
            .split_once("-- 2. After it.")
            .unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(&printed.stderr)));
        self.world.grant(&format!("-- {runners}")).await;
    }

    /// Starts the daemon.
    pub(crate) fn run(&self) -> Relay {
        self.spawn(&["run"])
    }

    /// Publishes what is pending and waits for the end.
    pub(crate) async fn until_empty(&self, limit: Duration) -> ExitStatus {
        let mut relay = self.spawn(&["run", "--until-empty"]);
        relay.wait_exit(limit).await
    }

    /// Starts the program with any command; the config file comes last.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Relay {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("relay-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        // The daemon has the runner's rights, and no others, as `migrate --print --grants` gives them. Whoever
        // migrates must own the tables, and an operator's commands have rights of their own.
        let runs = arguments.first() == Some(&"run") && !arguments.contains(&"--migrate");
        let file = self.write_config(&name, runs);
        let mut command = Command::new(&self.program);
        let ours = [
            "OUTBOX_RELAY",
            "DATABASE_URL",
            "KAFKA_BROKERS",
            "PG",
            "RUST_LOG",
            "NO_COLOR",
        ];
        super::servers::forget(&mut command, &ours);
        command
            .args(arguments)
            .arg("--config")
            .arg(&file)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env(
                janitor::RUN,
                format!("{}{}", janitor::PREFIX, *janitor::RUN_ID),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if !self.failpoints.is_empty() {
            command.env("FAILPOINTS", self.failpoints.join(";"));
        }
        let mut child = command.spawn().expect("the relay's program can be started");
        let name = format!("{name}: {}", arguments.join(" "));
        let log = Arc::new(Log {
            name,
            lines: Mutex::default(),
        });
        let followers = [
            follow(child.stdout.take(), Arc::clone(&log)),
            follow(child.stderr.take(), Arc::clone(&log)),
        ];
        self.world.keep_log(Arc::clone(&log));
        Relay {
            child,
            log,
            followers,
            config: file,
        }
    }

    fn write_config(&self, name: &str, as_runner: bool) -> PathBuf {
        let mut text = String::new();
        for (section, keys) in &self.settings {
            writeln!(text, "[{section}]").expect("a string can be written");
            for (key, value) in keys {
                let value = match (*section, key.as_str()) {
                    ("database", "url") if as_runner => self.world.as_runner(value),
                    _ => value.clone(),
                };
                writeln!(text, "{key} = {value}").expect("a string can be written");
            }
        }
        for outbox in &self.outboxes {
            writeln!(text, "[[outbox]]\ntable = \"public.{}\"", outbox.table)
                .expect("a string can be written");
            let (layout, mode) = (outbox.layout.name(), outbox.on_published.name());
            for (key, value) in [("layout", layout), ("on_published", mode)] {
                // its own lines may say it otherwise
                if !outbox.config.lines().any(|line| line.starts_with(key)) {
                    writeln!(text, "{key} = \"{value}\"").expect("a string can be written");
                }
            }
            writeln!(text, "{}", outbox.config).expect("a string can be written");
        }
        let file = self.world.directory.join(format!("{name}.toml"));
        std::fs::write(&file, text).expect("the config file can be written");
        file
    }
}

/// What a relay has printed so far.
pub(crate) struct Log {
    name: String,
    lines: Mutex<Vec<String>>,
}

impl Log {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

/// Copies a stream into the log until it ends.
fn follow(stream: Option<impl Read + Send + 'static>, log: Arc<Log>) -> JoinHandle<()> {
    let stream = stream.expect("the stream is piped");
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            log.lines.lock().unwrap().push(line);
        }
    })
}

/// A relay's process. It is killed when this is dropped.
pub(crate) struct Relay {
    child: Child,
    log: Arc<Log>,
    followers: [JoinHandle<()>; 2],
    config: PathBuf,
}

impl Relay {
    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop.
    pub(crate) fn sigterm(&self) {
        janitor::signal(self.child.id(), Signal::TERM);
    }

    /// Changes its config file, and asks it to read that anew.
    pub(crate) fn reload(&self, change: impl FnOnce(String) -> String) {
        let text = std::fs::read_to_string(&self.config).expect("the config file can be read");
        std::fs::write(&self.config, change(text)).expect("the config file can be written");
        janitor::signal(self.child.id(), Signal::HUP);
    }

    /// Freezes it.
    pub(crate) fn sigstop(&self) {
        janitor::signal(self.child.id(), Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn sigcont(&self) {
        janitor::signal(self.child.id(), Signal::CONT);
    }

    /// Ends it without a word.
    pub(crate) fn sigkill(mut self) {
        self.end();
    }

    /// Asks it to stop, and fails the test unless it does so properly.
    pub(crate) async fn stop(mut self) {
        self.sigterm();
        let status = self.wait_exit(Duration::from_secs(30)).await;
        assert!(status.success(), "after SIGTERM: {status}");
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub(crate) async fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                // its last words may still be in the pipe
                while self
                    .followers
                    .iter()
                    .any(|follower| !follower.is_finished())
                {
                    sleep(Duration::from_millis(5)).await;
                }
                return status;
            }
            assert!(
                began.elapsed() < limit,
                "{} still runs after {limit:?}",
                self.log.name
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for a line of its log that contains `part`.
    pub(crate) async fn wait_line(&self, part: &str, limit: Duration) -> String {
        let find = || self.lines().into_iter().find(|line| line.contains(part));
        let what = format!("{part:?} in the log of {}", self.log.name);
        eventually(limit, &what, async || find().is_some()).await;
        find().expect("lines stay")
    }

    /// What it has printed so far, on both streams.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.log.lines()
    }

    /// Processor time it has used so far, where `/proc` tells.
    pub(crate) fn processor_time(&self) -> Option<Duration> {
        const TICKS_PER_SECOND: u64 = 100;
        let field = |number| janitor::field_of_stat(self.child.id(), number);
        let ticks = field(14)? + field(15)?;
        Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
    }

    /// The most memory it has held so far, in kibibytes, where `/proc` tells.
    pub(crate) fn peak_memory_kib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// How many arenas glibc's allocator has beside the first, where `/proc` tells: each begins at a multiple of 64 MiB
    /// (`HEAP_MAX_SIZE` in its `malloc/arena.c`).
    pub(crate) fn arenas(&self) -> Option<usize> {
        const ARENA: u64 = 64 << 20;
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).ok()?;
        let is_arena = |line: &&str| {
            let mut fields = line.split_whitespace();
            let from = fields.next().and_then(|range| range.split('-').next());
            let from = from.and_then(|it| u64::from_str_radix(it, 16).ok());
            from.is_some_and(|it| it % ARENA == 0)
                && fields.next() == Some("rw-p")
                && fields.count() == 3
        };
        Some(maps.lines().filter(is_arena).count())
    }

    fn end(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end();
    }
}
