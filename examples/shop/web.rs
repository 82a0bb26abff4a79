//! As much HTTP as the shop needs: a server, by axum, and a client that asks one thing and hangs up.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::Failure;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often, and how far apart, to try to have a port back whose last owner was killed.
const BIND_TRIES: u32 = 100;
const BIND_PAUSE: Duration = Duration::from_millis(50);

/// Serves until the process ends.
pub(crate) async fn serve(listen: &str, api: Router) -> Result<(), Failure> {
    let mut tries = 0;
    let listener = loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => break listener,
            Err(error) if tries == BIND_TRIES => return Err(format!("{listen}: {error}").into()),
            Err(_taken) => sleep(BIND_PAUSE).await,
        }
        tries += 1;
    };
    axum::serve(listener, api).await?;
    Ok(())
}

/// The order that a path names.
pub(crate) fn order(id: &str) -> Result<Uuid, (StatusCode, String)> {
    let named = id.parse();
    named.map_err(|_| {
        (
            StatusCode::BAD_REQUEST,
            "an order's id is a uuid".to_owned(),
        )
    })
}

/// What whoever asked is told of a failure.
pub(crate) fn failed(why: impl Display) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, why.to_string())
}

/// Asks `host` for `path`; the status and the body of the answer. An error says that nobody answered, or not to
/// the end.
pub(crate) async fn ask(
    host: &str,
    method: &str,
    path: &str,
    body: &str,
) -> io::Result<(u16, String)> {
    let asking = async {
        let mut stream = TcpStream::connect(host).await?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        parsed(&answer).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    };
    timeout(ANSWER_TIMEOUT, asking).await?
}

/// The status and the body, if all of it is there.
fn parsed(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    (length? == body.len()).then(|| (status, body.to_owned()))
}
