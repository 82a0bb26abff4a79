//! PgBouncer before a database, as a process of its own.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

use super::janitor::directory;
use super::local::unprivileged;
use super::{eventually, servers};

/// Hands each transaction to any of a few server processes. It ends when this is dropped.
pub(crate) struct PgBouncer {
    port: u16,
    child: Child,
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl PgBouncer {
    /// Starts one before the server of `url`, with at most `size` connections to it, as the user it names.
    pub(crate) async fn before(url: &str, size: u16) -> Result<Self, String> {
        const PROGRAM: &str = "/usr/sbin/pgbouncer";
        let port = servers::free_port();
        let server = url
            .rsplit_once('@')
            .and_then(|(_, rest)| rest.split_once('/'));
        let (server, _) = server.ok_or("the URL names a user, a host and a database")?;
        let (host, to) = server.rsplit_once(':').ok_or("the URL names a port")?;
        let user = url
            .split_once("://")
            .and_then(|(_, rest)| rest.split_once('@'));
        let user = user.and_then(|(user, _)| user.split_once(':'));
        let (user, password) = user.ok_or("the URL names a user and a password")?;
        let home = directory().join(format!("pgbouncer-{port}"));
        fs::create_dir_all(&home).map_err(|error| error.to_string())?;
        let settings = home.join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={host} port={to} user={user} password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = {size}\nmax_client_conn = 500\n"
        );
        fs::write(&settings, text).map_err(|error| error.to_string())?;
        let log = fs::File::create(home.join("log")).map_err(|error| error.to_string())?;
        let mut command = Command::new(PROGRAM);
        command
            .arg(&settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        unprivileged(&mut command, &home)?;
        let child = command
            .spawn()
            .map_err(|error| format!("{PROGRAM}: {error}: the package `pgbouncer` has it"))?;
        let bouncer = Self { port, child };
        let url = bouncer.url(url);
        eventually(Duration::from_secs(60), "PgBouncer answers", async || {
            // it refuses start-up parameters that it does not know, which are the driver's default
            let options = url.parse::<PgConnectOptions>().expect("a URL");
            let connected = PgConnection::connect_with(&options.extra_float_digits(None)).await;
            connected.is_ok()
        })
        .await;
        Ok(bouncer)
    }

    /// `url` by way of this pooler.
    pub(crate) fn url(&self, url: &str) -> String {
        let (_, path) = url.rsplit_once('/').expect("the URL names a database");
        format!("postgres://postgres@127.0.0.1:{}/{path}", self.port)
    }
}
