//! The relays: this same program as processes of their own, as an operator would run them.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::books::Books;
use super::dice::Dice;
use super::screen::{Screen, Style};

/// How long a relay may take to finish what it has in flight.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// How often to look whether a relay has ended by itself.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// The lines of a log worth showing.
const LOG_LINES_MAX: usize = 20;

/// The relays of one outbox, and the directory with their logs.
pub(super) struct Relays {
    program: PathBuf,
    database_url: String,
    brokers: String,
    logs: TempDir,
    running: Vec<Relay>,
}

struct Relay {
    name: String,
    process: Child,
}

impl Relays {
    /// Knows how to start relays; starts none yet.
    pub(super) fn new(database_url: &str, brokers: &str) -> io::Result<Self> {
        Ok(Self {
            program: std::env::current_exe()?,
            database_url: database_url.to_owned(),
            brokers: brokers.to_owned(),
            logs: tempfile::Builder::new()
                .prefix("outbox-relay-demo-")
                .tempdir()?,
            running: Vec::new(),
        })
    }

    /// Starts one more relay.
    pub(super) fn start(&mut self) -> io::Result<()> {
        let name = format!("relay {}", self.running.len() + 1);
        let process = self.spawn(&name)?;
        self.running.push(Relay { name, process });
        Ok(())
    }

    fn spawn(&self, name: &str) -> io::Result<Child> {
        let log = self.log(name)?;
        let mut command = Command::new(&self.program);
        command
            .args(["run", "--table", "public.outbox", "--migrate"])
            // Settings the user has for a relay of their own are not for these.
            .current_dir(self.logs.path());
        for (name, _value) in std::env::vars_os().filter(|(name, _)| is_relay_setting(name)) {
            command.env_remove(name);
        }
        command
            .env("DATABASE_URL", &self.database_url)
            .env("KAFKA_BROKERS", &self.brokers)
            .env("RUST_LOG", "warn")
            // they all run on one machine
            .env("OUTBOX_RELAY__HTTP__LISTEN", "off")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C on the terminal is for the demo alone; it stops the relays when it is time.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    fn log(&self, name: &str) -> io::Result<File> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path(name))
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.logs.path().join(name.replace(' ', "-") + ".log")
    }

    /// Waits until a relay ends by itself, which none should. Returns its name and how it ended.
    pub(super) async fn ended(&mut self) -> io::Result<String> {
        loop {
            for relay in &mut self.running {
                if let Some(status) = relay.process.try_wait()? {
                    return Ok(format!("{} ended: {status}", relay.name));
                }
            }
            sleep(WATCH_INTERVAL).await;
        }
    }

    /// Kills relays with SIGKILL just after commits, when they are likely to have a batch in
    /// hand, and starts them again, until told to stop. Returns how many times. All run
    /// afterwards.
    pub(super) async fn chaos(
        &mut self,
        books: &Books,
        screen: Screen,
        stop: &CancellationToken,
    ) -> io::Result<u32> {
        let mut dice = Dice::new();
        let mut kills = 0;
        loop {
            let moment = async {
                sleep(dice.between_ms(300, 1200)).await;
                books.committed.notified().await;
                sleep(dice.between_ms(0, 4)).await;
            };
            if stop.run_until_cancelled(moment).await.is_none() {
                return Ok(kills);
            }
            let victim = dice.below(self.running.len());
            let Some(relay) = self.running.get_mut(victim) else {
                return Ok(kills);
            };
            if let Some(status) = relay.process.try_wait()? {
                return Err(io::Error::other(format!("{} ended: {status}", relay.name)));
            }
            relay.process.kill().await?;
            kills += 1;
            let name = relay.name.clone();
            let killed = screen.style(Style::Red, &format!("✗ {name} killed (SIGKILL)"));
            screen.event(|| killed);
            sleep(dice.between_ms(50, 400)).await;
            let process = self.spawn(&name)?;
            if let Some(relay) = self.running.get_mut(victim) {
                relay.process = process;
            }
            screen.event(|| screen.style(Style::Green, &format!("✓ {name} started again")));
        }
    }

    /// Asks all relays to stop (SIGTERM) and waits for them. Returns what went wrong with it.
    pub(super) async fn stop(&mut self) -> Vec<String> {
        for relay in &self.running {
            if let Some(pid) = relay.process.id().and_then(pid_of) {
                // One that is gone already shows in its status below.
                kill_process(pid, Signal::TERM).ok();
            }
        }
        let mut complaints = Vec::new();
        for mut relay in self.running.drain(..) {
            match timeout(STOP_TIMEOUT, relay.process.wait()).await {
                Ok(Ok(status)) if status.success() => {}
                Ok(Ok(status)) => complaints.push(format!("{} ended: {status}", relay.name)),
                Ok(Err(error)) => complaints.push(format!("{}: {error}", relay.name)),
                Err(_late) => {
                    let name = &relay.name;
                    complaints.push(format!("{name} did not stop within {STOP_TIMEOUT:?}"));
                    relay.process.kill().await.ok();
                }
            }
        }
        complaints
    }

    /// Ends all relays at once.
    pub(super) async fn kill(&mut self) {
        for mut relay in self.running.drain(..) {
            // An error says that it has ended already.
            relay.process.kill().await.ok();
        }
    }

    /// The last lines of every relay's log, for when something failed.
    pub(super) fn log_tail(&self) -> String {
        let mut logs: Vec<PathBuf> = std::fs::read_dir(self.logs.path())
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        logs.sort();
        logs.iter().map(|log| tail(log)).collect()
    }
}

fn is_relay_setting(name: &OsString) -> bool {
    name.as_encoded_bytes().starts_with(b"OUTBOX_RELAY__")
}

pub(super) fn pid_of(id: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id).ok()?)
}

/// The last lines of a log under its name; empty if there are none.
pub(super) fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return String::new();
    }
    let name = log.file_name().unwrap_or_default().to_string_lossy();
    let last = &lines[lines.len().saturating_sub(LOG_LINES_MAX)..];
    format!("\n── the end of {name}\n{}", last.join("\n"))
}
