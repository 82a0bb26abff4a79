//! PostgreSQL with all its programs, as Debian packages it: for standbys, and for servers with
//! settings of their own. A test reaches it through a proxy, so that who is behind the address may
//! change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Signal, geteuid};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::sleep;

use super::eventually;
use super::janitor::{self, directory};
use super::local::{NOBODY, POSTGRES_SETTINGS, Process, initdb, run, unprivileged};
use super::proxy::Proxy;
use super::servers::{self, Kind, Server};

/// A PostgreSQL server of one test alone.
pub(crate) struct Cluster {
    pub(crate) server: Server,
    pub(crate) port: u16,
    home: PathBuf,
}

/// The servers of a test, and the address that all its clients go to.
pub(crate) struct Stage {
    pub(crate) proxy: Proxy,
    pub(crate) clusters: Vec<Cluster>,
    /// What the standby gets from the primary goes through this.
    pub(crate) replication: Option<Proxy>,
}

/// What a server has to write on.
#[derive(Debug, Clone, Copy)]
enum Disk {
    Any,
    /// Beside it, one of so many bytes.
    Small(u64),
}

impl Disk {
    /// `program`, with what it is to write on. A small disk is in memory, seen by the server alone, and
    /// goes with it: mounting wants root, and the server is somebody else then.
    fn program(self, program: PathBuf, home: &Path) -> Result<Command, String> {
        let Self::Small(bytes) = self else {
            return Ok(Command::new(program));
        };
        let disk = small_disk(home);
        fs::create_dir_all(&disk).map_err(|error| error.to_string())?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--", "sh", "-ec", ON_A_SMALL_DISK, "sh"])
            .arg(&disk)
            .args([bytes.to_string(), NOBODY.to_string()])
            .arg(program)
            .current_dir(home);
        Ok(command)
    }
}

const ON_A_SMALL_DISK: &str = "\
disk=$1 size=$2 user=$3; shift 3
mount -t tmpfs -o \"size=$size,mode=700,uid=$user,gid=$user\" tmpfs \"$disk\"
exec setpriv --reuid \"$user\" --regid \"$user\" --clear-groups -- \"$@\"";

fn small_disk(home: &Path) -> PathBuf {
    home.join("disk")
}

/// The directory with Debian's newest `postgres`, or why there is none.
pub(crate) fn programs() -> Result<PathBuf, String> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let version_of = |path: &PathBuf| -> Option<u32> { path.file_name()?.to_str()?.parse().ok() };
    versions
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("bin/postgres").exists())
        .max_by_key(version_of)
        .map(|path| path.join("bin"))
        .ok_or_else(|| {
            "no PostgreSQL in /usr/lib/postgresql: the package `postgresql` has it".to_owned()
        })
}

impl Cluster {
    /// Starts a primary with `settings` beside those of every test server.
    pub(crate) async fn primary(settings: &[&str]) -> Result<Self, String> {
        let (home, port) = Self::place()?;
        let mut init = initdb(&programs()?, &home.join("data"));
        run(unprivileged(&mut init, &home)?).await?;
        Self::serve(home, port, settings, Disk::Any).await
    }

    /// Starts a primary that has, beside its own, a disk of `bytes` to make a table space on.
    pub(crate) async fn with_small_disk(bytes: u64) -> Result<Self, String> {
        if !geteuid().is_root() {
            return Err("only root can mount a small disk for a server".to_owned());
        }
        let (home, port) = Self::place()?;
        let mut init = initdb(&programs()?, &home.join("data"));
        run(unprivileged(&mut init, &home)?).await?;
        Self::serve(home, port, &[], Disk::Small(bytes)).await
    }

    /// The directory of the small disk.
    pub(crate) fn small_disk(&self) -> PathBuf {
        small_disk(&self.home)
    }

    /// Starts a standby of the server on port `of`, known to it by `name`.
    pub(crate) async fn standby(of: u16, name: &str, settings: &[&str]) -> Result<Self, String> {
        let (home, port) = Self::place()?;
        let upstream = format!("host=127.0.0.1 port={of} user=postgres application_name={name}");
        let mut copy = Command::new(programs()?.join("pg_basebackup"));
        copy.args(["-c", "fast", "-X", "stream", "-N", "-R", "-d", &upstream])
            .arg("-D")
            .arg(home.join("data"));
        run(unprivileged(&mut copy, &home)?).await?;
        Self::serve(home, port, settings, Disk::Any).await
    }

    fn place() -> Result<(PathBuf, u16), String> {
        let port = servers::free_port();
        let home = directory().join(format!("cluster-{port}"));
        fs::create_dir_all(&home).map_err(|error| error.to_string())?;
        Ok((home, port))
    }

    async fn serve(
        home: PathBuf,
        port: u16,
        settings: &[&str],
        disk: Disk,
    ) -> Result<Self, String> {
        let mut serve = disk.program(programs()?.join("postgres"), &home)?;
        serve.arg("-D").arg(home.join("data"));
        serve.args(["-p", &port.to_string()]);
        let everywhere = ["listen_addresses=127.0.0.1", "unix_socket_directories="];
        for setting in everywhere.iter().chain(POSTGRES_SETTINGS).chain(settings) {
            serve.args(["-c", setting]);
        }
        if matches!(disk, Disk::Any) {
            unprivileged(&mut serve, &home)?;
        }
        let process = Process::new(Kind::Postgres, port, home.clone(), serve);
        let server = Server::started(process).await?;
        Ok(Self { server, port, home })
    }

    /// Where it is, without a proxy; not a test's own database.
    pub(crate) fn url(&self) -> String {
        self.server.address()
    }

    /// Runs one statement on the server itself; the first column of its first row as text.
    pub(crate) async fn ask(&self, sql: &str) -> Option<String> {
        let mut connection = PgConnection::connect(&self.url()).await.ok()?;
        let asked = sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(sql.to_owned()))
            .persistent(false)
            .fetch_optional(&mut connection)
            .await;
        asked.ok()??
    }

    /// Ends the server as `pg_ctl stop -m immediate` does.
    pub(crate) async fn stop_at_once(&self) {
        let pid = fs::read_to_string(self.home.join("data/postmaster.pid")).unwrap_or_default();
        let pid = pid.lines().next().and_then(|pid| pid.parse().ok());
        janitor::signal(pid.expect("a server that runs"), Signal::QUIT);
        while self.server.is_running().await {
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Makes a standby the primary, and waits until it takes writes.
    pub(crate) async fn promote(&self) {
        self.ask("select pg_promote(true, 60)::text").await;
        eventually(
            Duration::from_secs(60),
            "the standby is promoted",
            async || {
                self.ask("select pg_is_in_recovery()::text")
                    .await
                    .as_deref()
                    == Some("false")
            },
        )
        .await;
    }

    /// Adds to the settings for the next start.
    pub(crate) fn configure(&self, lines: &str) {
        let file = self.home.join("data/postgresql.auto.conf");
        let text = fs::read_to_string(&file).unwrap_or_default();
        fs::write(&file, format!("{text}\n{lines}\n")).expect("the settings can be written");
    }

    /// Turns a server that was stopped into a standby when it starts again.
    pub(crate) fn becomes_standby_of(&self, port: u16) {
        fs::write(self.home.join("data/standby.signal"), "").expect("the data is there");
        self.configure(&format!(
            "primary_conninfo = 'host=127.0.0.1 port={port} user=postgres'"
        ));
    }
}

impl Stage {
    /// One server, reached through a proxy.
    pub(crate) async fn primary(settings: &[&str]) -> Result<Self, String> {
        servers::janitor().await;
        let primary = Cluster::primary(settings).await?;
        Ok(Self {
            proxy: Proxy::to(primary.port).await,
            clusters: vec![primary],
            replication: None,
        })
    }

    /// One server, reached through a proxy, that has a small disk beside its own.
    pub(crate) async fn with_small_disk(bytes: u64) -> Result<Self, String> {
        servers::janitor().await;
        let primary = Cluster::with_small_disk(bytes).await?;
        Ok(Self {
            proxy: Proxy::to(primary.port).await,
            clusters: vec![primary],
            replication: None,
        })
    }

    /// A primary and its standby, which the proxy does not lead to yet.
    pub(crate) async fn with_standby(synchronous: bool) -> Result<Self, String> {
        let mut stage = Self::primary(&[]).await?;
        let primary = &stage.clusters[0];
        let link = Proxy::to(primary.port).await;
        let standby = Cluster::standby(link.port(), "standby", &[]).await?;
        if synchronous {
            for sql in [
                "alter system set synchronous_standby_names = 'standby'",
                "select pg_reload_conf()::text",
            ] {
                primary.ask(sql).await;
            }
        }
        let follows = "select sync_state from pg_stat_replication where state = 'streaming'";
        let wanted = if synchronous { "sync" } else { "async" };
        eventually(Duration::from_secs(60), "the standby follows", async || {
            primary.ask(follows).await.as_deref() == Some(wanted)
        })
        .await;
        stage.clusters.push(standby);
        stage.replication = Some(link);
        Ok(stage)
    }

    /// A database URL by way of the proxy.
    pub(crate) fn url(&self) -> String {
        self.proxy.url(&self.clusters[0].url())
    }

    pub(crate) async fn remove(self) {
        for cluster in self.clusters {
            cluster.server.remove().await;
        }
    }
}
