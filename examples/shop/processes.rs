//! The shop's processes: the services and their relays, each of which can be killed and started again.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::Failure;
use crate::chance::Dice;
use crate::customers::Doors;
use crate::mistakes::Mistake;
use crate::place::{Place, Relay, SERVICES};

/// How often to look whether a process has ended by itself.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// The lines of a log worth showing.
const LOG_LINES_MAX: usize = 15;

/// The processes, all of which run unless chaos has one in hand.
pub(crate) struct Processes {
    parts: Vec<Part>,
    /// Whether chaos passes the relays by: what a service does wrong shows when it is killed itself.
    services_only: bool,
    logs: PathBuf,
    /// Where the customers go.
    pub(crate) doors: Doors,
}

struct Part {
    name: String,
    is_relay: bool,
    start: Box<dyn Fn() -> Command + Send>,
    process: Child,
}

/// What the services are told beside the addresses.
pub(crate) struct Manner {
    pub(crate) fetch_wait_ms: u32,
    pub(crate) mistake: Option<Mistake>,
}

impl Processes {
    /// Starts all of them. They write their logs to `logs`.
    pub(crate) fn start(
        place: &Place,
        relay: Relay,
        manner: &Manner,
        logs: &Path,
    ) -> Result<Self, Failure> {
        let doors = Doors {
            orders: format!("127.0.0.1:{}", free_port(0)?),
            projector: format!("127.0.0.1:{}", free_port(1)?),
        };
        let mut processes = Self {
            parts: Vec::new(),
            services_only: manner.mistake.is_some(),
            logs: logs.to_owned(),
            doors,
        };
        let program = std::env::current_exe()?;
        let relay = std::sync::Arc::new(relay);
        for (service, _, writes) in SERVICES {
            let listen = match service {
                "projector" => processes.doors.projector.clone(),
                _ => processes.doors.orders.clone(),
            };
            let (program, place_of, mistake) = (program.clone(), place.clone(), manner.mistake);
            let fetch_wait_ms = manner.fetch_wait_ms.to_string();
            processes.add(service, false, move || {
                let mut command = Command::new(&program);
                command
                    .arg(service)
                    .env("DATABASE_URL", place_of.url(service))
                    .env("KAFKA_BROKERS", &place_of.brokers)
                    .env("SHOP_PREFIX", &place_of.prefix)
                    .env("SHOP_FETCH_WAIT_MS", &fetch_wait_ms)
                    .env("SHOP_LISTEN", &listen)
                    .env_remove("SHOP_MISTAKE");
                if let Some(mistake) = mistake {
                    command.env("SHOP_MISTAKE", mistake.name());
                }
                command
            })?;
            if writes {
                let (relay, place) = (std::sync::Arc::clone(&relay), place.clone());
                processes.add(&format!("{service}'s relay"), true, move || {
                    let mut command = relay.command(&["run"], &place.relay_url(service));
                    command.env("KAFKA_BROKERS", &place.brokers);
                    command
                })?;
            }
        }
        Ok(processes)
    }

    fn add(
        &mut self,
        name: &str,
        is_relay: bool,
        start: impl Fn() -> Command + Send + 'static,
    ) -> Result<(), Failure> {
        let process = spawn(start(), &log(&self.logs, name))?;
        self.parts.push(Part {
            name: name.to_owned(),
            is_relay,
            start: Box::new(start),
            process,
        });
        Ok(())
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.parts.len()
    }

    /// Waits until a process ends by itself, which none should: its name and how it ended.
    pub(crate) async fn ended(&mut self) -> Failure {
        loop {
            for part in &mut self.parts {
                match part.process.try_wait() {
                    Ok(None) => {}
                    Ok(Some(status)) => return format!("{} ended: {status}", part.name).into(),
                    Err(error) => return error.into(),
                }
            }
            sleep(WATCH_INTERVAL).await;
        }
    }

    /// Kills one process after the other with SIGKILL, at moments that nobody chooses, and starts it again a little
    /// later, until `enough`. Returns how many times. All run afterwards.
    pub(crate) async fn chaos(
        &mut self,
        enough: &CancellationToken,
        told: impl Fn(&str),
    ) -> Result<u32, Failure> {
        let mut dice = Dice::new();
        let mut kills = 0;
        loop {
            let pause = sleep(dice.between_ms(100, 500));
            if enough.run_until_cancelled(pause).await.is_none() {
                return Ok(kills);
            }
            let spared = self.services_only;
            let mut victims: Vec<&mut Part> = self.parts.iter_mut().collect();
            victims.retain(|part| !(spared && part.is_relay));
            let victim = dice.below(victims.len());
            let Some(part) = victims.into_iter().nth(victim) else {
                return Ok(kills);
            };
            if let Some(status) = part.process.try_wait()? {
                return Err(format!("{} ended: {status}", part.name).into());
            }
            part.process.kill().await?;
            kills += 1;
            let away = dice.between_ms(0, 600);
            told(&format!(
                "✗ {} killed, for {} ms",
                part.name,
                away.as_millis()
            ));
            sleep(away).await;
            part.process = spawn((part.start)(), &log(&self.logs, &part.name))?;
        }
    }

    /// Ends all of them.
    pub(crate) async fn kill(&mut self) {
        for part in &mut self.parts {
            // An error says that it has ended already.
            part.process.kill().await.ok();
        }
    }

    /// The last lines of each log, for when something failed.
    pub(crate) fn log_tail(&self) -> String {
        let mut tail = String::new();
        for part in &self.parts {
            let text = std::fs::read(log(&self.logs, &part.name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            if let Some(last) = lines.get(lines.len().saturating_sub(LOG_LINES_MAX)..)
                && !last.is_empty()
            {
                tail += &format!("\n── the end of {}'s log\n{}", part.name, last.join("\n"));
            }
        }
        tail
    }
}

/// Where a process writes its log.
fn log(logs: &Path, name: &str) -> PathBuf {
    let name = name.replace("'s ", "-");
    logs.join(format!("{name}.log"))
}

fn spawn(mut command: Command, log: &Path) -> io::Result<Child> {
    let log: File = OpenOptions::new().create(true).append(true).open(log)?;
    command
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C on the terminal is for the shop alone; it stops the others when it is time.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// A port that nobody listens on. It lies below those that systems give to outgoing connections, so that none of
/// them has it when its process comes back to it.
fn free_port(nth: u16) -> Result<u16, Failure> {
    let mut dice = Dice::new();
    for _ in 0..1000 {
        let port = 20_000 + u16::try_from(dice.below(6_000))? * 2 + nth;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err("no port is free".into())
}
