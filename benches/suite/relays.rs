//! Builds of the relay, and relays that run.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::stand::{Place, Stand};
use crate::support::janitor;
use crate::support::servers::{Kind, forget, free_port, given};

/// A program to measure.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) version: String,
}

impl Build {
    /// Those of `OUTBOX_BENCH_RELAY`, as `path` or `name=path,name=path`; else the release build.
    pub(crate) fn given() -> Result<Vec<Self>, String> {
        let Some(given) = given("OUTBOX_BENCH_RELAY") else {
            return Ok(vec![Self::new("relay", released()?)?]);
        };
        given
            .split(',')
            .map(|build| match build.split_once('=') {
                Some((name, path)) => Self::new(name, PathBuf::from(path)),
                None => Self::new("relay", PathBuf::from(build)),
            })
            .collect()
    }

    fn new(name: &str, program: PathBuf) -> Result<Self, String> {
        let told = Command::new(&program).arg("--version").output();
        let told = told.map_err(|error| format!("{}: {error}", program.display()))?;
        let version = String::from_utf8_lossy(&told.stdout).trim().to_owned();
        Ok(Self {
            name: name.to_owned(),
            program,
            version,
        })
    }
}

/// What `cargo build --release` has made. Cargo keeps it beside what it makes for this program.
fn released() -> Result<PathBuf, String> {
    let beside = PathBuf::from(env!("CARGO_BIN_EXE_outbox-relay"));
    let target = beside.parent().and_then(|profile| profile.parent());
    let program = target.map(|target| target.join("release/outbox-relay"));
    program
        .filter(|program| program.exists() && *program != beside)
        .ok_or_else(|| "no release build: cargo build --release, or OUTBOX_BENCH_RELAY".to_owned())
}

/// How a relay is to work.
#[derive(Clone, Copy)]
pub(crate) struct Told<'a> {
    pub(crate) place: &'a Place,
    pub(crate) mode: &'a str,
}

/// A relay's process; killed when it is dropped.
pub(crate) struct Relay {
    child: Child,
    port: u16,
    log: PathBuf,
}

/// What a relay has done so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Done {
    pub(crate) published: u64,
    pub(crate) parked: u64,
}

/// A place with the classic table, `payload` being of type `column`, as a relay that finishes rows by `mode`
/// wants it. `link` is what lies beyond a proxy.
pub(crate) async fn migrated(
    stand: &mut Stand,
    link: Option<Kind>,
    column: &str,
    mode: &str,
    build: &Build,
) -> Result<Place, String> {
    let mut place = stand.place(link).await?;
    place.create(column).await?;
    let told = Told {
        place: &place,
        mode,
    };
    told.migrate(build)?;
    Ok(place)
}

impl Told<'_> {
    /// The default settings, but for where everything is.
    fn command(
        &self,
        build: &Build,
        arguments: &[&str],
        port: u16,
    ) -> Result<(Command, PathBuf), String> {
        let Self { place, mode } = self;
        let text = format!(
            "[database]\nurl = \"{}\"\n[kafka]\nbrokers = \"{}\"\n[http]\nlisten = \"127.0.0.1:{port}\"\n\
             [[outbox]]\ntable = \"public.outbox\"\non_published = \"{mode}\"\n",
            place.url, place.brokers
        );
        let file = janitor::directory().join(format!("relay-{port}.toml"));
        std::fs::write(&file, text).map_err(|error| error.to_string())?;
        let mut command = Command::new(&build.program);
        // OUTBOX_RELAY__… stays: whoever sets it wants to know what it does
        let ours = ["DATABASE_URL", "KAFKA_BROKERS", "PG", "RUST_LOG"];
        forget(&mut command, &ours);
        let log = file.with_extension("log");
        let written = File::create(&log).map_err(|error| error.to_string())?;
        command
            .env(
                janitor::RUN,
                format!("{}{}", janitor::PREFIX, *janitor::RUN_ID),
            )
            .args(arguments)
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(written.try_clone().map_err(|error| error.to_string())?)
            .stderr(written);
        Ok((command, log))
    }

    /// Runs `migrate` to its end.
    fn migrate(&self, build: &Build) -> Result<(), String> {
        let (mut command, log) = self.command(build, &["migrate", "--yes"], free_port())?;
        let status = command.status();
        let status = status.map_err(|error| error.to_string())?;
        let printed = std::fs::read_to_string(log).unwrap_or_default();
        match status.success() {
            true => Ok(()),
            false => Err(format!("migrate: {status}\n{printed}")),
        }
    }

    /// Starts a relay.
    pub(crate) fn start(&self, build: &Build) -> Result<Relay, String> {
        let port = free_port();
        let (mut command, log) = self.command(build, &["run"], port)?;
        let child = command.spawn();
        Ok(Relay {
            child: child.map_err(|error| error.to_string())?,
            port,
            log,
        })
    }
}

impl Relay {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it says at `/metrics`; nothing while it starts.
    pub(crate) async fn done(&self) -> Done {
        let page = page(self.port).await.unwrap_or_default();
        let sum = |name: &str| -> u64 {
            let of = |line: &str| -> Option<f64> {
                let rest = line.strip_prefix(name)?;
                let labelled = rest.starts_with('{') || rest.starts_with(' ');
                labelled.then(|| rest.rsplit_once(' ')?.1.parse().ok())?
            };
            page.lines().filter_map(of).sum::<f64>() as u64
        };
        Done {
            published: sum("outbox_relay_events_published_total"),
            parked: sum("outbox_relay_rows_parked_total") + sum("outbox_relay_rows_behind_total"),
        }
    }

    /// An error if it has ended by itself.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("the relay ended: {status}\n{}", self.log())),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(crate) fn log(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(12).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Stops it as an operator would.
    pub(crate) async fn stop(mut self) -> Result<(), String> {
        janitor::signal(self.child.id(), Signal::TERM);
        let began = Instant::now();
        loop {
            match self.child.try_wait().map_err(|error| error.to_string())? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("after SIGTERM: {status}\n{}", self.log())),
                None if began.elapsed() > Duration::from_secs(60) => {
                    return Err("a relay does not stop".to_owned());
                }
                None => sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What all of them have done so far.
pub(crate) async fn done(relays: &mut [Relay]) -> Result<Done, String> {
    let mut sum = Done::default();
    for relay in relays {
        relay.check()?;
        let done = relay.done().await;
        sum.published += done.published;
        sum.parked += done.parked;
    }
    Ok(sum)
}

async fn page(port: u16) -> Result<String, std::io::Error> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")
        .await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}
