//! How a connection to Postgres is made safe, and what is said where it is not.
//!
//! What the URL does not say is decided here: away from this machine the certificate and its name are
//! verified. A weaker mode must be named, by `sslmode` in the URL, and is told of at the start. The driver
//! reads the files that the URL names at each connection, so what is renewed on disk is in force for the next.

use rustls::Error as TlsError;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::error::{Cause, Error};
use super::session::options;
use crate::certificate::{Peer, Trouble, is_this_machine};
use crate::config::{Database, parameter};

const PEER: Peer<'_> = Peer {
    name: "Postgres",
    authority: "sslrootcert of database.url",
    address: "database.url",
    own: "the files that sslcert and sslkey of database.url name",
};

/// What to write where nobody verifies the server.
pub const VERIFY: &str = "write sslmode=verify-full into database.url, and sslrootcert=FILE where the authority is your own";

/// `options`, which were read from `url`, with the mode that counts where `url` names none.
pub(super) fn secured(options: PgConnectOptions, url: &str) -> PgConnectOptions {
    // as with psql: nobody is between, and servers offer no TLS there
    if is_socket(&options) {
        return options.ssl_mode(PgSslMode::Disable);
    }
    match names_mode(url) || is_local(&options) {
        true => options,
        false => options.ssl_mode(PgSslMode::VerifyFull),
    }
}

/// Whether `url` says how safe the connection must be. A variable of the environment does not count: it
/// would weaken a URL whose writer knows nothing of it.
fn names_mode(url: &str) -> bool {
    ["sslmode", "ssl-mode"]
        .iter()
        .any(|name| parameter(url, name).is_some())
}

fn is_socket(options: &PgConnectOptions) -> bool {
    options.get_socket().is_some() || options.get_host().starts_with('/')
}

/// Whether the connection stays on this machine.
pub(super) fn is_local(options: &PgConnectOptions) -> bool {
    is_socket(options) || is_this_machine(options.get_host())
}

/// In which way the connection to `database` is weaker than it should be, if it leaves this machine.
///
/// # Errors
/// The URL is no Postgres URL.
pub fn weakness(database: &Database) -> Result<Option<Trouble>, Error> {
    let options = options(database)?;
    if is_local(&options) {
        return Ok(None);
    }
    let what = match options.get_ssl_mode() {
        PgSslMode::VerifyFull => return Ok(None),
        PgSslMode::VerifyCa => {
            "sslmode=verify-ca compares no host name: any server with a certificate of the same \
             authority can answer in its place"
        }
        PgSslMode::Require => {
            "sslmode=require verifies no certificate: whoever is between can read along, the \
             password included"
        }
        PgSslMode::Prefer => {
            "sslmode=prefer goes on without encryption where the server, or whoever is between, \
             offers none"
        }
        PgSslMode::Allow | PgSslMode::Disable => {
            "without encryption, as sslmode says, whoever is between can read the events, and \
             change them"
        }
    };
    Ok(Some(Trouble::new(what, VERIFY)))
}

/// No connection came about by `options`, for `error`.
pub(super) fn refused(options: &PgConnectOptions, error: sqlx::Error) -> Error {
    let trouble = match is_socket(options) {
        true => None,
        false => trouble(&error),
    };
    match trouble {
        Some(trouble) => Error::Unsafe(trouble),
        None => Error::Connect(Cause::from(error)),
    }
}

/// What is wrong with TLS, if it is that.
fn trouble(error: &sqlx::Error) -> Option<Trouble> {
    let said = |what: String, next_step: &str| Some(Trouble::new(what, next_step));
    match error {
        sqlx::Error::Io(error) => {
            let inner = error.get_ref().and_then(|it| it.downcast_ref::<TlsError>());
            if let Some(error) = inner {
                return Some(PEER.trouble(error));
            }
            // an address that is wrong, or a server that is away, has other words
            use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
            let of_file = matches!(error.kind(), NotFound | NotADirectory | PermissionDenied);
            of_file.then_some(())?;
            said(
                format!(
                    "a file that sslrootcert, sslcert or sslkey of database.url names cannot be opened: \
                     {error}"
                ),
                "put it there, and let the relay's user read it",
            )
        }
        sqlx::Error::Tls(error) => match error.downcast_ref::<TlsError>() {
            Some(error) => Some(PEER.trouble(error)),
            None if error.to_string().contains("does not support TLS") => said(
                "the server offers no TLS, and the relay goes without it only where sslmode says so"
                    .to_owned(),
                "turn on ssl in Postgres, or write sslmode=disable into database.url if the way there is safe",
            ),
            None => said(
                format!("a certificate or key cannot be used: {error}"),
                "look at the files that sslrootcert, sslcert and sslkey of database.url name: PEM is wanted",
            ),
        },
        sqlx::Error::Configuration(error) => said(
            format!("the relay's own certificate or key cannot be used: {error}"),
            "look at the files that sslcert and sslkey of database.url name: both are wanted, as PEM, the \
             key without a password",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(url: &str) -> (PgSslMode, bool) {
        let options = secured(url.parse().unwrap(), url);
        (options.get_ssl_mode(), is_local(&options))
    }

    #[test]
    fn away_from_this_machine_the_server_is_verified_unless_the_url_says_otherwise() {
        for (url, wanted) in [
            ("postgres://db.example/x", "VerifyFull"),
            ("postgres://10.0.0.1/x", "VerifyFull"),
            ("postgres://0.0.0.0/x", "VerifyFull"),
            ("postgres://localhost.example/x", "VerifyFull"),
            ("postgres:///x?host=db.example", "VerifyFull"),
            ("postgres://localhost/x?hostaddr=10.0.0.1", "VerifyFull"),
            ("postgres://db.example/x?sslrootcert=/ca.pem", "VerifyFull"),
            (
                "postgres://db.example/x?application_name=sslmode",
                "VerifyFull",
            ),
            ("postgres://db.example/x?sslmode=require", "Require"),
            ("postgres://db.example/x?a=b&ssl-mode=verify-ca", "VerifyCa"),
            ("postgres://db.example/x?sslmode=disable", "Disable"),
        ] {
            let (mode, local) = mode(url);
            assert_eq!(format!("{mode:?}"), wanted, "{url}");
            assert!(!local, "{url}");
        }
    }

    #[test]
    fn on_this_machine_the_driver_decides_or_the_url() {
        for url in [
            "postgres://localhost/x",
            "postgres://127.0.0.1/x",
            "postgres://127.8.0.1/x",
            "postgres://[::1]/x",
            "postgres://%2Frun%2Fpg/x",
            "postgres:///x?host=/run/pg",
        ] {
            let (mode, local) = mode(url);
            assert!(local, "{url}");
            assert!(!matches!(mode, PgSslMode::VerifyFull), "{url}: {mode:?}");
        }
        let (verified, _) = mode("postgres://localhost/x?sslmode=verify-full");
        assert!(matches!(verified, PgSslMode::VerifyFull));
        // there is no TLS on a socket, whatever a URL or the environment asks for
        for url in [
            "postgres://%2Frun%2Fpg/x?sslmode=require",
            "postgres:///x?host=/run/pg&sslmode=verify-full",
        ] {
            let (mode, _) = mode(url);
            assert!(matches!(mode, PgSslMode::Disable), "{url}: {mode:?}");
        }
    }
}
